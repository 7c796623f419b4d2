"""Market-1501 and everything else in its layout (DukeMTMC-reID, LPW_s2, repackaged MSMT17 and CUHK03-NP, many private
sets).

Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015. ``0002_c1s1_000451_03.jpg`` is person 2 seen
by camera 1. Person ``-1`` is junk (a bad detection of somebody: neither a match nor a miss); person ``0000`` is
background: it stays in the gallery as identity ``0``, which no query has.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.labels import is_junk
from domains.formats.listing import first_folder, join, matching

NAME = "market1501"
DESCRIPTION = "bounding_box_train/, query/ and bounding_box_test/ with names like 0002_c1s1_000451_03.jpg"

BASES = ("", "Market-1501-v15.09.15", "Market-1501", "DukeMTMC-reID", "LPW_s2")
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PATTERN = re.compile(r"([-\u2212]0{0,8}1|[0-9]{1,9})_c([0-9]{1,4})(?:[^0-9].*)?", re.ASCII)
BACKGROUND = "0"

Row = tuple[str, str, str | None, str]


def recognise(root: Path) -> bool:
    """Whether the three folders, or at least the training or both test folders, are there."""
    return base_of(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the domain; raises DataError if a folder can't be listed or there is no crop."""
    notes: list[str] = []
    return from_rows(name, root, NAME, rows_below(root, base_of(root) or "", notes), notes=notes)


def base_of(root: Path, bases: tuple[str, ...] = BASES) -> str | None:
    """The first of ``bases`` below ``root`` that is in this layout."""
    for base in bases:
        train, query, gallery = (first_folder(root, join(base, folder)) is not None for folder in FOLDERS.values())
        if train or (query and gallery):
            return base
    return None


def rows_below(root: Path, base: str, notes: list[str]) -> list[Row]:
    """Rows of the crops in ``root/base``; what is left out is added to ``notes``."""
    rows: list[Row] = []
    for split, folder in FOLDERS.items():
        inner = join(base, folder)
        if first_folder(root, inner) is None:
            notes.append(f"there is no {inner}/, so the {split} split is empty")
            continue
        for path, match in matching(root, inner, PATTERN, "0002_c1s1_000451_03.jpg", notes):
            person = None if is_junk(match[1]) else str(int(match[1]))
            rows.append((split, path, person, str(int(match[2]))))
    junk = sum(row[0] == "train" and row[2] is None for row in rows)
    if junk:
        notes.append(f"{junk} junk crops (identity -1) in the train split are not learned")
    for split in ("train", "query"):
        if count := sum(row[0] == split and row[2] == BACKGROUND for row in rows):
            notes.append(
                f"{count} crops of the {split} split are of identity 0 and count as one person; in Market-1501 itself "
                "0000 is background, which only the gallery has: if so here, name them -1"
            )
    return rows
