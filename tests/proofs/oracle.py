"""What a gallery must hold after each of its operations, said in plain Python and NumPy.

Every person has one vector in each of three feature spaces, turned into each other in a circle; so what an entry's
vector must be is known in whatever space the gallery is, and however often it was carried.
"""

import sqlite3
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from tiny import DIM, unit

SPACES = ("ab" * 32, "bc" * 32, "cd" * 32)
DAYS = 30


def _turns():
    first, second = (np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0] for seed in (1, 2))
    return [turn.astype(np.float16).astype(np.float32) for turn in (first, second, (first @ second).T)]


TURNS = _turns()
"""From space 0 to 1, from 1 to 2, from 2 to 0."""


def vector_of(name, space):
    """The vector of a person in a space, ``[DIM]``."""
    vector = unit(np.random.default_rng(name), 1)[0]
    for turn in TURNS[:space]:
        vector = vector @ turn
    return vector / np.linalg.norm(vector)


def source_of(name):
    return f"/crops/person-{name}.png"


def time_of(*, old):
    return (datetime.now(UTC) - timedelta(days=2 * DAYS if old else 1)).isoformat(timespec="seconds")


@dataclass(frozen=True)
class State:
    """A gallery as it must be.

    Attributes:
        entries: id → (name, camera, whether it is older than ``DAYS``).
        last: the highest id ever given.
        space: which of the three is the present one.
        back: spaces that it can go back to, the last first.
        rule: whether camera ``short`` keeps entries for ``DAYS`` only.
    """

    entries: dict = field(default_factory=dict)
    last: int = 0
    space: int = 0
    back: tuple = ()
    rule: bool = False

    def after(self, kind, content=None):
        """The state that an operation leads to; names are ``(name, camera, old)``."""
        if kind == "add":
            ids = range(self.last + 1, self.last + 1 + len(content))
            return replace(
                self, entries={**self.entries, **dict(zip(ids, content, strict=True))}, last=self.last + len(content)
            )
        if kind == "forget":
            return replace(
                self, entries={number: entry for number, entry in self.entries.items() if number not in content}
            )
        if kind == "upgrade":
            return replace(self, space=(self.space + 1) % 3, back=(self.space, *self.back))
        if kind == "go back":
            return replace(self, space=self.back[0], back=self.back[1:])
        if kind == "drop old":
            return replace(self, back=())
        if kind == "keep":
            kept = {number: entry for number, entry in self.entries.items() if not (entry[1] == "short" and entry[2])}
            return replace(self, entries=kept if content else self.entries, rule=content)
        return self  # backup, search, reopen: they change nothing


def act(gallery, state, bundles, kind, content=None):
    """Do an operation to a real gallery."""
    if kind == "add":
        names, cameras, old = zip(*content, strict=True)
        vectors = np.stack([vector_of(name, state.space) for name in names])
        ids = gallery.add(
            vectors, cameras, [source_of(name) for name in names], time=[time_of(old=flag) for flag in old]
        )
        assert ids == list(range(state.last + 1, state.last + 1 + len(names)))
    elif kind == "forget":
        gallery.forget(content)
    elif kind == "upgrade":
        gallery.upgrade(bundles[(state.space + 1) % 3])
    elif kind == "go back":
        gallery.go_back()
    elif kind == "drop old":
        gallery.drop_old()
    elif kind == "keep":
        gallery.keep(DAYS if content else None, camera="short")
    elif kind == "backup":
        gallery.backup(content)
    elif kind == "search":
        gallery.search(vector_of(content, state.space))
        gallery._save_index()


def choose(draw, state, folder):
    """Draw the next operation: kind and content."""
    kinds = ["add"] * 8 + ["search"]
    kinds += (
        ["forget"] * 3 * bool(state.entries)
        + ["upgrade"] * 2
        + ["go back"] * bool(state.back)
        + ["drop old", "keep", "backup"]
    )
    kind = draw.choice(kinds)
    if kind == "add":
        cameras = [draw.choice(["short", "gate", "yard"]) for _ in range(draw.randint(1, 6))]
        return kind, [(draw.randrange(10**9), camera, draw.random() < 0.4 and not state.rule) for camera in cameras]
    if kind == "forget":
        return kind, draw.sample(sorted(state.entries), draw.randint(1, min(5, len(state.entries))))
    if kind == "keep":
        return kind, not state.rule
    if kind == "backup":
        return kind, str(folder.parent / f"backup-{draw.randrange(10**12)}")
    return kind, draw.randrange(10**9) if kind == "search" else None


def blobs(folder):
    """Every stored vector, as bytes, by entry."""
    found = {}
    database = sqlite3.connect(folder / "gallery.db")
    try:
        for table in ("entry", "carried"):
            for number, data in database.execute(f"SELECT id, vector FROM {table}"):
                found.setdefault(number, set()).add(data)
    finally:
        database.close()
    return found


def raw(folder):
    """The bytes of every file below a folder."""
    return b"\0".join(file.read_bytes() for file in Path(folder).rglob("*") if file.is_file())


def differs(gallery, state):
    """Why an open gallery is not in a state, or None. Looks at ids, origins, space, rule, the way back and every
    vector.
    """
    if gallery.ids() != sorted(state.entries):
        return f"ids {gallery.ids()} instead of {sorted(state.entries)}"
    if gallery.feature_space != SPACES[state.space]:
        return f"space {gallery.feature_space:.4} instead of {SPACES[state.space]:.4}"
    if gallery.retention() != ({"short": DAYS} if state.rule else {}):
        return f"rule {gallery.retention()}"
    source = gallery._store.ask("SELECT source FROM space WHERE number = (SELECT space FROM gallery)")[0][0]
    if (source is not None) != bool(state.back):
        return f"going back is {'' if source is not None else 'not '}possible"
    for number, entry in gallery.entries(sorted(state.entries)).items():
        name, camera, _ = state.entries[number]
        if (entry.source, entry.camera) != (source_of(name), camera):
            return f"entry {number} is {entry}"
    if state.entries:
        stored = np.concatenate([*gallery._store.vectors()]).astype(np.float64)
        wanted = np.stack([vector_of(name, state.space) for _, (name, *_) in sorted(state.entries.items())])
        cosine = (stored * wanted).sum(1) / np.linalg.norm(stored, axis=1)
        if cosine.min() < 0.995:
            return (
                f"vector of entry {sorted(state.entries)[int(cosine.argmin())]} has cosine {cosine.min():.3f} with "
                "its own"
            )
    return None


def check_search(gallery, state, draw, queries=3):
    """Compare searches, filtered and not, with a scan of the stored vectors; ties go by id."""
    if not state.entries:
        assert gallery.search(vector_of(1, state.space)) == [[]]
        return
    ids = np.array(sorted(state.entries))
    rows = np.concatenate([*gallery._store.vectors()]).astype(np.float64)
    cameras = np.array([state.entries[number][1] for number in ids])
    names = draw.sample([name for name, *_ in state.entries.values()], min(queries, len(ids)))
    for camera in (None, "gate"):
        allowed = np.flatnonzero(cameras == camera) if camera else np.arange(len(ids))
        for name in names:
            query = vector_of(name, state.space)
            exact = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
            cosines = (rows[allowed] * exact).sum(1) / np.sqrt((rows[allowed] * rows[allowed]).sum(1))
            order = np.lexsort((ids[allowed], -cosines))[:10]
            found = gallery.search(query, k=10, camera=camera)[0]
            assert [match.id for match in found] == ids[allowed][order].tolist()
            assert np.allclose([match.score for match in found], cosines[order], atol=1e-6)
            if camera is None:
                assert found[0].source == source_of(name)
