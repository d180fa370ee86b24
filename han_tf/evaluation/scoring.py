"""From features to scores: the benchmarks' protocols, with and without what may improve a ranking."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from han_tf.common.errors import UserError
from han_tf.data.records import JUNK_PID
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
"""What may be done to the joint feature's ranking, in this order → what tables call it."""

CURVES = ("cmc", "precision_recall", "camera_pairs", "roc_fpr", "roc_tpr")
ALONE = "queries_without_multi_query"
COUNTS = ("queries", "gallery", "junk", "distractors", "queries_without_match")


class Protocol(NamedTuple):
    """What counts; by default the benchmark's protocol.

    Attributes:
      within_camera: whether images of the query's person from the query's own camera are matches, too.
      query_is_gallery: whether queries and gallery are the same images, each of which is left out of its own ranking.
      draws: galleries of one image per person that are ranked as well for each query; 0 for none.
      seed: of the draws.
    """

    within_camera: bool = False
    query_is_gallery: bool = False
    draws: int = 0
    seed: int = 0

    def excluders(self, query: FeatureSet, gallery: FeatureSet) -> list[Excluder]:
        """Returns what is left out of each query's ranking."""
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
    """Evaluates features under the benchmark's protocol.

    First come the plain rows. Each of the methods ``augmented``, ``expanded`` and ``reranked`` that is asked for adds
    rows of the joint feature with it alone; if there are several, further ones with all of them: queries expanded by
    the augmented gallery, and the outcome re-ranked. Junk (pid −1) takes no part in any of it. Pooled multi-query
    features are normalised before they are expanded.

    Beside ``memory_mb``, the methods hold a copy of the gallery's features if junk lies between other images, and
    another one if it is augmented.

    Args:
      query, gallery: what to match.
      multi_query: further boxes of the query people; gives the multi-query rows as well.
      branches: what the equally wide parts of the feature are called, in order; two or more get plain
        single-query rows of their own (Table 8), and each part must be of unit norm where the methods want that.
      augmented: neighbours and alpha of :func:`han_tf.metrics.database_augmentation`; None for no such rows.
      expanded: neighbours and alpha of :func:`han_tf.metrics.query_expansion`; None for no such rows.
      reranked: k1, k2 and lambda_value of :func:`han_tf.metrics.rerank`; None for no such rows.
      protocol, wanted_fpr, topk, memory_mb, progress: as for :func:`score`.

    Returns:
      Rows as :func:`score` makes them; ``feature`` is "joint" or a branch. The top-k lists of rows with a method count
      the gallery images without junk. The plain multi-query row has ``queries_without_multi_query`` as well: so many
      queries have no boxes and keep their own feature.

    Raises:
      UserError: what the metrics refuse: shapes that do not fit, no query with a match, ...; no query has multi-query
        boxes; or a method is asked for where the queries are the gallery, in which each finds itself.
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
    """Evaluates distances.

    Args:
      source: the distances.
      query, gallery: whose labels to use.
      feature: what to call the feature.
      query_type: "single" or "multi".
      methods: the keys of :data:`METHODS` that made the distances.
      protocol: what counts.
      wanted_fpr: false-positive rates to verify at; none for no verification.
      topk: length of the per-query lists of nearest images.
      memory_mb: memory for distances, in MiB.
      progress: whether to show progress bars.

    Returns:
      ``feature``, ``query`` (the type), each key of :data:`METHODS` with whether it is in use, ``result``, a
      :class:`han_tf.metrics.RankingResult`; if asked for, ``verification``, a
      :class:`han_tf.metrics.VerificationResult`, and ``single_gallery_shot``, a
      :class:`han_tf.metrics.SingleShotResult`.

    Raises:
      UserError: what :func:`han_tf.metrics.evaluate_distances` and :func:`han_tf.metrics.verify` refuse.
    """
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    shared = {"memory_mb": memory_mb, "progress": progress}
    row = {"feature": feature, "query": query_type, **{name: name in methods for name in METHODS}}
    excluders = protocol.excluders(query, gallery)
    row["result"] = evaluate_distances(source, *labels, excluders=excluders, topk=topk, **shared)
    if len(wanted_fpr):
        row["verification"] = verify(source, *labels, excluders=excluders, wanted_fpr=wanted_fpr, **shared)
    if protocol.draws:
        row[SINGLE_SHOT] = single_gallery_shot(
            source, *labels, excluders=excluders, draws=protocol.draws, seed=protocol.seed, memory_mb=memory_mb
        )
    return row


def to_json(rows: Iterable[Mapping[str, Any]], curves: bool = True) -> dict[str, Any]:
    """Returns the rows of :func:`evaluate_features` and their counts as JSON holds them.

    ``curves`` says whether CMC, precision–recall, ROC and the table of camera pairs are in.
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
