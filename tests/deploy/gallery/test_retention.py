"""Who is chosen for erasure, how long entries stay, and copies made while a gallery is used."""

import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from clocks import SetClock
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.gallery import gallery as gallery_module
from domains.errors import GalleryError

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")


def ago(days):
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        rng = np.random.default_rng(1)
        made.vectors = unit(rng, 8)
        made.add(
            made.vectors,
            ["a", "a", "b", "b"] * 2,
            [f"/{'x' if number < 4 else 'x_y%'}/{number}" for number in range(8)],
            time=[ago(40), ago(10), None, ago(1), ago(40), ago(10), None, ago(1)],
            label=["ann", None, "ben", "ann"] * 2,
        )
        yield made


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"label": "ann"}, [1, 4, 5, 8]),
        ({"camera": "a", "label": "ann"}, [1, 5]),
        ({"source": "/x/"}, [1, 2, 3, 4]),
        ({"source": "/x_y%"}, [5, 6, 7, 8]),
        ({"source": "/x_y%/4"}, [5]),
        ({"before": ago(20)}, [1, 5]),
        ({"after": ago(20)}, [2, 4, 6, 8]),
        ({"label": "nobody"}, []),
        ({"label": "' OR 1 --"}, []),
    ],
)
def test_a_selection_is_what_a_search_with_its_filters_can_return(gallery, filters, wanted):
    assert gallery.select(**filters) == wanted
    assert sorted(match.id for match in gallery.search(gallery.vectors[0], k=8, **filters)[0]) == wanted


@pytest.fixture
def clock(monkeypatch):
    return SetClock(monkeypatch, datetime.now(UTC).isoformat())


def test_age_counts_the_stay_where_no_time_is_known(gallery, clock):
    gallery.keep(36500)
    assert gallery.older_than(20) == [1, 5]
    for _ in range(3):
        clock.move(7)
        gallery.retain()
    gallery.add(gallery.vectors[:1], "b", ["/new"])
    assert gallery.older_than(20) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert gallery.older_than(23) == [1, 2, 5, 6]


def test_rules_erase_by_camera_and_for_all_others(gallery, clock):
    gallery.keep(5, camera="a")
    assert gallery.ids() == [3, 4, 7, 8]
    for _ in range(25):
        clock.move(1.2)
        gallery.retain()
    gallery.add(gallery.vectors[:1], "b", ["/new"])
    clock.move(1.2)
    gallery.keep(30)
    assert gallery.ids() == [9]
    assert gallery.retention() == {"": 30, "a": 5}
    gallery.keep(None, camera="a")
    assert gallery.retention() == {"": 30}
    actions = [(record["action"], record.get("by")) for record in gallery.audit()]
    assert actions == [("keep", None), ("forget", "retention"), ("keep", None), ("forget", "retention"), ("keep", None)]
    assert "ann" not in str(gallery.audit())


def test_rules_run_by_themselves_at_opening_and_while_open(gallery, clock, monkeypatch):
    gallery.keep(42)
    clock.move(3)
    with Gallery.open(gallery.path) as again:
        assert again.ids() == [2, 3, 4, 6, 7, 8]
        for _ in range(3):
            clock.move(8)
            again.retain()
        clock.move(8)
        again.search(gallery.vectors[0])
        assert 2 in again.ids(), "not before an hour is over"
        monkeypatch.setattr(gallery_module, "EVERY", -1.0)
        assert 2 not in {match.id for match in again.search(gallery.vectors[0])[0]}


@pytest.mark.parametrize("days", [0, -1, 1.5, True, 10**6])
def test_impossible_rules_are_refused(gallery, days):
    with pytest.raises(GalleryError, match="kept for 1 to"):
        gallery.keep(days)


def test_a_backup_is_a_whole_gallery_and_is_named_as_long_as_it_is_there(gallery, tmp_path):
    assert gallery.backup(tmp_path / "copy") == 8
    gallery.forget([1])
    assert gallery.backups() == [str(tmp_path / "copy")]
    with Gallery.open(tmp_path / "copy") as copy:
        assert len(copy) == 8
        copy.verify()
        assert copy.search(gallery.vectors[0])[0][0].id == 1
    with pytest.raises(GalleryError, match="can't make a backup"):
        gallery.backup(tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert gallery.backups() == []


def test_a_backup_made_while_others_write_is_one_state(gallery, tmp_path):
    done = threading.Event()

    def write():
        rng = np.random.default_rng(2)
        with Gallery.open(gallery.path) as other:
            while not done.is_set():
                other.add(unit(rng, 4), "w", [str(number) for number in range(4)])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            count = gallery.backup(tmp_path / f"copy{number}")
            assert count % 4 == 0
    finally:
        done.set()
        thread.join()
