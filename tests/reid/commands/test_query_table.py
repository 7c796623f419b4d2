"""``reid query`` as people read it: at 80 columns, in their own time zone, without columns that say nothing."""

import json
import sys
import time

import cv2
import numpy as np
import pytest
from tiny import DIM, HEIGHT, WIDTH, body, embed, graph

from deploy import Encoder, Gallery
from deploy.bundle import Golden, write_bundle
from domains.crops import read_crop
from reid.commands.options import local_time

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
FOLDER = "/data/sites/north-entrance/2026-01-01/crops"


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def asked(tmp_path, reid, berlin, monkeypatch):
    """Return a function (width, *options) that asks a gallery of four entries and returns what it says."""
    rng = np.random.default_rng(0)
    projection, crops = (
        rng.normal(size=(HEIGHT * WIDTH // 16 * 3, DIM)),
        rng.integers(0, 256, (16, HEIGHT, WIDTH, 3), np.uint8),
    )
    golden = Golden(crops, embed(crops, projection))
    parts = {
        "model_onnx": graph(projection),
        "card": "# Tiny\n",
        "body": body(),
        "parent": "12" * 32,
    }
    write_bundle(tmp_path / "bundle", golden=golden, **parts)
    cv2.imwrite(str(tmp_path / "q.png"), crops[0])

    def ask(width, *options, label=None, moment=("2026-07-01T10:00:00Z", None)):
        if not (tmp_path / "gallery").exists():
            with Gallery.create(tmp_path / "gallery", DIM, body()["feature_space"], tmp_path / "bundle") as gallery:
                vectors = Encoder.load(tmp_path / "bundle")([read_crop(tmp_path / "q.png"), *crops[1:4]])
                names = [f"{FOLDER}/person_0001_c2_f{number:04d}.png" for number in range(4)]
                gallery.add(vectors, ["yard", "gate"] * 2, names, [*moment, *moment], label)
        monkeypatch.setenv("COLUMNS", str(width))
        return reid("query", tmp_path / "gallery", tmp_path / "q.png", *options)

    return ask


@pytest.mark.parametrize("label", [None, "ann"])
@pytest.mark.parametrize("options", [(), ("--threshold", "0.999")], ids=["plain", "with verdicts"])
def test_a_match_is_one_line_of_eighty_columns(asked, label, options):
    code, out, _ = asked(80, *options, label=label)
    assert code == 0
    rows = [line for line in out.splitlines() if "0.png" in line]
    assert len(rows) == 1
    assert len(rows[0]) <= 80
    assert "2026-07-01 12:00:00+02:00" in rows[0]
    assert any(
        word.startswith("…") and f"{FOLDER}/person_0001_c2_f0000.png".endswith(word[1:]) for word in rows[0].split()
    )
    head = next(line for line in out.splitlines() if "score" in line)
    assert ("label" in head) is (label is not None)
    assert ("verdict" in head) is bool(options)
    assert "in time" not in head


def test_columns_without_a_value_are_left_out_and_json_stays_as_it_is(asked):
    _, out, _ = asked(80, moment=(None, None))
    assert "time" not in out
    found = json.loads(asked(80, "--json")[1])
    assert found[0]["source"] == f"{FOLDER}/person_0001_c2_f0000.png"
    assert (found[0]["time"], found[0]["label"]) == (None, None)


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_hides_nothing(asked, width):
    _, out, _ = asked(width)
    for number in range(4):
        assert f"{FOLDER}/person_0001_c2_f{number:04d}.png" in out


@pytest.mark.parametrize("name", ["yrad", "GATE", "", " yard", "nowhere\x1b[2J"])
def test_an_unknown_camera_names_those_there_are(asked, reid, tmp_path, name):
    asked(80)
    for words in (("query", tmp_path / "gallery", tmp_path / "q.png"), ("gallery", "forget", tmp_path / "gallery")):
        code, out, err = reid(*words, "--camera", name)
        assert (code, out) == (2, "")
        assert ("it has 'gate', 'yard'" if name else "--camera is empty") in err
        assert "\x1b" not in err
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert len(gallery) == 4


def test_where_the_query_was_taken_must_be_known_to_the_gallery_or_the_windows(asked, tmp_path):
    (tmp_path / "t.csv").write_text("from,to,min\nroof,gate,20\n")
    words = ("--transitions", tmp_path / "t.csv", "--seen-at")
    code, out, err = asked(80, *words, "yrad", "2026-11-03T00:00:00Z")
    assert (code, out) == (2, "")
    assert "did you mean 'yard'? it has 'gate', 'yard'" in err
    assert "t.csv does not name it either" in err
    for camera in ("yard", "roof"):
        assert asked(80, *words, camera, "2026-11-03T00:00:00Z")[0] == 0


def test_a_rule_for_a_camera_without_entries_is_kept_with_a_warning(asked, reid, tmp_path):
    asked(80)
    code, out, err = reid("gallery", "keep", tmp_path / "gallery", 30, "--camera", "yrad")
    assert code == 0
    assert "did you mean 'yard'?" in err
    assert "yrad: 30 days" in out
    assert reid("gallery", "keep", tmp_path / "gallery", 30, "--camera", "yard")[2] == ""


def test_a_camera_of_an_empty_gallery(reid, asked, tmp_path):
    asked(80)
    with Gallery.open(tmp_path / "gallery") as gallery:
        gallery.forget(gallery.ids())
    assert "the gallery is empty" in reid("query", tmp_path / "gallery", tmp_path / "q.png", "--camera", "gate")[2]
    code, out, _ = reid("query", tmp_path / "gallery", tmp_path / "q.png")
    assert code == 0
    assert "no entry of the gallery fits" in out


@pytest.mark.parametrize(
    ("picture", "said"),
    [("nowhere/x.png", "folder that does not exist"), ("x.gif", ".png, .jpg or .jpeg"), ("q.png/x.png", "folder that")],
)
def test_where_the_picture_goes_is_checked_before_anything_is_embedded(asked, tmp_path, picture, said, monkeypatch):
    asked(80)
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: sys.exit("embedded"))
    code, _, err = asked(80, "--picture", tmp_path / picture)
    assert code in (1, 2)
    assert said in err


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("2026-01-01T12:00:00Z", "2026-01-01 13:00:00+01:00"),
        ("2026-07-01T12:00:00.123456+09:00", "2026-07-01 05:00:00+02:00"),
        ("0001-01-01T00:00:00+12:00", "0001-01-01T00:00:00+12:00"),
        (None, ""),
    ],
)
def test_times_are_local_with_their_zone(berlin, stored, shown):
    assert local_time(stored) == shown
