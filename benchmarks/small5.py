"""The small-5 study: every method on five small real domains, resumable across days.

    python -m benchmarks.small5 dev --trial fine_tune:train.lr=0.0007      # one trial on small-5-dev; choices are
                                                                           # made here only
    python -m benchmarks.small5 test      # every frozen method on the test splits, each run once
    python -m benchmarks.small5 strong    # the same from a person-trained start
    python -m benchmarks.small5 parts     # default without each of its parts in turn, on small-5-dev, two seeds
    python -m benchmarks.small5 guides    # hyper_default with a guide, three seeds; without one: test
    python -m benchmarks.small5 heads     # dkp with either distribution head, on small-5-dev, three seeds
    python -m benchmarks.small5 table     # the tables, as Markdown; document: into docs/results.md and README.md

A result is keyed by configuration, method, data and a hash of the learning path's code; what is there already is not
run again, and a run that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.small5_tables import DOCUMENT, METHODS, README, summary, whole, write
from domains.artefact import content_id, write_atomic, write_json
from domains.domain import Domain
from reid.config import Config, Method, build_config, read_method, read_stream
from reid.progress import Progress
from reid.run import Run
from reid.run.scoring import in_one_gallery
from reid.run.stream import learn_stream, open_stream

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "small5.json"
DEV_LIST = HERE / "small5_dev.json"
SCRATCH = Path(tempfile.gettempdir()) / "lifelong-reid-small5"
DEV_SEED, DEV_SHARE = 20261121, 0.3
LEARNING_PATH = (
    "domains",
    "prototypes",
    "reid/batches",
    "reid/network",
    "reid/randomness.py",
    "reid/run",
    "reid/scores",
    "reid/step",
    "reid/terms",
)
NO_METRIC = ", no metric"
THREE_SEEDS = ("fine_tune", "fusion", "dkp++", "default", "hyper_routed", "hyper_default", "joint")
THREE_SEEDS += ("default, no metric", "hyper_default, no metric")
STARTS = {
    "strong": ["model.weights=${WEIGHTS}/mobilenetv2_100.person.fp16.safetensors"],
    "heads": [
        "model.backbone=onnx:${WEIGHTS}/osnet_x0_25_msmt17.onnx",
        "model.weights=none",
        "model.channels=rgb",
        "model.mean=[123.675, 116.28, 103.53]",
        "model.std=[58.395, 57.12, 57.375]",
        "crop.height=256",
        "crop.width=128",
    ],
}
"""Settings of studies that begin elsewhere; the published distribution head needs maps of 8×8 and more, and OSNet's are
16×8.
"""
ON_DEV = ("dev", "parts", "heads")
HEADED = ("distribution_cross_entropy", "distribution_triplet", "joint_triplet", "prototypes")
STRONG_SEEDS = {"fine_tune": (0,), "fusion": (0,), "dkp++": (0, 1, 2), "default": (0, 1, 2)}
STRONG_SEEDS |= {"default, no metric": (0, 1, 2), "hyper_default, no metric": (0, 1, 2)}
THREADS = 1
"""Of every run, so that figures do not hang on a machine's cores; two runs side by side use two cores better than one
run does.
"""
CHOSEN_ON_DEV = {"joint": ["train.sampling=domain"]}
"""What small-5-dev decided for one method alone: two samplings were tried with joint. The rates in the stream's file
serve all methods.
"""


@cache
def code_hash() -> str:
    """Hash the learning path's syntax trees without docstrings: a reworded comment leaves figures valid, a changed line
    does not.
    """
    root = HERE.parent
    trees = []
    for name in LEARNING_PATH:
        target = root / name
        for file in [target] if target.is_file() else sorted(target.rglob("*.py")):
            tree = ast.parse(file.read_text("utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list):
                    node.body = [
                        item
                        for item in body
                        if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
                    ]
            trees.append(f"{file.relative_to(root)} {ast.dump(tree)}")
    return content_id(trees)[:16]


def start_of(kind: str) -> list[str]:
    """Return the settings of a study that does not begin from the stream's own weights."""
    weights = Path(os.environ["LIFELONG_REID_DATA"]).parent / "weights"
    return [setting.replace("${WEIGHTS}", str(weights)) for setting in STARTS.get(kind, ())]


def dev_domain(domain: Domain) -> Domain:
    """Hold 30 % of the train identities with two or more images out as query and gallery; the test splits are not
    touched.
    """
    return domain.with_held_out(set(json.loads(DEV_LIST.read_text())[domain.name]))


