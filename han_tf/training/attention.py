"""Whether attention lives: what soft spatial attention and the regions of a network do over images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from han_tf.models.network import LevelAttention

SATURATED = 0.95
"""|θ| from which tanh passes next to no gradient back."""

STILL = 0.5
"""Deviation over images, in pixels of the level's map, below which a level's regions are as good as fixed."""

DEAD_SHARE = 0.5
"""Share of images with a constant S from which a level's spatial attention is dead."""

FLAT = 1e-3
"""Deviation of S over positions, as a share of its mean, below which it is dead, too; and range of a constant S."""

SOFT_IMAGES = 4
"""Of every so many images one is looked at for the soft map, which has a value for each channel."""


class LevelStatistics(NamedTuple):
    """What one level of a network did on a batch, as sums over images.

    Attributes:
      theta, theta_squares: ``[T, 2]``, of (t_x, t_y) and of their squares; None at a level without regions.
      spatial: ``[3]``, of S's mean over positions, of its deviation over positions, and of whether it is constant
        (0 or 1); None without soft spatial attention.
      soft: scalar, of the soft map's deviation over positions, averaged over channels, of the first of every
        :data:`SOFT_IMAGES` images; None without soft attention.
    """

    theta: Optional[tf.Tensor]
    theta_squares: Optional[tf.Tensor]
    spatial: Optional[tf.Tensor]
    soft: Optional[tf.Tensor]


def level_statistics(level: LevelAttention) -> LevelStatistics:
    """Returns the sums over the images of a batch, see :class:`LevelStatistics`; float32."""
    theta = squares = spatial = soft = None
    if level.theta is not None:
        theta, squares = tf.reduce_sum(level.theta, 0), tf.reduce_sum(level.theta**2, 0)
    if level.spatial is not None:
        positions = tf.cast(level.spatial, tf.float32)
        mean = tf.reduce_mean(positions, [1, 2, 3])
        extent = tf.reduce_max(positions, [1, 2, 3]) - tf.reduce_min(positions, [1, 2, 3])
        constant = tf.cast(extent <= FLAT * mean, tf.float32)
        spatial = tf.reduce_sum(tf.stack([mean, tf.math.reduce_std(positions, [1, 2, 3]), constant]), 1)
    if level.soft is not None:
        looked_at = tf.cast(level.soft[::SOFT_IMAGES], tf.float32)
        soft = tf.reduce_sum(tf.reduce_mean(tf.math.reduce_std(looked_at, [1, 2]), -1))
    return LevelStatistics(theta, squares, spatial, soft)


