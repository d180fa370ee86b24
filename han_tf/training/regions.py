"""Whether hard attention lives: where the regions of a network lie and how they differ between images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SATURATED = 0.95
"""|θ| from which tanh passes next to no gradient back."""

STILL = 1e-3
"""Deviation of θ over images below which a region does not look at the image."""


@dataclass
class RegionStatistics:
    """Running mean and deviation of θ over images, per level and region.

    Attributes:
      learned: whether hard attention places the regions; fixed ones give no reason to complain.
      count: images seen.
      total, squares: ``[levels, T, 2]`` float64, sums of θ and θ².
    """

    learned: bool = True
    count: int = 0
    total: np.ndarray = None
    squares: np.ndarray = None

    def update(self, thetas: Sequence[np.ndarray]) -> None:
        """Takes in a batch: ``[batch, T, 2]`` for each level."""
        theta = np.stack(thetas, axis=1).astype(np.float64)
        self.count += len(theta)
        self.total = theta.sum(0) + (0 if self.total is None else self.total)
        self.squares = (theta**2).sum(0) + (0 if self.squares is None else self.squares)

    @property
    def mean(self) -> np.ndarray:
        """Mean θ over images, ``[levels, T, 2]``: (t_x, t_y) in [-1, 1]."""
        return self.total / self.count

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of θ over images, ``[levels, T, 2]``."""
        return np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0))

    def complaints(self) -> list[str]:
        """Returns one sentence for each learned region that is saturated or does not move with the image."""
        sentences = []
        if not self.learned:
            return sentences
        for level, (means, deviations) in enumerate(zip(self.mean, self.deviation), start=1):
            for region, (mean, deviation) in enumerate(zip(means, deviations), start=1):
                where = f"level {level} region {region}"
                place = f"mean (tx, ty) = ({mean[0]:.3f}, {mean[1]:.3f})"
                if np.abs(mean).max() >= SATURATED:
                    sentences.append(f"{where} is saturated: {place}, expected inside ±{SATURATED}")
                elif deviation.max() < STILL:
                    sentences.append(f"{where} does not move: {place}, deviation over images {deviation.max():.1e}")
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Returns mean, deviation and complaints as JSON holds them."""
        return {
            "mean": np.round(self.mean, 6).tolist(),
            "deviation": np.round(self.deviation, 6).tolist(),
            "complaints": self.complaints(),
        }
