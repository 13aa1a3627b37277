"""Benchmarks: contenders measured side by side in one run, and what the service itself adds."""
