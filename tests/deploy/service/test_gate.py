"""What a request passes before it is read: tokens and scopes, hosts, rates, sizes, slow clients, a full house."""

import asyncio
import json
import threading
import time

import httpx
import pytest
from asking import ask, code, multipart

from deploy.service.access import ANY, OPEN, ROUTES
from deploy.service.logs import JsonFormatter
from deploy.service.settings import Settings
from domains.errors import UsageError


def ask_many(app, requests, **options):
    """Send (method, path, headers, content) one after the other in a loop of our own, which is faster than a client
    with threads.
    """

    async def run():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", **options) as client:
            return [
                await client.request(method, path, headers=headers, content=content)
                for method, path, headers, content in requests
            ]

    return asyncio.run(run())


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_every_route_with_every_scope(serve, tokens):
    app = serve(tokens=tokens["file"].file, rate=0).app
    scopes = {
        "query": {"query"},
        "enrol": {"enrol"},
        "erase": {"erase"},
        "admin": {"admin"},
        "all": {"query", "enrol", "erase", "admin"},
        "none": set(),
    }
    cases = [(method, path, name) for method, path in ROUTES for name in scopes]
    answers = ask_many(app, [(method, path, bearer(tokens[name]), None) for method, path, name in cases])
    for (method, path, name), answer in zip(cases, answers, strict=True):
        access = ROUTES[method, path].access
        allowed = access in (OPEN, ANY) or access in scopes[name]
        assert (answer.status_code != 403) == allowed or "upgrades over HTTP are off" in answer.text, (
            method,
            path,
            name,
            answer.status_code,
        )
        assert answer.status_code != 401
        if not allowed:
            assert code(answer) == "forbidden"
            assert access in answer.json()["error"]["message"]


