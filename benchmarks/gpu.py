"""One self-contained check of everything that touches a GPU; needs no data, no network, and under eight minutes.

    python -m benchmarks.gpu                     # all parts on cuda; gpu.json and gpu.md in the current folder
    python -m benchmarks.gpu --parts equal,train --out DIR
    python -m benchmarks.gpu --device cpu --small      # the same code where there is no GPU: does it run?
    python -m benchmarks.gpu --save              # also into benchmarks/results/gpu.json, by the card's name
    python -m benchmarks.gpu --document          # the kept figures into docs/gpu.md; runs nothing

Parts, each of which says what it could not run and why:

* ``equal``: two domains learned by every shipped method on the CPU and on the card, one update each, in float32: the
  losses of each step, and the embeddings of the finished model. The update is SGD's: Adam's first one is the sign of
  the gradient, which makes much of a difference in the last digit.
* ``train``: crops a second of the training loop against a plain loop (crops on the card already; forward, loss,
  backward, update) in the same process, the share of time spent waiting for crops, the share of what the card reaches
  in a large matrix product, and memory.
* ``learn``: the command line from a drawn domain to a checked export in float32 and fp16, scores and a gallery.
* ``onnx``: the exported graph on ONNX Runtime's CUDA provider: answers against the CPU's, crops a second against a
  bare session with its buffers on the card. ``tensorrt``: the same there.
* ``search``: the ten nearest of a million vectors on the card, against FAISS on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import RESULTS, recorded
from benchmarks.small5_tables import write
from domains.artefact import code_version, write_json
from domains.domain import Domain
from domains.synthetic import golden_crops, make_domain
from reid.batches.loader import CropStore
from reid.config import Config, Method, build_config, read_method, shipped
from reid.network.build import build_model
from reid.network.runtime import Runtime
from reid.run import Run
from reid.step.learner import Learner
from reid.terms import Step, build_terms, losses

Row = dict[str, Any]

DOCUMENT = Path(__file__).parent.parent / "docs" / "gpu.md"

LOSS, COSINE = 1e-3, 0.9999
"""How far a loss may be from the CPU's, relative to it or to 1 where it is smaller, and how near embeddings must be
afterwards.
"""
TRAINED = (
    ("resnet50", (256, 128), 64),
    ("resnet50", (256, 128), 128),
    ("vit_base_patch16_224", (256, 128), 64),
    ("vit_base_patch16_224", (256, 128), 128),
    ("mobilenetv2_100", (128, 64), 64),
)
BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True)
class Card:
    """Where the checks run, and whether they are cut down to what a CPU can do."""

    device: str
    small: bool

    @property
    def on_gpu(self) -> bool:
        """Whether this is a CUDA device."""
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Wait for the card to finish what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def about(self) -> Row:
        """Return the name of the card and what it was run with."""
        row: Row = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        if self.on_gpu:
            held = torch.cuda.get_device_properties(self.device)
            row |= {
                "card": held.name,
                "memory_gib": round(held.total_memory / 2**30, 1),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        else:
            row["card"] = f"CPU ({platform.machine()})"
        return row


# --- equal -----------------------------------------------------------------------------------------------------------


def equal(card: Card) -> Iterator[Row]:
    """One row per method: the greatest difference of a loss, the smallest cosine of an embedding."""
    methods = ("fine_tune", "default") if card.small else tuple(sorted(shipped("methods")))
    workers = 1 if card.small else max(1, min(8, (os.cpu_count() or 2) // 2))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {name: pool.submit(compared, name, card.device) for name in methods}
        for name, future in futures.items():
            try:
                yield {"method": name, **future.result()}
            except Exception as error:
                yield failed(error, method=name)


def compared(name: str, device: str) -> Row:
    """Learn two drawn domains with a method, on the CPU and on the card; in a process of its own."""
    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    method = quick(read_method(name))
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            make_domain(Path(folder) / style, style, identities=12, cameras=2, per_camera=2)
            for style in ("plaza", "station")
        ]
        cpu, other = (
            learned(method, sites, Path(folder) / f"run{number}", at) for number, at in enumerate(("cpu", device))
        )
    differences = {
        f"{step}: {term}": abs(other[0][step][term] - value) / max(abs(value), 1.0)
        for step, values in cpu[0].items()
        for term, value in values.items()
    }
    loss = max(differences.values(), default=0.0)
    cosine = float((cpu[1] * other[1]).sum(1).min())
    return {
        "loss_difference": loss,
        "cosine": cosine,
        "largest_at": max(differences, key=lambda key: differences[key], default=""),
        "ok": loss <= LOSS and cosine >= COSINE,
        "seconds_cpu": round(cpu[2], 2),
        "seconds": round(other[2], 2),
    }


def quick(method: Method) -> Method:
    """Return the method with a style network of two iterations."""

    def shorter(entry: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {**given, "iterations": 2, "batch": 8} if name == "style_network" else given
            for name, given in entry.items()
        }

    return method.model_copy(update={"terms": tuple(shorter(entry) for entry in method.terms)})


def learned(
    method: Method, sites: list[Domain], folder: Path, device: str
) -> tuple[dict[str, dict[str, float]], np.ndarray, float]:
    """Return the first losses of each step by term, the golden embeddings afterwards, and the seconds."""
    wide = method.name.endswith("-published")  # its head needs maps of 8×8
    height, width = (256, 256) if wide else (128, 64)
    config = build_config(
        {
            "device": device,
            "model": {"backbone": "mobilenetv2_100", "weights": "none", "dim": 64},
            "crop": {"height": height, "width": width},
            "train": {
                "iterations": 1,
                "identities": 4,
                "instances": 2,
                "precision": "fp32",
                "optimiser": "sgd",
                "lr": 0.01,
            },
        }
    )
    began = time.perf_counter()
    run = Run.create(folder, config)
    for part in [sites] if method.needs_all_images else [[site] for site in sites]:
        run.learn(part, method=method)
    first = {}
    for step in run.steps[1:]:
        log = (step.folder / "log.jsonl").read_text("utf-8") if (step.folder / "log.jsonl").is_file() else ""
        first[step.folder.name] = json.loads(log.splitlines()[0])["losses"] if log else {}
    found = run.embedder(-1)(golden_crops(16, height=height, width=width))
    return first, found, time.perf_counter() - began


# --- train -----------------------------------------------------------------------------------------------------------


def train(card: Card) -> Iterator[Row]:
    """One row per network, batch and precision."""
    cases = (("mobilenetv2_100", (128, 64), 16),) if card.small else TRAINED
    iterations, warm = (2, 1) if card.small else (30, 6)
    peak = matrix_rate(card)
    yield {"about": "bf16 matrix product 8192³", "tflops": round(peak / 1e12, 1)}
    with tempfile.TemporaryDirectory() as folder:
        people = 16 if card.small else 128
        domain = make_domain(Path(folder) / "plaza", "plaza", identities=people, cameras=2, per_camera=3)
        stores: dict[tuple[int, int], CropStore] = {}
        for backbone, size, batch in cases:
            for precision in ("fp32",) if card.small else ("bf16", "fp32"):
                if precision == "fp32" and batch == 128:
                    continue
                config = build_config(
                    {
                        "device": card.device,
                        "model": {"backbone": backbone, "weights": "none"},
                        "crop": {"height": size[0], "width": size[1]},
                        "train": {"identities": batch // 4, "instances": 4, "precision": precision},
                    }
                )
                if size not in stores:
                    stores[size] = CropStore.decode(domain, domain.train, config.crop.spec())
                about = {"backbone": backbone, "crop": f"{size[0]}x{size[1]}", "batch": batch, "precision": precision}
                try:
                    bare = plain(card, config, iterations, warm)
                    mine = ours(card, config, domain, stores[size], iterations, warm)
                    ratio = round(mine["crops_per_second"] / bare["crops_per_second"], 3)
                    work = bare.pop("flops_per_crop")
                    share = {
                        "share_of_matrix_rate": round(mine["crops_per_second"] * work / peak, 3),
                        "share_of_matrix_rate_plain": round(bare["crops_per_second"] * work / peak, 3),
                    }
                    yield {**about, **mine, "plain": bare["crops_per_second"], "ratio": ratio, **share}
                except Exception as error:
                    yield failed(error, **about)


def matrix_rate(card: Card) -> float:
    """Floating-point operations a second in a large bf16 matrix product: what the card reaches at best."""
    side = 512 if card.small else 8192
    left = torch.randn(side, side, device=card.device).bfloat16()
    for _ in range(3):
        left @ left
    card.wait()
    start = time.perf_counter()
    for _ in range(10):
        left @ left
    card.wait()
    return 10 * 2 * side**3 / (time.perf_counter() - start)


def ours(card: Card, config: Config, domain: Domain, store: CropStore, iterations: int, warm: int) -> Row:
    """Crops a second of the training loop after warming up, share of time waiting for crops, and peak memory."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"iterations": warm + iterations + 1})})
    model = build_model(config.model, config.crop.spec(), classes=len(np.unique(domain.train.pids)))
    runtime = Runtime.choose(config.device, config.train.precision, model)
    ends: list[float] = []
    if card.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as work:
        step = Step(1, domain, config, runtime, model.to(runtime.device), {}, 0)
        learner = Learner(step, build_terms(read_method("fine_tune").terms), store, {}, Path(work))

        def tick(done: int, values: object) -> None:
            if done in (warm, warm + iterations):
                card.wait()
            ends.append(time.perf_counter())

        trained = learner.train(tick)
    took = ends[warm + iterations - 1] - ends[warm - 1]
    return {
        "crops_per_second": round(iterations * config.train.identities * config.train.instances / took, 1),
        "waiting": round(trained.waiting / trained.seconds, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if card.on_gpu else None,
    }


def plain(card: Card, config: Config, iterations: int, warm: int) -> Row:
    """Crops a second of a loop that any code base has, with its crops on the card already: what decoding, sampling and
    augmenting can only slow down.
    """
    from torch.utils.flop_counter import FlopCounterMode

    batch, spec = config.train.identities * config.train.instances, config.crop.spec()
    model = build_model(config.model, spec, classes=64).to(card.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3.5e-4)
    crops = torch.randint(0, 256, (batch, spec.height, spec.width, 3), dtype=torch.uint8, device=card.device)
    labels = torch.arange(config.train.identities, device=card.device).repeat_interleave(config.train.instances)

    def once() -> None:
        with torch.autocast(card.device.partition(":")[0], torch.bfloat16, enabled=config.train.precision == "bf16"):
            out = model(crops)
        loss = losses.cross_entropy(out.logits, labels, 0.1) + losses.batch_hard_triplet(out.embedding, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    counter = FlopCounterMode(display=False)
    with counter:
        once()
    for _ in range(warm):
        once()
    card.wait()
    start = time.perf_counter()
    for _ in range(iterations):
        once()
    card.wait()
    rate = iterations * batch / (time.perf_counter() - start)
    return {"crops_per_second": round(rate, 1), "flops_per_crop": counter.get_total_flops() / batch}


# --- learn, onnx -----------------------------------------------------------------------------------------------------


def learn(card: Card, root: Path) -> Iterator[Row]:
    """One row per command, from a drawn domain to a gallery; the bundles stay in ``root`` for the parts after it."""
    command = [sys.executable, "-m", "reid"]
    settings = {
        "device": card.device,
        "model.backbone": "mobilenetv2_100" if card.small else "resnet50",
        "model.weights": "none",
        "crop.height": 256,
        "crop.width": 128,
        "train.iterations": 3 if card.small else 100,
        "train.identities": 8,
    }
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    site, run = str(root / "plaza"), str(root / "run")
    for name, words in {
        "domain make": ["domain", "make", site],
        "learn": ["learn", run, site, *sets],
        "export": ["export", run, str(root / "bundle")],
        "export --fp16": ["export", run, str(root / "bundle16"), "--fp16"],
        "evaluate": ["evaluate", run, site],
        "gallery add": ["gallery", "add", str(root / "gallery"), site, "--bundle", str(root / "bundle")],
    }.items():
        start = time.perf_counter()
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        row = {"command": name, "ok": done.returncode == 0, "seconds": round(time.perf_counter() - start, 1)}
        yield row if row["ok"] else {**row, "said": (done.stdout + done.stderr)[-600:]}
        if done.returncode and name in ("domain make", "learn"):
            return


def onnx(card: Card, root: Path, provider: str) -> Iterator[Row]:
    """Per bundle: answers against the CPU's, then crops a second by batch, ours and a bare session's."""
    from deploy import Encoder

    crops = np.resize(golden_crops(16, height=256, width=128), (128, 256, 128, 3))
    for bundle in ("bundle", "bundle16"):
        about = {"provider": provider, "bundle": "fp16" if bundle == "bundle16" else "fp32"}
        if not (root / bundle / "model.onnx").is_file():
            yield {**about, "not_run": "there is no bundle: the part learn did not make one"}
            continue
        try:
            right = np.asarray(Encoder.load(root / bundle, "cpu", batch=16)(crops[:16]))
            start = time.perf_counter()
            encoder = Encoder.load(root / bundle, provider, batch=128)
            about |= {"start_seconds": round(time.perf_counter() - start, 2), "elsewhere": encoder.elsewhere}
            left = np.asarray(encoder(crops[:16]))
            yield {
                **about,
                "cosine": float((left * right).sum(1).min()),
                "largest_difference": float(np.abs(left - right).max()),
            }
            for batch in BATCHES:
                some = crops[:batch]
                mine = rate(partial(encoder, some), batch, card)
                bare = bare_session(root / bundle / "model.onnx", provider, some, card)
                about = {"provider": provider, "bundle": about["bundle"], "batch": batch}
                yield {
                    **about,
                    "crops_per_second": mine,
                    **{f"bare_{name}": value for name, value in bare.items()},
                    "ratio": round(mine / bare["numpy"], 3),
                }
        except Exception as error:
            yield failed(error, **about)


def bare_session(file: Path, provider: str, crops: np.ndarray, card: Card) -> dict[str, float]:
    """Crops a second of ONNX Runtime alone: arrays in and out, and with both buffers on the card all the time."""
    import onnxruntime

    from deploy.encoder.engine import Target

    target = Target.parse(provider)
    session = onnxruntime.InferenceSession(
        str(file),
        providers=[(target.engine, {"device_id": target.device} if target.name != "cpu" else {})],
    )
    (entry,), (out,) = session.get_inputs(), session.get_outputs()
    found = {"numpy": rate(lambda: session.run(None, {entry.name: crops}), len(crops), card)}
    if target.name != "cpu":
        binding = session.io_binding()
        held = onnxruntime.OrtValue.ortvalue_from_numpy(crops, "cuda", int(target.device))
        binding.bind_ortvalue_input(entry.name, held)
        binding.bind_output(out.name, "cuda", int(target.device))

        def bound() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        found["bound"] = rate(bound, len(crops), card)
    return found


def rate(run: Callable[[], object], count: int, card: Card) -> float:
    """Items a second: the median of repeats for about a second, after two."""
    run(), run()
    times: list[float] = []
    while sum(times) < (0.2 if card.small else 0.7) or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(count / statistics.median(times), 1)


# --- search ----------------------------------------------------------------------------------------------------------


def search(card: Card) -> Iterator[Row]:
    """The ten nearest of many 512-d fp16 unit vectors: milliseconds on the card, and FAISS on the CPU."""
    count, dim = (20_000 if card.small else 1_000_000), 512
    generator = torch.Generator(card.device).manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, device=card.device), dim=1).half()
    nearby = torch.randn(64, dim, generator=generator, device=card.device) / dim**0.5
    asked = torch.nn.functional.normalize(base[:64].float() + nearby, dim=1).half()
    for queries in (1, 64):
        some = asked[:queries]
        times = []
        for _ in range(12):
            start = time.perf_counter()
            found = (some.float() @ base.float().T if not card.on_gpu else (some @ base.T).float()).topk(10)
            found.indices.cpu()
            times.append(time.perf_counter() - start)
        yield {
            "engine": f"torch on {card.device}",
            "vectors": count,
            "queries": queries,
            "milliseconds": round(1e3 * statistics.median(times[2:]), 2),
        }
    import faiss

    index = faiss.IndexFlatIP(dim)
    index.add(base.float().cpu().numpy())
    for queries in (1, 64):
        some = asked[:queries].float().cpu().numpy()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            _, exact = index.search(some, 10)
            times.append(time.perf_counter() - start)
        yield {
            "engine": "FAISS flat, float32, CPU",
            "vectors": count,
            "queries": queries,
            "milliseconds": round(1e3 * statistics.median(times), 2),
        }
    found = (asked.float() @ base.float().T).topk(10).indices.cpu().numpy()
    agree = float(np.mean([len(set(left) & set(right)) / 10 for left, right in zip(found, exact, strict=True)]))
    yield {"about": "share of the ten nearest that both find", "agree": round(agree, 4), "ok": agree > 0.99}
    if not hasattr(faiss, "StandardGpuResources"):
        yield {"engine": "FAISS on the card", "not_run": "this build of faiss has no GPU part"}
        return
    card_index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    for queries in (1, 64):
        some = asked[:queries].float().cpu().numpy()
        pace = rate(partial(card_index.search, some, 10), queries, card)
        yield {"engine": "FAISS on the card", "queries": queries, "milliseconds": round(1e3 * queries / pace, 2)}


