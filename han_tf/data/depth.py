"""Conversion of grey images of more than 8 bits per pixel to 8 bits."""

import threading
from collections.abc import Mapping
from typing import Optional

import numpy as np
from PIL import Image

_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339
_SIGNED = 2


class Depth:
    """Scales grey images of more than 8 bits to 8 bits, and counts them.

    By default the largest value of the format becomes 255: 65,535 for 16 bits, 4,095 for a TIFF of 12 bits, 1 for
    floating point. 12-bit cameras often write 16-bit files and use a sixteenth of their range; set ``white_level`` to
    4,095 then. Values above the white level become 255, values below 0 become 0.

    Args:
      white_level: the value that becomes 255; the largest value of the format if None.

    Attributes:
      scaled: value that became 255 -> number of images, and the largest value in them.
    """

    def __init__(self, white_level: Optional[float] = None):
        self.white_level = None if white_level is None else float(white_level)
        self._lock = threading.Lock()
        self.scaled: dict[float, tuple[int, float]] = {}

    def eight_bits(self, image: Image.Image) -> np.ndarray:
        """Returns the pixels of a loaded image, ``[height, width]`` uint8.

        Args:
          image: of a mode that begins with ``I`` (integers) or ``F`` (floating point).

        Raises:
          ValueError: a value is not finite; or, without a white level, a value is outside the format's range, or all
            pixels would become 0 although not all of them are 0.
        """
        pixels = np.asarray(image)
        pixels, white = (pixels, 1.0) if image.mode == "F" else _integers(image, pixels)
        chosen = self.white_level or white
        # If white is 2^b - 1, the upper eight bits are kept: equally many integers map to each of the 256 values.
        whole = image.mode != "F" and (chosen + 1).is_integer() and int(chosen + 1).bit_count() == 1
        scaled = pixels.astype(np.float64) * (256 / (chosen + 1) if whole else 255 / chosen)
        least, most = float(pixels.min()), float(pixels.max())
        if not np.isfinite(scaled).all():
            raise ValueError("pixels that are not finite, expected numbers")
        if self.white_level is None and not 0 <= least <= most <= white:
            raise ValueError(f"pixels from {least:g} to {most:g}, expected 0 to {white:g}, or a white level for them")
        result = np.clip(np.floor(scaled) if whole else np.rint(scaled), 0, 255).astype(np.uint8)
        if self.white_level is None and most > 0 and not result.any():
            raise ValueError(
                f"pixels from {least:g} to {most:g} of {white:g} become black, expected a white level for them"
            )
        self.add({chosen: (1, most)})
        return result

    def add(self, scaled: Mapping[float, tuple[int, float]]) -> None:
        """Adds the counts of another object's :attr:`scaled`."""
        with self._lock:
            for white, (count, brightest) in scaled.items():
                before, most = self.scaled.get(white, (0, brightest))
                self.scaled[white] = before + count, max(most, brightest)

    @property
    def notes(self) -> list[str]:
        """One sentence for each white level used so far; empty if no image had more than 8 bits."""
        return [
            f"{count:,} images of more than 8 bits per pixel: {white:,g} became white, their brightest pixel is "
            f"{brightest:,g}"
            for white, (count, brightest) in sorted(self.scaled.items())
        ]


def _integers(image: Image.Image, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the pixels and the largest value of the file's format."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return pixels, 65_535.0  # PNG, which some versions of Pillow open as 32 bits
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        return pixels, 2.0 ** (bits - 1) - 1
    # Pillow has no unsigned 32-bit mode and returns such pixels as signed integers.
    return (pixels.view(np.uint32) if pixels.dtype == np.int32 else pixels), 2.0**bits - 1
