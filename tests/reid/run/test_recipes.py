"""The published recipes run on tiny copies of the published layouts, and their first losses are those of the formulas,
written with loops.
"""

import json
import math
import shutil

import cv2
import numpy as np
import pytest
import torch

import domains
from prototypes.prototype import DistributionPrototypes
from reid.config import build_config, read_method, read_settings, read_stream, shipped
from reid.network.distribution import draw
from reid.run import Run
from reid.run.stream import learn_stream
from reid.step.learner import Learner

RECIPES = ("dask", "dkp", "dkp++", "lstkc", "lstkc++")
PEOPLE, SHOTS = 3, 4
TINY = [
    "model.backbone=resnet18",
    "model.weights=none",
    "crop.height=128",
    "crop.width=128",
    "train.first_epochs=null",
    "train.epochs=null",
    "train.iterations=2",
    "train.warmup=0",
    "train.identities=3",
    "train.instances=2",
    "data.identities=2000",
]


def image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(picture, (32, 64)))


def market(root):
    for person in range(PEOPLE):
        for shot in range(SHOTS):
            image(
                root / f"bounding_box_train/{person + 2:04d}_c{shot % 2 + 1}s1_00{shot:04d}_00.jpg", (1, person, shot)
            )
    image(root / "query/0001_c1s1_001051_00.jpg", 1)
    image(root / "bounding_box_test/0001_c2s1_000301_00.jpg", 2)


def cuhk_sysu(root):
    for person in range(PEOPLE):
        for shot in range(SHOTS):
            image(root / f"cuhksysu4reid/train/{person + 2:05d}_s{shot}_{shot:07d}_0.jpg", (2, person, shot))
    for name in ("query/00009_s7_0000001_0.jpg", "gallery/00009_s8_0000001_1.jpg", "combine/00009_s8_0000001_1.jpg"):
        image(root / "cuhksysu4reid" / name, 3)


def lpw(root):
    for person in range(PEOPLE):
        for shot in range(SHOTS):
            image(root / f"scen2/view{shot % 2 + 1}/{person + 1}/{shot}.jpg", (3, person, shot))
    for view in (1, 2):
        image(root / f"scen1/view{view}/12/1.jpg", view)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("lreid")
    made = {"market1501": market, "cuhk_sysu": cuhk_sysu, "lpw": lpw}
    for name, make in made.items():
        make(root / name)
    return [domains.open(root / name) for name in made]


def test_every_recipe_is_tested_and_names_what_is_there():
    assert set(shipped("recipes")) == {*RECIPES, "cpu"}
    for recipe in RECIPES:
        config = build_config(read_settings(recipe))
        assert config.train.identities * config.train.instances == (64 if recipe in ("dkp++", "lstkc++") else 128)
        assert (config.train.first_epochs, config.train.epochs, config.train.lr, config.data.identities) == (
            80,
            60,
            0.008,
            500,
        )
        read_method(config.method)


