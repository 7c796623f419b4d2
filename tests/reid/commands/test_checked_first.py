"""What is wrong with a command is said before any network is built, and without asking anybody for weights."""

import sys

import pytest
import yaml
from running import SETTINGS

from reid.config import build_config
from reid.network import build
from reid.run import Run

TINY = {name: value for name, value in SETTINGS.items() if name != "method"}
FILES = {
    "settings.yaml": TINY,
    "fetched.yaml": {**TINY, "model": {"backbone": "test_resnet", "weights": "timm"}},
    "no_term.yaml": {"about": "x", "terms": ["cross_entropie"]},
    "no_parameter.yaml": {"about": "x", "terms": [{"triplet": {"wait": 2}}]},
    "no_fusion.yaml": {"about": "x", "terms": ["triplet"], "fusion": ["medium"]},
    "no_key.yaml": {"about": "x", "terms": ["triplet"], "fusing": []},
    "own.yaml": {"about": "x", "terms": ["somewhere:Term"]},
    "stream.yaml": {"domains": ["first", "second"]},
    "gone.yaml": {"domains": ["first", "nowhere"]},
    "alone.yaml": {"domains": ["first", "alone"]},
    "twice.yaml": {"domains": ["first", "first"]},
    "bad.yaml": {"domains": ["first"], "config": {"train": {"lr": -1}}},
}
LEARN = {
    "an unknown method": (["--method", "fusio"], "unknown method 'fusio'; did you mean"),
    "an unknown method by --set": (["--set", "method=fusio"], "unknown method"),
    "no such method file": (["--method", "nowhere.yaml"], "nowhere.yaml"),
    "an unknown term": (["--method", "no_term.yaml"], "unknown term 'cross_entropie'"),
    "an unknown parameter": (["--method", "no_parameter.yaml"], "term triplet"),
    "an unknown fusion": (["--method", "no_fusion.yaml"], "medium"),
    "an unknown key of a method": (["--method", "no_key.yaml"], "fusing"),
    "code that nobody allowed": (["--method", "own.yaml"], "somewhere:Term"),
    "an unknown setting": (["--set", "train.lrr=1"], "unknown setting 'train.lrr'"),
    "a wrong value": (["--set", "train.lr=fast"], "train.lr"),
    "too few people asked for": (["--set", "data.identities=-1"], "data.identities"),
    "no such settings": (["--config", "nowhere"], "no settings file 'nowhere'"),
    "a device that is none": (["--device", "gpu"], "device must be"),
    "a device that is not there": (["--device", "cuda:99"], "cuda:99"),
    "no domain to score": (["--also", "nowhere"], "nowhere"),
    "nothing to replace": (["--replace-last"], "nothing yet"),
}


