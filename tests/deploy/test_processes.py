"""An encoder works in every kind of process pool; a gallery that is open says how, and a fork harms neither."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tiny
from tiny import graph

from deploy import Encoder, Gallery
from deploy.bundle import revise_bundle
from deploy.bundle.signature import make_key
from deploy.encoder.batcher import Batcher
from deploy.store.store import DATABASE
from domains.errors import ArtefactError, DeviceError, GalleryError, UsageError

PATIENCE = 240
METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture
def crops(golden_crops):
    return golden_crops[:5]


@pytest.fixture
def pictures(tmp_path, golden_crops):
    """Large enough that decoding and resizing them starts OpenCV's own threads."""
    for number, crop in enumerate(golden_crops[:4]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.kron(crop, np.ones((40, 40, 1), np.uint8)))
    return sorted(tmp_path.glob("*.png"))


@pytest.fixture
def encoder(bundle):
    return Encoder.load(bundle.folder, threads=2, batch=3)


def embed(encoder, crops):
    vectors = encoder(crops)
    return np.asarray(vectors), vectors.feature_space, os.getpid()


def embed_files(encoder, paths):
    return np.asarray(encoder.files(paths)[0])


def embed_global(crops):
    return np.asarray(HELD(crops))


HELD = None


class InAChild:
    """Run a function in a process forked from this one; a child that hangs is killed."""

    def __init__(self, act):
        reader, writer = os.pipe()
        self.child = os.fork()
        if not self.child:
            os.close(reader)
            status = 1
            try:
                os.write(writer, pickle.dumps(act()))
                status = 0
            except BaseException as error:
                os.write(writer, pickle.dumps(repr(error)))
            finally:
                os.close(writer)
            os._exit(status)
        os.close(writer)
        watch = threading.Timer(PATIENCE, os.kill, (self.child, signal.SIGKILL))
        watch.start()
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        watch.cancel()
        self.said = pickle.loads(data) if data else None


# ------------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_works_in_a_process_pool(encoder, crops, pictures, method):
    wanted = np.asarray(encoder(crops))
    files = embed_files(encoder, pictures)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        done = [pool.submit(embed, encoder, crops) for _ in range(4)]
        for future in done:
            vectors, space, process = future.result(timeout=PATIENCE)
            assert np.array_equal(vectors, wanted)
            assert space == encoder.feature_space
            assert process != os.getpid()
        assert np.array_equal(pool.submit(embed_files, encoder, pictures).result(timeout=PATIENCE), files)
    assert np.array_equal(np.asarray(encoder(crops)), wanted), "and here it goes on"


def test_an_encoder_that_workers_inherit_works_in_them(encoder, crops, monkeypatch):
    """A global, or a data set that holds it: a fork copies it without asking."""
    wanted = np.asarray(encoder(crops))
    monkeypatch.setitem(globals(), "HELD", encoder)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for vectors in pool.map_async(embed_global, [crops] * 4).get(timeout=PATIENCE):
            assert np.array_equal(vectors, wanted)
    assert np.array_equal(np.asarray(encoder(crops)), wanted)


