"""Lists of images to extract features of, from folders, patterns, CSV files and data sets.

A CSV file has a header with a column ``path`` (relative to the CSV file's folder, or absolute) and optionally ``pid``,
``camid`` and ``time``, whose fields may be empty; other columns are ignored. A time is a number of seconds since 1970,
UTC, or ISO 8601 (``2026-03-01T08:30:00+01:00``; UTC if it names no zone), in the years 1 to 9999.
"""

import errno
import fnmatch
import glob
import hashlib
import math
import os
import re
import stat
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import sha256_of
from han_tf.data import dukemtmc, market1501
from han_tf.data.folders import SUFFIXES, count_passed, image_stem, is_image, is_regular_file, passed_note
from han_tf.data.records import Record, parse_label
from han_tf.data.tables import read_table

UNKNOWN = np.iinfo(np.int64).min
"""Unknown pid or camid in int64 arrays; an unknown time is NaN."""

FIRST_TIME, END_OF_TIME = -62_135_596_800.0, 253_402_300_800.0
"""The years 1 to 9999, which ISO 8601 and calendars hold: ``FIRST_TIME <= time < END_OF_TIME``."""

NAMES = {"market1501": market1501.parse_name, "dukemtmc": dukemtmc.parse_name}
"""Name of a file naming scheme -> its :data:`~han_tf.data.folders.NameParser`."""

FIELDS = ("pid", "camid", "time")

_DATE = re.compile("(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])(([01][0-9]|2[0-3])[0-5][0-9])?")
"""A date of digits alone, perhaps with hour and minute; as seconds, it would be in 1970 or after 7989."""

CHECKSUM = "sha256:"
"""Prefix of an image file's contents if they are a checksum."""

_PREVIEWS = ("@eaDir",)
"""Folders in which NAS systems keep small copies of pictures."""

_PART = 256
"""Files per task of a thread."""


