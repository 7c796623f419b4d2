"""Throughput of 8-bit graphs against float32 ones on ONNX Runtime's CPU engine, one process, one thread.

    python -m benchmarks.quantization                      # ResNet-50 and ViT-tiny at 256x128, MobileNetV2 at 128x64
    python -m benchmarks.quantization --backbones resnet50 --batch 32 --repeats 15

Runs alternate, and each ratio is of the medians within this one process. Weights are drawn at random and crops are
drawn people: neither changes how long a graph takes. The processor should have VNNI (`avx512_vnni` or `avx_vnni` among
its flags). MobileNetV2 is measured once more with the eight layers in float32 that cost most, which is what `reid
export --int8` may have to do for it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.results_file import record
from domains.crops import CropSpec
from domains.synthetic import golden_crops
from reid.config import ModelConfig
from reid.export.export import export_graph
from reid.export.quantize import Quantiser
from reid.export.ranges import answers
from reid.network.build import build_model

SIZES = {"resnet50": (256, 128), "mobilenetv2_100": (128, 64), "vit_tiny_patch16_224": (256, 128)}
LEFT_OUT = {"mobilenetv2_100": 8}


def session(data: bytes, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def compare(graphs: dict[str, bytes], crops: np.ndarray, repeats: int, threads: int) -> dict[str, float]:
    """Median seconds of each graph, runs in turn."""
    engines = {name: session(data, threads) for name, data in graphs.items()}
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for repeat in range(repeats + 2):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(None, {"crops": crops})
            if repeat >= 2:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def vnni() -> list[str]:
    """Flags of this processor that matter."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text("utf-8").split() if info.is_file() else []
    return sorted({"avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(flags))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = []
    for backbone in options.backbones:
        height, width = SIZES[backbone]
        model = build_model(ModelConfig(backbone=backbone, weights="none"), CropSpec(height, width)).eval()
        crops = golden_crops(max(options.batch, 32), height=height, width=width)
        full = export_graph(model, crops[:2])
        quantiser = Quantiser(full, crops[:16])
        wanted = answers(session(full, options.threads), crops[:16])
        graphs, left = {"fp32": full, "int8": quantiser.quantised()}, {"int8": 0}
        if backbone in LEFT_OUT:
            name = f"int8, {LEFT_OUT[backbone]} left out"
            graphs[name] = quantiser.quantised(
                [item.layer for item in quantiser.blame(crops[:8])[: LEFT_OUT[backbone]]]
            )
            left[name] = LEFT_OUT[backbone]
        for batch in (1, options.batch):
            seconds = compare(graphs, np.ascontiguousarray(crops[:batch]), options.repeats, options.threads)
            for name, count in left.items():
                cosine = float(
                    np.einsum("nd,nd->n", answers(session(graphs[name], options.threads), crops[:16]), wanted).min()
                )
                rows.append(
                    {
                        "backbone": backbone,
                        "crop": [height, width],
                        "batch": batch,
                        "layers": len(quantiser.layers),
                        "left_out": count,
                        "fp32_per_second": round(batch / seconds["fp32"], 1),
                        "int8_per_second": round(batch / seconds[name], 1),
                        "ratio": round(seconds["fp32"] / seconds[name], 2),
                        "cosine": round(cosine, 5),
                        "megabytes": [round(len(graphs[which]) / 1e6, 1) for which in ("fp32", name)],
                    }
                )
                row = rows[-1]
                speeds = (
                    f"fp32 {row['fp32_per_second']:8.1f}/s  int8 {row['int8_per_second']:8.1f}/s  x{row['ratio']:.2f}"
                )
                print(
                    f"{backbone:22} {height}x{width} batch {batch:2} {name:18} {speeds}  cosine {cosine:.4f}",
                    flush=True,
                )
    record("quantization", {"flags": vnni(), "threads": options.threads, "repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
