"""Verification: thresholds on distance that decide whether two images show the same person.

All pairs of a query and a gallery image that the protocol ranks are pooled: pairs of one person are genuine, the others
impostors. A pair is accepted if its distance is *below* the threshold.

The distances (10⁹ for MSMT17) are computed twice: once to count impostors in bins of distance, and once to collect the
impostors in the few bins that hold a requested rate. If memory is short, these bins take several passes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.metrics.blocks import sweep, trusted_margins
from han_tf.metrics.checks import GENUINE_BYTES, ROUNDED_UP, check_memory, default_threads
from han_tf.metrics.distances import DistanceSource, MatrixDistances
from han_tf.metrics.excluders import Excluder
from han_tf.metrics.truth import Stripe, Truth

REPORTED_FPR = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""False-positive rates in reports."""

CURVE_FPR = tuple(10.0 ** np.arange(-6, 0.01, 0.125))
"""False-positive rates at which the ROC curve is computed."""

BINS = 2**16
"""Number of bins of distance; see :class:`_Bins`."""

SAMPLED = 128
"""Number of queries, and of gallery images, whose distances determine the range of the bins."""

VALUES_PER_MB = 2**12
"""Exact values of impostors that one pass may collect, per MiB of memory; sorting takes some hundred bytes for each."""

MERGED_FROM = 2**16
"""Number of values collected before equal ones are merged for the first time."""


