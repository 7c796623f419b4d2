"""The training loop: one domain, a list of terms, and a state that can be resumed at any iteration bit for bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.artefact import make_private, private_file
from domains.domain import JUNK
from domains.errors import ArtefactError, ConfigError, TrainingError, first_line
from domains.text import shown
from reid import randomness
from reid.batches.augment import Augment
from reid.batches.loader import CropStore
from reid.batches.sampler import IdentitySampler
from reid.config import learning_rate
from reid.network.checkpoint import load_state, optimiser_state, restore_optimiser, save_state
from reid.network.recompute import recomputing
from reid.step.optim import build_optimiser, set_rate
from reid.terms import Batch, Step, Term
from reid.terms.survey import Survey

SNAPSHOT = "state.safetensors"
LOG = "log.jsonl"
TOTAL = ""
"""In place of a term's name: the weighted sum of all."""
RESIDENT = 0.25
"""Share of a GPU's free memory that a domain's crops may take."""

Tick = Callable[[int, Mapping[str, float]], None]
"""Called with the number of iterations done and the losses of the last."""


@dataclass(frozen=True)
class Trained:
    """Totals of a step's training: seconds in the loop including resumptions, crops seen, and seconds spent waiting for
    crops.
    """

    seconds: float
    crops: int
    waiting: float


