"""A byte that went bad by itself is found, wherever it lies, or changes nothing; what can be mended is mended."""

import random
import shutil
import sqlite3
from contextlib import suppress

import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.gallery.upgrade import Plan, carry
from deploy.store.seal import write_seal
from deploy.store.store import CHUNK, Facts
from deploy.store.wal import find_damage
from domains.errors import GalleryError
from prototypes.passage import Passage

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two spaces, rules, a backup, pictures, an index of an earlier state, and changes that are in the
    log only.
    """
    rng = np.random.default_rng(5)
    place = tmp_path_factory.mktemp("damage")
    gallery = Gallery.create(place / "gallery", DIM, SPACE, bundle="bundle", keep_crops=True)
    crops = list(rng.integers(0, 256, (30, 40, 20, 3), np.uint8))
    gallery.add(
        unit(rng, 30),
        ["a", "b", "c"] * 10,
        [f"/{number}" for number in range(30)],
        time="2026-06-01T00:00:00Z",
        label="x",
        crops=crops,
    )
    matrix = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    carry(gallery._store, Plan(Facts(DIM, "cd" * 32, "other"), Passage(matrix=matrix), ((0.9, 0.1),)))
    gallery.keep(3000)
    gallery.keep(2000, camera="a")
    gallery.backup(place / "copy")
    gallery.prepare()
    gallery._save_index()
    gallery._store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for turn in range(6):
        gallery.add(unit(rng, 3), "late", [f"/late/{turn}/{number}" for number in range(3)])
    shutil.copytree(gallery.path, place / "kept")
    gallery.close()
    assert (place / "kept" / "gallery.db-wal").stat().st_size > 10_000
    return place / "kept"


def open_copy(whole, tmp_path, *changes):
    """Open a copy in which bytes were changed: ``(file, place, bits)``."""
    folder = tmp_path / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / "gallery.db-shm").unlink(missing_ok=True)  # belongs to running processes; none is
    for name, at, bits in changes:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= bits
        (folder / name).write_bytes(data)
    return Gallery.open(folder)


def everything(gallery):
    """All that a gallery can be asked, as one value."""
    ids = gallery.ids()
    queries = unit(np.random.default_rng(6), 3)
    info = {key: value for key, value in gallery.info().items() if key not in ("bytes", "index")}
    crops = [None if (crop := gallery.crop(number)) is None else crop.tobytes() for number in ids]
    return (
        gallery.search(queries, k=100),
        gallery.search(queries, k=100, camera="a"),
        gallery.entries(ids),
        info,
        crops,
        gallery.audit(),
        gallery.retention(),
        gallery.backups(),
        gallery.older_than(0) == ids,
        gallery.go_back(),
        gallery.search(queries, k=100),
        gallery.bundle,
    )


def escaped(whole, tmp_path, wanted, change):
    """Whether a changed byte has an effect that nothing finds."""
    try:
        with open_copy(whole, tmp_path, change) as gallery:
            said = " ".join(gallery.verify())
            if "rebuilt" in said or "damaged" in said:
                return False
            return everything(gallery) != wanted
    except GalleryError as error:
        return "\n" in str(error)


def flips(whole, tmp_path, count, seed):
    with open_copy(whole, tmp_path) as gallery:
        assert gallery.verify()[1] == "index: agrees with the database"
        wanted = everything(gallery)
    draw = random.Random(seed)
    files = [file for file in sorted(whole.iterdir()) if file.name != "gallery.db-shm"]
    assert {file.name for file in files} == {"gallery.db", "gallery.db-wal", "index.faiss", "index.npz", "index.json"}
    bad = []
    for turn in range(count):
        file = files[turn % len(files)]
        change = (file.name, draw.randrange(file.stat().st_size), 1 << draw.randrange(8))
        if escaped(whole, tmp_path, wanted, change):
            bad.append(change)
    return bad


def test_a_flipped_bit_is_found_or_changes_nothing(whole, tmp_path):
    assert flips(whole, tmp_path, 60, 1) == []


@pytest.mark.nightly
def test_many_flipped_bits_are_found_or_change_nothing(whole, tmp_path):
    assert flips(whole, tmp_path, 10_000, 2) == []


def at_of(file, needle, nth=0):
    data, at = file.read_bytes(), -1
    for _ in range(nth + 1):
        at = data.index(needle, at + 1)
    return at


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE retention SET days = 2999 WHERE camera = ''", "facts or rules"),
        ("UPDATE gallery SET space = 1", "facts or rules"),
        ("UPDATE gallery SET entries = 47", "facts or rules"),
        ("UPDATE sqlite_sequence SET seq = 3", "facts or rules"),
        ("UPDATE space SET map = zeroblob(length(map)) WHERE number = 2", "facts or rules"),
        ("DELETE FROM audit WHERE number = (SELECT max(number) FROM audit)", "facts or rules"),
        ("DELETE FROM backup", "facts or rules"),
        ("UPDATE entry SET added = added - 1 WHERE id = 7", "entry 7 of"),
        ("UPDATE entry SET origin = 2 WHERE id = 7", "entry 7 of"),
        ("UPDATE entry SET space = 2 WHERE id = 7", "entry 7 of"),
        ("UPDATE entry SET stamp = 0 WHERE id = 7", "entry 7 of"),
        ("UPDATE entry SET label = 'y' WHERE id = 7", "entry 7 of"),
        ("UPDATE carried SET vector = zeroblob(length(vector)) WHERE id = 7", "entry 7 of"),
        ("UPDATE crop SET jpeg = zeroblob(length(jpeg)) WHERE id = 7", "stored crop of entry 7"),
        ("DELETE FROM entry WHERE id = 7", "list of entries"),
    ],
)
def test_a_row_that_nobody_wrote_is_found(whole, tmp_path, statement, found):
    with open_copy(whole, tmp_path) as gallery:
        folder = gallery.path
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute(statement)
    db.close()

    def look():
        with Gallery.open(folder) as opened:
            opened.verify()

    with pytest.raises(GalleryError, match=found) as caught:
        look()
    assert "restore a backup" in str(caught.value)


def test_a_search_does_not_answer_from_a_damaged_row(whole, tmp_path):
    with open_copy(whole, tmp_path) as gallery:
        gallery._store._db.execute("UPDATE entry SET space = 2 WHERE id = 7")
        with pytest.raises(GalleryError, match="entry 7 of"):
            gallery.search(unit(np.random.default_rng(0), 1), k=100)
        gallery._store._db.execute("UPDATE crop SET checksum = checksum + 1 WHERE id = 8")
        with pytest.raises(GalleryError, match="stored crop of entry 8"):
            gallery.crop(8)


# -------------------------------------------------------------------------------------------------------------- the log


def test_damage_in_the_log_that_hides_acknowledged_changes_is_refused(whole, tmp_path):
    log = whole / "gallery.db-wal"
    assert find_damage(log) is None
    for at in (3, 20, 33, 41, 50, 100, log.stat().st_size // 2):
        with pytest.raises(GalleryError, match="--repair"):
            open_copy(whole, tmp_path, ("gallery.db-wal", at, 16))
    found = Gallery.repair(tmp_path / "gallery")
    assert "is damaged at byte" in found[0]
    assert "are lost" in found[0]
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert 30 <= len(gallery) < 48
        gallery.verify()


def test_a_last_change_that_is_not_whole_is_said(whole, tmp_path, caplog):
    with open_copy(whole, tmp_path, ("gallery.db-wal", (whole / "gallery.db-wal").stat().st_size - 50, 1)) as gallery:
        assert len(gallery) == 45
        assert "in its last change" in caplog.text
        assert "in its last change" in gallery.verify()[-1]


def test_a_torn_tail_is_nothing(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "torn")
    (tmp_path / "torn" / "gallery.db-shm").unlink(missing_ok=True)
    log = tmp_path / "torn" / "gallery.db-wal"
    for cut in (10, 5000, log.stat().st_size - 40, log.stat().st_size):
        log.write_bytes((whole / "gallery.db-wal").read_bytes()[:-cut])
        assert find_damage(log) is None
    with Gallery.open(tmp_path / "torn") as gallery:
        assert len(gallery) == 30
        assert len(gallery.verify()) == 3


def test_the_log_of_a_working_writer_is_never_called_damaged(tmp_path):
    rng = np.random.default_rng(0)
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as gallery:
        for turn in range(60):
            gallery.add(unit(rng, 40), "c", [f"/{turn}/{number}" for number in range(40)])
            if turn % 25 == 20:
                gallery._store._db.execute("PRAGMA wal_checkpoint(RESTART)")  # old frames stay behind new ones
            assert find_damage(gallery.path / "gallery.db-wal") is None


# -------------------------------------------------------------------------------------------------------------- mending


def test_repair_of_what_is_whole_does_nothing(whole, tmp_path):
    with open_copy(whole, tmp_path) as gallery:
        before = gallery.audit()
    assert Gallery.repair(gallery.path) == []
    with Gallery.open(gallery.path) as again:
        assert again.audit() == before


def test_repair_mends_facts_and_names_entries(whole, tmp_path):
    with open_copy(whole, tmp_path) as gallery:
        folder = gallery.path
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute("UPDATE retention SET days = 2999 WHERE camera = ''")
    db.execute("UPDATE entry SET label = 'y' WHERE id = 7")
    db.close()
    found = Gallery.repair(folder)
    assert [text for text in found if text.startswith("repaired: the gallery's metadata")]
    assert [text for text in found if text.startswith("still damaged: entry 7 of") and "restore a backup" in text]
    with Gallery.open(folder) as gallery:
        with pytest.raises(GalleryError, match="entry 7 of"):
            gallery.verify()
        gallery.forget([7])
        assert len(gallery.verify()) == 3
        assert gallery.audit()[-2]["action"] == "repair"


def changed(folder, *statements, sealed=False):
    """Change a gallery's database from outside, and seal it again as an earlier repair did."""
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    for statement in statements:
        db.execute(statement)
    if sealed:
        write_seal(db)
    db.close()


