"""Features of many images on disk: a folder of Parquet files and their manifest.

``part-00000.parquet``, ``part-00001.parquet``, … hold one row per image, in the order of the images' paths:

======= ====================================== ======================================================
path    string                                 the image file, absolute
pid     int64, null where unknown              the person
camid   int64, null where unknown              the camera
time    float64, null where unknown            seconds since 1970, UTC
feature fixed_size_list<float32>[feature_dim]  the branches' parts side by side, each of unit norm
model   string (dictionary)                    checksum of the network
content string                                 size and time of the image file, or its checksum (see
                                               :class:`~han_tf.data.image_lists.ImageList`); not in older files
======= ====================================== ======================================================

Each file is self-contained: its metadata name the list of images, the network, the file's place in the list, a checksum
of the image files' contents, and the images that could not be read; its pages have checksums. It is written under a
temporary name and renamed, so that a file of that name is complete unless it was damaged later. ``manifest.json`` is
written before the first file.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from han_tf import __version__
from han_tf.common.errors import UserError, one_line
from han_tf.common.files import atomic_open, read_json, write_json
from han_tf.common.json_fields import checked_fields
from han_tf.data.image_lists import UNKNOWN
from han_tf.data.reading import BadImage

MANIFEST = "manifest.json"

FORMAT = 1
"""Version of the format; incremented when older readers cannot read the new format."""

METADATA = b"han_tf"
"""Key of a file's JSON metadata, beside ``han_tf_version``, ``feature_dim`` and ``branch_names``."""


@dataclass(frozen=True)
class Manifest:
    """The properties that all files of a folder share.

    Attributes:
      model: checksum of the network, 64 hexadecimal digits.
      feature_dim: numbers per feature.
      branch_names: names of a feature's equally wide parts.
      fingerprint: of the list of images: their paths, pids, camids and times in order.
      images: length of the list.
      shard_images: images per file; the last may have fewer.
      model_format, precision: of the model, as in its card; empty in older manifests.
      white_level: the value that is white in grey images of more than 8 bits, see :class:`han_tf.data.depth.Depth`; 0
        for that of their format.
      han_tf: version that wrote the manifest.
    """

    model: str
    feature_dim: int
    branch_names: tuple[str, ...]
    fingerprint: str
    images: int
    shard_images: int
    model_format: str = ""
    precision: str = ""
    white_level: float = 0.0
    han_tf: str = __version__

    @property
    def shards(self) -> int:
        """Number of files of a finished folder."""
        return math.ceil(self.images / self.shard_images)

    def bounds(self, number: int) -> tuple[int, int]:
        """Returns start and end (exclusive) of a file's images in the list."""
        return number * self.shard_images, min((number + 1) * self.shard_images, self.images)


class UnreadableFile(UserError):
    """A file that cannot be read now, for example for lack of permission or memory; it may well be whole."""


class FeatureBatch(NamedTuple):
    """Features and labels of some rows; numbers that were read from a file are read-only.

    Attributes:
      features: ``[n, feature_dim]`` float32.
      pids, camids: ``[n]`` int64; :data:`han_tf.data.image_lists.UNKNOWN` where not known (null in the files).
      times: ``[n]`` float64, seconds since 1970, UTC; NaN where not known.
      paths: ``[n]`` objects, strings.
    """

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    times: np.ndarray
    paths: np.ndarray

    def where(self, chosen: Union[np.ndarray, slice]) -> "FeatureBatch":
        """Returns the rows that ``chosen`` selects: a mask, bool ``[n]``, row numbers, integers ``[m]``, or a slice."""
        return FeatureBatch(*(column[chosen] for column in self))


class ShardSummary(NamedTuple):
    """The metadata of a file.

    Attributes:
      rows: number of rows.
      bad_images: images that could not be read, in the order of the list.
      content: :func:`content_checksum` of its image files; empty in older files.
      first, last: paths of the first and the last row; empty if there are no rows, and in older files.
    """

    rows: int
    bad_images: tuple[BadImage, ...]
    content: str = ""
    first: str = ""
    last: str = ""


