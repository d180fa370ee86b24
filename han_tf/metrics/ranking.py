"""CMC, mAP and mINP of a ranked gallery, from features or from distances, in bounded memory.

The gallery is never sorted. All metrics follow from each true match's place in the ranking, and that is the
number of gallery images that lie before it: nearer, or equally near and earlier in the gallery.
"""

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from han_tf.errors import UserError
from han_tf.files import atomic_open
from han_tf.metrics.blocks import bracket, sweep
from han_tf.metrics.checks import LEAST_MEMORY, check_count, default_threads
from han_tf.metrics.distances import DistanceSource, FeatureDistances, MatrixDistances
from han_tf.metrics.excluders import JUNK_PID, Excluder
from han_tf.metrics.nearest import FirstK
from han_tf.metrics.truth import Stripe, Truth

REPORTED_RANKS = (1, 5, 10, 20)
"""Ranks of the CMC curve that reports show."""

RECALL_LEVELS = np.linspace(0, 1, 101)
"""Recall levels of the precision–recall curve."""

FEW_MATCHES = 32
"""Up to so many matches a query's values are compared with each one; beyond, they are sorted."""


class CameraPair(NamedTuple):
    """Ranking of the gallery images of one camera for the queries of another.

    Attributes:
      query_camid, gallery_camid: the cameras.
      queries: number of queries with a match on that camera; only they count.
      rank1: fraction of them whose nearest image on that camera is a match.
      mAP: their mean average precision on that camera.
    """

    query_camid: int
    gallery_camid: int
    queries: int
    rank1: float
    mAP: float