MENDED = {
    "UPDATE retention SET days = 'zz' WHERE camera = 'a'": "rule that keeps camera 'a' for 'zz' days",
    "UPDATE retention SET days = x'ff00' WHERE camera = 'a'": "rule that keeps camera 'a'",
    "UPDATE retention SET days = 9223372036854775807 WHERE camera = 'a'": "rule that keeps camera 'a'",
    "UPDATE retention SET days = '' WHERE camera = 'a'": "rule that keeps camera 'a' for '' days",
    "UPDATE retention SET days = 0 WHERE camera = 'a'": "rule that keeps camera 'a' for 0 days",
    "UPDATE retention SET days = 1.5 WHERE camera = 'a'": "rule that keeps camera 'a' for 1.5 days",
    "UPDATE retention SET camera = CAST(x'ff' AS TEXT) WHERE camera = 'a'": "rule that keeps camera",
    "UPDATE retention SET camera = NULL WHERE camera = 'a'": "rule that keeps camera None",
    "UPDATE backup SET path = NULL": "record of the backup None",
    "UPDATE backup SET path = x'ff00'": "record of the backup",
    "UPDATE backup SET path = 'a' || char(0)": "record of the backup",
    "UPDATE backup SET path = ''": "record of the backup ''",
    "UPDATE backup SET time = x'ff'": "record of the backup",
    "UPDATE gallery SET entries = 'zz'": "fact 'entries'",
    "UPDATE gallery SET entries = -5": "fact 'entries'",
    "UPDATE gallery SET base = x'ff'": "fact 'base'",
    "UPDATE gallery SET unwiped = 'zz'": "fact 'unwiped'",
    "UPDATE sqlite_sequence SET seq = 'zz' WHERE name = 'entry'": "last number given in the table entry",
    "UPDATE sqlite_sequence SET seq = 3 WHERE name = 'entry'": "last number given in the table entry",
    "DELETE FROM sqlite_sequence": "last number given in the table",
    "UPDATE clock SET trusted = 'zz'": "last trusted time",
    "UPDATE clock SET trusted = 5": "last trusted time",
    "DELETE FROM clock": "last trusted time",
    "CREATE TRIGGER t BEFORE DELETE ON entry BEGIN INSERT INTO carried VALUES (9, old.id, old.vector, 0); END": (
        "the trigger 't'"
    ),
    "CREATE TRIGGER t AFTER INSERT ON audit BEGIN DELETE FROM retention; END": "the trigger 't'",
    "CREATE TABLE kept(vector)": "the table 'kept'",
    "CREATE VIEW seen AS SELECT camera FROM entry": "the view 'seen'",
    "CREATE UNIQUE INDEX only ON entry(camera, source)": "the index 'only'",
}
"""What a repair can mend, and how it is named."""


