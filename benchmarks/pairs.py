"""How well transferability foretells what one domain's model does on another, over ordered pairs of domains.

    python -m benchmarks.pairs [--real]    # real train domains and drawn ones; goes on where it stopped
    python -m benchmarks.pairs table       # rank correlations, the plain H-score beside the shrunk one, the line that
                                           # reid domain relate uses
    python -m benchmarks.pairs ship        # that line into reid/pair_study.json

For every source a model is trained from the stream's start; for every other domain its H-score on the train crops, its
mAP among them and on held-out people (small-5-dev's for the real domains) are measured, then 40 iterations of
fine-tuning from it, and the same 40 from the untrained start. ``gain`` is the difference of the two.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.results_file import record, recorded
from benchmarks.small5 import dev_domain
from domains.arrays import Float64s
from domains.artefact import write_json
from domains.domain import Domain
from domains.synthetic import STYLES, make_domain
from domains.transferability import h_score
from reid.config import Config, build_config, read_stream
from reid.progress import Progress
from reid.run import Run
from reid.run.relate import STUDY, regressors
from reid.run.stream import open_stream
from reid.scores.evaluate import evaluate

SCRATCH = Path(tempfile.gettempdir()) / "lifelong-reid-pairs"
DRAWN, TUNED, METHOD = 5, 40, "fine_tune"
REAL = {"viper", "3dpes", "caviar4reid", "prid2011", "ilids"}
Pair = dict[str, Any]


def domains_of_study(*, real_only: bool = False) -> dict[str, Domain]:
    """Five real domains with people held out, and five drawn ones."""
    real = {domain.name: dev_domain(domain) for domain in open_stream(read_stream("small5"))[0]}
    if real_only:
        return real
    drawn = {}
    for number, style in enumerate(list(STYLES)[:DRAWN]):
        folder = SCRATCH / "drawn" / style
        drawn[style] = (
            make_domain(folder, style, identities=120, seed=number) if not folder.exists() else open_drawn(folder)
        )
    return real | drawn


def open_drawn(folder: Path) -> Domain:
    """A drawn domain that is there already."""
    import domains

    return domains.open(folder)


def tuned(source: Run, target: Domain, config: Config) -> float:
    """Percent mAP on the target after a short fine-tuning from a source's last model."""
    short = config.model_copy(update={"train": config.train.model_copy(update={"iterations": TUNED, "later_lr": 1.0})})
    source.learn(target, method=METHOD, config=short)
    found = float(source.evaluate(target)["mAP"])
    source.drop_last()
    return found


def measure(found: list[Pair], keep: Callable[[list[Pair]], None], *, real_only: bool) -> None:
    """Measure every ordered pair that is not measured yet."""
    stream, everyone = read_stream("small5"), domains_of_study(real_only=real_only)
    config = build_config(stream.config, {"method": METHOD})
    done = {(pair["source"], pair["target"]) for pair in found}
    untrained = Run.open_or_create(SCRATCH / "start", [config.model_dump(mode="json")])[0]
    from_start = {pair["target"]: pair["from_start"] for pair in found}
    for name, source in everyone.items():
        if all((name, other) in done for other in everyone if other != name):
            continue
        run = Run.open_or_create(SCRATCH / name, [config.model_dump(mode="json")])[0]
        while len(run.steps) > 2:  # a fine-tuning that was cut short
            run.drop_last()
        if not run.learned:
            run.learn(source, method=METHOD, config=config, progress=Progress(Console(stderr=True)))
        for other, target in everyone.items():
            if other == name or (name, other) in done:
                continue
            store = run.stores.get(target, target.train)
            known = np.isin(
                store.split.pids,
                [pid for pid, count in zip(*np.unique(store.split.pids, return_counts=True), strict=True) if count > 1],
            )
            features, people = run.embedder(-1)(store.crops[known]), store.split.pids[known]
            among = target.with_held_out(set(target.identities))
            if other not in from_start:
                from_start[other] = tuned(untrained, target, config)
            pair = {
                "source": name,
                "target": other,
                "classes": len(np.unique(people)),
                "crops": len(people),
                "h_share": h_score(features, people).share,
                "h_plain_share": h_score(features, people, shrunk=False).share,
                "among": evaluate(among, run.embedder(-1), run.stores).mAP,
                "zero_shot": float(run.evaluate(target)["mAP"]),
                "tuned": tuned(run, target, config),
                "from_start": from_start[other],
            }
            found.append(pair)
            keep(found)
            print(
                name,
                other,
                {key: round(value, 3) for key, value in pair.items() if isinstance(value, float)},
                flush=True,
            )


