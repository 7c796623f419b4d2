"""Progress where stderr is piped: a line every so often, whatever the work reports and for as long as it runs."""

import io
import threading
import time

import pytest
from rich.console import Console

from reid.progress import Progress, Reporter, Tick


class Stream(io.StringIO):
    """Counts lines, and lets a test wait for them."""

    def wait(self, lines, patience=60):
        ends = time.monotonic() + patience
        while self.getvalue().count("\n") < lines:
            assert time.monotonic() < ends, self.getvalue()
            time.sleep(0.01)
        return self.getvalue().splitlines()


@pytest.fixture
def stream():
    return Stream()


@pytest.fixture
def progress(stream):
    console = Console(file=stream, width=200)
    return Progress(console, Reporter(console, every=0.05))


def test_a_task_that_reports_nothing_is_not_silent(progress, stream):
    with progress.task("verifying", None):
        lines = stream.wait(2)
    assert all(line.startswith("verifying: ") and line.endswith(" so far") for line in lines)


def test_lines_say_how_far_it_is(progress, stream):
    with progress.task("adding a\x1b[2J", 200) as tick:
        tick.advance(50)
        lines = stream.wait(1)
        tick.losses(60, {"triplet": 0.5})
        latest = stream.wait(len(lines) + 2)[-1]
    assert lines[0].startswith("adding a\\x1b[2J: 50 of 200, ")
    assert "left" in lines[0]
    assert "60 of 200" in latest
    assert latest.endswith("triplet 0.50")


def test_the_innermost_task_is_reported_and_then_the_outer_one_again(stream):
    console = Console(file=stream, width=200)
    reporter = Reporter(console, every=0.05)
    with reporter.doing(Tick("reid gallery add")):
        stream.wait(1)
        with Progress(console, reporter).task("embedding", 3):
            before = len(stream.getvalue().splitlines())
            inner = stream.wait(before + 2)[-1]
        before = len(stream.getvalue().splitlines())
        outer = stream.wait(before + 2)[-1]
    assert inner.startswith("embedding: 0 of 3")
    assert outer.startswith("reid gallery add: ")


def test_nothing_is_said_once_the_work_is_done_or_failed(progress, stream):
    with pytest.raises(ZeroDivisionError), progress.task("failing", 1):
        raise ZeroDivisionError
    with progress.task("short", 1):
        pass
    for thread in threading.enumerate():
        if thread.name == "progress":
            thread.join(60)
    said = stream.getvalue()
    time.sleep(0.2)
    assert stream.getvalue() == said


def test_without_a_console_nothing_is_shown():
    with Progress().task("anything", 3) as tick:
        tick.advance(1)
        tick.losses(2, {"a": 1.0})
    Progress().say("anything")
