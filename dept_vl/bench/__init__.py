"""Benchmarks: ratios within one run, each printed as one table."""
