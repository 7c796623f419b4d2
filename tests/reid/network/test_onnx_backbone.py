"""Image encoders exported to ONNX and made trainable again: they say the same, or one line says why not."""

import numpy as np
import pytest
import torch
from backbones import SMALL, Encoder, exported, one_line
from torch import nn

from domains.crops import CropSpec
from domains.errors import ArtefactError, BackboneError, ConfigError
from reid.config import ModelConfig
from reid.network.build import build_model

DECLARED = {"channels": "bgr", "mean": (100.0, 110.0, 120.0), "std": (50.0, 60.0, 70.0)}


def opened(path, spec=SMALL, **settings):
    return build_model(ModelConfig(backbone=f"onnx:{path}", **(DECLARED | settings)), spec, classes=3)


def crops(batch, spec=SMALL):
    return np.random.default_rng(batch).integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("batch", [1, 5])
def test_an_onnx_encoder_says_the_same_when_made_trainable(tmp_path, batch, opset):
    import onnxruntime

    path = exported(Encoder(), tmp_path / "net.onnx", opset=opset)
    model = opened(path).eval()
    pixels = (crops(batch)[..., ::-1].astype(np.float32) - DECLARED["mean"]) / DECLARED["std"]
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    wanted = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": images})[
        0
    ]
    with torch.no_grad():
        out = model(torch.from_numpy(crops(batch)))
    assert out.features.shape == (batch, 12, 8, 4)
    assert model.dim == 24, "the graph's own width"
    assert np.allclose(out.embedding.numpy(), wanted, atol=1e-4)
    assert np.allclose(Encoder().eval()(torch.from_numpy(images)).detach().numpy(), wanted, atol=1e-4)


def test_all_of_it_can_be_trained(tmp_path):
    model = opened(exported(Encoder(), tmp_path / "net.onnx")).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    out = model(torch.from_numpy(crops(4)))
    (out.logits.square().sum() + out.embedding.square().sum()).backward()
    assert not [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.any())
    ]
    optimiser.step()
    assert not [
        name for name, value in model.named_parameters() if value.requires_grad and torch.equal(value, before[name])
    ]
    shapes = sorted(tuple(value.shape) for name, value in before.items() if not name.startswith(("neck", "classifier")))
    assert (24, 12) in shapes, "the graph's own head is among them"
    assert shapes.count((8, 3, 3, 3)) == 1, "and nothing is there twice"


def test_another_width_puts_an_embedding_behind_the_graph(tmp_path):
    model = opened(exported(Encoder(), tmp_path / "net.onnx"), dim=16).eval()
    assert model.embed(torch.from_numpy(crops(2))).shape == (2, 16)


@pytest.mark.parametrize(("kind", "spec"), [("pooled", SMALL), ("convolution", CropSpec(48, 32))])
def test_the_distribution_head_looks_at_the_map_and_not_at_what_the_graph_makes_of_it(tmp_path, kind, spec):
    model = opened(exported(Encoder(), tmp_path / "net.onnx", size=(spec.height, spec.width)), spec)
    model.add_distribution(kind)
    assert (model.backbone.channels, model.backbone.width) == (12, 24)
    assert model.spread(model(torch.from_numpy(crops(2, spec))).features).shape == (2, 24)


def test_a_graph_that_ends_in_its_map_is_pooled(tmp_path):
    net = Encoder()
    net.head = None
    model = opened(exported(net, tmp_path / "net.onnx")).eval()
    assert model.backbone.width == 12
    assert model.embed(torch.from_numpy(crops(2))).shape == (2, 512)


def test_dynamic_sizes_are_taken_as_they_come(tmp_path):
    net = Encoder()
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        net.eval(),
        (torch.randn(2, 3, 32, 16),),
        str(path),
        input_names=["images"],
        output_names=["out"],
        dynamo=False,
        dynamic_axes={"images": {0: "N", 2: "H", 3: "W"}, "out": {0: "N"}},
    )
    assert opened(path, CropSpec(48, 24)).embed(torch.from_numpy(crops(2, CropSpec(48, 24)))).shape == (2, 24)


@pytest.mark.parametrize("missing", ["channels", "mean", "std"])
def test_the_input_must_be_declared(tmp_path, missing):
    path = exported(Encoder(), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"model\.channels .*model\.mean and model\.std"):
        opened(path, **{missing: "auto" if missing == "channels" else None})


@pytest.mark.parametrize(
    ("size", "said"), [((64, 16), "takes crops of 32×16: set crop.height=32"), ((32, 32), "set crop.width=16")]
)
def test_another_crop_size_says_what_to_set(tmp_path, size, said):
    path = exported(Encoder(), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=said):
        opened(path, CropSpec(*size))


