"""The database of a gallery in a folder, SQLite: its settings, and the labels of its entries.

Tables: ``settings``; ``entries``, with the row of each in the file of vectors; ``checksums``, of their vectors (entries
of earlier versions have none).
"""

import json
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import sync_folder
from han_tf.data.image_lists import UNKNOWN
from han_tf.search.choice import ENGINES
from han_tf.search.entries import Entry, below
from han_tf.search.gallery import check_format

DATABASE = "gallery.sqlite"
FORMAT = 1
"""Version of the files; another one is refused. Raised when a version that knows the one before would read or search
worse what this one writes."""

SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
  id INTEGER PRIMARY KEY, row INTEGER NOT NULL, path TEXT NOT NULL, pid INTEGER, camid INTEGER, time REAL
);
"""
CHECKSUMS = "CREATE TABLE IF NOT EXISTS checksums (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL)"
"""CRC-32 of the entries' vectors; created by the first change to a gallery of an earlier version."""

CHECKSUMS_AFTER = """SELECT id, CASE typeof(crc) WHEN 'integer' THEN crc ELSE -1 END FROM checksums
    WHERE id > ? ORDER BY id LIMIT ?"""
"""A damaged file may hold a checksum that is not an integer; it counts as -1, which is the checksum of no vector."""

ALL_LABELS = "SELECT row, id, ifnull(pid, ?1), ifnull(camid, ?1), time FROM entries"

PATH_INDEX = "CREATE INDEX IF NOT EXISTS entries_path ON entries (path)"
"""Created when entries are first looked up by path."""

DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""Errors of SQLite; UnicodeDecodeError if its message quotes damaged bytes of a file."""

BUSY_SECONDS = 30
"""How long to wait for another process's commit."""

LOADED_AT_ONCE = 2**16
"""Entries that are read at a time."""

ASKED_AT_ONCE = 500
"""Most ids or paths in one SQL statement."""

VECTORS_NAME, INDEX_NAME = re.compile(r"vectors-\d{1,18}\.f32"), re.compile(r"index-\d{1,18}\.faiss")
"""Valid names of the files that the database names; a path with any other name is never opened."""


class Database:
    """The open database of a gallery; searches read through a connection of their own while a thread commits.

    Attributes:
      lock: held while the connection for changes is used; whoever changes other files of the gallery holds it, too.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.RLock()
        self._reader_lock = threading.Lock()
        with self._errors():
            self._writer, self._reader = (_connect(path) for _ in range(2))

    def close(self) -> None:
        """Closes the connections; other methods raise UserError then."""
        with self.lock, self._reader_lock:
            self._writer.close()
            self._reader.close()

    @contextmanager
    def read(self) -> Iterator[tuple[dict[str, Any], Iterator[list[tuple]]]]:
        """Yields the settings and parts of all labels: row, id, pid, camid and time of entries.

        Both are of one transaction, which ends with the block. The block may raise ValueError about what is not valid.

        Raises:
          UserError: the gallery is of another version, or damaged.
        """
        with self._writing() as connection, _transaction(connection, "BEGIN"):
            try:
                rows = connection.execute("SELECT * FROM settings")
                settings = {key: json.loads(value) for key, value in rows}
                check_format(settings.get("format"), FORMAT, self.path.parent)
                _check_settings(settings)
                cursor = connection.execute(ALL_LABELS, (UNKNOWN,))
                yield settings, iter(lambda: cursor.fetchmany(LOADED_AT_ONCE), [])
            except (AttributeError, LookupError, ValueError, TypeError) as error:
                raise UserError(f"{self.path}: damaged ({error!r}), expected a gallery") from error

    def commit(self, settings: dict[str, Any], change: Optional[Callable[[sqlite3.Connection], Any]] = None) -> None:
        """Runs ``change`` and stores ``settings`` in one transaction; durable when it returns.

        Raises:
          UserError: they cannot be written. Nothing is changed then.
        """
        with self.lock, _write_errors(self.path), _transaction(self._writer, "BEGIN IMMEDIATE"):
            if change:
                change(self._writer)
            _write_settings(self._writer, settings)
            self._writer.execute("COMMIT")

    def revision(self) -> int:
        """Returns the number of changes that all processes have committed."""
        with self._writing() as connection:
            rows = connection.execute("SELECT value FROM settings WHERE key = 'revision'")
            return json.loads(rows.fetchone()[0])

    def entries(self, ids: Iterable[int]) -> dict[int, Entry]:
        """Returns id -> entry for those of ``ids`` that exist."""
        with self._reading() as connection:
            return {entry.id: entry for entry in _entries_where(connection, "id", list(ids))}

    def hold(self, ids: np.ndarray) -> bool:
        """Returns whether there is an entry of each of ``ids``, int64 ``[n]``, all different."""
        count = 0
        with self._reading() as connection:
            for start in range(0, len(ids), ASKED_AT_ONCE):
                part = ids[start : start + ASKED_AT_ONCE].tolist()
                query = f"SELECT count(*) FROM entries WHERE id IN ({','.join('?' * len(part))})"
                count += connection.execute(query, part).fetchone()[0]
        return count == len(ids)

    def ids(self) -> np.ndarray:
        """Returns the ids of all entries, int64 ``[n]``."""
        with self._reading() as connection:
            return np.fromiter((id for (id,) in connection.execute("SELECT id FROM entries")), np.int64)

    def named(self, paths: Sequence[str]) -> list[Entry]:
        """Returns the entries of any of ``paths``; the gallery must be locked for changes."""
        with self._writing() as connection:
            connection.execute(PATH_INDEX)
            return list(_entries_where(connection, "path", paths))

    def ids_below(self, paths: Sequence[str]) -> np.ndarray:
        """Returns the ids of the entries of these files, and of files in or below these folders, int64 ``[n]``."""
        query = "SELECT id FROM entries WHERE path = ? OR (path >= ? AND path < ?)"
        with self._reading() as connection:
            found = [id for path in paths for (id,) in connection.execute(query, (path, *below(path)))]
        return np.array(found, np.int64)

    def checksums(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ids, ascending, and checksums of entries, int64 ``[n]`` each; nothing without such a table."""
        last = -1
        while True:
            with self._reading() as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'checksums'").fetchone():
                    return
                part = connection.execute(CHECKSUMS_AFTER, (last, LOADED_AT_ONCE)).fetchall()
            if not part:
                return
            ids, checksums = np.array(part, np.int64).T
            if (np.diff(ids, prepend=last) <= 0).any():  # SQLite does not notice it, and the loop might not end
                raise UserError(f"{self.path}: damaged, its checksums are not in order")
            last = part[-1][0]
            yield ids, checksums

    def checksums_of(self, ids: np.ndarray) -> dict[int, int]:
        """Returns id -> checksum of those of the entries ``ids`` that have one."""
        found: dict[int, int] = {}
        with self._reading() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'checksums'").fetchone():
                return found
            for start in range(0, len(ids), ASKED_AT_ONCE):
                part = ids[start : start + ASKED_AT_ONCE].tolist()
                query = f"SELECT id, crc FROM checksums WHERE id IN ({','.join('?' * len(part))})"
                found.update(connection.execute(query, part))
        return found

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self.lock, self._errors():
            yield self._writer

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._reader_lock, self._errors():
            yield self._reader

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DATABASE_ERRORS as error:
            raise UserError(f"{self.path}: {error}, expected a gallery's database") from error
        except MemoryError as error:  # SQLite's, of a record that claims to be huge
            raise UserError(f"{self.path}: too large for the memory, or damaged") from error


