"""Ranking equals the slow, obvious reference to the last digit, whatever the block sizes."""

import csv
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han_tf.common.errors import UserError
from han_tf.metrics import (
    FeatureDistances,
    MatrixDistances,
    blocks,
    distractors,
    evaluate,
    evaluate_distances,
    frame_window,
    junk,
    places,
    rerank,
    same_group,
    same_pid_and_camera,
)
from tests.metrics import metrics_reference as reference


@st.composite
def problems(draw):
    """Features with ties and doubles, and labels with junk, distractors and people who are in no gallery."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_query, n_gallery = draw(st.integers(1, 12)), draw(st.integers(1, 60))
    dimension = draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["whole", "doubles", "close", "plain"]))
    if kind == "whole":
        query, gallery = rng.integers(0, 3, (n_query, dimension)), rng.integers(0, 3, (n_gallery, dimension))
    elif kind == "doubles":
        query = rng.standard_normal((n_query, dimension))
        gallery = query[rng.integers(0, n_query, n_gallery)]
    elif kind == "close":
        # Closer together than float32 products can distinguish.
        query = np.full((n_query, dimension), 0.1)
        gallery = 0.1 + 1e-7 * rng.integers(0, 3, (n_gallery, 1)) * np.ones(dimension)
    else:
        query = rng.standard_normal((n_query, dimension))
        gallery = rng.standard_normal((n_gallery, dimension))
    people = draw(st.integers(1, 6))
    labels = (
        rng.integers(-1, people + 2, n_query),
        rng.integers(-1, people, n_gallery),
        rng.integers(0, 3, n_query),
        rng.integers(0, 3, n_gallery),
    )
    return query.astype(np.float32), gallery.astype(np.float32), labels


def cut(monkeypatch, rows, columns, stripe):
    """Sets the sizes of blocks and stripes."""

    def shape(source, memory_mb, threads):
        return min(rows, source.shape[0]), min(columns, source.shape[1])

    monkeypatch.setattr(blocks, "block_shape", shape)
    monkeypatch.setattr(blocks, "STRIPE_ROWS", stripe)


def random_problem(n_query, n_gallery, dimension, seed=0, people=20):
    """Clustered unit features of several people, with labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((people, dimension))
    pids = rng.integers(0, people, n_query + n_gallery)
    features = centres[pids] + 1.5 * rng.standard_normal((len(pids), dimension))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    camids = rng.integers(0, 4, len(pids))
    labels = pids[:n_query], pids[n_query:], camids[:n_query], camids[n_query:]
    return features[:n_query], features[n_query:], labels


@settings(max_examples=120, deadline=None)
@given(
    problems(),
    st.sampled_from(["features", "float32", "float64", "whole numbers"]),
    st.tuples(st.integers(1, 12), st.integers(1, 60), st.integers(1, 5)),
    st.sampled_from([(0, 0, 5), (1000, 0, 5), (32, 4096, 8192)]),
    st.integers(1, 2),
)
def test_equals_the_slow_ranking(problem, kind, shape, thresholds, threads):
    query, gallery, labels = problem
    squared = reference.squared_distances(query, gallery)
    if kind == "features":
        distances, slow_distances = FeatureDistances(query, gallery), squared
    else:
        dtype = {"whole numbers": np.int16}.get(kind) or np.dtype(kind)
        distances = slow_distances = (10 * squared).astype(dtype)
    with pytest.MonkeyPatch.context() as monkeypatch:
        cut(monkeypatch, *shape)
        monkeypatch.setattr(places, "FEW_MATCHES", thresholds[0])
        monkeypatch.setattr(places, "FEW_VALUES", thresholds[1])
        monkeypatch.setattr(places, "SETTLED_VALUES", thresholds[2])
        expected = reference.scores(slow_distances, *labels, max_rank=7)
        if expected is None:
            with pytest.raises(UserError, match="has a match in the gallery"):
                evaluate_distances(distances, *labels)
            return
        result = evaluate_distances(distances, *labels, topk=4, max_rank=7, threads=threads)
    assert result.cmc.tolist() == expected["cmc"]
    assert result.mAP == expected["mAP"]
    assert result.mINP == expected["mINP"]
    assert result.mAP_trapezoid == pytest.approx(expected["mAP_trapezoid"], rel=1e-13)
    assert result.first_hit.tolist() == expected["first_hit"]
    assert result.matches.tolist() == expected["matches"]
    assert result.queries_without_match == expected["queries_without_match"]
    assert [[i for i in row if i >= 0] for row in result.topk_indices.tolist()] == [
        images[:4] for images in expected["lists"]
    ]
    for row, images, values in zip(result.topk_distances, expected["lists"], slow_distances):
        shown = np.sqrt(values[images[:4]]) if kind == "features" else values[images[:4]]
        np.testing.assert_allclose(row[np.isfinite(row)], shown, rtol=1e-12, atol=1e-300)


