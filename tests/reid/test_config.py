"""Settings are strict, typed and forgiving of nothing; what is shipped can be read."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domains.errors import ConfigError
from reid.config import (
    KNOWN_KEYS,
    AugmentConfig,
    Config,
    Method,
    build_config,
    expanded,
    flatten,
    nearest,
    read_method,
    read_stream,
    read_yaml,
    shipped,
    validated,
)
from reid.step.adapting import check_adapter
from reid.step.ending import check_parts
from reid.terms import build_terms

RELIED_ON = {
    "seed",
    "device",
    "method",
    "model.backbone",
    "model.weights",
    "model.dim",
    "crop.height",
    "crop.width",
    "train.iterations",
    "train.identities",
    "train.instances",
    "train.lr",
}


def test_the_keys_that_others_rely_on_are_there():
    assert set(KNOWN_KEYS) >= RELIED_ON


def test_later_layers_win_and_overrides_win_over_all():
    base = {"seed": 3, "train": {"lr": 0.1, "iterations": 7}, "crop": {"height": 64}}
    config = build_config(base, {"train": {"lr": 0.2}}, overrides=["train.lr=0.3", "crop.width = 32", "train.lr=4e-1"])
    assert (config.seed, config.train.lr, config.train.iterations, config.crop.height, config.crop.width) == (
        3,
        0.4,
        7,
        64,
        32,
    )
    assert build_config(base, {"train": {"lr": 0.2}}).train.lr == 0.2
    assert base["train"] == {"lr": 0.1, "iterations": 7}


def test_nothing_given_is_the_defaults():
    assert build_config() == Config()
    assert build_config({"train": {}}) == Config()


VALUES = [
    ("model.mean=[0, 1.5, 2]", ("model", "mean"), (0.0, 1.5, 2.0)),
    ("model.dim=null", ("model", "dim"), None),
    ("train.compile=true", ("train", "compile"), True),
    ("train.milestones=[]", ("train", "milestones"), ()),
    ("model.backbone=onnx:/a=b.onnx", ("model", "backbone"), "onnx:/a=b.onnx"),
    ("device=cuda:1", ("device",), "cuda:1"),
    ("train.lr=1e-3", ("train", "lr"), 1e-3),
]


@pytest.mark.parametrize(("text", "path", "wanted"), VALUES, ids=[value[0] for value in VALUES])
def test_overrides_are_yaml(text, path, wanted):
    found = build_config(overrides=[text])
    for name in path:
        found = getattr(found, name)
    assert found == wanted


UNKNOWN = [
    ({"train": {"iteration": 5}}, "'train.iteration'; did you mean 'train.iterations'"),
    ({"learning_rate": 5}, "known: .*train.lr"),
    ({"lr": 5}, "did you mean 'train.lr'"),
    ({"backbone": "x"}, "did you mean 'model.backbone'"),
    ({"train": 5}, "unknown setting 'train'"),
    ({"model": None}, "unknown setting 'model'"),
    ({1: 2}, "unknown setting '1'"),
    ({"model": {True: 2}}, "unknown setting 'model.True'"),
    ({"train": {"lr": {"value": 1}}}, "unknown setting 'train.lr.value'"),
]


@pytest.mark.parametrize(("tree", "said"), UNKNOWN)
def test_an_unknown_key_names_the_nearest(tree, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build_config(tree)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(KNOWN_KEYS), st.integers(0, 30), st.sampled_from("abcxyz_"))
def test_any_one_letter_slip_of_a_key_is_led_back(key, at, letter):
    slipped = key[: at % len(key)] + letter + key[at % len(key) :]
    with pytest.raises(ConfigError, match="did you mean"):
        build_config(overrides=[f"{slipped}=1"])


WRONG = [
    "seed=-1",
    "seed=1.5",
    "seed=2147483648",
    "device=tpu",
    "device=cuda:x",
    "device=cuda:",
    "device=cudax",
    "device=3",
    "method=null",
    "crop.height=8",
    "crop.height=tall",
    "crop.resize=nearest",
    "model.dim=4",
    "model.mean=[1,2]",
    "model.std=[1,0,1]",
    "model.pooling=max",
    "model.channels=gbr",
    "train.iterations=0",
    "train.iterations=many",
    "train.iterations=1.5",
    "train.identities=1",
    "train.instances=0",
    "train.lr=0",
    "train.lr=.nan",
    "train.lr=.inf",
    "train.lr=-1",
    "train.momentum=2",
    "train.optimiser=adam",
    "train.schedule=linear",
    "train.milestones=[2]",
    "train.precision=fp16",
    "train.weight_decay=-1",
    "augment.flip=1.1",
    "augment.shift=0.6",
    "augment.erase_area=[0.1]",
    "augment.erase_ratio=0",
    "storage.snapshot_seconds=-1",
    "storage.crop_memory_mb=-1",
]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_names_its_key_in_one_line(text):
    with pytest.raises(ConfigError) as caught:
        build_config(overrides=[text])
    assert text.partition("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "said"), [("seed", "takes key=value"), ("train.milestones=[1", "not valid YAML")])
def test_overrides_that_are_no_settings(text, said):
    with pytest.raises(ConfigError, match=said):
        build_config(overrides=[text])


def test_several_faults_are_all_named():
    with pytest.raises(ConfigError, match=r"(?=.*seed)(?=.*train\.lr)"):
        build_config({"seed": -1, "train": {"lr": -1}})


def test_what_is_fixed_for_life_and_what_changes_learned_bits():
    config = Config()
    assert {key.split(".")[0] for key in config.fixed()} == {"seed", "model", "crop", "data"}
    assert set(config.fixed()) == {key for key in KNOWN_KEYS if key.split(".")[0] in ("seed", "model", "crop", "data")}
    assert set(config.learning()) == {key for key in KNOWN_KEYS if not key.startswith("storage.")}
    changed = build_config(overrides=["storage.snapshot_seconds=1", "storage.crop_memory_mb=1"])
    assert changed.learning() == config.learning()
    assert build_config(overrides=["train.lr=1"]).fixed() == config.fixed()
    assert build_config(overrides=["model.mean=[1,2,3]"]).fixed()["model.mean"] == [1, 2, 3]


def test_a_configuration_cannot_be_changed_and_comes_back_from_its_file(tmp_path):
    config = build_config(overrides=["train.milestones=[0.3]", "model.mean=[1,2,3]", "model.std=[1,2,3]", "seed=9"])
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert build_config(read_yaml(tmp_path / "c.yaml")) == config


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}


def test_nearest_without_a_likeness_lists_what_there_is():
    assert nearest("zzz", ["one", "two"]) == "; known: one, two"


BAD_FILES = {"list": "- 1", "empty": "", "text": "just words", "broken": "a: [", "tab": "a:\n\t- 1"}


@pytest.mark.parametrize("kind", [*BAD_FILES, "gone", "folder", "binary"])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, kind):
    file = tmp_path / "c.yaml"
    if kind == "folder":
        file.mkdir()
    elif kind == "binary":
        file.write_bytes(b"\xff\xfe\x00\x81")
    elif kind != "gone":
        file.write_text(BAD_FILES[kind])
    with pytest.raises(ConfigError, match=r"c\.yaml") as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


def test_yaml_builds_no_objects(tmp_path):
    (tmp_path / "c.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "c.yaml")


# -------------------------------------------------------------------------------------------------------------- methods


def test_the_methods_promised_are_shipped():
    assert {"fine_tune", "fusion", "lwf", "affinity", "joint", "default"} <= set(shipped("methods"))


@pytest.mark.parametrize("name", sorted(shipped("methods")))
def test_a_shipped_method_can_be_built(name):
    method = read_method(name)
    assert method.name == name
    assert method.about.strip()
    assert build_terms(method.terms) or method.metric
    check_parts(method)
    check_adapter(method)
    assert method.needs_all_images == (name == "joint")


def test_the_default_guards_the_past_and_carries_galleries():
    method = read_method("default")
    assert method.fusion
    assert method.transport
    assert not method.needs_all_images


def test_a_method_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "about: a trial\nterms:\n- triplet\n- cross_entropy:\n- relation_distillation: {weight: 2}\n"
    )
    method = read_method(str(tmp_path / "mine.yaml"))
    assert method.name == "mine"
    assert method.terms == ({"triplet": {}}, {"cross_entropy": {}}, {"relation_distillation": {"weight": 2}})
    assert method.fusion == ()


BAD_METHODS = [
    ({"terms": ["triplet"]}, "about"),
    ({"about": "x"}, "terms"),
    ({"about": "x", "terms": []}, "terms"),
    ({"about": "x", "terms": "triplet"}, "must be a list of parts"),
    ({"about": "x", "terms": {"triplet": {}}}, "must be a list of parts"),
    ({"about": "x", "terms": [3]}, "one name with its parameters"),
    ({"about": "x", "terms": [None]}, "one name with its parameters"),
    ({"about": "x", "terms": [{}]}, "one name with its parameters"),
    ({"about": "x", "terms": [{"triplet": {}, "cross_entropy": {}}]}, "one name with its parameters"),
    ({"about": "x", "terms": [{"triplet": 3}]}, "terms"),
    ({"about": "x", "terms": ["triplet"], "fusions": []}, "unknown key 'fusions'; did you mean 'fusion'"),
]


@pytest.mark.parametrize(("tree", "said"), BAD_METHODS)
def test_a_wrong_method_is_one_line(tmp_path, tree, said):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=said) as caught:
        read_method(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fusion'"):
        read_method("fuson")
    with pytest.raises(ConfigError, match=r"known: .*fine_tune"):
        read_method("zzz")


# -------------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("name", sorted(shipped("streams")))
def test_a_shipped_stream_can_be_read(name, monkeypatch, tmp_path):
    for variable in ("LIFELONG_REID_DATA", "LREID_DATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    stream = read_stream(name)
    assert stream.domains
    assert stream.about.strip()
    build_config(stream.config)
    assert read_stream(f"configs/streams/{name}.yaml").domains == stream.domains


def test_a_stream_starts_from_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "sites")
    text = (
        "root: ../${PLACE}\ndomains: [a, b]\nunseen: [c, {path: d, same_camera: keep}]\nconfig: {model: {weights: "
        "'${PLACE}/w', dim: 64}}\n"
    )
    (tmp_path / "s.yaml").write_text(text)
    stream = read_stream(str(tmp_path / "s.yaml"))
    assert stream.root == str(tmp_path / "../sites")
    assert [(entry.path, entry.same_camera) for entry in stream.unseen] == [("c", None), ("d", "keep")]
    assert stream.config == {"model": {"weights": "sites/w", "dim": 64}}
    monkeypatch.setenv("PLACE", "elsewhere")
    (tmp_path / "s.yaml").write_text("root: /${PLACE}/all\ndomains: [a]\n")
    assert read_stream(str(tmp_path / "s.yaml")).root == "/elsewhere/all"
    (tmp_path / "s.yaml").write_text("domains: [a]\n")
    assert read_stream(str(tmp_path / "s.yaml")).root == str(tmp_path)


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(ConfigError, match=r"NO_SUCH_PLACE is not set"):
        expanded({"a": ["x", "${NO_SUCH_PLACE}/y"]})
    assert expanded({"a": [1, None, "$HOME and {x}"]}) == {"a": [1, None, "$HOME and {x}"]}


BAD_STREAMS = [
    ({}, "domains"),
    ({"domains": []}, "domains"),
    ({"domains": "viper"}, "domains"),
    ({"domains": ["a"], "unseen": [3]}, "unseen"),
    ({"domains": ["a"], "unseen": [{"path": "b", "same_camera": "maybe"}]}, "same_camera"),
    ({"domains": ["a"], "domain": ["b"]}, "did you mean 'domains'"),
    ({"domains": ["a"], 3: 3}, "3"),
]


@pytest.mark.parametrize(("tree", "said"), BAD_STREAMS)
def test_a_wrong_stream_is_one_line(tmp_path, tree, said):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=said) as caught:
        read_stream(str(tmp_path / "s.yaml"))
    assert "\n" not in str(caught.value)


def test_an_unknown_stream_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'small5'"):
        read_stream("smal5")
    with pytest.raises(ConfigError, match="no stream file"):
        read_stream(str(tmp_path / "elsewhere" / "small5.yaml"))


def test_one_model_serves_more_than_one_kind():
    with pytest.raises(ConfigError, match="augment: flip"):
        validated(AugmentConfig, {"flip": 2}, "augment")
    assert validated(Method, {"name": "x", "about": "y", "terms": ["triplet"]}, "method").terms == ({"triplet": {}},)
