"""Statistics of a network's attention over the images of an epoch, and warnings where it is dead or does not move."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from han_tf.models.network import LevelAttention

SATURATED = 0.95
"""|θ| from which tanh passes back almost no gradient."""

STILL = 0.5
"""Standard deviation over images, in pixels of the level's map, below which a level's regions count as fixed."""

DEAD_SHARE = 0.5
"""Share of images with a constant S from which a level's spatial attention counts as dead."""

FLAT = 1e-3
"""As a share of S's mean: the largest range of a constant S, and the largest deviation over positions of a dead S."""

SOFT_IMAGES = 4
"""The soft map, which has a value for each channel, is measured on one of so many images."""


class LevelStatistics(NamedTuple):
    """Sums over the images of a batch, for one level of a network.

    Attributes:
      theta, theta_squares: ``[T, 2]``, (t_x, t_y) and their squares; None at a level without regions.
      spatial: ``[3]``, S's mean over positions, its deviation over positions, and whether it is constant (0 or 1);
        None without soft spatial attention.
      soft: scalar, the soft map's deviation over positions, averaged over channels, of the first of every
        :data:`SOFT_IMAGES` images; None without soft attention.
    """

    theta: Optional[tf.Tensor]
    theta_squares: Optional[tf.Tensor]
    spatial: Optional[tf.Tensor]
    soft: Optional[tf.Tensor]


def map_statistics(function: Callable[..., Any], *levels: LevelStatistics) -> LevelStatistics:
    """Applies a function to each entry that a level has, together with the same entries of the other ``levels``."""
    return LevelStatistics(*(None if values[0] is None else function(*values) for values in zip(*levels)))


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
        looked_at = tf.cast(tf.gather(level.soft, tf.range(0, tf.shape(level.soft)[0], SOFT_IMAGES)), tf.float32)
        soft = tf.reduce_sum(tf.reduce_mean(tf.math.reduce_std(looked_at, [1, 2]), -1))
    return LevelStatistics(theta, squares, spatial, soft)


class AttentionStatistics:
    """Statistics of attention over the images of an epoch.

    Args:
      map_sizes: height and width of each level's map, first level first.
      learned: whether hard attention places the regions; fixed regions cause no complaint.

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
        """Adds a batch of ``images`` images.

        ``levels`` is what :func:`level_statistics` gave for each level, summed over the ``replicas`` devices that
        shared the batch evenly.
        """
        levels = [map_statistics(lambda value: np.asarray(value, np.float64), level) for level in levels]
        self._sums = [map_statistics(np.add, *pair) for pair in zip(levels, self._sums)] if self._sums else levels
        self.count += images
        self._soft_count += replicas * -(-(images // replicas) // SOFT_IMAGES)

    def sums(self) -> dict[str, Any]:
        """Returns what :meth:`restore` takes: the sums so far, ready for JSON, in which float64 stay the same."""
        levels = [
            {name: np.asarray(value).tolist() for name, value in level._asdict().items() if value is not None}
            for level in self._sums
        ]
        return {"count": self.count, "soft_count": self._soft_count, "levels": levels}

    def restore(self, sums: Mapping[str, Any]) -> None:
        """Goes on from sums of the same network's levels."""
        self.count, self._soft_count = sums["count"], sums["soft_count"]
        self._sums = [
            LevelStatistics(*(np.array(level[name]) if name in level else None for name in LevelStatistics._fields))
            for level in sums["levels"]
        ]

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
        """Returns how many pixels of level ``number``'s map 1 in (t_x, t_y) is: half its width and height, ``[2]``."""
        height, width = self.map_sizes[number - 1]
        return np.array([width / 2, height / 2])

    def levels(self) -> list[dict[str, float]]:
        """Returns a dictionary for each level, with the entries that the level has:

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
        """Returns a sentence for each saturated region, and for each level with fixed regions or dead attention."""
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
        """Returns all statistics, ready for JSON.

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
        """Returns the numbers for TensorBoard: ``attention1/spatial_deviation``, ``regions1/tx_1_mean_pixels``, …"""
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
