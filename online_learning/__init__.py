"""From records to beliefs: prompt features, output-length distributions, drift, calibration."""
