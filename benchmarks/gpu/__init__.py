"""One check of everything that touches a GPU: ``python -m benchmarks.gpu``."""
