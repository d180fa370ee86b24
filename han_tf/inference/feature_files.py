"""Features with the labels they need to be ranked, in memory and on disk."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Union

import numpy as np

from han_tf.data.records import Record
from han_tf.errors import UserError
from han_tf.files import atomic_open


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
    with atomic_open(path) as stream:
        np.savez(stream, **features._asdict())


def load_features(path: Union[str, os.PathLike]) -> FeatureSet:
    """Reads what :func:`save_features` wrote, or any ``.npz`` with features, pids and camids.

    Raises:
      UserError: the file is missing, no such archive, or its arrays do not fit together.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = {"features", "pids", "camids"} - set(archive.files)
            if missing:
                raise UserError(f"{path}: no array {sorted(missing)[0]!r}, expected features, pids and camids")
            features, pids, camids = archive["features"], archive["pids"], archive["camids"]
            paths = archive["paths"] if "paths" in archive.files else np.full(len(pids), "")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a NumPy archive (.npz) of features") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no NumPy archive (.npz) of plain arrays ({' '.join(str(error).split())})") from error
    if features.ndim != 2 or not len(features) == len(pids) == len(camids) == len(paths):
        raise UserError(
            f"{path}: features {features.shape}, pids {pids.shape}, camids {camids.shape}, expected [n, d], [n] and [n]"
        )
    return FeatureSet(features, pids, camids, paths)
