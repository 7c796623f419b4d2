"""From a sealed step to a bundle for the edge."""

from reid.export.export import export_run

__all__ = ["export_run"]
