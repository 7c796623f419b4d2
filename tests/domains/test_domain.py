"""Domains: codes fit labels, rows are sorted, what is inconsistent is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.domain import JUNK, Domain, Split, from_rows, natural_key, union
from domains.errors import DataError

ROOT = Path("somewhere")
ROWS = [
    ("train", "b.jpg", "10", "2"),
    ("train", "a.jpg", "9", "c"),
    ("query", "q.jpg", "x", "10"),
    ("gallery", "g.jpg", None, "2"),
    ("gallery", "f.jpg", "x", "2"),
]


def test_rows_are_sorted_and_labels_by_value():
    domain = from_rows("d", ROOT, "csv", ROWS, notes=["n"])
    assert domain.identities == ("9", "10", "x")
    assert domain.cameras == ("2", "10", "c")
    assert domain.train.paths == ("a.jpg", "b.jpg")
    assert domain.train.pids.tolist() == [0, 1]
    assert domain.gallery.paths == ("f.jpg", "g.jpg")
    assert domain.gallery.pids.tolist() == [2, JUNK]
    assert domain.query.camids.tolist() == [1]
    assert domain.notes == ("n",)
    assert [name for name, _ in domain.splits()] == ["train", "query", "gallery"]
    assert domain.files(domain.query) == [ROOT / "q.jpg"]


row = st.tuples(
    st.sampled_from(["train", "query", "gallery"]),
    st.text("ab/9", min_size=1),
    st.sampled_from(["1", "02", "2", "z", None]),
    st.text("c1", min_size=1),
)
entries = st.lists(row, min_size=1, max_size=30, unique_by=lambda entry: entry[:2])


@given(entries, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_order_of_rows_changes_nothing_and_every_row_survives(rows, rng):
    times = [f"2026-01-01T00:00:{number:02d}Z" for number in range(len(rows))]
    domain = from_rows("d", ROOT, "csv", rows, times=times)
    found = [
        (name, path, None if pid == JUNK else domain.identities[pid], domain.cameras[camid], time)
        for name, split in domain.splits()
        for path, pid, camid, time in zip(split.paths, split.pids, split.camids, split.times, strict=True)
    ]
    assert sorted(found, key=str) == sorted(((*row, time) for row, time in zip(rows, times, strict=True)), key=str)
    shuffled = list(zip(rows, times, strict=True))
    rng.shuffle(shuffled)
    again = from_rows("d", ROOT, "csv", [row for row, _ in shuffled], times=[time for _, time in shuffled])
    assert again.identities == domain.identities
    assert again.cameras == domain.cameras
    for (_, a), (_, b) in zip(again.splits(), domain.splits(), strict=True):
        assert (a.paths, a.pids.tolist(), a.camids.tolist(), a.times) == (
            b.paths,
            b.pids.tolist(),
            b.camids.tolist(),
            b.times,
        )


def test_empty_and_unknown_splits_are_refused():
    with pytest.raises(DataError, match="no crop found"):
        from_rows("d", ROOT, "csv", [])
    with pytest.raises(DataError, match="unknown split 'val'"):
        from_rows("d", ROOT, "csv", [("val", "a", "1", "1")])


def test_numbers_sort_before_words_and_by_value():
    assert sorted(["b", "10", "9", "a", "-1", "02"], key=natural_key) == ["02", "9", "10", "-1", "a", "b"]


@pytest.mark.parametrize(
    "options",
    [
        {"pids": [0]},
        {"pids": [0, 1], "camids": [0]},
        {"pids": [[0, 1]], "camids": [0, 0]},
        {"pids": [0, 1], "camids": [0, 0], "times": ("2026-01-01T00:00:00Z",)},
    ],
)
def test_a_split_must_be_consistent(options):
    with pytest.raises(DataError):
        Split(("a", "b"), **options)


def test_split_arrays_are_read_only_and_taking_keeps_rows_together():
    split = Split(("a", "b", "c"), [0, 1, JUNK], [3, 4, 5], ("t1", "t2", "t3"))
    with pytest.raises(ValueError, match="read-only"):
        split.pids[0] = 5
    for index in (np.array([2, 0]), np.array([True, False, True])):
        taken = split.take(index)
        order = [split.paths.index(path) for path in taken.paths]
        assert taken.pids.tolist() == [split.pids[i] for i in order]
        assert taken.camids.tolist() == [split.camids[i] for i in order]
        assert taken.times == tuple(split.times[i] for i in order)
    assert split.take(np.array([2, 0])).paths == ("c", "a")
    assert len(split.take(np.array([], int))) == 0


@pytest.mark.parametrize(("pids", "camids"), [([2], [0]), ([-2], [0]), ([0], [1]), ([0], [-1])])
def test_codes_must_have_labels(pids, camids):
    with pytest.raises(DataError, match="codes must lie in"):
        Domain("d", ROOT, "csv", ("x", "y"), ("c",), query=Split(("a",), pids, camids))


def test_scoring_rule():
    domain = from_rows("d", ROOT, "csv", ROWS)
    assert domain.same_camera == "drop"
    assert domain.scored_as("keep").same_camera == "keep"
    assert domain.same_camera == "drop"
    with pytest.raises(DataError, match="same_camera must be"):
        domain.scored_as("no")


def test_fingerprint_tells_data_apart(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    base = [("train", "a.jpg", "1", "1"), ("query", "b.jpg", "2", "1")]
    same = from_rows("d", tmp_path, "csv", base).fingerprint
    assert from_rows("other name", tmp_path, "viper", base[::-1], notes=["n"]).fingerprint == same
    variants = [
        [("query", "a.jpg", "1", "1"), base[1]],
        [("train", "c.jpg", "1", "1"), base[1]],
        [("train", "a.jpg", "3", "1"), base[1]],
        [("train", "a.jpg", "1", "2"), base[1]],
        [("train", "a.jpg", None, "1"), base[1]],
        base[:1],
    ]
    assert same not in {from_rows("d", tmp_path, "csv", rows).fingerprint for rows in variants}
    (tmp_path / "a.jpg").write_bytes(b"123456")
    assert from_rows("d", tmp_path, "csv", base).fingerprint != same
    (tmp_path / "a.jpg").unlink()
    assert from_rows("d", tmp_path, "csv", base).fingerprint != same


def test_union_keeps_people_of_different_sites_apart(tmp_path):
    first = from_rows(
        "first",
        tmp_path / "1",
        "csv",
        [("train", "a.jpg", "1", "c"), ("train", "j.jpg", None, "c"), ("query", "q.jpg", "2", "c")],
    )
    second = from_rows("second", tmp_path / "2", "csv", [("train", "a.jpg", "1", "c")])
    both = union("both", [first, second])
    assert both.identities == ("first/1", "first/2", "second/1")
    assert both.cameras == ("first/c", "second/c")
    assert both.train.pids.tolist() == [0, JUNK, 2]
    assert both.train.camids.tolist() == [0, 0, 1]
    assert both.groups == (0, 0, 1)
    assert both.files(both.train) == [tmp_path / "1" / "a.jpg", tmp_path / "1" / "j.jpg", tmp_path / "2" / "a.jpg"]
    assert len(both.query) == len(both.gallery) == 0
    with pytest.raises(DataError, match="at least one"):
        union("none", [])


def test_people_held_out_become_query_and_gallery(tmp_path):
    rows = [
        ("train", f"{person}{number}.jpg", person, camera)
        for person in ("1", "2", "3")
        for number, camera in enumerate(("c", "d", "c"))
    ]
    whole = from_rows("d", tmp_path, "csv", [*rows, ("train", "junk.jpg", None, "c"), ("query", "old.jpg", "1", "c")])
    held = whole.with_held_out({"1", "3"})
    assert {held.identities[pid] for pid in held.train.pids if pid != JUNK} == {"2"}
    assert held.query.paths == ("10.jpg", "30.jpg")
    assert set(held.gallery.paths) == {"11.jpg", "12.jpg", "31.jpg", "32.jpg"}
    assert JUNK in held.train.pids, "junk is nobody's"
    assert held.same_camera == "drop"
    assert from_rows("d", tmp_path, "csv", [(*row[:3], "c") for row in rows]).with_held_out({"1"}).same_camera == "keep"


def test_whoever_has_a_single_crop_asks_nothing_and_does_not_change_the_rule(tmp_path):
    rows = [("train", f"{person}{camera}.jpg", person, camera) for person in ("1", "2") for camera in ("c", "d")]
    whole = from_rows("d", tmp_path, "csv", [*rows, ("train", "lone.jpg", "3", "c")])
    assert whole.with_held_out({"1", "2", "3"}).same_camera == "drop"
    twice = from_rows("d", tmp_path, "csv", [*rows, ("train", "lone.jpg", "3", "c"), ("train", "again.jpg", "3", "c")])
    assert twice.with_held_out({"1", "2", "3"}).same_camera == "keep"
