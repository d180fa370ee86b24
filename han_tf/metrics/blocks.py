"""Walking over all query × gallery pairs in bounded memory, with all cores."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import numpy as np

from han_tf.common.progress import progress_bar
from han_tf.metrics.checks import HELD_BYTES
from han_tf.metrics.distances import DistanceSource

STRIPE_ROWS = 32
"""Queries one thread takes at a time; few enough for their distances to stay in cache."""

MOST_ROWS = 1024
"""Most queries per block: a matrix product with fewer rows is slower, with more hardly faster."""

LEAST_ROWS = 64
"""Fewest queries per block, however little memory there is."""

WIDE = 16384
"""Gallery images per block that are worth having even for fewer queries: each part of a row costs some calls."""

SCRATCH_BYTES = 72
"""What visiting a stripe takes per value, beside the block itself."""


def slices(start: int, stop: int, step: int) -> list[slice]:
    """Cuts ``[start, stop)`` into slices of ``step``; the last one may be shorter."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def block_shape(source: DistanceSource, memory_mb: int, threads: int) -> tuple[int, int]:
    """Returns how many queries and gallery images to take at once to use most of ``memory_mb``, no more."""
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


def trusted_margins(
    source: DistanceSource,
    rows: slice,
    part: slice,
    fast: np.ndarray,
    probes: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Returns the source's margins; the worst-case ones if the errors of some pairs come near the others.

    Args:
      source: the distances.
      rows, part: the queries and gallery images of ``fast``.
      fast: the fast values.
      probes: pairs within ``fast`` whose exact values are known: local row, local column and exact value.
    """
    margins = source.margins(rows, part)
    if margins.any():
        local, columns, exact = probes
        if (np.abs(fast[local, columns] - exact) > margins[local] / 2).any():
            return source.margins(rows, part, careful=True)
    return margins
