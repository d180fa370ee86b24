"""Entries of a gallery as CSV: a list of them, and new labels for them."""

import os
import re
from typing import IO, Any, Union

from han_tf.common.errors import UserError
from han_tf.common.files import write_csv
from han_tf.data.image_lists import FIELDS, parse_field
from han_tf.data.tables import read_table
from han_tf.search.entries import Entry, Filters
from han_tf.search.gallery import Gallery

LISTED_AT_ONCE = 1000
"""Entries of a page."""


def write_entries(gallery: Gallery, filters: Filters, stream: IO[str]) -> None:
    """Writes the entries that pass as CSV: ``id,path,pid,camid,time``, by ascending id; unknown labels are empty."""
    write_csv(stream, [Entry._fields])
    last = -1
    while entries := gallery.page(LISTED_AT_ONCE, last, filters):
        write_csv(stream, entries)
        last = entries[-1].id


def relabel_as_listed(gallery: Gallery, path: Union[str, os.PathLike]) -> int:
    """Changes labels as a CSV file says, of all entries in it or none; returns the number of entries.

    The columns are ``id`` or, if there is none, ``path``; and those of ``pid``, ``camid`` and ``time`` that are to be
    changed. An empty field removes the label.

    Raises:
      UserError: the file is not of this kind, or as :meth:`Gallery.relabel` and :meth:`Gallery.relabel_named`.
    """
    columns: dict[str, list[Any]] = {}
    for where, fields in read_table(path, (), Entry._fields, verbatim=("path",)):
        named = {"id", "path"} & fields.keys()
        changed = [name for name in FIELDS if name in fields]
        if not named or not changed:
            raise UserError(f"{where}: expected a column id or path, and pid, camid or time")
        key = "id" if "id" in named else "path"
        if not fields[key]:
            raise UserError(f"{where}: {key} is empty, expected that of an entry")
        columns.setdefault(key, []).append(_value(where, key, fields[key]))
        for name in changed:
            columns.setdefault(f"{name}s", []).append(_value(where, name, fields[name]) if fields[name] else None)
    if not columns:
        raise UserError(f"{path}: no entries, expected a line for each entry to be changed")
    if "id" in columns:
        ids = columns.pop("id")
        gallery.relabel(ids, **columns)
        return len(ids)
    return gallery.relabel_named(columns.pop("path"), **columns)


def _value(where: str, name: str, text: str) -> Union[str, int, float]:
    """Returns the value of a field that is not empty. Integers may be any that a gallery holds."""
    if name in ("path", "time"):
        return text if name == "path" else parse_field(where, name, text)
    if not re.fullmatch(r"-?[0-9]{1,19}", text):
        raise UserError(f"{where}: {name} is {text!r}, expected an integer")
    return int(text)
