"""The authoritative store of a gallery, in SQLite."""

from deploy.store.store import Store

__all__ = ["Store"]
