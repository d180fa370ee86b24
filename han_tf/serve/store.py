"""The service's own data: verdicts and names in SQLite, copies of added images as files."""

import csv
import io
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Optional, Union

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, sync_folder
from han_tf.search.store import DATABASE_ERRORS

COLUMNS = ("time", "query", "hit", "verdict", "distance", "image", "gallery")
"""Of the exported verdicts: seconds since 1970 UTC; ``sha256:…`` of an uploaded image or ``id:…`` of an entry; the
judged entry's id; ``right`` or ``wrong``; L2 distance; the judged entry's file name; the identity of the gallery that
the ids are of, see :class:`han_tf.search.Gallery`."""

_VERSION = 2
_VERDICTS = """
CREATE TABLE verdicts (
  query TEXT NOT NULL, hit INTEGER NOT NULL, verdict TEXT NOT NULL CHECK (verdict IN ('right', 'wrong')),
  distance REAL, image TEXT NOT NULL, time REAL NOT NULL, gallery TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (gallery, query, hit)
)"""
_TABLES = f"""{_VERDICTS};
CREATE TABLE names (file TEXT PRIMARY KEY, name TEXT NOT NULL, gallery TEXT NOT NULL DEFAULT '')"""
_FROM_1 = f"""ALTER TABLE verdicts RENAME TO old;
{_VERDICTS};
INSERT INTO verdicts (query, hit, verdict, distance, image, time)
  SELECT query, hit, verdict, distance, image, time FROM old
  ORDER BY time, rowid;
DROP TABLE old;
ALTER TABLE names ADD COLUMN gallery TEXT NOT NULL DEFAULT ''"""

IMAGES = "images"
_COPY = re.compile(rf"(.*/)?{IMAGES}/([0-9a-f]{{32}}\.png)")
"""Path of a copy as the gallery holds it: relative to the folder, absolute where an earlier version added it."""


