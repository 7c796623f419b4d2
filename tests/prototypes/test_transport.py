"""The map between feature spaces: a known rotation is found, what was not seen stays, Gaussians travel as their draws
do, damage is one line.
"""

import io
import math

import numpy as np
import pytest

from domains.errors import ArtefactError, ConfigError
from prototypes.prototype import DistributionPrototypes
from prototypes.transport import KINDS, Transport, compose, fit_transport

DIM = 12
WEAK = 1e-3


def units(rows, dim=DIM, seed=0):
    drawn = np.random.default_rng((7, seed)).normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def rotation(dim=DIM, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0].astype(np.float32)


def cosines(left, right):
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
def test_a_known_rotation_is_found(kind):
    old, turn = units(200), rotation()
    found = fit_transport(old, old @ turn, kind=kind, shrinkage=WEAK, source="a", target="b")
    assert (found.source, found.target, found.kind) == ("a", "b", kind)
    assert np.abs(found.matrix - turn).max() < (0.03 if kind == "ridge" else 1e-3)
    fresh = units(50, seed=1)
    assert cosines(found(fresh), fresh @ turn).min() > (0.999 if kind == "ridge" else 0.99999)
    assert found.cosine[0] > 0.999
    assert found.cosine[1] == pytest.approx(cosines(old, old @ turn).mean(), abs=1e-5)


def test_procrustes_gives_a_rotation_whatever_it_is_fitted_on():
    matrix = fit_transport(units(40), units(40, seed=1), kind="procrustes").matrix
    assert np.allclose(matrix @ matrix.T, np.eye(DIM), atol=3e-3)


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 3.0])
def test_ridge_solves_its_objective(shrinkage):
    old, new = units(30), units(30, seed=1)
    matrix = fit_transport(old, new, shrinkage=shrinkage).matrix.astype(np.float64)
    for given in (0.01, 0.3, 3.0):
        penalty = given * np.linalg.eigvalsh(old.T.astype(np.float64) @ old).mean()
        gradient = np.abs(old.T @ (old @ matrix - new) + penalty * (matrix - np.eye(DIM))).max()
        assert (gradient < 0.02) == (given == shrinkage)


def test_the_more_it_is_shrunk_the_less_it_moves():
    for kind in ("ridge", "procrustes"):
        moved = [
            np.abs(
                fit_transport(units(200), units(200) @ rotation(), kind=kind, shrinkage=value).matrix - np.eye(DIM)
            ).max()
            for value in (0.1, 1.0, 10.0, 1e4)
        ]
        assert moved == sorted(moved, reverse=True)
        assert moved[-1] < 0.01


def test_ridge_leaves_directions_that_few_crops_do_not_show_as_they_are():
    wide, few = 64, 5
    old = units(few, wide)
    matrix = fit_transport(old, old @ rotation(wide), shrinkage=WEAK).matrix
    basis = np.linalg.qr(old.T)[0]
    unseen = units(20, wide, seed=2)
    unseen -= unseen @ basis @ basis.T
    assert np.allclose(unseen @ matrix, unseen, atol=1e-3)
    assert cosines(old @ matrix, old @ rotation(wide)).min() > cosines(old, old @ rotation(wide)).max()


def test_unchanged_crops_leave_everything_unchanged():
    old = units(30)
    for kind in KINDS:
        found = fit_transport(old, old, kind=kind)
        assert np.allclose(found.matrix, np.eye(DIM), atol=1e-3)
        assert found.cosine == pytest.approx((1, 1), abs=1e-5)


def test_identity_is_no_transport():
    old = units(32)
    found = fit_transport(old, units(32, seed=1), kind="identity")
    assert np.array_equal(found.matrix, np.eye(DIM, dtype=np.float32))
    assert np.allclose(found(old), old, atol=1e-6)
    assert found.cosine[0] == pytest.approx(found.cosine[1], abs=1e-6)


def test_what_is_carried_has_unit_length_and_is_float32():
    found = fit_transport(units(30), units(30, seed=1))
    carried = found(units(7, seed=2))
    assert carried.dtype == np.float32
    assert np.allclose(np.linalg.norm(carried, axis=1), 1, atol=1e-6)
    wanted = [
        [sum(float(x) * float(w) for x, w in zip(row, column, strict=True)) for column in found.matrix.T]
        for row in units(7, seed=2)
    ]
    assert np.allclose(carried, [[value / math.hypot(*row) for value in row] for row in wanted], atol=1e-5)
    assert found(np.zeros((2, DIM), np.float32)).tolist() == np.zeros((2, DIM)).tolist()
    assert found(units(1)[:0]).shape == (0, DIM)


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
def test_the_cosine_it_reports_is_that_of_crops_it_has_not_seen(kind):
    old, new = units(30, 40), units(30, 40, seed=1)  # no map exists; 30 crops in 40 dimensions are learned by heart
    found = fit_transport(old, new, kind=kind, shrinkage=WEAK)
    by_heart = cosines(found(old), new).mean()
    assert abs(found.cosine[0]) < 0.25
    assert by_heart > found.cosine[0] + 0.15


