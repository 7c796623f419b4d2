"""Graphs in half precision: fp16 weights and sums inside the backbone, still uint8 in and float32 unit vectors out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto

from domains.errors import ExportError
from domains.graph_file import check_graph
from reid.export.equalise import constants

HALVED = ("/backbone/", "/embedding/")
"""Parts of the network that are computed in fp16. Input normalisation, pooling (its cube would exceed fp16's 65,504)
and the final scaling are not.
"""


def to_half(data: bytes) -> bytes:
    """Convert a float32 graph; raises ExportError if nothing in it can be halved."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    check_graph(data, "the graph")
    graph = onnx.load_from_string(data)
    _bypass_identities(graph.graph)
    float32_nodes = [node.name for node in graph.graph.node if not node.name.startswith(HALVED)]
    if len(float32_nodes) == len(graph.graph.node):
        raise ExportError("this graph has no backbone that can be halved; export it in fp32")
    originals = {node.name for node in graph.graph.node}
    exact = {name: TensorProto.FromString(value.SerializeToString()) for name, value in constants(graph.graph).items()}
    converted = convert_float_to_float16(graph, keep_io_types=True, node_block_list=float32_nodes)
    _keep_exact(converted.graph, originals, exact)
    OnnxModel(converted).topological_sort()  # the converter appends its casts at the end
    onnx.checker.check_model(converted)
    halved: bytes = converted.SerializeToString()
    return halved


def _bypass_identities(graph: onnx.GraphProto) -> None:
    """Drop Identity nodes that pass on a constant.

    Torch shares equal weights through them, outside any part of the network, which would keep the weights in float32.
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


def _keep_exact(graph: onnx.GraphProto, originals: Collection[str], exact: Mapping[str, TensorProto]) -> None:
    """Let float32 nodes read what float32 nodes produced, and constants as they were.

    The converter casts every result to fp16, and back again where float32 nodes read it, even with no fp16 node in
    between; and it halves a constant for all its readers. Both would round, and lose values beyond 65,504.

    Args:
        graph: as the converter left it; changed in place.
        originals: names of nodes that the converter did not add.
        exact: constants of the float32 graph, by the name of their value.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.name not in originals}
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
    defined = {name for node in nodes for name in node.output} | {item.name for item in graph.initializer}
    described = [item for item in graph.value_info if item.name in defined and item.name not in outputs]
    del graph.value_info[:]
    graph.value_info.extend(described)
