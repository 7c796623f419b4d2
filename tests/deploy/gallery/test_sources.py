import os
import re

import cv2
import numpy as np
import pytest
from tiny import DIM, SPACE

from deploy import Encoder, Gallery
from deploy.gallery.sources import Source, fill, read_sources
from domains.errors import DataError, GalleryError, UsageError


@pytest.fixture
def encoder(bundle):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    return Encoder.load(bundle.folder, threads=1, batch=4)


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        yield made


def table(folder, text):
    (folder / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "list.csv"


def test_plain_folder(people):
    found = read_sources(people)
    assert [(source.path.relative_to(people).as_posix(), source.camera) for source in found] == [
        ("c1/0.png", "c1"),
        ("c1/2.png", "c1"),
        ("c1/4.png", "c1"),
        ("c2/1.png", "c2"),
        ("c2/3.png", "c2"),
        ("c2/5.png", "c2"),
    ]
    assert {(source.time, source.label) for source in found} == {(None, None)}
    assert {source.camera for source in read_sources(people, camera="door")} == {"door"}
    (people / "top.JPG").touch()
    (people / ".hidden.png").touch()
    (people / ".git").mkdir()
    (people / ".git" / "x.png").touch()
    (people / "notes.txt").touch()
    assert [source.camera for source in read_sources(people)][-1] == "people"
    assert len(read_sources(people)) == 7
    assert {source.camera for source in read_sources(os.path.relpath(people / "c1"))} == {"c1"}


def test_domain(tiny_domain, tmp_path):
    domain = tiny_domain(tmp_path / "site")
    found = read_sources(tmp_path / "site")
    assert [source.path for source in found] == domain.files(domain.gallery)
    assert [source.camera for source in found] == [domain.cameras[code] for code in domain.gallery.camids]
    assert {source.label for source in found} == {None}
    labelled = read_sources(tmp_path / "site", split="query", labels=True)
    assert [source.path for source in labelled] == domain.files(domain.query)
    assert [source.label for source in labelled] == [domain.identities[code] for code in domain.query.pids]
    assert {source.camera for source in read_sources(tmp_path / "site", camera="door")} == {"door"}
    with pytest.raises(DataError, match="holds domains"):
        read_sources(tmp_path)


@pytest.fixture
def site(tmp_path):
    """A folder per person whose file names tell the camera."""
    for person, number in (("anna", 1), ("anna", 2), ("ben", 1), ("ben", 2), ("cleo", 2)):
        (tmp_path / "site" / person).mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / person / f"000{number}_c{number}_03.jpg").touch()
    return tmp_path / "site"


def test_a_folder_per_person_names_no_camera_after_anyone(site):
    found = read_sources(site)
    assert [(source.path.relative_to(site).as_posix(), source.camera, source.label) for source in found] == [
        ("anna/0001_c1_03.jpg", "1", None),
        ("anna/0002_c2_03.jpg", "2", None),
        ("ben/0001_c1_03.jpg", "1", None),
        ("ben/0002_c2_03.jpg", "2", None),
        ("cleo/0002_c2_03.jpg", "2", None),
    ]
    assert [source.label for source in read_sources(site, labels=True)] == ["anna", "anna", "ben", "ben", "cleo"]
    assert {source.camera for source in read_sources(site, camera="door")} == {"door"}
    assert 0 < len(read_sources(site, split="gallery")) < 5
    (site / "ben" / "unclear.jpg").touch()
    assert {source.camera for source in read_sources(site)} == {"1", "2", "unknown"}


def test_a_folder_per_camera_stays_one_though_a_name_or_two_look_like_a_camera(people):
    (people / "c1" / "cam7.png").touch()
    (people / "c2" / "link.png").symlink_to(people.parent / "elsewhere.png")
    assert {source.camera for source in read_sources(people)} == {"c1", "c2"}


