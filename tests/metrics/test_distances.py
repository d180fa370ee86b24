"""The errors of fast distances stay within their bounds, and results do not depend on the BLAS."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial import distance

from han_tf.common.errors import UserError
from han_tf.metrics import FeatureDistances, evaluate_distances, pairwise_distances
from han_tf.metrics.distances import Stacked
from han_tf.metrics.nearest import nearest
from tests.metrics import metrics_reference as reference


def hard_features(kind, rng):
    """Features with different kinds of errors of float32 products."""
    if kind == "constant":  # all rounding errors have the same sign
        return np.full((40, 700), 0.1), 0.1 + 1e-3 * rng.random((60, 1)) * np.ones(700)
    if kind == "far":  # near each other, far from the origin
        return 30 + rng.standard_normal((40, 300)), 30 + rng.standard_normal((60, 300))
    if kind == "tiny":
        return 1e-22 * rng.standard_normal((40, 50)), 1e-22 * rng.standard_normal((60, 50))
    if kind == "uneven":
        return rng.standard_normal((40, 30)), rng.standard_normal((60, 30)) * 10.0 ** rng.integers(-3, 4, (60, 1))
    if kind == "zero":
        return np.zeros((40, 5)), np.zeros((60, 5))
    return rng.standard_normal((40, 2048)), rng.standard_normal((60, 2048))


@pytest.mark.parametrize("kind", ["constant", "far", "tiny", "uneven", "zero", "plain"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("product", [np.float32, np.float64])
def test_fast_values_are_within_the_margins(kind, dtype, product):
    query, gallery = (part.astype(dtype) for part in hard_features(kind, np.random.default_rng(0)))
    source = FeatureDistances(query, gallery)
    source.dtype = np.dtype(product)
    rows, columns = slice(0, 40), slice(0, 60)
    fast = source.finish(source.raw(rows, columns, source.workspace(2400)), rows, columns).astype(np.float64)
    exact = source.exact(*(index.ravel() for index in np.indices(fast.shape))).reshape(fast.shape)
    np.testing.assert_allclose(exact, reference.squared_distances(query, gallery), rtol=1e-13)
    errors = np.abs(fast - exact).max(axis=1)
    assert (errors <= source.margins(rows, columns, careful=True)).all()
    if kind != "constant":
        assert (errors <= source.margins(rows, columns)).all()


def test_few_exact_values_are_needed_of_collapsed_features(monkeypatch):
    """All images are within 1e-3 of each other: with float32 products, exact values of all pairs would be needed."""
    rng = np.random.default_rng(0)
    middle = rng.standard_normal(256) / 16
    asked = []

    def counted(self, rows, columns, exact=FeatureDistances.exact):
        asked.append(len(rows))
        return exact(self, rows, columns)

    monkeypatch.setattr(FeatureDistances, "exact", counted)
    counts = []
    collapsed, usual = middle + 3e-5 * rng.standard_normal((1040, 256)), rng.standard_normal((1040, 256))
    for features, product in ((collapsed, np.float64), (usual, np.float32)):
        features = features.astype(np.float32)
        source = FeatureDistances(features[:40], features[40:])
        assert source.dtype == product
        asked.clear()
        found, _, _ = nearest(source, 10, memory_mb=16, threads=1)
        counts.append(sum(asked))
        exact = reference.squared_distances(features[:40], features[40:])
        np.testing.assert_array_equal(found, np.argsort(exact, axis=1, kind="stable")[:, :10])
    assert counts[0] < 2 * counts[1]
    assert counts[1] < 1000  # of 40,000 pairs


def test_dense_gives_l2_distances():
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((5, 7)).astype(np.float32), rng.standard_normal((9, 7)).astype(np.float32)
    expected = np.sqrt(reference.squared_distances(query, gallery))
    np.testing.assert_allclose(FeatureDistances(query, gallery).dense(slice(2, 5)), expected[2:5], rtol=1e-5)


def test_stacked_arrays_are_read_as_one():
    first, second = np.arange(12.0).reshape(4, 3), np.arange(12.0, 27.0).reshape(5, 3)
    whole, stacked = np.concatenate([first, second]), Stacked(first, second)
    assert (len(stacked), stacked.shape) == (9, (9, 3))
    for start in range(9):
        for stop in range(start, 11):
            np.testing.assert_array_equal(stacked[start:stop], whole[start:stop])
    chosen = np.array([8, 0, 3, 4, 4, 1])
    np.testing.assert_array_equal(stacked[chosen], whole[chosen])


@pytest.mark.parametrize("k", [1, 3, 40])
def test_nearest_and_farthest(k):
    rng = np.random.default_rng(k)
    query, gallery = rng.integers(0, 4, (20, 5)), rng.integers(0, 4, (400, 5))
    indices, values, farthest = nearest(FeatureDistances(query, gallery), k, memory_mb=16, threads=2)
    exact = reference.squared_distances(query, gallery)
    order = np.argsort(exact, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(exact, order, axis=1))
    np.testing.assert_array_equal(farthest, exact.max(axis=1))


def test_nearest_does_not_trust_margins_that_prove_too_small(monkeypatch):
    rng = np.random.default_rng(0)
    centre = 3 * rng.standard_normal(300)
    query, gallery = (centre + 1e-4 * rng.standard_normal((n, 300)) for n in (30, 600))
    margins = FeatureDistances.margins

    def hopeful(source, rows, columns, careful=False):
        return margins(source, rows, columns, True) * (1 if careful else 1e-9)

    monkeypatch.setattr(FeatureDistances, "margins", hopeful)
    indices = nearest(FeatureDistances(query, gallery), 4, memory_mb=16, threads=1)[0]
    exact = reference.squared_distances(query, gallery)
    np.testing.assert_array_equal(indices, np.argsort(exact, axis=1, kind="stable")[:, :4])


PROGRAM = """
import hashlib, json
import numpy as np
from han_tf.metrics import FeatureDistances, evaluate, evaluate_distances, rerank, verify

