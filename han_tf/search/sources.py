"""Features on disk to add to a gallery: a folder of Parquet files, or a NumPy archive."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID
from han_tf.features.archives import load_features
from han_tf.features.shards import MANIFEST, FeatureBatch, FeatureShards
from han_tf.metrics.checks import GREATEST_NORM
from han_tf.search.gallery import UNKNOWN, Entry, Gallery, Progress

ROWS = 4096
"""Rows of an archive that are handed on at a time."""

NAMED = 3
"""Images that a note names, of those that cannot be used."""


class FeatureSource(ABC):
    """Features with the labels of their images. Iterating yields all that can be used, in the order of the file.

    One rule holds for all kinds of files: junk (pid -1) is left out; distractors (pid 0), who are many people under
    one pid, have none; and an image whose feature is not finite is left out.

    Attributes:
      name: the file or folder.
      dimension: of the features.
      checksum: of the model that made them; None if the file does not say.
      white_level: as of :class:`han_tf.features.shards.Manifest`; None if the file does not say.
      doubled: paths that stand there more than once, and the empty one.
      junk: paths of the junk that the last iteration left out.
      distractors: how many images it took without a pid.
      spoiled: the images that it left out for their features.
    """

    name: str
    dimension: int
    checksum: Optional[str]
    white_level: Optional[float] = None
    doubled: frozenset[str] = frozenset([""])

    def __init__(self) -> None:
        self.junk: list[str] = []
        self.distractors = 0
        self.spoiled: list[str] = []

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of all images in the source."""

    @abstractmethod
    def _batches(self) -> Iterator[FeatureBatch]:
        """Yields all rows unchanged."""

    def __iter__(self) -> Iterator[FeatureBatch]:
        """Yields the rows that can be used.

        Raises:
          UserError: none can; a file is damaged.
        """
        self.junk, self.distractors, self.spoiled = [], 0, []
        start = 0
        for batch in self._batches():
            junk, finite = batch.pids == JUNK_PID, _finite(batch.features)
            rows = (f"row {start + row}" if not batch.paths[row] else batch.paths[row] for row in range(len(junk)))
            self.spoiled += [row for row, is_spoiled in zip(rows, ~finite & ~junk) if is_spoiled]
            self.junk += batch.paths[junk].tolist()
            kept = finite & ~junk
            batch = batch if kept.all() else FeatureBatch(*(column[kept] for column in batch))
            distractors = batch.pids == DISTRACTOR_PID
            self.distractors += int(distractors.sum())
            yield batch._replace(pids=np.where(distractors, UNKNOWN, batch.pids))
            start += len(junk)
        if not self.taken:
            raise UserError(f"{self.name}: {self.note or 'no images'}, expected others")

    @property
    def taken(self) -> int:
        """How many images the last iteration yielded."""
        return len(self) - len(self.junk) - len(self.spoiled)

    @property
    def note(self) -> str:
        """What the last iteration did not take as it stands there, in one line; empty if it took all."""
        parts = []
        if self.junk:
            parts.append(f"{len(self.junk):,} junk images (pid {JUNK_PID}) left out")
        if self.distractors:
            parts.append(f"{self.distractors:,} distractors (pid {DISTRACTOR_PID}) taken without a pid")
        if self.spoiled:
            names = ", ".join(self.spoiled[:NAMED]) + (", …" if len(self.spoiled) > NAMED else "")
            parts.append(f"{len(self.spoiled):,} images left out whose features are not finite: {names}")
        return ", ".join(parts)


class ParquetSource(FeatureSource):
    """A folder written by ``python -m han_tf.extract``."""

    def __init__(self, folder: Path):
        super().__init__()
        self.shards = FeatureShards(folder)
        manifest = self.shards.manifest
        self.name, self.dimension, self.checksum = str(folder), manifest.feature_dim, manifest.model
        self.white_level = manifest.white_level

    def __len__(self) -> int:
        return len(self.shards)

    def _batches(self) -> Iterator[FeatureBatch]:
        return iter(self.shards)


class ArchiveSource(FeatureSource):
    """An ``.npz`` with features, pids, camids and perhaps paths, see :mod:`han_tf.features.archives`."""

    def __init__(self, path: Path):
        super().__init__()
        self.features = load_features(path)
        self.name, self.dimension, self.checksum = str(path), self.features.features.shape[1], None
        counts = Counter(self.features.paths.tolist())
        self.doubled = self.doubled.union(path for path, count in counts.items() if count > 1)

    def __len__(self) -> int:
        return len(self.features.pids)

    def _batches(self) -> Iterator[FeatureBatch]:
        for start in range(0, len(self), ROWS):
            part = self.features.where(np.arange(start, min(start + ROWS, len(self))))
            times = np.full(len(part.pids), np.nan)
            yield FeatureBatch(part.features, part.pids, part.camids, times, part.paths.astype(object))


