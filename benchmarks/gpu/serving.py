"""From a drawn domain to a gallery with the command line, and the exported graph on ONNX Runtime's providers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu.card import Card, Row, failed, rate
from domains.synthetic import golden_crops

BATCHES = (1, 8, 32, 128)


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
