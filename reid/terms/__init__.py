"""The objectives that methods are made of, one file per idea, by the names that YAML files use."""

from __future__ import annotations

from collections.abc import Mapping

from domains.errors import ConfigError
from reid.config import Entry, nearest
from reid.terms.cross_entropy import CrossEntropy
from reid.terms.distillation import LogitDistillation, RelationDistillation
from reid.terms.term import Batch, Step, Term
from reid.terms.triplet import Triplet

__all__ = ["TERMS", "Batch", "Step", "Term", "build_terms"]

TERMS: Mapping[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "logit_distillation": LogitDistillation,
    "relation_distillation": RelationDistillation,
    "triplet": Triplet,
}


def build_terms(entries: tuple[Entry, ...]) -> dict[str, Term]:
    """Build a method's terms by name, in order; raises ConfigError on an unknown name, a wrong parameter or the same term twice."""
    terms: dict[str, Term] = {}
    for entry in entries:
        ((name, parameters),) = entry.items()
        if name not in TERMS:
            raise ConfigError(f"unknown term {name!r}{nearest(name, TERMS)}")
        if name in terms:
            raise ConfigError(f"the method lists the term {name!r} twice")
        try:
            terms[name] = TERMS[name](**parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"term {name}: {error}") from error
    return terms
