"""What ``reid gallery add`` finds and leaves out: nothing is missing without a word."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.gallery.sources import read_sources
from domains.crops import SUFFIXES
from domains.errors import DataError
from domains.formats import leftovers

GIFS = leftovers.FORMAT.format(suffix=".gif")


def draw(*files):
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", np.full((32, 16, 3), number, np.uint8))[1].tobytes())


def counts(sources):
    return {item.reason: (item.count, item.example) for item in sources.left_out}


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_a_folder_gives_whatever_a_query_takes(tmp_path, suffix):
    draw(tmp_path / "yard" / f"a{suffix}", tmp_path / "yard" / f"B{suffix.upper()}")
    assert [source.path.name for source in read_sources(tmp_path)] == [f"B{suffix.upper()}", f"a{suffix}"]
    assert read_sources(tmp_path).left_out == ()


def test_what_a_plain_folder_leaves_out_is_counted(tmp_path):
    site, outside = tmp_path / "site", tmp_path / "outside"
    draw(site / "yard" / "a.webp", outside / "s.png", site / "yard" / ".b.png", site / ".git" / "x.png")
    (site / "yard" / "clip.gif").write_bytes(b"GIF89a")
    (site / "notes.txt").touch()
    os.mkfifo(site / "pipe.png")
    (site / "out.png").symlink_to(outside / "s.png")
    (site / "out").symlink_to(outside)
    (site / "again").symlink_to("yard")
    (site / "gone.png").symlink_to("nowhere.png")
    Path(os.fsdecode(bytes(site) + b"/\xff.png")).write_bytes(b"x")
    found = read_sources(site)
    assert [(source.path, source.camera) for source in found] == [(site / "yard" / "a.webp", "yard")]
    assert counts(found) == {
        leftovers.HIDDEN: (2, ".git"),
        leftovers.OTHER: (1, "notes.txt"),
        GIFS: (1, "yard/clip.gif"),
        leftovers.OUTSIDE: (2, "out"),
        leftovers.NO_FILE: (1, "pipe.png"),
        leftovers.LINKED: (1, "again"),
        leftovers.BROKEN: (1, "gone.png"),
        leftovers.NO_TEXT: (1, "\\udcff.png"),
    }
    (site / "yard" / "a.webp").unlink()
    with pytest.raises(DataError, match=r"holds no images .*\.webp\); left out: 2 .*such as ") as caught:
        read_sources(site)
    assert str(caught.value).isprintable()


def test_what_a_domain_leaves_out_is_counted(tmp_path):
    draw(*(tmp_path / split / "anna" / f"{split}_c1.jpg" for split in ("query", "gallery")), tmp_path / "top.png")
    (tmp_path / "gallery" / "anna" / "clip.gif").touch()
    found = read_sources(tmp_path)
    assert len(found) == 1
    assert counts(found) == {
        GIFS: (1, "gallery/anna/clip.gif"),
        "images that the layout folders does not read": (1, "top.png"),
    }


def test_a_folder_that_cant_be_read_is_an_error(tmp_path, monkeypatch):
    draw(tmp_path / "yard" / "a.png", tmp_path / "gate" / "a.png")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "gate":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="can't read the folder"):
        read_sources(tmp_path, camera="door")


def test_an_empty_split_says_why(tmp_path):
    draw(tmp_path / "bounding_box_train" / "0001_c1s1_0_0.jpg")
    with pytest.raises(
        DataError, match=r"no crop in its gallery split, but 1 in train; .*there is no bounding_box_test/"
    ):
        read_sources(tmp_path)


def test_camera_folders_below_a_split_are_not_taken_for_people(tmp_path):
    draw(*(tmp_path / "gallery" / name / "a.png" for name in ("cam1", "cam2")))
    with pytest.raises(DataError, match=r"named like cameras .*; to add images by camera, give .*gallery itself"):
        read_sources(tmp_path)
    assert [source.camera for source in read_sources(tmp_path / "gallery")] == ["cam1", "cam2"]


@pytest.mark.parametrize("name", ["site.zip", "site.tar.gz", "SITE.7Z", "crops.tgz"])
def test_an_archive_is_to_be_unpacked(tmp_path, monkeypatch, name):
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{name} is an archive, not a folder; unpack it"):
        read_sources(name)


def test_the_command_says_what_was_left_out(tmp_path, bundle):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from reid.cli import app

    site = tmp_path / "site"
    draw(site / "yard" / "a.webp", site / "yard" / "b.png")
    (site / "yard" / "clip.gif").touch()
    words = ["gallery", "add", str(tmp_path / "gallery"), str(site), "--bundle", str(bundle.folder)]
    told = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    values = json.loads(told.stdout)
    assert values["added"] == 2
    assert values["left_out"] == [{"reason": GIFS, "count": 1, "example": "yard/clip.gif"}]
    shown = " ".join(CliRunner().invoke(app, words, catch_exceptions=False).stdout.split())
    assert f"left out: 1 {GIFS}, such as yard/clip.gif" in shown
