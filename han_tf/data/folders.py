"""What the readers of image folders share: finding the folder, listing it, reading names."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional, Union

from han_tf.data.records import Record
from han_tf.errors import UserError

PathLike = Union[str, os.PathLike]

# Real copies hold a few names that end in ".jpg.jpg", hence the repetition.
_IMAGE = re.compile(r"(?P<stem>.+?)(?:\.(?:jpe?g|png|bmp))+", re.IGNORECASE)

_HINT = "the data set's README in datasets/ says where to get it and how it lies on disk"


def image_stem(name: str) -> Optional[str]:
    """Returns a file name without its image extension(s), or None if it is not an image's name.

    Hidden files are none: macOS leaves a ``._name.jpg`` beside each ``name.jpg`` it copies.
    """
    match = None if name.startswith(".") else _IMAGE.fullmatch(name)
    return match.group("stem") if match else None


def search_folder(data_dir: PathLike, key: str, markers: Sequence[str]) -> Optional[Path]:
    """Returns the folder that holds all ``markers``: ``data_dir`` itself or one at most two below it, or
    None.

    Folders below are looked into only if their name starts with ``key`` (case and punctuation aside), since
    data sets that lie side by side have the same inner folders.

    Args:
      data_dir: the folder itself or its parent.
      key: lower-case letters and digits, e.g. ``market1501``, which fits ``Market-1501-v15.09.15``.
      markers: names of files or folders, relative to the folder looked for.

    Raises:
      UserError: ``data_dir`` is no folder, or the folder is found more than once.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        found = "a file" if data_dir.exists() else "no such folder"
        raise UserError(f"{data_dir}: {found}, expected the data set's folder ({_HINT})")
    level = [data_dir]
    for _ in range(3):
        hits = [folder for folder in level if all((folder / marker).exists() for marker in markers)]
        if len(hits) > 1:
            raise UserError(
                f"{data_dir}: holds the data set more than once ({hits[0].name} and {hits[1].name}), "
                "expected one; give that folder itself"
            )
        if hits:
            return hits[0]
        level = sorted(
            child
            for folder in level
            for child in folder.iterdir()
            if re.sub(r"[^a-z0-9]", "", child.name.lower()).startswith(key) and child.is_dir()
        )
    return None


def find_folder(data_dir: PathLike, key: str, markers: Sequence[str]) -> Path:
    """Returns what :func:`search_folder` finds.

    Raises:
      UserError: nothing is found, or as :func:`search_folder` says.
    """
    folder = search_folder(data_dir, key, markers)
    if folder is None:
        missing = [marker for marker in markers if not (Path(data_dir) / marker).exists()]
        raise UserError(f"{data_dir}: no {' and no '.join(missing)} in it, expected {', '.join(markers)} ({_HINT})")
    return folder


def read_folder(folder: Path, parse: Callable[[str], Optional[tuple[int, int]]], example: str) -> tuple[Record, ...]:
    """Returns one record for each image in ``folder``, sorted by name.

    Files that are no images (``Thumbs.db``, ``.mat``) are passed over.

    Args:
      folder: an existing folder; it is not searched recursively.
      parse: takes a file name without its image extension(s), returns (pid, camid), or None if it does not
        fit.
      example: a name that fits, for the message.

    Raises:
      UserError: an image's name does not fit.
    """
    records = []
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_file()):
        stem = image_stem(name)
        if stem is None:
            continue
        parsed = parse(stem)
        if parsed is None:
            raise UserError(f"{folder / name}: the file name does not fit, expected one like {example}")
        records.append(Record(os.path.join(folder, name), *parsed))
    return tuple(records)
