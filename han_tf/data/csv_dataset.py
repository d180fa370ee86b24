"""Your own data: a CSV file with one row per image.

The header names the columns ``path``, ``pid``, ``camid`` and ``subset``, in any order; other columns are ignored.
Paths are absolute or relative to the CSV file's folder. People are numbered from 1; in the gallery, pid -1 is junk and
0 a distractor. Without rows of the subset ``train`` the data set is for evaluation only.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from han_tf.common.errors import UserError
from han_tf.data.folders import PathLike
from han_tf.data.records import SUBSETS, Record, ReIDDataset, parse_label
from han_tf.data.tables import read_table

COLUMNS = ("path", "pid", "camid", "subset")
FILE_NAME = "records.csv"

_WHY_CAMID = (
    "gallery images of the query's person from the query's own camera are not counted as matches, "
    "so evaluation needs a camera id for every image"
)


def read_csv(data_dir: PathLike, split: str = "") -> ReIDDataset:
    """Reads the data set that a CSV file, or the ``records.csv`` in a folder, describes.

    Raises:
      UserError: the file is missing or unreadable, a column is missing, a row is invalid (the message names its line),
        or one image file is listed with two pids or camids.
    """
    path = Path(data_dir)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a CSV file with the columns {', '.join(COLUMNS)}")
    subsets: dict[str, list[Record]] = {subset: [] for subset in SUBSETS}
    rows_of_file: dict[tuple[int, int], list[tuple[str, str, Record]]] = {}
    for where, fields in read_table(path, COLUMNS, reasons={"camid": _WHY_CAMID}):
        subset, record = _read_row(where, path.parent, fields)
        subsets[subset].append(record)
        status = os.stat(record.path)
        rows = rows_of_file.setdefault((status.st_dev, status.st_ino), [])
        rows.append((where, subset, record))
        there, _, first = rows[0]
        if (record.pid, record.camid) != (first.pid, first.camid):
            raise UserError(
                f"{where}: {record.path} with pid {record.pid} and camid {record.camid}, expected pid {first.pid} and "
                f"camid {first.camid} as in {there.rpartition(', ')[2]}: it is the same file"
            )
    return ReIDDataset(
        name="csv",
        split=split,
        root=str(path.parent),
        **{subset: tuple(records) for subset, records in subsets.items()},
        notes=_repeated([[subset for _, subset, _ in rows] for rows in rows_of_file.values()]),
    )


def _repeated(subsets_of_files: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Returns sentences on the files with more than one row."""
    kinds = Counter(
        " and ".join(dict.fromkeys(subsets)) if len(set(subsets)) > 1 else f"{subsets[0]} more than once"
        for subsets in subsets_of_files
        if len(subsets) > 1
    )
    return tuple(f"{count:,} files stand in {kind}" for kind, count in sorted(kinds.items()))


def _read_row(where: str, folder: Path, fields: dict[str, str]) -> tuple[str, Record]:
    if not fields["camid"]:
        raise UserError(f"{where}: camid is empty; {_WHY_CAMID}")
    if fields["subset"] not in SUBSETS:
        raise UserError(f"{where}: subset is {fields['subset']!r}, expected one of {', '.join(SUBSETS)}")
    pid, camid = (parse_label(where, name, fields[name]) for name in ("pid", "camid"))
    image = os.path.join(folder, fields["path"])
    if not os.path.isfile(image):
        raise UserError(f"{where}: {image} is not there, expected an image file")
    return fields["subset"], Record(image, pid, camid)
