"""Families of timm: the last stride of ResNets of every build, and the pooling that a family's features ask for."""

import subprocess
import sys

import pytest
import timm
import torch
from backbones import one_line
from torch import nn

from domains.crops import CropSpec
from domains.errors import BackboneError
from reid.config import ModelConfig
from reid.network.build import build_backbone, build_model
from reid.network.model import AveragePool, GeM, TokenPool

SPEC = CropSpec(128, 64)


def settings(name, **rest):
    return ModelConfig(backbone=name, weights="none", **rest)


def features_of(name, **rest):
    backbone = build_backbone(settings(name, **rest), SPEC, load_weights=True).eval()
    with torch.no_grad():
        return backbone(torch.randn(1, 3, SPEC.height, SPEC.width))


# ---------------------------------------------------------------------------------------------------------- last stride


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet18d",
        "resnet10t",
        "ecaresnet50d",
        "resnetrs50",
        "resnetblur50",
        "resnetaa50",
        "resnest14d",
        "res2net50_26w_4s",
        "skresnet18",
        "legacy_seresnet18",
    ],
)
def test_without_its_last_stride_a_resnets_map_is_twice_as_high_and_wide(name):
    (_, channels, height, width), found = features_of(name).shape, features_of(name, last_stride=1).shape
    assert found == (1, channels, 2 * height, 2 * width)


def test_a_shortcut_that_no_longer_averages_has_no_pooling_left():
    block = build_backbone(settings("resnet18d", last_stride=1), SPEC, load_weights=True).net.model.layer4[0]
    native = timm.create_model("resnet18d", output_stride=32).layer1[0]
    assert native.downsample is None
    assert [type(part) for part in block.downsample] == [nn.Identity, nn.Conv2d, nn.BatchNorm2d]


def test_a_last_stride_that_cannot_be_taken_out_is_one_line(monkeypatch):
    create = timm.create_model

    def odd(*args, **rest):
        model = create(*args, **rest)
        model.layer4[0].conv1 = nn.Sequential(nn.MaxPool2d(2, 2), nn.Conv2d(256, 512, 3, padding=1, bias=False))
        return model

    monkeypatch.setattr(timm, "create_model", odd)
    with pytest.raises(
        BackboneError, match=r"model\.last_stride can't remove the stride of resnet18's last stage.*leave it unset"
    ) as caught:
        features_of("resnet18", last_stride=1)
    one_line(caught)


# -------------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(
    "name", ["test_vit2", "eva02_tiny_patch14_224", "vit_relpos_small_patch16_224", "vitamin_small_224"]
)
def test_a_family_that_pools_the_grid_and_then_normalises_is_pooled_as_its_authors_do(name):
    model = build_model(settings(name, embedding="none"), SPEC).eval()
    assert isinstance(model.pool, AveragePool)
    nn.init.normal_(model.pool.norm.weight)
    nn.init.normal_(model.pool.norm.bias)
    own = model.backbone.net.model
    with torch.no_grad():
        features = model.backbone(torch.randn(2, 3, SPEC.height, SPEC.width))
        own.fc_norm = model.pool.norm
        wanted = own.forward_head(features, pre_logits=True)
        assert torch.allclose(model.pool(features), wanted, atol=1e-5)


@pytest.mark.parametrize("pooling", ["auto", "average", "token"])
def test_the_norm_behind_the_pooling_is_there_once_is_learned_and_names_the_feature_space(pooling):
    model = build_model(settings("test_vit2", pooling=pooling), SPEC, classes=3)
    norms = [name for name, _ in model.named_parameters() if "fc_norm" in name or "pool.norm" in name]
    assert norms == ["pool.norm.weight", "pool.norm.bias"]
    model(torch.randint(0, 256, (4, 128, 64, 3))).embedding.square().sum().backward()
    assert model.pool.norm.weight.grad.any()
    before = model.feature_space(SPEC)
    nn.init.normal_(model.pool.norm.weight)
    assert model.feature_space(SPEC) != before


