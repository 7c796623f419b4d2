"""What learners that fail, or are killed, leave: nothing that is in anybody's way, and nothing sealed is lost."""

import shutil
import sys

import pytest
from running import SETTINGS, Stop, StopAt, same, weights

from domains.errors import BackboneError, ConfigError, DataError, DeviceError, TrainingError, UsageError
from reid.config import build_config, read_method
from reid.run import Run


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"device": "cuda:99"}, DeviceError),
        ({"train": {"lr": 1e30, "warmup": 0}}, TrainingError),
    ],
)
def test_an_attempt_that_failed_stands_in_nobodys_way(run, sites, settings, error):
    before = below(run.folder)
    changed = {**SETTINGS, "storage": {"snapshot_seconds": 99}}
    with pytest.raises(error):
        run.learn(sites[1], config=build_config(changed, settings))
    assert below(run.folder) == before
    run.learn(sites[0])
    assert run.learned == ["first"]


@pytest.mark.parametrize("settings", [{"method": "no-such"}, {"device": "cuda:99"}])
def test_a_step_whose_replacement_failed_is_back_with_its_scores(run, sites, settings):
    run.learn(sites[0])
    run.learn(sites[1])
    run.fill_scores(sites)
    files, scores = below(run.folder), Run.open(run.folder).scores.summary()
    with pytest.raises((DataError, ConfigError, DeviceError)):
        run.learn(sites[2], replace_last=True, config=build_config(SETTINGS, settings))
    assert below(run.folder) == files
    assert run.learned == ["first", "second"]
    assert run.scores.summary() == Run.open(run.folder).scores.summary() == scores


def test_settings_that_are_fixed_for_a_run_are_fixed_in_python_too(run, sites):
    with pytest.raises(ConfigError, match=r"fixed for the life of .*\n  crop"):
        run.learn(sites[0], config=build_config(SETTINGS, {"crop": {"height": 32}}))
    assert run.learned == []


def test_a_domain_that_no_query_can_be_scored_on_is_learned_and_named(run, tmp_path, tiny_domain, sites):
    alone = tiny_domain(tmp_path / "data" / "alone", cameras=1, each=4)
    run.learn(alone)
    (note,) = run.fill_scores([sites[0]])
    assert note.startswith("alone is not scored: ")
    assert set(run.scores.cells) == {(0, "first"), (1, "first")}
    for file in sites[0].files(sites[0].gallery):
        file.write_bytes(b"no picture any more")
    again = Run.open(run.folder)
    again.learn(sites[1])
    notes = again.fill_scores([sites[1]])
    assert sorted(note.split(" ")[0] for note in notes) == ["alone", "first"]
    assert set(again.scores.cells) == {(0, "first"), (1, "first"), (0, "second"), (1, "second"), (2, "second")}


# ---------------------------------------------------------------------------------------------------------------- kills


def kill_while_replacing(run, site, *, snapshots):
    """What a killed ``--replace-last`` leaves: the old step is aside, and the new one has snapshots or has not."""
    with pytest.raises(Stop):
        run.learn(site, replace_last=True, progress=StopAt(2))
    (work,) = run.folder.glob("steps/*/.inprogress")
    if not snapshots:
        (work / "state.safetensors").unlink()


def test_a_replacement_without_progress_is_undone_by_a_plain_learn(run, sites):
    run.learn(sites[0])
    run.learn(sites[1])
    old = weights(run)
    kill_while_replacing(run, sites[2], snapshots=False)
    run.learn(sites[2])
    assert run.learned == ["first", "second", "third"]
    assert same(weights(run, 2), old)


def test_a_replacement_with_progress_goes_on(run, sites):
    run.learn(sites[0])
    run.learn(sites[1])
    kill_while_replacing(run, sites[2], snapshots=True)
    with pytest.raises(UsageError, match="02-third was started"):
        run.learn(sites[1])
    run.learn(sites[2])
    assert run.learned == ["first", "third"]
    assert not list(run.folder.glob("steps/.*"))


def test_a_step_that_was_replaced_goes_though_the_learner_was_killed_before_it_could(run, sites):
    run.learn(sites[0])
    run.learn(sites[1])
    shutil.copytree(run.steps[2].folder, run.folder / "steps" / ".replaced-02-other")
    run.learn(sites[2])
    assert run.learned == ["first", "second", "third"]
    assert not list(run.folder.glob("steps/.*"))


def test_progress_of_a_sealed_step_is_swept(run, sites):
    run.learn(sites[0])
    work = run.steps[1].folder / ".inprogress"
    work.mkdir()
    (work / "state.safetensors").write_bytes(b"x")
    run.learn(sites[1])
    assert not work.exists()


@pytest.mark.parametrize(
    "left",
    [["backbone.onnx"], ["steps/00-start/model.safetensors"], ["steps/.x"], [".run.yaml.1.tmp", "backbone.onnx"], []],
)
def test_a_run_that_was_killed_while_it_was_made_is_made_again(tmp_path, left):
    folder = tmp_path / "run"
    for name in left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"half")
    (folder / "steps" / ".x").unlink(missing_ok=True)
    run, _ = Run.open_or_create(folder, [SETTINGS])
    assert len(run.steps) == 1


