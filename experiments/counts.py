"""Counts of a data set, for estimates of trainings and for Table 2."""

from typing import Any, NamedTuple

from experiments import schema
from experiments.results import stamp
from han_tf.common.errors import UserError
from han_tf.data import JUNK_PID, load_dataset
from han_tf.data.synthetic import SyntheticPedestrians


class TrainingData(NamedTuple):
    """A data set's number of training images, and whether it has several images of a query."""

    images: int
    multi_query: bool


def drawn_data(pedestrians: SyntheticPedestrians) -> TrainingData:
    """Returns the counts of a drawn data set, which need not be drawn yet."""
    subsets = [frame.subset for frame in pedestrians.frames()]
    return TrainingData(subsets.count("train"), "multi_query" in subsets)


def training_data(dataset: str, split: str, data_dir: str) -> TrainingData:
    """Returns the counts of a data set; the embedded one need not be drawn.

    Raises:
      UserError: the data set is missing; the message says how to get it.
    """
    if dataset == "synthetic":
        return drawn_data(SyntheticPedestrians())
    try:
        found = load_dataset(dataset, data_dir or None, split)
    except UserError as error:
        raise UserError(f"{error}; see datasets/{dataset}/README.md, or give --data_dir") from error
    return TrainingData(len(found.train), bool(found.multi_query))


def count(name: str, data_dir: str) -> dict[str, Any]:
    """Returns the result on a data set of Table 2; if the data set is missing, prints a note and returns {}."""
    (row,) = (row for row in schema.load("table2").counts if row.dataset == name)
    try:
        found = {split: load_dataset(name, data_dir or None, split) for split in row.counted}
    except UserError as error:
        print(f"note: {row.title}: not found here ({error})")
        return {}
    train = len({record.pid for dataset in found.values() for record in dataset.train})
    test = len({record.pid for dataset in found.values() for record in dataset.query})
    images = sum(len(getattr(found[split], subset)) for split, subsets in row.counted.items() for subset in subsets)
    records = [record for dataset in found.values() for subset in dataset.subsets().values() for record in subset]
    cameras = {record.camid for record in records if record.pid != JUNK_PID}
    differences = dict.fromkeys(difference for dataset in found.values() for difference in dataset.differences)
    counts = {"identities": train + test, "train": train, "test": test, "images": images, "cameras": len(cameras)}
    return {"kind": "statistics", "dataset": name, "counts": counts, "differences": list(differences), **stamp()}
