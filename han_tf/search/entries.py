"""Entries of a gallery and their labels, filters of them, and the checks of what a gallery is given."""

import json
import math
import os
import reprlib
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.data.image_lists import END_OF_TIME, FIRST_TIME, UNKNOWN
from han_tf.metrics.checks import as_array, check_count

SECONDS = "seconds since 1970 UTC, in the years 1 to 9999"

Integers = Optional[Sequence[Optional[int]]]
Numbers = Optional[Sequence[Optional[float]]]
"""Labels of images, one each, None where not known; None if no label is given."""

MOST = 2**63 - 1
"""The largest id, and the largest number that a database stores."""


class NoEntry(UserError):
    """The gallery at ``location``, with ``count`` entries, has none with this ``id``."""

    def __init__(self, location: str, id: int, count: int):
        super().__init__(f"{location}: no entry {id}, expected the id of one of its {count:,} entries")
        self.id = id


class Entry(NamedTuple):
    """One image of a gallery.

    Attributes:
      id: assigned by the gallery; never reused.
      path: of the image file, as it was given when the image was added; empty if not known.
      pid, camid: person and camera; None if not known.
      time: when the image was taken, seconds since 1970 UTC; None if not known.
    """

    id: int
    path: str = ""
    pid: Optional[int] = None
    camid: Optional[int] = None
    time: Optional[float] = None


