"""A clock that is wrong for a while erases nothing that it should not, and one that was set is asked about."""

import sqlite3

import numpy as np
import pytest
from clocks import SetClock
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.gallery.erasure import ErasureRequest
from deploy.store.clock import DAY, leap
from domains.errors import ClockError, GalleryError


@pytest.fixture
def clock(monkeypatch):
    return SetClock(monkeypatch)


@pytest.fixture
def folder(tmp_path, clock):
    Gallery.create(tmp_path / "gallery", DIM, SPACE).close()
    return tmp_path / "gallery"


def add(folder, count=1, time=None):
    with Gallery.open(folder) as gallery:
        vectors = unit(np.random.default_rng(len(gallery)), count)
        return gallery.add(vectors, "a", [f"/{len(gallery)}/{number}" for number in range(count)], time=time)


def left(folder):
    with Gallery.open(folder) as gallery:
        return gallery.ids()


def keep(folder, days):
    with Gallery.open(folder) as gallery:
        gallery.keep(days)


WRONG = {
    "the epoch": "1970-01-01T00:05:00",
    "1972": "1972-02-01T00:00:00",
    "a firmware's date": "2021-01-01T00:00:00",
    "last year": "2025-03-01T12:00:00",
    "a week and more back": "2026-02-20T12:00:00",
    "40 days ahead": "2026-04-10T12:00:00",
    "a year ahead": "2027-03-01T12:00:00",
    "2106": "2106-02-07T00:00:00",
    "9999": "9999-12-31T00:00:00",
}
DURING = {
    "an opening": left,
    "an addition": add,
    "an addition with a time": lambda folder: add(folder, time="2026-03-01T11:00:00+00:00"),
    "an hour of use": lambda folder: [left(folder) for _ in range(5)],
}


@pytest.mark.parametrize("during", DURING)
@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_goes_by_a_wrong_clock_nor_after_it(folder, clock, wrong, during):
    keep(folder, 30)
    add(folder, 3)
    right = clock.time
    clock.set(WRONG[wrong])
    DURING[during](folder)
    clock.time = right
    clock.move(0.1)
    add(folder)
    before = left(folder)
    assert len(before) >= 4
    for days in (7, 7, 7, 7, 1.8):
        clock.move(days)
        assert left(folder) == before, f"{clock.time}"
    clock.move(1)
    assert left(folder) == [], "and what is old goes all the same"


@pytest.mark.parametrize(("days", "step"), [(1, 0.5), (2, 1), (30, 3), (30, 7), (61, 8)])
def test_entries_go_when_they_are_old_if_the_gallery_is_used_now_and_then(folder, clock, days, step):
    keep(folder, days)
    add(folder)
    age = 0
    while age + step <= days:
        clock.move(step)
        age += step
        assert left(folder) == [1]
    clock.move(step)
    assert left(folder) == []


@pytest.mark.parametrize(("days", "jump"), [(1, 1.1), (1, 3), (7, 2), (30, 7.6), (30, 40), (365, 8.1), (36500, 9)])
def test_a_jump_is_refused_where_it_would_take_too_much(folder, clock, days, jump):
    keep(folder, days)
    add(folder, time=clock.ago(days - 0.5))
    clock.move(jump)
    assert left(folder) == [1]
    with Gallery.open(folder) as gallery, pytest.raises(ClockError, match="1 entry would go") as raised:
        gallery.retain()
    assert "2026-03-01T12:00:00+00:00" in str(raised.value)
    assert clock.time.isoformat(timespec="seconds") in str(raised.value)
    assert leap(days) < jump * DAY


def test_a_person_who_says_that_the_time_passed_erases(folder, clock):
    keep(folder, 30)
    add(folder, 2)
    clock.move(40)
    add(folder)
    with Gallery.open(folder) as gallery:
        state = gallery.ageing()
        assert (state.reading.right, state.due, state.dated) == (False, [1, 2], [])
        assert gallery.trust_clock() == 2
        assert gallery.ids() == [3]
        assert gallery.audit()[-2] == {
            "action": "trust clock",
            "before": "2026-03-01T12:00:00+00:00",
            "now": "2026-04-10T12:00:00+00:00",
            "time": "2026-04-10T12:00:00+00:00",
            "from_now": 0,
        }
        gallery.verify()
        assert gallery.retain() == 0


