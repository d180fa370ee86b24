"""Images for the service, decoded in threads: uploads, and files from folders whose images may be shown."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from han_tf.data.reading import resize
from han_tf.serve.batching import Pool
from han_tf.serve.images import decode_upload, encode, work_of
from han_tf.serve.limits import Limits, Refusal

COPY_SIDE = 1024
"""Longer side of the copies of added images, in pixels; larger ones are shrunk to it."""

WORK_UNIT = 250_000
"""Pixels per place in the queue of images to decode."""

LARGE_WORK = 2_000_000
"""Images of this many pixels or more have a thread and a queue of their own, so that smaller ones need not wait."""


class Picture(NamedTuple):
    """An uploaded image, decoded.

    Attributes:
      sha256: of the uploaded bytes.
      resized: ``[height, width, 3]`` uint8, RGB, at the network's input size. The pixels at full size are not kept,
        because hundreds of pictures may wait for the network.
      copy: a PNG to store if the image is added to the gallery; None if it is not.
    """

    sha256: str
    resized: np.ndarray
    copy: Optional[bytes]


class Pictures:
    """Decodes images; see :func:`han_tf.serve.images.decode_upload` for what is refused.

    Args:
      limits: the bounds.
      input_size: height and width of the network's input.
      white_level: of grey images of more than 8 bits, see :class:`han_tf.data.depth.Depth`.

    Attributes:
      small, large: the pools of threads that decode images below and from :data:`LARGE_WORK`.
    """

    def __init__(self, limits: Limits, input_size: tuple[int, int], white_level: Optional[float]):
        self._limits = limits
        self._input_size = input_size
        self._white_level = white_level
        # Threads suffice: Pillow and NumPy release the interpreter's lock in their long operations.
        self.small = Pool(2, "images", limits.queue)
        self.large = Pool(1, "parts of large images", limits.queue)

    async def read(self, data: bytes, to_keep: bool = False) -> Picture:
        """Returns a decoded upload.

        Args:
          data: the file's bytes.
          to_keep: whether the image will be added to the gallery.
        """

        def picture(pixels: np.ndarray) -> Picture:
            copy = encode(pixels, "PNG", COPY_SIDE) if to_keep else None
            return Picture(hashlib.sha256(data).hexdigest(), resize(pixels, self._input_size), copy)

        return await self._decoded(data, picture)

    async def of_file(self, path: Path, roots: Sequence[Path], what: str, use: Callable[[np.ndarray], Any]) -> Any:
        """Returns ``use(pixels)`` of an image file.

        Args:
          path: the file.
          roots: folders that it must be in or below after symbolic links are resolved, so that none leads out of them.
          what: the name of the image in errors.
          use: takes pixels, ``[height, width, 3]`` uint8, RGB.

        Raises:
          Refusal: 404, there is no such image in these folders, or it is none that would be accepted as an upload; 503,
            the queue is full.
        """
        missing = Refusal(404, f"no image of {what} can be shown")
        data = await self.small(self._bytes_at, path, roots)
        if data is None:
            raise missing
        try:
            return await self._decoded(data, use, of_file=True)
        except Refusal as error:
            if error.status == 503:
                raise
            raise missing from error

    def _bytes_at(self, path: Path, roots: Sequence[Path]) -> Optional[bytes]:
        """Returns a file's bytes; None if it cannot be read, is too large, or is not in one of the folders."""
        try:
            real = path.resolve(strict=True)
            if not real.is_file() or not any(real.is_relative_to(root) for root in roots):
                return None
            with real.open("rb") as stream:
                data = stream.read(self._limits.upload_bytes + 1)
        except (OSError, ValueError, RuntimeError):
            return None
        return data if len(data) <= self._limits.upload_bytes else None

    async def _decoded(self, data: bytes, use: Callable[[np.ndarray], Any], of_file: bool = False) -> Any:
        work = await self.small(work_of, data, self._limits.pixels, of_file)
        pool = self.large if work >= LARGE_WORK else self.small
        options = self._limits.pixels, of_file, self._white_level
        return await pool(lambda: use(decode_upload(data, *options)), weight=-(-work // WORK_UNIT))
