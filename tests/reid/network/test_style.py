"""How a domain's pictures look, in twelve numbers and as a network: against loops, and back from a memory."""

import numpy as np
import pytest
import torch

from domains.errors import ArtefactError
from domains.style import StyleStatistics
from reid.network.style import StyleNetwork, restyle

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def pictures(count=5, height=8, width=4, seed=0):
    rng = np.random.default_rng((5, seed))
    base, gain = rng.uniform(60, 190, (count, 1, 1, 3)), rng.uniform(5, 50, (count, 1, 1, 3))
    return np.clip(base + gain * rng.standard_normal((count, height, width, 3)), 0, 255).astype(np.uint8)


def network(seed=0):
    torch.manual_seed(seed)
    return StyleNetwork(MEAN, STD)


def noise(count, seed=0):
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def root_mean_square(values):
    return float(np.sqrt(np.mean(np.square(values - np.mean(values)))))


# ------------------------------------------------------------------------------------------------------ StyleStatistics


@pytest.mark.parametrize("count", [1, 5, 256, 257, 600])  # 256 are taken at a time
def test_the_statistics_of_crops(count):
    crops = pictures(count)
    found = StyleStatistics.of([crops]).numbers
    assert (found.shape, found.dtype, found.nbytes) == ((4, 3), np.float32, 48)
    for channel in range(3):
        means = [crop[..., channel].astype(np.float64).mean() for crop in crops]
        deviations = [root_mean_square(crop[..., channel].astype(np.float64)) for crop in crops]
        wanted = [np.mean(means), root_mean_square(means), np.mean(deviations), root_mean_square(deviations)]
        assert found[:, channel] == pytest.approx(wanted, rel=1e-4, abs=1e-3)


def test_statistics_do_not_depend_on_order_or_batches():
    crops = pictures(300)
    pieces = [crops[200:], crops[:7], crops[7:200]]
    assert np.allclose(StyleStatistics.of([crops]).numbers, StyleStatistics.of(pieces).numbers, rtol=1e-5)


def test_statistics_are_exact_enough_for_crops_of_the_usual_size():
    crops = np.repeat(np.repeat(pictures(3), 32, 1), 32, 2)
    assert crops.shape[1:3] == (256, 128)
    found, wanted = StyleStatistics.of([crops]).numbers, StyleStatistics.of([pictures(3)]).numbers
    assert np.abs(found - wanted).max() < 0.01  # grey levels


def test_statistics_come_back_from_an_array():
    numbers = StyleStatistics.of([pictures()]).numbers
    assert np.array_equal(StyleStatistics.from_array(numbers).numbers, numbers)
    assert StyleStatistics.from_array(numbers.astype(np.float64)).numbers.dtype == np.float32


@pytest.mark.parametrize(
    "array", [np.zeros((3, 4)), np.zeros(12), np.full((4, 3), np.nan), np.full((4, 3), np.inf), np.float32(1)]
)
def test_other_arrays_are_no_statistics(array):
    with pytest.raises(ArtefactError, match=r"12 finite numbers \[4, 3\]") as caught:
        StyleStatistics.from_array(array)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- restyle


def test_restyle_gives_each_crop_the_mean_and_deviation_asked_for():
    crops, draws = torch.from_numpy(pictures(6)), noise(6)
    numbers = torch.stack([torch.from_numpy(StyleStatistics.of([pictures(9, seed=seed)]).numbers) for seed in range(6)])
    found = restyle(crops, numbers, draws)
    assert (found.shape, found.dtype) == (crops.shape, torch.float32)
    for crop, image in enumerate(found.double().numpy()):
        for channel in range(3):
            style = numbers[crop, :, channel].tolist()
            assert image[..., channel].mean() == pytest.approx(
                style[0] + style[1] * draws[crop, 0, channel].item(), abs=1e-2
            )
            assert root_mean_square(image[..., channel]) == pytest.approx(
                style[2] + style[3] * draws[crop, 1, channel].item(), abs=1e-2
            )


def test_restyle_moves_each_channel_along_a_line():
    crop = pictures(1)
    found = restyle(torch.from_numpy(crop), torch.from_numpy(StyleStatistics.of([pictures(9)]).numbers)[None], noise(1))
    for channel in range(3):
        slope, start = np.polyfit(crop[0, ..., channel].ravel(), found[0, ..., channel].ravel(), 1)
        assert slope > 0
        assert np.allclose(found[0, ..., channel], slope * crop[0, ..., channel] + start, atol=1e-2)


