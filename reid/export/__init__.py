"""From a sealed step to a bundle for the edge."""

from reid.export.export import Provenance, export_run

__all__ = ["Provenance", "export_run"]
