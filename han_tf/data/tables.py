"""Reader of CSV files with a header, also as spreadsheet programs write them."""

import csv
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Union

from han_tf.common.errors import UserError


def read_table(
    path: Union[str, os.PathLike],
    required: Sequence[str],
    optional: Sequence[str] = (),
    reasons: Mapping[str, str] = MappingProxyType({}),
    verbatim: Collection[str] = (),
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a CSV file in UTF-8.

    Columns may be in any order, and their names in capitals. Other columns, lines without a value and empty fields at
    the end of a line are ignored.

    Args:
      path: the file.
      required, optional: names of columns.
      reasons: column name -> why it is needed, for the message if this required column alone is missing.
      verbatim: names of columns whose fields keep their blanks.

    Yields:
      The row's file and line, for messages, and its stripped fields by the names of ``required`` and ``optional``.

    Raises:
      UserError: the file cannot be read or is no CSV file in UTF-8, a column is missing or duplicate, or a line has
        more or fewer fields than the header.
    """
    expected = ",".join(required) + "".join(f"[,{name}]" for name in optional)
    try:
        # "utf-8-sig" skips the byte order mark that spreadsheet programs write.
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            header = _without_empty_end([name.strip() for name in next(rows, [])], 0)
            names = [name.lower() for name in header]
            known = [name for name in names if name in (*required, *optional)]
            missing = [name for name in required if name not in known]
            if len(missing) == 1 and missing[0] in reasons:
                raise UserError(f"{path}, line 1: no column {missing[0]}; {reasons[missing[0]]}")
            if missing or len(set(known)) < len(known):
                raise UserError(f"{path}, line 1: found the header {','.join(header)!r}, expected {expected}")
            for row in rows:
                fields = _without_empty_end([field.strip() for field in row], len(names))
                if not any(fields):
                    continue
                where = f"{path}, line {rows.line_num}"
                if len(fields) != len(names):
                    raise UserError(f"{where}: {len(fields)} columns, expected {len(names)} ({','.join(header)})")
                kept = (given if name in verbatim else field for name, given, field in zip(names, row, fields))
                yield where, {name: field for name, field in zip(names, kept) if name in known}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a CSV file with {expected}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def _without_empty_end(fields: list[str], least: int) -> list[str]:
    while len(fields) > least and not fields[-1]:
        fields.pop()
    return fields
