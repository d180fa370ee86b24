"""A gallery's files: an append-only file of vectors and an SQLite database.

  gallery.sqlite    settings, labels and checksums, see :mod:`han_tf.search.database`
  vectors-N.f32     float32 ``[rows, dimension]``, little-endian; each compaction writes a new file and increases N
  lock              locked by the process that writes

After a crash at any point the gallery has the state before or after a change; README.md in this folder says what is
written when.
"""

import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import discard, lock, sync_folder, writing
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.shards import FeatureBatch
from han_tf.metrics.checks import squared_norms
from han_tf.search.database import DATABASE, Database, create_database, delete_entries, nullable
from han_tf.search.entries import Entry
from han_tf.search.gallery import Progress

LOCK = "lock"
FIRST_VECTORS = "vectors-0.f32"

COPIED_BYTES = 2**24
"""Bytes of vectors that compaction copies at a time."""


class Labels(NamedTuple):
    """The labels of all rows in the file of vectors, for filters.

    Attributes:
      ids: int64 ``[n]``, ascending; the row of a deleted entry has any id that keeps this order.
      alive: bool ``[n]``; False for rows of deleted entries.
      pids, camids, times: ``[n]``, as of :class:`FeatureBatch`.
    """

    ids: np.ndarray
    alive: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    times: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> "Labels":
        """Returns labels of rows without entries."""
        pids, camids = np.full((2, rows), UNKNOWN)
        return cls(np.full(rows, -1), np.zeros(rows, bool), pids, camids, np.full(rows, np.nan))


