"""The interface of all galleries: features with the labels of their images, and the search in them."""

import math
import reprlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.shards import FeatureBatch
from han_tf.metrics.checks import as_array, check_count, check_features, squared_norms
from han_tf.search.entries import (
    MOST,
    NO_FILTERS,
    Entry,
    Filters,
    Hit,
    Integers,
    NoEntry,
    Numbers,
    check_calibration,
    check_checksum,
    check_collection,
    check_filters,
    check_ids,
    check_labels,
    check_level,
    check_paths,
    check_switch,
    check_threshold,
    check_type,
    labels_of,
)
from han_tf.search.reranking import reranked, reranked_among

Progress = Optional[Callable[[int, int], None]]
"""Called with the number of finished rows and the number of all rows."""

OUTGROWN = 1.5
"""A threshold for a false-accept rate per search is outdated once the gallery has grown by more than this factor."""

SAME = 1e-5
"""Largest distance of two features that count as equal, relative to their length. Features of one image that were
computed in different batches differ by less in float32; those in another precision differ by more."""

COMPARED_AT_ONCE = 4096
"""Features that are loaded at a time to be compared with new ones."""

DELETED_AT_ONCE = 10_000
"""Entries that :meth:`Gallery.delete_where` deletes at a time."""

ADDED_AT_ONCE = 2**22
"""Most rows of one call of ``add``, whose labels are written in one transaction."""


