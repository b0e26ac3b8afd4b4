"""The data benchmark: what loading costs, beside the plain way; `make bench-data`."""
