"""Windows between cameras: read strictly, and silent about what they do not know."""

import pytest

from deploy.answers.transitions import Sighting, Transitions
from deploy.match import Match
from domains.errors import DataError, GalleryError

NOON = "2026-01-01T12:00:00+00:00"


def match(camera, time):
    return Match(1, 0.5, 1, "/x", camera, time, None)


def at(seconds):
    return f"2026-01-01T{12 + seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}+00:00"


@pytest.fixture
def rules():
    return Transitions({("gate", "yard"): ((20.0, 600.0), (3000.0, 3600.0)), ("yard", "gate"): ((50.0, float("inf")),)})


@pytest.mark.parametrize(
    ("seen", "camera", "seconds", "expected"),
    [
        ("gate", "yard", 19, False),
        ("gate", "yard", 20, True),
        ("gate", "yard", 600, True),
        ("gate", "yard", 601, False),
        ("gate", "yard", 3000, True),
        ("gate", "yard", -49, False),
        ("gate", "yard", -50, True),
        ("gate", "yard", -40000, True),  # from the yard to the gate, before
        ("yard", "gate", 49, False),
        ("yard", "gate", 50, True),
        ("yard", "gate", -10, False),
        ("yard", "gate", -20, True),
        ("gate", "yard", 0, False),
        ("gate", "gate", 5, None),
        ("gate", "roof", 5, None),
        ("roof", "gate", 5, None),
    ],
)
def test_what_is_possible(rules, seen, camera, seconds, expected):
    time = (
        at(seconds)
        if seconds >= 0
        else f"2026-01-01T{12 + seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}+00:00"
    )
    assert rules.possible(Sighting(seen, NOON), match(camera, time)) is expected


def test_zones_count_and_times_may_be_missing(rules):
    assert rules.possible(Sighting("gate", "2026-01-01T13:00:00+01:00"), match("yard", at(30))) is True
    assert rules.possible(Sighting("gate", NOON), match("yard", None)) is None


def test_at_the_same_moment_either_direction_will_do():
    rules = Transitions({("a", "b"): ((0.0, 10.0),), ("b", "a"): ((5.0, 10.0),)})
    assert rules.possible(Sighting("a", NOON), match("b", NOON)) is True
    assert rules.possible(Sighting("b", NOON), match("a", NOON)) is True
    assert Transitions({("b", "a"): ((5.0, 10.0),)}).possible(Sighting("a", NOON), match("b", NOON)) is False


def test_csv_and_yaml_say_the_same(tmp_path):
    table, tree = tmp_path / "t.csv", tmp_path / "t.yaml"
    table.write_text("from,to,min,max\ngate,yard,20,600\nyard, gate ,50,\n\ngate,yard,3000,3600\n7,8,,\n")
    tree.write_text(
        "- {from: gate, to: yard, min: 20, max: 600}\n- {from: yard, to: gate, min: 50}\n- {from: gate, to: yard, "
        "min: 3000, max: 3600}\n"
        "- {from: 7, to: '8', max: null}\n"
    )
    wanted = {
        ("gate", "yard"): ((20.0, 600.0), (3000.0, 3600.0)),
        ("yard", "gate"): ((50.0, float("inf")),),
        ("7", "8"): ((0.0, float("inf")),),
    }
    assert Transitions.read(table).windows == Transitions.read(tree).windows == wanted


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "", "is empty; it must have the columns from,to once each and may have min,max"),
        ("t.csv", "from,min,max\na,1,2\n", "has no column 'to'"),
        ("t.csv", "from,to,min,max\n", "lists no window"),
        ("t.csv", "from,to,min,seconds\na,b,1,2\n", "not read: seconds; rename or remove"),
        ("t.csv", "from,to,min,maxx\na,b,1,2\n", "did you mean 'max'"),
        ("t.csv", "from,to,min,max\na,b,1\n", "line 2: 3 values for 4 columns"),
        ("t.csv", "from,to,min,max\na,b,x,2\n", "line 2: min must be a number of seconds, 0 or more, got 'x'"),
        ("t.csv", "from,to,min,max\na,b,1,inf\n", "max must be a number of seconds, 0 or more, got 'inf'"),
        ("t.csv", "from,to,min,max\na,b,-1,2\n", "min must be a number of seconds, 0 or more"),
        ("t.csv", "from,to,min,max\na,b,3,2\n", "min 3 is greater than max 2"),
        ("t.csv", "from,to,min,max\n,b,1,2\n", "from must be a camera's name"),
        ("t.csv", 'from,to,min,max\n"a,b,1,2\n', "line"),
        ("t.yaml", "a: b", "must be a list of windows"),
        ("t.yaml", "- {from: a, to: b, seconds: 3}", "window 1 must have from and to"),
        ("t.yaml", "- [a, b]", "window 1 must have from and to"),
        ("t.yaml", "- {from: yes, to: b}", "put it in quotes"),
        ("t.yaml", "- {from: a, to: b, min: [1]}", "min must be a number of seconds"),
        ("t.yaml", "- {from: a, to: b, min: true}", "min must be a number of seconds"),
        ("t.yaml", "- {from: a, to: b, max: .nan}", "max must be a number of seconds"),
        ("t.yaml", "- !!python/object:os.system {}", "is not valid YAML"),
        ("t.yaml", "{" * 1200, "is not valid YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as refused:
        Transitions.read(tmp_path / name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_can_not_be_read(tmp_path):
    with pytest.raises(DataError, match="can't read"):
        Transitions.read(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        Transitions.read(tmp_path / "bytes.csv")
    (tmp_path / "long.csv").write_bytes(b"a" * (2**18 + 1))
    with pytest.raises(DataError, match="larger than 256 KiB"):
        Transitions.read(tmp_path / "long.csv")


def test_a_sighting_needs_a_time_with_its_zone():
    with pytest.raises(GalleryError, match="has no zone"):
        Sighting("gate", "2026-01-01T12:00:00")
