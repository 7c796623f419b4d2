"""A graph is one file: real external data, placed where an engine would find it, and what else loads or runs more."""

import os
import random
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import DIM, HEIGHT, WIDTH, graph

from deploy import Bundle, Encoder
from deploy.encoder.engine import Plan, start
from domains import graph_file
from domains.crops import CropSpec
from domains.errors import ArtefactError, BackboneError, ReidError
from domains.graph_file import check_graph, read_graph

SECRET = b"\0" * 65536


def _external(tensor, location="weights.bin"):
    size = len(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _tensor(name="outer"):
    made = numpy_helper.from_array(np.zeros(8, np.float32), name)
    _external(made)
    return made


def _subgraph(node, outputs=("inner",)):
    return helper.make_graph(
        [node], "inside", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    )


def _choice(then, otherwise):
    return helper.make_node("If", ["yes"], ["chosen"], then_branch=then, else_branch=otherwise)


def _constant(value):
    return helper.make_node("Constant", [], ["inner"], value=value)


def _plain():
    return _subgraph(_constant(numpy_helper.from_array(np.zeros(8, np.float32), "plain")))


def initialiser(model):
    _external(model.graph.initializer[4])


def absolute(model):
    _external(model.graph.initializer[4], "/etc/hostname")


def above(model):
    _external(model.graph.initializer[4], "../weights.bin")


def said_to_be_inside(model):
    _external(model.graph.initializer[4])
    model.graph.initializer[4].data_location = TensorProto.DEFAULT


def located_nowhere(model):
    _external(model.graph.initializer[4])
    model.graph.initializer[4].ClearField("external_data")


def in_a_constant(model):
    model.graph.node.insert(0, _constant(_tensor()))


def in_a_branch(model):
    model.graph.node.append(_choice(_subgraph(_constant(_tensor())), _plain()))


def as_a_branchs_weight(model):
    branch = _plain()
    branch.initializer.append(_tensor())
    model.graph.node.append(_choice(_plain(), branch))


def in_a_list_of_tensors(model):
    attribute = helper.make_attribute("values", [_tensor("a"), _tensor("b")])
    node = helper.make_node("Identity", ["middle"], ["other"])
    node.attribute.append(attribute)
    model.graph.node.append(node)


def in_a_list_of_graphs(model):
    node = helper.make_node("Identity", ["middle"], ["other"])
    node.attribute.append(helper.make_attribute("bodies", [_plain(), _subgraph(_constant(_tensor()))]))
    model.graph.node.append(node)


def sparse(model):
    values, indices = _tensor("thin"), numpy_helper.from_array(np.arange(8), "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [99]))


def sparse_indices(model):
    values = numpy_helper.from_array(np.zeros(8, np.float32), "thin")
    indices = numpy_helper.from_array(np.arange(8), "at")
    _external(indices)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [99]))


def sparse_constant(model):
    indices = numpy_helper.from_array(np.arange(8), "at")
    node = helper.make_node("Constant", [], ["thin"])
    node.attribute.append(
        helper.make_attribute("sparse_value", helper.make_sparse_tensor(_tensor("thin"), indices, [99]))
    )
    model.graph.node.append(node)


def in_a_function(model):
    body = [_constant(_tensor())]
    model.functions.append(helper.make_function("own", "F", [], ["inner"], body, model.opset_import))


def function(model):
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("ai.onnx", "F", ["x"], ["y"], [node], model.opset_import))


def training(model):
    model.training_info.add().initialization.CopyFrom(_plain())


def compiled_engine(model):
    node = helper.make_node(
        "EPContext", ["middle"], ["other"], domain="com.microsoft", ep_cache_context="engine.bin", embed_mode=0
    )
    model.graph.node.append(node)


def compiled_engine_in_a_branch(model):
    node = helper.make_node("EPContext", [], ["inner"], domain="com.microsoft", ep_cache_context="../engine.bin")
    model.graph.node.append(_choice(_subgraph(node), _plain()))


def interpreter(model):
    model.graph.node.append(helper.make_node("PyOp", ["middle"], ["other"], domain="ai.onnx.contrib", code="1"))


def foreign_library(model):
    model.graph.node.append(helper.make_node("Anything", ["middle"], ["other"], domain="com.example.lib"))


