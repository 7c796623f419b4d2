"""``reid gallery``: what can be chosen, shown and undone from the command line."""

import json
import sqlite3

import numpy as np
import pytest
from clocks import SetClock

from deploy import Gallery
from deploy.service.audit_log import AuditLog

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
DIM = 8


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, "ab" * 32) as made:
        vectors = np.eye(DIM, dtype=np.float32)
        made.add(
            vectors,
            ["a", "b"] * 4,
            [f"/crops/{number}.png" for number in range(DIM)],
            label=["ann", "ben", None, None] * 2,
        )
    return tmp_path / "gallery"


def ids(folder):
    with Gallery.open(folder) as opened:
        return opened.ids()


def test_forgetting_is_shown_before_it_is_done(gallery, reid):
    code, out, _ = reid("gallery", "forget", gallery, "--label", "ann", "--dry-run", "--json")
    assert code == 0
    assert [entry["id"] for entry in json.loads(out)] == [1, 5]
    assert len(ids(gallery)) == 8
    assert "2 entries would be erased" in reid("gallery", "forget", gallery, "--label", "ann", "--dry-run")[1]
    code, out, _ = reid("gallery", "forget", gallery, "--label", "ann")
    assert (code, out.strip()) == (0, "forgot 2")
    assert ids(gallery) == [2, 3, 4, 6, 7, 8]


def test_several_choices_mean_entries_that_fit_all(gallery, reid):
    reid("gallery", "forget", gallery, "2", "3", "--camera", "b")
    assert ids(gallery) == [1, 3, 4, 5, 6, 7, 8]
    reid("gallery", "forget", gallery, "--older-than", "1")
    assert len(ids(gallery)) == 7
    code, _, err = reid("gallery", "forget", gallery)
    assert code == 2
    assert "say what to forget" in err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["done", "shown"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0"], "an id is a whole number from 1, got 0"),
        (["1", "0"], "an id is a whole number from 1, got 0"),
        (["--", "-1"], "an id is a whole number from 1, got -1"),
        ([str(2**63)], f"an id is a whole number from 1, got {2**63}"),
        (["--like", "x.png", "--score", "-5"], "--score must be a cosine from -1 to 1, got -5"),
        (["--like", "x.png", "--score", "5"], "--score must be a cosine from -1 to 1, got 5"),
        (["--like", "x.png", "--score", "nan"], "--score must be a cosine from -1 to 1, got nan"),
        (["--like", "x.png", "--score", "-inf"], "--score must be a cosine from -1 to 1, got -inf"),
        (["--before", "yesterday"], "'yesterday' is not an ISO 8601 time"),
        (["--before", "2026-01-01"], "has no zone"),
        (["--source", ""], "--source is empty"),
        (["--label", " "], "--label is empty"),
        (["--camera", ""], "--camera is empty"),
        (["1", "--source", ""], "--source is empty"),
        (["--older-than", "-1"], "--older-than"),
        (["--older-than", "99999"], "--older-than"),
    ],
)
def test_what_can_not_be_meant_erases_nothing(gallery, reid, words, said, dry):
    code, out, err = reid("gallery", "forget", gallery, *dry, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert len(ids(gallery)) == 8


@pytest.mark.parametrize(
    ("words", "left", "warning"),
    [
        (["999"], 8, "no entry of {} has the id 999"),
        (["1", "999"], 7, "no entry of {} has the id 999"),
        (["9", "99", "1", "999"], 7, "no entry of {} has one of the ids 9, 99, 999"),
        ([str(number) for number in range(9, 99)], 8, "18 and 80 more"),
        (["2"], 7, None),
    ],
)
def test_an_id_that_is_not_there_is_no_damage(gallery, reid, words, left, warning):
    shown = reid("gallery", "forget", gallery, *words, "--dry-run", "--json")
    assert len(json.loads(shown[1])) == 8 - left
    done = reid("gallery", "forget", gallery, *words)
    assert done[1] == f"forgot {8 - left}\n"
    for code, _, err in (shown, done):
        assert code == 0
        assert err.startswith("warning: ") if warning else err == ""
        assert (warning or "").format(gallery) in err.replace("\n", " ")
    assert len(ids(gallery)) == left


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_a_damaged_entry_is_not_said_to_be_missing(gallery, reid, words):
    with sqlite3.connect(gallery / "gallery.db") as database:
        database.execute("UPDATE entry SET vector = zeroblob(16) WHERE id = 3")
    database.close()
    code, out, err = reid("gallery", "forget", gallery, "3", *words)
    assert (code, out) == ((1, "") if words else (0, "forgot 1\n"))
    assert ("entry 3 of" in err and "is damaged" in err) if words else err == ""


@pytest.mark.parametrize("words", [["--camera", ""], ["3", "--camera", ""], ["3", "--camera", " "], ["99999"]])
def test_a_rule_that_can_not_be_meant_is_not_kept(gallery, reid, words):
    code, out, err = reid("gallery", "keep", gallery, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert json.loads(reid("gallery", "keep", gallery, "--json")[1]) == {}


@pytest.mark.parametrize("days", [[], ["0"], ["9"]])
@pytest.mark.parametrize("camera", ["zzz", "a"])
def test_an_unknown_camera_is_named_whatever_its_rule(gallery, reid, days, camera):
    code, _, err = reid("gallery", "keep", gallery, *days, "--camera", camera)
    assert code == 0
    assert ("warning: no entry of" in err) == (camera == "zzz")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["done", "shown"])
@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["text", "JSON"])
def test_a_way_back_is_not_promised_where_there_is_none(gallery, reid, dry, json_too):
    code, out, err = reid("gallery", "upgrade", gallery, "--back", *dry, *json_too)
    assert (code, out) == (1, "")
    assert "nothing to go back to" in err


