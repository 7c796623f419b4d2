"""What people and cameras are called: which labels mean nobody, and which are one label written in two ways.

A label reaches a domain as text: from a column that a spreadsheet or a data frame has rewritten (``-1`` becomes
``-1.0``, or ``-1,0`` where decimals have a comma, and ``0010`` becomes ``10``), or from a folder's name, which one
system stores composed and another decomposed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from domains.domain import Domain

_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"))
_ZEROS = r"(?:\.0*|,(?!000(?![0-9]))0*)"
"""What follows a whole number that was written as a decimal; three zeros after a comma may be thousands."""
_JUNK = re.compile(rf"- ?0*1{_ZEROS}?(?:e[+-]?0+)?", re.ASCII)
_NEGATIVE = re.compile(r"- ?[0-9]+(?:[.,][0-9]*)?(?:e[+-]?[0-9]+)?", re.ASCII)
_WHOLE = re.compile(rf"([+-]?[0-9]+){_ZEROS}", re.ASCII)
_QUOTED = re.compile(r"['\u2019`]- ?[0-9]+(?:[.,][0-9]*)?|\( ?[0-9]+(?:[.,][0-9]*)? ?\)", re.ASCII)
"""A negative number as spreadsheets show it: as text, or as accountants write it."""
_COLLAPSED = re.compile(r"[+-]?[0-9](?:[.,][0-9]+)?e\+[0-9]+", re.ASCII)
_BACKGROUND = re.compile(r"00+", re.ASCII)
_NOBODY = frozenset(
    (
        *("?", "n/a", "na", "nan", "none", "null", "nil", "missing", "undefined", "unknown", "unlabeled", "unlabelled"),
        *("<na>", "#n/a", "#na", "#n/v", "#nv", "nat", "-", "--", "inf", "+inf", "-inf", "infinity", "-infinity"),
        *("#null!", "#ref!", "#value!", "#name?", "#num!", "#div/0!", "(null)", "<null>", "<none>"),
        *("nobody", "no_id", "noid", "unidentified", "junk", "distractor", "distractors", "background", "bg"),
    )
)


@dataclass(frozen=True)
class Alike:
    """Labels that count as different though they may be one.

    Attributes:
        of: ``identities`` or ``cameras``.
        labels: two or more labels that differ only as :func:`alike` says.
    """

    of: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Doubtful:
    """A label that counts as one person or camera though it may stand for none or for many, and why.

    Attributes:
        of: ``identities`` or ``cameras``.
        label: the label.
        reason: what makes it doubtful.
    """

    of: str
    label: str
    reason: str


def alike_labels(domain: Domain) -> tuple[Alike, ...]:
    """Identities of a domain, and cameras, that may be one under several labels."""
    labels = {"identities": domain.identities, "cameras": domain.cameras}
    return tuple(Alike(of, group) for of, known in labels.items() for group in alike(known))


def doubtful_labels(domain: Domain) -> tuple[Doubtful, ...]:
    """Identities of a domain that may be nobody, or many people under one label, and cameras likewise."""
    people = (Doubtful("identities", label, reason) for label in domain.identities if (reason := doubtful(label)))
    cameras = (Doubtful("cameras", label, reason) for label in domain.cameras if (reason := doubtful_camera(label)))
    return (*people, *cameras)


def label_findings(found: Sequence[Alike], doubts: Sequence[Doubtful]) -> Iterator[tuple[str, list[str]]]:
    """Yield a title and its entries for each kind of finding, for a report; the number of entries goes before it."""
    for of, one in (("identities", "person"), ("cameras", "camera")):
        yield (
            f"groups of labels that are nearly the same count as different {of} (rename them if each is one {one})",
            [quoted(item.labels) for item in found if item.of == of],
        )
    yield (
        "identities count as a person though their label may mean nobody (junk has the pid -1)",
        [f"{item.label!r}: {item.reason}" for item in doubts if item.of == "identities"],
    )
    yield (
        "labels count as a camera though they may mean none, or several",
        [f"{item.label!r}: {item.reason}" for item in doubts if item.of == "cameras"],
    )


def is_junk(label: str) -> bool:
    """Whether a label is -1, however it is written: ``-01``, ``-1.0``, ``-1,0``, with spaces or a typographic minus."""
    return _JUNK.fullmatch(_plain(label)) is not None


def alike(labels: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Group labels that differ only in leading zeros, ``.0``, ``,0``, case, spaces, dashes or how accents are composed.

    Groups of one are left out; groups and labels are in the order in which they first come.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for label in dict.fromkeys(labels):
        groups[_likeness(label)].append(label)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def doubtful(label: str) -> str:
    """Why an identity's label may stand for no one person, or ``""``."""
    text = _plain(label)
    if _NEGATIVE.fullmatch(text):
        return "only -1 marks junk"
    if _QUOTED.fullmatch(text):
        return "it reads like a negative number as a spreadsheet shows it; only -1 marks junk"
    if _BACKGROUND.fullmatch(text):
        return "in Market-1501's numbering it is background, many people under one number"
    return _unusual(text)


def doubtful_camera(label: str) -> str:
    """Why a camera's label may stand for no one camera, or ``""``."""
    text = _plain(label)
    if _NEGATIVE.fullmatch(text) or _QUOTED.fullmatch(text):
        return "it reads like a missing label, as no camera has a negative number"
    return _unusual(text)


def _unusual(text: str) -> str:
    """Why a plain label may stand for none or for many, whatever it labels, or ``""``."""
    if _COLLAPSED.fullmatch(text):
        return "it reads like a number that a spreadsheet rounded, so that several may have become one"
    return "it reads like a missing label" if text.replace(" ", "_") in _NOBODY else ""


def quoted(labels: Iterable[str]) -> str:
    """Labels quoted for a message, escaped where they would look the same."""
    listed = list(labels)
    looks = {unicodedata.normalize("NFKC", label) for label in listed}
    return " and ".join((repr if len(looks) == len(listed) else ascii)(label) for label in listed)


def _plain(label: str) -> str:
    """The label without case, compatibility forms, doubled spaces and typographic dashes."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return " ".join(text.translate(_MINUS).split())


def _likeness(label: str) -> str:
    text = _plain(label)
    if whole := _WHOLE.fullmatch(text):
        text = whole[1]
    text = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", text)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)