@dataclass(frozen=True)
class RankingResult:
    """What a ranking is worth, overall and per query.

    All rates are fractions in [0, 1]; means are over the queries that have a match.

    Attributes:
      cmc: float64 ``[max_rank]``; entry k − 1 is the fraction of queries with a match among the first k.
      mAP: mean over queries of the mean precision at the hits.
      mAP_trapezoid: the same by Market-1501's MATLAB code: the area under the precision–recall polygon
        that starts at precision 1.
      mINP: mean inverse negative penalty: matches divided by the place of the last one (Ye et al. 2021).
      precision_recall: float64 ``[101]``; mean interpolated precision at recall 0, 0.01, …, 1.
      queries, gallery: number of images.
      junk: gallery images with pid −1.
      distractors: gallery images whose pid is neither −1 nor any query's.
      queries_without_match: queries left out of every mean because the gallery holds no match for them.
      query_pids, query_camids: int64 ``[queries]``.
      matches: int64 ``[queries]``; number of true matches that are ranked.
      first_hit: int64 ``[queries]``; place of the first match, from 1; 0 without a match.
      ap, ap_trapezoid, inp: float64 ``[queries]``; NaN without a match.
      topk_indices: int64 ``[queries, topk]``; nearest ranked gallery images, −1 where there are no more.
      topk_distances: float64 ``[queries, topk]``; infinite where there are no more.
      camera_pairs: one entry per pair of cameras that has matches; empty if it was not asked for.
    """

    cmc: np.ndarray
    mAP: float
    mAP_trapezoid: float
    mINP: float
    precision_recall: np.ndarray
    queries: int
    gallery: int
    junk: int
    distractors: int
    queries_without_match: int
    query_pids: np.ndarray
    query_camids: np.ndarray
    matches: np.ndarray
    first_hit: np.ndarray
    ap: np.ndarray
    ap_trapezoid: np.ndarray
    inp: np.ndarray
    topk_indices: np.ndarray
    topk_distances: np.ndarray
    camera_pairs: tuple[CameraPair, ...]

    def rank(self, k: int) -> float:
        """Returns the fraction of queries with a match among the first ``k``.

        Raises:
          UserError: ``k`` is beyond the curve.
        """
        return float(self.cmc[check_count(k, "rank", 1, len(self.cmc)) - 1])

    def to_dict(self) -> dict[str, Any]:
        """Returns the overall results, ready for JSON; per-query results are left to the files."""
        return {
            **{f"rank-{k}": self.rank(k) for k in REPORTED_RANKS if k <= len(self.cmc)},
            "mAP": self.mAP,
            "mAP_trapezoid": self.mAP_trapezoid,
            "mINP": self.mINP,
            "queries": self.queries,
            "gallery": self.gallery,
            "junk": self.junk,
            "distractors": self.distractors,
            "queries_without_match": self.queries_without_match,
            "cmc": self.cmc.tolist(),
            "precision_recall": self.precision_recall.tolist(),
            "camera_pairs": [pair._asdict() for pair in self.camera_pairs],
        }

    def save_npz(self, path: Union[str, os.PathLike]) -> None:
        """Writes the curves and all per-query arrays to a NumPy archive."""
        names = [
            "cmc",
            "precision_recall",
            "query_pids",
            "query_camids",
            "matches",
            "first_hit",
            "ap",
            "ap_trapezoid",
            "inp",
            "topk_indices",
            "topk_distances",
        ]
        with atomic_open(path) as stream:
            np.savez(stream, **{name: getattr(self, name) for name in names})

    def save_csv(
        self,
        path: Union[str, os.PathLike],
        query_names: Optional[Sequence[str]] = None,
        gallery_names: Optional[Sequence[str]] = None,
    ) -> None:
        """Writes one line per query: its labels, its results and its top-k list.

        Args:
          path: the file.
          query_names: what to call the queries, e.g. their paths; their indices if None.
          gallery_names: what to call the gallery images; their indices if None.

        Raises:
          UserError: a list of names has the wrong length.
        """
        for names, what, count in (
            (query_names, "query_names", self.queries),
            (gallery_names, "gallery_names", self.gallery),
        ):
            if names is not None and len(names) != count:
                raise UserError(f"{what} has {len(names)} entries, expected {count}")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        k = self.topk_indices.shape[1]
        writer.writerow(
            ["query", "pid", "camid", "matches", "first_hit", "ap", "ap_trapezoid", "inp"]
            + [f"{what}_{place}" for place in range(1, k + 1) for what in ("image", "distance")]
        )
        for query in range(self.queries):
            scores = [self.ap[query], self.ap_trapezoid[query], self.inp[query]]
            nearest = []
            for image, distance in zip(self.topk_indices[query], self.topk_distances[query]):
                name = image if gallery_names is None else gallery_names[image]
                nearest += ["", ""] if image < 0 else [name, repr(float(distance))]
            writer.writerow(
                [
                    query if query_names is None else query_names[query],
                    self.query_pids[query],
                    self.query_camids[query],
                    self.matches[query],
                    self.first_hit[query] or "",
                    *("" if math.isnan(score) else repr(float(score)) for score in scores),
                    *nearest,
                ]
            )
        with atomic_open(path) as stream:
            stream.write(text.getvalue().encode("utf-8"))


