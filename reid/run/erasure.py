"""Erasure: an identity, or a whole domain, removed from every step of a run.

Nothing else ever changes a sealed step. The files that hold erased data are rewritten without it (memories, classifier
rows, names on the cards, the scores of a domain) and the steps after them get new ids, all as one change: a kill at any
moment leaves either the old run or the erased one. The embedding path is untouched, so the feature space, and with it
every bundle and gallery, stays the same.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from domains.artefact import code_version, content_id, make_private, read_json, read_manifest, sha256_file, write_json
from domains.errors import ArtefactError, UsageError, first_line
from domains.text import shown
from prototypes.memory import Memory
from reid.config import nearest
from reid.network.checkpoint import read_tensors, save_weights
from reid.run import one_gallery
from reid.run.changes import LEFT_OVER, Changes, changing
from reid.run.sealed import CARD, IN_PROGRESS, MEMORY, SCHEMAS, Sealed
from reid.run.steps import Steps
from reid.scores.matrix import FILE, QUERIES

ERASURES, REPORT, ERASED = "erasures.json", "report.html", "erased"
WRITTEN_AGAIN = (REPORT, one_gallery.FILE)
"""Files of a run that may name whom it forgets and can be made anew: an erasure removes them."""
OWN = frozenset({"run.yaml", "backbone.onnx", FILE, QUERIES, ERASURES, *WRITTEN_AGAIN, ".lock"})

REMAINS = (
    "the weights were trained on these people's crops and are unchanged: there is no claim that they reveal nothing; "
    "to rule that out, retrain from scratch",
    "averages over a domain's people stay with it: its style, its metric, and the transport fitted on its crops",
    "not covered: bundles, galleries (reid gallery forget), the crops themselves, backups and copies of this run; the "
    "disk may still hold old blocks",
)
"""What an erasure does not remove, stated wherever one is carried out."""


@dataclass(frozen=True)
class Erasure:
    """What is to be erased, or has been.

    Attributes:
        kind: ``identity`` or ``domain``.
        people: rows of the erased identities among a step's own, by step.
        whole: steps whose domains are all erased, so that nothing of them is remembered.
        domains: names of the erased domains, by step.
        scored: names that are removed from the score matrix.
        files: paths in the run that are rewritten or removed.
        others: files in the run's folder that do not belong to it and are left unchanged.
        word: the name to search for in notes and paths.
    """

    kind: Literal["identity", "domain"]
    people: Mapping[int, tuple[int, ...]]
    whole: frozenset[int] = frozenset()
    domains: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    scored: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    word: str = field(default="", repr=False)

    @property
    def identities(self) -> int:
        """Number of identities to erase."""
        return sum(len(rows) for rows in self.people.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; they name nobody."""
        return {
            "kind": self.kind,
            "identities": self.identities,
            "steps": sorted({*self.people, *self.whole}),
            "files": list(self.files),
            "remains": list(REMAINS),
            "others": list(self.others),
        }


# ------------------------------------------------------------------------------------------------------------- planning


def plan_erasure(run: Steps, *, identity: str | None = None, domain: str | None = None) -> Erasure:
    """Find what has to be erased.

    Args:
        run: the run.
        identity: a person's label in every domain that has it, or ``LABEL@DOMAIN``.
        domain: a learned or scored domain's name.

    Raises:
        UsageError: not exactly one of the two was given, or the run does not know it.
        ArtefactError: a step is damaged; altered files must not be sealed again.
    """
    if (identity is None) == (domain is None):
        raise UsageError("say what to forget: either an identity or a domain")
    steps = [Sealed(step.folder, read_manifest(step.folder, CARD, kind="step", schemas=SCHEMAS)) for step in run.steps]
    erasure = _domain(run, steps, domain) if domain is not None else _identity(run, steps, str(identity))
    touched = {
        *erasure.people,
        *erasure.whole,
        *(step.index for step in steps if domain and _mentioned(step.card, domain)),
    }
    files = [f"steps/{step.folder.name}/{file}" for step in steps for file in _rewritten(step, steps, erasure, touched)]
    if erasure.scored:
        files += [FILE, QUERIES]
    files += [name for name in WRITTEN_AGAIN if (run.folder / name).is_file()]
    return replace(erasure, files=tuple(files), others=_others(run, steps))