class Store:
    """A folder of the service's own.

    Several threads may use it. What a method has written is on disk when it returns. The folder may be moved.

    Args:
      folder: made if need be.
      read_only: whether nothing is written; the folder need not be there.

    Attributes:
      gallery: identity of the gallery that is served. Ids begin again in another one, so that verdicts about entries
        are shown for theirs alone.

    Raises:
      UserError: the folder cannot be written, or holds a file of another kind or version.
    """

    def __init__(self, folder: Union[str, os.PathLike], read_only: bool = False):
        self.folder = Path(folder).absolute()
        self.copies = self.folder / IMAGES
        self.gallery = ""
        self.read_only = read_only
        self.path = self.folder / "service.sqlite"
        self._lock = threading.Lock()
        try:
            if not read_only:
                self.copies.mkdir(parents=True, exist_ok=True)
            place = ":memory:"
            if not read_only or self.path.exists():
                place = f"{self.path.as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._database = sqlite3.connect(place, uri=True, check_same_thread=False, isolation_level=None, timeout=10)
            if not read_only:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute("PRAGMA secure_delete = ON")
            if not read_only or place == ":memory:":
                with self._transaction():
                    self._make_tables()
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                raise UserError(f"{self.path}: version {version}, expected {_VERSION}, of this service's own file")
        except OSError as error:
            raise UserError(f"cannot write {error.filename or self.folder}: {error.strerror or error}") from error
        except DATABASE_ERRORS as error:
            raise UserError(f"{self.path}: {error}, expected a database of this service that can be written") from error

    def _make_tables(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 1 or (version == 0 and tables == 0):
            for statement in (_FROM_1 if version else _TABLES).split(";"):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def mark(
        self, query: str, hit: int, verdict: Optional[str], image: str, distance: Optional[float] = None
    ) -> Optional[float]:
        """Stores a verdict; it replaces an earlier one of the same query and entry, None removes that.

        Args:
          query: ``sha256:…`` or ``id:…``.
          hit: id of the judged entry.
          verdict: ``right``, ``wrong`` or None.
          image: the judged entry's file name.
          distance: L2 distance, if known.

        Returns:
          The time that was stored, seconds since 1970 UTC; None if a verdict was taken back.
        """
        with self._transaction():
            self._database.execute(
                "DELETE FROM verdicts WHERE query = ? AND hit = ? AND gallery IN (?, ?)",
                (query, hit, *self._galleries(query)),
            )
            if verdict is None:
                return None
            now = time.time()
            self._database.execute(
                f"INSERT INTO verdicts ({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (now, query, hit, verdict, distance, image, self.gallery),
            )
            return now

    def verdicts(self, query: str, images: Sequence[tuple[int, str]]) -> dict[int, str]:
        """Returns the verdicts of a query by the id of the entry, for those ``(hit, image)`` that have one.

        Verdicts that were kept before galleries had identities count for any gallery, unless the query is an entry.
        """
        with self._lock:
            rows = self._database.execute(
                "SELECT hit, image, verdict FROM verdicts WHERE query = ? AND gallery IN (?, ?) ORDER BY gallery",
                (query, *self._galleries(query)),
            )
            wanted = dict(images)
            return {hit: verdict for hit, image, verdict in rows if wanted.get(hit) == image}

    def has(self, query: str) -> bool:
        """Tells whether there is a verdict about a query."""
        with self._lock:
            rows = self._database.execute(
                "SELECT 1 FROM verdicts WHERE query = ? AND gallery IN (?, ?)", (query, *self._galleries(query))
            )
            return rows.fetchone() is not None

    def _galleries(self, query: str) -> tuple[str, str]:
        return self.gallery, self.gallery if query.startswith("id:") else ""

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
        writer.writerows([f"'{cell}" if str(cell)[:1] in tuple("=+-@\t\r") else cell for cell in row] for row in rows)
        return text.getvalue()

    def save_copy(self, png: bytes, name: str) -> str:
        """Writes a copy of an image that is being added, and what it was called.

        Args:
          png: the file's bytes.
          name: what the client calls it; never part of a path.

        Returns:
          Its path relative to the folder, with a file name of its own.

        Raises:
          UserError: it cannot be written.
        """
        file = f"{uuid.uuid4().hex}.png"
        # Noted before the file is there, and forgotten after it is gone: no copy is ever without its note.
        with self._transaction():
            self._database.execute(
                "INSERT INTO names (file, name, gallery) VALUES (?, ?, ?)", (file, name, self.gallery)
            )
        with atomic_open(self.copies / file) as stream:
            stream.write(png)
        return f"{IMAGES}/{file}"

    def remove_copy(self, path: str) -> None:
        """Removes a copy and its name; a path that is no copy is left alone."""
        if self.holds(path):
            file = self.file_of(path)
            file.unlink(missing_ok=True)
            sync_folder(self.copies)
            with self._transaction():
                self._database.execute("DELETE FROM names WHERE file = ?", (file.name,))

    def copies_of_gallery(self) -> list[str]:
        """Returns the paths of the copies that were made for entries of this gallery; none if it has no identity."""
        if not self.gallery or self.read_only:
            return []
        with self._lock:
            rows = self._database.execute("SELECT file FROM names WHERE gallery = ?", (self.gallery,)).fetchall()
        return [f"{IMAGES}/{file}" for (file,) in rows]

    def holds(self, path: str) -> bool:
        """Tells whether ``path`` is that of a copy, wherever this folder was when it was made."""
        match = _COPY.fullmatch(path)
        # Names of copies are drawn at random: one that lies here is the one that is meant.
        return match is not None and (not match[1] or (self.copies / match[2]).is_file())

    def file_of(self, path: str) -> Path:
        """Returns where the image of an entry lies: a copy in this folder, anything else where its path says."""
        return self.copies / Path(path).name if self.holds(path) else Path(path)

    def names(self, paths: Sequence[str]) -> list[str]:
        """Returns what each image is called: a copy as the client called it, anything else by its file name."""
        files = [Path(path).name for path in paths]
        holds = [self.holds(path) for path in paths]
        copies = sorted({file for file, held in zip(files, holds) if held})
        given: dict[str, str] = {}
        with self._lock:
            for start in range(0, len(copies), 500):
                part = copies[start : start + 500]
                marks = ", ".join("?" * len(part))
                given.update(self._database.execute(f"SELECT file, name FROM names WHERE file IN ({marks})", part))
        return [given.get(file) or "added image" if held else file for file, held in zip(files, holds)]

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