class State(NamedTuple):
    """A snapshot of the rows.

    Attributes:
      vectors: float32 ``[rows, dimension]``, mapped into memory, read-only.
      labels: of the same rows.
      live: number of rows that are not of deleted entries.
    """

    vectors: np.ndarray
    labels: Labels
    live: int

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Returns the rows of the entries ``ids``, int64 ``[n]``; −1 for ids without an entry."""
        if not len(self.vectors):
            return np.full(len(ids), -1)
        # If rows have the same id, only the first of them can be alive.
        rows = np.minimum(np.searchsorted(self.labels.ids, ids), len(self.vectors) - 1)
        return np.where((self.labels.ids[rows] == ids) & self.labels.alive[rows], rows, -1)


class Store:
    """The open files of one gallery. Call :meth:`take_lock` before changing them.

    Args:
      folder: of the gallery.
      lock_file: descriptor of the lock's file, if this process holds the lock; closed with the store.

    Attributes:
      database: settings, labels and checksums.
      lock: held while the files are changed.
      settings: JSON values by key, as committed.
      state: the rows that searches use.

    Raises:
      UserError: there is no gallery, or it is damaged or of another version.
    """

    def __init__(self, folder: Path, lock_file: Optional[int] = None):
        self.folder = folder
        self._lock_file = lock_file
        with ExitStack() as undo:
            if lock_file is not None:
                undo.callback(os.close, lock_file)
            if not (folder / DATABASE).is_file():
                raise UserError(
                    f"{folder}: no gallery here ({DATABASE} is missing), expected a folder made by "
                    "python -m han_tf.index"
                )
            self._identity = _identity(os.stat(folder / DATABASE))
            self.database = Database(folder / DATABASE)
            undo.callback(self.database.close)
            self.lock = self.database.lock
            self.load()
            undo.pop_all()

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any]) -> "Store":
        """Creates the files of an empty gallery in ``folder`` and opens it, holding the lock.

        The lock is taken before the files are created, so that only one of several processes creates them. The
        database is renamed to its final name last; before that, the folder does not count as a gallery.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _check_new(folder)  # so that no file for the lock is left in a folder with other files
            lock_file = _take(folder)
            try:
                _check_new(folder)
                (folder / FIRST_VECTORS).touch()
                create_database(folder / DATABASE, {**settings, "vectors": FIRST_VECTORS})
            except BaseException:
                os.close(lock_file)
                raise
        return cls(folder, lock_file)

    def close(self) -> None:
        """Closes the database and releases the lock."""
        with self.lock:
            self.database.close()
            if self._lock_file is not None:
                os.close(self._lock_file)  # releases the lock
                self._lock_file = None

    @property
    def writing(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock_file is not None

    def take_lock(self, swapping: Optional[AbstractContextManager] = None) -> bool:
        """Takes the lock; returns whether the gallery was loaded again, because another process had changed it.

        Args:
          swapping: entered while it is loaded again, which may change the rows' numbers.

        Raises:
          UserError: another process holds the lock, or the folder cannot be written.
        """
        with self.lock:
            if self._lock_file is not None:
                return False
            self.check_place()  # so that no file for the lock is left in another folder
            self._lock_file = lock_file = _take(self.folder)
            try:
                self.check_place()
                changed = self.database.revision() != self.settings["revision"]
                if changed:
                    with swapping or nullcontext():
                        self.load()
                self._remove_vectors()
                self._overwrite(np.flatnonzero(~self.state.labels.alive))
            except BaseException:
                os.close(lock_file)
                self._lock_file = None
                raise
            return changed

    def append(self, images: FeatureBatch, gone: np.ndarray) -> np.ndarray:
        """Adds rows, deletes the entries ``gone``, and returns the new ids; durable when it returns."""
        with self.lock:
            self.check_place()
            if len(self.state.vectors) != self.settings["rows"]:
                self.load()  # the last addition was interrupted after its commit
            images = images._replace(features=images.features.astype("<f4", copy=False))
            first, n = self.settings["rows"], len(images.features)
            path = self.folder / self.settings["vectors"]
            row_bytes = 4 * self.settings["dimension"]
            with _written(path, "r+b") as stream:
                stream.truncate(first * row_bytes)  # removes vectors that a crash left
                stream.seek(first * row_bytes)
                stream.write(images.features.data)
            ids = np.arange(self.settings["next_id"], self.settings["next_id"] + n)
            norms = squared_norms(images.features, "features")
            changed = {
                "rows": first + n,
                "next_id": int(ids[-1]) + 1,
                "greatest_norm": max(self.settings["greatest_norm"], float(norms.max())),
            }

            labels = map(nullable, (images.pids, images.camids, images.times))
            rows = zip(ids.tolist(), range(first, first + n), images.paths, *labels)

            def change(connection: sqlite3.Connection) -> None:
                connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
                delete_entries(connection, gone)
                checksums = zip(ids.tolist(), map(zlib.crc32, images.features))
                connection.executemany("INSERT OR REPLACE INTO checksums VALUES (?, ?)", checksums)

            buried = self.state.rows_of(gone)
            self.commit(changed, change)
            self._extend(ids, images)
            self._bury(buried[buried >= 0])
            return ids

    def delete(self, ids: np.ndarray) -> int:
        """Deletes entries and overwrites their vectors; durable when it returns."""
        with self.lock:
            rows = self.state.rows_of(np.unique(ids))
            rows = rows[rows >= 0]
            if not len(rows):
                return 0
            self.commit({}, lambda connection: delete_entries(connection, self.state.labels.ids[rows]))
            self._bury(rows)
            return len(rows)

    def notice_deletions(self) -> None:
        """Excludes entries that another process has deleted; waits for a deletion by this one that has begun."""
        with self.lock:
            if not self.writing:
                labels = self.state.labels
                self._change(np.flatnonzero(labels.alive & ~np.isin(labels.ids, self.database.ids())), alive=False)

    def check_place(self) -> None:
        """Raises UserError if the gallery's folder was removed, or another one is in its place.

        The files of vectors are opened by their names; the database stays open, wherever it is moved.
        """
        try:
            here = _identity(os.stat(self.folder / DATABASE))
        except OSError:
            here = None
        if here != self._identity:
            raise UserError(
                f"{self.folder}: the gallery that was opened is no longer there, expected it; open it again"
            )

    def _bury(self, rows: np.ndarray) -> None:
        """Excludes rows from searches that begin now, and overwrites their vectors."""
        if not len(rows):
            return
        rows = np.sort(rows)  # those of replaced entries are in the order of their paths
        self._change(rows, alive=False)
        self._overwrite(rows)

    def _change(self, rows: np.ndarray, **values: Any) -> None:
        """Changes labels of rows, by their names, in copies: searches that have begun keep their state."""
        changed = {name: getattr(self._labels, name).copy() for name in values}
        for name, array in changed.items():
            array[rows] = values[name]
        self._labels = self._labels._replace(**changed)
        self.state = self._visible(self.state.vectors)

    def _overwrite(self, rows: np.ndarray) -> None:
        """Writes zeros over those vectors of ``rows``, ascending, that are not zero; durable when it returns."""
        step, row_bytes = max(1, COPIED_BYTES // (4 * self.settings["dimension"])), 4 * self.settings["dimension"]
        parts = (rows[start : start + step] for start in range(0, len(rows), step))
        rows = np.concatenate([part[self.state.vectors[part].any(axis=1)] for part in parts] or [rows])
        if not len(rows):
            return
        path = self.folder / self.settings["vectors"]
        with _written(path, "r+b") as stream:
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                stream.seek(int(run[0]) * row_bytes)
                for start in range(0, len(run), step):
                    stream.write(bytes(len(run[start : start + step]) * row_bytes))

    def entries(self, ids: Iterable[int]) -> dict[int, Entry]:
        """Returns id -> entry for those of ``ids`` that exist, with the labels that filters of searches see."""
        state = self.state
        found = self.database.entries(ids)
        rows = state.rows_of(np.fromiter(found, np.int64, len(found)))
        known = rows[rows >= 0]
        labels = zip(*(nullable(values[known]) for values in state.labels[2:]))
        entries = (entry for entry, row in zip(found.values(), rows.tolist()) if row >= 0)
        return {
            entry.id: entry._replace(pid=pid, camid=camid, time=time)
            for entry, (pid, camid, time) in zip(entries, labels)
        }

    def relabel(self, ids: np.ndarray, pids: np.ndarray, camids: np.ndarray, times: np.ndarray) -> None:
        """Sets the labels of entries, given as in :class:`FeatureBatch`; durable when it returns."""
        with self.lock:
            changed = list(zip(*map(nullable, (pids, camids, times)), ids.tolist()))
            update = "UPDATE entries SET pid = ?, camid = ?, time = ? WHERE id = ?"
            self.commit({}, lambda connection: connection.executemany(update, changed))
            self._change(self.state.rows_of(ids), pids=pids, camids=camids, times=times)

    def compact(self, swapping: AbstractContextManager) -> None:
        """Writes a new file of vectors, without those of deleted entries, and removes the old one; ids stay.

        The old file is valid until the commit.

        Args:
          swapping: entered while the rows' numbers change.
        """
        with self.lock:
            self.check_place()
            old, labels = self.settings["vectors"], self.state.labels
            new = f"vectors-{int(old.removeprefix('vectors-').removesuffix('.f32')) + 1}.f32"
            kept = np.flatnonzero(labels.alive)
            step = max(1, COPIED_BYTES // (4 * self.settings["dimension"]))
            path = self.folder / new
            try:
                with _written(path, "wb") as stream:
                    for start in range(0, len(kept), step):
                        stream.write(np.ascontiguousarray(self.state.vectors[kept[start : start + step]]).data)
                with writing(path):
                    sync_folder(self.folder)
                moved = enumerate(labels.ids[kept].tolist())
                with swapping:
                    self.commit(
                        {"vectors": new, "rows": len(kept), "snapshot": None},
                        lambda connection: connection.executemany("UPDATE entries SET row = ? WHERE id = ?", moved),
                    )
                    self._labels = Labels(*(array[kept] for array in labels))
                    self.state = self._visible(self._map(new, len(kept), self.settings["dimension"]))
            except BaseException:
                if self.settings["vectors"] == old:
                    discard(path)
                raise
            self._remove_vectors()

    def _remove_vectors(self) -> None:
        """Removes files of vectors from before a compaction, and those that an interrupted compaction left."""
        with writing(self.folder):
            for path in self.folder.glob("vectors-*.f32"):
                if path.name != self.settings["vectors"]:
                    path.unlink(missing_ok=True)

    def commit(self, settings: dict[str, Any], change: Optional[Callable[[sqlite3.Connection], Any]] = None) -> None:
        """Runs ``change`` and stores ``settings`` in one transaction; durable when it returns."""
        with self.lock:
            self.check_place()
            settings = {**settings, "revision": self.settings["revision"] + 1}
            try:
                self.database.commit(settings, change)
                self.settings = {**self.settings, **settings}
            except UserError:
                raise
            except BaseException:
                # Python raises KeyboardInterrupt after the COMMIT that it interrupted has succeeded.
                self.load()
                raise

    def damaged(self, progress: Progress = None) -> tuple[list[Entry], int]:
        """Compares the vectors with their checksums.

        Returns:
          The entries with damaged vectors, and the number of compared entries, which are all that have a checksum.
        """
        state, wrong, compared = self.state, [], 0
        for ids, checksums in self.database.checksums():
            rows = state.rows_of(ids)
            there = np.flatnonzero(rows >= 0)
            compared += len(there)
            wrong += [ids[i] for i in there if zlib.crc32(state.vectors[rows[i]]) != checksums[i]]
            if progress:
                progress(compared, state.live)
        # Entries that were deleted meanwhile are not damaged but overwritten; entries() leaves them out.
        return list(self.database.entries(map(int, wrong)).values()), compared

    def whole(self, ids: np.ndarray) -> np.ndarray:
        """Returns which of the entries ``ids`` have vectors that fit their checksums or have none, bool ``[n]``."""
        state, checksums = self.state, self.database.checksums_of(ids)
        rows = state.rows_of(ids)
        whole = np.ones(len(ids), bool)
        for place, (id, row) in enumerate(zip(ids.tolist(), rows.tolist())):
            if row >= 0 and id in checksums:
                whole[place] = zlib.crc32(state.vectors[row]) == checksums[id]
        return whole

    def load(self) -> None:
        """Reads settings and labels in one transaction, and maps the vectors."""
        with self.lock:
            with self.database.read() as (settings, parts):
                rows = settings["rows"]
                vectors = self._map(settings["vectors"], rows, settings["dimension"])
                labels, count = Labels.empty(rows), 0
                for part in parts:
                    where, ids, *known = map(np.array, zip(*part))
                    if where.min() < 0 or where.max() >= rows:
                        raise ValueError(f"an entry has row {where.max()} of {rows}")
                    for whole, values in zip(labels, (ids, True, *known)):
                        whole[where] = values
                    count += len(part)
                if count != labels.alive.sum():
                    raise ValueError("two entries have the same row")
                if (np.diff(labels.ids[labels.alive]) <= 0).any():
                    raise ValueError("entries' ids do not rise with their rows")
            np.maximum.accumulate(labels.ids, out=labels.ids)
            self.settings, self._labels = settings, labels
            self.state = self._visible(vectors)

    def _extend(self, ids: np.ndarray, images: FeatureBatch) -> None:
        """Makes committed rows visible to searches that begin now."""
        old, n = len(self.state.vectors), len(ids)
        if old + n > len(self._labels.ids):
            grown = Labels.empty(max(old + n, 2 * len(self._labels.ids)))
            for new, present in zip(grown, self._labels):
                new[:old] = present[:old]
            self._labels = grown
        for whole, values in zip(self._labels, (ids, True, images.pids, images.camids, images.times)):
            whole[old : old + n] = values
        self.state = self._visible(self._map(self.settings["vectors"], old + n, self.settings["dimension"]))

    def _visible(self, vectors: np.ndarray) -> State:
        labels = Labels(*(array[: len(vectors)] for array in self._labels))
        return State(vectors, labels, np.count_nonzero(labels.alive))

    def _map(self, name: str, rows: int, dimension: int) -> np.ndarray:
        path = self.folder / name
        try:
            size = path.stat().st_size
            if size < 4 * rows * dimension:
                raise UserError(f"{path}: {size} bytes, expected at least {4 * rows * dimension} for {rows} vectors")
            if not rows:
                return np.empty((0, dimension), np.float32)
            return np.memmap(path, "<f4", "r", 0, (rows, dimension)).view(np.ndarray)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}, expected the gallery's vectors") from error


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _check_new(folder: Path) -> None:
    """Raises UserError unless ``folder`` is empty or holds only files that an interrupted creation left."""
    if (folder / DATABASE).exists():
        raise UserError(f"{folder}: there is a gallery already, expected a new folder")
    own = {LOCK, FIRST_VECTORS} if _is_own_lock(folder / LOCK) else {FIRST_VECTORS}
    others = sorted(path.name for path in folder.iterdir() if path.name not in own and not path.name.startswith("."))
    if others:
        raise UserError(f"{folder}: holds {others[0]!r}, expected a new or an empty folder")
    vectors = folder / FIRST_VECTORS
    if vectors.exists() and vectors.stat().st_size:
        raise UserError(f"{folder}: holds {FIRST_VECTORS!r} with vectors, expected a new or an empty folder")


def _is_own_lock(path: Path) -> bool:
    """Returns whether a file is missing or holds no more than :func:`_take` writes: a process's number."""
    try:
        with path.open("rb") as stream:
            return re.fullmatch(rb"([0-9]+\n)?", stream.read(32)) is not None
    except OSError:
        return True  # it is missing, or opening it as the lock will say why it cannot be


def _take(folder: Path) -> int:
    """Takes the lock of the gallery in ``folder``; returns the descriptor of its file.

    Raises:
      UserError: another process holds the lock, or the folder cannot be written.
    """
    path = folder / LOCK
    with writing(path), ExitStack() as stack:
        lock_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        stack.callback(os.close, lock_file)
        if lock(lock_file):
            os.ftruncate(lock_file, 0)
            os.write(lock_file, f"{os.getpid()}\n".encode("ascii"))
            stack.pop_all()  # it stays open
            return lock_file
        holder = os.read(lock_file, 32).decode("ascii", "replace").strip()
    raise UserError(f"{folder}: process {holder or '?'} is writing to this gallery, expected one at a time")


def _no_link(path: str, flags: int) -> int:
    """Opens a file unless it is a symbolic link, which could lead to a file outside the folder."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def _written(path: Path, mode: str) -> Iterator[BinaryIO]:
    """Opens a file for writing, and syncs it at the end."""
    with writing(path), open(path, mode, opener=_no_link) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