def _identity(run: Steps, steps: Sequence[Sealed], identity: str) -> Erasure:
    label, _, where = identity.rpartition("@")
    known = {str(name) for step in steps for name in step.card["classes"]}
    if identity in known or not label or where not in run.learned:
        label, where = identity, ""
    people: dict[int, tuple[int, ...]] = {}
    for step in steps:
        rows = []
        for row, full in enumerate(step.card["classes"]):
            home, name = _split(step, str(full))
            if label == name and where in ("", home):
                rows.append(row)
        if rows:
            people[step.index] = tuple(rows)
    if not people:
        owner = f"domain {where} of {run.folder}" if where else str(run.folder)
        close = difflib.get_close_matches(label, known, n=1)
        raise UsageError(f"{owner} has learned no identity {label!r}{f'; did you mean {close[0]!r}?' if close else ''}")
    return Erasure("identity", people, word=label)


def _domain(run: Steps, steps: Sequence[Sealed], domain: str) -> Erasure:
    people, whole, domains = {}, set(), {}
    for step in steps:
        if domain not in step.learned:
            continue
        domains[step.index] = (domain,)
        if set(step.learned) == {domain}:
            whole.add(step.index)
        people[step.index] = tuple(
            row for row, full in enumerate(step.card["classes"]) if _split(step, str(full))[0] == domain
        )
    scored = (domain,) if domain in run.scores.scored or any(domain in names for names in run.scores.learned) else ()
    if not domains and not scored:
        together = {name for kept in one_gallery.read(run.folder).values() for name in kept.sites}
        if domain not in together:
            known = {*run.learned, *run.scores.scored, *together}
            raise UsageError(f"{run.folder} has no domain {domain!r}{nearest(domain, known)}")
    return Erasure("domain", people, frozenset(whole), domains, scored, word=domain)


def _split(step: Sealed, full: str) -> tuple[str, str]:
    """Domain and label of an identity: a step that learned several domains at once names them ``domain/label``."""
    for name in sorted(step.learned, key=len, reverse=True):
        if full.startswith(f"{name}/"):
            return name, full.removeprefix(f"{name}/")
    return step.learned[0] if len(step.learned) == 1 else "", full


def _mentioned(card: Mapping[str, Any], name: str) -> bool:
    return any(_names(line, name) for line in [*card["notes"], *card["train"].get("left_out", [])])


