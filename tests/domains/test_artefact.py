"""Sealed files and folders: whole or not at all, under SIGKILL too, and nothing changed goes unseen."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modes import readable, umask

from domains import artefact
from domains.artefact import (
    code_version,
    content_id,
    make_private,
    private_file,
    read_json,
    read_manifest,
    replace,
    sealing,
    sha256_file,
    source_hash,
    write_atomic,
    write_json,
    write_manifest,
)
from domains.errors import ArtefactError

KIND, SCHEMAS = "test", range(1, 3)
REPOSITORY = Path(__file__).resolve().parents[2]


def run_until_killed(code, *arguments):
    """Run code in a process of its own that kills itself with SIGKILL."""
    program = "import os, signal, sys\nfrom pathlib import Path\nfrom domains import artefact\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def seal(folder, **body):
    with sealing(folder) as temporary:
        (temporary / "a.bin").write_bytes(b"aaaa")
        (temporary / "b.bin").write_bytes(b"bb")
        write_manifest(temporary, "m.json", kind=KIND, schema=1, files=["b.bin", "a.bin"], parent=None, body=body)
    return folder


def read(folder, **options):
    return read_manifest(folder, "m.json", kind=KIND, schemas=SCHEMAS, **options)


def rewrite(folder, change):
    """Change a manifest and give it a fitting id, as somebody who knows the format could."""
    file = folder / "m.json"
    manifest = json.loads(file.read_text())
    del manifest["id"]
    change(manifest)
    file.write_text(json.dumps({"id": content_id(manifest), **manifest}))


# ------------------------------------------------------------------------------------------------------------- one file


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path):
    file = tmp_path / "x.bin"
    write_atomic(file, b"one")
    write_atomic(file, b"two")
    assert file.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_error_while_writing_leaves_the_old_file(tmp_path, monkeypatch, moment):
    file = tmp_path / "x.bin"
    write_atomic(file, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("moment", ["os.fsync", "Path.replace"])
def test_killed_before_the_rename_leaves_the_old_file(tmp_path, moment):
    file = tmp_path / "x.bin"
    write_atomic(file, b"old")
    run_until_killed(
        f"{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nartefact.write_atomic(Path(sys.argv[1]), b'new' "
        "* 99999)",
        file,
    )
    assert file.read_bytes() == b"old"
    write_atomic(file, b"next")
    assert file.read_bytes() == b"next"


def test_killed_after_the_rename_has_the_new_file(tmp_path):
    file = tmp_path / "x.bin"
    write_atomic(file, b"old")
    code = (
        "artefact.fsync_folder = lambda *_: os.kill(os.getpid(), "
        "signal.SIGKILL)\nartefact.write_atomic(Path(sys.argv[1]), b'new' * 99999)"
    )
    run_until_killed(code, file)
    assert file.read_bytes() == b"new" * 99999
    assert os.listdir(tmp_path) == ["x.bin"]


def test_data_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: order.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file") or fsync(handle),
    )
    monkeypatch.setattr(Path, "replace", lambda self, target: order.append("rename") or replace(self, target))
    write_atomic(tmp_path / "x", b"1")
    assert order == ["file", "rename", "folder"]


def put(kind, path):
    """Make something at a path that is no plain file."""
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to("/dev/null")


@pytest.mark.parametrize("through", [0, 1, 2], ids=["itself", "a link", "a link to a link"])
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a socket", "a device"])
def test_what_is_no_plain_file_is_never_replaced(tmp_path, monkeypatch, kind, through):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    put(kind, Path("0"))
    for number in range(through):
        Path(str(number + 1)).symlink_to(str(number))
    before = {name: os.lstat(name) for name in os.listdir()}
    with pytest.raises(ArtefactError, match=f"^{through} is {kind} and not a plain file"):
        write_atomic(Path(str(through)), b"1")
    assert {name: os.lstat(name).st_ino for name in os.listdir()} == {name: was.st_ino for name, was in before.items()}


@pytest.mark.parametrize("name", ["nowhere/x.bin", "file/x.bin", "loop/x.bin", "x" * 300])
def test_an_error_names_the_file_that_was_asked_for(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its kind is the system's
        write_atomic(tmp_path / name, b"1")
    assert caught.value.filename == str(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


MASKS = [0o000, 0o002, 0o022, 0o077]


@pytest.mark.parametrize("mask", MASKS, ids=oct)
@pytest.mark.parametrize(
    ("options", "expected"), [({}, lambda mask: 0o600), ({"private": False}, lambda mask: 0o666 & ~mask)]
)
def test_a_new_file_is_private_unless_it_is_to_be_passed_on(tmp_path, mask, options, expected):
    with umask(mask):
        write_atomic(tmp_path / "x", b"1", **options)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == expected(mask)


@pytest.mark.parametrize("mask", MASKS, ids=oct)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o666])
@pytest.mark.parametrize("private", [True, False])
def test_a_file_that_is_written_again_keeps_its_mode_and_is_never_more_open(tmp_path, monkeypatch, mask, mode, private):
    seen, fsync = [], os.fsync
    (tmp_path / "x").touch()
    (tmp_path / "x").chmod(mode)
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_mode) or fsync(handle))
    with umask(mask):
        write_atomic(tmp_path / "x", b"2", private=private)
    assert stat.S_IMODE(seen[0]) == stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


@pytest.mark.parametrize("kind", ["link", "dangling", "special bits"])
def test_only_a_plain_files_permissions_are_taken(tmp_path, kind):
    (tmp_path / "open").touch()
    (tmp_path / "open").chmod(0o666)
    if kind == "special bits":
        (tmp_path / "x").touch()
        (tmp_path / "x").chmod(0o4755)
    else:
        (tmp_path / "x").symlink_to("open" if kind == "link" else "nowhere")
    write_atomic(tmp_path / "x", b"2")
    assert not (tmp_path / "x").is_symlink()
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == (0o644 if kind == "special bits" else 0o600)
    assert (tmp_path / "open").read_bytes() == b""


@pytest.mark.parametrize("mask", MASKS, ids=oct)
def test_an_artefact_is_private_however_its_files_were_written(tmp_path, mask):
    with umask(mask):
        with sealing(tmp_path / "deep" / "step") as temporary:
            assert readable(temporary) == []
            (temporary / "inner").mkdir()
            (temporary / "inner" / "a").write_bytes(b"a")
            (temporary / "link").symlink_to("inner/a")
            os.close(os.open(temporary / "b", os.O_CREAT, 0o777))
        make_private(tmp_path / "one" / "two")
        make_private(tmp_path / "one" / "two")
        with open(tmp_path / "one" / "two" / "log", "a", opener=private_file) as stream:
            stream.write("1")
    assert [text for text in readable(tmp_path / "deep" / "step") if "link" not in text] == []
    assert readable(tmp_path / "one") == []


def test_what_replaces_a_file_takes_its_mode(tmp_path):
    for name, mode in (("old", 0o640), ("new", 0o600), ("newer", 0o600)):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(mode)
    replace(tmp_path / "new", tmp_path / "old")
    replace(tmp_path / "newer", tmp_path / "other")
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600


words = st.text(st.characters(exclude_categories=["Cs"]))
plain = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | words
)
json_values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


@given(json_values)
@settings(max_examples=60, deadline=None)
def test_json_round_trip_and_content_id(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("json") / "v.json"
    write_json(file, value)
    assert read_json(file) == value
    assert content_id(read_json(file)) == content_id(value)


def test_content_id_ignores_order_of_keys_and_nothing_else():
    assert content_id({"a": 1, "b": [1, 2]}) == content_id({"b": [1, 2], "a": 1})
    assert (
        len(
            {
                content_id(value)
                for value in ({"a": 1}, {"a": "1"}, {"a": 1.5}, {"b": 1}, {"a": [1]}, ["a", 1], {"a": None})
            }
        )
        == 7
    )


def test_not_a_number_is_neither_written_nor_read(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "v.json", {"x": value})
    assert not os.listdir(tmp_path)
    for text in ("NaN", '{"x": Infinity}', "[-Infinity]"):
        (tmp_path / "v.json").write_text(text)
        with pytest.raises(ArtefactError, match="not valid JSON"):
            read_json(tmp_path / "v.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b"1" * 10_000, b"{} {}"])
def test_damaged_json(tmp_path, content):
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"v\.json is not valid JSON"):
        read_json(tmp_path / "v.json")


def test_missing_large_or_unreadable_json(tmp_path, monkeypatch):
    with pytest.raises(ArtefactError, match="is missing"):
        read_json(tmp_path / "v.json")
    with pytest.raises(ArtefactError, match="can't read"):
        read_json(tmp_path)
    (tmp_path / "v.json").write_text("[1, 2, 3]")
    monkeypatch.setattr(artefact, "MAX_JSON", 5)
    with pytest.raises(ArtefactError, match="larger than"):
        read_json(tmp_path / "v.json")


def test_sha256_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for path in (tmp_path / "y", tmp_path):
        with pytest.raises(ArtefactError, match="can't read"):
            sha256_file(path)


# -------------------------------------------------------------------------------------------------------------- folders


def test_sealing_is_whole_or_not_there(tmp_path):
    folder = tmp_path / "deep" / "er" / "step"
    seal(folder)
    assert sorted(os.listdir(folder)) == ["a.bin", "b.bin", "m.json"]
    assert os.listdir(folder.parent) == ["step"]
    with pytest.raises(ArtefactError, match="already exists"):
        seal(folder)

    def fail_midway():
        with sealing(tmp_path / "other") as temporary:
            (temporary / "a.bin").write_bytes(b"a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_midway()
    assert sorted(os.listdir(tmp_path)) == ["deep"]


@pytest.mark.parametrize("moment", ["artefact.fsync_tree", "Path.rename"])
def test_killed_while_sealing_leaves_no_artefact_and_can_be_done_again(tmp_path, moment):
    folder = tmp_path / "step"
    code = f"""
        {moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with artefact.sealing(Path(sys.argv[1])) as temporary:
            (temporary / "a.bin").write_bytes(b"x" * 99999)
    """
    run_until_killed(code, folder)
    assert not folder.exists()
    assert all(name.startswith(".step.") and name.endswith(".tmp") for name in os.listdir(tmp_path))
    seal(folder)
    read(folder)


def test_killed_after_sealing_has_all_of_it(tmp_path):
    folder = tmp_path / "step"
    code = """
        def sync(path, sync=artefact.fsync_folder):
            if path == Path(sys.argv[1]).parent:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(path)

        artefact.fsync_folder = sync
        with artefact.sealing(Path(sys.argv[1])) as temporary:
            (temporary / "a.bin").write_bytes(b"aaaa")
            artefact.write_manifest(temporary, "m.json", kind="test", schema=1, files=["a.bin"], parent=None, body={})
    """
    run_until_killed(code, folder)
    assert read(folder)["files"]


def test_every_file_and_new_folder_is_synced(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.add(os.path.realpath(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    with sealing(tmp_path / "new" / "step") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.bin").write_bytes(b"a")
        made = temporary
    wanted = {made, made / "inner", made / "inner" / "a.bin", tmp_path / "new", tmp_path}
    assert {str(path) for path in wanted} <= synced


# ------------------------------------------------------------------------------------------------------------ manifests


def test_manifest_round_trip(tmp_path):
    folder = seal(tmp_path / "step", method="default", scores=[1.5, None])
    manifest = read(folder)
    assert manifest["method"] == "default"
    assert manifest["scores"] == [1.5, None]
    assert manifest["files"] == {"a.bin": sha256_file(folder / "a.bin"), "b.bin": sha256_file(folder / "b.bin")}
    assert manifest["code"] == code_version()
    assert manifest["id"] == content_id({key: value for key, value in manifest.items() if key != "id"})


def test_the_id_depends_on_files_body_and_parent(tmp_path):
    def identity(content, body, parent):
        (tmp_path / "a").write_bytes(content)
        return write_manifest(tmp_path, "m.json", kind=KIND, schema=1, files=["a"], parent=parent, body=body)["id"]

    one = identity(b"1", {"x": 1}, None)
    assert identity(b"1", {"x": 1}, None) == one
    assert (
        len({one, identity(b"2", {"x": 1}, None), identity(b"1", {"x": 2}, None), identity(b"1", {"x": 1}, "p")}) == 4
    )


def test_changed_bytes_are_seen(tmp_path):
    folder = seal(tmp_path / "step")
    data = bytearray((folder / "a.bin").read_bytes())
    data[2] ^= 1
    (folder / "a.bin").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"a\.bin was changed after it was sealed"):
        read(folder)
    assert read(folder, check_files=False)["kind"] == KIND
    (folder / "a.bin").unlink()
    with pytest.raises(ArtefactError, match=r"can't read .*a\.bin"):
        read(folder)


@pytest.mark.parametrize(
    "change", [{"method": "x"}, {"parent": "p"}, {"id": "0"}, {"files": {}}, {"extra": 1}, {"code": "1"}]
)
def test_a_changed_manifest_is_seen(tmp_path, change):
    folder = seal(tmp_path / "step", method="default")
    manifest = json.loads((folder / "m.json").read_text()) | change
    (folder / "m.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="was changed after it was written"):
        read(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "", "inner/a.bin"])
@pytest.mark.parametrize("check_files", [True, False])
def test_files_outside_the_folder_are_refused(tmp_path, name, check_files):
    (tmp_path / "secret").write_bytes(b"s")
    folder = seal(tmp_path / "step")
    rewrite(folder, lambda manifest: manifest.update(files={name: sha256_file(tmp_path / "secret")}))
    with pytest.raises(ArtefactError, match="outside its folder"):
        read(folder, check_files=check_files)


@pytest.mark.parametrize("schema", [0, 3, "1", None, 1.0, True])
def test_other_schemas_are_refused(tmp_path, schema):
    folder = seal(tmp_path / "step")
    rewrite(folder, lambda manifest: manifest.update(schema=schema))
    with pytest.raises(ArtefactError, match=r"has schema .* reads 1 to 2"):
        read(folder)


@pytest.mark.parametrize(
    "text",
    ["[]", "null", '{"kind": "other"}', '{"kind": "test", "schema": 1}', '{"kind": "test", "schema": 1, "files": []}'],
)
def test_what_is_no_manifest(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ArtefactError):
        read(tmp_path)


@pytest.mark.parametrize("value", [r"\ud800", "x" * 10])
def test_odd_values_are_an_artefact_error(tmp_path, value):
    (tmp_path / "m.json").write_text(f'{{"kind": "test", "schema": 1, "files": {{}}, "id": "1", "x": "{value}"}}')
    with pytest.raises(ArtefactError):
        read(tmp_path)


def test_deep_nesting_is_an_artefact_error(tmp_path):
    for depth in (500, 900, 990, 5000, 50_000):
        (tmp_path / "m.json").write_text(
            '{"kind": "test", "schema": 1, "files": {}, "id": "1", "x": ' + "[" * depth + "]" * depth + "}"
        )
        with pytest.raises(ArtefactError):
            read(tmp_path)


def test_a_link_to_other_bytes_is_seen(tmp_path):
    folder = seal(tmp_path / "step")
    (tmp_path / "other").write_bytes(b"other")
    (folder / "a.bin").unlink()
    (folder / "a.bin").symlink_to(tmp_path / "other")
    with pytest.raises(ArtefactError, match="was changed"):
        read(folder)


# ------------------------------------------------------------------------------------------------------------- versions


def test_source_hash_is_of_the_sources(tmp_path, monkeypatch):
    for name, content in (("room/a.py", "1"), ("room/inner/b.py", "2"), ("room/data.json", "3"), ("single.py", "4")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(artefact, "__file__", str(tmp_path / "domains" / "artefact.py"))
    before = source_hash(["room", "single.py"])
    (tmp_path / "room" / "data.json").write_text("changed")
    assert source_hash(["room", "single.py"]) == before
    (tmp_path / "room" / "inner" / "b.py").write_text("changed")
    assert source_hash(["room", "single.py"]) != before
    assert source_hash(["single.py"]) != before


def test_code_version_names_release_and_sources():
    release, _, sources = code_version().partition("+")
    assert release
    assert sources == source_hash(artefact.ROOMS)[:12]
