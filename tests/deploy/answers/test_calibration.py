"""Thresholds are found on one half of the people and checked on the other; too little data is refused; the bundle keeps
them.
"""

import json

import numpy as np
import pytest

from deploy.answers.calibration import SEEN, Half, Tally, calibrate, rows_of_halves, store
from deploy.bundle import Bundle
from deploy.encoder.encoder import Skipped
from domains.domain import JUNK, from_rows
from domains.errors import DataError, UsageError
from domains.openset import count_pairs, pair_blocks
from domains.scoring import Labels

DIM = 32


class Pretender:
    """An encoder that gives each file a vector near its person's, by the person that the file's name begins with."""

    def __init__(self, noise=0.9, broken=(), seed=0):
        self.noise, self.broken, self.seed = noise, broken, seed

    def files(self, paths):
        rows, skipped = [], []
        for position, path in enumerate(paths):
            if path.name in self.broken:
                skipped.append(Skipped(position, "damaged"))
                continue
            person = path.name.split("_")[0]
            centre = np.random.default_rng(abs(hash_of(person)) + self.seed).standard_normal(DIM)
            vector = centre + self.noise * np.random.default_rng(abs(hash_of(path.name)) + self.seed).standard_normal(
                DIM
            )
            rows.append(vector / np.linalg.norm(vector))
        return np.array(rows, np.float32).reshape(-1, DIM), skipped


def hash_of(text):
    return int.from_bytes(text.encode()[-12:], "big")


def site(tmp_path, people=60, distractors=10, junk=3, each=2, same_camera="drop"):
    rows = []
    for person in range(people):
        rows += [("query", f"{person}_q{n}.png", str(person), "c0") for n in range(each)]
        rows += [("gallery", f"{person}_g{n}.png", str(person), "c1") for n in range(each)]
    rows += [("gallery", f"{1000 + other}_d.png", str(1000 + other), "c1") for other in range(distractors)]
    rows += [("gallery", f"junk{n}_j.png", None, "c1") for n in range(junk)] + [("query", "junkq_j.png", None, "c0")]
    return from_rows("site", tmp_path, "made", rows, same_camera=same_camera)


def test_the_threshold_has_the_chosen_rate_on_the_first_half_and_is_measured_on_the_other(tmp_path):
    domain, encoder = site(tmp_path), Pretender()
    found = calibrate(encoder, domain, fpr=0.01)
    vectors = {
        name: encoder.files([tmp_path / path for path in split.paths])[0]
        for name, split in (("q", domain.query), ("g", domain.gallery))
    }
    rates = []
    for (rows, others), genuine, impostors in zip(
        rows_of_halves(domain, domain.query, domain.gallery, 0), found.genuine_pairs, found.impostor_pairs, strict=True
    ):
        scores = {True: [], False: []}
        for q in rows:
            for g in others:
                scores[bool(domain.query.pids[q] == domain.gallery.pids[g])].append(
                    float(vectors["q"][q] @ vectors["g"][g])
                )
        assert (len(scores[True]), len(scores[False])) == (genuine, impostors)
        rates.append(
            [
                np.mean(np.array(scores[kind]) >= level)
                for level in (found.score, found.unsure)
                for kind in (False, True)
            ]
        )
    assert rates[0][0] == pytest.approx(
        0.01, abs=2 / found.impostor_pairs[0]
    )  # a product adds up in another order than a dot does
    assert rates[0][2] == pytest.approx(0.1, abs=2 / found.impostor_pairs[0])
    measured = (found.measured_fpr, found.measured_tpr, found.measured_unsure_fpr, found.measured_unsure_tpr)
    assert [rate.value for rate in measured] == pytest.approx(rates[1], abs=2 / found.impostor_pairs[1])
    assert all(rate.low <= rate.value <= rate.high for rate in measured)
    assert found.unsure < found.score
    assert (found.people, found.distractors) == ((30, 30), (5, 5))


def test_halves_share_nobody_and_leave_out_junk(tmp_path):
    domain = site(tmp_path, people=31, distractors=7)
    (one, other), (two, last) = rows_of_halves(domain, domain.query, domain.gallery, 0)
    first, second = (set(domain.query.pids[a]) | set(domain.gallery.pids[b]) for a, b in ((one, other), (two, last)))
    assert not first & second
    assert len(first | second) == 38
    assert JUNK not in first | second
    assert abs(len(first) - len(second)) <= 2
    assert rows_of_halves(domain, domain.query, domain.gallery, 1)[0][0].tolist() != one.tolist()
    more = site(tmp_path, people=32, distractors=7)
    moved = {
        more.identities[pid] for pid in set(more.query.pids[rows_of_halves(more, more.query, more.gallery, 0)[0][0]])
    } ^ {domain.identities[pid] for pid in set(domain.query.pids[one])}
    assert len(moved) <= 3


