"""The embedded engine: a folder, searched with FAISS."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from han_tf.errors import UserError
from han_tf.metrics.checks import default_threads, squared_norms
from han_tf.search.exact import ExactSearch
from han_tf.search.gallery import Columns, Entry, Filters, Gallery, check_ids, check_threshold
from han_tf.search.store import Store

ENGINES = ("flat",)


class FaissGallery(Gallery):
    """A gallery in a folder; see :mod:`han_tf.search.store` for its files.

    Any number of processes may search it; one at a time may change it, and has that right from its first change
    until it closes. A process that only searches sees the gallery as it was when it opened it.

    Args:
      path: the folder.
      writable: whether to take the right to change it at once.
      threads: threads of a search; the number of cores if None.
    """

    def __init__(self, path: Union[str, os.PathLike], *, writable: bool = False, threads: Optional[int] = None):
        self.folder = Path(path)
        self.location = str(path)
        self._exact = ExactSearch(default_threads(threads))
        try:
            self.store = Store(self.folder, writable)
        except BaseException:
            self._exact.close()
            raise

    @classmethod
    def create(
        cls, path: Union[str, os.PathLike], dimension: int, checksum: str, engine: str = "auto", **options: Any
    ) -> "FaissGallery":
        """See :func:`han_tf.search.create_gallery`."""
        if engine == "auto":
            engine = "flat"
        if engine not in ENGINES:
            raise UserError(f"engine is {engine!r}, expected auto, {', '.join(ENGINES)} or milvus")
        Store.create(Path(path), {"dimension": dimension, "checksum": checksum, "engine": engine})
        return cls(path, writable=True, **options)

    @property
    def dimension(self) -> int:  # noqa: D102
        return self.store.settings["dimension"]

    @property
    def checksum(self) -> str:  # noqa: D102
        return self.store.settings["checksum"]

    @property
    def engine(self) -> str:  # noqa: D102
        return self.store.settings["engine"]

    @property
    def threshold(self) -> Optional[float]:  # noqa: D102
        return self.store.settings["threshold"]

    @property
    def calibration(self) -> Optional[dict[str, Any]]:  # noqa: D102
        return self.store.settings["calibration"]

    def __len__(self) -> int:
        return self.store.state.live

    def _add(self, columns: Columns) -> np.ndarray:
        return self.store.append(columns, float(squared_norms(columns.features, "features").max()))

    def delete(self, ids: Sequence[int]) -> int:  # noqa: D102
        return self.store.delete(check_ids(ids))

    def entries(self, ids: Sequence[int]) -> list[Entry]:  # noqa: D102
        ids = check_ids(ids).tolist()
        found = self.store.entries(ids)
        self._check_there(ids, found)
        return [found[id] for id in ids]

    def features(self, ids: Sequence[int]) -> np.ndarray:  # noqa: D102
        ids = check_ids(ids)
        with self.store.lock:
            rows, vectors = self.store.rows(ids), self.store.state.vectors
        self._check_there(ids.tolist(), rows)
        return vectors[[rows[id] for id in ids.tolist()]].astype(np.float32)

    def _entries(self, ids: set[int]) -> dict[int, Entry]:
        return self.store.entries(ids)

    def _features(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self.store.lock:
            rows, vectors = self.store.rows(ids), self.store.state.vectors
        present = np.array([id for id in ids.tolist() if id in rows], np.int64)
        return present, vectors[[rows[id] for id in present.tolist()]]

    def _check_there(self, ids: list[int], found: dict[int, Any]) -> None:
        for id in ids:
            if id not in found:
                raise UserError(f"{self.location}: no entry {id}, expected the id of one of its {len(self)} entries")

    def _search(self, queries: np.ndarray, k: int, filters: Filters) -> list[tuple[np.ndarray, np.ndarray]]:
        state = self.store.state
        passing = state.labels.ids >= 0
        if filters:
            passing &= filters.passing(state.labels.camids, state.labels.times)
        chosen = None if passing.all() else np.flatnonzero(passing)
        if not len(passing) or (chosen is not None and not len(chosen)):
            return [(np.empty(0, np.int64), np.empty(0))] * len(queries)
        found = self._exact.search(
            queries, state.vectors, state.labels.ids, chosen, k, self.store.settings["greatest_norm"]
        )
        return [(ids, np.sqrt(distances)) for ids, distances in found]

    def set_threshold(self, threshold: Optional[float], calibration: Optional[dict[str, Any]] = None) -> None:  # noqa: D102
        value = None if threshold is None else check_threshold(threshold)
        self.store.commit({"threshold": value, "calibration": calibration})

    def compact(self) -> None:
        """Gives back the space of deleted entries. Ids stay as they are."""
        self.store.compact()

    def info(self) -> dict[str, Any]:  # noqa: D102
        return {
            "location": self.location,
            "engine": self.engine,
            "entries": len(self),
            "dimension": self.dimension,
            "model": self.checksum,
            "threshold": self.threshold,
            "calibration": self.calibration,
        }

    def close(self) -> None:  # noqa: D102
        self.store.close()
        self._exact.close()