def draw_dev_list(learned: list[Domain]) -> dict[str, list[str]]:
    """Draw the identities that small-5-dev holds out; the list is shipped, so this is run once."""
    drawn = {}
    for domain in learned:
        pids, counts = np.unique(domain.train.pids, return_counts=True)
        able = pids[counts >= 2]
        picked = np.random.default_rng(DEV_SEED).permutation(able)[: round(DEV_SHARE * len(able))]
        drawn[domain.name] = [domain.identities[pid] for pid in sorted(picked)]
    return drawn


def without_parts(method: Method) -> dict[str, Method]:
    """A method without each of its parts in turn; classification and triplet stay."""
    found = {}
    for where in ("terms", "fusion", "repair"):
        entries = getattr(method, where)
        for at, entry in enumerate(entries):
            ((part, _),) = entry.items()
            if part not in ("cross_entropy", "triplet"):
                found[f"{method.name} without {part}"] = method.model_copy(
                    update={where: entries[:at] + entries[at + 1 :]}
                )
    return found


def method_named(name: str) -> Method:
    """Return a shipped method, without a site's metric if its name ends so."""
    shipped, comma, _ = name.partition(NO_METRIC)
    method = read_method(shipped)
    return method.model_copy(update={"metric": ()}) if comma else method


def with_guides(method: Method) -> dict[str, Method]:
    """A method whose hypernetwork is guided by transferability, and to a random place; as it is shipped it is not
    guided at all.
    """
    found = {}
    for guide in ("h", "random"):
        lists = {
            where: tuple(
                {name: {**given, "guide": guide} if name == "hypernetwork" else given for name, given in entry.items()}
                for entry in entries
            )
            for where, entries in (("terms", method.terms), ("adapter", method.adapter))
        }
        found[f"{method.name}, guide {guide}"] = method.model_copy(update=lists)
    return found


def with_heads(method: Method) -> dict[str, Method]:
    """A method of distributions with the published head, and with the small one."""
    found = {}
    for head in ("convolution", "pooled"):
        terms = tuple(
            {name: {**given, "head": head} if name in HEADED else given for name, given in entry.items()}
            for entry in method.terms
        )
        found[f"{method.name}, head {head}"] = method.model_copy(update={"terms": terms})
    return found


@dataclass(frozen=True)
class Trial:
    """One stream to run.

    Attributes:
        kind: ``test``, ``strong``, ``guides``, or one of ``ON_DEV``, which see small-5-dev alone.
        method: name under which it is listed.
        seed: of the run.
        order: 1 or 2.
        sets: settings beside those of the stream.
        chosen: the method, if it is not the one shipped under its name.
    """

    kind: str
    method: str
    seed: int = 0
    order: int = 1
    sets: Sequence[str] = ()
    chosen: Method | None = None


def study(trial: Trial, results: dict[str, Any], *, keep: bool = True, threads: int = THREADS) -> None:
    """Run one stream unless its result is there; keep the whole matrix, its summary and the costs.

    Args:
        trial: what to run.
        results: what is there; the new one is added.
        keep: write the results' file.
        threads: of torch.
    """
    kind, order = trial.kind, trial.order
    torch.set_num_threads(threads)
    stream = read_stream("small5")
    learned, unseen = open_stream(stream)
    if kind in ON_DEV:
        learned, unseen = [dev_domain(domain) for domain in learned], []
    if order == 2:
        learned = learned[::-1]
    chosen = trial.chosen or method_named(trial.method)
    config = build_config(
        stream.config, {"seed": trial.seed, "method": chosen.name}, overrides=[*start_of(kind), *trial.sets]
    )
    data = content_id([domain.fingerprint for domain in [*learned, *unseen]])[:16]
    settings = {key: value for key, value in config.learning().items() if key != "model.weights"} | {
        "weights": Path(config.model.weights).name
    }
    if config.model.backbone.startswith("onnx:"):
        settings["model.backbone"] = f"onnx:{Path(config.model.backbone).name}"
    key = result_key(kind, order, settings, chosen.model_dump(mode="json"), data)
    if key in results:
        return
    folder = SCRATCH / key
    run, config = Run.open_or_create(folder, [config.model_dump(mode="json")])
    learn_stream(run, learned, unseen, method=chosen, config=config, progress=Progress(Console(stderr=True)))
    steps = run.steps[1:]
    results[key] = {
        "kind": kind,
        "method": trial.method,
        "seed": trial.seed,
        "order": order,
        "sets": list(trial.sets),
        "data": data,
        "code": code_hash(),
        "threads": threads,
        "about": chosen.model_dump(mode="json"),
        "settings": settings,
        "matrix": {f"{row}/{name}": dict(cell.scores) for (row, name), cell in run.scores.cells.items()},
        "summary": run.scores.summary(),
        "seconds": [step.card["train"]["seconds"] for step in steps],
        "crops_per_second": [step.card["train"]["crops_per_second"] for step in steps],
        "waiting": [step.card["train"]["waiting"] for step in steps],
        "seconds_ending": [step.card["train"]["seconds_ending"] for step in steps],
        "bytes": [step.card["bytes"] for step in steps],
        "figures": [step.card["figures"] for step in steps],
        "without_reindexing": run.evaluate_without_reindexing(learned),
        "one_gallery": one_gallery(run, learned, unseen),
    }
    if keep:
        write_results(results)
    shutil.rmtree(folder)
    print(line(results[key]), flush=True)


