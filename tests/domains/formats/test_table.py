"""``domain.csv``: what is refused and where, links, hostile names, and the way back."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import draw, rows

from domains.errors import DataError
from domains.formats import open_domain

HEADER = "path,pid,camid,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "no rows below its header"),
        ("path,person_id,camid,split\na,1,1,train\n", r"no column 'pid' \(did you mean 'person_id'\?\)"),
        ("path,pid,camera,split\na,1,1,train\n", r"no column 'camid' \(did you mean 'camera'\?\)"),
        ("path,pid,camid,split,pid\na,1,1,train,2\n", "the column 'pid' twice"),
        (HEADER + "a,1,1,train\nb,1,1,trian\n", r"line 3: unknown split 'trian' \(did you mean 'train'\?\)"),
        (HEADER + "a,1,1,Train\n", r"line 2: unknown split 'Train' \(did you mean 'train'\?\)"),
        (HEADER + "a,1,1,galery\n", r"\(did you mean 'gallery'\?\)"),
        (HEADER + "a,1,1,val\n", r"unknown split 'val' \(no crops are set aside for validation here.*train"),
        (HEADER + "a,1,1,Validation\n", r"\(no crops are set aside for validation here"),
        (HEADER + "a,1,1,test\n", r"unknown split 'test' \(a test set is in two parts here.*query.*gallery"),
        (HEADER + "a,1,1,probe\n", r"\(here it is called query\)"),
        (HEADER + "a,1,1,all\n", r"unknown split 'all'; it must be"),
        ("path,width,camid,split\na,1,1,train\n", r"no column 'pid'; it must have"),
        (HEADER + "a,1,1,train\nb,1,1,train\n./a,2,1,train\n", "line 4: a is already listed in train on line 2"),
        (HEADER + "a,1,1\n", "line 2: 3 values for 4 columns"),
        (HEADER + "a,1,1,train,\n", "line 2: 5 values for 4 columns"),
        (HEADER + "a,,1,train\n", "line 2: pid must be"),
        (HEADER + "a,1, ,train\n", "line 2: camid must be"),
        (HEADER + ",1,1,train\n", "line 2: '' is not a path"),
        (HEADER + "/etc/passwd,1,1,train\n", "must be relative"),
        (HEADER + "../x.jpg,1,1,train\n", "must be relative"),
        (HEADER + "a/../../x.jpg,1,1,train\n", "must be relative"),
        (HEADER + "a\\x.jpg,1,1,train\n", "must be relative"),
        (HEADER + "C:x.jpg,1,1,train\n", "must be relative"),
        (HEADER + ".,1,1,train\n", "does not name a file"),
        (HEADER + "a,\x1b[31m,1,train\n", r"pid must be .*\\x1b"),
        (HEADER + "a\x00b,1,1,train\n", "domain.csv"),
        (HEADER + '"a,1,1,train\n', "not a CSV file"),
        (HEADER + f"a,{'9' * 5000},1,train\n", "pid must be 1 to 200"),
        (HEADER + f"{'x/' * 600}a,1,1,train\n", "not a path of at most"),
        (HEADER + f"a,{'x' * 200_000},1,train\n", "not a CSV file"),
        (
            "path,pid,camid,split,time\na,1,1,train,2026-01-01T08:00:00\n",
            "line 2: the time '2026-01-01T08:00:00' must be ISO 8601 with a zone",
        ),
        ("path,pid,camid,split,time\na,1,1,train,yesterday\n", "must be ISO 8601"),
        ("path,pid,camid,split,time\na,1,1,train,2026-01-01T08:00:00Z\nb,1,1,train,\n", "1 of 2 rows have no time"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "domain.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_domain(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_table_that_is_no_text_or_too_large(tmp_path, monkeypatch):
    (tmp_path / "domain.csv").write_bytes(HEADER.encode() + b"\xff\xfe,1,1,train\n")
    with pytest.raises(DataError, match="not UTF-8"):
        open_domain(tmp_path)
    monkeypatch.setattr("domains.formats.records.MAX_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        open_domain(tmp_path)


def test_table_with_byte_order_mark_times_extra_columns_and_blank_lines(tmp_path):
    text = (
        '﻿path,pid,camid,split,time,weather\r\n"a, b.png", 1 '
        ",2,train,2026-03-01T08:30:00+01:00,rain\r\n\r\nc.png,01,2,train,2026-03-01T07:30:00Z,\r\n"
    )
    (tmp_path / "domain.csv").write_bytes(text.encode())
    domain = open_domain(tmp_path)
    assert rows(domain) == {("train", "a, b.png"): ("1", "2"), ("train", "c.png"): ("01", "2")}
    assert domain.train.times == ("2026-03-01T08:30:00+01:00", "2026-03-01T07:30:00Z")
    assert domain.same_camera == "drop"


def test_the_same_image_may_be_query_and_gallery(tmp_path):
    (tmp_path / "domain.csv").write_text(HEADER + "a.png,1,1,query\na.png,1,1,gallery\n")
    domain = open_domain(tmp_path, same_camera="keep")
    assert domain.same_camera == "keep"
    assert len(domain.query) == len(domain.gallery) == 1


def test_links_that_leave_the_root_are_refused(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    draw(outside, "secret.png", "0001_c1s1_0_0.jpg")
    root.mkdir()
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    for path in ("link.png", "folder/secret.png"):
        (root / "domain.csv").write_text(HEADER + f"{path},1,1,train\n")
        with pytest.raises(DataError, match=r"line 2: .* through a link"):
            open_domain(root)
    (root / "domain.csv").unlink()
    (root / "bounding_box_train").symlink_to(outside)
    with pytest.raises(DataError, match="a link that leads out"):
        open_domain(root, layout="market1501")
    (root / "bounding_box_train").unlink()
    draw(root, "bounding_box_train/0002_c1s1_0_0.jpg")
    (root / "bounding_box_train" / "0001_c1s1_0_0.jpg").symlink_to(outside / "0001_c1s1_0_0.jpg")
    with pytest.raises(DataError, match="a link that leads out"):
        open_domain(root, layout="market1501")


def test_links_within_the_root_and_to_the_root_are_fine(tmp_path):
    root = tmp_path / "root"
    draw(root, "real/1.png")
    (root / "link.png").symlink_to("real/1.png")
    (root / "domain.csv").write_text(HEADER + "link.png,1,1,train\nreal/1.png,2,1,train\n")
    (tmp_path / "alias").symlink_to(root)
    assert len(open_domain(tmp_path / "alias").train) == 2


def test_pipes_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in ("pipe.png", "folder.png"):
        (tmp_path / "domain.csv").write_text(HEADER + f"{path},1,1,train\n")
        with pytest.raises(DataError, match="is not a file"):
            open_domain(tmp_path)
    (tmp_path / "domain.csv").unlink()
    draw(tmp_path, "train/p/1.png", "train/q/1.png")
    os.mkfifo(tmp_path / "train" / "p" / "pipe.png")
    assert len(open_domain(tmp_path).train) == 2


def test_file_names_that_are_no_text_are_refused(tmp_path):
    draw(tmp_path, "train/p/1.png", "train/q/1.png")
    Path(os.fsdecode(bytes(tmp_path / "train" / "p") + b"/\xff\xfe.png")).write_bytes(b"x")
    with pytest.raises(DataError, match="not printable UTF-8 text"):
        open_domain(tmp_path)


def test_a_missing_file_does_not_stop_opening(tmp_path):
    (tmp_path / "domain.csv").write_text(HEADER + "gone.png,1,1,train\n")
    assert open_domain(tmp_path).train.paths == ("gone.png",)


names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, blacklist_characters='/\\",:'), min_size=1, max_size=12
).filter(lambda text: text.isprintable() and text.strip() == text and text not in (".", ".."))
table_rows = st.lists(
    st.tuples(names, names, names, st.sampled_from(["train", "query", "gallery"])),
    min_size=1,
    max_size=20,
    unique_by=lambda row: (row[0], row[3]),
)


@settings(max_examples=60, deadline=None)
@given(table_rows, st.randoms(use_true_random=False))
def test_any_table_reads_back_and_its_order_does_not_matter(tmp_path_factory, entries, rng):
    root = tmp_path_factory.mktemp("table")

    def read():
        with (root / "domain.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "pid", "camid", "split"])
            writer.writerows(entries)
        return open_domain(root)

    domain = read()
    assert rows(domain) == {(split, path): (None if pid == "-1" else pid, camid) for path, pid, camid, split in entries}
    rng.shuffle(entries)
    again = read()
    assert again.identities == domain.identities
    assert all(
        a.paths == b.paths and np.array_equal(a.pids, b.pids)
        for (_, a), (_, b) in zip(again.splits(), domain.splits(), strict=True)
    )
