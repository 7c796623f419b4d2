import sys
import types

import cv2
import numpy as np
import pytest
from tiny import DIM, HEIGHT, SPACE, WIDTH, embed

from deploy import Embeddings, Encoder
from domains.crops import CropSpec
from domains.errors import ArtefactError, DataError, DeviceError, UsageError

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.fixture
def encoder(bundle):
    return Encoder.load(bundle.folder, threads=1, batch=4)


def crops(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 17])
def test_equals_the_model(encoder, projection, count):
    got = encoder(crops(count))
    assert isinstance(got, Embeddings)
    assert (got.shape, got.dtype, got.feature_space) == ((count, DIM), np.float32, SPACE)
    np.testing.assert_allclose(got, embed(crops(count), projection), atol=1e-5)
    np.testing.assert_array_equal(got, encoder(list(crops(count))))


def test_any_size_is_resized_by_the_bundles_rule(encoder, projection):
    rng = np.random.default_rng(1)
    mixed = [
        rng.integers(0, 256, (h, w, 3), np.uint8)
        for h, w in ((1, 1), (64, 32), (HEIGHT, WIDTH), (9, 30), (200, 5), (16, 9))
    ]
    wanted = embed(CropSpec(HEIGHT, WIDTH).batch(mixed), projection)
    np.testing.assert_allclose(encoder(mixed), wanted, atol=1e-5)
    large = rng.integers(0, 256, (6, 40, 20, 3), np.uint8)
    np.testing.assert_array_equal(encoder(large), encoder(list(large)))
    np.testing.assert_array_equal(encoder(crops(6)[:, ::-1]), encoder(list(crops(6)[:, ::-1])))


def test_nothing_gives_nothing(encoder):
    for empty in ([], np.empty((0, HEIGHT, WIDTH, 3), np.uint8), ()):
        got = encoder(empty)
        assert got.shape == (0, DIM)
        assert got.feature_space == SPACE


@pytest.mark.parametrize(
    "bad",
    [
        crops(1)[0],
        crops(2).astype(np.float32),
        [crops(1)[0], crops(1)[0] / 255],
        [None],
        [crops(1)[0][..., 0]],
        [crops(1)[0][:0]],
        ["a.png"],
        np.zeros((2, HEIGHT, WIDTH, 4), np.uint8),
    ],
    ids=range(8),
)
def test_what_is_no_crop_is_refused(encoder, bad):
    with pytest.raises(DataError):
        encoder(bad)


def test_a_bad_crop_is_named_by_its_place(encoder):
    with pytest.raises(DataError, match="crop 5:"):
        encoder([*crops(5), "x"])


def test_properties(encoder, bundle):
    assert (encoder.dim, encoder.feature_space, encoder.crop, encoder.provider) == (DIM, SPACE, bundle.crop, "cpu")


def test_files(encoder, tmp_path):
    images = crops(11)
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), image[..., ::-1])
    paths.insert(3, tmp_path / "missing.png")
    paths.insert(7, tmp_path / "broken.png")
    paths[7].write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    paths.append("nul\0name.png")
    got, skipped = encoder.files(paths)
    np.testing.assert_array_equal(got, encoder(images))
    assert got.feature_space == SPACE
    assert [item.position for item in skipped] == [3, 7, 13]
    assert [position for position, reason in skipped] == [3, 7, 13]
    assert "missing.png" in skipped[0].reason
    nothing, none = encoder.files([])
    assert nothing.shape == (0, DIM)
    assert none == []


def test_provider_is_the_one_asked_for_or_an_error(bundle, monkeypatch):
    with pytest.raises(UsageError, match="choose one of"):
        Encoder.load(bundle.folder, provider="gpu")
    for wrong in ({"batch": 0}, {"batch": True}, {"threads": 0}, {"batch": 2.0}):
        with pytest.raises(UsageError):
            Encoder.load(bundle.folder, **wrong)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(DeviceError, match=r"cuda.*has: cpu"):
            Encoder.load(bundle.folder, provider="cuda")
    # A build that has the provider and a session that silently runs elsewhere, as ONNX Runtime does without a driver.
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, **_: real(model, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(DeviceError, match=r"asked for cuda.*CPUExecutionProvider"):
        Encoder.load(bundle.folder, provider="cuda")


def test_without_onnx_runtime(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"pip install 'lifelong-reid\[cpu\]'"):
        Encoder.load(bundle.folder)


def test_a_graph_that_changed_its_mind_does_not_serve(make_bundle, projection):
    noisy = projection + np.random.default_rng(0).normal(scale=0.3, size=projection.shape)
    from tiny import graph

    folder = make_bundle(model=graph(noisy)).folder
    with pytest.raises(ArtefactError, match="golden embeddings on cpu: cosine"):
        Encoder.load(folder)
    close = projection + np.random.default_rng(0).normal(scale=0.005, size=projection.shape)
    Encoder.load(make_bundle("close", model=graph(close)).folder)


def test_a_collapsed_graph_does_not_serve(make_bundle, golden_crops, projection):
    same = embed(golden_crops, projection) * 0 + np.float32(DIM**-0.5)
    folder = make_bundle(bias=1e6, embeddings=same).folder
    with pytest.raises(ArtefactError, match="same embedding"):
        Encoder.load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 2.0}, "unit-length"),
        ({"scale": float("nan")}, "unit-length"),
        ({"source": "images"}, "it takes.* images"),
        ({"static": True}, "N dynamic"),
        ({"model": b"no graph"}, "can't load"),
    ],
    ids=str,
)
def test_a_graph_that_breaks_the_contract_does_not_serve(make_bundle, options, message):
    with pytest.raises(ArtefactError, match=message) as caught:
        Encoder.load(make_bundle(**options).folder)
    assert "\n" not in str(caught.value)


def test_a_graph_of_another_size_does_not_serve(make_bundle, projection):
    crops = np.zeros((16, 32, WIDTH, 3), np.uint8)
    folder = make_bundle(crops=crops, changes={"crop": {"height": 32, "width": WIDTH, "resize": "area"}}).folder
    with pytest.raises(ArtefactError, match="has shape"):
        Encoder.load(folder)


def test_an_engine_that_answers_wrongly_later_is_caught(encoder):
    encoder._engine.session = types.SimpleNamespace(run=lambda *_: [np.zeros((1, DIM), np.float32)])
    with pytest.raises(ArtefactError, match="unit-length"):
        encoder(crops(1))
    encoder._engine.session = types.SimpleNamespace(run=lambda *_: [np.zeros((2, DIM), np.float32)])
    with pytest.raises(ArtefactError, match="expected"):
        encoder(crops(1))


def test_threads_may_share_an_encoder(encoder):
    from concurrent.futures import ThreadPoolExecutor

    batches = [crops(9, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for got, batch in zip(pool.map(encoder, batches), batches, strict=True):
            np.testing.assert_array_equal(got, encoder(batch))