@settings(max_examples=30, deadline=None)
@given(
    problems(),
    st.tuples(st.integers(1, 12), st.integers(1, 60), st.integers(1, 5)),
    st.sampled_from([(0, 0), (1000, 0), (32, 4096)]),
)
def test_camera_pairs_equal_separate_galleries(problem, shape, thresholds):
    query, gallery, (query_pids, gallery_pids, query_camids, gallery_camids) = problem
    squared = reference.squared_distances(query, gallery)
    labels = query_pids, gallery_pids, query_camids, gallery_camids
    if reference.scores(squared, *labels) is None:
        return
    with pytest.MonkeyPatch.context() as monkeypatch:
        cut(monkeypatch, *shape)
        monkeypatch.setattr(places, "FEW_MATCHES", thresholds[0])
        monkeypatch.setattr(places, "FEW_VALUES", thresholds[1])
        result = evaluate(query, gallery, *labels)
        without = evaluate(query, gallery, *labels, camera_pairs=False)
    assert without.to_dict() == {**result.to_dict(), "camera_pairs": []}
    found = {pair[:2]: pair for pair in result.camera_pairs}
    for query_camid in range(3):
        mine = query_camids == query_camid
        for gallery_camid in range(3):
            expected = reference.scores(
                squared[mine],
                query_pids[mine],
                gallery_pids,
                query_camids[mine],
                gallery_camids,
                only_camid=gallery_camid,
            )
            if expected is None:
                assert (query_camid, gallery_camid) not in found
            else:
                pair = found[query_camid, gallery_camid]
                assert pair.rank1 == expected["cmc"][0]
                assert pair.mAP == expected["mAP"]
                assert pair.queries == mine.sum() - expected["queries_without_match"]


def test_average_precisions_by_hand():
    # One query; the ranked list is hit, miss, hit, miss, miss, hit.
    distances = np.arange(6.0)[None]
    pids = np.array([7, 1, 7, 2, 3, 7])
    result = evaluate_distances(distances, [7], pids, [0], np.ones(6, int))
    assert result.mAP == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)
    # Precision before and at the three hits: 1 → 1/1, 1/2 → 2/3, 2/5 → 3/6.
    assert result.mAP_trapezoid == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3)
    assert result.mINP == 3 / 6
    assert result.first_hit.tolist() == [1]
    assert result.precision_recall[0] == 1
    assert result.precision_recall[[33, 34, 66, 67, 100]] == pytest.approx([1, 2 / 3, 2 / 3, 1 / 2, 1 / 2])


def test_a_late_first_hit_by_hand():
    result = evaluate_distances(np.arange(4.0)[None], [7], [1, 2, 3, 7], [0], [1, 1, 1, 1], max_rank=5)
    assert result.mAP == 1 / 4
    # Three misses before the hit: precision 0 → 1/4.
    assert result.mAP_trapezoid == 1 / 8
    assert result.cmc.tolist() == [0, 0, 0, 1, 1]


def test_junk_is_skipped_and_distractors_count_as_mistakes():
    #        junk  distractor  same camera  match
    pids = np.array([-1, 0, 5, 5])
    result = evaluate_distances([[0.1, 0.2, 0.3, 0.4]], [5], pids, [2], [1, 1, 2, 1])
    assert result.first_hit.tolist() == [2]
    assert (result.junk, result.distractors, result.gallery) == (1, 1, 4)
    assert result.topk_indices.tolist() == [[1, 3, -1, -1]]


