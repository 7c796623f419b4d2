"""The report against small domains with one fault each."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from domains.artefact import sha256_file
from domains.check import check_domain
from domains.crops import CropSpec
from domains.domain import JUNK, Domain
from domains.errors import DataError
from domains.formats import open_domain
from domains.scoring import Labels, dropped_queries

SPEC = CropSpec(64, 32)
DATA = os.environ.get("LIFELONG_REID_DATA")


def build(root, entries, size=(32, 16), same_camera=None):
    """A domain from ``split pid camid [file]`` lines; every image is a different drawn one."""
    root.mkdir(exist_ok=True)
    lines = ["path,pid,camid,split"]
    for number, entry in enumerate(entries):
        split, pid, camid, *file = entry.split()
        name = file[0] if file else f"{split}_{number}.png"
        if not (root / name).exists():
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
            (root / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        lines.append(f"{name},{pid},{camid},{split}")
    (root / "domain.csv").write_text("\n".join(lines) + "\n")
    return open_domain(root, same_camera=same_camera)


HEALTHY = ["train 1 a", "train 1 b", "train 2 a", "train 2 b", "query 7 a", "gallery 7 b", "gallery 8 b"]


def check(domain, **options):
    return check_domain(domain, crop=SPEC, **options)


def text(report):
    return "\n".join(report.lines())


def test_a_healthy_domain(tmp_path):
    told = []
    report = check(build(tmp_path / "site", HEALTHY), progress=told.append)
    assert sum(told) == 7
    assert {name: (c.images, c.identities, c.cameras, c.junk) for name, c in report.splits.items()} == {
        "train": (4, 2, 2, 0),
        "query": (1, 1, 1, 0),
        "gallery": (2, 2, 1, 0),
    }
    assert report.identities_per_camera == {"a": {"train": 2, "test": 1}, "b": {"train": 2, "test": 2}}
    assert (report.singletons, report.shared, report.unreadable, report.tiny, report.duplicates, report.dropped) == (
        (),
    ) * 6
    assert (report.scored, report.train_crops, report.train_identities, report.train_bytes) == (
        1,
        4,
        2,
        4 * 64 * 32 * 3,
    )
    assert report.train_seconds is None
    assert "domain site: csv layout" in text(report)
    assert "1 of 1 queries can be scored" in text(report)
    assert "camera a: 2 identities in train, 1 in query or gallery" in text(report)


def test_time_is_crops_over_speed(tmp_path):
    domain = build(tmp_path, HEALTHY)
    assert check(domain, crops_per_second=50.0, training_crops=6400).train_seconds == 128
    assert "about 128" not in text(check(domain, crops_per_second=50.0, training_crops=6400))
    assert "about 2 min" in text(check(domain, crops_per_second=50.0, training_crops=6400))
    assert "about 64 s" in text(check(domain, crops_per_second=100.0, training_crops=6400))
    assert "about 2 h 0 min" in text(check(domain, crops_per_second=1.0, training_crops=7200))
    assert check(domain, training_crops=6400).train_seconds is None
    assert check(domain, crops_per_second=0.0, training_crops=6400).train_seconds is None


def test_unreadable_images_are_named_and_left_out_of_everything(tmp_path, capfd):
    domain = build(tmp_path, [*HEALTHY, "query 8 a", "train 3 a", "query 9 a", "gallery 9 b"])
    good = (tmp_path / "train_0.png").read_bytes()
    (tmp_path / "train_0.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "gallery_6.png").write_bytes(b"GIF89a not an image")
    (tmp_path / "query_9.png").write_bytes(b"")
    (tmp_path / "train_8.png").unlink()
    report = check(domain)
    assert {(item.split, item.path) for item in report.unreadable} == {
        ("train", "train_0.png"),
        ("gallery", "gallery_6.png"),
        ("query", "query_9.png"),
        ("train", "train_8.png"),
    }
    reasons = {item.path: item.reason for item in report.unreadable}
    assert "damaged" in reasons["train_0.png"]
    assert "not a PNG" in reasons["gallery_6.png"]
    assert "empty" in reasons["query_9.png"]
    assert "No such file" in reasons["train_8.png"]
    assert report.train_crops == 3
    assert report.singletons == ("1",)
    assert {item.path: item.reason for item in report.dropped} == {
        "query_7.png": "no readable gallery crop of identity 8",
        "query_9.png": "its image can't be read",
    }
    assert report.scored == 1
    assert "4 unreadable images, left out:" in text(report)
    assert "grfmt" not in capfd.readouterr().err


def test_tiny_crops(tmp_path):
    domain = build(tmp_path, ["train 1 a", "train 2 a"])
    for name, height, width in (("train_0.png", 15, 40), ("train_1.png", 16, 8)):
        (tmp_path / name).write_bytes(cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes())
    report = check(domain)
    assert [(item.path, item.height, item.width) for item in report.tiny] == [("train_0.png", 15, 40)]
    assert "train_0.png: 15×40" in text(report)


def test_exact_duplicates_across_splits(tmp_path):
    domain = build(tmp_path, [*HEALTHY, "train 5 a same.png", "query 7 c same.png", "gallery 7 b same.png"])
    (tmp_path / "gallery_5.png").write_bytes((tmp_path / "train_0.png").read_bytes())
    (tmp_path / "train_1.png").write_bytes((tmp_path / "train_2.png").read_bytes())
    found = {(d.split, d.path, d.other_split, d.other_path, d.same_identity) for d in check(domain).duplicates}
    assert found == {
        ("train", "train_0.png", "gallery", "gallery_5.png", False),
        ("train", "same.png", "query", "same.png", False),
        ("train", "same.png", "gallery", "same.png", False),
        ("query", "same.png", "gallery", "same.png", True),
    }
    assert "under different identities" in text(check(domain))


def test_each_dropped_query_names_its_rule(tmp_path):
    entries = [
        "query 1 a",
        "query 12 3",
        "query -1 a",
        "query 2 a",
        "gallery 12 3",
        "gallery 12 3",
        "gallery 2 b",
        "gallery -1 b",
    ]
    report = check(build(tmp_path, entries))
    assert [(item.path, item.identity, item.camera, item.reason) for item in report.dropped] == [
        ("query_0.png", "1", "a", "no gallery crop of identity 1"),
        (
            "query_1.png",
            "12",
            "3",
            "identity 12 is in the gallery only from the query's own camera 3 (rule: drop same camera); use "
            "same_camera=keep",
        ),
        ("query_2.png", "junk", "a", "the query is junk: it has no identity"),
    ]
    assert report.scored == 1
    assert "1 of the images are junk" in text(report)
    kept = check(build(tmp_path, entries, same_camera="keep"))
    assert [item.path for item in kept.dropped] == ["query_0.png", "query_2.png"]
    assert "rule: keep same camera" in text(kept)


def test_dropped_queries_are_those_that_scoring_drops(tmp_path):
    rng = np.random.default_rng(3)
    entries = [f"{split} {rng.integers(-1, 6)} {rng.integers(3)}" for split in ("query", "gallery") for _ in range(30)]
    for rule in ("drop", "keep"):
        domain = build(tmp_path, entries, same_camera=rule)
        expected = dropped_queries(Labels.from_split(domain.query), Labels.from_split(domain.gallery), same_camera=rule)
        report = check(domain)
        assert [item.path for item in report.dropped] == [domain.query.paths[row] for row, _ in expected]
        assert report.scored + len(report.dropped) == len(domain.query)


def test_identities_on_both_sides_and_singletons(tmp_path):
    report = check(build(tmp_path, ["train 1 a", "train 2 a", "train 2 b", "train -1 a", "query 2 a", "gallery 2 b"]))
    assert report.shared == ("2",)
    assert report.singletons == ("1",)
    assert (report.train_crops, report.train_identities) == (3, 2)
    assert "1 of 2 train identities have a single image: 1" in text(report)


def test_a_test_set_can_be_scored_but_not_learned(tmp_path):
    report = check(build(tmp_path, ["query 1 a", "gallery 1 b"]))
    assert "training: not possible, train needs at least 2 usable identities and has 0" in text(report)
    report = check(build(tmp_path, ["train 1 a", "train 1 b"]))
    assert "scoring: there are no queries" in text(report)
    assert "training: not possible, train needs at least 2 usable identities and has 1" in text(report)


def test_the_report_is_json_and_its_lines_are_lines(tmp_path):
    domain = build(tmp_path, [f"query {n} c{n}" for n in range(30)])
    report = check(domain)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert len(values["dropped"]) == 30
    assert values["dropped"][0]["reason"] == "no gallery crop of identity 0"
    assert values["crop"] == {"height": 64, "width": 32, "resize": "area"}
    assert all("\n" not in line for line in report.lines())
    assert "  and 22 more (--json lists all)" in report.lines()
    assert any(line.startswith("30 cameras in query or gallery: 1 to 1 identities each") for line in report.lines())


def test_nothing_is_raised_when_no_image_can_be_read(tmp_path):
    domain = build(tmp_path, HEALTHY)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    report = check(domain)
    assert len(report.unreadable) == 7
    assert (report.scored, report.train_crops) == (0, 0)


def test_the_check_changes_nothing_on_disk(tmp_path):
    domain = build(tmp_path, HEALTHY)
    before = {file: sha256_file(file) for file in tmp_path.iterdir()}
    check(domain)
    assert {file: sha256_file(file) for file in tmp_path.iterdir()} == before


def test_an_empty_domain_has_a_report(tmp_path):
    report = check(Domain("none", tmp_path, "csv", (), ()))
    assert report.scored == 0
    assert report.lines()


@pytest.mark.skipif(not DATA, reason="LIFELONG_REID_DATA is not set: it names the folder of real domains")
def test_real_domains_are_sound():
    folder = Path(DATA) / "caviar4reid"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    domain = open_domain(folder)
    report = check_domain(domain, crop=CropSpec(128, 64))
    assert report.scored == len(domain.query)
    assert not report.unreadable
    assert not report.shared
    assert (domain.query.pids != JUNK).all()


def test_bad_crop_rule_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(DataError):
        check_domain(build(tmp_path, HEALTHY), crop=CropSpec(0, 1))