class Gallery(ABC):
    """Features of images, searched by L2 distance.

    Several threads may use a gallery at the same time. It is a context manager, which closes it.

    Attributes:
      location: a folder, a file, or an address and a collection.
      dimension: of the features.
      checksum: of the model that made the features; see :class:`han_tf.FeatureExtractor`.
      identity: drawn at random when the gallery is created. Ids that are stored elsewhere should be stored with it: a
        gallery that is created anew starts again with the first id. Empty in galleries of old versions.
      engine: ``flat``, ``hnsw``, ``ivfpq`` or ``milvus``.
      settings: the stored settings, JSON values by name.
      white_levels: the levels with which grey images of more than 8 bits were read, ascending, as in
        :class:`han_tf.features.shards.Manifest`; only those of sources that name it.
      threshold: largest L2 distance of a hit; None if not set.
      calibration: how the threshold was chosen: JSON values by name; None if it was not calibrated.
      closed: whether :meth:`close` was called.
    """

    location: str
    engine: str
    settings: Mapping[str, Any]
    closed: bool = False

    @property
    def dimension(self) -> int:  # noqa: D102
        return self.settings["dimension"]

    @property
    def checksum(self) -> str:  # noqa: D102
        return self.settings["checksum"]

    @property
    def identity(self) -> str:  # noqa: D102
        return self.settings.get("identity", "")

    @property
    def white_levels(self) -> tuple[float, ...]:  # noqa: D102
        return tuple(self.settings.get("white_levels", ()))

    @property
    def threshold(self) -> Optional[float]:  # noqa: D102
        return self.settings["threshold"]

    @property
    def calibration(self) -> Optional[dict[str, Any]]:  # noqa: D102
        return self.settings["calibration"]

    def __len__(self) -> int:
        """Returns the number of entries."""
        return self.count()

    def add(
        self,
        features: Any,
        *,
        paths: Optional[Sequence[str]] = None,
        pids: Integers = None,
        camids: Integers = None,
        times: Numbers = None,
        checksum: Optional[str] = None,
        replace: bool = False,
    ) -> np.ndarray:
        """Adds images, all of them or none; they are on disk when it returns.

        With ``replace`` a path identifies one image. If the gallery has an entry of this path with the same feature,
        up to float32 rounding, the entry keeps its id, and given labels that differ are changed. Entries of this path
        with another feature are deleted and the image is added under a new id, so that an id always refers to the same
        image.

        Args:
          features: numbers ``[n, dimension]``, stored as float32.
          paths, pids, camids, times: labels of the images, ``n`` each; None, or NaN for a time, where not known.
            Times are seconds since 1970 UTC, in the years 1 to 9999.
          checksum: of the model that made the features; compared with the gallery's if given.
          replace: whether to replace entries of the same paths. Images without a path are added.

        Returns:
          The images' ids, int64 ``[n]``; new and ascending, except those of entries that ``replace`` kept.

        Raises:
          UserError: the arrays do not fit together, the features are of another model, a path occurs twice with
            ``replace``, or the gallery cannot be written.
        """
        self.check_model(checksum)
        check_switch(replace, "replace")
        if replace:
            ids, _ = self.put(features, paths, pids, camids, times, {})
        else:
            ids = self._add(self._images(features, paths, pids, camids, times))
        self._update_index()
        return ids

    def put(
        self,
        features: Any,
        paths: Optional[Sequence[str]],
        pids: Integers,
        camids: Integers,
        times: Numbers,
        twins: Mapping[int, Optional[Entry]],
        nobody: Collection[str] = (),
    ) -> tuple[np.ndarray, Counter[str]]:
        """Adds images as :meth:`add` with ``replace`` does, without updating the index; :meth:`build` does that.

        Args:
          features, paths, pids, camids, times: as of :meth:`add`.
          twins: rows that their paths do not identify -> the entry of the same image, None if there is none.
          nobody: paths whose entries lose their pid if none is given.

        Returns:
          The images' ids, int64 ``[n]``; and how many images were ``added``, ``replaced`` entries of their path, or
          were there and have been ``relabelled``.
        """
        if not isinstance(twins, Mapping) or not all(isinstance(twin, (Entry, type(None))) for twin in twins.values()):
            raise UserError(f"twins are {reprlib.repr(twins)}, expected entries or None by row")
        nobody, images = check_collection(nobody, "nobody", "paths"), self._images(features, paths, pids, camids, times)
        rows: dict[str, int] = {}
        for row, path in enumerate(images.paths):
            if path and row not in twins and rows.setdefault(path, row) != row:
                raise UserError(f"paths hold {path!r} twice, expected each once where entries are replaced")
        with self._alone():
            pairs = [(rows[entry.path], entry) for entry in self._named(list(rows))]
            there = {row: entry for row, entry in twins.items() if entry is not None}
            gone = []
            for (row, entry), is_same in zip(pairs, self._same(images.features, pairs)):
                if is_same and row not in there:
                    there[row] = entry
                else:
                    gone.append(entry.id)
            ids = np.array([there[row].id if row in there else -1 for row in range(len(images.paths))], np.int64)
            new = np.flatnonzero(ids < 0)
            replaced = len({row for row, _ in pairs} - there.keys())
            if len(new):
                ids[new] = self._add(images.where(new), gone)
            elif gone:
                self.delete(gone)
            relabelled = self._correct(images, there, nobody)
            return ids, Counter(added=len(new) - replaced, replaced=replaced, relabelled=relabelled)

    def _same(self, features: np.ndarray, pairs: list[tuple[int, Entry]]) -> np.ndarray:
        """Returns, for pairs of a row of ``features`` and an entry, whether their features are the same."""
        same = np.zeros(len(pairs), bool)
        ids = np.array([entry.id for _, entry in pairs], np.int64)
        for start in range(0, len(pairs), COMPARED_AT_ONCE):
            part = slice(start, start + COMPARED_AT_ONCE)
            present, stored = self._features(ids[part])
            where = start + np.flatnonzero(np.isin(ids[part], present))
            given, stored = features[[pairs[i][0] for i in where]].astype(np.float64), stored.astype(np.float64)
            same[where] = np.linalg.norm(given - stored, axis=1) <= SAME * np.linalg.norm(stored, axis=1)
            same[where] &= self._whole(ids[where])
        return same

    def _whole(self, ids: np.ndarray) -> np.ndarray:
        """Returns which entries' vectors are as they were stored, bool ``[n]``; damaged ones are replaced."""
        return np.ones(len(ids), bool)

    def _correct(self, images: FeatureBatch, there: Mapping[int, Entry], nobody: Collection[str]) -> int:
        """Sets the known labels of the rows' entries; returns the number of entries that had other labels."""
        changed = []
        for row, entry in there.items():
            pid, camid, time = (labels[row].item() for labels in (images.pids, images.camids, images.times))
            old_pid = None if entry.path in nobody else entry.pid
            merged = entry._replace(
                pid=old_pid if pid == UNKNOWN else pid,
                camid=entry.camid if camid == UNKNOWN else camid,
                time=entry.time if math.isnan(time) else time,
            )
            if merged != entry:
                changed.append(merged)
        if changed:
            self.relabel([entry.id for entry in changed], **labels_of(changed))
        return len(changed)

    def relabel(
        self, ids: Sequence[int], *, pids: Integers = None, camids: Integers = None, times: Numbers = None
    ) -> None:
        """Changes the labels of entries, of all of them or none; on disk when it returns.

        Args:
          ids: of the entries, ``n``.
          pids, camids, times: the new labels, ``n`` each, None for unknown ones; labels that are not given stay.

        Raises:
          UserError: an id is unknown or occurs twice, the arrays do not fit together, or the gallery cannot be written.
        """
        ids = check_ids(ids)
        if len(np.unique(ids)) < len(ids):
            raise UserError("ids hold one twice, expected each once where labels are changed")
        with self._alone():
            fields = labels_of(self.entries(ids))
            stored = [time for time in fields["times"] if time is not None]
            given = {"pids": pids, "camids": camids, "times": times}
            fields.update({name: values for name, values in given.items() if values is not None})
            labels = check_labels(len(ids), **fields, stored=stored)
            if len(ids):
                self._relabel(ids, *labels)

    def relabel_named(
        self, paths: Sequence[str], *, pids: Integers = None, camids: Integers = None, times: Numbers = None
    ) -> int:
        """Changes the labels of all entries of some paths as :meth:`relabel` does; returns the number of entries.

        Args:
          paths: of the entries, ``n``, each once.
          pids, camids, times: as of :meth:`relabel`, one per path.

        Raises:
          UserError: as :meth:`relabel`; a path has no entry or occurs twice.
        """
        names = check_paths(paths)
        labels = {"pids": pids, "camids": camids, "times": times}
        given = {
            name: list(check_collection(values, name, "one label per path"))
            for name, values in labels.items()
            if values is not None
        }
        for name, values in given.items():
            if len(values) != len(names):
                raise UserError(f"{name} has {len(values)} entries, expected {len(names)}, one per path")
        rows = {path: row for row, path in enumerate(names)}
        if len(rows) < len(names):
            raise UserError("paths hold one twice, expected each once where labels are changed")
        with self._alone():
            entries = list(self._named(names))
            missing = rows.keys() - {entry.path for entry in entries}
            if missing:
                raise UserError(f"{self.location}: no entry of {min(missing)!r}, expected the path of an entry")
            chosen = [rows[entry.path] for entry in entries]
            new: dict[str, Any] = {name: [values[row] for row in chosen] for name, values in given.items()}
            self.relabel([entry.id for entry in entries], **new)
        return len(entries)

    @abstractmethod
    def _relabel(self, ids: np.ndarray, pids: np.ndarray, camids: np.ndarray, times: np.ndarray) -> None:
        """Sets the labels of entries; unknown ones as in :class:`FeatureBatch`."""

    @abstractmethod
    def _add(self, images: FeatureBatch, gone: Sequence[int] = ()) -> np.ndarray:
        """Adds images, deletes the entries ``gone``, and returns the new ids; does not update the index."""

    @abstractmethod
    def _update_index(self) -> None:
        """Adds new rows to the index, or builds the first one; if that fails, the rows are searched without it."""

    def named(self, paths: Collection[str]) -> Iterable[Entry]:
        """Returns the entries of any of ``paths``; takes the lock for changes, because it may make an index of them."""
        self._check_open()
        return self._named(check_paths(paths))

    @abstractmethod
    def _named(self, paths: list[str]) -> Iterable[Entry]: ...

    def _alone(self) -> AbstractContextManager:
        """Excludes changes by other threads, and by other processes if the engine has a lock for that."""
        self._check_open()
        return nullcontext()

    def note_source(self, name: str, done: int, rows: int) -> None:
        """Stores that ``done`` of the ``rows`` rows of a source have been added, for :attr:`notes`."""
        self._check_open()
        check_type(name, str, "name", "that of a source")
        self._note_source(name, check_count(done, "done", 0, MOST), check_count(rows, "rows", 0, MOST))

    @abstractmethod
    def _note_source(self, name: str, done: int, rows: int) -> None: ...

    def note_white_level(self, level: float) -> None:
        """Adds one of :attr:`white_levels`; on disk when it returns."""
        self._check_open()
        level = check_level(level)
        if level not in self.white_levels:
            self._set({"white_levels": sorted({*self.white_levels, level})})

    @property
    def white_level(self) -> Optional[float]:
        """The level to read queries with, that of all the images; None if they have several or that of their format."""
        return self.white_levels[0] or None if len(self.white_levels) == 1 else None

    def white_level_note(self, used: Optional[float]) -> str:
        """Returns a sentence if query images that are read with ``used`` may be lighter or darker than others."""
        self._check_open()
        if used is not None:
            check_level(used)
        if not self.white_levels or used in self.white_levels or self.white_levels == (used or 0.0,):
            return ""
        own, *others = (f"{level:,g}" if level else "that of their format" for level in (used or 0, *self.white_levels))
        return f"white in grey queries of more than 8 bits is {own}, in the gallery's images {' or '.join(others)}"

    @abstractmethod
    def delete(self, ids: Sequence[int]) -> int:
        """Deletes the entries ``ids`` and returns how many of them existed; on disk when it returns."""

    def delete_where(self, filters: Filters) -> int:
        """Deletes the entries that pass: those of a person, before a time, in a folder, …; returns their number.

        Raises:
          UserError: no filter is set.
        """
        if not check_filters(filters):
            raise UserError("these filters let every entry pass, expected a camera, a person, a time or a path")
        deleted = 0
        while True:
            with self._alone():  # the labels are those of now, also what other processes have changed
                entries = self.page(DELETED_AT_ONCE, filters=filters)
                deleted += self.delete([entry.id for entry in entries])
            if not entries:
                return deleted

    def some(self, limit: int) -> list[Entry]:
        """Returns a sample of ``limit`` entries, or all if there are fewer."""
        self._check_open()
        return self._some(min(check_count(limit, "limit", 1), MOST))

    @abstractmethod
    def _some(self, limit: int) -> list[Entry]: ...

    def page(self, limit: int, after: int = -1, filters: Filters = NO_FILTERS) -> list[Entry]:
        """Returns at most ``limit`` entries that pass the filters, by ascending id, with ids above ``after``."""
        self._check_open()
        limit, after = min(check_count(limit, "limit", 1), MOST), check_count(after, "after", -MOST, MOST)
        return self._page(limit, after, check_filters(filters))

    @abstractmethod
    def _page(self, limit: int, after: int, filters: Filters) -> list[Entry]: ...

    def count(self, filters: Filters = NO_FILTERS) -> int:
        """Returns the number of entries that pass the filters."""
        self._check_open()
        return self._count(check_filters(filters))

    @abstractmethod
    def _count(self, filters: Filters) -> int: ...

    def cameras(self) -> list[int]:
        """Returns the cameras of the entries, ascending."""
        self._check_open()
        return self._cameras()

    @abstractmethod
    def _cameras(self) -> list[int]: ...

    def entries(self, ids: Sequence[int]) -> list[Entry]:
        """Returns the entries ``ids``, in that order.

        Raises:
          NoEntry: there is no such entry.
        """
        self._check_open()
        wanted = check_ids(ids)
        found = self._entries(set(wanted.tolist()))
        self._check_present(wanted, [*found])
        return [found[id] for id in wanted.tolist()]

    def features(self, ids: Sequence[int]) -> np.ndarray:
        """Returns the features of the entries ``ids``, float32 ``[n, dimension]``, in that order.

        Raises:
          NoEntry: there is no such entry.
        """
        self._check_open()
        wanted = check_ids(ids)
        present, features = self._features(wanted)
        self._check_present(wanted, present)
        return features

    def _check_present(self, ids: np.ndarray, present: Sequence[int]) -> None:
        missing = ids[~np.isin(ids, present)]
        if len(missing):
            raise NoEntry(self.location, int(missing[0]), len(self))

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        filters: Filters = NO_FILTERS,
        threshold: Optional[float] = None,
        rerank: bool = False,
        checksum: Optional[str] = None,
    ) -> list[list[Hit]]:
        """Returns the nearest entries of each query.

        Every engine computes the distances in float64 from the stored float32 features, and sorts equal distances by
        id.

        With ``rerank`` the nearest max(100, 5·k) entries within the threshold are sorted by k-reciprocal re-ranking
        (:func:`han_tf.metrics.rerank`, k1 = 20, k2 = 6, λ = 0.3) among themselves and the query. The hits' distances
        are then re-ranked ones, 0 to 1, which cannot be compared with a threshold or with those of another query.

        Args:
          queries: numbers ``[n, dimension]``, may be empty.
          k: most hits per query.
          filters: conditions that hits meet.
          threshold: largest L2 distance of a hit; infinity for none. None: the gallery's own, if it has one.
          rerank: whether to re-rank.
          checksum: of the model that made the queries; compared with the gallery's if given.

        Returns:
          For each query at most ``k`` hits, nearest first. An empty list means "not in the gallery".

        Raises:
          UserError: the queries do not fit or are of another model, ``k`` is below 1, the threshold is NaN or negative,
            or the gallery is closed.
        """
        self.check_model(checksum)
        found = self._hits(queries, k, filters, threshold, rerank)
        entries = self._entries({int(id) for ids, _ in found for id in ids})
        # Another thread may have deleted an entry since the search.
        return [
            [Hit(entries[id], distance) for id, distance in zip(ids.tolist(), distances.tolist()) if id in entries]
            for ids, distances in found
        ]

    def search_ids(
        self,
        queries: Any,
        k: int = 10,
        *,
        filters: Filters = NO_FILTERS,
        threshold: Optional[float] = None,
        rerank: bool = False,
        checksum: Optional[str] = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the result of :meth:`search` as arrays, without the entries' labels.

        Returns:
          The hits' ids, int64 ``[n, k]``, and distances, float64 ``[n, k]``, nearest first; −1 and infinity after the
          last hit.

        Raises:
          UserError: as :meth:`search`.
        """
        self.check_model(checksum)
        found = self._hits(queries, k, filters, threshold, rerank)
        try:
            ids, distances = np.full((len(found), k), -1, np.int64), np.full((len(found), k), np.inf)
        except (ValueError, MemoryError) as error:
            raise UserError(f"k is {k}, expected less ({error})") from error
        for row, (hits, values) in enumerate(found):
            ids[row, : len(hits)], distances[row, : len(hits)] = hits, values
        return ids, distances

    def _hits(
        self, queries: Any, k: int, filters: Filters, threshold: Optional[float], rerank: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns ids and distances of each query's hits, see :meth:`search`."""
        check_filters(filters)
        check_switch(rerank, "rerank")
        queries = as_array(queries, "queries")
        none = queries.shape in ((0,), (0, self.dimension))
        queries = [] if none else self._checked(queries, "queries")
        k = check_count(k, "k", 1)
        if threshold is None:
            threshold = math.inf if self.threshold is None else self.threshold
        check_threshold(threshold)
        if none:
            return []
        wanted = reranked_among(k) if rerank else k
        found = []
        for query, (ids, distances) in zip(queries, self._search(queries, wanted, filters)):
            near = distances <= threshold
            ids, distances = ids[near], distances[near]
            if rerank and len(ids):
                ids, features = self._features(ids)  # without those that were deleted meanwhile
                order, distances = reranked(query, features)
                ids = ids[order]
            found.append((ids[:k], distances[:k]))
        return found

    @abstractmethod
    def _search(self, queries: np.ndarray, k: int, filters: Filters) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns ids, int64, and L2 distances, float64, of at most ``k`` entries per query, both sorted."""

    @abstractmethod
    def _entries(self, ids: set[int]) -> dict[int, Entry]:
        """Returns the entries among ``ids`` that exist."""

    @abstractmethod
    def _features(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids among ``ids`` that exist, in their order, and their features, float32 ``[n, d]``."""

    def set_threshold(self, threshold: Optional[float], calibration: Optional[dict[str, Any]] = None) -> None:
        """Stores the threshold and how it was calibrated; on disk when it returns.

        Args:
          threshold: largest L2 distance of a hit; None or infinity for none.
          calibration: JSON values by name, among them ``gallery_images``, a number of images or None.

        Raises:
          UserError: the threshold is not a distance; the calibration is not of this kind; they cannot be written.
        """
        self._check_open()
        if threshold is not None:
            check_threshold(threshold)
            threshold = None if math.isinf(threshold) else float(threshold)
        check_calibration(calibration)
        self._set({"threshold": threshold, "calibration": calibration})

    @abstractmethod
    def _set(self, settings: dict[str, Any]) -> None:
        """Stores settings; on disk when it returns."""

    @abstractmethod
    def build(self, engine: Optional[str] = None, *, anew: bool = False, progress: Progress = None) -> None:
        """Brings the index up to date and writes it; searches find all entries meanwhile. See the engine's own."""

    @abstractmethod
    def compact(self, progress: Progress = None) -> None:
        """Frees the space of deleted entries. Ids do not change."""

    def check(self, progress: Progress = None) -> int:
        """Compares the stored vectors with their checksums and returns how many were compared.

        Raises:
          UserError: some are damaged; the engine is Milvus, which checks its files itself.
        """
        self._check_building(False, progress)
        raise UserError(f"{self.location}: only a gallery in a folder can be checked, expected one")

    @property
    def notes(self) -> list[str]:
        """Sentences about what the gallery's operator should know or do."""
        self._check_open()
        notes = self._notes()
        chosen_for = (self.calibration or {}).get("gallery_images")
        if self.threshold is not None and chosen_for and len(self) > OUTGROWN * chosen_for:
            notes.append(
                f"the threshold was chosen for searches of {chosen_for:,} images, there are {len(self):,}: strangers "
                "are found more often than wanted, calibrate again"
            )
        return notes

    def _notes(self) -> list[str]:
        """Returns the notes of the engine."""
        return []

    def info(self) -> dict[str, Any]:
        """Returns facts about the gallery: JSON values by name."""
        return {
            "location": self.location,
            "engine": self.engine,
            "entries": len(self),
            "dimension": self.dimension,
            "model": self.checksum,
            "identity": self.identity,
            "threshold": self.threshold,
            "calibration": self.calibration,
            "notes": self.notes,
        }

    @abstractmethod
    def close(self) -> None:
        """Closes files and releases locks; later calls of other methods raise UserError. May be called twice."""

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise UserError(f"{self.location}: the gallery is closed, expected an open one")

    def _check_building(self, anew: bool, progress: Progress) -> None:
        self._check_open()
        check_switch(anew, "anew")
        check_type(progress, (Callable, type(None)), "progress", "a function of two numbers")

    def check_model(self, checksum: Optional[str]) -> None:
        """Raises UserError unless ``checksum`` is None or the gallery's own."""
        self._check_open()
        if checksum is None:
            return
        check_checksum(checksum)
        if checksum != self.checksum:
            raise UserError(
                f"{self.location}: the gallery holds features of the model {self.checksum[:12]}…, these are of "
                f"{checksum[:12]}…, expected the same model"
            )

    def _checked(self, features: Any, name: str) -> np.ndarray:
        features = np.ascontiguousarray(check_features(features, name, self.dimension), np.float32)
        squared_norms(features, name)
        return features

    def _images(
        self, features: Any, paths: Optional[Sequence[str]], pids: Integers, camids: Integers, times: Numbers
    ) -> FeatureBatch:
        """Returns the arguments of :meth:`add` as they are stored: features finite and contiguous, paths strings."""
        features = self._checked(features, "features")
        n = len(features)
        if n > ADDED_AT_ONCE:
            raise UserError(f"features has {n} rows, expected at most {ADDED_AT_ONCE} at once")
        names = [""] * n if paths is None else check_paths(paths)
        if len(names) != n:
            raise UserError(f"paths has {len(names)} entries, expected {n} strings, one per image")
        return FeatureBatch(features, *check_labels(n, pids, camids, times, names), np.array(names, object))


def check_format(found: Any, known: int, location: Any) -> None:
    """Raises UserError unless ``found``, the version of the format of a gallery, is the one that is ``known``."""
    if found != known:
        newer = type(found) is int and found > known
        advice = "a newer han-tf made it, update this one" if newer else "build it again with python -m han_tf.index"
        raise UserError(f"{location}: a gallery of format {found}, expected {known}: {advice}")
