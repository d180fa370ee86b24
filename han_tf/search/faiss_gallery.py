"""The embedded engine: a folder, searched with FAISS."""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.shards import FeatureBatch
from han_tf.metrics.checks import default_threads
from han_tf.search.approximate import spread
from han_tf.search.choice import ENGINES, FLAT_BYTES, choose_engine
from han_tf.search.entries import Entry, Filters, check_choice, check_ids
from han_tf.search.exact import import_faiss
from han_tf.search.gallery import Gallery, Progress
from han_tf.search.store import State, Store
from han_tf.search.vector_index import VectorIndex

COMPACTED_LEAST, COMPACTED_SHARE = 1000, 0.2
"""A gallery is compacted when this number of rows, and this share of all rows, are of deleted entries."""

DELETING_TRIES = 10
"""How often a search or a page is tried while entries that it finds are deleted."""

NAMED = 3
"""Damaged entries that a note names."""

ASKED_FOR = "asked for"
"""The stored reason for an engine that the user chose."""

SOURCE = "source "
"""Prefix of the settings that hold how many rows of a source have been added."""


class FaissGallery(Gallery):
    """A gallery in a folder; see :mod:`han_tf.search.store` for its files.

    README.md in this folder says how processes share it, and what is compared with checksums. While the gallery is
    open for changes, a thread compacts it or builds its index anew when either is due.

    Args:
      path: the folder.
      writable: whether to take the lock for changes at once.
      threads: threads of a search; the number of cores if None.
      store: its open files, if any; closed with the gallery.

    Raises:
      UserError: there is no gallery, it is damaged or of another version, another process changes it, or FAISS is not
        installed.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike],
        *,
        writable: bool = False,
        threads: Optional[int] = None,
        store: Optional[Store] = None,
    ):
        self.folder = Path(path)
        self.location = str(path)
        import_faiss()
        threads = default_threads(threads)
        self._unchecked = ""  # why the vectors cannot be checked
        self._damaged: list[Entry] = []
        self._worker: Optional[threading.Thread] = None
        self._worker_lock = threading.Lock()
        self._closing = False
        self.store = store or Store(self.folder)
        self.index = VectorIndex(self.store, threads)
        try:
            if writable:
                self.store.take_lock()
            self._load()
        except BaseException:
            self.store.close()
            raise

    @classmethod
    def create(
        cls,
        path: Union[str, os.PathLike],
        dimension: int,
        checksum: str,
        engine: str = "auto",
        *,
        rows: int = 0,
        memory_mb: Optional[int] = None,
        threads: Optional[int] = None,
    ) -> "FaissGallery":
        """Creates an empty gallery; see :func:`han_tf.search.create_gallery`.

        Without an engine, or with ``auto``, :func:`han_tf.search.choice.choose_engine` chooses one by ``rows`` and
        ``memory_mb``.
        """
        import_faiss()
        engine, reason = _chosen(engine, rows, dimension, memory_mb)
        settings = {"dimension": dimension, "checksum": checksum, "engine": engine, "reason": reason}
        threads = default_threads(threads)
        return cls(path, threads=threads, store=Store.create(Path(path), settings))

    @property
    def settings(self) -> dict[str, Any]:  # noqa: D102
        return self.store.settings

    @property
    def engine(self) -> str:  # noqa: D102
        return self.store.settings["engine"]

    def _notes(self) -> list[str]:
        state = self.store.state
        notes = list(filter(None, [self._unchecked or self._damage()]))
        notes += self.index.notes()
        rows = len(state.vectors)
        chosen = self.store.settings["reason"] != ASKED_FOR
        if self.engine == "flat" and chosen and 4 * rows * self.dimension > FLAT_BYTES:
            notes.append(f"{rows:,} rows have outgrown flat, which was chosen for fewer: build with the engine auto")
        if rows > 2 * state.live and rows >= COMPACTED_LEAST:
            notes.append(f"{rows - state.live:,} of {rows:,} rows are of deleted entries: compact the gallery")
        for _, (*_, name, done, rows) in self._sources():
            if done < rows:
                notes.append(f"{done:,} of {rows:,} rows of {name} have been added: add it again to go on")
        return notes

    def _add(self, images: FeatureBatch, gone: Sequence[int] = ()) -> np.ndarray:
        with self._alone():
            return self.store.append(images, np.array(gone, np.int64))

    def _update_index(self) -> None:
        self.index.update()
        self._tend()

    def _named(self, paths: list[str]) -> Iterable[Entry]:
        with self._alone():
            return self.store.database.named(paths)

    def _relabel(self, ids: np.ndarray, pids: np.ndarray, camids: np.ndarray, times: np.ndarray) -> None:
        self.store.relabel(ids, pids, camids, times)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.store.lock:
            self._check_open()
            if self.store.take_lock(self.index.renumbering()):  # another process has changed the gallery
                self._load()
            yield

    def _note_source(self, name: str, done: int, rows: int) -> None:
        with self._alone():
            notes = {key: [*value[:-2], rows, rows] for key, value in self._sources() if value[-3] == name}
            key = f"{SOURCE}{name}".encode("utf-8", "backslashreplace").decode()  # a file's name may not be UTF-8
            notes[key] = [name, done, rows]
            if any(self.store.settings.get(key) != value for key, value in notes.items()):
                self.store.commit(notes)

    def _sources(self) -> list[tuple[str, list[Any]]]:
        """Returns key and value of the settings on sources; a value ends in name, added rows and all rows."""
        return [(key, value) for key, value in self.store.settings.items() if key.startswith(SOURCE)]

    def delete(self, ids: Sequence[int]) -> int:  # noqa: D102
        ids = check_ids(ids)
        with self._alone():
            count = self.store.delete(ids)
        self._tend()
        return count

    def _some(self, limit: int) -> list[Entry]:
        def choose() -> np.ndarray:
            labels = self.store.state.labels
            alive = np.flatnonzero(labels.alive)
            return labels.ids[alive[spread(len(alive), limit)]]

        return self._chosen_entries(choose)

    def _page(self, limit: int, after: int, filters: Filters) -> list[Entry]:
        def choose() -> np.ndarray:
            state = self.store.state
            passing = self._passing(state, filters)
            start = int(np.searchsorted(state.labels.ids, after, "right"))
            rows = np.arange(start, len(state.vectors)) if passing is None else start + np.flatnonzero(passing[start:])
            return state.labels.ids[rows[:limit]]

        return self._chosen_entries(choose)

    def _chosen_entries(self, choose: Callable[[], np.ndarray]) -> list[Entry]:
        """Returns the entries of the ids that ``choose`` returns; asks it again if some were deleted meanwhile."""
        for _ in range(DELETING_TRIES):
            ids = choose().tolist()
            found = self._entries(ids)
            if len(found) == len(ids):
                break
            self.store.notice_deletions()
        return [found[id] for id in ids if id in found]

    def _count(self, filters: Filters) -> int:
        state = self.store.state
        return int(self._passing(state, filters).sum()) if filters else state.live

    def _cameras(self) -> list[int]:
        labels = self.store.state.labels
        return [camid for camid in np.unique(labels.camids[labels.alive]).tolist() if camid != UNKNOWN]

    def features(self, ids: Sequence[int]) -> np.ndarray:  # noqa: D102
        features = super().features(ids)
        self.entries(ids)  # raises NoEntry if another process has deleted one since, which overwrites its vector
        return features

    def _entries(self, ids: Collection[int]) -> dict[int, Entry]:
        return self.store.entries(ids)

    def _features(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = self.store.state
        rows = state.rows_of(ids)
        return ids[rows >= 0], state.vectors[rows[rows >= 0]]

    def _search(self, queries: np.ndarray, k: int, filters: Filters) -> list[tuple[np.ndarray, np.ndarray]]:
        for _ in range(DELETING_TRIES):
            found = self.index.search(queries, k, lambda state: self._passing(state, filters))
            # The vector of an entry that was deleted meanwhile is zeros, which may rank before others.
            if self.store.database.hold(np.unique(np.concatenate([ids for ids, _ in found]))):
                break
            self.store.notice_deletions()
        return found

    def _passing(self, state: State, filters: Filters) -> Optional[np.ndarray]:
        """Returns which rows are of entries that pass, bool ``[rows]``; None for all rows."""
        if not filters:
            return None if state.live == len(state.vectors) else state.labels.alive
        passing = state.labels.alive & filters.passing(*state.labels[2:])
        if filters.paths:
            rows = state.rows_of(self.store.database.ids_below(filters.paths))
            chosen = np.zeros(len(passing), bool)
            chosen[rows[rows >= 0]] = True
            passing &= chosen
        return passing

    def _set(self, settings: dict[str, Any]) -> None:
        with self._alone():
            self.store.commit(settings)

    def build(
        self,
        engine: Optional[str] = None,
        *,
        memory_mb: Optional[int] = None,
        anew: bool = False,
        progress: Progress = None,
    ) -> None:
        """Builds the index, or adds the rows that it lacks, and writes it. Searches and additions go on meanwhile.

        Until it is written, the previous file stays valid. An index that was trained on too few rows is built anew.

        Args:
          engine: the new engine; ``auto`` chooses one; None keeps the present one.
          memory_mb: for ``auto``, as of :func:`han_tf.search.choice.choose_engine`.
          anew: whether to train the index even if it only lacks rows.
          progress: called after each part.

        Raises:
          UserError: the engine is unknown; the index cannot be written.
        """
        self._check_building(anew, progress)
        with self.index.changing:
            with self._alone():
                reason = self.store.settings["reason"]
            if engine is None:
                engine = self.engine
            else:
                engine, reason = _chosen(engine, len(self.store.state.vectors), self.dimension, memory_mb)
            self.index.build({"engine": engine, "reason": reason}, anew, progress)

    def _sparse(self) -> bool:
        """Returns whether enough entries were deleted to compact the gallery."""
        rows = len(self.store.state.vectors)
        return rows - self.store.state.live >= max(COMPACTED_LEAST, COMPACTED_SHARE * rows)

    def _tend(self) -> None:
        """Starts a thread that compacts the gallery or checks its index, if either is due."""
        with self._worker_lock:
            busy = self._worker is not None and self._worker.is_alive()
            if not busy and not self._closing and (self._sparse() or self.index.unchecked()):
                self._worker = threading.Thread(target=self._work, name="han-gallery", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        try:
            with self.index.changing:
                if self._sparse():
                    self.compact(self._end_if_closing)
                elif self.index.unchecked() and not self.index.check():
                    self.build(anew=True, progress=self._end_if_closing)
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            self.index.damage = " ".join(str(error).split()) or "no memory"

    def _end_if_closing(self, done: int, rows: int) -> None:
        if self._closing:
            raise UserError(f"{self.location}: the gallery was closed while its index was built")

    def compact(self, progress: Progress = None) -> None:
        """Frees the space of deleted entries and builds the index anew. Ids do not change."""
        self._check_building(True, progress)
        with self.index.changing:
            with self._alone():
                if self.store.state.live < len(self.store.state.vectors):
                    self.store.compact(self.index.renumbering())
            self.build(anew=True, progress=progress)

    def check(self, progress: Progress = None) -> int:  # noqa: D102
        self._check_building(False, progress)
        self._unchecked = ""
        try:
            self._damaged, compared = self.store.damaged(progress)
        except UserError as error:
            self._unchecked = f"the vectors cannot be checked: {error}"
            raise
        if damage := self._damage():
            raise UserError(f"{self.location}: {damage}")
        return compared

    def _damage(self) -> str:
        """Returns a sentence on the damaged vectors of entries that are still there; empty if there are none."""
        rows = self.store.state.rows_of(np.array([entry.id for entry in self._damaged], np.int64))
        left = [entry for entry, row in zip(self._damaged, rows) if row >= 0]
        if not left:
            return ""
        names = ", ".join(f"{entry.id} {entry.path}".strip() for entry in left[:NAMED])
        return (
            f"the vectors of {len(left):,} entries are damaged (ids {names}{', …' * (len(left) > NAMED)}): add "
            "their sources again, which replaces them, or delete them"
        )

    def _whole(self, ids: np.ndarray) -> np.ndarray:
        return self.store.whole(ids)

    def info(self) -> dict[str, Any]:  # noqa: D102
        state, loaded = self.store.state, self.index.loaded
        return {
            **super().info(),
            "reason": self.store.settings["reason"],
            "deleted": len(state.vectors) - state.live,
            "indexed": loaded.index.rows if loaded else 0,
            "axes": loaded.index.width if loaded else None,
            "recall": loaded.recall if loaded else None,
            "bytes": _bytes(self.folder),
        }

    def close(self) -> None:  # noqa: D102
        with self._worker_lock:
            self._closing, worker = True, self._worker
        if worker is not None:
            worker.join()
        with self.index.changing:
            with self.store.lock:  # a change that has begun is completed
                self.closed = True
            self.index.close()
            self.store.close()

    def _load(self) -> None:
        """Loads the index, and checks the vectors of a small gallery."""
        self.index.load()
        if self.store.state.vectors.nbytes <= FLAT_BYTES:  # takes at most half a second
            with suppress(UserError):  # the notes have the message
                self.check()
        if self.store.writing:
            self._tend()


def _chosen(engine: str, rows: int, dimension: int, memory_mb: Optional[int]) -> tuple[str, str]:
    check_choice(engine, "engine", ("auto", *ENGINES), f"auto, {', '.join(ENGINES)} or milvus")
    return choose_engine(rows, dimension, memory_mb) if engine == "auto" else (engine, ASKED_FOR)


def _bytes(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just replaced it
            size += path.stat().st_size
    return size
