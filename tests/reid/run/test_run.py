"""A run's life: learning, resuming with the same bits, refusing what does not fit, dropping a step."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from running import SETTINGS, Stop, StopAt, same, weights

import domains
from deploy.answers.calibration import calibrate
from domains.domain import Split
from domains.errors import ArtefactError, ConfigError, DataError, TrainingError, UsageError
from reid.config import build_config
from reid.run import Run
from reid.run.relate import relate
from reid.scores.evaluate import Retrieval

EVERYTHING = """
about: Every kind of part at once, with a short style network.
terms:
  - distribution_cross_entropy: {samples: 2}
  - distribution_triplet: {samples: 2, view: aligned}
  - joint_triplet: {samples: 2}
  - two_teacher_distillation
  - relation_distillation: {view: aligned, direction: reverse}
  - prototype_transfer: {domains: all}
  - prototypes
  - style_network: {domains: all, iterations: 2, batch: 4}
  - moving_average
fusion: [two_teachers]
repair: [batchnorm: {share: 0.5}, classifier: {iterations: 3}]
transport: [ridge]
"""


@pytest.fixture
def everything(tmp_path):
    (tmp_path / "everything.yaml").write_text(EVERYTHING)
    return str(tmp_path / "everything.yaml")


def test_the_whole_life_of_a_run(run, sites):
    notes = run.fill_scores(sites)
    assert notes == []
    for site in sites[:2]:
        run.learn(site)
        run.fill_scores(sites)
    assert run.learned == ["first", "second"]
    assert len(run.scores.cells) == 9, "every row scores every domain: learned, later and unseen"
    stored = json.loads((run.folder / "scores.json").read_text())
    assert [row["step"] for row in stored["rows"]] == [0, 1, 2]
    assert set(stored["rows"][0]["scores"]) == {"first", "second", "third"}
    again = Run.open(run.folder)
    assert again.learned == run.learned
    assert again.scores.summary() == run.scores.summary()
    card = again.steps[2].card
    assert card["parent"] == again.steps[1].card["id"]
    assert card["domains"][0]["fingerprint"] == sites[1].fingerprint
    assert card["train"]["waiting"] < 1


def test_a_step_learns_something(run, sites):
    before = weights(run)
    run.learn(sites[0])
    after = weights(run)
    assert not same({key: after[key] for key in before if not key.startswith("classifier")}, before)
    lines = [json.loads(line) for line in (run.steps[1].folder / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(6))


def test_fusion_is_the_average_of_what_fine_tuning_gives_and_the_step_before(tmp_path, sites):
    runs = {}
    for method in ("fine_tune", "fusion"):
        runs[method] = Run.create(tmp_path / method, build_config(SETTINGS, {"method": method}))
        for site in sites[:2]:
            runs[method].learn(site)
    assert same(weights(runs["fine_tune"], 1), weights(runs["fusion"], 1)), "nothing is fused with the untrained start"
    old, tuned, fused = weights(runs["fusion"], 1), weights(runs["fine_tune"], 2), weights(runs["fusion"], 2)
    rows = len(old["classifier.weight"])
    for name, value in fused.items():
        if name == "classifier.weight":
            assert torch.allclose(value[:rows], (old[name] + tuned[name][:rows]) / 2, atol=1e-7)
            assert torch.equal(value[rows:], tuned[name][rows:])
        elif value.is_floating_point():
            assert torch.allclose(value, (old[name] + tuned[name]) / 2, atol=1e-6), name
        else:
            assert torch.equal(value, tuned[name])


@pytest.mark.parametrize("method", ["fine_tune", "lwf", "affinity", pytest.param("everything", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_an_interrupted_step_ends_with_the_same_bits(tmp_path, sites, everything, method, stop):
    method = everything if method == "everything" else method
    whole, broken = (
        Run.create(tmp_path / name, build_config(SETTINGS, {"method": method})) for name in ("whole", "broken")
    )
    for run in (whole, broken):
        run.learn(sites[0])
    whole.learn(sites[1])
    with pytest.raises(Stop):
        broken.learn(sites[1], progress=StopAt(stop))
    assert broken.learned == ["first"]
    broken.learn(sites[1])
    assert same(weights(whole), weights(broken))
    assert [array.tobytes() for array in whole.memories()[1].arrays.values()] == [
        array.tobytes() for array in broken.memories()[1].arrays.values()
    ]
    assert whole.steps[2].card["files"] == broken.steps[2].card["files"]
    strip = [
        [{**json.loads(line)} for line in (run.steps[2].folder / "log.jsonl").read_text().splitlines()]
        for run in (whole, broken)
    ]
    assert strip[0] == strip[1]


CHILD = textwrap.dedent("""
    import json, sys, torch
    torch.set_num_threads(1)
    import domains
    from reid.config import build_config
    from reid.run import Run
    folder, settings, *sites = sys.argv[1:]
    run, config = Run.open_or_create(folder, [json.loads(settings)])
    opened = [domains.open(site) for site in sites]
    run.fill_scores(opened)
    for site in opened:
        if site.name not in run.learned:
            print("learning", site.name, flush=True)
            run.learn(site, config=config)
        run.fill_scores(opened)
    print("done", flush=True)