def test_a_person_who_says_that_the_time_before_was_wrong_keeps_what_has_no_time(folder, clock):
    clock.set("2024-01-01T00:00:00")
    with Gallery.open(folder) as gallery:
        gallery.trust_clock()
    keep(folder, 30)
    add(folder, 2)
    add(folder, time="2024-01-01T00:00:00+00:00")
    clock.set("2026-03-01T12:00:00")
    with Gallery.open(folder) as gallery:
        assert gallery.ageing().dated == [3]
        assert gallery.trust_clock(from_now=True) == 1
    for _ in range(4):
        clock.move(7)
        assert left(folder) == [1, 2]


@pytest.mark.parametrize("from_now", [False, True])
def test_a_confirmation_that_was_wrong_can_be_taken_back(folder, clock, from_now):
    keep(folder, 30)
    clock.move(40)
    with Gallery.open(folder) as gallery:
        gallery.trust_clock()
    add(folder)
    clock.move(-40)
    add(folder)
    with Gallery.open(folder) as gallery:
        with pytest.raises(ClockError, match="before the last trusted time"):
            gallery.retain()
        assert gallery.trust_clock(from_now=from_now) == 0
    for _ in range(5):
        assert left(folder) == [1, 2]
        clock.move(7)
    assert left(folder) == []


def test_a_clock_that_can_t_be_right_is_not_confirmed(folder, clock):
    clock.set("1972-02-01T00:00:00")
    with Gallery.open(folder) as gallery, pytest.raises(GalleryError, match=r"1972-02-01.*set the clock first"):
        gallery.trust_clock()


def test_a_gallery_made_by_a_clock_that_can_t_be_right(tmp_path, clock):
    clock.set("1970-01-01T00:00:10")
    Gallery.create(tmp_path / "gallery", DIM, SPACE).close()
    keep_error = pytest.raises(ClockError, match="the rules are changed, but nothing is erased by age")
    with keep_error:
        keep(tmp_path / "gallery", 30)
    add(tmp_path / "gallery")
    clock.set("2026-03-01T12:00:00")
    for _ in range(5):
        assert left(tmp_path / "gallery") == [1]
        clock.move(7)
    assert left(tmp_path / "gallery") == []


@pytest.fixture
def unknowing(tmp_path, clock):
    """A gallery that was made, filled and given a rule by a clock that can't be right."""
    clock.set("1972-02-01T00:00:00")
    Gallery.create(tmp_path / "unknowing", DIM, SPACE).close()
    add(tmp_path / "unknowing", 2, time="2026-02-28T00:00:00Z")
    add(tmp_path / "unknowing", 2)
    with pytest.raises(ClockError):
        keep(tmp_path / "unknowing", 30)
    return tmp_path / "unknowing"


FIRST = {
    "one opening ahead": ["2066-01-01T00:00:00"],
    "a day ahead": [f"2066-01-01T{hour:02}:00:00" for hour in range(24)],
    "twice ahead, years apart": ["2066-01-01T00:00:00", "2090-01-01T00:00:00"],
    "one opening behind": ["2021-01-01T00:00:00"],
    "behind, then ahead": ["2021-01-01T00:00:00", "2066-01-01T00:00:00"],
    "still at the epoch": ["1970-01-01T00:05:00"],
    "right": [],
}


@pytest.mark.parametrize("during", DURING)
@pytest.mark.parametrize("first", FIRST)
def test_where_no_time_was_ever_trusted_one_reading_erases_nothing(unknowing, clock, first, during):
    for time in FIRST[first]:
        clock.set(time)
        DURING[during](unknowing)
    clock.set("2026-03-01T12:00:00")
    before = left(unknowing)
    assert before[:4] == [1, 2, 3, 4]
    for _ in range(4):
        clock.move(7)
        assert left(unknowing) == before
    clock.move(7)
    assert not {1, 2, 3, 4} & set(left(unknowing)), "readings have followed one another for five weeks"
    with Gallery.open(unknowing) as gallery:
        assert gallery.ageing().reading.trusted is not None
        gallery.verify()


