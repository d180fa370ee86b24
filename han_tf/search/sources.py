"""Features on disk that a gallery is made of: a folder of Parquet files, or a NumPy archive."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, Union

import numpy as np

from han_tf.data.records import DISTRACTOR_PID, JUNK_PID
from han_tf.errors import UserError
from han_tf.inference.feature_files import load_features
from han_tf.inference.feature_shards import MANIFEST, FeatureBatch, FeatureShards
from han_tf.search.gallery import UNKNOWN, Gallery, Mark, Progress

ROWS = 4096
"""Rows of an archive that are handed on at a time."""

HASHED_BYTES = 2**22


class FeatureSource(ABC):
    """Features with what is known of their images.

    Attributes:
      name: the file or folder.
      dimension: of the features.
      checksum: of the model that made them; None if the file does not say.
      fingerprint: tells apart sources of other content, hexadecimal.
      note: what is not taken as it stands there, in one line; empty if all is.
    """

    name: str
    dimension: int
    checksum: Optional[str]
    fingerprint: str
    note: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of images."""

    @abstractmethod
    def __iter__(self) -> Iterator[FeatureBatch]:
        """Yields all rows, always in the same order and parts."""


class ParquetSource(FeatureSource):
    """What ``python -m han_tf.extract`` wrote."""

    def __init__(self, folder: Path):
        self.shards = FeatureShards(folder)
        manifest = self.shards.manifest
        self.name, self.dimension, self.checksum = str(folder), manifest.feature_dim, manifest.model
        self.fingerprint = hashlib.sha256(f"{manifest.model} {manifest.fingerprint} {len(self)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[FeatureBatch]:
        return iter(self.shards)


class ArchiveSource(FeatureSource):
    """An ``.npz`` with features, pids, camids and perhaps paths, see :mod:`han_tf.inference.feature_files`.

    Junk is left out, and distractors, who are many people under one pid, have none.
    """

    def __init__(self, path: Path):
        features = load_features(path)
        junk, distractors = (features.pids == pid for pid in (JUNK_PID, DISTRACTOR_PID))
        if junk.all():
            raise UserError(f"{path}: all of {len(junk)} images are junk (pid {JUNK_PID}), expected others")
        if junk.any():
            features, distractors = features.where(~junk), distractors[~junk]
        self.features = features._replace(pids=np.where(distractors, UNKNOWN, features.pids))
        parts = [f"{junk.sum():,} junk images (pid {JUNK_PID}) left out"] if junk.any() else []
        if distractors.any():
            parts.append(f"{distractors.sum():,} distractors (pid {DISTRACTOR_PID}) taken without a pid")
        self.note = ", ".join(parts)
        self.name, self.dimension, self.checksum = str(path), self.features.features.shape[1], None
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while block := stream.read(HASHED_BYTES):
                digest.update(block)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.features.pids)

    def __iter__(self) -> Iterator[FeatureBatch]:
        for start in range(0, len(self), ROWS):
            part = self.features.where(np.arange(start, min(start + ROWS, len(self))))
            times = np.full(len(part.pids), np.nan)
            yield FeatureBatch(part.features, part.pids, part.camids, times, part.paths.astype(object))


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


def add_source(gallery: Gallery, source: FeatureSource, progress: Progress = None) -> int:
    """Adds what of a source the gallery does not hold yet, and returns how many rows that were.

    The gallery keeps how far each source has been added, so that an addition that was interrupted, in whatever way,
    goes on where it was, and one that is done is not done again.

    Raises:
      UserError: the features do not fit, a file is damaged, or it cannot be written; rows added before stay.
    """
    if source.dimension != gallery.dimension:
        raise UserError(
            f"{source.name}: features of dimension {source.dimension}, expected {gallery.dimension} as in "
            f"{gallery.location}"
        )
    before = mark = gallery.source(source.fingerprint) or Mark(source.fingerprint, source.name, 0, len(source))
    start = 0
    for batch in source:
        end = start + len(batch.pids)
        if end > mark.done:
            new = slice(mark.done - start, None)
            mark = mark._replace(done=end)
            gallery.add_marked(
                batch.features[new], batch.paths[new], batch.pids[new], batch.camids[new], batch.times[new], mark
            )
        start = end
        if progress:
            progress(mark.done, len(source))
    return mark.done - before.done
