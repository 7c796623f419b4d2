"""A run that somebody else made, and sealed again with contents that lie: every reader refuses it in one line."""

import io
import json
import os
import random
import re
import shutil
import struct

import numpy as np
import pytest
import torch
import yaml
from running import SETTINGS, Stop, StopAt
from safetensors.torch import save

from domains.artefact import content_id, sha256_file
from domains.errors import ReidError
from reid.commands.run import show_scores
from reid.config import build_config
from reid.run import Run, one_gallery, scoring
from reid.run.erasure import read_erasures
from reid.run.relate import relate
from reid.run.report import write_report


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two steps with all kinds of files, and its sites."""
    from drawing import draw_tiny_domain

    import domains

    folder = tmp_path_factory.mktemp("made")
    sites = [
        domains.open(draw_tiny_domain(folder / "data" / name, seed=seed))
        for seed, name in enumerate(("first", "second", "third"))
    ]
    run = Run.create(
        folder / "run",
        build_config({**SETTINGS, "method": "hyper_default", "model": {**SETTINGS["model"], "stages": 1}}),
    )
    for site in sites[:2]:
        run.learn(site)
    run.fill_scores(sites[:2])
    one_gallery.keep(run, run.sealed(), sites[:2], scoring.in_one_gallery(run, sites[:2]))
    return run.folder, sites


@pytest.fixture
def received(made, tmp_path):
    """A copy of it, as it is received."""
    shutil.copytree(made[0], tmp_path / "run")
    return tmp_path / "run"


def resealed(folder):
    """Seal every step anew, as somebody would who knows how."""
    parent = None
    for step in sorted((folder / "steps").glob("[0-9]*")):
        card = json.loads((step / "card.json").read_text())
        card.pop("id")
        card["parent"] = parent
        card["files"] = {name: sha256_file(step / name) for name in card["files"] if (step / name).is_file()}
        parent = content_id(card)
        (step / "card.json").write_text(json.dumps({"id": parent, **card}))
        if step.name.startswith("00"):
            head = yaml.safe_load((folder / "run.yaml").read_text())
            head["start"] = parent
            (folder / "run.yaml").write_text(yaml.safe_dump(head))


def use(folder, sites, tmp_path):
    """Whatever is done with a received run but learning."""
    for door in (
        lambda run: write_report(run, tmp_path / "r.html"),
        lambda run: run.memories(renew=True),
        lambda run: [step.kept() for step in run.steps],
        lambda run: run.evaluate(sites[0], step=-1),
        lambda run: run.evaluate(sites[1], step=1),
        lambda run: run.known_domains(),
        lambda run: run.scores.summary(),
        lambda run: relate(run, sites[2]),
        lambda run: run.evaluate_without_reindexing(sites[:1]),
        lambda run: run.forget(domain="first", dry_run=True),
        lambda run: read_erasures(run.folder),
        lambda run: one_gallery.read(run.folder),
    ):
        try:
            door(Run.open(folder))
        except ReidError as error:
            yield error


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "empty": b"",
    "text": b"hello, this is no such file at all",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "header of all": struct.pack("<Q", 100) + b"{}",
    "deep header": safetensors(b"[" * 50_000),
    "not an object": safetensors([1, 2]),
    "not UTF-8": safetensors(b"\xff\xfe{}"),
    "huge tensor": safetensors({"a": entry(shape=(2**40,), offsets=(0, 2**42))}),
    "overflow": safetensors({"a": entry(shape=(2**33, 2**33), offsets=(0, 8))}, b"\0" * 8),
    "negative": safetensors(b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', b"\0" * 8),
    "overlapping": safetensors({"a": entry(), "b": entry()}, b"\0" * 8),
    "backwards": safetensors({"a": entry(offsets=(8, 0))}, b"\0" * 8),
    "unknown kind": safetensors({"a": entry("Q9")}, b"\0" * 8),
    "NumPy's lack": safetensors({"a": entry("F8_E4M3", (8,))}, b"\0" * 8),
    "brain floats": safetensors({"a": entry("BF16", (4,))}, b"\0" * 8),
    "no tensors": safetensors({}),
    "rows of no width": safetensors({"classifier.weight": entry(shape=(2**40, 0), offsets=(0, 0))}),
    "a number": save({"classifier.weight": torch.tensor(3.0)}),
    "others": save({"classifier.weight": torch.ones(3, 32), "x": torch.ones(2)}),
    "strange memory": save({"prototypes.mean": torch.ones(2, 2)}, {"memory": '{"domain": 1, "feature_space": null}'}),
    "listed memory": save({"a": torch.ones(2)}, {"memory": "[]"}),
    "deep memory": save({"a": torch.ones(2)}, {"memory": "[" * 50_000}),
    "odd prototypes": save(
        {"prototypes.mean": torch.ones(3), "style.statistics": torch.ones(2), "hypernetwork.embedding": torch.ones(1)},
        {"memory": '{"domain": "first", "feature_space": "x"}'},
    ),
}


@pytest.mark.parametrize("how", SAFETENSORS)
@pytest.mark.parametrize("name", ["model.safetensors", "memory.safetensors", "kept-hypernetwork.safetensors"])
def test_tensors_with_headers_that_lie(how, name, received, made, tmp_path):
    (received / "steps" / "02-second" / name).write_bytes(SAFETENSORS[how])
    resealed(received)
    errors = list(use(received, made[1], tmp_path))
    assert errors or name != "model.safetensors"
    assert all("\n" not in str(error) and len(str(error)) < 600 for error in errors)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(shape="(2,)", kind="<f4"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def lying(name, **options):
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.npy", npy(**options) + b"\0" * 8)
    return buffer.getvalue()


NPZ = {
    "empty": b"",
    "text": b"hello",
    "huge": lying("matrix", shape="(1099511627776,)"),
    "huge queries": lying("1/first", shape="(1099511627776,)"),
    "negative": lying("1/first", shape="(-2,)"),
    "objects": lying("1/first", kind="|O"),
    "complex": npz(**{"1/first": np.ones(2, np.complex64), "2/first": np.ones(2)}),
    "text for numbers": npz(**{"1/first": np.array(["x"]), "2/first": np.ones(2)}),
    "square": npz(**{"1/first": np.ones((2, 2)), "2/first": np.ones(2)}),
    "a point": npz(**{"1/first": np.float64(1), "2/first": np.ones(2)}),
    "names of names": npz(matrix=np.eye(32), names=np.array([["a"]]), cosine=np.ones(2)),
    "no numbers": npz(matrix=np.array([["x"]]), names=np.array(["a", "b", "c"]), cosine=np.ones(2)),
    "three cosines": npz(matrix=np.eye(32), names=np.array(["a", "b", "c"]), cosine=np.ones(3)),
    "a line": npz(matrix=np.ones(32), names=np.array(["a", "b", "c"]), cosine=np.ones(2)),
    "another width": npz(matrix=np.eye(5), names=np.array(["a", "b", "ridge"]), cosine=np.ones(2)),
}


@pytest.mark.parametrize("how", NPZ)
@pytest.mark.parametrize("name", ["queries.npz", "steps/02-second/transport.npz"])
def test_arrays_with_headers_that_lie(how, name, received, made, tmp_path):
    (received / name).write_bytes(NPZ[how])
    resealed(received)
    errors = list(use(received, made[1], tmp_path))
    assert all("\n" not in str(error) and len(str(error)) < 600 for error in errors)


ODD = [None, True, -1, 2**70, 1.5, "x", "\0", "\ud800", [], {}, [None], {"a": None}, [[]], "a" * 3000]


def places(value, path=()):
    """Every place in a JSON value."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(value, path, new):
    node = value
    for key in path[:-1]:
        node = node[key]
    if new is places:
        del node[path[-1]]
    else:
        node[path[-1]] = new


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["scores.json", "one_gallery.json", "steps/00-start/card.json", "steps/02-second/card.json", "run.yaml"],
)
def test_any_value_of_any_key_is_read_or_refused(name, received, made, tmp_path):
    original, draw = (received / name).read_text(), random.Random(name)
    read, write = (json.loads, json.dumps) if name.endswith("json") else (yaml.safe_load, yaml.safe_dump)
    cases = [(path, new) for path in places(read(original)) for new in (*ODD, places)]
    for path, new in draw.sample(cases, min(60, len(cases))):
        content = read(original)
        changed(content, path, new)
        (received / name).write_text(write(content))
        if name.endswith("card.json") and path[0] not in ("id", "files", "parent"):
            try:
                resealed(received)
            except UnicodeEncodeError:  # no manifest can be sealed with half a surrogate pair
                continue
        for error in use(received, made[1], tmp_path):
            assert "\n" not in str(error.lines[0]), (path, new)