@pytest.mark.parametrize("sealed", [False, True], ids=["unsealed", "sealed"])
@pytest.mark.parametrize("statement", MENDED)
def test_repair_seals_nothing_that_it_can_t_vouch_for(whole, tmp_path, statement, sealed):
    with open_copy(whole, tmp_path) as gallery:
        folder, count = gallery.path, len(gallery)
    changed(folder, statement, sealed=sealed)
    with pytest.raises(GalleryError, match="facts or rules are corrupted"):
        Gallery.open(folder)
    found = Gallery.repair(folder)
    assert [text for text in found if text.startswith("repaired: ") and MENDED[statement] in text], found
    assert all("\n" not in text and text.isprintable() for text in found)
    with Gallery.open(folder) as gallery:
        assert len(gallery) == count
        assert len(gallery.verify()) == 3
        gallery.retain()
        assert set(gallery.retention()) <= {"", "a"}
        assert gallery.add(unit(np.random.default_rng(0), 1), "c", ["/new"]) == [count + 1]
        assert gallery.forget([1]) == 1
        gallery.verify()
    assert Gallery.repair(folder) == []


REFUSED = {
    "UPDATE space SET dim = 'zz'": "feature space 1",
    "UPDATE space SET map = NULL": "feature space 2",
    "UPDATE space SET source = 9 WHERE number = 2": "feature space 2",
    "UPDATE gallery SET space = 1": "present feature space",
    "UPDATE gallery SET generation = 'zz'": None,
    "UPDATE gallery SET dim = 4611686018427387904": None,
    "UPDATE gallery SET feature_space = x'ff'": None,
    "DELETE FROM gallery": None,
    "ALTER TABLE retention ADD COLUMN more TEXT": "definition of the table retention",
    "ALTER TABLE entry ADD COLUMN more TEXT GENERATED ALWAYS AS (source) VIRTUAL": "definition of the table entry",
    "DROP TABLE crop": "the table crop, which is missing",
}
"""What only a backup mends, and how a repair names it; None: the database is not even opened."""


