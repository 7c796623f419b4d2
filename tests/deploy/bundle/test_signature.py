"""Signed bundles: who made one is known before anything of it is believed."""

import contextlib
import json
import os
import sys
from functools import partial

import pytest
from modes import pretend_owners

from deploy import Bundle
from deploy.bundle import Golden, revise_bundle, write_bundle
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.signature import (
    ENVIRONMENT,
    SIGNATURE,
    Signature,
    key_id,
    make_key,
    read_signatures,
    sign,
    trusted_keys,
    write_signatures,
)
from domains.artefact import content_id
from domains.errors import ArtefactError, DeviceError, ReidError, UsageError

pytest.importorskip("cryptography", reason="signatures need the package cryptography")
CHANGE = {"thresholds": {"drawn": {"fpr": 0.01, "score": 0.5}}}


@pytest.fixture(autouse=True)
def nobody_is_trusted_yet(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def key(tmp_path):
    make_key(tmp_path / "maker")
    return tmp_path / "maker"


@pytest.fixture
def other(tmp_path):
    make_key(tmp_path / "stranger")
    return tmp_path / "stranger"


@pytest.fixture
def signed(bundle, key):
    return revise_bundle(bundle.folder, {}, key=key)


def public(key):
    return key.with_name(key.name + ".pub")


def test_keys_are_private_and_never_overwritten(tmp_path):
    name = make_key(tmp_path / "k")
    assert os.stat(tmp_path / "k").st_mode & 0o777 == 0o600
    (raw,) = trusted_keys(tmp_path / "k.pub")
    assert key_id(raw) == name
    assert len(name) == 32
    before = (tmp_path / "k").read_bytes()
    for taken in ("k", "k.pub"):
        with pytest.raises(UsageError, match="already exists"):
            make_key(tmp_path / "k")
        assert (tmp_path / "k").read_bytes() == before
        (tmp_path / taken).rename(tmp_path / "aside")
        (tmp_path / "aside").rename(tmp_path / taken)
    (tmp_path / "k.pub").unlink()
    with pytest.raises(UsageError, match="already exists"):
        make_key(tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == before


def test_a_signature_is_what_ed25519_says(signed, key):
    """Naive oracle: the public half in PEM, by itself, verifies the bytes on disk."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    half = load_pem_public_key(public(key).read_bytes())
    (found,) = read_signatures(signed.folder / SIGNATURE)
    half.verify(found.value, b"lifelong-reid bundle manifest\n" + (signed.folder / MANIFEST).read_bytes())
    assert found.key == half.public_bytes_raw()
    assert signed.signers == (key_id(found.key),)


def test_export_signs_as_it_seals(make_bundle, key, tmp_path):
    made = make_bundle()
    golden = made.golden()
    body = {
        name: value
        for name, value in made.manifest.items()
        if name not in ("id", "kind", "schema", "code", "parent", "files")
    }
    again = write_bundle(
        tmp_path / "signed",
        model_onnx=made.model(),
        golden=Golden(golden.crops, golden.embeddings),
        card="#",
        body=body,
        parent=None,
        key=key,
    )
    assert again.signers == Bundle.load(tmp_path / "signed", trusted=public(key)).signers != ()


def test_trusted_keys_decide(signed, make_bundle, key, other, tmp_path, monkeypatch):
    unsigned = make_bundle("unsigned").folder
    assert Bundle.load(signed.folder).signers == signed.signers
    assert Bundle.load(signed.folder, trusted=[public(other), public(key)]).signers == signed.signers
    with pytest.raises(ArtefactError, match="not trusted here"):
        Bundle.load(signed.folder, trusted=public(other))
    with pytest.raises(ArtefactError, match="not signed"):
        Bundle.load(unsigned, trusted=public(key))
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "a.pub").write_bytes(public(key).read_bytes() + public(other).read_bytes())
    for named in (str(public(key)), f"{public(other)}{os.pathsep}{public(key)}", str(folder)):
        monkeypatch.setenv(ENVIRONMENT, named)
        assert Bundle.load(signed.folder).signers == signed.signers
        with pytest.raises(ArtefactError, match="not signed"):
            Bundle.load(unsigned, verify=False)
    monkeypatch.setenv(ENVIRONMENT, str(public(other)))
    with pytest.raises(ArtefactError, match="not trusted here"):
        Bundle.load(signed.folder)


def test_what_is_not_trusted_is_not_parsed(signed, other, monkeypatch):
    import deploy.bundle.bundle

    def parsed(*_):
        pytest.fail("parsed before it was trusted")

    monkeypatch.setattr(deploy.bundle.bundle, "parse_manifest", parsed)
    with pytest.raises(ArtefactError, match="not trusted"):
        Bundle.load(signed.folder, trusted=public(other))
    (signed.folder / SIGNATURE).unlink()
    with pytest.raises(ArtefactError, match="not signed"):
        Bundle.load(signed.folder, trusted=public(other))


def test_every_flipped_byte_of_manifest_or_signature_is_seen(signed, key):
    import numpy as np

    for name in (MANIFEST, SIGNATURE):
        file = signed.folder / name
        data = file.read_bytes()
        for at in np.random.default_rng(0).integers(0, len(data), 30):
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            for trusted in (None, public(key)):
                with pytest.raises(ArtefactError):
                    Bundle.load(signed.folder, trusted=trusted)
        for size in (0, 1, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:size])
            with pytest.raises(ArtefactError):
                Bundle.load(signed.folder)
        file.write_bytes(data)
    Bundle.load(signed.folder, trusted=public(key))


def test_a_forger_who_re_hashes_everything_is_seen(signed, key, other):
    path = signed.folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.pop("id")
    manifest["licences"]["data"] = "anything goes"
    path.write_text(json.dumps({"id": content_id(manifest), **manifest}))
    with pytest.raises(ArtefactError, match="changed after it was signed"):
        Bundle.load(signed.folder)
    forged = sign(path.read_bytes(), other)
    claimed = forged._replace(key=next(iter(trusted_keys(public(key)))))
    (signed.folder / SIGNATURE).write_bytes(write_signatures([claimed]))
    with pytest.raises(ArtefactError, match="changed after it was signed"):
        Bundle.load(signed.folder, trusted=public(key))
    (signed.folder / SIGNATURE).write_bytes(write_signatures([claimed, forged]))
    with pytest.raises(ArtefactError, match="not trusted here"):
        Bundle.load(signed.folder, trusted=public(key))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 90,
        b"lifelong-reid signature 1\n",
        b"lifelong-reid signature 2\n",
        b"a" * 2**17,
        b"lifelong-reid signature 1\nrsa 00 00\n",
        b"lifelong-reid signature 1\n" + (b"ed25519 " + b"0" * 64 + b" " + b"0" * 128 + b"\n") * 9,
        b"lifelong-reid signature 1\n" + (b"ed25519 " + b"0" * 64 + b" " + b"0" * 128 + b"\n"),
    ],
    ids=lambda data: str(data[:30]),
)
def test_hostile_signatures(signed, data):
    (signed.folder / SIGNATURE).write_bytes(data)
    with pytest.raises(ArtefactError) as caught:
        Bundle.load(signed.folder)
    assert "\n" not in str(caught.value)


def test_keys_that_accept_anything_are_worth_nothing(signed):
    """The all-zero key and signature verify for about one manifest in four; none of these points may."""
    from deploy.bundle.signature import _SMALL_ORDER

    assert len(_SMALL_ORDER) == 7
    for point in _SMALL_ORDER:
        for sign_bit in (0, 0x80):
            for value in (b"\0" * 64, b"\1" + b"\0" * 63, point + b"\0" * 32):
                weak = Signature(point[:31] + bytes([point[31] | sign_bit]), value)
                (signed.folder / SIGNATURE).write_bytes(write_signatures([weak]))
                with pytest.raises(ArtefactError, match="changed after it was signed"):
                    Bundle.load(signed.folder)


def test_a_linked_signature_is_refused(signed, tmp_path):
    (signed.folder / SIGNATURE).rename(tmp_path / "sig")
    (signed.folder / SIGNATURE).symlink_to(tmp_path / "sig")
    with pytest.raises(ArtefactError, match="plain file"):
        Bundle.load(signed.folder)


def test_revising_a_signed_bundle_takes_a_key_or_gives_the_signature_up(signed, key, other):
    with pytest.raises(UsageError, match="is signed by key"):
        revise_bundle(signed.folder, CHANGE)
    assert Bundle.load(signed.folder).id == signed.id
    again = revise_bundle(signed.folder, CHANGE, key=key, trusted=public(key))
    assert (again.signers, again.thresholds) == (signed.signers, CHANGE["thresholds"])
    assert len(read_signatures(signed.folder / SIGNATURE)) == 1
    with pytest.raises(ArtefactError, match="not trusted"):
        revise_bundle(signed.folder, {}, key=other, trusted=public(key))
    assert Bundle.load(signed.folder, trusted=public(key)).id == again.id
    assert revise_bundle(signed.folder, CHANGE, unsign=True).signers == ()
    assert not (signed.folder / SIGNATURE).exists()


@pytest.mark.parametrize("resign", [True, False])
def test_a_kill_between_any_two_writes_leaves_a_bundle_that_loads(signed, key, monkeypatch, resign):
    """Every write is made to fail in turn; each time the bundle must load, old or new, and the revision must then
    succeed.
    """
    import deploy.bundle.bundle

    class Killed(BaseException):
        pass

    write, unlink = deploy.bundle.bundle.write_atomic, type(signed.folder).unlink
    for stop in range(4):
        left = [stop]

        def step(do, *arguments, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return do(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(deploy.bundle.bundle, "write_atomic", lambda *a, **k: step(partial(write, **k), *a))
            patch.setattr(type(signed.folder), "unlink", lambda *a: step(unlink, *a))
            with contextlib.suppress(Killed):
                revise_bundle(
                    signed.folder, {"licences": {"data": f"{stop}"}}, **({"key": key} if resign else {"unsign": True})
                )
        found = Bundle.load(signed.folder)
        assert found.manifest["licences"]["data"] in ("not declared", *map(str, range(stop + 1)))
        if resign:
            assert found.signers == signed.signers
    assert found.manifest["licences"]["data"] == "3"


@pytest.mark.parametrize("what", ["missing", "nonsense", "private", "rsa", "empty folder", "nothing"])
def test_keys_that_can_not_be_trusted(tmp_path, key, what, monkeypatch):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    file = tmp_path / "file.pub"
    if what == "nonsense":
        file.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    elif what == "private":
        file = key
    elif what == "rsa":
        half = ec.generate_private_key(ec.SECP256R1()).public_key()
        file.write_bytes(half.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    elif what == "empty folder":
        file = tmp_path / "empty"
        file.mkdir()
    with pytest.raises(UsageError) as caught:
        trusted_keys([] if what == "nothing" else [file])
    assert "\n" not in str(caught.value)
    if what != "nothing":
        monkeypatch.setenv(ENVIRONMENT, str(file))
        with pytest.raises(UsageError):
            trusted_keys()


OPENED = {
    "the file is writable": lambda file, owners: file.chmod(0o666),
    "its folder is writable": lambda file, owners: file.parent.chmod(0o777),
    "a folder above is writable": lambda file, owners: file.parent.parent.chmod(0o777),
    "the file is another's": lambda file, owners: owners.update({file: 4242}),
    "its folder is another's": lambda file, owners: owners.update({file.parent: 4242}),
}


@pytest.mark.parametrize("named", ["file", "folder", "variable", "link"])
@pytest.mark.parametrize("open_it", OPENED.values(), ids=OPENED)
def test_keys_that_others_could_replace_are_not_trusted(tmp_path, key, monkeypatch, open_it, named):
    owners = pretend_owners(monkeypatch)
    file = tmp_path / "outer" / "inner" / "maker.pub"
    file.parent.mkdir(parents=True)
    file.write_bytes(public(key).read_bytes())
    (tmp_path / "link").symlink_to(file)
    paths = {"file": file, "folder": file.parent, "variable": None, "link": tmp_path / "link"}[named]
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert trusted_keys(paths)
    open_it(file, owners)
    with pytest.raises(UsageError, match=r"can't be trusted, as others could .*: .*ch(mod|own)") as told:
        trusted_keys(paths)
    assert "\n" not in str(told.value)


def test_a_key_that_others_could_replace_does_not_sign(key, monkeypatch):
    owners = pretend_owners(monkeypatch)
    owners[key] = 4242
    with pytest.raises(UsageError, match="can't be trusted, as others could have bundles signed with their own"):
        sign(b"x", key)


def test_keys_that_can_not_sign(tmp_path, key):
    with pytest.raises(UsageError, match="not a PEM private key"):
        sign(b"x", public(key))
    with pytest.raises(UsageError, match="missing"):
        sign(b"x", tmp_path / "nowhere")
    key.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        sign(b"x", key)


def test_without_the_package_a_signed_bundle_is_not_waved_through(signed, make_bundle, key, monkeypatch):
    unsigned = make_bundle("unsigned").folder
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(DeviceError, match=r"lifelong-reid\[sign\]"):
        Bundle.load(signed.folder)
    with pytest.raises(ReidError):
        Bundle.load(unsigned, trusted=public(key))
    Bundle.load(unsigned)


def test_a_loader_beside_a_revision_never_sees_a_broken_bundle(signed, key):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        work = pool.submit(
            lambda: [revise_bundle(signed.folder, {"licences": {"data": f"{n}"}}, key=key) for n in range(40)]
        )
        while not work.done():
            assert Bundle.load(signed.folder, verify=False, trusted=public(key)).signers == signed.signers
        work.result()