def create_database(path: Path, settings: dict[str, Any]) -> None:
    """Creates the database of an empty gallery with these settings; renamed to ``path`` when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    first = {
        "format": FORMAT,
        "identity": secrets.token_hex(8),
        "threshold": None,
        "calibration": None,
        "snapshot": None,
        **settings,
        "rows": 0,
        "next_id": 0,
        "revision": 0,
        "greatest_norm": 0.0,
    }
    with _write_errors(path), closing(_connect(temporary)) as connection, connection:  # commits at the end
        connection.executescript(f"{SCHEMA}{CHECKSUMS}; {PATH_INDEX}")
        connection.execute("BEGIN IMMEDIATE")
        _write_settings(connection, first)
    os.replace(temporary, path)
    sync_folder(path.parent)


def delete_entries(connection: sqlite3.Connection, ids: np.ndarray) -> None:
    """Deletes entries and their checksums."""
    connection.execute(CHECKSUMS)
    for table in ("entries", "checksums"):
        connection.executemany(f"DELETE FROM {table} WHERE id = ?", ((id,) for id in ids.tolist()))


def nullable(values: np.ndarray) -> Sequence[Union[int, float, None]]:
    """Returns integers with None for :data:`UNKNOWN`, or floats with None for NaN."""
    return [None if value == UNKNOWN or value != value else value for value in values.tolist()]


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DATABASE_ERRORS as error:
        raise UserError(f"cannot write {path}: {error}") from error


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    """Begins a transaction; takes it back if the block does not commit it."""
    connection.execute(begin)
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions are begun explicitly.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = EXTRA")  # also syncs the folder; else a power cut may undo a commit
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _check_settings(settings: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError if the settings are not valid."""
    for name in ("rows", "dimension", "next_id", "revision"):
        if type(settings[name]) is not int or settings[name] < (name == "dimension"):
            raise ValueError(f"{name} is {settings[name]!r}")
    for name in ("checksum", "engine", "reason"):
        if not isinstance(settings[name], str) or (name == "engine" and settings[name] not in ENGINES):
            raise ValueError(f"{name} is {settings[name]!r}")
    if not 0 <= ((settings["calibration"] or {}).get("gallery_images") or 0) < np.inf:
        raise ValueError(f"calibration is {settings['calibration']!r}")
    for name, value in (("greatest_norm", settings["greatest_norm"]), ("threshold", settings["threshold"] or 0)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} is {value!r}")
    if not all(0 <= level < np.inf for level in settings.get("white_levels", ())):
        raise ValueError(f"white_levels are {settings['white_levels']!r}")
    snapshot = settings["snapshot"]
    names = [(VECTORS_NAME, settings["vectors"]), *([] if snapshot is None else [(INDEX_NAME, snapshot["file"])])]
    for pattern, name in names:
        if not pattern.fullmatch(name):
            raise ValueError(f"a file is named {name!r}")
    for name, kind in (("sha256", str), ("kind", str), ("rows", int), ("trained", int)):
        if snapshot is not None and type(snapshot[name]) is not kind:
            raise ValueError(f"{name} of the snapshot is {snapshot[name]!r}")


def _write_settings(connection: sqlite3.Connection, settings: dict[str, Any]) -> None:
    rows = [(key, json.dumps(value, allow_nan=False)) for key, value in settings.items()]
    connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)


def _entries_where(connection: sqlite3.Connection, column: str, values: Sequence[Any]) -> Iterator[Entry]:
    """Yields the entries that have one of these values in ``column``, sorted by value and id."""
    for start in range(0, len(values), ASKED_AT_ONCE):
        part = values[start : start + ASKED_AT_ONCE]
        marks = ",".join("?" * len(part))
        query = f"SELECT id, path, pid, camid, time FROM entries WHERE {column} IN ({marks}) ORDER BY {column}, id"
        yield from map(Entry._make, connection.execute(query, part))
