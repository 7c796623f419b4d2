"""How fast a configured network trains on this machine: a few real iterations of a first step, on drawn people."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from domains.domain import Domain, Split
from domains.synthetic import golden_crops
from reid.batches.loader import CropStore
from reid.config import Config, read_method
from reid.network.build import build_model
from reid.network.runtime import Runtime
from reid.step.learner import Learner
from reid.terms import Step, build_terms, head_of, idle_terms

WARM_UP, MEASURED = 1, 2
"""Iterations; one more follows, which is not counted because the last writes a snapshot."""


@dataclass(frozen=True)
class Speed:
    """Speed and memory of training on this machine.

    Attributes:
        crops_per_second: throughput after warm-up.
        peak_bytes: peak memory of the process (on a GPU: of the device) meanwhile; the domain's crops come on top.
    """

    crops_per_second: float
    peak_bytes: int


def measure_speed(config: Config, *, allow_code: Collection[str] = ()) -> Speed:
    """Train a few iterations with random weights; raises what training raises.

    Args:
        config: the settings of a run's first step.
        allow_code: terms of one's own that may be imported.
    """
    spec, train = config.crop.spec(), config.train
    people = train.identities
    crops = np.resize(
        golden_crops(16, height=spec.height, width=spec.width), (people * train.instances, spec.height, spec.width, 3)
    )
    pids = np.repeat(np.arange(people), train.instances)
    split = Split(tuple(str(row) for row in range(len(pids))), pids, np.zeros(len(pids), np.int64))
    domain = Domain("speed", Path(), "drawn", tuple(str(person) for person in range(people)), ("1",), train=split)
    chosen = config.model_copy(update={"train": train.model_copy(update={"iterations": WARM_UP + MEASURED + 1})})
    every = build_terms(read_method(config.method).terms, allow_code=allow_code)
    terms = {name: term for name, term in every.items() if name not in idle_terms(every, 1, ())}
    model = build_model(config.model.model_copy(update={"weights": "none"}), spec, classes=people)
    if head := head_of(terms.values()):
        model.add_distribution(head)
    runtime = Runtime.choose(config.device, train.precision, model)
    step = Step(1, domain, chosen, runtime, model.to(runtime.device), {}, 0)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(step, terms, CropStore(crops, split, ()), {}, Path(folder))
        learner.train(lambda done, losses: ends.append(perf_counter()))
    if runtime.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(runtime.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Speed(MEASURED * people * train.instances / (ends[WARM_UP + MEASURED - 1] - ends[WARM_UP - 1]), peak)
