"""Damages files in every way that disks, copies and strangers do, and looks at what a reader makes of it, in a process
that may die.
"""

import contextlib
import multiprocessing
import os
import resource
import shutil
import struct
import traceback

from domains.errors import ReidError

EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
MEMORY = 3 * 2**30
SECONDS = 20.0


def damaged(data, draw):
    """The bytes with one accident: bits flipped, cut off, put in, taken out, zeroed, exchanged, doubled, or a length
    made absurd.
    """
    data = bytearray(data)
    kind = draw.choice(
        ["flip", "flip", "cut", "insert", "delete", "zero", "exchange", "length", "length", "double", "random"]
    )
    place = draw.randrange(len(data)) if data else 0
    size = min(len(data) - place, 2 ** draw.randrange(0, 12))
    if kind == "flip" and data:
        for _ in range(2 ** draw.randrange(4)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "insert":
        data[place:place] = draw.randbytes(2 ** draw.randrange(12))
    elif kind == "delete":
        del data[place : place + size]
    elif kind == "zero":
        data[place : place + size] = bytes(size)
    elif kind == "exchange" and data:
        other = draw.randrange(len(data))
        size = min(size, abs(other - place), len(data) - max(place, other))
        data[place : place + size], data[other : other + size] = data[other : other + size], data[place : place + size]
    elif kind == "length" and data:
        place = draw.randrange(min(len(data), 64)) if draw.random() < 0.5 else place
        form = draw.choice(["<I", ">I", "<Q", ">H", "<H"])
        value = draw.choice(EXTREMES) % 2 ** (8 * struct.calcsize(form))
        data[place : place + struct.calcsize(form)] = struct.pack(form, value)
    elif kind == "double":
        data[place:place] = data[place : place + size]
    elif kind == "random":
        data[place : place + size] = draw.randbytes(size)
    return bytes(data)


def damage_folder(folder, files, draw, stranger=None):
    """Damage one file of a folder: its bytes, or exchanged with another of the folder, or with the same one of a
    stranger; returns what was done.
    """
    name = draw.choice(files)
    path = folder / name
    data = path.read_bytes()
    lot = draw.random()
    path.unlink()  # it may be a link to the original
    if lot < 0.05 and len(files) > 1:
        other = draw.choice([file for file in files if file != name])
        content = (folder / other).read_bytes()
        (folder / other).unlink()
        (folder / other).write_bytes(data)
        path.write_bytes(content)
        return f"{name} exchanged with {other}"
    if lot < 0.1 and stranger is not None and (stranger / name).is_file():
        shutil.copyfile(stranger / name, path)
        return f"a stranger's {name}"
    path.write_bytes(damaged(data, draw))
    return f"{name} damaged"


def survey(count, case, *, first=0):
    """Examine cases in a process that may crash, hang or run out of memory.

    Args:
        count: how many.
        case: number → a line about what is wrong with that case, or a word that says how it ended, as ``"right"``;
            raises what the reader raises.
        first: number of the first.

    Returns:
        How often cases ended in which way, and lines about those that ended wrongly.
    """
    ends, wrong, at = {}, [], first
    while at < first + count:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=_work, args=(at, first + count, case, theirs))
        child.start()
        theirs.close()
        while at < first + count:
            if not ours.poll(SECONDS):
                child.kill()
                wrong.append(f"case {at} hangs")
                break
            try:
                end, line = ours.recv()
            except EOFError:
                child.join(5)
                wrong.append(f"case {at} kills the process ({child.exitcode})")
                break
            ends[end] = ends.get(end, 0) + 1
            if line:
                wrong.append(f"case {at}: {line}")
            at += 1
        else:
            child.join(30)
            continue
        child.join(30)
        at += 1
    return ends, wrong


def _work(start, stop, case, report):
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # what C libraries have to say about a damaged file
    with open("/proc/self/statm") as stream:
        present = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + MEMORY, present + MEMORY))
    for number in range(start, stop):
        try:
            said = case(number)
            report.send((said, "") if " " not in said else ("wrong", said))
        except ReidError as error:
            lines = str(error).splitlines()
            clear = len(lines) == 1 or all(
                line.startswith("  ") for line in lines[1:]
            )  # settings are listed below their heading
            report.send(("refused", "" if clear and lines else f"not one line: {error!r:.500}"))
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            report.send(("wrong", f"{type(error).__name__}: {error!s:.200} in {place.filename}:{place.lineno}"))
    with contextlib.suppress(OSError):
        report.close()
    os._exit(0)
