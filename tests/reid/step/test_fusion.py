"""Weight fusion: what each rule computes, what it leaves alone, and what it refuses."""

import math

import numpy as np
import pytest
import torch

import reid.step.fusion as module
from domains.errors import ConfigError
from reid.step.fusion import (
    FUSIONS,
    Fusing,
    adaptive,
    applied,
    average,
    blend,
    budget,
    check_fusions,
    fisher,
    fuse,
    self_retrieval,
    two_teachers,
)


def states():
    new = {
        "w": torch.tensor([1.0, 2.0]),
        "neck.num_batches_tracked": torch.tensor(40),
        "classifier.weight": torch.tensor([[1.0], [2.0], [9.0]]),
    }
    old = {
        "w": torch.tensor([3.0, 6.0]),
        "neck.num_batches_tracked": torch.tensor(10),
        "classifier.weight": torch.tensor([[5.0], [4.0]]),
    }
    return new, old


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cloud(count=12, dim=5, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def fusing(embed=None, labels=(), kept=None, importance=None):
    new, old = states()
    return Fusing(
        new,
        old,
        embed or (lambda state: cloud()),
        np.asarray(labels, np.int64),
        importance or (lambda state: {}),
        kept=kept or {},
    )


def test_half_is_the_mean_and_new_rows_are_left_alone():
    fused = average(fusing())
    assert fused["w"].tolist() == [2.0, 4.0]
    assert fused["neck.num_batches_tracked"].item() == 40
    assert fused["classifier.weight"].flatten().tolist() == [3.0, 3.0, 9.0]


def test_the_ends_of_the_scale():
    new, old = states()
    assert torch.equal(average(fusing(), weight=1.0)["w"], new["w"])
    assert torch.equal(average(fusing(), weight=0.0)["w"], old["w"])
    assert average(fusing(), weight=0.0)["classifier.weight"][2].item() == 9.0


def test_at_the_first_step_only_what_says_how_is_fused_with_the_start():
    plain, half = (
        ({"average": {"weight": 0.25}}, {"adaptive": {}}),
        ({"average": {"weight": 0.25, "first_weight": 0.5}},),
    )
    assert applied(plain, first=True) == applied(half, first=True, random=True) == ()
    assert applied(plain, first=False) == plain
    assert applied(half, first=True) == applied(half, first=False, random=True) == half
    given = fusing()
    given.first = True
    assert torch.equal(fuse(half, given)["w"], average(fusing(), weight=0.5)["w"])
    assert torch.equal(fuse(half, fusing())["w"], average(fusing(), weight=0.25)["w"])


def test_what_the_old_model_lacks_is_the_new_models():
    new, old = states()
    new["distribution.project.weight"] = torch.ones(2, 2)
    assert torch.equal(blend(new, old, 0.5)["distribution.project.weight"], torch.ones(2, 2))
    new["odd"], old["odd"] = torch.ones(3, 2), torch.zeros(3, 4)
    assert torch.equal(blend(new, old, 0.5)["odd"], torch.ones(3, 2)), "another shape has nothing to average with"


def test_a_weight_for_each_element():
    new, old = states()
    share = {"w": torch.tensor([1.0, 0.25]), "classifier.weight": torch.tensor([[0.0], [1.0], [0.0]])}
    fused = blend(new, old, share)
    assert fused["w"].tolist() == [1.0, 5.0]
    assert fused["classifier.weight"].flatten().tolist() == [5.0, 2.0, 9.0]


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_the_models_it_is_given_are_not_changed(name):
    given = fusing(labels=np.arange(12) // 3)
    fuse(({name: {}},), given) if name != "fisher" else fuse(
        ({name: {}},), fusing(importance=lambda state: {"w": torch.ones(2)})
    )
    for state, wanted in zip((given.old,), states()[1:], strict=True):
        assert all(torch.equal(value, wanted[key]) for key, value in state.items())


def test_no_fusion_returns_the_new_model():
    given = fusing()
    assert fuse((), given) == given.new


# ----------------------------------------------------------------------------------------------------- how much changed


def affinities(vectors, sharpness, diagonal=True):
    out = []
    for i, a in enumerate(vectors.astype(np.float64)):
        row = [
            math.exp(sharpness * float(a @ b) - sharpness) if diagonal or i != j else 0.0
            for j, b in enumerate(vectors.astype(np.float64))
        ]
        out.append([value / sum(row) for value in row])
    return np.array(out)


@pytest.mark.parametrize("chunk", [1024, 5])
def test_adaptive_weight_is_one_less_the_change_of_relations(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    old = cloud(seed=1)
    new = unit(old + 0.01 * np.random.default_rng(2).standard_normal(old.shape))
    given = fusing(lambda state: new if state["w"][0] == 1 else old)
    fused = adaptive(given, sharpness=3.0)
    wanted = 1 - np.abs(affinities(new, 3) - affinities(old, 3)).sum(1).mean()
    assert 0 < wanted < 1
    assert given.figures["weight"] == pytest.approx(wanted, abs=1e-5)
    assert fused["w"][0].item() == pytest.approx(wanted * 1 + (1 - wanted) * 3, abs=1e-4)


def test_adaptive_weight_is_never_negative():
    rows, columns = np.eye(4, dtype=np.float32)[np.arange(16) // 4], np.eye(4, dtype=np.float32)[np.arange(16) % 4]
    given = fusing(lambda state: rows if state["w"][0] == 1 else columns)
    adaptive(given)
    assert given.figures["weight"] == 0, "crops that changed three of four companions give 1 - 1.5"


# ------------------------------------------------------------------------------------------------------ budget of drift


def turning(*speeds, seen=None):
    """Crops on a circle, each turned by 2·w·speed from where the old model has it, so that drift(w) = mean 4 sin²(w·s).

    ``seen`` collects the weights of the new model that were embedded.
    """

    def embed(state):
        moved = 3 - float(state["w"][0])
        if seen is not None:
            seen.append(round(moved / 2, 6))
        angles = moved * np.asarray(speeds)
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    return embed


def turned(weight, *speeds):
    return sum(4 * math.sin(weight * speed) ** 2 for speed in speeds) / len(speeds)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.6, 0.85, 0.99])
@pytest.mark.parametrize("speeds", [(0.1,), (0.2, 0.9, 1.4), (0.0, 0.0, 1.0)])
def test_the_largest_weight_whose_drift_is_within_the_budget(share, speeds):
    seen = []
    given = fusing(turning(*speeds, seen=seen))
    fused = budget(given, share=share)
    whole = turned(1, *speeds)
    wanted = max(step / 10 for step in range(11) if turned(step / 10, *speeds) <= share * whole)
    assert given.figures["weight"] == wanted
    assert given.figures["drift"] == pytest.approx(turned(wanted, *speeds) / whole, abs=1e-4)
    assert given.figures["drift"] <= share
    assert fused["w"].tolist() == pytest.approx([3 - 2 * wanted, 6 - 4 * wanted])
    assert fused["neck.num_batches_tracked"].item() == 40
    assert len(seen) == len(set(seen)), "no weight is embedded twice"


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_of_a_linear_network_is_what_a_loop_over_crops_finds(seed):
    draw = np.random.default_rng(seed)
    crops = draw.standard_normal((9, 4))
    old = draw.standard_normal((4, 3))
    new = old + draw.standard_normal((4, 3))
    given = Fusing(
        {"layer": torch.from_numpy(new)},
        {"layer": torch.from_numpy(old)},
        lambda state: unit(crops @ state["layer"].numpy()),
        np.zeros(9, np.int64),
        lambda state: {},
    )
    fused = budget(given, share=0.4)

    def drift(weight):
        total = 0.0
        for crop in crops:
            ends = [crop @ (share * new + (1 - share) * old) for share in (weight, 0)]
            left, right = (end / math.sqrt(sum(value**2 for value in end)) for end in ends)
            total += sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
        return total / len(crops)

    wanted = 0.0
    while drift(wanted + 0.1) <= 0.4 * drift(1):
        wanted = round(wanted + 0.1, 1)
    assert 0 < wanted < 1
    assert given.figures == {"weight": wanted, "drift": pytest.approx(drift(wanted) / drift(1), abs=1e-5)}
    assert np.allclose(fused["layer"].numpy(), wanted * new + (1 - wanted) * old)


def test_small_turns_give_the_root_of_the_share():
    given = fusing(turning(0.05, 0.08))
    budget(given)
    assert given.figures == {"weight": 0.5, "drift": pytest.approx(0.25, abs=0.01)}


@pytest.mark.parametrize(("share", "weight"), [(0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("speed", [0.4, 0.75 * math.pi])
def test_no_budget_keeps_the_old_model_and_a_full_one_takes_the_new(share, weight, speed):
    given = fusing(turning(speed))
    fused = budget(given, share=share)
    assert torch.equal(fused["w"], states()[0 if weight else 1]["w"]), "however far the models between them drift"
    assert given.figures == {"weight": weight, "drift": weight}


def test_a_weight_beyond_one_over_the_budget_is_not_taken():
    speed = 1.2 * math.pi  # crops turn by more than a full circle
    within = [step / 10 for step in range(11) if turned(step / 10, speed) <= 0.5 * turned(1, speed)]
    assert within == [0.0, 0.1, 0.8, 0.9]
    seen = []
    given = fusing(turning(speed, seen=seen))
    budget(given, share=0.5)
    assert given.figures["weight"] == 0.1
    assert seen == [0.0, 1.0, 0.1, 0.2], "nothing is embedded after the first weight over the budget"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_new_model_that_moves_no_crop_is_taken_whole(share):
    given = fusing()
    fused = budget(given, share=share)
    assert torch.equal(fused["w"], states()[0]["w"])
    assert given.figures == {"weight": 1.0, "drift": 0.0}


def test_at_the_first_step_the_budget_is_not_searched():
    def refused(state):
        raise AssertionError("nothing is embedded")

    entries = ({"budget": {"share": 0.1, "first_weight": 0.75}},)
    assert applied(entries, first=True) == entries
    assert applied(entries, first=True, random=True) == applied(({"budget": {"share": 0.1}},), first=True) == ()
    given = fusing(refused)
    given.first = True
    assert torch.equal(fuse(entries, given)["w"], average(fusing(), weight=0.75)["w"])
    assert given.figures == {"weight": 0.75}


# --------------------------------------------------------------------------------------------------------- two teachers


def test_self_retrieval_is_the_mean_average_precision_of_each_against_the_others():
    vectors, labels = cloud(14, seed=4), np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5, 5])
    found = []
    for i in range(14):
        order = sorted((j for j in range(14) if j != i), key=lambda j: -float(vectors[i] @ vectors[j]))
        hits, precisions = 0, []
        for place, j in enumerate(order, 1):
            if labels[j] == labels[i]:
                hits += 1
                precisions.append(hits / place)
        if precisions:
            found.append(sum(precisions) / len(precisions))
    assert self_retrieval(vectors, labels) == pytest.approx(100 * np.mean(found), abs=1e-6)
    assert self_retrieval(vectors[:2], np.array([0, 1])) == 0


def sorted_retrieval(embeddings, labels):
    """Every row sorted, as the definition says."""
    found = []
    for start in range(0, len(labels), module.CHUNK):
        for row, values in enumerate(embeddings[start : start + module.CHUNK] @ embeddings.T, start):
            order = np.argsort(-np.delete(values, row), kind="stable")
            hits = np.flatnonzero(np.delete(labels, row)[order] == labels[row])
            if len(hits):
                found.append(float(np.mean(np.arange(1, len(hits) + 1) / (hits + 1))))
    return 100 * float(np.mean(found)) if found else 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("count", "people"), [(2, 1), (40, 40), (200, 30), (700, 2)])
def test_counting_gives_what_sorting_gives_ties_too(monkeypatch, count, people, seed):
    monkeypatch.setattr(module, "CHUNK", 64)
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, people, count)
    few = np.eye(4, dtype=np.float32)[draw.integers(0, 4, count)]  # most similarities are equal
    twins = cloud(count, 8, seed)
    twins[count // 2 :] = twins[: count - count // 2]
    for vectors in (cloud(count, 8, seed), few, twins):
        assert self_retrieval(vectors, labels) == sorted_retrieval(vectors, labels)


def test_the_first_fusion_of_two_teachers_has_one():
    given = fusing(labels=np.arange(12) // 3)
    two_teachers(given)
    assert given.figures["long_share"] == 1.0
    assert torch.equal(given.keep["long"]["w"], given.old["w"])
    assert torch.equal(given.keep["short"]["w"], given.new["w"])


def test_the_long_term_model_takes_the_share_that_ranks_best():
    labels = np.arange(12) // 3
    good = unit(np.eye(4)[labels] + 0.01 * np.random.default_rng(0).standard_normal((12, 4)))
    short = {"w": torch.tensor([0.0, 0.0]), "classifier.weight": torch.zeros(1, 1)}
    long = {"w": torch.tensor([10.0, 0.0]), "classifier.weight": torch.zeros(1, 1)}

    def embed(state):
        return good if abs(float(state["w"][0]) - 3) < 0.01 else cloud(12, 4, seed=int(10 * state["w"][0]))

    given = fusing(embed, labels, {"short": short, "long": long})
    fused = two_teachers(given)
    assert given.figures["long_share"] == 0.3
    assert given.keep["long"]["w"].tolist() == [3.0, 0.0]
    new = affinities(cloud(12, 4, seed=10), 400, diagonal=False)
    weight = float((new * affinities(good, 400, diagonal=False)).sum(1).mean())
    assert given.figures["weight"] == pytest.approx(weight, abs=1e-4)
    assert fused["w"][0].item() == pytest.approx(weight * 1 + (1 - weight) * 3, abs=1e-3)


# -------------------------------------------------------------------------------------------------------- by importance


def test_each_parameter_follows_the_model_that_needs_it():
    now, past = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 2.0])
    given = fusing(importance=lambda state: {"w": now if state["w"][0] == 1 else past})
    fused = fisher(given, decay=0.5)
    floor = 1e-3 * 1.5
    for at, (new, old) in enumerate(((1.0, 3.0), (2.0, 6.0))):
        share = (now[at] + floor) / (now[at] + past[at] + 2 * floor)
        assert fused["w"][at].item() == pytest.approx(float(share * new + (1 - share) * old), abs=1e-5)
    assert given.keep["fisher"]["w"].tolist() == [3.5, 1.0]
    assert fused["neck.num_batches_tracked"].item() == 40


def test_importance_of_rows_that_are_new_is_zero_before():
    given = fusing(
        kept={"fisher": {"classifier.weight": torch.ones(2, 1)}},
        importance=lambda state: {"classifier.weight": torch.ones(3, 1)},
    )
    fisher(given)
    assert given.keep["fisher"]["classifier.weight"].flatten().tolist() == [2.0, 2.0, 1.0]


# ------------------------------------------------------------------------------------------------------------ wrong use

WRONG = [
    ({"avrage": {}}, "did you mean 'average'"),
    ({"average": {"weight": 2}}, r"weight must lie in 0\.\.1, got 2"),
    ({"average": {"weight": "half"}}, "weight must be a number, got 'half'"),
    ({"average": {"weight": True}}, "must be a number, got True"),
    ({"average": {"w": 1}}, "fusion average: unknown parameter 'w'"),
    ({"adaptive": {"sharpness": 0}}, "positive"),
    ({"fisher": {"decay": -1}}, r"0\.\.1"),
    ({"budget": {"share": 1.5}}, r"fusion budget: share must lie in 0\.\.1, got 1\.5"),
    ({"budget": {"first_weight": -0.1}}, r"first_weight must lie in 0\.\.1"),
    ({"budget": {"weight": 0.5}}, "fusion budget: unknown parameter 'weight'"),
]


@pytest.mark.parametrize(("entry", "said"), WRONG)
def test_a_wrong_fusion_is_refused_before_training(entry, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_fusions((entry,))
    assert "\n" not in str(caught.value)


def test_a_state_that_lies_elsewhere_is_brought_to_the_new_ones_device():
    new, old = {"weight": torch.ones(3, 2, device="meta")}, {"weight": torch.zeros(2, 2)}
    assert blend(new, old, 0.5)["weight"].device.type == "meta"
