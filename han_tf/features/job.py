"""Writes features of any number of images into a folder of Parquet files, and resumes after a stop.

The list of images is divided into shards, each of which is written atomically (:mod:`han_tf.features.shards`). A later
call makes only the missing shards, so that no row is lost or doubled. Shards with changed image files, and with
``update`` those of an earlier list, are moved to a subfolder, from which the rows of unchanged images are reused.
"""

import bisect
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
from tqdm import tqdm

from han_tf.common import files
from han_tf.common.errors import UserError
from han_tf.common.progress import progress_bar
from han_tf.data.depth import Depth
from han_tf.data.image_lists import CHECKSUM, ImageList
from han_tf.data.reading import BadImage, ImageReader
from han_tf.features.extractor import FeatureExtractor
from han_tf.features.shards import (
    MANIFEST,
    FeatureBatch,
    FeatureShards,
    Manifest,
    ShardSummary,
    UnreadableFile,
    content_checksum,
    import_pyarrow,
    read_contents,
    read_manifest,
    read_shard,
    read_summary,
    shard_path,
    write_manifest,
    write_shard,
)
from han_tf.runs.card import ModelCard

SHARD_IMAGES = 8192
"""Default number of images per shard: 32 MiB of 1,024-D features, seconds to minutes of work."""

BAD_IMAGES = "bad_images.csv"
"""The list of images that could not be read, with columns path and reason."""

LOCK = ".lock"
"""Name of the locked file; with ``-PART-PARTS`` for a part."""

_LISTED = ("images", "fingerprint", "shard_images")
"""Entries of a manifest that an update may change."""

_LATER = ("model_format", "precision")
"""Entries that are empty in older manifests."""

ASIDE = "previous-"
"""Prefix of the subfolders with earlier shards; the first digits of their fingerprint and the shard size follow."""

SHARDS = "part-*.parquet"
"""Pattern of the shards' names."""


class Part(NamedTuple):
    """One of ``parts`` processes that share the shards; it makes shard n if n modulo ``parts`` is ``part - 1``."""

    part: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Returns the part in a text such as ``2/8``; ``""`` is the whole.

        Raises:
          UserError: the text is not such a pair, or the part is not from 1 to the number of parts.
        """
        match = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text or "1/1")
        found = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= found.part <= found.parts:
            raise UserError(f"--part is {text!r}, expected one such as 2/8: from 1/8 to 8/8")
        return found

    def holds(self, shard: int) -> bool:
        """Returns whether this part makes the shard."""
        return shard % self.parts == self.part - 1


WHOLE = Part(1, 1)


class Plan(NamedTuple):
    """The work of an extraction.

    Attributes:
      manifest: the folder's manifest.
      pending: numbers of the shards to be made, in order.
      notes: sentences about damaged, changed and older files in the folder.
      part: the part whose shards these are.
    """

    manifest: Manifest
    pending: tuple[int, ...]
    notes: tuple[str, ...]
    part: Part = WHOLE

    def progress(self) -> tqdm:
        """Returns a progress bar over the part's images, which begins with those of the finished shards."""
        own = filter(self.part.holds, range(self.manifest.shards))
        left, total = (
            sum(end - start for start, end in map(self.manifest.bounds, shards)) for shards in (self.pending, own)
        )
        return progress_bar(total=total, initial=total - left, desc="features", unit="img", smoothing=0.1)


@contextmanager
def locked(folder: Union[str, os.PathLike], part: Part = WHOLE) -> Iterator[None]:
    """Locks ``folder``, created if missing, against all other extractions, or against those of the same part.

    Raises:
      UserError: another extraction holds the lock, or the folder cannot be written to.
    """
    taken = f"{folder}: another extraction is writing to it, expected to be alone there"
    folder = Path(folder)
    with ExitStack() as stack:
        if part == WHOLE:
            stack.enter_context(files.locked(folder / LOCK, taken))
            for other in sorted(folder.glob(f"{LOCK}-*")):
                stack.enter_context(files.locked(other, taken))
        else:
            own = f"{folder}: another process makes part {part.part}/{part.parts} there, expected to be alone with it"
            stack.enter_context(files.locked(folder / f"{LOCK}-{part.part}-{part.parts}", own))
        yield


