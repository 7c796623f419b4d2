"""H-score against its definition, relations against the tournament's eigenvector, and the embedding's geometry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from domains import transferability
from domains.errors import DataError
from domains.transferability import discriminant, h_score, propose_order, relations, transfer_table


def people(count, classes, width, apart, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    return rng.standard_normal((classes, width))[labels] * apart + rng.standard_normal((count, width)), labels


def by_definition(features, labels, *, shrunk):
    """tr(cov(f)⁻¹ cov(E[f|Y])), each crop replaced by the mean of its class."""
    mean_of = {label: features[labels == label].mean(0) for label in set(labels.tolist())}
    replaced = np.stack([mean_of[label] for label in labels.tolist()])
    between = np.cov(replaced, rowvar=False, bias=True)
    if not shrunk:
        return np.trace(
            np.linalg.pinv(np.cov(features, rowvar=False, bias=True), rcond=1e-12, hermitian=True) @ between
        )
    covariance, alpha = ledoit_wolf(features)
    return (1 - alpha) * np.trace(np.linalg.inv(covariance) @ between)


@pytest.mark.parametrize("shrunk", [True, False])
@pytest.mark.parametrize(("count", "width"), [(120, 12), (120, 119), (60, 80), (30, 200)])
def test_an_h_score_is_its_definition_below_and_above_as_many_dimensions(count, width, shrunk):
    features, labels = people(count, 6, width, 0.7)
    found = h_score(features, labels, shrunk=shrunk)
    assert found.value == pytest.approx(by_definition(features, labels, shrunk=shrunk), rel=1e-7)
    assert (found.classes, found.crops) == (6, count)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(3, 40), st.integers(9, 60), st.floats(0, 5))
def test_an_h_score_lies_between_nothing_and_one_less_than_its_classes(seed, classes, width, count, apart):
    found = h_score(*people(count, classes, width, apart, seed))
    assert -1e-9 <= found.share <= 1 + 1e-9


def test_an_h_score_does_not_depend_on_the_chunks(monkeypatch):
    features, labels = people(100, 5, 20, 0.5)
    whole = h_score(features.astype(np.float32), labels).value
    monkeypatch.setattr(transferability, "CHUNK", 7)
    assert h_score(features.astype(np.float32), labels).value == pytest.approx(whole, rel=1e-9)


def test_the_plain_form_calls_noise_perfect_where_dimensions_outnumber_crops_and_the_shrunk_does_not():
    noise, labels = people(100, 10, 300, 0.0)
    assert h_score(noise, labels, shrunk=False).share == pytest.approx(1, abs=1e-6)
    assert h_score(noise, labels).share < 0.1
    assert h_score(*people(100, 10, 300, 2.0)).share > 0.9


def test_an_h_score_ignores_scale_place_and_rotation():
    features, labels = people(80, 5, 16, 0.5)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    assert h_score(3 * features @ turn + 7, labels).value == pytest.approx(h_score(features, labels).value, rel=1e-6)


def test_features_of_one_point_have_no_score():
    assert h_score(np.ones((10, 4)), np.arange(10) % 2).value == 0


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.ones((4, 2, 2)), np.arange(4)),
        (np.ones((4, 2)), np.arange(3)),
        (np.ones((4, 2)), np.zeros(4)),
        (np.full((4, 2), np.nan), np.arange(4) % 2),
    ],
)
def test_what_has_no_h_score_is_refused(features, labels):
    with pytest.raises(DataError, match="H-score needs"):
        h_score(features, labels)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_relations_are_the_tournaments_principal_eigenvector(scores):
    scores = np.array(scores)
    values, vectors = np.linalg.eig(scores[:, None] / scores[None, :])
    principal = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    np.testing.assert_allclose(relations(scores), principal / principal.sum(), rtol=1e-6)


@pytest.mark.parametrize("scores", [[], [0.0, 0.0], [1.0, -1.0], [np.inf]])
def test_relations_of_nothing_are_refused(scores):
    with pytest.raises(DataError, match="relations need"):
        relations(scores)


def test_discriminant_directions_tell_a_domains_people_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    features = rng.standard_normal((200, 10))
    features[:, 3] += 5 * labels  # people differ in one direction only
    directions = discriminant(features, labels)
    first = directions[:, 0] / np.linalg.norm(directions[:, 0])
    assert abs(first[3]) > 0.95
    assert directions.shape[1] <= 3


def test_a_domain_helps_another_whose_people_differ_in_the_same_directions():
    rng = np.random.default_rng(1)

    def domain(places):
        labels = np.arange(150) % 3
        features = rng.standard_normal((150, 12))
        features[:, places] += 4 * rng.standard_normal((3, len(places)))[labels]
        return features, labels

    table = transfer_table([domain([0, 1]), domain([0, 1]), domain([8, 9])])
    assert table[0, 1] > 2 * table[2, 1]
    assert table[2, 2] > 2 * table[0, 2]


def test_an_order_begins_with_what_helps_most_and_goes_to_what_is_helped_most():
    assert propose_order([[1, 0.9, 0.2], [0.1, 1, 0.3], [0.2, 0.4, 1]]) == [0, 1, 2]
    assert propose_order([[1, 0.1, 0.1], [0.1, 1, 0.1], [0.3, 0.9, 1]]) == [2, 1, 0]
    assert propose_order([[1.0]]) == [0]


@pytest.mark.parametrize("table", [[], [[1, 2]], [[np.nan]]])
def test_an_order_of_nothing_is_refused(table):
    with pytest.raises(DataError, match="an order needs"):
        propose_order(table)
