"""From a sealed step to a bundle for the edge."""

from reid.export.export import Provenance, Serving, export_run

__all__ = ["Provenance", "Serving", "export_run"]
