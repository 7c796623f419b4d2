"""The objectives that make up methods, one file per idea, by the names used in YAML files."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from domains.errors import ConfigError
from prototypes.memory import Memory
from reid.config import Entry, nearest
from reid.network.distribution import HeadKind
from reid.terms.averaging import MovingAverage
from reid.terms.cross_entropy import CrossEntropy
from reid.terms.distillation import (
    EmbeddingDistillation,
    LogitDistillation,
    RectifiedDistillation,
    RelationDistillation,
    TwoTeacherDistillation,
)
from reid.terms.distribution import DistributionCrossEntropy, DistributionTriplet, JointTriplet, Prototypes
from reid.terms.hypernetwork import HyperNetworkTerm
from reid.terms.normalisation import FixedStatistics
from reid.terms.style import StyleNetworkTerm, StyleStatisticsTerm
from reid.terms.term import Batch, Step, Term
from reid.terms.transfer import PrototypeTransfer
from reid.terms.triplet import Triplet

__all__ = ["TERMS", "Batch", "Step", "Term", "build_terms", "head_of", "idle_terms"]

TERMS: Mapping[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "distribution_cross_entropy": DistributionCrossEntropy,
    "distribution_triplet": DistributionTriplet,
    "embedding_distillation": EmbeddingDistillation,
    "fixed_statistics": FixedStatistics,
    "hypernetwork": HyperNetworkTerm,
    "joint_triplet": JointTriplet,
    "logit_distillation": LogitDistillation,
    "moving_average": MovingAverage,
    "prototype_transfer": PrototypeTransfer,
    "prototypes": Prototypes,
    "rectified_distillation": RectifiedDistillation,
    "relation_distillation": RelationDistillation,
    "style_network": StyleNetworkTerm,
    "style_statistics": StyleStatisticsTerm,
    "triplet": Triplet,
    "two_teacher_distillation": TwoTeacherDistillation,
}


def build_terms(entries: tuple[Entry, ...]) -> dict[str, Term]:
    """Build a method's terms in order, each named after its kind, and after its view unless that is ``plain``.

    A name with a colon, ``module:Class``, is a user's own term.

    Raises:
        ConfigError: an unknown name, a wrong parameter, the same term on the same view twice, or two distribution
            heads.
    """
    terms: dict[str, Term] = {}
    for entry in entries:
        ((kind, parameters),) = entry.items()
        factory = _own(kind) if ":" in kind else TERMS.get(kind)
        if factory is None:
            raise ConfigError(f"unknown term {kind!r}{nearest(kind, TERMS)}")
        try:
            term = factory.build(**parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"term {kind}: {error}") from error
        name = kind if term.view == "plain" else f"{kind} ({term.view})"
        if name in terms:
            raise ConfigError(f"the method lists the term {name!r} twice")
        terms[name] = term
    keepers = [term.keeps for term in terms.values() if term.keeps]
    for kind in keepers:
        if keepers.count(kind) > 1:
            raise ConfigError(f"two terms of the method keep {kind}; remove one")
    head_of(terms.values())
    return terms


def _own(name: str) -> type[Term]:
    """Import a user's own term, ``module:Class``; raises ConfigError."""
    module, _, member = name.partition(":")
    try:
        term = getattr(importlib.import_module(module), member)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"can't import the term {name!r}: {error}; is its folder on PYTHONPATH?") from error
    if not (isinstance(term, type) and issubclass(term, Term)):
        raise ConfigError(f"{name!r} is not a term: it must be a class derived from reid.terms.Term, got {term!r:.80}")
    return term


def head_of(terms: Iterable[Term]) -> HeadKind | None:
    """Return the distribution head that terms need; raises ConfigError if they disagree."""
    kinds = sorted({term.head for term in terms if term.head})
    if len(kinds) > 1:
        raise ConfigError(f"the method's terms need different distribution heads: {', '.join(kinds)}; use one")
    return kinds[0] if kinds else None


def idle_terms(terms: Mapping[str, Term], index: int, memories: Sequence[Memory]) -> dict[str, str]:
    """Return which of a method's terms have no part in a step, and why.

    Either the first step has no model before it, or no memory has what a term reads, or no term makes its view.
    """
    views = {"plain", *(view for term in terms.values() for view in term.makes(memories))}
    reasons = {name: _why_idle(term, index, memories, views) for name, term in terms.items()}
    return {name: why for name, why in reasons.items() if why}


def _why_idle(term: Term, index: int, memories: Sequence[Memory], views: Collection[str]) -> str | None:
    kinds = {name.partition(".")[0] for memory in memories for name in memory.arrays}
    if index == 1 and (term.teachers or term.reads or term.view != "plain"):
        return "it needs an earlier domain"
    if missing := [kind for kind in term.reads if kind not in kinds]:
        return f"the memories of earlier domains hold no {' and no '.join(missing)}"
    return (
        None
        if term.view in views
        else f"no term of the method makes its {term.view} view from the memories of earlier domains"
    )
