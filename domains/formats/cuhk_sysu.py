"""CUHK-SYSU, a person search set, as the lifelong re-ID benchmark crops it.

Xiao et al., "Joint Detection and Identification Feature Learning for Person Search", CVPR 2017; crops as in Pu et al.,
"Lifelong Person Re-Identification via Adaptive Knowledge Accumulation", CVPR 2021, whose code writes
``cuhksysu4reid/{train,query,gallery}/00001_s123_0000001_0.jpg``: person, scene image, running number, hardness. That
benchmark trains on people with at least four crops (942 of them), and so does this module; a set where nobody has four
is used whole. There are no fixed cameras: each split counts as one, as in the benchmark's code, so that no match is
dropped. The other known form, ``cropped_images/p11422_s16929_1.jpg``, has no test split and is training data only.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.listing import first_folder, holds, join, matching

NAME = "cuhk_sysu"
DESCRIPTION = (
    "cuhksysu4reid/ with train/, query/ and gallery/ and names like 00001_s123_0000001_0.jpg, or cropped_images/ "
    "(training only)"
)

BASES = ("", "cuhksysu4reid", "CUHK-SYSU/cuhksysu4reid")
SPLIT = re.compile(r"([0-9]{1,9})_s([0-9]{1,9})_([0-9]{1,9})_([0-9]{1,3})", re.ASCII)
CROPPED = re.compile(r"p([0-9]{1,9})_s([0-9]{1,9})_([0-9]{1,9})", re.ASCII)
CAMERAS = {"train": "0", "gallery": "1", "query": "2"}
ENOUGH = 4


def recognise(root: Path) -> bool:
    """Whether a train folder, or the folder of crops, holds images with such names."""
    return _base(root) is not None or holds(root, "cropped_images", CROPPED)


def read(root: Path, name: str) -> Domain:
    """Read the domain; raises DataError if a folder can't be listed."""
    notes: list[str] = []
    rows: list[tuple[str, str, str | None, str]] = []
    base = _base(root)
    if base is None:
        matches = matching(root, "cropped_images", CROPPED, "p11422_s16929_1.jpg", notes)
        rows = [("train", path, str(int(match[1])), "0") for path, match in matches]
        notes.append("there is no test split in this form: it can be learned but not scored")
    else:
        for split, camera in CAMERAS.items():
            folder = join(base, split)
            if first_folder(root, folder) is None:
                notes.append(f"there is no {folder}/, so the {split} split is empty")
                continue
            for path, match in matching(root, folder, SPLIT, "00001_s123_0000001_0.jpg", notes):
                rows.append((split, path, str(int(match[1])), camera))
    notes.append("there are no fixed cameras: train, query and gallery count as one camera each")
    counts = Counter(row[2] for row in rows if row[0] == "train")
    few = {person for person, count in counts.items() if count < ENOUGH}
    if few and len(few) < len(counts):
        rows = [row for row in rows if row[0] != "train" or row[2] not in few]
        notes.append(
            f"{len(few)} of {len(counts)} train identities have fewer than {ENOUGH} crops and are left out, as in the "
            "lifelong benchmark"
        )
    return from_rows(name, root, NAME, rows, notes=notes)


def _base(root: Path) -> str | None:
    return next((base for base in BASES if holds(root, join(base, "train"), SPLIT)), None)
