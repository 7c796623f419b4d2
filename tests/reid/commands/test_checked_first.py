"""What is wrong with a command is said before any network is built, and without asking anybody for weights."""

import os
import sys

import pytest
import yaml
from running import SETTINGS

import domains
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
    "a device of many digits": (["--device", "cuda:99999999999"], "device must be"),
    "a device of odd digits": (["--device", "cuda:007"], "device must be"),
    "a device said once": (["--device", "foo"], 'device must be "cpu", "cuda" or "cuda:N", got \'foo\'\n'),
    "more crops of a person than fit": (["--set", "train.instances=99999999"], "train.instances"),
    "more people than fit": (["--set", "train.identities=99999999"], "train.identities"),
    "a batch that does not fit": (
        ["--set", "train.instances=4096", "--set", "train.identities=4096"],
        "a batch of 4096 identities × 4096 instances is too large; at most 65,536 crops",
    ),
    "more batches than end": (["--set", "train.iterations=99999999999"], "train.iterations"),
    "more epochs than end": (["--set", "train.epochs=" + "9" * 400], "train.epochs"),
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


@pytest.mark.parametrize("method", ["defualt", "nowhere.yaml", "no_key.yaml"])
def test_a_method_is_checked_where_it_is_not_needed_either(folder, reid, method):
    run = Run.create(folder / "run", build_config({**TINY, "train": {**TINY["train"], "iterations": 1}}))
    run.learn(domains.open(folder / "first"))
    code, out, err = reid("learn", "run", "first", "--method", method)
    assert (code, out) == (2, "") if method != "nowhere.yaml" else code in (1, 2)
    assert method.removesuffix(".yaml") in err
    assert reid("learn", "run", "first", "--method", "default")[0] == 0


@pytest.mark.parametrize("words", [["--json"], []])
def test_which_model_is_scored_is_said_where_two_are_named(folder, reid, words):
    Run.create(folder / "run", build_config(TINY))
    code, out, err = reid("evaluate", "run", "first", "--bundle", "nowhere", *words)
    assert (code, out) == (1, "")
    assert err.startswith("warning: the bundle nowhere is scored, and not the run run; ")
    assert "warning" not in reid("evaluate", "first", "--bundle", "nowhere", *words)[2]


@pytest.mark.parametrize("device", ["cuda:99999999999", "cuda:" + "9" * 4000, "cuda:007", "gpu"])
def test_a_device_that_a_received_run_names(folder, reid, device):
    Run.create(folder / "run", build_config(TINY))
    file = folder / "run" / "run.yaml"
    file.write_text(file.read_text().replace("device: cpu", f"device: {device}"))
    code, out, err = reid("evaluate", "run", "first")
    assert (code, out) == (2, "")
    assert "device must be" in err
    assert len(err) < 400


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
        (["twice.yaml"], "two domains are called 'first'"),
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


OUTPUTS = {
    "a folder that is not there": ("nowhere/x", "nowhere/x{} lies in a folder that does not exist"),
    "a file as a folder": ("settings.yaml/x", "settings.yaml/x{} lies in a folder that does not exist"),
    "a folder": ("folder", "folder{} is a folder"),
    "a pipe": ("pipe", "pipe{} is a pipe"),
    "a device": ("device", "device{} is a device"),
    "a link to a file": ("link", "link{} is a link to kept"),
    "a link to nothing": ("loose", "loose{} is a link to gone"),
}
WRITERS = {
    "report": (["report", "run", "--output"], ".html"),
    "relate": (["domain", "relate", "run", "first", "--picture"], ".svg"),
    "query": (["query", "gallery", "first/0.png", "--picture"], ".png"),
}


def same(path):
    """What must not change about a file that a result was not written to."""
    return os.lstat(path).st_ino, os.readlink(path) if os.path.islink(path) else ""


@pytest.mark.parametrize("case", OUTPUTS)
@pytest.mark.parametrize("writer", WRITERS)
def test_where_a_result_is_written(folder, reid, writer, case):
    Run.create(folder / "run", build_config(TINY))
    words, suffix = WRITERS[writer]
    (folder / f"folder{suffix}").mkdir()
    os.mkfifo(folder / f"pipe{suffix}")
    (folder / "kept").write_text("kept")
    for name, target in (("device", "/dev/null"), ("link", "kept"), ("loose", "gone")):
        (folder / f"{name}{suffix}").symlink_to(target)
    before = {path: same(path) for path in folder.iterdir()}
    name, said = OUTPUTS[case]
    refused(reid, [*words, f"{name}{suffix}"], said.format(suffix))
    assert {path: same(path) for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["run.yaml", "scores.json", "steps/00-start/card.json", "steps/00-start/new"])
@pytest.mark.parametrize("writer", ["report", "relate"])
def test_a_result_replaces_no_file_of_a_run(folder, reid, writer, name):
    Run.create(folder / "run", build_config(TINY))
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    refused(reid, [*WRITERS[writer][0], f"run/{name}"], f"run/{name} lies among the files of a run")
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


def test_a_picture_replaces_no_image_that_is_asked_about(folder, reid):
    refused(reid, ["query", "gallery", "first/0.png", "--picture", "./first/../first/0.png"], "would replace")


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


@pytest.mark.parametrize("name", [".", "..", "", "folder"])
def test_a_key_is_a_file(tmp_path, reid, monkeypatch, name):
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    code, out, err = reid("key", "make", name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
