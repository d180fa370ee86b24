"""The exact search, also among vectors that float32 cannot tell apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han_tf.search.exact import ExactSearch, squared_distances


def brute(query, vectors, k):
    distances = ((vectors.astype(np.float64) - query.astype(np.float64)) ** 2).sum(axis=1)
    order = np.lexsort((np.arange(len(vectors)), distances))[:k]
    return order, distances[order]


def close_together(count, seed, spread, dimension=64):
    """Returns vectors of unit length whose distances are proportional to ``spread``."""
    rng = np.random.default_rng(seed)
    middle = np.random.default_rng(5).standard_normal(dimension)
    vectors = middle / np.linalg.norm(middle) + spread * rng.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("queries", [1, 4, 32])
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_k_nearest_are_those_of_the_definition(queries, spread, threads):
    """From 20 queries on, FAISS computes distances from squared norms and products, which are all nearly 1."""
    vectors, asked = close_together(5000, 0, spread), close_together(queries, 1, spread)
    asked[0] = vectors[0]
    search = ExactSearch(threads)
    try:
        for chosen in (None, np.arange(0, 5000, 3), np.flatnonzero(np.arange(5000) % 7)):
            rows = np.arange(5000) if chosen is None else chosen
            found = search.search(asked, vectors, chosen, 10, 1.001)
            for query, (near, distances) in zip(asked, found):
                expected, values = brute(query, vectors[rows], 10)
                np.testing.assert_array_equal(near, rows[expected])
                np.testing.assert_allclose(distances, values, rtol=1e-9)
    finally:
        search.close()


def test_vectors_so_small_that_their_products_underflow():
    """The smallest positive float32 is 1.4e-45."""
    rng = np.random.default_rng(0)
    vectors, asked = (np.float32(3e-23 * rng.standard_normal((n, 64))) for n in (5000, 32))
    greatest_norm = (vectors.astype(np.float64) ** 2).sum(axis=1).max()
    for query, (near, distances) in zip(asked, ExactSearch(1).search(asked, vectors, None, 10, greatest_norm)):
        expected, values = brute(query, vectors, 10)
        np.testing.assert_array_equal(near, expected)
        np.testing.assert_allclose(distances, values, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_k_nearest_for_any_rounding(data):
    """Values of which float32 sums lose digits, many of them nearly or wholly alike."""
    dimension, count = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale, step = data.draw(st.sampled_from([1.0, 1e3, 1e-3])), data.draw(st.sampled_from([0.0, 1e-6, 1e-2]))
    vectors = (scale + step * rng.integers(-2, 3, (count, dimension))).astype(np.float32)
    queries = vectors[rng.integers(0, count, 3)] + np.float32(1e-3 * scale)
    chosen = data.draw(st.sampled_from([None, np.flatnonzero(rng.random(count) < 0.5)]))
    k = data.draw(st.integers(1, 8))
    search = ExactSearch(data.draw(st.integers(1, 2)))
    rows = np.arange(count) if chosen is None else chosen
    if len(rows):
        greatest = float((vectors.astype(np.float64) ** 2).sum(axis=1).max())
        for query, (near, distances) in zip(queries, search.search(queries, vectors, chosen, k, greatest)):
            true = squared_distances(query, vectors, rows)  # ties are those of its rounding
            order = np.lexsort((rows, true))[:k]
            np.testing.assert_array_equal(near, rows[order])
            np.testing.assert_array_equal(distances, true[order])
    search.close()


@pytest.mark.parametrize("queries", [1, 32])
def test_all_of_the_k_nearest_are_certain(queries):
    """Two rows are the query itself; the others are all equally far from it, but for rounding."""
    rng = np.random.default_rng(0)
    middle, around = rng.standard_normal(64), rng.standard_normal((5000, 64))
    middle /= np.linalg.norm(middle)
    vectors = np.float32(middle + 0.1 * around / np.linalg.norm(around, axis=1, keepdims=True))
    vectors[[7, 4000]] = middle
    asked = np.repeat(np.float32(middle)[None], queries, axis=0)
    expected, values = brute(asked[0], vectors, 10)
    for near, distances in ExactSearch(1).search(asked, vectors, None, 10, 1.3):
        np.testing.assert_array_equal(near, expected)
        np.testing.assert_allclose(distances, values, rtol=1e-9)