def test_readings_too_far_apart_do_not_follow(unknowing, clock):
    clock.set("2026-03-01T12:00:00")
    for _ in range(12):
        assert left(unknowing) == [1, 2, 3, 4]
        clock.move(9)
    with Gallery.open(unknowing) as gallery:
        with pytest.raises(ClockError, match="2 entries would go"):
            gallery.retain()
        assert gallery.trust_clock() == 2
        assert gallery.ids() == [3, 4]


def test_a_person_need_not_wait_and_marks_of_another_time_do_not_count(unknowing, clock):
    clock.set("2021-01-01T00:00:00")
    left(unknowing)
    clock.set("2026-03-01T12:00:00")
    with Gallery.open(unknowing) as gallery:
        assert gallery.trust_clock() == 0
        assert gallery.ids() == [1, 2, 3, 4]
    for _ in range(4):
        clock.move(7)
        left(unknowing)
    clock.move(3)
    assert left(unknowing) == []


def test_forgetting_by_age_waits_too(unknowing, clock):
    clock.set("2066-01-01T00:00:00")
    with Gallery.open(unknowing) as gallery:
        assert gallery.older_than(30, preview=True) == [1, 2]
        with pytest.raises(ClockError, match=r"no earlier time is known to be right; 2 entries would go"):
            gallery.older_than(30)
        assert gallery.older_than(36500) == [], "nothing would go, so nobody is asked"


@pytest.mark.parametrize("opened", [False, True])
def test_a_gallery_without_entries_trusts_the_first_time_that_can_be(tmp_path, clock, opened):
    """As on a machine whose clock is set a moment after it started."""
    clock.set("1970-01-01T00:00:10")
    Gallery.create(tmp_path / "gallery", DIM, SPACE).close()
    clock.set("2026-03-01T12:00:00")
    if opened:
        keep(tmp_path / "gallery", 30)
    add(tmp_path / "gallery")
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert gallery.ageing().reading.right


def test_weeks_without_use_do_not_take_the_trust_away(folder, clock):
    keep(folder, 30)
    add(folder)
    clock.move(21)
    assert left(folder) == [1]
    with Gallery.open(folder) as gallery:
        gallery.trust_clock()
    clock.move(7)
    assert left(folder) == [1]
    clock.move(3)
    assert left(folder) == []


def test_the_order_of_ids_counts_and_not_the_time_in_one_of_them(folder, clock):
    add(folder, 5)
    with Gallery.open(folder) as gallery:
        gallery._store.change("UPDATE entry SET added = 0 WHERE id = 3")
    keep(folder, 30)
    assert left(folder) == [1, 2, 3, 4, 5]


def test_a_time_that_has_not_come_yet_counts_as_the_time_of_addition(folder, clock):
    keep(folder, 30)
    add(folder, time="2090-01-01T00:00:00Z")
    for _ in range(5):
        assert left(folder) == [1]
        clock.move(7)
    assert left(folder) == []


@pytest.mark.parametrize("jump", [40, -40, 4000, -20000])
def test_forgetting_by_age_asks_too_and_a_preview_shows(folder, clock, jump):
    add(folder, 2, time=clock.ago(1))
    clock.move(jump)
    with Gallery.open(folder) as gallery:
        wanted = ErasureRequest(camera="a", older_than=30)
        due = [1, 2] if jump > 0 else []
        assert gallery.older_than(30, preview=True) == due
        assert wanted.of(gallery, preview=True)[0] == due
        for ask in (lambda: gallery.older_than(30), lambda: wanted.of(gallery)):
            with pytest.raises(ClockError, match=f"{len(due)} entries would go"):
                ask()
        assert gallery.ids() == [1, 2]
        assert ErasureRequest(camera="a").of(gallery)[0] == [1, 2], "what is not chosen by age needs no clock"


def test_a_reading_does_not_wait_for_who_is_writing(folder, clock):
    keep(folder, 30)
    clock.move(1)
    other = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Gallery.open(folder) as gallery:  # the busy timeout is a minute
        assert gallery._store.clock().trusted == int(clock.time.timestamp() * 1e6) - DAY
    other.execute("ROLLBACK")
    other.close()


