"""Images that can't be one person's crop, over HTTP: answered with a warning, stored only if forced."""

import image_files as files
import numpy as np
import pytest
from asking import ask, code, encoded

from deploy.bundle import revise_bundle

FRAME = np.random.default_rng(3).integers(0, 256, (480, 640, 3), np.uint8)
DOUBTFUL = {
    "frame": encoded(FRAME),
    "strip": encoded(FRAME[:40, :200]),
    "speck": encoded(FRAME[:9, :9]),
    "turned": files.with_exif(".jpg", files.tiff(8), FRAME[:480, :200]),
}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("kind", DOUBTFUL)
def test_a_query_is_unsure_and_says_why(serve, bundle, image, kind, calibrated):
    if calibrated:
        revise_bundle(bundle.folder, {"thresholds": {"site": {"score": -0.5, "unsure": -0.9, "fpr": 0.01}}})
    client = serve()
    (found,) = ask(client, DOUBTFUL[kind]).json()["results"]
    assert found["verdict"] == "unsure"
    assert {match["verdict"] for match in found["matches"]} == {"unsure"}
    assert "pixels" in found["warning"]
    (nothing,) = ask(client, DOUBTFUL[kind], after="2099-01-01T00:00:00+00:00").json()["results"]
    assert (nothing["verdict"], nothing["matches"]) == ("unsure", [])
    (fine,) = ask(client, image).json()["results"]
    assert fine["warning"] is None
    assert fine["verdict"] == ("same person" if calibrated else None)


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_an_enrolment_is_refused_unless_forced(serve, image, kind):
    client = serve()
    sent = [("images", ("a", image)), ("images", ("b", DOUBTFUL[kind]))]
    before = client.get("/v1/stats").json()["entries"]
    refused = client.post("/v1/entries", files=sent, data={"camera": "c"})
    assert code(refused) == "invalid"
    assert "images 2: " in refused.json()["error"]["message"]
    assert client.get("/v1/stats").json()["entries"] == before, "all are stored, or none"
    assert client.post("/v1/entries", files=sent, data={"camera": "c", "force": "true"}).status_code == 201
    assert client.get("/v1/stats").json()["entries"] == before + 2
