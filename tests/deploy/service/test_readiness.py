"""Whether a service answers, and what it does when nobody asks."""

import json
import time

import pytest
from asking import ask, code

from deploy import Encoder, Gallery
from deploy.service.backend import Backend
from deploy.service.logs import JsonFormatter
from domains.errors import GalleryError


def test_readiness_and_life(serve, bundle):
    client = serve()
    assert client.get("/livez").json() == {"alive": True}
    assert client.get("/readyz").json() == {
        "ready": True,
        "state": "ready",
        "provider": "cpu",
        "feature_space": bundle.feature_space,
        "generation": 1,
        "entries": 6,
    }
    state = client.app.state
    state.backend.warm = False
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["state"]) == (503, "warming")
    assert int(answer.headers["retry-after"]) > 0
    assert "retry-after" not in client.get("/livez").headers
    assert code(client.post("/v1/query")) == "not_ready"
    assert client.get("/livez").status_code == 200


def test_a_gallery_that_another_process_moved_is_not_answered_from(serve, filled, bundles, image):
    client = serve()
    with Gallery.open(filled) as gallery:
        gallery.upgrade(bundles / "new")
    assert (client.get("/readyz").status_code, client.get("/readyz").json()["state"]) == (503, "mismatch")
    answer = ask(client, image)
    assert (answer.status_code, code(answer)) == (503, "not_ready")
    assert answer.headers["retry-after"]
    with Gallery.open(filled) as gallery:
        gallery.go_back()
    assert client.get("/readyz").status_code == 200
    assert ask(client, image).status_code == 200


def test_an_encoder_of_another_model_is_refused(filled, make_bundle, tmp_path):
    from deploy.service.app import create_app
    from deploy.service.settings import Settings

    other = Encoder.load(make_bundle("other", changes={"feature_space": "cd" * 32}).folder, threads=1)
    with Gallery.open(filled) as gallery, pytest.raises(GalleryError, match="different model"):
        create_app(gallery, other, Settings(audit=tmp_path / "a.db"))


def test_rules_run_though_nobody_asks_anything(serve, filled, monkeypatch):
    monkeypatch.setattr("deploy.service.app.ERASE_EVERY", 0.05)
    with Gallery.open(filled) as gallery:
        gallery.keep(36500)
    client = serve()
    engine = client.app.state.backend
    engine.gallery._store.change("UPDATE entry SET utc = -3e15 WHERE id = 2")
    end = time.monotonic() + 20
    while 2 in engine.gallery.ids() and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.gallery.ids() == [1, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("person 3 at /secret/place"), None), (GalleryError("entry 3 is damaged"), "entry 3 is damaged")],
    ids=["a mistake of ours", "an error of ours"],
)
def test_what_goes_wrong_unasked_is_logged_by_type_and_place_alone(serve, monkeypatch, caplog, error, told):
    monkeypatch.setattr("deploy.service.app.WARM_AGAIN", 0.05)
    monkeypatch.setattr("deploy.service.app.ERASE_EVERY", 0.05)

    async def fails(self):
        raise error

    def fail(*_):
        raise error

    monkeypatch.setattr("deploy.service.backend.Backend.warm_up", fails)
    serve(wait=False)
    monkeypatch.setattr("deploy.gallery.gallery.Gallery.retain", fail)
    monkeypatch.setattr("deploy.service.audit_log.AuditLog.erase", fail)
    events = {
        "the service can't get ready; it tries again",
        "expired entries could not be erased",
        "the audit log could not be kept in order",
    }
    end, found = time.monotonic() + 20, {}
    while set(found) != events and time.monotonic() < end:
        time.sleep(0.05)
        found = {record.getMessage(): record for record in list(caplog.records) if record.getMessage() in events}
    assert set(found) == events
    for record in found.values():
        line = json.loads(JsonFormatter().format(record))
        assert (line["exception"], line.get("reason")) == (type(error).__name__, told)
        assert line["at"]
        assert "secret" not in json.dumps(line)


def test_a_service_that_could_not_get_ready_tries_again(serve, monkeypatch):
    monkeypatch.setattr("deploy.service.app.WARM_AGAIN", 0.05)
    real, calls = Backend.warm_up, []

    async def fails_first(self):
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("the device is busy")
        await real(self)

    monkeypatch.setattr(Backend, "warm_up", fails_first)
    client = serve(wait=False)
    end = time.monotonic() + 20
    while client.get("/readyz").status_code != 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert (client.get("/readyz").status_code, len(calls)) == (200, 3)
