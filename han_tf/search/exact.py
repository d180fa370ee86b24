"""Exact search with FAISS's flat kernel over vectors in memory or in a mapped file.

FAISS computes in float32. The distances of its candidates are computed again in float64, and if rounding in float32
could have excluded a nearer vector, it is asked for more candidates. So the result is exactly the k smallest
(distance, row).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional, Union

import numpy as np

from han_tf.metrics.distances import DENORMAL, UNIT

SPARE = 16
"""The first request is for k plus this many candidates."""

BLOCK = 2**22
"""Values that are converted to float64 at a time."""

GATHERED = 4096
"""Up to this number, chosen rows are copied and searched; of more rows, FAISS selects the chosen ones by a bitmap."""


def import_faiss() -> Any:
    """Returns the module; raises UserError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        from han_tf.common.errors import UserError

        raise UserError(
            f"this gallery needs FAISS ({error}), expected: pip install '.[search]' in han-tf's folder"
        ) from error
    return faiss


def squared_distances(query: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns Σ (q − v)², float64 ``[n]``, of ``query`` ``[d]`` and the rows ``rows`` of ``vectors``."""
    values = np.empty(len(rows))
    step = max(1, BLOCK // len(query))
    for start in range(0, len(rows), step):
        difference = vectors[rows[start : start + step]].astype(np.float64)
        difference -= query
        values[start : start + step] = np.einsum("ij,ij->i", difference, difference)
    return values


def nearest(query: np.ndarray, vectors: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ``k`` nearest of the candidates ``rows`` and their squared distances; ties are sorted by row."""
    distances = squared_distances(query, vectors, rows)
    order = np.lexsort((rows, distances))[:k]
    return rows[order], distances[order]


def error_bound(dimension: int, greatest_norm: Union[float, np.ndarray]) -> Union[float, np.ndarray]:
    """Returns a bound on |float32 squared distance − exact| for vectors of squared norms up to ``greatest_norm``.

    For an array of norms, one bound each. It is that of :meth:`han_tf.metrics.FeatureDistances.margins` for products;
    the error of sums of squared differences is smaller.
    """
    terms = min(dimension, 8 * np.sqrt(dimension))
    return UNIT * (terms / 2 + 6) * 4 * greatest_norm + 2 * dimension * DENORMAL


def widened(queries: int, asked: int, ask: Callable[[list[int], int], Iterable[tuple[Any, bool]]]) -> list[Any]:
    """Returns the result of each query, using four times as many candidates each time until all results are certain.

    Args:
      queries: number of queries.
      asked: candidates per query at first.
      ask: from indices of queries and a number of candidates, yields each query's result and whether it is certain.
    """
    results: list[Any] = [None] * queries
    left = list(range(queries))
    while left:
        uncertain = []
        for i, (result, certain) in zip(left, ask(left, asked)):
            results[i] = result
            if not certain:
                uncertain.append(i)
        left, asked = uncertain, 4 * asked
    return results


class ExactSearch:
    """Searches all rows, or some.

    Args:
      threads: of FAISS; a single query is split among them by rows.
    """

    def __init__(self, threads: int):
        self.faiss = import_faiss()
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, "han-search") if threads > 1 else None

    def close(self) -> None:
        """Ends the threads."""
        if self.pool:
            self.pool.shutdown()

    def search(
        self, queries: np.ndarray, vectors: np.ndarray, chosen: Optional[np.ndarray], k: int, greatest_norm: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns, for each query, its ``k`` nearest rows and their squared distances (float64), sorted.

        Args:
          queries: float32 ``[q, d]``.
          vectors: float32 ``[n, d]``.
          chosen: the rows to search, ascending; None for all.
          k: most results per query.
          greatest_norm: greatest squared norm of the vectors, or a larger number.
        """
        if chosen is not None and len(chosen) <= GATHERED:
            found = self.search(queries, vectors[chosen], None, k, greatest_norm)
            return [(chosen[rows], distances) for rows, distances in found]
        everything = np.arange(len(vectors)) if chosen is None else chosen
        norms = np.einsum("ij,ij->i", queries, queries, dtype=np.float64)
        margins = error_bound(queries.shape[1], np.maximum(norms, greatest_norm))

        def ask(numbers: list[int], asked: int) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], bool]]:
            if asked >= len(everything) // 2:
                for i in numbers:
                    yield nearest(queries[i], vectors, everything, k), True
                return
            for i, distances, rows in zip(numbers, *self.candidates(queries[numbers], vectors, chosen, asked)):
                found = nearest(queries[i], vectors, rows, k)
                # Vectors that FAISS did not return are at least as far as its last one, up to rounding.
                yield found, found[1][-1] < distances[-1] - margins[i]

        return widened(len(queries), k + SPARE, ask)

    def candidates(
        self, queries: np.ndarray, vectors: np.ndarray, chosen: Optional[np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns FAISS's float32 squared distances and rows of the ``k`` nearest, both ``[q, k]``."""
        parts = min(self.threads, len(vectors) // (4 * k)) if self.pool and len(queries) < self.threads else 1
        if parts <= 1:
            return self._part(queries, vectors, chosen, k, slice(0, len(vectors)), self.threads)
        bounds = np.linspace(0, len(vectors), parts + 1).astype(int).tolist()
        found = self.pool.map(
            lambda part: self._part(queries, vectors, chosen, k, part, 1), map(slice, bounds, bounds[1:])
        )
        distances, rows = (np.concatenate(arrays, axis=1) for arrays in zip(*found))
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _part(
        self, queries: np.ndarray, vectors: np.ndarray, chosen: Optional[np.ndarray], k: int, part: slice, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        faiss, start, stop = self.faiss, part.start, part.stop
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        selector = None
        if chosen is not None:
            bits = np.zeros(stop - start, bool)
            bits[chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, stop)] - start] = True
            selector = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
        faiss.omp_set_num_threads(threads)
        faiss.knn_L2sqr(
            faiss.swig_ptr(queries),
            faiss.swig_ptr(vectors[part]),
            queries.shape[1],
            len(queries),
            stop - start,
            k,
            faiss.swig_ptr(distances),
            faiss.swig_ptr(rows),
            None,
            selector,
        )
        distances[rows < 0] = np.inf
        rows[rows >= 0] += start
        return distances, rows