def test_the_published_orders(monkeypatch):
    monkeypatch.setenv("LREID_DATA", "/somewhere")
    first, second, third = (read_stream(name).domains for name in ("lreid-lpw", "lreid-order1", "lreid-order2"))
    assert first == ("market1501", "cuhk_sysu", "lpw", "msmt17", "cuhk03")
    assert second == ("market1501", "cuhk_sysu", "dukemtmc", "msmt17", "cuhk03")
    assert third == ("dukemtmc", "msmt17", "market1501", "cuhk_sysu", "cuhk03")
    assert len(read_stream("lreid-lpw").unseen) == 7


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_first_losses_are_those_of_the_formulas(recipe, sets, tmp_path, monkeypatch):
    settings = read_settings(recipe)
    sizes = [] if "stages" not in settings["model"] else ["model.dim=24"]
    config = build_config(settings, overrides=[*TINY, *sizes])
    method = read_method(config.method)
    short = tuple(
        {
            name: {**body, "iterations": 2, "batch": 4} if name == "style_network" else body
            for name, body in entry.items()
        }
        for entry in method.terms
    )
    method = method.model_copy(update={"terms": short})
    seen = {}

    def remember(learner, batch, iteration, update=Learner._update):
        if iteration == 0 and learner.step.index == 3:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                seen.update(naive_losses(learner, batch))
        return update(learner, batch, iteration)

    monkeypatch.setattr(Learner, "_update", remember)
    run = Run.create(tmp_path / "run", config)
    learn_stream(run, sets, method=method, config=config)
    logged = json.loads((run.steps[3].folder / "log.jsonl").read_text().splitlines()[0])["losses"]
    assert set(logged) == set(seen)
    for name, value in seen.items():
        assert logged[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name
    assert not any("took no part" in note for note in run.steps[3].card["notes"])
    shutil.rmtree(tmp_path / "run")


# --------------------------------------------------------------------------------------------- the formulas, with loops


def naive_losses(learner, batch):
    """Every objective of the batch from its embeddings alone; asks the batch for what the terms will ask for, which is
    computed once.
    """
    found = {}
    for name, term in learner.terms.items():
        kind, view = name.split(" (")[0], term.view
        if kind == "cross_entropy":
            found[name] = cross_entropy(batch.output(view).logits, batch.labels)
        elif kind == "triplet":
            vectors = [v / v.norm() for v in batch.output(view).embedding.detach().double()]
            found[name] = triplet(vectors, batch.labels.tolist(), vectors, batch.labels.tolist())
        elif kind == "distribution_cross_entropy":
            found[name] = cross_entropy(batch.gaussians(view, 6).logits, batch.labels.repeat(7))
        elif kind == "distribution_triplet":
            drawn = batch.gaussians(view, 6)
            anchors = [row for sample in resampled(batch, view) for row in sample]
            found[name] = triplet(
                anchors, batch.labels.tolist() * 6, list(drawn.centre.detach().double()), batch.labels.tolist()
            )
        elif kind == "joint_triplet":
            aligned, plain = resampled(batch, "aligned"), resampled(batch, "plain")
            centre = list(batch.gaussians("plain", 6).centre.detach().double())
            anchors = [row for group in (*aligned, centre, *plain) for row in group]
            found[name] = triplet(
                anchors,
                batch.labels.tolist() * 13,
                list(batch.gaussians("aligned", 6).centre.detach().double()),
                batch.labels.tolist(),
            )
        elif kind == "relation_distillation":
            new, old = affinity(batch.output(view).embedding), affinity(batch.teacher("old", view).embedding)
            found[name] = divergence(new, old) if term.reverse else divergence(old, new)
        elif kind == "rectified_distillation":
            new, old = affinity(batch.output(view).embedding), affinity(batch.teacher("old", view).embedding)
            found[name] = divergence(rectified(old, new, batch.labels.tolist(), both=lambda a, b: a), new)
        elif kind == "two_teacher_distillation":
            new = affinity(batch.output(view).embedding)
            short, long = (affinity(batch.teacher(teacher, view).embedding) for teacher in ("short", "long"))
            found[name] = divergence(rectified(short, long, batch.labels.tolist(), both=lambda a, b: (a + b) / 2), new)
        elif kind == "prototype_transfer":
            kept = DistributionPrototypes.from_arrays(batch.step.memories[-1].arrays)
            drawn = draw(
                torch.from_numpy(kept.mean), torch.from_numpy(kept.spread), batch.generator("prototypes")
            ).double()
            centres = batch.output(view).embedding.detach().double()
            assigned = torch.tensor([softmax([float(cosine(c, g)) / 0.1 for g in drawn]) for c in centres])
            found[name] = divergence(affinity(assigned), affinity(centres))
    return found


def resampled(batch, view):
    """Draws unit(c + v⊙ε) from a covariance matrix written out, with the batch's noise."""
    given = batch.gaussians(view, 6)
    noise = torch.randn(6, *given.centre.shape, generator=batch.generator(f"noise {view}"))
    groups = []
    for sample in noise.double():
        rows = [
            c.double() + torch.diag(v.double()) @ e
            for c, v, e in zip(given.centre.detach(), given.spread.detach(), sample, strict=True)
        ]
        groups.append([row / (row.norm() + 1e-4) for row in rows])
    return groups


def cross_entropy(logits, labels):
    rows = logits.detach().double().tolist()
    return sum(
        math.log(sum(math.exp(x - row[y]) for x in row)) for row, y in zip(rows, labels.tolist(), strict=True)
    ) / len(rows)


def triplet(anchors, anchor_labels, centres, labels):
    total = 0.0
    for anchor, label in zip(anchors, anchor_labels, strict=True):
        gaps = [
            (float((anchor - centre).norm()), other == label) for centre, other in zip(centres, labels, strict=True)
        ]
        total += math.log1p(math.exp(max(d for d, same in gaps if same) - min(d for d, same in gaps if not same)))
    return total / len(anchors)


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def softmax(row):
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    return [x / sum(powers) for x in powers]


def affinity(vectors):
    rows = list(vectors.detach().double())
    return [softmax([float(cosine(a, b)) / 0.1 for b in rows]) for a in rows]


def divergence(target, given):
    return sum(
        p * math.log(p / q) for ps, qs in zip(target, given, strict=True) for p, q in zip(ps, qs, strict=True) if p > 0
    ) / len(target)


def rectified(first, second, labels, both):
    out = []
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        limits = [
            (
                max(x for x, y in zip(row, labels, strict=True) if y != labels[i]),
                min(x for j, x in enumerate(row) if labels[j] == labels[i] and j != i),
            )
            for row in (a, b)
        ]
        row = []
        for j, pair in enumerate(zip(a, b, strict=True)):
            same = labels[j] == labels[i]
            right = [
                j == i or value > high if same else value <= low
                for value, (high, low) in zip(pair, limits, strict=True)
            ]
            if all(right):
                row.append(both(*pair))
            elif any(right):
                row.append(pair[0] if right[0] else pair[1])
            else:
                row.append(max(high for high, _ in limits) if same else min(low for _, low in limits))
        out.append([value / sum(row) for value in row])
    return out