class FeatureShards:
    """A finished folder of features. Iterating yields one :class:`FeatureBatch` per file, in order.

    Args:
      folder: where the files are.

    Attributes:
      manifest: of the folder.

    Raises:
      UserError: there is no such folder, a file is missing or damaged, or belongs to other images or another
        network. Errors in the data are raised when they are read: a wrong checksum, another network in a row, a null
        in a feature.
    """

    def __init__(self, folder: Union[str, os.PathLike]):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        count, missing = self.manifest.shards, missing_shards(self.folder, self.manifest)
        if missing:
            raise UserError(
                f"{self.folder}: {count - len(missing)} of {count} files are there "
                f"({shard_path(self.folder, missing[0]).name} is not), expected all; "
                "python -m han_tf.extract makes the others"
            )
        self._summaries = [read_summary(self.folder, self.manifest, number) for number in range(count)]

    def __len__(self) -> int:
        return sum(summary.rows for summary in self._summaries)

    def __iter__(self) -> Iterator[FeatureBatch]:
        for number in range(self.manifest.shards):
            yield read_shard(self.folder, self.manifest, number)

    @property
    def bad_images(self) -> tuple[BadImage, ...]:
        """The images that could not be read and have no row."""
        return tuple(bad for summary in self._summaries for bad in summary.bad_images)


def shard_path(folder: Union[str, os.PathLike], number: int) -> Path:
    """Returns the path of the file with this number."""
    return Path(folder) / f"part-{number:05d}.parquet"


def missing_shards(folder: Union[str, os.PathLike], manifest: Manifest) -> list[int]:
    """Returns the numbers of the files that are not there yet."""
    return [number for number in range(manifest.shards) if not shard_path(folder, number).exists()]


def write_manifest(folder: Union[str, os.PathLike], manifest: Manifest) -> None:
    """Writes ``manifest.json``, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    write_json(Path(folder) / MANIFEST, {"format": FORMAT, **asdict(manifest), "shards": manifest.shards})


def read_manifest(folder: Union[str, os.PathLike]) -> Manifest:
    """Returns the manifest that :func:`write_manifest` wrote.

    Raises:
      UserError: there is no manifest, or it is damaged or of another format.
    """
    path = Path(folder) / MANIFEST
    found = read_json(path, "the manifest of a folder of features, as python -m han_tf.extract writes it")
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise UserError(f"{path}: format {version!r}, expected {FORMAT}, as python -m han_tf.extract writes it")
    return Manifest(**checked_fields(path, found, Manifest, later=("model_format", "precision", "white_level")))


def content_checksum(paths: Sequence[str], contents: Sequence[str]) -> str:
    """Returns the hex SHA-256 of image files' paths and contents, independent of their order."""
    digest = hashlib.sha256()
    for path, content in sorted(zip(paths, contents)):
        digest.update(os.fsencode(path) + f"\0{content}\n".encode())
    return digest.hexdigest()


