"""The learning-rate schedule of drops (Sec. 4, Implementation Details)."""

from collections.abc import Sequence

PAPER_DROPS = (100 / 300, 200 / 300, 250 / 300)
"""Fractions of the epochs after which the learning rate drops."""


def drop_epochs(epochs: int, drops: Sequence[float] = PAPER_DROPS) -> tuple[int, ...]:
    """Returns after how many epochs the learning rate drops: 100, 200 and 250 of 300, scaled to ``epochs``.

    The first epoch is always at the initial rate.

    Args:
      epochs: number of epochs of the run.
      drops: fractions of the epochs after which the rate drops, ascending in (0, 1).
    """
    return tuple(max(1, round(part * epochs)) for part in drops)


def learning_rate(epoch: int, epochs: int, initial: float, decay: float, drops: Sequence[float] = PAPER_DROPS) -> float:
    """Returns the learning rate of an epoch, counted from 0; see :func:`drop_epochs`."""
    return initial * decay ** sum(epoch >= drop for drop in drop_epochs(epochs, drops))
