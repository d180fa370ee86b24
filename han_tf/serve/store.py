"""What the service keeps beside the gallery: verdicts and names in SQLite, copies of added images as files."""

import csv
import io
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

from han_tf.errors import UserError
from han_tf.files import atomic_open

COLUMNS = ("time", "query", "hit", "verdict", "distance", "image")
"""Of the exported verdicts: seconds since 1970 UTC; ``sha256:…`` of an uploaded image or ``id:…`` of an entry; the
judged entry's id; ``right`` or ``wrong``; L2 distance; the judged entry's file name."""

_VERSION = 1
_TABLES = """
CREATE TABLE verdicts (
  query TEXT NOT NULL, hit INTEGER NOT NULL, verdict TEXT NOT NULL CHECK (verdict IN ('right', 'wrong')),
  distance REAL, image TEXT NOT NULL, time REAL NOT NULL, PRIMARY KEY (query, hit)
);
CREATE TABLE names (file TEXT PRIMARY KEY, name TEXT NOT NULL);
"""


class Store:
    """A folder of the service's own.

    Several threads may use it. What a method has written is on disk when it returns.

    Args:
      folder: made if need be.

    Raises:
      UserError: the folder cannot be written, or holds a file of another kind or version.
    """

    def __init__(self, folder: Union[str, os.PathLike]):
        self.folder = Path(folder).absolute()
        self.copies = self.folder / "images"
        self.path = self.folder / "service.sqlite"
        self._lock = threading.Lock()
        try:
            self.copies.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=10)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                (version,) = self._database.execute("PRAGMA user_version").fetchone()
                tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if version == 0 and tables == 0:
                    for statement in _TABLES.split(";"):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {_VERSION}")
                elif version != _VERSION:
                    raise UserError(f"{self.path}: version {version}, expected {_VERSION}, of this service's own file")
        except OSError as error:
            raise UserError(f"cannot write {error.filename or self.folder}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: {error}, expected a database of this service that can be written") from error

    def mark(
        self, query: str, hit: int, verdict: Optional[str], image: str, distance: Optional[float] = None
    ) -> Optional[float]:
        """Keeps a verdict; it replaces an earlier one of the same query and entry, None takes that back.

        Args:
          query: ``sha256:…`` or ``id:…``.
          hit: id of the judged entry.
          verdict: ``right``, ``wrong`` or None.
          image: the judged entry's file name: ids start anew when an index is built anew.
          distance: L2 distance, if known.

        Returns:
          The time that was stored, seconds since 1970 UTC; None if a verdict was taken back.
        """
        with self._transaction():
            if verdict is None:
                self._database.execute("DELETE FROM verdicts WHERE query = ? AND hit = ?", (query, hit))
                return None
            now = time.time()
            self._database.execute(
                f"INSERT OR REPLACE INTO verdicts ({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?)",
                (now, query, hit, verdict, distance, image),
            )
            return now

    def verdicts(self, query: str, images: Sequence[tuple[int, str]]) -> dict[int, str]:
        """Returns the verdicts of a query by the id of the entry, for those ``(hit, image)`` that have one."""
        with self._lock:
            rows = self._database.execute("SELECT hit, image, verdict FROM verdicts WHERE query = ?", (query,))
            wanted = dict(images)
            return {hit: verdict for hit, image, verdict in rows if wanted.get(hit) == image}

    def count(self) -> int:
        """Returns the number of verdicts."""
        with self._lock:
            return self._database.execute("SELECT count(*) FROM verdicts").fetchone()[0]

    def export(self) -> str:
        """Returns all verdicts as CSV, oldest first, with the columns :data:`COLUMNS`."""
        with self._lock:
            rows = self._database.execute(f"SELECT {', '.join(COLUMNS)} FROM verdicts ORDER BY time, rowid").fetchall()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        # A file name is a client's text: spreadsheets would run one that begins like a formula.
        writer.writerows((*row[:-1], "'" + row[-1] if row[-1][:1] in tuple("=+-@\t\r") else row[-1]) for row in rows)
        return text.getvalue()

    def save_copy(self, png: bytes, name: str) -> Path:
        """Writes a copy of an image that is being added, and what it was called.

        Args:
          png: the file's bytes.
          name: what the client calls it; never part of a path.

        Returns:
          The file, with a name of its own.

        Raises:
          UserError: it cannot be written.
        """
        path = self.copies / f"{uuid.uuid4().hex}.png"
        with atomic_open(path) as stream:
            stream.write(png)
        if name:
            with self._transaction():
                self._database.execute("INSERT INTO names (file, name) VALUES (?, ?)", (path.name, name))
        return path

    def remove_copy(self, path: str) -> None:
        """Removes a copy and its name; a path that is no copy is left alone."""
        if self.holds(path):
            Path(path).unlink(missing_ok=True)
            with self._transaction():
                self._database.execute("DELETE FROM names WHERE file = ?", (Path(path).name,))

    def holds(self, path: str) -> bool:
        """Tells whether ``path`` is that of a copy."""
        return Path(path).parent == self.copies

    def names(self, paths: Sequence[str]) -> list[str]:
        """Returns what each image is called: a copy as the client called it, anything else by its file name."""
        files = [Path(path).name for path in paths]
        copies = sorted({file for file, path in zip(files, paths) if self.holds(path)})
        given: dict[str, str] = {}
        with self._lock:
            for start in range(0, len(copies), 500):
                part = copies[start : start + 500]
                marks = ", ".join("?" * len(part))
                given.update(self._database.execute(f"SELECT file, name FROM names WHERE file IN ({marks})", part))
        return [given.get(file, "added image") if self.holds(path) else file for file, path in zip(files, paths)]

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._database.close()

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._lock, self._database)


class _Transaction:
    def __init__(self, lock: threading.Lock, database: sqlite3.Connection):
        self._lock = lock
        self._database = database

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._database.execute("COMMIT" if kind is None else "ROLLBACK")
        finally:
            self._lock.release()
