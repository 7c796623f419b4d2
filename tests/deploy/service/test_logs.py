"""What is logged: JSON, a line each, and no error often enough to fill a disk."""

import json
import logging

import pytest

from deploy.service import logs
from deploy.service.logs import CalmHandler, JsonFormatter, log_as_json, tell_suppressed


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def logger(clock):
    handler, written = CalmHandler(), []
    handler.setFormatter(JsonFormatter())
    handler.stream = type("Lines", (), {"write": lambda _, text: written.append(json.loads(text)), "flush": id})()
    logger = logging.Logger("service")
    logger.addHandler(handler)
    logger.written, logger.handler = written, handler
    return logger


def raised(kind=OSError):
    try:
        raise kind(24, "Too many open files")
    except kind as error:
        return error


REPEATED = {
    "the same text": lambda logger, _: logger.warning("Invalid HTTP request received."),
    "the same form": lambda logger, number: logger.error("client %d left", number),
    "numbers in the text": lambda logger, number: logger.error(f"socket {number} failed"),
    "addresses in the text": lambda logger, number: logger.error(f"<Transport at {hex(number + 10**9)}> failed"),
    "more lines": lambda logger, number: logger.error(f"out of system resource\nsocket: {'x' * (number % 7)}"),
    "fields": lambda logger, number: logger.error("a request failed", extra={"fields": {"request": number}}),
    "an exception": lambda logger, _: logger.error("accept failed", exc_info=raised()),
}


@pytest.mark.parametrize("write", REPEATED.values(), ids=REPEATED)
def test_an_error_that_repeats_is_written_once_a_second_and_counted(logger, clock, write):
    for number in range(1000):  # ten seconds
        write(logger, number)
        clock[0] += 0.01
    assert len(logger.written) <= 11
    logger.handler.close()
    assert sum(1 + line.get("suppressed", 0) for line in logger.written) == 1000
    assert "suppressed" not in logger.written[0]


DIFFERENT = {
    "texts": lambda logger, number: logger.error("abcdefgh"[number]),
    "levels": lambda logger, number: logger.log(30 + number, "same"),
    "exceptions": lambda logger, number: logger.error("same", exc_info=raised([OSError, ValueError][number % 2])),
}


@pytest.mark.parametrize("write", DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_is_not_suppressed_by_another(logger, write):
    for number in range(2):
        write(logger, number)
    assert len(logger.written) == 2


def test_requests_are_all_written(logger):
    for _ in range(50):
        logger.info("request")
    assert len(logger.written) == 50


def test_texts_without_end_are_bounded_too(logger, clock):
    for number in range(5000):
        logger.error("".join(chr(97 + int(digit)) for digit in str(number)))
    assert len(logger.written) <= logs.MOST_KINDS + 1
    clock[0] += 1
    logger.info("later")
    assert sum(1 + line.get("suppressed", 0) for line in logger.written) == 5001


def test_what_was_held_back_is_told_though_nothing_more_is_logged(clock, monkeypatch, capsys):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    levels = {name: logging.getLogger(name).level for name in ("", "deploy", "uvicorn")}
    try:
        log_as_json()
        for _ in range(5):
            logs.write_log(logging.ERROR, "no connection can be accepted for now")
        clock[0] += 1
        tell_suppressed()
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name in ("uvicorn.access", "python_multipart"):
            logging.getLogger(name).disabled = False
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], second["suppressed"]) == (second["event"], 3)