""")


def iterations_done(folder):
    """Lines of every step's log, sealed or in progress: how far the run is, whatever the machine's speed."""
    logs = [*folder.glob("steps/*/log.jsonl"), *folder.glob("steps/*/.inprogress/log.jsonl")]
    try:
        return len({(log.parent.name, line) for log in logs for line in log.read_text().splitlines()})
    except FileNotFoundError:  # sealed just now
        return 0


@pytest.mark.slow
def test_sigkill_anywhere_and_started_again_gives_the_same_weights_and_scores(tmp_path, sites):
    settings = json.dumps(SETTINGS | {"train": {"iterations": 12, "identities": 4, "instances": 2}})

    def command(name):
        return [sys.executable, "-c", CHILD, str(tmp_path / name), settings, *(str(site.root) for site in sites[:2])]

    subprocess.run(command("whole"), check=True, capture_output=True, timeout=300)
    draw = random.Random(5)
    kills = 0
    for _ in range(12):
        target = iterations_done(tmp_path / "killed") + draw.randint(1, 4)
        child = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and iterations_done(tmp_path / "killed") < target:
            time.sleep(0.002)
        time.sleep(0.2 * draw.random())  # so that scoring and sealing are met, too
        if child.poll() is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kills += 1
    final = subprocess.run(command("killed"), capture_output=True, text=True, timeout=300)
    assert final.returncode == 0, final.stderr
    assert kills > 0
    whole, killed = Run.open(tmp_path / "whole"), Run.open(tmp_path / "killed")
    for step in range(3):
        assert same(weights(whole, step), weights(killed, step))
    for key, cell in whole.scores.cells.items():
        assert cell.scores == killed.scores.cells[key].scores
        assert np.array_equal(cell.ap, killed.scores.cells[key].ap)


def test_same_seed_same_bits_and_another_seed_others(tmp_path, sites):
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = Run.create(tmp_path / name, build_config(SETTINGS, {"seed": seed}))
        run.learn(sites[0])
        made.append(weights(run))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_the_snapshot_interval_changes_no_bit(tmp_path, sites):
    made = []
    for name, seconds in (("often", 0), ("never", 1e6)):
        run = Run.create(tmp_path / name, build_config(SETTINGS, {"storage": {"snapshot_seconds": seconds}}))
        run.learn(sites[0])
        made.append(weights(run))
    assert same(*made)


def test_a_changed_setting_of_a_step_in_progress_is_refused_with_a_line_each(run, sites):
    with pytest.raises(Stop):
        run.learn(sites[0], progress=StopAt(3))
    changed = build_config(SETTINGS, {"train": {"lr": 0.01, "instances": 3}})
    with pytest.raises(ConfigError) as caught:
        run.learn(sites[0], config=changed)
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["  train.instances: saved 2, requested 3", "  train.lr: saved 0.00035, requested 0.01"]
    with pytest.raises(ConfigError, match=r"method: saved"):
        run.learn(sites[0], method="fine_tune")
    with pytest.raises(UsageError, match=r"01-first was started"):
        run.learn(sites[1])
    run.learn(sites[0], config=changed, restart=True)
    assert run.learned == ["first"]


def test_what_is_fixed_for_life_is_refused(run, sites):
    with pytest.raises(ConfigError) as caught:
        Run.open_or_create(run.folder, [{"crop": {"height": 128}, "model": {"dim": 64}, "train": {"lr": 1}}])
    assert "crop.height: saved 64, requested 128" in str(caught.value)
    assert "model.dim: saved 32, requested 64" in str(caught.value)
    assert "train.lr" not in str(caught.value)
    _, config = Run.open_or_create(run.folder, [], ["train.iterations=3"])
    assert config.train.iterations == 3
    assert config.crop.height == 64


def test_a_loss_that_is_not_finite_stops_the_step_and_says_where(run, sites):
    bad = build_config(SETTINGS, {"train": {"lr": 1e30, "warmup": 0, "schedule": "constant"}})
    with pytest.raises(TrainingError, match=r"step 1 \(first\).*not finite at iteration \d+: cross_entropy="):
        run.learn(sites[0], config=bad)
    assert run.learned == []


def test_learning_twice_is_refused(run, sites):
    run.learn(sites[0])
    with pytest.raises(UsageError, match="already learned"):
        run.learn(sites[0])


def test_drop_last_goes_back_exactly(run, sites):
    run.learn(sites[0])
    run.fill_scores(sites)
    before, scores = weights(run), run.scores.summary()
    run.learn(sites[1])
    run.fill_scores(sites)
    assert run.drop_last() == "02-second"
    assert run.learned == ["first"]
    assert same(weights(run), before)
    assert Run.open(run.folder).scores.summary() == scores
    run.drop_last()
    with pytest.raises(UsageError, match="learned nothing"):
        run.drop_last()


def test_replace_last_learns_in_the_dropped_steps_place(tmp_path, run, sites):
    other = Run.create(tmp_path / "other", build_config(SETTINGS))
    run.learn(sites[0])
    run.learn(sites[1])
    run.learn(sites[2], replace_last=True)
    for site in (sites[0], sites[2]):
        other.learn(site)
    assert run.learned == ["first", "third"]
    assert same(weights(run), weights(other))
    assert not list((run.folder / "steps").glob(".*"))


def test_an_interrupted_replacement_drops_only_one_step(run, sites):
    run.learn(sites[0])
    run.learn(sites[1])
    with pytest.raises(Stop):
        run.learn(sites[2], replace_last=True, progress=StopAt(2))
    run.learn(sites[2], replace_last=True)
    assert run.learned == ["first", "third"]


def test_a_step_seals_its_transport_and_what_its_fusion_needs_next(run, sites, everything):
    for site in sites:
        run.learn(site, method=everything)
    first, second, third = run.steps[1:]
    assert {"transport.npz", "kept-short.safetensors", "kept-long.safetensors", "memory.safetensors"} <= set(
        third.card["files"]
    )
    assert third.transport().source == second.feature_space
    assert third.transport().target == third.feature_space
    carried = run.memories(renew=True)
    assert [memory.feature_space for memory in carried] == [third.feature_space] * 3
    assert [memory.feature_space for memory in run.memories()] == [
        first.feature_space,
        second.feature_space,
        third.feature_space,
    ]
    assert third.card["bytes"]["transport"] == 2 * 32 * 32
    assert third.card["bytes"]["kept"] > 0
    assert third.card["bytes"]["teachers"] > third.card["bytes"]["fusion_partner"] > 0, "short, long and old"
    assert {"fusion.weight", "transport.cosine"} <= set(third.card["figures"])
    people = len(third.card["classes"])
    assert run.memories()[2].arrays["prototypes.mean"].shape == (people, 32)


def test_a_term_that_finds_nothing_kept_says_so(run, sites):
    run.learn(sites[0], method="fine_tune")
    sealed = run.learn(sites[1], method="dkp")
    assert "prototype_transfer took no part: the memories of earlier domains hold no prototypes" in sealed.card["notes"]
    third = run.learn(sites[2], method="dkp")
    assert not any("no part" in note for note in third.card["notes"])


def test_export_carries_no_distribution_head(run, sites, tmp_path):
    from reid.export import export_run

    sealed = run.learn(sites[0], method="dkp")
    model, _ = run.model()
    assert model.distribution is not None
    bundle = export_run(run, tmp_path / "bundle")
    assert bundle.feature_space == sealed.feature_space
    with torch.no_grad():
        for parameter in model.distribution.parameters():
            parameter.add_(1)
    assert model.feature_space(run.config.crop.spec()) == sealed.feature_space
    import onnx

    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    held = sum(int(np.prod(item.dims)) for item in graph.initializer)
    assert held < 1.02 * sum(
        parameter.numel() for name, parameter in model.named_parameters() if name.startswith(("backbone", "embedding"))
    )


@pytest.mark.parametrize("method", ["affinity", pytest.param("everything", marks=pytest.mark.slow)])
def test_old_images_are_not_needed(tmp_path, sites, everything, method):
    """The same weights, whether each domain's images are there after its step or deleted."""
    method = everything if method == "everything" else method
    kept, deleted = (
        Run.create(tmp_path / name, build_config(SETTINGS, {"method": method})) for name in ("kept", "deleted")
    )
    for site in sites:
        kept.learn(site)
    for site in sites:
        deleted.learn(site)
        shutil.rmtree(site.root)
    for step in range(4):
        assert same(weights(kept, step), weights(deleted, step))
    notes = deleted.fill_scores()
    assert notes == [f"{name} is not scored: its folder is gone" for name in ("first", "second", "third")]


