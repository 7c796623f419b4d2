"""The FAISS copy of a store that answers searches."""

from deploy.index.index import Index

__all__ = ["Index"]
