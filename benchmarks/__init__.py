"""Benchmarks: what the broker costs, beside a bare script that does the same. `make bench` runs them all."""