def evaluate(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    **options: Any,
) -> RankingResult:
    """Ranks the gallery for each query by L2 distance of features.

    Args:
      query_features: floats ``[n_query, d]``, float32 for speed; may be memory-mapped.
      gallery_features: floats ``[n_gallery, d]``; may be memory-mapped.
      query_pids, gallery_pids, query_camids, gallery_camids: as for :func:`evaluate_distances`.
      **options: as for :func:`evaluate_distances`.

    Raises:
      UserError: as :func:`evaluate_distances`; or features that do not fit, NaN or infinite.
    """
    source = FeatureDistances(query_features, gallery_features)
    return evaluate_distances(source, query_pids, gallery_pids, query_camids, gallery_camids, **options)


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
    """Ranks the gallery for each query by distances: smaller first, ties in gallery order.

    Args:
      distances: ``[n_query, n_gallery]``, an array, a memory map or a :class:`DistanceSource` such as
        :func:`han_tf.metrics.rerank` returns.
      query_pids, query_camids: integers ``[n_query]``.
      gallery_pids, gallery_camids: integers ``[n_gallery]``; pid −1 is junk.
      excluders: what is left out of each query's ranking (see :mod:`han_tf.metrics.excluders`). None is the
        field's protocol: junk, and images of the query's pid from the query's camera.
      topk: length of the per-query lists of nearest images; 0 for none.
      max_rank: length of the CMC curve.
      camera_pairs: whether to make the table per pair of cameras.
      memory_mb: memory to use beside features or distances, in MiB.
      threads: threads that rank; the number of cores if None. Results do not depend on it.
      progress: whether to show a progress bar.

    Raises:
      UserError: labels that do not fit, negative or missing camera ids, no query with a match, NaN or
        infinite distances.
    """
    source = distances if isinstance(distances, DistanceSource) else MatrixDistances(distances)
    n_query, n_gallery = source.shape
    truth = Truth(source.shape, query_pids, gallery_pids, query_camids, gallery_camids, excluders)
    topk = min(check_count(topk, "topk", 0), n_gallery)
    check_count(max_rank, "max_rank", 1)
    ranker = _Ranker(source, truth, topk, camera_pairs)
    sweep(
        source,
        ranker.visit,
        memory_mb=check_count(memory_mb, "memory_mb", LEAST_MEMORY),
        threads=default_threads(threads),
        label="ranking" if progress else None,
        prepare=ranker.prepare,
        conclude=ranker.conclude,
    )
    places = ranker.places
    matches = np.array([len(p) for p in places], np.int64)
    with_match = matches > 0
    if not with_match.any():
        raise UserError(
            f"none of the {n_query} queries has a match in the gallery, expected images of the same pid "
            "that the excluders leave in (by default: from another camera)"
        )
    ap, ap_trapezoid, inp, curves = _per_query_scores(places)
    first_hit = np.array([p[0] if len(p) else 0 for p in places], np.int64)
    hits = np.bincount(first_hit[with_match & (first_hit <= max_rank)], minlength=max_rank + 1)
    is_junk = truth.gallery_pids == JUNK_PID
    return RankingResult(
        cmc=np.cumsum(hits[1:]) / with_match.sum(),
        mAP=_mean(ap[with_match]),
        mAP_trapezoid=_mean(ap_trapezoid[with_match]),
        mINP=_mean(inp[with_match]),
        precision_recall=curves,
        queries=n_query,
        gallery=n_gallery,
        junk=int(is_junk.sum()),
        distractors=int((~is_junk & ~np.isin(truth.gallery_pids, truth.query_pids)).sum()),
        queries_without_match=int((~with_match).sum()),
        query_pids=truth.query_pids,
        query_camids=truth.query_camids,
        matches=matches,
        first_hit=first_hit,
        ap=ap,
        ap_trapezoid=ap_trapezoid,
        inp=inp,
        topk_indices=ranker.top.columns,
        topk_distances=source.report(ranker.top.values),
        camera_pairs=_camera_table(truth.query_camids, ranker.pair_places),
    )


