"""Features on disk to add to a gallery: a folder of Parquet files, or a NumPy archive."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID
from han_tf.features.archives import FeatureSet, load_features
from han_tf.features.shards import MANIFEST, FeatureBatch, FeatureShards
from han_tf.metrics.checks import GREATEST_NORM
from han_tf.search.entries import Entry
from han_tf.search.gallery import Gallery, Progress

ROWS = 4096
"""Rows of an archive that are yielded at a time."""

NAMED = 3
"""Number of images with unusable features that a note names."""


@dataclass
class FeatureSource:
    """Features with the labels of their images. Iterating yields the usable rows, in the order of the file.

    For all kinds of files, junk (pid -1) and images whose features are not finite are left out. Distractors (pid 0) get
    no pid, because they are many people.

    Attributes:
      name: the file or folder.
      dimension: of the features.
      checksum: of the model that made them; None if the file does not name it.
      images: number of all images.
      batches: returns an iterator of all rows.
      white_level: as in :class:`han_tf.features.shards.Manifest`; None if the file does not name it.
      doubled: paths that do not identify an image: the empty one, and those that occur more than once.
      junk: paths of the junk that the last iteration left out.
      distractors: paths of the images that it yielded without their pid.
      spoiled: names of the images that it left out because of their features.
    """

    name: str
    dimension: int
    checksum: Optional[str]
    images: int
    batches: Callable[[], Iterator[FeatureBatch]]
    white_level: Optional[float] = None
    doubled: frozenset[str] = frozenset([""])
    junk: list[str] = field(default_factory=list)
    distractors: list[str] = field(default_factory=list)
    spoiled: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[FeatureBatch]:
        """Yields the usable rows.

        Raises:
          UserError: there are none; a file is damaged.
        """
        self.junk, self.distractors, self.spoiled = [], [], []
        start = 0
        for batch in self.batches():
            junk, finite = batch.pids == JUNK_PID, _finite(batch.features)
            rows = (f"row {start + row}" if not batch.paths[row] else batch.paths[row] for row in range(len(junk)))
            self.spoiled += [row for row, is_spoiled in zip(rows, ~finite & ~junk) if is_spoiled]
            self.junk += batch.paths[junk].tolist()
            kept = finite & ~junk
            batch = batch if kept.all() else batch.where(kept)
            distractors = batch.pids == DISTRACTOR_PID
            self.distractors += batch.paths[distractors].tolist()
            yield batch._replace(pids=np.where(distractors, UNKNOWN, batch.pids))
            start += len(junk)
        if not self.taken:
            raise UserError(f"{self.name}: {self.note or 'no images'}, expected others")

    @property
    def taken(self) -> int:
        """Number of images that the last iteration yielded."""
        return len(self) - len(self.junk) - len(self.spoiled)

    @property
    def note(self) -> str:
        """What the last iteration left out or changed, in one line; empty if nothing."""
        parts = []
        if self.junk:
            parts.append(f"{len(self.junk):,} junk images (pid {JUNK_PID}) left out")
        if self.distractors:
            parts.append(f"{len(self.distractors):,} distractors (pid {DISTRACTOR_PID}) taken without a pid")
        if self.spoiled:
            names = ", ".join(self.spoiled[:NAMED]) + (", …" if len(self.spoiled) > NAMED else "")
            parts.append(f"{len(self.spoiled):,} images left out whose features are not finite: {names}")
        return ", ".join(parts)


class Added(NamedTuple):
    """The result of adding a source's images, in numbers.

    Attributes:
      images: usable images of the source.
      added: images that are new in the gallery.
      replaced: images that replaced entries with the same path and another feature.
      relabelled: images that were there with other labels.
      removed: deleted entries that are junk in the source.
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
    """Opens a folder of Parquet files, written by ``python -m han_tf.extract``, or an ``.npz`` archive.

    Raises:
      UserError: there is no such file or folder, it is damaged, or it does not hold features.
    """
    path = Path(path)
    if path.is_dir():
        shards = FeatureShards(path)
        manifest = shards.manifest
        return FeatureSource(
            str(path), manifest.feature_dim, manifest.model, len(shards), lambda: iter(shards), manifest.white_level
        )
    if not path.exists():
        raise UserError(f"{path}: no such file or folder, expected features: a folder with {MANIFEST}, or an .npz")
    images = load_features(path)
    doubled = frozenset(["", *(name for name, count in Counter(images.paths.tolist()).items() if count > 1)])
    return FeatureSource(
        str(path), images.features.shape[1], None, len(images.pids), lambda: _archived(images), doubled=doubled
    )