def test_a_fixed_batch_says_how_to_export(tmp_path):
    path = exported(Encoder(), tmp_path / "net.onnx", batch=1)
    with pytest.raises(
        BackboneError, match=r"net\.onnx takes batches of 1 only; export it with a dynamic batch"
    ) as caught:
        opened(path)
    one_line(caught)


class Reshaped(Encoder):
    def forward(self, images):
        return self.head(self.last(self.stem(images)).mean((2, 3)).reshape(1, -1))


def test_a_graph_that_is_dynamic_in_name_only_is_one_line(tmp_path, capfd):
    path = exported(Reshaped(), tmp_path / "net.onnx", batch=1)
    import onnx

    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(graph, path)
    capfd.readouterr()
    with pytest.raises(BackboneError, match=r"can't train net\.onnx: it can't take a batch of 2") as caught:
        opened(path)
    one_line(caught)
    assert capfd.readouterr().err == ""


class Sampled(Encoder):
    def forward(self, images):
        return super().forward(
            nn.functional.grid_sample(images, images.permute(0, 2, 3, 1)[..., :2], align_corners=False)
        )


def test_an_operator_without_a_trainable_form_is_named(tmp_path):
    with pytest.raises(BackboneError, match=r"can't train net\.onnx: its operator GridSample has no trainable form"):
        opened(exported(Sampled(), tmp_path / "net.onnx"))


def test_a_graph_without_a_map_is_refused(tmp_path):
    path = exported(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 16, 8)), tmp_path / "net.onnx")
    with pytest.raises(BackboneError, match="no feature map"):
        opened(path)


class TwoOutputs(Encoder):
    def forward(self, images):
        return super().forward(images), images.mean((1, 2, 3))


def test_one_input_and_one_output(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(TwoOutputs().eval(), (torch.randn(2, 3, 32, 16),), str(tmp_path / "net.onnx"), dynamo=False)
    with pytest.raises(BackboneError, match="must have one input and one output, has 1 and 2"):
        opened(tmp_path / "net.onnx")


def test_images_in_another_order_are_refused(tmp_path):
    class Last(Encoder):
        def forward(self, images):
            return super().forward(images.permute(0, 3, 1, 2))

    path = tmp_path / "net.onnx"
    torch.onnx.export(Last().eval(), (torch.randn(2, 32, 16, 3),), str(path), dynamo=False)
    with pytest.raises(BackboneError, match=r"must take images \[N, 3, H, W\], takes \[2, 32, 16, 3\]"):
        opened(path)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "gone", "middle"])
def test_a_damaged_graph_is_one_line(tmp_path, damage):
    path = exported(Encoder(), tmp_path / "net.onnx")
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = whole[:200] + b"\xff" * 40 + whole[240:]
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b"", "middle": middle}[damage])
    with pytest.raises(BackboneError, match=r"net\.onnx") as caught:
        opened(path)
    one_line(caught)


def test_a_trainable_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    import onnx2torch

    convert = onnx2torch.convert

    def wrong(graph):
        module = convert(graph)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        return module

    monkeypatch.setattr(onnx2torch, "convert", wrong)
    with pytest.raises(
        BackboneError, match=r"differs from ONNX Runtime at batch 1: cosine .* at least 0\.9999 is needed"
    ):
        opened(exported(Encoder(), tmp_path / "net.onnx"))


def test_a_graph_that_says_nothing_is_refused(tmp_path):
    net = Encoder()
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    with pytest.raises(BackboneError, match="differs from ONNX Runtime"):
        opened(exported(net, tmp_path / "net.onnx"))


