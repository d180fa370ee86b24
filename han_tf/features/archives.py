"""Features with their labels, in memory and on disk."""

import os
from collections.abc import Sequence
from typing import NamedTuple, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import read_npz, write_npz
from han_tf.data.image_lists import UNKNOWN
from han_tf.data.records import Record
from han_tf.features.shards import MANIFEST, FeatureShards


class FeatureSet(NamedTuple):
    """The features of one subset.

    Attributes:
      features: ``[n, d]``, float32 from networks of this package; may be memory-mapped.
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

    def where(self, chosen: np.ndarray) -> "FeatureSet":
        """Returns the rows that ``chosen`` selects: a mask, bool ``[n]``, or row numbers, integers ``[m]``.

        A mask of consecutive rows returns views; anything else copies, memory-mapped features too.
        """
        if chosen.dtype == bool:
            rows = np.flatnonzero(chosen)
            if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
                chosen = slice(rows[0], rows[-1] + 1)
        return FeatureSet(*(array[chosen] for array in self))


def branch_features(features: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the joint features and views of each branch's part, by name (Table 8).

    Args:
      features: ``[n, d]``; the equally wide features of the branches, side by side.
      names: the branches, in order; with fewer than two there is only the joint feature.

    Raises:
      UserError: d is no multiple of the number of branches.
    """
    parts = {"joint": features}
    if len(names) > 1:
        width, rest = divmod(features.shape[1], len(names))
        if rest:
            raise UserError(
                f"the features have dimension {features.shape[1]}, expected a multiple of {len(names)} "
                f"(branches {', '.join(names)})"
            )
        parts.update({name: features[:, i * width : (i + 1) * width] for i, name in enumerate(names)})
    return parts


def save_features(path: Union[str, os.PathLike], features: FeatureSet) -> None:
    """Writes a feature set as a NumPy archive with the fields of :class:`FeatureSet`."""
    write_npz(path, **features._asdict())


def load_features(path: Union[str, os.PathLike], labels_only: bool = False) -> FeatureSet:
    """Returns the feature set in a file of :func:`save_features`, a folder of ``python -m han_tf.extract`` or any
    ``.npz`` with features, pids and camids.

    Features in Parquet files are loaded. Uncompressed features in archives, as :func:`save_features` and
    ``numpy.savez`` write them, are memory-mapped, read-only and in their own dtype; compressed ones are loaded.

    Args:
      path: the archive, or the folder of Parquet files.
      labels_only: whether to skip the features, which may then be missing; ``[n, 0]`` is returned for them.

    Raises:
      UserError: the file is missing, damaged or not such an archive; its arrays do not fit together, have a wrong dtype
        or are empty; a pid or camid in a Parquet file is unknown.
    """
    if os.path.exists(os.path.join(path, MANIFEST)):
        return _load_shards(path, labels_only)
    needed = ("pids", "camids") if labels_only else ("features", "pids", "camids")
    arrays = read_npz(path, (*needed, "paths"), mapped=("features",))
    for name in needed:
        if name not in arrays:
            raise UserError(f"{path}: no array {name!r}, expected {', '.join(needed[:-1])} and {needed[-1]}")
    pids, camids = arrays["pids"], arrays["camids"]
    if labels_only:
        arrays["features"] = np.empty((*pids.shape, 0), np.float32)
    features = arrays["features"]
    paths = arrays.get("paths", np.full(pids.shape, ""))
    if features.ndim != 2 or any(array.shape != features.shape[:1] for array in (pids, camids, paths)):
        raise UserError(
            f"{path}: features {features.shape}, pids {pids.shape}, camids {camids.shape}, paths {paths.shape}, "
            "expected [n, d] and [n] each"
        )
    if not len(pids):
        raise UserError(f"{path}: no images, expected at least one")
    for name, kinds, expected in (
        ("features", "fiu", "numbers"),
        ("pids", "iu", "integers"),
        ("camids", "iu", "integers"),
    ):
        if arrays[name].dtype.kind not in kinds:
            raise UserError(f"{path}: {name} are {arrays[name].dtype}, expected {expected}")
        if expected == "integers" and arrays[name].max() > np.iinfo(np.int64).max:
            raise UserError(f"{path}: {name} go up to {arrays[name].max()}, expected integers of 64 bits with a sign")
    if paths.dtype.kind != "U":
        raise UserError(f"{path}: paths are {paths.dtype}, expected strings")
    return FeatureSet(features, pids.astype(np.int64), camids.astype(np.int64), paths)


def _load_shards(folder: Union[str, os.PathLike], labels_only: bool) -> FeatureSet:
    shards = FeatureShards(folder)
    features = np.empty([len(shards), 0 if labels_only else shards.manifest.feature_dim], np.float32)
    labels, start = [], 0
    for batch in shards:
        end = start + len(batch.paths)
        features[start:end] = batch.features[:, : features.shape[1]]
        labels.append((batch.pids, batch.camids, batch.paths))
        start = end
    pids, camids, paths = map(np.concatenate, zip(*labels))
    for name, values in (("pid", pids), ("camid", camids)):
        unknown = int((values == UNKNOWN).sum())
        if unknown:
            raise UserError(f"{folder}: {unknown} of {len(values)} rows have no {name}, expected one in each")
    return FeatureSet(features, pids, camids, paths.astype(np.str_))
