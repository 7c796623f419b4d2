"""A run that somebody else made chooses no code: method files and terms of one's own need the user's word each time."""

import json
import shutil
import sys

import pytest
import yaml
from running import SETTINGS

import domains
from domains.errors import ConfigError
from reid.config import Method, build_config, read_method
from reid.run import Run
from reid.run.consent import chosen_method, named_method
from reid.run.stream import learn_stream
from reid.step.speed import measure_speed
from reid.terms import build_terms

METHOD = "about: planted\nterms: [cross_entropy, triplet, 'planted_terms:Nothing']\n"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module that can be imported and leaves a mark when it is; the method file that asks for it; the mark."""
    folder, mark = tmp_path / "planted", tmp_path / "mark"
    folder.mkdir()
    (folder / "planted_terms.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from reid.terms import Term\nclass Nothing(Term):\n    pass\n"
    )
    (folder / "planted.yaml").write_text(METHOD)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "planted_terms", raising=False)
    yield folder / "planted.yaml", mark
    sys.modules.pop("planted_terms", None)


def naming(run, method):
    """The same run, as its maker could have left it: its settings name another method."""
    head = yaml.safe_load((run.folder / "run.yaml").read_text())
    head["config"]["method"] = str(method)
    (run.folder / "run.yaml").write_text(yaml.safe_dump(head))
    return Run.open(run.folder)


@pytest.mark.parametrize(
    "kind", ["absolute", "relative", "inside the run", "below the run", "missing", "no file at all"]
)
@pytest.mark.parametrize("command", ["learn", "learn again", "stream"])
def test_a_method_that_only_the_run_names_is_not_followed(
    run, sites, planted, kind, command, reid, tmp_path, monkeypatch
):
    file, mark = planted
    if command == "learn again":
        run.learn(sites[1])
    monkeypatch.chdir(run.folder)
    (run.folder / "deep").mkdir()
    named = {
        "absolute": file,
        "relative": "../planted/planted.yaml",
        "inside the run": shutil.copy(file, "mine.yaml"),
        "below the run": shutil.copy(file, "deep/mine.yml"),
        "missing": "nowhere.yaml",
        "no file at all": "planted_terms:Nothing",
    }[kind]
    naming(run, named)
    before = sorted(run.folder.rglob("*"))
    if command == "stream":
        (tmp_path / "s.yaml").write_text(f"root: {sites[0].root.parent}\ndomains: [first]\n")
        code, _, err = reid("stream", tmp_path / "s.yaml", "--run", run.folder)
    else:
        code, _, err = reid("learn", run.folder, sites[0].root, "--allow-code", "planted_terms:Nothing")
    assert code == 2
    assert err.count("\n") == 1
    assert "Name it yourself" in err
    assert not mark.exists()
    assert sorted(set(run.folder.rglob("*")) - {run.folder / ".lock"}) == sorted(set(before) - {run.folder / ".lock"})
    with pytest.raises(ConfigError, match="Name it yourself"):
        Run.open(run.folder).learn(sites[0])
    with pytest.raises(ConfigError, match="Name it yourself"):
        learn_stream(Run.open(run.folder), [sites[0]])


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "FILE"],
        ["-m", "FILE"],
        ["--set", "method=FILE"],
        ["--config", "SETTINGS"],
        ["--method", "FILE", "--allow-code", "planted_terms"],
        ["--method", "FILE", "--allow-code", "planted_terms:Nothin"],
        ["--method", "FILE", "--allow-code", "planted_terms:Nothing2"],
        ["--method", "FILE", "--allow-code", "planted_terms:*"],
        ["--method", "FILE", "--allow-code", "PLANTED_TERMS:NOTHING"],
        ["--method", "FILE", "--allow-code", ""],
    ],
)
@pytest.mark.parametrize("part", ["terms", "adapter"])
def test_naming_a_file_does_not_allow_its_code(run, sites, planted, words, part, reid, tmp_path):
    file, mark = planted
    if part == "adapter":
        file.write_text("about: x\nterms: [cross_entropy]\nadapter: [hypernetwork, 'planted_terms:Nothing']\n")
    (tmp_path / "settings.yaml").write_text(f"method: {file}\n")
    filled = [word.replace("FILE", str(file)).replace("SETTINGS", str(tmp_path / "settings.yaml")) for word in words]
    code, _, err = reid("learn", run.folder, sites[0].root, *filled)
    assert code == 2
    assert err.count("\n") == 1
    assert "--allow-code planted_terms:Nothing," in err, "the error says what to say"
    assert not mark.exists()
    assert "planted_terms" not in sys.modules


def test_a_stream_that_somebody_made_names_code_in_vain(sites, planted, reid, tmp_path):
    file, mark = planted
    plan = {"root": str(sites[0].root.parent), "domains": ["first"], "config": {**SETTINGS, "method": str(file)}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(plan))
    code, _, err = reid("stream", tmp_path / "s.yaml", "--run", tmp_path / "other")
    assert (code, err.count("\n")) == (2, 1)
    assert not mark.exists()
    code, _, err = reid(
        "stream", tmp_path / "s.yaml", "--run", tmp_path / "other", "--allow-code", "planted_terms:Nothing"
    )
    assert code == 0, err
    assert mark.exists()


def test_with_the_users_word_it_is_learned_with_each_time_anew(run, sites, planted, reid):
    file, mark = planted
    words = ("--method", file, "--allow-code", "planted_terms:Nothing")
    assert reid("learn", run.folder, sites[0].root, *words)[0] == 0
    assert mark.exists()
    code, _, err = reid("learn", run.folder, sites[1].root, "--method", file)
    assert code == 2
    assert "--allow-code" in err
    assert reid("learn", run.folder, sites[1].root, *words)[0] == 0
    naming(run, file)
    assert reid("learn", run.folder, sites[2].root, *words)[0] == 0, "the very file that the run names, named now"


def test_all_but_learning_runs_none_of_it_and_needs_no_word(run, sites, planted, reid, tmp_path):
    file, mark = planted
    run.learn(sites[0], method=read_method(str(file)))
    run.fill_scores(sites[:2])
    sys.modules.pop("planted_terms")
    mark.unlink()
    naming(run, file)
    (run.folder / "sitecustomize.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for words in (
        ("run", "show", run.folder),
        ("evaluate", run.folder, sites[1].root),
        ("domain", "relate", run.folder, sites[1].root),
        ("report", run.folder),
        ("learn", run.folder, sites[0].root),
        ("export", run.folder, tmp_path / "bundle"),
        ("learn", run.folder, sites[1].root, "--method", "fine_tune"),
        ("forget", run.folder, "--domain", "first"),
        ("run", "drop-last", run.folder),
    ):
        code, _, err = reid(*words)
        assert code == 0, (words, err)
        assert not mark.exists(), words
    assert "planted_terms" not in sys.modules


def test_in_python_a_method_or_a_named_file_is_the_word_and_settings_are_not(run, sites, planted):
    file, mark = planted
    settings = build_config({**SETTINGS, "method": str(file)})
    with pytest.raises(ConfigError, match="--allow-code planted_terms:Nothing"):
        run.learn(sites[0], config=settings)
    with pytest.raises(ConfigError, match="--allow-code planted_terms:Nothing"):
        learn_stream(run, sites[:1], config=settings)
    with pytest.raises(ConfigError, match="--allow-code planted_terms:Nothing"):
        measure_speed(settings)
    with pytest.raises(ConfigError, match="--allow-code planted_terms:Nothing"):
        run.learn(sites[0], method=str(file), allow_code=())
    with pytest.raises(ConfigError, match="--allow-code planted_terms:Nothing"):
        run.learn(sites[0], method=str(file), allow_code="other_planted_terms:Nothing")
    with pytest.raises(ConfigError, match="--allow-code planted_terms:Nothing"):
        build_terms(({"planted_terms:Nothing": {}},))
    assert not mark.exists()
    assert run.learn(sites[0], config=settings, allow_code=["planted_terms:Nothing"]).learned == ("first",)
    assert run.learn(sites[1], method=str(file)).learned == ("second",)
    parts = {"name": "m", "about": "x", "terms": ["cross_entropy", "planted_terms:Nothing"]}
    assert run.learn(sites[2], method=Method.model_validate(parts)).learned == ("third",)


@pytest.mark.parametrize(
    ("layers", "overrides", "named"),
    [
        ([], [], False),
        ([{"seed": 1}], ["seed=2"], False),
        ([{"train": {"iterations": 1}}], ["train.iterations=2", "model.dim=64"], False),
        ([{"method": "fusion"}], [], True),
        ([{}, {"method": "fusion"}], [], True),
        ([], ["method=fusion"], True),
        ([], [" method =fusion"], True),
    ],
)
def test_what_the_user_names_is_told_from_what_the_run_names(layers, overrides, named):
    config = build_config({"method": "default"}, *layers, overrides=overrides)
    assert named_method(config, layers, overrides) == (config.method if named else None)


@pytest.mark.parametrize(
    "name", ["x:", ":x", "x:y:z", "..x:Y", "x y:Z", "x;y:Z", "x:Y\x1b[31m", "a\nb:C", "x/../y:Z", "x:Y "]
)
def test_what_is_no_name_is_not_imported_even_if_it_is_allowed(name):
    with pytest.raises(ConfigError, match="can't import") as caught:
        build_terms(({name: {}},), allow_code=[name])
    assert str(caught.value).isprintable()


def test_a_hostile_name_is_shown_harmless():
    with pytest.raises(ConfigError) as caught:
        chosen_method(None, build_config({"method": "\x1b[2J\n.yaml"}), "\x1b[2J\n.yaml", None)
    assert str(caught.value).isprintable()


def test_a_module_that_fails_is_one_line(planted):
    file, _ = planted
    (file.parent / "planted_terms.py").write_text("raise RuntimeError('a\\nb')\n")
    with pytest.raises(ConfigError, match="RuntimeError: a b") as caught:
        build_terms(({"planted_terms:Nothing": {}},), allow_code=["planted_terms:Nothing"])
    assert "\n" not in str(caught.value)


def test_a_card_with_a_term_of_ones_own_is_read_without_it(run, sites, planted):
    file, mark = planted
    sealed = run.learn(sites[0], method=read_method(str(file)))
    (file.parent / "planted_terms.py").unlink()
    sys.modules.pop("planted_terms")
    mark.unlink()
    again = Run.open(run.folder)
    assert again.evaluate(domains.open(sites[0].root))["mAP"] > 0
    assert json.dumps(again.steps[-1].card["method"]) == json.dumps(sealed.card["method"])
