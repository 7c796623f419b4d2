"""Pictures that can't be one person's crop: refused by ``reid gallery add`` unless forced, answered with a warning."""

import csv
import json
import sys

import cv2
import image_files as files
import numpy as np
import pytest

from deploy import Encoder, Gallery
from deploy.bundle import Bundle, revise_bundle
from deploy.gallery.sources import fill, read_sources
from reid.cli import main

pytest.importorskip("faiss", reason="FAISS is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

DOUBTFUL = {"frame": (480, 640), "strip": (20, 90), "speck": (9, 9), "upright frame": (1280, 720)}


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["reid", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        return shown.out, shown.err

    return run


@pytest.fixture
def mixed(people):
    """The folder of people with one picture of each doubtful kind besides, and one that only its EXIF makes a frame."""
    for name, (height, width) in DOUBTFUL.items():
        image = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(people / "c1" / f"{name}.png"), image)
    turned = files.with_exif(".jpg", files.tiff(6), np.full((480, 200, 3), 90, np.uint8))
    (people / "c2" / "turned.jpg").write_bytes(turned)
    return people


def test_they_are_refused_and_counted(mixed, bundle, tmp_path):
    encoder = Encoder.load(bundle.folder, threads=1)
    with Gallery.create(tmp_path / "gallery", encoder.dim, encoder.feature_space) as gallery:
        first = fill(gallery, encoder, read_sources(mixed), batch=4)
        assert (first.added, first.skipped) == (6, ())
        assert {path.rpartition("/")[2] for path, _ in first.refused} == {
            *(f"{kind}.png" for kind in DOUBTFUL),
            "turned.jpg",
        }
        again = fill(gallery, encoder, read_sources(mixed))
        assert (again.added, again.known, len(again.refused)) == (0, 6, 5)
        forced = fill(gallery, encoder, read_sources(mixed), force=True)
        assert (forced.added, forced.known, forced.refused) == (5, 6, ())
        assert fill(gallery, encoder, read_sources(mixed)).refused == (), "what is there already is not refused"


@pytest.mark.parametrize("layout", ["folder", "csv", "domain"])
def test_every_layout_and_the_command(mixed, bundle, tmp_path, command, layout):
    source = mixed
    if layout != "folder":
        source = mixed / ("list.csv" if layout == "csv" else "domain.csv")
        images = sorted(file for file in mixed.rglob("*") if file.is_file())
        columns = ["path", "camera"] if layout == "csv" else ["path", "pid", "camid", "split"]
        with source.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            for number, file in enumerate(images):
                path = file.relative_to(mixed)
                writer.writerow([path, file.parent.name] if layout == "csv" else [path, number, number % 2, "gallery"])
        source = source if layout == "csv" else mixed
    out, _ = command("gallery", "add", tmp_path / "gallery", source, "--bundle", bundle.folder)
    assert "added 6" in out
    assert "refused 5 that can't be one person's crop, such as " in out
    assert "--force" in out
    shown = json.loads(command("gallery", "add", tmp_path / "gallery", source, "--json")[0])
    assert (shown["added"], shown["known"], len(shown["refused"])) == (0, 6, 5)
    assert all("pixels" in reason for _, reason in shown["refused"])
    out, _ = command("gallery", "add", tmp_path / "gallery", source, "--force")
    assert "added 5" in out
    assert "refused" not in out


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_query_is_answered_with_a_warning_and_unsure(mixed, bundle, tmp_path, command, calibrated):
    command("gallery", "add", tmp_path / "gallery", mixed, "--bundle", bundle.folder, "--force")
    if calibrated:
        revise_bundle(bundle.folder, {"thresholds": {"site": {"score": -0.5, "unsure": -0.9, "fpr": 0.01}}})
        assert Bundle.load(bundle.folder).thresholds
    frame, person = mixed / "c1" / "frame.png", mixed / "c1" / "0.png"
    out, warned = command("query", tmp_path / "gallery", frame, "--top", "3", "--json")
    assert [match["verdict"] for match in json.loads(out)] == ["unsure"] * 3
    assert warned.strip() == (
        f"warning: {frame}: 640×480 pixels look like a whole frame and not like one person, so its verdict is unsure; "
        "cut out the person"
    )
    out, warned = command("query", tmp_path / "gallery", person, "--top", "2", "--json")
    assert warned == ""
    assert {match["verdict"] for match in json.loads(out)} == ({"same person"} if calibrated else {None})
    both = json.loads(command("query", tmp_path / "gallery", person, frame, "--top", "1", "--json")[0])
    assert [row[0]["verdict"] for row in both] == ["same person" if calibrated else None, "unsure"]
    together = command("query", tmp_path / "gallery", person, frame, "--together", "--top", "1", "--json")[0]
    assert json.loads(together)[0]["verdict"] == "unsure"
    out, _ = command("query", tmp_path / "gallery", frame, "--top", "1")
    assert f"{frame}: unsure (640×480 pixels look like a whole frame" in out
    out, _ = command("query", tmp_path / "gallery", frame, "--after", "2099-01-01T00:00:00+00:00")
    assert f"{frame}: unsure (" in out
    assert "no match" not in out