def test_identical_gallery_images_tie_exactly_wherever_they_stand():
    query, gallery, labels = random_problem(16, 300, 257)
    double = gallery[np.random.default_rng(1).permutation(np.repeat(np.arange(300), 7))]
    distances = FeatureDistances(query, double)
    rows = np.repeat(np.arange(16), len(double))
    exact = distances.exact(rows, np.tile(np.arange(len(double)), 16)).reshape(16, -1)
    assert len(np.unique(exact[0])) == 300
    result = evaluate(query, double, labels[0], np.full(len(double), labels[0][0]), labels[2], np.full(len(double), 9))
    for indices, values in zip(result.topk_indices, result.topk_distances):
        assert indices.tolist() == np.lexsort((np.arange(len(double)), exact[0]))[:10].tolist()
        assert (np.diff(values) == 0).sum() >= 8  # seven times the nearest, then the next
        break


@pytest.mark.parametrize("kind", ["features", "matrix"])
def test_same_digits_for_any_memory_and_threads(kind, monkeypatch):
    query, gallery, labels = random_problem(70, 900, 48, seed=3)
    gallery[100:200] = gallery[300:400]
    source = (
        FeatureDistances(query, gallery) if kind == "features" else FeatureDistances(query, gallery).dense(slice(70))
    )
    results = []
    for rows, columns, stripe, threads in ((70, 900, 16, 1), (70, 900, 16, 2), (33, 101, 7, 3), (1, 900, 1, 2)):
        cut(monkeypatch, rows, columns, stripe)
        result = evaluate_distances(source, *labels, threads=threads)
        results.append((result.to_dict(), result.topk_indices.tolist(), result.topk_distances.tolist()))
    assert all(result == results[0] for result in results)


def test_margins_that_prove_too_small_are_not_trusted(monkeypatch):
    query, gallery, labels = random_problem(40, 400, 200)
    expected = reference.scores(reference.squared_distances(query, gallery), *labels)
    margins = FeatureDistances.margins

    def hopeful(source, rows, columns, careful=False):
        return margins(source, rows, columns, True) * (1 if careful else 1e-9)

    monkeypatch.setattr(FeatureDistances, "margins", hopeful)
    result = evaluate(query, gallery, *labels, topk=5)
    assert result.mAP == expected["mAP"]
    assert result.topk_indices.tolist() == [images[:5] for images in expected["lists"]]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_features_of_other_dtypes_are_ranked_by_their_own_values(dtype):
    query, gallery, labels = random_problem(20, 200, 12)
    query, gallery = (40 * query).astype(dtype), (40 * gallery).astype(dtype)
    expected = reference.scores(reference.squared_distances(query, gallery), *labels)
    assert evaluate(query, gallery, *labels).mAP == expected["mAP"]


def test_views_and_memory_maps_are_read_as_they_are(tmp_path):
    query, gallery, labels = random_problem(20, 200, 16)
    expected = evaluate(query[:, 8:].copy(), gallery[:, 8:].copy(), *labels).to_dict()
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    assert evaluate(query[:, 8:], mapped[:, 8:], *labels).to_dict() == expected
    np.save(tmp_path / "distances.npy", reference.squared_distances(query[:, 8:], gallery[:, 8:]))
    mapped = np.load(tmp_path / "distances.npy", mmap_mode="r")
    assert evaluate_distances(mapped, *labels).to_dict() == expected


def test_a_given_matrix_is_not_changed():
    query, gallery, labels = random_problem(20, 200, 16)
    distances = reference.squared_distances(query, gallery)
    before = distances.copy()
    evaluate_distances(distances, *labels)
    np.testing.assert_array_equal(distances, before)


@pytest.mark.parametrize("kind", ["features", "matrix"])
def test_memory_stays_within_the_budget(kind, tmp_path):
    n_query, n_gallery = 300, 40_000
    rng = np.random.default_rng(0)
    labels = (
        rng.integers(0, 300, n_query),
        rng.integers(0, 300, n_gallery),
        rng.integers(0, 4, n_query),
        rng.integers(0, 4, n_gallery),
    )
    if kind == "features":
        source = FeatureDistances(
            rng.standard_normal((n_query, 8), np.float32), rng.standard_normal((n_gallery, 8), np.float32)
        )
    else:
        values = np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.float32, (n_query, n_gallery))
        for row in values:
            row[:] = rng.random(n_gallery, np.float32)
        source = MatrixDistances(values)
    assert n_query * n_gallery * 4 > 2 * 16 * 2**20
    with reference.memory_below(16 * 2**20):
        evaluate_distances(source, *labels, memory_mb=16, threads=2)


