"""Ctrl-C at any moment: one line, and the exit code that shells know; never a traceback."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
# whoever started the tests may ignore the signal, as a shell does for its background jobs
signal.signal(signal.SIGINT, signal.SIG_IGN if {ignored} else signal.default_int_handler)

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

sys.meta_path.insert(0, Pressed())
from reid.__main__ import main
main()
"""
AGAIN = "; the same command continues where it stopped"
MOMENTS = {
    "while the command line is imported": ("typer", ["report", "nowhere"], ""),
    "while a command is imported": ("reid.commands.serve", ["report", "nowhere"], ""),
    "while what learns is imported": ("typer", ["learn", "run", "nowhere"], AGAIN),
    "while numbers are imported": ("numpy", ["stream", "small5", "--run", "run"], AGAIN),
    "in a command": ("reid.run.report", ["report", "nowhere"], ""),
    "in learning": ("reid.recipe", ["learn", "run", "nowhere"], AGAIN),
    "in a stream": ("reid.run.stream", ["stream", "small5", "--run", "run"], AGAIN),
    "with --debug": ("reid.run.stream", ["--debug", "stream", "small5", "--run", "run"], AGAIN),
}


def pressed(moment, words, *, folder, ignored=False):
    program = PROGRAM.format(moment=moment, ignored=ignored)
    return subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("case", MOMENTS)
def test_one_line_and_the_code_of_an_interrupt(tmp_path, case):
    moment, words, again = MOMENTS[case]
    done = pressed(moment, words, folder=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    if case != "with --debug":
        said = [line for line in done.stderr.splitlines() if not line.endswith(" so far")]  # progress, if it is slow
        assert said == [f"reid: interrupted{again}"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["typer", "reid.run.report"])
def test_who_ignores_it_goes_on_ignoring_it(tmp_path, moment):
    done = pressed(moment, ["report", "nowhere"], folder=tmp_path, ignored=True)
    assert done.returncode == 1
    assert "nowhere is not a run" in done.stderr


def test_nothing_of_others_is_imported_before_an_interrupt_is_expected():
    code = (
        "import sys; import reid.__main__; new = {name.split('.')[0] for name in sys.modules}; "
        "assert not new - {'reid', '__main__'} - sys.stdlib_module_names - known, new; "
        "assert not {'reid.cli', 'importlib.metadata'} & set(sys.modules) - known"
    )
    code = f"import sys; known = set(sys.modules); {code}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