@dataclass(frozen=True)
class VerificationResult:
    """Rates of true and false positives at thresholds of distance.

    Attributes:
      genuine, impostors: number of pairs.
      wanted_fpr: float64 ``[m]``; the requested false-positive rates.
      thresholds: float64 ``[m]``; the largest threshold whose false-positive rate does not exceed the requested
        one: the distance of an impostor, or infinity if all impostors may be accepted.
      fpr: float64 ``[m]``; the false-positive rate at that threshold; 0 if there are too few impostors to
        measure the requested one.
      tpr: float64 ``[m]``; the true-positive rate at that threshold.
      equal_error_rate: the rate at which the ROC polygon has equally many false positives and false negatives.
      equal_error_threshold: the distance at which the false-positive rate rises to the false-negative rate or above.
      roc_fpr, roc_tpr: float64 ``[points]``; the ROC curve at fixed false-positive rates from 1e-6 to 1.
    """

    genuine: int
    impostors: int
    wanted_fpr: np.ndarray
    thresholds: np.ndarray
    fpr: np.ndarray
    tpr: np.ndarray
    equal_error_rate: float
    equal_error_threshold: float
    roc_fpr: np.ndarray
    roc_tpr: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Returns all results as values for JSON; an infinite threshold is None."""
        return {
            "genuine_pairs": self.genuine,
            "impostor_pairs": self.impostors,
            "equal_error_rate": self.equal_error_rate,
            "equal_error_threshold": self.equal_error_threshold,
            "operating_points": [
                {
                    "wanted_fpr": float(wanted),
                    "threshold": float(threshold) if np.isfinite(threshold) else None,
                    "fpr": float(fpr),
                    "tpr": float(tpr),
                }
                for wanted, threshold, fpr, tpr in zip(self.wanted_fpr, self.thresholds, self.fpr, self.tpr)
            ],
            "roc_fpr": self.roc_fpr.tolist(),
            "roc_tpr": self.roc_tpr.tolist(),
        }


def verify(
    distances: Union[np.ndarray, DistanceSource],
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    wanted_fpr: Sequence[float] = REPORTED_FPR,
    excluders: Optional[Sequence[Excluder]] = None,
    memory_mb: int = 1024,
    threads: Optional[int] = None,
    progress: bool = False,
) -> VerificationResult:
    """Returns thresholds, the equal error rate and the ROC curve over all pairs that are ranked.

    Args:
      distances: ``[n_query, n_gallery]``, an array, a memory map or a :class:`DistanceSource`, e.g.
        ``FeatureDistances(query_features, gallery_features)``.
      query_pids, query_camids: integers ``[n_query]``.
      gallery_pids, gallery_camids: integers ``[n_gallery]``.
      wanted_fpr: false-positive rates, each above 0 and at most 1.
      excluders: choose the pairs to leave out (see :func:`han_tf.metrics.evaluate_distances`).
      memory_mb: memory to use beside features or distances, in MiB.
      threads: threads that count; the number of cores if None. Results do not depend on it.
      progress: whether to show progress bars.

    Raises:
      UserError: labels do not match, a rate is out of range, there are no genuine or no impostor pairs, distances are
        NaN or infinite, or ``memory_mb`` is too small.
    """
    source = distances if isinstance(distances, DistanceSource) else MatrixDistances(distances)
    wanted = np.asarray(wanted_fpr, np.float64)
    if wanted.ndim != 1 or not ((wanted > 0) & (wanted <= 1)).all():
        raise UserError(f"wanted_fpr is {wanted_fpr}, expected rates above 0 and at most 1")
    truth = Truth(source.shape, query_pids, gallery_pids, query_camids, gallery_camids, excluders)
    options = {
        "memory_mb": check_memory(memory_mb, source.shape[1], truth.same_pid_pairs, match_bytes=GENUINE_BYTES),
        "threads": default_threads(threads),
        "prepare": truth.stripe,
    }

    counter = _Counter(source, truth)
    sweep(source, counter.visit, label="counting pairs" if progress else None, conclude=counter.keep, **options)
    genuine = np.sort(np.concatenate(counter.genuine))
    impostors = int(counter.histogram.sum())
    for number, what in ((len(genuine), "genuine"), (impostors, "impostor")):
        if not number:
            raise UserError(f"there are no {what} pairs among the ranked ones, expected at least one")

    rates = np.concatenate([wanted, CURVE_FPR])
    passing = np.floor(rates * impostors * ROUNDED_UP).astype(np.int64)
    finder = _Finder(counter, passing, genuine)
    for number, windows in enumerate(finder.passes(VALUES_PER_MB * options["memory_mb"]), start=1):
        finder.begin(windows)
        sweep(source, finder.visit, label=f"finding thresholds, pass {number}" if progress else None, **options)
        finder.settle()
    thresholds = finder.thresholds
    fpr = finder.below / impostors
    tpr = np.searchsorted(genuine, thresholds) / len(genuine)
    rate, threshold = finder.equal_error
    m = len(wanted)
    return VerificationResult(
        genuine=len(genuine),
        impostors=impostors,
        wanted_fpr=wanted,
        thresholds=source.report(thresholds[:m]),
        fpr=fpr[:m],
        tpr=tpr[:m],
        equal_error_rate=rate,
        equal_error_threshold=float(source.report(np.array(threshold))),
        roc_fpr=np.array(CURVE_FPR),
        roc_tpr=tpr[m:],
    )


class _Bins:
    """Bins of distance, equally wide over a range estimated from a sample; the first and last one are open."""

    def __init__(self, source: DistanceSource):
        n_query, n_gallery = source.shape
        queries = np.unique(np.linspace(0, n_query - 1, SAMPLED).astype(np.int64))
        images = np.unique(np.linspace(0, n_gallery - 1, SAMPLED).astype(np.int64))
        sample = source.exact(np.repeat(queries, len(images)), np.tile(images, len(queries)))
        low, middle, high = np.quantile(sample, (0.001, 0.5, 0.999))
        low, high = 2 * low - middle, 2 * high - middle
        self.dtype = source.dtype
        self.origin = low
        narrowest = 2 * BINS / float(np.finfo(self.dtype).max)  # of narrower ranges, bins per unit overflow
        self.per_unit = BINS / max(high - low, narrowest) if high > low else 1.0

    def of(self, values: np.ndarray) -> np.ndarray:
        """Returns the bins of ``values``, int32, from small to large distances; ``BINS`` for infinity."""
        places = (values - self.dtype.type(self.origin)) * self.dtype.type(self.per_unit)
        bins = np.clip(places, 0, BINS - 1).astype(np.int32)
        bins[np.isinf(values)] = BINS
        return bins


class _Counter:
    """First pass: collects the genuine pairs and counts impostors in bins of their fast values.

    Attributes:
      bins: the bins.
      genuine: exact values of the genuine pairs, by stripe.
      histogram: int64 ``[BINS]``; impostors per bin.
      margin: largest bound on |fast − exact|.
    """

    def __init__(self, source: DistanceSource, truth: Truth):
        self.source = source
        self.truth = truth
        self.bins = _Bins(source)
        self.genuine: list[np.ndarray] = []
        self.histogram = np.zeros(BINS, np.int64)
        self.margin = 0.0
        self.lock = Lock()

    def visit(self, stripe: Stripe, rows: slice, fast: np.ndarray, part: slice) -> None:
        own = (stripe.columns >= part.start) & (stripe.columns < part.stop)
        queries, columns = stripe.queries[own], stripe.columns[own]
        probes = queries - rows.start, columns - part.start, self.source.exact(queries, columns)
        trusted = trusted_margins(self.source, rows, part, fast, probes).max()
        counts = self.impostor_bins(stripe, fast, part)[1]
        with self.lock:
            self.histogram += counts
            self.margin = max(self.margin, trusted)

    def keep(self, stripe: Stripe) -> None:
        self.genuine.append(self.source.exact(stripe.queries, stripe.columns))

    def impostor_bins(self, stripe: Stripe, fast: np.ndarray, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Returns each pair's bin, ``BINS`` if it is no impostor, and the impostors per bin; overwrites ``fast``."""
        self.truth.exclude(stripe, fast, part)
        own = (stripe.columns >= part.start) & (stripe.columns < part.stop)
        fast[stripe.queries[own] - stripe.rows.start, stripe.columns[own] - part.start] = np.inf
        bins = self.bins.of(fast)
        return bins, np.bincount(bins.ravel(), minlength=BINS + 1)[:BINS]


