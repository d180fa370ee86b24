"""Evaluation of features by the benchmarks' protocols, with and without methods that improve a ranking."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID
from han_tf.features.archives import FeatureSet, branch_features
from han_tf.metrics import (
    DistanceSource,
    Excluder,
    FeatureDistances,
    database_augmentation,
    evaluate_distances,
    itself,
    junk,
    normalise,
    pool_multi_query,
    query_expansion,
    rerank,
    same_pid_and_camera,
    single_gallery_shot,
    verify,
)

SINGLE, MULTI = "single", "multi"
"""Query types: one image each, or all of a person's images from one camera pooled (Table 3)."""

METHODS = {"augmented": "DBA", "expanded": "QE", "reranked": "re-ranked"}
"""Methods that improve the joint feature's ranking, in the order of their use → their names in tables."""

CURVES = ("cmc", "precision_recall", "camera_pairs", "roc_fpr", "roc_tpr")
ALONE = "queries_without_multi_query"
COUNTS = ("queries", "gallery", "junk", "distractors", "queries_without_match")


class Protocol(NamedTuple):
    """The rules of an evaluation; by default the benchmark's protocol.

    Attributes:
      within_camera: whether images of the query's person from the query's own camera count as matches.
      query_is_gallery: whether queries and gallery are the same images; each is left out of its own ranking, and
        distractors (pid 0) have no match.
      draws: number of galleries with one image per person that are also ranked for each query; 0 for none.
      seed: of the draws.
    """

    within_camera: bool = False
    query_is_gallery: bool = False
    draws: int = 0
    seed: int = 0

    def excluders(self, query: FeatureSet, gallery: FeatureSet) -> list[Excluder]:
        """Returns the rules that leave images out of a query's ranking."""
        chosen = [junk(gallery.pids)]
        if not self.within_camera:
            chosen.append(same_pid_and_camera(query.pids, gallery.pids, query.camids, gallery.camids))
        return chosen + [itself()] * self.query_is_gallery


BENCHMARK = Protocol()
SINGLE_SHOT = "single_gallery_shot"