def test_the_cosine_it_reports_holds_for_fresh_crops():
    turn, rng = rotation(), np.random.default_rng(5)

    def pair(seed):
        old = units(300, seed=seed)
        new = old @ turn + 0.2 * rng.normal(size=old.shape).astype(np.float32)
        return old, new / np.linalg.norm(new, axis=1, keepdims=True)

    found = fit_transport(*pair(1), shrinkage=WEAK)
    fresh, true = pair(2)
    assert found.cosine[0] == pytest.approx(cosines(found(fresh), true).mean(), abs=0.02)
    assert found.cosine[1] < found.cosine[0] - 0.3


def test_another_width_is_carried_by_ridge():
    old = units(60)
    new = old @ rotation()[:, :8]
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    found = fit_transport(old, new, shrinkage=WEAK)
    assert found.matrix.shape == (DIM, 8)
    assert math.isnan(found.cosine[1])
    assert cosines(found(old), new).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_is_exact_in_half_precision_and_the_fit_is_repeatable(kind):
    first, again = (fit_transport(units(30), units(30, seed=1), kind=kind) for _ in range(2))
    assert first.matrix.dtype == np.float32
    assert np.array_equal(first.matrix, first.matrix.astype(np.float16).astype(np.float32))
    assert np.array_equal(first.matrix, again.matrix)


def test_prototypes_travel_as_their_draws_do():
    old = DistributionPrototypes(
        units(3) * 0.8, np.random.default_rng(3).uniform(0.02, 0.2, (3, DIM)).astype(np.float32)
    )
    transport = fit_transport(units(50), units(50, seed=1))
    carried = transport.prototypes(old)
    assert (carried.mean.dtype, carried.spread.dtype) == (np.float32, np.float32)
    rng = np.random.default_rng(4)
    for person in range(3):
        drawn = (old.mean[person] + old.spread[person] * rng.standard_normal((100_000, DIM))) @ transport.matrix
        scale = np.linalg.norm(old.mean[person]) / np.linalg.norm(old.mean[person] @ transport.matrix)
        assert np.allclose(carried.mean[person], scale * drawn.mean(0), atol=0.02)
        assert np.allclose(carried.spread[person], scale * drawn.std(0), rtol=0.015)


def test_prototypes_keep_the_length_of_their_mean_and_a_rotation_keeps_their_total_variance():
    old = DistributionPrototypes(units(5) * np.linspace(0.5, 1, 5, dtype=np.float32)[:, None], np.abs(units(5, seed=1)))
    for kind in KINDS:
        carried = fit_transport(units(50), units(50) @ rotation(), kind=kind, shrinkage=WEAK).prototypes(old)
        assert np.allclose(np.linalg.norm(carried.mean, axis=1), np.linalg.norm(old.mean, axis=1), atol=1e-5)
        assert np.allclose(np.square(carried.spread).sum(1), np.square(old.spread).sum(1), rtol=0.03)
    unmoved = fit_transport(units(50), units(50), kind="identity").prototypes(old)
    assert np.allclose(unmoved.mean, old.mean, atol=1e-6)
    assert np.allclose(unmoved.spread, old.spread, atol=1e-6)


def test_a_mean_of_zero_gives_no_nan():
    carried = fit_transport(units(30), units(30, seed=1)).prototypes(
        DistributionPrototypes(np.zeros((1, DIM), np.float32), units(1))
    )
    assert np.isfinite(carried.mean).all()
    assert np.isfinite(carried.spread).all()


def test_several_transports_in_turn():
    first = fit_transport(units(30), units(30, seed=1))
    second = fit_transport(units(30, seed=1), units(30, seed=2))
    start = units(4, seed=3)
    assert np.array_equal(compose([first, second], start), second(first(start)))
    assert not np.allclose(compose([first, second], start), compose([second, first], start), atol=1e-2)
    assert compose([], start) is start


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_back_what_it_wrote(tmp_path, kind):
    found = fit_transport(units(30), units(30, seed=1), kind=kind, source="ab" * 32, target="cd" * 32)
    found.write(tmp_path / "transport.npz")
    back = Transport.read(tmp_path / "transport.npz")
    assert (back.source, back.target, back.kind, back.cosine) == (found.source, found.target, found.kind, found.cosine)
    assert back.matrix.dtype == np.float32
    assert np.array_equal(back.matrix, found.matrix)
    assert [file.name for file in tmp_path.iterdir()] == ["transport.npz"]


