"""Learning one more domain: from a run's sealed steps to its next one."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domains.domain import JUNK, Domain, union
from domains.errors import DataError, UsageError
from prototypes.memory import Memory
from reid.batches.loader import CropStore
from reid.config import Config, Method
from reid.network.checkpoint import State
from reid.network.embedding import embedder
from reid.network.model import ReidModel
from reid.network.runtime import Runtime
from reid.progress import Progress
from reid.randomness import numpy_generator, torch_seed
from reid.run.folder import begun
from reid.run.sealed import IN_PROGRESS, Sealed, seal
from reid.run.steps import Steps
from reid.scores.evaluate import evaluate
from reid.step.adapting import adapted, adapter_config, check_adapter
from reid.step.ending import Ended, check_parts, end_step
from reid.step.fusion import applied
from reid.step.learner import Learner, Trained
from reid.terms import Step, Term, build_terms, head_of, idle_terms

FEWEST = 4
"""People who can judge a step."""


@dataclass(frozen=True)
class _Taught:
    """A step whose network is finished.

    Attributes:
        trained: how the training went.
        ended: the step's results besides its model.
        seconds_ending: everything after training, the adapter included.
        seconds_adapter: the adapter alone.
    """

    trained: Trained
    ended: Ended
    seconds_ending: float
    seconds_adapter: float


def learn_step(
    run: Steps,
    members: list[Domain],
    method: Method,
    config: Config,
    *,
    allow_code: Collection[str],
    restart: bool,
    progress: Progress,
) -> Sealed:
    """Learn a domain, or several at once, and seal the step; the caller has locked the run.

    See :meth:`reid.run.Run.learn`; ``allow_code`` lists all that the user allows.
    """
    wanted = config.train.identities
    if not method.terms:  # nothing is trained, so there is nothing to judge
        config = config.model_copy(update={"train": config.train.model_copy(update={"held_out": 0.0})})
    domain, config = _what_to_learn(run, members, config)
    old, parent = run.model()
    every = _checked_terms(method, old, allow_code)
    index = parent.index + 1
    folder = run.folder / "steps" / f"{index:02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', domain.name)}"
    work = _work_folder(folder, restart=restart)
    runtime = Runtime.choose(config.device, config.train.precision, old)
    data = {"method": method.model_dump(mode="json"), "data": domain.fingerprint}
    contract = config.learning() | data | {"parent": parent.card["id"], "arithmetic": str(runtime.dtype)}
    with progress.task(f"decoding {domain.name}", len(domain.train)) as tick:
        limit = config.storage.crop_memory_mb
        store = CropStore.decode(
            domain, domain.train, config.crop.spec(), limit_mb=limit, progress=tick.advance, scratch=run.folder
        )
    people = store.split.people.tolist()
    memories = run.memories(renew=True)
    idle = idle_terms(every, index, memories)
    terms = {name: term for name, term in every.items() if name not in idle}
    notes = [f"{name} took no part: {why}" for name, why in idle.items() if index > 1]
    if method.terms and config.train.identities < wanted:
        notes.append(f"batches are of all {config.train.identities} identities instead of {wanted}: there are no more")
    for note in [*(f"left out: {missing.reason}" for missing in store.left_out), *notes]:
        progress.say(note)
    step = _begin(run, old, terms, domain, config, runtime, memories, people)
    learner = Learner(step, terms, store, contract, work)
    if config.train.held_out:
        step.judge = lambda model: evaluate(domain, embedder(model, runtime.device), run.stores).mAP
    taught = _teach(learner, method, old, parent.feature_space, run.rows, progress, allow_code)
    for note in taught.ended.notes:
        progress.say(note)
    memory = {name: value.cpu().numpy() for name, value in taught.ended.memory.items()}
    card = {
        "method": data["method"],
        "domains": [_domain_card(member) for member in members],
        "classes": [domain.identities[pid] for pid in people],
        "train": _training_card(step, taught) | {"left_out": [missing.path for missing in store.left_out]},
        "bytes": _bytes(step, method, memory, old, taught.ended),
        "figures": {name: round(value, 6) for name, value in taught.ended.figures.items()},
        "notes": [*domain.notes, *notes, *taught.ended.notes],
    }
    model = step.model.cpu()
    sealed = seal(folder, index, model, config.crop.spec(), card, memory, parent=parent.card["id"], ended=taught.ended)
    if work.exists():  # something was trained
        shutil.rmtree(work)
    return sealed


def _checked_terms(method: Method, old: ReidModel, allow_code: Collection[str]) -> dict[str, Term]:
    """Build the method's terms and check all its parts against the network before decoding anything.

    Raises:
        ConfigError: a part does not fit.
    """
    terms = build_terms(method.terms, allow_code=allow_code)
    check_adapter(method, allow_code=allow_code)
    check_parts(method)
    for term in (*terms.values(), *build_terms(method.adapter, allow_code=allow_code).values()):
        term.check(old)
    return terms


def _begin(
    run: Steps,
    old: ReidModel,
    terms: Mapping[str, Term],
    domain: Domain,
    config: Config,
    runtime: Runtime,
    memories: Sequence[Memory],
    people: Sequence[int],
) -> Step:
    """Give the network room for new identities and the head that the terms need, and find the terms' teachers."""
    model, parent = run.model()
    index, kept = parent.index + 1, run.taught().kept()
    model.grow(len(people), seed=torch_seed(config.seed, index, "classifier"))
    if head := head_of(terms.values()):
        model.add_distribution(head, seed=torch_seed(config.seed, index, "distribution"))
    teachers = _teachers(run, terms, old, kept, runtime)
    return Step(index, domain, config, runtime, model.to(runtime.device), teachers, old.classes, memories, kept=kept)


