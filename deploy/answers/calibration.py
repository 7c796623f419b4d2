"""Which cosine means "same person": chosen on one half of a domain's test people, checked on the other.

The people of a domain's query and gallery splits are divided into two halves by a hash of their labels and a seed:
those with queries, and separately the distractors (gallery identities without a query), so that each half has its share
of both. Junk is left out. Pairs across the halves are not used, or the halves would not be independent. Pairs and the
camera rule are those of :mod:`domains.openset`.

**Same person** starts at the lowest score that at most the chosen share of the first half's impostor pairs reaches.
**Unsure** starts where a hundred times that share reaches it, but at most one in ten. All three answers are thus
statements about strangers, for whom there are many pairs to measure on. The obvious alternative, "no match" only below
nearly every genuine pair, depends on the one or two worst pairs of a small test set, which are often mislabelled, and
calls half of all strangers "unsure" where the model is weak. What an operator wants to know about "no match" is
reported instead: the share of genuine pairs that it loses.

Rates are per pair: against a gallery of N strangers, one query finds about N times the rate of them as "same person".

Intervals come from resampling **people**, not pairs. One person in a very common coat causes hundreds of false matches,
and the pairs of one person succeed or fail together: a bootstrap over pairs would treat them as independent and be far
too narrow. Each resample gives every person a weight, and a pair of two people counts with the product of their weights
(Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics", Connections 22, 1999; for
biometrics the subsets bootstrap of Bolle, Ratha and Pankanti, CVIU 93, 2004). Two draws of the same person are not an
impostor pair. Where no false match was seen, the upper end is that of the rule of three, 3 / pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, revise_bundle
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.signature import check, sign, trusted_keys
from deploy.encoder import Encoder
from deploy.encoder.encoder import Skipped
from domains.arrays import Float32s, Float64s
from domains.domain import JUNK, Domain, SameCamera, Split
from domains.errors import DataError, UsageError
from domains.openset import PairBlock, PairCount, count_pairs, impostor_levels, pair_blocks
from domains.scoring import Labels

FPR = 1e-3
"""Proposed where nobody chooses a rate and the data can tell it; otherwise the smallest that they can tell."""

MAX_FPR = 0.05
"""Above this, "same person" would mean little."""

UNSURE_TIMES = 100
MAX_UNSURE = 0.1
SEEN = 10
"""False matches expected in each half at the chosen rate; with fewer, the threshold would hang on a few pairs."""

MIN_PEOPLE = 10
"""People with a genuine pair in each half; fewer are too few to resample."""


class Rate(NamedTuple):
    """A share in [0, 1] with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Half(NamedTuple):
    """Unit embeddings of one half's queries and gallery, with their labels."""

    query: Float32s
    gallery: Float32s
    query_labels: Labels
    gallery_labels: Labels

    def blocks(self, rule: SameCamera) -> Callable[[], Iterator[PairBlock]]:
        """Return a function that starts a pass over the half's pairs."""
        return lambda: pair_blocks(*self, same_camera=rule)


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and how they perform on people who had no part in choosing them.

    Attributes:
        domain: the domain's name.
        fingerprint: fingerprint of its data.
        fpr: the false-positive rate that was requested or proposed.
        smallest_fpr: the smallest that the domain's pairs can tell.
        score: lowest cosine that means "same person".
        unsure_fpr: the rate at which "unsure" starts.
        unsure: lowest cosine that means "unsure".
        measured_fpr: share of the other half's impostor pairs called "same person".
        measured_tpr: share of its genuine pairs called "same person".
        measured_unsure_fpr: share of its impostor pairs not called "no match".
        measured_unsure_tpr: share of its genuine pairs not called "no match".
        people: identities with queries, in the half that chose and in the half that checked.
        distractors: identities without queries, likewise.
        genuine_pairs: genuine pairs, likewise.
        impostor_pairs: impostor pairs, likewise.
        seed: seed of the halves and of the intervals.
        same_camera: the domain's camera rule.
        skipped: images that could not be read.
    """

    domain: str
    fingerprint: str
    fpr: float
    smallest_fpr: float
    score: float
    unsure_fpr: float
    unsure: float
    measured_fpr: Rate
    measured_tpr: Rate
    measured_unsure_fpr: Rate
    measured_unsure_tpr: Rate
    people: tuple[int, int]
    distractors: tuple[int, int]
    genuine_pairs: tuple[int, int]
    impostor_pairs: tuple[int, int]
    seed: int
    same_camera: SameCamera
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; rates are shares, measured ones with their intervals."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def calibrate(encoder: Encoder, domain: Domain, *, fpr: float | None = None, seed: int = 0) -> Calibration:
    """Find the thresholds of a bundle's encoder on a domain's query and gallery splits; nothing is written.

    Args:
        encoder: the bundle's encoder.
        domain: a domain with query and gallery splits.
        fpr: share of impostor pairs that may be called "same person", above 0 and at most 0.05. By default 0.001, or
            where the domain has too few pairs to measure that, the smallest that it can tell.
        seed: chooses the halves and the resamples.

    Raises:
        UsageError: a rate or a seed outside the range.
        DataError: too few people or pairs to measure the rate (the message says how many are needed), no readable
            image, or a model that gives strangers the score 1.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UsageError(f"the seed must be a whole number from 0, got {seed!r:.80}")
    if fpr is not None and not 0 < fpr <= MAX_FPR:
        raise UsageError(f"the false-positive rate must be above 0 and at most {MAX_FPR}, got {fpr}; 0.001 is usual")
    _check(domain, domain.query, domain.gallery, fpr, seed)  # before minutes are spent on embeddings
    (query_vectors, query, query_skipped), (gallery_vectors, gallery, gallery_skipped) = (
        _embedded(encoder, domain, split) for split in (domain.query, domain.gallery)
    )
    counts = _check(domain, query, gallery, fpr, seed)
    smallest = _smallest(counts)
    fpr = max(FPR, smallest) if fpr is None else fpr
    choosing, checking = (
        Half(
            query_vectors[query_rows],
            gallery_vectors[gallery_rows],
            Labels.from_split(query.take(query_rows)),
            Labels.from_split(gallery.take(gallery_rows)),
        )
        for query_rows, gallery_rows in rows_of_halves(domain, query, gallery, seed)
    )
    unsure_fpr = min(UNSURE_TIMES * fpr, MAX_UNSURE)
    levels = impostor_levels(choosing.blocks(domain.same_camera), counts[0].impostor, (fpr, unsure_fpr))
    score, unsure = (float(np.nextafter(np.float32(level), np.float32(2))) for level in levels)
    if score > 1:
        raise DataError(
            f"the model gives more than {fpr:g} of the pairs of different people in {domain.name} the score 1; it "
            "can't tell them apart"
        )
    tallies = [Tally.of(checking, domain.same_camera, level) for level in (score, unsure)]
    (same_fpr, same_tpr), (far_fpr, far_tpr) = (tally.rates(seed=seed) for tally in tallies)
    people = [len(np.unique(half.query_labels.pids)) for half in (choosing, checking)]
    distractors = [len(np.setdiff1d(half.gallery_labels.pids, half.query_labels.pids)) for half in (choosing, checking)]
    return Calibration(
        domain.name,
        domain.fingerprint,
        fpr,
        smallest,
        score,
        unsure_fpr,
        unsure,
        same_fpr,
        same_tpr,
        far_fpr,
        far_tpr,
        (people[0], people[1]),
        (distractors[0], distractors[1]),
        (counts[0].genuine, counts[1].genuine),
        (counts[0].impostor, counts[1].impostor),
        seed,
        domain.same_camera,
        len(query_skipped) + len(gallery_skipped),
    )


