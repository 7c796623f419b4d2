"""The kill loop: a writer reports each acknowledged operation, is killed at random, and the gallery is compared with
what it must hold.
"""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from oracle import SPACES, State, act, blobs, check_search, choose, differs, raw, source_of
from tiny import DIM

from deploy import Gallery
from deploy.gallery import upgrade

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def write(folder, bundles, state, seed, report):
    """Do one operation after the other for ever; say what is begun and what is acknowledged."""
    draw = random.Random(seed)
    upgrade.CHUNK = 7  # many transactions per upgrade, so that kills fall between them
    gallery = Gallery.open(folder)
    while True:
        kind, content = choose(draw, state, folder)
        report.send(("begun", kind, content))
        if kind == "search" and draw.random() < 0.3:
            gallery.close()
            gallery = Gallery.open(folder)
        act(gallery, state, bundles, kind, content)
        state = state.after(kind, content)
        report.send(("done", kind, content))


def replay(connection, state):
    """What the writer said: the state after all that it acknowledged, the operation that it was at, and the backups it
    made with their states.
    """
    open_operation, backups, done = None, [], 0
    while True:
        try:
            said, kind, content = connection.recv()
        except (EOFError, OSError):
            return state, open_operation, backups, done
        if said == "begun":
            open_operation = kind, content
            continue
        open_operation, done = None, done + 1
        if kind == "backup":
            backups.append((content, state))
        state = state.after(kind, content)


def kill_loop(tmp_path, bundles, rounds, seed, longest=0.2):
    """Returns operations acknowledged, and how often each kind was cut short."""
    draw, folder = random.Random(seed), tmp_path / "gallery"
    Gallery.create(folder, DIM, SPACES[0], bundle=bundles[0]).close()
    state, seen, acknowledged, cut = State(), {}, 0, {}
    gone_names = set()
    for round_ in range(rounds):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=write, args=(folder, bundles, state, f"{seed} {round_}", theirs)
        )
        child.start()
        theirs.close()
        time.sleep(draw.uniform(0.02, longest))
        os.kill(child.pid, signal.SIGKILL)
        child.join(30)
        assert child.exitcode == -signal.SIGKILL, "the writer stopped by itself, so an operation failed"
        before = state
        state, operation, backups, done = replay(ours, state)
        acknowledged += done
        with Gallery.open(folder) as gallery:
            why = differs(gallery, state)
            if operation is not None:
                cut[operation[0]] = cut.get(operation[0], 0) + 1
                if why is not None:  # not as before the last operation: then as after it, and nothing between
                    state = state.after(*operation)
                    why = differs(gallery, state)
            assert why is None, f"round {round_}, seed {seed!r}, cut short: {operation}: {why}"
            content = raw(folder)  # with the log, as it lies there while the gallery is open
            check_search(gallery, state, draw)
            gallery.verify()
        gone_names |= {entry[0] for number, entry in before.entries.items() if number not in state.entries}
        assert not [name for name in gone_names if source_of(name).encode() in content], (
            "an erased source is in the folder"
        )
        for number in [number for number in seen if number not in state.entries]:
            assert not [data for data in seen[number] if data in content], (
                f"a vector of erased entry {number} is in the folder"
            )
            del seen[number]
        for number, data in blobs(folder).items():
            seen.setdefault(number, set()).update(data)
        for path, wanted in backups:
            with Gallery.open(path) as copy:
                assert differs(copy, wanted) is None
        if operation is not None and operation[0] == "backup" and Path(operation[1]).exists():
            with Gallery.open(operation[1]) as copy:
                assert differs(copy, state) is None, "half a backup"
    return acknowledged, cut


def test_nothing_acknowledged_is_lost_and_nothing_erased_comes_back(tmp_path, bundles):
    acknowledged, cut = kill_loop(tmp_path, bundles, 50, "test")
    assert acknowledged > 100
    assert len(cut) >= 4, f"kills fell into {cut} only"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_five_hundred_kills(tmp_path, bundles, seed):
    kill_loop(tmp_path, bundles, 50, f"nightly {seed}", longest=0.4)
