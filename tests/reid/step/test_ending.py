"""The end of a step: repairs, the transport, and the order that makes each part right for the next."""

import numpy as np
import pytest
import torch

from domains.errors import ConfigError
from prototypes.memory import Memory
from prototypes.prototype import DistributionPrototypes
from prototypes.renewal import renewed
from prototypes.transport import Transport, fit_transport
from reid.batches.loader import CropStore
from reid.config import Method, build_config
from reid.network.build import build_model
from reid.network.runtime import Runtime
from reid.step.ending import check_parts, end_step
from reid.step.repair import batchnorm, classifier
from reid.terms import Step, build_terms
from reid.terms.survey import Survey

SETTINGS = {"model": {"backbone": "test_resnet", "weights": "none", "dim": 16}, "crop": {"height": 32, "width": 16}}
OLD = 4


def method(**parts):
    return Method.model_validate({"name": "made up", "about": "For a test.", "terms": ["triplet"], **parts})


def nudged(model, size=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


@pytest.fixture
def step(tiny_domain, tmp_path):
    site, config = tiny_domain(tmp_path / "site"), build_config(SETTINGS)
    model = build_model(config.model, config.crop.spec(), classes=OLD)
    model.add_distribution("pooled")
    model.grow(6)
    store = CropStore.decode(site, site.train, config.crop.spec())
    labels = np.unique(store.split.pids, return_inverse=True)[1]
    made = Step(
        2,
        site,
        config,
        Runtime(torch.device("cpu"), torch.float32),
        nudged(model),
        {},
        OLD,
        [memory("first", 3), memory("second", 1)],
    )
    made.survey = Survey(store, np.arange(len(store)), labels, torch.device("cpu"))
    return made


def memory(name, count, dim=16):
    mean = np.random.default_rng(len(name)).standard_normal((count, dim)).astype(np.float32)
    kept = DistributionPrototypes(
        mean / np.linalg.norm(mean, axis=1, keepdims=True), np.full((count, dim), 0.05, np.float32)
    )
    return Memory(name, "space", {**kept.to_arrays(), "style.statistics": np.ones((4, 3), np.float32)})


ROWS = [slice(0, 3), slice(3, 4)]


def old_model(step):
    config = build_config(SETTINGS)
    return build_model(config.model, config.crop.spec(), classes=OLD).eval()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# -------------------------------------------------------------------------------------------------------------- repairs


def test_batchnorm_takes_the_statistics_of_the_crops(step):
    layer = next(module for module in step.model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    before, momentum = state(step.model), layer.momentum
    batchnorm(step, step.survey)
    hook.remove()
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    assert torch.allclose(layer.running_mean, values.mean(1), atol=1e-5)
    assert torch.allclose(layer.running_var, values.var(1), rtol=1e-4, atol=1e-6)
    after = step.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("running_" in name or "num_batches" in name for name in moved)
    assert not any(name.startswith("neck.") for name in moved)
    assert layer.momentum == momentum
    assert not step.model.training


def test_a_share_of_batchnorm_is_between_old_and_new(step):
    layer = next(module for module in step.model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))
    start = layer.running_mean.clone()
    batchnorm(step, step.survey, share=0.0)
    assert torch.equal(layer.running_mean, start)
    batchnorm(step, step.survey, share=0.25)
    quarter = layer.running_mean.clone()
    layer.running_mean.copy_(start)
    batchnorm(step, step.survey, share=1.0)
    assert not torch.allclose(layer.running_mean, start)
    assert torch.allclose(quarter, torch.lerp(start, layer.running_mean, 0.25), atol=1e-5)


def test_batchnorm_is_left_alone_after_the_last_step_that_it_is_for(step):
    before = state(step.model)
    batchnorm(step, step.survey, until=step.index - 1)
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    batchnorm(step, step.survey, until=step.index)
    assert any(not torch.equal(value, before[name]) for name, value in step.model.state_dict().items())


@pytest.mark.parametrize(("fusion", "repaired"), [((), False), (({"average": {"first_weight": 0.5}},), True)])
def test_a_first_step_is_repaired_only_if_it_was_fused(step, fusion, repaired):
    step.index, step.config = 1, build_config({**SETTINGS, "model": {**SETTINGS["model"], "weights": "timm"}})
    chosen = method(fusion=fusion, repair=({"batchnorm": {}},))
    layer = next(module for module in step.model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))
    layer.running_mean.fill_(7.0)
    end_step(step, build_terms(chosen.terms), chosen, old_model(step), space="old", rows=ROWS)
    assert bool((layer.running_mean == 7.0).all()) == (not repaired)


def test_aligning_the_classifier_lowers_its_loss_and_moves_no_feature(step):
    gaussians = [
        (rows, DistributionPrototypes.from_arrays(kept.arrays)) for rows, kept in zip(ROWS, step.memories, strict=True)
    ]
    space, before = step.model.feature_space(step.config.crop.spec()), state(step.model)

    def loss():
        with torch.no_grad():
            vectors = torch.cat([torch.from_numpy(found.mean) for _, found in gaussians])
            return torch.nn.functional.cross_entropy(
                step.model.eval().classify(vectors)[:, :OLD], torch.arange(OLD)
            ).item()

    start = loss()
    classifier(step, gaussians, iterations=60, lr=0.05)
    assert loss() < 0.5 * start
    assert step.model.feature_space(step.config.crop.spec()) == space
    moved = {
        name.split(".")[0] for name, value in step.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"neck", "classifier"}
    assert torch.equal(step.model.classifier.weight[OLD:], before["classifier.weight"][OLD:]), (
        "rows without a Gaussian stay"
    )


