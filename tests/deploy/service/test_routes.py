"""Every route: what it does, what it refuses, and what it leaves in the audit log."""

import base64
import json
import re

import cv2
import numpy as np
import pytest
from asking import ask, code, encoded, multipart

from deploy import Gallery


def records(client):
    return client.get("/v1/audit", params={"limit": 1000}).json()["records"]


def test_a_query_answers_as_the_gallery_does(serve, images, filled, bundle):
    from deploy import Encoder
    from domains.crops import decode_crop

    client = serve()
    answer = client.post(
        "/v1/query", files=[("images", ("a", image)) for image in images[:3]], data={"reason": "case 1", "top": "4"}
    )
    assert answer.status_code == 200
    body = answer.json()
    with Gallery.open(filled) as gallery:
        expected = gallery.search(
            Encoder.load(bundle.folder, threads=1)([decode_crop(image) for image in images[:3]]), k=4
        )
    assert len(body["results"]) == 3
    for found, matches in zip(body["results"], expected, strict=True):
        for got, wanted in zip(found["matches"], (match.to_dict() for match in matches), strict=True):
            assert got["score"] == pytest.approx(wanted["score"], abs=1e-5)
            assert {**got, "score": 0} == {**wanted, "score": 0}
    assert body["feature_space"] == bundle.feature_space


def test_filters_are_those_of_the_gallery(serve, image):
    client = serve()
    found = ask(client, image, camera="c2", after="2026-11-02T00:00:00Z", before="2026-11-05T00:00:00Z").json()[
        "results"
    ][0]["matches"]
    assert [match["id"] for match in sorted(found, key=lambda match: match["id"])] == [2, 4]
    assert [match["label"] for match in ask(client, image, label="person 3").json()["results"][0]["matches"]] == [
        "person 3"
    ]
    assert ask(client, image, camera="nowhere").json()["results"][0]["matches"] == []


def test_verdicts_where_the_bundle_is_calibrated(serve, image, bundle):
    from deploy.bundle import revise_bundle

    assert ask(serve(), image).json()["results"][0]["verdict"] is None
    revise_bundle(bundle.folder, {"thresholds": {"site": {"score": 0.99, "unsure": 0.5, "fpr": 0.01}}})
    (found,) = ask(serve(), image, top=6).json()["results"]
    assert found["verdict"] == "same person"
    for match in found["matches"]:
        assert match["verdict"] == (
            "same person" if match["score"] >= 0.99 else "unsure" if match["score"] >= 0.5 else "no match"
        )


@pytest.mark.parametrize(
    ("fields", "status", "name", "words"),
    [
        ({"reason": None}, 422, "invalid", "reason"),
        ({"reason": ""}, 422, "invalid", "reason"),
        ({"reason": "  "}, 422, "invalid", "reason"),
        ({"reason": "x" * 201}, 422, "invalid", "reason"),
        ({"reason": "a\nb"}, 422, "invalid", "reason"),
        ({"top": "0"}, 422, "invalid", "top"),
        ({"top": "101"}, 422, "invalid", "top"),
        ({"top": "many"}, 422, "invalid", "top"),
        ({"camera": ""}, 422, "invalid", "camera"),
        ({"colour": "red"}, 422, "invalid", "colour"),
        ({"after": "noon"}, 422, "invalid", "ISO 8601"),
        ({"after": "2026-01-01T00:00:00"}, 422, "invalid", "zone"),
        ({"thumbnails": "maybe"}, 422, "invalid", "thumbnails"),
        ({"after": "2026-02-01T00:00:00Z", "before": "2026-01-01T00:00:00Z"}, 422, "invalid", "swap"),
    ],
)
def test_a_wrong_query_is_told_what_is_wrong(serve, image, fields, status, name, words):
    client = serve()
    data = {key: value for key, value in {"reason": "test", **fields}.items() if value is not None}
    answer = client.post("/v1/query", files=[("images", ("a.png", image))], data=data)
    assert (answer.status_code, code(answer)) == (status, name)
    assert words in answer.json()["error"]["message"]
    assert records(client) == []  # nothing was answered


def test_without_a_reason_where_the_operator_allows_it(serve, image):
    client = serve(require_reason=False)
    assert client.post("/v1/query", files=[("images", ("a.png", image))]).status_code == 200
    assert "reason" not in records(client)[0]


