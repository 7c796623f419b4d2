"""The objectives that make up methods, one file per idea, by the names used in YAML files."""

from __future__ import annotations

import importlib
import re
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
from reid.terms.elastic import Elastic
from reid.terms.hypernetwork import HyperNetworkTerm
from reid.terms.normalisation import FixedStatistics
from reid.terms.null_space import NullSpace
from reid.terms.style import StyleNetworkTerm, StyleStatisticsTerm
from reid.terms.term import Batch, Step, Term
from reid.terms.transfer import PrototypeTransfer
from reid.terms.triplet import Triplet

__all__ = ["TERMS", "Batch", "Step", "Term", "build_terms", "head_of", "idle_terms", "own_terms"]

OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

TERMS: Mapping[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "distribution_cross_entropy": DistributionCrossEntropy,
    "distribution_triplet": DistributionTriplet,
    "elastic": Elastic,
    "embedding_distillation": EmbeddingDistillation,
    "fixed_statistics": FixedStatistics,
    "hypernetwork": HyperNetworkTerm,
    "joint_triplet": JointTriplet,
    "logit_distillation": LogitDistillation,
    "moving_average": MovingAverage,
    "null_space": NullSpace,
    "prototype_transfer": PrototypeTransfer,
    "prototypes": Prototypes,
    "rectified_distillation": RectifiedDistillation,
    "relation_distillation": RelationDistillation,
    "style_network": StyleNetworkTerm,
    "style_statistics": StyleStatisticsTerm,
    "triplet": Triplet,
    "two_teacher_distillation": TwoTeacherDistillation,
}


def own_terms(entries: Iterable[Entry]) -> list[str]:
    """Return the names of a user's own terms, ``module:Class``, in order."""
    return list(dict.fromkeys(kind for entry in entries for kind in entry if ":" in kind))


def build_terms(entries: tuple[Entry, ...], *, allow_code: Collection[str] = ()) -> dict[str, Term]:
    """Build a method's terms in order, each named after its kind, and after its view unless that is ``plain``.

    A name with a colon, ``module:Class``, is a user's own term: code, which is imported only if ``allow_code`` lists
    that very name. Whoever lists it needs the user's word for it, as :mod:`reid.run.consent` says.

    Raises:
        ConfigError: an unknown name, a wrong parameter, the same term on the same view twice, two distribution heads,
            or a term of one's own that is not allowed or can't be imported.
    """
    check_code(own_terms(entries), allow_code)
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


def check_code(names: Iterable[str], allowed: Collection[str]) -> None:
    """Refuse terms of one's own that nobody has allowed, before anything is imported; raises ConfigError."""
    names = list(names)
    for name in names:
        if not OWN.fullmatch(name):
            raise ConfigError(f"can't import the term {name!r:.80}: a term of one's own is named module:Class")
    refused = [name for name in names if name not in allowed]
    if refused:
        flags = " ".join(f"--allow-code {name}" for name in refused)
        raise ConfigError(
            f"the method has terms that are code from outside this package: {', '.join(refused)}; nothing was "
            f"imported. If you know and trust that code, say so each time: {flags}, or allow_code=[…] in Python"
        )


def _own(name: str) -> type[Term]:
    """Import a user's own term that is allowed, ``module:Class``; raises ConfigError."""
    module, _, member = name.partition(":")
    try:
        term = getattr(importlib.import_module(module), member)
    except Exception as error:  # the module's own code may raise anything
        reason = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"can't import the term {name!r:.80}: {' '.join(reason.split()):.200}; is its folder on PYTHONPATH?"
        ) from error
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
