"""One reader, one table of cases: ``domain.csv`` and a gallery's CSV take and refuse the same files."""

import os

import cv2
import numpy as np
import pytest

from deploy.gallery.sources import read_sources
from domains.errors import DataError
from domains.formats import open_domain

PICTURES = ("a.png", "in/b.png", "a, b.png", "Ä.png")


class OfDomain:
    """``domain.csv``: the columns are path,pid,camid,split and perhaps time."""

    FILE, REQUIRED, PERSON, CAMERA = "domain.csv", ["path", "pid", "camid", "split"], "pid", "camid"
    REST = (("pid", "7"), ("camid", "door"), ("split", "gallery"))

    @staticmethod
    def read(file):
        """Paths, cameras and times."""
        domain = open_domain(file.parent)
        split = domain.gallery
        times = split.times or [None] * len(split)
        return sorted(
            (path, domain.cameras[camid], time)
            for path, camid, time in zip(split.paths, split.camids, times, strict=True)
        )

    @staticmethod
    def notes(file):
        return open_domain(file.parent).notes


class OfGallery:
    """A gallery's CSV: the columns are path,camera and perhaps time,label."""

    FILE, REQUIRED, PERSON, CAMERA = "list.csv", ["path", "camera"], "label", "camera"
    REST = (("camera", "door"),)

    @staticmethod
    def read(file):
        """Paths, cameras and times."""
        return sorted(
            (source.path.relative_to(file.parent).as_posix(), source.camera, source.time)
            for source in read_sources(file)
        )

    @staticmethod
    def notes(file):
        return read_sources(file).notes


both = pytest.mark.parametrize("reader", [OfDomain, OfGallery], ids=["domain", "gallery"])


@pytest.fixture
def folder(tmp_path):
    for name in PICTURES:
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    return tmp_path / "site"


def written(reader, folder, text, encoding="utf-8"):
    file = folder / reader.FILE
    file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return file


def line(reader, path, columns=None, **values):
    return [({"path": path} | dict(reader.REST) | values)[column] for column in columns or reader.REQUIRED]


def text_of(reader, *paths, mark=",", end="\n"):
    return "".join(mark.join(row) + end for row in (reader.REQUIRED, *(line(reader, path) for path in paths)))


ONE = [("a.png", "door", None)]
TWO = [*ONE, ("in/b.png", "door", None)]


def rewritten(change):
    return lambda reader: change(text_of(reader, "a.png", "in/b.png"))


GOOD = {
    "plain": rewritten(lambda text: text),
    "byte order mark": rewritten(lambda text: "\ufeff" + text),
    "CRLF": rewritten(lambda text: text.replace("\n", "\r\n")),
    "CR": rewritten(lambda text: text.replace("\n", "\r")),
    "no last line end": rewritten(str.rstrip),
    "semicolons": lambda reader: text_of(reader, "a.png", "in/b.png", mark=";"),
    "a line for spreadsheets": lambda reader: "sep=;\r\n" + text_of(reader, "a.png", "in/b.png", mark=";", end="\r\n"),
    "the same, quoted, after a mark": lambda reader: '\ufeff"SEP=,"\n' + text_of(reader, "a.png", "in/b.png"),
    "the same for tabs": lambda reader: (
        "\n sep=\t\n".replace(" ", "") + text_of(reader, "a.png", "in/b.png", mark="\t")
    ),
    "tabs": lambda reader: text_of(reader, "a.png", "in/b.png", mark="\t"),
    "spaces after commas": lambda reader: text_of(reader, "a.png", "in/b.png", mark=", "),
    "all quoted": rewritten(
        lambda text: "\n".join(",".join(f'"{cell}"' for cell in row.split(",")) for row in text.splitlines())
    ),
    "quoted after a space": rewritten(lambda text: text.replace("door", ' "door"')),
    "empty lines": rewritten(lambda text: "\n\r\n" + text.replace("\n", "\n\n  \n")),
    "rows of commas": lambda reader: text_of(reader, "a.png", "in/b.png") + "," * (len(reader.REQUIRED) - 1) + "\n",
    "header in capitals": rewritten(lambda text: text.replace("path", "PATH").replace("cam", "Cam")),
    "spaces in the header": rewritten(lambda text: text.replace("path", " path ")),
    "quoted header after the mark": rewritten(lambda text: "\ufeff" + text.replace("path", '"path"', 1)),
    "dots in a path": rewritten(lambda text: text.replace("a.png", "./a.png").replace("in/b.png", "in//./b.png")),
    "another order": lambda reader: "".join(
        ",".join(row) + "\n"
        for row in (reader.REQUIRED[::-1], *(line(reader, path)[::-1] for path in ("a.png", "in/b.png")))
    ),
    "an empty column of times": lambda reader: "".join(
        ",".join(row) + "\n"
        for row in ([*reader.REQUIRED, "time"], *([*line(reader, path), ""] for path in ("a.png", "in/b.png")))
    ),
    "a row twice as long ago": rewritten(lambda text: text.replace("door", "door" + " " * 1000)),
}


