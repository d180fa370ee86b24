"""Better features from neighbours: multi-query pooling, query expansion and database augmentation."""

from typing import Any

import numpy as np

from han_tf.errors import UserError
from han_tf.metrics.checks import check_camids, check_count, check_features, check_labels, squared_norms

NORM_TOLERANCE = 1e-2
"""How far from 1 a norm may be to count as normalised; float16 features come this far."""


def check_normalised(features: Any, parts: int = 1, name: str = "features") -> None:
    """Checks that each of the ``parts`` equal parts of every feature has L2 norm 1.

    Args:
      features: floats ``[n, d]``.
      parts: number of parts of d / parts values each; 2 for the joint feature of a HAN.
      name: what to call them in the error.

    Raises:
      UserError: a part of a feature has another norm, or d is no multiple of ``parts``.
    """
    features = check_features(features, name)
    size = _part_size(features.shape[1], parts, name)
    for part in range(parts):
        norms = np.sqrt(squared_norms(features[:, part * size : (part + 1) * size], name))
        bad = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
        if len(bad):
            where = f" part {part + 1} of {parts}" if parts > 1 else ""
            raise UserError(
                f"{name} row {bad[0]}{where} has L2 norm {norms[bad[0]]:.4g} ({len(bad)} such rows), expected 1"
            )


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
    split = features.reshape(len(features), parts, size).astype(np.float32)
    norms = np.sqrt(np.einsum("ijk,ijk->ij", split, split))[:, :, None]
    split /= np.where(norms > 0, norms, 1)
    return split.reshape(features.shape)


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
      UserError: shapes that do not fit, NaN or infinite features, negative camera ids.
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
