"""Opening the gallery that a command names: for a bundle, and made if it is missing."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from deploy.bundle import Bundle
from deploy.gallery.gallery import Gallery
from deploy.store.access import is_there
from deploy.store.store import DATABASE
from domains.errors import GalleryError, UsageError


def open_or_create(
    path: str | PathLike[str], bundle: str | PathLike[str] | None = None, *, keep_crops: bool = False
) -> Gallery:
    """Open a gallery, or create a missing one for ``bundle``, which it then records.

    ``keep_crops`` applies when the gallery is created; an existing one must have been created with it.

    Raises:
        UsageError: a missing gallery without a bundle to create it for, or ``keep_crops`` for one that keeps none.
        GalleryError: ``bundle`` gives embeddings in another space than the gallery's.
    """
    made_for = None if bundle is None else Bundle.load(bundle, verify=False)
    if not is_there(Path(path) / DATABASE):
        if made_for is None or bundle is None:
            raise UsageError(f"there is no gallery at {path}; name the bundle to create it for (--bundle)")
        return Gallery.create(path, made_for.dim, made_for.feature_space, made_for, keep_crops=keep_crops)
    gallery = Gallery.open(path)
    if keep_crops and not gallery.keeps_crops:
        gallery.close()
        raise UsageError(f"{path} was created without pictures; leave out --keep-crops, or create another gallery")
    if made_for is not None and made_for.feature_space != gallery.feature_space:
        gallery.close()
        raise GalleryError(
            f"{path} was created with a different model than {bundle}; use its own bundle, or upgrade the gallery"
        )
    return gallery
