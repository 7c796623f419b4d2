"""Store and index as one thing: the durable memory of who was seen where, and when."""

from deploy.gallery.gallery import Gallery
from deploy.gallery.opening import open_or_create

__all__ = ["Gallery", "open_or_create"]
