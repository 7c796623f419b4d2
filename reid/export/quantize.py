"""8-bit graphs: static quantisation (QDQ, per-channel weights) with ONNX Runtime's tools, a judge that may refuse, and
the layers to blame.

Weights are symmetric int8 with a scale per output channel, activations uint8 with one range each. Convolutions and
linear layers are quantised together with the ReLU that follows, and so are residual sums between them; input
normalisation, pooling, attention, layer norms, a metric and the scaling to unit length stay in float32. Channels are
balanced first (:mod:`reid.export.equalise`). Knows neither torch nor domains: the caller judges how good a graph is.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from domains.arrays import Crops
from domains.errors import ExportError, UsageError
from domains.graph_file import check_graph
from reid.export.equalise import activation_of, constants, consumers, equalise
from reid.export.ranges import activation_ranges, answers, start_session

CALIBRATION = 128
"""Number of crops that ranges are measured on."""

PROBES = 16
"""Number of crops that layers are compared on."""

MAP_LOSS = 0.5
"""Percent mAP that may be lost."""

BLAMED = 3
GROWTH = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of layers to leave out, tried in turn until the judge is content; the last one is half of all layers."""

LINEAR = ("Conv", "Gemm", "MatMul")
METRIC = "/metric/"
"""What a site's metric does to unit vectors: it is small, and has to be undone exactly."""


class Blame(NamedTuple):
    """A layer, and the mean cosine lost when it alone is quantised."""

    layer: str
    loss: float


class Quantised(NamedTuple):
    """An 8-bit graph that the judge accepted.

    Attributes:
        data: ONNX bytes.
        before: the judge's score of the float32 graph, percent mAP.
        after: that of ``data``.
        left_out: layers that stayed in float32.
        blamed: layers by what each costs alone, worst first; empty if that was not needed.
        layers: how many can be quantised.
    """

    data: bytes
    before: float
    after: float
    left_out: tuple[str, ...]
    blamed: tuple[Blame, ...]
    layers: int


