"""Sparse re-ranking equals the dense, literal reference."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han_tf.common.errors import UserError
from han_tf.metrics import (
    FaissNeighbours,
    FeatureDistances,
    MatrixDistances,
    blocks,
    evaluate,
    evaluate_distances,
    exact_neighbours,
    pairwise_distances,
    rerank,
    rerank_distances,
)
from han_tf.metrics.distances import MatricesAmongAll
from tests.metrics import metrics_reference as reference


def features_of(kind, n_query, n_gallery, dimension, rng):
    """Queries and gallery: spread, clustered, clustered with doubles, or of few distinct whole numbers."""
    n = n_query + n_gallery
    if kind == "random":
        features = rng.standard_normal((n, dimension))
    elif kind == "whole":
        features = rng.integers(0, 3, (n, dimension))
    else:
        centres = rng.standard_normal((max(n // 10, 1), dimension))
        noise = rng.standard_normal((n, dimension))
        if kind == "doubles":
            noise[rng.random(n) < 0.5] = 0
        features = centres[rng.integers(0, len(centres), n)] + 0.3 * noise
    return features[:n_query].astype(np.float32), features[n_query:].astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["random", "clustered", "doubles", "whole"]),
    st.integers(1, 12),
    st.integers(6, 70),
    st.integers(1, 8),
    st.data(),
)
def test_equals_the_dense_one(seed, kind, n_query, n_gallery, dimension, data):
    query, gallery = features_of(kind, n_query, n_gallery, dimension, np.random.default_rng(seed))
    k1, k2 = data.draw(st.integers(1, min(n_gallery, 25))), data.draw(st.integers(1, min(n_gallery, 8)))
    weight = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    found = rerank(query, gallery, k1=k1, k2=k2, lambda_value=weight, progress=False)
    expected = reference.reranked(query, gallery, k1, k2, weight)
    # float32 distances have rounding errors relative to the squared norms, which may be much larger, and are divided by
    # the largest one of each row.
    everyone = np.concatenate([query, gallery]).astype(np.float64)
    norms, spread = (everyone**2).sum(1), ((everyone[:n_query, None] - everyone) ** 2).sum(2).max(1)
    rounding = 8 * np.finfo(np.float32).eps * norms.max() / max(spread.min(), 1e-9)
    np.testing.assert_allclose(found.dense(slice(0, n_query)), expected, atol=1e-6 + rounding)
    exact = found.exact(*(index.ravel() for index in np.indices(expected.shape))).reshape(expected.shape)
    np.testing.assert_allclose(exact, expected, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(6, 40),
    st.sampled_from([np.float32, np.float64, int]),
    st.data(),
)
def test_given_distances_equal_the_dense_ones(seed, n_query, n_gallery, dtype, data):
    """Symmetric matrices of any numbers, which are not distances of features."""
    n = n_query + n_gallery
    distances = np.random.default_rng(seed).random((n, n))
    distances = distances + distances.T
    np.fill_diagonal(distances, 0)
    distances = (1000 * distances).astype(int) if dtype is int else distances.astype(dtype)
    k1, k2 = data.draw(st.integers(1, n_gallery)), data.draw(st.integers(1, min(n_gallery, 8)))
    weight = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    memory_mb = data.draw(st.sampled_from([16, 1024]))
    parts = distances[:n_query, n_query:], distances[:n_query, :n_query], distances[n_query:, n_query:]
    found = rerank_distances(*parts, k1=k1, k2=k2, lambda_value=weight, memory_mb=memory_mb, progress=False)
    expected = reference.reranked_distances(distances.astype(float), n_query, k1, k2, weight)
    np.testing.assert_allclose(found.dense(slice(0, n_query)), expected, atol=1e-5)
    exact = found.exact(*(index.ravel() for index in np.indices(expected.shape))).reshape(expected.shape)
    np.testing.assert_allclose(exact, expected, atol=1e-12)


def test_blocks_of_given_distances_are_those_of_the_whole_matrix():
    distances = np.arange(49.0).reshape(7, 7)
    distances = distances + distances.T
    parts = distances[:3, 3:], distances[:3, :3], distances[3:, 3:]
    source = MatricesAmongAll(*map(MatrixDistances, parts))
    assert source.shape == (7, 7)
    for first, last in itertools.combinations(range(8), 2):
        for left, right in itertools.combinations(range(8), 2):
            block = source.raw(slice(first, last), slice(left, right), source.workspace(0))
            np.testing.assert_array_equal(block, distances[first:last, left:right])


def test_squared_distances_rerank_as_their_features_do(people):
    query, gallery, labels = people
    squared = (pairwise_distances(a, b) ** 2 for a, b in ((query, gallery), (query, query), (gallery, gallery)))
    given = evaluate_distances(rerank_distances(*squared, progress=False), *labels)
    assert given.mAP == pytest.approx(evaluate_distances(rerank(query, gallery, progress=False), *labels).mAP, abs=1e-4)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((np.ones((3, 9)), np.ones((3, 4)), np.ones((9, 9))), r"query_query has shape \[3, 4\], expected \[3, 3\]"),
        ((np.ones((3, 9)), np.ones((3, 3)), np.ones((8, 8))), r"gallery_gallery has shape \[8, 8\], expected \[9, 9\]"),
        ((np.ones((3, 9)), np.ones((3, 3)), np.full((9, 9), np.nan)), "is nan, expected finite numbers"),
        ((np.ones(3), np.ones((3, 3)), np.ones((9, 9))), r"shape \[3\], expected"),
    ],
)
def test_given_distances_that_do_not_fit(parts, words):
    with pytest.raises(UserError, match=words):
        rerank_distances(*parts, k1=2, k2=1, progress=False)


@pytest.fixture(scope="module")
def people():
    """Clustered unit features of 30 people, and their labels."""
    rng = np.random.default_rng(5)
    pids, camids = rng.integers(0, 30, 560), rng.integers(0, 4, 560)
    features = rng.standard_normal((30, 32))[pids]
    features = (features + 1.2 * rng.standard_normal((560, 32))).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features[:60], features[60:], (pids[:60], pids[60:], camids[:60], camids[60:])


def test_ranks_as_the_dense_distances_do_and_better_than_before(people):
    query, gallery, labels = people
    result = evaluate_distances(rerank(query, gallery, progress=False), *labels)
    expected = evaluate_distances(reference.reranked(query, gallery, 20, 6, 0.3), *labels)
    np.testing.assert_array_equal(result.topk_indices, expected.topk_indices)
    assert result.mAP == pytest.approx(expected.mAP, abs=1e-9)
    assert result.mAP > evaluate(query, gallery, *labels).mAP + 0.05


def test_same_digits_for_any_memory_and_threads(people, monkeypatch):
    query, gallery, labels = people
    results = []
    for rows, columns, stripe, threads in ((60, 500, 16, 1), (60, 500, 16, 2), (13, 77, 5, 2)):
        monkeypatch.setattr(
            blocks, "block_shape", lambda s, m, t, r=rows, c=columns: (min(r, s.shape[0]), min(c, s.shape[1]))
        )
        monkeypatch.setattr(blocks, "STRIPE_ROWS", stripe)
        distances = rerank(query, gallery, threads=threads, progress=False)
        distances.cache_room = threads * 5000  # too little to keep the Jaccard distances of all queries
        result = evaluate_distances(distances, *labels, threads=threads)
        results.append((result.to_dict(), result.topk_indices.tolist(), result.topk_distances.tolist()))
    assert all(result == results[0] for result in results)


def test_nothing_dense_is_made(people):
    rng = np.random.default_rng(0)
    n = 6000
    features = rng.standard_normal((n // 10, 16))[rng.integers(0, n // 10, n)] + 0.3 * rng.standard_normal((n, 16))
    with reference.memory_below(40e6):
        distances = rerank(features[:100], features[100:], memory_mb=16, threads=1, progress=False)
        evaluate_distances(distances, *(rng.integers(0, 50, m) for m in (100, n - 100) * 2), memory_mb=16, threads=1)
    assert n**2 * 4 > 130e6


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_neighbours_come_close(people, kind):
    pytest.importorskip("faiss")
    query, gallery, labels = people
    neighbours = FaissNeighbours(kind, effort=64 if kind == "hnsw" else 30, lists=40)
    exact = evaluate_distances(rerank(query, gallery, progress=False), *labels)
    approximate = evaluate_distances(rerank(query, gallery, neighbours=neighbours, progress=False), *labels)
    assert approximate.mAP == pytest.approx(exact.mAP, abs=0.005)


def test_an_index_that_finds_everything_gives_the_exact_lists(people):
    pytest.importorskip("faiss")
    query, gallery, _ = people
    everyone = FeatureDistances(query, gallery).among_all()
    exact_lists, farthest = exact_neighbours(everyone, 21, 64, 1, False)
    lists, sampled = FaissNeighbours("ivf", lists=4, effort=4)(everyone, 21, 64, 1, False)
    np.testing.assert_array_equal(lists, exact_lists)
    np.testing.assert_array_equal(sampled, farthest)  # the sample contains all of so few images


def test_neighbours_that_were_not_found(people):
    """Short lists, as an approximate index may return, give about the results of a smaller k1."""
    query, gallery, labels = people

    def short(distances, k, memory_mb, threads, progress):
        lists, farthest = exact_neighbours(distances, k, memory_mb, threads, progress)
        lists[:, 15:] = -1
        return lists, farthest

    shortened = rerank(query, gallery, k1=20, neighbours=short, progress=False).dense(slice(0, 60))
    assert np.isfinite(shortened).all()
    lists_of_15 = evaluate_distances(rerank(query, gallery, k1=14, progress=False), *labels)
    result = evaluate_distances(shortened, *labels)
    assert result.mAP == pytest.approx(lists_of_15.mAP, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k1": 0}, "k1 is 0, expected 1 to 500"),
        ({"k1": 501}, "k1 is 501, expected 1 to 500"),
        ({"k1": 20.0}, "k1 is 20.0, expected a whole number"),
        ({"k2": 0}, "k2 is 0, expected 1 to 500"),
        ({"lambda_value": 1.5}, "lambda_value is 1.5, expected 0 to 1"),
        ({"lambda_value": float("nan")}, "lambda_value is nan, expected 0 to 1"),
        ({"memory_mb": 0}, "memory_mb is 0"),
        ({"query_features": np.full((2, 32), np.nan)}, "query_features row 0 holds nan"),
        ({"gallery_features": np.zeros((2, 5))}, "gallery_features has dimension 5, expected 32"),
        ({"neighbours": lambda *_: (np.zeros((560, 3), int), np.ones(560))}, "the neighbour lists have shape"),
        ({"neighbours": lambda *_: (np.full((560, 21), 560), np.ones(560))}, "the neighbour lists hold 560 to 560"),
    ],
)
def test_bad_input_is_one_line(people, change, message):
    arguments = {"query_features": people[0], "gallery_features": people[1], "progress": False, **change}
    with pytest.raises(UserError, match=message):
        rerank(**arguments)


def test_progress_is_shown_unless_it_is_turned_off(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    features = np.random.default_rng(0).standard_normal((9, 4))
    rerank(features[:2], features[2:], k1=3, k2=2, progress=False)
    assert capsys.readouterr().err == ""
    rerank(features[:2], features[2:], k1=3, k2=2)
    shown = capsys.readouterr().err
    assert "nearest neighbours: 100%" in shown
    assert "reciprocal sets: 100%" in shown


def test_bad_index_options():
    pytest.importorskip("faiss")
    with pytest.raises(UserError, match="neighbour index is 'flat', expected 'hnsw' or 'ivf'"):
        FaissNeighbours("flat")
    for effort in (-1, 0):
        with pytest.raises(UserError, match=f"effort is {effort}, expected at least 1"):
            FaissNeighbours("ivf", effort=effort)


def test_without_faiss_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="approximate neighbours need FAISS"):
        FaissNeighbours()


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1.0, 1e36, 1e40, 1e300])
def test_the_scale_of_given_distances_does_not_matter(scale):
    distances = np.random.default_rng(0).random((40, 40))
    distances = (distances + distances.T) * (1 - np.eye(40))
    expected = reference.reranked_distances(distances, 10, 5, 3, 0.3)
    for dtype in [np.float64] + [np.float32] * (1e-35 < scale < 1e38):
        scaled = (distances * scale).astype(dtype)
        found = rerank_distances(scaled[:10, 10:], scaled[:10, :10], scaled[10:, 10:], k1=5, k2=3, progress=False)
        np.testing.assert_allclose(found.dense(slice(0, 10)), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-22, 1e-20, 1e-15, 1e15])
def test_the_scale_of_features_does_not_matter(scale):
    query, gallery = features_of("random", 10, 50, 8, np.random.default_rng(0))
    scaled = [(features * scale).astype(np.float32) for features in (query, gallery)]
    found = rerank(*scaled, k1=5, k2=2, progress=False)
    np.testing.assert_allclose(
        found.dense(slice(0, 10)),
        reference.reranked(*(f.astype(np.float64) / scale for f in scaled), 5, 2, 0.3),
        atol=1e-5,
    )


@pytest.mark.parametrize(("k1", "k2"), [(5, 1), (5, 6), (20, 1), (20, 30)])
def test_more_identical_images_than_a_list_holds(k1, k2):
    rng = np.random.default_rng(0)
    same = np.full((31, 8), 0.1)
    gallery = np.concatenate([same[1:], same[:5] + 0.01 * rng.standard_normal((5, 8)), rng.standard_normal((40, 8))])
    query, gallery = same[:1].astype(np.float32), gallery.astype(np.float32)
    found = rerank(query, gallery, k1=k1, k2=k2, progress=False)
    expected = reference.reranked(query, gallery, k1, k2, 0.3)
    np.testing.assert_allclose(found.exact(np.zeros(75, int), np.arange(75))[None], expected, atol=1e-12)
    assert np.isfinite(expected).all()
