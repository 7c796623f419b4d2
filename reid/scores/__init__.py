"""How well a model does, and the matrix of every model on every domain. Needs no torch."""
