"""What a page, an answer and a log line show of names that hold control characters; cases as in ``domains.text``."""

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from asking import ask, multipart
from tiny import DIM, SPACE

import deploy.service
from deploy import Gallery
from deploy.embeddings import Embeddings
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


ODD = "a\x9b\u202e\u200b\u2066b"
QUOTED = {
    "a field": lambda client, image: client.post("/v1/query", files=[*multipart(**{ODD: "1"}), image]),
    "a field twice": lambda client, image: client.post("/v1/query", files=[*multipart(**{ODD: "1"}) * 2, image]),
    "a field of images": lambda client, image: client.post("/v1/query", files=[(ODD, image[1])]),
    "a key": lambda client, _: client.post("/v1/upgrade", json={"bundle": "x", ODD: 1}),
    "a key twice": lambda client, _: client.post(
        "/v1/upgrade", content=f'{{"{ODD}": 1, "{ODD}": 1}}'.encode(), headers={"content-type": "application/json"}
    ),
    "a bundle": lambda client, _: client.post("/v1/upgrade", json={"bundle": ODD}),
    "a chain": lambda client, _: client.get("/v1/audit", params={"chain": ODD}),
    "a host": lambda client, _: client.get("/v1/stats", headers={"host": b"a\x9b\xad"}),
}


def plain(answer):
    """Neither the body nor what it says holds a character that does harm."""
    text = answer.content.decode()
    assert not any(map(is_unseen, text)), ascii(text)
    return text


@pytest.mark.parametrize("case", QUOTED)
def test_an_error_quotes_no_character_that_does_harm(serve, image, bundles, case):
    answer = QUOTED[case](serve(bundles=bundles), ("images", ("a.png", image)))
    assert answer.status_code in (421, 422)
    assert not any(map(is_unseen, json.loads(plain(answer))["error"]["message"]))


def test_names_read_back_as_they_are_though_no_byte_of_them_does_harm(serve, filled, image):
    with Gallery.open(filled) as gallery:
        vectors = Embeddings(np.ones((1, DIM), np.float32) / np.sqrt(DIM), SPACE)
        gallery.add(vectors, camera=ODD, source=[ODD + "1"], label=ODD)
    client = serve()
    answer = ask(client, image, camera=ODD)
    (match,) = json.loads(plain(answer))["results"][0]["matches"]
    assert (match["camera"], match["label"], match["source"]) == (ODD, ODD, ODD + "1")
    assert json.loads(plain(client.get("/v1/stats")))["cameras"][ODD] == 1
    assert json.loads(plain(client.post("/v1/forget", files=multipart(label=ODD))))["forgotten"] == 1


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