def check_storable(
    bundle: Bundle, *, key: str | PathLike[str] | None = None, unsign: bool = False, dry_run: bool = False
) -> None:
    """Check, before minutes are spent on measuring, that :func:`store` would take a key, or none.

    Args:
        bundle: the bundle to be measured.
        key: as for :func:`store`; it is checked even if nothing is to be stored.
        unsign: likewise.
        dry_run: nothing is to be stored.

    Raises:
        UsageError: a key that can't be used, or none for a signed bundle that is to stay so.
        ArtefactError: a key that is not trusted here.
    """
    if key is not None:
        check(MANIFEST.encode(), [sign(MANIFEST.encode(), key)], trusted_keys(), bundle.folder)
    elif bundle.signers and not unsign and not dry_run:
        raise UsageError(
            f"{bundle.folder} is signed by key {bundle.signers[0]}: name a key with --key, or drop the signature with "
            "--unsign"
        )


def store(
    bundle: Bundle, found: Calibration, *, key: str | PathLike[str] | None = None, unsign: bool = False
) -> Bundle:
    """Write the thresholds into the bundle's manifest, replacing earlier ones of the same domain; the model and the
    golden files are not touched.

    Args:
        bundle: the bundle that the thresholds were measured with.
        found: the thresholds.
        key: file of the private key to sign the new manifest with.
        unsign: drop the signature of a signed bundle if there is no key.

    Raises:
        UsageError, ArtefactError: as :func:`deploy.bundle.revise_bundle`.
    """
    entry = {name: value for name, value in found.to_dict().items() if name != "domain"}
    return revise_bundle(bundle.folder, {"thresholds": {found.domain: entry}}, key=key, unsign=unsign)


