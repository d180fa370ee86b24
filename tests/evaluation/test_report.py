"""Reports hold the results of the metrics, row by row."""

import json
import re

import numpy as np
import pytest

from han_tf import metrics
from han_tf.common.errors import UserError
from han_tf.evaluation.scoring import METHODS, evaluate_features, scalars, score, to_json
from han_tf.evaluation.tables import COLUMNS, camera_table, row_name, table, verification_table
from han_tf.features.archives import FeatureSet

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


def row_of(rows, methods=(), **wanted):
    wanted = {**{name: name in methods for name in METHODS}, **wanted}
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row["result"]


def assert_same(result, expected):
    assert json.dumps(result.to_dict()) == json.dumps(expected.to_dict())
    np.testing.assert_array_equal(result.topk_indices, expected.topk_indices)


BRANCHES = ("global", "local")
SETTINGS = {
    "augmented": {"neighbours": 2, "alpha": 1.5},
    "expanded": {"neighbours": 3, "alpha": 0.0},
    "reranked": {"k1": 6, "k2": 3, "lambda_value": 0.4},
}
RATES = (0.5, 0.1, 0.001)


@pytest.fixture(scope="module")
def rows(subsets):
    return evaluate_features(*subsets, branches=BRANCHES, **SETTINGS, wanted_fpr=RATES)


@pytest.fixture(scope="module")
def report(rows):
    """The report as read from a file."""
    return json.loads(json.dumps({"methods": SETTINGS, **to_json(rows)}, allow_nan=False))


def names(rows):
    return [(row["feature"], row["query"], *(name for name in METHODS if row[name])) for row in rows]


def test_the_rows(rows):
    assert names(rows) == [
        ("joint", "single"),
        ("global", "single"),
        ("local", "single"),
        ("joint", "multi"),
        ("joint", "single", "augmented"),
        ("joint", "multi", "augmented"),
        ("joint", "single", "expanded"),
        ("joint", "multi", "expanded"),
        ("joint", "single", "reranked"),
        ("joint", "multi", "reranked"),
        ("joint", "single", "augmented", "expanded", "reranked"),
        ("joint", "multi", "augmented", "expanded", "reranked"),
    ]


@pytest.mark.parametrize(
    ("wanted", "combinations"),
    [
        ((), []),
        (("expanded",), [("expanded",)]),
        (("reranked", "expanded"), [("expanded",), ("reranked",), ("expanded", "reranked")]),
    ],
)
def test_each_method_alone_and_all_together(subsets, wanted, combinations):
    query, gallery, _ = subsets
    rows = evaluate_features(query, gallery, branches=BRANCHES, **{name: SETTINGS[name] for name in wanted})
    plain = [("joint", "single"), ("global", "single"), ("local", "single")]
    assert names(rows) == plain + [("joint", "single", *combination) for combination in combinations]
    assert not any("verification" in row for row in rows)


@pytest.mark.parametrize("branch", ["joint", "global", "local"])
def test_branches_are_ranked_by_their_own_half(subsets, rows, branch):
    query, gallery, _ = subsets
    part = {"joint": slice(None), "global": slice(0, 4), "local": slice(4, 8)}[branch]
    expected = metrics.evaluate(query.features[:, part], gallery.features[:, part], *labels(query, gallery))
    assert_same(row_of(rows, feature=branch, query="single"), expected)


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
    result = row_of(rows, query="multi")
    np.testing.assert_allclose(result.ap, expected.ap, atol=1e-9)
    np.testing.assert_allclose(result.topk_distances, expected.topk_distances, atol=1e-5)
    single = row_of(rows, feature="joint", query="single")
    assert np.abs(result.topk_distances - single.topk_distances).max() > 0.1


def test_queries_without_multi_query_boxes_are_counted(subsets):
    query, gallery, boxes = subsets
    few = boxes.where(boxes.camids == 1)
    report = to_json(evaluate_features(query, gallery, few))
    assert report["counts"]["queries_without_multi_query"] == (query.camids == 2).sum() == PEOPLE
    assert table(report).endswith(f"\nmulti: {PEOPLE} queries have no further images and are used as they are")
    with pytest.raises(UserError, match=f"none of the {2 * PEOPLE} queries has a multi-query image, expected images"):
        evaluate_features(query, gallery, boxes.where(boxes.camids == 3))


