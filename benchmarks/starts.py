"""Methods and single ideas from starts that know people already: the small-5 streams from OSNet and from others.

    python -m benchmarks.starts dev --start osnet --arms default,dkp --seeds 0,1,2     # on held-out train people
    python -m benchmarks.starts test --start osnet --arms default --seeds 0,1,2 --order 2
    python -m benchmarks.starts dev --device cuda --processes 14 --seconds 300 --out results.json    # a queue
    python -m benchmarks.starts table

An arm is a method, or one with a part changed, and has the site's metric beside it unless it says otherwise; choices
are made with ``dev``, and ``test`` scores the test splits of what was chosen. A run that is there already is not run
again. Runs go side by side in processes of one thread each; with ``--seconds`` none is started after that time, and
``--hard`` seconds later the rest are ended.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import RESULTS
from benchmarks.small5 import STARTS as OTHERS
from benchmarks.small5 import code_hash, dev_domain
from domains.artefact import content_id, write_atomic
from reid.config import Entry, Method, build_config, read_method, read_stream
from reid.run import Run
from reid.run.scoring import in_one_gallery
from reid.run.stream import learn_stream, open_stream
from reid.scores.evaluate import evaluate

FILE = RESULTS / "starts.json"
RATE = ["train.lr=0.00035", "train.later_lr=0.5", "train.precision=fp32"]
STARTS: Mapping[str, list[str]] = {
    "osnet": [*OTHERS["heads"], *RATE],
    "person": [*OTHERS["strong"], *RATE],
    "retail": [
        "model.backbone=onnx:${WEIGHTS}/person-reidentification-retail-0277.onnx",
        "model.weights=none",
        "model.dim=256",
        "model.channels=bgr",
        "model.mean=[0, 0, 0]",
        "model.std=[1, 1, 1]",
        "crop.height=256",
        "crop.width=128",
        *RATE,
    ],
}
METRIC: tuple[Entry, ...] = ({"within_person": {}},)


def changed(method: Method, name: str, **lists: Iterable[Any]) -> Method:
    """Return a method under another name with some of its lists replaced, as YAML would write them."""
    return Method.model_validate(
        {**method.model_dump(), "name": name, **{key: list(value) for key, value in lists.items()}}
    )


def arms() -> dict[str, tuple[Method, list[str]]]:
    """Return every arm by name: a method, and settings beside those of the start."""
    base = changed(read_method("default"), "default", metric=METRIC)
    terms, fixed, average = list(base.terms), "fixed_statistics", {"moving_average": {"decay": 0.95}}
    hyper = changed(read_method("hyper_default"), "hyper_default", metric=METRIC)
    found: dict[str, tuple[Method, list[str]]] = {}

    def arm(name: str, method: Method, *sets: str, **lists: Iterable[Any]) -> None:
        found[name] = changed(method, name, **{"metric": METRIC, **lists}), list(sets)

    def with_term(name: str, *extra: Any, **lists: Iterable[Any]) -> None:
        arm(name, base, terms=[*terms[:-1], *extra, terms[-1]], **lists)

    found["metric"] = read_method("metric"), []
    found["default"] = base, []
    for name in ("fine_tune", "fusion"):
        arm(name, read_method(name))
    dkp, dkp2 = read_method("dkp"), read_method("dkp++")
    ridge = {"transport": ["ridge"]}
    arm("dkp", dkp, **ridge)
    found["hyper_default"] = hyper, []
    held = [*dkp.terms, fixed]
    arm("dkp, held", dkp, terms=held, **ridge)
    arm("dkp, averaged", dkp, terms=[*dkp.terms, average], **ridge)
    kept = {"fusion": [{"average": {"weight": 0.5, "first_weight": 0.75}}], "repair": base.repair, **ridge}
    arm("dkp in default", dkp, terms=[*held, average], **kept)
    plain_draws = [*terms[:2], *dkp.terms[1:], *terms[2:]]
    arm("default + draws' triplet", base, terms=plain_draws)
    with_term("default + relations", {"relation_distillation": {"weight": 1.0}})
    with_term("default + old embedding", {"embedding_distillation": {"weight": 1.0}})
    memory = {"prototypes": {"head": "none"}}
    for weight in (1.0, 10.0):
        with_term(f"default + elastic {weight:g}", {"elastic": {"weight": weight}}, memory)
        with_term(f"default + isotropic {weight:g}", {"elastic": {"weight": weight, "isotropic": True}}, memory)
    with_term(
        "elastic 10, whole",
        {"elastic": {"weight": 10.0}},
        memory,
        fusion=[{"average": {"weight": 1.0, "first_weight": 0.75}}],
    )
    for amount in (0.1, 1.0):
        with_term(f"default + null space {amount:g}", {"null_space": {"amount": amount}})
    with_term(
        "null space 0.1, whole",
        {"null_space": {"amount": 0.1}},
        fusion=[{"average": {"weight": 1.0, "first_weight": 0.75}}],
    )
    for share in (0.15, 0.3):
        arm(f"default, budget {share:g}", base, fusion=[{"budget": {"share": share, "first_weight": 0.75}}])
    for rate, later in ((0.001, 0.5), (0.0007, 0.5), (0.000175, 0.5), (0.00035, 1.0), (0.00035, 0.25)):
        arm(f"default, rate {rate:g} × {later:g}", base, f"train.lr={rate}", f"train.later_lr={later}")
    for rate, later in ((0.0007, 0.5), (0.000175, 0.5), (0.00035, 1.0), (0.00035, 0.25)):
        arm(f"dkp, rate {rate:g} × {later:g}", dkp, f"train.lr={rate}", f"train.later_lr={later}", **ridge)
    for weight in (0.35, 0.65):
        arm(f"default, fusion {weight:g}", base, fusion=[{"average": {"weight": weight, "first_weight": 0.75}}])
    arm("default, first whole", base, fusion=[{"average": {"weight": 0.5}}])
    arm("default, first half", base, fusion=[{"average": {"weight": 0.5, "first_weight": 0.5}}])
    for part in ("fixed_statistics", "moving_average"):
        arm(f"default without {part}", base, terms=[term for term in terms if part not in term])
    arm("default, random rows", base, terms=[{"cross_entropy": {"smoothing": 0.1}}, *terms[1:]])
    arm(
        "default, all classes",
        base,
        terms=[{"cross_entropy": {"smoothing": 0.1, "start": "centre", "classes": "all"}}, *terms[1:]],
    )
    aligned = [*dkp2.terms, fixed]
    arm("dkp++, held", dkp2, terms=aligned, **ridge)
    arm("hyper_default, dkp terms", hyper, terms=[*held, average])
    arm("hyper_default, rate 0.0007 × 0.5", hyper, "train.lr=0.0007")
    return found


def study(kind: str, start: str, arm: str, seed: int, order: int, device: str) -> dict[str, Any]:
    """Run one stream; return its matrix, its summary, one gallery for all, and its costs."""
    torch.set_num_threads(1)
    method, sets = arms()[arm]
    stream = read_stream("small5")
    learned, unseen = open_stream(stream)
    if kind == "dev":
        learned, unseen = [dev_domain(domain) for domain in learned], []
    learned = learned[::-1] if order == 2 else learned
    weights = str(Path(os.environ["LIFELONG_REID_DATA"]).parent / "weights")
    settings = [setting.replace("${WEIGHTS}", weights) for setting in STARTS[start]]
    config = build_config(stream.config, {"seed": seed, "device": device}, overrides=[*settings, *sets])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reid-starts-") as folder:
        run = Run.create(Path(folder) / "run", config)
        learn_stream(run, learned, unseen, method=method, config=config)
        together = in_one_gallery(run, learned if kind == "dev" else [*learned, *unseen])
        embed = run.embedder(-1)
        cosine = {domain.name: round(evaluate(domain, embed, run.stores).mAP, 4) for domain in [*learned, *unseen]}
        asking = [domain.name for domain in learned]
        return {
            "matrix": {f"{row}/{name}": cell.scores["mAP"] for (row, name), cell in run.scores.cells.items()},
            "rank1": {f"{row}/{name}": cell.scores["rank1"] for (row, name), cell in run.scores.cells.items()},
            "summary": run.scores.summary(),
            "cosine": cosine,
            "one_gallery": {
                name: round(float(np.mean([scores[site].mAP for site in asking])), 4)
                for name, scores in together.items()
            },
            "without_reindexing": run.evaluate_without_reindexing(learned) if kind == "test" else {},
            "figures": [step.card["figures"] for step in run.steps[1:]],
            "bytes": [step.card["bytes"] for step in run.steps[1:]],
            "seconds_learning": [step.card["train"]["seconds"] for step in run.steps[1:]],
            "seconds": round(time.perf_counter() - began, 1),
        }


def queue(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run what is not there yet, in order, seeds in the outer loop, and keep each result as it comes."""
    known = arms()
    chosen = options.arms or list(known)
    wanted: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = []
    for seed in options.seeds:
        for start in options.start:
            for arm in chosen:
                method, sets = known[arm]
                about = {
                    "kind": options.what,
                    "start": start,
                    "arm": arm,
                    "seed": seed,
                    "order": options.order,
                    "device": options.device,
                    "about": method.model_dump(mode="json", exclude={"about"}),
                    "sets": [*STARTS[start], *sets],
                }
                key = content_id([about, code_hash()])[:16]
                if key not in results:
                    wanted.append((key, about, (options.what, start, arm, seed, options.order, options.device)))
    began, running = time.monotonic(), dict[Future[Any], tuple[str, dict[str, Any]]]()
    pool = ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn"))
    while wanted or running:
        spent = time.monotonic() - began
        while wanted and len(running) < options.processes and spent < options.seconds:
            key, about, arguments = wanted.pop(0)
            running[pool.submit(study, *arguments)] = key, about
        if not running or spent > options.seconds + options.hard:
            break
        for future in wait(running, timeout=2, return_when=FIRST_COMPLETED).done:
            key, about = running.pop(future)
            try:
                found = future.result()
            except Exception as error:
                print(
                    f"{about['start']} {about['arm']} seed {about['seed']}: {type(error).__name__}: {error}", flush=True
                )
                continue
            card = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
            results[key] = {**about, "code": code_hash(), "card": card, "torch": torch.__version__, **found}
            write_results(options.out, results)
            print(f"{time.monotonic() - began:5.0f} s  {line(results[key])}", flush=True)
    for process in (pool._processes or {}).values():
        if running:
            process.kill()
    pool.shutdown(wait=not running, cancel_futures=True)