@both
@pytest.mark.parametrize("case", GOOD)
def test_both_take(folder, reader, case):
    assert reader.read(written(reader, folder, GOOD[case](reader))) == TWO


@both
def test_quotes_keep_commas_and_letters_beyond_ascii(folder, reader):
    text = text_of(reader, '"a, b.png"', "Ä.png")
    assert [path for path, *_ in reader.read(written(reader, folder, text))] == ["a, b.png", "Ä.png"]


@both
def test_times_are_taken_alike(folder, reader):
    for time in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5+01:00", "20260101T000000+0100", "2026-01-01 10:00Z"):
        columns = [*reader.REQUIRED, "time"]
        rows = [columns, line(reader, "a.png", columns, time=time)]
        text = "\n".join(",".join(row) for row in rows)
        assert reader.read(written(reader, folder, text)) == [("a.png", "door", time)]


@both
def test_columns_that_are_not_read_are_named(folder, reader):
    columns = [*reader.REQUIRED, "weather", "", "Timestamp", "weather"]
    row = [*line(reader, "a.png"), "rain", "x", "now", "sun"]
    file = written(reader, folder, "\n".join(",".join(cells) for cells in (columns, row)))
    assert reader.read(file) == ONE
    (note,) = reader.notes(file)
    assert note == (
        f"{reader.FILE}: these columns are not read: weather, one without a name, timestamp (did you mean time?)"
    )


def bad(change):
    return lambda reader: change(reader, text_of(reader, "a.png"))


BAD = {
    "nothing": (bad(lambda *_: ""), "is empty; it must have the columns path,"),
    "blank lines": (bad(lambda *_: "\n \n\r\n"), "is empty"),
    "a mark alone": (bad(lambda *_: "\ufeff"), "is empty"),
    "a line for spreadsheets alone": (bad(lambda *_: "sep=;\n"), "is empty"),
    "a row after that line": (bad(lambda _, text: "sep=,\n" + text + "b.png\n"), "line 4: 1 values"),
    "a header alone": (bad(lambda reader, _: ",".join(reader.REQUIRED) + "\n"), "no rows below its header"),
    "no header": (bad(lambda _, text: text.split("\n", 1)[1]), "has no column 'path'"),
    "no camera": (bad(lambda reader, text: text.replace(reader.CAMERA, "kiosk", 1)), "has no column 'cam"),
    "another name": (
        bad(lambda reader, text: text.replace(reader.CAMERA, "cam_id", 1)),
        r"has no column 'cam.*\(did you mean 'cam_id'\?\)",
    ),
    "a column twice": (
        bad(lambda *_: "path,PATH,camera,camid,pid,split\na,a,a,a,a,a\n"),
        "has the column 'path' twice",
    ),
    "a typing error": (
        bad(lambda _, text: text.replace("\n", ",tmie\n", 1).rstrip() + ",x\n"),
        r"has the column 'tmie', which is not read \(did you mean 'time'\?\); rename or remove it",
    ),
    "a short row": (bad(lambda _, text: text + "b.png\n"), r"line 3: 1 values for \d columns"),
    "a long row": (bad(lambda _, text: text.rstrip() + ",\n"), r"line 2: \d values for \d columns; quote .* comma"),
    "a row after empty lines": (bad(lambda _, text: "\n" + text + "\n\nb.png\n"), "line 6: 1 values"),
    "colons": (bad(lambda _, text: text.replace(",", ":")), "has no column 'path'"),
    "an open quote": (bad(lambda _, text: text + '"b.png,x\n'), "line 3: not a CSV file"),
    "text after a quote": (bad(lambda _, text: text.replace("a.png", '"a"b')), "line 2: not a CSV file"),
    "a huge value": (bad(lambda _, text: text.replace("a.png", "a" * 200_000)), "line 2: not a CSV file"),
    "an endless line": (bad(lambda _, text: text + "a," * 2**20), "line 3: not a CSV file: more than"),
    "a zero byte": (bad(lambda _, text: text.replace("a.png", "a\0.png")), "line 2"),
    "a line end in a value": (bad(lambda _, text: text.replace("a.png", '"a\n.png"')), "line 3"),
    "an escape in a label": (bad(lambda _, text: text.replace("door", "do\x1b[2Jor")), "line 2"),
    "a reversal in a label": (bad(lambda _, text: text.replace("door", "do\u202eor")), "line 2"),
    "an empty label": (bad(lambda _, text: text.replace("door", " ")), "line 2"),
    "a long label": (bad(lambda _, text: text.replace("door", "d" * 300)), "line 2"),
    "an absolute path": (
        bad(lambda _, text: text.replace("a.png", "/etc/passwd")),
        "line 2: the path must be relative",
    ),
    "a parent": (bad(lambda _, text: text.replace("a.png", "../a.png")), "line 2: the path must be relative"),
    "a hidden parent": (bad(lambda _, text: text.replace("a.png", "in/../../a.png")), "line 2: the path must be relat"),
    "a backslash": (bad(lambda _, text: text.replace("a.png", "in\\b.png")), "line 2: the path must be relative"),
    "a drive": (bad(lambda _, text: text.replace("a.png", "C:a.png")), "line 2: the path must be relative"),
    "the folder itself": (bad(lambda _, text: text.replace("a.png", ".")), "line 2: '.' does not name a file"),
    "an empty path": (bad(lambda _, text: text.replace("a.png", " ")), "line 2: '' is not a path"),
    "a long path": (bad(lambda _, text: text.replace("a.png", "x/" * 600 + "a.png")), "line 2: .* is not a path of"),
    "a folder": (bad(lambda _, text: text.replace("a.png", "in")), "line 2: in is not a file"),
    "a pipe": (bad(lambda _, text: text.replace("a.png", "pipe.png")), "line 2: pipe.png is not a file"),
    "a link out": (
        bad(lambda _, text: text.replace("a.png", "out.png")),
        "line 2: out.png leads out .* through a link",
    ),
    "a folder out": (bad(lambda _, text: text.replace("a.png", "out/s.png")), "line 2: out/s.png leads out"),
    "a link nowhere outside": (bad(lambda _, text: text.replace("a.png", "gone.png")), "line 2: gone.png leads out"),
    "Latin 1": (
        bad(lambda _, text: text.replace("door", "tür").encode("latin-1")),
        "is not UTF-8 text; save it as UTF-8",
    ),
    "UTF-16": (bad(lambda _, text: text.encode("utf-16")), "is not UTF-8 text"),
    "UTF-16 without a mark": (bad(lambda _, text: text.encode("utf-16-le")), "is not UTF-8 text"),
    "a time without a zone": (
        bad(lambda _, text: text.replace("\n", ",time\n", 1).rstrip() + ",2026-01-01T00:00:00\n"),
        "line 2: .*zone",
    ),
    "noon": (bad(lambda _, text: text.replace("\n", ",time\n", 1).rstrip() + ",noon\n"), "line 2: .*ISO 8601"),
}


