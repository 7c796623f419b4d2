"""Evaluation of a model, and the score matrix of every model on every domain. Needs no torch."""
