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


def training_data(dataset: str, split: str, data_dir: str) -> TrainingData:
    """Returns the counts of a data set; the embedded one need not be drawn.

    Raises:
      UserError: the data set is missing; the message says how to get it.
    """
    if dataset == "synthetic":
        subsets = [frame.subset for frame in SyntheticPedestrians().frames()]
        return TrainingData(subsets.count("train"), "multi_query" in subsets)
    try:
        found = load_dataset(dataset, data_dir or None, split)
        return TrainingData(len(found.train), bool(found.multi_query))
    except UserError as error:
        how = f"datasets/{dataset}/README.md says how to get it, --data_dir where it lies"
        raise UserError(f"{error}; {how}" if "README" not in str(error) else str(error)) from error


def count(name: str, data_dir: str) -> dict[str, Any]:
    """Returns the result on a data set of Table 2; if the data set is missing, prints a note and returns {}."""
    (row,) = (row for row in schema.load("table2").counts if row.dataset == name)
    people: dict[str, set[int]] = {"train": set(), "test": set()}
    images, cameras, differences = 0, set(), []
    for split, subsets in row.counted.items():
        try:
            dataset = load_dataset(name, data_dir or None, split)
        except UserError as error:
            print(f"note: {row.title}: not found here ({error})")
            return {}
        people["train"] |= {record.pid for record in dataset.train}
        people["test"] |= {record.pid for record in dataset.query}
        images += sum(len(getattr(dataset, subset)) for subset in subsets)
        records = [r for subset in dataset.subsets().values() for r in subset]
        cameras |= {record.camid for record in records if record.pid != JUNK_PID}
        differences += [difference for difference in dataset.differences if difference not in differences]
    train, test = len(people["train"]), len(people["test"])
    counts = {"identities": train + test, "train": train, "test": test, "images": images, "cameras": len(cameras)}
    return {"kind": "statistics", "dataset": name, "counts": counts, "differences": differences, **stamp()}
