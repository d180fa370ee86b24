"""The search in the vectors of a gallery in a folder: exactly, or with an index that is kept up to date."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, remove, sha256_of
from han_tf.search.approximate import ApproximateIndex, spread
from han_tf.search.exact import ExactSearch, error_bound, import_faiss, nearest, squared_distances
from han_tf.search.gallery import Progress
from han_tf.search.guard import Guard
from han_tf.search.store import State, Store

BUILT_LEAST = 1000
"""Fewest entries to build an index for: an exact search of fewer is faster, and they are too few to train."""

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

CANDIDATES_LEAST = 100
CANDIDATES_PER_HIT = 4
"""An index proposes 4·k candidates for k hits, at least 100; these are compared exactly."""

EXACT_SHARE = 20
"""If fewer than one row in 20 passes the filters, all that pass are compared exactly, without the index."""

LOADED_TRIES = 3
"""How often loading is tried while another process changes the gallery."""

SNAPSHOT_SHARE = 0.01
"""Closing a gallery writes the index if more than this share of its rows is not in its file."""

POOR = (
    "the index was trained on other images and finds only {:.0%} of the nearest ones: searches go through all rows "
    "until it is built anew (python -m han_tf.index --rebuild)"
)


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


class VectorIndex:
    """Searches the vectors of a store, and builds, checks and writes the index of the engine that its settings name.

    The index is derived from the vectors: rows that it lacks, or all if it cannot be used, are searched exactly.
    README.md in this folder says when it is built, checked and passed over.

    Args:
      store: the open files. Before the index is changed, its lock for changes must be taken.
      threads: threads of a search.

    Attributes:
      changing: held while the index is built or extended, or the rows get other numbers.
      loaded: the index in use; None if all rows are searched exactly.
      found: recall of an index that is no longer used because it is too low.
      damage: why the index is not used or not up to date, for the notes.
    """

    def __init__(self, store: Store, threads: int):
        self.store = store
        self.faiss = import_faiss()
        self.threads = threads
        self.changing = threading.RLock()
        self.loaded: Optional[_Loaded] = None
        self.found: Optional[float] = None
        self.damage = ""
        self._exact = ExactSearch(threads)
        self._guard = Guard()  # protects self.loaded and the numbers of the rows

    @property
    def rows(self) -> int:
        """Number of indexed rows, the first ones of the file of vectors."""
        loaded = self.loaded
        return loaded.index.rows if loaded else 0

    @property
    def _dimension(self) -> int:
        return self.store.settings["dimension"]

    def search(
        self, queries: np.ndarray, k: int, passing_of: Callable[[State], Optional[np.ndarray]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the ids of the ``k`` nearest entries of each query, and their distances (float64), sorted.

        Args:
          queries: float32 ``[q, d]``.
          k: most results per query.
          passing_of: returns which rows of a state may be found, bool ``[rows]``; None for all.
        """
        self.faiss.omp_set_num_threads(self.threads if len(queries) > 1 else 1)
        with self._guard.reading():
            state, loaded = self.store.state, self.loaded
            covered = loaded.index.rows if loaded and self.found is None else 0
            passing = passing_of(state)
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

    def notes(self) -> list[str]:
        """Returns sentences about what the gallery's operator should know or do about the index."""
        notes = [self.damage] if self.damage else []
        if self.found is not None:
            notes.append(POOR.format(self.found))
        loaded, rows = self.loaded, len(self.store.state.vectors)
        covered = loaded.index.rows if loaded else 0
        if self.store.settings["engine"] != "flat" and rows >= BUILT_LEAST and rows - covered > UNASKED_MOST:
            notes.append(f"{rows - covered:,} of {rows:,} rows are not in the index and searched one by one: build it")
        if loaded and covered > GROWN * loaded.trained:
            notes.append(f"the index was trained on {loaded.trained:,} rows and holds {covered:,}: build it anew")
        if loaded and self.found is None and loaded.recall < RECALL_LEAST:
            notes.append(f"the index finds {loaded.recall:.0%} of the nearest images: the engine flat finds all")
        return notes

    def update(self) -> None:
        """Adds new rows to the index, or builds the first one; if that fails, ``damage`` says so."""
        if not self.changing.acquire(blocking=False):
            return  # another thread is building the index, and adds these rows at the end
        try:
            rows, engine = len(self.store.state.vectors), self.store.settings["engine"]
            if self.loaded:
                self._catch_up(UNASKED_MOST)
            elif engine != "flat" and UNASKED_LEAST <= rows <= UNASKED_MOST:
                self.build({"engine": engine})
        except (UserError, RuntimeError, MemoryError) as error:
            # The rows are in the gallery even if the index could not be updated.
            reason = " ".join(str(error).split()) or "no memory"
            self.damage = f"{reason}: what the index lacks is searched one by one until it is built"
            if not isinstance(error, UserError):
                with self._guard.writing():
                    self.loaded = None  # FAISS may have changed it in part
        finally:
            self.changing.release()

    def build(self, settings: dict[str, Any], anew: bool = False, progress: Progress = None) -> None:
        """Brings the index up to date as :meth:`FaissGallery.build` describes, and stores it with ``settings``.

        One of the settings is ``engine``.
        """
        with self.changing:
            engine, rows, loaded = settings["engine"], len(self.store.state.vectors), self.loaded
            if engine == "flat" or self.store.state.live < BUILT_LEAST:
                with self._guard.writing():
                    self.loaded = self.found = None
                self._commit_snapshot(None, settings)
                return
            if anew or loaded is None or loaded.index.kind != engine or rows > GROWN * loaded.trained:
                self._train(engine, progress)
            self._catch_up(progress=progress)
            if self.unchecked() and not self.check():
                self._train(engine, progress)
                self._catch_up(progress=progress)
            self._write(settings)

    def _train(self, engine: str, progress: Progress) -> None:
        """Builds a new index of all rows and measures its recall; searches use the old one until then."""
        index, state = ApproximateIndex(engine, self._dimension), self.store.state
        trained = len(state.vectors)
        self.faiss.omp_set_num_threads(self.threads)
        index.train(state.vectors, np.flatnonzero(state.labels.alive))
        while index.rows < (there := len(self.store.state.vectors)):
            _add_rows(index, self.store.state, BUILT_AT_ONCE)
            if progress:
                progress(index.rows, there)
        recall = self._recall(index, trained)
        with self._guard.writing():
            self.loaded, self.found = _Loaded(index, trained, 0, recall, index.rows), None

    def _recall(self, index: ApproximateIndex, trained: int) -> float:
        """Returns the index's recall: the share of the nearest rows of stored vectors that it finds.

        It is measured for vectors that the index was trained on and for later ones; the smaller value is returned.
        """
        state = self.store.state
        vectors, alive = state.vectors[: index.rows], state.labels.alive[: index.rows]
        living, greatest = np.flatnonzero(alive), self.store.settings["greatest_norm"]
        k, chosen = min(NEAREST, len(living)), None if alive.all() else living
        margin, worst = error_bound(self._dimension, greatest), 1.0
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

    def unchecked(self) -> bool:
        """Returns whether enough rows were added since the index was last checked to check it again."""
        loaded = self.loaded
        added = loaded.index.rows - loaded.checked if loaded and self.found is None else 0
        return added >= max(CHECKED_LEAST, CHECKED_SHARE * loaded.index.rows) if added else False

    def check(self) -> bool:
        """Returns whether the index's recall is still good; if not, searches no longer use the index."""
        loaded = self.loaded
        recall = self._recall(loaded.index, loaded.trained)
        if recall >= RECALL_SHARE * loaded.recall:
            self.loaded = loaded._replace(checked=loaded.index.rows)
            return True
        self.found = recall
        snapshot = self.store.settings["snapshot"]
        if snapshot is not None:
            self.store.commit({"snapshot": {**snapshot, "found": recall}})
        return False

    def load(self) -> None:
        """Loads the index that the database names; adds the rows that it lacks if this process may change it."""
        for _ in range(LOADED_TRIES):
            try:
                loaded, damage = self._read_snapshot(), ""
            except UserError as error:
                loaded, damage = None, f"{error}: until it is built anew, searches go through all rows"
            if not damage or self.store.database.revision() == self.store.settings["revision"]:
                break
            self.store.load()  # the file is missing because another process has written a newer one
        with self._guard.writing():
            self.loaded, self.damage = loaded, damage
            self.found = self.store.settings["snapshot"].get("found") if loaded else None
        if self.store.writing and loaded:
            self._catch_up(UNASKED_MOST)

    def close(self) -> None:
        """Writes the index if many of its rows are not in its file, and ends the threads of searches."""
        unwritten = self.rows - self.loaded.written if self.loaded and self.store.writing else 0
        if unwritten and unwritten > SNAPSHOT_SHARE * self.rows:
            try:
                self._write({})
            except UserError as error:
                self.damage = str(error)  # no row is lost: those that the old file lacks are searched exactly
        with self._guard.writing():
            self.loaded = None
        self._exact.close()

    @contextmanager
    def renumbering(self) -> Iterator[None]:
        """Excludes searches; drops the index if the file of vectors has changed, because it refers to row numbers."""
        with self._guard.writing():
            vectors = self.store.settings["vectors"]
            try:
                yield
            finally:
                if self.store.settings["vectors"] != vectors:
                    self.loaded = None

    def _read_snapshot(self) -> Optional[_Loaded]:
        snapshot = self.store.settings["snapshot"]
        if snapshot is None:
            return None
        path = self.store.folder / snapshot["file"]
        try:
            found = sha256_of(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}, expected the gallery's index") from error
        if found != snapshot["sha256"]:
            raise UserError(f"{path}: SHA-256 {found[:12]}…, expected {snapshot['sha256'][:12]}…: it is damaged")
        index = ApproximateIndex.read(snapshot["kind"], path, self._dimension)
        if index.rows != snapshot["rows"] or index.rows > len(self.store.state.vectors):
            raise UserError(f"{path}: {index.rows:,} rows, expected {snapshot['rows']:,}")
        trained = snapshot["trained"]
        return _Loaded(index, trained, index.rows, snapshot.get("recall", 1.0), snapshot.get("checked", trained))

    def _catch_up(self, most: Optional[int] = None, progress: Progress = None) -> None:
        """Adds the rows that the index lacks, :data:`ADDED_AT_ONCE` at a time, if there are at most ``most``."""
        if most is not None and len(self.store.state.vectors) - self.rows > most:
            return
        self.faiss.omp_set_num_threads(self.threads)
        index = self.loaded.index
        while index.rows < (there := len(self.store.state.vectors)):
            with self._guard.writing():
                _add_rows(index, self.store.state, ADDED_AT_ONCE)
            if progress:
                progress(index.rows, there)

    def _write(self, settings: dict[str, Any]) -> None:
        """Writes the index to a new file and names it in the database, with ``settings``."""
        index, trained, _, recall, checked = self.loaded
        self.store.check_place()
        path = self.store.folder / f"index-{self.store.settings['revision'] + 1}.faiss"
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
            **({} if self.found is None else {"found": self.found}),
        }
        self._commit_snapshot(snapshot, settings)
        # The lists in a file are mapped instead of held in memory.
        loaded = _Loaded(ApproximateIndex.read(index.kind, path, self._dimension), trained, index.rows, recall, checked)
        with self._guard.writing():
            self.loaded = loaded

    def _commit_snapshot(self, snapshot: Optional[dict[str, Any]], settings: dict[str, Any]) -> None:
        self.store.commit({**settings, "snapshot": snapshot})
        self.damage = ""
        for path in [*self.store.folder.glob("index-*.faiss"), *self.store.folder.glob(".index-*.tmp")]:
            if snapshot is None or path.name != snapshot["file"]:
                remove(path)


def _add_rows(index: ApproximateIndex, state: State, most: int) -> None:
    part = slice(index.rows, index.rows + most)
    vectors, alive = np.array(state.vectors[part]), state.labels.alive[part]
    if alive.any():
        # Deleted vectors are zeros, which are near to all others: searches of a graph would stop at them.
        vectors[~alive] = vectors[alive][np.arange(len(alive) - alive.sum()) % alive.sum()]
    index.add(vectors)
