"""Every command that there is, wherever its output goes: to ASCII, to 40 columns, to a closed or full file, to nobody.
And whatever names it meets, none of their characters reaches the terminal raw.

The commands are read from the application, so that none can be forgotten: a new one fails here until it has a row.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
import yaml
from drawing import draw_tiny_domain
from running import SETTINGS
from tiny import DIM, HEIGHT, WIDTH, body, embed, graph
from walker import MARK

from domains.text import is_unseen
from reid.cli import app

NASTY = "\x9b2J\u202e\u200b\x1b[31m"
SITE, CAMERA, LABEL = f"first{NASTY}\n", "gate\x9b2J\u202e", "ann\u200b\u2028"

CASES = {
    "reid demo": ["demo", "--output", "."],
    "reid domain check": ["domain", "check", SITE, "--config", "settings.yaml", "--no-speed"],
    "reid domain make": ["domain", "make", "drawn", "--identities", "4", "--height", "32", "--width", "16"],
    "reid domain relate": ["domain", "relate", "run", "second"],
    "reid learn": ["learn", "fresh", SITE, "--config", "settings.yaml"],
    "reid stream": ["stream", "stream.yaml", "--run", "streamed", "--config", "settings.yaml"],
    "reid report": ["report", "run"],
    "reid forget": ["forget", "run", "--identity", "1", "--dry-run"],
    "reid run show": ["run", "show", "run"],
    "reid export": ["export", "run", "bundle"],
    "reid evaluate": ["evaluate", SITE, "--bundle", "bundle", "--open-set"],
    "reid calibrate": ["calibrate", "bundle", "people", "--fpr", "0.05"],
    "reid query": ["query", "gallery", "people/0_0.png", "--threshold", "0.9999"],
    "reid key make": ["key", "make", f"key{NASTY}"],
    "reid key sign": ["key", "sign", "bundle", "--key", f"key{NASTY}"],
    "reid gallery add": ["gallery", "add", "gallery", "more.csv"],
    "reid gallery info": ["gallery", "info", "gallery"],
    "reid gallery verify": ["gallery", "verify", "gallery"],
    "reid gallery forget": ["gallery", "forget", "gallery", "--camera", CAMERA, "--dry-run"],
    "reid gallery upgrade": ["gallery", "upgrade", "gallery", "--back"],
    "reid gallery keep": ["gallery", "keep", "gallery", "9000", "--camera", CAMERA],
    "reid gallery backup": ["gallery", "backup", "gallery", f"copy{NASTY}"],
    "reid gallery restore": ["gallery", "restore", f"copy{NASTY}", f"restored{NASTY}"],
    "reid gallery clock": ["gallery", "clock", "gallery"],
    "reid gallery audit": ["gallery", "audit", "gallery"],
    "reid doctor": ["doctor"],
    "reid engine build": ["engine", "build", f"bundle{NASTY}", "--provider", f"cpu{NASTY}"],
    "reid bench methods": ["bench", "methods", "--help"],
    "reid serve": ["serve", f"gallery{NASTY}"],
    "reid token make": ["token", "make", "--name", "desk", "--tokens", f"tokens{NASTY}.json"],
    "reid token list": ["token", "list", "--tokens", f"tokens{NASTY}.json"],
    "reid token revoke": ["token", "revoke", "desk", "--tokens", f"tokens{NASTY}.json"],
    "reid run drop-last": ["run", "drop-last", "run"],
}
FURTHER = {
    "no command": [],
    "version": ["--version"],
    "help": ["--help"],
    "help of a command": ["query", "--help"],
    "an unknown command": [f"lern{NASTY}"],
    "an unknown option": ["learn", f"--lern{NASTY}"],
    "a missing argument": ["query"],
    "a wrong choice": ["learn", "run", SITE, "--same-camera", f"maybe{NASTY}"],
    "a missing file": ["report", f"nowhere{NASTY}"],
    "a traceback": ["--debug", "report", f"nowhere{NASTY}"],
    "an unknown camera": ["query", "gallery", "people/0_0.png", "--camera", f"gat{NASTY}"],
    "JSON": ["gallery", "info", "gallery", "--json"],
    "JSON of matches": ["query", "gallery", "people/0_0.png", "--json"],
    "help of everything": ["gallery", "forget", "--help"],
}
DONE = {"reid " + word for word in ("demo", "export", "gallery upgrade", "engine build", "serve")}
"""Commands whose row here is one that they refuse, as doing it takes long or needs a device."""

NARROW = {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
C_LOCALE = {"LC_ALL": "C", "COLUMNS": "80"}
WIDE = {"PYTHONIOENCODING": "utf-8", "COLUMNS": "200"}


STREAMS = {
    "closed stdout": (">&-", NARROW),
    "closed stderr, the C locale": ("2>&-", C_LOCALE),
    "all closed": ("<&- >&- 2>&-", WIDE),
    "full stdout and stderr": (">/dev/full 2>/dev/full", WIDE),
}


def commands(command, name="reid"):
    """Full names of all commands below one."""
    inner = getattr(command, "commands", None)
    return (
        [name] if inner is None else [leaf for word, part in inner.items() for leaf in commands(part, f"{name} {word}")]
    )


def test_every_command_has_a_row():
    assert set(commands(typer.main.get_command(app))) == set(CASES)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with whatever the commands need: domains, a run, a bundle and a gallery, full of hostile names."""
    from deploy import Encoder, Gallery
    from deploy.bundle import Golden, write_bundle
    from domains.crops import read_crop
    from reid.config import build_config
    from reid.run import Run

    root, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    draw_tiny_domain(root / SITE)
    draw_tiny_domain(root / "second", seed=1)
    settings = {**{key: value for key, value in SETTINGS.items() if key != "method"}, "storage": {}}
    settings["train"] = {**settings["train"], "iterations": 1}
    (root / "settings.yaml").write_text(yaml.safe_dump(settings))
    (root / "stream.yaml").write_text(yaml.safe_dump({"domains": [SITE], "unseen": ["second"]}))
    import domains

    run = Run.create(root / "run", build_config(settings))
    run.learn(domains.open(root / SITE))
    run.fill_scores()
    projection = rng.normal(size=(HEIGHT * WIDTH // 16 * 3, DIM))
    crops = rng.integers(0, 256, (16, HEIGHT, WIDTH, 3), np.uint8)
    write_bundle(
        root / "bundle",
        model_onnx=graph(projection),
        golden=Golden(crops, embed(crops, projection)),
        card="# Tiny\n",
        body=body(),
        parent="12" * 32,
    )
    rows = ["path,pid,camid,split"]
    (root / "people").mkdir()
    for person in range(26):
        look = rng.integers(0, 256, (HEIGHT, WIDTH, 3))
        for number, (split, camera) in enumerate((("query", "1"), ("gallery", "2"), ("gallery", "3"))):
            name = f"{person}_{number}.png"
            cv2.imwrite(
                str(root / "people" / name), np.clip(look + rng.normal(0, 60, look.shape), 0, 255).astype(np.uint8)
            )
            rows.append(f"{name},{person},{camera},{split}")
    (root / "people" / "domain.csv").write_text("\n".join(rows) + "\n")
    (root / "more.csv").write_text("path,camera,label\npeople/1_1.png,yard [north],ann\n", "utf-8")
    files = [root / "people" / f"{person}_1.png" for person in range(4)]
    with Gallery.create(root / "gallery", DIM, body()["feature_space"], bundle=root / "bundle") as gallery:
        vectors = Encoder.load(root / "bundle")([read_crop(file) for file in files])
        sources = [f"people/{'deep/' * 9}{number}\u202e.png" for number in range(4)]
        gallery.add(vectors, CAMERA, sources, "2026-01-01T12:00:00+00:00", LABEL)
    return root


@pytest.fixture(scope="session")
def walked(made, tmp_path_factory):
    """Return a function (redirection, environment) that runs all rows that way, in a copy of the folder."""

    def walk(redirection, environment, stdout=subprocess.PIPE):
        folder = tmp_path_factory.mktemp("walk")
        here = folder / "here"
        shutil.copytree(made, here, symlinks=True)
        cases = [*CASES.items(), *FURTHER.items()]
        (folder / "cases.json").write_text(json.dumps(cases))
        words = [sys.executable, str(Path(__file__).with_name("walker.py")), "../cases.json", "../codes.json"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
        ended = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *words],
            cwd=here,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=900,
            env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        )
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")
        return json.loads((folder / "codes.json").read_text()), _parts(ended.stdout or b""), _parts(ended.stderr)

    return walk


def _parts(data):
    """What each row wrote, by its marker."""
    start, end = MARK.split("{}")
    found = {}
    for part in data.decode(errors="surrogateescape").split(start)[1:]:
        name, _, text = part.partition(end)
        found[name] = text
    return found


@pytest.fixture(scope="session")
def usual(walked):
    return walked("", WIDE)


def check_text(parts, name):
    for row, text in parts.items():
        assert "Traceback" not in text or row == "a traceback", (name, row, text)
        raw = sorted({letter for letter in text if is_unseen(letter)} - {"\n"})
        assert not raw, (name, row, raw, text)


@pytest.mark.slow
def test_rows_do_what_they_should_and_show_no_raw_character(usual):
    codes, out, err = usual
    check_text(out, "stdout")
    check_text(err, "stderr")
    for name in CASES:
        if name in DONE:
            assert codes[name] in (1, 2), (name, err[name])
            said = [line for line in err[name].splitlines() if not line.endswith(" so far")]  # progress, if it is slow
            assert len(said) == 1
            assert said[0].startswith("reid: ")
        else:
            assert codes[name] == 0, (name, err[name])
            assert out[name]
    assert "gate\\x9b2J\\u202e" in out["reid query"]
    assert json.loads(out["JSON"])["cameras"] == {CAMERA: 4, "yard [north]": 1}
    assert json.loads(out["JSON of matches"])[0]["label"] == LABEL
    assert "it has 'gate" in err["an unknown camera"]


@pytest.mark.slow
def test_ascii_and_forty_columns_change_no_outcome_and_lose_no_name(walked, usual):
    codes, out, err = walked("", NARROW)
    assert codes == usual[0]
    check_text(out, "stdout")
    check_text(err, "stderr")
    for parts in (out, err):
        assert all(text.isascii() for text in parts.values())
    for row in ("reid query", "reid gallery info", "reid gallery forget"):
        assert "gate\\x9b2J\\u202e" in out[row]
    for number in range(4):
        assert f"{number}\\u202e.png" in out["reid query"]
    assert json.loads(out["JSON"])["cameras"] == json.loads(usual[1]["JSON"])["cameras"]
    assert json.loads(out["JSON of matches"])[0]["label"] == LABEL
    assert "--threshold" in out["help of a command"]
    assert "--older-than" in out["help of everything"]


@pytest.mark.slow
@pytest.mark.parametrize("case", STREAMS)
def test_streams_that_take_nothing_change_no_outcome_but_the_exit_code(walked, usual, case):
    codes, out, err = walked(*STREAMS[case])
    check_text(out, case)
    check_text(err, case)
    if STREAMS[case][1] is NARROW:
        assert all(text.isascii() for text in (*out.values(), *err.values()))
    lost = ">&-" in STREAMS[case][0].split() or "full" in case
    for row, code in usual[0].items():
        if lost and code == 0 and usual[1][row]:
            assert codes[row] == 1, (case, row)
            assert row not in err or "can't be written to standard output" in err[row]
        else:
            assert codes[row] == code, (case, row, err.get(row))


@pytest.mark.slow
def test_a_reader_that_has_left_ends_a_command_as_shells_know_it(walked, usual):
    reader, writer = os.pipe()
    os.close(reader)
    codes, _, err = walked("", WIDE, stdout=writer)
    os.close(writer)
    check_text(err, "a pipe without a reader")
    assert codes == {row: 141 if code == 0 and usual[1][row] else code for row, code in usual[0].items()}
    assert not any("standard output" in text for text in err.values())
