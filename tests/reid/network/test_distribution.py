"""A crop as a Gaussian: the draws, the head beside the embedding and the mixture against loops and Monte Carlo."""

import math

import numpy as np
import pytest
import timm
import torch

from reid.network.distribution import FLOOR, DistributionHead, affinity, draw, sample, unit

KINDS = ("pooled", "convolution")


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def head(kind="pooled", channels=6, dim=10, **options):
    torch.manual_seed(3)
    return DistributionHead(channels, dim, kind, **options)


def linear(layer, row):
    weight, bias = layer.weight.detach().double().tolist(), layer.bias.detach().double().tolist()
    return [sum(w * x for w, x in zip(weights, row, strict=True)) + b for weights, b in zip(weight, bias, strict=True)]


def deviations(projected):
    length = math.sqrt(sum(value**2 for value in projected)) + 1e-4
    return [max(value / length, 0.0) + 1e-4 for value in projected]


def pooled(net, grid):
    """One crop, ``[positions][C]``."""
    norm, narrow, _, wide = net.project
    spread = []
    for channel in zip(*grid, strict=True):
        mean = sum(channel) / len(channel)
        spread.append(math.sqrt(sum((value - mean) ** 2 for value in channel) / len(channel) + 1e-4))
    centre = sum(spread) / len(spread)
    length = math.sqrt(sum((value - centre) ** 2 for value in spread) / len(spread) + norm.eps)
    normed = [
        (value - centre) / length * w + b
        for value, w, b in zip(spread, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    ]
    return deviations(linear(wide, [max(value, 0.0) for value in linear(narrow, normed)]))


def convolved(net, image):
    """One crop, ``[C, h, w]``."""
    kernels, channels = net.convolution.weight.detach().double().numpy(), []
    rows, columns = image.shape[1] - 7, image.shape[2] - 7
    for kernel in kernels:
        total = 0.0
        for top in range(rows):
            for left in range(columns):
                total += max(float((image[:, top : top + 8, left : left + 8] * kernel).sum()), 1e-6) ** 3
        channels.append((total / (rows * columns)) ** (1 / 3) + 1e-4)
    return deviations(linear(net.project, channels))


def test_unit_divides_by_the_length_and_a_little_more():
    vectors = normal(5, 7) * 3
    wanted = [
        [value / (math.sqrt(sum(v * v for v in row)) + 1e-4) for value in row] for row in vectors.double().tolist()
    ]
    assert torch.allclose(unit(vectors), torch.tensor(wanted), atol=1e-6)


def test_unit_is_smooth_at_zero():
    zero = torch.zeros(2, 4, requires_grad=True)
    unit(zero).sum().backward()
    assert torch.equal(unit(zero.detach()), torch.zeros(2, 4))
    assert torch.isfinite(zero.grad).all()


def test_a_sample_is_a_draw_from_the_full_covariance_with_cholesky_factor_diag_v():
    centre, spread, noise = unit(normal(4, 8)), normal(4, 8, seed=1).abs(), normal(3, 4, 8, seed=2)
    full = torch.distributions.MultivariateNormal(centre, scale_tril=torch.diag_embed(spread))
    drawn = full.loc + (full.scale_tril @ noise[..., None])[..., 0]
    assert sample(centre, spread, noise).shape == (3, 4, 8)
    assert torch.allclose(sample(centre, spread, noise), unit(drawn), atol=1e-6)
    assert torch.allclose(full.covariance_matrix.diagonal(dim1=1, dim2=2), spread.square(), atol=1e-5)


def test_samples_have_unit_length_and_without_spread_are_the_centre():
    centre = unit(normal(4, 8))
    drawn = sample(centre, torch.full((4, 8), 0.3), normal(6, 4, 8, seed=1))
    assert torch.allclose(drawn.norm(dim=2), torch.ones(6, 4), atol=1e-3)
    assert torch.allclose(sample(centre, torch.zeros(4, 8), normal(1, 4, 8))[0], centre, atol=5e-4)


def test_the_pooled_head_is_its_loop_for_maps():
    net, features = head(), normal(3, 6, 4, 2)
    wanted = [pooled(net, image.flatten(1).T.double().tolist()) for image in features]
    assert torch.allclose(net(features), torch.tensor(wanted), atol=1e-5)


def test_the_convolution_head_is_its_loop():
    net, features = head("convolution", channels=4), normal(3, 4, 9, 10)
    wanted = [convolved(net, image.double().numpy()) for image in features]
    assert torch.allclose(net(features), torch.tensor(wanted), atol=1e-5)


@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
def test_tokens_give_what_their_grid_gives_as_a_map_and_prefix_tokens_say_nothing(prefix_tokens):
    features = normal(3, 6, 4, 2)
    grid = features.flatten(2).transpose(1, 2)
    tokens = torch.cat([normal(3, prefix_tokens, 6, seed=4) * 100, grid], 1)
    assert torch.allclose(head(prefix_tokens=prefix_tokens)(tokens), head()(features), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [torch.zeros(2, 6, 9, 8), torch.ones(2, 6, 9, 8) * 1e4, normal(2, 6, 9, 8) * 1e3])
def test_deviations_are_positive_and_their_vector_is_no_longer_than_one(kind, features):
    spread = head(kind)(features)
    assert spread.shape == (2, 10)
    assert (spread >= FLOOR).all()
    assert ((spread - FLOOR).norm(dim=1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_even_from_a_flat_map(kind):
    for features in (normal(4, 6, 9, 8), torch.zeros(4, 6, 9, 8)):
        net = head(kind)
        net(features).square().sum().backward()
        assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_nearly_the_same_in_float32(kind):
    net, features = head(kind), normal(3, 6, 9, 8)
    wanted = net(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(features.bfloat16())
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=0.02)


def test_a_wrong_kind_is_refused():
    with pytest.raises(ValueError, match='must be "pooled" or "convolution", got \'gaussian\''):
        DistributionHead(6, 10, "gaussian")


def test_the_convolution_wants_a_map_of_eight_by_eight():
    with pytest.raises(ValueError, match="use head: pooled"):
        DistributionHead(6, 10, "convolution", prefix_tokens=1)
    with pytest.raises(ValueError, match=r"at least 8×8, got 8×4"):
        head("convolution")(torch.zeros(1, 6, 8, 4))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet50", "vit_small_patch16_224"])
def test_the_pooled_head_is_below_two_percent_of_the_backbone(name):
    with torch.device("meta"):
        backbone = timm.create_model(name, pretrained=False, num_classes=0)
        net = DistributionHead(backbone.num_features, 512)
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in (net, backbone)]
    assert sizes[0] < 0.02 * sizes[1]


def test_the_published_convolution_has_67_million_weights():
    with torch.device("meta"):
        assert DistributionHead(1024, 2048, "convolution").convolution.weight.numel() == 67_108_864


def test_relations_are_the_log_of_the_row_softmax_of_cosines():
    rows = normal(5, 4).double()
    found = affinity(rows, 0.1)
    for i in range(5):
        cosines = [torch.cosine_similarity(rows[i], rows[j], dim=0).item() / 0.1 for j in range(5)]
        total = sum(math.exp(cosine) for cosine in cosines)
        assert found[i].tolist() == pytest.approx([cosine - math.log(total) for cosine in cosines])


def test_a_draw_is_one_sample_of_each_and_comes_back_with_its_seed():
    mean, spread = normal(7, 5), normal(7, 5, seed=1).abs()
    first, again = (draw(mean, spread, torch.Generator().manual_seed(2)) for _ in range(2))
    noise = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert torch.equal(first, sample(mean, spread, noise[None])[0])
    assert not torch.equal(first, draw(mean, spread, torch.Generator().manual_seed(3)))
