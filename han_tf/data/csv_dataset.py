"""Your own data: a CSV file with one row per image.

The header names the columns ``path``, ``pid``, ``camid`` and ``subset``, in any order; further columns are
passed over. Paths are relative to the CSV file's folder. A pid of -1 is junk and 0 a distractor, in the
gallery only, so people are numbered from 1.
"""

import csv
import os
from pathlib import Path

from han_tf.data.folders import PathLike
from han_tf.data.records import Record, ReIDDataset, parse_label
from han_tf.errors import UserError

COLUMNS = ("path", "pid", "camid", "subset")
SUBSETS = ("train", "query", "gallery", "multi_query")
FILE_NAME = "records.csv"

_WHY_CAMID = (
    "gallery images of the query's person from the query's own camera are not counted as matches, "
    "so evaluation needs a camera id for every image"
)


def read_csv(data_dir: PathLike, split: str = "") -> ReIDDataset:
    """Reads the data set that a CSV file describes.

    Args:
      data_dir: the CSV file, or a folder with a ``records.csv``.
      split: only ``""``.

    Raises:
      UserError: the file is missing or unreadable, a column is missing, or a row does not fit (its line is
        named).
    """
    path = Path(data_dir)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a CSV file with the columns {', '.join(COLUMNS)}")
    subsets: dict[str, list[Record]] = {subset: [] for subset in SUBSETS}
    try:
        # Spreadsheet programs put a byte order mark in front, which "utf-8-sig" takes off.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            header = [column.strip() for column in next(rows, [])]
            _check_header(path, header)
            for row in rows:
                if row:
                    subset, record = _read_row(f"{path}, line {rows.line_num}", path.parent, header, row)
                    subsets[subset].append(record)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    return ReIDDataset(
        name="csv",
        split=split,
        root=str(path.parent),
        **{subset: tuple(records) for subset, records in subsets.items()},
    )


def _check_header(path: Path, header: list[str]) -> None:
    missing = [column for column in COLUMNS if column not in header]
    if missing == ["camid"]:
        raise UserError(f"{path}, line 1: no column camid; {_WHY_CAMID}")
    known = [column for column in header if column in COLUMNS]
    if missing or len(set(known)) < len(known):
        raise UserError(f"{path}, line 1: found the header {','.join(header)!r}, expected {','.join(COLUMNS)}")


def _read_row(where: str, folder: Path, header: list[str], row: list[str]) -> tuple[str, Record]:
    if len(row) != len(header):
        raise UserError(f"{where}: {len(row)} columns, expected {len(header)} ({','.join(header)})")
    fields = {column: value.strip() for column, value in zip(header, row)}
    if not fields["camid"]:
        raise UserError(f"{where}: camid is empty; {_WHY_CAMID}")
    if fields["subset"] not in SUBSETS:
        raise UserError(f"{where}: subset is {fields['subset']!r}, expected one of {', '.join(SUBSETS)}")
    pid, camid = (parse_label(where, name, fields[name]) for name in ("pid", "camid"))
    image = os.path.join(folder, fields["path"])
    if not os.path.isfile(image):
        raise UserError(f"{where}: {image} is not there, expected an image file")
    return fields["subset"], Record(image, pid, camid)
