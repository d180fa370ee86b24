"""Features of any number of images into a folder of Parquet files, in a way that survives being stopped.

The list of images is cut into shards, which are made one by one and appear whole (:mod:`.feature_shards`). Whoever
starts again finds which are there and makes the others: no row is lost and none is there twice.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Optional, Protocol, Union

import numpy as np
from tqdm import tqdm

from han_tf import files
from han_tf.data.image_lists import ImageList
from han_tf.data.reading import BadImage, ImageReader
from han_tf.errors import UserError
from han_tf.inference.extractor import FeatureExtractor
from han_tf.inference.feature_shards import (
    MANIFEST,
    FeatureBatch,
    Manifest,
    ShardSummary,
    import_pyarrow,
    read_manifest,
    read_shard,
    read_summary,
    shard_path,
    write_manifest,
    write_shard,
)

SHARD_IMAGES = 8192
"""Images per shard if nothing is said: 32 MiB of 1,024-D features, seconds to minutes of work."""

BAD_IMAGES = "bad_images.csv"
"""Lists the images that could not be read, with columns path and reason."""

LOCK = ".lock"

SHARDS = "part-*.parquet"
"""What the shards' names have in common."""


class Model(Protocol):
    """What identifies the features of a network: a feature extractor, or the card of a model."""

    checksum: str
    feature_dim: int
    branch_names: tuple[str, ...]
    format: str
    precision: str


class Plan(NamedTuple):
    """What there is to do.

    Attributes:
      manifest: what the folder is to hold.
      pending: numbers of the shards that are to be made, in order.
      notes: sentences about what was found in the folder.
    """

    manifest: Manifest
    pending: tuple[int, ...]
    notes: tuple[str, ...]


class Extracted(NamedTuple):
    """What the finished folder holds."""

    rows: int
    bad_images: int


def locked(folder: Union[str, os.PathLike]) -> AbstractContextManager[None]:
    """Makes ``folder`` if need be and keeps other extractions out of it, until the block ends or the process does.

    Raises:
      UserError: another one is at work there, or the folder cannot be written to.
    """
    taken = f"{folder}: another extraction is writing to it, expected to be alone there"
    return files.locked(Path(folder) / LOCK, taken)


def plan(
    folder: Union[str, os.PathLike],
    images: ImageList,
    model: Model,
    shard_images: Optional[int] = None,
    overwrite: bool = False,
) -> Plan:
    """Finds out what is to be made and writes the manifest of a new folder; the folder should be :func:`locked`.

    What is left of writers that were killed is removed. Shards that are there are read and their checksums compared;
    damaged ones are to be made again.

    Args:
      folder: where the features go.
      images: what to extract features of.
      model: by what.
      shard_images: images per shard; as in the folder, or :data:`SHARD_IMAGES` in a new one, if None.
      overwrite: remove what an earlier extraction has left there, whatever it is.

    Raises:
      UserError: the folder is another list's or network's, of another format or precision, or divided in another
        way; it cannot be written to; or holds Parquet files, but no manifest.
    """
    folder = Path(folder)
    import_pyarrow()  # not only when the first shard is to be written
    _remove([path for name in (SHARDS, MANIFEST, BAD_IMAGES) for path in folder.glob(f".{name}.*.tmp")])
    if overwrite:
        # The manifest last: as long as it stands, nobody takes what is left of the old shards for new ones.
        _remove([*folder.glob(SHARDS), folder / BAD_IMAGES, folder / MANIFEST])
    wanted = Manifest(
        model.checksum,
        model.feature_dim,
        tuple(model.branch_names),
        images.fingerprint(),
        len(images),
        shard_images or SHARD_IMAGES,
        model.format,
        model.precision,
    )
    if not (folder / MANIFEST).exists():
        strays = sorted(folder.glob(SHARDS))
        if strays:
            raise UserError(
                f"{folder}: holds {strays[0].name} but no {MANIFEST}, expected an empty folder or --overwrite"
            )
        write_manifest(folder, wanted)
        return Plan(wanted, tuple(range(wanted.shards)), ())
    manifest = read_manifest(folder)
    untold = [name for name in ("model_format", "precision") if not getattr(manifest, name)]  # as in older ones
    _check_same(folder, manifest, wanted, ignored=untold if shard_images else ["shard_images", *untold])
    pending, notes = [], []
    for number in tqdm(range(manifest.shards), "checking", unit="shard", delay=2, leave=False):
        if not shard_path(folder, number).exists():
            pending.append(number)
            continue
        try:
            read_shard(folder, manifest, number)
        except UserError as error:
            notes.append(str(error))
            pending.append(number)
    return Plan(manifest, tuple(pending), tuple(notes))