def test_the_norm_behind_the_pooling_starts_from_the_weights(tmp_path):
    source = timm.create_model("test_vit2", img_size=(128, 64))
    nn.init.normal_(source.fc_norm.weight)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = build_model(ModelConfig(backbone="test_vit2", weights=str(tmp_path / "w.pth")), SPEC)
    assert torch.equal(model.pool.norm.weight, source.fc_norm.weight)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("test_resnet", GeM),
        ("resnet18d", GeM),
        ("mobilenetv2_050", GeM),
        ("resnetv2_50", GeM),
        ("densenet121", GeM),
        ("regnety_002", GeM),
        ("repvgg_a0", GeM),
        ("swin_tiny_patch4_window7_224", AveragePool),
        ("test_convnext", AveragePool),
        ("convnext_atto", AveragePool),
        ("test_efficientnet", AveragePool),
        ("efficientnet_b0", AveragePool),
        ("mobilenetv3_small_100", AveragePool),
        ("poolformer_s12", AveragePool),
        ("convmixer_768_32", AveragePool),
        ("visformer_tiny", AveragePool),
        ("test_vit", TokenPool),
        ("deit_tiny_patch16_224", TokenPool),
        ("vit_small_patch14_reg4_dinov2", TokenPool),
        ("volo_d1_224", TokenPool),
        ("mixer_s16_224", AveragePool),
        ("twins_svt_small", AveragePool),
    ],
)
def test_gem_is_for_maps_that_are_never_negative(name, kind):
    assert type(build_model(settings(name), SPEC).pool) is kind


def test_gem_is_given_to_whoever_asks_for_it():
    assert isinstance(build_model(settings("test_convnext", pooling="gem"), SPEC).pool, GeM)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_the_choice_of_pooling_depends_on_no_weights_and_no_seed_and_draws_nothing(name, tmp_path):
    source = timm.create_model(name)
    for parameter in source.parameters():
        nn.init.zeros_(parameter)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    kinds = set()
    for weights, seed in (("none", 0), ("none", 7), (str(tmp_path / "w.pth"), 0)):
        kinds.add(type(build_model(ModelConfig(backbone=name, weights=weights), SPEC, seed=seed).pool))
    assert len(kinds) == 1
    torch.manual_seed(5)
    timm.create_model(name, num_classes=1000)
    wanted = torch.get_rng_state()
    torch.manual_seed(5)
    build_backbone(settings(name), SPEC, load_weights=True)
    assert torch.equal(torch.get_rng_state(), wanted)


def test_a_class_token_that_a_family_does_not_announce_is_counted():
    backbone = build_backbone(settings("volo_d1_224"), SPEC, load_weights=True)
    assert backbone.prefix_tokens == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pit_ti_224", r"pit_ti_224 outputs 1 tokens"),
        ("coat_tiny", "coat_tiny"),
        ("mvitv2_tiny", "mvitv2_tiny"),
        ("nest_tiny", "nest_tiny.*square"),
    ],
)
def test_a_family_that_cannot_be_pooled_is_one_line(name, said):
    with pytest.raises(BackboneError, match=said) as caught:
        build_backbone(settings(name), SPEC, load_weights=True)
    one_line(caught)


# --------------------------------------------------------------------------------------------------------- memory order

TRAINS = """
import sys, torch, timm
from pathlib import Path
import domains
from reid.config import build_config
from reid.run import Run
torch.set_num_threads(1)
train = {"iterations": 6, "identities": 4, "instances": 2}
sets = {"model": {"backbone": sys.argv[1], "weights": "none"}, "crop": {"height": 128, "width": 64}, "train": train}
run = Run.create(Path(sys.argv[3]), build_config(sets))
run.learn(domains.open(sys.argv[2]), method="fine_tune")
"""


@pytest.mark.parametrize(
    ("name", "planar"),
    [
        ("repvgg_a0", True),
        ("fastvit_t8", True),
        ("mobileone_s0", True),
        ("resnet18", False),
        ("mobilenetv2_100", False),
    ],
)
def test_strided_pointwise_convolutions_of_few_channels_keep_to_planar_order(name, planar):
    assert build_backbone(settings(name), SPEC, load_weights=True).planar is planar


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastvit_t8", "repvgg_a0"])
def test_training_leaves_the_heap_as_it_was(name, tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, name, str(site.root), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