def write_shard(
    folder: Union[str, os.PathLike],
    manifest: Manifest,
    number: int,
    rows: FeatureBatch,
    bad_images: Sequence[BadImage] = (),
    contents: Optional[Sequence[str]] = None,
    content: str = "",
) -> None:
    """Writes one file, whole or not at all.

    Args:
      folder: where the file goes.
      manifest: the folder's manifest.
      number: of the file.
      rows: those images of the list in ``manifest.bounds(number)`` that could be read, in order.
      bad_images: the others.
      contents: contents of the files of ``rows``, as :class:`~han_tf.data.image_lists.ImageList` has them; None if not
        known.
      content: :func:`content_checksum` of all its images, bad ones included.

    Raises:
      UserError: the file cannot be written.
      ValueError: rows and bad images together are more or fewer than the file is to have, or the features
        have another dimension.
    """
    arrow, parquet = import_pyarrow()
    start, end = manifest.bounds(number)
    expected = (end - start - len(bad_images), manifest.feature_dim)
    if rows.features.shape != expected:
        raise ValueError(f"features have the shape {rows.features.shape}, expected {expected}")
    features = np.ascontiguousarray(rows.features, np.float32)
    # Without nulls in its schema, a Parquet file is read twice as fast.
    vector = arrow.list_(arrow.field("element", arrow.float32(), nullable=False), manifest.feature_dim)
    checksums = arrow.DictionaryArray.from_arrays(np.zeros(len(features), np.int32), arrow.array([manifest.model]))
    columns = {
        "path": arrow.array(list(rows.paths), arrow.string()),
        "pid": arrow.array(rows.pids, arrow.int64(), mask=rows.pids == UNKNOWN),
        "camid": arrow.array(rows.camids, arrow.int64(), mask=rows.camids == UNKNOWN),
        "time": arrow.array(rows.times, arrow.float64(), mask=np.isnan(rows.times)),
        "feature": arrow.FixedSizeListArray.from_arrays(arrow.array(features.reshape(-1)), type=vector),
        "model": checksums,
    }
    if contents is not None:
        columns["content"] = arrow.array(list(contents), arrow.string())
    ends = dict(zip(("first_path", "last_path"), (rows.paths[0], rows.paths[-1]))) if len(rows.paths) else {}
    metadata = {
        "han_tf_version": __version__,
        "feature_dim": str(manifest.feature_dim),
        "branch_names": json.dumps(manifest.branch_names),
        METADATA: json.dumps({**_place(manifest, number), "bad_images": bad_images, "content": content, **ends}),
    }
    known = {"path", "feature", "model", "content"}  # in every row
    schema = arrow.schema(
        [arrow.field(name, column.type, nullable=name not in known) for name, column in columns.items()], metadata
    )
    table = arrow.Table.from_arrays(list(columns.values()), schema=schema)
    with atomic_open(shard_path(folder, number)) as stream:
        parquet.write_table(
            table,
            stream,
            row_group_size=manifest.shard_images,
            use_dictionary=["model"],
            # Features are not compressible, and their statistics are useless.
            compression={**dict.fromkeys(columns, "zstd"), "feature.list.element": "none"},
            write_statistics=["path", "pid", "camid", "time"],
            write_page_checksum=True,
        )


def read_summary(folder: Union[str, os.PathLike], manifest: Manifest, number: int) -> ShardSummary:
    """Returns the metadata of a file, without reading its rows.

    Raises:
      UnreadableFile: the file cannot be read now.
      UserError: it is missing or damaged, or belongs to other images or another network.
    """
    with _opened(folder, manifest, number) as (_, summary):
        return summary


def read_shard(folder: Union[str, os.PathLike], manifest: Manifest, number: int) -> FeatureBatch:
    """Returns the rows of a file; the features are a view of what Arrow read.

    Raises:
      UserError: as :func:`read_summary` does.
    """
    path, width = shard_path(folder, number), manifest.feature_dim
    with _opened(folder, manifest, number) as (file, _):
        table = file.read([*_EXPECTED]).combine_chunks()
    others = set(table.column("model").unique().to_pylist()) - {manifest.model}
    if others:
        raise UserError(f"{path}: features of model {others.pop()}, expected {manifest.model}")
    for name in ("path", "feature"):
        if table.column(name).null_count:
            raise UserError(f"{path}: {table.column(name).null_count} rows have no {name}, expected none")
    # A column of an empty table has no chunks.
    features = [chunk.flatten() for chunk in table.column("feature").chunks]
    if any(chunk.null_count for chunk in features):
        raise UserError(f"{path}: a feature lacks a number, expected {width} in each")
    arrays = [chunk.to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in features]
    (joined,) = arrays or [np.empty([0, width], np.float32)]
    return FeatureBatch(  # type: ignore[call-arg]  # two arrays are unpacked
        joined,
        *(table.column(name).fill_null(UNKNOWN).to_numpy() for name in ("pid", "camid")),
        table.column("time").fill_null(math.nan).to_numpy(),
        table.column("path").to_numpy(),
    )