def test_backups_are_named_when_something_is_forgotten(gallery, reid, tmp_path):
    assert "8 entries, verified" in reid("gallery", "backup", gallery, tmp_path / "copy")[1].replace("\n", "")
    assert str(tmp_path / "copy") in reid("gallery", "forget", gallery, "1")[1].replace("\n", "")


def test_rules_and_records_can_be_seen(gallery, reid):
    assert "no rule" in reid("gallery", "keep", gallery)[1]
    assert "a: 9 days" in reid("gallery", "keep", gallery, "9", "--camera", "a")[1]
    assert json.loads(reid("gallery", "keep", gallery, "30", "--json")[1]) == {"": 30, "a": 9}
    assert "every other camera: 30 days" in reid("gallery", "keep", gallery)[1]
    reid("gallery", "keep", gallery, "0")
    assert json.loads(reid("gallery", "keep", gallery, "--json")[1]) == {"a": 9}
    assert [record["action"] for record in json.loads(reid("gallery", "audit", gallery, "--json")[1])] == [
        "keep",
        "keep",
        "keep",
    ]
    assert "keep: days 9" in reid("gallery", "audit", gallery)[1]


def test_upgrade_wants_one_thing_at_a_time(gallery, reid, tmp_path):
    for words in ((), ("--back", "--drop-old"), (tmp_path / "bundle", "--back")):
        code, _, err = reid("gallery", "upgrade", gallery, *words)
        assert code == 2
        assert "exactly one of" in err
    code, _, err = reid("gallery", "upgrade", gallery, "--back")
    assert code == 1
    assert "nothing to go back to" in err


def test_what_a_gallery_holds_is_shown_as_people_read_it(gallery, reid):
    with Gallery.open(gallery) as opened:
        opened.add(np.eye(DIM, dtype=np.float32)[:1], ["yard [north]"], ["/crops/8.png"])
    code, out, _ = reid("gallery", "info", gallery)
    assert code == 0
    assert "entries: 9\n" in out
    assert "feature space: " + "ab" * 32 in out
    for camera, count in (("a", 4), ("b", 4), ("yard [north]", 1)):
        assert [camera, str(count)] in [
            [cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines()
        ]
    assert not {"{", "None"} & set(out.split()), "no value as Python writes it"
    assert json.loads(reid("gallery", "info", gallery, "--json")[1])["cameras"] == {"a": 4, "b": 4, "yard [north]": 1}


def test_a_clock_that_moved_is_shown_and_confirmed(gallery, reid, monkeypatch):
    start = json.loads(reid("gallery", "clock", gallery, "--json")[1])
    assert (start["right"], start["due"], start["erased"]) == (True, 0, None)
    clock = SetClock(monkeypatch, start["trusted"])
    reid("gallery", "keep", gallery, "30")
    clock.move(40)
    code, _, err = reid("gallery", "forget", gallery, "--older-than", "30")
    assert code == 1
    assert "nothing is erased by age" in err
    assert "8 entries would go" in err
    assert "8 entries would be erased" in reid("gallery", "forget", gallery, "--older-than", "30", "--dry-run")[1]
    shown = " ".join(reid("gallery", "clock", gallery)[1].split())
    assert start["trusted"] in shown
    assert clock.time.isoformat(timespec="seconds") in shown
    assert "it would erase 8 entries" in shown
    assert len(ids(gallery)) == 8
    assert reid("gallery", "clock", gallery, "--from-now")[0] == 2
    assert json.loads(reid("gallery", "clock", gallery, "--trust", "--from-now", "--json")[1])["erased"] == 0
    clock.move(40)
    assert "8 entries were erased" in reid("gallery", "clock", gallery, "--trust")[1]
    assert ids(gallery) == []
    actions = [record["action"] for record in json.loads(reid("gallery", "audit", gallery, "--json")[1])]
    assert actions == ["keep", "trust clock", "trust clock", "forget"]


def test_the_clock_of_an_audit_log_is_confirmed_and_kept_heads_are_compared(gallery, reid, tmp_path, monkeypatch):
    clock = SetClock(monkeypatch)
    log = AuditLog(gallery.with_name("gallery.audit.db"), keep=30)
    for number in range(3):
        log.submit("query", reason=f"case {number}").result()
    head = log.head()
    log.close()
    kept = tmp_path / "service.log"
    kept.write_text(json.dumps({"event": "audit", "number": head.number, "head": head.hash}))
    assert len(json.loads(reid("gallery", "audit", gallery, "--heads", kept, "--json")[1])) == 3
    clock.move(40)
    state = json.loads(reid("gallery", "clock", gallery, "--service", "--json")[1])
    assert (state["right"], state["due"]) == (False, 3)
    assert "3 audit records were erased" in reid("gallery", "clock", gallery, "--service", "--trust")[1]
    kept.write_text(json.dumps({"event": "audit", "number": 4, "head": "x"}))
    code, _, err = reid("gallery", "audit", gallery, "--heads", kept)
    assert code == 1
    assert "record 4" in err
    kept.write_text("")
    assert reid("gallery", "audit", gallery, "--heads", kept)[0] == 2
