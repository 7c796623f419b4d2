"""Cross-layer equalisation (Nagel et al., ICCV 2019): the same graph with channels of similar range, so that one scale
fits them all.

A channel that peaks at 0.1 beside one that peaks at 6 gets four of 256 steps. Where a convolution feeds one other
convolution, directly or through ReLU, its channel i can be scaled up by s and the other's weights for it down by s, and
nothing changes. Through ReLU6 this holds as long as the channel stays under 6, so s lifts no channel above that on the
given crops. Here s = sqrt(R / r) for a channel that peaks at r in a layer that peaks at R: half of the imbalance moves
from the activations into the weights, which have a scale per output channel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from domains.arrays import Float32s
from reid.export.ranges import activations

MOST = 16.0
"""Largest factor for a channel: one that is nearly dead stays small."""


class _Pair(NamedTuple):
    first: onnx.NodeProto
    between: str
    limit: float | None
    second: onnx.NodeProto


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return initialisers and constant nodes by the name of their value."""
    values = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            values[node.output[0]] = node.attribute[0].t
    return values


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that consume each value, by its name."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def activation_of(node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
    """Return the ReLU or Clip that alone consumes a node's output, if part of the layer (GeM's floor is not)."""
    after = users.get(node.output[0], [])
    alone = len(after) == 1 and after[0].op_type in ("Relu", "Clip") and not after[0].name.startswith("/pool")
    return after[0] if alone else None


def equalise(graph: onnx.ModelProto, crops: NDArray[np.uint8]) -> tuple[onnx.ModelProto, int]:
    """Return an equalised copy of a graph, and how many pairs of convolutions were balanced.

    Args:
        graph: float32, BatchNorm folded into the convolutions.
        crops: uint8 ``[N, H, W, 3]`` on which the channels' peaks are measured.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    _unshare(changed.graph)
    pairs = _pairs(changed.graph)
    if not pairs:
        return changed, 0
    peaks: dict[str, Float32s] = {}
    for seen in activations(graph, [pair.between for pair in pairs], crops):
        for name, values in seen.items():
            peak = np.abs(values).max(axis=(0, 2, 3))
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    initialisers = {item.name: item for item in changed.graph.initializer}
    for pair in pairs:
        reached = peaks[pair.between]
        layer_peak = pair.limit if pair.limit is not None else float(reached.max())
        if not layer_peak > 0:
            continue
        factor = np.clip(np.sqrt(layer_peak / np.maximum(reached, layer_peak / MOST**2)), 1, MOST).astype(np.float32)
        for name in pair.first.input[1:3]:
            value = numpy_helper.to_array(initialisers[name])
            initialisers[name].CopyFrom(
                numpy_helper.from_array(value * factor.reshape(-1, *(1,) * (value.ndim - 1)), name)
            )
        weight = numpy_helper.to_array(initialisers[pair.second.input[1]])
        across = (-1, 1, 1, 1) if _groups(pair.second) > 1 else (1, -1, 1, 1)
        initialisers[pair.second.input[1]].CopyFrom(
            numpy_helper.from_array(weight / factor.reshape(across), pair.second.input[1])
        )
    return changed, len(pairs)


def _unshare(graph: onnx.GraphProto) -> None:
    """Give every convolution its own weights and bias: exporters merge equal ones."""
    initialisers, users = {item.name: item for item in graph.initializer}, consumers(graph)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.op_type == "Conv" and index and name in initialisers and len(users[name]) > 1:
                copied = onnx.TensorProto()
                copied.CopyFrom(initialisers[name])
                copied.name = f"{node.name}_own_{index}"
                graph.initializer.append(copied)
                node.input[index] = copied.name


def _pairs(graph: onnx.GraphProto) -> list[_Pair]:
    """Find 2-D convolutions that feed exactly one other, plain or depthwise, each with its own weights."""
    values, users, initialisers = constants(graph), consumers(graph), {item.name for item in graph.initializer}
    outputs = {item.name for item in graph.output}

    def owns_weights(node: onnx.NodeProto) -> bool:
        return (
            all(name in initialisers and len(users[name]) == 1 for name in node.input[1:] if name)
            and len(values[node.input[1]].dims) == 4
        )

    pairs = []
    for first in graph.node:
        if first.op_type != "Conv" or not owns_weights(first):
            continue
        between, limit, activation = first.output[0], None, activation_of(first, users)
        if activation is not None:
            if activation.op_type == "Clip":
                floor, roof = (
                    numpy_helper.to_array(values[name]) if name in values else None
                    for name in [*activation.input[1:], "", ""][:2]
                )
                if floor is None or roof is None or floor > 0 or roof <= 0:
                    continue
                limit = float(roof)
            between = activation.output[0]
        after = users.get(between, [])
        if (
            len(after) != 1
            or after[0].op_type != "Conv"
            or after[0].input[0] != between
            or not owns_weights(after[0])
            or outputs & {between, first.output[0]}
        ):
            continue
        groups, shape = _groups(after[0]), values[after[0].input[1]].dims
        if groups == 1 or (shape[1] == 1 and shape[0] == groups):
            pairs.append(_Pair(first, between, limit, after[0]))
    return pairs


def _groups(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)
