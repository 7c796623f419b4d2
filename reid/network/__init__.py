"""The model: backbone, pooling, embedding, neck and classifier; its weights, adapters and runtime."""