def write_results(file: Path, results: Mapping[str, Any]) -> None:
    """Write the results' file, one run a line."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}" for key, value in results.items()
    ]
    write_atomic(file, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one run that tables show, in percent mAP."""
    last, summary = result["summary"]["rows"][-1], result["summary"]
    return {
        "Seen": last["seen"]["mAP"],
        "cosine": float(
            np.mean([result["cosine"][name] for name in result["cosine"] if name not in ("sarc3d", "towncentre")])
        ),
        "Unseen": last["unseen"]["mAP"],
        "just learned": summary["plasticity"]["mAP"],
        "forgetting": summary["forgetting_since_learned"]["mAP"],
        "one gallery": max(result["one_gallery"].values()),
    }


def line(result: Mapping[str, Any]) -> str:
    """One run in one line."""
    values = " ".join(f"{name} {value:.1f}" for name, value in figures(result).items() if value is not None)
    return f"{result['kind']} {result['start']} {result['arm']} seed {result['seed']}: {values} ({result['seconds']} s)"


def table(results: Mapping[str, Any]) -> str:
    """Arms as Markdown, by kind, start and order: means over seeds, and their number."""
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, float | None]]]] = {}
    for result in results.values():
        group = groups.setdefault((result["kind"], result["start"], result["order"], result["card"]), {})
        group.setdefault(result["arm"], []).append(figures(result))
    lines = []
    for (kind, start, order, card), rows in sorted(groups.items()):
        lines += ["", f"**{kind}, {start}, order {order}, {card}**", ""]
        columns = list(next(iter(rows.values()))[0])
        lines += [f"| arm | seeds | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
        for arm, found in sorted(rows.items(), key=lambda item: -np.mean([one["Seen"] for one in item[1]])):
            means = [
                "–" if found[0][column] is None else f"{np.mean([one[column] for one in found]):.2f}"
                for column in columns
            ]
            lines.append(f"| {arm} | {len(found)} | {' | '.join(means)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dev", "test", "table"))
    parser.add_argument("--start", type=lambda text: text.split(","), default=["osnet"])
    parser.add_argument("--arms", type=lambda text: [name.strip() for name in text.split(";" if ";" in text else ",")])
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--order", type=int, choices=(1, 2), default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--hard", type=float, default=float("inf"), help="end all runs so long after that")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    if options.what != "table":
        queue(options, results)
    print(table(results))


if __name__ == "__main__":
    sys.exit(main())