@pytest.mark.parametrize("people", [20, 400])
def test_a_collapsed_network_costs_each_pair_once(people, monkeypatch):
    """If all features are the same, every gallery image ties with every match."""
    n_query, n_gallery = 8, 5000
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, most, n) for most in (people, 4) for n in (n_query, n_gallery)]
    pairs = []
    exact = FeatureDistances.exact
    source = FeatureDistances(np.ones((n_query, 8), np.float32), np.ones((n_gallery, 8), np.float32))
    monkeypatch.setattr(FeatureDistances, "exact", lambda *arguments: pairs.append(exact(*arguments)) or pairs[-1])
    with reference.memory_below(16 * 2**20):
        result = evaluate_distances(source, *labels, topk=0, memory_mb=16, threads=2)
    assert sum(map(len, pairs)) <= n_query * n_gallery + n_query  # one more per query checks the error bound
    expected = reference.scores(np.zeros(source.shape), *labels)
    assert result.cmc.tolist() == expected["cmc"]
    assert result.mAP == expected["mAP"]
    assert result.mINP == expected["mINP"]


def test_a_budget_too_small_for_the_labels_is_refused():
    source = FeatureDistances(np.ones((1, 1), np.float32), np.ones((400_000, 1), np.float32))
    strangers, camids = ([np.full(n, label) for n, label in zip(source.shape, pair)] for pair in ((1, 2), (0, 0)))
    with pytest.raises(UserError, match=r"memory_mb is 16, expected at least 41 for 400,000 gallery images$"):
        evaluate_distances(source, *strangers, *camids, topk=0, memory_mb=16)
    with pytest.raises(UserError, match=r"memory_mb is 16, expected at least 41 for 400,001 gallery images$"):
        rerank(source.query, source.gallery, memory_mb=16)
    with pytest.raises(UserError, match="at least 117 for 400,000 gallery images, 400,000 matches and top-k lists of"):
        evaluate_distances(source, *camids, *camids, memory_mb=16)
    with pytest.raises(UserError, match="0 matches and top-k lists of 400,000 images"):
        evaluate_distances(source, *strangers, *camids, topk=400_000, memory_mb=16)


def test_memory_for_features_that_are_converted():
    n_query, n_gallery = 8, 4000
    rng = np.random.default_rng(0)
    source = FeatureDistances(*(rng.random((n, 2048), np.float32).astype(np.float16) for n in (n_query, n_gallery)))
    labels = [rng.integers(0, most, n) for most in (20, 4) for n in (n_query, n_gallery)]
    assert source.gallery.size * 4 > 16 * 2**20  # as float32
    with reference.memory_below(16 * 2**20):
        evaluate_distances(source, *labels, memory_mb=16, threads=2)


def test_memory_for_long_lists_of_left_out_images():
    """All lists together would take more than the budget."""
    n_query, n_gallery = 256, 20_000
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, most, n) for most in (200, 4) for n in (n_query, n_gallery)]
    source = FeatureDistances(*(rng.standard_normal((n, 4), np.float32) for n in (n_query, n_gallery)))
    half = np.arange(0, n_gallery, 2)
    assert n_query * half.nbytes > 16 * 2**20
    with reference.memory_below(16 * 2**20):
        evaluate_distances(source, *labels, excluders=[lambda query: half + query % 2], topk=0, memory_mb=16, threads=2)


def test_memory_for_many_matches():
    """Half the gallery matches each query."""
    n_query, n_gallery, budget = 20, 12_000, 32
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, most, n) for most in (2, 4) for n in (n_query, n_gallery)]
    source = FeatureDistances(*(rng.standard_normal((n, 8), np.float32) for n in (n_query, n_gallery)))
    with pytest.raises(UserError, match=r"memory_mb is 16, expected at least 2[0-9] for 12,000 gallery images, 1"):
        evaluate_distances(source, *labels, memory_mb=16)
    with reference.memory_below(budget * 2**20):
        evaluate_distances(source, *labels, memory_mb=budget, threads=2)


