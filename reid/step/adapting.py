"""What one site needs and no other: a second training of a step, beside the finished model, which it leaves as it is.

Fusion gives up some of what a step learned so that older domains keep theirs. An adapter of the site's own wins that
back, and more: it is taught on the step's crops with everything that sites share held, and is used for that site alone
(:mod:`reid.run.routing`).
"""

from __future__ import annotations

import copy
from dataclasses import replace

from domains.errors import ConfigError
from reid.config import Config, Entry, Method
from reid.step.ending import Ended
from reid.step.learner import Learner, Tick
from reid.terms import Step, build_terms, idle_terms

FOLDER = "adapter"


def check_adapter(method: Method) -> None:
    """Raise ConfigError before any training if a term of the adapter's is unknown, or can't stand in that list."""
    terms = build_terms(method.adapter)
    kept = {term.keeps for term in build_terms(method.terms).values() if term.keeps}
    for name, term in terms.items():
        if term.teachers or term.head or term.view != "plain":
            raise ConfigError(
                f"method {method.name}: an adapter is taught on plain crops without teachers or distributions, so "
                f"{name} has no place there"
            )
        if term.keeps in kept:
            raise ConfigError(f"method {method.name}: its terms and its adapter both keep {term.keeps}; leave one out")
    if terms and "hypernetwork" not in terms:
        raise ConfigError(f"method {method.name}: its adapter list needs a hypernetwork, which writes the adapter")


def adapted(
    learner: Learner, ended: Ended, entries: tuple[Entry, ...], tick: Tick | None = None
) -> tuple[Ended, float]:
    """Teach the step's adapter; returns what the step leaves with what these terms leave added, and the seconds of the
    loop.

    Args:
        learner: has trained the step, which is ended; its model is copied, and not changed.
        ended: what the step leaves so far.
        entries: the method's ``adapter`` list.
        tick: told the iterations done and the losses of the last.
    """
    step, every = learner.step, build_terms(entries)
    terms = {name: term for name, term in every.items() if name not in idle_terms(every, step.index, step.memories)}
    beside = replace(step, config=adapter_config(step), model=copy.deepcopy(step.model), views={}, finished=True)
    seconds = Learner(beside, terms, learner.store, learner.contract, learner.folder / FOLDER).train(tick).seconds
    memory = {f"{term.keeps}.{key}": value for term in terms.values() for key, value in term.end(beside).items()}
    kept = {name: dict(state) for term in terms.values() for name, state in term.weights_for_next(beside).items()}
    return replace(ended, memory=ended.memory | memory, kept=ended.kept | kept), seconds


def adapter_config(step: Step) -> Config:
    """Settings of the step with the adapter's own iterations and rate."""
    train = step.config.train
    found = {
        "iterations": max(1, round(train.adapter * train.iterations)),
        "lr": train.lr * train.adapter_lr,
        "recompute": 0,
    }
    return step.config.model_copy(update={"train": train.model_copy(update=found)})
