"""Checks of what users hand in: each mistake is one line that names the array."""

import math
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.processes import usable_cores

ROWS = 256
"""Rows that are checked at a time, so that a check needs little memory beside a memory-mapped array."""

LEAST_MEMORY = 16
"""Smallest memory budget, in MiB."""

HELD_BYTES = 64
"""What ranking or verification holds per gallery image beside features and labels, when it holds most: the squared
norm, the order by pid, the camera's number, and masks and copies while these are made."""

MATCH_BYTES = 120
"""What ranking holds per true match, when it holds most: its query, image and places, and the scores made of these."""

LISTED_BYTES = 32
"""What ranking holds per entry of the top-k lists: image and distance, and copies while these are reported."""

HELD_SHARE = 0.6
"""Share of the memory budget that all this may take; the rest is for distances."""


GREATEST_NORM = float(np.finfo(np.float32).max / 8)
"""Squared norms below it leave room for float32 squares of differences."""


def check_features(features: Any, name: str, dimension: Optional[int] = None) -> np.ndarray:
    """Returns ``features`` as an array ``[n, d]`` of numbers, memory-mapped arrays as they are.

    The values themselves are checked by :func:`squared_norms`.

    Raises:
      UserError: it is no 2-D array of real numbers, is empty, or has not ``dimension`` columns.
    """
    features = features if isinstance(features, np.ndarray) else np.asarray(features)
    if features.ndim != 2:
        raise UserError(f"{name} has shape {list(features.shape)}, expected [images, dimension]")
    if features.dtype.kind not in "fiu":
        raise UserError(f"{name} has dtype {features.dtype}, expected real numbers (float32)")
    if not len(features):
        raise UserError(f"{name} is empty, expected at least one image")
    if not features.shape[1]:
        raise UserError(f"{name} has dimension 0, expected at least 1")
    if dimension is not None and features.shape[1] != dimension:
        raise UserError(f"{name} has dimension {features.shape[1]}, expected {dimension}")
    return features


def squared_norms(features: np.ndarray, name: str) -> np.ndarray:
    """Returns each row's squared L2 norm, float64 ``[n]``; reads the features once, block by block.

    Raises:
      UserError: a value is NaN or infinite, or so great that its float32 square overflows.
    """
    norms = np.empty(len(features), np.float64)
    for start in range(0, len(features), ROWS):
        block = features[start : start + ROWS].astype(np.float64)
        norms[start : start + ROWS] = np.einsum("ij,ij->i", block, block)
    bad = np.flatnonzero(~(norms < GREATEST_NORM))
    if len(bad):
        row = int(bad[0])
        values = np.asarray(features[row])
        wrong = values[~np.isfinite(values)]
        found = wrong[0] if len(wrong) else f"a squared norm of {norms[row]:.3g}"
        raise UserError(f"{name} row {row} holds {found} ({len(bad)} such rows), expected finite numbers")
    return norms


def check_labels(labels: Any, name: str, length: Optional[int] = None) -> np.ndarray:
    """Returns ``labels`` as int64 ``[n]``, the array itself if it is that already.

    Raises:
      UserError: they are missing, no integers, not 1-D, or not ``length`` many.
    """
    if labels is None:
        raise UserError(f"{name} is missing, expected one integer per image")
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise UserError(f"{name} has shape {list(labels.shape)}, expected [images]")
    if length is not None and len(labels) != length:
        raise UserError(f"{name} has {len(labels)} entries, expected {length} (one per image)")
    if len(labels) and labels.dtype.kind not in "iu":
        raise UserError(f"{name} has dtype {labels.dtype}, expected integers")
    return labels.astype(np.int64, copy=False)


def check_camids(camids: Any, name: str, length: int) -> np.ndarray:
    """Returns ``camids`` as int64 ``[length]``.

    Raises:
      UserError: as :func:`check_labels`, or a camera id is negative (it is missing, then).
    """
    camids = check_labels(camids, name, length)
    bad = np.flatnonzero(camids < 0)
    if len(bad):
        raise UserError(
            f"{name} entry {bad[0]} is {camids[bad[0]]} ({len(bad)} such entries), expected camera ids from 0 up "
            "(images of one pid and camera are left out, so a missing camera id hides true matches)"
        )
    return camids


def check_count(value: Any, name: str, least: int, most: Optional[int] = None) -> int:
    """Returns ``value`` as an int in ``[least, most]``.

    Raises:
      UserError: it is no whole number or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise UserError(f"{name} is {value!r}, expected a whole number")
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise UserError(f"{name} is {value}, expected {expected}")
    return int(value)


def check_memory(memory_mb: Any, n_gallery: int, matches: int = 0, listed: int = 0) -> int:
    """Returns what ``memory_mb`` leaves beside matches and lists, if the metrics can keep to it.

    Args:
      memory_mb: the budget, in MiB.
      n_gallery: number of gallery images.
      matches: number of true matches that are ranked.
      listed: number of entries of all top-k lists.

    Raises:
      UserError: it is no whole number or too small.
    """
    check_count(memory_mb, "memory_mb", LEAST_MEMORY)
    held = MATCH_BYTES * matches + LISTED_BYTES * listed
    least = math.ceil((HELD_BYTES * n_gallery + held) / HELD_SHARE / 2**20)
    if memory_mb < least:
        beside = f", {matches:,} matches and top-k lists of {listed:,} images" if held else ""
        raise UserError(f"memory_mb is {memory_mb}, expected at least {least} for {n_gallery:,} gallery images{beside}")
    return int(memory_mb) - math.ceil(held / 2**20)


def default_threads(threads: Optional[int]) -> int:
    """Returns ``threads``, or the number of cores this process may use if None."""
    if threads is not None:
        return check_count(threads, "threads", 1)
    return usable_cores()
