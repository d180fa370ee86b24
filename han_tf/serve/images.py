"""Decoding untrusted images, and encoding images for clients."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import numpy as np
from PIL import Image

from han_tf.data.depth import Depth
from han_tf.data.folders import FILE_FORMATS
from han_tf.data.reading import FORMATS, upright_pixels
from han_tf.serve.limits import Refusal

MAX_SCANS = 100
"""Most scans of a JPEG, each of which is decoded over the whole picture. Progressive files have about ten."""

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""The markers that are followed by a length, and the end of the image."""

_HEADER_BYTES = 30
"""Bytes of a WebP file that hold its size."""


def decode_upload(
    data: bytes, max_pixels: int, of_file: bool = False, white_level: Optional[float] = None
) -> np.ndarray:
    """Decodes an uploaded image.

    The size in the header and the number of a JPEG's scans are checked before decoding. The pixels are those that
    :func:`han_tf.data.reading.decode_image` reads from files.

    Args:
      data: the file's bytes.
      max_pixels: largest width times height.
      of_file: whether it is a file of the gallery, which may also be TIFF or GIF and have several frames.
      white_level: the value that is white in grey images of more than 8 bits, see :class:`han_tf.data.depth.Depth`.

    Returns:
      ``[height, width, 3]`` uint8, RGB.

    Raises:
      Refusal: 413, too many pixels; 415, not an image, or in another format; 422, empty, animated, truncated, damaged
        or in more than :data:`MAX_SCANS` scans.
    """
    with _opened(data, max_pixels, of_file) as image:
        return upright_pixels(image, Depth(white_level))


def work_of(data: bytes, max_pixels: int, of_file: bool = False) -> int:
    """Returns an estimate of the cost of decoding an image, in pixels; arguments and errors as above.

    It is the number of pixels; each scan of a JPEG adds a tenth of it.
    """
    with _opened(data, max_pixels, of_file) as image:
        width, height = image.size
        scans = data.count(_START_OF_SCAN) if image.format in ("JPEG", "MPO") else 0
        return width * height * (10 + min(scans, MAX_SCANS)) // 10


@contextmanager
def _opened(data: bytes, max_pixels: int, of_file: bool) -> Iterator[Image.Image]:
    if not data:
        raise Refusal(422, "the image is empty, expected a file of at least one byte")
    _check_webp_size(data, max_pixels)
    formats = (*FILE_FORMATS,) if of_file else FORMATS
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_size(*image.size, max_pixels)
            # Phones write JPEG files of several pictures (MPO), the first of which is the photo.
            if not of_file and getattr(image, "is_animated", False) and image.format != "MPO":
                frames = getattr(image, "n_frames", 1)
                raise Refusal(422, f"the image has {frames} frames, expected one")
            if image.format in ("JPEG", "MPO"):
                _check_scans(data)
            yield image
    except Image.UnidentifiedImageError as error:
        raise Refusal(415, f"not an image that can be read, expected {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise Refusal(413, f"the image has too many pixels, expected at most {max_pixels:,}") from error
    except MemoryError as error:
        raise Refusal(413, "the image does not fit into memory, expected a smaller one") from error
    except Refusal:
        raise
    except Exception as error:  # damaged files raise any error of the codecs, zlib and struct
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refusal(422, f"the image is damaged or truncated ({reason})") from error


def _check_scans(data: bytes) -> None:
    if data.count(_START_OF_SCAN) <= MAX_SCANS:
        return
    # Metadata and data after the end, such as a video, may contain these bytes, too: only real markers count.
    scans, position = 0, 0
    while (marker := _SEGMENT.search(data, position)) and marker[0] != _END_OF_IMAGE:
        scans += marker[0] == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise Refusal(422, f"the image has more than {MAX_SCANS} scans, expected a JPEG of at most that many")
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Refusal(
            413, f"the image has {width} × {height} = {width * height:,} pixels, expected at most {max_pixels:,}"
        )


def _check_webp_size(data: bytes, max_pixels: int) -> None:
    """Checks a WebP's size before Pillow opens it, which would allocate memory for all its pixels."""
    head = data[:_HEADER_BYTES]
    if len(head) < _HEADER_BYTES or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = (1 + (bits >> shift & 0x3FFF) for shift in (0, 14))
    else:
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    _check_size(width, height, max_pixels)


def encode(image: np.ndarray, format: str, max_side: int = 0) -> bytes:
    """Encodes pixels as ``PNG`` or ``JPEG``, without metadata.

    Args:
      image: ``[height, width, 3]`` uint8, RGB.
      format: ``PNG`` or ``JPEG``.
      max_side: length that a longer side is shrunk to; 0 for any.
    """
    picture = Image.fromarray(image)
    if max_side and max(picture.size) > max_side:
        scale = max_side / max(picture.size)
        width, height = (max(1, round(scale * side)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format, **({"quality": 90} if format == "JPEG" else {}))
    return stream.getvalue()
