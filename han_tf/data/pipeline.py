"""Batches of images from records: cached, augmented and prefetched (tf.data)."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np
import tensorflow as tf

from han_tf.common.errors import Note
from han_tf.common.files import atomic_open, write_json
from han_tf.data.augmentation import augment
from han_tf.data.reading import ImageReader
from han_tf.data.records import Record
from han_tf.data.sampling import PeopleAndImages, ShuffledImages


@dataclass(frozen=True)
class LoadedImages:
    """Decoded and resized images and the records they belong to.

    Attributes:
      images: ``[n, height, width, 3]`` uint8, in memory or mapped from a file.
      records: ``n`` records.
    """

    images: np.ndarray
    records: tuple[Record, ...]


def load_images(
    records: Sequence[Record],
    input_size: Sequence[int],
    *,
    cache_dir: Optional[os.PathLike] = None,
    memory_mb: float = 4096,
    skip_bad_images: bool = False,
    progress: Optional[str] = None,
) -> LoadedImages:
    """Decodes the images of ``records`` once, into memory or, if they are too large for it, into a file.

    Args:
      records: the images to read; not empty.
      input_size: height and width to resize to, in pixels.
      cache_dir: folder of the file, which later runs use again; None keeps all images in memory.
      memory_mb: largest size kept in memory, in MiB.
      skip_bad_images: leave out files that cannot be decoded instead of raising.
      progress: label of the progress bar; None for no bar.

    Raises:
      UserError: an image cannot be decoded, or the cache file cannot be written.
    """
    reader = ImageReader(records, input_size, skip_bad_images=skip_bad_images, progress=progress)
    shape = (len(records), *reader.input_size, 3)
    if cache_dir is None or np.prod(shape, dtype=np.int64) <= memory_mb * 2**20:
        images = np.empty(shape, np.uint8)
        kept: list[int] = []
        for batch, indices in reader:
            images[len(kept) : len(kept) + len(batch)] = batch
            kept.extend(indices)
        return LoadedImages(images[: len(kept)], tuple(records[index] for index in kept))

    path = Path(cache_dir) / f"images-{_fingerprint(records, input_size)}.npy"
    index_path = path.with_suffix(".json")
    kept = _kept(path, index_path, shape)
    if not kept or (len(kept) < len(records) and not skip_bad_images):
        kept = []
        with atomic_open(path) as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
            )
            size = stream.tell() + int(np.prod(shape, dtype=np.int64))
            # The file is written, not mapped: if the disk is full, writing raises, but a mapped file kills the process.
            for batch, indices in reader:
                stream.write(batch)
                kept.extend(indices.tolist())
            stream.truncate(size)  # the header's shape includes the skipped images
        write_json(index_path, kept)
    elif len(kept) < len(records):
        first = records[min(set(range(len(records))) - set(kept))].path
        left_out = len(records) - len(kept)
        warnings.warn(
            f"{left_out} images are left out, as when {path} was made; the first is {first}", Note, stacklevel=2
        )
    return LoadedImages(np.load(path, mmap_mode="r")[: len(kept)], tuple(records[index] for index in kept))


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    sampler: Union[ShuffledImages, PeopleAndImages],
    seed: int,
    epoch: int,
    first_batch: int = 0,
    augmentations: Sequence[str] = (),
) -> tf.data.Dataset:
    """Returns the batches of one epoch, which depend on (seed, epoch) alone.

    Args:
      images: ``[n, height, width, 3]`` uint8.
      labels: ``[n]`` int, class indices.
      sampler: chooses the images of each batch.
      seed: the run's seed.
      epoch: number of the epoch.
      first_batch: number of the epoch's batch to start at.
      augmentations: keys of :data:`han_tf.data.augmentation.AUGMENTATIONS` to apply.

    Returns:
      Data set of ``(images [batch, height, width, 3] uint8, labels [batch] int32)``.
    """
    labels = labels.astype(np.int32)
    batches = sampler.epoch(seed, epoch)

    def gather(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images[indices], labels[indices]

    @tf.autograph.experimental.do_not_convert
    def load(number: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch, classes = tf.numpy_function(gather, [indices], (tf.uint8, tf.int32), stateful=False)
        batch.set_shape([indices.shape[0], *images.shape[1:]])
        classes.set_shape([indices.shape[0]])
        return augment(batch, augmentations, seed, epoch, number), classes

    options = tf.data.Options()
    # There is nothing to tune, and the end of an epoch would wait up to a minute for the tuner's thread.
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_tensor_slices(batches)
        .enumerate()
        .skip(first_batch)
        .map(load, num_parallel_calls=1, deterministic=True)
        .prefetch(4)
        .with_options(options)
    )


def _kept(path: Path, index_path: Path, shape: tuple[int, ...]) -> list[int]:
    """Returns which records a cache file of this shape holds; none if there is no file, or one is damaged."""
    try:
        kept = json.loads(index_path.read_text(encoding="utf-8"))
        rising = all(type(row) is int and before < row for before, row in zip([-1, *kept], [*kept, shape[0]]))
        return kept if rising and np.load(path, mmap_mode="r").shape == shape else []
    except (OSError, ValueError, TypeError):
        return []


def _fingerprint(records: Sequence[Record], input_size: Sequence[int]) -> str:
    """Returns 16 hexadecimal digits that change with the size and with any file's path, size or time of last change."""
    digest = hashlib.sha256(repr(tuple(input_size)).encode())
    for record in records:
        try:
            status = os.stat(record.path)
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = "missing"  # the reader raises for it
        digest.update(os.fsencode(record.path) + f"\0{state}\n".encode())
    return digest.hexdigest()[:16]
