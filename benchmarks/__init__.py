"""Commands that measure: each prints tables and keeps its results as small JSON under ``benchmarks/results``."""
