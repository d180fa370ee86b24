"""The gallery images that match each query, and those that are left out of its ranking."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.metrics.checks import check_camids, check_labels
from han_tf.metrics.excluders import JUNK_PID, Excluder, junk, same_pid_and_camera

KEPT_EXCLUDED = 4096
"""Longest list of left-out images per query that is kept; for longer ones the excluders are called again."""


@dataclass
class Stripe:
    """A few queries with their matches; a "slot" is one match of one query.

    Attributes:
      rows: the queries.
      excluded: per query the left-out images, or None to call the excluders again.
      ends: int64 ``[len(rows) + 1]``; the slots of query i are ``ends[i] : ends[i + 1]``.
      queries, columns: int64 ``[slots]``; query and gallery image of each slot.
    """

    rows: slice
    excluded: list[Optional[list[np.ndarray]]]
    ends: np.ndarray
    queries: np.ndarray
    columns: np.ndarray


class Truth:
    """The labels of queries and gallery, and the protocol.

    Args:
      shape: (n_query, n_gallery).
      query_pids, query_camids: integers ``[n_query]``.
      gallery_pids, gallery_camids: integers ``[n_gallery]``.
      excluders: choose the images left out of each query's ranking; None for the standard protocol: junk, and images
        of the query's pid from the query's camera.

    Attributes:
      same_pid_pairs: number of pairs of a query and a gallery image of its pid, including left-out ones.

    Raises:
      UserError: labels do not match, or camera ids are negative or missing.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        query_pids: Any,
        gallery_pids: Any,
        query_camids: Any,
        gallery_camids: Any,
        excluders: Optional[Sequence[Excluder]] = None,
    ):
        self.shape = n_query, n_gallery = shape
        self.query_pids = check_labels(query_pids, "query_pids", n_query)
        self.gallery_pids = check_labels(gallery_pids, "gallery_pids", n_gallery)
        self.query_camids = check_camids(query_camids, "query_camids", n_query)
        self.gallery_camids = check_camids(gallery_camids, "gallery_camids", n_gallery)
        if excluders is None:
            excluders = (
                junk(self.gallery_pids),
                same_pid_and_camera(self.query_pids, self.gallery_pids, self.query_camids, self.gallery_camids),
            )
        if callable(excluders) or not all(map(callable, excluders)):
            raise UserError(f"excluders is {excluders!r}, expected a sequence of functions")
        self.excluders = tuple(excluders)
        self._by_pid = np.argsort(self.gallery_pids, kind="stable")
        ordered = self.gallery_pids[self._by_pid]
        self._first = np.searchsorted(ordered, self.query_pids, side="left")
        self._last = np.searchsorted(ordered, self.query_pids, side="right")
        # Junk has no matches, not even other junk.
        self._last[self.query_pids == JUNK_PID] = self._first[self.query_pids == JUNK_PID]
        self.same_pid_pairs = int((self._last - self._first).sum())

    def stripe(self, rows: slice) -> Stripe:
        """Returns the queries ``rows`` with their matches."""
        matches, excluded = [], []
        is_left_out = np.zeros(self.shape[1], bool)
        for query in range(rows.start, rows.stop):
            lists = [self._checked(excluder(query), query) for excluder in self.excluders]
            for found in lists:
                is_left_out[found] = True
            same_pid = self._by_pid[self._first[query] : self._last[query]]
            matches.append(same_pid[~is_left_out[same_pid]])
            for found in lists:
                is_left_out[found] = False
            excluded.append(lists if sum(map(len, lists)) <= KEPT_EXCLUDED else None)
        lengths = [len(m) for m in matches]
        return Stripe(
            rows=rows,
            excluded=excluded,
            ends=np.concatenate([[0], np.cumsum(lengths)]),
            queries=np.repeat(np.arange(rows.start, rows.stop), lengths),
            columns=np.concatenate(matches),
        )

    def exclude(self, stripe: Stripe, fast: np.ndarray, part: slice) -> None:
        """Sets the values of left-out images to infinity in ``fast``, the columns ``part`` of the stripe."""
        everything = part.stop - part.start == self.shape[1]
        for row, lists, query in zip(fast, stripe.excluded, range(stripe.rows.start, stripe.rows.stop)):
            if lists is None:
                lists = [self._checked(excluder(query), query) for excluder in self.excluders]
            for found in lists:
                if not everything:
                    found = found[(found >= part.start) & (found < part.stop)] - part.start
                row[found] = np.inf

    def _checked(self, found: Any, query: int) -> np.ndarray:
        """Returns the result of an excluder as indices.

        Raises:
          UserError: it is neither indices within the gallery nor a boolean mask.
        """
        n_gallery = self.shape[1]
        found = np.asarray(found)
        if found.dtype == bool and found.shape == (n_gallery,):
            return np.flatnonzero(found)
        if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
            raise UserError(
                f"an excluder returned {found.dtype} {list(found.shape)} for query {query}, expected indices or a "
                f"boolean mask [{n_gallery}]"
            )
        found = found.astype(np.int64, copy=False)
        # As unsigned numbers negative indices are very large, so that one comparison finds all wrong ones.
        if len(found) and found.view(np.uint64).max() >= n_gallery:
            wrong = found.min() if found.min() < 0 else found.max()
            raise UserError(f"an excluder returned index {wrong} for query {query}, expected 0 to {n_gallery - 1}")
        return found
