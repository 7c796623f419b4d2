"""Whom a run forgets is nowhere in its folder, and everything else is as it was, whenever it is stopped."""

import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from drawing import draw_tiny_domain
from running import SETTINGS, Stop, StopAt

import domains
from domains.artefact import read_manifest
from domains.errors import ArtefactError, UsageError
from reid.cli import main
from reid.config import build_config
from reid.network.checkpoint import read_tensors
from reid.run import Run
from reid.run.changes import JOURNAL
from reid.run.erasure import erase, plan_erasure, read_erasures

METHOD = """
about: Everything that remembers a person, with a short style network.
terms:
  - distribution_cross_entropy: {samples: 2}
  - distribution_triplet: {samples: 2}
  - prototype_transfer: {domains: all}
  - prototypes
  - style_statistics
fusion: [two_teachers]
transport: [ridge]
"""
WHO = "zoë-q7"
"""The person to be erased: of both domains, so that rows move in every step."""


def name_people(site, seed):
    """Give a tiny domain's people names that occur nowhere by chance; the third train identity of each is the same."""
    table = site.root / "domain.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    names = {pid: WHO if pid == "2" else f"somebody-{seed}-{pid}" for _, pid, *_ in rows[1:]}
    table.write_text(
        "\n".join([",".join(rows[0]), *(",".join([path, names[pid], *rest]) for path, pid, *rest in rows[1:])]) + "\n"
    )
    return domains.open(site.root)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    named = ("quillyard", "westgate", "thirdplace")
    return [
        name_people(domains.open(draw_tiny_domain(root / name, seed=seed)), seed) for seed, name in enumerate(named)
    ]


@pytest.fixture(scope="module")
def learned(sites, tmp_path_factory):
    """A run that learned two domains and scored three."""
    root = tmp_path_factory.mktemp("learned")
    (root / "method.yaml").write_text(METHOD)
    run = Run.create(
        root / "run", build_config(SETTINGS, {"method": str(root / "method.yaml"), "train": {"iterations": 2}})
    )
    for site in sites[:2]:
        run.learn(site)
    run.fill_scores(sites)
    return run


def own_method(run):
    """The method file that the run names, which has to be named again by whoever learns on."""
    return run.config.method


