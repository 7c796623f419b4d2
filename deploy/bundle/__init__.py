"""What the edge receives: a graph, its manifest, and proof that it works."""

from deploy.bundle.bundle import Bundle, Golden, revise_bundle, write_bundle

__all__ = ["Bundle", "Golden", "revise_bundle", "write_bundle"]
