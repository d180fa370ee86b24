"""The service's own data: verdicts and image names in SQLite, copies of added images as files."""

import io
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional, Union

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, discard, sync_folder, write_csv
from han_tf.search.database import DATABASE_ERRORS

COLUMNS = ("time", "query", "hit", "verdict", "distance", "image", "gallery")
"""Columns of the exported verdicts: seconds since 1970 UTC; ``sha256:…`` of an uploaded image or ``id:…`` of an entry;
id of the judged entry; ``right`` or ``wrong``; L2 distance; file name of the judged entry; identity of the gallery with
these ids, see :class:`han_tf.search.Gallery`."""

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
"""Path of a copy in the gallery: relative to the folder; absolute if an earlier version added it."""


class Store:
    """The service's own folder.

    Several threads may use it. Changes are on disk when a method returns. The folder may be moved.

    Args:
      folder: created if missing.
      read_only: whether nothing is written; the folder may then be missing.

    Attributes:
      gallery: identity of the served gallery. Other galleries use the same ids for other entries, so verdicts are shown
        only for the gallery that they were made in.

    Raises:
      UserError: the folder cannot be written, or its database is damaged or of another version.
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
        """Stores a verdict; it replaces an earlier one on the same query and entry, None removes that.

        Args:
          query: ``sha256:…`` or ``id:…``.
          hit: id of the judged entry.
          verdict: ``right``, ``wrong`` or None.
          image: the judged entry's file name.
          distance: L2 distance, if known.

        Returns:
          The stored time, seconds since 1970 UTC; None if the verdict was removed.
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
        """Returns id of the entry -> verdict, for those ``(hit, image)`` of a query that have one.

        Verdicts without a gallery, from earlier versions, count for any gallery, unless the query is an entry.
        """
        with self._lock:
            rows = self._database.execute(
                "SELECT hit, image, verdict FROM verdicts WHERE query = ? AND gallery IN (?, ?) ORDER BY gallery",
                (query, *self._galleries(query)),
            )
            wanted = dict(images)
            return {hit: verdict for hit, image, verdict in rows if wanted.get(hit) == image}

    def has(self, query: str) -> bool:
        """Returns whether there is a verdict on any hit of a query."""
        with self._lock:
            rows = self._database.execute(
                "SELECT 1 FROM verdicts WHERE query = ? AND gallery IN (?, ?)", (query, *self._galleries(query))
            )
            return rows.fetchone() is not None

    def _galleries(self, query: str) -> tuple[str, str]:
        """Returns the identities of the galleries whose verdicts count for a query."""
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
        # File names come from clients: a spreadsheet would evaluate one that begins like a formula.
        safe = ([f"'{cell}" if str(cell)[:1] in tuple("=+-@\t\r") else cell for cell in row] for row in rows)
        write_csv(text, [COLUMNS, *safe])
        return text.getvalue()

    def save_copy(self, png: bytes, name: str) -> str:
        """Writes a copy of an image that is being added, and its name.

        Args:
          png: the file's bytes.
          name: given by the client; never part of a path.

        Returns:
          Its path relative to the folder, with a random file name.

        Raises:
          UserError: it cannot be written.
        """
        file = f"{uuid.uuid4().hex}.png"
        # The row is added before the file and deleted after it, so that every file has a row.
        with self._transaction():
            self._database.execute(
                "INSERT INTO names (file, name, gallery) VALUES (?, ?, ?)", (file, name, self.gallery)
            )
        with atomic_open(self.copies / file) as stream:
            stream.write(png)
        return f"{IMAGES}/{file}"

    def remove_unfinished(self) -> None:
        """Removes the parts of copies that killed processes have left, which have no name.

        Call it after :meth:`remove_copy` of the copies without an entry.
        """
        if self.read_only:
            return
        left = [*self.copies.glob(".*.tmp")]  # before the names: another process adds the name before its file
        with self._lock:
            named = {file for (file,) in self._database.execute("SELECT file FROM names")}
        for path in left:
            if path.name[1:].rsplit(".", 2)[0] not in named:
                discard(path)

    def remove_copy(self, path: str) -> None:
        """Removes a copy and its name; does nothing if ``path`` is not that of a copy."""
        if self.holds(path):
            file = self.file_of(path)
            file.unlink(missing_ok=True)
            sync_folder(self.copies)
            with self._transaction():
                self._database.execute("DELETE FROM names WHERE file = ?", (file.name,))

    def copies_of_gallery(self) -> list[str]:
        """Returns the paths of the copies made for the served gallery; none if it has no identity."""
        if not self.gallery or self.read_only:
            return []
        with self._lock:
            rows = self._database.execute("SELECT file FROM names WHERE gallery = ?", (self.gallery,)).fetchall()
        return [f"{IMAGES}/{file}" for (file,) in rows]

    def holds(self, path: str) -> bool:
        """Returns whether ``path`` is that of a copy, even if the folder was moved since."""
        match = _COPY.fullmatch(path)
        # File names of copies are random, so that a file of this name is the same copy.
        return match is not None and (not match[1] or (self.copies / match[2]).is_file())

    def file_of(self, path: str) -> Path:
        """Returns the file of an entry's image: in this folder if it is a copy, else ``path`` itself."""
        return self.copies / Path(path).name if self.holds(path) else Path(path)

    def names(self, paths: Sequence[str]) -> list[str]:
        """Returns a name for each image: of a copy the one that the client gave, else the file name."""
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
        """Closes the database; readers in a folder that cannot be written can open it then."""
        with self._lock:
            if not self.read_only:
                with suppress(*DATABASE_ERRORS):  # another process has it open
                    self._database.execute("PRAGMA journal_mode = DELETE")
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._database:  # commits at the end, or takes everything back after an error
            self._database.execute("BEGIN IMMEDIATE")
            yield
