"""Scores in one gallery, kept in a run's folder: read as they were written, shown by the report, erased with a site."""

import json
import stat

import pytest

from domains.errors import ArtefactError, UsageError
from reid.run import Run, one_gallery, scoring
from reid.run.folder import locked
from reid.run.report import write_report

HEADING = "One gallery for all sites"


@pytest.fixture
def measured(run, sites):
    """A run that measured two sites, and what it found in one gallery of three after the last step."""
    for site in sites[:2]:
        run.learn(site, method="metric")
    return run, score(run, sites)


def score(run, sites, step=-1):
    found = scoring.in_one_gallery(run, sites, step=step)
    one_gallery.keep(run, run.sealed(step), sites, found)
    return found


def page_of(run, tmp_path):
    write_report(run, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def test_what_is_kept_is_read_again(measured, sites):
    run, found = measured
    (step, kept), *others = one_gallery.read(run.folder).items()
    assert (step, others) == (run.steps[-1].card["id"], [])
    assert {name: site["data"] for name, site in kept.sites.items()} == {
        site.name: site.test_fingerprint for site in sites
    }
    assert tuple(kept.scores) == one_gallery.METRICS
    for metric, by_site in found.items():
        for name, scores in by_site.items():
            assert kept.scores[metric][name] == pytest.approx(scores.to_dict(), abs=1e-4)
        assert kept.value(metric, "mAP") == pytest.approx(sum(one.mAP for one in by_site.values()) / 3, abs=1e-4)
    assert stat.S_IMODE((run.folder / one_gallery.FILE).stat().st_mode) == 0o600


def test_the_report_shows_the_last_step_beside_the_start(measured, sites, tmp_path):
    run, found = measured
    page = page_of(run, tmp_path)
    assert HEADING in page
    assert "by 02-second" in page
    assert "start: cosine" not in page
    assert "More was learned since" not in page
    for metric in ("cosine", "mixed"):
        for one in found[metric].values():
            assert f"{one.mAP:.1f}<br><small>{one.rank1:.1f}</small>" in page
    assert list(score(run, sites, step=0)) == ["cosine"]
    page = page_of(run, tmp_path)
    assert "start: cosine" in page
    assert "by 02-second" in page
    score(run, sites[:2])
    assert "start: cosine" not in page_of(run, tmp_path), "that was another gallery"


def test_a_run_that_keeps_nothing_has_no_such_section(run, tmp_path):
    assert one_gallery.read(run.folder) == {}
    assert HEADING not in page_of(run, tmp_path)


def test_the_report_says_what_is_no_longer_so(measured, sites, tmp_path):
    run, _ = measured
    run.learn(sites[2], method="metric")
    page = page_of(run, tmp_path)
    assert "by 02-second" in page
    assert "More was learned since" in page
    run.fill_scores(sites[:1])
    run.scores.scored["first"] |= {"data": "others"}
    assert "others by now: first." in page_of(run, tmp_path)
    run.drop_last()
    run.drop_last()
    assert "steps that are gone" in page_of(run, tmp_path)
    score(run, sites)
    assert len(one_gallery.read(run.folder)) == 1, "those of steps that are gone are dropped"


@pytest.mark.parametrize("what", [{"domain": "first"}, {"domain": "third"}])
def test_an_erased_site_is_not_named_any_more(measured, sites, tmp_path, what):
    run, _ = measured
    score(run, sites, step=0)
    planned = run.forget(**what, dry_run=True)
    assert one_gallery.FILE in planned.files
    assert one_gallery.FILE not in planned.others
    assert (run.folder / one_gallery.FILE).exists()
    run.forget(**what)
    assert not (run.folder / one_gallery.FILE).exists()
    assert not [file for file in run.folder.glob("*.json") if what["domain"].encode() in file.read_bytes()]
    assert HEADING not in page_of(Run.open(run.folder), tmp_path)


def test_a_site_that_was_never_there_is_still_none(measured):
    with pytest.raises(UsageError, match="no domain 'thrid'; did you mean 'third'"):
        measured[0].forget(domain="thrid")


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.update(schema=2),
        lambda stored: stored.update(steps=[]),
        lambda stored: stored["steps"].update(x=None),
        lambda stored: entry(stored).update(scores={}),
        lambda stored: entry(stored).update(domains={}),
        lambda stored: entry(stored)["domains"].pop("first"),
        lambda stored: entry(stored)["domains"].update(first={"same_camera": "drop"}),
        lambda stored: entry(stored)["scores"].update(guessed=entry(stored)["scores"]["own"]),
        lambda stored: entry(stored)["scores"]["own"]["first"].update(mAP=101),
        lambda stored: entry(stored)["scores"]["own"]["first"].pop("rank1"),
    ],
)
def test_a_damaged_file_is_a_line_in_the_report_and_is_replaced(measured, sites, tmp_path, change):
    run, found = measured
    path = run.folder / one_gallery.FILE
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(ArtefactError, match="reid evaluate --union will write it again") as caught:
        one_gallery.read(run.folder)
    assert "\n" not in str(caught.value)
    assert "one_gallery.json can't be read" in page_of(run, tmp_path)
    one_gallery.keep(run, run.sealed(), sites, found)
    assert len(one_gallery.read(run.folder)) == 1
    assert "can't be read" not in page_of(run, tmp_path)


def entry(stored):
    return next(iter(stored["steps"].values()))


def test_a_site_named_only_by_a_damaged_file_can_be_forgotten_once_that_is_gone(measured):
    run, _ = measured
    (run.folder / one_gallery.FILE).write_text("{")
    with pytest.raises(ArtefactError, match="not valid JSON"):
        run.forget(domain="third")
    run.forget(domain="first")
    assert not (run.folder / one_gallery.FILE).exists()


def test_nothing_is_kept_while_another_process_learns(measured, sites):
    run, found = measured
    before = (run.folder / one_gallery.FILE).read_bytes()
    with locked(run.folder), pytest.raises(UsageError, match="another process"):
        one_gallery.keep(run, run.sealed(), sites[:2], found)
    assert (run.folder / one_gallery.FILE).read_bytes() == before
