"""AP by both definitions, INP and precision–recall curves from the places of the matches."""

import math
from collections.abc import Iterator

import numpy as np

from han_tf.metrics.blocks import slices

RECALL_LEVELS = np.linspace(0, 1, 101)
"""Recall levels of the precision–recall curve."""


CURVES = 1024
"""Number of groups whose curves are in memory at a time: 0.8 MiB."""


class Scores:
    """Scores per group of matches.

    Args:
      groups: int64 ``[matches]``; the ranking to which each match belongs, e.g. its query.
      places: int64 ``[matches]``; its place in that ranking, from 1.

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
            # Precision just before a match at place p: one hit less among p − 1 images; 1 at the start, as in MATLAB.
            previous = np.where(place > 1, (hits - 1) / np.maximum(place - 1, 1), 1.0)
            # cumsum adds the values one by one, so that a plain loop gives the same last digit.
            self.ap[chosen] = np.cumsum(precision, axis=1)[:, -1] / length
            self.ap_trapezoid[chosen] = np.cumsum((previous + precision) / 2, axis=1)[:, -1] / length
            self.inp[chosen] = length / place[:, -1]

    def precision_recall(self) -> np.ndarray:
        """Returns the mean over groups of the best precision at each recall level or beyond, float64 ``[101]``."""
        total = np.zeros(len(RECALL_LEVELS))
        for _, place, precision in self._by_length():
            best_from = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            # Without the 1e-9, rounding errors would count: 0.07 · 100 is slightly more than 7.
            hits = np.ceil(RECALL_LEVELS * place.shape[1] - 1e-9).astype(int)
            for rows in slices(0, len(place), CURVES):
                total += best_from[rows][:, np.maximum(hits, 1) - 1].sum(axis=0)
        return total / len(self.groups)

    def _by_length(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields, for groups with equally many matches, their indices, and places and precisions, one row per group."""
        for length in np.unique(self.matches):
            chosen = np.flatnonzero(self.matches == length)
            place = self.places[self.starts[chosen, None] + np.arange(length)]
            yield chosen, place, np.arange(1, length + 1) / place


def mean(values: np.ndarray) -> float:
    """Returns the mean, with a sum that is correctly rounded and thus independent of the order of ``values``."""
    return math.fsum(values) / len(values)