@pytest.fixture
def folder(tiny_domain, tmp_path, monkeypatch):
    for seed, name in enumerate(("first", "second")):
        tiny_domain(tmp_path / name, seed=seed)
    tiny_domain(tmp_path / "alone", people=1)
    for name, value in FILES.items():
        (tmp_path / name).write_text(yaml.safe_dump(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Fail if a network is built, by whichever way."""

    def refuse(*_, **__):
        raise AssertionError("a network was built before the command was checked")

    for name, module in list(sys.modules.items()):
        for builder in ("build_model", "build_backbone", "open_timm", "open_onnx"):
            if name.startswith("reid.") and hasattr(module, builder):
                monkeypatch.setattr(module, builder, refuse)


def refused(reid, words, said, folder=None):
    code, out, err = reid(*words)
    assert code in (1, 2), err
    assert said in err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("reid: ")  # after progress, on a slow machine
    assert out == ""
    if folder is not None:
        assert not folder.exists()


@pytest.mark.parametrize("case", LEARN)
def test_learn(folder, no_network, reid, case):
    options, said = LEARN[case]
    config = [] if "--config" in options else ["--config", "settings.yaml"]
    refused(reid, ["learn", "run", "first", *config, *options], said, folder / "run")


@pytest.mark.parametrize("case", LEARN)
def test_learn_on(folder, reid, monkeypatch, request, case):
    Run.create(folder / "run", build_config(TINY))
    before = sorted(map(str, (folder / "run").rglob("*")))
    request.getfixturevalue("no_network")
    options, said = LEARN[case]
    refused(reid, ["learn", "run", "first", *options], said)
    assert sorted(map(str, (folder / "run").rglob("*"))) == before


@pytest.mark.parametrize(("domain", "said"), [("nowhere", "nowhere"), ("alone", "identities")])
def test_learn_a_domain_that_can_not_be_learned(folder, no_network, reid, domain, said):
    refused(reid, ["learn", "run", domain, "--config", "settings.yaml"], said, folder / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stream.yaml", "--method", "fusio"], "unknown method 'fusio'"),
        (["stream.yaml", "--method", "no_term.yaml"], "unknown term"),
        (["stream.yaml", "--set", "train.lrr=1"], "unknown setting"),
        (["alone.yaml"], "needs at least two"),
        (["stream.yaml", "--device", "cuda:99"], "cuda:99"),
        (["stream.yaml", "--order", "auto", "--method", "fusio"], "unknown method"),
        (["gone.yaml"], "nowhere"),
        (["twice.yaml"], "two domains 'first'"),
        (["bad.yaml"], "train.lr"),
        (["streams.yaml"], "no stream file"),
    ],
)
def test_stream(folder, no_network, reid, words, said):
    config = [] if words == ["bad.yaml"] else ["--config", "settings.yaml"]
    refused(reid, ["stream", *words, "--run", "run", *config], said, folder / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["domain", "relate", "run", "nowhere"], "nowhere"),
        (["domain", "relate", "run", "first", "--device", "gpu"], "device must be"),
        (["domain", "relate", "run", "first", "--device", "cuda:99"], "cuda:99"),
        (["domain", "relate", "run", "first", "--picture", "nowhere/map.svg"], "folder that does not exist"),
        (["evaluate", "run", "nowhere"], "nowhere"),
        (["evaluate", "run", "first", "--step", "9"], "has steps 0 to 0"),
        (["evaluate", "run", "first", "--step", "9", "--open-set"], "has steps 0 to 0"),
        (["evaluate", "run", "first", "--device", "gpu"], "device must be"),
        (["evaluate", "run", "first", "--device", "cuda:99"], "cuda:99"),
        (["export", "run", "bundle", "--step", "9"], "has steps 0 to 0"),
        (["export", "run", "bundle", "--site", "nowhere"], "neither a domain"),
        (["export", "run", "bundle", "--int8", "nowhere"], "nowhere"),
        (["export", "run", "bundle", "--int8", "alone"], "alone"),
        (["export", "run", "bundle", "--int8", "first", "--fp16"], "not both"),
        (["export", "run", "bundle", "--strict"], "--int8"),
        (["export", "run", "bundle", "--key", "nowhere"], "nowhere"),
        (["export", "run", "first"], "already exists"),
    ],
)
def test_what_uses_a_run(folder, reid, request, words, said):
    Run.create(folder / "run", build_config(TINY))
    request.getfixturevalue("no_network")
    refused(reid, words, said)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.backbone=resnet5000", "timm has no model"),
        ("model.stages=9", "stages"),
        ("model.last_stride=2", "last_stride"),
        ("crop.height=5", "crop.height"),
        ("model.weights=nowhere.pth", "nowhere.pth"),
        ("model.backbone=onnx:nowhere.onnx", "nowhere.onnx"),
    ],
)
def test_nobody_is_asked_for_weights_that_do_not_fit(folder, reid, monkeypatch, setting, said):
    import timm

    create = timm.create_model

    def offline(*words, pretrained=False, **options):
        assert not pretrained, "weights were asked for"
        return create(*words, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    refused(reid, ["learn", "run", "first", "--config", "fetched.yaml", "--set", setting], said, folder / "run")


def test_the_builder_that_these_tests_forbid_is_the_one_that_is_used():
    assert {"build_model", "build_backbone", "open_timm", "open_onnx"} <= set(dir(build))
