"""Features with the labels they need to be ranked, in memory and on disk."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Union

import numpy as np

from han_tf.data.records import Record
from han_tf.errors import UserError
from han_tf.files import write_npz


class FeatureSet(NamedTuple):
    """The features of one subset.

    Attributes:
      features: ``[n, d]`` float32.
      pids, camids: ``[n]`` int64.
      paths: ``[n]`` strings; empty strings where not known.
    """

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    paths: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, records: Sequence[Record]) -> "FeatureSet":
        """Joins features and the records they belong to."""
        return cls(
            features,
            np.array([record.pid for record in records], np.int64),
            np.array([record.camid for record in records], np.int64),
            np.array([record.path for record in records], np.str_),
        )

    def where(self, mask: np.ndarray) -> "FeatureSet":
        """Returns the rows that ``mask``, ``[n]`` bool, selects."""
        return FeatureSet(*(array[mask] for array in self))


def save_features(path: Union[str, os.PathLike], features: FeatureSet) -> None:
    """Writes a feature set as a NumPy archive with the fields of :class:`FeatureSet`."""
    write_npz(path, **features._asdict())


def load_features(path: Union[str, os.PathLike]) -> FeatureSet:
    """Reads what :func:`save_features` wrote, or any ``.npz`` with features, pids and camids.

    Raises:
      UserError: the file is missing, no such archive, or its arrays do not fit together.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("a single array")
            arrays = {name: np.asarray(archive[name]) for name in FeatureSet._fields if name in archive}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a NumPy archive (.npz) of features") from error
    except Exception as error:  # a damaged archive raises what zlib, zipfile, tokenize or NumPy happen to
        raise UserError(f"{path}: no NumPy archive (.npz) of plain arrays ({' '.join(str(error).split())})") from error
    for name in ("features", "pids", "camids"):
        if name not in arrays:
            raise UserError(f"{path}: no array {name!r}, expected features, pids and camids")
    features, pids, camids = arrays["features"], arrays["pids"], arrays["camids"]
    paths = arrays.get("paths", np.full(pids.shape, ""))
    if features.ndim != 2 or any(array.shape != features.shape[:1] for array in (pids, camids, paths)):
        raise UserError(
            f"{path}: features {features.shape}, pids {pids.shape}, camids {camids.shape}, paths {paths.shape}, "
            "expected [n, d] and [n] each"
        )
    for name, kinds, expected in (
        ("features", "fiu", "numbers"),
        ("pids", "iu", "integers"),
        ("camids", "iu", "integers"),
    ):
        if arrays[name].dtype.kind not in kinds:
            raise UserError(f"{path}: {name} are {arrays[name].dtype}, expected {expected}")
    return FeatureSet(features, pids.astype(np.int64), camids.astype(np.int64), paths)