@dataclass(frozen=True)
class ImageList:
    """Images with their labels, sorted by path, each path once.

    Attributes:
      paths: ``n`` absolute paths.
      pids, camids: ``[n]`` int64; :data:`UNKNOWN` where not known.
      times: ``[n]`` float64, seconds since 1970, UTC; NaN where not known.
      contents: identifies each file's contents: its size in bytes and time of last change in nanoseconds, or
        ``sha256:`` and the checksum of its bytes; empty if there is no such file.
      duplicates: number of repeated paths (with the same labels) that were dropped.
      passed: counts of the ignored entries of folders, by kind.
    """

    paths: Sequence[str]
    pids: np.ndarray
    camids: np.ndarray
    times: np.ndarray
    contents: Sequence[str]
    duplicates: int = 0
    passed: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def notes(self) -> list[str]:
        """Sentences on images that were listed more than once and files that were passed over."""
        notes = [f"{self.duplicates} images were listed more than once, taken once"] * bool(self.duplicates)
        return notes + [passed_note(self.passed)] * bool(self.passed)

    def part(self, start: int, end: int) -> "ImageList":
        """Returns the images from ``start`` to ``end`` (exclusive)."""
        return self.take(range(start, min(end, len(self))))

    def take(self, rows: Sequence[int]) -> "ImageList":
        """Returns the images at the indices ``rows``."""
        rows = np.asarray(rows, np.int64)
        return ImageList(
            [self.paths[row] for row in rows],
            *(values[rows] for values in (self.pids, self.camids, self.times)),
            contents=[self.contents[row] for row in rows],
        )

    def fingerprint(self) -> str:
        """Returns 64 hexadecimal digits that change with any path or label, but not with the files' contents."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path) + b"\0")
        for values, kind in ((self.pids, "<i8"), (self.camids, "<i8"), (self.times, "<f8")):
            digest.update(values.astype(kind).tobytes())
        return digest.hexdigest()


def list_images(sources: Sequence[str], names: str = "", checksum: bool = False) -> ImageList:
    """Returns the images of all sources.

    Args:
      sources: folders, which are searched recursively except for hidden folders and the previews that NAS systems keep
        in ``@eaDir``; CSV files; image files; patterns (``*``, ``?``, ``[…]``, ``**`` for any folders) that match
        folders or image files, of which hidden ones and previews count only if they are named.
      names: how pid, camid and time are parsed from file names if a CSV file does not give them: a key of
        :data:`NAMES`; or a regular expression, searched for in the absolute path, with one or more of the groups
        ``(?P<pid>…)``, ``(?P<camid>…)`` and ``(?P<time>…)``; or ``""`` for not at all.
      checksum: identify files by a checksum, which reads all their bytes, instead of size and time.

    Raises:
      UserError: a source is missing, unreadable or without images; a CSV file is invalid (the message names the line);
        a file name is invalid; a path is listed twice with different labels.
    """
    parse = _name_parser(names)
    collected = _Collected(checksum)
    for source in sources:
        before = len(collected.paths)
        if os.path.isdir(source):
            collected.add_files(_walk([source], collected.passed), parse)
        elif os.path.splitext(source)[1].lower() == ".csv":
            _read_csv(source, collected, parse)
        elif os.path.isfile(source):
            if not is_image(os.path.basename(source)):
                raise UserError(f"{source}: expected a folder, a CSV file (.csv) or an image ({', '.join(SUFFIXES)})")
            collected.add_files([source], parse)
        elif glob.has_magic(source):
            collected.add_files(_matches(source, collected.passed), parse)
        else:
            raise UserError(f"{source}: no such file or folder, expected images, a folder, a CSV file or a pattern")
        if len(collected.paths) == before:
            raise UserError(f"{source}: no images found, expected at least one ({', '.join(SUFFIXES)})")
    return collected.sorted()


def listed_records(records: Sequence[Record], checksum: bool = False) -> ImageList:
    """Returns the images of a data set's records; ``checksum`` as for :func:`list_images`.

    Raises:
      UserError: a path has two records with different labels.
    """
    collected = _Collected(checksum)
    for record in records:
        collected.add(*record)
    return collected.sorted()


def parse_time(text: str) -> float:
    """Returns seconds since 1970, UTC, from a number of seconds or ISO 8601; UTC if it names no zone.

    Raises:
      ValueError: it is neither, or not in the years 1 to 9999; or it is a date of digits alone, such as 20260301.
    """
    if _DATE.fullmatch(text):
        raise ValueError(f"{text} may be a date or seconds")
    try:
        seconds = float(text.replace("_", "x"))  # float() would read 1_0 as 10
    except ValueError:
        moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))  # Python 3.10 does not know the Z
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if not FIRST_TIME <= seconds < END_OF_TIME:
        raise ValueError(f"{text} is not in the years 1 to 9999")
    return seconds


class _Collected:
    """Images in the order in which they are found; the labels are arrays, since there may be millions."""

    def __init__(self, checksum: bool) -> None:
        self.checksum = checksum
        self.passed: Counter = Counter()
        self.paths: list[str] = []
        self.pids, self.camids, self.times = array("q"), array("q"), array("d")

    def add(self, path: str, pid: int = UNKNOWN, camid: int = UNKNOWN, time: float = math.nan) -> None:
        self.paths.append(_absolute(path))
        self.pids.append(pid)
        self.camids.append(camid)
        self.times.append(time)

    def add_files(self, paths: Union[Sequence[str], Iterator[str]], parse: "_Parse") -> None:
        for path in paths:
            self.add(path, **parse.of(path))

    def sorted(self) -> ImageList:
        order = sorted(range(len(self.paths)), key=self.paths.__getitem__)
        paths = [self.paths[row] for row in order]
        arrays = [np.array(values)[order] for values in (self.pids, self.camids, self.times)]
        kept = np.ones(len(paths), bool)
        for row in range(1, len(paths)):
            if paths[row] == paths[row - 1]:
                for name, values in zip(FIELDS, arrays):
                    first, again = values[row - 1], values[row]
                    if first != again and not (math.isnan(first) and math.isnan(again)):
                        raise UserError(
                            f"{paths[row]}: in the list twice, with {name} {_shown(first)} and {_shown(again)}, "
                            "expected one"
                        )
                kept[row] = False
        paths = [paths[row] for row in np.flatnonzero(kept)]
        return ImageList(
            paths,
            *(values[kept] for values in arrays),
            contents=_contents(paths, self.checksum),
            duplicates=int((~kept).sum()),
            passed=dict(self.passed),
        )


def _absolute(path: str) -> str:
    """Returns an absolute path of the same file: in ``link/../name``, ``..`` is the folder above the link's target."""
    absolute = os.path.abspath(path)
    folder, name = os.path.split(path)
    if os.pardir in folder.split(os.sep) and os.path.realpath(os.path.dirname(absolute)) != os.path.realpath(folder):
        return os.path.join(os.path.realpath(folder), name)
    return absolute


