"""One folder per person."""

import pytest
from layouts import draw, rows

from domains.formats import open_domain


def test_people_are_divided_stably(tmp_path):
    people = [f"p{number}" for number in range(40)]
    draw(tmp_path, *(f"{person}/{n}_c{n}.jpg" for person in people for n in (1, 2, 3)))
    before = rows(open_domain(tmp_path))
    side = {identity: split == "train" for (split, _), (identity, _) in before.items()}
    assert 8 < sum(side.values()) < 32
    draw(tmp_path, *(f"q{number}/1_c1.jpg" for number in range(21)))
    after = rows(open_domain(tmp_path))
    assert before.items() <= after.items()
    queries = [identity for (split, _), (identity, _) in before.items() if split == "query"]
    assert sorted(queries) == sorted(person for person, trains in side.items() if not trains)


def test_one_camera_keeps_same_camera_matches(tmp_path):
    draw(tmp_path, *(f"p{number}/{n}.jpg" for number in range(20) for n in (1, 2)))
    domain = open_domain(tmp_path)
    assert domain.same_camera == "keep"
    assert domain.cameras == ("0",)
    assert any("no file name gives its camera" in note for note in domain.notes)
    assert len(domain.query) == len(domain.gallery) > 0
    assert open_domain(tmp_path, same_camera="drop").same_camera == "drop"


def test_a_person_of_one_camera_is_no_query_where_cameras_are_known(tmp_path):
    draw(tmp_path, *(f"p{number}/{n}_cam4.jpg" for number in range(30) for n in (1, 2)), "z/1_cam5.jpg", "z/2.jpg")
    domain = open_domain(tmp_path)
    assert domain.same_camera == "drop"
    assert {identity for (split, _), (identity, _) in rows(domain).items() if split == "query"} <= {"z"}
    assert any("1 of 62" in note for note in domain.notes)


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("a_c3.jpg", "3"),
        ("c12_b.jpg", "12"),
        ("x-cam07-y.jpg", "7"),
        ("camera_2.png", "2"),
        ("CAM3.jpg", "3"),
        ("abc3.jpg", None),
        ("7.jpg", None),
    ],
)
def test_camera_from_a_file_name(tmp_path, name, camera):
    draw(tmp_path, f"train/p/{name}", "train/q/a_c99.jpg")
    found = {path: label for (_, path), (_, label) in rows(open_domain(tmp_path)).items()}
    assert found[f"train/p/{name}"] == (camera or "unknown")
