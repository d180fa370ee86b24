"""A threshold for a wanted false-accept rate, chosen with images of people who are not in the gallery.

Two rates have this name and differ by orders of magnitude, see README.md in this folder: per ``search`` (NIST's FPIR)
and per ``pair`` (false match rate). At a rate of r per pair, a search of N images finds up to N·r false hits.

A search for a stranger is simulated by searching with a validation image among the images of all other people.
Validation images without a pid are left out.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.archives import FeatureSet
from han_tf.metrics import FeatureDistances, same_pid_and_camera, verify
from han_tf.metrics.checks import ROUNDED_UP
from han_tf.metrics.nearest import nearest
from han_tf.search.exact import widened
from han_tf.search.gallery import Gallery

BATCH = 256
"""Searches at a time."""

ASKED = 16
"""Hits per query in the first request; more are requested if all are of the query's own person."""

TWINS = "images of two people with the same feature, expected different images, or the right pids"
"""What makes every threshold accept too much, for messages."""


class Calibration(NamedTuple):
    """A threshold and the facts of its calibration.

    Attributes:
      threshold: largest L2 distance that is accepted.
      facts: JSON values by name, to be stored with it: ``kind`` (``search`` or ``pair``), ``rate`` (wanted),
        ``measured_rate`` (of the validation images with this threshold), ``trials`` (searches or pairs), ``people``,
        ``gallery_images`` (that were searched; None for pairs), ``emulated_by`` (``gallery`` or ``validation``: where
        strangers were searched for), ``accepted_rate`` (share of validation images that have an image of their person
        within the threshold, from another camera if cameras are known; None if no image has another one of its person).
    """

    threshold: float
    facts: dict[str, Any]


def calibrate_search(validation: FeatureSet, rate: float, gallery: Gallery) -> Calibration:
    """Chooses the threshold at which searches of ``gallery`` for a stranger find somebody at the wanted rate.

    Entries with the pid of the validation image are ignored; entries without a pid count as other people. The people of
    the validation images must therefore not be in the gallery, or be labelled there with the same pids.

    Raises:
      UserError: no validation image has a pid, the gallery is empty, there are too few searches to measure the rate, or
        more searches than that find another person's image of the same feature.
    """
    validation = _labelled(validation, rate)
    if not len(gallery):
        raise UserError(f"{gallery.location}: the gallery is empty, expected images to calibrate a search among")
    nearest_other = np.empty(len(validation.pids))
    for start in range(0, len(nearest_other), BATCH):
        part = slice(start, start + BATCH)
        nearest_other[part] = _nearest_others(gallery, validation.features[part], validation.pids[part])
    return _of_searches(validation, nearest_other, rate, gallery_images=len(gallery), emulated_by="gallery")


def calibrate_search_within(validation: FeatureSet, rate: float) -> Calibration:
    """Chooses the threshold as :func:`calibrate_search` does, with the validation images as the gallery.

    Each image is searched for among those of all other people (leave one person out).

    Raises:
      UserError: fewer than two people; too few searches to measure the rate; features as :func:`calibrate_search`.
    """
    validation = _labelled(validation, rate)
    if len(np.unique(validation.pids)) < 2:
        raise UserError("the validation images show one person, expected two at least")
    nearest_other = np.empty(len(validation.pids))
    for pid in np.unique(validation.pids):
        own = validation.pids == pid
        source = FeatureDistances(validation.features[own], validation.features[~own])
        nearest_other[own] = source.report(nearest(source, 1, memory_mb=256, threads=1)[1][:, 0])
    images = len(validation.pids)
    return _of_searches(validation, nearest_other, rate, gallery_images=images, emulated_by="validation")