def test_its_own_style_gives_a_crop_back():
    crops = torch.from_numpy(pictures(4))
    numbers = torch.stack([torch.from_numpy(StyleStatistics.of([crop[None].numpy()]).numbers) for crop in crops])
    assert torch.allclose(restyle(crops, numbers, noise(4)), crops.float(), atol=1e-2)


@pytest.mark.parametrize("grey", [0, 77, 255])
def test_a_picture_of_one_colour_takes_the_mean_and_gives_no_nan(grey):
    numbers = torch.from_numpy(StyleStatistics.of([pictures(9)]).numbers)[None]
    found = restyle(torch.full((1, 256, 128, 3), grey, dtype=torch.uint8), numbers, torch.zeros(1, 2, 3))
    assert torch.isfinite(found).all()
    assert torch.allclose(found.mean((1, 2)), numbers[:, 0], atol=1e-2)


def test_a_deviation_drawn_below_zero_does_not_turn_the_picture_over():
    crops = torch.from_numpy(pictures(3))
    numbers = torch.tensor([[100.0] * 3, [0.0] * 3, [10.0] * 3, [20.0] * 3]).expand(3, 4, 3)
    found = restyle(crops, numbers, torch.full((3, 2, 3), -2.0))
    assert torch.allclose(found, torch.full_like(found, 100.0), atol=0.01)


# --------------------------------------------------------------------------------------------------------- StyleNetwork


def test_the_network_has_as_many_weights_as_the_published_one():
    net = network()
    assert sum(weight.numel() for weight in net.parameters()) == 1_117_460
    assert [tuple(layer.weight.shape) for layer in net.head if hasattr(layer, "weight")] == [(288, 576), (84, 288)]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_a_convolution_of_each_picture_with_its_own_kernel(training):
    net, crops = network().train(training), torch.from_numpy(pictures(3, 64, 64))  # a map of 2×2
    with torch.no_grad():
        found = net(crops)
        pixels = crops.permute(0, 3, 1, 2) / 255
        predicted = net.head(net.features(pixels)[-1].amax((2, 3)))
    assert (found.shape, found.dtype) == (crops.shape, torch.float32)
    for image, numbers, result in zip(pixels, predicted, found, strict=True):
        single = torch.nn.functional.conv2d(image[None], numbers[:81].reshape(3, 3, 3, 3), numbers[81:], padding=1)[0]
        assert torch.allclose(single.permute(1, 2, 0) * STD + MEAN, result, atol=1e-3)


def test_an_untaught_network_leaves_colours_as_they_are():
    crops = torch.from_numpy(pictures(3, 64, 32))
    with torch.no_grad():
        assert torch.allclose(network().eval()(crops), crops.float(), atol=2)
    taught, twin = network().train(), crops.float() * 0.5 + 60
    loss = (taught(twin) - twin).abs().mean()
    loss.backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in taught.head.parameters())


def test_in_eval_pictures_of_a_batch_do_not_touch_each_other():
    net, crops = network().eval(), torch.from_numpy(pictures(3, 32, 16))
    with torch.no_grad():
        assert torch.allclose(net(crops)[1:2], net(crops[1:2]), atol=1e-3)


def test_the_loss_is_the_mean_difference_in_normalised_colours_after_the_batch_is_perturbed_by_its_own_statistics():
    net, crops, draws = network().eval(), torch.from_numpy(pictures(6, 32, 16)), noise(6)
    pixels = crops.double().numpy()
    means, deviations = pixels.mean((1, 2)), pixels.std((1, 2))
    perturbed = np.empty_like(pixels)
    for at, channel in np.ndindex(6, 3):
        wanted_mean = means[:, channel].mean() + means[:, channel].std(ddof=0) * draws[at, 0, channel].item()
        wanted = deviations[:, channel].mean() + deviations[:, channel].std(ddof=0) * draws[at, 1, channel].item()
        centred = (pixels[at, ..., channel] - means[at, channel]) / deviations[at, channel]
        perturbed[at, ..., channel] = centred * max(wanted, 1e-3) + wanted_mean
    with torch.no_grad():
        output = net(torch.from_numpy(perturbed))
        wanted = np.abs((output.numpy() - MEAN.numpy()) / STD.numpy() - (pixels - MEAN.numpy()) / STD.numpy()).mean()
        assert net.loss(crops, draws).item() == pytest.approx(float(wanted), rel=1e-4)