def planning(folder: Union[str, os.PathLike], part: Part) -> AbstractContextManager[None]:
    """Makes parts call :func:`plan` one after the other; an extraction without parts needs no further lock."""
    if part == WHOLE:
        return nullcontext()
    return files.locked(Path(folder) / LOCK, waiting=f"{folder}: another process is at work there; waiting for it")


def plan(
    folder: Union[str, os.PathLike],
    images: ImageList,
    model: ModelCard,
    shard_images: Optional[int] = None,
    overwrite: bool = False,
    *,
    update: bool = False,
    white_level: float = 0.0,
    part: Part = WHOLE,
    max_bad_images: float = 1.0,
) -> Plan:
    """Returns the shards to be made, and writes the manifest of a new folder; the folder should be :func:`locked`.

    Temporary files of killed writers are removed. Existing shards are read and their checksums compared; damaged ones,
    and those with a changed image file, are to be made again.

    Args:
      folder: where the features go.
      images, model: the images to extract features of, and the network's card.
      shard_images: images per shard; if None, as in the folder, or :data:`SHARD_IMAGES` in a new one.
      overwrite: whether to remove everything that earlier extractions left there.
      update: whether this list replaces the folder's; features of unchanged images are kept.
      white_level: the value that is white in grey images of more than 8 bits; 0 for that of their format.
      part: the part whose shards are checked.
      max_bad_images: largest share of the images that may be missing.

    Raises:
      UnreadableFile: a shard cannot be read now.
      UserError: the folder belongs to another list or network, or has another format, precision, white level or shard
        size; it cannot be written to; it holds files that are not of an extraction; or too many images are missing.
    """
    folder = Path(folder)
    import_pyarrow()  # a missing package shows now, not at the first shard
    _check_images(images, max_bad_images)
    _check_foreign(folder)
    left = [path for name in (SHARDS, MANIFEST, BAD_IMAGES) for path in folder.glob(f".{name}.*.tmp")]
    for path in left:
        if part == WHOLE or part.holds(_number(path)):
            files.remove(path)
    if overwrite:
        # The manifest is removed last: while it exists, the remaining old shards cannot be mistaken for new ones.
        for path in [*_shards(folder), folder / BAD_IMAGES]:
            files.remove(path)
        _remove_aside(folder)
        files.remove(folder / MANIFEST)
    wanted = Manifest(
        model.checksum,
        model.feature_dim,
        tuple(model.branch_names),
        images.fingerprint(),
        len(images),
        shard_images or SHARD_IMAGES,
        model.format,
        model.precision,
        white_level,
    )
    if not (folder / MANIFEST).exists():
        strays = _shards(folder)
        if strays:
            raise UserError(
                f"{folder}: holds {strays[0].name} but no {MANIFEST}, expected an empty folder or --overwrite"
            )
        write_manifest(folder, wanted)
        return Plan(wanted, tuple(filter(part.holds, range(wanted.shards))), (), part)
    manifest = read_manifest(folder)
    if not shard_images:
        wanted = replace(wanted, shard_images=manifest.shard_images)
    _check_same(folder, manifest, wanted, ignored=_LISTED if update else ())
    if any(getattr(manifest, name) != getattr(wanted, name) for name in _LISTED):
        _check_same_kind(folder, _some_contents(folder, manifest), images.contents)
        _set_aside(folder, manifest, _shards(folder))
        write_manifest(folder, wanted)
        manifest = wanted
    pending, notes, older = [], [], 0
    own = list(filter(part.holds, range(manifest.shards)))
    for number in progress_bar(own, "checking", unit="shard", delay=2, leave=False):
        path = shard_path(folder, number)
        if not path.exists():
            pending.append(number)
            continue
        try:
            read_shard(folder, manifest, number)
            content = read_summary(folder, manifest, number).content
        except UnreadableFile:
            raise
        except UserError as error:
            notes.append(str(error))
            pending.append(number)
            files.remove(path)  # else other parts would take it for finished
            continue
        listed = images.part(*manifest.bounds(number))
        older += not content
        if content and content != content_checksum(listed.paths, listed.contents):
            _check_same_kind(folder, read_contents(folder, manifest, number)[1], listed.contents)
            notes.append(f"{path}: image files have changed, their features are made again")
            _set_aside(folder, manifest, [path])
            pending.append(number)
    if older:
        notes.append(f"{older} of {len(own)} files hold no checksum of the image files: changes are not noticed")
    return Plan(manifest, tuple(pending), tuple(notes), part)


