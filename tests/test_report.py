"""Reports hold what the metrics say, row by row."""

import json

import numpy as np
import pytest

from han_tf import metrics
from han_tf.errors import UserError
from han_tf.inference.feature_files import FeatureSet
from han_tf.report import COLUMNS, evaluate_features, scalars, table, to_json

PEOPLE = 6
DIMENSION = 8


def normalised(features):
    parts = features.reshape(len(features), 2, -1)
    return (parts / np.linalg.norm(parts, axis=2, keepdims=True)).reshape(features.shape).astype(np.float32)


def draw(rng, pids, camids):
    centres = np.random.default_rng(1).normal(size=(20, DIMENSION))
    features = centres[pids] + rng.normal(size=(len(pids), DIMENSION)) * 1.2
    return FeatureSet(normalised(features), np.array(pids), np.array(camids), np.array([f"{n}" for n in pids]))


@pytest.fixture(scope="module")
def subsets():
    """Query, gallery with distractors (0) and junk (−1), and further boxes of the queries' people."""
    rng = np.random.default_rng(0)
    people = list(range(1, PEOPLE + 1))
    query = draw(rng, people * 2, [1] * PEOPLE + [2] * PEOPLE)
    gallery = draw(
        rng, [pid for pid in people for _ in range(4)] + [0] * 5 + [-1] * 4, [1, 2, 3, 3] * PEOPLE + [1, 2, 3] * 3
    )
    boxes = draw(rng, [pid for pid in people for _ in range(4)], [1, 1, 2, 3] * PEOPLE)
    return query, gallery, boxes


def labels(query, gallery):
    return query.pids, gallery.pids, query.camids, gallery.camids


def row_of(rows, **wanted):
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row["result"]


def assert_same(result, expected):
    assert json.dumps(result.to_dict()) == json.dumps(expected.to_dict())
    np.testing.assert_array_equal(result.topk_indices, expected.topk_indices)


RERANKING = {"k1": 6, "k2": 3, "lambda_value": 0.4}


@pytest.fixture(scope="module")
def rows(subsets):
    return evaluate_features(*subsets, reranked=True, rerank_options=RERANKING)


def test_the_rows(rows):
    assert [(row["feature"], row["query"], row["reranked"]) for row in rows] == [
        ("joint", "single", False),
        ("global", "single", False),
        ("local", "single", False),
        ("joint", "multi", False),
        ("joint", "single", True),
        ("joint", "multi", True),
    ]


@pytest.mark.parametrize("branch", ["joint", "global", "local"])
def test_branches_are_ranked_by_their_own_half(subsets, rows, branch):
    query, gallery, _ = subsets
    part = {"joint": slice(None), "global": slice(0, 4), "local": slice(4, 8)}[branch]
    expected = metrics.evaluate(query.features[:, part], gallery.features[:, part], *labels(query, gallery))
    assert_same(row_of(rows, feature=branch, query="single", reranked=False), expected)


def pooled_by_hand(query, boxes):
    return np.stack(
        [
            boxes.features[(boxes.pids == pid) & (boxes.camids == camid)].mean(axis=0)
            for pid, camid in zip(query.pids, query.camids)
        ]
    )


def test_multi_query_pools_a_persons_boxes_of_one_camera(subsets, rows):
    query, gallery, boxes = subsets
    expected = metrics.evaluate(pooled_by_hand(query, boxes), gallery.features, *labels(query, gallery))
    result = row_of(rows, query="multi", reranked=False)
    np.testing.assert_allclose(result.ap, expected.ap, atol=1e-9)
    np.testing.assert_allclose(result.topk_distances, expected.topk_distances, atol=1e-5)
    single = row_of(rows, feature="joint", query="single", reranked=False)
    assert np.abs(result.topk_distances - single.topk_distances).max() > 0.1


@pytest.mark.parametrize("query_type", ["single", "multi"])
def test_reranking_knows_no_junk(subsets, rows, query_type):
    query, gallery, boxes = subsets
    features = query.features if query_type == "single" else pooled_by_hand(query, boxes).astype(np.float32)
    kept = gallery.where(gallery.pids != -1)
    distances = metrics.rerank(features, kept.features, progress=False, **RERANKING)
    expected = metrics.evaluate_distances(distances, *labels(query, kept))
    result = row_of(rows, query=query_type, reranked=True)
    np.testing.assert_allclose(result.ap, expected.ap, atol=1e-9)
    np.testing.assert_allclose(result.topk_distances, expected.topk_distances, atol=1e-5)