PEOPLE = ("anna", "bo", "cy")
TOLD, OUTER, CHANCE = "the file names tell the cameras", "the outermost folder named like a camera", "taken for chance"
GUESSED = r"the folder of \d+ images is taken as their camera: "
NESTED = {
    "names, one person": ([f"anna/{n}_c{n}.jpg" for n in (1, 2)], {"1", "2"}, [TOLD]),
    "names, deep": ([f"site/{p}/{n}_c{n}.jpg" for p in PEOPLE for n in (1, 2)], {"1", "2"}, [TOLD]),
    "names, loose": ([f"{p}_c{n}s1.jpg" for p in range(4) for n in (1, 2)], {"1", "2"}, [TOLD]),
    "names, in capital splits": (
        [f"{s}/{p}/{n}_c{n}.jpg" for s in ("Train", "Query") for p in PEOPLE for n in (1, 2)],
        {"1", "2"},
        [TOLD],
    ),
    "names, not all": (
        [f"site/{p}/{n}_c{n}.jpg" for p in PEOPLE for n in (1, 2)] + ["site/anna/x.jpg"],
        {"1", "2", "unknown"},
        [TOLD, "1 of 7 file names do not give their camera and count as camera 'unknown'"],
    ),
    "one number in the names of two cameras": (
        [f"cam{c}/{p}/{n}_c1.jpg" for c in (1, 2) for p in PEOPLE for n in (1, 2)],
        {"cam1", "cam2"},
        [OUTER],
    ),
    "people in cameras": (
        [f"cam{c}/{p}/{n}.jpg" for c in (1, 2) for p in PEOPLE for n in (1, 2)],
        {"cam1", "cam2"},
        [OUTER],
    ),
    "dates in cameras": ([f"cam{c}/2024-05-0{d}/1.jpg" for c in (1, 2) for d in (1, 2)], {"cam1", "cam2"}, [OUTER]),
    "cameras in exports": (
        [f"camera exports/cam{c}/{d}/1.jpg" for c in (1, 2) for d in PEOPLE] + ["camera exports/x.jpg"],
        {"cam1", "cam2", "camera exports"},
        [OUTER],
    ),
    "cameras in people": (
        [f"{p}/cam{c}/{n}.jpg" for c in (1, 2) for p in PEOPLE for n in (1, 2)],
        {"cam1", "cam2"},
        [],
    ),
    "cameras in dates": ([f"2024-05-0{d}/gate_cam/1.jpg" for d in (1, 2)], {"gate_cam"}, []),
    "running numbers in cameras": (
        [f"cam{c}/c{n:04d}.jpg" for c in (1, 2) for n in range(5)],
        {"cam1", "cam2"},
        [CHANCE],
    ),
    "running numbers of people": (
        [f"{p}/cam_{n:06d}.jpg" for p in PEOPLE for n in range(4)],
        set(PEOPLE),
        [CHANCE, GUESSED + "anna, bo, cy; if these are people or dates, give --camera NAME"],
    ),
    "words": ([f"{c}/{n}.jpg" for c in ("lobby", "gate") for n in (1, 2)], {"lobby", "gate"}, [GUESSED]),
    "dates in words": ([f"{c}/2024/05/01/1.jpg" for c in ("lobby", "gate")], {"lobby", "gate"}, [GUESSED]),
    "dates alone": (["2024-05-01/1.jpg", "20240502_1030/1.jpg", "2024-05/1.jpg"], {"yard"}, [GUESSED + "yard"]),
    "nothing": (["1.jpg", "2.jpg"], {"yard"}, [GUESSED + "yard"]),
}


@pytest.mark.parametrize("case", NESTED)
def test_what_is_taken_as_the_camera_of_a_plain_folder(tmp_path, case):
    files, cameras, notes = NESTED[case]
    for file in files:
        (tmp_path / "yard" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "yard" / file).touch()
    found = read_sources(tmp_path / "yard")
    assert {source.camera for source in found} == cameras
    assert len(found) == len(files)
    assert len(found.notes) == len(notes)
    for note, expected in zip(found.notes, notes, strict=True):
        assert re.search(expected, note)
    assert {source.camera for source in read_sources(tmp_path / "yard", camera="door")} == {"door"}
    assert read_sources(tmp_path / "yard", camera="door").notes == ()


