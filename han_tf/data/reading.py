"""Decodes and resizes image files into batches of pixels, in parallel and without TensorFlow."""

import io
import os
import stat
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, Optional, Union

import numpy as np
from PIL import Image, ImageOps

from han_tf.common.errors import Note, UserError, one_line
from han_tf.common.processes import usable_cores
from han_tf.common.progress import progress_bar
from han_tf.data.depth import Depth
from han_tf.data.folders import FILE_FORMATS
from han_tf.data.records import Record


class BadImage(NamedTuple):
    """An image file that could not be decoded, and why."""

    path: str
    reason: str


Source = Union[Record, str, os.PathLike, np.ndarray, Image.Image, BadImage]
"""Source of an image: a record, a file, pixels as for :func:`checked_pixels`, one of Pillow's images, or an image known
to be bad."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats accepted from untrusted sources, by Pillow's names. Pillow's other formats are not decoded: some call other
programs (EPS) or have many pages (TIFF)."""

MAX_PIXELS = 50_000_000
"""Largest width times height of an image file; checked in its header, before it is decoded."""

MAX_BYTES = 2**29
"""Largest image file, in bytes; it is read into memory before it is decoded."""

_AHEAD = 3
"""Batches that are decoded ahead of the one in use."""


def decode_image(path: str, depth: Optional[Depth] = None) -> np.ndarray:
    """Reads an image file of one of :data:`FILE_FORMATS`, see :func:`upright_pixels`.

    Returns:
      ``[height, width, 3]`` uint8, RGB.

    Raises:
      UserError: the file cannot be read, or memory is short; the image itself may be good.
      ValueError: it is no regular file, is in another format, is larger than :data:`MAX_BYTES` or has more pixels than
        :data:`MAX_PIXELS`.
      Exception: the file is truncated or damaged; Pillow and its codecs raise exceptions of many kinds.
    """
    try:
        with Image.open(io.BytesIO(_read_file(path)), formats=(*FILE_FORMATS,)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} × {height} = {width * height:,} pixels, expected at most {MAX_PIXELS:,}")
            return upright_pixels(image, depth)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"cannot identify image file, expected {', '.join(FILE_FORMATS)}") from error
    except Exception as error:
        check_memory(error, path)
        raise


def check_memory(error: Exception, name: str) -> None:
    """Raises UserError if decoding the image ``name`` failed because memory is short; the image itself may be good."""
    if isinstance(error, MemoryError) or "out of memory" in str(error):  # a message of one of Pillow's codecs
        raise UserError(f"{name}: not enough memory to decode it") from error


def _read_file(path: str) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
      UserError: the file cannot be read.
      ValueError: it is no regular file, or larger than :data:`MAX_BYTES`.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would block until another process writes to it
            raise ValueError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"{status.st_size:,} bytes, expected at most {MAX_BYTES:,}")
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}), expected a readable file") from error


def upright_pixels(image: Image.Image, depth: Optional[Depth] = None) -> np.ndarray:
    """Decodes an opened image.

    The EXIF orientation is applied. Grey pixels of more than 8 bits are scaled by ``depth``, or by their format's range
    if it is None; of 16 bits per colour the upper eight are kept. Transparency is dropped; palettes and CMYK are
    converted to RGB.

    Returns:
      ``[height, width, 3]`` uint8, RGB.
    """
    # At full size: JPEG's draft mode averages pixels, of which resize() takes single ones.
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # an image with damaged metadata is still accepted
        pass
    if image.mode.startswith(("I", "F")):  # Pillow's convert() clips these at 255 instead of scaling
        image = Image.fromarray((depth or Depth()).eight_bits(image))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image)


def checked_pixels(pixels: np.ndarray, batches: bool = True) -> np.ndarray:
    """Returns ``pixels`` if they are an image or a batch of images.

    Args:
      pixels: ``[..., height, width, 3]``, uint8 or any float, RGB in [0, 255].
      batches: whether they may be a batch; only ``[height, width, 3]`` otherwise.

    Raises:
      UserError: shape or dtype is wrong, or values lie outside [0, 255] or seem to be scaled to [0, 1].
    """
    if pixels.ndim < 3 or (pixels.ndim > 3 and not batches) or pixels.shape[-1] != 3 or 0 in pixels.shape[-3:-1]:
        raise UserError(f"pixels have shape {list(pixels.shape)}, expected [height, width, 3], RGB")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise UserError(f"pixels are {pixels.dtype}, expected uint8 or float, RGB in [0, 255]")
    if pixels.size:
        least, most = float(pixels.min()), float(pixels.max())
        # Written so that NaN, which makes both comparisons false, is refused.
        if not (least >= 0 and most <= 255):
            raise UserError(f"pixels lie in [{least:g}, {most:g}], expected RGB in [0, 255]")
        if 0 < most <= 1:
            raise UserError(f"pixels lie in [{least:g}, {most:g}], expected RGB in [0, 255], not scaled to 1")
    return pixels


