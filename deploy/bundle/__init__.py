"""What the edge is given: a graph, its manifest, and the proof of what it does."""

from deploy.bundle.bundle import Bundle, Golden, revise_bundle, write_bundle

__all__ = ["Bundle", "Golden", "revise_bundle", "write_bundle"]
