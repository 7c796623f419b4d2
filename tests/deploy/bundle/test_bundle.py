import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from tiny import DIM, HEIGHT, SPACE, WIDTH, body, embed

from deploy import Bundle
from deploy.bundle import revise_bundle
from deploy.bundle.manifest import MANIFEST
from domains.artefact import content_id, sha256_file
from domains.crops import CropSpec
from domains.errors import ArtefactError, UsageError


def rewrite(folder, change):
    """Change the manifest as someone who knows how its id is made would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("id")
    for name in manifest["files"]:
        if (folder / name).exists():
            manifest["files"][name] = sha256_file(folder / name)
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps({"id": content_id(manifest), **manifest}))


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_round_trip(make_bundle, golden_crops, projection):
    made = make_bundle(transport=b"npz")
    bundle = Bundle.load(str(made.folder))
    assert bundle.crop == CropSpec(HEIGHT, WIDTH)
    assert (bundle.dim, bundle.feature_space, bundle.id) == (DIM, SPACE, made.id)
    assert bundle.manifest["parent"] == "12" * 32
    assert {key: bundle.manifest[key] for key in body()} == body()
    np.testing.assert_array_equal(bundle.golden().crops, golden_crops)
    np.testing.assert_array_equal(bundle.golden().embeddings, embed(golden_crops, projection))
    assert sorted(item.name for item in bundle.folder.iterdir()) == [
        "CARD.md",
        "bundle.json",
        "golden.npz",
        "model.onnx",
        "transport.npz",
    ]


def test_nothing_is_written_over_and_no_half_bundle_is_left(make_bundle, tmp_path, golden_crops):
    make_bundle()
    with pytest.raises(ArtefactError, match="already exists"):
        make_bundle()
    for wrong in (
        {"embeddings": np.zeros((16, DIM), np.float32)},
        {"embeddings": np.full((16, DIM), np.nan, np.float32)},
        {"crops": golden_crops[:5]},
        {"crops": golden_crops[:, :4]},
        {"crops": golden_crops.astype(np.float32)},
        {"changes": {"dim": 7}},
        {"changes": {"feature_space": "../x"}},
    ):
        with pytest.raises(ArtefactError):
            make_bundle("other", **wrong)
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "CARD.md", MANIFEST])
def test_every_flipped_byte_is_seen(bundle, name):
    data = (bundle.folder / name).read_bytes()
    for at in np.random.default_rng(0).integers(0, len(data), 25):
        (bundle.folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ArtefactError):
            Bundle.load(bundle.folder)
    for size in (0, 1, len(data) // 2, len(data) - 1):
        (bundle.folder / name).write_bytes(data[:size])
        if name == MANIFEST and size == len(data) - 1:
            continue  # only the line's end
        with pytest.raises(ArtefactError):
            Bundle.load(bundle.folder)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "CARD.md", "transport.npz", MANIFEST])
def test_missing_file(make_bundle, name):
    folder = make_bundle(transport=b"npz").folder
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=r"missing|not a bundle"):
        Bundle.load(folder)


def test_unknown_file_link_and_folder(bundle, tmp_path):
    (bundle.folder / "model.onnx.data").write_bytes(b"weights")
    with pytest.raises(ArtefactError, match=r"model.onnx.data"):
        Bundle.load(bundle.folder)
    (bundle.folder / "model.onnx.data").unlink()
    shutil.move(bundle.folder / "model.onnx", tmp_path / "elsewhere")
    (bundle.folder / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match="plain file"):
        Bundle.load(bundle.folder)
    with pytest.raises(ArtefactError, match="not a bundle"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match="not a bundle"):
        Bundle.load(bundle.folder / "CARD.md")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "extra.bin", ""])
def test_names_outside_are_refused(bundle, tmp_path, name):
    (tmp_path / "secret").write_text("x")
    rewrite(bundle.folder, lambda manifest: manifest["files"].update({name: "0" * 64}))
    with pytest.raises(ArtefactError, match=r"not part of a bundle|outside its folder"):
        Bundle.load(bundle.folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "memory"},
        {"schema": 4},
        {"thresholds": []},
        {"thresholds": {"a": {"fpr": 2, "score": 0.5}}},
        {"thresholds": {"a": {"fpr": 0.1, "score": True}}},
        {"thresholds": {"a": {"fpr": 0.1, "score": 0.5, "more": {}}}},
        {"golden_cosine": 0.1},
        {"licences": {"weights": "", "data": "CC0"}},
        {"licences": {"weights": "MIT\n# More", "data": "CC0"}},
        {"schema": "1"},
        {"feature_space": ""},
        {"feature_space": "../../x"},
        {"dim": 0},
        {"dim": True},
        {"dim": 10**9},
        {"crop": {"height": 0, "width": 8, "resize": "area"}},
        {"crop": {"height": HEIGHT}},
        {"crop": []},
        {"domains": [1]},
        {"parity": {"1": "fine"}},
        {"licences": {}},
        {"files": []},
        {"files": {}},
        {"step": None},
    ],
    ids=str,
)
def test_impossible_manifest(bundle, changes):
    rewrite(bundle.folder, lambda manifest: manifest.update(changes))
    with pytest.raises(ArtefactError) as caught:
        Bundle.load(bundle.folder)
    assert "\n" not in str(caught.value)


def test_golden_is_read_without_trust(bundle, golden_crops):
    good = bundle.golden()
    crops, embeddings = good.crops, good.embeddings
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w") as file:
        for name, shape in (("crops", (2**40, HEIGHT, WIDTH, 3)), ("embeddings", (16, DIM))):
            header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x76\x00" + header.encode())
    evil = np.array([{"a": 1}] * 16, object)
    for data in (
        b"no archive",
        huge.getvalue(),
        archive(crops=crops),
        archive(crops=crops, embeddings=embeddings, more=crops),
        archive(crops=evil, embeddings=embeddings),
        archive(crops=crops[:1], embeddings=embeddings[:1]),
        archive(crops=np.repeat(crops, 5, axis=0), embeddings=np.repeat(embeddings, 5, axis=0)),
        archive(crops=crops, embeddings=embeddings * 2),
        archive(crops=crops, embeddings=embeddings.astype(np.float64)),
        archive(crops=np.asfortranarray(crops), embeddings=embeddings),
        archive(crops=crops[:8], embeddings=embeddings),
    ):
        (bundle.folder / "golden.npz").write_bytes(data)
        rewrite(bundle.folder, lambda manifest: None)
        with pytest.raises(ArtefactError, match=r"golden.npz"):
            Bundle.load(bundle.folder)


def test_bytes_that_are_run_are_bytes_that_were_sealed(bundle):
    loaded = Bundle.load(bundle.folder)
    (bundle.folder / "model.onnx").write_bytes(b"changed later")
    with pytest.raises(ArtefactError, match="changed after"):
        loaded.model()


THRESHOLD = {"fpr": 0.001, "score": 0.62, "interval": [0.58, 0.66], "pairs": 1200}


def test_a_bundle_of_schema_1_is_read_and_a_revision_lifts_it(bundle):
    def old(manifest):
        manifest["schema"] = 1
        for key in ("thresholds", "golden_cosine", "opset", "quantisation"):
            manifest.pop(key, None)

    rewrite(bundle.folder, old)
    loaded = Bundle.load(bundle.folder)
    assert (loaded.manifest["schema"], loaded.thresholds) == (1, {})
    assert revise_bundle(bundle.folder, {"thresholds": {"drawn": THRESHOLD}}).manifest["schema"] == 3


def test_revision_changes_what_was_asked_and_the_id_only(bundle):
    before = {item.name: item.read_bytes() for item in bundle.folder.iterdir()}
    revised = revise_bundle(bundle.folder, {"thresholds": {"drawn": THRESHOLD}, "licences": {"data": "CC0"}})
    assert revised.thresholds == {"drawn": THRESHOLD}
    assert revised.manifest["licences"] == {"weights": "not declared", "data": "CC0"}
    assert revised.id != bundle.id
    kept = set(bundle.manifest) - {"id", "thresholds", "licences"}
    assert {key: revised.manifest[key] for key in kept} == {key: bundle.manifest[key] for key in kept}
    after = {item.name: item.read_bytes() for item in bundle.folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {MANIFEST}
    assert before.keys() == after.keys()
    assert Bundle.load(bundle.folder).id == revised.id
    both = revise_bundle(bundle.folder, {"thresholds": {"other": {"fpr": 0.01, "score": 0.4}}})
    assert set(both.thresholds) == {"drawn", "other"}
    assert set(revise_bundle(bundle.folder, {"thresholds": {"drawn": None}}).thresholds) == {"other"}


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 3},
        {"feature_space": "cd" * 32},
        {"files": {}},
        {"id": "0"},
        {"anything": {}},
        {"thresholds": []},
        {"thresholds": {"a": {"fpr": 0.1}}},
        {"thresholds": {"a": {"fpr": 0.1, "score": float("nan")}}},
        {"thresholds": {"a": {"fpr": 0.1, "score": np.float32(0.5)}}},
        {"licences": {"photographs": "CC0"}},
    ],
    ids=str,
)
def test_a_revision_that_would_lie_changes_nothing(bundle, changes):
    before = (bundle.folder / MANIFEST).read_bytes()
    with pytest.raises((UsageError, ArtefactError)) as caught:
        revise_bundle(bundle.folder, changes)
    assert "\n" not in str(caught.value)
    assert (bundle.folder / MANIFEST).read_bytes() == before


def test_a_killed_revision_leaves_a_bundle_that_loads(bundle):
    left = bundle.folder / ".bundle.json.0123abcd.tmp"
    left.write_bytes(b"{")
    Bundle.load(bundle.folder)
    revise_bundle(bundle.folder, {})
    assert not left.exists()


def test_revisions_at_once_lose_nothing(bundle):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda n: revise_bundle(bundle.folder, {"thresholds": {f"d{n}": {"fpr": 0.1, "score": n / 8}}}),
                range(8),
            )
        )
    assert set(Bundle.load(bundle.folder).thresholds) == {f"d{n}" for n in range(8)}


def test_files_larger_than_any_of_ours_are_refused_before_they_are_read(make_bundle, monkeypatch):
    import deploy.bundle.bundle
    import domains.artefact

    bundle = make_bundle(transport=b"npz")
    for limit, read in (
        ("MAX_MODEL", bundle.model),
        ("MAX_GOLDEN", bundle.golden),
        ("MAX_TRANSPORT", bundle.transport),
    ):
        monkeypatch.setattr(deploy.bundle.bundle, limit, 2)
        with pytest.raises(ArtefactError, match="larger than"):
            read()
    monkeypatch.setattr(domains.artefact, "MAX_JSON", 100)
    with pytest.raises(ArtefactError, match="larger than 100 bytes"):
        Bundle.load(bundle.folder)


def test_a_transport_that_unpacks_to_far_more_is_refused(make_bundle, monkeypatch):
    import deploy.bundle.bundle

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("matrix.npy", b"\0" * 2**20)
    monkeypatch.setattr(deploy.bundle.bundle, "MAX_TRANSPORT", 2**18)
    assert len(bomb.getvalue()) < 2**18
    with pytest.raises(ArtefactError, match="unpacks to"):
        make_bundle(transport=bomb.getvalue()).transport()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"kind": "bundle", "schema": NaN}', b'{"kind": "bundle"}'],
    ids=lambda data: str(data[:20]),
)
def test_manifests_that_are_none(bundle, data):
    (bundle.folder / MANIFEST).write_bytes(data)
    with pytest.raises(ArtefactError) as caught:
        Bundle.load(bundle.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("digest", [None, 5, [], "0" * 63, "../x"])
def test_digests_that_are_none(bundle, digest):
    rewrite(bundle.folder, lambda manifest: manifest["files"].update({"model.onnx": digest}))
    with pytest.raises(ArtefactError, match="changed after it was sealed"):
        Bundle.load(bundle.folder)
    with pytest.raises(ArtefactError, match="changed after it was sealed"):
        Bundle.load(bundle.folder, verify=False).model()


@pytest.mark.parametrize("name", ["model.onnx", "CARD.md", MANIFEST])
def test_pipes_and_links_are_not_read(bundle, tmp_path, name):
    """A named pipe would hang a reader for ever, and a link leads out of the folder."""
    import os

    (bundle.folder / name).rename(tmp_path / "aside")
    os.mkfifo(bundle.folder / name)
    with pytest.raises(ArtefactError, match=r"plain file|not a bundle"):
        Bundle.load(bundle.folder)
    (bundle.folder / name).unlink()
    (bundle.folder / name).symlink_to(tmp_path / "aside")
    with pytest.raises(ArtefactError, match="plain file"):
        Bundle.load(bundle.folder)


def test_golden_embeddings_that_are_no_numbers(bundle):
    good = bundle.golden()
    for wrong in (np.nan, np.inf, 0):
        embeddings = good.embeddings.copy()
        embeddings[3] = wrong
        (bundle.folder / "golden.npz").write_bytes(archive(crops=good.crops, embeddings=embeddings))
        rewrite(bundle.folder, lambda manifest: None)
        with pytest.raises(ArtefactError, match="unit-length"):
            Bundle.load(bundle.folder)
