"""A new model while queries are answered: all of them, and each from one space."""

import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from asking import ask, code
from tiny import SPACE

NEW = "cd" * 32


def finished(client):
    for _ in range(600):
        state = client.get("/v1/upgrade").json()
        if state["state"] in ("done", "failed"):
            return state
        time.sleep(0.02)
    raise AssertionError(state)


def test_an_upgrade_under_load_answers_every_query(serve, bundles, images):
    client = serve(bundles=bundles, rate=0)
    expect = client.post("/v1/upgrade", json={"bundle": "new", "dry_run": True})
    assert expect.status_code == 200
    assert "cosine" in " ".join(expect.json()["expect"])
    stop, seen, wrong = threading.Event(), set(), []

    def load(person):
        while not stop.is_set():
            answer = ask(client, images[person], top=1)
            if answer.status_code != 200 or answer.json()["results"][0]["matches"][0]["id"] != person + 1:
                wrong.append(answer.text)
            else:
                seen.add(answer.json()["feature_space"])

    threads = [threading.Thread(target=load, args=(person,)) for person in range(3)]
    for thread in threads:
        thread.start()
    began = client.post("/v1/upgrade", json={"bundle": "new"})
    assert (began.status_code, began.json()["bundle"]) == (202, "new")
    state = finished(client)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert state["state"] == "done", state
    assert (state["done"], state["total"]) == (6, 6)
    assert wrong == []
    assert NEW in seen
    assert client.get("/readyz").json()["feature_space"] == NEW
    actions = [record["action"] for record in client.get("/v1/audit", params={"limit": 1000}).json()["records"]]
    assert [action for action in actions if action.startswith("upgrade")] == ["upgrade asked", "upgrade"]
    enrolled = client.post("/v1/entries", files=[("images", ("a", images[9]))], data={"camera": "c"})
    assert enrolled.status_code == 201


@pytest.mark.parametrize(("name", "words"), [("damaged", "changed"), ("alone", "no transport")])
def test_what_can_not_be_loaded_leaves_the_old_one_serving(serve, bundles, images, name, words):
    client = serve(bundles=bundles)
    assert client.post("/v1/upgrade", json={"bundle": name}).status_code == 202
    state = finished(client)
    assert state["state"] == "failed"
    assert words in state["message"]
    answer = ask(client, images[0], top=1)
    assert answer.json()["feature_space"] == SPACE
    assert client.get("/readyz").status_code == 200
    assert len(client.app.state.backend._lanes) == 1
    assert client.post("/v1/upgrade", json={"bundle": "new"}).status_code == 202  # and another may be tried
    assert finished(client)["state"] == "done"


def test_one_at_a_time(serve, bundles, monkeypatch):
    client = serve(bundles=bundles)
    go = threading.Event()
    monkeypatch.setattr("deploy.service.upgrading.Encoder.load", lambda *_, **__: go.wait(10))
    assert client.post("/v1/upgrade", json={"bundle": "new"}).status_code == 202
    answer = client.post("/v1/upgrade", json={"bundle": "new"})
    assert (answer.status_code, code(answer)) == (409, "conflict")
    go.set()
    assert finished(client)["state"] == "failed"


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        ({"bundle": "nowhere"}, 404, "not_found"),
        ({"bundle": "link"}, 404, "not_found"),
        ({"bundle": "../new"}, 422, "invalid"),
        ({"bundle": ".."}, 422, "invalid"),
        ({"bundle": "/etc"}, 422, "invalid"),
        ({"bundle": ""}, 422, "invalid"),
        ({"bundle": "new\n"}, 422, "invalid"),
        ({}, 422, "invalid"),
        ([], 422, "invalid"),
        ({"bundle": "new", "via": ["nowhere"]}, 404, "not_found"),
        ({"bundle": "new", "x": 1}, 422, "invalid"),
        ({"bundle": 3}, 422, "invalid"),
    ],
)
def test_only_bundles_of_the_folder_by_name(serve, bundles, body, status, name):
    answer = serve(bundles=bundles).post("/v1/upgrade", json=body)
    assert (answer.status_code, code(answer)) == (status, name)