def quantise(
    data: bytes,
    crops: Crops,
    judge: Callable[[bytes], float],
    *,
    exclude: Sequence[str] = (),
    strict: bool = False,
    reduce_range: bool = False,
    loss: float = MAP_LOSS,
    say: Callable[[str], None] = lambda line: None,
) -> Quantised:
    """Quantise a graph as far as the judge allows.

    Args:
        data: float32 graph, uint8 ``crops`` in, unit ``embeddings`` out.
        crops: uint8 ``[N, H, W, 3]`` for calibration; at most 128 are used, evenly spaced.
        judge: scores a graph, in percent.
        exclude: layers to leave in float32.
        strict: refuse at once instead of leaving the worst layers in float32 until the graph is good enough.
        reduce_range: 7-bit weights, for x86 processors without VNNI, whose 16-bit sums would overflow.
        loss: how much the score may fall, in percent.
        say: receives progress messages, as this can take minutes.

    Raises:
        ExportError: nothing to quantise, or the score falls by more; names the layers to blame.
        UsageError: an excluded layer that does not exist, or no crops.
    """
    if not len(crops):
        raise UsageError(
            "int8 is calibrated on a domain's train crops, but there are none; name a domain with a train split"
        )
    crops = crops[np.linspace(0, len(crops) - 1, min(len(crops), CALIBRATION)).astype(int)]
    say(f"measuring ranges on {len(crops)} crops")
    quantiser = Quantiser(data, crops, reduce_range=reduce_range)
    chosen = quantiser.named(exclude)
    before = judge(data)
    lowered = quantiser.quantised(chosen)
    after = judge(lowered)
    if before - after <= loss:
        return Quantised(lowered, before, after, tuple(chosen), (), len(quantiser.layers))
    say(f"mAP falls from {before:.2f} to {after:.2f}: testing each of {len(quantiser.layers)} layers")
    blamed = quantiser.blame(crops[np.linspace(0, len(crops) - 1, min(len(crops), PROBES)).astype(int)], chosen)
    first, most = after, max(0, len(quantiser.layers) // 2 - len(chosen))
    for count in () if strict else (*(count for count in GROWTH if count < most), *([most] if most else [])):
        left_out = [*chosen, *(item.layer for item in blamed[:count])]
        lowered = quantiser.quantised(left_out)
        after = judge(lowered)
        say(f"{len(left_out)} of {len(quantiser.layers)} layers left in float32: mAP {after:.2f}")
        if before - after <= loss:
            return Quantised(lowered, before, after, tuple(left_out), blamed, len(quantiser.layers))
    worst = ", ".join(f"{item.layer} ({item.loss:.4f})" for item in blamed[:BLAMED])
    tried = (
        f"; leaving up to {len(chosen) + most} of {len(quantiser.layers)} layers in float32 did not help"
        if most and not strict
        else ""
    )
    raise ExportError(
        f"int8 loses {before - first:.2f} mAP ({before:.2f} to {first:.2f}); at most {loss} is allowed{tried}. "
        f"Layers to blame, by cosine lost alone: {worst}; leave them out with --exclude, or export with --fp16"
    )


class Quantiser:
    """A float32 graph ready for quantisation: balanced, with its ranges measured and its layers identified.

    Attributes:
        graph: the prepared float32 graph.
        layers: names of the layers that can be quantised, in the order of the graph, with their nodes.
        balanced: pairs of convolutions whose channels were balanced.
    """

    def __init__(self, data: bytes, crops: Crops, *, reduce_range: bool = False) -> None:
        """Prepare a graph; raises ExportError if there is nothing to quantise in it."""
        self.reduce_range = reduce_range
        self.graph, self.balanced = equalise(_prepared(data), crops)
        self.layers = _layers(self.graph.graph)
        if not self.layers:
            raise ExportError(
                "this graph has no convolution or linear layer with constant weights, so int8 gains nothing; export "
                "it as it is"
            )
        inside = {name for nodes in self.layers.values() for name in nodes}
        values = constants(self.graph.graph)
        touched = [
            name
            for node in self.graph.graph.node
            if node.name in inside
            for name in (*node.input, *node.output)
            if name not in values
        ]
        self._ranges = activation_ranges(self.graph, sorted({name for name in touched if name}), crops)

    def named(self, exclude: Sequence[str]) -> list[str]:
        """Find layers by these names or name endings; raises UsageError listing the known ones."""
        names: list[str] = []
        for wish in exclude:
            fitting = [name for name in self.layers if name == wish or name.endswith("/" + wish)]
            if len(fitting) != 1:
                known = ", ".join(fitting or list(self.layers)[:8])
                raise UsageError(
                    f"{'several layers are' if fitting else 'no layer is'} called {wish!r:.80}; there are "
                    f"{known}{'' if fitting else ', …'}"
                )
            names.append(fitting[0])
        return list(dict.fromkeys(names))

    def quantised(self, left_out: Collection[str] = ()) -> bytes:
        """Return the graph with all layers but these in 8 bits."""
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        chosen = [node for name, nodes in self.layers.items() if name not in left_out for node in nodes]
        if not chosen:
            return self.graph.SerializeToString()  # type: ignore[no-any-return]
        copied = onnx.ModelProto()
        copied.CopyFrom(self.graph)
        ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in self._ranges.items()}
        with _quiet():
            quantizer = QDQQuantizer(
                copied,
                per_channel=True,
                reduce_range=self.reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
                nodes_to_quantize=chosen,
                nodes_to_exclude=[],
                op_types_to_quantize=[*LINEAR, "Relu", "Clip", "Add", "MaxPool"],
                extra_options={
                    "ActivationSymmetric": False,
                    "WeightSymmetric": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul"],
                },
            )
            quantizer.quantize_model()
        lowered = quantizer.model.model
        _guard(lowered.graph, {nodes[0] for name, nodes in self.layers.items() if name in left_out})
        data: bytes = lowered.SerializeToString()
        return data

    def blame(self, crops: Crops, left_out: Collection[str] = ()) -> tuple[Blame, ...]:
        """Measure each layer's cost when it alone is quantised, worst first: one minus the mean cosine to float32."""
        expected = answers(start_session(self.graph.SerializeToString()), crops)
        names = [name for name in self.layers if name not in left_out]
        costs = []
        for name in names:
            actual = answers(start_session(self.quantised([other for other in self.layers if other != name])), crops)
            costs.append(Blame(name, float(1 - np.einsum("nd,nd->n", actual, expected).mean())))
        return tuple(sorted(costs, key=lambda item: (-item.loss, item.layer)))


