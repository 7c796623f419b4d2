"""One more domain learned: from what a run has sealed to its next sealed step."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domains.domain import Domain, union
from domains.errors import DataError, UsageError
from reid.batches.loader import CropStore
from reid.config import Config, Method
from reid.network.checkpoint import State
from reid.network.model import ReidModel
from reid.network.runtime import Runtime
from reid.progress import Progress
from reid.randomness import torch_seed
from reid.run.folder import begun
from reid.run.sealed import IN_PROGRESS, Sealed, seal
from reid.run.steps import Steps
from reid.step.adapting import adapted, adapter_config, check_adapter
from reid.step.ending import Ended, check_parts, end_step
from reid.step.fusion import applied
from reid.step.learner import Learner, Trained
from reid.terms import Step, Term, build_terms, head_of, idle_terms


def learn_step(run: Steps, members: list[Domain], method: Method, config: Config, *, restart: bool, progress: Progress) -> Sealed:
    """Learn a domain, or several at once, and seal the step; the run is locked by the caller. See :meth:`reid.run.Run.learn`."""
    domain, config = _what_to_learn(run, members, config)
    terms = build_terms(method.terms)
    check_adapter(method)
    check_parts(method)
    old, parent = run.model()
    for term in (*terms.values(), *build_terms(method.adapter).values()):
        term.check(old)
    index = parent.index + 1
    folder = run.folder / "steps" / f"{index:02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', domain.name)}"
    work = _work_folder(folder, restart=restart)
    runtime = Runtime.choose(config.device, config.train.precision, old)
    contract = config.learning() | {
        "method": method.model_dump(mode="json"), "data": domain.fingerprint, "parent": parent.card["id"], "arithmetic": str(runtime.dtype)
    }  # fmt: skip
    with progress.task(f"decoding {domain.name}", len(domain.train)) as tick:
        store = CropStore.decode(domain, domain.train, config.crop.spec(), limit_mb=config.storage.crop_memory_mb, progress=tick.advance)
    people = sorted({int(pid) for pid in store.split.pids if pid >= 0})
    memories, kept = run.memories(renew=True), parent.kept()
    idle = idle_terms(terms, index, memories)
    terms = {name: term for name, term in terms.items() if name not in idle}
    notes = [f"{name} had no part: {why}" for name, why in idle.items() if index > 1]
    for note in [*(f"left out: {missing.reason}" for missing in store.left_out), *notes]:
        progress.say(note)
    model, _ = run.model()
    model.grow(len(people), seed=torch_seed(config.seed, index, "classifier"))
    if head := head_of(terms.values()):
        model.add_distribution(head, seed=torch_seed(config.seed, index, "distribution"))
    teachers = _teachers(run, terms, old, kept, runtime)
    step = Step(index, domain, config, runtime, model.to(runtime.device), teachers, old.classes, memories, kept=kept)
    learner = Learner(step, terms, store, contract, work)
    with progress.task(f"step {index}: {domain.name}, {method.name}", config.train.iterations) as tick:
        trained = learner.train(tick.losses)
    began = time.perf_counter()
    with progress.task(f"ending step {index}", None):
        ended = end_step(step, terms, method, old, space=parent.feature_space, rows=run.rows)
    beside = 0.0
    if method.adapter:
        with progress.task(f"step {index}: adapter of {domain.name}", adapter_config(step).train.iterations) as tick:
            ended, beside = adapted(step, ended, method.adapter, store, contract, work, tick.losses)
    memory = {name: value.cpu().numpy() for name, value in ended.memory.items()}
    model.cpu()
    card = {
        "method": method.model_dump(mode="json"),
        "domains": [_domain_card(member) for member in members],
        "classes": [domain.identities[pid] for pid in people],
        "train": {
            "config": config.learning(),
            "precision": str(runtime.dtype).removeprefix("torch."),
            **_speed(trained),
            "seconds_ending": round(time.perf_counter() - began, 3),
            "seconds_adapter": round(beside, 3),
            "left_out": [missing.path for missing in store.left_out],
        },
        "bytes": _bytes(memory, teachers, old, ended, fuses=bool(applied(method.fusion, first=index == 1, random=config.model.weights == "none"))),
        "figures": {name: round(value, 6) for name, value in ended.figures.items()},
        "notes": [*domain.notes, *notes],
    }
    sealed = seal(folder, index, model, config.crop.spec(), card, memory, parent=parent.card["id"], ended=ended)
    shutil.rmtree(work)
    return sealed


def _what_to_learn(run: Steps, members: list[Domain], config: Config) -> tuple[Domain, Config]:
    """Return what :func:`planned` says of a run's next step; raises UsageError if the run has learned a member already."""
    known = set(run.learned)
    for member in members:
        if member.name in known:
            raise UsageError(f"{member.name} is already learned in {run.folder}")
    return planned(members, config, later=len(run.steps) > 1)