@pytest.mark.parametrize(
    "name",
    ["scores.json", "one_gallery.json", "steps/02-second/card.json", "steps/02-second/log.jsonl", "erasures.json"],
)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{" * 50,
        b"null",
        b"[]",
        b'{"a": NaN}',
        b"1" * 6000,
        b'"\\ud800"',
        b'{"losses": 3}',
    ],
    ids=lambda data: repr(data[:12]),
)
def test_json_of_any_shape(name, data, received, made, tmp_path):
    (received / name).write_bytes(data)
    if name.endswith("jsonl"):
        resealed(received)
    errors = list(use(received, made[1], tmp_path))
    assert errors or not data
    assert all("\n" not in str(error) and len(str(error)) < 600 for error in errors)


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "nowhere", "loop"])
@pytest.mark.parametrize(
    "name",
    ["run.yaml", "scores.json", "queries.npz", "one_gallery.json"]
    + [
        f"steps/02-second/{name}"
        for name in ("card.json", "model.safetensors", "memory.safetensors", "transport.npz", "log.jsonl")
    ],
)
def test_what_is_no_plain_file_is_not_waited_for(kind, name, received, made, tmp_path):
    file = received / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"endless": "/dev/zero", "nowhere": "/nowhere", "loop": file.name}[kind])
    for error in use(received, made[1], tmp_path):
        assert "\n" not in str(error)


