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
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.card import Card, Row, failed
from benchmarks.gpu.equal import equal
from benchmarks.gpu.searching import search
from benchmarks.gpu.serving import learn, onnx
from benchmarks.gpu.training import train
from benchmarks.results_file import RESULTS, recorded
from benchmarks.small5_tables import write
from domains.artefact import code_version, write_json

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"


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
