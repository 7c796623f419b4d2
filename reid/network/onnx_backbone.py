"""Image encoders exported to ONNX, made trainable again: converted to torch, cut after their last feature map and
checked against ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import io
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import map_arg

from domains.crops import CropSpec
from domains.errors import ArtefactError, BackboneError, ConfigError, first_line
from domains.graph_file import read_graph
from domains.text import shown
from reid.config import ModelConfig
from reid.network.backbone import Backbone, InputRule

PARITY_BATCHES = (1, 2, 7)
PARITY_COSINE = 0.9999
OPSET = 17
FLOAT = 1
"""ONNX's number for float32."""

INITIALISERS = "initializers"
"""The converter's name for the module that holds a graph's constants."""


class _Step(NamedTuple):
    """One node of a converted graph.

    Attributes:
        operation: what it does, in the words of torch.fx: placeholder, get_attr, call_module or call_function.
        target: the name of what is read or called, or the function itself.
        arguments: its arguments; those that are values are references.
        keywords: likewise, by name.
        done: the values that nothing after it needs.
    """

    operation: str
    target: str | Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    done: tuple[int, ...]


class _Value(NamedTuple):
    """A reference to what an earlier step computed."""

    step: int


class GraphModule(nn.Module):
    """A part of a converted graph, computed step by step: no code is written for it, so no name in it can become code.

    Feature spaces are named after, among others, the names of weights and of this class
    (:meth:`reid.network.model.ReidModel.feature_space`), so neither may change.
    """

    _steps: tuple[_Step, ...] = ()

    def __init__(self, part: nn.Module, nodes: list[torch.fx.Node], names: Mapping[str, str]) -> None:
        """Take over the modules of a part whose nodes are ``nodes``, the last of which is its result; modules get
        their names in ``names``.
        """
        super().__init__()
        for name, child in part.named_children():
            self.add_module(names.get(name, name), child)
        order = {node: position for position, node in enumerate(nodes)}
        last = {source: position for position, node in enumerate(nodes) for source in node.all_input_nodes}
        done: dict[int, tuple[int, ...]] = {}
        for node, position in last.items():
            done[position] = (*done.get(position, ()), order[node])
        self._steps = tuple(
            _Step(
                node.op,
                names[str(node.target)] if node.op == "call_module" else node.target,
                map_arg(node.args, lambda source: _Value(order[source])),
                map_arg(node.kwargs, lambda source: _Value(order[source])),
                done.get(position, ()),
            )
            for position, node in enumerate(nodes)
        )

    def forward(self, images: Tensor) -> Any:
        """Compute the part; values are let go when nothing needs them any more."""
        values: dict[int, Any] = {}

        def given(argument: Any) -> Any:
            return values[argument.step] if isinstance(argument, _Value) else argument

        for position, step in enumerate(self._steps):
            arguments = [given(argument) for argument in step.arguments]
            keywords = {name: given(argument) for name, argument in step.keywords.items()}
            if step.operation == "placeholder":
                values[position] = images
            elif step.operation == "get_attr":
                values[position] = operator.attrgetter(str(step.target))(self)
            elif step.operation == "call_module":
                values[position] = self.get_submodule(str(step.target))(*arguments, **keywords)
            else:
                values[position] = step.target(*arguments, **keywords)  # type: ignore[operator]
            for number in step.done:
                del values[number]
        return values[len(self._steps) - 1]


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
    body, head = _split_at_last_map(*_as_torch(graph, path), path, crop)
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
        raise BackboneError(f"can't open {path.name} as ONNX: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return what a library said, in part of one line; it may quote names from the file."""
    return shown(first_line(error)[:200])


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
    if inputs[0].type.tensor_type.elem_type != FLOAT:
        raise BackboneError(f"{path.name} does not take float32 images; export it with a float32 input")
    for axis, size, name in ((2, crop.height, "height"), (3, crop.width, "width")):
        if shape[axis] not in (size, None):
            raise ConfigError(
                f"{path.name} takes crops of {shape[2]}×{shape[3]}: set crop.{name}={shape[axis]} (it is {size})"
            )


def _as_torch(graph: Any, path: Path) -> tuple[torch.fx.GraphModule, dict[str, str]]:
    """Convert a graph; returns it with its modules called by number, and the name that each is to have."""
    import onnx2torch

    lowered = _lowered(graph)
    for node in lowered.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise BackboneError(f"can't train {path.name}: its operator {node.op_type} has no trainable form")
    _settle_reshapes(lowered.graph)
    names = _numbered(lowered.graph)
    try:
        return onnx2torch.convert(lowered), names
    except NotImplementedError as error:
        match = re.search(r"operation_type='(\w+)'", str(error))
        raise BackboneError(
            f"can't train {path.name}: its operator {match[1]} has no trainable form"
            if match
            else f"can't train {path.name}: the converter lacks a form that it uses: {_reason(error)}"
        ) from error
    except Exception as error:  # the converter raises whatever its parts raise
        raise BackboneError(f"can't train {path.name}: {type(error).__name__}: {_reason(error)}") from error


def _numbered(graph: Any) -> dict[str, str]:
    """Name a graph's nodes and values by number; returns the name that each node's module is to have.

    The converter names modules after nodes, and torch writes modules' names into Python code that it runs, so no name
    from a file may get there. The weights of runs are stored under the modules' names: the file's, where that is a name
    that a module can have.
    """
    counts: dict[str, int] = {}
    names: dict[str, str] = {}
    taken = {INITIALISERS}
    blank = GraphModule(nn.Module(), [], {})
    for position, node in enumerate(graph.node):
        name = f"{node.domain}/{node.name.replace('.', '/') or node.op_type}".lstrip("/")
        counts[name] = counts.get(name, -1) + 1
        name += f"_{counts[name]}" if counts[name] else ""
        if not name or not name.isprintable() or set(name) & set('"\\') or hasattr(blank, name):
            name = f"n{position}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = f"n{position}"
        names[node.name] = name
    values = {"": ""}

    def numbered(value: str) -> str:
        return values.setdefault(value, f"v{len(values)}")

    for owner in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        owner.name = numbered(owner.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = numbered(sparse.values.name)
    for node in graph.node:
        node.input[:] = [numbered(value) for value in node.input]
        node.output[:] = [numbered(value) for value in node.output]
    graph.ClearField("quantization_annotation")
    return names


def _settle_reshapes(graph: Any) -> None:
    """Remove the attribute that says what a zero in a new shape means where the shape has none: torch's exporter always
    writes it, and the converter can't read it.
    """
    from onnx import numpy_helper

    shapes = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and len(node.input) == 2 and node.input[1] in shapes:
            attributes = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            if len(attributes) < len(node.attribute) and numpy_helper.to_array(shapes[node.input[1]]).all():
                del node.attribute[:]
                node.attribute.extend(attributes)


def _lowered(graph: Any) -> Any:
    """Return a copy of a graph, lowered to opset 17 if it is newer and that can be done: there, reductions carry their
    axes as the converter reads them.
    """
    import onnx
    from onnx import version_converter

    if any(entry.version > OPSET for entry in graph.opset_import if entry.domain in ("", "ai.onnx")):
        # its C++ errors share no class; the next step reports what is unsupported, and parity is checked after it
        with contextlib.suppress(Exception):
            return version_converter.convert_version(graph, OPSET)
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    return copied


def _split_at_last_map(
    module: torch.fx.GraphModule, names: Mapping[str, str], path: Path, crop: CropSpec
) -> tuple[nn.Module, nn.Module | None]:
    """Cut the graph after its last feature map (rank 4, more than one pixel); the head is None if the graph ends
    there.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    module.eval()
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # it prints the traceback that it also raises
            ShapeProp(module).propagate(torch.zeros(2, 3, crop.height, crop.width))
    except Exception as error:  # whatever the graph's operators raise, within an error of torch's
        reason = _reason(error.__cause__ or error)
        raise BackboneError(f"can't train {path.name}: it can't take a batch of 2: {reason}") from error
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
    body = _subgraph(module, names, nodes[: order[cut] + 1], cut, {})
    head = (
        None
        if nodes[-1].all_input_nodes == [cut]
        else _subgraph(module, names, nodes[order[cut] + 1 : -1], nodes[-1].all_input_nodes[0], {cut: "features"})
    )
    return body, head


def _subgraph(
    module: torch.fx.GraphModule,
    names: Mapping[str, str],
    nodes: list[torch.fx.Node],
    result: torch.fx.Node,
    inputs: dict[torch.fx.Node, str],
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
    return GraphModule(part, list(part.graph.nodes)[:-1], names)


def _check_parity(backbone: Backbone, graph: Any, path: Path, crop: CropSpec) -> tuple[int, int]:
    """Compare with ONNX Runtime on drawn people at several batch sizes; returns the map's channels and the output's
    width.
    """
    from domains.synthetic import golden_crops

    session = _session(graph, path)
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
                f"{path.name} can't take a batch of {batch}: {_reason(error)}; export it with a dynamic batch"
            ) from error
        if not np.isfinite(wanted).all():
            raise BackboneError(_overflows(backbone, path))
        try:
            features, got = _answers(backbone, images[:batch])
        except Exception as error:  # whatever the graph's operators raise
            raise BackboneError(
                f"can't train {path.name}: it can't take a batch of {batch}: {type(error).__name__}: {_reason(error)}"
            ) from error
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


def _session(graph: Any, path: Path) -> Any:
    """Open a graph in ONNX Runtime, which refuses two nodes of one name, so without their names."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise BackboneError(
            "an onnx: backbone is checked against ONNX Runtime, which is missing: pip install 'lifelong-reid[cpu]'"
        ) from error
    for node in graph.graph.node:
        node.ClearField("name")
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors are raised, too
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise BackboneError(
            f"ONNX Runtime, with which {path.name} is compared, can't open it: {_reason(error)}; export it again"
        ) from error


def _answers(backbone: Backbone, images: Any) -> tuple[Tensor, Any]:
    """Return the map and the embeddings of normalised images, and note whether the map has negative values."""
    with torch.no_grad():
        features: Tensor = backbone(torch.from_numpy(images))
        backbone.signed = bool((features < 0).any())
        return features, (features if backbone.head is None else backbone.head(features)).flatten(1).numpy()


def _overflows(backbone: Backbone, path: Path) -> str:
    """Say that a graph's outputs are not finite and, if it is their fault, which of its weights are not."""
    found = next((name for name, value in backbone.state_dict().items() if not torch.isfinite(value).all()), None)
    why = f" ({shown(found[:80])} has values that are not finite)" if found else ""
    return (
        f"{path.name} outputs values that are not finite numbers for ordinary crops{why}; export it from sound "
        "weights, and check model.mean and model.std"
    )
