"""Whatever is wrong with a field of a request is the client's to mend: 422 with one line, on every route, and neither a
failure of the service nor something to try again.
"""

import json

import pytest
from asking import code, multipart

TEXTS = {
    "empty": "",
    "blank": "  ",
    "control": "a\x01b",
    "newline": "a\nb",
    "too long": "x" * 5000,
    "only a zero": "\0",
}
HARMFUL = {
    "C1": "a\x9b2J",
    "next line": "a\x85b",
    "read backwards": "a\u202eb",
    "isolated": "a\u2066b",
    "a mark of direction": "a\u200fb",
    "line separator": "a\u2028b",
    "only harmful": "\u202e",
}
KEPT = {**TEXTS, **HARMFUL}
TIMES = {
    **TEXTS,
    "words": "yesterday",
    "no zone": "2026-11-01T08:00:00",
    "only a day": "2026-11-01",
    "no such day": "2026-02-30T00:00:00Z",
    "no such hour": "2026-02-03T25:00:00Z",
    "no such zone": "2026-02-03T05:00:00+99:00",
    "a year too far": "10000-01-01T00:00:00Z",
    "a number": "1730000000",
    "long": "2026-11-01T08:00:00." + "0" * 60 + "Z",
    "odd digits": "２０２６-11-01T08:00:00Z",
    "two": "2026-11-01T08:00:00Z 2026-11-01T08:00:00Z",
    "minus": "-2026-11-01T08:00:00Z",
}
FLAGS = {"empty": "", "yes": "yes", "capital": "True", "one": "1", "blank": " true"}
NUMBERS = {"empty": "", "words": "many", "infinite": "inf", "none": "nan", "large": "9" * 40, "expo": "1e400"}
WHOLE = {**NUMBERS, "half": "1.5", "negative": "-1", "hex": "0x1"}

FIELDS = {
    "/v1/query": {
        "reason": KEPT,
        "top": {**WHOLE, "zero": "0", "over": "101"},
        "camera": TEXTS,
        "after": TIMES,
        "before": TIMES,
        "label": TEXTS,
        "thumbnails": FLAGS,
        "nonsense": {"unknown": "1"},
    },
    "/v1/entries": {"camera": KEPT, "source": KEPT, "time": TIMES, "label": KEPT, "nonsense": {"unknown": "1"}},
    "/v1/forget": {
        "label": TEXTS,
        "camera": TEXTS,
        "source": TEXTS,
        "before": TIMES,
        "older_than": {**WHOLE, "over": "36501"},
        "score": {**NUMBERS, "over": "1.01", "under": "-1.01"},
        "dry_run": FLAGS,
        "nonsense": {"unknown": "1"},
    },
}
GOOD = {"/v1/query": {"reason": "test"}, "/v1/entries": {"camera": "c1"}, "/v1/forget": {"label": "person 1"}}
IMAGES = {"/v1/query": "images", "/v1/entries": "images", "/v1/forget": "like"}

CASES = [
    (path, field, name, value)
    for path, fields in FIELDS.items()
    for field, values in fields.items()
    for name, value in values.items()
]


@pytest.fixture
def client(serve):
    return serve(rate=0)


def refused(answer):
    assert answer.status_code == 422, answer.text
    assert code(answer) == "invalid"
    assert "retry-after" not in answer.headers


def test_every_form_field_of_every_route(client, image):
    entries = client.get("/v1/stats").json()["entries"]
    wrong = []
    for path, field, name, value in CASES:
        for images in (
            ([(IMAGES[path], ("a.png", image))], []) if path == "/v1/forget" else ([(IMAGES[path], ("a.png", image))],)
        ):
            fields = {**GOOD[path], field: value}
            answer = client.post(path, files=[*multipart(**fields), *images])
            if (answer.status_code, code(answer) if answer.status_code >= 400 else None) != (422, "invalid"):
                wrong.append((path, field, name, bool(images), answer.status_code, answer.text[:200]))
    assert wrong == []
    assert client.get("/v1/stats").json()["entries"] == entries


@pytest.mark.parametrize("path", FIELDS)
def test_times_that_exclude_each_other(client, image, path):
    if path == "/v1/query":
        both = {"after": "2026-11-02T00:00:00Z", "before": "2026-11-01T00:00:00Z"}
        refused(client.post(path, files=[*multipart(reason="test", **both), ("images", ("a.png", image))]))
    refused(
        client.post(path, files=[*multipart(**GOOD[path]), *multipart(**GOOD[path]), (IMAGES[path], ("a.png", image))])
    )


