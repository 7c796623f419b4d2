"""A model small enough to build in a moment, and the same in NumPy."""

import numpy as np
import pytest

HEIGHT, WIDTH, DIM = 16, 8, 24
SPACE = "ab" * 32


def graph(projection, *, bias=0.0, scale=1.0, source="crops", static=False):
    """ONNX bytes: uint8 crops → mean of 4×4 blocks → matrix product → unit length."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed, so no tiny graph can be built")
    from onnx import TensorProto, helper, numpy_helper

    batch = 2 if static else "N"
    constants = {
        "blocks": np.array([0, HEIGHT // 4, 4, WIDTH // 4, 4, 3], np.int64),
        "axes": np.array([2, 4], np.int64),
        "flat": np.array([0, -1], np.int64),
        "middle": np.float32(127.5),
        "projection": projection.astype(np.float32),
        "bias": np.float32(bias),
        "scale": np.float32(scale),
    }
    nodes = [
        helper.make_node("Cast", [source], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "middle"], ["centred"]),
        helper.make_node("Reshape", ["centred", "blocks"], ["blocked"]),
        helper.make_node("ReduceMean", ["blocked", "axes"], ["means"], keepdims=0),
        helper.make_node("Reshape", ["means", "flat"], ["flattened"]),
        helper.make_node("MatMul", ["flattened", "projection"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["biased"]),
        helper.make_node("LpNormalization", ["biased"], ["unit"], axis=1, p=2),
        helper.make_node("Mul", ["unit", "scale"], ["embeddings"]),
    ]
    model = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(source, TensorProto.UINT8, [batch, HEIGHT, WIDTH, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, projection.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    made = helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def embed(crops, projection):
    """What the graph computes, said in NumPy."""
    blocks = (crops.astype(np.float64) - 127.5).reshape(len(crops), HEIGHT // 4, 4, WIDTH // 4, 4, 3).mean(axis=(2, 4))
    out = blocks.reshape(len(crops), -1) @ projection
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def unit(rng, count, dim=DIM):
    vectors = rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def body(**changes):
    return {
        "feature_space": SPACE,
        "dim": DIM,
        "crop": {"height": HEIGHT, "width": WIDTH, "resize": "area"},
        "backbone": "tiny",
        "precision": "fp32",
        "step": 1,
        "domains": ["drawn"],
        "method": "fusion",
        "parity": {"1": 1.0},
        "licences": {"weights": "not declared", "data": "not declared"},
    } | changes
