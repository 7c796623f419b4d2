"""Whether the stored results of the small-5 study stand for the code as it is now.

python -m benchmarks.small5_recheck                      # after a change that should move no figure: one run proves it
python -m benchmarks.small5_recheck --methods A,B        # of these methods' results alone
python -m benchmarks.small5_recheck --beside CHECKOUT    # on a processor of another kind than that of the results:
                                                         # beside their own code
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmarks.small5 import RESULTS, Trial, code_hash, result_key, study, write_results
from benchmarks.small5_tables import METHODS
from reid.config import Method

RECHECKED = ("default", "fusion")
BEFORE_THREADS = 2
"""Of results that do not say."""
ROUNDING = 0.05
"""Percent by which single scores may differ in a recheck: another processor rounds otherwise, and one query in fifty
may change places.
"""


def recheck(results: dict[str, Any], methods: Collection[str], beside: Path | None = None) -> None:
    """Repeat one stored test run with the code as it is now; if no figure of its matrix moved but by rounding, results
    of that code stand for this.

    Args:
        results: all stored results; those that stand are marked and written.
        methods: unless it is all, leaves out those whose own parts have changed: one run says nothing about them.
        beside: a checkout of the code that made the stored results, which repeats the run, too: on another kind of
            processor than theirs, only these two can be compared.
    """
    stale = [key for key, result in results.items() if result["kind"] == "test" and result["code"] != code_hash()]
    stale.reverse()  # the newest results are those that may still stand
    known = [
        results[key]
        for key in stale
        if (results[key]["seed"], results[key]["order"]) == (0, 1) and results[key]["method"] in RECHECKED
    ]
    if not known:
        print(
            f"nothing to recheck: no test result of {' or '.join(RECHECKED)}, seed 0, order 1, is older than the code"
        )
        return
    old = known[0]
    other = None if beside is None else start_run(old, beside)
    new = repeated(old)
    if other is not None:
        wanted, code = json.loads(other.communicate()[0].splitlines()[-1])
        if code != old["code"]:
            raise SystemExit(f"{beside} has code {code}, and the stored results are of {old['code']}")
    else:
        wanted = old["matrix"]
    moves = {
        key: max(abs(value - wanted[key][name]) for name, value in cell.items()) for key, cell in new["matrix"].items()
    }
    worst = max(moves, key=lambda key: moves[key])
    print(
        f"{sum(move > 0 for move in moves.values())} of {len(moves)} cells moved, the most by {moves[worst]:.4f} "
        f"({worst})"
    )
    if moves[worst] > ROUNDING:
        raise SystemExit("figures moved: the results are stale: run the tests again")
    for key in [
        key
        for key, result in results.items()
        if result["code"] == old["code"] and (methods is METHODS or result["method"] in methods)
    ]:
        result = results.pop(key)
        result |= {
            "code": code_hash(),
            "moved": max(result.get("moved", 0.0), moves[worst]),
            "carried": [*result.get("carried", []), result["code"]],
        }
        results[result_key(result["kind"], result["order"], result["settings"], result["about"], result["data"])] = (
            result
        )
    write_results(results)
    print("the stored results stand for the code as it is now")


def repeated(old: Mapping[str, Any]) -> dict[str, Any]:
    """Run a stored test run again, with the method as it was then, without keeping it."""
    again: dict[str, Any] = {}
    trial = Trial("test", old["method"], sets=old["sets"], chosen=Method.model_validate(old["about"]))
    study(trial, again, keep=False, threads=old.get("threads", BEFORE_THREADS))
    (new,) = again.values()
    return dict(new)


def start_run(old: Mapping[str, Any], checkout: Path) -> subprocess.Popen[str]:
    """Start a stored test run with another checkout's code; the last line that it prints is matrix and code hash."""
    threads = old.get("threads", BEFORE_THREADS)
    script = (
        "import json; from benchmarks.small5 import Method, Trial, code_hash, study; again = {}; "
        f"chosen = Method.model_validate({old['about']!r}); "
        f"trial = Trial('test', {old['method']!r}, sets={list(old['sets'])!r}, chosen=chosen); "
        f"study(trial, again, keep=False, threads={threads!r}); "
        "(new,) = again.values(); print(json.dumps([new['matrix'], code_hash()]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS, help="A,B; by default all")
    parser.add_argument("--beside", type=Path, help="on another processor: a checkout of the older code")
    options = parser.parse_args()
    recheck(json.loads(RESULTS.read_text("utf-8")), options.methods, options.beside)


if __name__ == "__main__":
    main()
