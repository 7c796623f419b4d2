"""Damaged and forged files: a clear error or the right answer; never a crash, a hang, a traceback or memory without
end.

60 damages of each kind here, 1,000 in the nightly tests, or by hand: ``python -m pytest tests/proofs/test_mutations.py
-m nightly``.
"""

import json
import os
import random
import shutil

import cv2
import numpy as np
import pytest
from mutate import damage_folder, damaged, survey
from oracle import SPACES
from tiny import DIM, HEIGHT, WIDTH, body, embed, graph, unit

from deploy import Encoder, Gallery
from deploy.bundle import Golden, write_bundle
from domains.artefact import content_id, sha256_file
from domains.crops import decode_crop, read_crop
from domains.errors import DataError, GalleryError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
MANY = [pytest.param(60, id="60"), pytest.param(1000, id="1000", marks=pytest.mark.nightly)]


def seeded(kind, number):
    return random.Random(f"{kind} {number}")


def copy_of(original, folder, *, link=True):
    """A copy whose files are links: damage replaces a file, so that the original is safe."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder, copy_function=os.link if link else shutil.copyfile)
    return folder


def check(ends, wrong, *, refused=1):
    print(ends)  # noqa: T201 - shown with -rA
    assert not wrong, "\n".join(wrong[:10]) + f"\n{len(wrong)} in all; {ends}"
    assert ends.get("refused", 0) >= refused, f"nothing was refused, so nothing was tried: {ends}"


# -------------------------------------------------------------------------------------------------------------- bundles


@pytest.fixture(scope="module")
def two_bundles(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("bundles"), []
    for seed in (7, 17):
        projection = np.random.default_rng(seed).normal(size=(HEIGHT * WIDTH // 16 * 3, DIM))
        crops = np.random.default_rng(8).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
        parts = {"model_onnx": graph(projection), "golden": Golden(crops, embed(crops, projection))}
        made.append(write_bundle(root / str(seed), **parts, card="# Tiny\n", body=body(), parent=None).folder)
    asked = np.random.default_rng(9).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    return *made, asked, embed(asked, np.random.default_rng(7).normal(size=(HEIGHT * WIDTH // 16 * 3, DIM)))


@pytest.mark.parametrize("count", MANY)
def test_bundle(two_bundles, tmp_path, count):
    original, stranger, asked, wanted = two_bundles
    files = sorted(file.name for file in original.iterdir())

    def case(number):
        folder = copy_of(original, tmp_path / "bundle")
        done = damage_folder(folder, files, seeded("bundle", number), stranger)
        vectors = Encoder.load(folder, threads=1)(list(asked))
        return "right" if np.allclose(vectors, wanted, atol=1e-4) else f"another answer after {done}"

    check(*survey(count, case), refused=count // 2)


def reseal(folder):
    """Give a bundle the hashes of what lies in it, as a forger would."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    del manifest["id"]
    manifest["files"] = {name: sha256_file(folder / name) for name in manifest["files"]}
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(json.dumps({"id": content_id(manifest), **manifest}))


@pytest.mark.parametrize("count", MANY)
def test_forged_bundle(two_bundles, tmp_path, count):
    # The hashes fit: what stops a wrong graph now are the golden embeddings, and what stops a harmful one is the
    # runtime alone.
    original, stranger, asked, _ = two_bundles
    files = [name for name in ("model.onnx", "model.onnx", "golden.npz", "CARD.md") if (original / name).exists()]

    def case(number):
        folder = copy_of(original, tmp_path / "bundle")
        damage_folder(folder, files, seeded("forged", number), stranger)
        reseal(folder)
        vectors = np.asarray(Encoder.load(folder, threads=1)(list(asked)))
        fine = vectors.shape == (3, DIM) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
        return "answered" if fine else f"no unit vectors: {vectors.shape}"

    check(*survey(count, case), refused=count // 4)


FORGED = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "",
    "x" * 10**6,
    [],
    {},
    [[]],
    {"a": {"b": 1}},
    "../../x",
    "\0",
    "\ud800",
    [None] * 1000,
)