def test_memory_for_many_queries():
    """Their precision-recall curves would take three times the budget."""
    n_query, n_gallery = 60_000, 100
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, most, n) for most in (100, 4) for n in (n_query, n_gallery)]
    source = FeatureDistances(*(rng.standard_normal((n, 2), np.float32) for n in (n_query, n_gallery)))
    with reference.memory_below(32 * 2**20):
        result = evaluate_distances(source, *labels, topk=0, camera_pairs=False, memory_mb=32, threads=2)
    assert result.precision_recall[0] >= result.precision_recall[-1] > 0


def test_many_cameras():
    """The camera of each image may be its own."""
    query, gallery, (query_pids, gallery_pids, *_) = random_problem(30, 200, 8)
    camids = np.arange(30), 1000 + np.arange(200) // 3
    pairs = evaluate(query, gallery, query_pids, gallery_pids, *camids).camera_pairs
    for query_camid, gallery_camid, queries, rank1, mean_ap in pairs:
        of_camera = camids[1] == gallery_camid
        mine = [[query[query_camid]], gallery[of_camera], [query_pids[query_camid]], gallery_pids[of_camera]]
        alone = evaluate(*mine, [0], np.ones(of_camera.sum(), int))
        assert (queries, rank1, mean_ap) == (1, alone.cmc[0], alone.mAP)
    expected = {(q, g) for q, pid in enumerate(query_pids) for g in camids[1][gallery_pids == pid]}
    assert [(pair.query_camid, pair.gallery_camid) for pair in pairs] == sorted(expected)


def test_excluders_by_hand():
    gallery = {"groups": [1, 1, 2, 1], "frames": [10, 14, 10, 30]}
    window = frame_window([1, 2], gallery["groups"], [12, 12], gallery["frames"], window=2)
    assert np.flatnonzero(window(0)).tolist() == [0, 1]
    assert np.flatnonzero(window(1)).tolist() == [2]
    same_frame = frame_window([1], gallery["groups"], [10], gallery["frames"], window=0)
    assert np.flatnonzero(same_frame(0)).tolist() == [0]
    assert np.flatnonzero(same_group([1, 2], gallery["groups"])(0)).tolist() == [0, 1, 3]
    assert junk([3, -1, 0, -1])(0).tolist() == [1, 3]
    assert distractors([3, 5], [3, -1, 0, 5, 4])(0).tolist() == [1, 2, 4]
    standard = same_pid_and_camera([5], [5, 5, 6, 5], [1], [1, 2, 1, 1])
    assert standard(0).tolist() == [0, 3]


@pytest.mark.parametrize("as_mask", [True, False])
@pytest.mark.parametrize("kept", [0, 10_000])
def test_own_excluders(as_mask, kept, monkeypatch):
    query, gallery, labels = random_problem(25, 120, 6)
    monkeypatch.setattr("han_tf.metrics.truth.KEPT_EXCLUDED", kept)
    cut(monkeypatch, 10, 50, 3)

    def odd_ones(number):
        mask = (np.arange(120) + number) % 2 == 1
        return mask if as_mask else np.flatnonzero(mask)

    result = evaluate(query, gallery, *labels, excluders=[odd_ones], topk=3)
    squared = reference.squared_distances(query, gallery)
    for number in range(25):
        images = [g for g in np.argsort(squared[number], kind="stable") if (g + number) % 2 == 0]
        hits = [labels[1][g] == labels[0][number] for g in images]
        assert result.topk_indices[number].tolist() == images[:3]
        assert result.ap[number] == reference.average_precision(hits)