def test_the_same_seed_gives_the_same_thresholds_and_junk_plays_no_part(tmp_path):
    with_junk, without = (calibrate(Pretender(), site(tmp_path, junk=junk), fpr=0.01).to_dict() for junk in (3, 0))
    with_junk.pop("fingerprint"), without.pop("fingerprint")
    assert with_junk == without
    assert calibrate(Pretender(), site(tmp_path), fpr=0.01, seed=1).score != with_junk["score"]


def test_too_few_pairs_are_refused_with_the_number_needed_and_what_can_be_had(tmp_path):
    domain = site(tmp_path)
    fewest = 30 * 2 * (30 * 2 + 5) - 30 * 4
    with pytest.raises(
        DataError,
        match=rf"0\.001 needs 10,000 pairs .* gives {fewest:,} and {fewest:,}; raise --fpr to 0\.0027 or more",
    ):
        calibrate(Pretender(), domain, fpr=0.001)
    assert 0.0026 < SEEN / fewest < 0.0027
    assert calibrate(Pretender(), domain, fpr=0.0027).fpr == 0.0027
    with pytest.raises(
        DataError, match=r"10 people seen at least twice by two cameras in each half.* there are 9 and 10"
    ):
        calibrate(Pretender(), site(tmp_path, people=19), fpr=0.05)
    with pytest.raises(DataError, match="no query and gallery splits"):
        calibrate(Pretender(), from_rows("site", tmp_path, "made", [("train", "a.png", "a", "c")]), fpr=0.05)
    for rate in (0, -1, 0.06, float("nan")):
        with pytest.raises(UsageError, match=r"must be above 0 and at most 0\.05"):
            calibrate(Pretender(), domain, fpr=rate)


@pytest.mark.parametrize(
    ("people", "each", "distractors", "broken", "rate"),
    [
        (60, 2, 10, 0, 0.0027),
        (24, 2, 10, 0, 0.016),
        (20, 1, 0, 0, None),
        (20, 2, 0, 0, 0.028),
        (60, 2, 10, 40, 0.0041),
        (120, 4, 0, 0, 0.001),
    ],
)
def test_without_a_rate_the_smallest_is_proposed_that_the_data_can_tell(
    tmp_path, people, each, distractors, broken, rate
):
    domain = site(tmp_path, people=people, each=each, distractors=distractors)
    encoder = Pretender(broken={f"{person}_q0.png" for person in range(broken)})
    if rate is None:
        with pytest.raises(
            DataError, match=r"even the largest false-positive rate, 0\.05, needs 200 pairs .* 90 and 90"
        ):
            calibrate(encoder, domain)
        return
    found = calibrate(encoder, domain)
    assert found.fpr == max(found.smallest_fpr, 0.001)
    assert found.fpr == rate
    assert found == calibrate(encoder, domain, fpr=found.fpr), "proposing is choosing"
    fewest = min(found.impostor_pairs)
    assert SEEN / found.smallest_fpr <= fewest * (1 + 1e-9)
    with pytest.raises(DataError, match=r"needs .* pairs"):
        calibrate(encoder, domain, fpr=found.smallest_fpr * 0.9)
    assert json.loads(json.dumps(found.to_dict()))["smallest_fpr"] == found.smallest_fpr


def test_one_camera_makes_no_pairs_unless_it_is_kept(tmp_path):
    rows = [
        (split, f"{person}_{split}.png", str(person), "c0") for person in range(40) for split in ("query", "gallery")
    ]
    with pytest.raises(DataError, match="by two cameras"):
        calibrate(Pretender(), from_rows("one", tmp_path, "made", rows), fpr=0.05)
    assert calibrate(
        Pretender(), from_rows("one", tmp_path, "made", rows, same_camera="keep"), fpr=0.05
    ).genuine_pairs == (20, 20)


def test_unreadable_images_are_left_out_and_counted(tmp_path):
    domain = site(tmp_path)
    broken = {"0_q0.png", "5_g1.png", "1003_d.png"}
    found = calibrate(Pretender(broken=broken), domain, fpr=0.01)
    assert found.skipped == 3
    assert sum(found.genuine_pairs) == 60 * 4 - 4
    assert sum(found.distractors) == 9
    with pytest.raises(DataError, match="none of its 121 images can be read; the first: damaged"):
        calibrate(Pretender(broken=set(domain.query.paths)), domain, fpr=0.01)


def test_a_model_that_knows_nobody_apart_is_refused(tmp_path):
    class Same(Pretender):
        def files(self, paths):
            return np.tile(np.eye(DIM, dtype=np.float32)[:1], (len(paths), 1)), []

    with pytest.raises(DataError, match="can't tell them apart"):
        calibrate(Same(), site(tmp_path), fpr=0.01)


