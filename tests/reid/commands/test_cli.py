"""The command line: names, exit codes, JSON on stdout, one-line errors."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
import yaml

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 3, "identities": 4, "instances": 2},
}


def reid(*words, cwd=None, code=0, env=None):
    done = subprocess.run(
        [sys.executable, "-m", "reid.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    return file


@pytest.mark.slow
def test_the_three_jobs(tiny_domain, settings, tmp_path):
    """Train on a new camera domain, deploy ONNX, query the gallery by image: as a user types them."""
    first, second = (tiny_domain(tmp_path / "data" / name, seed=seed) for seed, name in enumerate(("first", "second")))
    run, bundle, gallery = tmp_path / "run", tmp_path / "bundle", tmp_path / "gallery"
    checked = json.loads(reid("domain", "check", first.root, "--config", settings, "--json").stdout)
    assert checked
    learned = json.loads(reid("learn", run, first.root, "--config", settings, "--json").stdout)
    assert learned["learned"] == ["first"]
    reid("learn", run, second.root, "--set", "train.iterations=4")
    again = reid("learn", run, second.root)
    assert "already learned" in again.stdout
    scores = json.loads(reid("evaluate", run, first.root, second.root, "--json").stdout)
    assert set(scores) == {"first", "second"}
    assert {"mAP", "rank1", "rank5", "mINP", "queries"} <= set(scores["first"])
    exported = json.loads(reid("export", run, bundle, "--json").stdout)
    assert exported["domains"] == ["first", "second"]
    pooled = json.loads(reid("evaluate", run, first.root, second.root, "--bundle", bundle, "--json").stdout)
    assert set(pooled) == set(scores)
    for site in (first, second):  # a run scores a site in its own metric, and one gallery for both has the pooled one
        own = tmp_path / f"bundle of {site.name}"
        reid("export", run, own, "--metric", f"site:{site.name}")
        (through_onnx,) = json.loads(reid("evaluate", site.root, "--bundle", own, "--json").stdout).values()
        assert through_onnx["mAP"] == pytest.approx(scores[site.name]["mAP"], abs=0.1)
    added = json.loads(reid("gallery", "add", gallery, first.root, "--bundle", bundle, "--json").stdout)
    assert added["added"] == len(first.gallery)
    picture = tmp_path / "out.png"
    found = json.loads(
        reid("query", gallery, first.files(first.query)[0], "--top", "3", "--picture", picture, "--json").stdout
    )
    assert [match["rank"] for match in found] == [1, 2, 3]
    assert {"rank", "score", "id", "source", "camera", "time", "label"} <= set(found[0])
    assert picture.stat().st_size > 1000
    one_camera = json.loads(
        reid("query", gallery, first.files(first.query)[0], "--camera", found[0]["camera"], "--json").stdout
    )
    assert {match["camera"] for match in one_camera} == {found[0]["camera"]}
    reid("report", run)
    assert (run / "report.html").stat().st_size > 2000
    reid("gallery", "forget", gallery, found[0]["id"])
    left = json.loads(reid("query", gallery, first.files(first.query)[0], "--json").stdout)
    assert found[0]["id"] not in {match["id"] for match in left}
    assert "dropped 02-second" in reid("run", "drop-last", run).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["domain", "check", "nowhere"], 1, "nowhere"),
        (["learn", "run", "nowhere"], 1, "nowhere"),
        (["report", "nowhere"], 1, "is not a run"),
        (["stream", "small6", "--run", "run"], 2, "did you mean 'small5'?"),
        (["evaluate", "nowhere"], 2, "is not a run"),
        (["learn"], 2, "Missing argument"),
        (["lern", "a", "b"], 2, "No such command"),
    ],
)
def test_an_error_is_short_and_has_its_exit_code(words, code, said, tmp_path):
    done = reid(*words, cwd=tmp_path, code=code)
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_setting_names_the_nearest(tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    done = reid("learn", tmp_path / "run", site.root, "--set", "train.iteration=3", code=2)
    assert done.stderr.splitlines()[-1] == "reid: unknown setting 'train.iteration'; did you mean 'train.iterations'?"
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in reid("--debug", "report", "nowhere", cwd=tmp_path, code=1).stderr


def test_doctor_finds_this_installation_in_order():
    found = json.loads(reid("doctor", "--json").stdout)
    assert {item["what"] for item in found} >= {"lifelong-reid", "torch", "faiss", "onnxruntime"}


def test_importing_the_rooms_loads_no_torch():
    code = (
        "import sys, reid, domains, prototypes, deploy, reid.cli; assert not {'torch','faiss','onnxruntime'} & "
        "set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_full_or_failing_disk_is_one_line(monkeypatch, capsys, tmp_path):
    from reid import cli

    app = typer.Typer()

    @app.command()
    def full():
        raise OSError(28, "No space left on device", str(tmp_path / "x.png"))

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["reid"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert said.startswith(f"reid: {tmp_path / 'x.png'}: No space left on device; ")
    assert said.count("\n") == 1


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.3 TiB for an array\nwith shape (1, 2)"),
        OutOfMemoryError("CUDA out of memory. " + "x" * 900),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    ],
    ids=["none", "NumPy's", "a GPU's", "torch's"],
)
def test_too_little_memory_is_one_line(monkeypatch, reid_here, error):
    from reid import cli

    app = typer.Typer()

    @app.command()
    def greedy():
        raise error

    monkeypatch.setattr(cli, "app", app)
    code, out, err = reid_here()
    assert (code, out) == (1, "")
    assert err.startswith("reid: there is too little memory for this")
    assert "ask for less at once" in err
    assert err.count("\n") == 1
    assert len(err) < 400


@pytest.fixture
def reid_here(request):
    return request.getfixturevalue("reid")


SIZES = {
    "": 80,
    "0": 80,
    "00": 80,
    "-1": 80,
    "wide": 80,
    "\u00b2": 80,
    "1e3": 80,
    "80.5": 80,
    "0100": 100,
    "9": 80,
    "10": 10,
    "999": 999,
    "99999999999": 1000,
    "9" * 5000: 1000,
}


@pytest.mark.parametrize("value", SIZES, ids=lambda value: value[:12] or "empty")
@pytest.mark.parametrize("name", ["COLUMNS", "LINES", "TERMINAL_WIDTH"])
def test_what_is_no_size_of_a_terminal_is_the_usual_one(monkeypatch, name, value):
    from reid.terminal import Terminal

    monkeypatch.setenv(name, value)
    width = Terminal().width
    assert width == (SIZES[value] if name == "COLUMNS" else 80)
    assert os.environ.get(name) in (None, value, "1000")


@pytest.mark.parametrize("value", ["0", "wide", "99999999999", "1", "11"])
@pytest.mark.parametrize("name", ["COLUMNS", "TERMINAL_WIDTH"])
@pytest.mark.parametrize("words", [["--help"], ["gallery", "forget", "--help"], ["learn"], ["token", "list"]])
def test_every_text_is_shown_at_any_width(tmp_path, name, value, words):
    shown = subprocess.run(
        [sys.executable, "-m", "reid", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, name: value, "REID_TOKENS": str(tmp_path / "tokens.json")},
    )
    assert shown.returncode == (2 if words == ["learn"] else 0), shown.stderr
    assert "Traceback" not in shown.stderr
    assert len(shown.stdout + shown.stderr) > 20


def test_options_of_the_other_kind_of_model_and_equal_names_are_refused(tiny_domain, tmp_path):
    sites = [tiny_domain(tmp_path / place / "test").root for place in ("a", "b")]
    reid(
        "learn",
        tmp_path / "run",
        sites[0],
        "--set",
        "model.backbone=test_resnet",
        "--set",
        "model.weights=none",
        "--set",
        "crop.height=64",
        "--set",
        "crop.width=32",
        "--set",
        "train.iterations=1",
        "--set",
        "train.identities=4",
        "--set",
        "train.instances=2",
    )
    assert "two domains are called test" in reid("evaluate", tmp_path / "run", *sites, code=2).stderr
    assert (
        "--device and --step are for a run's model"
        in reid("evaluate", sites[0], "--bundle", tmp_path, "--device", "cuda", code=2).stderr
    )
    assert (
        "--device and --step are for a run's model"
        in reid("evaluate", sites[0], "--bundle", tmp_path, "--step", 1, code=2).stderr
    )
    assert (
        "--provider is for a bundle;"
        in reid("evaluate", tmp_path / "run", sites[0], "--provider", "cuda", code=2).stderr
    )


def test_names_are_shown_as_they_are(capsys):
    from reid.commands.options import table

    table("q [north].png :smile:", ["camera [a]"], [["yard [north]"], ["x [/x] :boom:"]])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("q [north].png :smile:", "camera [a]", "yard [north]", "x [/x] :boom:"):
        assert text in shown


@pytest.mark.parametrize(("words", "wanted"), [("reid lea", "learn"), ("reid gallery upg", "upgrade")])
def test_a_shell_completes_commands(words, wanted):
    asked = {"_REID_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "reid"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    assert wanted in done.stdout.split()


def test_the_version_is_that_of_the_package():
    assert reid("--version").stdout == f"lifelong-reid {version('lifelong-reid')}\n"
