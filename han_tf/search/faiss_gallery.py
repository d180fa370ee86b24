"""The embedded engine: a folder, searched with FAISS."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import sha256_of, sync_folder
from han_tf.metrics.checks import check_count, default_threads, squared_norms
from han_tf.search.approximate import ApproximateIndex, spread
from han_tf.search.choice import ENGINES, FLAT_BYTES, choose_engine
from han_tf.search.exact import ExactSearch, error_bound, import_faiss, nearest, squared_distances
from han_tf.search.gallery import (
    NO_FILTERS,
    UNKNOWN,
    Columns,
    Entry,
    Filters,
    Gallery,
    Progress,
    check_ids,
    stored_threshold,
)
from han_tf.search.guard import Guard
from han_tf.search.store import State, Store

BUILT_LEAST = 1000
"""Rows below which nothing is built: going through all of them is quicker, and too few to learn from."""

UNASKED_LEAST = 10_000
UNASKED_MOST = 20_000
"""An index is begun without being asked at so many rows; so many that it lacks are added to it without being asked."""

ADDED_AT_ONCE = 256
"""Rows added to the index while searches wait."""

BUILT_AT_ONCE = 16_384
"""Rows added to an index that nobody searches yet, between two reports of progress."""

GROWN = 4
"""An index that was trained on so many times fewer rows than it holds is better built anew."""

CHECKED_LEAST, CHECKED_SHARE = 1000, 0.05
"""An index is checked when so many rows, and so large a share of them, have been added since it was last."""

SAMPLED, NEAREST = 64, 10
"""Rows, of those that an index was trained on and of those that came later, whose nearest rows a check searches."""

RECALL_SHARE = 0.9
"""An index that finds less than this share of what it found when it was built has learned from other images."""

RECALL_LEAST = 0.8
"""A new index that finds a smaller share of the nearest rows is not recommended."""

COMPACTED_LEAST, COMPACTED_SHARE = 1000, 0.2
"""A gallery is compacted when so many rows, and so large a share of them, are of deleted entries."""

CANDIDATES_LEAST = 100
CANDIDATES_PER_HIT = 4
"""Rows that an index proposes, to be compared exactly, for k hits."""

EXACT_SHARE = 20
"""Where fewer than one row in so many passes the filters, these are gone through one by one."""

NAMED = 3
"""Damaged entries that a note names."""

LOADED_TRIES = 3
"""How often a gallery is read that another process changes at the same time."""

SNAPSHOT_SHARE = 0.01
"""An index is written when the gallery closes if more than this share of its rows is not in the file."""

ASKED_FOR = "asked for"
"""The reason for an engine that was not chosen by ``auto``."""

POOR = (
    "the index finds only {:.0%} of the nearest images, having learned from others: searches go through all rows until "
    "it is built anew (python -m han_tf.index --rebuild)"
)

SOURCE = "source "
"""Begins the settings that say how far a source has been added."""


class _Loaded(NamedTuple):
    """An index in use.

    Attributes:
      index: the index.
      trained: rows there were when it was trained.
      written: rows of it that its file holds.
      recall: share of the nearest rows that it found when it was built; 1 if that was not measured.
      checked: rows there were when it was last found good.
    """

    index: ApproximateIndex
    trained: int
    written: int
    recall: float
    checked: int


class FaissGallery(Gallery):
    """A gallery in a folder; see :mod:`han_tf.search.store` for its files.

    Any number of processes may search it. One at a time may change it, and holds the lock from its first change until
    it closes. A process that only searches sees the gallery as it was when it opened it, less what was deleted since.

    The index of the engines ``hnsw`` and ``ivfpq`` is derived from the vectors: ``index-N.faiss``, named with its
    checksum by the database once it is whole. Rows that it lacks are searched exactly. If it is damaged or missing,
    all rows are searched exactly, and :attr:`notes` says so.

    Each vector has a checksum. Vectors of up to 128 MiB are compared with theirs when the gallery is opened, more by
    :meth:`check` alone; where some are damaged, :attr:`notes` names their entries.

    What an index has learned from its first rows may not fit later ones. So while a process changes the gallery, it
    searches some of the stored vectors now and then, and compares what the index finds with what is nearest. Where
    the index falls short, all rows are searched exactly and a thread builds it anew. A thread compacts the gallery,
    too, when many of its entries have been deleted.

    Args:
      path: the folder.
      writable: whether to take the lock for changes at once.
      threads: threads of a search; the number of cores if None.
      store: its files, if they are open already; closed with the gallery.

    Raises:
      UserError: no gallery, a damaged one or one of another version; somebody else writes; FAISS is not installed.
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
        self._guard = Guard()  # of self._loaded, and of the rows' numbers
        self._changing = threading.RLock()  # of whoever builds, compacts or adds to the index
        self._loaded: Optional[_Loaded] = None
        self._damage = self._wrong = ""
        self._found: Optional[float] = None  # share of the nearest rows that an index finds which is not used any more
        self._worker: Optional[threading.Thread] = None
        self._worker_lock = threading.Lock()
        self._closing = False
        try:
            self.store = store or Store(self.folder)
            try:
                if writable:
                    self.store.take_lock()
                self._load()
            except BaseException:
                self.store.close()
                raise
        except BaseException:
            self._exact.close()
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
        """Makes an empty gallery; see :func:`han_tf.search.create_gallery`.

        Args:
          path: the folder.
          dimension: of the features.
          checksum: of the model.
          engine: one of :data:`ENGINES`; or ``auto``: chosen for ``rows`` and ``memory_mb``.
          rows: how many vectors are expected.
          memory_mb: what an index may take, MiB; None: half of what is available.
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

    @property
    def notes(self) -> list[str]:  # noqa: D102
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
        return notes + self._threshold_notes()

    def __len__(self) -> int:
        return self.store.state.live

    def _add(self, columns: Columns, gone: Optional[np.ndarray] = None, bulk: bool = False) -> np.ndarray:
        with self._alone():
            greatest = float(squared_norms(columns.features, "features").max())
            ids = self.store.append(columns, greatest, np.empty(0, np.int64) if gone is None else gone)
        # Whoever builds an index adds these rows himself at the end.
        if not bulk and self._changing.acquire(blocking=False):
            try:
                rows, loaded = len(self.store.state.vectors), self._loaded
                if loaded and rows - loaded.index.rows <= UNASKED_MOST:
                    self._catch_up()
                elif not loaded and self.engine != "flat" and UNASKED_LEAST <= rows <= UNASKED_MOST:
                    self.build()
            except (UserError, RuntimeError, MemoryError) as error:
                # The rows are in the gallery whatever becomes of the index.
                reason = " ".join(str(error).split()) or "no memory"
                self._damage = f"{reason}: what the index lacks is searched one by one until it is built"
                if not isinstance(error, UserError):
                    with self._guard.writing():
                        self._loaded = None  # FAISS may have stopped half-way
            finally:
                self._changing.release()
            self._tend()
        return ids

    def named(self, paths: Sequence[str]) -> Iterator[Entry]:  # noqa: D102
        with self._alone():
            return iter(list(self.store.named(paths)))

    def _relabel(self, ids: np.ndarray, pids: np.ndarray, camids: np.ndarray, times: np.ndarray) -> None:
        self.store.relabel(ids, pids, camids, times)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.store.lock:
            self._own()
            yield

    def note_source(self, name: str, done: int, rows: int) -> None:  # noqa: D102
        with self._alone():
            notes = {key: [*value[:-2], rows, rows] for key, value in self._sources() if value[-3] == name}
            notes[f"{SOURCE}{name}"] = [name, done, rows]
            if any(self.store.settings.get(key) != value for key, value in notes.items()):
                self.store.commit(notes)

    def _set(self, settings: dict[str, Any]) -> None:
        with self._alone():
            self.store.commit(settings)

    def _sources(self) -> list[tuple[str, list[Any]]]:
        """Returns the settings that end in a source's name, rows that have been added and rows that it has."""
        return [(key, value) for key, value in self.store.settings.items() if key.startswith(SOURCE)]

    def delete(self, ids: Sequence[int]) -> int:  # noqa: D102
        ids = check_ids(ids)
        with self._alone():
            count = self.store.delete(ids)
        self._tend()
        return count

    def some(self, limit: int) -> list[Entry]:  # noqa: D102
        labels = self.store.state.labels
        alive = np.flatnonzero(labels.alive)
        chosen = alive[spread(len(alive), limit)]
        return list(self.store.entries(labels.ids[chosen].tolist()).values())

    def page(self, limit: int, after: int = -1, filters: Filters = NO_FILTERS) -> list[Entry]:  # noqa: D102
        state, limit = self.store.state, check_count(limit, "limit", 1)
        passing = _passing(state, filters)
        start = int(np.searchsorted(state.labels.ids, after, "right"))
        rows = np.arange(start, len(state.vectors)) if passing is None else start + np.flatnonzero(passing[start:])
        ids = state.labels.ids[rows[:limit]].tolist()
        found = self.store.entries(ids)
        return [found[id] for id in ids if id in found]

    def count(self, filters: Filters = NO_FILTERS) -> int:  # noqa: D102
        state = self.store.state
        passing = _passing(state, filters)
        return len(state.vectors) if passing is None else int(passing.sum())

    def cameras(self) -> list[int]:  # noqa: D102
        labels = self.store.state.labels
        return [camid for camid in np.unique(labels.camids[labels.alive]).tolist() if camid != UNKNOWN]

    def features(self, ids: Sequence[int]) -> np.ndarray:  # noqa: D102
        features = super().features(ids)
        self.entries(ids)  # another process may have deleted one and its vector since
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
            passing = _passing(state, filters)
            count = len(state.vectors) if passing is None else int(passing.sum())
            proposed = min(max(CANDIDATES_LEAST, CANDIDATES_PER_HIT * k), count)
            candidates = None
            # Where few pass, going through these is quicker than an index that skips the others.
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
                # Too few, or so many at one distance that others may have been passed over.
                if len(rows) < min(k, within) or (len(rows) > k and near[1][k - 1] == near[1][-1]):
                    found += self._exact.search(queries[i : i + 1], vectors, everything, k, greatest)
                elif later:
                    rows, distances = (np.concatenate(arrays) for arrays in zip(near, later[i]))
                    order = np.lexsort((rows, distances))[:k]
                    found.append((rows[order], distances[order]))
                else:
                    found.append((near[0][:k], near[1][:k]))
        return [(labels.ids[rows], np.sqrt(distances)) for rows, distances in found]

    def set_threshold(self, threshold: Optional[float], calibration: Optional[dict[str, Any]] = None) -> None:  # noqa: D102
        value = stored_threshold(threshold)
        with self._alone():
            self.store.commit({"threshold": value, "calibration": calibration})

    def build(
        self,
        engine: Optional[str] = None,
        *,
        memory_mb: Optional[int] = None,
        anew: bool = False,
        progress: Progress = None,
    ) -> None:
        """Builds or completes the index, and writes it. Searches and additions go on meanwhile.

        Until it is written, the previous file stays valid. An index that was trained on too few rows is built anew.

        Args:
          engine: to go over to; ``auto`` chooses again; None keeps what there is.
          memory_mb: what an index may take, MiB, if it is to be chosen; None: half of what is available.
          anew: whether to train and build from the start even where rows are only missing.
          progress: told how far it is.

        Raises:
          UserError: unknown engine; it cannot be written.
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
        """Makes a new index of all rows and measures how well it finds them; the old one is searched until then."""
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
        """Returns the share of the nearest rows of stored vectors that the index finds.

        It is the smaller one of rows that it was trained on and of rows that came later.
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
                # Of rows that are equally near, or nearly so, any will do.
                limit = squared_distances(query, vectors, there).max() + margin
                near = nearest(query, vectors, proposed[proposed >= 0], k)[1]
                shares.append((near <= limit).sum() / k)
            worst = min(worst, float(np.mean(shares)))
        return worst

    def _unchecked(self) -> bool:
        """Returns whether so many rows were added since the index was last checked that it is to be checked again."""
        loaded = self._loaded
        added = loaded.index.rows - loaded.checked if loaded and self._found is None else 0
        return added >= max(CHECKED_LEAST, CHECKED_SHARE * loaded.index.rows) if added else False

    def _check(self) -> bool:
        """Returns whether the index still finds what is nearest; if it does not, it is not searched any more."""
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
        """Returns whether so many entries were deleted that the gallery is to be compacted."""
        rows = len(self.store.state.vectors)
        return rows - self.store.state.live >= max(COMPACTED_LEAST, COMPACTED_SHARE * rows)

    def _tend(self) -> None:
        """Begins, in a thread, what the gallery needs: compaction, or a check of its index."""
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
        wrong, compared = self.store.damaged(progress)
        self._wrong = ""
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
            "location": self.location,
            "engine": self.engine,
            "reason": self.store.settings["reason"],
            "entries": state.live,
            "deleted": len(state.vectors) - state.live,
            "indexed": loaded.index.rows if loaded else 0,
            "axes": loaded.index.width if loaded else None,
            "recall": loaded.recall if loaded else None,
            "dimension": self.dimension,
            "model": self.checksum,
            "identity": self.identity,
            "threshold": self.threshold,
            "calibration": self.calibration,
            "bytes": _bytes(self.folder),
            "notes": self.notes,
        }

    def close(self) -> None:  # noqa: D102
        with self._worker_lock:
            self._closing, worker = True, self._worker
        if worker is not None:
            worker.join()
        with self._changing:
            self.closed = True
            loaded = self._loaded
            unwritten = loaded.index.rows - loaded.written if loaded and self.store.writing else 0
            if unwritten and unwritten > SNAPSHOT_SHARE * loaded.index.rows:
                try:
                    self._write({})
                except UserError as error:
                    self._damage = str(error)  # nothing is lost: the rows are searched exactly, or added again
            with self._guard.writing():
                self._loaded = None
            self.store.close()
            self._exact.close()

    @contextmanager
    def _renumbering(self) -> Iterator[None]:
        """Holds off searches; the index, which knows the rows by their numbers, goes with the file of vectors."""
        with self._guard.writing():
            vectors = self.store.settings["vectors"]
            try:
                yield
            finally:
                if self.store.settings["vectors"] != vectors:
                    self._loaded = None

    def _own(self) -> None:
        """Takes the lock for changes; reads the gallery again if another process has changed it."""
        if self.store.take_lock(self._renumbering()):
            self._load()

    def _load(self) -> None:
        """Loads the index that the database names."""
        for _ in range(LOADED_TRIES):
            try:
                loaded, damage = self._read_snapshot(), ""
            except UserError as error:
                loaded, damage = None, f"{error}: until it is built anew, searches go through all rows"
            if not damage or self.store.revision() == self.store.settings["revision"]:
                break
            self.store.load()  # the file went because another process wrote the next one
        with self._guard.writing():
            self._loaded, self._damage = loaded, damage
            self._found = self.store.settings["snapshot"].get("found") if loaded else None
        if self.store.state.vectors.nbytes <= FLAT_BYTES:  # half a second of vectors of 64 values, less of longer ones
            with suppress(UserError):  # a note tells of it
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
        """Adds the rows that the index lacks, a few at a time."""
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
        name = f"index-{self.store.settings['revision'] + 1}.faiss"
        temporary, path = self.folder / f".{name}.tmp", self.folder / name
        try:
            temporary.unlink(missing_ok=True)
            index.write(temporary)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            snapshot = {
                "file": name,
                "sha256": sha256_of(temporary),
                "kind": index.kind,
                "rows": index.rows,
                "trained": trained,
                "recall": recall,
                "checked": checked,
                **({} if self._found is None else {"found": self._found}),
            }
            os.replace(temporary, path)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:  # FAISS's is the latter
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"cannot write {path}: {reason}") from error
        finally:
            temporary.unlink(missing_ok=True)
        self._commit_snapshot(snapshot, settings)
        # From the file, lists are mapped instead of held in memory.
        loaded = _Loaded(ApproximateIndex.read(index.kind, path, self.dimension), trained, index.rows, recall, checked)
        with self._guard.writing():
            self._loaded = loaded

    def _commit_snapshot(self, snapshot: Optional[dict[str, Any]], settings: dict[str, Any]) -> None:
        self.store.commit({**settings, "snapshot": snapshot})
        self._damage = ""
        for path in [*self.folder.glob("index-*.faiss"), *self.folder.glob(".index-*.tmp")]:
            if snapshot is None or path.name != snapshot["file"]:
                path.unlink(missing_ok=True)


def _passing(state: State, filters: Filters) -> Optional[np.ndarray]:
    """Returns which rows may be found, bool ``[rows]``; None if all."""
    if not filters:
        return None if state.live == len(state.vectors) else state.labels.alive
    return state.labels.alive & filters.passing(*state.labels[2:])


def _add_rows(index: ApproximateIndex, state: State, most: int) -> None:
    part = slice(index.rows, index.rows + most)
    vectors, alive = np.array(state.vectors[part]), state.labels.alive[part]
    if alive.any():
        # Zeros, which are nearer to everybody than others are, would stand in a graph's way.
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
