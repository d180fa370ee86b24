"""Shared by the readers of image folders: finding the folder, listing it, parsing file names."""

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

from han_tf.common.errors import UserError
from han_tf.data.records import Record, parse_label

PathLike = Union[str, os.PathLike]

FILE_FORMATS = {
    "JPEG": ("jpg", "jpeg"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "GIF": ("gif",),
}
"""Formats of image files by Pillow's names -> file name extensions, in lower or upper case."""

SUFFIXES = tuple(f".{suffix}" for suffixes in FILE_FORMATS.values() for suffix in suffixes)

# The extension may be repeated: a few files of Market-1501 end in ".jpg.jpg".
_IMAGE = re.compile(rf"(?P<stem>.+?)(?:{'|'.join(map(re.escape, SUFFIXES))})+", re.IGNORECASE | re.DOTALL)

_LITTER = ("thumbs.db", "desktop.ini")

_HINT = "the data set's README in datasets/ says where to get it and how it lies on disk"


def image_stem(name: str) -> Optional[str]:
    """Returns a file name without its image extension(s), or None if it is not an image's name.

    Hidden files do not count as images: macOS adds a ``._name.jpg`` for each ``name.jpg`` that it copies.
    """
    match = None if name.startswith(".") else _IMAGE.fullmatch(name)
    return match.group("stem") if match else None


def is_image(name: str) -> bool:
    """Returns whether a file name is that of an image."""
    return image_stem(name) is not None


def is_litter(name: str) -> bool:
    """Returns whether a file is hidden, or one that Windows adds to folders of images."""
    return name.startswith(".") or name.lower() in _LITTER


def is_regular_file(entry: os.DirEntry) -> bool:
    """Returns whether ``entry`` is a regular file or a link to one; not a folder, named pipe, socket or broken link.

    Raises:
      OSError: the disk or network fails.
    """
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _candidates(data_dir: PathLike, key: str) -> Iterator[list[Path]]:
    """Yields the folders that may be the data set's: ``data_dir``, then those one and two levels below."""
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        found = "a file" if data_dir.exists() else "no such folder"
        raise UserError(f"{data_dir}: {found}, expected the data set's folder ({_HINT})")
    level = [data_dir]
    for _ in range(3):
        yield level
        level = sorted(
            child
            for folder in level
            for child in folder.iterdir()
            if re.sub(r"[^a-z0-9]", "", child.name.lower()).startswith(key) and child.is_dir()
        )


def _missing(folder: Path, markers: Sequence[str]) -> list[str]:
    return [marker for marker in markers if not (folder / marker).exists()]


def search_folder(data_dir: PathLike, key: str, *choices: Sequence[str]) -> Optional[Path]:
    """Returns the folder that holds all names of a choice, ``data_dir`` or one up to two levels below it, or None.

    Subfolders are searched only if their name starts with ``key`` (ignoring case and punctuation), since different data
    sets in one folder may have the same inner folders.

    Args:
      data_dir: the folder itself or its parent.
      key: lower-case letters and digits, e.g. ``market1501``, which fits ``Market-1501-v15.09.15``.
      *choices: names of files or folders, relative to the folder to find; a later choice is tried only if no folder
        holds an earlier one.

    Raises:
      UserError: ``data_dir`` is no folder, or the folder is found more than once.
    """
    for markers in choices:
        for level in _candidates(data_dir, key):
            hits = [folder for folder in level if not _missing(folder, markers)]
            if len(hits) > 1:
                raise UserError(
                    f"{data_dir}: holds the data set more than once ({hits[0].name} and {hits[1].name}), "
                    "expected one; give that folder itself"
                )
            if hits:
                return hits[0]
    return None


def find_folder(data_dir: PathLike, key: str, *choices: Sequence[str]) -> Path:
    """Returns the folder that :func:`search_folder` finds.

    Raises:
      UserError: nothing is found, or as :func:`search_folder` says.
    """
    folder = search_folder(data_dir, key, *choices)
    if folder is not None:
        return folder
    markers = choices[0]
    # The error names the folder that lacks fewest.
    folders = [folder for level in _candidates(data_dir, key) for folder in level]
    nearest = min(folders, key=lambda folder: len(_missing(folder, markers)))
    others = [child for child in sorted(Path(data_dir).iterdir()) if child.is_dir() and not _missing(child, markers)]
    hint = f"; they are in {others[0]}: give that folder itself" if others else f" ({_HINT})"
    missing = " and no ".join(_missing(nearest, markers))
    raise UserError(f"{nearest}: no {missing} in it, expected {', '.join(markers)}{hint}")


NameParser = Callable[[str], Optional[tuple[int, int]]]
"""Takes a file name without its image extension(s), returns pid and camid, or None if the name does not fit."""


def name_parser(pattern: str, camid: Optional[int] = None) -> NameParser:
    """Returns a parser of file names that match a regular expression with the groups ``pid`` and ``camid``.

    If ``camid`` is given, the expression needs only ``pid``.
    """
    compiled = re.compile(pattern)

    def parse(stem: str) -> Optional[tuple[int, int]]:
        match = compiled.fullmatch(stem)
        return (int(match["pid"]), int(match["camid"]) if camid is None else camid) if match else None

    return parse


def read_folder(folder: Path, parse: NameParser, example: str, notes: list[str]) -> tuple[Record, ...]:
    """Returns one record for each image in ``folder``, sorted by name.

    Args:
      folder: an existing folder; it is not searched recursively.
      parse: for the file names.
      example: a valid name, for the message.
      notes: gets a sentence with the number of entries that are ignored, except hidden files, ``Thumbs.db`` and
        ``desktop.ini``.

    Raises:
      UserError: an image's file name is invalid.
    """
    records = []
    passed = Counter()
    with os.scandir(folder) as entries:
        found = sorted((entry.name, is_regular_file(entry)) for entry in entries)
    for name, regular in found:
        stem = image_stem(name)
        if stem is None or not regular:
            count_passed(passed, name, regular)
            continue
        parsed = parse(stem)
        if parsed is None:
            raise UserError(f"{folder / name}: the file name does not fit, expected one like {example}")
        pid, camid = (parse_label(str(folder / name), *field) for field in zip(("pid", "camid"), parsed))
        records.append(Record(os.path.join(folder, name), pid, camid))
    if passed:
        notes.append(f"{folder.name}: {passed_note(passed)}")
    return tuple(records)


def count_passed(passed: Counter, name: str, regular: bool) -> None:
    """Counts, by kind, an entry that is not an image file."""
    if not regular:
        passed["folders, links to nothing or other things that are no files"] += 1
    elif not is_litter(name):
        passed[f"files named *{os.path.splitext(name)[1]}"] += 1


def passed_note(passed: Mapping[str, int]) -> str:
    """Returns a sentence with the counts of ignored entries."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed.items()))
    return f"{kinds}: passed over (images are {' '.join(SUFFIXES)})"
