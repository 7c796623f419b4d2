"""Backbones: start weights that fit or say why not, and ONNX encoders made trainable again."""

import os

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from domains.crops import CropSpec
from domains.errors import BackboneError, ConfigError
from reid.backbone import build_backbone, load_weights_file
from reid.config import ModelConfig
from reid.model import build_model

SPEC = CropSpec(64, 32)


def built(name="test_resnet", weights="none", spec=SPEC, **settings):
    return build_backbone(ModelConfig(backbone=name, weights=str(weights), **settings), spec, load_weights=True)


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# ---------------------------------------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(("name", "shape", "prefix"), [
    ("test_resnet", (2, 96, 2, 1), -1), ("test_vit", (2, 9, 64), 1), ("mobilenetv2_050", (2, 1280, 2, 1), -1), ("test_convnext", (2, 64, 2, 1), -1),
    ("swin_tiny_patch4_window7_224", (2, 768, 2, 1), -1),
])  # fmt: skip
def test_any_family_gives_a_map_or_tokens(name, shape, prefix):
    backbone = built(name).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, 64, 32))
    assert features.shape == shape
    assert backbone.prefix_tokens == prefix
    assert backbone.has_tokens == (len(shape) == 3)
    assert backbone.width == (shape[2] if backbone.has_tokens else shape[1])
    assert isinstance(backbone.net.model.get_classifier(), nn.Identity), "no classifier of timm's is kept"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("size", [(48, 16), (96, 64)])
def test_any_input_size(name, size):
    spec = CropSpec(*size)
    assert built(name, spec=spec)(torch.zeros(2, 3, *size)).isfinite().all()


def test_the_input_rule_is_timms_unless_declared():
    rule = built().rule
    cfg = timm.create_model("test_resnet").pretrained_cfg
    assert rule.channels == "rgb"
    assert rule.mean == pytest.approx([255 * value for value in cfg["mean"]])
    assert rule.std == pytest.approx([255 * value for value in cfg["std"]])
    declared = built(channels="bgr", mean=(1, 2, 3), std=(4, 5, 6)).rule
    assert (declared.channels, declared.mean, declared.std) == ("bgr", (1, 2, 3), (4, 5, 6))


NAMES = [("resnet5", "did you mean 'resnet50'"), ("mobilenet_v2_100", "did you mean 'mobilenetv2_100'"), ("", "timm has no model ''")]


@pytest.mark.parametrize(("name", "said"), NAMES)
def test_an_unknown_name_names_the_nearest(name, said):
    with pytest.raises(BackboneError, match=said) as caught:
        built(name)
    one_line(caught)


@pytest.mark.parametrize("error", [OSError("Network is unreachable\nand more"), RuntimeError("No pretrained weights exist for test_resnet.")])
def test_no_network_is_one_line_that_says_what_to_do(monkeypatch, error):
    def create(name, pretrained=False, **rest):
        assert pretrained, "timm's weights were asked for"
        raise error

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(BackboneError, match=r"can't get timm's weights for test_resnet .*model\.weights=none") as caught:
        built(weights="timm")
    one_line(caught)


def test_weights_are_not_fetched_unless_asked(monkeypatch):
    asked, create = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **rest: asked.append(pretrained) or create(name, **rest))
    build_backbone(ModelConfig(backbone="test_resnet", weights="timm"), SPEC, load_weights=False)
    built(weights="none")
    assert not any(asked)


# -------------------------------------------------------------------------------------------------------------------------- weight files


@pytest.fixture
def source():
    torch.manual_seed(3)
    return timm.create_model("test_resnet")


def same(backbone, state):
    own = {key.removeprefix("net.model."): value for key, value in backbone.state_dict().items()}
    return own and all(torch.equal(value, state[key].float() if value.is_floating_point() else state[key]) for key, value in own.items())


def written(state, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "backbone.", "state_dict.module.", "module.base."])
def test_wrappers_prefixes_are_stripped(source, tmp_path, suffix, prefix):
    file = written({prefix + key: value for key, value in source.state_dict().items()}, tmp_path / f"w{suffix}")
    assert same(built(weights=file), source.state_dict())


@pytest.mark.parametrize("prefix", ["model.", "base.", "backbone.", "module.backbone."])
def test_the_neck_and_classifier_of_a_re_id_checkpoint_are_left_out(source, tmp_path, prefix):
    state = {prefix + key: value for key, value in source.state_dict().items()}
    head = {"bottleneck.weight": torch.ones(8), "heads.bnneck.weight": torch.ones(8), "classifier.weight": torch.ones(5, 8)}
    for more in (head, {f"module.{key}": value for key, value in head.items()} if prefix.startswith("module.") else head):
        assert same(built(weights=written(state | more, tmp_path / "w.pth")), source.state_dict())
    with pytest.raises(BackboneError, match="has the unknown neckline"):
        built(weights=written(state | {prefix + "neckline.weight": torch.ones(8)}, tmp_path / "w.pth"))


