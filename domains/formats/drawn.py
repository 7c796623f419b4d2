"""Splits that the literature draws at random, drawn once and shipped, so that a score means the same on every machine.

The rule, for all of them: one ``random.Random(20261121)`` samples, in this order and from the sorted identities, viper
316 of 632, prid2011 100 of the 200 seen by both cameras, ilids 59 of the 119 with two or more images, caviar4reid 25 of
the 50 seen by both cameras, 3dpes 82 of the 164 with two or more sequences, grid 125 of 250, cuhk01 485 of 971. The
sample is the train half, except for 3dpes, where it is the test half. Identities outside those lists (one image, one
camera) are listed as ``also_train``. The lists are shipped because a generator may change; a file whose checksum does
not match is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from domains.artefact import content_id, read_json
from domains.errors import DataError, ReidError
from domains.formats.listing import some

FOLDER = Path(__file__).parent / "splits"


@dataclass(frozen=True)
class DrawnSplit:
    """Which identities of one data set are for training and which for testing, as plain numbers."""

    domain: str
    seed: int
    rule: str
    train: frozenset[int]
    test: frozenset[int]

    def side(self, identity: int) -> str | None:
        """``train``, ``test``, or None for an identity that the published data set does not have."""
        if identity in self.train:
            return "train"
        return "test" if identity in self.test else None

    def notes(self, found: Iterable[int]) -> list[str]:
        """What a user should know: which split this is, and how the identities on disk differ from the published
        list.
        """
        listed, here = self.train | self.test, set(found)
        lines = [f"train and test identities are the shipped draw of {self.domain} (seed {self.seed}): {self.rule}"]
        if missing := sorted(listed - here):
            lines.append(
                f"{len(missing)} of the {len(listed)} published identities are not here: {some(map(str, missing))}"
            )
        if unknown := sorted(here - listed):
            lines.append(
                f"{len(unknown)} identities are not in the shipped split and are left out: {some(map(str, unknown))}"
            )
        return lines


def drawn_split(domain: str, folder: Path = FOLDER) -> DrawnSplit:
    """Read and check a shipped split.

    Raises:
        DataError: the file is missing, malformed, or was changed after it was drawn.
    """
    path = folder / f"{domain}.json"
    try:
        values = read_json(path)
        digest = content_id({key: value for key, value in values.items() if key != "sha256"})
        train, test, also = (frozenset(values[key]) for key in ("train", "test", "also_train"))
        split = DrawnSplit(values["domain"], values["seed"], values["rule"], train | also, test)
    except ReidError as error:
        raise DataError(f"the shipped split of {domain} can't be read ({error}); reinstall lifelong-reid") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a shipped split; reinstall lifelong-reid") from error
    if values.get("sha256") != digest or split.domain != domain:
        raise DataError(f"{path} was changed after it was drawn: its sha256 does not match; reinstall lifelong-reid")
    return split