def test_a_field_given_twice_and_an_image_of_another_name(serve, image):
    client = serve()
    both = client.post(
        "/v1/query",
        files=[("images", ("a", image)), ("top", (None, "3")), ("top", (None, "4")), ("reason", (None, "x"))],
    )
    assert "twice" in both.json()["error"]["message"]
    other = client.post("/v1/query", files=[("picture", ("a", image))], data={"reason": "x"})
    assert code(other) == "invalid"
    assert code(client.post("/v1/query", files=[("top", (None, "3"))])) == "invalid"
    assert code(client.post("/v1/query", data={"reason": "x"})) == "unsupported_body"
    assert code(client.post("/v1/query", json={"reason": "x"})) == "unsupported_body"
    broken = client.post(
        "/v1/query", content=b"--x\r\nnothing", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert (broken.status_code, code(broken)) == (422, "invalid")
    assert code(client.post("/v1/query", content=b"x", headers={"content-type": "multipart/form-data"})) == "invalid"


def test_the_audit_of_a_query_names_why_and_how_much_and_nobody(serve, image):
    client = serve()
    number = ask(client, image, label="person 3", camera="c2", top=3).json()["record"]
    (record,) = records(client)
    assert record["number"] == number
    assert record["reason"] == "test"
    assert (record["action"], record["token"], record["images"], record["results"]) == ("query", "local", 1, 1)
    assert record["filters"] == "camera+label"
    assert "person 3" not in json.dumps(record)


def test_enrolled_is_found_and_the_folder_holds_no_image(serve, images, filled):
    client = serve()
    answer = client.post(
        "/v1/entries",
        files=[("images", ("x.png", images[8])), ("images", ("y.png", images[9]))],
        data={
            "camera": "c9",
            "source": ["gate/1.jpg", "gate/2.jpg"],
            "time": "2026-11-20T10:00:00+01:00",
            "label": "badge 7",
        },
    )
    assert (answer.status_code, answer.json()) == (201, {"ids": [7, 8], "known": 0})
    best = ask(client, images[9]).json()["results"][0]["matches"][0]
    assert {key: best[key] for key in ("id", "source", "camera", "time", "label")} == {
        "id": 8,
        "source": "gate/2.jpg",
        "camera": "c9",
        "time": "2026-11-20T10:00:00+01:00",
        "label": "badge 7",
    }
    again = client.post(
        "/v1/entries",
        files=[("images", ("x.png", images[8]))],
        data={"camera": "c9", "source": "gate/1.jpg", "time": "2026-11-20T10:00:00+01:00"},
    )
    assert (again.status_code, again.json()) == (200, {"ids": [None], "known": 1})
    for file in [*filled.iterdir(), *filled.parent.glob("gallery.audit.db*")]:
        assert images[8][:64] not in file.read_bytes()
    assert [record["action"] for record in records(client)] == ["enrol", "query"]
    assert "badge 7" not in json.dumps(records(client))


def test_a_gallery_that_keeps_crops_keeps_those_that_are_enrolled(tmp_path, bundle, golden_crops, images):
    from fastapi.testclient import TestClient

    from deploy import Encoder
    from deploy.gallery.kept_crops import shrunk
    from deploy.service.app import create_app

    encoder, large = Encoder.load(bundle.folder, threads=1), np.kron(golden_crops[1], np.ones((20, 20, 1), np.uint8))
    gallery = Gallery.create(tmp_path / "kept", encoder.dim, encoder.feature_space, bundle.folder, keep_crops=True)
    with TestClient(create_app(gallery, encoder), base_url="http://127.0.0.1:8080") as client:
        while client.get("/readyz").status_code != 200:
            pass
        sent = [("images", ("a", image)) for image in (images[0], encoded(large), images[0])]
        answer = client.post("/v1/entries", files=sent, data={"camera": "c", "source": ["a", "b", "a"]})
        assert (answer.status_code, answer.json()["ids"]) == (201, [1, 2, None])
    with Gallery.open(tmp_path / "kept") as opened:
        for number, crop in ((1, golden_crops[0]), (2, shrunk(large))):
            kept = opened.crop(number)
            assert kept.shape == crop.shape
            assert np.corrcoef(kept.ravel(), crop.ravel())[0, 1] > 0.5, "it is the picture of another"


def test_an_entry_without_a_source_is_named_by_its_request(serve, images):
    client = serve()
    answer = client.post("/v1/entries", files=[("images", ("secret name.png", images[8]))], data={"camera": "c9"})
    best = ask(client, images[8]).json()["results"][0]["matches"][0]
    assert best["source"] == f"upload:{answer.headers['x-request-id']}"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"camera": ""},
        {"camera": "a\x00b"},
        {"camera": "c", "source": ["a", "b"]},
        {"camera": "c", "time": ["2026-01-01T00:00:00Z"] * 3},
        {"camera": "c", "time": "yesterday"},
        {"camera": "c" * 257},
        {"camera": "c", "label": " "},
        {"camera": "c", "id": "3"},
    ],
)
def test_a_wrong_entry_changes_nothing(serve, image, data):
    client = serve()
    answer = client.post("/v1/entries", files=[("images", ("a", image))], data=data)
    assert (answer.status_code, code(answer)) == (422, "invalid")
    assert client.get("/readyz").json()["generation"] == 1