def test_a_restored_backup_is_asked_about_before_anything_goes(folder, clock, tmp_path):
    keep(folder, 30)
    add(folder)
    with Gallery.open(folder) as gallery:
        gallery.backup(tmp_path / "copy")
    for _ in range(6):
        clock.move(7)
        left(folder)
    Gallery.restore(tmp_path / "copy", folder)
    assert left(folder) == [1]
    with Gallery.open(folder) as gallery:
        assert gallery.trust_clock() == 1


@pytest.mark.parametrize(
    "damage",
    ["UPDATE mark SET newest = newest + 1", "UPDATE mark SET time = time - 1", "UPDATE mark SET checksum = 0"],
)
def test_a_damaged_mark_is_found_and_repaired_and_erases_nothing(folder, clock, damage):
    keep(folder, 30)
    add(folder)
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute(damage)
    db.close()
    with Gallery.open(folder) as gallery, pytest.raises(GalleryError, match="mark of what was there"):
        gallery.verify()
    for _ in range(5):
        clock.move(7)
        assert left(folder) == [1]
    assert [text for text in Gallery.repair(folder) if text.startswith("repaired: the mark")]
    assert left(folder) == [1]
    with Gallery.open(folder) as gallery:
        gallery.verify()


def test_a_changed_trusted_time_is_found(folder, clock):
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute("UPDATE clock SET trusted = trusted + 1000000")
    db.close()
    with pytest.raises(GalleryError, match="facts or rules"):
        Gallery.open(folder)


# ---------------------------------------------------------------------------------------- galleries of earlier schemas


def as_schema_3(folder, added):
    """Make a gallery what the version before wrote, with these times of addition by id."""
    from deploy.store.seal import write_seal

    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute("BEGIN")
    for table in ("clock", "mark"):
        db.execute(f"DROP TABLE {table}")
    for number, time in added.items():
        db.execute("UPDATE entry SET added = ?, stamp = 0 WHERE id = ?", (time, number))
    db.execute("PRAGMA user_version = 3")
    write_seal(db)
    db.execute("COMMIT")
    db.close()


OLD = {
    "as they were added": ([-40, -39, 0], [1, 2]),
    "one at the epoch": ([-5, None, 0], []),
    "all at the epoch": ([None, None, None], []),
    "the first at the epoch": ([None, -5, 0], []),
    "one between that says older": ([-5, -400, 0], []),
    "the last says older": ([-40, -1, -400], [1]),
    "one from the future": ([-40, 400, 0], [1]),
}


@pytest.mark.parametrize("case", OLD)
def test_a_gallery_that_kept_no_time_goes_by_the_order_of_its_times(folder, clock, case):
    add(folder, 3)
    now = int(clock.time.timestamp() * 1e6)
    days, gone = OLD[case]
    as_schema_3(folder, {number: 0 if day is None else now + day * DAY for number, day in enumerate(days, 1)})
    keep(folder, 30)
    assert left(folder) == [number for number in (1, 2, 3) if number not in gone]


def test_a_gallery_that_kept_no_time_opened_by_a_wrong_clock_loses_nothing(folder, clock):
    keep(folder, 30)
    add(folder, 3)
    as_schema_3(folder, {})
    clock.move(40)
    assert left(folder) == [1, 2, 3]
    clock.move(-40)
    assert left(folder) == [1, 2, 3]


def test_one_that_can_only_be_read_still_answers(folder, clock):
    add(folder, 3)
    as_schema_3(folder, {})
    with Gallery.open(folder, read_only=True) as gallery:
        assert gallery.ids() == [1, 2, 3]
        gallery.verify()
        with pytest.raises(GalleryError, match="earlier version"):
            gallery.older_than(1, preview=True)


def test_damage_in_a_gallery_of_an_earlier_schema_is_not_sealed_along(folder, clock):
    keep(folder, 30)
    as_schema_3(folder, {})
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute("UPDATE retention SET days = 1")
    db.close()
    with pytest.raises(GalleryError, match="facts or rules"):
        Gallery.open(folder)
