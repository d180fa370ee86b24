"""Each true match's place in the ranking, without sorting the gallery, and the nearest images of each query.

A match's place is 1 plus the number of gallery images before it: nearer ones, and equally near ones that come earlier
in the gallery. Images that are clearly nearer are counted by fast distances; those within the error bound are compared
by exact distances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from han_tf.metrics.blocks import bracket, trusted_margins
from han_tf.metrics.distances import DistanceSource
from han_tf.metrics.nearest import FirstK
from han_tf.metrics.truth import Stripe, Truth

FEW_MATCHES = 32
"""Up to this many matches, a query's values are compared with each match; with more, the values are sorted."""

FEW_VALUES = 4096
"""Below this many values, sorting them is faster even for few matches."""

SETTLED_VALUES = 8192
"""Approximate number of values that are compared exactly at a time; those of one query are never divided."""


@dataclass
class _Standing:
    """The state of ranking the matches of a stripe.

    Attributes:
      stripe: the queries and their matches, the slots.
      cameras: camera of each slot's gallery image, numbered from 0.
      before, pair_before: number of images so far that come before each slot: in all, and on its own camera.
      exact: exact value of each slot; None until it is needed.
    """

    stripe: Stripe
    cameras: np.ndarray
    before: np.ndarray
    pair_before: np.ndarray
    exact: Optional[np.ndarray] = None


class Ranker:
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
        """Returns the initial state of a stripe with the queries ``rows``."""
        stripe = self.truth.stripe(rows)
        before, pair_before = np.zeros((2, len(stripe.columns)), np.int64)
        return _Standing(stripe, self._camera_of[stripe.columns], before, pair_before)

    def visit(self, standing: _Standing, rows: slice, fast: np.ndarray, part: slice) -> None:
        """Counts, for each match of the stripe, the images of ``part`` that come before it."""
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
            # ``fast`` covers the whole gallery: fast values whose exact values tie differ by at most two bounds, and
            # one exact value per query is enough to check the bound.
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
        """Counts, by exact values and then by gallery order, the images within the brackets that come before a match.

        Args:
          standing: the state of the stripe.
          slots: matches of some queries.
          low: floats ``[slots]``; values below have been counted.
          seen: the values of the gallery images ``part``.
          places: integers, rising; indices of the values in the bracket of at least one of ``slots``.
        """
        queries, own = standing.stripe.queries[slots], standing.stripe.columns[slots]
        rows, columns = seen.rows[places] + standing.stripe.rows.start, seen.columns[places] + np.int64(part.start)
        exact = self.source.exact(rows, columns)
        if standing.exact is None:  # ``part`` is the whole gallery, so that ``exact`` includes the matches
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
        """Keeps the state of a stripe for which all gallery images have been visited."""
        self._done.append(standing)

    def finish(self) -> None:
        """Fills the array attributes, after all stripes are concluded."""
        done = sorted(self._done, key=lambda standing: standing.stripe.rows.start)
        self.queries = np.concatenate([standing.stripe.queries for standing in done])
        self.cameras = np.concatenate([standing.cameras for standing in done])
        self.places = 1 + np.concatenate([standing.before for standing in done])
        self.pair_places = 1 + np.concatenate([standing.pair_before for standing in done])


class _Seen:
    """The values of a stripe below their query's limit, in gallery order.

    Args:
      fast: floats ``[rows, n]``.
      limits: floats ``[rows]``.

    Attributes:
      values: floats ``[seen]``, query by query.
      rows, columns: int32 ``[seen]``; their indices in ``fast``.
      ends: int64 ``[rows + 1]``; the values of query i are ``ends[i] : ends[i + 1]``.
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
      close: for each query with slots whose bracket holds values other than the match's own: these slots, int64, and
        the indices of the values in at least one of their brackets, int32, rising.
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
          own: bool ``[slots]``; whether the match's own value, which always lies in its bracket, is among the values.
          cameras: integers ``[n]``, from 0; the camera of each column. None: ``below_of_same`` stays 0.
          own_cameras: integers ``[slots]``; the camera of each match.
        """
        groups = None if cameras is None else cameras[self.seen.columns]
        order = np.full(len(self.seen.values), -1, np.int32)  # sort order per query; −1 for queries that are not sorted
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
        """Counts for one query by sorting its values; returns their sort order."""
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
        """Counts the values from the match's own camera for all sorted queries.

        The values are sorted by the key (query, camera, place among the query's sorted values). Two binary searches
        then count the values of one query and camera before a place.
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
        # Queries that were not sorted have no keys, so that 0 is added for them.
        self.below_of_same += keys.searchsorted(start + self.below) - keys.searchsorted(start)


def _smaller(targets: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how many of ``values`` are smaller than each target of the same group, int64 ``[targets]``.

    Args:
      targets: sort keys as for ``np.lexsort``, each ``[targets]``; the last one is the group.
      values: sort keys likewise, each ``[n]``.
    """
    n = len(targets[0])
    # The sort is stable, so that a target comes before equal values.
    order = np.lexsort([np.concatenate(keys) for keys in zip(targets, values)])
    found = np.flatnonzero(order < n)
    counts = np.empty(n, np.int64)
    counts[order[found]] = found - np.arange(n)
    return counts - np.sort(values[-1]).searchsorted(targets[-1])
