"""Image encoders exported to ONNX, made trainable again: converted to torch, cut after their last feature map and
checked against ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from domains.crops import CropSpec
from domains.errors import ArtefactError, BackboneError, ConfigError, first_line
from domains.graph_file import read_graph
from reid.config import ModelConfig
from reid.network.backbone import Backbone, InputRule

PARITY_BATCHES = (1, 2, 7)
PARITY_COSINE = 0.9999
OPSET = 17


def open_onnx(path: Path, config: ModelConfig, crop: CropSpec) -> Backbone:
    """Open an ONNX image encoder as a trainable module and check that it computes what ONNX Runtime computes.

    Raises:
        BackboneError: the graph can't be opened, trained or cut, or differs from ONNX Runtime.
        ConfigError: its input is not declared, or has another size.
    """
    if config.channels == "auto" or config.mean is None or config.std is None:
        raise ConfigError(
            "an onnx: backbone's input must be declared: set model.channels (rgb or bgr), model.mean and model.std in "
            "0..255; for a graph that takes raw 0..255 values, mean is [0,0,0] and std is [1,1,1]"
        )
    graph = _slimmed(path)
    _check_input(graph, path, crop)
    module = _as_torch(graph, path)
    body, head = _split_at_last_map(module, path, crop)
    backbone = Backbone(body, head=head, width=0, rule=InputRule(config.channels, config.mean, config.std))
    backbone.channels, backbone.width = _check_parity(backbone, graph, path, crop)
    return backbone


def _slimmed(path: Path) -> Any:
    import onnx
    import onnxslim

    if not path.is_file():
        raise BackboneError(f"no ONNX file {path}")
    try:
        data = read_graph(path)
    except ArtefactError as error:
        raise BackboneError(f"can't open an onnx: backbone: {error}") from error
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
        return onnxslim.slim(model)
    except Exception as error:  # protobuf, checker and slimmer raise errors of their own
        raise BackboneError(f"can't open {path.name} as ONNX: {first_line(error):.200}") from error


def _check_input(graph: Any, path: Path, crop: CropSpec) -> None:
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.graph.output) != 1:
        raise BackboneError(
            f"{path.name} must have one input and one output, has {len(inputs)} and {len(graph.graph.output)}"
        )
    shape = [axis.dim_value or None for axis in inputs[0].type.tensor_type.shape.dim]
    if len(shape) != 4 or shape[1] not in (3, None):
        raise BackboneError(f"{path.name} must take images [N, 3, H, W], takes {shape}")
    if shape[0] is not None:
        raise BackboneError(f"{path.name} takes batches of {shape[0]} only; export it with a dynamic batch")
    for axis, size, name in ((2, crop.height, "height"), (3, crop.width, "width")):
        if shape[axis] not in (size, None):
            raise ConfigError(
                f"{path.name} takes crops of {shape[2]}×{shape[3]}: set crop.{name}={shape[axis]} (it is {size})"
            )


def _as_torch(graph: Any, path: Path) -> torch.fx.GraphModule:
    import onnx2torch

    # The converter names modules after nodes, and torch writes these names, in quotes, into Python code that it runs.
    lowered = _lowered(graph)
    for node in lowered.graph.node:
        for name in (node.name, node.op_type, node.domain):
            if not name.isprintable() or set(name) & set('"\\'):
                raise BackboneError(
                    f"can't train {path.name}: the name {name!r:.80} of a node holds quotation marks, backslashes or "
                    "control characters; rename its nodes and export it again"
                )
    try:
        module: torch.fx.GraphModule = onnx2torch.convert(lowered)
    except NotImplementedError as error:
        match = re.search(r"operation_type='(\w+)'", str(error))
        raise BackboneError(
            f"can't train {path.name}: its operator {match[1] if match else str(error)} has no trainable form"
        ) from error
    except Exception as error:  # the converter raises whatever its parts raise
        raise BackboneError(f"can't train {path.name}: {type(error).__name__}: {first_line(error):.200}") from error
    return module


def _lowered(graph: Any) -> Any:
    """Lower a newer graph to opset 17, whose reductions carry their axes as the converter reads them; return it
    unchanged if that fails.
    """
    from onnx import version_converter

    if all(entry.version <= OPSET for entry in graph.opset_import if entry.domain in ("", "ai.onnx")):
        return graph
    try:
        return version_converter.convert_version(graph, OPSET)
    # the converter's C++ errors share no class; the next step reports what is unsupported, and parity is checked after
    # it
    except Exception:
        return graph


def _split_at_last_map(module: torch.fx.GraphModule, path: Path, crop: CropSpec) -> tuple[nn.Module, nn.Module | None]:
    """Cut the graph after its last feature map (rank 4, more than one pixel); the head is None if the graph ends
    there.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    module.eval()
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # it prints the traceback that it also raises
            ShapeProp(module).propagate(torch.zeros(2, 3, crop.height, crop.width))
    except RuntimeError as error:
        raise BackboneError(f"can't train {path.name}: it can't take a batch of 2: {first_line(error):.160}") from error
    nodes = list(module.graph.nodes)
    order = {node: position for position, node in enumerate(nodes)}

    def is_cut(node: Any) -> bool:
        meta = node.meta.get("tensor_meta")
        shape: tuple[int, ...] = getattr(meta, "shape", ())
        if node.op == "placeholder" or len(shape) != 4 or shape[2] * shape[3] <= 1:
            return False
        later = order[node]
        crossing = {
            source
            for user in nodes[later + 1 :]
            for source in user.all_input_nodes
            if order[source] <= later and source.op != "get_attr"
        }
        return crossing == {node}

    cut = next((node for node in reversed(nodes) if is_cut(node)), None)
    if cut is None:
        raise BackboneError(
            f"can't train {path.name}: it has no feature map [N, C, h, w] that its whole output depends on"
        )
    body = _subgraph(module, nodes[: order[cut] + 1], cut, {})
    head = (
        None
        if nodes[-1].all_input_nodes == [cut]
        else _subgraph(module, nodes[order[cut] + 1 : -1], nodes[-1].all_input_nodes[0], {cut: "features"})
    )
    return body, head