def test_all_images_are_enrolled_or_none(serve, images):
    client = serve()
    damaged = images[9][:200]
    answer = client.post(
        "/v1/entries", files=[("images", ("a", images[8])), ("images", ("b", damaged))], data={"camera": "c"}
    )
    assert (answer.status_code, code(answer)) == (422, "damaged_image")
    assert client.get("/readyz").json()["entries"] == 6


def test_erasing_by_id(serve, image):
    client = serve()
    assert client.delete("/v1/entries", params={"ids": [1, 1, 99]}).json() == {"forgotten": 1, "backups": []}
    assert 1 not in [match["id"] for match in ask(client, image).json()["results"][0]["matches"]]
    assert [record["action"] for record in client.get("/v1/audit", params={"chain": "gallery"}).json()["records"]] == [
        "forget"
    ]
    for bad in ("", "?ids=0", "?ids=x", "?ids=-1", f"?ids={2**63}", "?ids=" + "&ids=".join(map(str, range(1, 1002)))):
        answer = client.delete(f"/v1/entries{bad}")
        assert (answer.status_code, code(answer)) == (422, "invalid")


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"camera": "c1"}, [1, 3, 5]),
        ({"label": "person 2"}, [3]),
        ({"camera": "c1", "before": "2026-11-03T00:00:00Z"}, [1]),
        ({"older_than": "0"}, [1, 2, 3, 4, 5, 6]),
        ({"older_than": "30000"}, []),
        ({"source": "/nowhere"}, []),
        ({"source": "/"}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_forgetting_shows_first_and_then_does(serve, fields, ids):
    client = serve()
    assert client.post("/v1/forget", files=multipart(**fields, dry_run="true")).json() == {
        "entries": len(ids),
        "ids": ids,
    }
    assert client.get("/readyz").json()["entries"] == 6
    assert client.post("/v1/forget", files=multipart(**fields)).json()["forgotten"] == len(ids)
    assert client.get("/readyz").json()["entries"] == 6 - len(ids)


def test_forgetting_who_looks_like_this(serve, images):
    client = serve()
    answer = client.post(
        "/v1/forget", files=[("like", ("a.png", images[2])), *multipart(score="0.999", dry_run="true")]
    )
    assert answer.json() == {"entries": 1, "ids": [3]}
    everyone = client.post(
        "/v1/forget", files=[("like", ("a.png", images[2])), *multipart(score="-1", camera="c2", dry_run="true")]
    )
    assert everyone.json()["ids"] == [2, 4, 6]
    assert (
        client.post("/v1/forget", files=[("like", ("a.png", images[2])), *multipart(score="0.999")]).json()["forgotten"]
        == 1
    )


def test_who_looks_like_this_is_asked_for_until_all_are_found(serve, images, monkeypatch):
    monkeypatch.setattr("deploy.gallery.erasure.FIRST", 1)
    answer = serve().post("/v1/forget", files=[("like", ("a.png", images[2])), *multipart(score="-1", dry_run="true")])
    assert answer.json()["ids"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dry_run": "true"},
        {"older_than": "-1"},
        {"label": ""},
        {"score": "2", "camera": "c1"},
        {"dry_run": "no", "camera": "c1"},
    ],
)
def test_an_unclear_wish_to_forget_is_refused(serve, fields):
    client = serve()
    answer = client.post("/v1/forget", files=multipart(**{"score": "0.5", **fields}))
    assert (answer.status_code, code(answer)) == (422, "invalid")
    assert client.get("/readyz").json()["entries"] == 6