rng = np.random.default_rng(0)
pids = rng.integers(0, 9, 660)
features = rng.standard_normal((9, 96))[pids] + 2 * rng.standard_normal((660, 96))
features = features.astype(np.float32)
features[300:400] = features[500:600]
camids = rng.integers(0, 4, 660)
query, gallery = slice(0, 60), slice(60, None)
labels = pids[query], pids[gallery], camids[query], camids[gallery]
plain = evaluate(features[query], features[gallery], *labels)
again = evaluate_distances(rerank(features[query], features[gallery], progress=False), *labels)
pairs = verify(FeatureDistances(features[query], features[gallery]), *labels)
digest = hashlib.sha256(json.dumps([plain.to_dict(), again.to_dict(), pairs.to_dict()]).encode())
for result in (plain, again):
    digest.update(result.topk_indices.tobytes())
    digest.update(result.topk_distances.tobytes())
product = hashlib.sha256(np.matmul(features[query], features[gallery].T).tobytes())
print(digest.hexdigest(), product.hexdigest())
"""


def test_same_digits_whatever_the_blas_does():
    """Other kernels and thread counts of OpenBLAS sum in another order; the results are the same."""
    digests = []
    for kernel, threads in (("", "1"), ("", "2"), ("Haswell", "2")):
        settings = {"OPENBLAS_NUM_THREADS": threads, **({"OPENBLAS_CORETYPE": kernel} if kernel else {})}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, **settings}, capture_output=True, text=True, check=True
        )
        digests.append(done.stdout.split())
    if len({product for _, product in digests}) == 1:
        pytest.skip("the products do not differ here, so there is nothing to hide")
    assert len({digest for digest, _ in digests}) == 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_pairwise_distances_are_those_of_scipy(metric):
    rng = np.random.default_rng(4)
    few, many = rng.standard_normal((5, 16)).astype(np.float32), 3 * rng.standard_normal((9, 16))
    for query, gallery in ((few, many), (many, few)):
        found = pairwise_distances(query, gallery, metric)
        assert (found.dtype, found.shape) == (np.float32, (len(query), len(gallery)))
        np.testing.assert_allclose(found, distance.cdist(query, gallery, metric), atol=2e-5)


def test_pairwise_distances_refuse_what_has_none():
    features = np.eye(3, 4, dtype=np.float32)
    with pytest.raises(UserError, match="metric is 'l1', expected one of euclidean, cosine"):
        pairwise_distances(features, features, "l1")
    with pytest.raises(UserError, match="gallery feature 1 is all 0, expected a direction"):
        pairwise_distances(features, features * [[1], [0], [1]], "cosine")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_pairwise_distances_of_nearly_identical_images(metric):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 1024)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    copies = features[:20] + 1e-5 * rng.standard_normal((20, 1024)).astype(np.float32)
    found = pairwise_distances(copies, features, metric)
    expected = distance.cdist(copies.astype(np.float64), features.astype(np.float64), metric)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert pairwise_distances(features[:20], features, metric).diagonal().max() < 1e-7


def test_integers_that_float64_cannot_tell_apart_are_refused():
    labels = [1], [2, 1], [0], [1, 1]
    for value in (2**53 + 1, -(2**53)):
        with pytest.raises(
            UserError, match=rf"distances\[0, 0\] is {value}, expected integers between ±9007199254740992"
        ):
            evaluate_distances(np.array([[value, 2**53 - 1]]), *labels)
    result = evaluate_distances(np.array([[2**53 - 1, 2**53 - 2]]), *labels)
    assert result.first_hit.tolist() == [1]
