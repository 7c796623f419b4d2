"""The model: backbone, pooling, embedding, neck, classifier, and what can be put beside it."""
