"""Features of images by any model: a training run, or an export of one."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from PIL import Image

from han_tf.common.errors import Note, UserError
from han_tf.data.reading import BadImage, ImageReader, Source, checked_pixels, resize
from han_tf.data.records import Record
from han_tf.runtimes import KERAS, in_batches, open_runtime
from han_tf.runtimes.probes import prove


class FeatureExtractor:
    """Maps images of people to features; one class for all formats.

        with FeatureExtractor("runs/market1501-han_small-300epochs-seed0/exports/openvino-int8") as extractor:
            features = extractor(["a.jpg", "b.jpg"])  # [2, 1024] float32

    Images of other sizes are resized as in training. While the network runs on one batch, other threads decode and
    resize the next ones. May be called from several threads at once.

    Args:
      path: folder of a training run or an exported model, or the name of a network that comes with the package.
      threads: number of threads of the network, and of those that decode; the number of usable cores if None.
      batch_size: images per call of the network.
      white_level: the value that is white in grey files of more than 8 bits, see :class:`han_tf.data.depth.Depth`;
        that of their format if None or 0.

    Attributes:
      card: the model's card, see :class:`han_tf.runs.card.ModelCard`.
      checksum: hex SHA-256 of the network, the same for a run and all its exports.
      feature_dim: dimension of a feature.
      input_size: height and width that images are resized to.
      branch_names: names of a feature's equally wide parts, each of unit norm.
      format, precision: of the model, as in its card.

    Raises:
      UserError: there is no model, it is damaged or of another version, its runtime is not installed, or an export's
        features of its probe images differ here by more than its card allows.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike],
        *,
        threads: Optional[int] = None,
        batch_size: int = 64,
        white_level: Optional[float] = None,
    ):
        if not isinstance(path, (str, os.PathLike)):
            raise UserError(f"path is of type {type(path).__name__}, expected the folder of a run or an exported model")
        if batch_size < 1 or (threads is not None and threads < 1):
            raise UserError(f"batch_size is {batch_size} and threads {threads}, expected at least 1")
        if white_level is not None and not 0 <= white_level < math.inf:
            raise UserError(f"white_level is {white_level}, expected a positive number, or 0 for the format's")
        self.threads = threads
        self.batch_size = batch_size
        self.white_level = white_level or None
        self.card, self._runtime = open_runtime(path, threads)
        if self.card.probes:
            prove(Path(path), self.card, self._runtime)
        elif self.card.format != KERAS:
            warnings.warn(f"{path}: an export without probe images: its features are not checked", Note, stacklevel=2)
        self.checksum = self.card.checksum
        self.feature_dim = self.card.feature_dim
        self.input_size = self.card.input_size
        self.branch_names = self.card.branch_names
        self.format = self.card.format
        self.precision = self.card.precision

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Runs the network once on images of its input size.

        Args:
          images: ``[n, *input_size, 3]`` uint8, RGB.

        Returns:
          ``[n, feature_dim]`` float32.

        Raises:
          UserError: the images have another shape or dtype.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (*self.input_size, 3):
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}, expected uint8 [n, {self.input_size[0]}, "
                f"{self.input_size[1]}, 3]"
            )
        if self._runtime is None:
            raise UserError("this extractor is closed, expected an open one")
        if not len(images):
            return np.empty([0, self.feature_dim], np.float32)
        return self._runtime(np.ascontiguousarray(images))

    def __enter__(self) -> "FeatureExtractor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the network; later calls raise UserError."""
        self._runtime = None

    def __call__(
        self,
        images: Any,
        *,
        skip_bad_images: bool = False,
        bad_images: Optional[list[BadImage]] = None,
        progress: Optional[str] = None,
    ) -> np.ndarray:
        """Returns the features of images.

        Args:
          images: a path, a record, a PIL image or an array ``[height, width, 3]``, or any iterable of these, of
            different sizes and in any mixture; an array ``[n, height, width, 3]``; or a ``tf.data.Dataset`` of such
            batches, or of tuples that begin with one. Arrays are uint8 or float, RGB in [0, 255].
          skip_bad_images: whether to leave out images that cannot be decoded, and their rows, instead of raising.
            A warning (:class:`~han_tf.common.errors.Note`) names each.
          bad_images: a list to which the images left out are appended, each with its name and the reason.
          progress: title of the progress bar; None for no bar. Arrays of images and ``tf.data`` pipelines get none.

        Returns:
          ``[n, feature_dim]`` float32, in the order of the images; of a single image ``[1, feature_dim]``.

        Raises:
          UserError: an image cannot be decoded, or is of another type.
        """
        if isinstance(images, (str, os.PathLike, Record, Image.Image)) or (
            isinstance(images, np.ndarray) and images.ndim not in (1, 4)
        ):
            images = [images]
        if hasattr(images, "as_numpy_iterator"):
            parts = [self._of_batch(batch) for batch in images.as_numpy_iterator()]
        elif isinstance(images, np.ndarray) and images.ndim == 4:
            parts = [self._of_batch(batch) for batch in in_batches(images, self.batch_size)]
        else:
            stream = self.stream(images, skip_bad_images, progress)
            parts = [features for features, _ in stream]
            if bad_images is not None:
                bad_images += stream.bad_images
        return np.concatenate([np.empty([0, self.feature_dim], np.float32), *parts])

    def stream(
        self, images: Iterable[Source], skip_bad_images: bool = False, progress: Optional[str] = None
    ) -> "FeatureStream":
        """Returns the features of images batch by batch, decoded in parallel with the network.

        Args:
          images: paths, records, PIL images, or arrays ``[height, width, 3]``; of an iterator, only a few batches are
            read ahead.
          skip_bad_images, progress: as for a call of the extractor.
        """
        if isinstance(images, (str, bytes, os.PathLike)):
            raise UserError(f"images are {_described(images)}, expected a sequence of paths, arrays or PIL images")
        if not isinstance(images, Iterable) or isinstance(images, (set, frozenset, dict)):
            raise UserError(f"images are {_described(images)}, expected paths, arrays or PIL images")
        size, batch_size = self.input_size, self.batch_size
        reader = ImageReader(images, size, batch_size, skip_bad_images, progress, self.threads, self.white_level)
        return FeatureStream(self, reader)

    def _of_batch(self, batch: Any) -> np.ndarray:
        """Returns the features of a batch ``[n, height, width, 3]`` of any size, or of a tuple that begins with one."""
        pixels = np.asarray(batch[0] if isinstance(batch, (tuple, list)) else batch)
        if pixels.ndim != 4:
            raise UserError(f"a batch has shape {list(pixels.shape)}, expected [n, height, width, 3]")
        return self.embed(resize(checked_pixels(pixels), self.input_size))


class FeatureStream:
    """The features of many images, batch by batch.

    Iterating yields ``(features, kept)``: ``[m, feature_dim]`` float32, and the indices of their images, int64
    ``[m]``. While the network runs, the next batches are decoded.
    """

    def __init__(self, extractor: FeatureExtractor, reader: ImageReader):
        self._extractor = extractor
        self._reader = reader

    @property
    def bad_images(self) -> list[BadImage]:
        """The images left out so far, with reasons."""
        return self._reader.bad_images

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not isinstance(self._reader.records, Sized) or len(self._reader.records):
            for images, kept in self._reader:
                yield self._extractor.embed(images), kept


def _described(images: Any) -> str:
    """Returns a short description of a value of a wrong type, for an error."""
    return f"{str(images)[:80]!r}" if isinstance(images, (str, bytes, os.PathLike)) else f"a {type(images).__name__}"
