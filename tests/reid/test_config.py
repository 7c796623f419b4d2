"""Settings, methods and streams: strict, and an error names the nearest."""

import pytest

from domains.errors import ConfigError
from reid.config import Config, build_config, read_method, read_stream, read_yaml, shipped
from reid.fusion import check_fusions
from reid.terms import build_terms


def test_later_layers_and_overrides_win():
    config = build_config(
        {"train": {"lr": 0.1, "iterations": 5}}, {"train": {"lr": 0.2}}, overrides=["train.iterations=7", "crop.height=64", "seed=3"]
    )
    assert (config.train.lr, config.train.iterations, config.crop.height, config.seed) == (0.2, 7, 64, 3)
    assert build_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.iteration=3", "unknown setting 'train.iteration'; did you mean 'train.iterations'?"),
        ("lr=3", "did you mean 'train.lr'?"),
        ("train.iterations=many", "train.iterations"),
        ("train.iterations=0", "greater than or equal to 1"),
        ("train.lr=.nan", "train.lr"),
        ("device=gpu", 'device must be "cpu", "cuda"'),
        ("crop.height", "key=value"),
        ("train.lr=[", "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_one_line(override, said):
    with pytest.raises(ConfigError) as caught:
        build_config(overrides=[override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_fixed_and_what_is_learning():
    config = Config()
    assert set(config.fixed()) >= {"seed", "model.backbone", "crop.height"}
    assert not [key for key in config.fixed() if key.startswith(("train", "storage"))]
    assert not [key for key in config.learning() if key.startswith("storage")]


@pytest.mark.parametrize("name", ["default", "fine_tune", "fusion", "lwf", "affinity", "joint"])
def test_the_shipped_methods_can_be_built(name):
    method = read_method(name)
    assert build_terms(method.terms)
    check_fusions(method.fusion)
    assert method.needs_all_images == (name == "joint")
    assert len(method.about) > 20


def test_the_default_is_fusion_for_now():
    keys = ("terms", "fusion", "repair", "transport")
    assert [getattr(read_method("default"), key) for key in keys] == [getattr(read_method("fusion"), key) for key in keys]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("about: x\nterms: [tripet]", "did you mean 'triplet'"),
        ("about: x\nterms: [triplet, triplet]", "twice"),
        ("about: x\nterms: [{triplet: {margn: 1}}]", "term triplet"),
        ("about: x\nterms: [{cross_entropy: {classes: some}}]", 'classes must be "current" or "all"'),
        ("about: x\nterms: []", "terms"),
        ("about: x\nterm: [triplet]", "did you mean 'terms'"),
        ("- a", "must hold keys"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_method_is_one_line(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        build_terms(read_method(str(file)).terms)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fusion'"):
        read_method("fussion")


def test_a_stream_starts_from_its_root_and_reads_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("root: ${SITES}/all\ndomains: [a, b]\nunseen: [c, {path: d, same_camera: keep}]\n")
    monkeypatch.delenv("SITES", raising=False)
    with pytest.raises(ConfigError, match="SITES is not set"):
        read_stream(str(file))
    monkeypatch.setenv("SITES", "/sites")
    stream = read_stream(str(file))
    assert stream.root == "/sites/all"
    assert [entry.same_camera for entry in stream.unseen] == [None, "keep"]
    file.write_text("domains: [a]\n")
    assert read_stream(str(file)).root == str(tmp_path)


def test_the_shipped_streams_are_valid(monkeypatch):
    monkeypatch.setenv("LIFELONG_REID_DATA", "/data")
    for name in shipped("streams"):
        build_config(read_stream(name).config)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        read_yaml(tmp_path / "nothing.yaml")
