"""CMC, mAP and mINP of a ranked gallery, from features or from distances, in bounded memory.

The gallery is never sorted. All metrics follow from each true match's place in the ranking, and that is the
number of gallery images that lie before it: nearer, or equally near and earlier in the gallery.
"""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, write_npz
from han_tf.metrics.blocks import bracket, sweep, trusted_margins
from han_tf.metrics.checks import check_count, check_memory, default_threads
from han_tf.metrics.distances import DistanceSource, FeatureDistances, MatrixDistances
from han_tf.metrics.excluders import JUNK_PID, Excluder
from han_tf.metrics.nearest import FirstK
from han_tf.metrics.truth import Stripe, Truth

REPORTED_RANKS = (1, 5, 10, 20)
"""Ranks of the CMC curve that reports show."""

RECALL_LEVELS = np.linspace(0, 1, 101)
"""Recall levels of the precision–recall curve."""

FEW_MATCHES = 32
"""Up to so many matches, a query's values are compared with each one; beyond, they are sorted."""

FEW_VALUES = 4096
"""Below so many values, sorting them is quicker even for few matches."""

SETTLED_VALUES = 8192
"""About so many values are settled by exact ones at a time; those of one query always together."""


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

    def save_npz(
        self,
        path: Union[str, os.PathLike],
        query_names: Optional[Sequence[str]] = None,
        gallery_names: Optional[Sequence[str]] = None,
    ) -> None:
        """Writes the curves and all per-query arrays to a NumPy archive.

        Args:
          path: the file.
          query_names: as for :meth:`save_csv`; written as ``query_names``, ``[queries]`` strings.
          gallery_names: likewise; those of the top-k lists are written as ``topk_names``, ``[queries, topk]``,
            empty where there are no more images.

        Raises:
          UserError: a list of names has the wrong length.
        """
        self._check_names(query_names, gallery_names)
        named = {}
        if query_names is not None:
            named["query_names"] = np.asarray(query_names, np.str_)
        if gallery_names is not None:
            chosen = np.asarray(gallery_names, np.str_)[self.topk_indices]
            named["topk_names"] = np.where(self.topk_indices < 0, "", chosen)
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
        write_npz(path, **{name: getattr(self, name) for name in names}, **named)

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
        self._check_names(query_names, gallery_names)
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
            # A file's name may hold bytes that are no text.
            stream.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def _check_names(self, query_names: Optional[Sequence[str]], gallery_names: Optional[Sequence[str]]) -> None:
        for names, what, count in (
            (query_names, "query_names", self.queries),
            (gallery_names, "gallery_names", self.gallery),
        ):
            if names is not None and len(names) != count:
                raise UserError(f"{what} has {len(names)} entries, expected {count}")


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
      memory_mb: memory to use beside features or distances, in MiB; what is kept of each match and the top-k lists
        are part of it.
      threads: threads that rank; the number of cores if None. Results do not depend on it.
      progress: whether to show a progress bar.

    Raises:
      UserError: labels that do not fit, negative or missing camera ids, no query with a match, NaN or
        infinite distances, a budget too small.
    """
    source = distances if isinstance(distances, DistanceSource) else MatrixDistances(distances)
    n_query, n_gallery = source.shape
    truth = Truth(source.shape, query_pids, gallery_pids, query_camids, gallery_camids, excluders)
    topk = min(check_count(topk, "topk", 0), n_gallery)
    check_count(max_rank, "max_rank", 1)
    memory_mb = check_memory(memory_mb, n_gallery, truth.same_pid_pairs, n_query * topk)
    ranker = _Ranker(source, truth, topk, camera_pairs)
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
    per_query = _Scores(ranker.queries, ranker.places)
    scored = per_query.groups
    if not len(scored):
        raise UserError(
            f"none of the {n_query} queries has a match in the gallery, expected images of the same pid "
            "that the excluders leave in (by default: from another camera)"
        )
    hits = np.bincount(per_query.first, minlength=max_rank + 1)[1 : max_rank + 1]
    is_junk = truth.gallery_pids == JUNK_PID
    matches, first_hit = np.zeros((2, n_query), np.int64)
    ap, ap_trapezoid, inp = np.full((3, n_query), np.nan)
    matches[scored], first_hit[scored] = per_query.matches, per_query.first
    ap[scored], ap_trapezoid[scored], inp[scored] = per_query.ap, per_query.ap_trapezoid, per_query.inp
    return RankingResult(
        cmc=np.cumsum(hits) / len(scored),
        mAP=_mean(per_query.ap),
        mAP_trapezoid=_mean(per_query.ap_trapezoid),
        mINP=_mean(per_query.inp),
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


@dataclass
class _Standing:
    """How far the matches of a stripe are ranked.

    Attributes:
      stripe: the queries and their matches, the slots.
      cameras: camera of each slot's gallery image, numbered from 0.
      before, pair_before: images seen so far that lie before each slot: in all, and on its own camera.
      exact: exact value of each slot; None until it is needed.
    """

    stripe: Stripe
    cameras: np.ndarray
    before: np.ndarray
    pair_before: np.ndarray
    exact: Optional[np.ndarray] = None


class _Ranker:
    """Finds every true match's place in the ranking, and the top-k lists.

    Args:
      source: the distances.
      truth: the labels.
      topk: length of the lists.
      camera_pairs: whether to rank the matches among the images of their own camera as well.

    Attributes:
      top: the top-k lists.
      queries, cameras: query and gallery camera (an index of ``camids``) of each match, int64 ``[matches]``.
      places, pair_places: its place in the ranking, from 1: in all, and on its own camera; int64.
      camids: the gallery's camera ids.
    """

    def __init__(self, source: DistanceSource, truth: Truth, topk: int, camera_pairs: bool):
        self.source = source
        self.truth = truth
        self.top = FirstK(source, topk)
        self.camera_pairs = camera_pairs
        self.camids, camera_of = np.unique(truth.gallery_camids, return_inverse=True)
        self._camera_of = camera_of.astype(np.int32)
        self._done: list[_Standing] = []

    def prepare(self, rows: slice) -> _Standing:
        stripe = self.truth.stripe(rows)
        before, pair_before = np.zeros((2, len(stripe.columns)), np.int64)
        return _Standing(stripe, self._camera_of[stripe.columns], before, pair_before)

    def visit(self, standing: _Standing, rows: slice, fast: np.ndarray, part: slice) -> None:
        """Counts, for each match of the stripe, the images of ``part`` that lie before it."""
        stripe = standing.stripe
        local = stripe.queries - rows.start
        low, high, margins = self._brackets(standing, local, rows, fast, part)
        self.truth.exclude(stripe, fast, part)
        top_limits = self.top.limits(fast, margins, rows)
        limits = top_limits.copy()
        np.maximum.at(limits, local, high)
        seen = _Seen(fast, limits)
        if self.top.k:
            near = seen.values < top_limits[seen.rows]
            near &= np.isfinite(seen.values)
            near_rows, near_columns = seen.rows[near], seen.columns[near] + part.start
            self.top.add(rows, near_rows, near_columns, self.source.exact(near_rows + rows.start, near_columns))

        counts = _Counts(seen, stripe.ends, low, high)
        own = (stripe.columns >= part.start) & (stripe.columns < part.stop)
        if self.camera_pairs:
            counts.run(own, self._camera_of[part], standing.cameras)
            standing.pair_before += counts.below_of_same
        else:
            counts.run(own)
        standing.before += counts.below
        ends = np.cumsum([len(places) for _, places in counts.close]) // SETTLED_VALUES
        for number in np.unique(ends):
            chosen = [counts.close[i] for i in np.flatnonzero(ends == number)]
            slots, places = (np.concatenate(arrays) for arrays in zip(*chosen))
            self._settle(standing, slots, counts.low[slots], seen, places, part)

    def _brackets(
        self, standing: _Standing, local: np.ndarray, rows: slice, fast: np.ndarray, part: slice
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns each slot's bracket, and each query's bound on |fast − exact|."""
        stripe = standing.stripe
        if part.stop - part.start == self.source.shape[1]:
            # All the fast values are here: they differ from a slot's own by at most two bounds where the exact
            # ones tie, and one exact value per query is enough to check the bound.
            first = stripe.ends[:-1][np.diff(stripe.ends) > 0]
            probes = local[first], stripe.columns[first]
            exact = self.source.exact(stripe.queries[first], stripe.columns[first])
            margins = trusted_margins(self.source, rows, part, fast, (*probes, exact))
            low, high = bracket(fast[local, stripe.columns], 2 * margins[local], fast.dtype)
        else:
            exact = self._exact(standing)
            own = (stripe.columns >= part.start) & (stripe.columns < part.stop)
            margins = trusted_margins(
                self.source, rows, part, fast, (local[own], stripe.columns[own] - part.start, exact[own])
            )
            low, high = bracket(exact, margins[local], fast.dtype)
        return low, high, margins

    def _exact(self, standing: _Standing) -> np.ndarray:
        if standing.exact is None:
            standing.exact = self.source.exact(standing.stripe.queries, standing.stripe.columns)
        return standing.exact

    def _settle(
        self, standing: _Standing, slots: np.ndarray, low: np.ndarray, seen: "_Seen", places: np.ndarray, part: slice
    ) -> None:
        """Decides by exact values, then by gallery order, which images lie before a match.

        Args:
          standing: of the stripe.
          slots: matches of some queries.
          low: floats ``[slots]``; values below have been counted.
          seen: the values, those of the gallery images ``part``.
          places: integers, rising; which of them lie in the bracket of one of ``slots``.
        """
        queries, own = standing.stripe.queries[slots], standing.stripe.columns[slots]
        rows, columns = seen.rows[places] + standing.stripe.rows.start, seen.columns[places] + np.int64(part.start)
        exact = self.source.exact(rows, columns)
        if standing.exact is None:  # the whole gallery is here, the matches too
            n = self.source.shape[1]
            target = exact[np.searchsorted(np.multiply(rows, n, dtype=np.int64) + columns, queries * n + own)]
        else:
            target = standing.exact[slots]
        values = seen.values[places]
        standing.before[slots] += _smaller((own, target, queries), (columns, exact, rows))
        standing.before[slots] -= _smaller((low, queries), (values, rows))
        if self.camera_pairs:
            streams = queries * len(self.camids) + standing.cameras[slots]
            row_streams = np.multiply(rows, len(self.camids), dtype=np.int64) + self._camera_of[columns]
            standing.pair_before[slots] += _smaller((own, target, streams), (columns, exact, row_streams))
            standing.pair_before[slots] -= _smaller((low, streams), (values, row_streams))

    def conclude(self, standing: _Standing) -> None:
        self._done.append(standing)

    def finish(self) -> None:
        """Makes the arrays, once all stripes are concluded."""
        done = sorted(self._done, key=lambda standing: standing.stripe.rows.start)
        self.queries = np.concatenate([standing.stripe.queries for standing in done])
        self.cameras = np.concatenate([standing.cameras for standing in done])
        self.places = 1 + np.concatenate([standing.before for standing in done])
        self.pair_places = 1 + np.concatenate([standing.pair_before for standing in done])