def test_a_broken_image_is_left_out_and_named(run, tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "data" / "broken")
    (site.root / site.train.paths[1]).write_bytes(b"\xff\xd8 no image")
    (site.root / site.train.paths[3]).unlink()
    sealed = run.learn(domains.open(site.root))
    assert sealed.card["train"]["left_out"] == [site.train.paths[1], site.train.paths[3]]


def test_a_domain_with_fewer_people_than_a_batch_is_learned_with_all_of_them(run, sites):
    people = len(sites[0].train.people)
    sealed = run.learn(sites[0], config=build_config(SETTINGS, {"train": {"identities": 400}}))
    assert sealed.card["train"]["config"]["train.identities"] == people
    assert f"batches are of all {people} identities instead of 400: there are no more" in sealed.card["notes"]
    assert not any("batches are" in note for note in run.learn(sites[1]).card["notes"])


@pytest.mark.parametrize("people", [0, 1])
def test_one_person_alone_is_one_clear_line(run, sites, people):
    rows = np.isin(sites[0].train.pids, sites[0].train.people[:people])
    alone = dataclasses.replace(sites[0], train=sites[0].train.take(rows))
    with pytest.raises(DataError, match="needs at least two" if people else "no train crops"):
        run.learn(alone)


@pytest.mark.parametrize("act", ["learn", "relate", "score", "calibrate"])
def test_what_a_domain_can_not_be_used_for_says_how_it_was_read(run, sites, act):
    """Why there is nothing may stand in a note alone."""
    bare = dataclasses.replace(sites[0], train=Split(), query=Split(), notes=("how it was read",))
    acts = {
        "learn": lambda: run.learn(bare),
        "relate": lambda: relate(run, bare),
        "score": lambda: Retrieval.of(bare, None, None),
        "calibrate": lambda: calibrate(None, bare, fpr=0.05),
    }
    with pytest.raises(DataError, match=r"; how it was read$"):
        acts[act]()


