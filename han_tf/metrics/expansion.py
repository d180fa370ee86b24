"""Features improved by their neighbours: multi-query pooling, query expansion and database augmentation."""

from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.metrics.checks import (
    LEAST_MEMORY,
    ROWS,
    BadRow,
    check_camids,
    check_count,
    check_features,
    check_labels,
    default_threads,
    squared_norms,
)
from han_tf.metrics.distances import FeatureDistances
from han_tf.metrics.nearest import nearest

NORM_TOLERANCE = 1e-2
"""Largest difference of a norm from 1 that counts as normalised; float16 features need this much."""


def check_normalised(features: Any, parts: int = 1, name: str = "features") -> None:
    """Checks that each of the ``parts`` equal parts of every feature has L2 norm 1.

    Args:
      features: floats ``[n, d]``.
      parts: number of parts of d / parts values each; 2 for the joint feature of a HAN.
      name: of the array in error messages.

    Raises:
      UserError: d is no multiple of ``parts``; as :class:`~han_tf.metrics.checks.BadRow`, a part of a feature has
        another norm.
    """
    features = check_features(features, name)
    size = _part_size(features.shape[1], parts, name)
    for part in range(parts):
        norms = np.sqrt(squared_norms(features[:, part * size : (part + 1) * size], name))
        bad = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
        if len(bad):
            where = f" part {part + 1} of {parts}" if parts > 1 else ""
            message = f"{name} row {bad[0]}{where} has L2 norm {norms[bad[0]]:.4g} ({len(bad)} such rows), expected 1"
            raise BadRow(message, features, int(bad[0]))


def normalise(features: np.ndarray, parts: int = 1) -> np.ndarray:
    """Returns ``features`` with each of the ``parts`` equal parts scaled to L2 norm 1; zeros stay zeros.

    Args:
      features: floats ``[n, d]``; d a multiple of ``parts``.
      parts: 2 for the joint feature of a HAN, whose branches are normalised one by one.

    Returns:
      float32 ``[n, d]``.

    Raises:
      UserError: d is no multiple of ``parts``.
    """
    size = _part_size(features.shape[1], parts, "features")
    split = features.reshape(len(features), parts, size)
    # In float64, squares of small numbers don't become zeros.
    norms = np.sqrt(np.einsum("ijk,ijk->ij", split, split, dtype=np.float64))[:, :, None]
    scaled = np.empty(split.shape, np.float32)
    np.divide(split, np.where(norms > 0, norms, 1), out=scaled, casting="same_kind")
    return scaled.reshape(features.shape)


def pool_multi_query(
    features: Any,
    pids: Any,
    camids: Any,
    query_features: Any,
    query_pids: Any,
    query_camids: Any,
    *,
    renormalise: int = 0,
) -> tuple[np.ndarray, int]:
    """Pools, for each query, all boxes of its person from its camera: Market-1501's multi-query protocol.

    A query's new feature is the mean over the boxes with its pid and camera. A query without such boxes
    keeps its own feature.

    Args:
      features: floats ``[n, d]`` of the boxes (Market-1501's gt_bbox).
      pids, camids: integers ``[n]``.
      query_features: floats ``[n_query, d]``; kept where there are no boxes.
      query_pids, query_camids: integers ``[n_query]``.
      renormalise: number of equal parts of the pooled feature that are scaled to L2 norm 1 afterwards: 1
        for plain unit features, 2 for the joint feature of a HAN; 0 leaves the mean as it is, as the
        protocol does.

    Returns:
      The pooled features, float32 ``[n_query, d]``, and the number of queries without boxes.

    Raises:
      UserError: shapes do not match, features are NaN or infinite, or camera ids negative.
    """
    query_features = check_features(query_features, "query_features")
    features = check_features(features, "features", query_features.shape[1])
    squared_norms(features, "features")
    squared_norms(query_features, "query_features")
    pids = check_labels(pids, "pids", len(features))
    camids = check_camids(camids, "camids", len(features))
    query_pids = check_labels(query_pids, "query_pids", len(query_features))
    query_camids = check_camids(query_camids, "query_camids", len(query_features))
    groups: dict[tuple[int, int], list[int]] = {}
    for index, key in enumerate(zip(pids.tolist(), camids.tolist())):
        groups.setdefault(key, []).append(index)
    pooled = np.empty(query_features.shape, np.float32)
    alone = 0
    for query, key in enumerate(zip(query_pids.tolist(), query_camids.tolist())):
        boxes = groups.get(key)
        if boxes is None:
            alone += 1
            pooled[query] = query_features[query]
        else:
            pooled[query] = np.mean(features[boxes], axis=0, dtype=np.float64)
    return (normalise(pooled, renormalise) if renormalise else pooled), alone


