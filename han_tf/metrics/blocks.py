"""Walking over all query × gallery pairs in bounded memory, with all cores."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional

import numpy as np
from tqdm import tqdm

from han_tf.metrics.distances import DistanceSource

BLOCK_ROWS = 1024
"""Most queries per block: a matrix product with fewer rows is slower, with more hardly faster."""

STRIPE_ROWS = 16
"""Queries one thread takes at a time; few enough for their distances to stay in cache."""


def slices(start: int, stop: int, step: int) -> list[slice]:
    """Cuts ``[start, stop)`` into slices of ``step``; the last one may be shorter."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def block_shape(source: DistanceSource, memory_mb: int) -> tuple[int, int]:
    """Returns how many queries and gallery images to take at once; such a block fills half of the memory."""
    n_query, n_gallery = source.shape
    budget = memory_mb * 2**19 // source.dtype.itemsize
    rows = min(BLOCK_ROWS, n_query, max(STRIPE_ROWS, budget // n_gallery))
    return rows, min(n_gallery, max(1, budget // rows))


def sweep(
    source: DistanceSource,
    visit: Callable[[Any, slice, np.ndarray, slice], None],
    *,
    memory_mb: int,
    threads: int,
    label: Optional[str] = None,
    prepare: Callable[[slice], Any] = lambda rows: None,
    conclude: Callable[[Any], None] = lambda state: None,
) -> None:
    """Calls ``visit(state, rows, fast, part)`` for stripes of queries and parts of the gallery.

    A stripe is prepared, then sees the parts of the gallery in order, and is concluded. Stripes run beside
    each other, so that what they write must not overlap.

    Args:
      source: the distances.
      visit: gets what ``prepare`` returned, the queries ``rows``, the source's fast values ``[rows, part]``,
        which it may overwrite, and the gallery images ``part``.
      memory_mb: memory to use, in MiB.
      threads: threads to use beside those of the matrix product.
      label: what to call the progress bar; None for no bar.
      prepare: makes the state of a stripe.
      conclude: takes the state of a stripe when it has seen the whole gallery.
    """
    n_query, n_gallery = source.shape
    height, width = block_shape(source, memory_mb)
    buffer = np.empty(height * width, source.dtype)
    with ThreadPoolExecutor(threads) as pool:
        for block in tqdm(slices(0, n_query, height), desc=label, unit="block", disable=label is None):
            stripes = slices(block.start, block.stop, STRIPE_ROWS)
            states = list(pool.map(prepare, stripes))
            for part in slices(0, n_gallery, width):
                raw = source.raw(block, part, buffer)

                def work(state: Any, rows: slice, raw: np.ndarray = raw, part: slice = part) -> None:
                    visit(state, rows, source.finish(raw, rows, part), part)

                tops = [raw[rows.start - block.start : rows.stop - block.start] for rows in stripes]
                list(pool.map(work, states, stripes, tops))
            list(pool.map(conclude, states))


def bracket(exact: Any, margin: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns (low, high) in ``dtype``: fast values < low lie before, those ≥ high behind ``exact``.

    Args:
      exact: exact values.
      margin: bounds on |fast − exact|, broadcast against ``exact``.
      dtype: of the fast values.
    """
    if not np.any(margin):
        low = np.asarray(exact, dtype)
        return low, np.nextafter(low, dtype.type(np.inf))
    low = np.asarray(exact - margin, dtype)
    high = np.asarray(exact + margin, dtype)
    return np.nextafter(low, dtype.type(-np.inf)), np.nextafter(high, dtype.type(np.inf))
