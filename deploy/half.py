"""Graphs in half precision: fp16 weights and sums inside the backbone, uint8 in and float32 unit vectors out as ever."""

from __future__ import annotations

import onnx

from domains.errors import ExportError

HALVED = ("/backbone/", "/embedding/")
"""Parts of the network that are computed in fp16. Input normalisation, pooling (its cube would pass fp16's 65,504) and the last scaling are not."""


def to_half(data: bytes) -> bytes:
    """Convert a float32 graph; raises ExportError if nothing in it can be halved."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = onnx.load_from_string(data)
    kept = [node.name for node in graph.graph.node if not node.name.startswith(HALVED)]
    if len(kept) == len(graph.graph.node):
        raise ExportError("this graph has no backbone that can be halved; export it in fp32")
    made = convert_float_to_float16(graph, keep_io_types=True, node_block_list=kept)
    OnnxModel(made).topological_sort()  # the converter appends its casts at the end
    onnx.checker.check_model(made)
    halved: bytes = made.SerializeToString()
    return halved
