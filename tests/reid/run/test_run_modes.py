"""A run and the bundle made of it are read by their owner only, whatever the umask; what is passed on follows it."""

import stat

import pytest
from modes import readable, umask, watched
from running import SETTINGS, Stop, StopAt

from reid.config import build_config
from reid.run import Run
from reid.run.report import write_report


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0o000, 0o022], ids=oct)
def test_all_that_is_done_to_a_run(tmp_path, monkeypatch, sites, mask):
    outer = tmp_path / "outer"
    outer.mkdir(mode=0o700)
    with umask(mask), watched(monkeypatch, outer) as found:
        run = Run.create(outer / "run", build_config(SETTINGS))
        run.learn(sites[0])
        with pytest.raises(Stop):
            run.learn(sites[1], progress=StopAt(3))
        assert list(outer.glob("run/steps/*/.inprogress/*"))
        assert readable(outer) == []
        run = Run.open(outer / "run")
        run.learn(sites[1])
        run.forget(domain="first")
        write_report(run, outer / "report.html")
        run.drop_last()
    assert readable(outer) == []
    assert found == set()
    assert (outer / "run" / ".lock").exists()
    assert stat.S_IMODE((outer / "report.html").stat().st_mode) == 0o666 & ~mask


def test_a_run_in_an_empty_folder_that_is_open_to_all(tmp_path):
    folder = tmp_path / "run"
    with umask(0):
        folder.mkdir()
        Run.create(folder, build_config(SETTINGS))
    assert readable(folder) == []


def test_what_its_owner_opened_stays_open(tmp_path, run, sites):
    run.learn(sites[0])
    opened = [run.folder / "run.yaml", *run.folder.glob("steps/*/*.*")]
    for file in opened:
        file.chmod(0o644)
    run.forget(domain="first")
    assert {stat.S_IMODE(file.stat().st_mode) for file in opened if file.exists()} == {0o644}