def ranks(values: list[float]) -> Float64s:
    """Ranks, equal values sharing their mean."""
    array = np.array(values)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])


def spearman(left: list[float], right: list[float]) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def line(found: list[Pair]) -> dict[str, Any]:
    """The line from H-score and mAP among train crops to zero-shot mAP; its error with the pair left out, and with the
    target left out.
    """
    inputs = np.array([regressors(pair["h_share"], pair["among"]) for pair in found])
    wanted = np.array([pair["zero_shot"] for pair in found])

    def error(groups: list[str]) -> float:
        missed = np.empty(len(found))
        for group in set(groups):
            out = np.array([one == group for one in groups])
            weights = np.linalg.lstsq(inputs[~out], wanted[~out], rcond=None)[0]
            missed[out] = inputs[out] @ weights - wanted[out]
        return float(np.sqrt(np.square(missed).mean()))

    return {
        "weights": [float(value) for value in np.linalg.lstsq(inputs, wanted, rcond=None)[0]],
        "error": error([f"{pair['source']} {pair['target']}" for pair in found]),
        "error_new_target": error([pair["target"] for pair in found]),
        "pairs": len(found),
    }


def real_pairs(found: list[Pair]) -> list[Pair]:
    """Those of two real domains."""
    return [pair for pair in found if {pair["source"], pair["target"]} <= REAL]


def table(found: list[Pair]) -> str:
    """Markdown."""
    lines = [
        "| pairs | number | what foretells | with gain | with zero-shot mAP | with gain, within a target |",
        "|---" * 6 + "|",
    ]
    for name, wanted in (("all", found), ("real", real_pairs(found))):
        if len(wanted) < 4:
            continue
        gain = [pair["tuned"] - pair["from_start"] for pair in wanted]
        for key, title in (
            ("h_share", "H-score, shrunk"),
            ("h_plain_share", "H-score, plain"),
            ("among", "mAP among train crops"),
        ):
            values = [pair[key] for pair in wanted]
            within = []
            for target in sorted({pair["target"] for pair in wanted}):
                rows = [number for number, pair in enumerate(wanted) if pair["target"] == target]
                if len(rows) > 2:
                    within.append(spearman([values[row] for row in rows], [gain[row] for row in rows]))
            inside = f"{np.nanmean(within):.2f}" if within else "–"
            zero = spearman(values, [pair["zero_shot"] for pair in wanted])
            lines.append(f"| {name} | {len(wanted)} | {title} | {spearman(values, gain):.2f} | {zero:.2f} | {inside} |")
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "table", "ship"), default="run")
    parser.add_argument("--real", action="store_true", help="the real domains' pairs alone")
    options = parser.parse_args()
    torch.manual_seed(0)
    found: list[Pair] = recorded("pairs").get("pairs", [])
    if options.what == "run":
        measure(found, lambda pairs: record("pairs", {"pairs": pairs}), real_only=options.real)
    fitted = line(real_pairs(found))  # drawn people foretell nothing of real ones
    if options.what == "ship":
        write_json(STUDY, fitted)
    print(f"{table(found)}\n\n{json.dumps(fitted, indent=1)}")


if __name__ == "__main__":
    main()