def rows_of_halves(
    domain: Domain, query: Split, gallery: Split, seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the rows of each half's people in the query and gallery splits, or in the readable parts of them; junk is
    in neither half.

    People are ordered by a seeded hash, so that adding some moves few of the others.
    """
    querying = domain.query.people
    distractors = np.setdiff1d(domain.gallery.pids[domain.gallery.pids != JUNK], querying)

    def order(pid: np.int64) -> bytes:
        return hashlib.sha256(f"{seed}\0{domain.identities[pid]}".encode()).digest()

    ordered = [sorted(group, key=order) for group in (querying, distractors)]
    halves = (
        [pid for group in ordered for pid in group[: len(group) // 2]],
        [pid for group in ordered for pid in group[len(group) // 2 :]],
    )
    return [
        (np.flatnonzero(np.isin(query.pids, people)), np.flatnonzero(np.isin(gallery.pids, people)))
        for people in halves
    ]


@dataclass(frozen=True, eq=False)
class Tally:
    """Pairs of one half that reach a score, per person; of its ``C`` people, the first ``P`` have queries.

    Attributes:
        false: ``[P, C]`` impostor pairs that reach the score, int64.
        asked: ``[P]`` queries of each person.
        held: ``[C]`` gallery crops of each person.
        true: ``[P]`` genuine pairs that reach the score.
        genuine: ``[P]`` genuine pairs.
    """

    false: NDArray[np.int64]
    asked: NDArray[np.int64]
    held: NDArray[np.int64]
    true: NDArray[np.int64]
    genuine: NDArray[np.int64]

    @classmethod
    def of(cls, half: Half, rule: SameCamera, score: float) -> Tally:
        """Count the pairs of a half; the table of false matches takes 8·P·C bytes."""
        asking = np.unique(half.query_labels.pids)
        everyone = np.concatenate([asking, np.setdiff1d(half.gallery_labels.pids, asking)])
        code = {pid: number for number, pid in enumerate(everyone.tolist())}
        rows, columns = (
            np.array([code[pid] for pid in labels.pids.tolist()], np.int64)
            for labels in (half.query_labels, half.gallery_labels)
        )
        count, size = len(asking), len(everyone)
        false, true, genuine = np.zeros(count * size, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
        for start, similarity, mates, strangers in half.blocks(rule)():
            reached = similarity >= np.float32(score)
            who, whom = np.nonzero(reached & strangers)
            np.add.at(false, rows[start + who] * size + columns[whom], 1)
            np.add.at(true, rows[start + np.nonzero(reached & mates)[0]], 1)
            np.add.at(genuine, rows[start : start + len(similarity)], mates.sum(axis=1))
        return cls(
            false.reshape(count, size),
            np.bincount(rows, minlength=count),
            np.bincount(columns, minlength=size),
            true,
            genuine,
        )

    def rates(self, *, seed: int = 0, samples: int = 1000) -> tuple[Rate, Rate]:
        """False-positive and true-positive rate, with 95 % intervals over people (see the module's docstring)."""
        count, size = self.false.shape
        rng = np.random.default_rng(seed)
        weights = np.ones((samples + 1, size))
        for start, stop in ((0, count), (count, size)):  # distractors are resampled separately
            if stop > start:
                weights[1:, start:stop] = rng.multinomial(
                    stop - start, np.full(stop - start, 1 / (stop - start)), samples
                )
        false, true = self.shares(weights)
        rates = [
            Rate(float(values[0]), *map(float, np.nanquantile(values[1:], [0.025, 0.975]))) for values in (false, true)
        ]
        if not self.false.any():
            rates[0] = Rate(
                0.0,
                0.0,
                min(1.0, 3 / float(self.asked.sum() * self.held.sum() - (self.asked * self.held[:count]).sum())),
            )
        return rates[0], rates[1]

    def shares(self, weights: Float64s) -> tuple[Float64s, Float64s]:
        """False-positive and true-positive rates ``[S]``, with people weighted by ``weights`` ``[S, C]``; NaN without
        pairs.
        """
        asking = weights[:, : len(self.asked)]
        wrong = np.einsum("sp,sp->s", asking, weights @ self.false.T)
        own = np.square(asking) @ (self.asked * self.held[: len(self.asked)])
        with np.errstate(invalid="ignore"):
            return wrong / ((asking @ self.asked) * (weights @ self.held) - own), (asking @ self.true) / (
                asking @ self.genuine
            )


def _embedded(encoder: Encoder, domain: Domain, split: Split) -> tuple[Float32s, Split, list[Skipped]]:
    """Embed a split; returns the embeddings and rows of its readable images, and the skipped ones."""
    vectors, skipped = encoder.files(domain.files(split))
    if len(skipped) == len(split):
        raise DataError(
            f"domain {domain.name}: none of its {len(split)} images can be read; the first: {skipped[0].reason}"
        )
    readable = np.setdiff1d(np.arange(len(split)), [item.position for item in skipped])
    return np.asarray(vectors), split.take(readable), skipped


def _smallest(counts: list[PairCount]) -> float:
    """Return the smallest rate, to two digits, that the pairs of both halves show :data:`SEEN` times."""
    return _rounded_up(SEEN / min(count.impostor for count in counts))


def _check(domain: Domain, query: Split, gallery: Split, fpr: float | None, seed: int) -> list[PairCount]:
    """Count the pairs of both halves; raises DataError if there are too few for the rate, or for any."""
    if not len(query) or not len(gallery):
        raise DataError(
            f"domain {domain.name} has no query and gallery splits; calibration needs people that the model was not "
            f"trained on{domain.remarks}"
        )
    counts, people = [], []
    for query_rows, gallery_rows in rows_of_halves(domain, query, gallery, seed):
        queries, crops = query.take(query_rows), gallery.take(gallery_rows)
        counts.append(count_pairs(Labels.from_split(queries), Labels.from_split(crops), same_camera=domain.same_camera))
        people.append(_people_with_pairs(queries, crops, domain.same_camera))
    if min(people) < MIN_PEOPLE:
        rule = " by two cameras" if domain.same_camera == "drop" else ""
        raise DataError(
            f"calibration needs {MIN_PEOPLE} people seen at least twice{rule} in each half of {domain.name}'s test "
            f"people, there are {people[0]} and {people[1]}; use a domain with more people{domain.remarks}"
        )
    wanted = MAX_FPR if fpr is None else fpr
    needed, fewest = SEEN / wanted, min(count.impostor for count in counts)
    if fewest < needed * (1 - 1e-9):
        coarse = f"raise --fpr to {_smallest(counts):g} or more, or " if fewest * MAX_FPR >= SEEN else ""
        rate = (
            f"even the largest false-positive rate, {wanted:g}," if fpr is None else f"a false-positive rate of {fpr:g}"
        )
        raise DataError(
            f"{rate} needs {needed:,.0f} pairs of different people in each half to be seen {SEEN} times, {domain.name} "
            f"gives {counts[0].impostor:,} and {counts[1].impostor:,}; {coarse}use a domain with more people"
        )
    return counts


def _people_with_pairs(query: Split, gallery: Split, rule: SameCamera) -> int:
    """Count the people who have a genuine pair."""
    seen: Mapping[int, set[int]] = {
        pid: set(gallery.camids[gallery.pids == pid].tolist()) for pid in np.unique(query.pids).tolist()
    }
    paired = {
        pid
        for pid, camid in zip(query.pids.tolist(), query.camids.tolist(), strict=True)
        if seen[pid] - ({camid} if rule == "drop" else set())
    }
    return len(paired)


def _rounded_up(value: float) -> float:
    """Round up to two significant digits."""
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f"{np.ceil(value / step - 1e-9) * step:.2g}")
