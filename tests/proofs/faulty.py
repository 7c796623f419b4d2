"""Runs one operation again and again, each time with another of its changes to the disk failing. Started by
test_faults.py with faults.so preloaded.

``python faulty.py CASE WORK MOST``: prints one JSON object: how many changes the operation makes, how many were made to
fail, and what went wrong. Every trial is a fork of this process, so that nothing has to be loaded twice.
"""

import contextlib
import ctypes
import errno
import io
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from oracle import SPACES, TURNS, raw  # noqa: E402
from tiny import DIM, HEIGHT, WIDTH, body, embed, graph, unit  # noqa: E402

from deploy import Gallery  # noqa: E402
from deploy.bundle import Bundle, Golden, write_bundle  # noqa: E402
from domains.errors import ReidError  # noqa: E402
from prototypes.transport import Transport  # noqa: E402

MODES = {"full disk": (errno.ENOSPC, 1), "I/O error": (errno.EIO, 0)}


# -------------------------------------------------------------------------------------------------------- what is tried


class GalleryCase:
    """A command on a gallery of 12 entries, half of them labelled ``anna``."""

    commands: ClassVar = {
        "create": ["gallery", "add", "new", "people", "--bundle", "0"],
        "add": ["gallery", "add", "gallery", "people"],
        "query": ["query", "gallery", "people/c1/0.png", "--json"],
        "forget": ["gallery", "forget", "gallery", "--label", "anna"],
        "keep": ["gallery", "keep", "gallery", "30"],
        "upgrade": ["gallery", "upgrade", "gallery", "1"],
        "back": ["gallery", "upgrade", "gallery", "--back"],
        "drop-old": ["gallery", "upgrade", "gallery", "--drop-old"],
        "backup": ["gallery", "backup", "gallery", "copy"],
        "verify": ["gallery", "verify", "gallery"],
    }

    def __init__(self, name):
        self.name = name

    def prepare(self, folder):
        tiny_bundles(folder)
        rng = np.random.default_rng(3)
        for number in range(4):
            place = folder / "people" / f"c{number % 2 + 1}"
            place.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place / f"{number}.png"), rng.integers(0, 256, (HEIGHT * 2, WIDTH * 2, 3), np.uint8))
        with Gallery.create(folder / "gallery", DIM, SPACES[0], bundle=folder / "0") as gallery:
            vectors = unit(rng, 12)
            times = ["2001-01-01T00:00:00Z" if number < 3 else None for number in range(12)]
            gallery.add(vectors, "c", [f"/crop/{number}" for number in range(12)], time=times, label=["anna", None] * 6)
            if self.name in ("back", "drop-old"):
                gallery.upgrade(folder / "1")
                gallery.add(unit(rng, 2), "c", ["/late/1", "/late/2"])
            if self.name != "query":
                gallery.search(vectors[:1])
        self.erased = [vector.astype(np.float16).tobytes() for vector in vectors[::2]] if self.name == "forget" else []
        if self.name == "keep":
            self.erased = [vector.astype(np.float16).tobytes() for vector in vectors[:3]]

    def act(self, folder):
        from reid.cli import main

        sys.argv = ["reid", *self.commands[self.name]]
        main()

    def state(self, folder):
        found = []
        for name in ("gallery", "new", "copy"):
            if (folder / name).exists():
                with Gallery.open(folder / name) as gallery:
                    gallery.verify()
                    entries = [[number, vars(entry)] for number, entry in gallery.entries(gallery.ids()).items()]
                    vectors = [part.tobytes().hex() for part in gallery._store.vectors()]
                    can_return = (
                        gallery._store.ask("SELECT source FROM space WHERE number = (SELECT space FROM gallery)")[0][0]
                        is not None
                    )
                    found.append([name, entries, vectors, gallery.feature_space, gallery.retention(), can_return])
        return json.dumps(found)

    def begun(self, now, before):
        """Whether this is the state before and a new gallery that is empty: making one and filling it are two
        changes.
        """
        made = [found for found in json.loads(now) if found[0] != "new" or found[1]]
        return self.name == "create" and made == json.loads(before)

    def left(self, folder):
        data = raw(folder)
        return [
            f"the bytes of erased vector {place} are there"
            for place, vector in enumerate(self.erased)
            if vector in data
        ]