def _check_images(images: ImageList, max_bad_images: float) -> None:
    """Raises UserError if too many images are missing, before features of an earlier extraction are replaced."""
    missing = [path for path, content in zip(images.paths, images.contents) if not content]
    if missing and len(missing) > min(max_bad_images * len(images), len(images) - 1):
        raise UserError(
            f"{len(missing)} of {len(images)} images are missing, the first is {missing[0]}; expected at least one "
            f"image, and at most {max_bad_images:.1%} missing (--max_bad_images)"
        )


def _check_foreign(folder: Path) -> None:
    """Raises UserError if a file of this folder has a name of the extraction's, but somebody else's content."""
    with suppress(OSError, ValueError):  # missing or damaged
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "fingerprint" not in found:
            raise UserError(f"{folder / MANIFEST}: not of an extraction, expected another --output")
    with suppress(OSError), (folder / BAD_IMAGES).open("rb") as stream:
        if stream.readline().strip() != ",".join(BadImage._fields).encode():
            raise UserError(f"{folder / BAD_IMAGES}: not of an extraction, expected another --output")


def _shards(folder: Path) -> list[Path]:
    """Returns the shards in a folder, ascending by name; those of other programs have other names."""
    return [path for path in sorted(folder.glob(SHARDS)) if re.fullmatch(r"part-[0-9]{5,}\.parquet", path.name)]


def _some_contents(folder: Path, manifest: Manifest) -> Sequence[str]:
    """Returns the contents of the images of one shard; an empty list if no shard tells them."""
    for number in range(manifest.shards):
        with suppress(UserError):
            if contents := read_contents(folder, manifest, number)[1]:
                return contents
    return []