def _subgraph(
    module: torch.fx.GraphModule, nodes: list[torch.fx.Node], result: torch.fx.Node, inputs: dict[torch.fx.Node, str]
) -> nn.Module:
    """Copy a part of a graph; constants defined before it are copied when first used."""
    graph = torch.fx.Graph()
    copies = {node: graph.placeholder(name) for node, name in inputs.items()}

    def copied(node: torch.fx.Node) -> torch.fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copied(node)
    graph.output(copied(result))
    part = torch.fx.GraphModule(module, graph)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part


def _check_parity(backbone: Backbone, graph: Any, path: Path, crop: CropSpec) -> tuple[int, int]:
    """Compare with ONNX Runtime on drawn people at several batch sizes; returns the map's channels and the output's
    width.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise BackboneError(
            "an onnx: backbone is checked against ONNX Runtime, which is missing: pip install 'lifelong-reid[cpu]'"
        ) from error
    from domains.synthetic import golden_crops

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    crops = golden_crops(max(PARITY_BATCHES), height=crop.height, width=crop.width).astype(np.float32)
    rule = backbone.rule
    pixels = ((crops[..., ::-1] if rule.channels == "bgr" else crops) - np.array(rule.mean, np.float32)) / np.array(
        rule.std, np.float32
    )
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    backbone.eval()
    for batch in PARITY_BATCHES:
        try:
            wanted = session.run(None, {session.get_inputs()[0].name: images[:batch]})[0].reshape(batch, -1)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise BackboneError(
                f"{path.name} can't take a batch of {batch}: {first_line(error):.160}; export it with a dynamic batch"
            ) from error
        with torch.no_grad():
            features = backbone(torch.from_numpy(images[:batch]))
            backbone.signed = bool((features < 0).any())
            got = (features if backbone.head is None else backbone.head(features)).flatten(1).numpy()
        if got.shape != wanted.shape:
            raise BackboneError(
                f"{path.name} made trainable outputs shape {got.shape} at batch {batch}, ONNX Runtime {wanted.shape}"
            )
        with np.errstate(invalid="ignore"):
            cosine = float(
                (
                    np.einsum("nd,nd->n", got, wanted) / (np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1))
                ).min()
            )
        if not cosine >= PARITY_COSINE:
            raise BackboneError(
                f"{path.name} made trainable differs from ONNX Runtime at batch {batch}: cosine {cosine:.5f}, at "
                f"least {PARITY_COSINE} is needed"
            )
    channels = int(features.shape[1])
    return channels, channels if backbone.head is None else int(got.shape[1])