@pytest.mark.parametrize("how", ["others", "a number", "no tensors", "deep memory", "text"])
def test_progress_that_lies_is_not_resumed(how, received, made):
    run = Run.open(received)
    with pytest.raises(Stop):
        run.learn(made[1][2], progress=StopAt(3))
    (state,) = received.glob("steps/*/.inprogress/state.safetensors")
    state.write_bytes(SAFETENSORS[how])
    with pytest.raises(ReidError) as caught:
        run.learn(made[1][2])
    assert "\n" not in str(caught.value)
    assert run.learn(made[1][2], restart=True).learned == ("third",)


HUGE = "9" * 400
WRONG_SCORES = {
    "more than is finite": '"mAP": 1e999',
    "less than is finite": '"mAP": -1e999',
    "text for a number": '"mAP": "nan"',
    "text for infinity": '"rank1": "inf"',
    "text for a score": '"mAP": "50"',
    "400 digits": f'"mAP": {HUGE}',
    "over 100 %": '"mAP": 100.5',
    "below 0 %": '"rank1": -0.5',
    "truth": '"mAP": true',
    "nothing": '"rank1": null',
    "400 digits of another score": f'"mINP": {HUGE}',
    "a list for another score": '"rank5": []',
    "400 digits of queries": f'"queries": {HUGE}',
    "no queries": '"queries": 0',
    "half a query": '"queries": 1.5',
}


