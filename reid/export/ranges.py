"""Ranges of a graph's activations on given crops: what static quantisation has to know.

Two passes over the crops: the first finds the extremes, the second a histogram between them, from which the range with
the least error is chosen. The result depends only on the crops and the graph. Memory holds the activations of four
crops, and one histogram per tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from domains.arrays import Crops, Float32s
from domains.graph_file import check_graph

BATCH = 4
BINS = 2048
SHRINK = np.linspace(0.3, 1.0, 15)
"""Fractions of the extremes that are tried as ends of the range."""

Range = tuple[float, float]


def start_session(data: bytes, *, optimise: bool = True) -> Any:
    """Start an ONNX Runtime session on the CPU; raises what ONNX Runtime raises.

    Args:
        data: ONNX bytes.
        optimise: False runs the graph node by node as it is written, an 8-bit one in rounded float32, as another
            engine might.
    """
    import onnxruntime

    check_graph(data, "the graph")
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def answers(session: Any, crops: Crops, batch: int = 32) -> Float32s:
    """Return the embeddings ``[N, D]`` of crops ``[N, H, W, 3]``."""
    parts = [
        session.run(["embeddings"], {"crops": np.ascontiguousarray(crops[start : start + batch])})[0]
        for start in range(0, len(crops), batch)
    ]
    return np.concatenate(parts)


def activations(graph: onnx.ModelProto, names: Sequence[str], crops: Crops) -> Iterator[dict[str, Float32s]]:
    """Yield the named tensors, for a few crops at a time."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    outputs = {item.name for item in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in outputs
    )
    session = start_session(watched.SerializeToString())
    for start in range(0, len(crops), BATCH):
        yield dict(
            zip(
                names,
                session.run(list(names), {"crops": np.ascontiguousarray(crops[start : start + BATCH])}),
                strict=True,
            )
        )


def activation_ranges(graph: onnx.ModelProto, names: Sequence[str], crops: Crops) -> dict[str, Range]:
    """Return the range for each tensor whose 256 steps represent it with the least squared error.

    Args:
        graph: float32, takes ``crops`` uint8 ``[N, H, W, 3]``.
        names: float tensors in it.
        crops: what to run it on.
    """
    ends = dict.fromkeys(names, (0.0, 0.0))  # a range holds 0, so that padding is exact
    for seen in activations(graph, names, crops):
        ends = {
            name: (min(low, float(seen[name].min())), max(high, float(seen[name].max())))
            for name, (low, high) in ends.items()
        }
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for seen in activations(graph, names, crops):
        for name, (low, high) in ends.items():
            if high > low:
                bins = ((seen[name].ravel() - np.float32(low)) * np.float32(BINS / (high - low))).astype(np.int32)
                counts[name] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    return {name: least_error(counts[name], *ends[name]) for name in names}


def least_error(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Return the part of ``low … high`` that 256 steps are best spent on: clipped ends against finer steps.

    Args:
        counts: histogram of the values, equal bins from ``low`` to ``high``.
        low: least value, at most 0.
        high: greatest value, at least 0.
    """
    if high <= low or not counts.any():
        return low, high
    edges = np.linspace(low, high, len(counts) + 1)
    occupied = counts > 0
    middles, weights = ((edges[1:] + edges[:-1]) / 2)[occupied], counts[occupied]
    best = (np.inf, low, high)
    for below in SHRINK if low < 0 else (1.0,):
        for above in SHRINK if high > 0 else (1.0,):
            first, last = low * below, high * above
            step = (last - first) / 255
            rounded = np.clip(np.round((middles - first) / step), 0, 255) * step + first
            error = float((weights * np.square(rounded - middles)).sum())
            if error < best[0]:
                best = (error, first, last)
    return best[1:]