def test_the_erased_are_named_with_the_backups_that_still_hold_them(serve, filled, tmp_path):
    with Gallery.open(filled) as gallery:
        gallery.backup(tmp_path / "copy")
    assert serve().delete("/v1/entries", params={"ids": 1}).json() == {
        "forgotten": 1,
        "backups": [str(tmp_path / "copy")],
    }


def test_stats_are_counts(serve):
    body = serve().get("/v1/stats").json()
    assert (body["entries"], body["cameras"], body["labelled"], body["retention"]) == (6, {"c1": 3, "c2": 3}, 6, {})
    assert "person" not in json.dumps(body)
    assert "bundle" not in body


def test_metrics_count_what_happened(serve, image):
    client = serve()
    ask(client, image)
    ask(client, image)
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        'reid_requests_total{route="query",status="200"} 2.0',
        'reid_request_seconds_count{route="query"} 2.0',
        'reid_rejections_total{reason="not_found"} 1.0',
        'reid_requests_total{route="other",status="404"} 1.0',
        "reid_gallery_entries 6.0",
        "reid_batch_size_sum ",
        "reid_queue_depth 0.0",
        "reid_ready 1.0",
        "reid_buffered_bytes 0.0",
    ):
        assert line in text, line
    assert "person" not in text


def test_the_audit_is_checked_and_a_broken_one_is_told(serve, image):
    import sqlite3

    client = serve()
    ask(client, image)
    body = client.get("/v1/audit", params={"verify": True}).json()
    assert (body["intact"], body["head"]) == (True, body["records"][-1]["hash"])
    sqlite3.connect(client.app.state.audit_log.file, isolation_level=None).execute(
        "UPDATE audit SET what = replace(what, 'test', 'best')"
    )
    body = client.get("/v1/audit", params={"verify": True}).json()
    assert body["intact"] is False
    assert "record 1" in body["message"]
    assert client.get("/v1/audit", params={"after": 1}).json()["records"] == []


def test_without_its_record_no_query_is_answered(serve, image):
    client = serve()
    client.app.state.audit_log._db.execute("PRAGMA query_only = 1")
    answer = ask(client, image)
    assert (answer.status_code, code(answer)) == (503, "audit")
    client.app.state.audit_log._db.execute("PRAGMA query_only = 0")
    assert ask(client, image).status_code == 200


def test_thumbnails_only_from_allowed_folders(serve, image, people, tmp_path):
    assert all(
        "thumbnail" not in match for match in ask(serve(), image, thumbnails="true").json()["results"][0]["matches"]
    )
    client = serve(pictures=(people / "c1",), audit=tmp_path / "b.db")
    for match in ask(client, image, thumbnails="true").json()["results"][0]["matches"]:
        if match["camera"] == "c1":
            data = base64.b64decode(match["thumbnail"].removeprefix("data:image/jpeg;base64,"))
            assert max(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape) <= 160
        else:
            assert match["thumbnail"] is None
    assert records(client)[-1]["thumbnails"] == 1
    assert all("thumbnail" not in match for match in ask(client, image).json()["results"][0]["matches"])


def test_a_source_that_leads_out_of_the_folder_is_not_shown(people, tmp_path):
    from deploy.service.settings import Settings
    from deploy.service.thumbnails import thumbnail

    inside, outside = people / "c1", people / "c2" / "1.png"
    settings = Settings()
    assert thumbnail(str(inside / "0.png"), [inside], settings)
    link = inside / "link.png"
    link.symlink_to(outside)
    (inside / "text.png").write_text("no image")
    for source in (
        link,
        inside / ".." / "c2" / "1.png",
        outside,
        inside,
        "/dev/zero",
        "/proc/self/environ",
        "",
        "\0",
        "upload:1",
        inside / "text.png",
        inside / "no",
    ):
        assert thumbnail(str(source), [inside], settings) is None, source
    assert thumbnail(str(inside / "0.png"), [], settings) is None
    assert thumbnail(str(inside / "0.png"), [inside], Settings(max_pixels=10)) is None


def test_the_page_asks_nobody_else(serve):
    client = serve()
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    text = page.text + client.get("/page.css").text + client.get("/page.js").text
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    assert "innerHTML" not in text
    for storage in ("localStorage", "sessionStorage", "document.cookie", "indexedDB"):
        assert storage not in text
    assert " style=" not in page.text
    assert client.get("/page.js").headers["content-type"].startswith("text/javascript")