def evaluate_features(
    query: FeatureSet,
    gallery: FeatureSet,
    multi_query: Optional[FeatureSet] = None,
    *,
    branches: Sequence[str] = (),
    augmented: Optional[Mapping[str, Any]] = None,
    expanded: Optional[Mapping[str, Any]] = None,
    reranked: Optional[Mapping[str, Any]] = None,
    protocol: Protocol = BENCHMARK,
    wanted_fpr: Sequence[float] = (),
    topk: int = 10,
    memory_mb: int = 1024,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Returns the rows of a report on features, by default under the benchmark's protocol.

    The plain rows come first. Each of the methods ``augmented``, ``expanded`` and ``reranked`` adds rows of the joint
    feature with this method alone; several methods add further rows with all of them: queries expanded by the
    augmented gallery, then re-ranked. Junk (pid −1) takes no part in the methods. Pooled multi-query features are
    normalised before they are expanded.

    Beside ``memory_mb``, the methods hold a copy of the gallery's features if junk lies between other images, and
    another copy if the gallery is augmented.

    Args:
      query, gallery: the features to match.
      multi_query: further boxes of the query people; adds the multi-query rows.
      branches: names of the feature's equally wide parts, in order; two or more get plain single-query rows of their
        own (Table 8), and each part must be of unit norm where a method needs that.
      augmented: neighbours and alpha of :func:`han_tf.metrics.database_augmentation`; None for no such rows.
      expanded: neighbours and alpha of :func:`han_tf.metrics.query_expansion`; None for no such rows.
      reranked: k1, k2 and lambda_value of :func:`han_tf.metrics.rerank`; None for no such rows.
      protocol, wanted_fpr, topk, memory_mb, progress: as for :func:`score`.

    Returns:
      Rows of :func:`score`; ``feature`` is "joint" or a branch. In rows with a method, the indices in the top-k lists
      count the gallery images without junk. The plain multi-query row also has ``queries_without_multi_query``, the
      number of queries that have no boxes and keep their own feature.

    Raises:
      UserError: the metrics refuse the input (shapes that do not fit, no query with a match, ...); no query has
        multi-query boxes; or there is a method although the queries are the gallery, where each finds itself.
    """
    shared = {"memory_mb": memory_mb, "progress": progress}
    options = {"protocol": protocol, "wanted_fpr": wanted_fpr, "topk": topk, **shared}
    queries = {SINGLE: query.features}
    if multi_query is not None:
        queries[MULTI], alone = pool_multi_query(
            multi_query.features, multi_query.pids, multi_query.camids, query.features, query.pids, query.camids
        )
        if alone == len(query.pids):
            raise UserError(
                f"none of the {alone} queries has a multi-query image, expected images of a query's pid and camera"
            )
    rows = []
    query_parts = branch_features(query.features, branches)
    for name, gallery_part in branch_features(gallery.features, branches).items():
        rows.append(score(FeatureDistances(query_parts[name], gallery_part), query, gallery, name, **options))
    if MULTI in queries:
        source = FeatureDistances(queries[MULTI], gallery.features)
        rows.append(score(source, query, gallery, query_type=MULTI, **options))
        rows[-1][ALONE] = alone

    wanted = {"augmented": augmented, "expanded": expanded, "reranked": reranked}
    wanted = {name: settings for name, settings in wanted.items() if settings is not None}
    if wanted and protocol.query_is_gallery:
        raise UserError(f"{METHODS[next(iter(wanted))]} with queries that are the gallery, expected other queries")
    combinations = [(name,) for name in wanted] + [tuple(wanted)] * (len(wanted) > 1)
    kept = gallery.where(gallery.pids != JUNK_PID) if wanted else gallery
    normed = {**shared, "parts": max(1, len(branches))}
    images = {False: kept.features}
    if "augmented" in wanted:
        images[True] = database_augmentation(kept.features, **wanted["augmented"], **normed)
    for methods in combinations:
        database = images["augmented" in methods]
        for query_type, features in queries.items():
            if "expanded" in methods:
                if query_type == MULTI:
                    features = normalise(features, normed["parts"])
                features = query_expansion(features, database, **wanted["expanded"], **normed)
            if "reranked" in methods:
                source = rerank(features, database, **wanted["reranked"], **shared)
            else:
                source = FeatureDistances(features, database)
            rows.append(score(source, query, kept, query_type=query_type, methods=methods, **options))
    return rows


def score(
    source: DistanceSource,
    query: FeatureSet,
    gallery: FeatureSet,
    feature: str = "joint",
    query_type: str = SINGLE,
    methods: Sequence[str] = (),
    *,
    protocol: Protocol = BENCHMARK,
    wanted_fpr: Sequence[float] = (),
    topk: int = 10,
    memory_mb: int = 1024,
    progress: bool = False,
) -> dict[str, Any]:
    """Returns the row of a report for distances.

    Args:
      source: the distances.
      query, gallery: sets whose labels to use.
      feature: name of the feature.
      query_type: "single" or "multi".
      methods: the keys of :data:`METHODS` that made the distances.
      protocol: the rules.
      wanted_fpr: false-positive rates to verify at; none for no verification.
      topk: length of the per-query lists of nearest images.
      memory_mb: memory for distances, in MiB.
      progress: whether to show progress bars.

    Returns:
      ``feature``; ``query`` (the type); each key of :data:`METHODS` with whether it is in use; ``result``, a
      :class:`han_tf.metrics.RankingResult`; with ``wanted_fpr`` ``verification``, a
      :class:`han_tf.metrics.VerificationResult`; with draws ``single_gallery_shot``, a
      :class:`han_tf.metrics.SingleShotResult`.

    Raises:
      UserError: :func:`han_tf.metrics.evaluate_distances` or :func:`han_tf.metrics.verify` refuses the input.
    """
    searched = query.pids
    if protocol.query_is_gallery:  # distractors, which are different people, search for nobody
        searched = np.where(query.pids == DISTRACTOR_PID, JUNK_PID, query.pids)
    labels = (searched, gallery.pids, query.camids, gallery.camids)
    shared = {"memory_mb": memory_mb, "progress": progress}
    row = {"feature": feature, "query": query_type, **{name: name in methods for name in METHODS}}
    excluders = protocol.excluders(query._replace(pids=searched), gallery)
    result = evaluate_distances(source, *labels, excluders=excluders, topk=topk, **shared)
    row["result"] = replace(result, query_pids=query.pids)
    if len(wanted_fpr):
        everything = np.arange(len(gallery.pids))
        of_junk = [lambda number: everything[: len(everything) * (query.pids[number] == JUNK_PID)]]  # no pairs of it
        row["verification"] = verify(source, *labels, excluders=excluders + of_junk, wanted_fpr=wanted_fpr, **shared)
    if protocol.draws:
        row[SINGLE_SHOT] = single_gallery_shot(
            source, *labels, excluders=excluders, draws=protocol.draws, seed=protocol.seed, memory_mb=memory_mb
        )
    return row


def to_json(rows: Iterable[Mapping[str, Any]], curves: bool = True) -> dict[str, Any]:
    """Returns the rows of :func:`evaluate_features` and their counts, ready for JSON.

    ``curves`` says whether CMC, precision–recall, ROC and camera pairs are included.
    """
    rows = list(rows)
    left_out = COUNTS if curves else (*COUNTS, *CURVES)

    def numbers(result: Any) -> dict[str, Any]:
        return {name: value for name, value in result.to_dict().items() if name not in left_out}

    results = []
    for row in rows:
        results.append({name: row[name] for name in ("feature", "query", *METHODS)})
        results[-1].update(numbers(row["result"]))
        for name in ("verification", SINGLE_SHOT):
            if name in row:
                results[-1][name] = numbers(row[name])
    counts = {name: getattr(rows[0]["result"], name) for name in COUNTS}
    for row in rows:
        if ALONE in row:
            counts[ALONE] = row[ALONE]
    return {"counts": counts, "results": results}


def scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """Returns rank-1 and mAP of every row by name, the joint single-query ones as ``rank-1`` and ``mAP``."""
    numbers = {}
    for row in report["results"]:
        words = [row["feature"]] * (row["feature"] != "joint") + [row["query"]] * (row["query"] != SINGLE)
        prefix = "/".join([*words, *(name for name in METHODS if row.get(name))])
        for name in ("rank-1", "mAP"):
            numbers[f"{prefix}/{name}" if prefix else name] = row[name]
    return numbers
