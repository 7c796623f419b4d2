"""Forgetting on the drawn domains: plain fine-tuning and the default, on what `reid demo` learns.

python -m benchmarks.drawn
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from domains.synthetic import make_domain
from reid.config import build_config
from reid.demo import PEOPLE, SETTINGS, STYLES, UNSEEN
from reid.progress import Progress
from reid.run import Run
from reid.run.stream import learn_stream


def main() -> None:
    """Print one line per method and step."""
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            make_domain(Path(folder) / style, style, identities=PEOPLE, seed=number)
            for number, style in enumerate((*STYLES, UNSEEN))
        ]
        for method in ("fine_tune", "default"):
            run = Run.create(Path(folder) / method, build_config(SETTINGS, {"method": method}))
            learn_stream(run, sites[:-1], sites[-1:], progress=Progress())
            for row in range(len(run.steps)):
                shown = "  ".join(f"{name} {run.scores.value(row, name):5.1f}" for name in run.scores.scored)
                print(f"{method:10} after step {row}: {shown}")
            print(f"{method:10} forgetting {run.scores.summary()['forgetting_since_learned']['mAP']:.1f}", flush=True)


if __name__ == "__main__":
    main()
