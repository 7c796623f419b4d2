"""The tables of a gallery's database, schema by schema."""

APPLICATION = 0x52654944
"""``ReID`` in the file's header, so that no other program's database is mistaken for a gallery."""

SCHEMA = 4
READABLE = 3
"""The earliest schema that can be read as it is, where nothing can be written: the next one only added what erases."""

MAX_DIM = 2**14
"""The longest vector that a bundle gives."""

SCHEMA_1 = """
CREATE TABLE gallery(
  one INTEGER PRIMARY KEY CHECK (one = 1), dim INTEGER NOT NULL, feature_space TEXT NOT NULL, bundle TEXT,
  entries INTEGER NOT NULL, generation INTEGER NOT NULL, token TEXT NOT NULL,
  erasures INTEGER NOT NULL, unwiped INTEGER NOT NULL);
CREATE TABLE entry(
  id INTEGER PRIMARY KEY AUTOINCREMENT, vector BLOB NOT NULL, camera TEXT NOT NULL, source TEXT NOT NULL,
  time TEXT, utc INTEGER, label TEXT, checksum INTEGER NOT NULL);
CREATE INDEX entry_source ON entry(source);
"""
SINCE_2 = """
ALTER TABLE gallery ADD COLUMN space INTEGER NOT NULL DEFAULT 1;
ALTER TABLE entry ADD COLUMN space INTEGER NOT NULL DEFAULT 1;
ALTER TABLE entry ADD COLUMN origin INTEGER NOT NULL DEFAULT 1;
ALTER TABLE entry ADD COLUMN added INTEGER NOT NULL DEFAULT {now};
CREATE INDEX entry_label ON entry(label) WHERE label IS NOT NULL;
CREATE TABLE space(
  number INTEGER PRIMARY KEY, feature_space TEXT NOT NULL, dim INTEGER NOT NULL, bundle TEXT,
  ready INTEGER NOT NULL, source INTEGER, map BLOB);
CREATE TABLE carried(
  space INTEGER NOT NULL, id INTEGER NOT NULL, vector BLOB NOT NULL, checksum INTEGER NOT NULL,
  PRIMARY KEY (space, id)) WITHOUT ROWID;
CREATE TABLE audit(
  number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, what TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE retention(camera TEXT PRIMARY KEY, days INTEGER NOT NULL);
CREATE TABLE backup(path TEXT PRIMARY KEY, time TEXT NOT NULL);
INSERT INTO space SELECT 1, feature_space, dim, bundle, 1, NULL, NULL FROM gallery;
PRAGMA user_version = 2;
"""
"""What schema 2 added: feature spaces, the audit chain, retention, the list of backups. Existing entries count as added
at the migration.
"""

SINCE_3 = """
ALTER TABLE gallery ADD COLUMN moves INTEGER NOT NULL DEFAULT 0;
ALTER TABLE gallery ADD COLUMN base TEXT;
ALTER TABLE gallery ADD COLUMN crops INTEGER NOT NULL DEFAULT 0;
ALTER TABLE gallery ADD COLUMN seal TEXT;
ALTER TABLE entry ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0;
CREATE TABLE crop(id INTEGER PRIMARY KEY, jpeg BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE INDEX entry_camera ON entry(camera, utc);
CREATE INDEX entry_age ON entry(COALESCE(utc, added));
PRAGMA user_version = 3;
"""
"""What schema 3 added: the state that the index on disk may be extended from, stored crops, seals over everything that
schema 2 left without a checksum, and indices so that rules, counts by camera and the list of ids need not read every
vector.

Existing entries have stamp 0: their checksum does not cover their space.
"""

SINCE_4 = """
PRAGMA user_version = 4;
"""
"""What schema 4 added, besides the tables of :mod:`deploy.store.clock`: the last trusted time, and when entries
were there, by number.
"""
