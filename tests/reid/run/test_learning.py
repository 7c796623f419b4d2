"""What a step learns from, how long, and with whose terms; and how a gallery fares that is not embedded again."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from domains.errors import BackboneError, ConfigError
from reid.cli import app
from reid.config import build_config, read_method, read_settings
from reid.network.build import build_model
from reid.network.embedding import embedder
from reid.run import Run
from reid.run.learning import _what_to_learn, planned
from reid.step.speed import Speed
from reid.terms import build_terms

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 3, "identities": 4, "instances": 2},
    "method": "fusion",
}
DOCS = Path(__file__).parents[3] / "docs" / "methods.md"


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", build_config(SETTINGS))


def test_only_the_first_identities_are_learned(run, tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    limited, _ = _what_to_learn(run, [site], build_config(SETTINGS, overrides=["data.identities=4"]))
    kept = sorted(set(limited.train.pids.tolist()))
    assert kept == sorted(set(site.train.pids.tolist()))[:4]
    assert limited.query is site.query
    whole, _ = _what_to_learn(run, [site], build_config(SETTINGS))
    assert whole is site


@pytest.mark.parametrize(
    ("first", "epochs", "iterations", "warmup", "milestones"),
    [(8, 4, 8 * 3, 0.25, (0.5,)), (None, 4, 4 * 3, 0.5, (1.0,)), (None, None, 3, 0.1, (0.5, 0.8))],
)
def test_epochs_count_the_crops_of_the_domain(
    run, tiny_domain, tmp_path, first, epochs, iterations, warmup, milestones
):
    site = tiny_domain(tmp_path / "site")
    assert len(site.train) == 24
    sets = [
        f"train.first_epochs={first or 'null'}",
        f"train.epochs={epochs or 'null'}",
        "train.warmup_epochs=2",
        "train.milestone_epochs=[4]",
    ]
    _, config = _what_to_learn(run, [site], build_config(SETTINGS, overrides=sets))
    assert (config.train.iterations, config.train.warmup, config.train.milestones) == (iterations, warmup, milestones)


@pytest.mark.parametrize("limit", [None, 3])
def test_a_check_plans_the_iterations_that_a_first_step_has(tiny_domain, tmp_path, monkeypatch, limit):
    monkeypatch.setattr("reid.step.speed.measure_speed", lambda config, **_: Speed(10.0, 2**30))
    site, sets = tiny_domain(tmp_path / "site", people=200), [f"data.identities={limit or 'null'}"]
    config = build_config(read_settings("dkp"), overrides=sets)
    _, learned = _what_to_learn(
        Run.create(tmp_path / "dkp", config.model_copy(update={"model": build_config(SETTINGS).model})), [site], config
    )
    crops, batch = 4 * (limit or 120), 4 * min(32, limit or 120)
    assert (
        learned.train.iterations
        == planned([site], config, later=False)[1].train.iterations
        == 80 * max(1, crops // batch)
    )
    assert planned([site], config, later=True)[1].train.iterations == 60 * max(1, crops // batch)
    words = ["domain", "check", str(site.root), "--config", "dkp", "--set", sets[0]]
    told = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["train_seconds"] == batch * learned.train.iterations / 10
    said = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert f"a first step of {learned.train.iterations} iterations" in said
    assert f"a later one of {planned([site], config, later=True)[1].train.iterations}" in said


def test_a_check_of_a_domain_without_train_crops_plans_nothing(tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    lines = (site.root / "domain.csv").read_text().splitlines()
    (site.root / "domain.csv").write_text("\n".join(line for line in lines if not line.endswith("train")) + "\n")
    told = CliRunner().invoke(
        app, ["domain", "check", str(site.root), "--config", "dkp", "--json"], catch_exceptions=False
    )
    assert json.loads(told.stdout)["train_seconds"] is None


def test_the_rate_is_another_from_the_second_domain_on(run, tiny_domain, tmp_path):
    config = build_config(SETTINGS, overrides=["train.lr=0.01", "train.later_lr=0.2"])
    run.learn(tiny_domain(tmp_path / "one"), config=config)
    run.learn(tiny_domain(tmp_path / "two", seed=1), config=config)
    rates = [
        [json.loads(line)["lr"] for line in (step.folder / "log.jsonl").read_text().splitlines()]
        for step in run.steps[1:]
    ]
    assert rates[1] == pytest.approx([0.2 * rate for rate in rates[0]])
    assert [step.card["train"]["config"]["train.lr"] for step in run.steps[1:]] == [0.01, 0.002]


def test_a_cut_resnet_gives_the_map_of_its_stage():
    config = build_config(
        {
            "model": {"backbone": "resnet18", "weights": "none", "stages": 3, "dim": 16},
            "crop": {"height": 64, "width": 32},
        }
    )
    model = build_model(config.model, config.crop.spec()).eval()
    whole = build_model(config.model.model_copy(update={"stages": None, "last_stride": 1}), config.crop.spec()).eval()
    crops = torch.zeros(1, 64, 32, 3, dtype=torch.uint8)
    with torch.no_grad():
        assert model.backbone(model.normalise(crops)).shape == (1, 256, 4, 2)
        assert whole.backbone(whole.normalise(crops)).shape == (1, 512, 4, 2), "without its last stride"
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.3 * sum(
        parameter.numel() for parameter in whole.parameters()
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"backbone": "resnet18", "stages": 4}, "keeps all of this backbone's 4 stages"),
        ({"backbone": "test_vit", "stages": 2}, "model.stages cuts ResNets"),
        ({"backbone": "test_vit", "last_stride": 1}, "no such stage"),
        ({"backbone": "resnet18", "embedding": "none", "dim": 64}, "the backbone's 512"),
    ],
)
def test_a_network_that_can_not_be_cut_is_one_line(setting, said):
    config = build_config({"model": {"weights": "none", **setting}, "crop": {"height": 64, "width": 32}})
    with pytest.raises(BackboneError, match=said) as caught:
        build_model(config.model, config.crop.spec())
    assert "\n" not in str(caught.value)


def test_pooled_features_can_be_the_embedding():
    config = build_config(
        {
            "model": {"backbone": "test_resnet", "weights": "none", "embedding": "none"},
            "crop": {"height": 64, "width": 32},
        }
    )
    model = build_model(config.model, config.crop.spec())
    assert isinstance(model.embedding, torch.nn.Identity)
    assert model.dim == model.backbone.width


def test_recipes_go_by_name_or_path(tmp_path):
    assert read_settings("dkp")["method"] == "dkp-published"
    (tmp_path / "own.yaml").write_text("seed: 3\n")
    assert read_settings(str(tmp_path / "own.yaml")) == {"seed": 3}
    with pytest.raises(ConfigError, match="did you mean 'dkp'"):
        read_settings("dkpp")


def test_without_reindexing(run, tiny_domain, tmp_path):
    sites = [tiny_domain(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))]
    method = read_method("fine_tune").model_copy(update={"transport": ({"ridge": {}},)})
    for site in sites:
        run.learn(site, method=method)
    found = run.evaluate_without_reindexing()
    assert list(found) == ["one", "two", "three"]
    last = found["three"]
    assert last["reindexed"] == last["carried"] == last["as_it_was"], (
        "the last domain's gallery is as new as the queries"
    )
    first, _ = run.model(1)
    final, _ = run.model(3)
    crops = run.stores.get(sites[0], sites[0].gallery).crops
    old, new = (embedder(model, torch.device("cpu"))(crops) for model in (first, final))
    for step in run.steps[2:]:
        old = step.transport()(old)
    assert np.einsum("nd,nd->n", old, new).mean() > 0.5
    assert found["one"]["reindexed"] == pytest.approx(run.evaluate(sites[0])["mAP"])
    run.drop_last()
    run.learn(sites[2], method="fine_tune")
    assert run.evaluate_without_reindexing()["one"]["carried"] is None, "a step without a transport breaks the chain"


def test_the_documents_own_term_runs(run, tiny_domain, tmp_path, monkeypatch):
    python, settings = (
        re.search(rf"```{kind}\n# mine\.\w+\n(.*?)```", DOCS.read_text("utf-8"), re.S)[1] for kind in ("python", "yaml")
    )
    (tmp_path / "mine.py").write_text(python)
    (tmp_path / "mine.yaml").write_text(settings)
    monkeypatch.syspath_prepend(str(tmp_path))
    sealed = run.learn(tiny_domain(tmp_path / "site"), method=str(tmp_path / "mine.yaml"))
    assert '"mine:Length": ' in (sealed.folder / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:Term", "No module named"),
        ("math:Pi", "no attribute"),
        ("math:pi", "is not a term"),
        (":x", "can't import"),
    ],
)
def test_a_term_that_is_none_is_one_line(name, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build_terms(({name: {}},), allow_code=[name])
    assert "\n" not in str(caught.value)