class _Ranker:
    """Finds every true match's place in the ranking, and the top-k lists.

    Attributes:
      places: per query the places of its matches, from 1, int64, rising.
      pair_places: the same among the images of one camera, by camera; empty without ``camera_pairs``.
      top: the top-k lists.
    """

    def __init__(self, source: DistanceSource, truth: Truth, topk: int, camera_pairs: bool):
        self.source = source
        self.truth = truth
        self.top = FirstK(source, topk)
        self.camids = truth.gallery_camids if camera_pairs else None
        self.places: list[np.ndarray] = [np.empty(0, np.int64)] * source.shape[0]
        self.pair_places: list[dict[int, np.ndarray]] = [{}] * source.shape[0]

    def prepare(self, rows: slice) -> "_Standing":
        stripe = self.truth.stripe(rows)
        return _Standing(
            stripe=stripe,
            exact=self.source.exact(stripe.queries, stripe.columns),
            before=np.zeros(len(stripe.columns), np.int64),
            pair_before=np.zeros(len(stripe.columns), np.int64),
            camids=None if self.camids is None else self.camids[stripe.columns],
        )

    def visit(self, standing: "_Standing", rows: slice, fast: np.ndarray, part: slice) -> None:
        """Counts, for each match of the stripe, the images of ``part`` that lie before it."""
        stripe = standing.stripe
        own = (stripe.columns >= part.start) & (stripe.columns < part.stop)
        margins = self._margins(standing, own, fast, part)
        low, high = bracket(standing.exact, np.repeat(margins, np.diff(stripe.ends)), fast.dtype)
        self.truth.exclude(stripe, fast, part)
        top_limits = self.top.limits(fast, margins, rows)
        camids = None if self.camids is None else self.camids[part]

        close_slots, close_columns = [], []  # pairs too close to call by the fast values
        top_local, top_columns = [], []
        for i, row in enumerate(fast):
            slots = slice(stripe.ends[i], stripe.ends[i + 1])
            limit = max(top_limits[i], high[slots].max(initial=-np.inf))
            chosen = row < limit
            values, indices = row, None
            if np.count_nonzero(chosen) * 4 < len(row):
                indices = np.flatnonzero(chosen)
                values = row[indices]
            if self.top.k:
                near = np.flatnonzero(values < top_limits[i])
                top_local.append(np.full(len(near), i))
                top_columns.append(near if indices is None else indices[near])
            if slots.start == slots.stop:
                continue
            before, close = _count(values, low[slots], high[slots], own[slots])
            standing.before[slots] += before
            if camids is not None:
                cameras = camids if indices is None else camids[indices]
                standing.pair_before[slots] += _count_by_camera(values, cameras, low[slots], standing.camids[slots])
            for slot, positions in close:
                close_slots.append(np.full(len(positions), slots.start + slot))
                close_columns.append(positions if indices is None else indices[positions])
        if close_slots:
            self._settle(standing, np.concatenate(close_slots), np.concatenate(close_columns) + part.start)
        if top_local:
            local, columns = np.concatenate(top_local), np.concatenate(top_columns)
            ranked = np.isfinite(fast[local, columns])
            self.top.add(rows, local[ranked], columns[ranked] + part.start)

    def _margins(self, standing: "_Standing", own: np.ndarray, fast: np.ndarray, part: slice) -> np.ndarray:
        """Returns the source's margins, the worst-case ones if the matches' errors come near the others."""
        stripe = standing.stripe
        margins = self.source.margins(stripe.rows, part)
        if margins.any() and own.any():
            local = stripe.queries[own] - stripe.rows.start
            errors = np.abs(fast[local, stripe.columns[own] - part.start] - standing.exact[own])
            if (errors > margins[local] / 2).any():
                return self.source.margins(stripe.rows, part, careful=True)
        return margins

    def _settle(self, standing: "_Standing", slots: np.ndarray, columns: np.ndarray) -> None:
        """Decides by exact values, then by gallery order, which images lie before a match."""
        stripe = standing.stripe
        exact = self.source.exact(stripe.queries[slots], columns)
        target = standing.exact[slots]
        before = (exact < target) | ((exact == target) & (columns < stripe.columns[slots]))
        standing.before += np.bincount(slots[before], minlength=len(standing.before))
        if self.camids is not None:
            before &= self.camids[columns] == standing.camids[slots]
            standing.pair_before += np.bincount(slots[before], minlength=len(standing.before))

    def conclude(self, standing: "_Standing") -> None:
        """Sorts each query's places; a place is 1 + the number of images before it."""
        stripe = standing.stripe
        for i, query in enumerate(range(stripe.rows.start, stripe.rows.stop)):
            slots = slice(stripe.ends[i], stripe.ends[i + 1])
            self.places[query] = np.sort(standing.before[slots]) + 1
            if standing.camids is not None:
                places = standing.pair_before[slots] + 1
                cameras = standing.camids[slots]
                self.pair_places[query] = {
                    int(camera): np.sort(places[cameras == camera]) for camera in np.unique(cameras)
                }


@dataclass
class _Standing:
    """How far the matches of a stripe are ranked.

    Attributes:
      stripe: the queries and their matches, the slots.
      exact: exact value of each slot.
      before, pair_before: images seen so far that lie before each slot: in all, and on its own camera.
      camids: camera of each slot's gallery image; None without a table per camera pair.
    """

    stripe: Stripe
    exact: np.ndarray
    before: np.ndarray
    pair_before: np.ndarray
    camids: Optional[np.ndarray]


