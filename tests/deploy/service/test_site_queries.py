"""Queries of a known site, over HTTP: scored in its mixed metric, where the bundle has its statistics."""

import numpy as np
import pytest
from asking import ask, code
from tiny import DIM, SPACE, unit

from deploy import Encoder, Gallery
from deploy.answers.refine import Refinement, search
from deploy.answers.site_metric import SiteMetrics
from deploy.bundle import revise_bundle
from domains.crops import decode_crop
from prototypes.metric import Metric, SiteStatistics, sites_to_bytes


def measured(seed):
    rng = np.random.default_rng(seed)
    vectors = unit(rng, 60)
    return SiteStatistics.of(vectors, 0.2 * (vectors[:30] - vectors[30:]) * rng.random(DIM) ** 4, 30, rank=8)


STATISTICS = {"north": measured(1), "south": measured(2)}


@pytest.fixture
def bundle(make_bundle):
    """A bundle that says it is pooled; what its graph gives is taken for vectors in that metric."""
    return make_bundle(
        changes={"metric": {"name": "pooled", "network": "ef" * 32, "sites": list(STATISTICS)}},
        parts={
            "metric.npz": Metric.pooled(list(STATISTICS.values())).to_bytes(),
            "sites.npz": sites_to_bytes(STATISTICS),
        },
    )


def test_an_answer_is_scored_in_the_mixed_metric_and_says_so(serve, image, filled, bundle):
    client = serve()
    body = ask(client, image, site="north", top=4, camera="c1").json()
    assert body["metric"] == "mixed:north"
    with Gallery.open(filled) as gallery:
        vectors = Encoder.load(bundle.folder, threads=1)([decode_crop(image)])
        wanted = Refinement(site=SiteMetrics(bundle).of("north"))
        (expected,) = search(gallery, vectors, 4, wanted, camera="c1")
    for got, match in zip(body["results"][0]["matches"], expected, strict=True):
        assert (got["id"], got["rank"], got["metric"]) == (match.id, match.rank, "mixed:north")
        assert (got["score"], got["pooled"]) == pytest.approx((match.score, match.pooled), abs=1e-5)
    plain = ask(client, image, top=6).json()
    assert plain["metric"] == "pooled"
    assert {match["metric"] for match in plain["results"][0]["matches"]} == {None}
    scores = {match["id"]: match["score"] for match in plain["results"][0]["matches"]}
    assert all(got["pooled"] == pytest.approx(scores[got["id"]], abs=1e-5) for got in body["results"][0]["matches"])
    assert any(abs(got["score"] - scores[got["id"]]) > 0.01 for got in body["results"][0]["matches"])
    records = client.get("/v1/audit", params={"limit": 100}).json()["records"]
    asked = [record for record in records if record["action"] == "query"]
    assert [record.get("filters") for record in asked] == ["camera+site", None]
    assert "north" not in str(asked)


def test_several_images_each_have_an_answer(serve, images, bundle):
    sent = [("images", ("a", image)) for image in images[:3]]
    body = serve().post("/v1/query", files=sent, data={"reason": "test", "site": "south", "top": "2"}).json()
    assert [len(found["matches"]) for found in body["results"]] == [2, 2, 2]
    assert {match["metric"] for found in body["results"] for match in found["matches"]} == {"mixed:south"}


def test_verdicts_are_by_the_pooled_score(serve, image, bundle):
    plain = [match["score"] for match in ask(serve(), image, top=6).json()["results"][0]["matches"]]
    limit = (plain[2] + plain[3]) / 2
    revise_bundle(bundle.folder, {"thresholds": {"place": {"score": limit, "unsure": limit, "fpr": 0.01}}})
    (found,) = ask(serve(), image, top=6, site="south").json()["results"]
    assert found["verdict"] == "same person"
    assert sum(match["verdict"] == "same person" for match in found["matches"]) == 3
    assert all((match["verdict"] == "same person") == (match["pooled"] >= limit) for match in found["matches"])


@pytest.mark.parametrize(
    ("site", "words"),
    [("nort", "did you mean 'north'"), ("elsewhere", "it has 'north', 'south'"), ("", "site"), ("x" * 5000, "site")],
)
def test_an_unknown_site_is_refused(serve, image, site, words, bundle):
    answer = ask(serve(), image, site=site)
    assert (answer.status_code, code(answer)) == (422, "invalid")
    assert words in answer.json()["error"]["message"]
    assert str(bundle.folder) not in answer.text


def test_a_bundle_without_statistics_refuses_a_site(serve, image, make_bundle):
    plain = Encoder.load(make_bundle("plain").folder, threads=1)
    client = serve(encoder=plain)
    answer = ask(client, image, site="north")
    assert (answer.status_code, code(answer)) == (422, "invalid")
    assert "the bundle has no statistics of sites" in answer.json()["error"]["message"]
    body = ask(client, image).json()
    assert (body["metric"], body["feature_space"]) == (None, SPACE)


def test_the_interface_describes_it(serve):
    document = serve().get("/openapi.json").json()
    form = document["paths"]["/v1/query"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["site"]["type"] == "string"
    assert {"metric", "pooled"} <= set(document["components"]["schemas"]["MatchBody"]["properties"])
    assert "metric" in document["components"]["schemas"]["QueryBody"]["properties"]
