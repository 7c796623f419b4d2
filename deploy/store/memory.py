"""Too little memory, said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from domains.errors import GalleryError

NO_MEMORY = "there is not enough memory; end other programs, or ask for less at a time, and try again"


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Raise GalleryError in place of MemoryError; ``what`` could not be done."""
    try:
        yield
    except MemoryError as error:
        raise GalleryError(f"{what}: {NO_MEMORY}") from error