def test_a_few_iterations_of_the_published_optimiser_learn_to_undo_a_perturbation():
    net, crops, draws = network().train(), torch.from_numpy(pictures(8, 32, 16)), noise(8)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.0, 0.999))
    found = []
    for _ in range(15):
        loss = net.loss(crops, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert np.isfinite(found).all()
    assert max(found[-3:]) < 0.75 * found[0]


def test_flat_crops_give_a_finite_loss_and_gradient():
    net = network().train()
    loss = net.loss(torch.full((4, 32, 16, 3), 90, dtype=torch.uint8), noise(4))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(weight.grad).all() for weight in net.parameters() if weight.grad is not None)


def test_crops_beyond_the_looks_that_it_learned_are_brought_to_their_edge_first():
    dull = np.clip(pictures(8, 64, 32) * 0.2 + 100, 0, 255).astype(np.uint8)
    looks = StyleStatistics.of([dull])
    torch.manual_seed(0)
    careful, careless = StyleNetwork(MEAN, STD, looks).eval(), network().eval()
    careless.load_arrays(
        {name: array for name, array in careful.to_arrays().items() if name != "looks"}
    )  # a memory of the first form
    within, beyond = (
        torch.from_numpy(dull),
        torch.from_numpy(np.where(pictures(4, 64, 32) > 128, 255, 0).astype(np.uint8)),
    )
    low, high = (looks.numbers[::2] + side * looks.numbers[1::2] for side in (-2, 2))
    edge = restyle(
        beyond, torch.from_numpy(looks.numbers).expand(4, 4, 3), torch.zeros(4, 2, 3)
    )  # a start with the moments to be clamped
    mean = np.clip(beyond.double().numpy().mean((1, 2)), low[0], high[0])
    spread = np.clip(beyond.double().numpy().std((1, 2)), low[1], high[1])
    edge = torch.from_numpy(
        (edge.numpy() - looks.numbers[0]) / looks.numbers[2] * spread[:, None, None] + mean[:, None, None]
    )
    with torch.no_grad():
        assert torch.allclose(careful(beyond), careless(edge), atol=0.5)
        assert not torch.allclose(careful(beyond), careless(beyond), atol=5)
        mild = (
            (within.float().mean((1, 2)) >= torch.from_numpy(low[0]))
            & (within.float().mean((1, 2)) <= torch.from_numpy(high[0]))
        ).all(1)
        assert torch.allclose(careful(within[mild]), careless(within[mild]), atol=0.5)


def test_weights_come_back_in_half_precision():
    net, other, third = network().eval(), network(1).eval(), network(1).eval()
    with torch.no_grad():
        for seed, known in enumerate((net, third)):
            known.head[-1].bias.add_(torch.randn(84, generator=torch.Generator().manual_seed(seed)))
    arrays = net.to_arrays()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    assert not any("num_batches" in name for name in arrays)
    assert 2.2e6 < sum(array.nbytes for array in arrays.values()) < 2.3e6
    other.load_arrays(arrays)
    assert all(np.array_equal(array, arrays[name]) for name, array in other.to_arrays().items())
    crops = torch.from_numpy(pictures(3, 32, 16))
    with torch.no_grad():
        assert torch.allclose(other(crops), net(crops), atol=1.0)  # grey levels
        assert not torch.allclose(other(crops), third(crops), atol=1.0)


@pytest.mark.parametrize("misfit", ["missing", "extra", "shape", "empty"])
def test_weights_that_do_not_fit_are_refused_in_one_line(misfit):
    net = network()
    arrays = dict(net.to_arrays())
    if misfit == "missing":
        del arrays["head.0.weight"]
    elif misfit == "extra":
        arrays["head.9.weight"] = np.zeros(3, np.float16)
    elif misfit == "shape":
        arrays["head.0.weight"] = arrays["head.0.weight"][:, :-1]
    else:
        arrays = {}
    with pytest.raises(ArtefactError, match="does not fit this version") as caught:
        net.load_arrays(arrays)
    assert "\n" not in str(caught.value)
    assert "head." in str(caught.value) or misfit == "empty"
    assert not str(caught.value).endswith(":")
