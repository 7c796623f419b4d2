"""The network: shapes, pooling, the name of its feature space, and start weights that fit or are refused."""

import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from domains.crops import CropSpec
from domains.errors import BackboneError, ConfigError
from domains.synthetic import golden_crops
from reid.backbone import Backbone, InputRule
from reid.config import ModelConfig
from reid.model import AveragePool, GeM, ReidModel, build_model

SPEC = CropSpec(64, 32)


def model_of(name="test_resnet", **options):
    return build_model(ModelConfig(backbone=name, weights="none", **({"dim": 24} | options)), SPEC, classes=5).eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "vit_tiny_patch16_224", "mobilenetv2_050"])
def test_output_shapes_and_the_matching_feature(name):
    model = model_of(name)
    crops = torch.from_numpy(golden_crops(3, height=64, width=32))
    with torch.no_grad():
        output = model(crops)
        unit = model.embed(crops)
    assert output.embedding.shape == output.neck.shape == (3, 24)
    assert output.logits.shape == (3, 5)
    assert torch.allclose(unit, torch.nn.functional.normalize(output.embedding, dim=1), atol=1e-6)
    assert torch.allclose(unit.norm(dim=1), torch.ones(3), atol=1e-6)


def test_gem_by_hand():
    features = torch.rand(2, 3, 4, 5)
    wanted = [[(sum(max(v, 1e-6) ** 3 for v in plane.flatten().tolist()) / 20) ** (1 / 3) for plane in image] for image in features]
    assert torch.allclose(GeM()(features), torch.tensor(wanted), atol=1e-5)


def test_average_pool_leaves_prefix_tokens_out():
    tokens = torch.tensor([[[9.0], [1.0], [3.0]]])
    assert AveragePool(1)(tokens).item() == 2.0
    assert AveragePool(-1)(torch.ones(1, 2, 3, 3)).shape == (1, 2)


