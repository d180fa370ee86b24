"""Tables of a report, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from han_tf.evaluation.scoring import ALONE, METHODS, MULTI, SINGLE_SHOT

COLUMNS = {
    "rank-1": "rank-1",
    "rank-5": "rank-5",
    "rank-10": "rank-10",
    "rank-20": "rank-20",
    "mAP": "mAP",
    "mAP_trapezoid": "mAP (trapezoid)",
    "mINP": "mINP",
}
"""Numbers of a result that tables show → heads of the columns."""

SHOT_COLUMNS = ("rank-1", "rank-5", "rank-10", "rank-20", "mAP")

PROTOCOL = {
    "within_camera": "images of a query's person from its own camera count as matches",
    "query_is_gallery": "every image searches all others",
}
"""Deviations from the benchmark's protocol → their descriptions in tables."""


def table(report: Mapping[str, Any]) -> str:
    """Returns a report of :func:`han_tf.evaluation.scoring.to_json` as a table in percent, with counts below.

    If the report holds ``methods``, the settings of each method, they are listed as well.
    """
    lines = [
        [*_names(row), *(_percent(row[name]) if name in row else "-" for name in COLUMNS)] for row in report["results"]
    ]
    counts = report["counts"]
    alone = counts.get(ALONE, 0)
    return "\n".join(
        [
            _aligned(["feature", "query", "method", *COLUMNS.values()], lines),
            f"{counts['queries']:,} queries, {counts['gallery'] - counts['junk']:,} gallery images "
            f"({counts['distractors']:,} of them distractors) and {counts['junk']:,} junk, not ranked; "
            f"{counts['queries_without_match']:,} queries without a match, left out",
            *(PROTOCOL[name] for name in PROTOCOL if report.get("protocol", {}).get(name)),
            *([f"multi: {alone:,} queries have no further images and are used as they are"] if alone else []),
            *(_explained(name, settings) for name, settings in report.get("methods", {}).items()),
        ]
    )


def verification_table(report: Mapping[str, Any], false_accept_rate: Optional[float] = None) -> str:
    """Returns a table of a report's equal error rates and true-positive rates, in percent.

    Args:
      report: from :func:`han_tf.evaluation.scoring.to_json`, with verification.
      false_accept_rate: one of the wanted rates, whose thresholds of distance are also shown.
    """
    head, lines = ["feature", "query", "method", "EER", "at distance"], []
    for row in report["results"]:
        verification = row["verification"]
        points = {point["wanted_fpr"]: point for point in verification["operating_points"]}
        lines.append([*_names(row), _percent(verification["equal_error_rate"])])
        lines[-1].append(_distance(verification["equal_error_threshold"]))
        lines[-1] += ["*" * (point["fpr"] == 0) + _percent(point["tpr"]) for point in points.values()]
        if false_accept_rate is not None:
            lines[-1].append(_distance(points[false_accept_rate]["threshold"]))
    head += [f"TPR@{rate:g}" for rate in points]
    if false_accept_rate is not None:
        head.append(f"threshold@{false_accept_rate:g}")
    note = f"{verification['genuine_pairs']:,} genuine and {verification['impostor_pairs']:,} impostor pairs; "
    note += "EER: equal error rate; TPR@x: genuine pairs accepted where at most the share x of the impostors is"
    if any(cell.startswith("*") for line in lines for cell in line):
        note += " (*: no impostor is)"
    return "\n".join([_aligned(head, lines), note])


def single_shot_table(report: Mapping[str, Any]) -> str:
    """Returns a table of a report's results on galleries of one image per person, in percent."""
    lines = []
    for row in report["results"]:
        shot = row[SINGLE_SHOT]
        lines.append([*_names(row), *(_percent(shot[name]) if name in shot else "-" for name in SHOT_COLUMNS)])
    head = ["feature", "query", "method", *SHOT_COLUMNS]
    note = f"one gallery image of every person: means over {shot['draws']:,} draws for each query, seed {shot['seed']}"
    return "\n".join([_aligned(head, lines), note])


def camera_table(row: Mapping[str, Any]) -> str:
    """Returns a table of the camera pairs in one row of a report, in percent."""
    lines = [
        [*map(str, (pair["query_camid"], pair["gallery_camid"])), f"{pair['queries']:,}"]
        + [_percent(pair[name]) for name in ("rank1", "mAP")]
        for pair in row["camera_pairs"]
    ]
    head = ["query camera", "gallery camera", "queries", "rank-1", "mAP"]
    return f"{row_name(row)}, each gallery camera by itself:\n{_aligned(head, lines, left=0)}"


def row_name(row: Mapping[str, Any]) -> str:
    """Returns the name of a row outside a table, such as "joint, multi-query, DBA + re-ranked"."""
    feature, query_type, method = _names(row)
    return feature + ", multi-query" * (query_type == MULTI) + f", {method}" * (method != "plain")


def _names(row: Mapping[str, Any]) -> list[str]:
    """Returns the first three cells of a row in the tables."""
    methods = [called for name, called in METHODS.items() if row.get(name)]
    return [row["feature"], row["query"], " + ".join(methods) or "plain"]


def _explained(method: str, settings: Mapping[str, Any]) -> str:
    if method == "reranked":
        explanation = "k-reciprocal, " + ", ".join(f"{name} {value:g}" for name, value in settings.items())
    else:
        what = "each gallery image" if method == "augmented" else "each query"
        weights = f"weighted by similarity^{settings['alpha']:g}" if settings["alpha"] else "equally weighted"
        explanation = f"{what} averaged with the {settings['neighbours']} gallery images nearest to it, {weights}"
    return f"{METHODS[method]}: {explanation}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _distance(threshold: Optional[float]) -> str:
    return "any" if threshold is None else f"{threshold:#.4g}"


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 3) -> str:
    """Returns a table whose first ``left`` columns are aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *lines)]

    def line(cells: Sequence[str]) -> str:
        aligned = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))]
        return "  ".join(aligned).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(head), rule, *map(line, lines)])
