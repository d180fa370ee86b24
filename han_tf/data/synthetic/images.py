"""Labels of an image, and the labelled image in memory that the generator yields and the layout writers take."""

from typing import NamedTuple

from PIL import Image


class Frame(NamedTuple):
    """The labels of an image to draw."""

    subset: str  # train, query, gallery or multi_query
    pid: int  # person id; -1 junk, 0 distractor, as in han_tf.data.records
    camid: int  # camera id, 1-based
    index: int  # frame number, unique within the data set


class LabelledImage(NamedTuple):
    """One person bounding-box image with the labels of its :class:`Frame`."""

    subset: str
    pid: int
    camid: int
    index: int
    image: Image.Image  # RGB, of the size of its box