class Added(NamedTuple):
    """The result of adding a source's images.

    Attributes:
      images: how many it has that can be used.
      added: how many of them are new in the gallery.
      replaced: how many took the place of entries with the same path and another feature.
      relabelled: how many were there with other labels.
      removed: how many entries were deleted that the source says are junk.
    """

    images: int
    added: int = 0
    replaced: int = 0
    relabelled: int = 0
    removed: int = 0

    def __str__(self) -> str:
        there = self.images - self.added - self.replaced - self.relabelled
        others = {
            "replaced": self.replaced,
            "with other labels": self.relabelled,
            "there already": there,
            "junk entries removed": self.removed,
        }
        parts = [f"{self.added:,} of {self.images:,} images added"]
        return ", ".join(parts + [f"{count:,} {what}" for what, count in others.items() if count])


def open_source(path: Union[str, os.PathLike]) -> FeatureSource:
    """Opens features on disk.

    Raises:
      UserError: there is nothing of that name, or it is damaged or something else.
    """
    path = Path(path)
    if path.is_dir():
        return ParquetSource(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder, expected features: a folder with {MANIFEST}, or an .npz")
    return ArchiveSource(path)


def add_source(gallery: Gallery, source: FeatureSource, progress: Progress = None) -> Added:
    """Brings a gallery up to date with a source, and returns what changed.

    An image is known by its path. Where the gallery has it with the same feature, it stays; with another one, it is
    replaced; labels that the source knows and that differ are changed. An image without a path, or whose path the
    source has more than once, is known by path and feature together. So the same source added again changes
    nothing, one that has grown adds what is new, and an addition that was interrupted, in whatever way, goes on where
    it was. Entries that were deleted come back if their source is added again. Images that a source no longer has stay.

    Raises:
      UserError: the features do not fit, a file is damaged, or it cannot be written; rows added before stay.
    """
    if source.dimension != gallery.dimension:
        raise UserError(
            f"{source.name}: features of dimension {source.dimension}, expected {gallery.dimension} as in "
            f"{gallery.location}"
        )
    if source.white_level is not None:
        gallery.note_white_level(source.white_level)
    twins = _Twins(gallery)
    counts: Counter[str] = Counter()
    done, rows = 0, len(source)
    for batch in source:
        features = np.asarray(batch.features, np.float32)
        often = Counter(batch.paths)
        loose = [row for row, path in enumerate(batch.paths) if path in source.doubled or often[path] > 1]
        of_rows = {row: twins.take(batch.paths[row], features[row]) for row in loose}
        if len(features):
            put = gallery.put(features, batch.paths, batch.pids, batch.camids, batch.times, of_rows)
            counts.update(added=put.added, replaced=put.replaced, relabelled=put.relabelled)
        done += len(features)
        gallery.note_source(source.name, done, rows)
        if progress:
            progress(done, rows)
    removed = [entry.id for entry in gallery.named(source.junk) if entry.pid == JUNK_PID]
    if removed:
        gallery.delete(removed)
    gallery.note_source(source.name, rows, rows)
    return Added(source.taken, **counts, removed=len(removed))


class _Twins:
    """Entries that are known by path and feature together, each of which stands for one image of a source."""

    def __init__(self, gallery: Gallery):
        self.gallery = gallery
        self.groups: dict[str, dict[bytes, list[Entry]]] = {}

    def take(self, path: str, feature: np.ndarray) -> Optional[Entry]:
        """Returns an entry of that path and feature that was not taken before, None if there is none."""
        if path not in self.groups:
            self.groups[path] = self._group(path)
        entries = self.groups[path].get(_digest(feature))
        return entries.pop() if entries else None

    def _group(self, path: str) -> dict[bytes, list[Entry]]:
        entries = list(self.gallery.named([path]))
        group: dict[bytes, list[Entry]] = {}
        for start in range(0, len(entries), ROWS):
            part = entries[start : start + ROWS]
            for entry, feature in zip(part, self.gallery.features([entry.id for entry in part])):
                group.setdefault(_digest(feature), []).append(entry)
        for same in group.values():
            same.reverse()  # the first one is taken first
        return group


def _digest(feature: np.ndarray) -> bytes:
    return hashlib.blake2b(feature.tobytes(), digest_size=16).digest()


def _finite(features: np.ndarray) -> np.ndarray:
    """Returns which rows a gallery takes, bool ``[n]``."""
    values = features.astype(np.float64)
    return np.einsum("ij,ij->i", values, values) < GREATEST_NORM
