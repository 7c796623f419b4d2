"""The network: shapes, pooling, the embedding before the neck, and the name of its feature space."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from domains.crops import CropSpec
from domains.errors import BackboneError
from reid.config import ModelConfig
from reid.network.backbone import Backbone, InputRule
from reid.network.build import build_model
from reid.network.model import AveragePool, GeM, Normalise, ReidModel, TokenPool

SPEC = CropSpec(64, 32)
RULE = InputRule("rgb", (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))
BACKBONES = {"mobilenetv2_050": (1280, (2, 1)), "vit_tiny_patch16_224": (192, 9)}


def crops(batch=4, spec=SPEC, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)
    )


def tiny(*, channels="rgb", pooling="auto", dim=16, classes=0, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    return ReidModel(
        Backbone(net, width=8, rule=InputRule(channels, RULE.mean, RULE.std)), pooling=pooling, dim=dim, classes=classes
    )


@pytest.fixture(scope="module", params=BACKBONES)
def model(request):
    return build_model(ModelConfig(backbone=request.param, weights="none", dim=48), SPEC, classes=5, seed=1)


def test_shapes_are_the_same_for_a_cnn_and_a_vit(model):
    name = "vit_tiny_patch16_224" if model.backbone.has_tokens else "mobilenetv2_050"
    width, grid = BACKBONES[name]
    assert model.backbone.width == width
    model.eval()
    with torch.no_grad():
        out = model(crops())
    assert out.features.shape == ((4, grid, width) if model.backbone.has_tokens else (4, width, *grid))
    assert out.embedding.shape == out.neck.shape == (4, 48)
    assert out.logits.shape == (4, 5)
    assert {value.dtype for value in out[1:]} == {torch.float32}
    assert isinstance(model.pool, TokenPool if model.backbone.has_tokens else GeM)


def test_what_is_matched_is_the_embedding_before_the_neck_at_unit_length(model):
    model.eval()
    with torch.no_grad():
        out, unit = model(crops()), model.embed(crops())
    assert torch.allclose(unit.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.allclose(unit, out.embedding / out.embedding.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(
        out.neck,
        (out.embedding - model.neck.running_mean) / (model.neck.running_var + model.neck.eps).sqrt(),
        atol=1e-5,
    )
    assert torch.allclose(out.logits, out.neck @ model.classifier.weight.T, atol=1e-6)


def test_crops_of_a_batch_do_not_touch_each_other_in_eval(model):
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model.embed(crops())[1:2], model.embed(crops()[1:2]), atol=1e-5)


def test_half_precision_embeds_nearly_the_same_and_in_float32(model):
    model.eval()
    with torch.no_grad():
        wanted = model(crops()).embedding
        with torch.autocast("cpu", torch.bfloat16):
            found = model(crops())
    assert {value.dtype for value in found[1:]} == {torch.float32}
    assert torch.cosine_similarity(found.embedding, wanted).min() > 0.99


def test_every_parameter_learns_but_the_necks_shift(model):
    model.train()
    out = model(crops(6, seed=3))
    (out.logits.square().sum() + out.embedding.square().sum()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert "neck.bias" in without
    assert not [name for name in without - {"neck.bias"} if not name.startswith("backbone.net.model.fc_norm")]
    assert not any(model.neck.bias)
    model.zero_grad()


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    config = ModelConfig(backbone="test_resnet", weights="none", dim=24)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, again, other = (build_model(config, SPEC, classes=3, seed=seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
    assert not torch.equal(one["backbone.net.model.conv1.0.weight"], other["backbone.net.model.conv1.0.weight"])


def test_the_width_is_512_unless_asked():
    assert tiny(dim=None).dim == 512
    assert tiny(dim=24).embed(crops()).shape == (4, 24)


@pytest.mark.parametrize("dim", [8, 4, 20])
def test_the_embedding_starts_orthogonal(dim):
    weight = tiny(dim=dim).embedding.weight
    small = min(weight.shape)
    product = weight @ weight.T if weight.shape[0] == small else weight.T @ weight
    assert torch.allclose(product, torch.eye(small), atol=1e-5)
    assert not tiny(dim=dim).embedding.bias.any()


# ---------------------------------------------------------------------------------------------------------- first layer


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_normalisation_by_hand(channels):
    images = crops(2, CropSpec(3, 2))
    found = Normalise(InputRule(channels, RULE.mean, RULE.std))(images)
    assert found.shape == (2, 3, 3, 2)
    for batch, row, column in np.ndindex(2, 3, 2):
        pixel = images[batch, row, column].tolist()
        pixel = pixel[::-1] if channels == "bgr" else pixel
        for channel in range(3):
            wanted = (pixel[channel] - RULE.mean[channel]) / RULE.std[channel]
            assert found[batch, channel, row, column].item() == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(Normalise(RULE)(images), Normalise(RULE)(images.float()))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_bgr_models_see_the_same_person_through_flipped_channels():
    rgb, bgr = tiny(channels="rgb").eval(), tiny(channels="bgr").eval()
    assert torch.equal(rgb.embed(crops()), bgr.embed(crops().flip(-1)))
    assert not torch.allclose(rgb.embed(crops()), bgr.embed(crops()))


# -------------------------------------------------------------------------------------------------------------- pooling


def test_gem_by_hand():
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4, 2)))
    found = GeM()(features)
    for batch, channel in np.ndindex(2, 3):
        values = [max(value, 1e-6) ** 3 for value in features[batch, channel].flatten().tolist()]
        assert found[batch, channel].item() == pytest.approx((sum(values) / 8) ** (1 / 3), rel=1e-5)
    assert GeM()(features.bfloat16()).dtype == torch.float32


def test_gem_of_nothing_has_a_finite_gradient():
    features = torch.zeros(1, 2, 3, 3, requires_grad=True)
    GeM()(features).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_means_and_tokens():
    tokens, grid = torch.randn(2, 7, 5), torch.randn(2, 5, 3, 4)
    assert torch.equal(TokenPool()(tokens), tokens[:, 0])
    assert torch.allclose(AveragePool(2)(tokens), torch.stack([tokens[:, at] for at in range(2, 7)]).mean(0), atol=1e-6)
    assert torch.allclose(AveragePool(0)(tokens), tokens.sum(1) / 7, atol=1e-6)
    assert torch.allclose(AveragePool(-1)(grid), grid.sum((2, 3)) / 12, atol=1e-6)


@pytest.mark.parametrize(
    ("prefix", "pooling", "kind"),
    [
        (-1, "auto", GeM),
        (-1, "gem", GeM),
        (-1, "average", AveragePool),
        (0, "auto", AveragePool),
        (1, "auto", TokenPool),
        (1, "average", AveragePool),
        (5, "token", TokenPool),
    ],
)
def test_the_pooling_that_fits(prefix, pooling, kind):
    model = ReidModel(Backbone(nn.Identity(), width=8, rule=RULE, prefix_tokens=prefix), pooling=pooling, dim=8)
    assert isinstance(model.pool, kind)


@pytest.mark.parametrize(
    ("prefix", "pooling", "said"),
    [(0, "gem", "set model.pooling to"), (0, "token", "no class token"), (-1, "token", "or gem")],
)
def test_a_pooling_that_does_not_fit_says_what_to_set(prefix, pooling, said):
    with pytest.raises(BackboneError, match=said):
        ReidModel(Backbone(nn.Identity(), width=8, rule=RULE, prefix_tokens=prefix), pooling=pooling, dim=8)


# -------------------------------------------------------------------------------------------------------- feature space


def test_the_feature_space_is_the_embedding_path_and_the_crop_rule():
    model = tiny(classes=4)
    name = model.feature_space(SPEC)
    assert len(name) == 64
    assert tiny(classes=4).feature_space(SPEC) == name, "the same weights, the same name"
    assert copy.deepcopy(model).to(memory_format=torch.channels_last).feature_space(SPEC) == name
    for changed in (CropSpec(64, 31), CropSpec(65, 32), CropSpec(64, 32, "linear")):
        assert model.feature_space(changed) != name
    assert tiny(classes=4, channels="bgr").feature_space(SPEC) != name
    assert tiny(classes=4, pooling="average").feature_space(SPEC) != name


def test_which_weights_name_the_feature_space():
    model = tiny(classes=4)
    name = model.feature_space(SPEC)
    for key, value in model.state_dict().items():
        kept = value.clone()
        with torch.no_grad():
            value.add_(1)
        inside = not key.startswith(("neck.", "classifier.")) and not key.endswith("num_batches_tracked")
        assert (model.feature_space(SPEC) != name) == inside, key
        with torch.no_grad():
            value.copy_(kept)
    model.grow(3)
    assert model.feature_space(SPEC) == name


# -------------------------------------------------------------------------------------------------------------- growing


def test_growing_keeps_old_rows_and_draws_new_ones_from_the_seed():
    model, again, other = (tiny(classes=3) for _ in range(3))
    old = model.classifier.weight.detach().clone()
    model.grow(2, seed=5)
    torch.manual_seed(99)
    again.grow(2, seed=5)
    other.grow(2, seed=6)
    assert model.classes == 5
    assert torch.equal(model.classifier.weight[:3], old)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight[3:], other.classifier.weight[3:])
    assert 0 < model.classifier.weight[3:].abs().max() < 0.01
    assert model.classifier.weight.requires_grad
    assert model.classifier.bias is None


def test_a_model_without_classes_can_grow_and_embed():
    model = tiny().eval()
    assert model(crops()).logits.shape == (4, 0)
    model.grow(2)
    model.grow(3, seed=1)
    assert model(crops()).logits.shape == (4, 5)
