"""Commands that measure: each prints tables and keeps its results as small JSON under ``benchmarks/results``."""

import domains  # noqa: F401 - before any command imports ONNX Runtime, which is to report to nobody
