"""What a page and a log line show of names that hold control characters; the cases are those of ``domains.text``."""

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import deploy.service
from deploy.service.logs import JsonFormatter
from domains.text import is_unseen, shown

PAGE = Path(deploy.service.__file__).parent / "page" / "page.js"
LETTERS = (
    "\x00\x07\t\n\r\x1b\x7f\x85\x9b\xad\u034f\u061c\u200b\u200e\u2028\u202e\u2067\u2800\u3164\ufeff\ufe0f\U000e0041"
)
PLAIN = "gate [north] Küche カメラ 🚪"


@pytest.mark.parametrize("letter", [*LETTERS, "\udc80"], ids=ascii)
def test_a_log_line_is_one_line_without_the_character(letter):
    record = logging.LogRecord("deploy", logging.ERROR, "x.py", 1, "no %s", (f"a{letter}b",), None)
    record.fields = {"reason": f"c{letter}d"}
    line = JsonFormatter().format(record)
    assert not any(map(is_unseen, line))
    read = json.loads(line)
    assert (read["event"], read["reason"]) == (f"no a{letter}b", f"c{letter}d")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_shows_the_same_escapes():
    code = PAGE.read_text("utf-8")
    function = code[code.index("const UNSEEN") : code.index("// The only way")]
    words = json.dumps([f"a{letter}b" for letter in LETTERS] + [PLAIN])
    script = f"{function}\nconsole.log(JSON.stringify({words}.map(shown)));"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60, check=True)
    usual = {"\\t": "\\x09", "\\n": "\\x0a", "\\r": "\\x0d"}
    wanted = [shown(f"a{letter}b") for letter in LETTERS]
    for short, long in usual.items():
        wanted = [text.replace(short, long) for text in wanted]
    assert json.loads(done.stdout) == [*wanted, PLAIN]


def test_text_gets_into_the_page_in_one_place():
    code = PAGE.read_text("utf-8")
    assert code.count("textContent") == 1
    assert "innerHTML" not in code
    for value in re.findall(r"\.(?:title|label) = (.*);", code):
        assert value.startswith("shown(")