def test_report_and_files(tmp_path):
    query, gallery, labels = random_problem(12, 80, 8)
    labels[0][3] = 99  # in no gallery
    result = evaluate(query, gallery, *labels, topk=3)
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["rank-5"] == result.cmc[4] == result.rank(5)
    assert len(report["cmc"]) == 50
    assert report["queries_without_match"] == 1
    assert len(report["camera_pairs"]) == len(result.camera_pairs)

    result.save_npz(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["ap"], result.ap)
        np.testing.assert_array_equal(arrays["topk_indices"], result.topk_indices)
        assert not {"query_names", "topk_names"} & set(arrays)

    names = [f"q{i}.jpg" for i in range(12)], [f"g{i}.jpg" for i in range(80)]
    result.save_npz(tmp_path / "named.npz", *names)
    with np.load(tmp_path / "named.npz", allow_pickle=False) as arrays:
        assert arrays["query_names"].tolist() == names[0]
        assert arrays["topk_names"].tolist() == [[names[1][i] for i in row] for row in result.topk_indices]
        np.testing.assert_array_equal(arrays["topk_distances"], result.topk_distances)
    with pytest.raises(UserError, match="gallery_names has 1 entries, expected 80"):
        result.save_npz(tmp_path / "named.npz", gallery_names=["a"])

    result.save_csv(tmp_path / "r.csv", *names)
    with open(tmp_path / "r.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["query"] for line in lines] == names[0]
    assert float(lines[0]["ap"]) == result.ap[0]
    assert lines[0]["image_1"] == names[1][result.topk_indices[0, 0]]
    assert float(lines[0]["distance_3"]) == result.topk_distances[0, 2]
    assert (lines[3]["ap"], lines[3]["first_hit"], lines[3]["matches"]) == ("", "", "0")
    with pytest.raises(UserError, match="query_names has 2 entries, expected 12"):
        result.save_csv(tmp_path / "r.csv", ["a", "b"])


def test_files_hold_nothing_where_a_list_ends_and_any_name(tmp_path):
    """File names may contain bytes that are not valid UTF-8, which Python represents as lone surrogates."""
    names = ["query\udcff,1.jpg"], ["ä.jpg", "\udc80.jpg", "junk.jpg"]
    result = evaluate_distances([[0.1, 0.2, 0.0]], [1], [1, 2, -1], [0], [1, 1, 1], topk=3)
    result.save_npz(tmp_path / "r.npz", *names)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        assert arrays["query_names"].tolist() == names[0]
        assert arrays["topk_names"].tolist() == [["ä.jpg", "\udc80.jpg", ""]]
    result.save_csv(tmp_path / "r.csv", *names)
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as stream:
        (line,) = csv.DictReader(stream)
    assert line["query"] == "query\\udcff,1.jpg"
    assert [line[f"image_{place}"] for place in (1, 2, 3)] == ["ä.jpg", "\\udc80.jpg", ""]
    assert line["distance_3"] == ""


def test_means_leave_out_queries_without_a_match():
    distances = [[0.0, 1.0], [0.0, 1.0]]
    result = evaluate_distances(distances, [1, 2], [1, 3], [0, 0], [1, 1])
    assert (result.mAP, result.cmc[0], result.queries_without_match) == (1.0, 1.0, 1)
    assert math.isnan(result.ap[1])
    assert result.first_hit.tolist() == [1, 0]


QUERY, GALLERY, LABELS = random_problem(4, 9, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_features": QUERY[0]}, r"query_features has shape \[3\], expected \[images, dimension\]"),
        ({"query_features": QUERY[:0]}, "query_features is empty"),
        ({"gallery_features": GALLERY[:0]}, "gallery_features is empty"),
        ({"gallery_features": GALLERY[:, :2]}, "gallery_features has dimension 2, expected 3"),
        ({"query_features": QUERY.astype(str)}, "query_features has dtype"),
        ({"query_features": np.where(QUERY[2, 1] == QUERY, np.nan, QUERY)}, "query_features row 2 holds nan"),
        ({"gallery_features": np.where(GALLERY[5, 0] == GALLERY, np.inf, GALLERY)}, "row 5 holds inf"),
        ({"gallery_features": GALLERY * np.float32(1e30)}, "row 0 holds a squared norm of"),
        ({"query_pids": LABELS[0][:3]}, "query_pids has 3 entries, expected 4"),
        ({"gallery_pids": LABELS[1].astype(float)}, "gallery_pids has dtype float64, expected integers"),
        ({"gallery_camids": None}, "gallery_camids is missing"),
        ({"query_camids": np.array([0, -1, 0, 0])}, "query_camids entry 1 is -1"),
        ({"topk": -1}, "topk is -1, expected at least 0"),
        ({"max_rank": 0}, "max_rank is 0, expected at least 1"),
        ({"memory_mb": 1}, "memory_mb is 1, expected at least"),
        ({"memory_mb": 64.5}, "memory_mb is 64.5, expected a whole number"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
        ({"query_pids": np.full(4, 77)}, "none of the 4 queries has a match"),
        ({"excluders": lambda query: [0]}, r"excluders is <function .* expected a sequence of functions"),
        ({"excluders": [None]}, r"excluders is \[None\]"),
        ({"excluders": [lambda query: [0, 9]]}, "an excluder returned index 9 for query 0, expected 0 to 8"),
        ({"excluders": [lambda query: [0, -1]]}, "an excluder returned index -1"),
        ({"excluders": [lambda query: np.zeros(3, bool)]}, r"an excluder returned bool \[3\]"),
    ],
)
def test_bad_input_is_one_line(change, message):
    arguments = {"query_features": QUERY, "gallery_features": GALLERY, "threads": 1}
    arguments |= dict(zip(("query_pids", "gallery_pids", "query_camids", "gallery_camids"), LABELS))
    evaluate(**arguments)
    with pytest.raises(UserError, match=message) as error:
        evaluate(**{**arguments, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros(4), r"distances has shape \[4\]"),
        (np.zeros((4, 0)), r"distances has shape \[4, 0\]"),
        (np.zeros((4, 9), complex), "distances has dtype complex128"),
        (np.where(np.arange(36).reshape(4, 9) == 21, np.nan, 1.0), r"distances\[2, 3\] is nan"),
        (np.where(np.arange(36).reshape(4, 9) == 35, -np.inf, 1.0), r"distances\[3, 8\] is -inf"),
        (np.zeros((3, 9)), "query_pids has 4 entries, expected 3"),
    ],
)
def test_bad_distances_are_one_line(distances, message):
    with pytest.raises(UserError, match=message):
        evaluate_distances(distances, *LABELS)


