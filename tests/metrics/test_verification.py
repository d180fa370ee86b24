"""Thresholds and rates equal those computed from the sorted list of all pairs."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han_tf.common.errors import UserError
from han_tf.metrics import FeatureDistances, verification, verify
from tests.metrics import metrics_reference as reference
from tests.metrics.test_ranking import cut, problems, random_problem

WANTED = (1, 0.5, 0.1, 0.03, 1e-3)


@settings(max_examples=80, deadline=None)
@given(
    problems(),
    st.booleans(),
    st.tuples(st.integers(1, 12), st.integers(1, 60), st.integers(1, 5)),
    st.sampled_from([2**16, 8, 2]),
    st.sampled_from([(2**12, 2**16), (0, 3), (2**12, 3)]),
    st.integers(1, 2),
)
def test_equals_the_slow_one(problem, from_features, shape, bins, rooms, threads):
    query, gallery, labels = problem
    squared = reference.squared_distances(query, gallery)
    expected = reference.separation(squared, *labels, WANTED)
    with pytest.MonkeyPatch.context() as monkeypatch:
        cut(monkeypatch, *shape)
        monkeypatch.setattr(verification, "BINS", bins)
        monkeypatch.setattr(verification, "VALUES_PER_MB", rooms[0])
        monkeypatch.setattr(verification, "MERGED_FROM", rooms[1])
        source = FeatureDistances(query, gallery) if from_features else squared
        if expected is None:
            with pytest.raises(UserError, match=r"there are no (genuine|impostor) pairs"):
                verify(source, *labels)
            return
        result = verify(source, *labels, wanted_fpr=WANTED, threads=threads)
    squares = (lambda d: d**2) if from_features else (lambda d: d)
    assert (result.genuine, result.impostors) == (expected["genuine"], expected["impostors"])
    assert result.fpr.tolist() == expected["fpr"]
    assert result.tpr.tolist() == expected["tpr"]
    np.testing.assert_allclose(squares(result.thresholds), expected["thresholds"], rtol=1e-12)
    assert result.equal_error_rate == pytest.approx(expected["equal_error_rate"], abs=1e-12)
    assert squares(result.equal_error_threshold) == pytest.approx(expected["equal_error_threshold"], rel=1e-12)


def test_rounding_errors_wider_than_a_bin():
    """Features far from the origin."""
    rng = np.random.default_rng(0)
    query, gallery = (np.float32(14 + rng.standard_normal((n, 64))) for n in (8, 300))
    labels = [rng.integers(0, most, n) for most in (5, 3) for n in (8, 300)]
    source, squared = FeatureDistances(query, gallery), reference.squared_distances(query, gallery)
    everything = slice(0, 8), slice(0, 300)
    fast = source.finish(source.raw(*everything, source.workspace(squared.size)), *everything)
    assert np.abs(fast - squared).max() > np.ptp(squared) / verification.BINS
    rates = np.arange(1, 50) / 50
    expected = reference.separation(squared, *labels, rates)
    result = verify(source, *labels, wanted_fpr=rates)
    np.testing.assert_allclose(result.thresholds**2, expected["thresholds"], rtol=1e-12)
    assert result.tpr.tolist() == expected["tpr"]
    assert result.equal_error_rate == pytest.approx(expected["equal_error_rate"], abs=1e-12)


def test_two_separate_heaps_by_hand():
    # Two genuine pairs at 1 and 2, two impostors at 3 and 4.
    distances = [[1.0, 3.0], [4.0, 2.0]]
    result = verify(distances, [1, 2], [1, 2], [0, 0], [1, 1], wanted_fpr=[0.1, 0.5, 1])
    assert result.thresholds.tolist() == [3.0, 4.0, np.inf]
    assert result.fpr.tolist() == [0, 0.5, 1]
    assert result.tpr.tolist() == [1, 1, 1]
    assert result.equal_error_rate == 0
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["operating_points"][2] == {"wanted_fpr": 1, "threshold": None, "fpr": 1, "tpr": 1}


def test_memory_stays_within_the_budget():
    n_query, n_gallery = 300, 28_000
    rng = np.random.default_rng(0)
    source = FeatureDistances(*(rng.standard_normal((n, 8), np.float32) for n in (n_query, n_gallery)))
    labels = [rng.integers(0, m, n) for m in (300, 4) for n in (n_query, n_gallery)]
    with reference.memory_below(16 * 2**20):
        verify(source, *labels, memory_mb=16, threads=2)
    assert n_query * n_gallery * 4 > 2 * 16 * 2**20


def test_memory_for_many_genuine_pairs():
    n_query, n_gallery = 500, 5000
    rng = np.random.default_rng(0)
    source = FeatureDistances(*(rng.standard_normal((n, 2), np.float32) for n in (n_query, n_gallery)))
    labels = [rng.integers(0, m, n) for m in (2, 4) for n in (n_query, n_gallery)]
    with pytest.raises(UserError, match=r"memory_mb is 16, expected at least 6[0-9] for 5,000 gallery images, 1,2"):
        verify(source, *labels, memory_mb=16)
    with reference.memory_below(70 * 2**20):
        assert verify(source, *labels, memory_mb=70, threads=2).genuine > 500_000


def test_same_digits_for_any_memory_and_threads(monkeypatch):
    query, gallery, labels = random_problem(70, 900, 48, seed=3)
    gallery[100:200] = gallery[300:400]
    source = FeatureDistances(query, gallery)
    results = []
    for rows, columns, stripe, threads in ((70, 900, 16, 1), (70, 900, 16, 2), (33, 101, 7, 3)):
        cut(monkeypatch, rows, columns, stripe)
        results.append(verify(source, *labels, threads=threads).to_dict())
    assert all(result == results[0] for result in results)
    assert results[0]["roc_tpr"] == sorted(results[0]["roc_tpr"])


def test_junk_and_same_camera_pairs_do_not_count():
    #          match  same camera  junk  other
    result = verify([[1.0, 0.0, 0.0, 2.0]], [5], [5, 5, -1, 6], [1], [2, 1, 2, 2])
    assert (result.genuine, result.impostors) == (1, 1)


def test_progress_is_shown_if_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pairs = [[1.0, 3.0], [4.0, 2.0]], [1, 2], [1, 2], [0, 0], [1, 1]
    verify(*pairs)
    assert capsys.readouterr().err == ""
    verify(*pairs, progress=True)
    shown = capsys.readouterr().err
    assert "counting pairs: 100%" in shown
    assert "finding thresholds, pass 1: 100%" in shown


@pytest.mark.parametrize("rates", [[0], [1.1], [0.1, -1], [float("nan")], 0.1])
def test_bad_rates(rates):
    with pytest.raises(UserError, match=r"wanted_fpr is .*expected rates above 0 and at most 1"):
        verify([[1.0, 2.0]], [1], [1, 2], [0], [1, 1], wanted_fpr=rates)


def test_nan_is_found():
    with pytest.raises(UserError, match=r"distances\[0, 1\] is nan"):
        verify([[1.0, np.nan]], [1], [1, 2], [0], [1, 1])


def test_the_equal_error_threshold_is_where_the_rates_meet():
    # 2 of 49 genuine pairs lie behind 2 of 49 impostors; 1 - 47/49 is more than 2/49 in floating point.
    genuine = np.concatenate([np.linspace(0, 1, 47), [6, 7]])
    impostors = np.concatenate([[2, 3], np.linspace(4, 5, 47)])
    labels = [1], np.repeat([1, 2], 49), [0], np.ones(98, int)
    result = verify(np.concatenate([genuine, impostors])[None], *labels)
    assert (result.equal_error_rate, result.equal_error_threshold) == (pytest.approx(2 / 49), 3)


@pytest.mark.parametrize("scale", [1e-315, 1e-41, 1e-37, 1e-30, 1e-10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiny_distances(scale, dtype):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 20), rng.integers(0, 9, 50), np.zeros(20, int), np.ones(50, int)
    distances = rng.random((20, 50)) * (rng.random((20, 50)) < 0.4)
    distances = (100 * scale * distances).astype(dtype)
    expected = reference.separation(distances, *labels, WANTED)
    result = verify(distances, *labels, wanted_fpr=WANTED)
    assert (result.fpr.tolist(), result.tpr.tolist()) == (expected["fpr"], expected["tpr"])
    assert result.thresholds.tolist() == expected["thresholds"]
    assert result.equal_error_rate == pytest.approx(expected["equal_error_rate"], abs=1e-12)


def test_tiny_features():
    query, gallery, labels = random_problem(20, 60, 8, seed=1)
    for scale in (1e-15, 1e-20, 1e-22):
        tiny = [(scale * features).astype(np.float32) for features in (query, gallery)]
        expected = reference.separation(reference.squared_distances(*tiny), *labels, WANTED)
        result = verify(FeatureDistances(*tiny), *labels, wanted_fpr=WANTED)
        assert (result.fpr.tolist(), result.tpr.tolist()) == (expected["fpr"], expected["tpr"])