def test_off_unless_a_folder_is_named(serve):
    answer = serve().post("/v1/upgrade", json={"bundle": "new"})
    assert (answer.status_code, code(answer)) == (403, "forbidden")
    assert code(serve().post("/v1/upgrade", content=b"{", headers={"content-type": "application/json"})) == "invalid"
    assert (
        code(serve().post("/v1/upgrade", content=b"{}", headers={"content-type": "text/plain"})) == "unsupported_body"
    )


def test_a_stop_in_the_middle_leaves_the_old_state(serve, bundles, filled, monkeypatch):
    from deploy import Gallery

    client = serve(bundles=bundles)
    monkeypatch.setattr(
        "deploy.service.upgrading.Gallery.upgrade",
        lambda self, bundle, via, *, tick: ([tick(1), time.sleep(0.05)] and tick(1)) or self,
    )
    client.app.state.backend.closing.set()
    client.post("/v1/upgrade", json={"bundle": "new"})
    state = finished(client)
    assert state["state"] == "failed"
    assert "continues when it is requested again" in state["message"]
    with Gallery.open(filled) as gallery:
        assert gallery.feature_space == SPACE


WRONG = {
    "no bundle": ({"bundle": "empty"}, 422, "invalid", "not a bundle"),
    "no bundle on the way": ({"bundle": "new", "via": ["empty"]}, 422, "invalid", "not a bundle"),
    "a manifest that is none": ({"bundle": "scrap"}, 422, "invalid", "bundle.json"),
    "the bundle in use": ({"bundle": "present"}, 409, "conflict", "already in the feature space"),
    "the bundle in use, by a way": ({"bundle": "present", "via": ["new"]}, 409, "conflict", "already in"),
}
WRONG_TO_PREVIEW = {
    **WRONG,
    "a damaged one": ({"bundle": "damaged"}, 422, "invalid", "changed"),
    "a damaged one on the way": ({"bundle": "new", "via": ["damaged"]}, 422, "invalid", "changed"),
    "one that nothing leads to": ({"bundle": "alone"}, 409, "conflict", "no transport"),
}


@pytest.fixture
def odd(bundles, bundle):
    """The folder of bundles, with one that is in use and some that are none."""
    shutil.copytree(bundle.folder, bundles / "present")
    (bundles / "empty").mkdir()
    (bundles / "scrap").mkdir()
    (bundles / "scrap" / "bundle.json").write_text("[]")
    return bundles


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_upgrade_is_refused_with_the_reason_and_not_begun(serve, odd, case):
    body, status, name, words = WRONG[case]
    client = serve(bundles=odd)
    answer = client.post("/v1/upgrade", json=body)
    assert (answer.status_code, code(answer)) == (status, name)
    assert "retry-after" not in answer.headers
    assert words in answer.text
    assert str(odd) not in answer.text
    assert client.get("/v1/upgrade").json()["state"] == "none"
    assert client.get("/v1/audit").json()["records"] == []


@pytest.mark.parametrize("case", WRONG_TO_PREVIEW)
def test_a_preview_of_a_wrong_upgrade_says_why(serve, odd, case):
    body, status, name, words = WRONG_TO_PREVIEW[case]
    answer = serve(bundles=odd).post("/v1/upgrade", json={**body, "dry_run": True})
    assert (answer.status_code, code(answer)) == (status, name)
    assert "retry-after" not in answer.headers
    assert words in answer.text
    assert str(odd) not in answer.text


def test_a_failed_upgrade_names_no_folder_of_this_machine(serve, bundles):
    client = serve(bundles=bundles)
    client.post("/v1/upgrade", json={"bundle": "damaged"})
    assert str(bundles) not in finished(client)["message"]


def test_a_damaged_gallery_is_no_mistake_of_the_request(serve, bundles, filled):
    client = serve(bundles=bundles)
    with closing(sqlite3.connect(filled / "gallery.db", isolation_level=None)) as db:
        db.execute("UPDATE gallery SET dim = 'x'")
    answer = client.post("/v1/upgrade", json={"bundle": "new", "dry_run": True})
    assert (answer.status_code, code(answer)) == (503, "gallery")
