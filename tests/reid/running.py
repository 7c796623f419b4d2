"""What tests of runs share: settings of the smallest run, its weights, and a learner that stops in the middle."""

from contextlib import nullcontext

import torch

from reid.config import Method
from reid.network.checkpoint import read_tensors

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 6, "identities": 4, "instances": 2},
    "storage": {"snapshot_seconds": 0},
    "method": "fusion",
}

MEASURED = Method.model_validate(
    {
        "name": "made up",
        "about": "Learns, carries and measures.",
        "terms": ["cross_entropy", "triplet"],
        "fusion": ["average"],
        "transport": ["ridge"],
        "metric": ["within_person"],
    }
)


def weights(run, step=-1):
    return read_tensors(run.steps[step].folder / "model.safetensors")[0]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Stop(Exception):
    pass


class StopAt:
    """Progress that raises at one iteration of training, as a crash would."""

    def __init__(self, iteration):
        self.iteration = iteration

    def say(self, line):
        pass

    def task(self, name, total):
        class Tick:
            def advance(_, count):
                pass

            def losses(_, done, values):
                if done == self.iteration:
                    raise Stop

        return nullcontext(Tick())
