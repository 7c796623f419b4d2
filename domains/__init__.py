"""What a camera domain is: its crops, its layouts on disk, and how retrieval on it is scored."""

from domains.crops import CropSpec
from domains.domain import Domain, Split, union
from domains.formats import open_domain as open  # noqa: A004 - `domains.open(path)` reads as it should

__all__ = ["CropSpec", "Domain", "Split", "open", "union"]