def test_a_folder_given_by_its_cameras_name(tmp_path):
    for file in ("2024-05-01/1.jpg", "anna/2.jpg", "3.jpg"):
        (tmp_path / "cam7" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cam7" / file).touch()
    assert {source.camera for source in read_sources(tmp_path / "cam7")} == {"cam7"}


@pytest.mark.parametrize(
    ("rows", "split", "note"),
    [
        (
            ["a,1,1,train", "b,2,1,query", "c,2,2,gallery"],
            None,
            "2 crops of train and query are not added; --split train or --split query",
        ),
        (["a,1,1,train", "c,2,2,gallery"], None, "1 crops of train are not added; --split train adds them"),
        (["b,2,1,query", "b,2,1,gallery", "c,2,2,gallery"], None, ""),
        (["b,2,1,query", "c,2,2,gallery"], "query", ""),
    ],
)
def test_what_a_domain_does_not_give_is_counted(tmp_path, rows, split, note):
    (tmp_path / "domain.csv").write_text("\n".join(["path,pid,camid,split", *rows]))
    notes = read_sources(tmp_path, split=split).notes
    assert [note in said for said in notes] == ([True] if note else [])


def test_a_repeat_is_counted_as_what_it_repeats(people, gallery, encoder):
    frame = people / "c1" / "frame.png"
    cv2.imwrite(str(frame), np.zeros((480, 640, 3), np.uint8))
    (people / "c1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    sources = [Source(file, "c") for file in (frame, people / "c1" / "broken.png", people / "c1" / "0.png")]
    for batch in (1, 2, 9):
        filled = fill(gallery, encoder, sources * 3, batch=batch)
        new = batch == 1
        assert (filled.added, filled.known) == (new, 3 - new)
        assert [path for path, _ in filled.refused] == [str(frame)] * 3
        assert [path for path, _ in filled.skipped] == [str(people / "c1" / "broken.png")] * 3
        assert all(reason for _, reason in (*filled.refused, *filled.skipped))


def test_junk_times_and_empty_split(tmp_path):
    rows = [
        "path,pid,camid,split,time",
        "a.png,-1,7,gallery,2026-01-01T00:00:00Z",
        "b.png,4,8,gallery,2026-01-01T00:00:01Z",
    ]
    (tmp_path / "domain.csv").write_text("\n".join(rows) + "\n")
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((4, 4, 3), np.uint8))
    found = read_sources(tmp_path, labels=True)
    assert [(source.camera, source.time, source.label) for source in found] == [
        ("7", "2026-01-01T00:00:00Z", None),
        ("8", "2026-01-01T00:00:01Z", "4"),
    ]
    with pytest.raises(DataError, match="no crop in its train split"):
        read_sources(tmp_path, split="train")


def test_a_domain_that_is_broken_is_not_taken_for_plain_images(people):
    (people / "domain.csv").write_text("path,pid\n")
    with pytest.raises(DataError):
        read_sources(people)


def test_csv(people):
    file = table(
        people,
        '\ufeffpath,camera,time,label\nc1/0.png,door,2026-01-01T00:00:00+01:00,Ann\n\n"c2/a,b.png", hall ,,\n',
    )
    first, second = read_sources(file)
    assert first == Source(people / "c1/0.png", "door", "2026-01-01T00:00:00+01:00", "Ann")
    assert second == Source(people / "c2/a,b.png", "hall", None, None)
    assert read_sources(table(people, "camera,path\r\nhall,c2/1.png\r\n")) == [Source(people / "c2/1.png", "hall")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns"),
        ("path,camera\n", "lists no image"),
        ("path\na.png\n", "must have the columns"),
        ("path,camera,lable\na.png,c,red\n", "did you mean 'label'"),
        ("path,camera,path\na.png,c,b.png\n", "must have the columns"),
        ("path,camera\na.png\n", "line 2: 1 values for 2"),
        ("path,camera\na.png,c\nb.png,c,d\n", "line 3: 3 values"),
        ("path,camera\n/etc/passwd,c\n", "line 2: the path must be relative"),
        ("path,camera\n../a.png,c\n", "line 2: the path must be relative"),
        ("path,camera\nx/../../a.png,c\n", "line 2"),
        ("path,camera\nx\\..\\a.png,c\n", "line 2"),
        ("path,camera\n,c\n", "line 2"),
        ("path,camera\na.png,\n", "line 2: camera"),
        ("path,camera\na.png," + "c" * 300 + "\n", "line 2: camera"),
        ("path,camera\na\0.png,c\n", "line 2"),
        ("path,camera,time\na.png,c,noon\n", "line 2: 'noon' is not an ISO"),
        ("path,camera,time\na.png,c,2026-01-01T00:00:00\n", "line 2.*no zone"),
        ('path,camera\n"a.png,c\n', "line"),
        (b"path,camera\n\xff.png,c\n", "not UTF-8"),
        ("path,camera\n" + "a" * 200_000 + ",c\n", "line 2"),
    ],
    ids=range(20),
)
def test_hostile_csv(people, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_sources(table(people, text))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_wrong_use(people, tmp_path):
    for options in ({"split": "val"}, {"camera": "c", "split": "query"}, {"camera": "c", "labels": True}):
        with pytest.raises(UsageError):
            read_sources(people, **options)
    with pytest.raises(UsageError, match="a CSV names"):
        read_sources(table(people, "path,camera\na.png,c\n"), camera="c")
    with pytest.raises(DataError, match="nothing at"):
        read_sources(tmp_path / "nowhere")
    with pytest.raises(DataError, match="neither a folder nor a CSV"):
        read_sources(people / "c1" / "0.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        read_sources(tmp_path / "empty")


@pytest.mark.parametrize("batch", [1, 4, 256])
def test_fill(people, gallery, encoder, batch):
    (people / "c1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    sources = [*read_sources(people), Source(people / "gone.png", "c9"), Source(people / "c1" / "0.png", "\n")]
    ticks = []
    filled = fill(gallery, encoder, sources, batch=batch, progress=ticks.append)
    assert (filled.added, filled.known, len(filled.skipped)) == (6, 0, 3)
    assert sum(ticks) == len(sources)
    assert {os.path.basename(path): reason.split()[0] for path, reason in filled.skipped} == {
        "broken.png": "can't",
        "gone.png": "can't",
        "0.png": "camera",
    }
    vectors, _ = encoder.files([source.path for source in read_sources(people)[1:]])
    found = [matches[0] for matches in gallery.search(vectors, k=1)]
    wanted = [source for source in read_sources(people)[1:] if source.path.name != "broken.png"]
    assert [(match.source, match.camera) for match in found] == [(str(source.path), source.camera) for source in wanted]
    again = fill(gallery, encoder, sources, batch=batch)
    assert (again.added, again.known, len(gallery)) == (0, 6, 6)


def test_same_source_twice_in_one_go_and_at_another_time(people, gallery, encoder):
    path = people / "c1" / "0.png"
    sources = [
        Source(path, "a", "2026-01-01T12:00:00+01:00"),
        Source(people / "c2" / ".." / "c1" / "0.png", "a", "2026-01-01T11:00:00Z"),
        Source(path, "a", "2026-01-01T11:00:01Z"),
        Source(path, "a"),
        Source(path, "b"),
    ]
    filled = fill(gallery, encoder, sources)
    assert (filled.added, filled.known) == (4, 1)


def test_wrong_encoder_is_refused_before_anything_is_decoded(people, gallery, make_bundle):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    other = Encoder.load(make_bundle("other", changes={"feature_space": "ef" * 32}).folder)
    with pytest.raises(GalleryError, match="different model"):
        fill(gallery, other, read_sources(people))
    with pytest.raises(UsageError):
        fill(gallery, other, [], batch=0)


@pytest.mark.parametrize("name", ["viper", "3dpes", "ilids", "prid2011", "caviar4reid"])
def test_real_domains(real_data, gallery, encoder, name):
    if not (real_data / name).is_dir():
        pytest.skip(f"the folder of real domains has no {name}")
    sources = read_sources(real_data / name)[:40]
    filled = fill(gallery, encoder, sources)
    assert (filled.added, filled.skipped) == (40, ())
    assert {match.camera for match in gallery.search(encoder.files([sources[0].path])[0], k=40)[0]} == {
        source.camera for source in sources
    }