@pytest.mark.parametrize("own", ["steps/notes.txt", "steps/01-first/card.json", "readme.txt"])
def test_a_folder_of_somebody_elses_is_left_alone(tmp_path, own):
    folder = tmp_path / "project"
    for name in (own, "steps/00-start/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"has no run\.yaml, and .* is in the way"):
        Run.open_or_create(folder, [SETTINGS])
    with pytest.raises(ConfigError):
        Run.open_or_create(folder, [{"no-such": 1}])
    assert (folder / own).read_bytes() == b"mine"
    assert (folder / "steps/00-start/model.safetensors").read_bytes() == b"mine"


# ------------------------------------------------------------------------------------------------------------- and more


def test_a_run_of_more_than_a_hundred_steps_keeps_its_order(run, monkeypatch):
    for index in range(1, 120):
        (run.folder / "steps" / f"{index:02d}-site").mkdir()
        (run.folder / "steps" / f"{index:02d}-site" / "card.json").touch()
    numbers = (int(folder.name.split("-")[0]) for folder in run.folder.glob("steps/*-*"))
    cards = {
        index: {"id": str(index), "index": index, "parent": str(index - 1) if index else None} for index in numbers
    }
    monkeypatch.setattr("reid.run.steps.read_manifest", lambda folder, *_, **__: cards[int(folder.name.split("-")[0])])
    monkeypatch.setattr("reid.run.steps.check_card", lambda card, path: card)
    assert [step.index for step in run.steps] == list(range(120))


def test_the_device_that_is_asked_for_is_the_one_that_scores(run):
    asked = {"device": "cuda:99"}
    again, _ = Run.open_or_create(run.folder, [asked])
    with pytest.raises(DeviceError, match="cuda:99 was requested"):
        again.embedder(-1)


def test_a_run_taught_with_a_term_of_ones_own_is_scored_without_it(run, sites, tmp_path, monkeypatch):
    (tmp_path / "my_terms.py").write_text("from reid.terms import Term\nclass Nothing(Term):\n    pass\n")
    (tmp_path / "my_terms.yaml").write_text("about: mine\nterms: [cross_entropy, 'my_terms:Nothing']\n")
    monkeypatch.syspath_prepend(tmp_path)
    run.learn(sites[0], method=read_method(str(tmp_path / "my_terms.yaml")))
    (tmp_path / "my_terms.py").unlink()
    monkeypatch.delitem(sys.modules, "my_terms")
    assert Run.open(run.folder).evaluate(sites[0])["mAP"] > 0


def test_looks_of_one_kind_are_none_for_a_method_of_the_other(run, sites, tmp_path):
    for name, kind in (("numbers", "style_statistics"), ("network", "style_network: {iterations: 2, batch: 4}")):
        (tmp_path / f"{name}.yaml").write_text(
            f"about: x\nterms:\n- cross_entropy\n- triplet: {{view: aligned}}\n- {kind}\n"
        )
    run.learn(sites[0], method=str(tmp_path / "numbers.yaml"))
    sealed = run.learn(sites[1], method=str(tmp_path / "network.yaml"))
    assert (
        "triplet (aligned) took no part: no term of the method makes its aligned view from the memories of earlier "
        "domains" in sealed.card["notes"]
    )
    again = run.learn(sites[2], method=str(tmp_path / "network.yaml"))
    assert not [note for note in again.card["notes"] if "no part" in note]


def test_a_killed_adapters_temporary_file_goes_with_an_erasure(run, sites):
    run.learn(sites[0])
    with pytest.raises(Stop):
        run.learn(sites[1], progress=StopAt(2))
    (work,) = run.folder.glob("steps/*/.inprogress")
    (work / "adapter").mkdir()
    (work / "adapter" / ".state.safetensors.0a1b.tmp").write_bytes(b"x")
    person = str(run.steps[1].card["classes"][0])
    run.forget(identity=person, discard_progress=True)
    assert Run.open(run.folder).learned == ["first"]
    assert not list(run.folder.glob("steps/*/.inprogress"))


def test_the_hint_for_too_few_people_can_be_followed(run, tmp_path, tiny_domain):
    with pytest.raises(DataError, match="training needs at least two"):
        run.learn(tiny_domain(tmp_path / "lone").first_identities(1))


def test_the_published_head_on_small_maps_is_one_line(run, sites, tmp_path):
    (tmp_path / "published.yaml").write_text(
        "about: x\nterms: [cross_entropy, {distribution_cross_entropy: {head: convolution}}]\n"
    )
    with pytest.raises(BackboneError, match=r"at least 8×8, got 2×1; use larger crops, model\.stages: 3, or"):
        run.learn(sites[0], method=str(tmp_path / "published.yaml"))
