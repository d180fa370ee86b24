"""From features to a report: the benchmarks' protocols over the joint, global and local features."""

from collections.abc import Iterable, Mapping
from typing import Any, Optional

from han_tf.data.records import JUNK_PID
from han_tf.inference.feature_files import FeatureSet
from han_tf.inference.features import branch_features
from han_tf.metrics import RankingResult, evaluate, evaluate_distances, pool_multi_query, rerank

SINGLE, MULTI = "single", "multi"
"""Query types: one image each, or all of a person's images from one camera pooled (Table 3)."""

COLUMNS = ("rank-1", "rank-5", "rank-10", "rank-20", "mAP", "mAP_trapezoid")
CURVES = ("cmc", "precision_recall", "camera_pairs")
COUNTS = ("queries", "gallery", "junk", "distractors", "queries_without_match")


def evaluate_features(
    query: FeatureSet,
    gallery: FeatureSet,
    multi_query: Optional[FeatureSet] = None,
    *,
    branches: bool = True,
    reranked: bool = False,
    rerank_options: Optional[Mapping[str, Any]] = None,
    topk: int = 10,
    memory_mb: int = 1024,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Evaluates features under the benchmark's protocol.

    Args:
      query, gallery: what to match; junk (pid −1) is in no ranking and no re-ranking.
      multi_query: further boxes of the query people; gives the multi-query rows as well.
      branches: whether the features are HAN's, whose halves are the global and the local feature;
        these get single-query rows of their own (Table 8).
      reranked: whether to add re-ranked rows for the joint feature.
      rerank_options: k1, k2, lambda_value of :func:`han_tf.metrics.rerank`.
      topk: length of the per-query lists of nearest images.
      memory_mb: memory for distances, in MiB.
      progress: whether to show progress bars.

    Returns:
      One row per setting: ``feature`` ("joint", "global", "local"), ``query`` ("single", "multi"), ``reranked``
      and ``result``, a :class:`han_tf.metrics.RankingResult`.

    Raises:
      UserError: what the metrics refuse: shapes that do not fit, no query with a match, ...
    """
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    options = {"topk": topk, "memory_mb": memory_mb, "progress": progress}
    pooled = {SINGLE: query.features}
    if multi_query is not None:
        pooled[MULTI], _ = pool_multi_query(
            multi_query.features, multi_query.pids, multi_query.camids, query.features, query.pids, query.camids
        )
    rows = []

    def add(feature: str, query_type: str, is_reranked: bool, result: RankingResult) -> None:
        rows.append({"feature": feature, "query": query_type, "reranked": is_reranked, "result": result})

    halves = branch_features(gallery.features) if branches else {"joint": gallery.features}
    for name, gallery_part in halves.items():
        query_part = branch_features(query.features)[name] if branches else query.features
        add(name, SINGLE, False, evaluate(query_part, gallery_part, *labels, **options))
    if MULTI in pooled:
        add("joint", MULTI, False, evaluate(pooled[MULTI], gallery.features, *labels, **options))
    if reranked:
        kept = gallery.where(gallery.pids != JUNK_PID)
        for query_type, features in pooled.items():
            distances = rerank(
                features, kept.features, memory_mb=memory_mb, progress=progress, **(rerank_options or {})
            )
            result = evaluate_distances(distances, query.pids, kept.pids, query.camids, kept.camids, **options)
            add("joint", query_type, True, result)
    return rows


def to_json(rows: Iterable[Mapping[str, Any]], curves: bool = True) -> dict[str, Any]:
    """Returns the rows of :func:`evaluate_features` and their counts as JSON holds them.

    ``curves`` says whether CMC, precision–recall and the table of camera pairs are in.
    """
    rows = list(rows)
    return {
        "counts": {name: getattr(rows[0]["result"], name) for name in COUNTS},
        "results": [
            {**{name: row[name] for name in ("feature", "query", "reranked")}, **_numbers(row["result"], curves)}
            for row in rows
        ],
    }


def table(report: Mapping[str, Any]) -> str:
    """Returns the report of :func:`to_json` as a table in percent, with the counts underneath."""
    head = f"{'feature':<18}{'query':<8}{'re-ranked':<11}" + "".join(f"{name:>9}" for name in COLUMNS[:-1])
    head += f"{'mAP (trapezoid)':>17}"
    lines = [head, "-" * len(head)]
    for row in report["results"]:
        numbers = "".join(f"{100 * row[name]:>9.1f}" if name in row else f"{'-':>9}" for name in COLUMNS[:-1])
        lines.append(
            f"{row['feature']:<18}{row['query']:<8}{'yes' if row['reranked'] else 'no':<11}{numbers}"
            f"{100 * row['mAP_trapezoid']:>17.1f}"
        )
    counts = report["counts"]
    lines.append(
        f"{counts['queries']} queries, {counts['gallery'] - counts['junk']} gallery images "
        f"({counts['distractors']} of them distractors) and {counts['junk']} junk, not ranked; "
        f"{counts['queries_without_match']} queries without a match, left out"
    )
    return "\n".join(lines)


def scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """Returns rank-1 and mAP of every row by name, the joint single-query ones as ``rank-1`` and ``mAP``."""
    numbers = {}
    for row in report["results"]:
        words = [row["feature"]] * (row["feature"] != "joint") + [row["query"]] * (row["query"] != SINGLE)
        prefix = "/".join([*words, *["reranked"] * row["reranked"]])
        for name in ("rank-1", "mAP"):
            numbers[f"{prefix}/{name}" if prefix else name] = row[name]
    return numbers


def _numbers(result: RankingResult, curves: bool) -> dict[str, Any]:
    left_out = COUNTS if curves else (*COUNTS, *CURVES)
    return {name: value for name, value in result.to_dict().items() if name not in left_out}
