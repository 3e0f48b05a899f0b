"""The benchmark: ``python -m xconv.bench`` times a suite of layers against other libraries."""
