"""Iteration over all query × gallery pairs in bounded memory, with several threads."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import numpy as np

from han_tf.common.progress import progress_bar
from han_tf.metrics.checks import HELD_BYTES
from han_tf.metrics.distances import DistanceSource

STRIPE_ROWS = 32
"""Queries that one thread takes at a time; few enough for their distances to stay in cache."""

MOST_ROWS = 1024
"""Largest number of queries per block: with fewer rows the matrix product is slower, with more hardly faster."""

LEAST_ROWS = 64
"""Smallest number of queries per block, whatever the memory."""

WIDE = 16384
"""Gallery images per block that take precedence over more queries: each part of the gallery costs further calls."""

SCRATCH_BYTES = 72
"""Memory for visiting a stripe, in bytes per value, beside the block itself."""


def slices(start: int, stop: int, step: int) -> list[slice]:
    """Cuts ``[start, stop)`` into slices of ``step``; the last one may be shorter."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def block_shape(source: DistanceSource, memory_mb: int, threads: int) -> tuple[int, int]:
    """Returns the numbers of queries and of gallery images per block that make use of ``memory_mb``."""
    n_query, n_gallery = source.shape
    itemsize = source.dtype.itemsize
    budget = max(2**20, int(0.8 * (memory_mb * 2**20 - HELD_BYTES * n_gallery)))
    rows = budget // 2 // (itemsize * min(n_gallery, WIDE))
    rows = min(n_query, max(LEAST_ROWS, min(MOST_ROWS, rows)))
    at_work = min(threads, math.ceil(rows / STRIPE_ROWS)) * STRIPE_ROWS
    return rows, min(n_gallery, max(1, budget // (itemsize * rows + SCRATCH_BYTES * at_work)))


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

    For each stripe ``prepare`` is called first, then ``visit`` for each part of the gallery in order, then
    ``conclude``. Stripes run in parallel, so they must not write to the same places.

    Args:
      source: the distances.
      visit: takes the state that ``prepare`` returned, the queries ``rows``, the source's fast values
        ``[rows, part]``, which it may overwrite, and the gallery images ``part``.
      memory_mb: memory to use, in MiB.
      threads: threads to use beside those of the matrix product.
      label: of the progress bar; None for no bar.
      prepare: returns the state of a stripe.
      conclude: takes the state of a stripe after all parts of the gallery.
    """
    n_query, n_gallery = source.shape
    height, width = block_shape(source, memory_mb, threads)
    buffer = source.workspace(height * width)
    with ThreadPoolExecutor(threads) as pool:
        for block in progress_bar(slices(0, n_query, height), desc=label, unit="block", disable=label is None):
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
    """Returns (low, high) in ``dtype``: fast values < low are certainly below ``exact``, those ≥ high above it.

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


def trusted_margins(
    source: DistanceSource,
    rows: slice,
    part: slice,
    fast: np.ndarray,
    probes: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Returns the source's margins, or the worst-case ones if an error of the ``probes`` exceeds half its margin.

    Args:
      source: the distances.
      rows, part: the queries and gallery images of ``fast``.
      fast: the fast values.
      probes: pairs with known exact values: row and column within ``fast``, and exact value.
    """
    margins = source.margins(rows, part)
    if margins.any():
        local, columns, exact = probes
        if (np.abs(fast[local, columns] - exact) > margins[local] / 2).any():
            return source.margins(rows, part, careful=True)
    return margins