def calibrate_pair(validation: FeatureSet, rate: float) -> Calibration:
    """Chooses the threshold within which the wanted share of the pairs of two people lies.

    Raises:
      UserError: there are no pairs of one person, none of two people, or too few to measure the rate; a larger share of
        the latter has the same feature.
    """
    validation = _labelled(validation, rate)
    cameras = _cameras(validation.camids)
    distances = FeatureDistances(validation.features, validation.features)
    labels = validation.pids, validation.pids, cameras, cameras
    result = verify(distances, *labels, wanted_fpr=[rate], excluders=[same_pid_and_camera(*labels)])
    if result.impostors * rate < 1:
        raise UserError(f"{result.impostors:,} pairs of two people cannot show a rate of {rate}, expected more")
    if not result.thresholds[0]:
        raise UserError(f"more than a share of {rate} of the pairs of two people are of {TWINS}")
    # verify() accepts distances below its threshold, a search also those at it.
    threshold = float(np.nextafter(result.thresholds[0], 0))
    facts = {"rate": rate, "measured_rate": float(result.fpr[0]), "trials": result.impostors}
    return _calibration(validation, threshold, kind="pair", **facts, gallery_images=None, emulated_by="validation")


def _labelled(validation: FeatureSet, rate: float) -> FeatureSet:
    """Returns the images with a pid."""
    if not 0 < rate < 1:
        raise UserError(f"the false-accept rate is {rate}, expected more than 0 and less than 1")
    known = validation.pids != UNKNOWN
    if not known.any():
        raise UserError(f"none of {len(known)} validation images has a pid, expected some that have")
    return validation if known.all() else validation.where(known)


def _nearest_others(gallery: Gallery, queries: np.ndarray, pids: np.ndarray) -> np.ndarray:
    """Returns each query's L2 distance to the nearest entry without its pid, infinity if there is none."""

    def ask(numbers: list[int], asked: int) -> Iterator[tuple[float, bool]]:
        for i, hits in zip(numbers, gallery.search(queries[numbers], asked, threshold=math.inf)):
            distance = next((hit.distance for hit in hits if hit.entry.pid != pids[i]), math.inf)
            yield distance, distance < math.inf or len(hits) < asked

    return np.array(widened(len(queries), ASKED, ask))


def _of_searches(validation: FeatureSet, nearest_other: np.ndarray, rate: float, **facts: Any) -> Calibration:
    searches = len(nearest_other)
    allowed = math.floor(rate * searches * ROUNDED_UP)
    if not allowed:
        raise UserError(
            f"{searches:,} searches cannot show a rate of {rate}, expected at least {math.ceil(1 / rate):,} validation "
            "images"
        )
    ordered = np.sort(nearest_other)
    if math.isinf(ordered[allowed]):
        raise UserError("the gallery holds only the people of the validation images, expected other people, too")
    if not ordered[allowed]:
        raise UserError(f"more than a share of {rate} of the searches find {TWINS}")
    # Halfway between the last accepted and the first rejected distance, so that rounding of distances does not matter.
    accepted = ordered[ordered < ordered[allowed]]
    threshold = float((ordered[allowed] + (accepted[-1] if len(accepted) else 0)) / 2)
    measured = float((ordered <= threshold).mean())
    return _calibration(
        validation, threshold, kind="search", rate=rate, measured_rate=measured, trials=searches, **facts
    )


def _calibration(validation: FeatureSet, threshold: float, **facts: Any) -> Calibration:
    """Returns a threshold with these facts and those that are the same for all kinds."""
    people, accepted = len(np.unique(validation.pids)), accepted_rate(validation, threshold)
    return Calibration(threshold, {**facts, "people": people, "accepted_rate": accepted})


def accepted_rate(images: FeatureSet, threshold: float) -> Optional[float]:
    """Returns the share of images with another one of their person within the threshold, among those with any other.

    Images of the same camera do not count, if the camera is known. None if no image has another one.
    """
    cameras = _cameras(images.camids)
    accepted = []
    order = np.argsort(images.pids, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(images.pids[order])) + 1):
        features = images.features[own].astype(np.float64)
        for i, row in enumerate(own):
            others = cameras[own] != cameras[row]
            if others.any():
                accepted.append(np.linalg.norm(features[others] - features[i], axis=1).min() <= threshold)
    return float(np.mean(accepted)) if accepted else None


def _cameras(camids: np.ndarray) -> np.ndarray:
    """Returns the cameras as numbers from 0 up; each image of unknown camera gets a number of its own."""
    numbers = np.unique(camids, return_inverse=True)[1]
    return np.where(camids == UNKNOWN, len(camids) + np.arange(len(camids)), numbers)