def _check_same_kind(folder: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises UserError if the contents of images are checksums, but were size and time before, or the reverse."""
    kinds = [any(content.startswith(CHECKSUM) for content in contents) for contents in (found, wanted)]
    if any(found) and any(wanted) and kinds[0] != kinds[1]:
        before = "by their bytes (--checksum)" if kinds[0] else "by size and time (without --checksum)"
        raise UserError(f"{folder}: changes of image files are detected {before} there, expected the same flag again")


def _number(path: Path) -> int:
    """Returns the number of the shard that a temporary file belongs to; -1 for other files."""
    match = re.match(r"\.part-([0-9]+)\.parquet\.", path.name)
    return int(match.group(1)) if match else -1


def extract_shards(
    extractor: FeatureExtractor,
    images: ImageList,
    folder: Union[str, os.PathLike],
    manifest: Manifest,
    shards: Sequence[int],
    progress: Callable[[int], object] = lambda images: None,
    earlier: Optional["EarlierShards"] = None,
) -> Depth:
    """Makes shards; decoding, network and writing run in parallel, across the borders of shards.

    Memory holds the features of three shards at most. An image whose feature is not finite counts as bad. Rows that
    were set aside are reused if their image file has not changed.

    Args:
      extractor: the network of the manifest.
      images: those of ``shards`` only, in order.
      folder, manifest: where the shards go, and its manifest.
      shards: numbers of the shards, ascending.
      progress: called with the number of images that were processed since the last call.
      earlier: what was set aside; if None, it is looked for.

    Returns:
      How grey images of more than 8 bits were scaled, and how many.

    Raises:
      UserError: a shard cannot be written, or an image file that existed when it was listed cannot be read.
    """
    earlier = EarlierShards(folder, manifest) if earlier is None else earlier
    reused = _ReusedRows(earlier, images)
    left = np.flatnonzero(~reused.known)
    missing = BadImage("", "No such file")
    sources = [images.paths[row] if images.contents[row] else missing for row in left]
    reader = ImageReader(
        sources,
        extractor.input_size,
        extractor.batch_size,
        threads=extractor.threads,
        white_level=manifest.white_level or None,
    )
    rows = _embedded(extractor, reader, [images.paths[row] for row in left], progress)
    # Only the last shard of the list may be shorter than the others, and it comes last here.
    starts = range(0, len(images), manifest.shard_images)
    written: Optional[Future[None]] = None
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        for number, start in zip(shards, starts):
            part = images.part(start, start + manifest.shard_images)
            known = reused.known[start : start + len(part)]
            features = np.empty([len(part), extractor.feature_dim], np.float32)
            reused.take(features, start)
            progress(int(known.sum()))
            reasons: dict[int, str] = {}
            for row in np.flatnonzero(~known).tolist():
                features[row], reason = next(rows)
                if reason:
                    reasons[row] = reason
            if written is not None:
                written.result()
            written = writer.submit(_write, folder, manifest, number, part, features, reasons)
        if written is not None:
            written.result()
    return reader.depth


def extract_locally(
    extractor: FeatureExtractor, images: ImageList, folder: Union[str, os.PathLike], work: Plan
) -> list[str]:
    """Makes the pending shards in this process, with a progress bar over all images.

    Returns:
      Sentences on how grey images were scaled, see :attr:`han_tf.data.depth.Depth.notes`.

    Raises:
      UserError: as :func:`extract_shards` does.
    """
    if not work.pending:
        return []
    left = images.take(np.concatenate([np.arange(*work.manifest.bounds(number)) for number in work.pending]))
    with work.progress() as bar:
        return extract_shards(extractor, left, folder, work.manifest, work.pending, bar.update).notes


def finish(folder: Union[str, os.PathLike], max_bad_images: float = 1.0) -> FeatureShards:
    """Checks that every shard is there, writes the list of bad images and removes the shards that were set aside.

    Returns:
      The features.

    Raises:
      UserError: a shard is missing or belongs to another extraction; no image could be read, or a larger share than
        ``max_bad_images`` could not; or the list of bad images cannot be written.
    """
    folder, found = Path(folder), FeatureShards(folder)
    path, bad, images = folder / BAD_IMAGES, found.bad_images, found.manifest.images
    if bad:
        text = io.StringIO()
        csv.writer(text).writerows([BadImage._fields, *bad])
        with files.atomic_open(path) as stream:  # paths that are not UTF-8 are written as the bytes of their names
            stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
    else:
        files.remove(path)
    if not len(found):
        raise UserError(f"none of the {images} images could be read, expected at least one; see {path}")
    if len(bad) > max_bad_images * images:
        raise UserError(
            f"{len(bad)} of {images} images could not be read, expected at most {max_bad_images:.1%}; "
            f"see {path}; the other features are there, and --max_bad_images takes more"
        )
    _remove_aside(folder)
    return found


class EarlierShards:
    """The shards that were set aside in a folder; their first and last paths are read once.

    Args:
      folder: of the extraction.
      manifest: its manifest; shards of another network, precision or white level are left out.

    Raises:
      UnreadableFile: a shard cannot be read now.
    """

    def __init__(self, folder: Union[str, os.PathLike], manifest: Manifest):
        self._found: list[tuple[Path, Manifest, int, ShardSummary]] = []
        for aside in _asides(Path(folder)):
            try:
                earlier = read_manifest(aside)
            except UserError:  # somebody else's folder
                continue
            if not _differing(earlier, manifest, _LISTED):
                self._found += [(aside, earlier, number, summary) for number, summary in _summaries(aside, earlier)]

    def of(self, images: ImageList) -> Iterator[tuple[Path, Manifest, int, int, int]]:
        """Yields folder, manifest and number of those that may hold some of ``images``, and these: start and end."""
        for folder, manifest, number, summary in self._found:
            start = bisect.bisect_left(images.paths, summary.first)
            end = bisect.bisect_right(images.paths, summary.last) if summary.last else len(images)
            if start < end:
                yield folder, manifest, number, start, end


def _summaries(folder: Path, manifest: Manifest) -> Iterator[tuple[int, ShardSummary]]:
    """Yields number and summary of the shards that are there and not damaged."""
    for number in range(manifest.shards):
        if shard_path(folder, number).exists():
            try:
                yield number, read_summary(folder, manifest, number)
            except UnreadableFile:
                raise
            except UserError:
                continue


class _ReusedRows:
    """The rows of earlier shards that belong to unchanged images of a list.

    Attributes:
      known: ``[n]`` bool, which images of the list have such a row.
    """

    def __init__(self, earlier: EarlierShards, images: ImageList):
        self._files: list[tuple[Path, Manifest, int]] = []
        self._places = np.full([len(images), 2], -1)  # per image: index into self._files, and row
        for folder, manifest, number, start, end in earlier.of(images):
            try:
                rows = {pair: row for row, pair in enumerate(zip(*read_contents(folder, manifest, number)))}
            except UnreadableFile:
                raise
            except UserError:  # damaged
                continue
            for image in range(start, end):
                row = rows.get((images.paths[image], images.contents[image]))
                if row is not None and self._places[image, 0] < 0:
                    self._places[image] = len(self._files), row
            self._files.append((folder, manifest, number))
        self.known = self._places[:, 0] >= 0

    def take(self, features: np.ndarray, start: int) -> None:
        """Fills in the features of the known images from ``start`` on."""
        known = np.flatnonzero(self.known[start : start + len(features)])
        places = self._places[start + known]
        for file in np.unique(places[:, 0]):
            of_file = places[:, 0] == file
            features[known[of_file]] = read_shard(*self._files[file]).features[places[of_file, 1]]


def _set_aside(folder: Path, manifest: Manifest, shards: Iterable[Path]) -> None:
    """Moves shards to a folder where :class:`EarlierShards` finds them; can be repeated after an interruption."""
    aside = folder / f"{ASIDE}{manifest.fingerprint[:16]}-{manifest.shard_images}"
    write_manifest(aside, manifest)
    try:
        for path in shards:
            os.replace(path, aside / path.name)
    except OSError as error:
        raise UserError(f"cannot move {path} to {aside}: {error.strerror or error}") from error


def _asides(folder: Path) -> list[Path]:
    """Returns the subfolders that :func:`_set_aside` has made."""
    found = (path for path in sorted(folder.glob(f"{ASIDE}*")) if path.is_dir() and not path.is_symlink())
    return [path for path in found if re.fullmatch(f"{ASIDE}[0-9a-f]{{16}}-[0-9]+", path.name)]


def _remove_aside(folder: Path) -> None:
    """Removes what was set aside, and nothing else that somebody has put there."""
    for aside in _asides(folder):
        for pattern in (SHARDS, f".{SHARDS}.*.tmp", f".{MANIFEST}.*.tmp", MANIFEST):
            for path in aside.glob(pattern):
                files.remove(path)
        with suppress(OSError):  # it holds something else, too
            aside.rmdir()


def _embedded(
    extractor: FeatureExtractor, reader: ImageReader, paths: Sequence[str], progress: Callable[[int], object]
) -> Iterator[tuple[np.ndarray, str]]:
    """Yields, per image, its feature and why it is bad, else an empty string; features of bad images are arbitrary."""
    for pixels, start, found in reader.batches():
        reasons = {index: bad.reason for index, bad in found.items()}
        for row in range(start, start + len(pixels)):
            try:
                paths[row].encode()
            except UnicodeEncodeError:
                reasons[row] = "the path is not UTF-8, which Parquet requires"
        whole = np.array([row not in reasons for row in range(start, start + len(pixels))])
        features = np.zeros([len(pixels), extractor.feature_dim], np.float32)
        features[whole] = extractor.embed(pixels if whole.all() else pixels[whole])
        for row in np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
            reasons[start + row] = "the network's feature of it is not finite"
        progress(len(pixels))
        for row, feature in enumerate(features, start):
            yield feature, reasons.get(row, "")


def _write(
    folder: Union[str, os.PathLike],
    manifest: Manifest,
    number: int,
    images: ImageList,
    features: np.ndarray,
    reasons: dict[int, str],
) -> None:
    rows = FeatureBatch(features, images.pids, images.camids, images.times, np.array(images.paths, object))
    whole = np.array([row not in reasons for row in range(len(images))])
    if reasons:
        rows = rows.where(whole)
    bad = [BadImage(images.paths[row], reason) for row, reason in sorted(reasons.items())]
    contents = [images.contents[row] for row in np.flatnonzero(whole)]
    write_shard(folder, manifest, number, rows, bad, contents, content_checksum(images.paths, images.contents))


def _differing(found: Manifest, wanted: Manifest, ignored: Sequence[str]) -> list[str]:
    """Returns the entries in which an existing manifest differs from the wanted one."""
    ignored = ["han_tf", *ignored, *(name for name in _LATER if not getattr(found, name))]
    names = [field.name for field in fields(Manifest) if field.name not in ignored]
    return [name for name in names if getattr(found, name) != getattr(wanted, name)]


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
        "white_level": "features with the white level {}",
    }
    for name, phrase in phrases.items():
        if name in _differing(found, wanted, ignored):
            raise UserError(
                f"{folder}: holds {phrase.format(getattr(found, name))}, expected {getattr(wanted, name)}; "
                "give another --output, or --overwrite to make it anew"
                + ("; --update keeps the features of images that are the same" if name in _LISTED else "")
            )