# --- all of it -------------------------------------------------------------------------------------------------------


def failed(error: Exception, **about: object) -> Row:
    """Return a row that says what went wrong; other rows still count."""
    return {**about, "ok": False, "failed": f"{type(error).__name__}: {error}"[:600]}


def parts_of(card: Card, root: Path) -> dict[str, Callable[[], Iterator[Row]]]:
    """Return the parts by name, in the order in which they run."""
    engine = card.device if card.on_gpu else "cpu"
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "equal": lambda: equal(card),
        "train": lambda: train(card),
        "learn": lambda: learn(card, root),
        "onnx": lambda: onnx(card, root, engine),
        "search": lambda: search(card),
    }
    if card.on_gpu:
        parts["tensorrt"] = lambda: onnx(card, root, card.device.replace("cuda", "tensorrt"))
    return parts


def page(found: dict[str, Any]) -> str:
    """All parts as Markdown tables."""
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items() if key != "card")
    lines = [f"## {found['about']['card']}", "", f"{about}; code `{found['code']}`"]
    for name, part in found["parts"].items():
        lines += ["", f"### {name}", ""]
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in part["rows"]:
            groups.setdefault(tuple(row), []).append(row)
        for columns, rows in groups.items():
            lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(cell(row[column]) for column in columns)} |" for row in rows]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def cell(value: object) -> str:
    """One value in a table."""
    text = f"{value}"
    if isinstance(value, float):
        text = f"{value:.3g}" if abs(value) < 0.01 else f"{value:.7g}"
    return " ".join(text.replace("|", "\\|").split())


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", type=lambda text: text.split(","))
    parser.add_argument("--small", action="store_true", help="cut down to what a CPU does in a minute")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu.json and gpu.md")
    parser.add_argument("--save", action="store_true", help="also keep the figures in benchmarks/results/gpu.json")
    parser.add_argument("--document", action="store_true", help="write the kept figures into docs/gpu.md, run nothing")
    options = parser.parse_args()
    if options.document:
        write(DOCUMENT, "\n".join(page(found) for found in recorded("gpu").values()))
        return
    card = Card(options.device, options.small)
    if card.on_gpu and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --device cpu --small tries the code without one")
    found: dict[str, Any] = {"code": code_version(), "about": card.about(), "parts": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reid-gpu-") as folder:
        for name, part in parts_of(card, Path(folder)).items():
            if options.parts and name not in options.parts:
                continue
            start, rows = time.perf_counter(), list[Row]()
            rows_of = part()
            while True:
                try:
                    row = next(rows_of)
                except StopIteration:
                    break
                except Exception as error:
                    row = failed(error)
                rows.append(row)
                print(name, json.dumps(row), flush=True)
                found["parts"][name] = {"seconds": round(time.perf_counter() - start, 1), "rows": rows}
                write_json(options.out / "gpu.json", found)
    (options.out / "gpu.md").write_text(page(found), "utf-8")
    if options.save:
        write_json(RESULTS / "gpu.json", recorded("gpu") | {found["about"]["card"]: found})
    with contextlib.suppress(BrokenPipeError):
        print(page(found))
    if any(row.get("ok") is False for part in found["parts"].values() for row in part["rows"]):
        raise SystemExit("a check failed; see above")


if __name__ == "__main__":
    main()
