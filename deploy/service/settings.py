"""What an operator decides about a service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.index.codes import DEPTHS
from domains.crops import MAX_BYTES, MAX_PIXELS
from domains.errors import UsageError

MAX_TOP = DEPTHS[-1]
"""Matches per image; anyone who wants more wants the gallery, not an answer."""


@dataclass(frozen=True)
class Settings:
    """Limits and paths of a service.

    Attributes:
        tokens: file of ``reid token``; ``None``: no token is required, which is allowed only for a service that listens
            on this machine alone.
        audit: the audit log's database; by default beside the gallery's folder.
        keep_audit: days that records of the audit log are kept; ``None``: for ever.
        require_reason: whether a query must state its reason.
        max_image_bytes: bytes of one uploaded image.
        max_pixels: pixels of one uploaded image, by its header, before it is decoded.
        max_images: images per request.
        max_body_bytes: bytes of one request.
        max_buffered_bytes: bytes of all requests being read or answered.
        rate: requests per second and token, in the long run, with bursts of twice as many; each further image counts as
            a request. 0: no limit.
        queue: requests read or answered at a time; the next one is refused with 503.
        timeout: seconds that an answer may take.
        body_timeout: seconds that a client may take to send its request.
        bundles: folder whose sub-folders a gallery may be upgraded to; ``None``: no upgrades over HTTP.
        pictures: folders whose images may be shown as thumbnails; none by default.
        hosts: further host names by which a service without tokens may be addressed.
    """

    tokens: Path | None = None
    audit: Path | None = None
    keep_audit: int | None = 365
    require_reason: bool = True
    max_image_bytes: int = 4 * 2**20
    max_pixels: int = 4_000_000
    max_images: int = 16
    max_body_bytes: int = 16 * 2**20
    max_buffered_bytes: int = 256 * 2**20
    rate: float = 50.0
    queue: int = 64
    timeout: float = 30.0
    body_timeout: float = 15.0
    bundles: Path | None = None
    pictures: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every value; raises UsageError."""
        for name, most in (
            ("max_image_bytes", MAX_BYTES),
            ("max_pixels", MAX_PIXELS),
            ("max_images", 256),
            ("max_body_bytes", 2**30),
            ("max_buffered_bytes", 2**40),
            ("queue", 4096),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise UsageError(f"{name.replace('_', '-')} must be a whole number from 1 to {most}, got {value!r}")
        for name, least in (("rate", 0.0), ("timeout", 0.1), ("body_timeout", 0.1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= 1e6:
                raise UsageError(f"{name.replace('_', '-')} must be a number from {least:g}, got {value!r}")
        if self.keep_audit is not None and not 1 <= self.keep_audit <= 36500:
            raise UsageError(f"keep-audit must be 1 to 36500 days, got {self.keep_audit!r}")
        if self.max_buffered_bytes < self.max_body_bytes:
            raise UsageError(
                f"max-buffered-bytes must allow one request of {self.max_body_bytes} bytes, got "
                f"{self.max_buffered_bytes}"
            )
        for folder in (*self.pictures, *([self.bundles] if self.bundles else [])):
            if not folder.is_dir():
                raise UsageError(f"{folder} is not a folder; create it, or leave the option out")