def test_rank_beyond_the_curve():
    result = evaluate(QUERY, GALLERY, *LABELS, max_rank=5)
    assert "rank-5" in result.to_dict()
    assert "rank-10" not in result.to_dict()
    with pytest.raises(UserError, match="rank is 6, expected 1 to 5"):
        result.rank(6)


def test_progress_is_shown_if_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    evaluate(QUERY, GALLERY, *LABELS)
    assert capsys.readouterr().err == ""
    evaluate(QUERY, GALLERY, *LABELS, progress=True)
    assert "ranking: 100%" in capsys.readouterr().err


def test_frame_window_refuses_nonsense():
    with pytest.raises(UserError, match="window is -1"):
        frame_window([1], [1], [1], [1], -1)
    with pytest.raises(UserError, match="gallery_frames has 1 entries, expected 2"):
        frame_window([1], [1, 1], [1], [1], 1)
    with pytest.raises(UserError, match=r"window is 1\.5, expected a whole number"):
        frame_window([1], [1], [1], [1], 1.5)


def test_frame_numbers_at_the_ends_of_their_range():
    least, most = -(2**63), 2**63 - 1
    frames = [least, least + 10, -1, 0, most - 10, most]
    for frame in frames:
        near = frame_window([1], [1] * 6, [frame], frames, np.int64(10))(0)
        assert near.tolist() == [abs(other - frame) <= 10 for other in frames]


@pytest.mark.parametrize("name", ["query_pids", "gallery_pids", "query_camids", "gallery_camids"])
def test_labels_beyond_int64_are_refused(name):
    labels = {"query_pids": [1], "gallery_pids": [1, 2], "query_camids": [0], "gallery_camids": [1, 1]}
    labels[name] = np.array([*labels[name][:-1], 2**64 - 1], np.uint64)  # -1, junk, in 64 bits
    with pytest.raises(UserError, match=f"{name} hold {2**64 - 1}, expected integers of at most {2**63 - 1}"):
        evaluate_distances(np.ones((1, 2)), **labels)
