"""Tokens: shown once, kept as hashes, refused when they are anything but right."""

import hashlib
import json
import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.service.tokens import SCOPES, Tokens, default_file
from domains.errors import ArtefactError, UsageError


@pytest.fixture
def file(tmp_path):
    return Tokens(tmp_path / "deep" / "tokens.json")


def test_a_token_is_found_and_its_secret_is_nowhere(file):
    text = file.make(["enrol", "query"], "desk", 30)
    found = file.find(text)
    assert (found.name, found.scopes) == ("desk", ("query", "enrol"))
    assert found.hash == hashlib.sha256(text.encode()).hexdigest()
    assert text.split("_", 2)[2] not in file.file.read_text()
    assert stat.S_IMODE(file.file.stat().st_mode) == 0o600
    assert len(text.split("_", 2)[2]) >= 43  # 256 bits


def test_two_tokens_never_share_a_secret(file):
    assert len({file.make([]).split("_", 2)[2] for _ in range(20)}) == 20


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    file = Tokens(tmp_path_factory.mktemp("one") / "tokens.json")
    return file, file.make(SCOPES)


@given(change=st.tuples(st.integers(0, 55), st.characters(codec="utf-8")))
@settings(max_examples=200, deadline=None)
def test_no_other_text_is_a_token(one, change):
    file, text = one
    place, letter = change
    forged = text[:place] + letter + text[place + 1 :]
    assert (file.find(forged) is None) == (forged != text)
    for other in ("", " ", text[:-1], text + "A", text.upper(), "reid_", "é" * 57, text + "\n"):
        assert file.find(other) is None


def test_an_expired_token_is_none(file):
    text = file.make(["query"], days=1)
    content = json.loads(file.file.read_text())
    content["tokens"][0]["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    file.file.write_text(json.dumps(content))
    assert file.find(text) is None
    assert file.all()[0].expired()


def test_revoking_is_seen_by_another_reader_at_once(file):
    text, kept = file.make(["query"], "a"), file.make(["query"], "b")
    reader = Tokens(file.file)
    assert reader.find(text)
    assert file.revoke("a").name == "a"
    assert reader.find(text) is None
    assert reader.find(kept)
    file.revoke(file.all()[0].id)
    with pytest.raises(UsageError, match="there is no token 'b'"):
        file.revoke("b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["root"],), "unknown scope 'root'"),
        ((["query"], "x\ny"), "name has 1 to 64"),
        ((["query"], ""), "name has"),
        ((["query"], "x", 0), "1 to 3650"),
        ((["query"], "x", 99999), "1 to 3650"),
    ],
)
def test_wrong_use(file, arguments, message):
    with pytest.raises(UsageError, match=message):
        file.make(*arguments)
    assert not file.file.exists()


def test_a_name_is_given_once(file):
    file.make([], "desk")
    with pytest.raises(UsageError, match="already"):
        file.make([], "desk")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"kind": "tokens"}',
        b'{"kind": "tokens", "schema": 2, "tokens": []}',
        b'{"kind": "tokens", "schema": 1, "tokens": [1]}',
        b'{"kind": "tokens", "schema": 1, "tokens": [{"id": "a"}]}',
        b'{"kind": "tokens", "schema": 1, "tokens": [{"id": "a", "name": 3, "scopes": [], "created": "", "expires": '
        b'null, "hash": ""}]}',
        b'{"kind": "tokens", "schema": 1, "tokens": [{"id": "a", "name": "a", "scopes": ["root"], "created": "", '
        b'"expires": null, "hash": ""}]}',
        b'{"kind": "tokens", "schema": 1, "tokens": [{"id": "a", "name": "a", "scopes": [], "created": "", "expires": '
        b'"soon", "hash": "' + b"0" * 64 + b'"}]}',
    ],
)
def test_a_broken_file_lets_nobody_in(file, content):
    text = file.make(SCOPES)
    file.file.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"tokens\.json") as caught:
        Tokens(file.file).find(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_others_can_write_is_refused(file):
    text = file.make(SCOPES)
    file.file.chmod(0o662)
    with pytest.raises(ArtefactError, match="chmod 600"):
        Tokens(file.file).find(text)


def _make(arguments):
    path, number = arguments
    Tokens(path).make(["query"], f"n{number}")


def test_tokens_that_are_made_at_once_are_all_kept(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_make, [(tmp_path / "t.json", number) for number in range(12)])
    assert {token.name for token in Tokens(tmp_path / "t.json").all()} == {f"n{number}" for number in range(12)}


def test_where_tokens_are_kept_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("REID_TOKENS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_file() == tmp_path / "lifelong-reid" / "tokens.json"
    monkeypatch.setenv("REID_TOKENS", os.fspath(tmp_path / "x"))
    assert default_file() == tmp_path / "x"
