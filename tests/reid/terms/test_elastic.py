"""Elastic consolidation against plain loops and against the curvature that it stands for; prototypes without a head."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from domains.errors import ConfigError
from prototypes.memory import Memory
from prototypes.prototype import DistributionPrototypes
from reid.network.model import Output
from reid.network.runtime import Runtime
from reid.randomness import numpy_generator
from reid.terms import Batch, Step, build_terms, head_of, idle_terms
from reid.terms.elastic import retrieval_information

DIM = 5


def units(seed, rows, width=DIM):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rotation(seed, width=DIM):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def softmax(row):
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def covariance(feature, mean, temperature):
    likely = softmax(np.array([feature @ row for row in mean]) / temperature)
    middle = sum(p * row for p, row in zip(likely, mean, strict=True))
    total = np.zeros((mean.shape[1], mean.shape[1]))
    for p, row in zip(likely, mean, strict=True):
        total += p * np.outer(row - middle, row - middle)
    return total / temperature**2


def naive_information(mean, spread, rng, temperature, draws):
    chosen, noise = rng.integers(len(mean), size=draws), rng.standard_normal((draws, mean.shape[1]))
    total = np.zeros((mean.shape[1], mean.shape[1]))
    for k, row in zip(chosen, noise, strict=True):
        feature = mean[k] + spread[k] * row
        total += covariance(feature / np.linalg.norm(feature), mean, temperature)
    return total / draws


def memory(name, mean, spread=None):
    spread = np.zeros(mean.shape) if spread is None else np.asarray(spread)
    kept = DistributionPrototypes(mean.astype(np.float32), spread.astype(np.float32))
    return Memory(name, "space", {"prototypes.mean": kept.mean, "prototypes.spread": kept.spread})


def answer(vectors):
    vectors = torch.as_tensor(vectors, dtype=torch.float32)
    return lambda crops: Output(crops, vectors, vectors, vectors)


def batch_of(memories, new, old):
    runtime = Runtime(torch.device("cpu"), torch.float32)
    config = SimpleNamespace(seed=3)
    step = Step(2, SimpleNamespace(name="site"), config, runtime, answer(new), {"old": answer(old)}, 0, memories)
    count = torch.zeros(len(new), dtype=torch.long)
    return Batch(torch.zeros(len(new), 2, 2, 3, dtype=torch.uint8), count, count, step)


def begun(batch, **parameters):
    (term,) = build_terms(({"elastic": parameters},)).values()
    term.begin(batch.step)
    return term


def metric(term):
    return (term.root @ term.root.T).double().numpy()


# --------------------------------------------------------------------------------------------------------- information


@pytest.mark.parametrize("draws", [1, 128, 300])
@pytest.mark.parametrize(("people", "temperature"), [(2, 0.1), (7, 0.1), (7, 1.0), (40, 0.3)])
def test_information(people, temperature, draws):
    mean, spread = units(people, people), np.random.default_rng(1).uniform(0.01, 0.4, (people, DIM))
    found = retrieval_information(mean, spread, np.random.default_rng(2), temperature=temperature, draws=draws)
    wanted = naive_information(mean, spread, np.random.default_rng(2), temperature, draws)
    assert np.allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_it_is_the_curvature_of_the_divergence_from_where_the_feature_was(temperature):
    mean, chosen = units(0, 6), np.random.default_rng(4).integers(6, size=1)
    found = retrieval_information(mean, np.zeros((6, DIM)), np.random.default_rng(4), temperature=temperature, draws=1)
    rows, start = torch.from_numpy(mean), torch.from_numpy(mean[chosen[0]])
    before = torch.log_softmax(start @ rows.T / temperature, 0)

    def divergence(feature):
        return (before.exp() * (before - torch.log_softmax(feature @ rows.T / temperature, 0))).sum()

    hessian = torch.autograd.functional.hessian(divergence, start).numpy()
    assert np.allclose(found, hessian, rtol=1e-9, atol=1e-11 / temperature**2)


def test_two_people_differ_in_one_direction():
    mean = units(5, 2)
    found = retrieval_information(mean, np.zeros((2, DIM)), np.random.default_rng(0), temperature=0.1)
    apart = (mean[0] - mean[1]) / np.linalg.norm(mean[0] - mean[1])
    assert np.allclose(found, np.trace(found) * np.outer(apart, apart), rtol=1e-9)
    term = begun(batch_of([memory("first", mean)], mean, mean), floor=0.5)
    assert term.effective_rank == pytest.approx(1 / DIM)
    assert np.allclose(metric(term), DIM * np.outer(apart, apart) + 0.5 * np.eye(DIM), atol=1e-5)


def test_it_is_accurate_where_people_are_hardly_confused():
    mean = np.eye(3)
    found = retrieval_information(mean, np.zeros((3, 3)), np.random.default_rng(0), temperature=0.02, draws=60)
    assert 0 < np.trace(found) < 1e-15
    wrong = np.exp(-50.0)  # the chance of another person
    counts = np.bincount(np.random.default_rng(0).integers(3, size=60), minlength=3) / 60
    wanted = sum(
        share * wrong * np.outer(mean[k] - mean[other], mean[k] - mean[other]) / 0.02**2
        for k, share in enumerate(counts)
        for other in range(3)
        if other != k
    )
    assert np.allclose(found, wanted, rtol=1e-9, atol=0)


# ----------------------------------------------------------------------------------------------------------------- term


@pytest.mark.parametrize("isotropic", [False, True])
def test_people_who_do_not_differ_leave_only_the_floor(isotropic):
    mean = np.repeat(units(0, 1), 4, axis=0)
    new, old = units(1, 6), units(2, 6)
    batch = batch_of([memory("first", mean, np.full(mean.shape, 0.1))], new, old)
    term = begun(batch, floor=0.3, isotropic=isotropic)
    assert term.effective_rank == 0
    assert np.allclose(metric(term), 0.3 * np.eye(DIM), atol=1e-6)
    assert term.loss(batch).item() == pytest.approx(0.3 * np.square(new - old).sum(1).mean(), rel=1e-3)


def test_the_loss_is_a_mean_over_domains_and_crops():
    first, second = units(0, 6), units(1, 9)
    shorter = second * np.random.default_rng(4).uniform(0.3, 1, (9, 1))  # as stored: only their directions count
    new, old = units(2, 4) * 3, units(3, 4) * 0.7
    memories = [memory("first", first), memory("bare", np.zeros((0, DIM))), memory("second", shorter)]
    batch = batch_of(memories, new, old)
    term = begun(batch, floor=0.05)
    rng = numpy_generator(3, 2, "elastic")
    held = np.zeros((DIM, DIM))
    for mean in (first, second):
        information = naive_information(mean, np.zeros(mean.shape), rng, 0.1, 512)
        held += information / np.trace(information) * DIM / 2
    assert np.allclose(metric(term), held + 0.05 * np.eye(DIM), atol=1e-4)
    assert term.effective_rank == pytest.approx(np.trace(held) ** 2 / np.square(held).sum() / DIM, rel=1e-4)
    drifts = units(2, 4) - units(3, 4)
    wanted = np.mean([drift @ (held + 0.05 * np.eye(DIM)) @ drift for drift in drifts])
    loss = term.loss(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted, rel=1e-3)
    assert begun(batch, weight=7.0, floor=0.05).loss(batch).item() == loss.item(), "the weight comes later"


def test_the_control_has_the_same_trace_in_all_directions():
    memories = [memory("first", units(0, 6)), memory("alike", np.repeat(units(1, 1), 3, axis=0))]
    batch = batch_of(memories, units(2, 4), units(3, 4))
    term, control = begun(batch), begun(batch, isotropic=True)
    assert np.allclose(metric(control), 0.55 * np.eye(DIM), atol=1e-5)
    assert np.trace(metric(term)) == pytest.approx(np.trace(metric(control)), rel=1e-5)
    assert control.effective_rank == pytest.approx(1)
    assert term.effective_rank < 0.9


def test_a_common_rotation_changes_nothing():
    mean, new, old, turn = units(0, 6), units(1, 8), units(2, 8), rotation(3)
    plain, turned, one_side = (
        begun(batch).loss(batch).item()
        for batch in (
            batch_of([memory("first", mean)], new, old),
            batch_of([memory("first", mean @ turn)], new @ turn, old @ turn),
            batch_of([memory("first", mean)], new @ turn, old @ turn),
        )
    )
    assert turned == pytest.approx(plain, rel=1e-4)
    assert one_side != pytest.approx(plain, rel=1e-2)


def test_embeddings_that_stay_cost_nothing_and_the_gradient_is_finite_there():
    vectors = torch.tensor(units(0, 6), dtype=torch.float32, requires_grad=True)
    batch = batch_of([memory("first", units(1, 6))], vectors, vectors.detach())
    loss = begun(batch).loss(batch)
    loss.backward()
    assert loss.item() == 0
    assert not vectors.grad.any()


def test_the_gradient_reaches_the_new_embedding_and_pulls_it_back():
    new = torch.tensor(units(0, 6), dtype=torch.float32, requires_grad=True)
    batch = batch_of([memory("first", units(1, 6))], new, units(2, 6))
    loss = begun(batch).loss(batch)
    loss.backward()
    after = batch_of(batch.step.memories, new.detach() - 0.01 * new.grad, units(2, 6))
    assert begun(after).loss(after) < loss


def test_the_same_seed_makes_the_same_matrix_and_nothing_is_kept():
    batch = batch_of([memory("first", units(0, 6), np.full((6, DIM), 0.2))], units(1, 4), units(2, 4))
    state = torch.get_rng_state()
    term = begun(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(term.root, begun(batch).root)
    assert term.state_dict() == {}
    batch.step.index = 3
    assert not torch.equal(term.root, begun(batch).root)


def test_it_is_idle_without_prototypes():
    terms = build_terms(({"elastic": {}},))
    assert idle_terms(terms, 1, []) == {"elastic": "it needs an earlier domain"}
    bare = [Memory("first", "space", {})]
    assert idle_terms(terms, 2, bare) == {"elastic": "the memories of earlier domains hold no prototypes"}
    assert idle_terms(terms, 2, [memory("first", units(0, 2))]) == {}
    with pytest.raises(ConfigError, match="no prototypes"):
        begun(batch_of(bare, units(0, 2), units(0, 2)))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"temperature": -0.1}, "temperature must be a positive number"),
        ({"temperature": float("nan")}, "temperature must be a positive number"),
        ({"temperature": True}, "temperature must be a positive number, got True"),
        ({"floor": 0.0}, "floor must be a positive number"),
        ({"floor": float("inf")}, "floor must be a positive number, got inf"),
        ({"floor": "low"}, "floor must be a positive number, got 'low'"),
        ({"isotropic": 1}, "isotropic must be true or false, got 1"),
        ({"weight": True}, "weight must be a number"),
        ({"temprature": 0.1}, "unknown parameter 'temprature'; did you mean 'temperature'"),
    ],
)
def test_a_wrong_parameter_is_one_line(parameters, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build_terms(({"elastic": parameters},))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- prototypes without a head


def ended(vectors, labels, people, **parameters):
    """What ``prototypes`` keeps of unit-length embeddings of a step's crops."""
    model = SimpleNamespace(classes=people + 3, dim=DIM)
    survey = SimpleNamespace(labels=np.array(labels), embeddings=lambda asked: vectors if asked is model else None)
    (term,) = build_terms(({"prototypes": parameters},)).values()
    return term.end(SimpleNamespace(survey=survey, model=model, old_classes=3))