def test_position_embeddings_without_a_class_token_are_resampled(tmp_path):
    source = timm.create_model("deit3_small_patch16_224")
    torch.nn.init.normal_(source.pos_embed)
    backbone = built("deit3_small_patch16_224", written(source.state_dict(), tmp_path / "w.safetensors"), spec=CropSpec(256, 128))
    wanted = timm.layers.resample_abs_pos_embed(source.pos_embed, [16, 8], num_prefix_tokens=0)
    assert torch.equal(backbone.net.model.pos_embed, wanted)


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}, lambda s: {"state_dict": {"model": s}}])
def test_checkpoints_are_unwrapped(source, tmp_path, wrap):
    assert same(built(weights=written(wrap(dict(source.state_dict())), tmp_path / "w.pth")), source.state_dict())


def test_half_precision_files_load_as_float32(source, tmp_path):
    state = {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()}
    backbone = built(weights=written(state, tmp_path / "w.safetensors"))
    assert same(backbone, state)
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize("classes", [None, 3, 751])
def test_the_classifier_is_ignored_whatever_its_size(tmp_path, classes):
    source = timm.create_model("test_resnet", num_classes=classes or 10)
    state = {key: value for key, value in source.state_dict().items() if classes or not key.startswith("fc.")}
    assert same(built(weights=written(state, tmp_path / "w.pth")), source.state_dict())


def test_batch_counters_may_be_missing(source, tmp_path):
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert built(weights=written(state, tmp_path / "w.pth"))


def test_weights_of_a_network_are_really_used(source, tmp_path):
    images = torch.randn(2, 3, 64, 32)
    backbone = built(weights=written(source.state_dict(), tmp_path / "w.safetensors")).eval()
    with torch.no_grad():
        assert torch.equal(backbone(images), source.eval().forward_features(images))
        assert not torch.equal(built().eval()(images), backbone(images))


def change(state, how):
    state, key = dict(state), "layer1.0.conv1.weight"
    if how == "missing":
        del state[key]
    elif how == "extra":
        state["layer9.weight"] = torch.ones(2)
    elif how == "shape":
        state[key] = state[key][:-1]
    else:
        state = {name: torch.ones(1) for name in "abcdef"}
    return state


@pytest.mark.parametrize(("how", "said"), [
    ("missing", r"lacks layer1\.0\.conv1\.weight;"), ("extra", r"unknown layer9\.weight;"), ("shape", r"another shape for layer1\.0\.conv1\.weight;"),
    ("other", r"lacks bn1\.bias, .* and \d+ more"),
])  # fmt: skip
def test_weights_that_do_not_fit_name_the_key(source, tmp_path, how, said):
    file = written(change(source.state_dict(), how), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=rf"w\.pth does not fit ResNet: it (has the |has )?{said}") as caught:
        built(weights=file)
    one_line(caught)


