"""The demo, with as little drawing and training as still lets its bundle be calibrated."""

import re
import shlex

import pytest

from deploy import Gallery, Thresholds
from deploy.bundle import Bundle
from reid import demo


@pytest.mark.slow
def test_the_demo_is_calibrated_shows_verdicts_and_ends_with_its_page(reid, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PEOPLE", 48)
    small = {"model": {**demo.SETTINGS["model"], "backbone": "test_resnet", "dim": 64}}
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | small | {"train": demo.SETTINGS["train"] | {"iterations": 8}})
    drawn = []
    monkeypatch.setattr("deploy.answers.picture.draw_matches", spied(drawn))
    folder = tmp_path / "with a space"
    code, out, err = reid("demo", "--output", folder)
    assert code == 0, err
    bundle = Bundle.load(folder / "bundle")
    assert set(bundle.thresholds) == set(demo.STYLES)
    limits = Thresholds.from_bundle(bundle)
    verdicts = [match.verdict for matches in drawn for match in matches]
    assert verdicts == [limits.verdict(match.score) for matches in drawn for match in matches]
    page = (folder / "report.html").read_text()
    assert f"same person from {limits.same:.3f}, unsure from {limits.unsure:.3f}" in page
    assert re.search(r"plaza: (same person|unsure|no match), [01]\.\d+", page)
    text = out.replace("\n", " ")
    assert f"same person from a cosine of {limits.same:.3f}" in text
    words = shlex.split(out.strip().splitlines()[-1].partition("8080: ")[2])
    assert words == ["reid", "serve", str(folder / "gallery"), "--pictures", str(folder / "domains")]
    with Gallery.open(folder / "gallery") as gallery:
        assert Thresholds.from_bundle(Bundle.load(gallery.bundle)) == limits, "what the page will judge by"


def spied(drawn):
    from deploy.answers.picture import draw_matches

    def draw(crop, matches, **options):
        drawn.append(matches)
        return draw_matches(crop, matches, **options)

    return draw
