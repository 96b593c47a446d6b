"""Workloads: file formats, synthetic requests, length distributions, arrivals."""
