"""Merging concurrent callers: the same answers as one by one, bounded, and no caller pays for another's crop."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny import DIM, HEIGHT, SPACE, WIDTH

from deploy import Embeddings, Encoder
from deploy.encoder.batcher import Batcher
from domains.crops import CropSpec
from domains.errors import ArtefactError, BusyError, DataError, UsageError


class Slow:
    """An encoder that notes its batches, waits for a gate, and chokes on a crop that begins with 13."""

    crop = CropSpec(HEIGHT, WIDTH)

    def __init__(self, open_gate=True):
        self.gate = threading.Event()
        self.batches = []
        if open_gate:
            self.gate.set()

    def __call__(self, crops):
        assert self.gate.wait(10)
        self.batches.append(crops[:, 0, 0, 0].tolist())
        if (crops[:, 0, 0, 0] == 13).any():
            raise ArtefactError("thirteen")
        out = np.zeros((len(crops), 256), np.float32)
        out[np.arange(len(crops)), crops[:, 0, 0, 0]] = 1
        return Embeddings(out, SPACE)


def crop(value):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not happen in 5 s"
        time.sleep(0.001)


def test_many_threads_get_what_they_would_get_alone(bundle):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    encoder = Encoder.load(bundle.folder, threads=1, batch=8)
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (rng.integers(4, 60), rng.integers(4, 60), 3), np.uint8) for _ in range(400)]
    with Batcher(encoder, batch=8, wait_ms=1, limit=400) as batcher, ThreadPoolExecutor(24) as pool:
        got = list(pool.map(batcher.embed, images))
        load = batcher.load()
    assert got[0].shape == (DIM,)
    assert {vector.feature_space for vector in got} == {SPACE}
    np.testing.assert_allclose(np.stack(got), np.concatenate([encoder([image]) for image in images]), atol=1e-6)
    assert (load.waiting, load.crops) == (0, 400)
    assert load.batches < 400, "nothing was ever merged"


def test_batches_are_full_and_in_order_while_the_engine_is_busy():
    encoder = Slow(open_gate=False)
    with Batcher(encoder, batch=4, wait_ms=0) as batcher:
        first = batcher.submit(crop(0))
        until(lambda: batcher.load().waiting == 0)
        rest = [batcher.submit(crop(value)) for value in range(1, 11)]
        assert batcher.load().waiting == 10
        encoder.gate.set()
        assert [int(np.argmax(answer.result(5))) for answer in (first, *rest)] == list(range(11))
    assert encoder.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_lone_crop_leaves_after_its_wait_and_a_full_batch_at_once():
    encoder = Slow()
    with Batcher(encoder, batch=2, wait_ms=150) as batcher:
        start = time.monotonic()
        batcher.embed(crop(1))
        alone = time.monotonic() - start
        start = time.monotonic()
        for answer in batcher.submit_all([crop(2), crop(3)]):
            answer.result(5)
        together = time.monotonic() - start
    assert alone >= 0.15
    assert together < 0.12
    assert encoder.batches == [[1], [2, 3]]


def test_a_full_queue_says_so_at_once_and_takes_all_of_a_request_or_nothing():
    encoder = Slow(open_gate=False)
    with Batcher(encoder, batch=2, wait_ms=0, limit=4) as batcher:
        held = [batcher.submit(crop(0))]
        until(lambda: batcher.load().waiting == 0)
        held += batcher.submit_all([crop(1), crop(2), crop(3)])
        with pytest.raises(BusyError, match="3 crops are already waiting"):
            batcher.submit_all([crop(4), crop(5)])
        held.append(batcher.submit(crop(4)))
        with pytest.raises(BusyError, match="at most 4"):
            batcher.embed(crop(5))
        with pytest.raises(UsageError, match="at most 4"):
            batcher.submit_all([crop(5)] * 5)
        encoder.gate.set()
        for answer in held:
            answer.result(5)
        assert int(np.argmax(batcher.embed(crop(6)))) == 6, "it takes crops again once there is room"


def test_a_crop_that_fails_fails_alone():
    encoder = Slow(open_gate=False)
    with Batcher(encoder, batch=4, wait_ms=0) as batcher:
        first = batcher.submit(crop(0))
        until(lambda: batcher.load().waiting == 0)
        answers = [batcher.submit(crop(value)) for value in (11, 12, 13, 14, 15)]
        encoder.gate.set()
        for answer, value in zip(answers, (11, 12, 13, 14, 15), strict=True):
            if value == 13:
                with pytest.raises(ArtefactError, match="thirteen"):
                    answer.result(5)
            else:
                assert int(np.argmax(answer.result(5))) == value
        assert first.result(5).shape == (256,)
        with pytest.raises(DataError, match="uint8"):
            batcher.embed("no crop")
        assert batcher.load().waiting == 0


def test_closing_answers_those_that_wait_and_refuses_the_next():
    encoder = Slow(open_gate=False)
    batcher = Batcher(encoder, batch=4, wait_ms=10_000)
    answers = [batcher.submit(crop(value)) for value in range(9)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    encoder.gate.set()
    closing.join(5)
    assert not closing.is_alive()
    assert [int(np.argmax(answer.result(0))) for answer in answers] == list(range(9))
    with pytest.raises(BusyError, match="shutting down"):
        batcher.embed(crop(1))
    batcher.close()


def test_who_gives_up_costs_no_inference():
    encoder = Slow(open_gate=False)
    with Batcher(encoder, batch=2, wait_ms=0) as batcher:
        batcher.submit(crop(0))
        until(lambda: batcher.load().waiting == 0)
        with pytest.raises(BusyError, match=r"no answer in 0\.05 s"):
            batcher.embed(crop(1), timeout=0.05)
        batcher.submit(crop(2)).cancel()
        last = batcher.submit(crop(3))
        encoder.gate.set()
        last.result(5)
    assert encoder.batches == [[0], [3]]


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"wait_ms": -1}, {"wait_ms": float("nan")}, {"batch": 8, "limit": 7}], ids=str
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(UsageError, match="batcher needs"):
        Batcher(Slow(), **wrong)


def test_everyone_gets_their_own_answer_in_a_crowd():
    """Callers that come, fail, give up and are sent away at random: whoever gets an answer gets that of their own
    crop.
    """
    encoder = Slow()
    outcomes = {"answered": 0, "thirteen": 0, "sent away": 0, "gave up": 0}
    count = threading.Lock()

    def caller(seed):
        rng = np.random.default_rng(seed)
        for value in rng.integers(0, 40, 60):
            try:
                if rng.random() < 0.1:
                    outcome = "gave up" if batcher.submit(crop(value)).cancel() else "answered"
                else:
                    assert int(np.argmax(batcher.embed(crop(value), timeout=10))) == value
                    outcome = "answered"
            except ArtefactError:
                assert value == 13
                outcome = "thirteen"
            except BusyError:
                outcome = "sent away"
            with count:
                outcomes[outcome] += 1

    with Batcher(encoder, batch=4, wait_ms=0.2, limit=8) as batcher, ThreadPoolExecutor(16) as pool:
        list(pool.map(caller, range(16)))
        until(lambda: batcher.load().waiting == 0)
    assert sum(outcomes.values()) == 16 * 60
    assert outcomes["answered"] > 0
    assert outcomes["thirteen"] > 0
    assert max(map(len, encoder.batches)) == 4
