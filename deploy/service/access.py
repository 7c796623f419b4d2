"""Which routes there are and who may use them: the one table that the gate, the OpenAPI document and the tests read."""

from __future__ import annotations

from dataclasses import dataclass

OPEN = "open"
ANY = "any"
"""Any valid token, whatever its scopes."""


@dataclass(frozen=True)
class Route:
    """One method of one path.

    Attributes:
        name: in metrics and logs.
        access: ``open``, ``any``, or the scope that is needed.
        work: whether it takes a place in the queue: what reads bodies, embeds or searches.
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
