"""Run by ``test_every_command.py``: all commands of a table, one after another in one process, whose standard streams
are what that test made them. Between two commands it writes a marker to those that take it.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

MARK = "\x02{}\x03"


def mark(name):
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.write(number, MARK.format(name).encode())


def walk(cases, results):
    from reid.cli import main

    codes = {}
    for name, words in json.loads(Path(cases).read_text()):
        mark(name)
        sys.argv = ["reid", *words]
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        try:
            main()
        except SystemExit as stop:
            codes[name] = stop.code
        except BaseException as error:
            codes[name] = f"raised {error!r}"
    Path(results).write_text(json.dumps(codes))


if __name__ == "__main__":
    walk(*sys.argv[1:])