@pytest.mark.parametrize("count", MANY)
def test_forged_manifest(two_bundles, tmp_path, count):
    original, _, asked, wanted = two_bundles

    def case(number):
        draw, folder = seeded("manifest", number), copy_of(original, tmp_path / "bundle")
        manifest = json.loads((folder / "bundle.json").read_bytes())
        place = manifest
        while True:
            key = draw.choice(sorted(place))
            if isinstance(place[key], dict) and place[key] and draw.random() < 0.6:
                place = place[key]
                continue
            break
        if draw.random() < 0.2:
            del place[key]
        else:
            place[draw.choice([key, key, "another"])] = draw.choice(FORGED)
        manifest.pop("id", None)
        text = json.dumps(manifest)
        try:
            manifest = {"id": content_id(manifest), **manifest}
            text = json.dumps(manifest)
        except (ValueError, UnicodeEncodeError):
            pass
        (folder / "bundle.json").unlink()
        (folder / "bundle.json").write_text(text)
        vectors = Encoder.load(folder, threads=1)(list(asked))
        return "right" if np.allclose(vectors, wanted, atol=1e-4) else "another answer"

    check(*survey(count, case), refused=count // 3)


# ------------------------------------------------------------------------------------------------------------ galleries


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    root = tmp_path_factory.mktemp("galleries")
    for name, seed in (("one", 1), ("other", 2)):
        rng = np.random.default_rng(seed)
        with Gallery.create(root / name, DIM, SPACES[0], bundle="b") as gallery:
            times = [f"2026-01-{1 + number % 28:02d}T00:00:00Z" if number % 3 else None for number in range(40)]
            vectors = unit(rng, 40)
            gallery.add(
                vectors,
                ["a", "b"] * 20,
                [f"/crop/{number}" for number in range(40)],
                time=times,
                label=["ann", None] * 20,
            )
            gallery.search(vectors[:2])
    return root / "one", root / "other", unit(np.random.default_rng(3), 3)


def answers(folder, asked):
    with Gallery.open(folder) as gallery:
        found = [
            gallery.search(asked, k=50),
            gallery.search(asked, k=5, camera="a", after="2026-01-05T00:00:00Z"),
            gallery.search(asked, label="ann"),
        ]
        return [[[match.to_dict() for match in matches] for matches in part] for part in found]


@pytest.mark.parametrize("count", MANY)
def test_gallery(filled, tmp_path, count):
    original, _, asked = filled
    wanted = answers(copy_of(original, tmp_path / "whole", link=False), asked)

    def case(number):
        folder = copy_of(original, tmp_path / "gallery", link=False)
        damage_folder(folder, ["gallery.db"], seeded("gallery", number))
        try:
            found = answers(folder, asked)
        except GalleryError:
            with (
                pytest.raises(GalleryError),
                Gallery.open(folder) as gallery,
            ):  # whoever refuses to answer also fails the check
                gallery.verify()
            raise
        if found == wanted:
            return "right"
        if found[:2] != wanted[:2]:
            return "another answer"
        # SQLite's own index of labels has no checksum: a search by label may miss somebody there, and the check says
        # so.
        with pytest.raises(GalleryError), Gallery.open(folder) as gallery:
            gallery.verify()
        return "found-by-verify-alone"

    ends, wrong = survey(count, case)
    check(ends, wrong, refused=count // 10)
    assert ends.get("found-by-verify-alone", 0) <= 1 + count // 100


@pytest.mark.parametrize("count", MANY)
def test_index(filled, tmp_path, count):
    # A cache: whatever happens to it, the answer is right.
    original, stranger, asked = filled
    files = sorted(file.name for file in original.glob("index.*"))
    assert len(files) >= 2
    wanted = answers(copy_of(original, tmp_path / "whole", link=False), asked)

    def case(number):
        folder = copy_of(original, tmp_path / "gallery", link=False)
        done = damage_folder(folder, files, seeded("index", number), stranger)
        if answers(folder, asked) != wanted:
            return f"another answer after {done}"
        return "right" if answers(folder, asked) == wanted else f"another answer the second time after {done}"

    ends, wrong = survey(count, case)
    check(ends, wrong, refused=0)
    assert ends == {"right": count}


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".ppm", ".webp"])
@pytest.mark.parametrize("count", MANY)
def test_image(tmp_path, count, suffix):
    crop = np.random.default_rng(1).integers(0, 256, (48, 24, 3), np.uint8)
    data = cv2.imencode(suffix, cv2.GaussianBlur(crop, (5, 5), 0))[1].tobytes()
    try:
        decode_crop(data)
    except DataError:
        if suffix != ".webp":
            raise
        pytest.skip("this version reads no WebP")

    def case(number):
        mutated = damaged(data, seeded(suffix, number))
        found = decode_crop(mutated)
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or 0 in found.shape:
            return f"no crop: {found.dtype} {found.shape}"
        (tmp_path / "x").write_bytes(mutated)
        return "right" if np.array_equal(read_crop(tmp_path / "x"), found) else "another picture from the file"

    check(*survey(count, case))


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["quick.yaml", "methods/default.yaml", "streams/small5.yaml", "domain.csv"])
@pytest.mark.parametrize("count", MANY)
def test_settings(tmp_path, monkeypatch, count, name):
    import domains
    from reid.config import CONFIG_FOLDERS, build_config, read_method, read_settings, read_stream

    if name == "domain.csv":
        (tmp_path / "site").mkdir()
        rows = [
            (f"{person}_{camera}.png", person, camera, "train" if person < 3 else ("query", "gallery")[camera])
            for person in range(6)
            for camera in (0, 1)
        ]
        for path, *_ in rows:
            cv2.imwrite(str(tmp_path / "site" / path), np.zeros((8, 8, 3), np.uint8))
        data = "".join(f"{','.join(map(str, row))}\n" for row in [("path", "pid", "camid", "split"), *rows]).encode()
    else:
        data = next(folder / name for folder in CONFIG_FOLDERS if (folder / name).is_file()).read_bytes()
    monkeypatch.setenv("LIFELONG_REID_DATA", str(tmp_path))
    file = tmp_path / ("site" if name == "domain.csv" else ".") / name.rpartition("/")[2]

    def read(content):
        file.write_bytes(content)
        if name == "quick.yaml":
            build_config(read_settings(str(file)))
        elif name.startswith("methods"):
            read_method(str(file))
        elif name.startswith("streams"):
            read_stream(str(file))
        else:
            _ = domains.open(file.parent).fingerprint
        return "read"

    assert read(data) == "read"

    def case(number):
        return read(damaged(data, seeded(name, number)))

    check(*survey(count, case))