COMBINATIONS = [("augmented",), ("expanded",), ("reranked",), tuple(METHODS)]


@pytest.mark.parametrize("query_type", ["single", "multi"])
@pytest.mark.parametrize("methods", COMBINATIONS)
def test_methods_are_the_librarys_without_junk(subsets, rows, methods, query_type):
    query, gallery, boxes = subsets
    features = query.features if query_type == "single" else pooled_by_hand(query, boxes).astype(np.float32)
    kept = gallery.where(gallery.pids != -1)
    images = kept.features
    if "augmented" in methods:
        images = metrics.database_augmentation(images, **SETTINGS["augmented"], parts=2)
    if "expanded" in methods:
        # Means are not of unit norm.
        features = normalised(features) if query_type == "multi" else features
        features = metrics.query_expansion(features, images, **SETTINGS["expanded"], parts=2)
    if "reranked" in methods:
        distances = metrics.rerank(features, images, progress=False, **SETTINGS["reranked"])
    else:
        distances = metrics.FeatureDistances(features, images)
    expected = metrics.evaluate_distances(distances, *labels(query, kept))
    result = row_of(rows, methods, query=query_type)
    np.testing.assert_allclose(result.ap, expected.ap, atol=1e-9)
    np.testing.assert_allclose(result.topk_distances, expected.topk_distances, atol=1e-5)
    assert np.abs(result.topk_distances - row_of(rows, feature="joint", query=query_type).topk_distances).max() > 1e-2


def test_verification_is_the_librarys(subsets, rows):
    """Every row has the same pairs, without junk."""
    query, gallery, _ = subsets
    expected = metrics.verify(
        metrics.FeatureDistances(query.features, gallery.features), *labels(query, gallery), wanted_fpr=RATES
    )
    assert rows[0]["verification"].to_dict() == expected.to_dict()
    assert {(row["verification"].genuine, row["verification"].impostors) for row in rows} == {
        (expected.genuine, expected.impostors)
    }


def test_given_distances(subsets, rows):
    query, gallery, _ = subsets
    distances = np.linalg.norm(query.features[:, None].astype(float) - gallery.features, axis=2)
    row = score(metrics.MatrixDistances(distances), query, gallery, "distances", topk=4)
    assert names([row]) == [("distances", "single")]
    np.testing.assert_allclose(row["result"].ap, rows[0]["result"].ap, atol=1e-9)
    np.testing.assert_array_equal(row["result"].topk_indices, rows[0]["result"].topk_indices[:, :4])


def test_junk_changes_nothing(subsets, rows):
    """Junk that equals the queries is in no ranking and is not used as a neighbour."""
    query, gallery, boxes = subsets
    junk = FeatureSet(query.features, np.full(len(query.pids), -1), query.camids + 1, query.paths)
    more = FeatureSet(*(np.concatenate(pair) for pair in zip(gallery, junk)))
    for row, other in zip(rows, evaluate_features(query, more, boxes, branches=BRANCHES, **SETTINGS)):
        np.testing.assert_allclose(row["result"].ap, other["result"].ap, atol=1e-9)
        assert not (more.pids[other["result"].topk_indices] == -1).any()
    assert rows[0]["result"].junk == 4


def test_features_of_other_networks_have_no_halves(subsets):
    query, gallery, _ = subsets
    odd = [part._replace(features=part.features[:, :7]) for part in (query, gallery)]
    (row,) = evaluate_features(*odd)
    assert row["feature"] == "joint"
    expected = metrics.evaluate(query.features[:, :7], gallery.features[:, :7], *labels(query, gallery))
    assert_same(row["result"], expected)


