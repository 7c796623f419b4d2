"""Backbones: any timm family, and start weights that fit or say why not."""

import os

import pytest
import timm
import torch
from backbones import SPEC, built, one_line
from safetensors.torch import save_file
from torch import nn

from domains.crops import CropSpec
from domains.errors import BackboneError
from reid.config import ModelConfig
from reid.network.build import build_backbone
from reid.network.weights import load_weights_file

# ----------------------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(
    ("name", "shape", "prefix"),
    [
        ("test_resnet", (2, 96, 2, 1), -1),
        ("test_vit", (2, 9, 64), 1),
        ("mobilenetv2_050", (2, 1280, 2, 1), -1),
        ("test_convnext", (2, 64, 2, 1), -1),
        ("swin_tiny_patch4_window7_224", (2, 768, 2, 1), -1),
    ],
)
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


NAMES = [
    ("resnet5", "did you mean 'resnet50'"),
    ("mobilenet_v2_100", "did you mean 'mobilenetv2_100'"),
    ("", "timm has no model ''"),
]


@pytest.mark.parametrize(("name", "said"), NAMES)
def test_an_unknown_name_names_the_nearest(name, said):
    with pytest.raises(BackboneError, match=said) as caught:
        built(name)
    one_line(caught)


@pytest.mark.parametrize(
    "error", [OSError("Network is unreachable\nand more"), RuntimeError("No pretrained weights exist for test_resnet.")]
)
def test_no_network_is_one_line_that_says_what_to_do(monkeypatch, error):
    def create(name, pretrained=False, **rest):
        assert pretrained, "timm's weights were asked for"
        raise error

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        BackboneError, match=r"can't get timm's weights for test_resnet .*model\.weights=none"
    ) as caught:
        built(weights="timm")
    one_line(caught)


def test_weights_are_not_fetched_unless_asked(monkeypatch):
    asked, create = [], timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **rest: asked.append(pretrained) or create(name, **rest)
    )
    build_backbone(ModelConfig(backbone="test_resnet", weights="timm"), SPEC, load_weights=False)
    built(weights="none")
    assert not any(asked)


# --------------------------------------------------------------------------------------------------------- weight files


@pytest.fixture
def source():
    torch.manual_seed(3)
    return timm.create_model("test_resnet")


def same(backbone, state):
    own = {key.removeprefix("net.model."): value for key, value in backbone.state_dict().items()}
    return own and all(
        torch.equal(value, state[key].float() if value.is_floating_point() else state[key])
        for key, value in own.items()
    )


def written(state, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "module.model.", "backbone.", "state_dict.module.", "module.base."]
)
def test_wrappers_prefixes_are_stripped(source, tmp_path, suffix, prefix):
    file = written({prefix + key: value for key, value in source.state_dict().items()}, tmp_path / f"w{suffix}")
    assert same(built(weights=file), source.state_dict())


@pytest.mark.parametrize("prefix", ["model.", "base.", "backbone.", "module.backbone."])
def test_the_neck_and_classifier_of_a_re_id_checkpoint_are_left_out(source, tmp_path, prefix):
    state = {prefix + key: value for key, value in source.state_dict().items()}
    head = {
        "bottleneck.weight": torch.ones(8),
        "heads.bnneck.weight": torch.ones(8),
        "classifier.weight": torch.ones(5, 8),
    }
    for more in (
        head,
        {f"module.{key}": value for key, value in head.items()} if prefix.startswith("module.") else head,
    ):
        assert same(built(weights=written(state | more, tmp_path / "w.pth")), source.state_dict())
    with pytest.raises(BackboneError, match="has the unexpected neckline"):
        built(weights=written(state | {prefix + "neckline.weight": torch.ones(8)}, tmp_path / "w.pth"))


def test_position_embeddings_without_a_class_token_are_resampled(tmp_path):
    source = timm.create_model("deit3_small_patch16_224")
    torch.nn.init.normal_(source.pos_embed)
    backbone = built(
        "deit3_small_patch16_224", written(source.state_dict(), tmp_path / "w.safetensors"), spec=CropSpec(256, 128)
    )
    wanted = timm.layers.resample_abs_pos_embed(source.pos_embed, [16, 8], num_prefix_tokens=0)
    assert torch.equal(backbone.net.model.pos_embed, wanted)


@pytest.mark.parametrize(
    "wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}, lambda s: {"state_dict": {"model": s}}]
)
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


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", r"lacks layer1\.0\.conv1\.weight;"),
        ("extra", r"unexpected layer9\.weight;"),
        ("shape", r"another shape for layer1\.0\.conv1\.weight;"),
        ("other", r"lacks bn1\.bias, .* and \d+ more"),
    ],
)
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
    with pytest.raises(
        BackboneError, match=r"w\.pth: position embeddings \(1, 129, 64\) are not those of a square grid"
    ) as caught:
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