def planned(members: list[Domain], config: Config, *, later: bool) -> tuple[Domain, Config]:
    """Return the domain as a step learns it, and the settings with the iterations that it gets.

    Args:
        members: domains that are learned at once.
        config: of the run.
        later: whether the run has learned another before.

    Raises:
        DataError: there are no train crops.
    """
    limit = config.data.identities
    members = [member.first_identities(limit) for member in members] if limit else members
    domain = members[0] if len(members) == 1 else union("joint", members)
    if not len(domain.train):
        raise DataError(f"domain {domain.name} has no train crops to learn from")
    train = config.train
    found: dict[str, Any] = {"iterations": train.iterations * len(members)}
    if later:
        found |= {"lr": train.lr * train.later_lr, "later_lr": 1.0}
    if epochs := (None if later else train.first_epochs) or train.epochs:
        found["iterations"] = epochs * max(1, len(domain.train) // (train.identities * train.instances))
        if train.warmup_epochs is not None:
            found["warmup"] = min(1.0, train.warmup_epochs / epochs)
        if train.milestone_epochs is not None:
            found["milestones"] = tuple(min(1.0, milestone / epochs) for milestone in train.milestone_epochs)
    return domain, config.model_copy(update={"train": train.model_copy(update=found)})


def _work_folder(folder: Path, *, restart: bool) -> Path:
    """Where the step in progress is kept; raises UsageError if another domain was begun and not finished."""
    for other in begun(folder.parent):
        if restart:
            shutil.rmtree(other)
        elif other != folder:
            raise UsageError(f"{other.name} was begun and not finished; go on with it, or add --restart to throw its progress away")
    return folder / IN_PROGRESS


def _teachers(run: Steps, terms: Mapping[str, Term], old: ReidModel, kept: Mapping[str, State], runtime: Runtime) -> dict[str, ReidModel]:
    """Frozen networks that the terms declare; one that no step has kept yet is M_{t-1}."""
    teachers = {name: (run.build(kept[name]) if name in kept else old).to(runtime.device) for term in terms.values() for name in term.teachers}
    for frozen in teachers.values():
        frozen.eval().requires_grad_(False)
    return teachers


def _speed(trained: Trained) -> dict[str, float]:
    return {
        "seconds": round(trained.seconds, 3),
        "crops_per_second": round(trained.crops / max(trained.seconds, 1e-9), 2),
        "waiting": round(trained.waiting / max(trained.seconds, 1e-9), 5),
    }


def _bytes(memory: Mapping[str, Any], teachers: Mapping[str, ReidModel], old: ReidModel, ended: Ended, *, fuses: bool) -> dict[str, int]:
    """What the step kept or needed beside its own model, in bytes."""

    def size(state: Mapping[str, Any]) -> int:
        return sum(int(value.nbytes) for value in state.values())

    return {
        "memory": size(memory),
        "classifier_rows_of_old_identities": 4 * old.classes * old.dim,
        "teachers": sum(size(frozen.state_dict()) for frozen in set(teachers.values())),
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
