"""Checks of arguments; errors are one line that names the array."""

import math
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.processes import usable_cores

ROWS = 256
"""Rows checked at a time, so that a check of a memory-mapped array needs little memory."""

LEAST_MEMORY = 16
"""Smallest memory budget, in MiB."""

HELD_BYTES = 64
"""Peak memory of ranking or verification per gallery image, beside features and labels: squared norm, order by pid,
index of the camera, and temporary masks and copies."""

MATCH_BYTES = 120
"""Peak memory of ranking per true match: its query, image and places, and the scores computed from them."""

GENUINE_BYTES = 32
"""Peak memory of verification per genuine pair: its value, joined with the others, sorted, and its bin."""

LISTED_BYTES = 32
"""Memory of ranking per entry of the top-k lists: image and distance, and temporary copies."""

HELD_SHARE = 0.6
"""Largest share of the memory budget for all this; the rest is for distances."""

ROUNDED_UP = 1 + 1e-12
"""Factor of products of a rate and a number, so that their rounding errors lower no whole number of images or pairs."""

GREATEST_NORM = float(np.finfo(np.float32).max / 8)
"""Bound on squared norms, below which squared distances do not overflow float32."""


class BadRow(UserError):
    """A feature that no metric takes.

    Attributes:
      features: ``[n, d]``, the features it is one of, or a view of them.
      row: its number there.
    """

    def __init__(self, message: str, features: np.ndarray, row: int):
        super().__init__(message)
        self.features, self.row = features, row


def as_array(values: Any, name: str) -> np.ndarray:
    """Returns ``values`` as an array; raises UserError if their rows differ in length, or they cannot be converted."""
    try:
        return values if isinstance(values, np.ndarray) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be made an array of numbers ({error})") from error


def check_features(features: Any, name: str, dimension: Optional[int] = None) -> np.ndarray:
    """Returns ``features`` as an array ``[n, d]`` of numbers; arrays, also memory-mapped ones, are not copied.

    The values are checked by :func:`squared_norms`.

    Raises:
      UserError: it is no 2-D array of real numbers, is empty, or does not have ``dimension`` columns.
    """
    features = as_array(features, name)
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
      BadRow: a value is NaN or infinite, or a squared norm is at least :data:`GREATEST_NORM`.
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
        message = f"{name} row {row} holds {found} ({len(bad)} such rows), expected finite numbers"
        raise BadRow(message, features, row)
    return norms


def check_labels(labels: Any, name: str, length: Optional[int] = None) -> np.ndarray:
    """Returns ``labels`` as int64 ``[n]``, without a copy if possible.

    Raises:
      UserError: they are missing, no integers, not 1-D, or their number is not ``length``.
    """
    if labels is None:
        raise UserError(f"{name} is missing, expected one integer per image")
    labels = as_array(labels, name)
    if labels.ndim != 1:
        raise UserError(f"{name} has shape {list(labels.shape)}, expected [images]")
    if length is not None and len(labels) != length:
        raise UserError(f"{name} has {len(labels)} entries, expected {length} (one per image)")
    if len(labels) and labels.dtype.kind not in "iu":
        raise UserError(f"{name} has dtype {labels.dtype}, expected integers")
    whole = labels.astype(np.int64, copy=False)
    if labels.dtype.kind == "u" and (whole < 0).any():
        raise UserError(f"{name} hold {labels.max()}, expected integers of at most {2**63 - 1}")
    return whole


def check_camids(camids: Any, name: str, length: int) -> np.ndarray:
    """Returns ``camids`` as int64 ``[length]``.

    Raises:
      UserError: as :func:`check_labels`, or a camera id is negative, which stands for a missing one.
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
      UserError: it is no integer or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise UserError(f"{name} is {value!r}, expected a whole number")
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise UserError(f"{name} is {value}, expected {expected}")
    return int(value)


def check_memory(
    memory_mb: Any, n_gallery: int, matches: int = 0, listed: int = 0, match_bytes: int = MATCH_BYTES
) -> int:
    """Returns the memory in MiB that ``memory_mb`` leaves beside matches and top-k lists, if it is large enough.

    Args:
      memory_mb: the budget, in MiB.
      n_gallery: number of gallery images.
      matches: number of true matches that are ranked, or of genuine pairs.
      listed: number of entries of all top-k lists.
      match_bytes: memory per match.

    Raises:
      UserError: it is no integer or too small.
    """
    check_count(memory_mb, "memory_mb", LEAST_MEMORY)
    held = match_bytes * matches + LISTED_BYTES * listed
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