class _Parse(NamedTuple):
    """What file names tell.

    Attributes:
      fields: the fields that they may hold.
      of: takes a path, returns the fields that its name holds.
    """

    fields: frozenset[str]
    of: Callable[[str], Mapping[str, Any]]


def _shown(value: Union[int, float]) -> str:
    return "unknown" if value == UNKNOWN or math.isnan(value) else str(value)


def _contents(paths: Sequence[str], checksum: bool) -> list[str]:
    """Returns ``contents`` of :class:`ImageList`."""

    def content(path: str) -> str:
        try:
            status = os.stat(path)
            if checksum and stat.S_ISREG(status.st_mode):
                return f"{CHECKSUM}{sha256_of(path)}"
            return f"{status.st_size} {status.st_mtime_ns}"
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the path is no valid one
            return ""
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                return ""
            raise UserError(f"{path}: cannot be read ({error.strerror or error}), expected a readable file") from error

    def contents(start: int) -> list[str]:
        return [content(path) for path in paths[start : start + _PART]]

    with ThreadPoolExecutor(thread_name_prefix="look") as pool:  # each call is slow on a network file system
        return [found for part in pool.map(contents, range(0, len(paths), _PART)) for found in part]


def _walk(folders: Sequence[str], passed: Counter) -> Iterator[str]:
    """Yields the images in and below ``folders``; follows links to folders, but visits no folder twice."""
    for current in _folders(folders, passed):
        for entry in _entries(current):
            regular = is_regular_file(entry)
            # A broken link may point to a disk that is not mounted: it is listed, and counts as missing.
            if is_image(entry.name) and (regular or not os.path.exists(entry.path)):
                yield entry.path
            elif regular or not os.path.isdir(entry.path):
                count_passed(passed, entry.name, regular)


def _folders(folders: Sequence[str], passed: Counter) -> Iterator[str]:
    """Yields ``folders`` and those below, without hidden ones and previews, each once, by its shortest path."""
    pending, seen = deque(folders), set()
    while pending:
        current = pending.popleft()
        try:
            status = os.stat(current)
        except OSError as error:
            raise UserError(f"{current}: {error.strerror or error}, expected a readable folder") from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield current
        for entry in _entries(current):
            if os.path.isdir(entry.path):
                if entry.name.startswith(".") or entry.name in _PREVIEWS:
                    passed["hidden folders or previews"] += 1
                else:
                    pending.append(entry.path)


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}, expected a readable folder") from error


