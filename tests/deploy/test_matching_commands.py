"""``reid calibrate``, ``query`` and ``evaluate --open-set`` as they are typed, with a bundle small enough to build in a
moment.
"""

import json
import sys

import cv2
import numpy as np
import pytest

from deploy.bundle import Bundle, revise_bundle
from reid.cli import main

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
PEOPLE = 26


@pytest.fixture
def reid(monkeypatch, capsys):
    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["reid", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert ended.value.code == code, shown.err
        return json.loads(shown.out) if "--json" in words else shown.out + shown.err

    return run


@pytest.fixture
def site(tmp_path):
    """A domain of coloured noise, one query and two gallery crops a person, with times a minute apart."""
    root, rng = tmp_path / "site", np.random.default_rng(0)
    root.mkdir()
    rows = ["path,pid,camid,split,time"]
    for person in range(PEOPLE):
        look = rng.integers(0, 256, (16, 8, 3))
        for number, (split, camera) in enumerate((("query", "gate"), ("gallery", "yard"), ("gallery", "hall"))):
            crop = np.clip(look + rng.normal(0, 60, look.shape), 0, 255).astype(np.uint8)
            name = f"{person}_{number}.png"
            cv2.imwrite(str(root / name), crop)
            rows.append(f"{name},{person},{camera},{split},2026-01-01T12:{person:02d}:{number:02d}+00:00")
    (root / "domain.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def gallery(reid, site, bundle, tmp_path):
    reid("gallery", "add", tmp_path / "gallery", site, "--bundle", bundle.folder)
    return tmp_path / "gallery"


def test_calibrate_measures_and_keeps(reid, bundle, site):
    dry = reid("calibrate", bundle.folder, site, "--fpr", "0.05", "--dry-run", "--json")
    assert dry["stored"] is False
    assert Bundle.load(bundle.folder).thresholds == {}
    text = reid("calibrate", bundle.folder, site, "--fpr", "0.05")
    assert "same person" in text
    assert "among 10,000 strangers" in text
    kept = Bundle.load(bundle.folder).thresholds["site"]
    assert {name: kept[name] for name in ("score", "unsure", "fpr")} == {
        name: dry[name] for name in ("score", "unsure", "fpr")
    }
    assert "13 people" in text


@pytest.fixture
def no_embeddings(monkeypatch):
    """Fail if anything is measured."""
    import deploy.answers.calibration

    def refuse(*_, **__):
        raise AssertionError("it was measured before the command was checked")

    monkeypatch.setattr(deploy.answers.calibration, "_embedded", refuse)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**63)], "--seed"),
        (["--fpr", "nan"], "above 0 and at most 0.05, got nan"),
        (["--fpr", "-1"], "above 0 and at most 0.05, got -1"),
        (["--key", "nope"], "nope"),
        (["--key", "nope", "--dry-run"], "nope"),
        (["--key", "nope", "--unsign"], "nope"),
        (["--provider", "cuda:" + "9" * 5000], "unknown device"),
    ],
)
def test_what_can_not_be_calibrated_with_is_not_measured_with(reid, bundle, site, no_embeddings, words, said):
    before = {path: path.read_bytes() for path in bundle.folder.iterdir()}
    text = reid("calibrate", bundle.folder, site, *words, code=2)
    assert said in text
    assert "Traceback" not in text
    assert {path: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_a_key_that_nobody_trusts_here_is_not_measured_for(reid, bundle, site, no_embeddings, tmp_path, monkeypatch):
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    reid("key", "make", tmp_path / "key")
    reid("key", "make", tmp_path / "other")
    reid("key", "sign", bundle.folder, "--key", tmp_path / "key")
    monkeypatch.setenv("LIFELONG_REID_TRUSTED_KEYS", str(tmp_path / "key.pub"))
    text = reid("calibrate", bundle.folder, site, "--key", tmp_path / "other", code=1)
    assert "trusted" in text


@pytest.mark.parametrize(
    "words",
    [
        ["--top", "0"],
        ["--top", "-3"],
        ["--after", "yesterday"],
        ["--before", "2026-01-01"],
        ["--after", "2026-02-01T00:00:00Z", "--before", "2026-01-01T00:00:00Z"],
        ["--seen-at", "gate", "noon", "--transitions", "windows.csv"],
        ["--threshold", "nan"],
        ["--threshold", "5"],
    ],
)
def test_a_wrong_option_of_a_query_is_wrong_use(reid, gallery, site, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "windows.csv").write_text("from,to,min,max\ngate,yard,1,2\n")
    text = reid("query", gallery, site / "0_0.png", *words, code=2)
    assert text.startswith("reid: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize("number", [2**31, 2**63, int("9" * 400)], ids=["2**31", "2**63", "400 digits"])
@pytest.mark.parametrize("words", [["--top"], ["--rerank", "--depth"], ["--expand"]], ids=lambda words: words[-1])
def test_a_number_beyond_the_gallery_finds_what_there_is_or_is_refused(reid, gallery, site, words, number):
    asked = ["query", gallery, site / "0_0.png", *words, number]
    try:
        found = reid(*asked, "--json")
    except AssertionError:
        text = reid(*asked, code=2)
        assert text.startswith("reid: ")
        assert text.count("\n") == 1
        assert len(text) < 600
    else:
        assert found


def test_a_signed_bundle_stays_signed_or_is_said_to_be_unsigned(reid, bundle, site, tmp_path):
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    reid("key", "make", tmp_path / "key")
    reid("key", "sign", bundle.folder, "--key", tmp_path / "key")
    assert "name a key with --key" in reid("calibrate", bundle.folder, site, "--fpr", "0.05", code=2).replace("\n", " ")
    reid("calibrate", bundle.folder, site, "--fpr", "0.05", "--dry-run")
    reid("calibrate", bundle.folder, site, "--fpr", "0.05", "--key", tmp_path / "key")
    signed = Bundle.load(bundle.folder, trusted=[tmp_path / "key.pub"])
    assert signed.signers
    assert signed.thresholds["site"]["fpr"] == 0.05
    reid("calibrate", bundle.folder, site, "--fpr", "0.04", "--unsign")
    assert not Bundle.load(bundle.folder).signers
    assert Bundle.load(bundle.folder).thresholds["site"]["fpr"] == 0.04


def test_calibrate_without_a_rate_proposes_one(reid, bundle, site):
    dry = reid("calibrate", bundle.folder, site, "--dry-run", "--json")
    assert dry["fpr"] == dry["smallest_fpr"] == 0.033
    said = reid("calibrate", bundle.folder, site)
    assert "no rate was given (--fpr): 0.033 is the smallest that site can tell" in said
    assert Bundle.load(bundle.folder).thresholds["site"]["fpr"] == 0.033
    assert "no rate was given" not in reid("calibrate", bundle.folder, site, "--fpr", "0.04")


def test_calibrate_refuses_what_it_can_not_see(reid, bundle, site):
    said = reid("calibrate", bundle.folder, site, "--fpr", "0.001", code=1)
    assert "0.001 needs 10,000 pairs" in said.replace("\n", " ")
    assert "--fpr to 0.033 or more" in said
    assert "must be above 0" in reid("calibrate", bundle.folder, site, "--fpr", "0.5", code=2)
    assert Bundle.load(bundle.folder).thresholds == {}


def test_a_query_is_judged_once_the_bundle_is_calibrated(reid, bundle, site, gallery):
    image = site / "3_0.png"
    plain = reid("query", gallery, image, "--json")
    assert {match["verdict"] for match in plain} == {None}
    reid("calibrate", bundle.folder, site, "--fpr", "0.05")
    judged = reid("query", gallery, image, "--json")
    assert [match["id"] for match in judged] == [match["id"] for match in plain]
    limits = Bundle.load(bundle.folder).thresholds["site"]
    for match in judged:
        wanted = (
            "same person"
            if match["score"] >= limits["score"]
            else "unsure"
            if match["score"] >= limits["unsure"]
            else "no match"
        )
        assert match["verdict"] == wanted
    assert judged[0]["verdict"] == "same person"
    assert "same person" in reid("query", gallery, image)


def test_no_match_is_said_clearly(reid, bundle, site, gallery, tmp_path):
    stranger = tmp_path / "stranger.png"
    cv2.imwrite(str(stranger), np.random.default_rng(9).integers(0, 256, (16, 8, 3), np.uint8))
    text = reid("query", gallery, stranger, "--threshold", "0.99")
    assert f"{stranger}: no match (the best score is" in text.replace("\n", "")
    assert "by a score of 0.99" in text.replace("\n", "")
    assert {match["verdict"] for match in reid("query", gallery, stranger, "--threshold", "0.99", "--json")} == {
        "no match"
    }
    revise_bundle(
        bundle.folder,
        {
            "thresholds": {
                "a": {"fpr": 0.1, "score": 0.2, "unsure": -1},
                "b": {"fpr": 0.001, "score": 0.98, "unsure": 0.97},
            }
        },
    )
    assert "no match" in reid("query", gallery, stranger), "the most conservative domain is the default"
    assert {
        match["verdict"] for match in reid("query", gallery, stranger, "--threshold", "a", "--top", "1", "--json")
    } <= {"same person", "unsure"}
    assert "it is calibrated on a, b" in reid("query", gallery, stranger, "--threshold", "c", code=2)


def test_several_images_are_one_query_only_if_that_is_said(reid, site, gallery):
    images = [site / "3_0.png", site / "4_0.png"]
    assert [len(matches) for matches in reid("query", gallery, *images, "--top", "4", "--json")] == [4, 4]
    one = reid("query", gallery, *images, "--top", "4", "--together", "--json")
    assert [match["rank"] for match in one] == [1, 2, 3, 4]


def test_refined_answers_say_what_they_are_ranked_by(reid, site, gallery, tmp_path):
    image = site / "3_0.png"
    assert {match["ranked_by"] for match in reid("query", gallery, image, "--rerank", "--json")} == {"k-reciprocal"}
    assert {match["ranked_by"] for match in reid("query", gallery, image, "--expand", "2", "--json")} == {"expansion"}
    text = reid("query", gallery, image, "--rerank", "--expand", "2", "--picture", tmp_path / "out.png")
    assert "ranked by k-reciprocal; scores are cosines" in text
    assert (tmp_path / "out.png").is_file()


def test_what_the_times_rule_out_goes_last_or_away(reid, site, gallery, tmp_path):
    rules = tmp_path / "rules.csv"
    rules.write_text("from,to,min,max\ngate,yard,0,30\n")
    asked = (
        "query",
        gallery,
        site / "3_0.png",
        "--top",
        "60",
        "--transitions",
        rules,
        "--seen-at",
        "gate",
        "2026-01-01T12:03:00+00:00",
    )
    found = reid(*asked, "--json")
    assert [match["possible"] for match in found if match["possible"] is False] == [
        match["possible"] for match in found
    ][-22:]
    assert {match["camera"] for match in found if match["possible"] is None} == {"hall", "yard"}, (
        "before the query, nothing is known of the yard"
    )
    assert [match["source"] for match in found if match["possible"] is True] == [str(site / "3_1.png")]
    assert all(match["possible"] is not False for match in reid(*asked, "--remove-impossible", "--json"))
    assert "impossible" in reid(*asked)
    assert "give both or neither" in reid("query", gallery, site / "3_0.png", "--transitions", rules, code=2)
    assert "has no zone" in reid(
        "query", gallery, site / "3_0.png", "--transitions", rules, "--seen-at", "gate", "2026-01-01T12:03:00", code=2
    )


def test_open_set_metrics_beside_the_others(reid, bundle, site):
    plain = reid("evaluate", site, "--bundle", bundle.folder, "--json")
    found = reid("evaluate", site, "--bundle", bundle.folder, "--open-set", "--json")
    assert {name: value for name, value in found["site"].items() if name != "open_set"} == plain["site"]
    metrics = found["site"]["open_set"]
    assert metrics["impostor_pairs"] == PEOPLE * (PEOPLE - 1) * 2
    assert metrics["tpr_at_fpr"]["0.0001"] is None
    assert 0 < metrics["tpr_at_fpr"]["0.1"] <= 100
    assert metrics["dir_at_fpir"]["0.01"] is None
    assert metrics["dir_at_fpir"]["0.1"] <= plain["site"]["rank1"]
    reranked = reid("evaluate", site, "--bundle", bundle.folder, "--open-set", "--rerank", "--json")["site"]
    assert reranked["open_set"] == metrics
    assert reranked["mAP"] == reid("evaluate", site, "--bundle", bundle.folder, "--rerank", "--json")["site"]["mAP"]
    text = reid("evaluate", site, "--bundle", bundle.folder, "--open-set")
    assert "too few pairs" in text