class _Seen:
    """The values of a stripe below each query's limit, in the order of the gallery.

    Args:
      fast: floats ``[rows, n]``.
      limits: floats ``[rows]``.

    Attributes:
      values: floats ``[seen]``, query by query.
      rows, columns: int32 ``[seen]``; where they stand in ``fast``.
      ends: int64 ``[rows + 1]``; query i has ``ends[i] : ends[i + 1]``.
    """

    def __init__(self, fast: np.ndarray, limits: np.ndarray):
        n = fast.shape[1]
        flat = np.flatnonzero(fast < limits[:, None])
        self.values = fast.ravel()[flat]
        self.ends = flat.searchsorted(np.arange(len(fast) + 1) * n)
        self.rows = np.repeat(np.arange(len(fast), dtype=np.int32), np.diff(self.ends))
        flat -= np.multiply(self.rows, n, dtype=np.int64)
        self.columns = flat.astype(np.int32)


class _Counts:
    """Compares the values of a stripe with the bracket [low, high) of each match of their query.

    Args:
      seen: the values.
      slot_ends: int64 ``[rows + 1]``; query i has the slots ``slot_ends[i] : slot_ends[i + 1]``.
      low, high: floats ``[slots]``.

    Attributes:
      below: int64 ``[slots]``; the number of values below each ``low``.
      below_of_same: int64 ``[slots]``; the number of them from the match's own camera.
      close: for each query that has slots with others than the match itself in their bracket: these slots, int64,
        and which of the values lie in at least one of their brackets, int32, rising.
    """

    def __init__(self, seen: _Seen, slot_ends: np.ndarray, low: np.ndarray, high: np.ndarray):
        self.seen = seen
        self.slot_ends = slot_ends
        self.low, self.high = low, high
        self.below, self.below_of_same = np.zeros((2, len(low)), np.int64)
        self.close: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self, own: np.ndarray, cameras: Optional[np.ndarray] = None, own_cameras: Optional[np.ndarray] = None):
        """Fills the attributes.

        Args:
          own: bool ``[slots]``; whether the match's own value, which always lies in its bracket, may be among
            the values.
          cameras: integers ``[n]``, from 0; the camera of each column. None: ``below_of_same`` stays 0.
          own_cameras: integers ``[slots]``; the camera of each match.
        """
        groups = None if cameras is None else cameras[self.seen.columns]
        order = np.full(len(self.seen.values), -1, np.int32)  # of the sorted queries' values; −1 for the others
        ends, slot_ends = self.seen.ends.tolist(), self.slot_ends.tolist()
        for row in range(len(ends) - 1):
            slots, mine = slice(slot_ends[row], slot_ends[row + 1]), slice(ends[row], ends[row + 1])
            matches = slots.stop - slots.start
            if not matches:
                continue
            if matches > FEW_MATCHES or mine.stop - mine.start < FEW_VALUES:
                order[mine] = self._sort(slots, mine, own[slots])
            elif groups is None:
                self._compare(slots, mine, own[slots])
            else:
                self._compare(slots, mine, own[slots], groups[mine], own_cameras[slots])
        if groups is not None:
            self._count_same(order, groups, own_cameras)

    def _sort(self, slots: slice, mine: slice, own: np.ndarray) -> np.ndarray:
        """Counts for one query by sorting its values; returns their order."""
        values = self.seen.values[mine]
        order = values.argsort()
        counts = values[order].searchsorted(np.concatenate([self.low[slots], self.high[slots]]))
        below, up_to = counts[: len(own)], counts[len(own) :]
        self.below[slots] = below
        close = (up_to - below > own).nonzero()[0]
        if len(close):
            is_close = np.zeros(len(values), bool)
            for j in close.tolist():
                is_close[below[j] : up_to[j]] = True
            self._keep_close(slots, close, mine, np.sort(order[is_close]))
        return order

    def _compare(
        self,
        slots: slice,
        mine: slice,
        own: np.ndarray,
        groups: Optional[np.ndarray] = None,
        own_groups: Optional[np.ndarray] = None,
    ) -> None:
        """Counts for one query by comparing its values with each bracket."""
        values = self.seen.values[mine]
        is_below = values < self.low[slots, None]
        is_up_to = values < self.high[slots, None]
        below = [np.count_nonzero(found) for found in is_below]
        up_to = [np.count_nonzero(found) for found in is_up_to]
        self.below[slots] = below
        close = (np.subtract(up_to, below) > own).nonzero()[0]
        if len(close):
            is_close = np.logical_or.reduce([is_below[j] != is_up_to[j] for j in close])
            self._keep_close(slots, close, mine, is_close.nonzero()[0])
        if groups is not None:
            is_below &= groups == own_groups[:, None]
            self.below_of_same[slots] = [np.count_nonzero(found) for found in is_below]

    def _keep_close(self, slots: slice, close: np.ndarray, mine: slice, places: np.ndarray) -> None:
        self.close.append((slots.start + close, (mine.start + places).astype(np.int32)))

    def _count_same(self, order: np.ndarray, groups: np.ndarray, own_groups: np.ndarray) -> None:
        """Counts the values from the match's own camera for all the sorted queries.

        Values get the key (query, camera, place among the query's sorted values). Those of one query and camera
        then stand together, and two searches tell how many of them lie before a place.
        """
        seen = self.seen
        is_sorted = order >= 0
        place = np.flatnonzero(is_sorted)
        rows = seen.rows[place]
        streams = int(max(groups.max(initial=0), own_groups.max(initial=0))) + 1
        most = np.int64(len(order) + 1)
        first = seen.ends[rows]
        keys = groups[first + order[place]] + np.multiply(rows, streams, dtype=np.int64)
        keys *= most
        keys += place - first
        keys.sort()
        slot_rows = np.repeat(np.arange(len(self.slot_ends) - 1), np.diff(self.slot_ends))
        start = (slot_rows * streams + own_groups) * most
        # A query that was compared has no keys, so that it gets 0 here.
        self.below_of_same += keys.searchsorted(start + self.below) - keys.searchsorted(start)


