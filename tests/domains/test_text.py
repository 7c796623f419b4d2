"""What must not reach a terminal, a log line or a page raw, as one table; other rooms' tests use it."""

import json
import unicodedata

import pytest

from domains.errors import UsageError
from domains.text import is_unseen, json_text, logger, shown

HOSTILE = {
    "NUL": "\x00",
    "bell": "\x07",
    "backspace": "\x08",
    "tab": "\t",
    "line feed": "\n",
    "carriage return": "\r",
    "escape": "\x1b",
    "delete": "\x7f",
    "C1 next line": "\x85",
    "C1 control sequence": "\x9b",
    "C1 operating system command": "\x9d",
    "soft hyphen": "\xad",
    "combining grapheme joiner": "\u034f",
    "Arabic letter mark": "\u061c",
    "Hangul filler": "\u3164",
    "zero-width space": "\u200b",
    "zero-width joiner": "\u200d",
    "left-to-right mark": "\u200e",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "bidirectional embedding": "\u202a",
    "bidirectional override": "\u202e",
    "word joiner": "\u2060",
    "bidirectional isolate": "\u2067",
    "end of an isolate": "\u2069",
    "empty Braille cell": "\u2800",
    "byte order mark": "\ufeff",
    "variation selector": "\ufe0f",
    "half a pair": "\udc80",
    "interlinear annotation": "\ufff9",
    "musical control": "\U0001d173",
    "tag": "\U000e0041",
    "variation selector 17": "\U000e0100",
}
HARMLESS = [
    "",
    "gate",
    "yard [north] :smile:",
    "Küche",
    "カメラ 1",
    "كاميرا",
    "é",
    "e\u0301",
    "🚪",
    "a\u3000b",
    "C:\\x1b",
    "½ · …",
]


@pytest.mark.parametrize("letter", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_character_is_shown_as_an_escape(letter):
    text = shown(f"a{letter}b")
    assert letter not in text
    assert text.isascii()
    assert text == f"a{letter.encode('unicode_escape').decode()}b"
    assert shown(text) == text


def test_own_lines_stay_lines():
    assert shown("a\nb\r\nc\x1b", lines=True) == "a\nb\\r\nc\\x1b"
    assert shown("a\nb") == "a\\nb"


@pytest.mark.parametrize("text", HARMLESS)
def test_all_that_can_be_seen_stays_as_it_is(text):
    assert shown(text) == text


def test_no_control_or_format_character_of_unicode_is_left_out():
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert all(is_unseen(chr(code)) for code in range(0x110000) if unicodedata.category(chr(code)) in kinds)


@pytest.mark.parametrize("letter", HOSTILE.values(), ids=HOSTILE)
def test_json_reads_back_the_same_without_the_character_itself(letter):
    value = {f"k{letter}": [f"a{letter}b", 1.5, None, "Küche"]}
    for indent in (None, 1):
        text = json_text(value, indent=indent)
        assert letter not in text or letter == "\n"
        assert json.loads(text) == value
        assert "Küche" in text
    assert "\n" not in json_text(value)


def test_an_error_tells_its_own_lines_from_those_that_it_quotes():
    error = UsageError("a\nreid: all is well", "  b: 1\n2")
    assert str(error) == "a\nreid: all is well\n  b: 1\n2"
    assert [shown(line) for line in error.lines] == ["a\\nreid: all is well", "  b: 1\\n2"]


@pytest.mark.parametrize("letter", [letter for name, letter in HOSTILE.items() if name != "line feed"])
def test_whoever_handles_a_log_line_is_given_none_of_them(letter, caplog):
    logger("deploy").warning("%s is lost", f"gate{letter}")
    assert caplog.messages[-1] == f"{shown(f'gate{letter}')} is lost"
    assert caplog.records[-1].getMessage() == caplog.messages[-1]


def test_compact_json_holds_no_space_of_its_own():
    assert json_text({"a b": [1, ", : "]}, compact=True) == '{"a b":[1,", : "]}'
    assert json_text({"a": "\x9b"}, compact=True) == '{"a":"\\u009b"}'
