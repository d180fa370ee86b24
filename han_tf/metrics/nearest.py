"""The k nearest gallery images of each query, with ties in gallery order."""

from typing import Optional

import numpy as np

from han_tf.metrics.blocks import bracket, sweep, trusted_margins
from han_tf.metrics.distances import DistanceSource

CROWD = 4
"""Up to this many times k candidates per query, exact values are computed without looking for a tighter bound."""


def smallest_bounds(values: np.ndarray, k: int) -> np.ndarray:
    """Returns for each row a bound on its k-th smallest value, which few more than ``k`` values do not exceed.

    It is the k-th smallest minimum over interleaved groups, which takes one pass over the row and no sorting.

    Args:
      values: floats ``[rows, n]``.
      k: at least 1. If a row has too few values for a tight bound, the bound is infinite.
    """
    groups = max(8 * k, 256)
    usable = values.shape[1] // groups * groups
    if not usable:
        return np.full(len(values), np.inf, values.dtype)
    minima = values[:, :usable].reshape(len(values), -1, groups).min(axis=1)
    return np.partition(minima, k - 1, axis=1)[:, k - 1]


class FirstK:
    """The ``k`` nearest gallery images of each query among those visited so far.

    Attributes:
      columns: int64 ``[n_query, k]``; −1 if there are fewer images.
      values: float64 ``[n_query, k]``, exact; infinite if there are fewer images.
    """

    def __init__(self, source: DistanceSource, k: int):
        self.source = source
        self.k = k
        self.columns = np.full((source.shape[0], k), -1, np.int64)
        self.values = np.full((source.shape[0], k), np.inf)

    def limits(self, fast: np.ndarray, margins: np.ndarray, rows: slice) -> np.ndarray:
        """Returns for each row a limit such that only fast values below it can be among the first k.

        Args:
          fast: values of ``rows``, ``[rows, n]``; infinite for images that are left out.
          margins: float64 ``[rows]``, the source's margins.
          rows: the queries.
        """
        if not self.k:
            return np.full(len(fast), -np.inf, fast.dtype)
        before = self.seen_limits(margins, rows, fast.dtype)
        # k fast values are ≤ bound, so k exact values are ≤ bound + margin. So are the exact values of the k nearest,
        # whose fast values are therefore ≤ bound + 2 margin.
        here = bracket(smallest_bounds(fast, self.k), 2 * margins, fast.dtype)[1]
        return np.minimum(here, before)

    def seen_limits(self, margins: np.ndarray, rows: slice, dtype: np.dtype) -> np.ndarray:
        """Returns :meth:`limits` by earlier parts of the gallery alone; infinite if these have fewer than k images."""
        return bracket(self.values[rows, -1], margins, dtype)[1]

    def add(self, rows: slice, local: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Adds candidates: gallery images ``columns`` of the queries ``rows.start + local``, with exact ``values``."""
        known_rows, known = np.nonzero(self.columns[rows] >= 0)
        local = np.concatenate([known_rows, local])
        columns = np.concatenate([self.columns[rows][known_rows, known], columns])
        values = np.concatenate([self.values[rows][known_rows, known], values])
        order = np.lexsort((columns, values, local))
        local = local[order]
        place = np.arange(len(local)) - np.searchsorted(local, np.arange(rows.stop - rows.start))[local]
        kept = place < self.k
        order = order[kept]
        self.columns[rows.start + local[kept], place[kept]] = columns[order]
        self.values[rows.start + local[kept], place[kept]] = values[order]


def nearest(
    source: DistanceSource, k: int, *, memory_mb: int, threads: int, label: Optional[str] = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each query's nearest gallery images, their distances, and its largest distance.

    Args:
      source: the distances.
      k: number of images per query, at most n_gallery.
      memory_mb: memory to use, in MiB.
      threads: threads to use beside those of the matrix product.
      label: of the progress bar; None for no bar.

    Returns:
      Indices int64 ``[n_query, k]``, nearest first, ties in gallery order; their exact values float64
      ``[n_query, k]``; and the largest exact value of each query, float64 ``[n_query]``.
    """
    first_k = FirstK(source, k)
    farthest = np.full(source.shape[0], -np.inf)

    def pairs(chosen: np.ndarray, rows: slice, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        local, column = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
        return local, column, source.exact(local + rows.start, column + part.start)

    def candidates(fast: np.ndarray, margins: np.ndarray, rows: slice) -> np.ndarray:
        # In later parts of the gallery few images are as near as the k found before, so that the part's own bound,
        # which takes another pass over the values, is rarely needed.
        chosen = fast < first_k.seen_limits(margins, rows, fast.dtype)[:, None]
        if np.count_nonzero(chosen) > CROWD * k * len(fast):
            chosen = fast < first_k.limits(fast, margins, rows)[:, None]
        return chosen

    def visit(state: None, rows: slice, fast: np.ndarray, part: slice) -> None:
        margins = source.margins(rows, part)
        near = pairs(candidates(fast, margins, rows), rows, part)
        trusted = trusted_margins(source, rows, part, fast, near)
        if (trusted > margins).any():
            margins = trusted
            near = pairs(candidates(fast, margins, rows), rows, part)
        local, column, values = near
        first_k.add(rows, local, column + part.start, values)
        greatest = fast.max(axis=1)
        # Rows that cannot hold a value larger than the largest one so far are skipped.
        may_grow = np.flatnonzero(greatest >= bracket(farthest[rows], margins, fast.dtype)[0])
        far = bracket(greatest[may_grow], 2 * margins[may_grow], fast.dtype)[0]
        local, column = np.divmod(np.flatnonzero(fast[may_grow] >= far[:, None]), fast.shape[1])
        places = may_grow[local] + rows.start
        np.maximum.at(farthest, places, source.exact(places, column + part.start))

    sweep(source, visit, memory_mb=memory_mb, threads=threads, label=label)
    return first_k.columns, first_k.values, farthest
