"""The study's tables, from the results that are committed."""

import json
import re

from benchmarks import small5_tables
from benchmarks.small5 import RESULTS


def committed():
    return [result for result in json.loads(RESULTS.read_text()).values() if result["kind"] != "dev"]


def test_every_committed_result_has_its_place_in_a_table():
    found, text = committed(), small5_tables.whole(committed())
    rows = {tuple(cell.strip() for cell in line.split("|")[1:4]) for line in text.splitlines() if line.startswith("|")}
    for result in found:
        if result["method"] in small5_tables.METHODS and result["kind"] in ("test", "strong"):
            seeds = sum(
                (other["kind"], other["method"], other["order"]) == (result["kind"], result["method"], result["order"])
                for other in found
            )
            assert (result["method"], str(result["order"]), str(seeds)) in rows


def test_a_mean_is_given_with_the_deviation_over_seeds():
    one = next(
        result for result in committed() if result["kind"] == "test" and result["method"] in small5_tables.METHODS
    )
    more = [
        one | {"seed": seed, "summary": {**one["summary"], "plasticity": {"mAP": value}}}
        for seed, value in enumerate((30.0, 32.0, 34.0))
    ]
    assert "| 32.0 ± 2.0 |" in small5_tables.table(more)


def test_tables_go_between_their_marks_and_nothing_else_is_touched(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{small5_tables.MARKS[0]}\nold\n{small5_tables.MARKS[1]}\nafter\n")
    for text in ("new", "newer"):
        small5_tables.write(page, text)
    assert page.read_text() == f"before\n{small5_tables.MARKS[0]}\n\nnewer\n\n{small5_tables.MARKS[1]}\nafter\n"
    assert small5_tables.written(page) == "newer"


def test_the_pages_show_what_the_results_say():
    shown = small5_tables.written(small5_tables.DOCUMENT)
    code = re.match("Code `([0-9a-f]{16})`; ", shown)[1]
    found = [result for result in committed() if result["code"] == code]
    assert shown.removeprefix(f"Code `{code}`; ") == small5_tables.whole(found)
    assert small5_tables.written(small5_tables.README) == small5_tables.summary(found)