def test_a_data_loader_s_workers_encode(encoder, crops):
    data = pytest.importorskip("torch.utils.data")

    class Crops(data.Dataset):
        def __len__(self):
            return len(crops)

        def __getitem__(self, row):
            return np.asarray(encoder(crops[row : row + 1]))[0]

    wanted = np.asarray(encoder(crops))
    loader = data.DataLoader(Crops(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=PATIENCE)
    assert np.allclose(np.concatenate([batch.numpy() for batch in loader]), wanted, atol=1e-6)


def test_a_batcher_goes_on_in_a_forked_process(encoder, crops):
    with Batcher(encoder, batch=4) as batcher:
        wanted = np.asarray(batcher.embed(crops[0]))
        child = InAChild(lambda: [np.asarray(batcher.embed(crops[0])), batcher.close()][0])
        assert np.array_equal(child.said, wanted)
        assert InAChild(batcher.close).said is None
        assert np.array_equal(np.asarray(batcher.embed(crops[0])), wanted)


def test_a_fork_while_threads_encode_does_not_wait_for_them(encoder, crops):
    wanted, stop = np.asarray(encoder(crops)), threading.Event()

    def busy():
        while not stop.is_set():
            encoder(crops)

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(busy)
        try:
            for _ in range(3):
                child = InAChild(lambda: np.asarray(encoder(crops)))
                assert child.status == 0, child.said
                assert np.array_equal(child.said, wanted)
        finally:
            stop.set()


@pytest.mark.parametrize("used", [True, False])
def test_a_forked_process_ends(encoder, used):
    """With all destructors, though the engine's threads are not there to be waited for."""
    code = f"""
import os, sys, signal
from deploy import Encoder
encoder = Encoder.load({str(encoder.bundle.folder)!r}, threads=3)
child = os.fork()
if not child:
    signal.alarm({PATIENCE})
    {"encoder(encoder.bundle.golden().crops)" if used else "pass"}
    del encoder
    sys.exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=2 * PATIENCE)
    assert (done.returncode, done.stderr) == (7, "")


def test_what_was_loaded_is_what_is_sent(bundle, make_bundle, golden_crops, tmp_path, monkeypatch, projection):
    monkeypatch.chdir(tmp_path)
    encoder = Encoder.load("bundle", provider="cpu", batch=7, threads=1)
    encoder.batch = 5
    sent = pickle.dumps(encoder)
    assert len(sent) < 2000, "the folder's name, not the weights"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(sent)
    assert (again.batch, again.provider, again.bundle.folder) == (5, "cpu", bundle.folder)
    bundle.folder.rename(tmp_path / "moved")
    with pytest.raises(ArtefactError, match="is not a bundle"):
        pickle.loads(sent)
    make_bundle(changes={"step": 2})
    assert pickle.loads(sent).feature_space == encoder.feature_space, "the same model under another manifest"
    bundle.folder.rename(tmp_path / "moved again")
    make_bundle(model=graph(-projection), embeddings=tiny.embed(golden_crops, -projection))
    with pytest.raises(ArtefactError, match="holds another model than it did when the encoder was loaded"):
        pickle.loads(sent)


@pytest.mark.parametrize("trusted", ["key.pub", ["key.pub"], None])
def test_who_is_trusted_is_sent_too(bundle, tmp_path, monkeypatch, trusted):
    pytest.importorskip("cryptography")
    make_key(tmp_path / "key")
    revise_bundle(bundle.folder, {}, key=tmp_path / "key")
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Encoder.load(bundle.folder, trusted=iter(trusted) if isinstance(trusted, list) else trusted))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).bundle.signers
    revise_bundle(bundle.folder, {"thresholds": {"a": {"fpr": 0.1, "score": 0.5}}}, unsign=True)
    if trusted is None:
        assert not pickle.loads(sent).bundle.signers
        return
    with pytest.raises(ArtefactError, match="sign"):
        pickle.loads(sent)


@pytest.mark.parametrize("provider", ["cuda", "cuda:1", "tensorrt", "openvino"])
def test_where_a_fork_can_not_work_it_says_how(encoder, crops, provider):
    encoder._origin = encoder._origin._replace(provider=provider)

    def act():
        with pytest.raises(DeviceError, match=f'on {provider} can\'t be used in a process forked .* "spawn"'):
            encoder(crops)
        return "refused"

    assert InAChild(act).said == "refused"


# ------------------------------------------------------------------------------------------------------------- gallery


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", 8, "space") as opened:
        opened.add(np.eye(8, dtype=np.float32), camera="c1", source=[str(n) for n in range(8)])
        opened.search(np.eye(8, dtype=np.float32)[0])
        yield opened


VECTOR = np.eye(8, dtype=np.float32)[0]
USES = {
    "search": lambda gallery: gallery.search(VECTOR),
    "add": lambda gallery: gallery.add(VECTOR, camera="c1", source="x"),
    "forget": lambda gallery: gallery.forget(ids=[1]),
    "info": lambda gallery: gallery.info(),
    "ids": lambda gallery: gallery.ids(),
    "len": len,
    "verify": lambda gallery: gallery.verify(),
    "dim": lambda gallery: gallery.dim,
}


@pytest.mark.parametrize("use", USES)
def test_an_open_gallery_is_refused_in_a_forked_process(gallery, use):
    def act():
        with pytest.raises(GalleryError, match=r"opened in another process, .* start processes with"):
            USES[use](gallery)
        return "refused"

    assert InAChild(act).said == "refused"
    assert len(gallery) == 8


@pytest.mark.parametrize("method", METHODS)
def test_an_open_gallery_is_not_sent(gallery, method):
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool,
        pytest.raises(UsageError, match=r"send its path, and open it there with Gallery\.open\("),
    ):
        pool.submit(len, gallery).result(timeout=PATIENCE)


def count(path):
    with Gallery.open(path) as opened:
        opened.add(VECTOR, camera="c2", source=f"{os.getpid()}")
        return len(opened.search(VECTOR, k=100)[0])


@pytest.mark.parametrize("method", METHODS)
def test_every_process_may_open_it_for_itself(gallery, method):
    if method == "fork":
        gallery.close()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert all(found > 8 for found in pool.map(count, [gallery.path] * 6, timeout=PATIENCE))
    with Gallery.open(gallery.path) as again:
        assert len(again) == 14
        assert again.verify()[0].endswith("14 entries, all intact")


@pytest.mark.parametrize("way", ["path", "link", "hard link"])
def test_what_was_open_at_the_fork_can_not_be_opened_in_the_child(gallery, tmp_path, way):
    """SQLite would go by the parent's count of locks and take none: the parent, closing, would then merge and remove
    the log that the child writes to.
    """
    other = gallery.path
    if way != "path":
        other = tmp_path / "other"
        other.mkdir()
        getattr(other / DATABASE, "symlink_to" if way == "link" else "hardlink_to")(gallery.path / DATABASE)

    def act():
        with pytest.raises(
            GalleryError, match=r"was open in the process .* locks .* would not hold here; start processes"
        ):
            Gallery.open(other)
        with Gallery.create(tmp_path / "mine", 8, "space") as mine:
            mine.add(VECTOR, camera="c1", source="x")
            return len(mine.search(VECTOR)[0])

    assert InAChild(act).said == 1
    assert len(gallery) == 8


def reached_by_another(path):
    """Whether a process that was not forked from this one can write."""
    code = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0.1, isolation_level=None)
try:
    db.execute("BEGIN IMMEDIATE")
    print("free")
except sqlite3.OperationalError:
    print("busy")
"""
    words = [sys.executable, "-c", code, str(path / DATABASE)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()


def test_a_forked_process_neither_closes_nor_unlocks_what_is_not_its_own(gallery):
    """It drops, closes and leaves the gallery in the middle of a transaction, which goes on here."""

    def drop():
        gallery.close()
        gallery._store._db = None
        return "dropped"

    with gallery._store.holding():
        gallery._store.change("UPDATE gallery SET unwiped = 0")
        assert InAChild(drop).said == "dropped"

        assert reached_by_another(gallery.path) == "busy"
    assert (gallery.path / "gallery.db-wal").exists()
    gallery.add(VECTOR, camera="c1", source="after")
    assert len(gallery) == 9
    assert gallery.verify()[0].endswith("9 entries, all intact")


def test_a_fork_while_threads_search_and_add_does_not_wait_for_them(gallery):
    stop = threading.Event()

    def busy(number):
        while not stop.is_set():
            gallery.search(VECTOR)
            gallery.add(VECTOR, camera="c1", source=f"{number}")

    with ThreadPoolExecutor(3) as pool:
        for number in range(3):
            pool.submit(busy, number)
        try:
            for _ in range(5):
                found = InAChild(lambda: USES["search"](gallery))
                assert "opened in another process" in str(found.said)
        finally:
            stop.set()
    assert gallery.verify()[0].endswith("all intact")
