"""Crops to embeddings with ONNX Runtime."""

from deploy.encoder.encoder import Encoder

__all__ = ["Encoder"]