def _smaller(targets: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how many of ``values`` are smaller than each target of the same group, int64 ``[targets]``.

    Args:
      targets: keys, each ``[targets]``, the last one the group, the others by rising weight.
      values: keys likewise, each ``[n]``.
    """
    n = len(targets[0])
    # Of equals the target comes first.
    order = np.lexsort([np.concatenate(keys) for keys in zip(targets, values)])
    found = np.flatnonzero(order < n)
    counts = np.empty(n, np.int64)
    counts[order[found]] = found - np.arange(n)
    return counts - np.sort(values[-1]).searchsorted(targets[-1])


class _Scores:
    """Scores of the groups that matches fall into.

    Args:
      groups: int64 ``[matches]``; which ranking a match is in, e.g. that of which query.
      places: int64 ``[matches]``; its place there, from 1.

    Attributes:
      groups: int64 ``[groups]``; the distinct groups, rising.
      matches, first: int64 ``[groups]``; number of matches, and the first one's place.
      ap, ap_trapezoid, inp: float64 ``[groups]``.
    """

    def __init__(self, groups: np.ndarray, places: np.ndarray):
        order = np.lexsort((places, groups))
        self.places = places[order]
        self.groups, self.starts, self.matches = np.unique(groups[order], return_index=True, return_counts=True)
        self.first = self.places[self.starts]
        self.ap, self.ap_trapezoid, self.inp = np.empty((3, len(self.groups)))
        for chosen, place, precision in self._by_length():
            length = place.shape[1]
            hits = np.arange(1, length + 1)
            # Just before a match at place p there is one hit less among p − 1 images; MATLAB's code starts at 1.
            previous = np.where(place > 1, (hits - 1) / np.maximum(place - 1, 1), 1.0)
            # Added one by one, as a plain loop does, so that a reader's loop gives the same last digit.
            self.ap[chosen] = np.cumsum(precision, axis=1)[:, -1] / length
            self.ap_trapezoid[chosen] = np.cumsum((previous + precision) / 2, axis=1)[:, -1] / length
            self.inp[chosen] = length / place[:, -1]

    def precision_recall(self) -> np.ndarray:
        """Returns the mean over groups of the best precision at each recall level or beyond, float64 ``[101]``."""
        curves = np.empty((len(self.groups), len(RECALL_LEVELS)))
        for chosen, place, precision in self._by_length():
            best_from = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            # 0.07 · 100 is a little more than 7, yet needs no eighth hit.
            hits = np.ceil(RECALL_LEVELS * place.shape[1] - 1e-9).astype(int)
            curves[chosen] = best_from[:, np.maximum(hits, 1) - 1]
        return curves.mean(axis=0)

    def _by_length(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields groups with equally many matches: which, their places and the precision there, a row each."""
        for length in np.unique(self.matches):
            chosen = np.flatnonzero(self.matches == length)
            place = self.places[self.starts[chosen, None] + np.arange(length)]
            yield chosen, place, np.arange(1, length + 1) / place


def _camera_table(truth: Truth, ranker: _Ranker) -> tuple[CameraPair, ...]:
    n = len(ranker.camids)
    scores = _Scores(ranker.queries * n + ranker.cameras, ranker.pair_places)
    query_camids, gallery_camids = truth.query_camids[scores.groups // n], ranker.camids[scores.groups % n]
    pairs = []
    for query_camid, gallery_camid in sorted(set(zip(query_camids.tolist(), gallery_camids.tolist()))):
        mine = (query_camids == query_camid) & (gallery_camids == gallery_camid)
        rank1 = float(np.mean(scores.first[mine] == 1))
        pairs.append(CameraPair(query_camid, gallery_camid, int(mine.sum()), rank1, _mean(scores.ap[mine])))
    return tuple(pairs)


def _mean(values: np.ndarray) -> float:
    """Returns the correctly rounded mean, whatever the order of ``values``."""
    return math.fsum(values) / len(values)
