"""What SQLite's errors mean to the owner of a gallery."""

from __future__ import annotations

import sqlite3


def reason(error: sqlite3.Error, busy_seconds: float, kept: str = "nothing was changed") -> str:
    """One sentence: what was wrong, what became of the work, and what to do."""
    name = getattr(error, "sqlite_errorname", "")
    reasons = {
        "SQLITE_BUSY": f"another process has been writing for over {busy_seconds:.0f} s; try again",
        "SQLITE_LOCKED": f"another process has been writing for over {busy_seconds:.0f} s; try again",
        "SQLITE_FULL": f"the disk is full; {kept}, make room and try again",
        "SQLITE_CORRUPT": "the database is damaged; restore a backup",
        "SQLITE_NOTADB": "this is not a gallery's database",
        "SQLITE_CANTOPEN": "can't be opened; does it exist, and may you read and write it?",
        "SQLITE_READONLY": "can't be written; check the permissions of the gallery's folder",
        "SQLITE_IOERR": f"the disk failed ({name}); {kept}",
    }
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return "the gallery is closed; open it again"
    for prefix, text in reasons.items():
        if name == prefix or name.startswith(f"{prefix}_"):
            return text
    return f"{error}; the database is damaged or not a gallery's"