def test_normalisation_is_the_first_layer_and_knows_the_channel_order():
    net = torch.nn.Identity()
    crops = torch.tensor([[[[10, 20, 30]]]], dtype=torch.uint8)
    for channels, wanted in (("rgb", [9.0, 9.0, 9.0]), ("bgr", [29.0, 9.0, 9.0 - 4.0 / 3])):
        rule = InputRule(channels, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
        model = ReidModel(Backbone(net, width=3, rule=rule), pooling="average", dim=8)
        expected = [(v - m) / s for v, m, s in zip((30, 20, 10) if channels == "bgr" else (10, 20, 30), rule.mean, rule.std, strict=True)]
        assert model.normalise(crops).flatten().tolist() == pytest.approx(expected)
        assert len(wanted) == 3


def test_growing_keeps_old_rows_and_is_seeded():
    one, two = model_of(), model_of()
    before = one.classifier.weight.detach().clone()
    for model in (one, two):
        model.grow(4, seed=7)
    assert one.classes == 9
    assert torch.equal(one.classifier.weight[:5], before)
    assert torch.equal(one.classifier.weight, two.classifier.weight)


def test_the_start_embedding_keeps_neighbourhoods():
    rows = model_of(dim=16).embedding.weight
    assert torch.allclose(rows @ rows.T, torch.eye(16), atol=1e-5)


def test_the_feature_space_is_the_embedding_paths_name():
    model = model_of()
    name = model.feature_space(SPEC)
    assert name == model_of().feature_space(SPEC)
    with torch.no_grad():
        model.classifier.weight += 1
        model.neck.weight += 1
        model.neck.running_mean += 1
    assert model.feature_space(SPEC) == name
    assert model.feature_space(CropSpec(64, 33)) != name
    model.to(memory_format=torch.channels_last)
    assert model.feature_space(SPEC) == name, "a memory layout is no weight"
    with torch.no_grad():
        model.embedding.bias[0] += 1e-6
    assert model.feature_space(SPEC) != name


def test_the_same_seed_builds_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = model_of(), model_of()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


# -- start weights


def weights_of(name="test_resnet"):
    torch.manual_seed(3)
    return {key: value.clone() for key, value in timm.create_model(name, pretrained=False).state_dict().items()}


def loaded(path):
    return build_model(ModelConfig(backbone="test_resnet", weights=str(path), dim=8), SPEC)


@pytest.mark.parametrize("form", ["plain", "half", "module", "no classifier", "pth", "state_dict"])
def test_start_weights_are_loaded_but_for_the_classifier(tmp_path, form):
    given = weights_of()
    file = tmp_path / ("w.pth" if form in ("pth", "state_dict") else "w.safetensors")
    if form == "half":
        save_file({key: value.half() if value.is_floating_point() else value for key, value in given.items()}, file)
    elif form == "module":
        save_file({f"module.model.{key}": value for key, value in given.items()}, file)
    elif form == "no classifier":
        save_file({key: value for key, value in given.items() if not key.startswith("fc.")}, file)
    elif form == "plain":
        save_file(given, file)
    else:
        torch.save(given if form == "pth" else {"state_dict": given, "epoch": 3}, file)
    got = loaded(file).backbone.net.model.state_dict()
    for key, value in got.items():
        if value.is_floating_point():
            assert torch.allclose(value, given[key], atol=2e-3 if form == "half" else 0), key


def test_weights_that_do_not_fit_are_named(tmp_path):
    given = weights_of()
    first = next(iter(given))
    cases = {
        "lacks": {key: value for key, value in given.items() if key != first},
        "has the unknown extra.weight": given | {"extra.weight": torch.ones(1)},
        "has another shape": given | {first: torch.ones(1)},
    }
    for number, (said, tensors) in enumerate(cases.items()):
        file = tmp_path / f"{number}.safetensors"
        save_file(tensors, file)
        with pytest.raises(BackboneError, match=said):
            loaded(file)


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    for name, data in (("evil.pth", pickle.dumps({"x": Evil()})), ("text.safetensors", b"hello"), ("cut.pth", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BackboneError, match="can't read weights"):
            loaded(tmp_path / name)
    with pytest.raises(BackboneError, match="no weights file"):
        loaded(tmp_path / "nothing.pth")


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(BackboneError, match="resnet50"):
        model_of("resnet5O")


def test_timms_weights_without_network_are_one_clear_line(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BackboneError, match=r"no route to host.*set model\.weights=PATH"):
        build_model(ModelConfig(backbone="test_resnet", weights="timm"), SPEC)


def test_pooling_that_does_not_fit_is_refused():
    with pytest.raises(BackboneError, match=r"set model\.pooling to token or average"):
        model_of("test_vit", pooling="gem")
    with pytest.raises(BackboneError, match="no class token"):
        model_of("test_resnet", pooling="token")


# -- an exported encoder made trainable


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU())
        self.head = torch.nn.Linear(8, 6)

    def forward(self, images):
        features = self.body(images)
        return self.head(features.mean((2, 3)))


RAW = {"channels": "rgb", "mean": (0, 0, 0), "std": (255, 255, 255)}


def exported(path, batch=True):
    torch.manual_seed(0)
    net = Encoder().eval()
    axes = {"x": {0: "N"}, "y": {0: "N"}} if batch else None
    torch.onnx.export(net, (torch.zeros(1, 3, 64, 32),), str(path), dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    return net


def test_an_onnx_encoder_keeps_its_embedding_and_can_be_trained(tmp_path):
    net = exported(tmp_path / "e.onnx")
    model = build_model(ModelConfig(backbone=f"onnx:{tmp_path / 'e.onnx'}", **RAW), SPEC, classes=2)
    crops = torch.from_numpy(golden_crops(4, height=64, width=32))
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(net(crops.permute(0, 3, 1, 2) / 255), dim=1)
        assert torch.allclose(model.eval().embed(crops), wanted, atol=1e-5)
    assert model.dim == 6
    model.train()(crops).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert np.isfinite(model.backbone.net(torch.zeros(2, 3, 64, 32)).detach().numpy()).all()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"channels": "auto"}, ConfigError, "model.channels"),
        ({"mean": None}, ConfigError, "model.mean"),
        ({"spec": CropSpec(128, 32)}, ConfigError, "set crop.height=64"),
        ({"batch": False}, BackboneError, "dynamic batch"),
        ({"file": b"garbage"}, BackboneError, "can't open"),
        ({"file": None}, BackboneError, "no ONNX file"),
    ],
)
def test_an_onnx_file_that_does_not_fit_is_one_line(tmp_path, change, error, said):
    path = tmp_path / "e.onnx"
    exported(path, change.get("batch", True))
    if "file" in change:
        path.unlink()
        if change["file"]:
            path.write_bytes(change["file"])
    settings = RAW | {key: value for key, value in change.items() if key in RAW}
    with pytest.raises(error, match=said):
        build_model(ModelConfig(backbone=f"onnx:{path}", **settings), change.get("spec", SPEC))


def test_an_operator_without_a_trainable_form_is_named(tmp_path):
    from onnx import TensorProto, helper, save

    nodes = [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Flatten", ["d"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64, 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), str(tmp_path / "d.onnx"))
    with pytest.raises(BackboneError, match="its operator Det has no trainable form"):
        build_model(ModelConfig(backbone=f"onnx:{tmp_path / 'd.onnx'}", **RAW), CropSpec(64, 64))
