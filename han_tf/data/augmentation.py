"""Random changes to training images; off by default, as in the paper.

Each function takes images, ``[batch, height, width, 3]`` uint8, and a seed, ``[2]`` int. It returns as many images of
the same size and dtype, each of them changed with a ``probability``. It draws from the seed alone, so that the result
depends neither on how the pipeline is scheduled nor on where a run is resumed.
"""

from collections.abc import Collection

import tensorflow as tf

PLACES_TRIED = 100
"""Rectangles drawn for each image; the probability that none of them fits into a 160×64 image is below 1e-12."""


def horizontal_flip(images: tf.Tensor, seed: tf.Tensor, probability: float = 0.5) -> tf.Tensor:
    """Mirrors images left to right."""
    flipped = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < probability
    return tf.where(flipped, tf.reverse(images, [2]), images)


def random_erasing(
    images: tf.Tensor,
    seed: tf.Tensor,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> tf.Tensor:
    """Fills a rectangle of an image with random pixels (Zhong et al. 2017b, Algorithm 1).

    ``area`` (as a fraction of the image's), ``aspect`` (height / width) and upper left corner are drawn uniformly, and
    all of them again until the rectangle lies within the image. This favours small rectangles: implementations that
    draw the corner among the places where the rectangle fits erase more. Sides are rounded to whole pixels. If none of
    :data:`PLACES_TRIED` rectangles fits, the image is left unchanged. Erased values are uniform in [0, 255].
    """
    batch, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    chance_seed, shape_seed, corner_seed, fill_seed = tf.unstack(tf.random.split(seed, 4))
    tries = [batch, PLACES_TRIED]
    areas, aspects = tf.unstack(tf.random.stateless_uniform([2, *tries], shape_seed))
    areas = (area[0] + (area[1] - area[0]) * areas) * height * width
    aspects = aspect[0] + (aspect[1] - aspect[0]) * aspects
    heights, widths = tf.round(tf.sqrt(areas * aspects)), tf.round(tf.sqrt(areas / aspects))
    tops, lefts = tf.unstack(tf.random.stateless_uniform([2, *tries], corner_seed))
    tops, lefts = tf.floor(tops * height), tf.floor(lefts * width)
    fits = (tops + heights <= height) & (lefts + widths <= width)

    first = tf.argmax(fits, axis=1)
    edges = tf.stack([tops, tops + heights, lefts, lefts + widths], axis=-1)
    top, bottom, left, right = tf.unstack(tf.gather(edges, first, batch_dims=1)[:, :, None], axis=1)
    chosen = tf.random.stateless_uniform([batch], chance_seed) < probability
    chosen &= tf.reduce_any(fits, axis=1)
    # Columns and colours share one axis: tf.where is slow if it has to broadcast the mask over the colours.
    rows, columns = tf.range(height, dtype=tf.float32), tf.repeat(tf.range(width, dtype=tf.float32), 3)
    rows = (rows >= top) & (rows < bottom) & chosen[:, None]
    columns = (columns >= left) & (columns < right)
    words = tf.random.stateless_uniform([batch, -(-height * width * 3 // 4)], fill_seed, None, None, tf.int32)
    fill = tf.reshape(tf.bitcast(words, tf.uint8), [batch, -1])[:, : height * width * 3]
    erased = tf.where(
        rows[:, :, None] & columns[:, None, :],
        tf.reshape(fill, [batch, height, width * 3]),
        tf.reshape(images, [batch, height, width * 3]),
    )
    return tf.reshape(erased, tf.shape(images))


def random_translation(images: tf.Tensor, seed: tf.Tensor, probability: float = 0.5) -> tf.Tensor:
    """Enlarges images and crops them back to their size at a random place.

    Both sides grow by an eighth, rounded to whole pixels. Values are bilinear, rounded; the crop's corner is a
    uniformly drawn whole pixel.
    """
    batch, (height, width) = tf.shape(images)[0], images.shape[1:3]
    enlarged = [round(side * 1.125) for side in (height, width)]
    chance_seed, row_seed, column_seed = tf.unstack(tf.random.split(seed, 3))
    rows = tf.random.stateless_uniform([batch, 1], row_seed, 0, enlarged[0] - height + 1, tf.int32) + tf.range(height)
    columns = tf.random.stateless_uniform([batch, 1], column_seed, 0, enlarged[1] - width + 1, tf.int32)
    columns += tf.range(width)
    large = tf.cast(tf.round(tf.image.resize(images, enlarged)), tf.uint8)
    cropped = tf.gather(tf.gather(large, rows, batch_dims=1), columns, axis=2, batch_dims=1)
    moved = tf.random.stateless_uniform([batch, 1, 1, 1], chance_seed) < probability
    return tf.where(moved, cropped, images)


AUGMENTATIONS = {
    "horizontal_flip": horizontal_flip,
    "random_translation": random_translation,
    "random_erasing": random_erasing,
}
"""Augmentation name -> function of images and seed, in the order in which they are applied."""

SEEDED = ("horizontal_flip", "random_erasing", "random_translation")
"""The order in which seeds are assigned; add new names at the end, so that the draws of the others do not change."""


def augment(images: tf.Tensor, names: Collection[str], seed: int, epoch: int, batch: tf.Tensor) -> tf.Tensor:
    """Applies augmentations to the images of a batch.

    Args:
      images: ``[batch, height, width, 3]`` uint8.
      names: which keys of :data:`AUGMENTATIONS`.
      seed, epoch, batch: the run's seed, the number of the epoch, and that of the batch in it, scalar int64.
    """
    of_epoch = tf.constant([seed, epoch], tf.int64)
    seeds = tf.random.split(tf.random.fold_in(of_epoch, tf.cast(batch, tf.int64)), len(SEEDED))
    for name, function in AUGMENTATIONS.items():
        if name in names:
            images = function(images, seeds[SEEDED.index(name)])
    return images
