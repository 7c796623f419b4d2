"""One site's own adapter: a second training in a step, beside the finished model, which stays unchanged.

Fusion gives up some of what a step learned so that older domains keep theirs. The site's own adapter wins that back,
and more: it is trained on the step's crops with everything that sites share frozen, and is used for that site alone
(:mod:`reid.run.routing`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace

from domains.errors import ConfigError
from reid.config import Config, Entry, Method
from reid.step.ending import Ended
from reid.step.learner import Learner, Tick
from reid.terms import Step, build_terms, idle_terms

FOLDER = "adapter"


def check_adapter(method: Method, *, allow_code: Collection[str] = ()) -> None:
    """Raise ConfigError before any training if one of the adapter's terms is unknown or not allowed in its list."""
    terms = build_terms(method.adapter, allow_code=allow_code)
    kinds = {term.keeps for term in build_terms(method.terms, allow_code=allow_code).values() if term.keeps}
    for name, term in terms.items():
        if term.teachers or term.head or term.view != "plain":
            raise ConfigError(
                f"method {method.name}: an adapter is trained on plain crops without teachers or distributions, so "
                f"it can't have {name}; remove it from the adapter list"
            )
        if term.keeps in kinds:
            raise ConfigError(f"method {method.name}: its terms and its adapter both keep {term.keeps}; remove one")
    if terms and "hypernetwork" not in terms:
        raise ConfigError(f"method {method.name}: its adapter list needs a hypernetwork, which writes the adapter")


def adapted(
    learner: Learner,
    ended: Ended,
    entries: tuple[Entry, ...],
    tick: Tick | None = None,
    *,
    allow_code: Collection[str] = (),
) -> tuple[Ended, float]:
    """Train the step's adapter; returns the step's results with those of these terms added, and the seconds of the
    loop.

    Args:
        learner: the learner that trained the step, which has ended; its model is copied, not changed.
        ended: the step's results so far.
        entries: the method's ``adapter`` list.
        tick: called with the number of iterations done and the losses of the last.
        allow_code: terms of one's own that may be imported.
    """
    step, every = learner.step, build_terms(entries, allow_code=allow_code)
    terms = {name: term for name, term in every.items() if name not in idle_terms(every, step.index, step.memories)}
    beside = replace(step, config=adapter_config(step), model=copy.deepcopy(step.model), views={}, finished=True)
    seconds = Learner(beside, terms, learner.store, learner.contract, learner.folder / FOLDER).train(tick).seconds
    memory = {f"{term.keeps}.{key}": value for term in terms.values() for key, value in term.end(beside).items()}
    weights = {name: dict(state) for term in terms.values() for name, state in term.weights_for_next(beside).items()}
    return replace(ended, memory=ended.memory | memory, kept=ended.kept | weights), seconds


def adapter_config(step: Step) -> Config:
    """Return the step's settings with the adapter's own iterations and learning rate."""
    train = step.config.train
    own = {
        "iterations": max(1, round(train.adapter * train.iterations)),
        "lr": train.lr * train.adapter_lr,
        "recompute": 0,
    }
    return step.config.model_copy(update={"train": train.model_copy(update=own)})
