"""Settings files of any shape are read or refused in one line, and in no time."""

import time

import pytest

from domains.errors import ConfigError
from domains.plainyaml import load, load_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, {c: 2.5}]", {"a": 1, "b": ["x", {"c": 2.5}]}),
        ("", None),
        ("# only words", None),
        ("- 1", [1]),
        ("true", True),
        ("a: &one {b: 1}\nc: *one", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &one {b: 1}\nc: {<<: *one, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("a: &one {b: 1}\nc: {<<: *one, b: 2}", {"a": {"b": 1}, "c": {"b": 2}}),
        (
            "a: &one {b: 1}\nc: &two {<<: *one, b: 2}\nd: {<<: *two, b: 3}",
            {"a": {"b": 1}, "c": {"b": 2}, "d": {"b": 3}},
        ),
        ("a: {b: 1}\nc: {b: 1}", {"a": {"b": 1}, "c": {"b": 1}}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
        ("=: a", {"=": "a"}),
    ],
)
def test_what_is_read(text, value):
    assert load(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [" * 40, "32 levels"),
        ("[" * 100_000, "32 levels"),
        ("a: &a [*a]", "within its own definition"),
        ("a: &a\n  b: *a", "within"),
        (
            "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12)),
            "more than 10000 values",
        ),
        ("a: " + "9" * 5000, "number of more than 256 digits"),
        ("a: 0x" + "f" * 99, "too large"),
        ("a: 2026-13-45", "month"),
        ("!!python/object/apply:os.system [id]", "constructor"),
        ("a: *b", "undefined alias"),
        ("a: \x00", "special characters"),
        ("a: b: c", "not allowed here"),
        ("- x\n" * 60_000, "more than 10000 values"),
        ("a: 1" + ":1" * 100_000, "number of more than"),
        ("a: 1" + ":1" * 100_000 + ".5", "number of more than"),
        ("a: !!int " + "1" * 3000, "number of more than"),
        ("a: 2026-01-01 00:00:00." + "0" * 9000, "number of more than"),
        ("? " + "9" * 5000 + "\n: x", "number of more than"),
        ("a: !!float x", "could not convert"),
        ("a: !!int ''", "index"),
        ("a: !!timestamp x", "NoneType"),
        ("a: !!bool maybe", "maybe"),
        ("? {a: b}\n: c", "unhashable"),
        ("a: &x 1\nb: {<<: *x}", "mapping"),
        ("--- 1\n--- 2", "single document"),
    ],
)
def test_what_is_refused_and_why(text, reason, tmp_path):
    start = time.monotonic()
    with pytest.raises(ValueError, match=reason) as caught:
        load(text)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml is not valid YAML"):
        load_file(tmp_path / "x.yaml")


TWICE = {
    "the same word": ("lr: 1\nepochs: 2\nlr: 3", "'lr' in line 3"),
    "further in": ("train:\n  lr: 1\n  lr: 1\n", "'lr' in line 3"),
    "in a list": ("- {a: 1, a: 2}", "'a' in line 1"),
    "in a row": ("{a: 1,\n a: 2}", "'a' in line 2"),
    "quoted and plain": ("a: 1\n'a': 2", "'a' in line 2"),
    "two words for true": ("yes: 1\ntrue: 2", "'true' in line 2"),
    "true and 1": ("true: 1\n1: 2", "'1' in line 2"),
    "1 and 1.0": ("1: a\n1.0: b", "'1.0' in line 2"),
    "two forms of a number": ("16: a\n0x10: b", "'0x10' in line 2"),
    "two words for nothing": ("~: a\nnull: b", "'null' in line 2"),
    "two merges": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "'<<' in line 4"),
    "in what is merged": ("a: {<<: {b: 1, b: 2}}", "'b' in line 1"),
    "in what is named twice": ("a: &a {b: 1, b: 2}\nc: *a", "'b' in line 1"),
    "in a set": ("!!set {a, a}", "'a' in line 1"),
    "in a key": ("? {a: 1, a: 2}\n: c", "'a' in line 1"),
    "a long key": ("x" * 90 + ": 1\n" + "x" * 90 + ": 2", "in line 2"),
    "a key of odd letters": ('"a\\e\\u202e": 1\n"a\\e\\u202e": 2', r"'a\\x1b\\u202e' in line 2"),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_key_that_is_given_twice_is_refused_with_its_line(case):
    text, told = TWICE[case]
    with pytest.raises(ValueError, match=f"the key .*{told} is given twice") as caught:
        load(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    "text", ['a: "\\ud800"', '"\\udfff": 1', '- ["x\\udc80y"]', 'a: "\\ud83d\\ude00"', '!!set {"\\ud800"}'], ids=ascii
)
def test_text_that_can_not_be_encoded_is_refused(text):
    with pytest.raises(ValueError, match="half of a surrogate pair") as caught:
        load(text)
    assert str(caught.value).encode()


def test_a_large_file_is_not_even_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: " + "x" * 300_000)
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        load_file(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="can't read"):
        load_file(tmp_path / "y.yaml")