def test_prototypes_of_plain_embeddings():
    labels = [2, 0, 1, 0, 2, 2, 3]
    vectors = units(0, len(labels)).astype(np.float32)
    kept = ended(vectors, labels, 4, head="none")
    assert {name: (value.shape, value.dtype) for name, value in kept.items()} == dict.fromkeys(
        ("mean", "spread"), ((4, DIM), torch.float16)
    )
    spreads = {}
    for person in range(4):
        rows = np.array([row for row, label in zip(vectors, labels, strict=True) if label == person], np.float64)
        mean = sum(rows) / len(rows)
        assert np.allclose(kept["mean"][person], mean, atol=1e-3)
        if len(rows) > 1:
            spreads[person] = np.sqrt(sum((row - mean) ** 2 for row in rows) / len(rows))
    assert sorted(spreads) == [0, 2]
    usual = np.sqrt((spreads[0] ** 2 + spreads[2] ** 2) / 2)
    for person in range(4):
        assert np.allclose(kept["spread"][person], spreads.get(person, usual), atol=1e-3)


def test_one_crop_of_everybody_says_nothing_of_their_spread():
    vectors = units(0, 3).astype(np.float32)
    kept = ended(vectors, [1, 2, 0], 3, head="none")
    assert torch.equal(kept["mean"], torch.from_numpy(vectors[[2, 0, 1]]).half())
    assert torch.equal(kept["spread"], torch.full((3, DIM), 0.01).half())


def test_a_person_whose_crops_are_all_alike_has_no_spread():
    vectors = np.repeat(units(0, 2), [3, 1], axis=0).astype(np.float32)
    kept = ended(vectors, [0, 0, 0, 1], 2, head="none")
    assert torch.allclose(kept["spread"], torch.zeros(2, DIM).half(), atol=1e-4)


def test_a_person_without_a_crop_is_refused():
    with pytest.raises(ValueError, match="1 identities have no crop"):
        ended(units(0, 2).astype(np.float32), [0, 2], 3, head="none")


def test_without_a_head_it_asks_for_none_and_goes_with_any():
    assert head_of(build_terms(({"prototypes": {"head": "none"}},)).values()) is None
    mixed = build_terms(({"prototypes": {"head": "none"}}, {"distribution_triplet": {"head": "convolution"}}))
    assert head_of(mixed.values()) == "convolution"
    assert head_of(build_terms(({"prototypes": {}},)).values()) == "pooled"
    with pytest.raises(ConfigError, match='head must be "pooled", "convolution" or "none"'):
        build_terms(({"prototypes": {"head": "some"}},))
    with pytest.raises(ConfigError, match='head must be "pooled" or "convolution"'):
        build_terms(({"distribution_triplet": {"head": "none"}},))