def _archived(images: FeatureSet) -> Iterator[FeatureBatch]:
    """Yields the rows of an archive, :data:`ROWS` at a time."""
    for start in range(0, len(images.pids), ROWS):
        features, pids, camids, paths = (array[start : start + ROWS] for array in images)
        yield FeatureBatch(features, pids, camids, np.full(len(pids), np.nan), paths.astype(object))


def add_source(gallery: Gallery, source: FeatureSource, progress: Progress = None) -> Added:
    """Brings a gallery up to date with a source, and returns what changed.

    An image is identified by its path, see :meth:`Gallery.add`; without a path, or with one that occurs more than once
    in the source, by path and feature together. Entries of images that are junk in the source are
    deleted, those of distractors lose their pid. Adding the same source again changes nothing, and completes an
    addition that was interrupted.

    Raises:
      UserError: the features do not fit, a file is damaged, or the gallery cannot be written; rows added before stay.
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
    done, rows, told = 0, len(source), 0
    for batch in source:
        if len(batch.features):
            features, often = np.asarray(batch.features, np.float32), Counter(batch.paths)
            loose = [row for row, path in enumerate(batch.paths) if path in source.doubled or often[path] > 1]
            of_rows = {row: twins.take(batch.paths[row], features[row]) for row in loose}
            nobody, told = frozenset(source.distractors[told:]), len(source.distractors)
            labels = batch.paths, batch.pids, batch.camids, batch.times
            counts.update(gallery.put(features, *labels, of_rows, nobody)[1])
        done += len(batch.features)
        gallery.note_source(source.name, done, rows)
        if progress:
            progress(done, rows)
    removed = [
        entry.id
        for entry in gallery.named(source.junk)
        if entry.pid == JUNK_PID or entry.path not in source.doubled  # a path that occurs often may not be junk's alone
    ]
    if removed:
        gallery.delete(removed)
    gallery.note_source(source.name, rows, rows)
    return Added(source.taken, **counts, removed=len(removed))


class _Twins:
    """Finds the entries of images that are identified by path and feature together; uses each entry once."""

    def __init__(self, gallery: Gallery):
        self.gallery = gallery
        self.groups: dict[str, dict[bytes, deque[Entry]]] = {}

    def take(self, path: str, feature: np.ndarray) -> Optional[Entry]:
        """Returns an entry of this path and feature that was not returned before, None if there is none."""
        if path not in self.groups:
            group = self.groups[path] = {}
            entries = list(self.gallery.named([path]))
            for start in range(0, len(entries), ROWS):
                part = entries[start : start + ROWS]
                for entry, stored in zip(part, self.gallery.features([entry.id for entry in part])):
                    group.setdefault(_digest(stored), deque()).append(entry)
        same = self.groups[path].get(_digest(feature))
        return same.popleft() if same else None


def _digest(feature: np.ndarray) -> bytes:
    return hashlib.blake2b(feature.tobytes(), digest_size=16).digest()


def _finite(features: np.ndarray) -> np.ndarray:
    """Returns which rows have finite features that a gallery accepts, bool ``[n]``."""
    values = features.astype(np.float64)
    return np.einsum("ij,ij->i", values, values) < GREATEST_NORM
