"""Data sets by name, as records of (path, pid, camid).

>>> dataset = load_dataset("market1501", "datasets/market1501")  # doctest: +SKIP
>>> dataset.train[0]  # doctest: +SKIP
Record(path='.../bounding_box_train/0002_c1s1_000451_03.jpg', pid=2, camid=1)
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Optional

from han_tf.common.errors import UserError
from han_tf.data.csv_dataset import read_csv
from han_tf.data.cuhk03 import SPELLINGS as CUHK03_SPELLINGS
from han_tf.data.cuhk03 import SPLITS as CUHK03_SPLITS
from han_tf.data.cuhk03 import read_cuhk03
from han_tf.data.dukemtmc import read_dukemtmc
from han_tf.data.folders import PathLike
from han_tf.data.joined import joined, named_datasets
from han_tf.data.market1501 import read_market1501
from han_tf.data.msmt17 import read_msmt17
from han_tf.data.occluded_reid import read_occluded_reid
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID, Record, ReIDDataset, check_protocol
from han_tf.data.synthetic_dataset import read_synthetic

__all__ = [
    "DATASETS",
    "DISTRACTOR_PID",
    "JUNK_PID",
    "DatasetEntry",
    "ReIDDataset",
    "Record",
    "canonical_split",
    "check_protocol",
    "load_dataset",
    "only_tested",
]


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the registry.

    ``read`` takes a folder as the data set's README describes it, or its parent, and one of ``splits``. It returns the
    data set, not yet checked, and raises UserError if the files are not as the README says.
    """

    read: Callable[[PathLike, str], ReIDDataset]
    data_dir: str  # default folder
    description: str  # one line
    splits: tuple[str, ...] = ("",)  # the protocol's variants, the default first
    multi_query: bool = False  # whether it has images for multi-query evaluation
    training: bool = True  # whether it has training images
    spellings: Mapping[str, str] = field(default_factory=dict)  # other spellings of a split -> its name in splits


DATASETS: dict[str, DatasetEntry] = {
    "synthetic": DatasetEntry(
        read_synthetic, "datasets/synthetic/data", "drawn pedestrians, 6 cameras; made on first use", multi_query=True
    ),
    "cuhk03": DatasetEntry(
        read_cuhk03,
        "datasets/cuhk03",
        "CUHK03, 767/700 protocol: 1,467 people, 2 cameras",
        splits=CUHK03_SPLITS,
        spellings={other: split for split, names in CUHK03_SPELLINGS.items() for other in names},
    ),
    "market1501": DatasetEntry(
        read_market1501, "datasets/market1501", "Market-1501: 1,501 people, 6 cameras", multi_query=True
    ),
    "dukemtmc": DatasetEntry(
        read_dukemtmc, "datasets/dukemtmc", "DukeMTMC-reID: 1,404 people and 408 distractors, 8 cameras"
    ),
    "msmt17": DatasetEntry(
        read_msmt17, "datasets/msmt17", "MSMT17 V1 or V2: 4,101 people, 15 cameras", splits=("", "trainval")
    ),
    "occluded_reid": DatasetEntry(
        read_occluded_reid,
        "datasets/occluded_reid",
        "Occluded-REID: 200 people, occluded and whole; evaluation only",
        training=False,
    ),
    "csv": DatasetEntry(read_csv, "datasets/own", "your own data, described by a CSV file", multi_query=True),
}
"""Every data set by its name."""


def only_tested(dataset: str) -> list[str]:
    """Returns those names in a list of data sets, separated by commas, whose data sets have no training images."""
    names = [part.name for part in named_datasets(dataset)]
    return [name for name in names if name in DATASETS and not DATASETS[name].training]


def canonical_split(dataset: str, split: str) -> str:
    """Returns a split as the registry spells it: ``labelled`` for CUHK03's ``labeled``; an unknown one as it is.

    Args:
      dataset: name of the data set; ``""`` for any. Of several, separated by commas, ``split`` has the splits.
      split: in any spelling; ``""`` for the default one.

    Raises:
      UserError: of several data sets, the number of splits differs from that of the names.
    """
    if not split:
        return ""
    return ",".join(_canonical(part.name, part.split) for part in named_datasets(dataset, split=split))


def _canonical(dataset: str, split: str) -> str:
    entries = [entry for name, entry in DATASETS.items() if dataset in ("", name)]
    return next((entry.spellings[split] for entry in entries if split in entry.spellings), split)


def load_dataset(name: str, data_dir: Optional[PathLike] = None, split: str = "") -> ReIDDataset:
    """Reads a data set and checks that it can be trained and tested on (:func:`check_protocol`).

    Args:
      name: a key of :data:`DATASETS`; or several, separated by commas, which are joined (:mod:`han_tf.data.joined`).
      data_dir: the data set's folder or its parent; the entry's ``data_dir`` if None. For several data sets: their
        folders in the same order, separated by commas; an empty one stands for the entry's.
      split: one of the entry's ``splits``; ``""`` is the default one. For several data sets as ``data_dir``.

    Raises:
      UserError: the name or the split is unknown, the files are not as the data set's README says, or the number of
        folders or splits differs from that of the names.
    """
    datasets = named_datasets(name, "" if data_dir is None else os.fspath(data_dir), split)
    if len(datasets) == 1:
        return _load_dataset(name, data_dir, split)
    return joined([_load_dataset(part.name, part.data_dir or None, part.split) for part in datasets])


def _load_dataset(name: str, data_dir: Optional[PathLike], split: str) -> ReIDDataset:
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}, expected one of {', '.join(DATASETS)}")
    entry = DATASETS[name]
    split = _canonical(name, split) or entry.splits[0]
    if split not in entry.splits:
        known = ", ".join(filter(None, entry.splits))
        raise UserError(f"{name} has no split {split!r}, expected {f'one of {known}' if known else 'none'}")
    try:
        dataset = entry.read(entry.data_dir if data_dir is None else data_dir, split)
    except OSError as error:
        raise UserError(
            f"{name}: cannot read {error.filename or data_dir} ({error.strerror or error}), expected readable files"
        ) from error
    return check_protocol(dataset)