class BundleCase:
    """A bundle written by the library."""

    erased: tuple = ()

    def begun(self, now, before):
        return False

    def prepare(self, folder):
        tiny_bundles(folder, count=1)

    def act(self, folder):
        guarded(lambda: tiny_bundles(folder, first=1, count=2))

    def state(self, folder):
        return str((folder / "1").exists() and Bundle.load(folder / "1").id)

    def left(self, folder):
        return [f"{item.name} was left" for item in folder.iterdir() if item.name not in ("0", "1")]


class RunCase:
    """A run of one learned step with two more identities than its start: ``erase`` forgets one of them, ``seal`` seals
    a further step.
    """

    def __init__(self, name, seed=0):
        self.name, self.seed = name, seed

    def prepare(self, folder):
        import torch

        from reid.config import build_config
        from reid.run import Run

        torch.set_num_threads(1)
        settings = {
            "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
            "crop": {"height": 64, "width": 32},
        }
        run = Run.create(folder / "run", build_config(settings, {"seed": self.seed}))
        self.seal(run, "north", ["anna-q7", "ben-q8"])

    def seal(self, run, name, people):
        from reid.run.sealed import seal
        from reid.step.ending import Ended

        model, parent = run.model()
        model.grow(len(people), seed=parent.index)
        rng = np.random.default_rng(parent.index)
        memory = {f"prototypes.{kind}": rng.random((len(people), 32)).astype(np.float16) for kind in ("mean", "spread")}
        card = {
            "method": {"name": "none"},
            "classes": people,
            "train": {"seconds": 0.0, "crops_per_second": 0.0, "waiting": 0.0},
            "notes": [],
            "bytes": {"memory": 0, "classifier_rows_of_old_identities": 0, "teachers": 0, "fusion_partner": 0},
            "domains": [{"name": name, "path": f"/{name}", "same_camera": "drop", "crops": {"train": 2}}],
        }
        place = run.folder / "steps" / f"{parent.index + 1:02d}-{name}"
        turn = np.linalg.qr(rng.standard_normal((32, 32)))[0].astype(np.float16).astype(np.float32)
        ended = Ended(
            {},
            Transport(parent.feature_space, model.feature_space(run.config.crop.spec()), turn),
            {"long": model.state_dict()},
            {},
        )
        seal(
            place, parent.index + 1, model, run.config.crop.spec(), card, memory, parent=parent.card["id"], ended=ended
        )

    def act(self, folder):
        from reid.run import Run

        run = Run.open(folder / "run")
        guarded(
            lambda: run.forget(identity="anna-q7") if self.name == "erase" else self.seal(run, "south", ["carl-q9"])
        )

    def state(self, folder):
        from domains.artefact import read_manifest
        from reid.run import Run

        run = Run.open(folder / "run")
        for step in run.steps:
            read_manifest(step.folder, "card.json", kind="step", schemas=range(1, 2))
            run.model(step.index)
        run.memories()
        return json.dumps([[step.folder.name, step.card["id"]] for step in run.steps])

    def begun(self, now, before):
        return False

    def left(self, folder):
        if self.name == "seal":
            return []
        return ["the name is there"] * (b"anna-q7" in raw(folder))


