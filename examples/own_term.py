"""A term of one's own: centre loss (Wen et al., ECCV 2016), within a batch, beside cross-entropy and triplet.

    python examples/own_term.py [FOLDER]       # default: ./example

A method names the term ``module:Class``; the module has to be importable, as it is here because it lies beside the
script that is run.
"""

import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

import domains
import reid
from domains.synthetic import make_domain


class CentreLoss(reid.Term):
    """Mean squared distance of each unit-length embedding to the mean of its identity's in the batch.

    Args:
        weight: factor of the loss.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def loss(self, batch: reid.Batch) -> Tensor:
        """Return the loss, a scalar."""
        embeddings = F.normalize(batch.output().embedding, dim=1)
        same = (batch.labels[:, None] == batch.labels[None]).float()
        centres = same @ embeddings / same.sum(1, keepdim=True)
        return (embeddings - centres).square().sum(1).mean()


METHOD = {
    "name": "centred",
    "about": "Fine-tuning with a centre loss.",
    "terms": ["cross_entropy", "triplet", {"own_term:CentreLoss": {"weight": 0.5}}],
}


def main(folder: Path) -> None:
    """Teach one drawn site with it, and show the loss of each term."""
    site = domains.open(make_domain(folder / "own-term" / "snow", "snow", identities=16).root)
    settings = {
        "model": {"backbone": "test_resnet", "weights": "none", "dim": 64},
        "crop": {"height": 64, "width": 32},
        "train": {"iterations": 20, "identities": 4, "instances": 2},
    }
    run = reid.Run.create(folder / "own-term" / "run", reid.Config.model_validate(settings))
    step = run.learn(site, method=reid.Method.model_validate(METHOD))
    print((step.folder / "log.jsonl").read_text().splitlines()[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