def test_every_guarded_route_without_a_valid_token(serve, tokens):
    app = serve(tokens=tokens["file"].file, rate=0).app
    revoked = tokens["file"].make(["query", "enrol", "erase", "admin"], "gone")
    tokens["file"].revoke("gone")
    wrong = [
        {},
        bearer(""),
        bearer("x"),
        {"authorization": f"Basic {tokens['all']}"},
        {"authorization": tokens["all"]},
        bearer(revoked),
        bearer(tokens["all"] + "A"),
        {"authorization": b"Bearer \xff\xfe"},
        bearer(tokens["all"].upper()),
    ]
    cases = [(method, path, headers, None) for method, path in ROUTES for headers in wrong]
    for (method, path, headers, _), answer in zip(cases, ask_many(app, cases), strict=True):
        if ROUTES[method, path].access == OPEN:
            assert answer.status_code == 200, path
        else:
            assert (answer.status_code, code(answer)) == (401, "unauthorized"), (method, path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_the_table_of_access_is_the_application(serve):
    app = serve().app
    there = {
        (method, route.path)
        for route in app.routes
        if hasattr(route, "methods")
        for method in route.methods
        if method != "HEAD"
    }
    nested = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    assert nested <= set(ROUTES)
    assert {path for _, path in there | nested} >= {path for _, path in ROUTES} - {"/openapi.json"}


def test_a_broken_file_of_tokens_lets_nobody_in(serve, tokens):
    client = serve(token=tokens["all"], tokens=tokens["file"].file)
    assert client.get("/v1/stats").status_code == 200
    tokens["file"].file.write_text("{}")
    answer = client.get("/v1/stats")
    assert (answer.status_code, code(answer)) == (503, "not_ready")
    tokens["file"].file.unlink()
    assert client.get("/v1/stats").status_code == 401


def test_without_tokens_only_this_machine_and_no_other_site(serve):
    app = serve(hosts=("Box.Local",)).app
    cases = [
        ({"host": "127.0.0.1:8080"}, True),
        ({"host": "localhost"}, True),
        ({"host": "[::1]:8080"}, True),
        ({"host": "BOX.local:1"}, True),
        ({"host": "evil.example"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": ""}, False),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, True),
        ({"host": "localhost:8080", "origin": "http://evil.example"}, False),
        ({"host": "localhost:8080", "origin": "null"}, False),
        ({"host": "localhost:8080", "origin": "http://localhost:9999"}, False),
        ({"host": "localhost", "sec-fetch-site": "cross-site"}, False),
        ({"host": "localhost", "sec-fetch-site": "same-origin"}, True),
    ]
    answers = ask_many(app, [("GET", "/v1/stats", headers, None) for headers, _ in cases])
    for (headers, allowed), answer in zip(cases, answers, strict=True):
        assert (answer.status_code == 200) == allowed, headers
        assert allowed or code(answer) == "foreign_host"


def test_a_caller_over_the_rate_waits_and_others_do_not(serve, tokens):
    app = serve(tokens=tokens["file"].file, rate=2).app
    answers = ask_many(
        app,
        [("GET", "/v1/stats", bearer(tokens["query"]), None)] * 8
        + [("GET", "/v1/stats", bearer(tokens["admin"]), None)],
    )
    statuses = [answer.status_code for answer in answers]
    assert statuses[:4] == [200] * 4
    assert 429 in statuses[4:8]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert code(refused) == "rate_limited"
    assert int(refused.headers["retry-after"]) >= 1
    assert statuses[8] == 200


def test_each_image_counts(serve, images):
    client = serve(rate=4)
    many = client.post("/v1/query", files=[("images", ("a", image)) for image in images[:16]], data={"reason": "x"})
    assert many.status_code == 200
    assert code(client.get("/v1/stats")) == "rate_limited"


def test_a_body_is_refused_by_what_it_says_and_by_what_it_is(serve, image):
    client = serve(max_body_bytes=10_000, max_image_bytes=9_000)
    assert ask(client, image).status_code == 200
    said = client.post("/v1/query", content=b"x" * 10_001, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (said.status_code, code(said)) == (413, "too_large")

    def stream():
        for _ in range(30):
            yield b"x" * 1000

    streamed = client.post("/v1/query", content=stream(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert (streamed.status_code, code(streamed)) == (413, "too_large")
    small = client.post("/v1/upgrade", content=b" " * 70_000, headers={"content-type": "application/json"})
    assert (small.status_code, code(small)) == (413, "too_large")
    assert client.app.state.gate._buffered == 0
    assert client.app.state.gate._working == 0


def test_one_image_too_large_or_too_many(serve, image):
    client = serve(max_image_bytes=len(image) - 1)
    assert (ask(client, image).status_code, code(ask(client, image))) == (413, "too_large")
    many = serve(max_images=2, audit=None).post("/v1/query", files=[("images", ("a", image))] * 3, data={"reason": "x"})
    assert (many.status_code, code(many)) == (413, "too_large")


def test_memory_for_bodies_is_shared(serve):
    client = serve(max_body_bytes=10_000, max_image_bytes=9_000, max_buffered_bytes=10_000)
    gate = client.app.state.gate
    gate.hold(9_000)
    answer = client.post("/v1/query", content=b"x" * 2_000, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (answer.status_code, code(answer)) == (503, "busy")
    gate.hold(-9_000)
    assert gate._buffered == 0


LONG = {
    "a method": ("A" * 60_000, "/livez", {}, 413, "too_large"),
    "a path": ("GET", "/" + "a" * 60_000, {}, 413, "too_large"),
    "an open path and its query": ("GET", "/livez?" + "a" * 60_000, {}, 413, "too_large"),
    "a header": ("GET", "/livez", {"x": "a" * 60_000}, 413, "too_large"),
    "a header to a path that needs a token": ("GET", "/v1/stats", {"x": "a" * 60_000}, 413, "too_large"),
    "a bit of everything": ("A" * 9000, "/" + "a" * 9000 + "?" + "a" * 9000, {"x": "a" * 9000}, 413, "too_large"),
    "a method that is let in": ("A" * 15_000, "/livez", {}, 405, "method_not_allowed"),
    "a path that is let in": ("GET", "/" + "a" * 15_000, {}, 404, "not_found"),
    "a host that is let in": ("GET", "/v1/stats", {"host": "a" * 15_000}, 401, "unauthorized"),
    "a token that is let in": ("GET", "/v1/stats", {"authorization": "Bearer " + "a" * 15_000}, 401, "unauthorized"),
    "an odd method": ("GE\x1bT", "/livez", {}, 405, "method_not_allowed"),
    "a method of another page": ("LOCK", "/livez", {}, 405, "method_not_allowed"),
}


@pytest.mark.parametrize("case", LONG)
def test_nothing_without_end_is_taken_or_logged(serve, tokens, caplog, case):
    method, path, headers, status, name = LONG[case]
    app = serve(tokens=tokens["file"].file, rate=0).app
    with caplog.at_level("INFO", logger="deploy.service"):
        caplog.clear()
        (answer,) = ask_many(app, [(method, path, headers, None)])
    assert (answer.status_code, code(answer)) == (status, name)
    assert len(answer.content) < 1000
    lines = [JsonFormatter().format(record) for record in caplog.records if record.getMessage() == "request"]
    assert len(lines) == 1
    assert len(lines[0]) < 400
    assert json.loads(lines[0])["method"] == ("GET" if method == "GET" else "other")


def slow_body(pause):
    parts = iter([b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'])

    async def receive():
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": next(parts, b"x"), "more_body": True}

    return receive


def test_a_client_that_goes_away_is_no_mistake_of_ours(listen, caplog):
    import socket

    port = int(listen().rsplit(":", 1)[1])
    with caplog.at_level("INFO", logger="deploy.service"):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(
                    b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                )
                client.sendall(b"Content-Length: 5000\r\n\r\n--x\r\n")
                time.sleep(0.2)
        deadline = time.monotonic() + 10
        while (
            sum(record.fields.get("route") == "query" for record in caplog.records if hasattr(record, "fields")) < 3
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
    assert not [record for record in caplog.records if record.name == "deploy.service" and record.levelname == "ERROR"]
    assert {
        record.fields["code"] for record in caplog.records if getattr(record, "fields", {}).get("route") == "query"
    } == {"slow_client"}
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200


def test_a_slow_client_is_told_and_its_place_is_given_away(serve):
    client = serve(body_timeout=0.3)
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/query",
        "raw_path": b"/v1/query",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"multipart/form-data; boundary=x"),
            (b"transfer-encoding", b"chunked"),
        ],
        "server": ("localhost", 80),
        "client": ("localhost", 1),
    }
    start = time.monotonic()
    asyncio.run(client.app(scope, slow_body(0.05), send))
    assert sent[0]["status"] == 408
    assert b"slow_client" in sent[1]["body"]
    assert (b"connection", b"close") in sent[0]["headers"]
    assert time.monotonic() - start < 10
    assert client.app.state.gate._working == 0


def held(client):
    """Make searches wait; returns the event that lets them go."""
    go, engine = threading.Event(), client.app.state.backend
    search = engine.gallery.search

    def slow(*arguments, **options):
        go.wait(20)
        return search(*arguments, **options)

    engine.gallery.search = slow
    return go


def test_a_full_house_sends_away_instead_of_queueing(serve, image):
    client = serve(queue=3)
    go, answers = held(client), []
    threads = [threading.Thread(target=lambda: answers.append(ask(client, image))) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 15
    while client.app.state.gate._working < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    start = time.monotonic()
    refused = ask(client, image)
    assert (refused.status_code, code(refused)) == (503, "busy")
    assert refused.headers["retry-after"] == "1"
    assert time.monotonic() - start < 5
    assert client.get("/livez").status_code == 200
    go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert ask(client, image).status_code == 200
    assert 'reid_rejections_total{reason="busy"} 1.0' in client.get("/metrics").text


def test_an_answer_that_takes_too_long_is_given_up(serve, image):
    client = serve(timeout=0.5)
    go = held(client)
    answer = ask(client, image)
    assert (answer.status_code, code(answer)) == (503, "timeout")
    assert answer.headers["retry-after"]
    go.set()


def test_a_busy_gallery_does_not_stop_the_probes(serve):
    from deploy.service.backend import STORE_THREADS

    client, done = serve(), threading.Event()
    for _ in range(STORE_THREADS):
        client.app.state.backend._store.submit(done.wait, 20)
    try:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").json()["entries"] == 6  # the last known
        assert "reid_gallery_entries 6.0" in client.get("/metrics").text
    finally:
        done.set()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_image_bytes": 0},
        {"max_pixels": 10**9},
        {"queue": 0},
        {"queue": True},
        {"rate": -1},
        {"timeout": 0},
        {"keep_audit": 0},
        {"max_buffered_bytes": 5},
        {"rate": float("nan")},
    ],
)
def test_impossible_settings(settings):
    with pytest.raises(UsageError, match=next(iter(settings)).replace("_", "-")):
        Settings(**settings)


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        Settings(pictures=(tmp_path / "x",))
    with pytest.raises(UsageError, match="is not a folder"):
        Settings(bundles=tmp_path / "x")


def test_forms_for_the_erasing_scope_alone(serve, tokens):
    client = serve(token=tokens["erase"], tokens=tokens["file"].file)
    assert client.post("/v1/forget", files=multipart(camera="c1", dry_run="true")).json()["entries"] == 3
    assert client.post("/v1/query").status_code == 403