def test_every_answer_has_its_headers(serve):
    client = serve()
    for path in ("/", "/livez", "/nowhere", "/v1/query", "/v1/stats", "/openapi.json"):
        answer = client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert len(answer.headers["x-request-id"]) == 16
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_what_is_not_there(serve):
    client = serve()
    for method, path, status, name in (
        ("GET", "/v2/query", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("PUT", "/v1/query", 405, "method_not_allowed"),
        ("GET", "/v1/query", 405, "method_not_allowed"),
        ("POST", "/v1/query/", 404, "not_found"),
        ("GET", "/../etc/passwd", 404, "not_found"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, code(answer)) == (status, name), path


def test_a_mistake_of_ours_says_nothing_of_itself(serve, image, monkeypatch, caplog):
    client = serve()

    def fail(*_, **__):
        raise RuntimeError("person 3 at /secret/place")

    monkeypatch.setattr(client.app.state.backend.gallery, "search", fail)
    with caplog.at_level("INFO", logger="deploy.service"):
        answer = ask(client, image)
    assert (answer.status_code, code(answer)) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    from deploy.service.logs import JsonFormatter

    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("deploy")]
    assert not [line for line in lines if "secret" in line]
    assert [json.loads(line) for line in lines if json.loads(line).get("exception") == "RuntimeError"]


def test_the_log_says_what_was_done_and_nothing_about_a_person(serve, images, caplog):
    from deploy.service.logs import JsonFormatter

    client = serve()
    with caplog.at_level("DEBUG", logger="deploy.service"):
        ask(client, images[0], label="person 3", camera="c1")
        client.post(
            "/v1/entries",
            files=[("images", ("wanted.png", images[8]))],
            data={"camera": "c", "label": "Anna", "source": "anna.jpg"},
        )
        client.post("/v1/forget", files=multipart(label="Anna"))
        client.get("/v1/stats?label=Anna")
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("deploy")]
    assert len([line for line in lines if json.loads(line)["event"] == "request"]) == 4
    lines = [re.sub(r'"request": "[0-9a-f]+"', '"request": ""', line) for line in lines]  # a number drawn at random
    for word in ("Anna", "anna", "person 3", "wanted", "c1", "case"):
        assert not [line for line in lines if f'"{word}' in line or word in json.loads(line).get("reason", "")], word


def test_a_device_that_fails_is_named_as_what_it_is(serve, image, monkeypatch):
    from domains.errors import DeviceError

    client = serve()

    def fail(self, crops):
        raise DeviceError("cuda failed on a batch: out of memory")

    monkeypatch.setattr("deploy.service.backend._Measured.__call__", fail)
    answer = ask(client, image)
    assert (answer.status_code, code(answer)) == (503, "gallery")
    assert "out of memory" in answer.text


def test_the_same_image_twice_in_one_request_is_one_entry(serve, images):
    client = serve()
    two = [("images", ("a", images[8])), ("images", ("b", images[9]))]
    answer = client.post("/v1/entries", files=two, data={"camera": "c", "source": ["same", "same"]})
    assert (answer.status_code, answer.json()) == (201, {"ids": [7, None], "known": 1})
    again = client.post("/v1/entries", files=two, data={"camera": "c", "source": ["same", "same"]})
    assert (again.status_code, again.json()) == (200, {"ids": [None, None], "known": 2})


CHANGES = {
    "enrol": lambda client, image: client.post(
        "/v1/entries", files=[("images", ("a.png", image)), *multipart(camera="c1")]
    ),
    "erase": lambda client, _: client.request("DELETE", "/v1/entries?ids=1"),
    "forget": lambda client, _: client.post("/v1/forget", files=multipart(camera="c1")),
    "upgrade": lambda client, _: client.post("/v1/upgrade", json={"bundle": "new"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_change_a_gallery_that_can_only_be_read_is_a_conflict(serve, image, bundles, change):
    client = serve(read_only=True, bundles=bundles)
    answer = CHANGES[change](client, image)
    assert (answer.status_code, code(answer)) == (409, "conflict")
    assert "retry-after" not in answer.headers
    assert client.get("/v1/audit").json()["records"] == []
    assert client.get("/v1/stats").json()["entries"] == 6


def test_a_gallery_that_can_only_be_read_is_asked_and_previewed(serve, image, bundles):
    client = serve(read_only=True, bundles=bundles)
    assert ask(client, image).status_code == 200
    assert client.post("/v1/forget", files=multipart(camera="c1", dry_run="true")).json()["entries"] == 3
    assert client.post("/v1/upgrade", json={"bundle": "new", "dry_run": True}).status_code == 200
