"""K-reciprocal re-ranking of the entries nearest to one query."""

import numpy as np

from han_tf.metrics import rerank

LEAST = 100
PER_HIT = 5
"""Entries that are re-ranked for k hits: five per hit, at least 100."""

K1 = 20
K2 = 6
"""Neighbourhood sizes of the re-ranking, as its authors chose them; at most the number of entries."""


def reranked_among(k: int) -> int:
    """Returns how many of the nearest entries are re-ranked for ``k`` hits."""
    return max(LEAST, PER_HIT * k)


def reranked(query: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts entries by :func:`han_tf.metrics.rerank` among themselves and the query.

    Args:
      query: float32 ``[d]``.
      features: float32 ``[n, d]``, of the entries, nearest first.

    Returns:
      Their order, int64 ``[n]``, and their re-ranked distances in this order, float64 ``[n]``, 0 to 1.
    """
    if not len(features):
        return np.empty(0, np.int64), np.empty(0)
    k1, k2 = min(K1, len(features)), min(K2, len(features))
    found = rerank(query[None], features, k1=k1, k2=k2, threads=1, progress=False)
    distances = np.maximum(found.dense(slice(0, 1))[0].astype(np.float64), 0)
    order = np.argsort(distances, kind="stable")  # ties: the nearer one by L2
    return order, distances[order]
