"""Several data sets joined into one, to train on the people of all of them."""

from collections.abc import Sequence
from typing import NamedTuple

from han_tf.common.errors import UserError
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID, SUBSETS, Record, ReIDDataset

SEPARATOR = ","


class NamedDataset(NamedTuple):
    """The arguments of :func:`han_tf.data.load_dataset` for one data set."""

    name: str
    data_dir: str = ""
    split: str = ""


def named_datasets(name: str, data_dir: str = "", split: str = "") -> list[NamedDataset]:
    """Returns name, folder and split of each data set in a list such as ``market1501,dukemtmc``.

    ``data_dir`` and ``split`` are empty or have one part per name, separated by commas. For a single name they are
    taken as they are and may contain commas.

    Raises:
      UserError: the number of parts is wrong, or a name is given twice.
    """
    names = [part.strip() for part in name.split(SEPARATOR)]
    if len(names) == 1:
        return [NamedDataset(name, data_dir, split)]
    for part in names:
        if names.count(part) > 1:
            raise UserError(f"--dataset {name} names {part!r} twice, expected every data set once")
    columns = [names]
    for flag, text in (("data_dir", data_dir), ("split", split)):
        columns.append([part.strip() for part in text.split(SEPARATOR)] if text else [""] * len(names))
        if len(columns[-1]) != len(names):
            raise UserError(
                f"--{flag} {text} has {len(columns[-1])} parts, expected {len(names)} separated by commas, one for "
                f"each of --dataset {name}; an empty one stands for the default"
            )
    return [NamedDataset(*parts) for parts in zip(*columns)]


def joined(datasets: Sequence[ReIDDataset]) -> ReIDDataset:
    """Returns one data set with the people and cameras of all ``datasets``, which become its ``parts``.

    The first data set keeps its pids and camids. To those of each further one an offset is added that makes them larger
    than all before; junk and distractors keep their pids.
    """
    subsets: dict[str, list[Record]] = {subset: [] for subset in SUBSETS}
    people, cameras = 0, 0
    for dataset in datasets:
        own = {
            subset: [
                Record(path, pid if pid in (JUNK_PID, DISTRACTOR_PID) else pid + people, camid + cameras)
                for path, pid, camid in records
            ]
            for subset, records in dataset.subsets().items()
        }
        for subset, records in own.items():
            subsets[subset] += records
            people = max(people, *(record.pid for record in records))
        cameras = 1 + max(record.camid for records in own.values() for record in records)
    splits = [dataset.split for dataset in datasets]
    told = {
        kind: tuple(f"{dataset.name}: {sentence}" for dataset in datasets for sentence in getattr(dataset, kind))
        for kind in ("differences", "notes")
    }
    return ReIDDataset(
        name=SEPARATOR.join(dataset.name for dataset in datasets),
        split=SEPARATOR.join(splits) if any(splits) else "",
        root=SEPARATOR.join(dataset.root for dataset in datasets),
        **{subset: tuple(records) for subset, records in subsets.items()},
        **told,
        parts=tuple(datasets),
    )