# ------------------------------------------------------------------------------------------------------------ intervals


def tally(rng, people=12, distractors=4, level=0.1):
    asked = np.repeat(np.arange(people), rng.integers(1, 4, people))
    held = np.repeat(np.arange(people + distractors), rng.integers(1, 4, people + distractors))
    vectors = [rng.standard_normal((len(pids), 6)).astype(np.float32) for pids in (asked, held)]
    query, gallery = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in vectors)
    half = Half(query, gallery, Labels(asked, np.zeros(len(asked), int)), Labels(held, np.ones(len(held), int)))
    return half, Tally.of(half, "drop", level)


def test_weighting_people_is_the_same_as_repeating_them():
    rng = np.random.default_rng(0)
    half, counted = tally(rng)
    similarity = half.query @ half.gallery.T
    for _ in range(5):
        drawn = [*rng.integers(0, 12, 12), *rng.integers(12, 16, 4)]
        false, pairs, true, genuine = 0, 0, 0, 0
        for one in drawn[:12]:
            for other in drawn:
                if one == other:
                    continue
                block = similarity[np.ix_(half.query_labels.pids == one, half.gallery_labels.pids == other)]
                false, pairs = false + (block >= 0.1).sum(), pairs + block.size
            block = similarity[np.ix_(half.query_labels.pids == one, half.gallery_labels.pids == one)]
            true, genuine = true + (block >= 0.1).sum(), genuine + block.size
        wrong, right = counted.shares(np.bincount(drawn, minlength=16)[None].astype(float))
        assert (wrong[0], right[0]) == (pytest.approx(false / pairs), pytest.approx(true / genuine))


def test_without_weights_the_rates_are_plain_shares():
    half, counted = tally(np.random.default_rng(1))
    false, true = counted.rates()
    blocks = list(pair_blocks(*half))
    assert len(blocks) == 1
    assert false.value == pytest.approx((blocks[0].similarity[blocks[0].impostor] >= 0.1).mean())
    assert true.value == pytest.approx((blocks[0].similarity[blocks[0].genuine] >= 0.1).mean())
    assert counted.genuine.sum() == count_pairs(half.query_labels, half.gallery_labels).genuine
    assert counted.rates() == counted.rates(seed=0)


def test_an_interval_over_people_holds_what_one_over_pairs_does_not():
    """People differ in how common they look; the rate among all people is known. Over pairs, half of the intervals miss
    it.
    """
    people, runs = 60, 100
    covered = {"people": 0, "pairs": 0}
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        common = rng.gamma(0.5, 2.0, people)  # mean 1
        chance = np.minimum(0.02 * common[:, None] * common, 1)
        false = rng.binomial(4, chance)
        np.fill_diagonal(false, 0)
        counted = Tally(false, np.full(people, 2), np.full(people, 2), np.full(people, 3), np.full(people, 4))
        rate = counted.rates(samples=300)[0]
        pairs = 4 * people * (people - 1)
        plain = 1.96 * (rate.value * (1 - rate.value) / pairs) ** 0.5
        covered["people"] += rate.low <= 0.02 <= rate.high
        covered["pairs"] += abs(rate.value - 0.02) <= plain
    assert covered["people"] >= 80, covered
    assert covered["pairs"] <= 50, covered


def test_no_false_match_seen_does_not_mean_none():
    counted = Tally(np.zeros((20, 20), int), np.ones(20, int), np.ones(20, int), np.ones(20, int), np.ones(20, int))
    false, true = counted.rates()
    assert false == (0, 0, 3 / 380)
    assert true == (1, 1, 1)


# -------------------------------------------------------------------------------------------------------------- keeping


def test_the_bundle_keeps_them_and_nothing_else_changes(bundle, tmp_path):
    before = {file.name: file.read_bytes() for file in bundle.folder.iterdir() if file.name != "bundle.json"}
    found = calibrate(Pretender(), site(tmp_path), fpr=0.01)
    kept = store(bundle, found)
    assert {file.name: file.read_bytes() for file in bundle.folder.iterdir() if file.name != "bundle.json"} == before
    entry = Bundle.load(bundle.folder).thresholds["site"]
    assert (entry["score"], entry["unsure"], entry["fpr"]) == (found.score, found.unsure, 0.01)
    assert entry["measured_fpr"] == list(found.measured_fpr)
    assert kept.feature_space == bundle.feature_space
    again = store(kept, calibrate(Pretender(), site(tmp_path), fpr=0.02))
    assert again.thresholds["site"]["fpr"] == 0.02
    assert json.loads(json.dumps(found.to_dict()))["domain"] == "site"