def _names(line: str, name: str) -> bool:
    """Whether a line contains the name as a whole word."""
    return bool(re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", line))


def _rewritten(step: Sealed, steps: Sequence[Sealed], erasure: Erasure, touched: set[int]) -> list[str]:
    """Files of a step that change: those with erased data, and from the first such step on every card."""
    if not touched or step.index < min(touched):
        return []
    gone, files = _global_rows(steps, erasure), []
    for name in step.card["files"]:
        if name == MEMORY:
            if step.index in erasure.people or step.index in erasure.whole:
                files.append(name)
        elif name.endswith(".safetensors") and gone and _rows(step.folder / name) > gone[0]:
            files.append(name)
    return [*files, CARD]


def _rows(path: Path) -> int:
    """Number of classifier rows in a file of weights; -1 if it has no classifier."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            has_classifier = "classifier.weight" in set(stored.keys())
            return int(stored.get_slice("classifier.weight").get_shape()[0]) if has_classifier else -1
    except Exception as error:  # the library raises its own errors, torch's and Python's
        raise ArtefactError(f"can't read {path}: {shown(first_line(error)):.200}") from error


def _global_rows(steps: Sequence[Sealed], erasure: Erasure) -> list[int]:
    """Positions of the erased identities in a classifier with rows for everyone."""
    starts = [0, *itertools.accumulate(len(step.card["classes"]) for step in steps)]
    return sorted(starts[index] + row for index, rows in erasure.people.items() for row in rows)


def _others(run: Steps, steps: Sequence[Sealed]) -> tuple[str, ...]:
    own = {run.folder / name for name in OWN} | {
        step.folder / name for step in steps for name in [CARD, *step.card["files"]]
    }
    return tuple(
        sorted(
            str(file.relative_to(run.folder))
            for file in run.folder.rglob("*")
            if file.is_file() and file not in own and not file.match(LEFT_OVER) and IN_PROGRESS not in file.parts
        )
    )


# -------------------------------------------------------------------------------------------------------------- erasing


def erase(run: Steps, found: Erasure, *, discard_progress: bool) -> None:
    """Carry out an erasure; the caller holds the run's lock.

    Args:
        run: the run.
        found: what is to be erased.
        discard_progress: discard an unfinished step; it was trained on what is to be erased.

    Raises:
        UsageError: a step is in progress.
        ArtefactError: the disk is full or failed; nothing was changed.
    """
    unfinished = sorted(
        folder.parent
        for folder in (run.folder / "steps").glob(f"*/{IN_PROGRESS}")
        if not (folder.parent / CARD).is_file()
    )
    unfinished += sorted((run.folder / "steps").glob(".replaced-*"))
    if unfinished and not discard_progress:
        raise UsageError(
            f"{unfinished[0].name.removeprefix('.replaced-')} was started but not finished, and its state holds what "
            "is to be forgotten; continue it with reid learn, or add --discard-progress to discard that progress"
        )
    with changing(run.folder) as changes:
        renewed = _renew_steps(run, found, changes)
        if found.scored:
            _renew_scores(run, found, changes)
        _record(run.folder, found, renewed, changes)
        for stale in [
            *unfinished,
            *run.folder.rglob(LEFT_OVER),
            *(run.folder / "steps").glob(f"*/{IN_PROGRESS}"),
            *(run.folder / name for name in WRITTEN_AGAIN),
        ]:
            if stale != changes.staging and stale.exists() and changes.staging not in stale.parents:
                changes.remove(stale.relative_to(run.folder).as_posix())
        for step in run.steps:
            if step.index in found.whole:
                changes.rename(f"steps/{step.folder.name}", f"steps/{step.index:02d}-{ERASED}")


def _renew_steps(run: Steps, erasure: Erasure, changes: Changes) -> list[dict[str, Any]]:
    """Stage every step's new files; return old and new ids."""
    steps = run.steps
    gone, parent, renewed = _global_rows(steps, erasure), None, list[dict[str, Any]]()
    for step in steps:
        prefix = f"steps/{step.folder.name}"
        files = [file.removeprefix(f"{prefix}/") for file in erasure.files if file.startswith(f"{prefix}/")]
        if not files:
            parent = step.card["id"]
            continue
        digests, memory = dict(step.card["files"]), None
        for file in files:
            if file == CARD:
                continue
            staged = changes.put(f"{prefix}/{file}")
            if file == MEMORY:
                memory = _renew_memory(step, erasure)
                memory.write(staged)
            else:
                tensors, _ = read_tensors(step.folder / file)
                save_weights(
                    staged,
                    {
                        key: _without(value, gone) if key.startswith("classifier.") else value
                        for key, value in tensors.items()
                    },
                )
            digests[file] = sha256_file(staged)
        card = _renew_card(step, erasure, memory) | {"parent": parent, "files": digests}
        card = {"id": content_id(card), **card}
        write_json(changes.put(f"{prefix}/{CARD}"), card)
        renewed.append({"step": step.index, "was": step.card["id"], "is": card["id"]})
        parent = card["id"]
    return renewed


def _without(value: torch.Tensor, gone: Sequence[int]) -> torch.Tensor:
    """Drop the given rows, as far as the tensor has them."""
    rows = torch.ones(len(value), dtype=torch.bool)
    rows[[row for row in gone if row < len(value)]] = False
    return value[rows]


def _renew_memory(step: Sealed, erasure: Erasure) -> Memory:
    memory = Memory.read(step.folder / MEMORY)
    if step.index in erasure.whole:
        return memory.emptied()
    names = "+".join(name for name in step.learned if name not in erasure.domains.get(step.index, ()))
    thinned = memory.without(erasure.people.get(step.index, ()), len(step.card["classes"]))
    return Memory(names, thinned.feature_space, thinned.arrays)


def _renew_card(step: Sealed, erasure: Erasure, memory: Memory | None) -> dict[str, Any]:
    """Return the card without erased data and without its id."""
    card = {key: value for key, value in step.card.items() if key != "id"}
    rows, names = set(erasure.people.get(step.index, ())), erasure.domains.get(step.index, ())
    whole, word = step.index in erasure.whole, erasure.word
    card["classes"] = [label for row, label in enumerate(card["classes"]) if row not in rows]
    card["domains"] = [entry for entry in card["domains"] if entry["name"] not in names]
    card["notes"] = [] if whole else [line for line in card["notes"] if not _names(line, word)]
    if "left_out" in card["train"]:
        card["train"] = {
            **card["train"],
            "left_out": [] if whole else [path for path in card["train"]["left_out"] if word not in path],
        }
    if memory is not None and "bytes" in card:
        card["bytes"] = {**card["bytes"], "memory": memory.bytes}
    if whole:
        card["name"] = f"{step.index:02d}-{ERASED}"
    if rows or whole:
        card["erased"] = card.get("erased", 0) + len(rows)
    return card


def _renew_scores(run: Steps, erasure: Erasure, changes: Changes) -> None:
    matrix = type(run.scores).read(run.folder)
    for name in erasure.scored:
        matrix.drop_domain(name)
    scratch = changes.staging / "scores"
    make_private(scratch)
    matrix.write(scratch)
    for file in (FILE, QUERIES):
        (scratch / file).rename(changes.put(file))
    scratch.rmdir()


# ----------------------------------------------------------------------------------------------------------- the record


def _record(folder: Path, erasure: Erasure, renewed: list[dict[str, Any]], changes: Changes) -> None:
    """Add to the record of erasures, a hash chain that names nobody."""
    records = read_erasures(folder)
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": erasure.kind,
        "identities": erasure.identities,
        "files": len(erasure.files),
        "code": code_version(),
        "steps": renewed,
        "before": records[-1]["id"] if records else None,
    }
    records.append({"id": content_id(entry), **entry})
    write_json(changes.put(ERASURES), {"kind": "erasures", "schema": 1, "records": records})


def read_erasures(folder: Path) -> list[dict[str, Any]]:
    """Return what was erased from a run, oldest first: time, kind, number of identities, and step ids before and after.

    Raises:
        ArtefactError: a record was changed, removed or inserted.
    """
    path = folder / ERASURES
    if not path.exists():
        return []
    stored = read_json(path)
    if (
        not isinstance(stored, dict)
        or stored.get("kind") != "erasures"
        or stored.get("schema") != 1
        or not isinstance(stored.get("records"), list)
    ):
        raise ArtefactError(f"{path} is not a record of erasures; compare with a backup")
    before = None
    for number, record in enumerate(stored["records"], 1):
        if (
            not isinstance(record, dict)
            or record.get("before") != before
            or not record.get("id")
            or record["id"] != _id(record)
        ):
            raise ArtefactError(f"record {number} of {path} was changed or is missing; compare with a backup")
        before = record["id"]
    return list(stored["records"])


def _id(record: Mapping[str, Any]) -> str:
    return content_id({key: value for key, value in record.items() if key != "id"})