class Learner:
    """Trains ``step.model`` on ``step.domain``.

    Args:
        step: the domain to learn, with its model and settings.
        terms: the method's objectives by name, those that have a part in this step.
        store: the domain's decodable train crops.
        contract: what must not change before the step is resumed; compared key by key.
        folder: where the state of the step in progress is kept.
    """

    def __init__(
        self, step: Step, terms: Mapping[str, Term], store: CropStore, contract: Mapping[str, Any], folder: Path
    ) -> None:
        config = step.config
        self.step = step
        self.terms = dict(terms)
        self.store = store
        self.contract = dict(contract)
        self.folder = folder
        usable = store.split.pids != JUNK
        self.people = store.split.people
        self.labels = np.searchsorted(self.people, store.split.pids) + step.old_classes
        self.positions = np.flatnonzero(usable)
        self.sampler = IdentitySampler(
            np.searchsorted(self.people, store.split.pids[usable]),
            store.split.camids[usable],
            identities=config.train.identities,
            instances=config.train.instances,
            groups=[step.domain.groups[pid] for pid in self.people]
            if step.domain.groups and config.train.sampling == "domain"
            else None,
            seed=(config.seed, step.index),
        )
        self.augment = Augment(config.augment, step.model.normalise.fill)
        self.crops = resident(store, step.runtime.device)
        step.survey = Survey(
            store, self.positions, np.searchsorted(self.people, store.split.pids[usable]), step.runtime.device
        )

    def train(self, tick: Tick | None = None) -> Trained:
        """Train to the last iteration, from the snapshot if there is one.

        Raises:
            TrainingError: a loss is not finite; the message names the iteration and every term.
            ConfigError: the snapshot was made under another contract; one line per difference.
        """
        step, train = self.step, self.step.config.train
        for term in self.terms.values():
            term.to(step.runtime.device)
            term.begin(step)
        extra = [parameter for term in self.terms.values() for parameter in term.parameters()]
        self.optimiser = build_optimiser(step.model, train, extra)
        self.clipped = [*step.model.parameters(), *extra]
        if not (step.model.backbone.planar and step.runtime.device.type == "cpu"):
            step.model.to(memory_format=torch.channels_last)
        start, seconds, waiting = self._resume()
        if train.recompute and (train.compile or step.model.changes is not None):
            other = (
                "train.compile"
                if train.compile
                else "a term that changes the weights of each forward pass (hypernetwork)"
            )
            raise ConfigError(f"train.recompute and {other} can't be used together; leave train.recompute at 0")
        if train.compile:
            step.model.compile()
        step.model.train()
        with recomputing(step.model.backbone, train.recompute):
            seconds, waiting = self._loop(start, seconds, waiting, tick)
        for term in self.terms.values():
            term.after_training(step)
        return Trained(seconds, train.iterations * train.identities * train.instances, waiting)

    def _loop(self, start: int, seconds: float, waiting: float, tick: Tick | None) -> tuple[float, float]:
        """Run the iterations from ``start`` on; returns the total seconds and seconds waited, earlier ones included."""
        step, train = self.step, self.step.config.train
        saved = clock = time.perf_counter()
        with open(self.folder / LOG, "a", encoding="utf-8", opener=private_file) as log:
            batches = ((iteration, self._batch(iteration)) for iteration in range(start, train.iterations))
            coming = next(batches, None)
            waiting += time.perf_counter() - clock
            while coming is not None:
                iteration, batch = coming
                values = self._update(batch, iteration)
                began = time.perf_counter()  # a GPU is still at work on this iteration while the next is drawn
                coming = next(batches, None)
                waiting += time.perf_counter() - began
                losses = self._read(values, iteration)
                log.write(
                    json.dumps({"iteration": iteration, "lr": self.optimiser.param_groups[0]["lr"], "losses": losses})
                    + "\n"
                )
                now = time.perf_counter()
                if iteration + 1 == train.iterations or now - saved >= step.config.storage.snapshot_seconds:
                    log.flush()
                    self._snapshot(iteration + 1, seconds + now - clock, waiting)
                    saved = time.perf_counter()
                if tick:
                    tick(iteration + 1, losses)
        return seconds + time.perf_counter() - clock, waiting

    def _batch(self, iteration: int) -> Batch:
        step = self.step
        rows = self.positions[self.sampler.batch(iteration)]
        device = step.runtime.device
        if self.crops is None:
            crops = torch.from_numpy(self.store.crops[rows]).to(device, non_blocking=True)
        else:
            crops = self.crops[torch.from_numpy(rows).to(device, non_blocking=True)]
        plain = self.augment(crops, randomness.torch_generator(step.config.seed, step.index, iteration, "plain"))
        cameras = torch.from_numpy(self.store.split.camids[rows])
        return Batch(plain, torch.from_numpy(self.labels[rows]).to(device), cameras.to(device), step, iteration)

    def _update(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        """Train on a batch; returns the terms' losses, which are still on the device, and their weighted sum last."""
        step, train = self.step, self.step.config.train
        torch.manual_seed(randomness.torch_seed(step.config.seed, step.index, iteration, "model"))
        set_rate(self.optimiser, learning_rate(train, iteration))
        outputs = {name: term.loss(batch) for name, term in self.terms.items()}
        values = {name: value for name, value in outputs.items() if value is not None}
        total = torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        for term in self.terms.values():
            term.after_backward(step)
        if train.clip:
            torch.nn.utils.clip_grad_norm_(self.clipped, train.clip)
        self.optimiser.step()
        for term in self.terms.values():
            term.after_update(step)
        return {name: value.detach() for name, value in values.items()} | {TOTAL: total.detach()}

    def _read(self, values: dict[str, Tensor], iteration: int) -> dict[str, float]:
        """Return the terms' losses, read from the device at once; raises TrainingError if their sum is not finite."""
        read = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        total = read.pop(TOTAL)
        if not math.isfinite(total):
            listed = ", ".join(f"{name}={value:.4g}" for name, value in read.items())
            raise TrainingError(
                f"step {self.step.index} ({self.step.domain.name}): the loss is not finite at iteration {iteration}: "
                f"{listed}; nothing was sealed; try a lower train.lr"
            )
        return read

    def _snapshot(self, done: int, seconds: float, waiting: float) -> None:
        state = {
            "contract": self.contract,
            "done": done,
            "seconds": seconds,
            "waiting": waiting,
            "model": dict(self.step.model.state_dict()),
            "optimiser": optimiser_state(self.optimiser),
            "terms": {name: dict(term.state_dict()) for name, term in self.terms.items()},
        }
        save_state(self.folder / SNAPSHOT, state)

    def _resume(self) -> tuple[int, float, float]:
        """Return iterations done, seconds so far and seconds waited; all 0 at a fresh start."""
        make_private(self.folder)
        snapshot, log = self.folder / SNAPSHOT, self.folder / LOG
        if not snapshot.is_file():
            log.unlink(missing_ok=True)
            return 0, 0.0, 0.0
        state = load_state(snapshot)
        try:
            check_contract(state["contract"], self.contract, self.folder)
            self.step.model.load_state_dict(state["model"])
            restore_optimiser(self.optimiser, state["optimiser"])
            for name, term in self.terms.items():
                term.load_state_dict(state["terms"][name])
            done, spent = int(state["done"]), (float(state["seconds"]), float(state["waiting"]))
            lines = log.read_text("utf-8").splitlines(keepends=True)[:done] if log.is_file() else []
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ArtefactError(
                f"{snapshot} is not the state of this step ({shown(first_line(error)):.160}); add --restart to "
                "start over"
            ) from error
        with open(log, "w", encoding="utf-8", opener=private_file) as stream:
            stream.writelines(lines)
        return done, *spent


def resident(store: CropStore, device: torch.device) -> Tensor | None:
    """Return all crops ``[N, H, W, 3]`` uint8 on a GPU that has room for them, so that a batch is one gather there."""
    if device.type != "cuda" or store.crops.nbytes > RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(np.ascontiguousarray(store.crops)).to(device)


def check_contract(saved: Mapping[str, Any], requested: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError with a line per difference between a step in progress and the settings requested now."""
    plain = json.loads(json.dumps(dict(requested)))
    differing = [name for name in sorted({*saved, *plain}) if saved.get(name) != plain.get(name)]
    if differing:
        raise ConfigError(
            f"the step in progress in {folder.parent} was started with other settings; use those, or add --restart to "
            "start over:",
            *(f"  {name}: saved {saved.get(name)!r}, requested {plain.get(name)!r}" for name in differing),
        )
