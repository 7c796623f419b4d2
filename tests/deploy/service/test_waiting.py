"""A service whose clock moved: it goes on answering, says that ageing waits, and goes on once a person confirmed it."""

import json
import time

import pytest
from asking import code, multipart
from clocks import SetClock

from deploy import Gallery
from deploy.service.audit_log import AuditLog


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("deploy.service.app.ERASE_EVERY", 0.05)
    return SetClock(monkeypatch, "2026-11-10T00:00:00+00:00")


def until(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


@pytest.fixture
def kept(clock, filled):
    with Gallery.open(filled) as gallery:
        gallery.trust_clock(from_now=True)
        gallery.keep(30)
    return filled


@pytest.mark.parametrize("jump", [40, 4000, -40])
def test_it_says_that_ageing_waits_until_a_person_confirms_the_time(serve, kept, clock, jump, caplog):
    client = serve(keep_audit=30)
    assert "ageing_waits" not in client.get("/readyz").json()
    assert 'reid_ageing_waits{store="gallery"} 0.0' in client.get("/metrics").text
    clock.move(jump)
    until(lambda: client.get("/readyz").json().get("ageing_waits") == ["gallery", "audit"])
    assert client.get("/readyz").status_code == 200, "it answers all the same"
    assert 'reid_ageing_waits{store="gallery"} 1.0' in client.get("/metrics").text
    assert 'reid_ageing_waits{store="audit"} 1.0' in client.get("/metrics").text
    assert client.get("/v1/stats").json()["entries"] == 6
    told = [record.fields for record in caplog.records if record.getMessage() == "ageing waits for a person"]
    assert [fields["store"] for fields in told] == ["gallery", "audit"], "once each"
    assert all("--trust" in fields["reason"] for fields in told)

    answer = client.post("/v1/forget", files=multipart(older_than="1"))
    assert (answer.status_code, code(answer)) == (409, "conflict")
    assert str(kept) not in answer.text
    assert client.post("/v1/forget", files=multipart(older_than="1", dry_run="true")).status_code == 200

    with Gallery.open(kept) as gallery:
        gone = gallery.trust_clock()
        assert gone == (6 if jump > 0 else 0)
    audit_log = AuditLog(kept.with_name("gallery.audit.db"))
    audit_log.trust_clock()
    audit_log.close()
    until(lambda: "ageing_waits" not in client.get("/readyz").json())
    assert client.get("/v1/stats").json()["entries"] == 6 - gone
    assert client.get("/v1/audit", params={"verify": True}).json()["intact"] is True
    assert "ageing_waits" in json.dumps(client.get("/openapi.json").json())