def one_gallery(run: Run, learned: list[Domain], unseen: list[Domain]) -> dict[str, dict[str, list[float]]]:
    """Percent mAP and rank-1 of each learned site's queries in one gallery of all sites, by metric and site."""
    together = in_one_gallery(run, [*learned, *unseen])
    return {
        kind: {
            domain.name: [round(scores[domain.name].mAP, 4), round(scores[domain.name].rank1, 4)] for domain in learned
        }
        for kind, scores in together.items()
    }


def result_key(kind: str, order: int, settings: dict[str, Any], about: dict[str, Any], data: str) -> str:
    """Name of a result under the code as it is now; settings at their defaults and a method's description have no part
    in it.
    """
    usual = Config().learning()
    essential = {key: value for key, value in settings.items() if key not in usual or value != usual[key]}
    parts = {key: about.get(key) for key in ("terms", "fusion", "repair", "transport", "needs_all_images")}
    parts |= {key: about[key] for key in ("adapter", "metric") if about.get(key)}
    return content_id([kind, order, essential, parts, data, code_hash()])[:16]


def write_results(results: dict[str, Any]) -> None:
    """Write the results' file, one run a line, so that a new one is one line of a change."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(result, ensure_ascii=False, allow_nan=False)}"
        for key, result in results.items()
    ]
    write_atomic(RESULTS, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def line(result: dict[str, Any]) -> str:
    """One run in one line."""
    last = result["summary"]["rows"][-1]
    unseen = last["unseen"]["mAP"]
    return (
        f"{result['kind']:4} {result['method']:10} order {result['order']} seed {result['seed']} "
        f"{' '.join(result['sets'])}: "
        f"Seen {last['seen']['mAP']:.2f}/{last['seen']['rank1']:.2f} Unseen "
        f"{'-' if unseen is None else f'{unseen:.2f}'} "
        f"plasticity {result['summary']['plasticity']['mAP']:.2f} forgetting "
        f"{result['summary']['forgetting_since_learned']['mAP']} "
        f"({sum(result['seconds']):.0f} s)"
    )


def frozen(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return results on the test splits of the code as it is now."""
    return [result for result in results.values() if result["kind"] != "dev" and result["code"] == code_hash()]


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dev", "test", "strong", "parts", "guides", "heads", "table", "document"))
    parser.add_argument("--trial", action="append", default=[], help="METHOD[:key=value,…] for dev; may be repeated")
    parser.add_argument(
        "--methods", type=lambda text: text.split(","), default=METHODS, help="A,B for test and strong; all"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.what == "dev":
        if not DEV_LIST.exists():
            write_json(DEV_LIST, draw_dev_list(open_stream(read_stream("small5"))[0]))
        for trial in options.trial:
            method, _, sets = trial.partition(":")
            study(Trial("dev", method, options.seed, sets=[item for item in sets.split(",") if item]), results)
    elif options.what == "parts":
        complete = method_named("default, no metric")
        for seed in (0, 1):
            for name, chosen in {"default": complete, **without_parts(complete)}.items():
                study(Trial("parts", name, seed, chosen=chosen), results)
    elif options.what == "guides":
        for seed in (0, 1, 2):
            for name, chosen in with_guides(method_named("hyper_default, no metric")).items():
                study(Trial("guides", name, seed, chosen=chosen), results)
    elif options.what == "heads":
        for seed in (0, 1, 2):
            for name, chosen in with_heads(read_method("dkp")).items():
                study(Trial("heads", name, seed, chosen=chosen), results)
    elif options.what in ("test", "strong"):
        plan = [
            (method, seed, 1) for seed in (0, 1, 2) for method in options.methods if seed == 0 or method in THREE_SEEDS
        ]
        plan += [(method, 0, 2) for method in options.methods if method in THREE_SEEDS]
        if options.what == "strong":
            plan = [(method, seed, 1) for method in options.methods for seed in STRONG_SEEDS.get(method, ())]
        for method, seed, order in plan:
            study(Trial(options.what, method, seed, order, CHOSEN_ON_DEV.get(method, [])), results)
    tables = f"Code `{code_hash()}`; {whole(frozen(results))}"
    if options.what == "document":
        write(DOCUMENT, tables)
        write(README, summary(frozen(results)))
    else:
        print(tables)


if __name__ == "__main__":
    sys.exit(main())
