"""Handles that belong to the process that opened them, and what a process forked from it does with them.

A fork copies memory but no thread, and locks on files stay with the parent. So in the child an inference session waits
for threads that are not there, and an SQLite connection must not even be closed: it would release or merge what is the
parent's ("How to corrupt an SQLite database file", section 2.6). Neither can be noticed afterwards; hence the child is
told as soon as it begins.
"""

from __future__ import annotations

import ctypes
import os
from weakref import WeakSet


class Opened:
    """Something that holds such a handle. Subclasses call :meth:`_belongs_here` once they have it."""

    def _belongs_here(self) -> None:
        _opened.add(self)

    def _after_fork(self) -> None:
        """Give the handle up, in the child; must not wait and not fail."""
        raise NotImplementedError


def abandon(handle: object) -> None:
    """Never destroy a handle: its destructor would do what the child must not."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


_opened: WeakSet[Opened] = WeakSet()


def _in_child() -> None:
    for item in list(_opened):
        item._after_fork()
    _opened.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
