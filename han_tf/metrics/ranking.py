"""CMC, mAP and mINP of ranked galleries, from features or distances, in bounded memory."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

from han_tf.metrics.blocks import sweep
from han_tf.metrics.checks import check_count, check_memory, default_threads
from han_tf.metrics.distances import DistanceSource, FeatureDistances, MatrixDistances
from han_tf.metrics.excluders import JUNK_PID, Excluder
from han_tf.metrics.places import Ranker
from han_tf.metrics.results import CameraPair, RankingResult, cmc_curve, no_match
from han_tf.metrics.scores import Scores, mean
from han_tf.metrics.truth import Truth


def evaluate(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    excluders: Optional[Sequence[Excluder]] = None,
    topk: int = 10,
    max_rank: int = 50,
    camera_pairs: bool = True,
    memory_mb: int = 1024,
    threads: Optional[int] = None,
    progress: bool = False,
) -> RankingResult:
    """Returns CMC, mAP and further results of ranking the gallery for each query by L2 distance of features.

    Args:
      query_features: floats ``[n_query, d]``, float32 for speed; may be memory-mapped.
      gallery_features: floats ``[n_gallery, d]``; may be memory-mapped.
      query_pids, gallery_pids, query_camids, gallery_camids: as for :func:`evaluate_distances`.
      excluders, topk, max_rank, camera_pairs, memory_mb, threads, progress: as for :func:`evaluate_distances`.

    Raises:
      UserError: as :func:`evaluate_distances`; or features do not match, are NaN or infinite.
    """
    return evaluate_distances(
        FeatureDistances(query_features, gallery_features),
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        excluders=excluders,
        topk=topk,
        max_rank=max_rank,
        camera_pairs=camera_pairs,
        memory_mb=memory_mb,
        threads=threads,
        progress=progress,
    )


def evaluate_distances(
    distances: Union[np.ndarray, DistanceSource],
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    excluders: Optional[Sequence[Excluder]] = None,
    topk: int = 10,
    max_rank: int = 50,
    camera_pairs: bool = True,
    memory_mb: int = 1024,
    threads: Optional[int] = None,
    progress: bool = False,
) -> RankingResult:
    """Returns the results of ranking the gallery for each query by distance: smaller first, ties in gallery order.

    Args:
      distances: ``[n_query, n_gallery]``, an array, a memory map or a :class:`DistanceSource` such as
        :func:`han_tf.metrics.rerank` returns.
      query_pids, query_camids: integers ``[n_query]``.
      gallery_pids, gallery_camids: integers ``[n_gallery]``; pid −1 is junk.
      excluders: choose the images left out of each query's ranking (see :mod:`han_tf.metrics.excluders`). None is the
        standard protocol: junk, and images of the query's pid from the query's camera.
      topk: length of the per-query lists of nearest images; 0 for none.
      max_rank: length of the CMC curve.
      camera_pairs: whether to compute the table of camera pairs.
      memory_mb: memory to use beside features or distances, in MiB; includes the matches and top-k lists.
      threads: threads that rank; the number of cores if None. Results do not depend on it.
      progress: whether to show a progress bar.

    Raises:
      UserError: labels do not match, camera ids are negative or missing, no query has a match, distances are NaN or
        infinite, or ``memory_mb`` is too small.
    """
    source = distances if isinstance(distances, DistanceSource) else MatrixDistances(distances)
    n_query, n_gallery = source.shape
    truth = Truth(source.shape, query_pids, gallery_pids, query_camids, gallery_camids, excluders)
    topk = min(check_count(topk, "topk", 0), n_gallery)
    check_count(max_rank, "max_rank", 1)
    memory_mb = check_memory(memory_mb, n_gallery, truth.same_pid_pairs, n_query * topk)
    ranker = Ranker(source, truth, topk, camera_pairs)
    sweep(
        source,
        ranker.visit,
        memory_mb=memory_mb,
        threads=default_threads(threads),
        label="ranking" if progress else None,
        prepare=ranker.prepare,
        conclude=ranker.conclude,
    )
    ranker.finish()
    per_query = Scores(ranker.queries, ranker.places)
    scored = per_query.groups
    if not len(scored):
        raise no_match(n_query)
    is_junk = truth.gallery_pids == JUNK_PID
    matches, first_hit = np.zeros((2, n_query), np.int64)
    ap, ap_trapezoid, inp = np.full((3, n_query), np.nan)
    matches[scored], first_hit[scored] = per_query.matches, per_query.first
    ap[scored], ap_trapezoid[scored], inp[scored] = per_query.ap, per_query.ap_trapezoid, per_query.inp
    return RankingResult(
        cmc=cmc_curve(per_query.first, max_rank),
        mAP=mean(per_query.ap),
        mAP_trapezoid=mean(per_query.ap_trapezoid),
        mINP=mean(per_query.inp),
        precision_recall=per_query.precision_recall(),
        queries=n_query,
        gallery=n_gallery,
        junk=int(is_junk.sum()),
        distractors=int((~is_junk & ~np.isin(truth.gallery_pids, truth.query_pids)).sum()),
        queries_without_match=n_query - len(scored),
        query_pids=truth.query_pids,
        query_camids=truth.query_camids,
        matches=matches,
        first_hit=first_hit,
        ap=ap,
        ap_trapezoid=ap_trapezoid,
        inp=inp,
        topk_indices=ranker.top.columns,
        topk_distances=source.report(ranker.top.values),
        camera_pairs=_camera_table(truth, ranker) if camera_pairs else (),
    )


def _camera_table(truth: Truth, ranker: Ranker) -> tuple[CameraPair, ...]:
    n = len(ranker.camids)
    scores = Scores(ranker.queries * n + ranker.cameras, ranker.pair_places)
    query_camids, gallery_camids = truth.query_camids[scores.groups // n], ranker.camids[scores.groups % n]
    order = np.lexsort((gallery_camids, query_camids))
    camids = np.stack([query_camids, gallery_camids], axis=1)[order]
    ends = np.flatnonzero((camids[1:] != camids[:-1]).any(axis=1)) + 1
    pairs = []
    for mine in np.split(order, ends):
        rank1 = float(np.mean(scores.first[mine] == 1))
        cameras = int(query_camids[mine[0]]), int(gallery_camids[mine[0]])
        pairs.append(CameraPair(*cameras, len(mine), rank1, mean(scores.ap[mine])))
    return tuple(pairs)