@pytest.mark.parametrize(
    ("path", "field"), [(path, field) for path, fields in FIELDS.items() for field in fields if field != "nonsense"]
)
@pytest.mark.parametrize(
    "charset", ["utf-8", "raw_unicode_escape", "utf-16-le", "hex", "no-such-charset", "idna", "undefined"]
)
def test_text_that_is_no_text_in_any_charset(client, image, path, field, charset):
    fields = {**GOOD[path], field: None}
    body = b""
    for name, value in fields.items():
        content = b"a\\ud800b\xff" if value is None else value.encode()
        body += b'--x\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
    head = f'--x\r\ncontent-disposition: form-data; name="{IMAGES[path]}"; filename="a.png"\r\n\r\n'
    body += head.encode() + image + b"\r\n--x--\r\n"
    answer = client.post(
        path, content=body, headers={"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    )
    if answer.status_code != 422:  # some charsets make a text of it, which is then as good as any
        assert answer.status_code < 300, answer.text
    else:
        refused(answer)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "ids=",
        "ids=0",
        "ids=-1",
        "ids=1.5",
        "ids=one",
        "ids=inf",
        "ids=" + "9" * 30,
        "ids=9223372036854775808",
        "ids=1&ids=x",
        "ids=%00",
        "ids=%ff",
        "ids=%ed%a0%80",
        "&".join(["ids=1"] * 1001),
    ],
)
def test_ids_to_erase(client, query):
    refused(client.request("DELETE", f"/v1/entries?{query}"))


@pytest.mark.parametrize(
    "query",
    [
        "chain=both",
        "chain=",
        "after=-1",
        "after=x",
        "after=9223372036854775808",
        "after=" + "9" * 30,
        "after=1.5",
        "limit=0",
        "limit=1001",
        "limit=",
        "limit=inf",
        "verify=maybe",
        "verify=",
        "verify=%ff",
    ],
)
def test_what_of_the_audit(client, query):
    refused(client.get(f"/v1/audit?{query}"))


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        7,
        "new",
        {"bundle": 7},
        {"bundle": ""},
        {"bundle": "../new"},
        {"bundle": "a/b"},
        {"bundle": "new\n"},
        {"bundle": "new\0"},
        {"bundle": "\ud800"},
        {"bundle": "x" * 5000},
        {"bundle": ["new"]},
        {"bundle": "new", "via": "alone"},
        {"bundle": "new", "via": ["alone"] * 17},
        {"bundle": "new", "via": [None]},
        {"bundle": "new", "dry_run": "perhaps"},
        {"bundle": "new", "dry_run": 7},
        {"bundle": "new", "other": 1},
        {"bundle": "new", "\ud800": 1},
    ],
)
def test_upgrades(serve, bundles, body):
    client = serve(rate=0, bundles=bundles)
    refused(client.post("/v1/upgrade", content=json.dumps(body), headers={"content-type": "application/json"}))


@pytest.mark.parametrize("text", ['{"bundle": "x", "bundle": "new"}', '{"bundle": "new", "via": [], "via": []}'])
def test_a_key_that_is_given_twice(serve, bundles, text):
    client = serve(rate=0, bundles=bundles)
    answer = client.post("/v1/upgrade", content=text, headers={"content-type": "application/json"})
    refused(answer)
    assert "given twice" in answer.text


GOOD_NAMES = (
    "gate [north]",
    "Küche",
    "カメラ",
    "🚪",
    "بوابة",
    "שער",
    "\u0915\u094d\u200d\u0937",
    "\u2602\ufe0f",
    "a\u00a0b",
)


def test_names_in_any_script_are_enrolled(client, images):
    for number, name in enumerate(GOOD_NAMES):
        fields = multipart(camera=name, source=name, label=name)
        answer = client.post("/v1/entries", files=[("images", ("a.png", images[number])), *fields])
        assert answer.status_code == 201, (name, answer.text)
    assert set(GOOD_NAMES) <= set(client.get("/v1/stats").json()["cameras"])


@pytest.mark.parametrize("body", ["", "{", '{"bundle": NaN}', "[" * 100_000, "\ufeff{}", '{"bundle": "new"', "\xff"])
def test_upgrades_that_are_no_json(serve, bundles, body):
    client = serve(rate=0, bundles=bundles)
    answer = client.post(
        "/v1/upgrade", content=body.encode("latin-1", "replace")[:60_000], headers={"content-type": "application/json"}
    )
    refused(answer)