def torch_library(model):
    model.graph.node.append(helper.make_node("ATen", ["middle"], ["other"], domain="org.pytorch.aten"))


def engine_settings(model):
    helper.set_model_props(model, {"ort_config": '{"session_options": {"enable_profiling": 1}}'})


def nested_too_deep(model):
    inner = _plain()
    for _ in range(20):
        inner = _subgraph(_choice(inner, _plain()), ("chosen",))
    model.graph.node.append(_choice(inner, _plain()))


ASKING = [
    initialiser,
    absolute,
    above,
    said_to_be_inside,
    located_nowhere,
    in_a_constant,
    in_a_branch,
    as_a_branchs_weight,
    in_a_list_of_tensors,
    in_a_list_of_graphs,
    sparse,
    sparse_indices,
    sparse_constant,
    in_a_function,
    function,
    training,
    compiled_engine,
    compiled_engine_in_a_branch,
    interpreter,
    foreign_library,
    torch_library,
    engine_settings,
    nested_too_deep,
]


@pytest.fixture
def projection():
    return np.random.default_rng(0).normal(size=(HEIGHT // 4 * (WIDTH // 4) * 3, DIM))


@pytest.fixture
def baited(tmp_path, monkeypatch):
    """A working folder in which, and below and above which, the other files really are."""
    folder = tmp_path / "work"
    (folder / "deep").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "deep"):
        for name in ("weights.bin", "engine.bin"):
            (place / name).write_bytes(SECRET)
    monkeypatch.chdir(folder)
    return folder


def asking(change, projection):
    model = onnx.load_from_string(graph(projection))
    change(model)
    return model.SerializeToString()


@pytest.mark.parametrize("change", ASKING, ids=lambda change: change.__name__)
def test_whatever_asks_for_more_than_the_file_is_refused_at_every_door(change, projection, baited, monkeypatch):
    data = asking(change, projection)
    (baited / "net.onnx").write_bytes(data)
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or real(path, *rest, **more))
    doors = [
        (ArtefactError, lambda: check_graph(data, "net.onnx")),
        (ArtefactError, lambda: read_graph(baited / "net.onnx")),
        (ArtefactError, lambda: start(data, "cpu", Plan(HEIGHT, WIDTH, DIM), name="net.onnx")),
    ]
    for kind, door in doors:
        with pytest.raises(kind, match=r"net\.onnx .*complete in one file") as caught:
            door()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
    assert not [path for path in opened if path.endswith((".bin", "hostname"))]


@pytest.mark.parametrize("change", ASKING, ids=lambda change: change.__name__)
def test_weights_in_another_file_say_how_to_export_one(change, projection):
    with pytest.raises(ArtefactError) as caught:
        check_graph(asking(change, projection), "net.onnx")
    elsewhere = "keeps weights in another file" in str(caught.value)
    advised = "torch.onnx.export(dynamo=True) writes two by default, and one with external_data=False" in str(
        caught.value
    )
    assert advised == elsewhere


@pytest.mark.parametrize("change", [initialiser, in_a_branch, compiled_engine], ids=lambda change: change.__name__)
def test_a_bundle_is_neither_made_nor_opened_with_such_a_graph(change, projection, baited, make_signed_bundle):
    folder, remake = make_signed_bundle
    remake(asking(change, projection))
    for door in (Bundle.load, Encoder.load, lambda path: Bundle.load(path, verify=False).model()):
        with pytest.raises(ArtefactError, match="complete in one file"):
            door(folder)


@pytest.fixture
def make_signed_bundle(tmp_path, projection):
    """A bundle whose maker knows how to seal it, and a way to swap its graph for another."""
    import json

    from tiny import body, embed

    from deploy.bundle import Golden, write_bundle
    from domains.artefact import content_id, sha256_file
    from domains.synthetic import golden_crops

    crops = golden_crops(4, height=HEIGHT, width=WIDTH)
    folder = tmp_path / "bundle"
    parts = {"golden": Golden(crops, embed(crops, projection)), "card": "x", "body": body(), "parent": "12" * 32}
    with pytest.raises(ArtefactError, match="complete in one file"):
        write_bundle(folder, model_onnx=asking(initialiser, projection), **parts)
    assert not folder.exists()
    write_bundle(folder, model_onnx=graph(projection), **parts)

    def remake(data):
        (folder / "model.onnx").write_bytes(data)
        manifest = json.loads((folder / "bundle.json").read_text())
        manifest.pop("id")
        manifest["files"]["model.onnx"] = sha256_file(folder / "model.onnx")
        (folder / "bundle.json").write_text(json.dumps({"id": content_id(manifest), **manifest}))

    return folder, remake


