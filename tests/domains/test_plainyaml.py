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


def test_a_large_file_is_not_even_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: " + "x" * 300_000)
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        load_file(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="can't read"):
        load_file(tmp_path / "y.yaml")