@pytest.fixture
def run(learned, tmp_path):
    shutil.copytree(learned.folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


def everything(folder):
    """All bytes and names below a folder."""
    return b"\0".join(
        str(file.relative_to(folder)).encode() + b"\0" + (file.read_bytes() if file.is_file() else b"")
        for file in folder.rglob("*")
    )


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def prototypes(run):
    return [memory.arrays["prototypes.mean"] for memory in run.memories() if "prototypes.mean" in memory.arrays]


def row_of(run, step, label=WHO):
    return list(run.steps[step].card["classes"]).index(label)


def rows_in(raw, vectors):
    """How many of some vectors have any 16 bytes in a row in the raw bytes."""
    return sum(
        any(data[at : at + 16] in raw for at in range(0, len(data) - 15, 16))
        for data in (vector.tobytes() for vector in vectors)
    )


def embed(run, sites):
    return [run.embedder(step)(run.stores.get(sites[0], sites[0].query).crops) for step in range(len(run.steps))]


def check_whole(run):
    for step in run.steps:
        read_manifest(step.folder, "card.json", kind="step", schemas=range(1, 2))
        model, _ = run.model(step.index)
        assert model.classes == sum(len(earlier.card["classes"]) for earlier in run.steps[: step.index + 1])


def test_a_forgotten_person_is_nowhere_and_all_else_is_as_it_was(run, learned, sites):
    gone = [prototypes(run)[step - 1][row_of(run, step)] for step in (1, 2)]
    gone += [
        memory.arrays["prototypes.spread"][row_of(run, step)]
        for step, memory in zip((1, 2), run.memories(), strict=True)
    ]
    positions = [row_of(run, 1), len(run.steps[1].card["classes"]) + row_of(run, 2)]
    gone += [read_tensors(run.steps[1].folder / "model.safetensors")[0]["classifier.weight"][positions[0]].numpy()]
    gone += list(read_tensors(run.steps[2].folder / "model.safetensors")[0]["classifier.weight"][positions].numpy())
    gone += list(
        read_tensors(run.steps[2].folder / "kept-long.safetensors")[0]["classifier.weight"][positions[:1]].numpy()
    )
    before, vectors = everything(run.folder), embed(run, sites)
    assert WHO.encode() in before
    assert rows_in(before, gone) == len(gone), "the search for bytes finds what is there"
    found = run.forget(identity=WHO)
    after = everything(run.folder)
    assert found.identities == 2
    assert WHO.encode() not in after
    assert json.dumps(WHO)[1:-1].encode() not in after
    assert rows_in(after, gone) == 0
    check_whole(run)
    assert all(np.array_equal(old, new) for old, new in zip(vectors, embed(run, sites), strict=True)), (
        "every step embeds with the same bits"
    )
    for old, new in zip(learned.steps, run.steps, strict=True):
        assert new.feature_space == old.feature_space
        assert (new.folder / "transport.npz").is_file() == (old.folder / "transport.npz").is_file()
        assert new.card["classes"] == [label for label in old.card["classes"] if label != WHO]
    kept = [np.delete(array, row_of(learned, step), 0) for step, array in zip((1, 2), prototypes(learned), strict=True)]
    assert all(np.array_equal(old, new) for old, new in zip(kept, prototypes(run), strict=True))
    old = learned.model()[0].state_dict()
    new = Run.open(run.folder).model()[0].state_dict()
    assert torch.equal(
        new.pop("classifier.weight"),
        old["classifier.weight"][[row for row in range(len(old["classifier.weight"])) if row not in positions]],
    )
    assert all(torch.equal(old[name], value) for name, value in new.items())
    assert run.steps[0].card["id"] == learned.steps[0].card["id"]
    assert run.evaluate(sites[2]) == learned.evaluate(sites[2])


def test_a_domain_at_a_name_erases_there_alone(run):
    run.forget(identity=f"{WHO}@westgate")
    assert WHO in run.steps[1].card["classes"]
    assert WHO not in run.steps[2].card["classes"]
    assert run.steps[1].card["parent"] == run.steps[0].card["id"]
    check_whole(run)


def test_a_forgotten_domain_is_nowhere(run, learned, sites):
    vectors, style = embed(run, sites), run.memories()[0].arrays["style.statistics"]
    gone = [*prototypes(run)[0], style.reshape(-1)]
    assert rows_in(everything(run.folder), gone) == len(gone)
    (run.folder / "report.html").write_text("quillyard")
    found = run.forget(domain="quillyard")
    raw = everything(run.folder)
    assert found.whole == {1}
    assert b"quillyard" not in raw
    assert not any(label.encode() in raw for label in learned.steps[1].card["classes"] if label != WHO)
    assert WHO.encode() in raw, "westgate has a person of that name, too"
    assert rows_in(raw, gone) == 0
    assert [step.folder.name for step in run.steps] == ["00-start", "01-erased", "02-westgate"]
    assert run.learned == ["westgate"]
    assert all(np.array_equal(old, new) for old, new in zip(vectors, embed(run, sites), strict=True))
    assert set(run.scores.scored) == {"westgate", "thirdplace"}
    assert run.scores.learned == [(), (), ("westgate",)]
    assert run.scores.value(2, "thirdplace") == learned.scores.value(2, "thirdplace")
    check_whole(run)
    assert Run.open(run.folder).fill_scores() == []
    assert run.memories(renew=True)[0].arrays == {}
    run.forget(domain="thirdplace")
    assert b"thirdplace" not in everything(run.folder), "scored and never learned"


@pytest.mark.parametrize("what", [{"identity": WHO}, {"domain": "quillyard"}])
def test_learning_goes_on_and_can_be_interrupted(run, sites, what, tmp_path):
    run.forget(**what)
    shutil.copytree(run.folder, tmp_path / "whole")
    whole = Run.open(tmp_path / "whole")
    whole.learn(sites[2], method=own_method(whole))
    with pytest.raises(Stop):
        run.learn(sites[2], method=own_method(run), progress=StopAt(1))
    sealed = Run.open(run.folder).learn(sites[2], method=own_method(run))
    assert sealed.card["files"]["model.safetensors"] == whole.steps[3].card["files"]["model.safetensors"]
    assert sealed.card["files"]["memory.safetensors"] == whole.steps[3].card["files"]["memory.safetensors"]
    assert run.fill_scores(sites) == []
    check_whole(run)


def test_everybody_of_a_domain_one_by_one(run, sites):
    for label in list(run.steps[1].card["classes"]):
        run.forget(identity=f"{label}@quillyard")
    assert "prototypes.mean" not in run.memories()[0].arrays
    assert "style.statistics" in run.memories()[0].arrays
    run.learn(sites[2], method=own_method(run))
    check_whole(run)
    assert len(read_erasures(run.folder)) == 6


@pytest.mark.parametrize("method", ["hyper_routed", "lwf", "lstkc++"])
@pytest.mark.slow
def test_methods_that_remember_in_other_ways(tmp_path, sites, method):
    from reid.export import export_run

    run = Run.create(tmp_path / "run", build_config(SETTINGS, {"method": method, "train": {"iterations": 2}}))
    for site in sites[:2]:
        run.learn(site)
    vectors = embed(run, sites)
    bundle = export_run(run, tmp_path / "before")
    run.forget(identity=WHO)
    run.forget(domain="quillyard")
    assert WHO.encode() not in everything(run.folder)
    assert b"quillyard" not in everything(run.folder)
    again = export_run(run, tmp_path / "after")
    assert again.feature_space == bundle.feature_space, "bundles and galleries made before stay valid"
    assert np.array_equal(again.golden().embeddings, bundle.golden().embeddings)
    assert again.manifest["domains"] == ["westgate"]
    assert all(np.array_equal(old, new) for old, new in zip(vectors, embed(run, sites), strict=True))
    run.learn(sites[2], method=own_method(run))
    run.fill_scores(sites)
    run.forget(domain="westgate")
    run.forget(domain="thirdplace")
    check_whole(run)
    assert run.fill_scores(sites) == []
    assert run.learn(sites[0], method=own_method(run)).learned == ("quillyard",), (
        "what was forgotten may be learned again"
    )


# --------------------------------------------------------------------------------------------------------- whole or not


def test_several_domains_learned_at_once(tmp_path, sites):
    run = Run.create(tmp_path / "run", build_config(SETTINGS, {"method": "joint", "train": {"iterations": 2}}))
    run.learn(sites[:2], method="joint")
    assert f"quillyard/{WHO}" in run.steps[1].card["classes"]
    run.forget(identity=f"{WHO}@quillyard")
    assert f"quillyard/{WHO}" not in run.steps[1].card["classes"]
    assert f"westgate/{WHO}" in run.steps[1].card["classes"]
    run.forget(domain="quillyard")
    assert run.learned == ["westgate"]
    assert {label.partition("/")[0] for label in run.steps[1].card["classes"]} == {"westgate"}
    assert b"quillyard" not in everything(run.folder)
    run.forget(identity=WHO)
    assert WHO.encode() not in everything(run.folder)
    check_whole(run)


def die_at(number, act):
    """Fork, and kill the child before its n-th change of the file system; returns whether it was killed."""
    child = os.fork()
    if not child:
        count = 0

        def counting(real):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "write"):
            setattr(os, name, counting(getattr(os, name)))
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("step", [pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("what", [{"identity": WHO}, {"domain": "quillyard"}])
def test_a_kill_at_any_change_leaves_the_old_run_or_the_erased_one(learned, tmp_path, what, step):
    def ids(folder):
        return [step.card["id"] for step in Run.open(folder).steps]

    shutil.copytree(learned.folder, tmp_path / "whole")
    Run.open(tmp_path / "whole").forget(**what)
    after, seen = ids(tmp_path / "whole"), []
    wanted = {name: data for name, data in content(tmp_path / "whole").items() if name != "erasures.json"}
    for number in range(1, 1000, step):
        folder = tmp_path / "run"
        shutil.copytree(learned.folder, folder)
        killed = die_at(number, lambda folder=folder: Run.open(folder).forget(**what))
        now = ids(folder)
        assert now in ([step.card["id"] for step in learned.steps], after)
        assert not (folder / JOURNAL).exists()
        seen.append(now == after)
        if now == after:
            assert len(read_erasures(folder)) == 1
            assert {name: data for name, data in content(folder).items() if name != "erasures.json"} == wanted
        else:
            Run.open(folder).forget(**what)
            assert ids(folder) == after
        assert {name: data for name, data in content(folder).items() if name != "erasures.json"} == wanted, (
            "nothing is left of what was killed"
        )
        shutil.rmtree(folder)
        if not killed:
            break
    assert not killed
    assert seen == sorted(seen), "once committed, never undone"
    assert 2 < seen.count(False) < len(seen) - 2


def test_a_full_disk_changes_nothing(run, monkeypatch):
    before = content(run.folder)
    real, count = os.fsync, [0]

    def full(handle):
        count[0] += 1
        if count[0] == 4:
            raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match="No space left on device; nothing was changed"):
        run.forget(identity=WHO)
    monkeypatch.undo()
    assert content(run.folder) == before


def forged(**parts):
    return json.dumps({"kind": "changes", "schema": 1, "put": [], "remove": [], "rename": []} | parts)


@pytest.mark.parametrize(
    "plan",
    [
        "{",
        "[]",
        "{}",
        forged(schema=2),
        forged(kind="run"),
        *(
            forged(remove=[name])
            for name in ("../precious", "/etc/passwd", "", "a/../../precious", "out/precious", None, 5)
        ),
        forged(put=[{"staged": "../../precious", "target": "x", "sha256": ""}]),
        forged(put=[{"staged": "0001", "target": "x", "sha256": "0"}]),
        forged(put=[{"staged": "0001"}]),
        forged(rename=[["steps/01-quillyard", "../stolen"]]),
        forged(rename=[["steps"]]),
        forged(rename=3),
    ],
)
def test_a_forged_journal_reaches_nothing(run, tmp_path, plan):
    (tmp_path / "precious").write_text("x")
    (run.folder / "out").symlink_to(tmp_path)
    (run.folder / JOURNAL).mkdir()
    (run.folder / JOURNAL / "0001").write_text("x")
    (run.folder / JOURNAL / "plan.json").write_text(plan)
    before = content(run.folder)
    with pytest.raises(ArtefactError) as caught:
        Run.open(run.folder)
    assert "\n" not in str(caught.value)
    assert content(run.folder) == before
    assert (tmp_path / "precious").exists()


# ----------------------------------------------------------------------------------------------------- refusals, record


def test_a_step_in_progress_is_named_and_can_be_thrown_away(run, sites):
    with pytest.raises(Stop):
        run.learn(sites[2], method=own_method(run), progress=StopAt(1))
    before = content(run.folder)
    with pytest.raises(UsageError, match=r"03-thirdplace was started but not finished.*--discard-progress"):
        run.forget(identity=WHO)
    assert content(run.folder) == before
    run.forget(identity=WHO, discard_progress=True)
    assert WHO.encode() not in everything(run.folder)
    assert not (run.folder / "steps" / "03-thirdplace").exists()
    run.learn(sites[2], method=own_method(run))


def test_what_a_killed_writer_left_goes_too(run):
    shutil.copy(run.steps[1].folder / "card.json", run.steps[1].folder / ".card.json.0a1b2c3d.tmp")
    (run.steps[1].folder / ".inprogress").mkdir()
    shutil.copy(run.steps[1].folder / "card.json", run.steps[1].folder / ".inprogress" / "state.safetensors")
    run.forget(identity=WHO)
    assert WHO.encode() not in everything(run.folder)


def test_what_is_not_there_is_said_and_changes_nothing(run):
    before = content(run.folder)
    for what, message in (
        ({"identity": "zoë-q8"}, "has learned no identity 'zoë-q8'; did you mean 'zoë-q7'?"),
        ({"identity": "nobody@westgate"}, "domain westgate of"),
        ({"domain": "westgat"}, "has no domain 'westgat'; did you mean 'westgate'?"),
        ({}, "either an identity or a domain"),
        ({"identity": "a", "domain": "b"}, "either an identity or a domain"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            run.forget(**what)
    assert content(run.folder) == before


def test_a_damaged_step_is_not_sealed_anew(run):
    file = run.steps[2].folder / "memory.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtefactError, match="was changed after it was sealed"):
        run.forget(identity=WHO)


def test_notes_and_paths_that_name_the_person_go(run):
    # Written by hand: the tiny domain has no unreadable picture.
    found = plan_erasure(run, identity=WHO)
    step = run.steps[2]
    step.card["notes"].append(f"one image of {WHO} is not there")
    step.card["notes"].append("2 people have one camera only")
    step.card["train"]["left_out"].append(f"{WHO}/003.png")
    from reid.run.erasure import _renew_card

    card = _renew_card(step, found, None)
    assert card["notes"][-1] == "2 people have one camera only"
    assert WHO not in json.dumps(card, ensure_ascii=False)


def test_the_record_names_nobody_and_its_chain_holds(run, learned):
    run.forget(identity=WHO)
    run.forget(domain="quillyard")
    records = read_erasures(run.folder)
    assert [(record["kind"], record["identities"]) for record in records] == [("identity", 2), ("domain", 5)]
    assert records[1]["before"] == records[0]["id"]
    assert records[0]["steps"][0] == {
        "step": 1,
        "was": learned.steps[1].card["id"],
        "is": records[1]["steps"][0]["was"],
    }
    stored = json.loads((run.folder / "erasures.json").read_text())
    for change in (
        lambda text: text["records"].pop(0),
        lambda text: text["records"][1].update(identities=4),
        lambda text: text.update(records=3),
    ):
        text = json.loads(json.dumps(stored))
        change(text)
        (run.folder / "erasures.json").write_text(json.dumps(text))
        with pytest.raises(ArtefactError, match=r"erasures\.json"):
            read_erasures(run.folder)


def test_dry_run_and_command(run, monkeypatch, capsys):
    before = content(run.folder)

    def reid(*words):
        monkeypatch.setattr(sys, "argv", ["reid", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    code, out, _ = reid("forget", str(run.folder), "--identity", WHO, "--dry-run")
    assert code == 0
    assert "would be erased: 2 identities" in out
    assert "steps/01-quillyard/memory.safetensors" in out
    assert content(run.folder) == before
    code, out, _ = reid("forget", str(run.folder), "--identity", WHO, "--json")
    told = json.loads(out)
    assert (code, told["identities"], told["steps"], told["others"]) == (0, 2, [1, 2], [])
    assert WHO not in out
    assert "there is no claim" in told["remains"][0]
    code, out, err = reid("forget", str(run.folder), "--identity", WHO)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "1 identities" not in reid("forget", str(run.folder), "--records")[1]
    assert "2 identities" in reid("forget", str(run.folder), "--records")[1]


def test_an_erasure_excludes_a_learner(run):
    with run.lock(), pytest.raises(UsageError, match="another process"):
        Run.open(run.folder).forget(identity=WHO)
    found = plan_erasure(run, identity=WHO)
    with run.lock():
        erase(run, found, discard_progress=False)
    assert WHO not in run.steps[1].card["classes"]