def _teach(
    learner: Learner,
    method: Method,
    old: ReidModel,
    space: str,
    rows: list[slice],
    progress: Progress,
    allow_code: Collection[str],
) -> _Taught:
    """Train the step, end it, and train its adapter if the method has one."""
    step, beside, trained = learner.step, 0.0, Trained(0.0, 0, 0.0)
    if method.terms:
        iterations = step.config.train.iterations
        with progress.task(f"step {step.index}: {step.domain.name}, {method.name}", iterations) as tick:
            trained = learner.train(tick.losses)
    began = time.perf_counter()
    with progress.task(f"ending step {step.index}", None):
        ended = end_step(step, learner.terms, method, old, space=space, rows=rows)
    if method.adapter:
        with progress.task(
            f"step {step.index}: adapter of {step.domain.name}", adapter_config(step).train.iterations
        ) as tick:
            ended, beside = adapted(learner, ended, method.adapter, tick.losses, allow_code=allow_code)
    return _Taught(trained, ended, time.perf_counter() - began, beside)


def _what_to_learn(run: Steps, members: list[Domain], config: Config) -> tuple[Domain, Config]:
    """Return :func:`planned` for a run's next step; raises UsageError if the run has already learned a member."""
    known = set(run.learned)
    for member in members:
        if member.name in known:
            raise UsageError(f"{member.name} is already learned in {run.folder}")
    return planned(members, config, later=len(run.steps) > 1)


