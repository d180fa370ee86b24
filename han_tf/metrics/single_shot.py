"""CUHK03's old protocol: galleries with one image per person, drawn repeatedly."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional, Union

import numpy as np

from han_tf.metrics.blocks import bracket, slices, trusted_margins
from han_tf.metrics.checks import check_count, check_memory
from han_tf.metrics.distances import DistanceSource, MatrixDistances
from han_tf.metrics.excluders import Excluder
from han_tf.metrics.results import REPORTED_RANKS, no_match
from han_tf.metrics.truth import Truth

BYTES_PER_VALUE = 32
"""Memory per distance: values of 8 bytes, and copies."""

BYTES_PER_DRAWN = 48
"""Memory per image of a drawn gallery: its random number, its index, and copies."""


MOST_DRAWS = 1_000_000
"""Largest number of galleries per query."""


@dataclass(frozen=True)
class SingleShotResult:
    """Results of ranking galleries with one image per person; means over queries and draws.

    Attributes:
      cmc: float64 ``[max_rank]``; entry k − 1 is the fraction of rankings with the match among the first k.
      mAP: mean of 1 / the match's place, which is the average precision of a single match.
      draws: galleries per query.
      seed: of the draws.
      queries_without_match: queries left out of the means because the gallery holds no match for them.
    """

    cmc: np.ndarray
    mAP: float
    draws: int
    seed: int
    queries_without_match: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as values for JSON."""
        ranks = {f"rank-{k}": float(self.cmc[k - 1]) for k in REPORTED_RANKS if k <= len(self.cmc)}
        return {**ranks, **asdict(self), "cmc": self.cmc.tolist()}


def single_gallery_shot(
    distances: Union[np.ndarray, DistanceSource],
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    excluders: Optional[Sequence[Excluder]] = None,
    draws: int = 100,
    seed: int = 0,
    max_rank: int = 50,
    memory_mb: int = 1024,
) -> SingleShotResult:
    """Returns the results of ranking, for each query and draw, one gallery image per person; ties in gallery order.

    The images are drawn from those that the excluders leave in, so that by default the match is from another camera.
    Images with the same pid count as one person, also those of distractors with pid 0.

    Args:
      distances: as for :func:`han_tf.metrics.evaluate_distances`.
      query_pids, gallery_pids, query_camids, gallery_camids, excluders: likewise.
      draws: galleries per query.
      seed: of the draws; those of a query do not depend on the other queries.
      max_rank: length of the CMC curve.
      memory_mb: memory to use beside features or distances, in MiB.

    Raises:
      UserError: as :func:`han_tf.metrics.evaluate_distances`; ``draws`` is below 1 or above :data:`MOST_DRAWS`, or
        ``seed`` is below 0.
    """
    source = distances if isinstance(distances, DistanceSource) else MatrixDistances(distances)
    n_query, n_gallery = source.shape
    truth = Truth(source.shape, query_pids, gallery_pids, query_camids, gallery_camids, excluders)
    check_count(draws, "draws", 1, MOST_DRAWS)
    check_count(seed, "seed", 0)
    check_count(max_rank, "max_rank", 1)
    room = check_memory(memory_mb, n_gallery) * 2**20 // 2  # half for distances, half for drawn galleries
    part = slice(0, n_gallery)
    order = np.argsort(truth.gallery_pids, kind="stable")
    counts_at = np.zeros(n_gallery + 1, np.int64)  # rankings with the match at each place
    ranked = 0
    for rows in slices(0, n_query, max(1, room // (BYTES_PER_VALUE * n_gallery))):
        stripe = truth.stripe(rows)
        local = stripe.queries - rows.start
        exact = source.exact(stripe.queries, stripe.columns)
        fast = source.finish(source.raw(rows, part, source.workspace((rows.stop - rows.start) * n_gallery)), rows, part)
        margins = trusted_margins(source, rows, part, fast, (local, stripe.columns, exact))
        truth.exclude(stripe, fast, part)
        for row, query in enumerate(range(rows.start, rows.stop)):
            own = slice(stripe.ends[row], stripe.ends[row + 1])
            if own.start == own.stop:
                continue
            images = order[np.isfinite(fast[row, order])]  # person by person, in gallery order
            people, starts, counts = np.unique(truth.gallery_pids[images], return_index=True, return_counts=True)
            person = np.searchsorted(people, truth.query_pids[query])
            random, ranked = np.random.default_rng([seed, query]), ranked + 1
            for some in slices(0, draws, max(1, room // (BYTES_PER_DRAWN * len(people)))):
                chance = random.random((some.stop - some.start, len(people)))
                drawn = images[starts + (chance * counts).astype(np.int64)]
                for column in np.unique(drawn[:, person]):
                    value = exact[own][np.searchsorted(stripe.columns[own], column)]
                    before = _before(source, query, fast[row], column, value, margins[row])
                    places = 1 + before[drawn[drawn[:, person] == column]].sum(axis=1)
                    np.add.at(counts_at, places, 1)
    if not ranked:
        raise no_match(n_query)
    within = np.zeros(max_rank, np.int64)
    within[:n_gallery] = counts_at[1 : max_rank + 1]
    precision = (counts_at[1:] / np.arange(1, n_gallery + 1)).sum()
    rankings = ranked * draws
    return SingleShotResult(np.cumsum(within) / rankings, float(precision / rankings), draws, seed, n_query - ranked)


def _before(
    source: DistanceSource, query: int, fast: np.ndarray, column: int, exact: float, margin: float
) -> np.ndarray:
    """Returns whether each gallery image comes before a match, bool ``[n_gallery]``.

    Args:
      source: the distances.
      query: index of the query.
      fast: the query's fast values, ``[n_gallery]``.
      column, exact: the match, and its exact value.
      margin: bound on |fast − exact|.
    """
    low, high = bracket(exact, margin, fast.dtype)
    before = fast < low
    close = np.flatnonzero((fast >= low) & (fast < high))
    values = source.exact(np.full(len(close), query), close)
    before[close] = (values < exact) | ((values == exact) & (close < column))
    return before
