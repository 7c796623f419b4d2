"""The routes and who may use them: the one table that the gate, the OpenAPI document and the tests read."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.service.refusal import RefusedError

OPEN = "open"
ANY = "any"
"""Any valid token, whatever its scopes."""


@dataclass(frozen=True)
class Route:
    """One method of one path.

    Attributes:
        name: its name in metrics and logs.
        access: ``open``, ``any``, or the required scope.
        work: whether it takes a place in the queue, because it reads bodies, embeds or searches.
    """

    name: str
    access: str
    work: bool = False


ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/"): Route("page", OPEN),
    ("GET", "/page.css"): Route("page", OPEN),
    ("GET", "/page.js"): Route("page", OPEN),
    ("GET", "/openapi.json"): Route("openapi", OPEN),
    ("GET", "/livez"): Route("livez", OPEN),
    ("GET", "/readyz"): Route("readyz", OPEN),
    ("GET", "/metrics"): Route("metrics", ANY),
    ("GET", "/v1/stats"): Route("stats", ANY),
    ("POST", "/v1/query"): Route("query", "query", work=True),
    ("POST", "/v1/entries"): Route("enrol", "enrol", work=True),
    ("DELETE", "/v1/entries"): Route("erase", "erase", work=True),
    ("POST", "/v1/forget"): Route("forget", "erase", work=True),
    ("GET", "/v1/upgrade"): Route("upgrade state", "admin"),
    ("POST", "/v1/upgrade"): Route("upgrade", "admin"),
    ("GET", "/v1/audit"): Route("audit", "admin", work=True),
}

OTHER = Route("other", OPEN)
"""What a request that no route answers is called in metrics and logs."""

METHODS = frozenset({method for method, _ in ROUTES} | {"HEAD"})
"""Methods that some path accepts; others are called like :data:`OTHER` in logs, as they may be of any length."""


def find_route(method: str, path: str, spelled: bytes) -> tuple[Route, str]:
    """Find what a request asks for: the only decision about it, which the router is then held to.

    Only a path written exactly as in ``ROUTES`` has a route. An encoded, doubled or trailing character that one parser
    ignores and another does not could otherwise pass for an open route here and reach a guarded one there.

    Args:
        method: as it came; ``HEAD`` is answered as ``GET`` is, without the body.
        path: decoded.
        spelled: as it came.

    Returns:
        The route, and its path as it stands in the table.

    Raises:
        RefusedError: there is no such path, or it does not accept this method.
    """
    allowed = [known for known, place in ROUTES if place == path]
    allowed += ["HEAD"] if "GET" in allowed else []
    if not allowed or spelled != path.encode("utf-8", "surrogatepass"):
        raise RefusedError("not_found", "there is nothing at this path; see /openapi.json")
    if method not in allowed:
        raise RefusedError("method_not_allowed", f"this path accepts {', '.join(allowed)}", allow=allowed)
    asked = "GET" if method == "HEAD" else method
    return next((route, place) for (known, place), route in ROUTES.items() if (known, place) == (asked, path))