class Malice:
    """What a pickle can do when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"state_dict": Malice(tmp_path / "harm")}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"can't read weights .*w\.pth") as caught:
        built(weights=tmp_path / "w.pth")
    one_line(caught)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", ["gone", "folder", "text", "empty", "cut", "list", "numbers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_holds_no_weights_is_one_line(source, tmp_path, kind, suffix):
    file = tmp_path / f"w{suffix}"
    if kind == "folder":
        file.mkdir()
    elif kind == "cut":
        written(source.state_dict(), file)
        file.write_bytes(file.read_bytes()[:-1000])
    elif kind in ("list", "numbers"):
        torch.save([1, 2] if kind == "list" else {"epoch": 1}, file)
    elif kind != "gone":
        file.write_bytes({"text": b"hello, world", "empty": b""}[kind])
    with pytest.raises(BackboneError, match=rf"w\{suffix}") as caught:
        built(weights=file)
    one_line(caught)


@pytest.mark.parametrize("size", [(48, 32), (160, 160)])
def test_position_embeddings_are_resampled(tmp_path, size):
    source = timm.create_model("test_vit")
    torch.nn.init.normal_(source.pos_embed)
    file = written(source.state_dict(), tmp_path / "v.safetensors")
    backbone = built("test_vit", file, spec=CropSpec(*size))
    wanted = timm.layers.resample_abs_pos_embed(source.pos_embed, [size[0] // 16, size[1] // 16], num_prefix_tokens=1)
    assert torch.equal(backbone.net.model.pos_embed, wanted)
    assert torch.equal(backbone.net.model.pos_embed[:, 0], source.pos_embed[:, 0]), "the class token's place is kept"


def test_position_embeddings_of_no_square_grid_are_one_line(tmp_path):
    source = timm.create_model("test_vit", img_size=(256, 128))
    with pytest.raises(BackboneError, match=r"w\.pth: position embeddings \(1, 129, 64\) are of no square grid") as caught:
        built("test_vit", written(source.state_dict(), tmp_path / "w.pth"), spec=CropSpec(384, 128))
    one_line(caught)


def test_a_tag_that_timm_does_not_know_is_one_line():
    with pytest.raises(BackboneError, match="Invalid pretrained tag"):
        built("test_resnet.no_such_tag")


def test_the_file_is_checked_against_the_model_given(source, tmp_path):
    model = timm.create_model("test_resnet", num_classes=7)
    head = model.fc.weight.clone()
    load_weights_file(model, written(source.state_dict(), tmp_path / "w.pth"), classifier=("fc", "other"))
    assert torch.equal(model.fc.weight, head)
    with pytest.raises(BackboneError, match=r"another shape for fc\.bias, fc\.weight"):
        load_weights_file(model, tmp_path / "w.pth", classifier=None)


# ---------------------------------------------------------------------------------------------------------------------------------- ONNX

SMALL = CropSpec(32, 16)
DECLARED = {"channels": "bgr", "mean": (100.0, 110.0, 120.0), "std": (50.0, 60.0, 70.0)}


class Encoder(nn.Module):
    """A small image encoder with a branch, as one would deploy it."""

    def __init__(self, width=24):
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU6())
        self.last = nn.Conv2d(8, 12, 3, 2, 1)
        self.head = nn.Linear(12, width)

    def forward(self, images):
        stem = self.stem(images)
        features = self.last(stem + self.branch(stem)).relu()
        return features if self.head is None else self.head(features.mean((2, 3)))


def exported(net, path, *, batch="N", opset=17, size=(SMALL.height, SMALL.width)):
    import warnings

    axes = {"images": {0: "N"}, "out": {0: "N"}} if batch == "N" else None
    example = torch.randn(2 if batch == "N" else batch, 3, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (example,), str(path), input_names=["images"], output_names=["out"], dynamic_axes=axes, opset_version=opset, dynamo=False
        )
    return path


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
    wanted = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]
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
    assert not [name for name, value in model.named_parameters() if value.requires_grad and (value.grad is None or not value.grad.any())]
    optimiser.step()
    assert not [name for name, value in model.named_parameters() if value.requires_grad and torch.equal(value, before[name])]
    shapes = sorted(tuple(value.shape) for name, value in before.items() if not name.startswith(("neck", "classifier")))
    assert (24, 12) in shapes, "the graph's own head is among them"
    assert shapes.count((8, 3, 3, 3)) == 1, "and nothing is there twice"


def test_another_width_puts_an_embedding_behind_the_graph(tmp_path):
    model = opened(exported(Encoder(), tmp_path / "net.onnx"), dim=16).eval()
    assert model.embed(torch.from_numpy(crops(2))).shape == (2, 16)


def test_a_graph_that_ends_in_its_map_is_pooled(tmp_path):
    net = Encoder()
    net.head = None
    model = opened(exported(net, tmp_path / "net.onnx")).eval()
    assert model.backbone.width == 12
    assert model.embed(torch.from_numpy(crops(2))).shape == (2, 512)


def test_dynamic_sizes_are_taken_as_they_come(tmp_path):
    net = Encoder()
    path = tmp_path / "net.onnx"
    torch.onnx.export(net.eval(), (torch.randn(2, 3, 32, 16),), str(path), input_names=["images"], output_names=["out"], dynamo=False,
                      dynamic_axes={"images": {0: "N", 2: "H", 3: "W"}, "out": {0: "N"}})  # fmt: skip
    assert opened(path, CropSpec(48, 24)).embed(torch.from_numpy(crops(2, CropSpec(48, 24)))).shape == (2, 24)


@pytest.mark.parametrize("missing", ["channels", "mean", "std"])
def test_the_input_must_be_declared(tmp_path, missing):
    path = exported(Encoder(), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"model\.channels .*model\.mean and model\.std"):
        opened(path, **{missing: "auto" if missing == "channels" else None})


@pytest.mark.parametrize(("size", "said"), [((64, 16), "takes crops of 32×16: set crop.height=32"), ((32, 32), "set crop.width=16")])
def test_another_crop_size_says_what_to_set(tmp_path, size, said):
    path = exported(Encoder(), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=said):
        opened(path, CropSpec(*size))


def test_a_fixed_batch_says_how_to_export(tmp_path):
    path = exported(Encoder(), tmp_path / "net.onnx", batch=1)
    with pytest.raises(BackboneError, match=r"net\.onnx takes batches of 1 only; export it with a dynamic batch") as caught:
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
    with pytest.raises(BackboneError, match=r"can't train net\.onnx: it takes no batch of 2") as caught:
        opened(path)
    one_line(caught)
    assert capfd.readouterr().err == ""


class Sampled(Encoder):
    def forward(self, images):
        return super().forward(nn.functional.grid_sample(images, images.permute(0, 2, 3, 1)[..., :2], align_corners=False))


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
    with pytest.raises(BackboneError, match=r"differs from ONNX Runtime at batch 1: cosine .* at least 0\.9999 is needed"):
        opened(exported(Encoder(), tmp_path / "net.onnx"))


def test_a_graph_that_says_nothing_is_refused(tmp_path):
    net = Encoder()
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    with pytest.raises(BackboneError, match="differs from ONNX Runtime"):
        opened(exported(net, tmp_path / "net.onnx"))
