"""What a run begins with where nobody says: what is named wins, and where a network is named nothing is added."""

import pytest
import yaml

from reid.config import Config, build_config, flatten, read_settings, read_stream, shipped
from reid.recipe import CPU, about, fitting_recipe, is_recipe

RECIPE = flatten(read_settings(CPU))
CROP = {"crop.height", "crop.width"}
TRAIN = {"train.lr", "train.later_lr"}
NET = {"model.backbone", "model.weights", "model.dim"}


@pytest.mark.parametrize(
    ("sets", "kept"),
    [
        ([], {*RECIPE}),
        (["method=lwf"], {*RECIPE}),
        (["seed=3", "storage.snapshot_seconds=1"], {*RECIPE}),
        (["device=cpu"], {*RECIPE}),
        (["model.weights=none"], {*RECIPE} - {"model.weights"}),
        (["model.weights=/some/net.pth"], {*RECIPE} - {"model.weights"}),
        (["model.dim=64"], {*RECIPE} - {"model.dim"}),
        (["model.dim=null"], {*RECIPE} - {"model.dim"}),
        (["crop.height=256"], {*RECIPE} - CROP),
        (["crop.width = 32"], {*RECIPE} - CROP),
        (["crop.resize=cubic"], {*RECIPE}),
        (["train.iterations=7"], {*RECIPE} - {"train.iterations"}),
        (["train.epochs=2"], {*RECIPE} - {"train.iterations"}),
        (["train.first_epochs=2"], {*RECIPE} - {"train.iterations"}),
        (["train.lr=0.1"], {*RECIPE} - {"train.lr"}),
        (["train.identities=4"], {*RECIPE}),
        (["model.backbone=resnet50"], set()),
        (["model.backbone=mobilenetv2_100"], set()),
        (["model.backbone=onnx:net.onnx"], set()),
        (["model.stages=3"], set()),
        (["model.last_stride=1"], set()),
        (["device=cuda"], set()),
        (["device=cuda:1", "train.iterations=3"], set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("how", ["set", "file"])
def test_what_is_named_wins(sets, kept, how):
    layers = [] if how == "set" else [unflat(sets)]
    overrides = sets if how == "set" else []
    name, fitting = fitting_recipe(layers, overrides)
    assert set(fitting) == kept
    assert name == (CPU if kept else "")
    found = flatten(build_config(fitting, *layers, overrides=overrides).model_dump(mode="json"))
    alone = flatten(build_config(*layers, overrides=overrides).model_dump(mode="json"))
    assert {key for key in found if found[key] != alone[key]} <= kept
    assert all(found[key] == RECIPE[key] for key in kept)


def unflat(sets):
    tree = {}
    for text in sets:
        key, _, value = text.partition("=")
        *parents, leaf = key.strip().split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = yaml.safe_load(value)
    return tree


@pytest.mark.parametrize("name", sorted(set(shipped("recipes"))))
def test_a_recipe_that_is_named_is_taken_as_it_is(name):
    settings = read_settings(name)
    _, fitting = fitting_recipe([settings])
    assert build_config(fitting, settings) == build_config(settings)


def test_settings_of_a_checkout_and_of_the_study_stay_what_they_were(monkeypatch):
    monkeypatch.setenv("LIFELONG_REID_DATA", "/data")
    study = read_stream("small5").config
    assert fitting_recipe([study]) == ("", {})
    config = build_config(study)
    assert (config.model.backbone, config.model.dim) == ("mobilenetv2_100", 512)
    assert (config.crop.height, config.crop.width) == (128, 64)
    assert (config.train.iterations, config.train.lr, config.train.later_lr) == (100, 0.001, 0.5)
    assert (Config().model.backbone, Config().train.iterations, Config().crop.height) == ("resnet50", 1200, 256)


def test_the_recipe_is_the_study_s_from_timm_s_weights(monkeypatch):
    monkeypatch.setenv("LIFELONG_REID_DATA", "/data")
    study = flatten(build_config(read_stream("small5").config).model_dump())
    recipe = flatten(build_config(read_settings(CPU)).model_dump())
    assert {key for key in study if study[key] != recipe[key]} == {"model.weights"}


def test_what_was_chosen_is_one_line():
    config = build_config(read_settings(CPU))
    assert is_recipe(config)
    assert not is_recipe(Config())
    assert about(config) == (
        "no network is named, so this run takes the recipe cpu: mobilenetv2_100, crops of 128×64, 100 batches a "
        "domain; name others with --config or --set"
    )
    assert "3 epochs" in about(build_config(read_settings(CPU), overrides=["train.epochs=3"]))