def test_junk_changes_nothing(subsets, rows):
    """Junk that looks exactly like the queries is in no ranking and is nobody's neighbour."""
    query, gallery, boxes = subsets
    junk = FeatureSet(query.features, np.full(len(query.pids), -1), query.camids + 1, query.paths)
    more = FeatureSet(*(np.concatenate(pair) for pair in zip(gallery, junk)))
    for row, other in zip(rows, evaluate_features(query, more, boxes, reranked=True, rerank_options=RERANKING)):
        np.testing.assert_allclose(row["result"].ap, other["result"].ap, atol=1e-9)
        assert not (more.pids[other["result"].topk_indices] == -1).any()
    assert rows[0]["result"].junk == 4


def test_features_of_other_networks_have_no_halves(subsets):
    query, gallery, _ = subsets
    odd = [part._replace(features=part.features[:, :7]) for part in (query, gallery)]
    (row,) = evaluate_features(*odd, branches=False)
    assert row["feature"] == "joint"
    expected = metrics.evaluate(query.features[:, :7], gallery.features[:, :7], *labels(query, gallery))
    assert_same(row["result"], expected)


def test_what_the_metrics_refuse(subsets):
    query, gallery, _ = subsets
    with pytest.raises(UserError, match="dimension"):
        evaluate_features(query, gallery._replace(features=gallery.features[:, :6]), branches=False)
    with pytest.raises(UserError, match="none of the 12 queries has a match"):
        evaluate_features(query._replace(pids=query.pids + 100), gallery)


def test_json(rows):
    report = json.loads(json.dumps(to_json(rows), allow_nan=False))
    assert report["counts"] == {
        "queries": 12,
        "gallery": 4 * PEOPLE + 9,
        "junk": 4,
        "distractors": 5,
        "queries_without_match": 0,
    }
    assert len(report["results"]) == len(rows)
    for row, result in zip(report["results"], rows):
        assert {name: row[name] for name in ("feature", "query", "reranked")} == {
            name: result[name] for name in ("feature", "query", "reranked")
        }
        assert row["mAP"] == result["result"].mAP
        assert row["rank-1"] == result["result"].cmc[0]
        assert row["rank-20"] == result["result"].cmc[19]
        assert row["mAP_trapezoid"] == result["result"].mAP_trapezoid
        np.testing.assert_array_equal(row["cmc"], result["result"].cmc)
        assert len(row["precision_recall"]) == 101
        assert row["camera_pairs"]
    for row in to_json(rows, curves=False)["results"]:
        assert not {"cmc", "precision_recall", "camera_pairs"} & set(row)


def test_table_holds_percentages_and_counts(rows):
    report = to_json(rows)
    head, rule, *lines, counts = table(report).split("\n")
    assert set(rule) == {"-"}
    assert head.split() == [
        "feature",
        "query",
        "re-ranked",
        "rank-1",
        "rank-5",
        "rank-10",
        "rank-20",
        "mAP",
        "mAP",
        "(trapezoid)",
    ]
    assert len(lines) == len(rows)
    for line, row in zip(lines, report["results"]):
        words = line.split()
        assert words[:3] == [row["feature"], row["query"], "yes" if row["reranked"] else "no"]
        assert words[3:] == [f"{100 * row[name]:.1f}" for name in COLUMNS]
        assert len(line) == len(head)
    assert counts == (
        "12 queries, 29 gallery images (5 of them distractors) and 4 junk, not ranked; "
        "0 queries without a match, left out"
    )


def test_scalars_have_names_of_their_own(rows):
    report = to_json(rows)
    numbers = scalars(report)
    prefixes = ["", "global/", "local/", "multi/", "reranked/", "multi/reranked/"]
    assert list(numbers) == [f"{prefix}{name}" for prefix in prefixes for name in ("rank-1", "mAP")]
    for prefix, row in zip(prefixes, report["results"]):
        assert numbers[f"{prefix}rank-1"] == row["rank-1"]
        assert numbers[f"{prefix}mAP"] == row["mAP"]
