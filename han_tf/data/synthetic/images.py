"""A labelled image in memory, as the generator yields it and the layout writers take it."""

from typing import NamedTuple

from PIL import Image


class LabelledImage(NamedTuple):
    """One person bounding-box image with its labels.

    Attributes:
      subset: ``train``, ``query``, ``gallery`` or ``multi_query``.
      pid: person id; −1 junk, 0 distractor, as in :mod:`han_tf.data.records`.
      camid: camera id, 1-based.
      index: frame number, unique within the data set.
      image: RGB, of the size of its box.
    """

    subset: str
    pid: int
    camid: int
    index: int
    image: Image.Image
