"""``reid learn RUN DOMAIN`` and nothing else: a recipe that fits, said, recorded and estimated before it starts."""

import json

import pytest
import timm
import yaml
from running import same, weights

from domains.errors import BackboneError
from reid.config import build_config, read_method
from reid.network import timm_backbone
from reid.progress import Progress
from reid.recipe import CPU
from reid.run import Run
from reid.run import estimate as estimates
from reid.run.estimate import estimate
from reid.step.speed import Speed

SMALL = ["model.weights=none", "model.dim=16", "crop.height=64", "crop.width=32", "train.iterations=2"]
SMALL += ["train.identities=4", "train.instances=2"]
TINY = ["model.backbone=test_resnet", *SMALL]


def sets(items):
    return [word for item in items for word in ("--set", item)]


@pytest.mark.slow
def test_a_folder_of_eight_people_is_learned(reid, tiny_domain, tmp_path):
    """Without a word about splits, batches or networks, as a new site's crops arrive."""
    drawn = tiny_domain(tmp_path / "drawn", people=8, each=3)
    for split in (drawn.train, drawn.query, drawn.gallery):
        for path, pid in zip(split.paths, split.pids, strict=True):
            person = tmp_path / "site" / f"person {pid}"
            person.mkdir(parents=True, exist_ok=True)
            (drawn.root / path).rename(person / path)
    code, out, err = reid(
        "learn", tmp_path / "run", tmp_path / "site", *sets(SMALL[:1]), "--set", "train.iterations=2", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["learned"] == ["site"]
    assert "instead of 16: there are no more" in err


@pytest.mark.slow
def test_a_run_on_a_cpu_begins_with_the_recipe(reid, tiny_domain, tmp_path):
    first, second = (tiny_domain(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second")))
    code, out, err = reid("learn", tmp_path / "run", first.root, *sets(SMALL), "--json")
    assert code == 0, err
    assert json.loads(out)["learned"] == ["first"], "stdout is for the result"
    assert "no network is named, so this run takes the recipe cpu: mobilenetv2_100, crops of 64×32, 2 batches" in err
    assert err.index("no network is named") < err.index("training takes about ")
    head = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert head["recipe"] == CPU
    assert (head["config"]["model"]["backbone"], head["config"]["train"]["lr"]) == ("mobilenetv2_100", 0.001)
    code, _, err = reid("learn", tmp_path / "run", second.root)
    assert code == 0, err
    assert "no network is named" not in err
    assert "training takes about" in err
    assert Run.open(tmp_path / "run").steps[2].card["train"]["config"]["train.lr"] == 0.0005, "the run's later rate"


def test_a_run_with_a_named_network_is_as_before(reid, tiny_domain, tmp_path):
    code, _, err = reid("learn", tmp_path / "run", tiny_domain(tmp_path / "site").root, *sets(TINY))
    assert code == 0, err
    assert "no network is named" not in err
    assert "training takes about" in err
    head = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert "recipe" not in head
    assert build_config(head["config"]) == build_config(overrides=TINY)


def test_timing_changes_no_bit(tiny_domain, tmp_path, reid):
    """A step that was timed before it, by the command, and one that was not, in Python."""
    site, config = tiny_domain(tmp_path / "site"), build_config(overrides=TINY)
    reid("learn", tmp_path / "timed", site.root, *sets(TINY))
    run = Run.create(tmp_path / "plain", config)
    run.learn(site)
    assert same(weights(run), weights(Run.open(tmp_path / "timed")))


WAYS = "a GPU (--device cuda), or a new run with a smaller network and crops (--config cpu)"


@pytest.mark.parametrize(
    ("speed", "overrides", "ending"),
    [
        (64.0, [], "about 10 min here: 600 batches of 64 crops, 64 crops/s"),
        (6400.0, [], "about 6 s here: 600 batches of 64 crops, 6400 crops/s"),
        (32.0, [], f"; to shorten it: fewer batches (--set train.iterations=300 takes ten minutes), or {WAYS}"),
        (0.01, [], f"; to shorten it: {WAYS}"),
        (32.0, ["train.epochs=9000"], f" takes ten minutes), or {WAYS}"),
    ],
)
def test_what_takes_long_says_how_to_shorten_it(run, tiny_domain, tmp_path, monkeypatch, speed, overrides, ending):
    monkeypatch.setattr(estimates, "measure_speed", lambda *_, **__: Speed(speed, 1))
    config = run.config.model_copy(update={"train": build_config(overrides=["train.iterations=600", *overrides]).train})
    site = tiny_domain(tmp_path / "s", people=30)
    line = estimate(run, site, read_method(config.method), config, later=False, allow_code=(), progress=Progress())
    assert line.startswith("training takes about ")
    assert line.endswith(ending)
    assert "\n" not in line


def test_a_run_that_has_learned_knows_its_speed(run, tiny_domain, tmp_path, monkeypatch):
    run.learn(tiny_domain(tmp_path / "one"))
    monkeypatch.setattr(estimates, "measure_speed", lambda *_, **__: pytest.fail("it was timed"))
    learned = run.steps[1].card["train"]["crops_per_second"]
    line = estimate(
        run,
        tiny_domain(tmp_path / "two"),
        read_method("default"),
        run.config,
        later=True,
        allow_code=(),
        progress=Progress(),
    )
    assert f"{learned:.0f} crops/s" in line


@pytest.mark.parametrize("method", ["fine_tune", "default"])
def test_off_line_it_says_what_to_do_and_leaves_nothing(reid, tiny_domain, tmp_path, monkeypatch, method):
    def unreachable(backbone, published):
        assert backbone == "mobilenetv2_100"
        assert published.hf_hub_id == timm.get_pretrained_cfg(backbone).hf_hub_id
        raise BackboneError("can't get timm's weights; set model.weights=PATH, or …")

    monkeypatch.setattr(timm_backbone, "start_weights", unreachable)
    code, out, err = reid("learn", tmp_path / "run", tiny_domain(tmp_path / "s", people=40).root, "--method", method)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "reid: can't get timm's weights; set model.weights=PATH, or …"
    assert not (tmp_path / "run").exists()
