"""One table decides what a path is: no other spelling of it reaches a route, whatever the token."""

import asyncio
import http.client
import socket
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from deploy.service.access import OPEN, ROUTES
from deploy.service.tokens import SCOPES

SPELLINGS = {
    "newline": lambda path: path + "%0a",
    "carriage return": lambda path: path + "%0d",
    "both": lambda path: path + "%0d%0a",
    "newline before": lambda path: "/%0a" + path[1:],
    "null": lambda path: path + "%00",
    "line separator": lambda path: path + "%e2%80%a8",
    "tab": lambda path: path + "%09",
    "space": lambda path: path + "%20",
    "plus": lambda path: path + "+",
    "dot": lambda path: path + ".",
    "double slash": lambda path: "/" + path,
    "inner double slash": lambda path: path.replace("/v1/", "/v1//"),
    "trailing slash": lambda path: path + "/",
    "dot segment": lambda path: "/." + path,
    "dot dot segment": lambda path: "/x/.." + path,
    "trailing dot segment": lambda path: path + "/.",
    "trailing dot dot": lambda path: path + "/x/..",
    "upper case": lambda path: path.upper(),
    "one letter encoded": lambda path: path[:-1] + f"%{ord(path[-1]):02x}",
    "slash encoded": lambda path: "/" + path[1:].replace("/", "%2f"),
    "encoded twice": lambda path: path[:-1] + f"%25{ord(path[-1]):02x}",
    "overlong slash": lambda path: "%c0%af" + path[1:],
    "parameter": lambda path: path + ";x=1",
    "empty parameter": lambda path: path + ";",
    "fragment encoded": lambda path: path + "%23",
    "question mark encoded": lambda path: path + "%3f",
    "backslash": lambda path: path.replace("/", "%5c"),
    "full width letter": lambda path: path[:-1] + "%ef%bd%99",
    "absolute form": lambda path: "http://127.0.0.1" + path,
    "foreign absolute form": lambda path: "http://elsewhere" + path,
    "no slash": lambda path: path[1:] or "x",
    "broken escape": lambda path: path + "%zz",
    "suffix": lambda path: path + ".json",
}
OVERRIDES = ("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url")


def ask_as_written(app, requests):
    """Send (method, target, headers) to the application as a server would hand it on; returns each status."""

    async def one(method, target, headers):
        raw, _, query = target.encode().partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(raw).decode("utf-8", "replace"),
            "raw_path": raw,
            "query_string": query,
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1", **headers}.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "app": app,
        }
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"]

    async def every():
        return [await one(*request) for request in requests]

    return asyncio.run(every())


def bearer(token):
    return {"authorization": f"Bearer {token}"} if token else {}


def test_the_table_is_what_the_router_knows(serve):
    app = serve().app
    schema = app.openapi()["paths"]
    shown = {(method.upper(), path) for path, operations in schema.items() for method in operations}
    hidden = {("GET", path) for path in ("/", "/page.css", "/page.js", "/openapi.json")}
    assert shown | hidden == set(ROUTES)
    answered = ask_as_written(app, [(method, path, {}) for method, path in ROUTES])
    assert not set(answered) & {404, 405}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_other_spelling_reaches_a_route(serve, tokens, spelling):
    app = serve(tokens=tokens["file"].file, rate=0).app
    requests = []
    for method, path in ROUTES:
        target = SPELLINGS[spelling](path)
        if target == path or (spelling == "upper case" and path == "/"):
            continue
        requests += [(method, target, bearer(tokens.get(name))) for name in (None, "none", *SCOPES, "all")]
    assert len(requests) >= 5 * 6
    for request, status in zip(requests, ask_as_written(app, requests), strict=True):
        assert status in (400, 404), (request, status)


@pytest.mark.parametrize("name", OVERRIDES)
def test_no_header_makes_another_route_of_a_request(serve, tokens, name):
    app = serve(tokens=tokens["file"].file, rate=0).app
    requests = [("GET", "/livez", {name: value}) for method, path in ROUTES for value in (method, path)]
    assert set(ask_as_written(app, requests)) == {200}
    guarded = [(method, path, {name: "GET"}) for (method, path), route in ROUTES.items() if route.access != OPEN]
    guarded += [(method, path, {name: "/livez"}) for (method, path), route in ROUTES.items() if route.access != OPEN]
    assert set(ask_as_written(app, guarded)) == {401}


def test_methods_that_a_path_does_not_take_are_refused_before_a_token_is_looked_at(serve, tokens):
    app = serve(tokens=tokens["file"].file, rate=0).app
    paths = {path for _, path in ROUTES}
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "POST ", "QUERY", "")
    requests = [(method, path, {}) for path in paths for method in methods if (method, path) not in ROUTES]
    requests += [(method, path, {}) for path in paths for method in ("HEAD", "head") if ("GET", path) not in ROUTES]
    assert set(ask_as_written(app, requests)) == {405}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_over_a_socket_too(listen, tokens, spelling):
    address = urlsplit(listen(tokens=tokens["file"].file, rate=0))
    for (method, path), route in ROUTES.items():
        target = SPELLINGS[spelling](path)
        if target == path or route.access == OPEN:
            continue
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status in (400, 404), (method, target, answer.status)


def test_head_is_answered_as_get_is_but_without_a_body(listen, tokens):
    """Over a socket, where a body that does not belong there would be read as the next answer."""
    address = urlsplit(listen(tokens=tokens["file"].file, rate=0))
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)

    def ask(method, path, token):
        connection.request(method, path, headers=bearer(token))
        answer = connection.getresponse()
        return answer.status, {name.lower() for name in answer.headers}, answer.read()

    for method, path in ROUTES:
        for token in (None, tokens["none"], tokens["all"]):
            status, headers, body = ask("HEAD", path, token)
            assert body == b"", path
            if method == "GET":
                assert (status, headers) == ask("GET", path, token)[:2], path
            elif ("GET", path) not in ROUTES:
                assert status == 405, path
    connection.close()


def test_what_a_path_accepts_is_told(serve):
    client = serve()
    for method, path in ROUTES:
        allowed = client.request("BREW", path).headers["allow"].split(", ")
        assert method in allowed
        assert ("HEAD" in allowed) == ("GET" in allowed)
