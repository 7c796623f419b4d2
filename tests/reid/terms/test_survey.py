"""A survey sees the step's crops as they are, in order, and leaves the model as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from domains.domain import Split
from reid.batches.loader import CropStore
from reid.network.backbone import Backbone, InputRule
from reid.network.distribution import unit
from reid.network.embedding import BATCH, evaluating
from reid.network.model import ReidModel
from reid.terms.survey import Survey

COUNT, USED = 320, 300  # in more than two batches


def survey():
    rng = np.random.default_rng(3)
    store = CropStore(rng.integers(0, 256, (COUNT, 8, 4, 3), dtype=np.uint8), Split(), ())
    positions = rng.permutation(COUNT)[:USED]
    return Survey(store, positions, rng.integers(0, 7, USED), torch.device("cpu"))


def tiny():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
    model = ReidModel(
        Backbone(net, width=6, rule=InputRule("rgb", (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))),
        pooling="auto",
        dim=10,
        classes=7,
    )
    model.add_distribution("pooled")
    with torch.no_grad():
        model(torch.from_numpy(survey().store.crops[:64]))  # moves BatchNorm's statistics
    return model


def one_by_one(model, found, what):
    model.eval()
    with torch.no_grad():
        return torch.cat([what(torch.from_numpy(found.store.crops[at])[None]) for at in found.positions]).numpy()


def test_batches_are_the_usable_crops_in_order():
    found = survey()
    batches = list(found.batches())
    assert len(found) == USED
    assert [len(crops) for crops, _ in batches] == [BATCH, BATCH, USED - 2 * BATCH]
    assert {crops.dtype for crops, _ in batches} == {torch.uint8}
    assert np.array_equal(np.concatenate([crops.numpy() for crops, _ in batches]), found.store.crops[found.positions])
    assert np.array_equal(np.concatenate([labels for _, labels in batches]), found.labels)
    assert [len(crops) for crops, _ in found.batches(USED)] == [USED]


def test_a_sample_keeps_the_order_and_everyone_while_there_is_room():
    found = survey()
    found.labels[:2] = (7, 8)  # two people of one crop
    everyone = set(found.labels.tolist())
    for seed in range(20):
        some = found.sample(20, seed)
        where = [found.positions.tolist().index(position) for position in some.positions]
        assert where == sorted(set(where))
        assert some.labels.tolist() == found.labels[where].tolist()
        assert len(some) == 20
        assert set(some.labels.tolist()) == everyone
        assert np.array_equal(some.positions, found.sample(20, seed).positions)
        assert len(set(found.sample(5, seed).labels.tolist())) == len(found.sample(5, seed)) == 5, (
            "as many people as there is room for"
        )
    assert not np.array_equal(found.sample(20, 1).positions, found.sample(20, 2).positions)
    assert found.sample(USED) is found.sample(USED + 1) is found


def test_shuffled_is_the_same_crops_with_their_identities_in_another_order():
    found = survey()
    other, again = found.shuffled(1, 2), found.shuffled(1, 2)
    assert np.array_equal(other.positions, again.positions)
    assert not np.array_equal(other.positions, found.positions)
    assert not np.array_equal(other.positions, found.shuffled(1, 3).positions)
    assert sorted(zip(other.positions, other.labels, strict=True)) == sorted(
        zip(found.positions, found.labels, strict=True)
    )
    assert other.store is found.store
    assert found.positions.tolist() == survey().positions.tolist()


def test_embeddings_are_the_models_in_eval_mode():
    found, model = survey(), tiny().train()
    embeddings = found.embeddings(model)
    assert (embeddings.shape, embeddings.dtype) == ((USED, 10), np.float32)
    assert np.allclose(embeddings, one_by_one(model, found, model.embed), atol=1e-5)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_embeddings_follow_the_order():
    found, model = survey(), tiny()
    other = found.shuffled(1)
    by_position = dict(zip(found.positions.tolist(), found.embeddings(model), strict=True))
    assert np.allclose(other.embeddings(model), [by_position[at] for at in other.positions.tolist()], atol=1e-6)


def test_gaussians_are_unit_centres_and_the_heads_deviations():
    found, model = survey(), tiny().train()
    centre, spread, labels = (np.concatenate(part) for part in zip(*found.gaussians(model), strict=True))
    assert {centre.dtype, spread.dtype} == {np.dtype(np.float32)}
    assert np.allclose(centre, one_by_one(model, found, lambda crop: unit(model(crop).embedding)), atol=1e-5)
    assert np.allclose(spread, one_by_one(model, found, lambda crop: model.spread(model(crop).features)), atol=1e-5)
    assert np.array_equal(labels, found.labels)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode_with_its_statistics_and_without_gradients(training):
    found, model = survey(), tiny().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found.embeddings(model)
    list(found.gaussians(model))
    assert all(part.training == training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        weight.grad is None and weight.requires_grad == (name != "neck.bias")
        for name, weight in model.named_parameters()
    )


def test_an_error_leaves_the_mode_too():
    model = tiny().train()

    def fail():
        with evaluating(model):
            assert not model.training
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_between_chunks_the_caller_is_in_a_mode_of_its_own():
    model = tiny().train()
    seen = [(torch.is_inference_mode_enabled(), model.training) for _ in survey().gaussians(model)]
    assert seen == [(False, True)] * 3