def refusals(folder, sites, tmp_path):
    """What readers of a received run's scores say, a traceback not among it."""
    yield from use(folder, sites, tmp_path)
    try:
        show_scores(Run.open(folder))
    except ReidError as error:
        yield error


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", WRONG_SCORES)
def test_scores_that_none_can_be(how, received, made, tmp_path):
    file, key = received / "scores.json", WRONG_SCORES[how].split(":")[0]
    text = file.read_text()
    changed_text = re.sub(rf"{key}: [0-9.]+", lambda _: WRONG_SCORES[how], text)
    assert changed_text != text
    file.write_text(changed_text)
    errors = list(refusals(received, made[1], tmp_path))
    assert errors
    assert all("can't be read" in str(error) and "\n" not in str(error) for error in errors)
    assert all(len(str(error)) < 600 for error in errors)


ROWS = {
    "a row too few": lambda rows: rows.pop(),
    "a row too many": lambda rows: rows.append({**rows[-1], "step": len(rows)}),
    "no row": lambda rows: rows.clear(),
    "rows in another order": lambda rows: rows.reverse(),
    "a row of another number": lambda rows: rows[1].update(step=7),
    "a row of 400 digits": lambda rows: rows[1].update(step=int(HUGE)),
    "half a row": lambda rows: rows[1].update(step=1.5),
    "another domain learned": lambda rows: rows[1].update(learned=["x"]),
    "letters for domains": lambda rows: rows[1].update(learned="first"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ROWS)
def test_rows_that_are_not_those_of_the_steps(how, received, made, tmp_path):
    file = received / "scores.json"
    stored = json.loads(file.read_text())
    ROWS[how](stored["rows"])
    file.write_text(json.dumps(stored))
    errors = list(refusals(received, made[1], tmp_path))
    assert all("\n" not in str(error) and len(str(error)) < 600 for error in errors)


WRONG_PRECISIONS = {
    "none": [],
    "not a number": [0.5, np.nan],
    "infinite": [0.5, np.inf],
    "huge": [0.5, 1e300],
    "below 0": [0.5, -0.1],
    "over 1": [0.5, 1.1],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", WRONG_PRECISIONS)
def test_average_precisions_that_none_can_be(how, received, made, tmp_path):
    (received / "queries.npz").write_bytes(npz(**{"1/first": np.array(WRONG_PRECISIONS[how])}))
    errors = list(refusals(received, made[1], tmp_path))
    assert errors
    assert all("can't be read" in str(error) and "\n" not in str(error) for error in errors)


WRONG_CARDS = {
    "bytes of 400 digits": (("bytes", "memory"), int(HUGE)),
    "bytes beyond 64 bits": (("bytes", "kept"), 2**63),
    "a dimension of 400 digits": (("dim",), int(HUGE)),
    "crops of 400 digits": (("domains", 0, "crops", "train"), int(HUGE)),
    "seconds of 400 digits": (("train", "seconds"), int(HUGE)),
    "crops a second of 400 digits": (("train", "crops_per_second"), int(HUGE)),
    "an index of 400 digits": (("index",), int(HUGE)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", WRONG_CARDS)
def test_cards_with_numbers_that_none_can_be(how, received, made, tmp_path):
    file = received / "steps" / "02-second" / "card.json"
    card = json.loads(file.read_text())
    changed(card, *WRONG_CARDS[how])
    file.write_text(json.dumps(card))
    resealed(received)
    errors = list(refusals(received, made[1], tmp_path))
    assert errors
    assert all("does not describe a step" in str(error) and "\n" not in str(error) for error in errors)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", ["1e999", "-1e999", HUGE, "1e300"])
def test_losses_that_none_can_be(value, received, made, tmp_path):
    (received / "steps" / "02-second" / "log.jsonl").write_text(f'{{"losses": {{"triplet": {value}}}}}\n')
    resealed(received)
    errors = list(refusals(received, made[1], tmp_path))
    assert all("\n" not in str(error) and len(str(error)) < 600 for error in errors)
    assert bool(errors) == (value != "1e300")
