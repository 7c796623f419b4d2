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
from modes import pretend_owners, readable, umask

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


@pytest.mark.parametrize(
    ("made", "lasts", "valid"),
    [(0, 1, True), (0.5, 2, True), (30, 40, False), (20000, 20001, False), (-2, 1, True), (-2, -1, False)],
)
def test_a_token_with_a_last_day_is_none_by_a_clock_before_it_was_made(file, made, lasts, valid):
    text = file.make(["query"], "desk", 1)
    content = json.loads(file.file.read_text())
    for name, days in (("created", made), ("expires", lasts)):
        content["tokens"][0][name] = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    file.file.write_text(json.dumps(content))
    assert (file.find(text) is not None) is valid
    content["tokens"][0]["expires"] = None
    file.file.write_text(json.dumps(content))
    assert file.find(text) is not None


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
        ((["query"], "\ud800"), "name has 1 to 64"),
        ((["query"], "a" * 65), "name has 1 to 64"),
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


ODD = {
    "made in the year 1": {"created": "0001-01-01T00:00:00+00:00"},
    "made before the year 1": {"created": "0001-01-01T00:00:00+23:59"},
    "made before 1970": {"created": "1969-12-31T23:59:59+00:00"},
    "made without a zone": {"created": "2020-01-01T00:00:00"},
    "made without a zone and for ever": {"created": "2020-01-01T00:00:00", "expires": None},
    "made some time": {"created": "x", "expires": None},
    "made on a number": {"created": 1, "expires": None},
    "expires without a zone": {"expires": "2999-01-01T00:00:00"},
    "expires without a zone, made later": {"created": "2999-01-01T00:00:00+00:00", "expires": "2999-01-01T00:00:00"},
    "expires in no year": {"expires": "10000-01-01T00:00:00+00:00"},
    "expires on a number": {"expires": 1},
    "a name that is no text": {"name": "\ud800"},
    "a name that moves the cursor": {"name": "a\x1b[2J"},
    "a name of two lines": {"name": "a\nb"},
    "a name read backwards": {"name": "a\u202eb"},
    "no name": {"name": ""},
    "a name without end": {"name": "a" * 65},
    "an odd id": {"id": "\x1b[2J"},
    "an id of other letters": {"id": "0123456Z"},
    "a hash and a line end": {"hash": "0" * 64 + "\n"},
    "scopes as text": {"scopes": "query"},
    "scopes in a list": {"scopes": [["query"]]},
    "no list of scopes": {"scopes": {"query": 1}},
    "something else": {"other": 1},
}


@pytest.mark.parametrize("case", ODD)
def test_a_token_that_was_not_made_by_us_lets_nobody_in(file, case):
    text = file.make(["query"], "desk", 3)
    content = json.loads(file.file.read_text())
    content["tokens"][0].update(ODD[case])
    file.file.write_text(json.dumps(content))
    written = file.file.read_bytes()
    for use in (Tokens(file.file).all, lambda: Tokens(file.file).find(text), lambda: file.make(["query"], "other")):
        with pytest.raises(ArtefactError, match=r"tokens\.json is not a file of tokens") as caught:
            use()
        assert str(caught.value).isprintable()
    assert file.file.read_bytes() == written


@pytest.mark.parametrize("change", [{"tokens": {}}, {"tokens": None}, {"schema": True}, {"schema": 1.0}], ids=str)
def test_a_file_that_was_not_made_by_us_lets_nobody_in(file, change):
    file.make(["query"], "desk")
    file.file.write_text(json.dumps({**json.loads(file.file.read_text()), **change}))
    with pytest.raises(ArtefactError, match=r"tokens\.json"):
        file.all()


@pytest.mark.parametrize("kind", ["id", "name"])
def test_no_two_tokens_share_an_id_or_a_name(file, kind):
    file.make(["query"], "desk")
    content = json.loads(file.file.read_text())
    file.make(["query"], "other")
    second = json.loads(file.file.read_text())["tokens"][1]
    content["tokens"].append({**second, kind: content["tokens"][0][kind]})
    file.file.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match=f"two tokens have the same {kind}"):
        file.all()


def test_the_last_times_that_there_are(file):
    text = file.make(["query"], "desk", 3)
    content = json.loads(file.file.read_text())
    content["tokens"][0].update(created="1970-01-01T00:00:00+00:00", expires="9999-12-31T23:59:59-23:59")
    file.file.write_text(json.dumps(content))
    assert file.find(text)
    content["tokens"][0].update(created="9999-12-31T23:59:59-23:59")
    file.file.write_text(json.dumps(content))
    assert Tokens(file.file).find(text) is None


def test_a_file_that_others_can_write_is_refused(file):
    text = file.make(SCOPES)
    file.file.chmod(0o662)
    with pytest.raises(ArtefactError, match="chmod 600"):
        Tokens(file.file).find(text)


LET_IN = {
    "the file is writable": lambda file, owners: file.chmod(0o666),
    "its group may write it": lambda file, owners: file.chmod(0o660),
    "its folder is writable": lambda file, owners: file.parent.chmod(0o777),
    "the folder's group may write": lambda file, owners: file.parent.chmod(0o770),
    "a folder above is writable": lambda file, owners: file.parent.parent.chmod(0o777),
    "the file is another's": lambda file, owners: owners.update({file: 4242}),
    "its folder is another's": lambda file, owners: owners.update({file.parent: 4242}),
    "a folder above is another's": lambda file, owners: owners.update({file.parent.parent: 4242}),
    "another's file in a sticky folder": lambda file, owners: (file.parent.chmod(0o1777), owners.update({file: 4242})),
}


@pytest.mark.parametrize("open_it", LET_IN.values(), ids=LET_IN)
@pytest.mark.parametrize("known", [True, False])
def test_where_others_could_let_themselves_in_nobody_is(file, monkeypatch, open_it, known):
    owners = pretend_owners(monkeypatch)
    text = file.make(SCOPES)
    reader = Tokens(file.file)
    if known:  # it had been read before it was opened
        assert reader.find(text)
    content = file.file.read_bytes()
    open_it(file.file, owners)
    for use in (lambda: reader.find(text), reader.all, lambda: reader.make(["query"]), lambda: reader.revoke("x")):
        with pytest.raises(
            ArtefactError, match=r"can't be trusted, as others could let themselves in: .*ch(mod|own)"
        ) as told:
            use()
        assert "\n" not in str(told.value)
    assert file.file.read_bytes() == content


def test_no_token_is_made_where_others_could_replace_it(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ArtefactError, match="can't be trusted"):
        Tokens(tmp_path / "open" / "deep" / "tokens.json").make(["query"])
    assert not list((tmp_path / "open").iterdir())


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_the_folders_it_makes_are_its_own(tmp_path, mask):
    with umask(mask):
        file = Tokens(tmp_path / "a" / "b" / "tokens.json")
        assert file.find(file.make(["query"]))
    assert readable(tmp_path / "a") == []


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