@pytest.mark.parametrize("statement", REFUSED)
def test_repair_leaves_what_only_a_backup_mends_as_it_is(whole, tmp_path, statement):
    with open_copy(whole, tmp_path) as gallery:
        folder = gallery.path
    changed(folder, statement)
    if REFUSED[statement] is None:
        with pytest.raises(GalleryError, match="restore a backup"):
            Gallery.repair(folder)
    else:
        found = Gallery.repair(folder)
        assert [text for text in found if text.startswith("still damaged: ") and REFUSED[statement] in text], found
    with pytest.raises(GalleryError, match=r"damaged|corrupted"):
        Gallery.open(folder)


@pytest.mark.parametrize("value", ["x'ff00'", "'zz'", "CAST(x'ff' AS TEXT)", "1.5", "9223372036854775807", "''"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("entry", name) for name in ("vector", "checksum", "camera", "source", "time", "utc", "label", "added")),
        *(("mark", name) for name in ("newest", "time", "checksum")),
        *(("crop", name) for name in ("jpeg", "checksum")),
        *(("carried", name) for name in ("space", "id", "vector", "checksum")),
        *(("audit", name) for name in ("time", "what", "hash")),
    ],
)
def test_a_row_of_another_type_ends_in_one_line(whole, tmp_path, table, column, value):
    """These rows are under no seal, so that a gallery with them opens."""
    with open_copy(whole, tmp_path) as gallery:
        folder = gallery.path
    changed(folder, "DELETE FROM retention", sealed=True)
    key = {"entry": "id", "crop": "id", "carried": "id", "audit": "number"}.get(table)
    changed(folder, f"UPDATE {table} SET {column} = {value}" + (f" WHERE {key} = 1" if key else ""))
    query = unit(np.random.default_rng(1), 1)
    asked = [
        lambda gallery: gallery.info(),
        lambda gallery: gallery.search(query, 40),
        lambda gallery: gallery.search(query, 4, camera="a", after="2020-01-01T00:00:00Z"),
        lambda gallery: gallery.older_than(3),
        lambda gallery: gallery.ageing(),
        lambda gallery: gallery.audit(),
        lambda gallery: gallery.vectors([1, 2]),
        lambda gallery: gallery.crop(1),
        lambda gallery: gallery.add(query, "c", ["/new"]),
        lambda gallery: gallery.backup(tmp_path / "copy"),
        lambda gallery: gallery.verify(),
    ]
    for ask in asked:
        with suppress(GalleryError), Gallery.open(folder) as gallery:
            ask(gallery)
    with pytest.raises(GalleryError, match="damaged"), Gallery.open(folder) as gallery:
        gallery.verify()
    assert all(text.isprintable() for text in Gallery.repair(folder))
    with Gallery.open(folder) as gallery:
        assert gallery.forget([1]) == 1


