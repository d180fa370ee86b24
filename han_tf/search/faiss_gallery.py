"""The embedded engine: a folder, searched with FAISS."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, remove, sha256_of
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.shards import FeatureBatch
from han_tf.metrics.checks import default_threads
from han_tf.search.approximate import ApproximateIndex, spread
from han_tf.search.choice import ENGINES, FLAT_BYTES, choose_engine
from han_tf.search.entries import Entry, Filters, check_ids
from han_tf.search.exact import ExactSearch, error_bound, import_faiss, nearest, squared_distances
from han_tf.search.gallery import Gallery, Progress
from han_tf.search.guard import Guard
from han_tf.search.store import State, Store

BUILT_LEAST = 1000
"""Smallest number of rows to build an index for: an exact search of fewer is faster, and they are too few to train."""

UNASKED_LEAST = 10_000
UNASKED_MOST = 20_000
"""``add`` builds the first index at the former number of rows, and adds up to the latter number that an index lacks."""

ADDED_AT_ONCE = 256
"""Rows that are added to the index at a time while searches wait."""

BUILT_AT_ONCE = 16_384
"""Rows that are added at a time to an index that is not in use yet, between two reports of progress."""

GROWN = 4
"""An index that holds more than this many times the rows it was trained on should be built anew."""

CHECKED_LEAST, CHECKED_SHARE = 1000, 0.05
"""An index is checked when this number of rows, and this share of its rows, were added since the last check."""

SAMPLED, NEAREST = 64, 10
"""A check searches the 10 nearest rows of 64 rows that the index was trained on and of 64 that were added later."""

RECALL_SHARE = 0.9
"""An index whose recall falls below this share of its recall when it was built is built anew."""

RECALL_LEAST = 0.8
"""If the recall of a new index is lower, a note recommends the engine flat."""

COMPACTED_LEAST, COMPACTED_SHARE = 1000, 0.2
"""A gallery is compacted when this number of rows, and this share of all rows, are of deleted entries."""

CANDIDATES_LEAST = 100
CANDIDATES_PER_HIT = 4
"""An index proposes 4·k candidates for k hits, at least 100; these are compared exactly."""

EXACT_SHARE = 20
"""If fewer than one row in 20 passes the filters, all that pass are compared exactly, without the index."""

NAMED = 3
"""Damaged entries that a note names."""

LOADED_TRIES = 3
"""How often loading is tried while another process changes the gallery."""

SNAPSHOT_SHARE = 0.01
"""Closing a gallery writes the index if more than this share of its rows is not in its file."""

ASKED_FOR = "asked for"
"""The stored reason for an engine that the user chose."""

POOR = (
    "the index was trained on other images and finds only {:.0%} of the nearest ones: searches go through all rows "
    "until it is built anew (python -m han_tf.index --rebuild)"
)

SOURCE = "source "
"""Prefix of the settings that hold how many rows of a source have been added."""


class _Loaded(NamedTuple):
    """An index in use.

    Attributes:
      index: the index.
      trained: number of rows when it was trained.
      written: number of its rows that its file holds.
      recall: share of the nearest rows that it found when it was built; 1 if that was not measured.
      checked: number of rows when a check last passed.
    """

    index: ApproximateIndex
    trained: int
    written: int
    recall: float
    checked: int


class FaissGallery(Gallery):
    """A gallery in a folder; see :mod:`han_tf.search.store` for its files.

    README.md in this folder says how processes share it, when its index is built, checked and passed over, and what is
    compared with checksums. The index is derived from the vectors: rows that it lacks, or all if it cannot be used, are
    searched exactly.

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
        self.faiss = import_faiss()
        self.threads = default_threads(threads)
        self._exact = ExactSearch(self.threads)
        self._guard = Guard()  # protects self._loaded and the numbers of the rows
        self._changing = threading.RLock()  # held while the index is built or extended, or the gallery compacted
        self._loaded: Optional[_Loaded] = None
        self._damage = ""  # a note on the index
        self._wrong = ""  # a note on the vectors
        self._found: Optional[float] = None  # recall of an index that is no longer used because it is too low
        self._worker: Optional[threading.Thread] = None
        self._worker_lock = threading.Lock()
        self._closing = False
        self.store = store or Store(self.folder)
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

        Args:
          path, dimension, checksum: as there.
          engine: one of :data:`ENGINES`, or ``auto`` to choose one by ``rows`` and ``memory_mb``.
          rows, memory_mb: as of :func:`han_tf.search.choice.choose_engine`.
          threads: threads of a search; the number of cores if None.
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
        notes = [note for note in (self._wrong, self._damage) if note]
        if self._found is not None:
            notes.append(POOR.format(self._found))
        state, loaded = self.store.state, self._loaded
        rows = len(state.vectors)
        covered = loaded.index.rows if loaded else 0
        chosen = self.store.settings["reason"] != ASKED_FOR
        if self.engine == "flat" and chosen and 4 * rows * self.dimension > FLAT_BYTES:
            notes.append(f"{rows:,} rows have outgrown flat, which was chosen for fewer: build with the engine auto")
        if self.engine != "flat" and rows >= BUILT_LEAST and rows - covered > UNASKED_MOST:
            notes.append(f"{rows - covered:,} of {rows:,} rows are not in the index and searched one by one: build it")
        if loaded and covered > GROWN * loaded.trained:
            notes.append(f"the index was trained on {loaded.trained:,} rows and holds {covered:,}: build it anew")
        if loaded and self._found is None and loaded.recall < RECALL_LEAST:
            notes.append(f"the index finds {loaded.recall:.0%} of the nearest images: the engine flat finds all")
        if rows > 2 * state.live and rows >= BUILT_LEAST:
            notes.append(f"{rows - state.live:,} of {rows:,} rows are of deleted entries: compact the gallery")
        for _, (*_, name, done, rows) in self._sources():
            if done < rows:
                notes.append(f"{done:,} of {rows:,} rows of {name} have been added: add it again to go on")
        return notes

    def _add(self, images: FeatureBatch, gone: Sequence[int] = ()) -> np.ndarray:
        with self._alone():
            return self.store.append(images, np.array(gone, np.int64))

    def _update_index(self) -> None:
        if not self._changing.acquire(blocking=False):
            return  # another thread is building the index, and adds these rows at the end
        try:
            rows, loaded = len(self.store.state.vectors), self._loaded
            if loaded and rows - loaded.index.rows <= UNASKED_MOST:
                self._catch_up()
            elif not loaded and self.engine != "flat" and UNASKED_LEAST <= rows <= UNASKED_MOST:
                self.build()
        except (UserError, RuntimeError, MemoryError) as error:
            # The rows are in the gallery even if the index could not be updated.
            reason = " ".join(str(error).split()) or "no memory"
            self._damage = f"{reason}: what the index lacks is searched one by one until it is built"
            if not isinstance(error, UserError):
                with self._guard.writing():
                    self._loaded = None  # FAISS may have changed it in part
        finally:
            self._changing.release()
        self._tend()

    def _named(self, paths: list[str]) -> Iterable[Entry]:
        with self._alone():
            return self.store.named(paths)

    def _relabel(self, ids: np.ndarray, pids: np.ndarray, camids: np.ndarray, times: np.ndarray) -> None:
        self.store.relabel(ids, pids, camids, times)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.store.lock:
            self._check_open()
            if self.store.take_lock(self._renumbering()):  # another process has changed the gallery
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
        labels = self.store.state.labels
        alive = np.flatnonzero(labels.alive)
        chosen = alive[spread(len(alive), limit)]
        return list(self.store.entries(labels.ids[chosen].tolist()).values())

    def _page(self, limit: int, after: int, filters: Filters) -> list[Entry]:
        state = self.store.state
        passing = self._passing(state, filters)
        start = int(np.searchsorted(state.labels.ids, after, "right"))
        rows = np.arange(start, len(state.vectors)) if passing is None else start + np.flatnonzero(passing[start:])
        ids = state.labels.ids[rows[:limit]].tolist()
        found = self.store.entries(ids)
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

    def _entries(self, ids: set[int]) -> dict[int, Entry]:
        return self.store.entries(ids)

    def _features(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = self.store.state
        rows = state.rows_of(ids)
        return ids[rows >= 0], state.vectors[rows[rows >= 0]]

    def _search(self, queries: np.ndarray, k: int, filters: Filters) -> list[tuple[np.ndarray, np.ndarray]]:
        self.faiss.omp_set_num_threads(self.threads if len(queries) > 1 else 1)
        with self._guard.reading():
            state, loaded = self.store.state, self._loaded
            covered = loaded.index.rows if loaded and self._found is None else 0
            passing = self._passing(state, filters)
            count = len(state.vectors) if passing is None else int(passing.sum())
            proposed = min(max(CANDIDATES_LEAST, CANDIDATES_PER_HIT * k), count)
            candidates = None
            # If few rows pass, comparing these is faster than an index that skips the others.
            if covered and count > max(BUILT_LEAST, covered / EXACT_SHARE):
                mask = None if passing is None else passing[:covered]
                within = covered if mask is None else int(mask.sum())
                if within > proposed:
                    candidates = loaded.index.propose(queries, proposed, mask, covered / within)
        everything = passing if passing is None else np.flatnonzero(passing)
        greatest = self.store.settings["greatest_norm"]
        labels, vectors = state.labels, state.vectors
        if candidates is None:
            found = self._exact.search(queries, vectors, everything, k, greatest)
        else:
            tail = np.arange(covered, len(vectors)) if passing is None else everything[everything >= covered]
            later = self._exact.search(queries, vectors, tail, k, greatest) if len(tail) else None
            found = []
            for i, query in enumerate(queries):
                rows = candidates[i][candidates[i] >= 0]
                near = nearest(query, vectors, rows, len(rows))
                # Too few candidates, or the k-th is as far as the last: the index may lack others at that distance.
                if len(rows) < min(k, within) or (len(rows) > k and near[1][k - 1] == near[1][-1]):
                    found += self._exact.search(queries[i : i + 1], vectors, everything, k, greatest)
                elif later:
                    rows, distances = (np.concatenate(arrays) for arrays in zip(near, later[i]))
                    order = np.lexsort((rows, distances))[:k]
                    found.append((rows[order], distances[order]))
                else:
                    found.append((near[0][:k], near[1][:k]))
        return [(labels.ids[rows], np.sqrt(distances)) for rows, distances in found]

    def _passing(self, state: State, filters: Filters) -> Optional[np.ndarray]:
        """Returns which rows are of entries that pass, bool ``[rows]``; None for all rows."""
        if not filters:
            return None if state.live == len(state.vectors) else state.labels.alive
        passing = state.labels.alive & filters.passing(*state.labels[2:])
        if filters.paths:
            rows = state.rows_of(self.store.ids_below(filters.paths))
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
        with self._changing:
            with self._alone():
                reason = self.store.settings["reason"]
            rows = len(self.store.state.vectors)
            if engine is None:
                engine = self.engine
            else:
                engine, reason = _chosen(engine, rows, self.dimension, memory_mb)
            settings = {"engine": engine, "reason": reason}
            if engine == "flat" or rows < BUILT_LEAST:
                with self._guard.writing():
                    self._loaded = self._found = None
                self._commit_snapshot(None, settings)
                return
            loaded = self._loaded
            if anew or loaded is None or loaded.index.kind != engine or rows > GROWN * loaded.trained:
                self._train(engine, progress)
            self._catch_up(progress)
            if self._unchecked() and not self._check():
                self._train(engine, progress)
                self._catch_up(progress)
            self._write(settings)

    def _train(self, engine: str, progress: Progress) -> None:
        """Builds a new index of all rows and measures its recall; searches use the old one until then."""
        index, state = ApproximateIndex(engine, self.dimension), self.store.state
        trained = len(state.vectors)
        self.faiss.omp_set_num_threads(self.threads)
        index.train(state.vectors, np.flatnonzero(state.labels.alive))
        while index.rows < (there := len(self.store.state.vectors)):
            if self._closing and threading.current_thread() is self._worker:
                raise UserError(f"{self.location}: the gallery was closed while its index was built")
            _add_rows(index, self.store.state, BUILT_AT_ONCE)
            if progress:
                progress(index.rows, there)
        recall = self._recall(index, trained)
        with self._guard.writing():
            self._loaded, self._found = _Loaded(index, trained, 0, recall, index.rows), None

    def _recall(self, index: ApproximateIndex, trained: int) -> float:
        """Returns the index's recall: the share of the nearest rows of stored vectors that it finds.

        It is measured for vectors that the index was trained on and for later ones; the smaller value is returned.
        """
        state = self.store.state
        vectors, alive = state.vectors[: index.rows], state.labels.alive[: index.rows]
        living, greatest = np.flatnonzero(alive), self.store.settings["greatest_norm"]
        k, chosen = min(NEAREST, len(living)), None if alive.all() else living
        margin, worst = error_bound(self.dimension, greatest), 1.0
        for rows in (living[living < trained], living[living >= trained]):
            if not len(rows):
                continue
            queries = vectors[rows[spread(len(rows), SAMPLED)]]
            _, exact = self._exact.candidates(queries, vectors, chosen, k)
            mask = None if chosen is None else alive
            with self._guard.reading():
                found = index.propose(queries, max(CANDIDATES_LEAST, k), mask, len(vectors) / len(living))
            shares = []
            for query, there, proposed in zip(queries, exact, found):
                # Among rows at the same distance, up to rounding, any counts as found.
                limit = squared_distances(query, vectors, there).max() + margin
                near = nearest(query, vectors, proposed[proposed >= 0], k)[1]
                shares.append((near <= limit).sum() / k)
            worst = min(worst, float(np.mean(shares)))
        return worst

    def _unchecked(self) -> bool:
        """Returns whether enough rows were added since the index was last checked to check it again."""
        loaded = self._loaded
        added = loaded.index.rows - loaded.checked if loaded and self._found is None else 0
        return added >= max(CHECKED_LEAST, CHECKED_SHARE * loaded.index.rows) if added else False

    def _check(self) -> bool:
        """Returns whether the index's recall is still good; if not, searches no longer use the index."""
        loaded = self._loaded
        recall = self._recall(loaded.index, loaded.trained)
        if recall >= RECALL_SHARE * loaded.recall:
            self._loaded = loaded._replace(checked=loaded.index.rows)
            return True
        self._found = recall
        snapshot = self.store.settings["snapshot"]
        if snapshot is not None:
            self.store.commit({"snapshot": {**snapshot, "found": recall}})
        return False

    def _sparse(self) -> bool:
        """Returns whether enough entries were deleted to compact the gallery."""
        rows = len(self.store.state.vectors)
        return rows - self.store.state.live >= max(COMPACTED_LEAST, COMPACTED_SHARE * rows)

    def _tend(self) -> None:
        """Starts a thread that compacts the gallery or checks its index, if either is due."""
        with self._worker_lock:
            busy = self._worker is not None and self._worker.is_alive()
            if not busy and not self._closing and (self._sparse() or self._unchecked()):
                self._worker = threading.Thread(target=self._work, name="han-gallery", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        try:
            with self._changing:
                if self._sparse():
                    self.compact()
                elif self._unchecked() and not self._check():
                    self.build(anew=True)
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            self._damage = " ".join(str(error).split()) or "no memory"

    def compact(self, progress: Progress = None) -> None:
        """Frees the space of deleted entries and builds the index anew. Ids do not change."""
        with self._changing:
            with self._alone():
                if self.store.state.live < len(self.store.state.vectors):
                    self.store.compact(self._renumbering())
            self.build(anew=True, progress=progress)

    def check(self, progress: Progress = None) -> int:  # noqa: D102
        self._check_open()
        self._wrong = ""
        try:
            wrong, compared = self.store.damaged(progress)
        except UserError as error:
            self._wrong = f"the vectors cannot be checked: {error}"
            raise
        if wrong:
            names = ", ".join(f"{entry.id} {entry.path}".strip() for entry in wrong[:NAMED])
            self._wrong = (
                f"the vectors of {len(wrong):,} entries are damaged (ids {names}{', …' * (len(wrong) > NAMED)}): add "
                "their sources again, which replaces them, or delete them"
            )
            raise UserError(f"{self.location}: {self._wrong}")
        return compared

    def info(self) -> dict[str, Any]:  # noqa: D102
        state, loaded = self.store.state, self._loaded
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
        with self._changing:
            with self.store.lock:  # a change that has begun is completed
                self.closed = True
            loaded = self._loaded
            unwritten = loaded.index.rows - loaded.written if loaded and self.store.writing else 0
            if unwritten and unwritten > SNAPSHOT_SHARE * loaded.index.rows:
                try:
                    self._write({})
                except UserError as error:
                    self._damage = str(error)  # no row is lost: those that the old file lacks are searched exactly
            with self._guard.writing():
                self._loaded = None
            self.store.close()
            self._exact.close()

    @contextmanager
    def _renumbering(self) -> Iterator[None]:
        """Excludes searches; drops the index if the file of vectors has changed, because it refers to row numbers."""
        with self._guard.writing():
            vectors = self.store.settings["vectors"]
            try:
                yield
            finally:
                if self.store.settings["vectors"] != vectors:
                    self._loaded = None

    def _load(self) -> None:
        """Loads the index that the database names, and checks the vectors of a small gallery."""
        for _ in range(LOADED_TRIES):
            try:
                loaded, damage = self._read_snapshot(), ""
            except UserError as error:
                loaded, damage = None, f"{error}: until it is built anew, searches go through all rows"
            if not damage or self.store.revision() == self.store.settings["revision"]:
                break
            self.store.load()  # the file is missing because another process has written a newer one
        with self._guard.writing():
            self._loaded, self._damage = loaded, damage
            self._found = self.store.settings["snapshot"].get("found") if loaded else None
        if self.store.state.vectors.nbytes <= FLAT_BYTES:  # takes at most half a second
            with suppress(UserError):  # self._wrong has the message
                self.check()
        if self.store.writing:
            if loaded and 0 < len(self.store.state.vectors) - loaded.index.rows <= UNASKED_MOST:
                self._catch_up()
            self._tend()

    def _read_snapshot(self) -> Optional[_Loaded]:
        snapshot = self.store.settings["snapshot"]
        if snapshot is None:
            return None
        path = self.folder / snapshot["file"]
        try:
            found = sha256_of(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}, expected the gallery's index") from error
        if found != snapshot["sha256"]:
            raise UserError(f"{path}: SHA-256 {found[:12]}…, expected {snapshot['sha256'][:12]}…: it is damaged")
        index = ApproximateIndex.read(snapshot["kind"], path, self.dimension)
        if index.rows != snapshot["rows"] or index.rows > len(self.store.state.vectors):
            raise UserError(f"{path}: {index.rows:,} rows, expected {snapshot['rows']:,}")
        trained = snapshot["trained"]
        return _Loaded(index, trained, index.rows, snapshot.get("recall", 1.0), snapshot.get("checked", trained))

    def _catch_up(self, progress: Progress = None) -> None:
        """Adds the rows that the index lacks, :data:`ADDED_AT_ONCE` at a time."""
        self.faiss.omp_set_num_threads(self.threads)
        index = self._loaded.index
        while index.rows < (there := len(self.store.state.vectors)):
            with self._guard.writing():
                _add_rows(index, self.store.state, ADDED_AT_ONCE)
            if progress:
                progress(index.rows, there)

    def _write(self, settings: dict[str, Any]) -> None:
        """Writes the index to a new file and names it in the database, with ``settings``."""
        index, trained, _, recall, checked = self._loaded
        path = self.folder / f"index-{self.store.settings['revision'] + 1}.faiss"
        if path.is_symlink():  # whose target would be replaced
            remove(path)
        try:
            with atomic_open(path) as stream:
                index.write(Path(stream.name))
                digest = sha256_of(stream.name)
        except RuntimeError as error:  # of FAISS
            raise UserError(f"cannot write {path}: {' '.join(str(error).split())}") from error
        snapshot = {
            "file": path.name,
            "sha256": digest,
            "kind": index.kind,
            "rows": index.rows,
            "trained": trained,
            "recall": recall,
            "checked": checked,
            **({} if self._found is None else {"found": self._found}),
        }
        self._commit_snapshot(snapshot, settings)
        # The lists in a file are mapped instead of held in memory.
        loaded = _Loaded(ApproximateIndex.read(index.kind, path, self.dimension), trained, index.rows, recall, checked)
        with self._guard.writing():
            self._loaded = loaded

    def _commit_snapshot(self, snapshot: Optional[dict[str, Any]], settings: dict[str, Any]) -> None:
        self.store.commit({**settings, "snapshot": snapshot})
        self._damage = ""
        for path in [*self.folder.glob("index-*.faiss"), *self.folder.glob(".index-*.tmp")]:
            if snapshot is None or path.name != snapshot["file"]:
                remove(path)


def _add_rows(index: ApproximateIndex, state: State, most: int) -> None:
    part = slice(index.rows, index.rows + most)
    vectors, alive = np.array(state.vectors[part]), state.labels.alive[part]
    if alive.any():
        # Deleted vectors are zeros, which are near to all others: searches of a graph would stop at them.
        vectors[~alive] = vectors[alive][np.arange(len(alive) - alive.sum()) % alive.sum()]
    index.add(vectors)


def _chosen(engine: str, rows: int, dimension: int, memory_mb: Optional[int]) -> tuple[str, str]:
    if engine == "auto":
        return choose_engine(rows, dimension, memory_mb)
    if engine not in ENGINES:
        raise UserError(f"engine is {engine!r}, expected auto, {', '.join(ENGINES)} or milvus")
    return engine, ASKED_FOR


def _bytes(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just replaced it
            size += path.stat().st_size
    return size
