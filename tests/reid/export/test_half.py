"""Half precision: the backbone in fp16, and in float32 what is said to stay so."""

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from domains.crops import CropSpec
from domains.synthetic import golden_crops
from reid.config import ModelConfig
from reid.export.export import export_graph
from reid.export.half import HALVED, to_half
from reid.export.ranges import answers, start_session
from reid.network.build import build_model

SIZES = {
    "test_resnet": (64, 32),
    "mobilenetv2_050": (64, 32),
    "test_vit": (160, 160),
    "convnext_atto": (64, 32),
    "resnet50": (64, 32),
}
SMALL = [name for name in SIZES if name != "resnet50"]


@functools.cache
def graph(backbone, loud=1.0):
    """A graph and its crops; the backbone's last normalisation is as many times louder."""
    height, width = SIZES[backbone]
    model = build_model(ModelConfig(backbone=backbone, weights="none", dim=32), CropSpec(height, width)).eval()
    with torch.no_grad():
        last = [
            module
            for module in model.backbone.modules()
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm)
        ][-1]
        last.weight.fill_(loud)
    crops = golden_crops(7, height=height, width=width)
    return export_graph(model, crops[:2]), crops


def values(data, names, crops):
    """What a graph computes on the way."""
    watched = onnx.load_from_string(data)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return start_session(watched.SerializeToString()).run(list(names), {"crops": crops})


def types(data):
    """Element type of every value, inferred anew."""
    model = onnx.load_from_string(data)
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {
        item.name: item.type.tensor_type.elem_type for item in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    return found | {item.name: item.data_type for item in inferred.initializer}


def test_features_whose_cube_passes_the_largest_half_number_are_pooled():
    data, crops = graph("test_resnet", 100.0)
    pooled = next(node.input[0] for node in onnx.load_from_string(data).graph.node if node.name == "/pool/Cast")
    assert values(data, [pooled], crops)[0].max() > 41, "or this test shows nothing"
    got, wanted = answers(start_session(to_half(data)), crops), answers(start_session(data), crops)
    assert np.isfinite(got).all()
    assert np.einsum("nd,nd->n", got, wanted).min() > 0.9999
    assert np.allclose(got, wanted, atol=2e-3)
    assert np.abs(np.linalg.norm(got.astype(np.float64), axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("backbone", SMALL)
def test_outputs_are_unit_vectors_of_float32(backbone):
    data, crops = graph(backbone)
    got = answers(start_session(to_half(data)), crops)
    assert np.abs(np.linalg.norm(got.astype(np.float64), axis=1) - 1).max() < 1e-5
    assert (got != got.astype(np.float16)).any(), "the last scaling was rounded to fp16"


def test_equal_weights_that_torch_shares_are_halved_too():
    """A new ResNet's last normalisations multiply by nought, so that all those convolutions have one weight."""
    data, _ = graph("resnet50")
    assert any(node.op_type == "Identity" for node in onnx.load_from_string(data).graph.node), (
        "or this test shows nothing"
    )
    assert len(to_half(data)) < 0.51 * len(data)


@pytest.mark.parametrize("backbone", SMALL)
def test_only_the_backbone_and_the_embedding_compute_in_half(backbone):
    data, _ = graph(backbone)
    before, after = onnx.load_from_string(data).graph, onnx.load_from_string(to_half(data)).graph
    kinds = types(to_half(data))
    given = {node.name for node in before.node}
    kept = [node for node in after.node if node.name in given and not node.name.startswith(HALVED)]
    halved = [node for node in after.node if node.name in given and node.name.startswith(HALVED)]
    assert len(kept) + len(halved) == sum(node.op_type != "Identity" for node in before.node), (
        "a node of the float32 graph is lost"
    )
    assert [
        node.name
        for node in kept
        if TensorProto.FLOAT16 in {kinds[name] for name in (*node.input, *node.output) if name}
    ] == []
    heavy = [node for node in halved if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert heavy
    assert all(kinds[node.output[0]] == TensorProto.FLOAT16 for node in heavy)
    makers = {name: node for node in after.node for name in node.output} | {
        item.name: item for item in after.initializer
    }
    for node in after.node:
        if node.op_type == "Cast" and node.name not in given and kinds[node.output[0]] == TensorProto.FLOAT:
            assert makers[node.input[0]].name in {item.name for item in halved}, (
                f"{node.name} widens what was narrowed before, or a constant"
            )
    assert {item.name for item in after.value_info} <= set(makers), "no value is described that is not there"


def test_what_float32_nodes_read_is_not_rounded_because_the_backbone_reads_it_too():
    data, crops = graph("test_resnet")
    shared = onnx.load_from_string(data)
    scale = onnx.numpy_helper.from_array(np.float32(1.0003), "shared")
    shared.graph.initializer.append(scale)
    last, inner = shared.graph.node[-1], next(node for node in shared.graph.node if node.op_type == "Relu")
    for node, name in ((last, "/scale"), (inner, "/backbone/scale")):
        place = list(shared.graph.node).index(node) + 1
        result = node.output[0]
        node.output[0] = f"{result}_before"
        shared.graph.node.insert(place, onnx.helper.make_node("Mul", [node.output[0], "shared"], [result], name=name))
    got = answers(start_session(to_half(shared.SerializeToString())), crops)
    assert np.allclose(np.linalg.norm(got.astype(np.float64), axis=1), 1.0003, atol=1e-5)