def test_a_gallery_without_junk_is_not_copied(subsets, monkeypatch):
    """Nor is a gallery whose junk comes first, as in Market-1501."""
    query, gallery, _ = subsets
    seen = []
    rerank = metrics.rerank
    monkeypatch.setattr(
        "han_tf.evaluation.scoring.rerank", lambda q, g, **options: seen.append(g) or rerank(q, g, **options)
    )
    order = np.argsort(gallery.pids, kind="stable")
    for subset in (gallery.where(gallery.pids != -1), gallery.where(order)):
        evaluate_features(query, subset, reranked=SETTINGS["reranked"])
        assert np.shares_memory(seen[-1], subset.features)
        np.testing.assert_array_equal(seen[-1], subset.features[subset.pids != -1])


def test_what_the_metrics_refuse(subsets):
    query, gallery, _ = subsets
    with pytest.raises(UserError, match="dimension"):
        evaluate_features(query, gallery._replace(features=gallery.features[:, :6]))
    with pytest.raises(UserError, match="dimension 8, expected a multiple of 3"):
        evaluate_features(query, gallery, branches=("a", "b", "c"))
    with pytest.raises(UserError, match=r"query_features row 0 has L2 norm 1\.414"):
        evaluate_features(query, gallery, expanded=SETTINGS["expanded"])
    with pytest.raises(UserError, match="none of the 12 queries has a match"):
        evaluate_features(query._replace(pids=query.pids + 100), gallery)


def test_json(rows, report):
    assert report["counts"] == {
        "queries": 12,
        "gallery": 4 * PEOPLE + 9,
        "junk": 4,
        "distractors": 5,
        "queries_without_match": 0,
        "queries_without_multi_query": 0,
    }
    assert len(report["results"]) == len(rows)
    for row, result in zip(report["results"], rows):
        for name in ("feature", "query", *METHODS):
            assert row[name] == result[name]
        assert row["mAP"] == result["result"].mAP
        assert row["rank-1"] == result["result"].cmc[0]
        assert row["rank-20"] == result["result"].cmc[19]
        assert row["mAP_trapezoid"] == result["result"].mAP_trapezoid
        np.testing.assert_array_equal(row["cmc"], result["result"].cmc)
        assert len(row["precision_recall"]) == 101
        assert row["mINP"] == result["result"].mINP
        assert row["camera_pairs"]
        assert row["verification"] == result["verification"].to_dict()
    for row in to_json(rows, curves=False)["results"]:
        assert not {"cmc", "precision_recall", "camera_pairs"} & set(row)
        assert set(row["verification"]) == {
            "genuine_pairs",
            "impostor_pairs",
            "equal_error_rate",
            "equal_error_threshold",
            "operating_points",
        }


def test_table_holds_percentages_and_counts(report):
    head, rule, *lines, counts, augmented, expanded, reranked = table(report).split("\n")
    assert set(rule) == {"-"}
    assert re.split("  +", head) == ["feature", "query", "method", *COLUMNS.values()]
    assert len(lines) == len(report["results"])
    for line, row in zip(lines, report["results"]):
        cells = re.split("  +", line)
        called = [METHODS[name] for name in METHODS if row[name]]
        assert cells[:3] == [row["feature"], row["query"], " + ".join(called) or "plain"]
        assert cells[3:] == [f"{100 * row[name]:.1f}" for name in COLUMNS]
        assert len(line) == len(head) == len(rule)
    assert "  DBA + QE + re-ranked  " in lines[-1]
    assert counts == (
        "12 queries, 29 gallery images (5 of them distractors) and 4 junk, not ranked; "
        "0 queries without a match, left out"
    )
    assert augmented == (
        "DBA: each gallery image averaged with the 2 gallery images nearest to it, weighted by similarity^1.5"
    )
    assert expanded == "QE: each query averaged with the 3 gallery images nearest to it, equally weighted"
    assert reranked == "re-ranked: k-reciprocal, k1 6, k2 3, lambda_value 0.4"