# ------------------------------------------------------------------------------------------------------------ the whole


def test_parts_come_in_their_order(step, monkeypatch):
    import reid.step.ending

    calls = []

    def spy(name, function):
        def called(*args, **options):
            calls.append(name)
            return function(*args, **options)

        return called

    monkeypatch.setattr(reid.step.ending, "fuse", spy("fuse", reid.step.ending.fuse))
    monkeypatch.setattr(reid.step.ending, "learn_transport", spy("transport", reid.step.ending.learn_transport))
    monkeypatch.setattr(reid.step.ending, "BEFORE", {"batchnorm": spy("batchnorm", batchnorm)})
    monkeypatch.setattr(reid.step.ending, "AFTER", {"classifier": spy("classifier", classifier)})
    terms = build_terms(({"prototypes": {}},))
    monkeypatch.setattr(terms["prototypes"], "end", spy("prototypes", terms["prototypes"].end))
    whole = method(fusion=["average"], repair=[{"classifier": {"iterations": 2}}, "batchnorm"], transport=["ridge"])
    ended = end_step(step, terms, whole, old_model(step), space="old space", rows=ROWS)
    assert calls == ["fuse", "batchnorm", "transport", "prototypes", "classifier"]
    assert set(ended.memory) == {"prototypes.mean", "prototypes.spread"}
    assert ended.memory["prototypes.mean"].dtype == torch.float16
    assert ended.transport.source == "old space"
    assert ended.transport.target == step.model.feature_space(step.config.crop.spec()), (
        "the space is named after all that moves it"
    )
    assert ended.figures["transport.cosine"] >= ended.figures["transport.cosine_without"] - 1e-6


def test_the_transport_is_fitted_between_the_old_model_and_the_finished_one(step):
    old = old_model(step)
    before = step.survey.embeddings(old)
    ended = end_step(
        step,
        {},
        method(fusion=["average"], transport=[{"ridge": {"recoloured": 0, "drawn": 0}}]),
        old,
        space="s",
        rows=ROWS,
    )
    wanted = fit_transport(before, step.survey.embeddings(step.model))
    assert np.array_equal(ended.transport.matrix, wanted.matrix)


def test_the_first_step_has_nothing_to_fuse_with(step):
    step.index = 1
    before = state(step.model)
    ended = end_step(step, {}, method(fusion=["average"], repair=["batchnorm"]), old_model(step), space="s", rows=[])
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    assert (ended.transport, ended.kept, ended.memory) == (None, {}, {})


@pytest.mark.parametrize("weights", ["none", "some.safetensors"])
def test_the_first_step_can_keep_some_of_a_start_that_is_not_random(step, weights):
    step.index = 1
    step.config = step.config.model_copy(update={"model": step.config.model.model_copy(update={"weights": weights})})
    before, start, name = state(step.model), old_model(step), "embedding.weight"
    end_step(step, {}, method(fusion=[{"average": {"weight": 0.5, "first_weight": 0.75}}]), start, space="s", rows=[])
    kept = 0.0 if weights == "none" else 0.25
    assert torch.allclose(
        step.model.state_dict()[name], (1 - kept) * before[name] + kept * start.state_dict()[name], atol=1e-6
    )


@pytest.mark.parametrize("name", ["adaptive", "average", "budget", "fisher", "two_teachers"])
def test_every_fusion_leaves_a_model_that_works(step, name):
    ended = end_step(step, {}, method(fusion=[name]), old_model(step), space="s", rows=ROWS)
    assert np.isfinite(step.survey.embeddings(step.model)).all()
    assert set(ended.kept) == {"fisher": {"fisher"}, "two_teachers": {"short", "long"}}.get(name, set())
    assert not any(parameter.grad is not None for parameter in step.model.parameters())
    if name != "average":
        assert 0 <= ended.figures["fusion.weight"] <= 1


def test_memories_are_carried_through_one_transport_after_another():
    rng = np.random.default_rng(0)
    turns = [Transport("a", "b", np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32), "ridge"), None]
    turns[1] = Transport("b", "c", np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32), "ridge")
    kept = memory("first", 3)
    found = renewed(kept, turns)
    assert found.feature_space == "c"
    wanted = kept.arrays["prototypes.mean"].astype(np.float32) @ turns[0].matrix @ turns[1].matrix
    assert np.allclose(found.arrays["prototypes.mean"], wanted, atol=2e-3)
    assert np.array_equal(found.arrays["style.statistics"], kept.arrays["style.statistics"])
    assert renewed(kept, []) is kept
    bare = Memory("bare", "a", {})
    assert renewed(bare, turns) is bare


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"repair": ["batchnrm"]}, "did you mean 'batchnorm'"),
        ({"repair": [{"batchnorm": {"share": 2}}]}, r"share must lie in 0\.\.1"),
        ({"repair": [{"classifier": {"iterations": 1.5}}]}, "iterations must be a whole number"),
        ({"repair": [{"classifier": {"steps": 1}}]}, "unknown parameter 'steps'"),
        ({"transport": ["rigde"]}, "did you mean 'ridge'"),
        ({"transport": ["ridge", "procrustes"]}, "lists 2 transports"),
        ({"transport": [{"ridge": {"rank": 3}}]}, "unknown parameter 'rank'"),
        ({"fusion": ["adaptve"]}, "did you mean 'adaptive'"),
    ],
)
def test_a_wrong_part_is_refused_before_training(parts, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_parts(method(**parts))
    assert "\n" not in str(caught.value)