@both
@pytest.mark.parametrize("case", BAD)
def test_both_refuse(folder, reader, case):
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "s.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "out.png").symlink_to(outside / "s.png")
    (folder / "out").symlink_to(outside)
    (folder / "gone.png").symlink_to(outside / "gone.png")
    os.mkfifo(folder / "pipe.png")
    text, message = BAD[case]
    file = written(reader, folder, text(reader))
    with pytest.raises(DataError, match=message) as caught:
        reader.read(file)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 900


@both
def test_links_within_the_folder_and_missing_files_are_taken(folder, reader):
    (folder / "link.png").symlink_to("in/b.png")
    text = text_of(reader, "gone.png", "link.png")
    assert [path for path, *_ in reader.read(written(reader, folder, text))] == ["gone.png", "link.png"]


@both
def test_a_large_file_is_refused_before_it_is_read(folder, reader, monkeypatch):
    monkeypatch.setattr("domains.formats.records.MAX_BYTES", 10)
    with pytest.raises(DataError, match="is larger than"):
        reader.read(written(reader, folder, text_of(reader, "a.png")))


@pytest.mark.parametrize("label", ["-1", "-1.0", "\u22121", " -01 ", '"-1,0"', '"-1,00"'])
def test_junk_has_no_label(folder, label):
    file = written(OfGallery, folder, f"path,camera,label\na.png,door,{label}\nin/b.png,door,anna\n")
    assert [source.label for source in read_sources(file)] == [None, "anna"]


@pytest.mark.parametrize("text", ["nan", "None", "<NA>", "-2", "'-1", "1E+05"])
def test_labels_and_cameras_that_may_be_none_are_noted(folder, text):
    (labels,) = OfGallery.notes(
        written(OfGallery, folder, f"path,camera,label\na.png,door,{text}\nin/b.png,door,anna\n")
    )
    assert labels.startswith(f"list.csv: these labels may mean nobody, or many people: {text!r} (")
    (cameras,) = OfGallery.notes(written(OfGallery, folder, f"path,camera\na.png,{text}\nin/b.png,door\n"))
    assert cameras.startswith(f"list.csv: these cameras may be none, or several: {text!r} (it reads like")
    assert "anna" not in labels
    assert "door" not in cameras