class _Finder:
    """Later passes: find the exact values at given places of the sorted impostors, and the equal error rate.

    At the same place of their sorted lists, exact and fast values differ by at most the margin. So the pair with the
    exact value at a place has a fast value at most two margins away from the bin that holds this place of the fast
    values. Windows are runs of such bins; one pass collects the pairs of some windows.

    Args:
      counter: the first pass.
      places: places in the sorted impostors, from 0.
      genuine: the exact values of the genuine pairs, sorted.

    Attributes:
      thresholds: float64 ``[places]``; the exact values at ``places``; infinity past the last impostor.
      below: int64 ``[places]``; number of impostors below the thresholds.
      equal_error: the equal error rate and its threshold.
    """

    def __init__(self, counter: _Counter, places: np.ndarray, genuine: np.ndarray):
        self.counter = counter
        self.source = counter.source
        self.genuine = genuine
        reach = math.ceil(min(2 * counter.margin * counter.bins.per_unit, BINS)) + 1 if counter.margin else 0
        self.up_to = np.cumsum(counter.histogram)
        bins = counter.bins.of(genuine.astype(self.source.dtype))
        accepted = np.cumsum(np.bincount(bins, minlength=BINS))
        crossing = int(np.argmax(self.up_to / self.up_to[-1] >= (len(genuine) - accepted) / len(genuine)))
        centres = np.append(np.searchsorted(self.up_to, places[places < self.up_to[-1]], side="right"), crossing)
        wanted = np.zeros(BINS + 1, bool)
        for centre in centres:
            wanted[max(centre - reach, 0) : min(centre + reach + 1, BINS)] = True
        self.starts = np.flatnonzero(wanted & ~np.append(False, wanted[:-1]))
        self.window = np.where(wanted, np.searchsorted(self.starts, np.arange(BINS + 1), side="right") - 1, -1).astype(
            np.int32
        )
        self.crossing = self.window[crossing]
        self.near_crossing = genuine[self.window[bins] == self.crossing]
        self.places = places
        self.thresholds, self.below = np.full(len(places), np.inf), np.full(len(places), self.up_to[-1])
        self.equal_error = (math.nan, math.nan)
        self.lock = Lock()

    def passes(self, room: int) -> list[np.ndarray]:
        """Divides the windows into passes with at most ``room`` impostors each, or with a single window."""
        held = np.bincount(self.window[:BINS] + 1, self.counter.histogram, len(self.starts) + 1)[1:]
        passes, size = [[0]], held[0]
        for window in range(1, len(held)):
            if size + held[window] > room:
                passes.append([])
                size = 0
            passes[-1].append(window)
            size += held[window]
        return [np.array(windows) for windows in passes]

    def begin(self, windows: np.ndarray) -> None:
        """Prepares a pass over the impostors of ``windows``."""
        self.collected = np.where(np.isin(self.window, windows), self.window, np.int32(-1))
        self.before = np.zeros(len(self.starts), np.int64)  # impostors in the bins before each window
        self.found = [(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))]
        self.size = self.merged_size = 0

    def visit(self, stripe: Stripe, rows: slice, fast: np.ndarray, part: slice) -> None:
        bins, counts = self.counter.impostor_bins(stripe, fast, part)
        local, columns = np.divmod(np.flatnonzero(self.collected[bins] >= 0), bins.shape[1])
        values = self.source.exact(local + rows.start, columns + part.start)
        found = _merged([(self.collected[bins[local, columns]], values, np.ones(len(values), np.int64))])
        with self.lock:
            self.before += np.append(0, np.cumsum(counts))[self.starts]
            self.found.append(found)
            self.size += len(found[0])
            # Equal values are merged, so that a window with many ties stays small.
            if self.size > 2 * self.merged_size + MERGED_FROM:
                self.found = [_merged(self.found)]
                self.size = self.merged_size = len(self.found[0][0])

    def settle(self) -> None:
        """Ends a pass: fills the attributes of the places in its windows."""
        self.found = [_merged(self.found)]
        for i, place in enumerate(self.places):
            if place < self.up_to[-1]:
                window = self.collected[np.searchsorted(self.up_to, place, side="right")]
                if window >= 0:
                    values, ends = self._values(window)
                    index = np.searchsorted(ends, place, side="right")
                    self.thresholds[i] = values[index]
                    self.below[i] = ends[index - 1] if index else self.before[window]
        if (self.collected == self.crossing).any():
            self.equal_error = self._equal_error()

    def _values(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct impostor values of a window, rising, and the number of impostors up to each of them."""
        windows, values, counts = self.found[0]
        mine = slice(*np.searchsorted(windows, [window, window + 1]))
        return values[mine], self.before[window] + np.cumsum(counts[mine])

    def _equal_error(self) -> tuple[float, float]:
        values, ends = self._values(self.crossing)
        ends = np.append(self.before[self.crossing], ends)
        steps = np.unique(np.concatenate([values, self.near_crossing]))
        rates = []
        for side in ("left", "right"):
            false_positives = ends[np.searchsorted(values, steps, side=side)] / self.up_to[-1]
            # Not 1 - share: equal rates must be equal numbers.
            missed = len(self.genuine) - np.searchsorted(self.genuine, steps, side=side)
            false_negatives = missed / len(self.genuine)
            rates.append((false_positives, false_negatives))
        (fpr_before, fnr_before), (fpr_after, fnr_after) = rates
        step = int(np.argmax(fpr_after >= fnr_after))
        rise = fpr_after[step] - fpr_before[step]
        fall = fnr_before[step] - fnr_after[step]
        share = (fnr_before[step] - fpr_before[step]) / (rise + fall)
        return float(fpr_before[step] + share * rise), float(steps[step])


def _merged(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts (window, value, count) triples by window and value, and adds up the counts of equal ones."""
    windows, values, counts = (np.concatenate(arrays) for arrays in zip(*parts))
    order = np.lexsort((values, windows))
    windows, values, counts = windows[order], values[order], counts[order]
    new = np.ones(len(values), bool)
    new[1:] = (windows[1:] != windows[:-1]) | (values[1:] != values[:-1])
    starts = np.flatnonzero(new)
    return windows[starts], values[starts], np.add.reduceat(counts, starts) if len(starts) else counts