def _matches(pattern: str, passed: Counter) -> Iterator[str]:
    """Yields the images that match, and those in and below folders that match, as :func:`_walk` does.

    Unlike :mod:`glob`, it stops at circular links, and raises UserError if a folder cannot be read.
    """
    folders, files = [], set()
    for hit in _expanded("", pattern.split(os.sep), passed):
        folder, name = os.path.split(hit)
        regular = os.path.isfile(hit)
        if os.path.isdir(hit):
            folders.append(hit)
        elif not is_image(name) or (not regular and os.path.exists(hit)):
            count_passed(passed, name, regular)
        elif hit not in files:
            files.add(hit)
            yield hit
    places = {(os.path.realpath(os.path.dirname(hit)), os.path.basename(hit)) for hit in files} if folders else ()
    for path in _walk(folders, passed):
        folder, name = os.path.split(path)
        if (os.path.realpath(folder), name) not in places:
            yield path


def _expanded(folder: str, parts: Sequence[str], passed: Counter) -> Iterator[str]:
    """Yields the paths in ``folder`` that match a pattern of these parts."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below in _folders([folder or os.curdir], passed) if rest else [folder or os.curdir]:
            yield from _expanded(below, rest, Counter())  # _folders has counted what is passed over
    elif not glob.has_magic(part):
        path = os.path.join(folder, part) if folder or part else os.sep
        if os.path.lexists(path):
            yield from _expanded(path, rest, passed)
    elif os.path.isdir(folder or os.curdir):
        for entry in sorted(_entries(folder or os.curdir), key=lambda entry: entry.name):
            if not fnmatch.fnmatch(entry.name, part) or (entry.name.startswith(".") and not part.startswith(".")):
                continue
            if entry.name in _PREVIEWS:
                passed["hidden folders or previews"] += 1
            elif not rest or os.path.isdir(entry.path):
                yield from _expanded(os.path.join(folder, entry.name), rest, passed)


def _read_csv(source: str, collected: _Collected, parse: _Parse) -> None:
    folder = os.path.dirname(source)
    for where, fields in read_table(source, ("path",), FIELDS):
        if not fields["path"] or "\0" in fields["path"]:
            raise UserError(f"{where}: path is {fields['path']!r}, expected an image file")
        path = os.path.join(folder, fields["path"])
        told = {name: parse_field(where, name, fields[name]) for name in FIELDS if fields.get(name)}
        parsed = {} if parse.fields <= told.keys() else parse.of(path)
        collected.add(path, **{**parsed, **told})


def parse_field(where: str, name: str, text: str) -> Union[int, float]:
    """Returns the value of a field of a CSV file, ``time`` or an integer, which must not be empty."""
    if name == "time":
        try:
            return parse_time(text)
        except (ValueError, OverflowError) as error:
            expected = "seconds since 1970 or ISO 8601, in the years 1 to 9999"
            raise UserError(f"{where}: time is {text!r}, expected {expected}") from error
    return parse_label(where, name, text)


def _name_parser(names: str) -> _Parse:
    if not names:
        return _Parse(frozenset(), lambda path: {})
    if names in NAMES:

        def parse_known(path: str) -> Mapping[str, Any]:
            labels = NAMES[names](image_stem(os.path.basename(path)) or "")
            if labels is None:
                raise UserError(f"{path}: the file name does not fit, expected one as in {names}")
            return {name: parse_label(path, name, value) for name, value in zip(("pid", "camid"), labels)}

        return _Parse(frozenset({"pid", "camid"}), parse_known)
    try:
        pattern = re.compile(names)
    except re.error as error:
        raise UserError(f"names {names!r}: expected {', '.join(NAMES)} or a regular expression ({error})") from error
    if not pattern.groupindex or set(pattern.groupindex) - {*FIELDS}:
        groups = " ".join(f"(?P<{name}>…)" for name in FIELDS)
        raise UserError(f"names {names!r}: expected {', '.join(NAMES)} or an expression with groups of {groups}")

    def parse(path: str) -> Mapping[str, Any]:
        match = pattern.search(os.path.abspath(path))
        if match is None:
            raise UserError(f"{path}: the path does not fit the expression {names!r}")
        return {name: parse_field(path, name, text) for name, text in match.groupdict().items() if text}

    return _Parse(frozenset(pattern.groupindex), parse)