def test_joint_learns_all_at_once_and_nothing_else_does(run, sites):
    with pytest.raises(UsageError, match="one domain at a time"):
        run.learn(sites, method="fusion")
    sealed = run.learn(sites, method="joint")
    assert sealed.learned == ("first", "second", "third")
    assert sealed.card["train"]["config"]["train.iterations"] == 18
    with pytest.raises(UsageError, match="breaking the rule"):
        run.learn(sites[0], method="joint")


def test_a_second_learner_is_refused_and_a_dead_ones_lock_is_not(run, sites):
    with run.lock(), pytest.raises(UsageError, match="another process"):
        Run.open(run.folder).learn(sites[0])
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl,time; h=open({str(run.folder / '.lock')!r},'w'); fcntl.flock(h,2); print(1,flush=True); "
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    child.kill()
    child.wait()
    time.sleep(0.05)
    run.learn(sites[0])


def test_a_changed_weight_is_noticed(run, sites):
    run.learn(sites[0])
    target = run.steps[1].folder / "model.safetensors"
    data = bytearray(target.read_bytes())
    data[-5] ^= 1
    target.write_bytes(data)
    with pytest.raises(ArtefactError, match="was changed after it was sealed"):
        run.model()


def test_no_run_here_is_one_line(tmp_path):
    with pytest.raises(ArtefactError, match="is not a run"):
        Run.open(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(UsageError, match="not an empty folder"):
        Run.create(tmp_path / "full", build_config(SETTINGS))


def test_a_run_killed_while_being_made_is_made_again(tmp_path):
    run = Run.create(tmp_path / "run", build_config(SETTINGS))
    (run.folder / "run.yaml").unlink()
    again, _ = Run.open_or_create(run.folder, [SETTINGS])
    assert len(again.steps) == 1


def test_cuda_asked_and_absent_is_an_error(tmp_path, sites):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    from domains.errors import DeviceError

    with pytest.raises(DeviceError, match="cuda was requested"):
        Run.create(tmp_path / "run", build_config(SETTINGS, {"device": "cuda"}))
    run = Run.create(tmp_path / "run", build_config(SETTINGS))
    with pytest.raises(DeviceError, match="cuda:0 was requested"):
        run.learn(sites[0], config=build_config(SETTINGS, {"device": "cuda:0"}))


def test_paths_are_kept_for_scoring(run, sites):
    run.learn(sites[0])
    run.fill_scores()
    assert Path(run.scores.scored["first"]["path"]) == sites[0].root.resolve()
