"""Graphs in half precision: fp16 weights and sums inside the backbone, uint8 in and float32 unit vectors out as
ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto

from domains.errors import ExportError
from reid.export.equalise import constants

HALVED = ("/backbone/", "/embedding/")
"""Parts of the network that are computed in fp16. Input normalisation, pooling (its cube would pass fp16's 65,504) and
the last scaling are not.
"""


def to_half(data: bytes) -> bytes:
    """Convert a float32 graph; raises ExportError if nothing in it can be halved."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = onnx.load_from_string(data)
    _read_constants_themselves(graph.graph)
    kept = [node.name for node in graph.graph.node if not node.name.startswith(HALVED)]
    if len(kept) == len(graph.graph.node):
        raise ExportError("this graph has no backbone that can be halved; export it in fp32")
    given = {node.name for node in graph.graph.node}
    exact = {name: TensorProto.FromString(value.SerializeToString()) for name, value in constants(graph.graph).items()}
    made = convert_float_to_float16(graph, keep_io_types=True, node_block_list=kept)
    _keep_exact(made.graph, given, exact)
    OnnxModel(made).topological_sort()  # the converter appends its casts at the end
    onnx.checker.check_model(made)
    halved: bytes = made.SerializeToString()
    return halved


def _read_constants_themselves(graph: onnx.GraphProto) -> None:
    """Drop what passes a constant on: torch shares equal weights so, in nodes of no part of the network, which would
    keep them in float32 too.
    """
    values, outputs = constants(graph), {item.name for item in graph.output}
    same: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in values and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
    nodes = [node for node in graph.node if node.output[0] not in same]
    del graph.node[:]
    graph.node.extend(nodes)


def _keep_exact(graph: onnx.GraphProto, given: Collection[str], exact: Mapping[str, TensorProto]) -> None:
    """Let float32 nodes read what float32 nodes made, and constants as they were.

    The converter casts every result to fp16 and what float32 nodes read back again, also where no fp16 node stands
    between; and it halves a constant for all who read it. Both would round, and lose what passes 65,504.

    Args:
        graph: as the converter left it; changed in place.
        given: names of nodes that are not the converter's.
        exact: constants of the float32 graph, by the name of their value.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.name not in given}
    narrowed = {name: node.input[0] for name, node in casts.items() if node.attribute[0].i == TensorProto.FLOAT16}
    widened = {name: node.input[0] for name, node in casts.items() if node.attribute[0].i == TensorProto.FLOAT}
    straight = {name: narrowed[source] for name, source in widened.items() if source in narrowed}
    restored = {name: exact[source] for name, source in widened.items() if source in exact and source not in narrowed}
    for name, value in restored.items():
        graph.initializer.add().CopyFrom(value)
        graph.initializer[-1].name = name
    outputs = {item.name for item in graph.output}
    renamed = {straight[name]: name for name in outputs if name in straight}
    """An output keeps its name, so the float32 value before the casts takes it."""
    aliases = renamed | {name: renamed.get(source, source) for name, source in straight.items()}
    nodes = [node for node in graph.node if node.output[0] not in straight and node.output[0] not in restored]
    for node in nodes:
        node.input[:] = [aliases.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    needed = outputs.union(*(node.input for node in nodes))
    nodes = [node for node in nodes if node.output[0] not in narrowed or node.output[0] in needed]
    del graph.node[:]
    graph.node.extend(nodes)
    there = {name for node in nodes for name in node.output} | {item.name for item in graph.initializer}
    described = [item for item in graph.value_info if item.name in there and item.name not in outputs]
    del graph.value_info[:]
    graph.value_info.extend(described)