def extract_shards(
    extractor: FeatureExtractor,
    images: ImageList,
    folder: Union[str, os.PathLike],
    manifest: Manifest,
    shards: Sequence[int],
    progress: Callable[[int], object] = lambda images: None,
) -> None:
    """Makes shards: decoding, network and writing run side by side, across the borders of shards.

    Memory holds the features of three shards at most.

    Args:
      extractor: the network of the manifest.
      images: those of ``shards`` alone, in order.
      folder: where the shards go.
      manifest: what the folder holds.
      shards: their numbers, rising.
      progress: is called with a number of images when so many more were looked at.

    Raises:
      UserError: a shard cannot be written.
    """
    reader = ImageReader(images.paths, extractor.input_size, extractor.batch_size, threads=extractor.threads)
    # Only the last shard of the list may be shorter than the others, and it comes last here, too.
    starts = range(0, len(images), manifest.shard_images)
    written: Optional[Future[None]] = None
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        batches = _embedded(extractor, reader, images.paths)
        rest = next(batches)
        for number, start in zip(shards, starts):
            part = images.part(start, start + manifest.shard_images)
            features = np.empty([len(part), extractor.feature_dim], np.float32)
            reasons: dict[int, str] = {}
            filled = 0
            while True:
                taken = min(len(rest[0]), len(part) - filled)
                features[filled : filled + taken] = rest[0][:taken]
                reasons.update({filled + row: reason for row, reason in rest[1].items() if row < taken})
                rest = rest[0][taken:], {row - taken: reason for row, reason in rest[1].items() if row >= taken}
                filled += taken
                progress(taken)
                if filled == len(part):
                    break
                rest = next(batches)
            if written is not None:
                written.result()
            written = writer.submit(_write, folder, manifest, number, part, features, reasons)
        if written is not None:
            written.result()


def extract_locally(
    extractor: FeatureExtractor, images: ImageList, folder: Union[str, os.PathLike], work: Plan
) -> None:
    """Makes the pending shards in this process, with a progress bar over all images.

    Raises:
      UserError: a shard cannot be written.
    """
    bounds = [work.manifest.bounds(number) for number in work.pending]
    pending = sum(end - start for start, end in bounds)
    if not pending:
        return
    rows = np.concatenate([np.arange(start, end) for start, end in bounds])
    left = ImageList([images.paths[row] for row in rows], images.pids[rows], images.camids[rows], images.times[rows])
    with tqdm(total=len(images), initial=len(images) - pending, desc="features", unit="img", smoothing=0.1) as bar:
        extract_shards(extractor, left, folder, work.manifest, work.pending, bar.update)


def finish(folder: Union[str, os.PathLike], manifest: Manifest) -> Extracted:
    """Checks that every shard is there, and lists the bad images.

    Raises:
      UserError: a shard is missing or is not this extraction's; none of the images could be read; or the list of
        bad images cannot be written.
    """
    summaries = [read_summary(folder, manifest, number) for number in range(manifest.shards)]
    done = Extracted(sum(summary.rows for summary in summaries), sum(len(summary.bad_images) for summary in summaries))
    path = Path(folder) / BAD_IMAGES
    if done.bad_images:
        _write_bad_images(path, summaries)
    else:
        _remove([path])
    if not done.rows:
        raise UserError(f"none of the {manifest.images} images could be read, expected at least one; see {path}")
    return done


def _embedded(
    extractor: FeatureExtractor, reader: ImageReader, paths: Sequence[str]
) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    """Yields, per batch, features (arbitrary for bad images) and why some images are bad, by row."""
    for pixels, start, found in reader.batches():
        reasons = {index - start: reason for index, reason in found.items()}
        for row in range(len(pixels)):
            try:
                paths[start + row].encode()
            except UnicodeEncodeError:
                reasons[row] = "the path is not UTF-8, which Parquet wants"
        if not reasons:
            yield extractor.embed(pixels), reasons
            continue
        whole = np.array([row not in reasons for row in range(len(pixels))])
        features = np.zeros([len(pixels), extractor.feature_dim], np.float32)
        features[whole] = extractor.embed(pixels[whole])
        yield features, reasons


def _write(
    folder: Union[str, os.PathLike],
    manifest: Manifest,
    number: int,
    images: ImageList,
    features: np.ndarray,
    reasons: dict[int, str],
) -> None:
    rows = FeatureBatch(features, images.pids, images.camids, images.times, np.array(images.paths, object))
    if reasons:
        whole = np.array([row not in reasons for row in range(len(images))])
        rows = FeatureBatch(*(values[whole] for values in rows))
    bad = [BadImage(images.paths[row], reason) for row, reason in sorted(reasons.items())]
    write_shard(folder, manifest, number, rows, bad)


def _check_same(folder: Path, found: Manifest, wanted: Manifest, ignored: Sequence[str]) -> None:
    phrases = {
        "model": "features of model {}",
        "feature_dim": "features of dimension {}",
        "branch_names": "features of the branches {}",
        "model_format": "features of a model in format {}",
        "precision": "features of a model in {}",
        "images": "features of {} images",
        "fingerprint": "features of another list of images, with the fingerprint {}",
        "shard_images": "shards of {} images",
    }
    for name, phrase in phrases.items():
        values = getattr(found, name), getattr(wanted, name)
        if values[0] != values[1] and name not in ignored:
            raise UserError(
                f"{folder}: holds {phrase.format(values[0])}, expected {values[1]}; "
                "give another --out, or --overwrite to make it anew"
            )


def _write_bad_images(path: Path, summaries: Sequence[ShardSummary]) -> None:
    with files.atomic_open(path) as stream:
        # Paths that are not UTF-8 come out as the bytes that they are on disk.
        text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="", write_through=True)
        writer = csv.writer(text)
        writer.writerow(BadImage._fields)
        for summary in summaries:
            writer.writerows(summary.bad_images)
        text.detach()


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {path}: {error.strerror or error}") from error
