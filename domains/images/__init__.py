"""Image files before they are decoded: their size, what a decoder must do for them, and which way up they are shown."""

from domains.images.exif import upright
from domains.images.still import FORMATS, Still, image_size, read_still

__all__ = ["FORMATS", "Still", "image_size", "read_still", "upright"]
