"""One check of JSON objects that are read as dataclasses."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from han_tf.common.errors import UserError

KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a string", lambda value: isinstance(value, str)),
    int: ("a positive integer", lambda value: type(value) is int and value > 0),
    float: ("a finite number from 0 up", lambda value: type(value) in (int, float) and 0 <= value < math.inf),
    tuple[int, int]: (
        "height and width in pixels",
        lambda value: isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value),
    ),
    tuple[str, ...]: (
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
    Mapping[str, Any]: ("an object", lambda value: isinstance(value, dict)),
    Mapping[str, str]: ("an object", lambda value: isinstance(value, dict)),
}
"""Type of a dataclass's field -> what is expected, and whether a JSON value is that."""


def checked_fields(path: Path, values: Mapping[str, Any], kind: type, later: Collection[str] = ()) -> dict[str, Any]:
    """Returns the entries of a JSON object that are fields of a dataclass; lists become tuples.

    Args:
      path: the file, for errors.
      values: the object.
      kind: the dataclass; fields of types that :data:`KINDS` does not name hold anything.
      later: fields that older files lack.

    Raises:
      UserError: an entry is missing, or not of its field's type.
    """
    found = {}
    for field in fields(kind):
        if field.name in values:
            value = values[field.name]
            expected, holds = KINDS.get(field.type, ("", lambda value: True))
            if not holds(value):
                raise UserError(f"{path}: {field.name} is {str(value)[:80]!r}, expected {expected}")
            found[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.name not in later:
            raise UserError(f"{path}: no entry {field.name!r}, expected the fields of a {kind.__name__}")
    return found