def _count(
    values: np.ndarray, low: np.ndarray, high: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Compares ``values`` with the bracket [low, high) of each match.

    Args:
      values: floats ``[n]``.
      low, high: floats ``[matches]``.
      own: bool ``[matches]``; whether the match's own value, which always lies in its bracket, is in ``values``.

    Returns:
      The number of values below each ``low``; and (match, where the values in its bracket are) for each match
      that has others than its own.
    """
    n = len(low)
    if n > FEW_MATCHES:
        order = np.argsort(values)
        ordered = values[order]
        starts, stops = np.searchsorted(ordered, low), np.searchsorted(ordered, high)
        return starts, [(j, order[starts[j] : stops[j]]) for j in np.flatnonzero(stops - starts > own)]
    below = np.less(values, np.concatenate([low, high])[:, None])
    counts = np.array([np.count_nonzero(row) for row in below])
    crowded = np.flatnonzero(counts[n:] - counts[:n] > own)
    return counts[:n], [(j, np.flatnonzero(below[j] != below[n + j])) for j in crowded]


def _count_by_camera(values: np.ndarray, cameras: np.ndarray, low: np.ndarray, match_cameras: np.ndarray) -> np.ndarray:
    """Returns, for each match, the number of values below ``low`` among those of its own camera."""
    counts = np.empty(len(low), np.int64)
    for camera in np.unique(match_cameras):
        mine = match_cameras == camera
        ordered = np.sort(values[cameras == camera])
        counts[mine] = np.searchsorted(ordered, low[mine])
    return counts


def _per_query_scores(
    places: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns AP, trapezoid AP and INP, each ``[n_query]``, and the mean precision–recall curve.

    Args:
      places: per query the places of its matches, from 1, rising; may be empty.
    """
    n_query = len(places)
    ap, trapezoid, inp = (np.full(n_query, np.nan) for _ in range(3))
    lengths = np.array([len(p) for p in places])
    curves = np.full((n_query, len(RECALL_LEVELS)), np.nan)
    for length in np.unique(lengths[lengths > 0]):
        queries = np.flatnonzero(lengths == length)
        place = np.stack([places[q] for q in queries]).astype(np.float64)
        hits = np.arange(1, length + 1)
        precision = hits / place
        # Before a match at place p there are p − 1 images with one hit less; at place 1 MATLAB's code says 1.
        previous = np.where(place > 1, (hits - 1) / np.maximum(place - 1, 1), 1.0)
        # Added one by one, as a plain loop does, so that a reader's loop gives the same last digit.
        ap[queries] = np.cumsum(precision, axis=1)[:, -1] / length
        trapezoid[queries] = np.cumsum((previous + precision) / 2, axis=1)[:, -1] / length
        inp[queries] = length / place[:, -1]
        best_from = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        needed = np.maximum(np.ceil(RECALL_LEVELS * length - 1e-9).astype(int), 1)
        curves[queries] = best_from[:, needed - 1]
    return ap, trapezoid, inp, curves[lengths > 0].mean(axis=0) if (lengths > 0).any() else curves[0]


def _camera_table(query_camids: np.ndarray, pair_places: Sequence[dict[int, np.ndarray]]) -> tuple[CameraPair, ...]:
    table: dict[tuple[int, int], tuple[list[bool], list[float]]] = {}
    for query_camid, places in zip(query_camids.tolist(), pair_places):
        for gallery_camid, place in places.items():
            firsts, aps = table.setdefault((query_camid, gallery_camid), ([], []))
            firsts.append(place[0] == 1)
            aps.append(float(np.cumsum(np.arange(1, len(place) + 1) / place)[-1] / len(place)))
    return tuple(
        CameraPair(*cameras, queries=len(firsts), rank1=sum(firsts) / len(firsts), mAP=_mean(aps))
        for cameras, (firsts, aps) in sorted(table.items())
    )


def _mean(values: Any) -> float:
    """Returns the correctly rounded mean, whatever the order of ``values``."""
    return math.fsum(values) / len(values)