def test_a_carried_vector_that_belongs_to_no_space_goes_with_its_entry(whole, tmp_path):
    with open_copy(whole, tmp_path) as gallery:
        gallery._store._db.execute("UPDATE carried SET space = 9 WHERE id = 7")
        gallery.forget([7])
        assert gallery._store.ask("SELECT * FROM carried WHERE id = 7") == []
        gallery.verify()


def test_an_index_of_the_database_s_own_is_made_anew(whole, tmp_path):
    with open_copy(whole, tmp_path) as gallery:
        folder, count = gallery.path, len(gallery)
    file = folder / "gallery.db"
    at = at_of(file, b"/17", 0)  # the table and the index on sources hold each source; one of the two is the index
    for nth in (0, 1):
        data = bytearray(file.read_bytes())
        data[at_of(file, b"/17", nth)] ^= 2
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "gallery.db").write_bytes(data)
        found = Gallery.repair(tmp_path / "other")
        assert found
        if not [text for text in found if "still damaged" in text]:
            break
    else:
        pytest.fail("neither place is the index")
    assert at
    with Gallery.open(tmp_path / "other") as gallery:
        assert len(gallery) == count
        assert len(gallery.verify()) == 3
        assert gallery.select(source="/17") == [18]


def test_more_than_one_part_is_checked(tmp_path):
    rng = np.random.default_rng(0)
    with Gallery.create(tmp_path / "gallery", 4, SPACE) as gallery:
        gallery.add(unit(rng, CHUNK + 10, 4), "c", [str(number) for number in range(CHUNK + 10)])
        gallery.verify()
        gallery._store._db.execute(f"UPDATE entry SET camera = 'd' WHERE id = {CHUNK + 5}")
        with pytest.raises(GalleryError, match=f"entry {CHUNK + 5} of"):
            gallery.verify()
