"""The three-step learning-rate schedule (Sec. 4, Implementation Details)."""

PAPER_DROPS = (100 / 300, 200 / 300, 250 / 300)
"""After which part of the epochs the learning rate drops."""


def drop_epochs(epochs: int) -> tuple[int, int, int]:
    """Returns after how many epochs the learning rate drops: 100, 200 and 250 of 300, scaled to ``epochs``.

    The first epoch is always at the initial rate.
    """
    first, second, third = (max(1, round(part * epochs)) for part in PAPER_DROPS)
    return first, second, third


def learning_rate(epoch: int, epochs: int, initial: float, decay: float) -> float:
    """Returns the learning rate of an epoch, counted from 0."""
    return initial * decay ** sum(epoch >= drop for drop in drop_epochs(epochs))