def drawn(path, names=("",) * 7, *, change=None):
    """Write a small encoder whose nodes have these names and whose weights are the same everywhere."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def weight(name, *shape):
        values = (np.arange(np.prod(shape)) % 7 - 3).reshape(shape).astype(np.float32) / 8
        return numpy_helper.from_array(values, name)

    weights = [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 12, 8, 1, 1), weight("w3", 24, 12)]
    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["out"], transB=1),
    ]
    for node, name in zip(nodes, names, strict=True):
        node.name = name
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 32, 16])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 24])
    graph = helper.make_graph(nodes, "g", [images], [out], [*weights, weight("b3", 24)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    if change:
        change(model.graph)
    onnx.save(model, path)
    return path


HOSTILE = [f"""a{sign}, exec("open('mark','w')"), {sign}b""" for sign in "\"\\\n\r\x00\u2028\x1b'"]
NAMES = {
    "as keywords": ["class", "None", "import os", "lambda", "del", "self", "return"],
    "as identifiers of one another": ["\ufb01", "fi", "ª", "a", "\U0001d41a", "é", "e\u0301"],
    "as parts of modules": ["forward", "training", "_modules", "__class__", "_steps", "eval", "initializers"],
    "as numbers": ["n6", "n5", "n4", "n3", "n2", "n1", "n0"],
    "as values": ["images", "v0", "v1", "w1", "out", "input_1", "onnx_initializer_0"],
    "nothing but dots": [".", "..", "/", "//", "./.", " ", ""],
    "all the same": ["n"] * 7,
    "twice, and what makes two of one": ["a", "a", "a_1", "a_1", "", "Relu", "Gemm"],
    "none": [""] * 7,
    "long": [f"{'x' * 5000}{number}" for number in range(7)],
    "code": HOSTILE[:7],
    "other code": HOSTILE[1:],
}


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("opset", [17, 20], ids=["as it is", "lowered"])
def test_whatever_its_nodes_are_called_a_graph_opens_and_no_name_becomes_code(tmp_path, monkeypatch, how, opset):
    """Torch writes modules' names into Python code that it runs, so they are not the file's."""
    import builtins

    written = []
    real = builtins.compile
    monkeypatch.setattr(
        builtins, "compile", lambda source, *rest, **more: written.append(source) or real(source, *rest, **more)
    )
    monkeypatch.chdir(tmp_path)
    path = drawn(tmp_path / "net.onnx", NAMES[how])
    import onnx

    graph = onnx.load(path)
    graph.opset_import[0].version = opset
    onnx.save(graph, path)
    model = opened(path).eval()
    assert model.dim == 24
    pixels = torch.from_numpy(crops(2))
    assert torch.equal(model.embed(pixels), opened(drawn(tmp_path / "nameless.onnx")).eval().embed(pixels))
    assert not (tmp_path / "mark").exists()
    code = [source for source in written if isinstance(source, str) and "def forward" in source]
    assert code
    assert not [source for source in code if "mark" in source or not source.isascii()]
    keys = list(model.state_dict())
    assert len(keys) == len(set(keys)) > 8
    assert all(key.isprintable() and not set(key) & set('"\\') for key in keys)
    again = opened(path)
    again.load_state_dict(model.state_dict())


KEPT = {
    "5899a9da93df32adad93525568b94295062c671e7d5a9bda6465a37a6cc75201": (
        ["/a.b/Conv", "r", "/a.c/Conv", "s", "p", "q", "/head/Gemm"],
        ["net.a/b/Conv.weight", "net.a/b/Conv.bias", "net.a/c/Conv.weight", "head/Gemm.weight", "head/Gemm.bias"],
    ),
    "5821c45dd287618de6d86ac9932d2879d29b6aaa50062a4b4f7e771804137276": (
        [""] * 7,
        ["net.Conv.weight", "net.Conv.bias", "net.Conv_1.weight", "Gemm.weight", "Gemm.bias"],
    ),
    "7570db7e421051323844c67d00fe32d9d5c8aa0913d0c90ad66ad60bd756765d": (
        ["é x'{0}", "", "3", "", "", "", "#%s;"],
        ["net.é x'{0}.weight", "net.é x'{0}.bias", "net.3.weight", "#%s;.weight", "#%s;.bias"],
    ),
}
"""By the feature space that earlier versions gave it: a graph's names, and what they called its weights."""


@pytest.mark.parametrize("space", KEPT)
def test_weights_and_feature_spaces_are_called_as_in_the_runs_of_earlier_versions(tmp_path, space):
    names, wanted = KEPT[space]
    model = opened(drawn(tmp_path / "net.onnx", names))
    own = [key for key in model.state_dict() if key.startswith(("backbone.", "pool."))]
    assert [key.removeprefix("backbone.").removeprefix("pool.") for key in own] == wanted
    assert model.feature_space(SMALL) == space


def whole(graph):
    graph.input[0].type.tensor_type.elem_type = 2
    graph.node[0].input[0] = "real"
    cast = graph.node.add(op_type="Cast", input=["images"], output=["real"])
    cast.attribute.add(name="to", type=2, i=1)
    graph.node.insert(0, cast)
    del graph.node[-1]


def without_numbers(graph):
    from onnx import numpy_helper

    graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, np.float32), "w1"))


