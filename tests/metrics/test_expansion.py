"""Pooling and expansion equal loops written from their definitions."""

import sys

import numpy as np
import pytest

from han_tf.common.errors import UserError
from han_tf.metrics import check_normalised, database_augmentation, normalise, pool_multi_query, query_expansion
from tests.metrics import metrics_reference as reference


def unit_features(n, dimension, seed, parts=1):
    features = np.random.default_rng(seed).standard_normal((n, dimension)).astype(np.float32)
    return normalise(features, parts)


def blended(own, others, alpha, parts):
    """One expanded feature, by a loop."""
    total = own.astype(np.float64)
    for other in others:
        cosine = float(own.astype(np.float64) @ other.astype(np.float64)) / parts
        total = total + max(cosine, 0) ** alpha * other
    pieces = np.split(total, parts)
    return np.concatenate([piece / np.linalg.norm(piece) for piece in pieces])


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("parts", [1, 2])
def test_query_expansion(alpha, parts):
    query, gallery = unit_features(7, 6, 0, parts), unit_features(50, 6, 1, parts)
    found = query_expansion(query, gallery, neighbours=4, alpha=alpha, parts=parts, threads=1)
    order = np.argsort(reference.squared_distances(query, gallery), axis=1, kind="stable")
    expected = [blended(q, gallery[images[:4]], alpha, parts) for q, images in zip(query, order)]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    check_normalised(found, parts)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_database_augmentation(alpha):
    gallery = unit_features(60, 5, 2)
    gallery[10:14] = gallery[9]  # more duplicates than neighbours: an image may be missing in its own list
    found = database_augmentation(gallery, neighbours=3, alpha=alpha, threads=1)
    squared = reference.squared_distances(gallery, gallery)
    for i, feature in enumerate(gallery):
        others = [g for g in np.argsort(squared[i], kind="stable") if g != i][:3]
        np.testing.assert_allclose(found[i], blended(feature, gallery[others], alpha, 1), atol=2e-6)


def test_multi_query_pooling():
    rng = np.random.default_rng(3)
    boxes, query = rng.standard_normal((40, 4)), rng.standard_normal((6, 4))
    pids, camids = rng.integers(0, 3, 40), rng.integers(0, 2, 40)
    query_pids, query_camids = np.array([0, 1, 2, 0, 7, 1]), np.array([0, 1, 0, 1, 0, 5])
    pooled, alone = pool_multi_query(boxes, pids, camids, query, query_pids, query_camids)
    for i in range(4):
        mine = (pids == query_pids[i]) & (camids == query_camids[i])
        np.testing.assert_allclose(pooled[i], boxes[mine].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(pooled[4:], query[4:].astype(np.float32))
    assert alone == 2
    halves, _ = pool_multi_query(boxes, pids, camids, query, query_pids, query_camids, renormalise=2)
    np.testing.assert_allclose(halves, normalise(pooled, 2), rtol=1e-6)


def test_normalise_by_parts():
    features = np.array([[3.0, 4.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0]])
    np.testing.assert_allclose(normalise(features, 2), [[0.6, 0.8, 0, 1], [0, 0, 1, 0]], rtol=1e-6)
    check_normalised(normalise(features[:1], 2), 2)
    with pytest.raises(UserError, match="features row 1 part 1 of 2 has L2 norm 0 "):
        check_normalised(normalise(features, 2), 2)
    for scale in (1e-30, 1e-22, 1e20):
        scaled = (features * scale).astype(np.float32)
        np.testing.assert_allclose(normalise(scaled, 2), normalise(features, 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_features": 2 * unit_features(3, 4, 0)}, r"query_features row 0 has L2 norm 2 \(3 such rows\)"),
        ({"gallery_features": 2 * unit_features(9, 4, 0)}, "gallery_features row 0 has L2 norm 2"),
        ({"parts": 3}, "query_features has dimension 4, expected a multiple of 3"),
        ({"parts": 0}, "parts is 0, expected at least 1"),
        ({"neighbours": 10}, "neighbours is 10, expected 1 to 9"),
        ({"alpha": -1.0}, "alpha is -1.0, expected a finite number of at least 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"gallery_features": np.full((9, 4), np.nan)}, "gallery_features row 0 holds nan"),
    ],
)
def test_bad_input_is_one_line(change, message):
    arguments = {"query_features": unit_features(3, 4, 0), "gallery_features": unit_features(9, 4, 1)}
    with pytest.raises(UserError, match=message):
        query_expansion(**{**arguments, **change})


def test_progress_is_shown_if_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    features = unit_features(9, 4, 0)
    for call, what in ((query_expansion, "query expansion"), (database_augmentation, "database augmentation")):
        given = (features,) * (1 + (call is query_expansion))
        call(*given)
        assert capsys.readouterr().err == ""
        call(*given, progress=True)
        assert f"{what}: 100%" in capsys.readouterr().err


def test_augmentation_needs_other_images():
    with pytest.raises(UserError, match="neighbours is 3, expected 1 to 2"):
        database_augmentation(unit_features(3, 4, 0), neighbours=3)
    with pytest.raises(UserError, match="neighbours is 1, expected 1 to 0"):
        database_augmentation(unit_features(1, 4, 0), neighbours=1)


def test_pooling_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="features has dimension 3, expected 4"):
        pool_multi_query(np.ones((2, 3)), [1, 1], [0, 0], np.ones((2, 4)), [1, 1], [0, 0])
    with pytest.raises(UserError, match="camids entry 0 is -1"):
        pool_multi_query(np.ones((2, 4)), [1, 1], [-1, 0], np.ones((2, 4)), [1, 1], [0, 0])