def _prepared(data: bytes) -> onnx.ModelProto:
    """Fold constants and fuse nodes with ONNX Runtime, then infer shapes, as its guide asks for before quantisation."""
    import onnxruntime

    check_graph(data, "the graph")
    with _nowhere() as file:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantSharing"]
        )
        return onnx.shape_inference.infer_shapes(onnx.load(str(file)))


@contextmanager
def _nowhere() -> Iterator[Path]:
    """Path of a file that is on no disk, as ONNX Runtime writes a graph only to a path; where the system knows no such
    files (outside Linux), it is in a temporary folder of this user alone.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("prepared.onnx")
        try:
            yield Path(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "prepared.onnx"


def _layers(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Return names of layers with the nodes of each, in the order of the graph."""
    values, users = constants(graph), consumers(graph)
    layers: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    """Layer by the quantised tensor that it produces."""
    for node in graph.node:
        if node.name.startswith(METRIC):
            continue
        weighted = node.op_type in LINEAR and len(node.input) > 1 and node.input[1] in values
        summed = node.op_type == "Add" and all(name in owner for name in node.input)
        if weighted or summed:
            name = _short(node, layers)
            layers[name], last = [node.name], node
            if (activation := activation_of(node, users)) is not None:
                layers[name].append(activation.name)
                last = activation
            if node.op_type != "MatMul":  # its output stays in float32, like what follows it in a transformer
                owner[last.output[0]] = name
        elif node.op_type == "MaxPool" and node.input[0] in owner:
            layers[owner[node.input[0]]].append(node.name)
            owner[node.output[0]] = owner[node.input[0]]
    return layers


def _short(node: onnx.NodeProto, taken: Collection[str]) -> str:
    """``/backbone/net/blocks/1/0/conv_pw/Conv`` → ``blocks/1/0/conv_pw``."""
    whole = str(node.name).strip("/")
    name = (
        whole.removeprefix("backbone/").removeprefix("net/").removesuffix(f"/{node.op_type}")
        if node.op_type in LINEAR
        else whole
    )
    name = name.removeprefix("backbone/").removeprefix("net/")
    return name if name and name not in taken else whole


def _guard(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Keep convolutions that stand between quantised ones in float32.

    ONNX Runtime quantises the weights of such a convolution on its own when it loads the graph, with one scale for all
    channels (its transformer WeightBiasQuantization), and MobileNetV2 then outputs nonsense. The transformer looks for
    a QuantizeLinear after the convolution, but only through ReLU and Clip: a LeakyReLU that does nothing hides it, and
    is merged into the convolution later.
    """
    users = consumers(graph)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.name in names and node.op_type in ("Conv", "Gemm"):
            name, after = node.output[0], users.get(node.output[0], [])
            positive = len(after) == 1 and after[0].op_type == "Relu"
            node.output[0] = f"{name}_unguarded"
            nodes.append(
                onnx.helper.make_node(
                    "LeakyRelu", [node.output[0]], [name], name=f"{node.name}_guard", alpha=0.0 if positive else 1.0
                )
            )
    del graph.node[:]
    graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, which logs to the root logger that its options differ from those of its examples."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
