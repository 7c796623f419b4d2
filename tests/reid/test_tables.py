"""Tables at every width: nothing is left out, and no line is longer than there is room, unless it can't be broken."""

import itertools

import pytest
from rich.cells import cell_len

from reid.tables import Columns, shortened, show_table
from reid.terminal import Terminal

PATH = "/data/sites/north/2026-01-01/crops/person_0001_c2_f0003.png"
COLUMNS = Columns(["rank", "score", "camera", "source", "id"], left=("camera", "source"), paths=("source",))
ROWS = [
    [str(number), f"0.{number}00", camera, PATH.replace("0003", f"{number:04d}"), str(100 + number)]
    for number, camera in enumerate(["yard [north]", "カメラ", "a\nb\x1b[2J", "gate"])
]


def printed(monkeypatch, capsys, width, columns=COLUMNS, rows=ROWS, title="query.png"):
    monkeypatch.setenv("COLUMNS", str(width))
    show_table(Terminal(), title, columns, rows)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 40, 60, 70, 79, 80, 100, 132, 200])
def test_every_cell_can_be_read_at_any_width(monkeypatch, capsys, width):
    text = printed(monkeypatch, capsys, width)
    lines = text.splitlines()
    for number, score, camera, path, identity in ROWS:
        at = [index for index, line in enumerate(lines) if score in line]
        assert len(at) == 1, (width, text)
        near = " ".join(lines[max(0, at[0] - 1) : at[0] + 4])
        for cell in (number, camera.replace("\n", "\\n").replace("\x1b", "\\x1b"), path[-10:], identity):
            assert cell in near, (width, cell, text)
    assert "\x1b" not in text
    if width >= 70:
        assert max(map(cell_len, lines)) <= width


def test_eighty_columns_keep_a_match_on_one_line_with_the_end_of_its_path(monkeypatch, capsys):
    lines = printed(monkeypatch, capsys, 80).splitlines()
    row = next(line for line in lines if "gate" in line)
    assert row.split()[:3] == ["3", "0.300", "gate"]
    assert row.split()[3].startswith("…")
    assert PATH.replace("0003", "0003").endswith(row.split()[3].removeprefix("…"))
    assert row.split()[4] == "103"


@pytest.mark.parametrize("rows", [[], [["", "", "", "", ""]]])
def test_nothing_to_show_is_no_fault(monkeypatch, capsys, rows):
    for width in (1, 40, 200):
        assert "query.png" in printed(monkeypatch, capsys, width, rows=rows)


@pytest.mark.parametrize(("text", "width"), itertools.product(["", "a", PATH, "カメラ" * 9, "x" * 300], [1, 3, 12, 40]))
def test_a_shortened_path_fits_and_ends_as_the_path_does(text, width):
    for mark in ("…", "..."):
        short = shortened(text, width, mark)
        assert cell_len(short) <= max(width, len(mark))
        assert short == text or text.endswith(short.removeprefix(mark))