def check_collection(values: Any, name: str, expected: str) -> Collection:
    """Returns ``values``; raises UserError if they are a single value, for example a string."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection) or getattr(values, "ndim", 1) != 1:
        raise UserError(f"{name} is {reprlib.repr(values)}, expected {expected}")
    return values


def _whole(values: Any, name: str) -> tuple[int, ...]:
    values = check_collection(values, name, "a tuple of integers")
    for value in values:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise UserError(f"{name} hold {value!r}, expected integers")
        if not UNKNOWN < value < 2**63:
            raise UserError(f"{name} hold {value}, expected integers from {UNKNOWN + 1} to {2**63 - 1}")
    return tuple(int(value) for value in values)


def _bound(value: Any, name: str) -> Optional[float]:
    if value is None:
        return None
    number = _real(value)
    if number is None or not FIRST_TIME <= number < END_OF_TIME:
        raise UserError(f"{name} is {value!r}, expected a finite number, {SECONDS}")
    return float(number)


def _real(value: Any) -> Optional[float]:
    """Returns a real number as one of Python's; None for other values."""
    if isinstance(value, (np.integer, np.floating)):
        value = int(value) if isinstance(value, np.integer) else float(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def check_paths(paths: Any) -> list[str]:
    """Returns ``paths`` as text; raises UserError unless they are several that UTF-8 can encode."""
    paths = check_collection(paths, "paths", "several")
    values = [os.fspath(path) if isinstance(path, os.PathLike) else path for path in paths]
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"paths hold {reprlib.repr(value)}, expected text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"path {value!r} is not UTF-8, expected one that is, to be kept as text") from error
    return [str(value) for value in values]  # NumPy's strings are a class of their own


@dataclass(frozen=True)
class Filters:
    """Conditions that an entry must meet to be found.

    An entry without a camera never passes ``cameras`` and always passes ``not_cameras``. An entry without a time
    passes neither ``after`` nor ``before``, an entry without a pid never ``pids``, one without a path never ``paths``.

    Attributes:
      cameras: only entries of these cameras, integers; empty for all.
      not_cameras: no entries of these cameras.
      after, before: ``after <= time < before``, seconds since 1970 UTC, in the years 1 to 9999.
      pids: only entries of these people, integers; empty for all.
      paths: only entries of these files, or of files in or below these folders, as they were given when the images
        were added; empty for all.

    Raises:
      UserError: a camera or pid is not an integer, a time is not a number of those years, a path is not text, or
        ``after`` is later than ``before``.
    """

    cameras: tuple[int, ...] = ()
    not_cameras: tuple[int, ...] = ()
    after: Optional[float] = None
    before: Optional[float] = None
    pids: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cameras", "not_cameras", "pids"):
            object.__setattr__(self, name, _whole(getattr(self, name), name))
        for name in ("after", "before"):
            object.__setattr__(self, name, _bound(getattr(self, name), name))
        if None not in (self.after, self.before) and self.after > self.before:
            raise UserError(f"after is {self.after} and before {self.before}, expected an earlier time after which")
        paths = check_paths(self.paths)
        if "" in paths:
            raise UserError("paths hold '', expected files or folders")
        object.__setattr__(self, "paths", tuple(path.rstrip("/") or "/" for path in paths))

    def __bool__(self) -> bool:
        """Returns whether any condition is set."""
        return self != Filters()

    def passing(self, pids: np.ndarray, camids: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Returns which entries pass all conditions but ``paths``, bool ``[n]``.

        Args:
          pids, camids, times: as of :class:`han_tf.features.shards.FeatureBatch`.
        """
        passed = np.ones(len(camids), bool)
        if self.cameras:
            passed &= np.isin(camids, self.cameras)
        if self.not_cameras:
            passed &= ~np.isin(camids, self.not_cameras)
        if self.after is not None:
            passed &= times >= self.after
        if self.before is not None:
            passed &= times < self.before
        if self.pids:
            passed &= np.isin(pids, self.pids)
        return passed


NO_FILTERS = Filters()


def below(folder: str) -> tuple[str, str]:
    """Returns the bounds of the paths below a folder, ``first <= path < end`` in the order of their characters."""
    folder = folder.rstrip("/")
    return f"{folder}/", f"{folder}{chr(ord('/') + 1)}"


class Hit(NamedTuple):
    """A found entry and its L2 distance to the query; after re-ranking see :meth:`Gallery.search`."""

    entry: Entry
    distance: float


def check_threshold(threshold: float) -> None:
    """Raises UserError unless ``threshold`` is a number from 0 to infinity."""
    number = _real(threshold)
    if number is None or not (0 <= number <= sys.float_info.max or number == math.inf):
        raise UserError(f"threshold is {reprlib.repr(threshold)}, expected a distance from 0 up")


def check_type(value: Any, types: Union[type, tuple[type, ...]], name: str, expected: str) -> None:
    """Raises UserError unless ``value`` is of one of these types."""
    if not isinstance(value, types):
        raise UserError(f"{name} is {reprlib.repr(value)}, expected {expected}")


def check_switch(value: Any, name: str) -> None:
    """Raises UserError unless ``value`` is True or False: "no" would count as true."""
    check_type(value, (bool, np.bool_), name, "True or False")


def check_choice(value: Any, name: str, choices: Collection[str], expected: str = "") -> None:
    """Raises UserError unless ``value`` is one of these names; ``expected`` is all of them if not given."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name} is {reprlib.repr(value)}, expected {expected or ', '.join(choices)}")


def check_checksum(checksum: str) -> None:
    """Raises UserError unless ``checksum`` is text."""
    check_type(checksum, str, "checksum", "the text that names a model")


def check_level(level: float) -> float:
    """Returns a white level; raises UserError unless it is a finite number from 0 up."""
    number = _real(level)
    if number is None or not 0 <= number <= sys.float_info.max:
        raise UserError(f"the white level is {reprlib.repr(level)}, expected a finite number from 0 up")
    return float(number)


def check_calibration(calibration: Optional[dict[str, Any]]) -> None:
    """Raises UserError if a gallery with this calibration could not be written, or not be opened again."""
    if calibration is None:
        return
    check_type(calibration, dict, "calibration", "JSON values by name")
    try:
        json.dumps(calibration, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"calibration cannot be stored ({error}), expected JSON values by name") from error
    check_count(calibration.get("gallery_images") or 0, "gallery_images of the calibration", 0)


def check_filters(filters: Filters) -> Filters:
    """Returns ``filters``; raises UserError if they are of another type."""
    check_type(filters, Filters, "filters", "Filters(…)")
    return filters


def check_ids(ids: Any) -> np.ndarray:
    """Returns ``ids`` as int64 ``[n]``; raises UserError unless they are integers of 64 bits."""
    _check_range(ids, "ids")
    array = as_array(ids, "ids")
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UserError(f"ids are {array.dtype} of shape {list(array.shape)}, expected integers [n]")
    return array.astype(np.int64)


def _check_range(values: Any, name: str) -> None:
    """Raises UserError if an integer among ``values``, a sequence, does not fit into 64 bits."""
    if isinstance(values, np.ndarray) and values.dtype.kind not in "uO":
        return
    for value in values if isinstance(values, (Sequence, np.ndarray)) else ():
        if isinstance(value, (int, np.integer)) and not -(2**63) <= value < 2**63:
            raise UserError(f"{name} hold {value}, expected integers from {-(2**63)} to {2**63 - 1}")


def labels_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns the labels of entries as the keyword arguments of :meth:`han_tf.search.Gallery.add`."""
    return {f"{name}s": [getattr(entry, name) for entry in entries] for name in ("pid", "camid", "time")}


def check_labels(
    n: int, pids: Integers, camids: Integers, times: Numbers, paths: Sequence[str] = (), stored: Sequence[float] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns pids, camids and times of ``n`` images as :class:`han_tf.features.shards.FeatureBatch` has them.

    Errors name the image by ``paths``. Times that are ``stored``, by an earlier version, may be in any year.
    """
    integers = []
    for name, values in (("pids", pids), ("camids", camids)):
        _check_range(values, name)
        integers.append(_column(values, name, n, UNKNOWN, "iu", "integers or None").astype(np.int64))
    numbers = _column(times, "times", n, math.nan, "fiu", "numbers, seconds since 1970, or None").astype(np.float64)
    if np.isinf(numbers).any():
        raise UserError("times hold an infinity, expected seconds since 1970, or NaN")
    wrong = np.flatnonzero(((numbers < FIRST_TIME) | (numbers >= END_OF_TIME)) & ~np.isin(numbers, stored))
    if len(wrong):
        of = f" (of {paths[wrong[0]]})" if len(paths) and paths[wrong[0]] else ""
        raise UserError(f"times hold {numbers[wrong[0]]}{of}, expected {SECONDS}")
    return integers[0], integers[1], numbers


def _column(values: Any, name: str, n: int, unknown: float, kinds: str, expected: str) -> np.ndarray:
    """Returns values ``[n]`` of a dtype among ``kinds``, with ``unknown`` in place of None."""
    array = np.full(n, unknown) if values is None else as_array(values, name)
    if array.shape != (n,):
        raise UserError(f"{name} has shape {list(array.shape)}, expected [{n}], one per image")
    if array.dtype == object:
        array = as_array([unknown if value is None else value for value in array.tolist()], name)
    if n and array.dtype.kind not in kinds:
        raise UserError(f"{name} are {array.dtype}, expected {expected}")
    return array