def resize(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes bilinearly between pixel centres, without antialiasing, and rounds half to even.

    The result is bit for bit that of ``tf.image.resize`` and ``tf.round``, several times as fast.

    Args:
      pixels: ``[..., height, width, 3]``, uint8 or float in [0, 255].
      size: height and width of the result, in pixels.

    Returns:
      ``[..., *size, 3]`` uint8.
    """
    height, width = pixels.shape[-3:-1]
    if pixels.dtype == np.uint8 and (height, width) == tuple(size):
        return pixels
    rows, above, below, down = _sampling(height, size[0])
    columns, left, right, across = _sampling(width, size[1])
    # Only the pixels that are needed are converted to float32, which takes four times the memory.
    if len(rows) < height:
        pixels = pixels.take(rows, axis=-3)
    if len(columns) < width:
        pixels = pixels.take(columns, axis=-2)
    result = pixels.astype(np.float32)
    if width != size[1]:
        first = result.take(left, axis=-2)
        result = _between(first, result.take(right, axis=-2), across[:, None])
    if height != size[0]:
        first = result.take(above, axis=-3)
        result = _between(first, result.take(below, axis=-3), down[:, None, None])
    return np.rint(result, out=result).astype(np.uint8)


def _between(first: np.ndarray, second: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Returns ``first + (second - first) · fraction``; ``second`` is overwritten."""
    second -= first
    second *= fraction
    second += first
    return second


@lru_cache(maxsize=256)
def _sampling(length: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the indices of the pixels needed of a line; for each sample its two neighbours, as indices into these,
    and its distance from the first one, in pixels."""
    scale = np.float32(length) / np.float32(samples)
    position = (np.arange(samples, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    before = np.floor(position)
    first = np.maximum(before, 0).astype(np.int64)
    second = np.minimum(np.ceil(position), length - 1).astype(np.int64)
    needed = np.unique([first, second])
    return needed, np.searchsorted(needed, first), np.searchsorted(needed, second), position - before


class ImageReader:
    """Iterates over batches of decoded and resized images, in order; threads decode ahead of the iteration.

    Iterating yields ``(images, kept)`` per batch: ``[≤ batch_size, height, width, 3]`` uint8, and int64 indices of the
    records that the images belong to. Images that cannot be decoded raise :class:`UserError` or, if they are to be
    skipped, are collected in ``bad_images``, with a warning (:class:`~han_tf.common.errors.Note`) each. A file that
    cannot be read (missing, no permission, disk or network error) always raises :class:`UserError`. So does a sequence
    of which no image could be decoded.

    Args:
      records: the images to read: records, paths, pixels or Pillow's images. An iterator is asked for :data:`_AHEAD`
        batches at a time.
      input_size: height and width to resize to (:func:`resize`), in pixels.
      batch_size: records per batch.
      skip_bad_images: leave out files that cannot be decoded instead of raising.
      progress: label of the progress bar; None for no bar.
      threads: number of decoding threads; that of the cores if None.
      white_level: value of deep grey images that becomes 255, see :class:`han_tf.data.depth.Depth`.
    """

    def __init__(
        self,
        records: Iterable[Source],
        input_size: Sequence[int],
        batch_size: int = 64,
        skip_bad_images: bool = False,
        progress: Optional[str] = None,
        threads: Optional[int] = None,
        white_level: Optional[float] = None,
    ):
        self.records = records
        self.input_size = tuple(input_size)
        self.batch_size = batch_size
        self.skip_bad_images = skip_bad_images
        self.progress = progress
        self.threads = threads or usable_cores()
        self.depth = Depth(white_level)
        self.bad_images: list[BadImage] = []

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.depth, self.bad_images = Depth(self.depth.white_level), []
        count, total = 0, len(self.records) if isinstance(self.records, Sized) else None
        with progress_bar(total=total, desc=self.progress, unit="img", disable=self.progress is None) as bar:
            for images, start, found in self.batches():
                count = start + len(images)
                for _, bad in sorted(found.items()):
                    if not self.skip_bad_images:
                        raise UserError(
                            f"{bad.path}: not a readable image ({bad.reason}); --skip_bad_images leaves it out"
                        )
                    self.bad_images.append(bad)
                kept = np.array([i for i in range(start, count) if i not in found], np.int64)
                if len(kept):
                    yield (images if not found else images[kept - start]), kept
                bar.update(len(images))
        left_out = [f"{bad.path}: not a readable image ({bad.reason}), left out" for bad in self.bad_images]
        for sentence in (*self.depth.notes, *left_out):
            warnings.warn(sentence, Note, stacklevel=2)
        if len(self.bad_images) == count and (count or total == 0):
            raise UserError(f"none of the {count} images could be read, expected at least one")

    def batches(self) -> Iterator[tuple[np.ndarray, int, dict[int, BadImage]]]:
        """Yields, per batch, images, index of the first record, and by index the records that cannot be decoded.

        The pixels of undecodable images are arbitrary.
        """
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        pending: deque[tuple[np.ndarray, int, list[Future]]] = deque()
        # Pillow's images are not decoded in the threads, two of which might get the same image.
        records = (_decoded(item, self.depth) if isinstance(item, Image.Image) else item for item in self.records)
        asked = 0
        try:
            while True:
                while len(pending) < _AHEAD and (batch := list(islice(records, self.batch_size))):
                    images = np.empty((len(batch), *self.input_size, 3), np.uint8)
                    # Each batch is divided among all threads, so that the first one is ready early.
                    step = -(-len(batch) // self.threads)
                    tasks = [
                        pool.submit(self._read, images[part : part + step], batch[part : part + step], asked + part)
                        for part in range(0, len(batch), step)
                    ]
                    pending.append((images, asked, tasks))
                    asked += len(batch)
                if not pending:
                    return
                images, start, tasks = pending.popleft()
                yield images, start, {index: bad for task in tasks for index, bad in task.result().items()}
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, images: np.ndarray, records: Sequence[Source], start: int) -> dict[int, BadImage]:
        """Fills ``images`` with ``records``; returns those that cannot be decoded by their indices, from ``start``."""
        found = {}
        for index, (image, record) in enumerate(zip(images, records), start=start):
            pixels = _decoded(record, self.depth)
            if isinstance(pixels, BadImage):
                found[index] = pixels
            else:
                image[:] = resize(pixels, self.input_size)
        return found


def _decoded(source: Source, depth: Depth) -> Union[np.ndarray, BadImage]:
    """Returns the pixels of an image, or why it cannot be decoded; a UserError says nothing about the image itself."""
    if isinstance(source, BadImage):
        return source
    name = path_of(source)
    try:
        if isinstance(source, np.ndarray):
            return checked_pixels(source, batches=False)
        if not isinstance(source, Image.Image):
            return decode_image(name, depth)
        copied = source.copy()
        if hasattr(source, "tag_v2"):  # of a TIFF, how many bits are used
            setattr(copied, "tag_v2", source.tag_v2)  # noqa: B010 - Pillow declares no such attribute
        return upright_pixels(copied, depth)
    except UserError:
        raise
    except Exception as error:  # the codecs, zlib and struct raise exceptions of many kinds
        check_memory(error, name)
        if isinstance(source, Image.Image) and getattr(error, "errno", None):  # its file is read only now
            raise UserError(f"{name}: {error}, expected a file that can be read") from error
        return BadImage(name, one_line(error))


def path_of(source: Source) -> str:
    """Returns the path of a record or file; for pixels, and a PIL image without a file, a description with the size.

    Raises:
      UserError: it is of another type.
    """
    if isinstance(source, np.ndarray):
        return f"array {list(source.shape)}"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"PIL image {source.mode} {list(source.size)}"
    if isinstance(source, (Record, BadImage)):
        return source.path
    path = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(path, str):
        raise UserError(f"an image is of type {type(source).__name__}, expected a path, an array or a PIL image")
    return path