BOMB = (
    "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    + "method: *a11\n"
)


HARMFUL = [
    BOMB,
    "[" * 5000,
    "{a: " * 3000,
    "x" * 10**6,
    "- " * 10**5,
    "? " * 10**4,
    "!!python/object/apply:os.system [id]",
    "!!binary x",
    "seed: !!timestamp 9999-99-99",
    "seed: 1" + "0" * 10**5,
    "&a a: *a",
    "\0",
    "\ufeff",
    "a: &a\n  b: *a\n",
    "train: &t\n  <<: *t\n",
    "seed: .inf",
    "seed: 0x" + "f" * 10**4,
    "model: {backbone: '" + "../" * 1000 + "'}",
    "<<: {a: 1}",
    "? [a, b]\n: c",
    "1: 2",
    "null: 3",
    "seed: 1_0_0_" + "_" * 10**5,
]


def test_settings_made_to_harm(tmp_path):
    from reid.config import build_config, read_method, read_settings, read_stream

    file = tmp_path / "x.yaml"
    readers = [
        lambda: build_config(read_settings(str(file))),
        lambda: read_method(str(file)),
        lambda: read_stream(str(file)),
    ]

    def case(number):
        file.write_text(HARMFUL[number // 3])
        readers[number % 3]()
        return "read"

    check(*survey(3 * len(HARMFUL), case), refused=len(HARMFUL))


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    pytest.importorskip("torch", reason="torch is not installed")
    from faulty import RunCase

    from reid.run import Run

    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "other")):
        (root / name).mkdir()
        case = RunCase("seal", seed)
        case.prepare(root / name)
        run = Run.open(root / name / "run")
        case.seal(run, "south", [f"carl-{name}", "dora"])
        run.forget(identity="dora")
        run.scores.scored = {"north": {"path": "/north", "same_camera": "drop"}}
        run.scores.learned = [step.learned for step in run.steps]
        run.scores.cells = {(row, "north"): _cell(row) for row in range(3)}
        run.scores.write(run.folder)
    return root / "one" / "run", root / "other" / "run"


def _cell(row):
    from reid.scores.matrix import Cell

    return Cell({"mAP": 50.0 + row, "rank1": 40.0, "rank5": 60.0, "mINP": 30.0, "queries": 4}, np.linspace(0, 1, 4))


@pytest.mark.parametrize("count", MANY)
def test_run(two_runs, tmp_path, count):
    import torch

    from reid.run import Run
    from reid.run.erasure import read_erasures

    torch.set_num_threads(1)
    original, stranger = two_runs
    crops = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 64, 32, 3), np.uint8))

    def look(folder):
        run = Run.open(folder)
        model, sealed = run.model()
        with torch.no_grad():
            vectors = model.embed(crops).numpy()
        memories = [
            (memory.domain, sorted((name, array.tobytes()) for name, array in memory.arrays.items()))
            for memory in run.memories(renew=True)
        ]
        memories += [
            (name, sorted((key, value.numpy().tobytes()) for key, value in state.items()))
            for name, state in sealed.kept().items()
        ]
        read_erasures(folder)
        run.scores.summary()
        return vectors.tobytes(), sealed.card["id"], memories, model.state_dict()["classifier.weight"].numpy().tobytes()

    wanted = look(copy_of(original, tmp_path / "whole"))
    files = sorted(
        str(file.relative_to(original)) for file in original.rglob("*") if file.is_file() and file.name != ".lock"
    )

    def case(number):
        folder = copy_of(original, tmp_path / "run")
        done = damage_folder(folder, files, seeded("run", number), stranger)
        found = look(folder)
        return (
            "right"
            if found == wanted
            else f"another answer after {done}: {[one == two for one, two in zip(found, wanted, strict=True)]}"
        )

    check(*survey(count, case), refused=count // 4)