def branching(graph):
    from onnx import TensorProto, helper, numpy_helper

    yes = numpy_helper.from_array(np.array(True), "yes")
    branch = [
        helper.make_graph(
            [helper.make_node("Identity", ["d"], [f"from{side}"])],
            side,
            [],
            [helper.make_tensor_value_info(f"from{side}", TensorProto.FLOAT, None)],
        )
        for side in ("then", "else")
    ]
    graph.node[4].input[0] = "chosen"
    mean = helper.make_node("ReduceMean", ["images"], ["level"], keepdims=0)
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    less = helper.make_node("Less", ["zero", "level"], ["positive"])
    chosen = helper.make_node("If", ["positive"], ["chosen"], then_branch=branch[0], else_branch=branch[1])
    graph.initializer.extend([yes, zero])
    later = list(graph.node[4:])
    del graph.node[4:]
    graph.node.extend([mean, less, chosen, *later])


def second_half(graph):
    from onnx import helper

    graph.node.append(helper.make_node("Split", ["whole"], ["one", "out"], axis=1))
    graph.node[6].output[0] = "whole"
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12


TROUBLE = {
    "whole numbers in": (whole, "does not take float32 images"),
    "not a number": (without_numbers, r"not finite numbers for ordinary crops \(.* has values that are not finite\)"),
    "branches": (branching, "its operator If has no trainable form"),
    "the second of two outputs": (second_half, r"net\.onnx"),
}


@pytest.mark.parametrize("how", TROUBLE)
def test_whatever_is_wrong_with_a_graph_is_one_line(tmp_path, how):
    change, said = TROUBLE[how]
    with pytest.raises(BackboneError, match=said) as caught:
        opened(drawn(tmp_path / "net.onnx", change=change))
    one_line(caught)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "where", ["onnxruntime.InferenceSession", "torch.fx.passes.shape_prop.ShapeProp", "onnx2torch.convert"]
)
def test_whatever_the_libraries_raise_is_one_line(tmp_path, monkeypatch, where):
    def fail(*_, **__):
        raise KeyError("two\nlines of \x1b[31m theirs")

    monkeypatch.setattr(where, fail)
    with pytest.raises(BackboneError, match=r"net\.onnx.*two") as caught:
        opened(drawn(tmp_path / "net.onnx"))
    one_line(caught)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("batch", [1, 7])
def test_a_trainable_form_that_fails_for_a_batch_is_one_line(tmp_path, monkeypatch, batch):
    from reid.network import onnx_backbone

    real = onnx_backbone.GraphModule.forward

    def forward(self, images):
        if len(images) == batch:
            raise TypeError("no\nsuch batch")
        return real(self, images)

    monkeypatch.setattr(onnx_backbone.GraphModule, "forward", forward)
    with pytest.raises(
        BackboneError, match=rf"can't train net\.onnx: it can't take a batch of {batch}: TypeError: no"
    ) as caught:
        opened(drawn(tmp_path / "net.onnx"))
    one_line(caught)


@pytest.mark.parametrize("external", [False, True], ids=["one file", "two files"])
def test_what_the_newer_exporter_writes(tmp_path, external, capfd):
    pytest.importorskip("onnxscript")
    import warnings

    class Flat(Encoder):
        def forward(self, images):
            return self.head(nn.functional.adaptive_avg_pool2d(self.last(self.stem(images)).relu(), 1).flatten(1))

    path = tmp_path / "net.onnx"
    batch = ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, example = Flat().eval(), (torch.zeros(2, 3, 32, 16),)
        torch.onnx.export(
            net, example, str(path), dynamo=True, external_data=external, dynamic_shapes=batch, verbose=False
        )
    if not external:
        assert opened(path).dim == 24
        return
    with pytest.raises(BackboneError, match=r"torch\.onnx\.export\(dynamo=True\) .*external_data=False") as caught:
        opened(path)
    one_line(caught)


def test_a_graph_is_copied_and_stored_with_its_parts(tmp_path):
    import copy

    model = opened(drawn(tmp_path / "net.onnx", NAMES["as keywords"])).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.backbone.parameters():
            parameter.zero_()
    assert not twin.backbone(torch.ones(1, 3, 32, 16)).any()
    assert model.backbone(torch.ones(1, 3, 32, 16)).any()


def test_a_runs_graph_is_the_one_it_was_made_with(tmp_path):
    from reid.config import build_config
    from reid.run import Run

    path = exported(Encoder(), tmp_path / "net.onnx")
    settings = {"model": {"backbone": f"onnx:{path}", **DECLARED}, "crop": {"height": 32, "width": 16}}
    run = Run.create(tmp_path / "run", build_config(settings))
    assert Run.open(run.folder).model()[0].dim == 24
    exported(Encoder(width=16), run.folder / "backbone.onnx")
    with pytest.raises(ArtefactError, match="was changed after the run was made"):
        Run.open(run.folder)
    path.unlink()
    (run.folder / "backbone.onnx").unlink()
    with pytest.raises(ArtefactError, match=r"backbone\.onnx") as caught:
        Run.open(run.folder)
    one_line(caught)