def planned(members: list[Domain], config: Config, *, later: bool) -> tuple[Domain, Config]:
    """Return the domain as a step learns it, and the settings with its number of iterations.

    Args:
        members: domains that are learned at once.
        config: the run's settings.
        later: whether the run has learned a domain before.

    Where there are fewer people than ``train.identities``, each batch holds all of them. People who are kept out of
    training (``train.held_out``) are the domain's queries and gallery.

    Raises:
        DataError: there are no train crops, or all are of one person.
    """
    limit = config.data.identities
    members = [member.first_identities(limit) for member in members] if limit else members
    domain = members[0] if len(members) == 1 else union("joint", members)
    if not len(domain.train):
        raise DataError(f"domain {domain.name} has no train crops to learn from{domain.remarks}")
    people = len(domain.train.people)
    if people < 2:
        raise DataError(
            f"domain {domain.name} has train crops of {people} identities; training needs at least two{domain.remarks}"
        )
    train = config.train
    if train.held_out:
        domain = domain.with_held_out(judges(domain, train.held_out, config.seed))
        people = len(domain.train.people)
    batch = min(people, train.identities)
    changes: dict[str, Any] = {"iterations": train.iterations * len(members), "identities": batch}
    if later:
        changes |= {"lr": train.lr * train.later_lr, "later_lr": 1.0}
    if epochs := (None if later else train.first_epochs) or train.epochs:
        changes["iterations"] = epochs * max(1, len(domain.train) // (batch * train.instances))
        if train.warmup_epochs is not None:
            changes["warmup"] = min(1.0, train.warmup_epochs / epochs)
        if train.milestone_epochs is not None:
            changes["milestones"] = tuple(min(1.0, milestone / epochs) for milestone in train.milestone_epochs)
    return domain, config.model_copy(update={"train": train.model_copy(update=changes)})


def judges(domain: Domain, share: float, seed: int) -> set[str]:
    """Return a share of the train people, drawn among those with two crops or more.

    Raises:
        DataError: they would be fewer than ``FEWEST``, or fewer than two people would be left to learn.
    """
    pids, counts = np.unique(domain.train.pids[domain.train.pids != JUNK], return_counts=True)
    able, wanted = pids[counts > 1], round(share * len(pids))
    if min(wanted, len(able)) < FEWEST or len(pids) - wanted < 2:
        raise DataError(
            f"train.held_out={share:g} keeps {min(wanted, len(able))} of {domain.name}'s {len(pids)} people out of "
            f"training, and at least {FEWEST} with two crops each are needed to judge it; set a larger share, or 0"
        )
    drawn = numpy_generator(seed, "held out").permutation(able)[:wanted]
    return {domain.identities[pid] for pid in drawn}


def _work_folder(folder: Path, *, restart: bool) -> Path:
    """Return the folder of the step in progress; raises UsageError if another one was started but not finished."""
    for other in begun(folder.parent):
        if restart:
            shutil.rmtree(other)
        elif other != folder:
            raise UsageError(
                f"{other.name} was started but not finished; continue it, or add --restart to discard its progress"
            )
    return folder / IN_PROGRESS


def _teachers(
    run: Steps, terms: Mapping[str, Term], old: ReidModel, kept: Mapping[str, State], runtime: Runtime
) -> dict[str, ReidModel]:
    """Return the frozen networks that the terms declare; one that no step has kept yet is M_{t-1}."""
    teachers = {
        name: (run.build(kept[name]) if name in kept else old).to(runtime.device)
        for term in terms.values()
        for name in term.teachers
    }
    for frozen in teachers.values():
        frozen.eval().requires_grad_(False)
    return teachers


def _training_card(step: Step, taught: _Taught) -> dict[str, Any]:
    """How the training went, and under which settings."""
    trained = taught.trained
    return {
        "config": step.config.learning(),
        "precision": str(step.runtime.dtype).removeprefix("torch."),
        "seconds": round(trained.seconds, 3),
        "crops_per_second": round(trained.crops / max(trained.seconds, 1e-9), 2),
        "waiting": round(trained.waiting / max(trained.seconds, 1e-9), 5),
        "seconds_ending": round(taught.seconds_ending, 3),
        "seconds_adapter": round(taught.seconds_adapter, 3),
    }


def _bytes(step: Step, method: Method, memory: Mapping[str, Any], old: ReidModel, ended: Ended) -> dict[str, int]:
    """Return what the step kept or needed besides its own model, in bytes."""

    def size(state: Mapping[str, Any]) -> int:
        return sum(int(value.nbytes) for value in state.values())

    fuses = applied(method.fusion, first=step.index == 1, random=step.config.model.weights == "none")
    return {
        "memory": size(memory),
        "classifier_rows_of_old_identities": 4 * old.classes * old.dim,
        "teachers": sum(size(frozen.state_dict()) for frozen in set(step.teachers.values())),
        "fusion_partner": size(old.state_dict()) if fuses else 0,
        "transport": 2 * ended.transport.matrix.size if ended.transport else 0,
        "kept": sum(size(state) for state in ended.kept.values()),
    }


def _domain_card(member: Domain) -> dict[str, Any]:
    return {
        "name": member.name,
        "path": str(member.root.resolve()),
        "format": member.format,
        "fingerprint": member.fingerprint,
        "same_camera": member.same_camera,
        "crops": {name: len(split) for name, split in member.splits()},
        "cameras": list(member.cameras),
    }
