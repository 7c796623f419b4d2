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


@pytest.mark.parametrize("spelling", ['"', "\\", "\n", "\r", "\x00", "\u2028", "\x1b[31m"])
@pytest.mark.parametrize("where", ["first", "last"])
def test_no_name_in_a_graph_becomes_code(tmp_path, monkeypatch, spelling, where):
    """Torch writes modules' names into Python code that it runs; a name may not end the quotes that it stands in."""
    import onnx

    monkeypatch.chdir(tmp_path)
    path = exported(Encoder(), tmp_path / "net.onnx")
    graph = onnx.load(path)
    node = graph.graph.node[0 if where == "first" else -1]
    node.name = f"""a{spelling}, exec("open('mark','w')"), {spelling}b"""
    onnx.save(graph, path)
    with pytest.raises(BackboneError, match="rename its nodes") as caught:
        opened(path)
    one_line(caught)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "mark").exists()


def test_names_with_other_signs_are_kept(tmp_path):
    import onnx

    path = exported(Encoder(), tmp_path / "net.onnx")
    graph = onnx.load(path)
    for number, node in enumerate(graph.graph.node):
        node.name = f"model/layer {number}:0'(ümlaut);x-y{{}}#%s"
    onnx.save(graph, path)
    assert opened(path).dim == 24


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
