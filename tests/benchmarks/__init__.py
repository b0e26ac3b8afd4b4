"""Benchmarks beside the plain way: loading, `make bench-data`; training, `make bench-train`."""
