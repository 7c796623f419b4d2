"""Cross-layer equalisation (Nagel et al., ICCV 2019): the same graph with channels of like reach, so that one scale
fits them all.

A channel that reaches 0.1 beside one that reaches 6 has four of 256 steps. Where a convolution feeds one other
convolution, directly or through ReLU, its channel i may be made s times as large and the other's weights for it s times
as small, and nothing changes. Through ReLU6 this holds as long as the channel stays under 6, so s brings no channel of
the crops at hand above it. Here s = sqrt(R / r) for a channel that reaches r and a layer that reaches R: half of the
imbalance goes from the activations into the weights, which have a scale per output channel.
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
"""A channel is made at most so many times as large: one that is nearly dead stays small."""


class _Pair(NamedTuple):
    first: onnx.NodeProto
    between: str
    limit: float | None
    second: onnx.NodeProto


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initialisers and constant nodes by the name of their value."""
    found = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Nodes by the names of what they take."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def activation_of(node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
    """The ReLU or clipping that alone consumes a node's output, where it is part of the layer (the floor of GeM pooling
    is not).
    """
    after = users.get(node.output[0], [])
    alone = len(after) == 1 and after[0].op_type in ("Relu", "Clip") and not after[0].name.startswith("/pool")
    return after[0] if alone else None


def equalise(graph: onnx.ModelProto, crops: NDArray[np.uint8]) -> tuple[onnx.ModelProto, int]:
    """Return an equalised copy of a graph, and how many pairs of convolutions were balanced.

    Args:
        graph: float32, BatchNorm folded into the convolutions.
        crops: uint8 ``[N, H, W, 3]`` on which reach is measured.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    _unshare(changed.graph)
    pairs = _pairs(changed.graph)
    if not pairs:
        return changed, 0
    reach: dict[str, Float32s] = {}
    for seen in activations(graph, [pair.between for pair in pairs], crops):
        for name, values in seen.items():
            peak = np.abs(values).max(axis=(0, 2, 3))
            reach[name] = np.maximum(reach[name], peak) if name in reach else peak
    held = {item.name: item for item in changed.graph.initializer}
    for pair in pairs:
        reached = reach[pair.between]
        whole = pair.limit if pair.limit is not None else float(reached.max())
        if not whole > 0:
            continue
        factor = np.clip(np.sqrt(whole / np.maximum(reached, whole / MOST**2)), 1, MOST).astype(np.float32)
        for name in pair.first.input[1:3]:
            value = numpy_helper.to_array(held[name])
            held[name].CopyFrom(numpy_helper.from_array(value * factor.reshape(-1, *(1,) * (value.ndim - 1)), name))
        weight = numpy_helper.to_array(held[pair.second.input[1]])
        across = (-1, 1, 1, 1) if _groups(pair.second) > 1 else (1, -1, 1, 1)
        held[pair.second.input[1]].CopyFrom(
            numpy_helper.from_array(weight / factor.reshape(across), pair.second.input[1])
        )
    return changed, len(pairs)


def _unshare(graph: onnx.GraphProto) -> None:
    """Give every convolution weights and bias of its own: exporters merge equal ones."""
    held, users = {item.name: item for item in graph.initializer}, consumers(graph)
    for node in graph.node:
        for at, name in enumerate(node.input):
            if node.op_type == "Conv" and at and name in held and len(users[name]) > 1:
                own = onnx.TensorProto()
                own.CopyFrom(held[name])
                own.name = f"{node.name}_own_{at}"
                graph.initializer.append(own)
                node.input[at] = own.name


def _pairs(graph: onnx.GraphProto) -> list[_Pair]:
    """Convolutions of maps that feed one other alone, plain or depthwise, each with weights of its own."""
    values, users, held = constants(graph), consumers(graph), {item.name for item in graph.initializer}
    made = {item.name for item in graph.output}

    def own(node: onnx.NodeProto) -> bool:
        return (
            all(name in held and len(users[name]) == 1 for name in node.input[1:] if name)
            and len(values[node.input[1]].dims) == 4
        )

    found = []
    for first in graph.node:
        if first.op_type != "Conv" or not own(first):
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
            or not own(after[0])
            or made & {between, first.output[0]}
        ):
            continue
        groups, shape = _groups(after[0]), values[after[0].input[1]].dims
        if groups == 1 or (shape[1] == 1 and shape[0] == groups):
            found.append(_Pair(first, between, limit, after[0]))
    return found


def _groups(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)
