"""Excluders choose the gallery images that are left out of a query's ranking.

An excluder is any callable ``excluder(query) -> numpy array`` that takes a query's index and returns the
gallery images to leave out for it, as integer indices or as a boolean mask ``[n_gallery]``. An image that
is left out is neither a match nor a mistake: the images behind it move up. Excluders are called from
several threads at once, so they must be thread-safe.

The standard protocol ranks distractors as negatives, since no query has their pid. :func:`distractors` leaves them out,
which shows their share of the errors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from han_tf.metrics.checks import check_camids, check_count, check_labels

JUNK_PID = -1
"""Person id of junk images (bad detections) in the gallery, as in Market-1501."""

Excluder = Callable[[int], np.ndarray]


def junk(gallery_pids: Any) -> Excluder:
    """Leaves out images with pid −1 for every query (Market-1501's bad detections).

    Args:
      gallery_pids: integers ``[n_gallery]``.
    """
    indices = np.flatnonzero(check_labels(gallery_pids, "gallery_pids") == JUNK_PID)
    return lambda query: indices


def itself() -> Excluder:
    """Leaves out the query's own image; queries and gallery must be the same images in the same order."""
    return lambda query: np.array([query])


def distractors(query_pids: Any, gallery_pids: Any) -> Excluder:
    """Leaves out gallery images whose pid no query has, so that only queried people are ranked; junk included.

    Args:
      query_pids: integers ``[n_query]``.
      gallery_pids: integers ``[n_gallery]``.
    """
    is_queried = np.isin(check_labels(gallery_pids, "gallery_pids"), check_labels(query_pids, "query_pids"))
    indices = np.flatnonzero(~is_queried)
    return lambda query: indices


def same_pid_and_camera(query_pids: Any, gallery_pids: Any, query_camids: Any, gallery_camids: Any) -> Excluder:
    """Leaves out images of the query's person from the query's own camera, as in the standard protocol.

    Args:
      query_pids, query_camids: integers ``[n_query]``.
      gallery_pids, gallery_camids: integers ``[n_gallery]``.
    """
    query_pids = check_labels(query_pids, "query_pids")
    gallery_pids = check_labels(gallery_pids, "gallery_pids")
    query_camids = check_camids(query_camids, "query_camids", len(query_pids))
    gallery_camids = check_camids(gallery_camids, "gallery_camids", len(gallery_pids))
    order = np.argsort(gallery_pids, kind="stable")
    ordered = gallery_pids[order]
    first = np.searchsorted(ordered, query_pids, side="left")
    last = np.searchsorted(ordered, query_pids, side="right")

    def excluder(query: int) -> np.ndarray:
        same_pid = order[first[query] : last[query]]
        return same_pid[gallery_camids[same_pid] == query_camids[query]]

    return excluder


def same_group(query_groups: Any, gallery_groups: Any) -> Excluder:
    """Leaves out every image of the query's own group, e.g. its camera or its sequence, regardless of the person.

    Args:
      query_groups: integers ``[n_query]``, e.g. camera or sequence numbers.
      gallery_groups: integers ``[n_gallery]``.
    """
    query_groups = check_labels(query_groups, "query_groups")
    gallery_groups = check_labels(gallery_groups, "gallery_groups")
    return lambda query: gallery_groups == query_groups[query]


def frame_window(
    query_groups: Any, gallery_groups: Any, query_frames: Any, gallery_frames: Any, window: int
) -> Excluder:
    """Leaves out images of the query's own group taken at most ``window`` frames away from it.

    Args:
      query_groups: integers ``[n_query]``: the camera or sequence in which frame numbers are comparable.
      gallery_groups: integers ``[n_gallery]``.
      query_frames: frame numbers ``[n_query]``.
      gallery_frames: frame numbers ``[n_gallery]``.
      window: largest difference of frame numbers that is left out, at least 0.

    Raises:
      UserError: ``window`` is no integer or negative.
    """
    window = check_count(window, "window", 0)
    query_groups = check_labels(query_groups, "query_groups")
    gallery_groups = check_labels(gallery_groups, "gallery_groups")
    query_frames = check_labels(query_frames, "query_frames", len(query_groups))
    gallery_frames = check_labels(gallery_frames, "gallery_frames", len(gallery_groups))

    def excluder(query: int) -> np.ndarray:
        frame = int(query_frames[query])  # Python's integers, because sums may be outside int64
        near = (gallery_frames >= max(frame - window, -(2**63))) & (gallery_frames <= min(frame + window, 2**63 - 1))
        return near & (gallery_groups == query_groups[query])

    return excluder