def test_no_cosine_is_kept_as_none(tmp_path):
    Transport("a", "b", np.eye(3, dtype=np.float32)).write(tmp_path / "t.npz")
    assert all(math.isnan(value) for value in Transport.read(tmp_path / "t.npz").cosine)


def refused(file):
    with pytest.raises(ArtefactError, match="transport") as caught:
        Transport.read(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert "restore it" in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone", "folder", "array"])
def test_damage_is_one_line_that_names_the_file(tmp_path, damage):
    file = tmp_path / "transport.npz"
    if damage == "folder":
        file.mkdir()
    elif damage != "gone":
        fit_transport(units(30), units(30, seed=1)).write(file)
        array = io.BytesIO()
        np.save(array, units(3))
        file.write_bytes(
            {"cut": file.read_bytes()[:-9], "empty": b"", "text": b"no transport at all", "array": array.getvalue()}[
                damage
            ]
        )
    refused(file)


def test_a_flipped_byte_anywhere_is_harmless_or_one_line(tmp_path):
    file = tmp_path / "transport.npz"
    found = fit_transport(units(30), units(30, seed=1), source="a", target="b")
    found.write(file)
    whole = file.read_bytes()

    def outcome(at):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            return Transport.read(file).matrix
        except ArtefactError as error:
            return str(error)

    outcomes = [outcome(at) for at in range(0, len(whole), 3)]
    for said in outcomes:
        if isinstance(said, str):
            assert "\n" not in said
        else:
            assert np.array_equal(said, found.matrix)
    assert sum(isinstance(said, str) for said in outcomes) > len(outcomes) / 3


NAMES, SQUARE, PAIR = np.array(["a", "b", "ridge"]), np.eye(3, dtype=np.float16), np.ones(2)
FOREIGN = [
    {"names": NAMES, "cosine": PAIR},
    {"matrix": SQUARE, "cosine": PAIR},
    {"matrix": SQUARE, "names": NAMES},
    {"matrix": SQUARE[0], "names": NAMES, "cosine": PAIR},
    {"matrix": SQUARE * np.nan, "names": NAMES, "cosine": PAIR},
    {"matrix": np.array([["x"]]), "names": NAMES, "cosine": PAIR},
    {"matrix": SQUARE, "names": NAMES[:2], "cosine": PAIR},
    {"matrix": SQUARE, "names": np.array("a"), "cosine": PAIR},
    {"matrix": SQUARE, "names": NAMES, "cosine": np.ones(1)},
    {"matrix": SQUARE, "names": NAMES, "cosine": np.float64(1)},
    {"matrix": np.array([[None]]), "names": NAMES, "cosine": PAIR},
]


@pytest.mark.parametrize("arrays", FOREIGN)
def test_other_arrays_are_no_transport(tmp_path, arrays):
    np.savez(tmp_path / "t.npz", **arrays)
    refused(tmp_path / "t.npz")


WRONG = [
    ((30, 30), DIM, "rigde", 'must be "ridge", "procrustes" or "identity", got \'rigde\''),
    ((30, 29), DIM, "ridge", r"got \(30, 12\) and \(29, 12\)"),
    ((1, 1), DIM, "ridge", "at least two crops"),
    ((0, 0), DIM, "ridge", "at least two crops"),
    ((30, 30), DIM - 1, "procrustes", r"got \(30, 12\) and \(30, 11\)"),
    ((30, 30), DIM - 1, "identity", r"got \(30, 12\) and \(30, 11\)"),
]


@pytest.mark.parametrize(("rows", "width", "kind", "said"), WRONG)
def test_what_can_not_be_fitted_is_refused_in_one_line(rows, width, kind, said):
    with pytest.raises(ConfigError, match=said) as caught:
        fit_transport(units(rows[0]), units(rows[1], width), kind=kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shrinkage", [0, -1.0, float("nan"), float("inf"), True, "much"])
def test_a_shrinkage_that_is_none_is_refused(shrinkage):
    with pytest.raises(ConfigError, match="shrinkage must be a number above 0"):
        fit_transport(units(5), units(5), shrinkage=shrinkage)


def test_a_single_vector_is_no_set_of_crops():
    with pytest.raises(ConfigError, match=r"\(12,\)"):
        fit_transport(units(1)[0], units(1)[0])


def test_two_crops_are_enough():
    old, turn = units(2), rotation()
    found = fit_transport(old, old @ turn)
    assert np.isfinite(found.matrix).all()
    assert np.isfinite(found.cosine).all()
