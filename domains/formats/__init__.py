"""Opening a folder as a camera domain: fourteen published layouts, a folder per person, or ``domain.csv``.

Each layout is one small module with ``NAME``, ``DESCRIPTION``, ``recognise`` and ``read``. To add one, write the module
and put it into ``_ORDERED``: the first that recognises a folder reads it, so specific layouts come before general ones,
and ``domain.csv`` before all.
"""

from __future__ import annotations

from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Protocol

from domains.choice import check_choice
from domains.domain import Domain, SameCamera
from domains.errors import DataError, EmptyError, UsageError
from domains.formats import (
    caviar4reid,
    cuhk01,
    cuhk02,
    cuhk03,
    cuhk_sysu,
    folders,
    grid,
    ilids,
    lpw,
    market1501,
    msmt17,
    prid2011,
    sensereid,
    table,
    three_dpes,
    viper,
)
from domains.formats.leftovers import LeftOut, survey
from domains.formats.listing import folders as folder_names
from domains.formats.listing import images, instead_of_folder, some

__all__ = ["LAYOUTS", "Layout", "left_out", "open_domain"]

GLANCE = 50
"""Number of inner folders examined to tell a user which of them is the domain."""
LOOK = 10_000
"""Number of files examined to tell a user why a folder is no domain."""


class Layout(Protocol):
    """How one way of storing crops is recognised and read; each layout module implements it."""

    NAME: str
    DESCRIPTION: str

    def recognise(self, root: Path) -> bool:
        """Whether the folder is in this layout, judging by a few names."""
        ...

    def read(self, root: Path, name: str) -> Domain:
        """Read the folder; raises DataError."""
        ...


_ORDERED: tuple[Layout, ...] = (
    table,
    market1501,
    msmt17,
    cuhk03,
    cuhk_sysu,
    lpw,
    sensereid,
    grid,
    cuhk02,
    cuhk01,
    ilids,
    prid2011,
    viper,
    three_dpes,
    caviar4reid,
    folders,
)
LAYOUTS: dict[str, Layout] = {layout.NAME: layout for layout in _ORDERED}
"""All layouts by name, in the order in which they are tried."""
OWN_FILES = frozenset({table.FILE, cuhk03.SPLIT_FILE, *(file for file, *_ in msmt17.LISTS)})
"""Files other than images that some layout reads."""


def open_domain(
    path: str | PathLike[str],
    *,
    name: str | None = None,
    layout: str | None = None,
    same_camera: SameCamera | None = None,
) -> Domain:
    """Open a folder as a camera domain, without decoding any image.

    Args:
        path: the folder.
        name: name of the domain; by default its folder's name.
        layout: one of ``LAYOUTS``; by default it is recognised.
        same_camera: how its queries are scored; by default the layout's rule, which is ``drop`` but for a folder per
            person where there is only one camera.

    Raises:
        DataError: the folder is missing, in no known layout, not in the requested one, or its content can't be used.
        UsageError: unknown layout or rule.

    Example:
        >>> import domains
        >>> north = domains.open("sites/north")
        >>> north.name, len(north.train), north.cameras
        ('north', 18, ('plaza-1', 'plaza-2'))
    """
    if layout is not None and layout not in LAYOUTS:
        close = get_close_matches(layout, LAYOUTS, 1)
        raise UsageError(
            f"unknown layout {layout!r}{f' (did you mean {close[0]!r}?)' if close else ''}; known layouts: "
            f"{', '.join(LAYOUTS)}"
        )
    if same_camera is not None:
        check_choice("same_camera", same_camera, SameCamera)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} {instead_of_folder(root)}")
    reader = LAYOUTS[layout] if layout is not None else _recognised(root)
    if layout is not None and not reader.recognise(root):
        raise DataError(
            f"{root} is not in the layout {layout}, which expects {reader.DESCRIPTION}; found {_contents(root)}"
            + (f"; {reason}" if reader is folders and (reason := folders.no_people(root)) else "")
        )
    try:
        domain = reader.read(root, name or root.resolve().name or "domain")
    except EmptyError as error:
        raise DataError(f"{error}{_left_out_in(root, 'images that are not read')}") from error
    return domain if same_camera is None else domain.scored_as(same_camera)


def left_out(domain: Domain) -> tuple[LeftOut, ...]:
    """What lies in a domain's folder and is not in the domain, by reason.

    Raises:
        DataError: the folder can't be read.
    """
    if domain.format not in LAYOUTS:
        return ()  # a union, or made of rows: no folder was read
    used = {path for _, split in domain.splits() for path in split.paths}
    unused = (
        f"images that {table.FILE} does not list"
        if domain.format == table.NAME
        else f"images that the layout {domain.format} does not read"
    )
    return survey(domain.root, used=used, unused=unused, own=OWN_FILES).left_out


def _left_out_in(root: Path, unused: str = "") -> str:
    """What is in a folder that is no domain, to end a sentence; images count if there is a word for them."""
    left = survey(root, used=(), unused=unused, own=OWN_FILES, most=LOOK).left_out
    counted = [str(item) for item in left if item.reason]
    return f"; left out: {', '.join(counted)}" if counted else ""


def _recognised(root: Path) -> Layout:
    for layout in _ORDERED:
        if not layout.recognise(root):
            continue
        if layout is not folders:
            return layout
        inner = _inner_domains(root)
        if not inner:
            return layout
        raise DataError(f"{root} holds domains but is not one itself; open one of them: {some(inner)}")
    inner = _inner_domains(root)
    general = (
        "write a domain.csv with the columns path,pid,camid,split, or make one folder per person, with the camera in "
        "each file's name (anna/0001_c1.jpg)"
    )
    own = folders.no_people(root) or _one_person(root) or general
    advice = f"open one of the domains in it: {some(inner)}" if inner else own
    raise DataError(
        f"{root} is not a camera domain; found {_contents(root)}{_left_out_in(root)}; known layouts: "
        f"{', '.join(LAYOUTS)}; {advice}"
    )


def _one_person(root: Path) -> str:
    """Say that the only images are in one folder, and so of one person, if they are; else ``""``."""
    inner = folder_names(root)
    if len(inner) != 1 or images(root, "") or not images(root, inner[0]):
        return ""
    return (
        f"its only folder of images, {inner[0]}/, would be one person, and a domain needs at least two; if they are in "
        "it, make one folder per person, or write a domain.csv with the columns path,pid,camid,split"
    )


def _inner_domains(root: Path) -> list[str]:
    specific = _ORDERED[:-1]
    return [
        f"{name}/" for name in folder_names(root)[:GLANCE] if any(layout.recognise(root / name) for layout in specific)
    ]


def _contents(root: Path) -> str:
    inner, crops = folder_names(root), images(root, "")
    parts = [f"folders {some(inner)}"] if inner else []
    parts += [f"{len(crops)} images such as {crops[0].rpartition('/')[2]}"] if crops else []
    return " and ".join(parts) or "neither folders nor images"
