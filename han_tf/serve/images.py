"""Turning what a client sent into pixels, without trusting any of it."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from han_tf.serve.limits import Refusal

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp"}
"""Pillow's names of the formats that are decoded -> media type. Everything else Pillow knows stays untouched, as do
formats that call other programs (EPS) or have many pages (TIFF)."""

_ORIENTATION = 0x0112
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEADER_BYTES = 30


class Size(NamedTuple):
    """Width and height, in pixels."""

    width: int
    height: int


def decode_upload(data: bytes, max_pixels: int) -> np.ndarray:
    """Decodes an uploaded image.

    The size that the header claims is checked before anything is decoded. An EXIF orientation is applied: crops that
    a detector cut carry none, so training never met one, but a phone's picture would lie on its side.
    Of 16 bits per channel the upper eight are kept, transparency is dropped, palettes and CMYK become RGB, all as
    :func:`han_tf.data.pipeline.decode_image` does for training images.

    Args:
      data: the file's bytes.
      max_pixels: largest width times height.

    Returns:
      ``[height, width, 3]`` uint8, RGB.

    Raises:
      Refusal: 413 too many pixels; 415 no image, or in another format; 422 animated, truncated or damaged.
    """
    if not data:
        raise Refusal(422, "the image is empty, expected a file of at least one byte")
    _check_webp_size(data, max_pixels)
    expected = f"expected {', '.join(FORMATS)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata we do not look at, and of sizes we check ourselves
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
                _check_size(Size(*image.size), max_pixels)
                # A JPEG of several pictures (MPO) is what phones write: the first one is the picture.
                if getattr(image, "is_animated", False) and image.format != "MPO":
                    raise Refusal(422, f"the image has {image.n_frames} frames, expected one")
                return _pixels(image)
    except Image.UnidentifiedImageError as error:
        raise Refusal(415, f"not an image that can be read, {expected}") from error
    except Image.DecompressionBombError as error:
        raise Refusal(413, f"the image has too many pixels, expected at most {max_pixels:,}") from error
    except MemoryError as error:
        raise Refusal(413, "the image does not fit into memory, expected a smaller one") from error
    except Refusal:
        raise
    except Exception as error:  # a damaged file raises what the codecs, zlib and struct happen to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refusal(422, f"the image is damaged or truncated ({reason})") from error


def _pixels(image: Image.Image) -> np.ndarray:
    orientation = _orientation(image)
    if image.mode.startswith("I"):
        image.load()
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if orientation in _TURNED:
        image = image.transpose(_TURNED[orientation])
    return np.asarray(image)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata is no reason to refuse the picture
        return 1


def _check_size(size: Size, max_pixels: int) -> None:
    if size.width * size.height > max_pixels:
        raise Refusal(
            413,
            f"the image has {size.width} × {size.height} = {size.width * size.height:,} pixels, "
            f"expected at most {max_pixels:,}",
        )


def _check_webp_size(data: bytes, max_pixels: int) -> None:
    """Reads a WebP's size before Pillow does, whose decoder reserves memory for the canvas when it opens one."""
    head = data[:_HEADER_BYTES]
    if len(head) < _HEADER_BYTES or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    kind = head[12:16]
    if kind == b"VP8X":
        size = Size(1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little"))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        size = Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    else:
        size = Size(*(int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28)))
    _check_size(size, max_pixels)


def encode(image: np.ndarray, format: str, max_side: int = 0) -> bytes:
    """Encodes pixels as ``PNG`` or ``JPEG``, shrunk to ``max_side`` pixels on their longer side unless that is 0.

    Nothing but pixels is written: no EXIF, no position, no comment of the file they came from.
    """
    picture = Image.fromarray(image)
    if max_side and max(picture.size) > max_side:
        picture = ImageOps.contain(picture, (max_side, max_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format, **({"quality": 90} if format == "JPEG" else {}))
    return stream.getvalue()
