"""Verdicts: which threshold is used, and what is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.answers.thresholds import Thresholds, answer
from deploy.bundle import revise_bundle
from deploy.match import Match
from domains.errors import ArtefactError, UsageError


def match(score, possible=None):
    return Match(1, score, 1, "/x", "c", None, None, possible=possible)


@pytest.fixture
def calibrated(bundle):
    entries = {
        "yard": {"fpr": 0.001, "score": 0.6, "unsure": 0.4},
        "hall": {"fpr": 0.001, "score": 0.7, "unsure": 0.3},
        "old": {"fpr": 0.01, "score": 0.5},
    }
    return revise_bundle(bundle.folder, {"thresholds": entries})


def test_which_threshold(calibrated):
    assert Thresholds.from_bundle(calibrated) == Thresholds(0.7, 0.3, "hall", 0.001)
    assert Thresholds.from_bundle(calibrated, "yard") == Thresholds(0.6, 0.4, "yard", 0.001)
    assert Thresholds.from_bundle(calibrated, "old") == Thresholds(0.5, 0.5, "old", 0.01)
    for choice in (0.25, "0.25"):
        assert Thresholds.from_bundle(calibrated, choice) == Thresholds(0.25, 0.25, "a score of 0.25")


def test_unknown_names_and_impossible_scores_are_refused(calibrated, make_bundle):
    with pytest.raises(UsageError, match="no threshold 'roof': it is calibrated on hall, old, yard"):
        Thresholds.from_bundle(calibrated, "roof")
    with pytest.raises(UsageError, match="run reid calibrate"):
        Thresholds.from_bundle(make_bundle("plain"), "roof")
    for score in (1.5, "-2", "nan", "inf"):
        with pytest.raises(UsageError, match="a cosine from -1 to 1"):
            Thresholds.from_bundle(calibrated, score)
    with pytest.raises(UsageError, match="at most the other"):
        Thresholds(0.2, 0.3, "x")


@pytest.mark.parametrize("unsure", [0.9, None, "low", [0.1], -3])
def test_an_entry_that_makes_no_sense_is_refused(bundle, unsure):
    revised = revise_bundle(bundle.folder, {"thresholds": {"yard": {"fpr": 0.001, "score": 0.6, "unsure": unsure}}})
    with pytest.raises(ArtefactError, match=r"threshold of 'yard' can't be used: .*; run reid calibrate again"):
        Thresholds.from_bundle(revised)


def test_no_threshold_no_verdict(bundle):
    assert Thresholds.from_bundle(bundle) is None
    assert match(0.9).verdict is None
    assert answer([match(0.9)]) is None


@given(st.lists(st.floats(-1, 1), max_size=6))
def test_the_verdicts_part_the_scores_in_order(scores):
    judged = Thresholds(0.6, 0.4, "x").judge([match(score) for score in scores])
    for found, score in zip(judged, scores, strict=True):
        assert found.verdict == ("same person" if score >= 0.6 else "unsure" if score >= 0.4 else "no match")
        assert found.to_dict()["verdict"] == found.verdict
        assert found.score == score
    best = max(scores, default=-1)
    assert answer(judged) == ("same person" if best >= 0.6 else "unsure" if best >= 0.4 else "no match")


def test_an_impossible_match_decides_nothing():
    judged = Thresholds(0.6, 0.4, "x").judge(
        [match(0.9, possible=False), match(0.5, possible=None), match(0.3, possible=True)]
    )
    assert judged[0].verdict == "same person"
    assert answer(judged) == "unsure"
    assert answer(judged[:1]) == "no match"