def read_contents(folder: Union[str, os.PathLike], manifest: Manifest, number: int) -> tuple[list[str], list[str]]:
    """Returns the paths of a file's rows and the contents of the image files; empty lists for an older file.

    Raises:
      UserError: as :func:`read_summary` does.
    """
    with _opened(folder, manifest, number) as (file, _):
        if "content" not in file.schema_arrow.names:
            return [], []
        table = file.read(["path", "content"])
        return table.column("path").to_pylist(), table.column("content").to_pylist()


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Returns ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
      UserError: they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"Parquet files need pyarrow ({error}), expected: pip install '.[extract]' in han-tf's folder"
        ) from error
    return pyarrow, parquet


@contextmanager
def _opened(folder: Union[str, os.PathLike], manifest: Manifest, number: int) -> Iterator[tuple[Any, ShardSummary]]:
    """Yields the ``pyarrow.parquet.ParquetFile`` and its metadata, if these and its columns fit.

    An error of Arrow in the block means that the file is damaged, unless the system or the memory failed.
    """
    arrow, parquet = import_pyarrow()
    path = shard_path(folder, number)
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            summary = _read_metadata(path, manifest, number, file)
            _check_columns(path, manifest, file.schema_arrow)
            yield file, summary
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file, expected Parquet") from error
    except (OSError, ValueError, MemoryError, arrow.ArrowException) as error:
        reason = one_line(error)
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise UnreadableFile(f"{path}: cannot be read ({reason}), expected a readable file") from error
        raise UserError(f"{path}: damaged or no Parquet ({reason}); python -m han_tf.extract makes it again") from error


def _read_metadata(path: Path, manifest: Manifest, number: int, file: Any) -> ShardSummary:
    place = _place(manifest, number)
    try:
        found = json.loads((file.schema_arrow.metadata or {})[METADATA])
        bad_images = tuple(BadImage(*pair) for pair in found["bad_images"])
        values = {name: found[name] for name in place}
        told = [str(found.get(name, "")) for name in ("content", "first_path", "last_path")]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not written by python -m han_tf.extract, expected one of its files") from error
    for name, expected in place.items():
        if values[name] != expected:
            raise UserError(
                f"{path}: {name} is {values[name]!r}, expected {expected!r} as in {MANIFEST}: "
                "it belongs to another extraction"
            )
    rows = file.metadata.num_rows
    if rows + len(bad_images) != place["images"]:
        raise UserError(f"{path}: {rows} rows and {len(bad_images)} bad images, expected {place['images']} together")
    return ShardSummary(rows, bad_images, *told)


def _check_columns(path: Path, manifest: Manifest, schema: Any) -> None:
    for name, expected in _EXPECTED.items():
        found = schema.field(name).type if name in schema.names else None
        if name == "feature":
            expected = f"fixed_size_list<float32>[{manifest.feature_dim}]"
            fits = getattr(found, "list_size", None) == manifest.feature_dim and str(found.value_type) == "float"
        else:
            plain = found.value_type if hasattr(found, "index_type") else found  # of a dictionary
            fits = str(plain).removeprefix("large_") == expected
        if not fits:
            what = "no column" if found is None else f"column of {found}"
            raise UserError(f"{path}: {what} {name}, expected {expected}")


_EXPECTED = {"path": "string", "pid": "int64", "camid": "int64", "time": "double", "feature": "", "model": "string"}
"""Column -> its type in Arrow."""


def _place(manifest: Manifest, number: int) -> dict[str, Any]:
    """Returns the metadata that tie a file to its folder."""
    start, end = manifest.bounds(number)
    return {
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
        "shard": number,
        "first": start,
        "images": end - start,
    }
