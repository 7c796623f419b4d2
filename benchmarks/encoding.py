"""What embedding costs above bare ONNX Runtime on the same graph: from decoded crops, from image files, and through the
batcher.

Run with ``python -m benchmarks.encoding [--threads N]``. Weights are random (they do not matter for time), graphs
exported as ``reid export`` does, crops and JPEG files are drawn. The ways take turns in one process, so that whatever
else the machine does falls on all of them; what is given is the median over turns, and the median over turns of the
ratio to bare ONNX Runtime in the same turn, of the time that passed and of the processor's time (the latter means
something with ``--threads 1``: threads that wait for work burn it too). A way that gives other embeddings is no result.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from benchmarks.results_file import record, recorded
from deploy import Encoder
from deploy.bundle import Golden, write_bundle
from deploy.encoder.batcher import Batcher
from domains.crops import CropSpec
from domains.synthetic import golden_crops

HEIGHT, WIDTH, DIM = 256, 128, 512


def make_bundle(backbone, folder):
    """Export a model with random weights as a bundle."""
    import torch

    from reid.config import ModelConfig
    from reid.export.export import export_graph
    from reid.network.build import build_model

    torch.manual_seed(0)
    spec = CropSpec(HEIGHT, WIDTH)
    model = build_model(ModelConfig(backbone=backbone, weights="none", dim=DIM), spec, classes=1).eval()
    crops = golden_crops(16, height=HEIGHT, width=WIDTH)
    with torch.inference_mode():
        embeddings = model.embed(torch.from_numpy(crops)).numpy()
    body = {
        "feature_space": model.feature_space(spec),
        "dim": DIM,
        "crop": spec.to_dict(),
        "backbone": backbone,
        "precision": "fp32",
        "step": 0,
        "domains": [],
        "method": "none",
        "parity": {},
        "licences": {"weights": "none", "data": "none"},
    }
    return write_bundle(
        folder,
        model_onnx=export_graph(model, crops[:2]),
        golden=Golden(crops, embeddings),
        card="# random\n",
        body=body,
        parent=None,
    )


def measure(backbone, repeats, batch, threads, batches, folder):
    """Seconds per crop of each way, and their ratios to bare ONNX Runtime."""
    bundle = make_bundle(backbone, folder / "bundle")
    encoder = Encoder.load(bundle.folder, batch=batch, threads=threads)
    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(bundle.model(), options, providers=["CPUExecutionProvider"])
    count = batches * batch
    crops = np.resize(golden_crops(16, height=HEIGHT, width=WIDTH), (count, HEIGHT, WIDTH, 3))
    detections = [
        cv2.resize(crop, None, fx=1.3, fy=1.3) for crop in crops[:16]
    ]  # a detector's boxes are not the model's size
    boxes = [detections[row % 16] for row in range(count)]
    files = []
    for row, crop in enumerate(detections):
        files.append(folder / f"{row}.jpg")
        cv2.imwrite(str(files[-1]), crop[..., ::-1])
    paths = [files[row % 16] for row in range(count)]

    def bare():
        return np.concatenate(
            [session.run(None, {"crops": crops[at : at + batch]})[0] for at in range(0, count, batch)]
        )

    def merged(batcher, pool):
        return np.stack(list(pool.map(batcher.embed, crops)))

    with Batcher(encoder, batch=batch, limit=2 * count) as batcher, ThreadPoolExecutor(2 * batch) as pool:
        ways = {
            "bare ONNX Runtime": bare,
            "decoded crops": lambda: encoder(crops),
            "decoded crops of another size": lambda: encoder(boxes),
            "JPEG files": lambda: encoder.files(paths)[0],
            "batcher, concurrent callers": lambda: merged(batcher, pool),
        }
        answers = {name: np.asarray(way()) for name, way in ways.items()}
        for name in ("decoded crops", "batcher, concurrent callers"):
            np.testing.assert_allclose(answers[name], answers["bare ONNX Runtime"], atol=1e-4, err_msg=name)
        turns = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                way()
                turns[name].append(((time.perf_counter() - wall) / count, (time.process_time() - processor) / count))
    base = np.array(turns["bare ONNX Runtime"])
    return {name: summary(np.array(taken), base) for name, taken in turns.items()}


def summary(taken, base):
    """Medians of one way's turns ``[turns, 2]`` (time that passed, processor's time), and of their ratios to the bare
    turns.
    """
    ratios = taken / base
    return {
        "ms_per_crop": round(1000 * float(np.median(taken[:, 0])), 3),
        "ratio": round(float(np.median(ratios[:, 0])), 4),
        "ratio_processor": round(float(np.median(ratios[:, 1])), 4),
        "ratios": np.round(ratios[:, 0], 3).tolist(),
    }


def main():
    """Measure each backbone, print the table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "mobilenetv2_100"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="batches per turn (default 4)")
    parser.add_argument("--threads", type=int, help="of the engine; all cores by default")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    options = parser.parse_args()
    results = {}
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            results[backbone] = measure(
                backbone, options.repeats, options.batch, options.threads, options.batches, Path(folder)
            )
        print(
            f"\n{backbone}, {HEIGHT}×{WIDTH}, batches of {options.batch}, {options.repeats} turns, ONNX Runtime "
            f"{onnxruntime.__version__}"
        )
        print(f"  {'way':32} {'ms/crop':>8} {'to bare':>8} {'processor':>10}   (turns)")
        for name, found in results[backbone].items():
            spread = f"{min(found['ratios']):.2f}–{max(found['ratios']):.2f}"
            print(
                f"  {name:32} {found['ms_per_crop']:8.2f} {found['ratio']:8.3f} {found['ratio_processor']:10.3f}   "
                f"{spread}"
            )
    if not options.dry:
        settings = {
            "batch": options.batch,
            "batches": options.batches,
            "repeats": options.repeats,
            "threads": options.threads,
        }
        kept = recorded("encoding").get("backbones", {})
        record("encoding", {"onnxruntime": onnxruntime.__version__, "settings": settings, "backbones": kept | results})


if __name__ == "__main__":
    main()
