"""Names in a report and in a map of domains: shown, and never obeyed."""

import pytest

from domains.text import is_unseen
from reid.run.relate import picture, relate
from reid.run.report import write_report

NAME = "site\x1b[2J\u202e\u2028<b>"


@pytest.mark.slow
def test_a_report_and_a_map_hold_no_raw_character(run, tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / NAME)
    run.learn(site)
    run.fill_scores()
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    drawn = picture(relate(run, tiny_domain(tmp_path / f"other{NAME}", seed=1)))
    for text in (page, drawn):
        assert not {letter for letter in text if is_unseen(letter)} - {"\n"}
        assert "\\x1b[2J\\u202e\\u2028&lt;b&gt;" in text