def _part_size(dimension: int, parts: int, name: str) -> int:
    check_count(parts, "parts", 1)
    if dimension % parts:
        raise UserError(f"{name} has dimension {dimension}, expected a multiple of {parts} (parts)")
    return dimension // parts


def query_expansion(
    query_features: Any,
    gallery_features: Any,
    *,
    neighbours: int = 5,
    alpha: float = 0.0,
    parts: int = 1,
    memory_mb: int = 1024,
    threads: Optional[int] = None,
    progress: bool = False,
) -> np.ndarray:
    """Replaces each query by a weighted mean of itself and its nearest gallery images.

    The query has weight 1, a gallery image s^α where s ≥ 0 is its cosine similarity: α = 0 is average query
    expansion (Chum et al. 2007), α > 0 the α-weighted one (Radenović et al. 2019). The mean is normalised
    again. No labels are used; leave junk out of the gallery.

    Args:
      query_features: floats ``[n_query, d]``, each of the ``parts`` of L2 norm 1.
      gallery_features: floats ``[n_gallery, d]``, likewise.
      neighbours: gallery images per query, at least 1, at most n_gallery.
      alpha: exponent of the weights, at least 0; 3 is usual for the weighted form.
      parts: equal parts of a feature that are normalised on their own; 2 for the joint feature of a HAN.
      memory_mb: memory to use beside the features, in MiB.
      threads: threads to use; the number of cores if None. Results do not depend on it.
      progress: whether to show a progress bar.

    Returns:
      float32 ``[n_query, d]``, normalised by parts.

    Raises:
      UserError: features do not match, are not finite or not normalised; an argument is out of range.
    """
    check_normalised(query_features, parts, "query_features")
    check_normalised(gallery_features, parts, "gallery_features")
    source = FeatureDistances(query_features, gallery_features)
    check_count(neighbours, "neighbours", 1, source.shape[1])
    _check_expansion(alpha, memory_mb)
    label = "query expansion" if progress else None
    lists, values, _ = nearest(source, neighbours, memory_mb=memory_mb, threads=default_threads(threads), label=label)
    return _blend(source.query, source.gallery, lists, values, alpha, parts)


def database_augmentation(
    gallery_features: Any,
    *,
    neighbours: int = 5,
    alpha: float = 0.0,
    parts: int = 1,
    memory_mb: int = 1024,
    threads: Optional[int] = None,
    progress: bool = False,
) -> np.ndarray:
    """Replaces each gallery feature by a weighted mean of itself and its nearest other gallery images.

    The weights are those of :func:`query_expansion` (Turcot & Lowe 2009; Arandjelović & Zisserman 2012).

    Args:
      gallery_features: floats ``[n_gallery, d]``, each of the ``parts`` of L2 norm 1.
      neighbours: other images per image, at least 1, at most n_gallery − 1.
      alpha: exponent of the weights, at least 0.
      parts, memory_mb, threads, progress: as for :func:`query_expansion`.

    Returns:
      float32 ``[n_gallery, d]``, normalised by parts.

    Raises:
      UserError: as :func:`query_expansion`.
    """
    check_normalised(gallery_features, parts, "gallery_features")
    source = FeatureDistances(gallery_features, gallery_features, ("gallery_features",) * 2)
    check_count(neighbours, "neighbours", 1, source.shape[1] - 1)
    _check_expansion(alpha, memory_mb)
    label = "database augmentation" if progress else None
    lists, values, _ = nearest(
        source, neighbours + 1, memory_mb=memory_mb, threads=default_threads(threads), label=label
    )
    # An image is usually first in its own list; if it has many duplicates, it may not be in it at all.
    others = lists != np.arange(len(lists))[:, None]
    chosen = others & (np.cumsum(others, axis=1) <= neighbours)
    shape = (len(lists), neighbours)
    return _blend(
        source.gallery, source.gallery, lists[chosen].reshape(shape), values[chosen].reshape(shape), alpha, parts
    )


def _check_expansion(alpha: float, memory_mb: int) -> None:
    if not 0 <= alpha < np.inf:
        raise UserError(f"alpha is {alpha}, expected a finite number of at least 0")
    check_count(memory_mb, "memory_mb", LEAST_MEMORY)


def _blend(
    features: np.ndarray, others: np.ndarray, lists: np.ndarray, squared: np.ndarray, alpha: float, parts: int
) -> np.ndarray:
    """Returns normalised sums of ``features`` and of the ``others`` in their lists, weighted by similarity."""
    # Each part has norm 1, so that |a − b|² = 2·parts·(1 − cosine).
    weights = np.maximum(1 - squared / (2 * parts), 0) ** alpha
    blended = features.astype(np.float32)
    for start in range(0, len(lists), ROWS):
        rows = slice(start, start + ROWS)
        for place in range(lists.shape[1]):
            blended[rows] += weights[rows, place, None].astype(np.float32) * others[lists[rows, place]]
    return normalise(blended, parts)
