"""Learn two drawn sites one after the other, see what the second did to the first, and export for the edge.

    python examples/learn_two_sites.py [FOLDER]       # default: ./example

The network is tiny and starts from random weights, so that this takes seconds on a CPU; scores are low accordingly.
"""

import sys
from pathlib import Path

import domains
import reid
from domains.synthetic import make_domain
from reid.export import export_run

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 64},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 40, "identities": 8, "instances": 2, "lr": 2e-3},
}


def main(folder: Path) -> None:
    """Write sites, run and bundle into a folder."""
    for number, style in enumerate(("plaza", "corridor")):
        make_domain(folder / "sites" / style, style, identities=24, seed=number)
    plaza, corridor = (domains.open(folder / "sites" / style) for style in ("plaza", "corridor"))

    run = reid.Run.create(folder / "run", reid.Config.model_validate(SETTINGS))
    for site in (plaza, corridor):
        run.learn(site, method="default")
        run.fill_scores([plaza, corridor])
        for effect in run.scores.effect(len(run.steps) - 1):
            print(f"after {site.name}: {effect['domain']} {effect['before']:.1f} -> {effect['after']:.1f} mAP")

    bundle = export_run(run, folder / "bundle")
    print(f"exported {bundle.folder}: {bundle.dim} dimensions, feature space {bundle.feature_space:.12}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