def tiny_bundles(folder, first=0, count=3):
    projection = np.random.default_rng(7).normal(size=(HEIGHT * WIDTH // 16 * 3, DIM))
    crops = np.random.default_rng(8).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
    for number in range(first, count):
        transport = Transport(SPACES[number - 1], SPACES[number], TURNS[number - 1], "ridge", (0.9, 0.5))
        write_bundle(
            folder / str(number),
            model_onnx=graph(projection),
            golden=Golden(crops, embed(crops, projection)),
            card="# Tiny\n",
            body=body(feature_space=SPACES[number]),
            parent=None,
            parts={"transport.npz": transport.to_bytes()},
        )


CASES = {
    **{f"gallery {name}": GalleryCase(name) for name in GalleryCase.commands},
    "bundle": BundleCase(),
    "run erase": RunCase("erase"),
    "run seal": RunCase("seal"),
}


# ------------------------------------------------------------------------------------------------------ how it is tried


def guarded(act):
    """What the command line makes of an error of the library: one line, exit 1."""
    try:
        act()
    except (ReidError, OSError) as error:
        sys.stderr.write(f"reid: {error}\n")
        sys.exit(1)


def trial(case, folder, *, arm=None):
    """Fork and act; returns exit code (negative: a signal), what was said on stderr, calls counted, whether one
    failed.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        code, said = 0, io.StringIO()
        os.chdir(folder)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                if arm is not None:
                    LIBRARY.fault_arm(arm[0], arm[1], arm[2], str(folder).encode())
                case.act(folder)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            code = 99
            said.write(traceback.format_exc())
        finally:
            counted, fired = LIBRARY.fault_count(), LIBRARY.fault_fired()
            LIBRARY.fault_arm(0, 0, 0, b"")
            os.write(theirs, json.dumps([code, said.getvalue()[-3000:], counted, bool(fired)]).encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        told = stream.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) or not told:
        return -os.WTERMSIG(status), "", 0, True
    return tuple(json.loads(told))


def examine(case, work, most):
    """Try every change in turn, or ``most`` of them spread evenly; returns the findings."""
    template, folder = work / "template", work / "trial"
    folder.mkdir(parents=True)
    case.prepare(folder)
    folder.rename(template)  # what is prepared knows its place, and every trial is at that place

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)

    fresh()
    before = case.state(folder)
    fresh()
    code, said, total, _ = trial(case, folder, arm=(10**9, 0, 0))
    after = case.state(folder)
    wrong = [] if code == 0 and not case.left(folder) else [f"without a fault: exit {code}: {said} {case.left(folder)}"]
    tried = refused = 0
    for mode, (error, sticky) in MODES.items():
        for number in sorted(
            {1 + round(place * (total - 1) / max(1, most - 1)) for place in range(most)}
            if most < total
            else range(1, total + 1)
        ):
            fresh()
            code, said, _, fired = trial(case, folder, arm=(number, error, sticky))
            if not fired:
                continue
            tried, refused = tried + 1, refused + (code != 0)
            problems = []
            if code not in (0, 1):
                problems.append(f"exit {code}: {said}")
            elif code == 1 and (said.count("\n") != 1 or not said.startswith("reid: ")):
                problems.append(f"said {said!r}")
            try:
                now = case.state(folder)
                if now not in ((after,) if code == 0 else (before, after)) and not (code and case.begun(now, before)):
                    problems.append(f"exit {code} and a state between: {now[:300]}")
                if now != after:
                    again = trial(case, folder)
                    if again[0] != 0 or case.state(folder) != after:
                        problems.append(f"the next run: exit {again[0]}: {again[1]}")
                problems += case.left(folder)
            except Exception as found:
                problems.append(f"afterwards {type(found).__name__}: {found}")
            wrong += [f"{mode} at {number} of {total}: {problem}" for problem in problems]
    return {"changes": total, "tried": tried, "refused": refused, "wrong": wrong}


if __name__ == "__main__":
    LIBRARY = ctypes.CDLL(os.environ["LD_PRELOAD"])
    LIBRARY.fault_arm.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
    name, place, most_tried = sys.argv[1:]
    sys.stdout.write(json.dumps(examine(CASES[name], Path(place), int(most_tried))))
