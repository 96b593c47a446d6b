"""From records to predicted lengths: prompt features, output-length distributions, drift, calibration."""