class AttentionStatistics:
    """What attention does over the images of an epoch.

    Args:
      map_sizes: height and width of each level's map, first level first.
      learned: whether hard attention places the regions; fixed ones give no reason to complain.

    Attributes:
      count: images seen.
    """

    def __init__(self, map_sizes: Sequence[tuple[int, int]], learned: bool = True):
        self.map_sizes = map_sizes
        self.learned = learned
        self.count = 0
        self._soft_count = 0
        self._sums: list[LevelStatistics] = []

    def update(self, levels: Sequence[LevelStatistics], images: int, replicas: int = 1) -> None:
        """Takes in a batch of ``images`` images: what :func:`level_statistics` gave for each level.

        Of a batch that ``replicas`` devices shared evenly, the sums of what it gave for each part.
        """
        levels = [
            LevelStatistics(*(None if value is None else np.asarray(value, np.float64) for value in level))
            for level in levels
        ]
        if self._sums:
            levels = [
                LevelStatistics(*(None if value is None else value + total for value, total in zip(level, before)))
                for level, before in zip(levels, self._sums)
            ]
        self._sums = levels
        self.count += images
        self._soft_count += replicas * -(-(images // replicas) // SOFT_IMAGES)

    @property
    def regions(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation of θ over images, ``[T, 2]`` each, by the number of the level, counted from 1.

        Levels without regions are left out.
        """
        found = {}
        for number, sums in enumerate(self._sums, start=1):
            if sums.theta is not None:
                mean = sums.theta / self.count
                found[number] = mean, np.sqrt(np.maximum(sums.theta_squares / self.count - mean**2, 0))
        return found

    def pixels(self, number: int) -> np.ndarray:
        """What 1 of (t_x, t_y) is in pixels of the map of level ``number``: half its width and height, ``[2]``."""
        height, width = self.map_sizes[number - 1]
        return np.array([width / 2, height / 2])

    def levels(self) -> list[dict[str, float]]:
        """Returns a dictionary for each level, of what it has:

        ``spatial_mean`` and ``spatial_deviation`` (of S, over positions), ``spatial_constant`` (share of images in
        which S is constant), ``soft_deviation`` (of the soft map, over positions); means over images.
        """
        found = []
        for sums in self._sums:
            level = {}
            if sums.spatial is not None:
                names = ("spatial_mean", "spatial_deviation", "spatial_constant")
                level.update(zip(names, (sums.spatial / self.count).tolist()))
            if sums.soft is not None:
                level["soft_deviation"] = float(sums.soft / self._soft_count)
            found.append(level)
        return found

    def complaints(self) -> list[str]:
        """Returns a sentence for each learned region that is saturated, and for each level where attention is dead."""
        sentences = []
        for number, (means, deviations) in (self.regions if self.learned else {}).items():
            for region, mean in enumerate(means, start=1):
                if np.abs(mean).max() >= SATURATED:
                    place = f"mean (tx, ty) = ({mean[0]:.3f}, {mean[1]:.3f})"
                    sentences.append(
                        f"level {number} region {region} is saturated: {place}, expected inside ±{SATURATED}"
                    )
            furthest = (deviations * self.pixels(number)).max()
            if furthest < STILL:
                sentences.append(
                    f"the regions of level {number} hardly move: by {furthest:.2f} pixels of its map over images at "
                    f"most (standard deviation), expected at least {STILL}"
                )
        for number, level in enumerate(self.levels(), start=1):
            share, mean = level.get("spatial_constant", 0), level.get("spatial_mean", 1)
            flat = level.get("spatial_deviation", 1) <= FLAT * mean
            if share >= DEAD_SHARE or flat:
                sentences.append(
                    f"spatial attention of level {number} is dead: constant in {share:.0%} of the images, deviation "
                    f"over positions {level['spatial_deviation']:.1e}"
                )
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Returns all as JSON holds it.

        ``mean`` and ``deviation`` of θ over images, ``[levels with regions, T, 2]``; ``mean_pixels``, from the map's
        centre, and ``deviation_pixels``, in pixels of each level's map; ``levels``, see :meth:`levels`; ``complaints``.
        """
        numbers = list(self.regions)
        means, deviations = ([pair[which] for pair in self.regions.values()] for which in (0, 1))
        scales = [self.pixels(number) for number in numbers]
        arrays = {
            "mean": (means, 6),
            "deviation": (deviations, 6),
            "mean_pixels": ([mean * scale for mean, scale in zip(means, scales)], 3),
            "deviation_pixels": ([deviation * scale for deviation, scale in zip(deviations, scales)], 3),
        }
        return {
            **{name: np.round(values, digits).tolist() for name, (values, digits) in arrays.items()},
            "levels": [{name: round(value, 6) for name, value in level.items()} for level in self.levels()],
            "complaints": self.complaints(),
        }

    def scalars(self) -> Mapping[str, float]:
        """Returns what TensorBoard draws: ``attention1/spatial_deviation``, ``regions1/tx_1_mean_pixels``, …"""
        found = {
            f"attention{number}/{name}": value
            for number, level in enumerate(self.levels(), start=1)
            for name, value in level.items()
        }
        for number, statistics in self.regions.items():
            for kind, values in zip(("mean", "deviation"), statistics):
                for region, (x, y) in enumerate(values * self.pixels(number), start=1):
                    found[f"regions{number}/tx_{region}_{kind}_pixels"] = x
                    found[f"regions{number}/ty_{region}_{kind}_pixels"] = y
        return found