@pytest.mark.parametrize(
    "change",
    [initialiser, in_a_constant, in_a_branch, as_a_branchs_weight, function, compiled_engine, foreign_library],
    ids=lambda change: change.__name__,
)
def test_a_backbone_is_one_file_too(change, projection, baited):
    pytest.importorskip("torch")
    from reid.config import ModelConfig
    from reid.network.build import build_model

    (baited / "net.onnx").write_bytes(asking(change, projection))
    declared = ModelConfig(backbone="onnx:net.onnx", channels="rgb", mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(BackboneError, match="complete in one file") as caught:
        build_model(declared, CropSpec(HEIGHT, WIDTH))
    assert "\n" not in str(caught.value)


def test_an_ordinary_graph_passes_whatever_its_optional_parts(projection):
    model = onnx.load_from_string(graph(projection))
    check_graph(model.SerializeToString(), "x")
    helper.set_model_props(model, {"author": "x", "location": "weights.bin"})
    model.graph.node.append(_choice(_plain(), _plain()))
    model.graph.node.append(helper.make_node("Gelu", ["middle"], ["other"], domain="com.microsoft"))
    model.graph.doc_string = "external_data: weights.bin"
    numbers = model.graph.initializer.add()
    numbers.CopyFrom(helper.make_tensor("numbers", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    numbers.data_location = TensorProto.DEFAULT
    check_graph(model.SerializeToString(), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no graph",
        b"\x08\x09",
        b"\x3a\x80",
        b"\x3a\x05abc",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x38\x01",
        b"\x3b\x3c",
        b"\x00\x00",
        b"\xff" * 64,
        b"\x08" + b"\x80" * 40,
        b"\x08\x09\x12\x04ORTM\x3a\x00",
        b"{}",
        b"PK\x03\x04",
        b"\x3a\x02\x08\x01" * 10 + b"\x3f",
    ],
    ids=repr,
)
def test_what_is_no_graph_is_one_line(data):
    with pytest.raises(ArtefactError) as caught:
        check_graph(data, "x.onnx")
    assert str(caught.value).isprintable()


def test_an_overlong_spelling_of_external_is_still_external(projection):
    plain = onnx.load_from_string(graph(projection))
    tensor = numpy_helper.from_array(np.zeros(8, np.float32), "outer").SerializeToString()
    for spelling in (
        b"\x70\x01",
        b"\x70\x81\x00",
        b"\xf0\x00\x81\x80\x80\x00",
        b"\x70\x00\x70\x01",
        b"\x70\x01\x70\x00",
    ):
        inner = tensor + spelling
        whole = b"\x2a" + bytes([len(inner)]) + inner
        data = (
            plain.SerializeToString() + b"\x3a" + bytes([len(whole)]) + whole
        )  # a second graph is merged with the first
        with pytest.raises(ArtefactError, match="another file"):
            check_graph(data, "x")


def test_the_walk_is_bounded(projection, monkeypatch):
    monkeypatch.setattr(graph_file, "MAX_FIELDS", 50)
    with pytest.raises(ArtefactError, match="more than 50 fields"):
        check_graph(graph(projection), "x")


def test_cut_and_flipped_files_are_refused_or_read_and_nothing_else(projection):
    data, draw = graph(projection), random.Random(4)
    for _ in range(300):
        broken = bytearray(data[: draw.randrange(1, len(data))] if draw.random() < 0.3 else data)
        for _ in range(draw.randrange(1, 6)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        try:
            check_graph(bytes(broken), "x")
        except ReidError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_what_torch_exports_passes(tmp_path):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.nn.Linear(3, 2), (torch.zeros(1, 3),), str(tmp_path / "a.onnx"), dynamo=False, opset_version=17
        )
    assert read_graph(tmp_path / "a.onnx")
