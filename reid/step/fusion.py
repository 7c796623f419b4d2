"""Fusions: how the model just trained and the previous one become one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.arrays import Float32s
from domains.errors import ConfigError
from domains.scoring import match_ranks
from reid.config import Entry, nearest
from reid.network.checkpoint import State

CHUNK = 1024
IN_UNIT = ("weight", "first_weight", "share", "decay")
"""Parameters of fusions and repairs that lie in 0..1; all others but ``COUNTS`` lie above 0."""
COUNTS = {"recoloured": 5, "drawn": 4096}
"""Parameters that may be 0, with their maximum."""
SEARCHED = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass
class Fusing:
    """A fusion's inputs, and its results besides the fused weights.

    Attributes:
        new: weights of the model just trained.
        old: weights of M_{t-1}.
        embed: unit-length embeddings ``[N, D]`` of the step's train crops under any weights.
        labels: their identities, ``[N]``.
        fisher: importance of each parameter under any weights, on the step's train crops: the mean square of the
            gradients of *batch means* (32 crops each). It stands in for the diagonal of the empirical Fisher
            information, which squares the gradient of each crop: where crops disagree, their gradients cancel before
            they are squared, so it is smaller, and not by the same factor for every parameter.
        first: whether this is the first step, where M_{t-1} is the start, which has learned no domain.
        kept: further weights that the previous step sealed, by name.
        keep: further weights to seal with this step, for the next.
        figures: numbers worth knowing, for the step's card.
    """

    new: State
    old: State
    embed: Callable[[State], Float32s]
    labels: NDArray[np.int64]
    fisher: Callable[[State], State]
    first: bool = False
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    keep: dict[str, State] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def blend(new: Mapping[str, Tensor], old: Mapping[str, Tensor], weight: float | Mapping[str, Tensor]) -> State:
    """θ = w·θ_new + (1-w)·θ_old for every floating-point entry, where w is one number or one per element.

    Only the classifier rows that both models have are averaged, and what the old model lacks is taken from the new.
    Counters (BatchNorm's number of batches) are the new model's: an average of counts means nothing.
    """
    fused: State = {}
    for name, value in new.items():
        fused[name] = value.clone()
        if not value.is_floating_point() or name not in old or old[name].shape[1:] != value.shape[1:]:
            continue
        before = old[name].to(value.device)
        rows = min(len(before), len(value)) if value.ndim else None
        share = (
            weight[name]
            if isinstance(weight, Mapping) and name in weight
            else weight
            if not isinstance(weight, Mapping)
            else 0.5
        )
        if rows is None:
            fused[name] = torch.lerp(before, value, share)
        else:
            fused[name][:rows] = torch.lerp(
                before[:rows], value[:rows], share[:rows] if isinstance(share, Tensor) else share
            )
    return fused


def average(given: Fusing, *, weight: float = 0.5, first_weight: float = 1.0) -> State:
    """Average with a fixed weight of the new model; 0.5 in DKP (CVPR 2024).

    ``first_weight`` is that of the first step, where the old model is the start: below 1 it keeps some of a start that
    is worth keeping, as robust fine-tuning does (Wortsman et al., CVPR 2022).
    """
    return blend(given.new, given.old, first_weight if given.first else weight)


def adaptive(given: Fusing, *, sharpness: float = 100.0) -> State:
    """LSTKC (AAAI 2024): the more the relations among the step's crops changed, the more of the old model is kept.

    w = 1 - mean_i Σ_j |A^new_ij - A^old_ij| with A = rowsoftmax(100 · cos); no factor ½ as published, so it can fall
    below 0 and is clamped.
    """
    new, old = given.embed(given.new), given.embed(given.old)
    change = _over_rows(new, old, lambda a, b: np.abs(a - b).sum(1), sharpness)
    weight = float(np.clip(1 - change, 0, 1))
    given.figures["weight"] = weight
    return blend(given.new, given.old, weight)


def budget(given: Fusing, *, share: float = 0.3, first_weight: float = 1.0) -> State:
    """As much of the new model as moves the step's crops by at most a ``share`` of what the whole new model would.

    drift(w) = mean_i ‖f_w,i - f_old,i‖² over the unit-length embeddings ``[N, D]`` of the blend w·new + (1-w)·old. From
    0 upwards, w in {0, 0.1, …, 1} rises until drift(w) > share · drift(1); a ``share`` of 1 is no limit. Where drift
    grows as w², w is √share, rounded down: 0.5 for 0.3. This is not in the publications.

    Drift need not grow with w: networks between the two can normalise worse than either, and crops can come back to
    where they were. The search stops at the first weight over the limit, since the crops are a sample that stands for
    older domains: at a larger weight that is within the limit again, these crops have come back, and those need not
    have. At worst, this keeps more of the old model than it had to.

    ``first_weight`` is that of the first step, without a search, as in :func:`average`. The figure ``drift`` is
    drift(w) / drift(1), and 0 if the new model moves no crop, where w is 1.
    """
    if given.first:
        given.figures["weight"] = first_weight
        return blend(given.new, given.old, first_weight)
    before = given.embed(given.old)

    def drift(state: State) -> float:
        return float(np.square(given.embed(state) - before).sum(1).mean(dtype=np.float64))

    whole = drift(given.new)
    limit = share * whole
    weight, moved = (1.0, whole) if limit == whole else (0.0, 0.0)
    if weight < 1:
        for candidate in SEARCHED[1:-1]:
            found = drift(blend(given.new, given.old, candidate))
            if not found <= limit:
                break
            weight, moved = candidate, found
    given.figures |= {"weight": weight, "drift": moved / whole if whole else 0.0}
    return blend(given.new, given.old, weight)


def two_teachers(given: Fusing, *, sharpness: float = 400.0) -> State:
    """LSTKC++ (TPAMI 2025): a short-term model, trained last, and a long-term one, fused from all before it, are both
    kept.

    The long-term model becomes α·long + (1-α)·short, with the α in {0, 0.1, …, 1} that ranks the step's crops best
    among themselves (mAP). The result is w·new + (1-w)·long with w = mean_i Σ_j A^new_ij · A^long_ij, where A =
    rowsoftmax(400 · cos) without the diagonal.
    """
    short, long = given.kept.get("short", given.old), given.kept.get("long", given.old)
    scores = (
        {share: self_retrieval(given.embed(blend(long, short, share)), given.labels) for share in SEARCHED}
        if "long" in given.kept
        else {1.0: 0.0}
    )
    share = max(scores, key=lambda candidate: (scores[candidate], candidate))
    long = blend(long, short, share)
    new, slow = given.embed(given.new), given.embed(_like(long, given.new))
    weight = float(np.clip(_over_rows(new, slow, lambda a, b: (a * b).sum(1), sharpness, diagonal=False), 0, 1))
    given.figures |= {"long_share": share, "weight": weight}
    given.keep |= {"short": given.new, "long": long}
    return blend(given.new, long, weight)


def fisher(given: Fusing, *, decay: float = 1.0) -> State:
    """Per parameter: θ = (F_new θ_new + F_old θ_old) / (F_new + F_old), and F_old ← γ F_old + F_new is kept for the
    next step.

    Diagonal Laplace merging of the posteriors (Kirkpatrick et al., PNAS 2017, for F; Matena & Raffel, NeurIPS 2022, for
    merging), with F from batches instead of single crops, see :class:`Fusing`. Where a parameter matters to neither
    model, the two are averaged; so are buffers.
    """
    now = given.fisher(given.new)
    before = given.kept.get("fisher") or given.fisher(given.old)
    floor = 1e-3 * torch.cat([value.flatten() for value in now.values()]).mean()
    shares: State = {}
    carried: State = {}
    for name, importance in now.items():
        past = torch.zeros_like(importance)
        if name in before:
            rows = min(len(past), len(before[name])) if past.ndim else None
            past[:rows] = before[name][:rows]
        shares[name] = (importance + floor) / (importance + past + 2 * floor)
        carried[name] = decay * past + importance
    given.keep["fisher"] = carried
    given.figures["weight"] = float(torch.cat([value.flatten() for value in shares.values()]).mean())
    return blend(given.new, given.old, shares)


FUSIONS: Mapping[str, Callable[..., State]] = {
    "adaptive": adaptive,
    "average": average,
    "budget": budget,
    "fisher": fisher,
    "two_teachers": two_teachers,
}


def applied(entries: tuple[Entry, ...], *, first: bool, random: bool = False) -> tuple[Entry, ...]:
    """Return the fusions that a step applies: in the first, those with a ``first_weight``, and none if the start was
    drawn at random.
    """
    return tuple(
        entry
        for entry in entries
        if not first or (not random and any("first_weight" in parameters for parameters in entry.values()))
    )


def fuse(entries: tuple[Entry, ...], given: Fusing) -> State:
    """Apply fusions in their order; raises ConfigError on an unknown one or a wrong parameter."""
    state = dict(given.new)
    for entry in entries:
        ((name, parameters),) = entry.items()
        given.new = state
        state = _named(name)(given, **parameters)
    return state


def check_fusions(entries: tuple[Entry, ...]) -> None:
    """Raise ConfigError before any training if a fusion is unknown or its parameters are wrong."""
    for entry in entries:
        ((name, parameters),) = entry.items()
        check_parameters(f"fusion {name}", _named(name), parameters)


def check_parameters(
    what: str, function: Callable[..., Any], parameters: Mapping[str, Any], of: Collection[str] | None = None
) -> None:
    """Raise ConfigError if a part takes no such keyword (``of`` these, if given), or if a number is out of range."""
    known = {
        name: item for name, item in inspect.signature(function).parameters.items() if item.kind is item.KEYWORD_ONLY
    }
    known = {name: item for name, item in known.items() if of is None or name in of}
    for name, value in parameters.items():
        if name not in known:
            raise ConfigError(f"{what}: unknown parameter {name!r}{nearest(name, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{what}: {name} must be a number, got {value!r}")
        if not (0 <= value <= 1 if name in IN_UNIT else 0 <= value <= COUNTS[name] if name in COUNTS else value > 0):
            wanted = (
                "lie in 0..1" if name in IN_UNIT else f"lie in 0..{COUNTS[name]}" if name in COUNTS else "be positive"
            )
            raise ConfigError(f"{what}: {name} must {wanted}, got {value!r}")
        if isinstance(known[name].default, int) and not isinstance(value, int):
            raise ConfigError(f"{what}: {name} must be a whole number, got {value!r}")


def self_retrieval(embeddings: Float32s, labels: NDArray[np.int64]) -> float:
    """Return mAP in percent of every crop as query against all others, ignoring cameras; an identity's only crop is
    not a query.
    """
    precisions: list[float] = []
    order = np.argsort(labels, kind="stable")
    first, last = (np.searchsorted(labels[order], labels, side) for side in ("left", "right"))
    for start in range(0, len(labels), CHUNK):
        similarity = embeddings[start : start + CHUNK] @ embeddings.T
        for row, values in enumerate(similarity, start):
            person = order[first[row] : last[row]]
            if len(person) > 1:
                values[row] = -np.inf  # not its own match, and ranked behind all others
                ranks = match_ranks(values, person[person != row])
                precisions.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
    return 100 * float(np.mean(precisions)) if precisions else 0.0


def _over_rows(
    left: Float32s,
    right: Float32s,
    measure: Callable[[Float32s, Float32s], Float32s],
    sharpness: float,
    *,
    diagonal: bool = True,
) -> float:
    """Mean over rows of a measure of two affinities, a few rows at a time, so that nothing of size N² is stored."""
    total = 0.0
    for start in range(0, len(left), CHUNK):
        rows = [_softmax_rows(vectors, start, sharpness, diagonal=diagonal) for vectors in (left, right)]
        total += float(measure(*rows).sum())
    return total / len(left)


def _softmax_rows(vectors: Float32s, start: int, sharpness: float, *, diagonal: bool) -> Float32s:
    scores = np.float32(sharpness) * (vectors[start : start + CHUNK] @ vectors.T)
    if not diagonal:
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(scores / scores.sum(1, keepdims=True), np.float32)


def _like(state: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> State:
    """Complete a state with fewer classifier rows, or without a distribution head, from another of full shape."""
    return {
        name: state[name] if name in state and state[name].shape == value.shape else value
        for name, value in full.items()
    }


def _named(name: str) -> Callable[..., State]:
    if name not in FUSIONS:
        raise ConfigError(f"unknown fusion {name!r}{nearest(name, FUSIONS)}")
    return FUSIONS[name]