def test_reports_of_before_are_shown_as_well():
    """Rows of older reports lack some entries."""
    counts = {"queries": 3368, "gallery": 19732, "junk": 3819, "distractors": 2798, "queries_without_match": 0}
    rows = [
        {"feature": "joint", "query": "single", "reranked": reranked, "rank-1": 0.5, "mAP": 0.4, "mAP_trapezoid": 0.3}
        for reranked in (False, True)
    ]
    report = {"counts": counts, "results": rows}
    _, _, plain, reranked, below = table(report).split("\n")
    assert plain.split() == ["joint", "single", "plain", "50.0", "-", "-", "-", "40.0", "30.0", "-"]
    assert reranked.split()[2] == "re-ranked"
    assert below.startswith("3,368 queries, 15,913 gallery images (2,798 of them distractors) and 3,819 junk")
    assert scalars(report) == {"rank-1": 0.5, "mAP": 0.4, "reranked/rank-1": 0.5, "reranked/mAP": 0.4}


def test_verification_table(report):
    head, rule, *lines, note = verification_table(report, 0.1).split("\n")
    rates = ["TPR@0.5", "TPR@0.1", "TPR@0.001"]
    assert re.split("  +", head) == ["feature", "query", "method", "EER", "at distance", *rates, "threshold@0.1"]
    assert len(rule) == len(head)
    for line, row in zip(lines, report["results"]):
        cells = re.split("  +", line)
        verification = row["verification"]
        points = verification["operating_points"]
        assert cells[3] == f"{100 * verification['equal_error_rate']:.1f}"
        assert float(cells[4]) == pytest.approx(verification["equal_error_threshold"], rel=1e-3)
        assert cells[5:7] == [f"{100 * point['tpr']:.1f}" for point in points[:2]]
        # There are too few impostors to measure a rate of 0.001.
        assert points[2]["fpr"] == 0
        assert cells[7] == f"*{100 * points[2]['tpr']:.1f}"
        assert float(cells[8]) == pytest.approx(points[1]["threshold"], rel=1e-3)
    genuine, impostors = verification["genuine_pairs"], verification["impostor_pairs"]
    assert note.startswith(f"{genuine} genuine and {impostors} impostor pairs; EER: equal error rate; ")
    assert note.endswith("(*: no impostor is)")
    assert "threshold@" not in verification_table(report)


def test_a_rate_that_all_pairs_may_have_needs_no_threshold(subsets):
    query, gallery, _ = subsets
    report = to_json(evaluate_features(query, gallery, wanted_fpr=(1,)))
    assert verification_table(report, 1).split("\n")[2].split()[-2:] == ["100.0", "any"]
    assert "*" not in verification_table(report, 1)


def test_camera_table(report):
    title, head, _, *lines = camera_table(report["results"][0]).split("\n")
    assert title.startswith("joint, ")
    assert re.split("  +", head) == ["query camera", "gallery camera", "queries", "rank-1", "mAP"]
    pairs = report["results"][0]["camera_pairs"]
    assert len(lines) == len(pairs) > 3
    for line, pair in zip(lines, pairs):
        assert line.split() == [
            str(pair["query_camid"]),
            str(pair["gallery_camid"]),
            str(pair["queries"]),
            f"{100 * pair['rank1']:.1f}",
            f"{100 * pair['mAP']:.1f}",
        ]
        assert len(line) == len(head)


def test_scalars_have_names_of_their_own(report):
    numbers = scalars(report)
    assert len(numbers) == 2 * len(report["results"])
    prefixes = ["", "global/", "local/", "multi/", "augmented/", "multi/augmented/", "expanded/", "multi/expanded/"]
    prefixes += ["reranked/", "multi/reranked/", "augmented/expanded/reranked/", "multi/augmented/expanded/reranked/"]
    assert list(numbers) == [f"{prefix}{name}" for prefix in prefixes for name in ("rank-1", "mAP")]
    for prefix, row in zip(prefixes, report["results"]):
        assert numbers[f"{prefix}rank-1"] == row["rank-1"]
        assert numbers[f"{prefix}mAP"] == row["mAP"]


def test_rows_have_names_of_their_own(report):
    found = [row_name(row) for row in report["results"]]
    assert len(set(found)) == len(found)
    assert found[0] == "joint"
    assert found[3] == "joint, multi-query"
    assert found[-1] == "joint, multi-query, DBA + QE + re-ranked"
