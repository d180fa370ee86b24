"""Curves: CMC, precision–recall and ROC, one line per named result."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open
from han_tf.metrics.results import RankingResult
from han_tf.metrics.scores import RECALL_LEVELS
from han_tf.metrics.verification import VerificationResult

FORMATS = ("pdf", "png", "svg")
"""File formats a figure can be saved in."""


def plot_cmc(results: Mapping[str, RankingResult]) -> Figure:
    """Draws the matching rate against the rank.

    Args:
      results: name in the legend → result of :func:`han_tf.metrics.evaluate`.

    Raises:
      UserError: there are no results.
    """
    figure, axes = _axes("rank", "matching rate (%)", results)
    for name, result in results.items():
        ranks = np.arange(1, len(result.cmc) + 1)
        axes.plot(ranks, 100 * result.cmc, label=f"{name} (rank-1 {100 * result.cmc[0]:.1f} %)")
    axes.set_xlim(left=1)
    axes.legend()
    return figure


def plot_precision_recall(results: Mapping[str, RankingResult]) -> Figure:
    """Draws precision against recall: interpolated per query, then averaged over the queries.

    Args:
      results: name in the legend → result of :func:`han_tf.metrics.evaluate`.

    Raises:
      UserError: there are no results.
    """
    figure, axes = _axes("recall (%)", "precision (%)", results)
    for name, result in results.items():
        label = f"{name} (mAP {100 * result.mAP:.1f} %)"
        axes.plot(100 * RECALL_LEVELS, 100 * result.precision_recall, label=label)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.legend()
    return figure


def plot_roc(results: Mapping[str, VerificationResult]) -> Figure:
    """Draws the true-positive rate against the false-positive rate, the latter on a logarithmic axis.

    Args:
      results: name in the legend → result of :func:`han_tf.metrics.verify`.

    Raises:
      UserError: there are no results.
    """
    figure, axes = _axes("false-positive rate", "true-positive rate (%)", results)
    for name, result in results.items():
        label = f"{name} (equal error rate {100 * result.equal_error_rate:.2f} %)"
        axes.plot(result.roc_fpr, 100 * result.roc_tpr, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.legend()
    return figure


def save_figure(figure: Figure, path: Union[str, os.PathLike]) -> None:
    """Writes ``figure`` to ``path``, completely or not at all, in the format of the suffix.

    Raises:
      UserError: the suffix is not one of :data:`FORMATS`, or the file cannot be written.
    """
    suffix = Path(path).suffix[1:].lower()
    if suffix not in FORMATS:
        raise UserError(f"{path} ends in {Path(path).suffix!r}, expected one of {', '.join(FORMATS)}")
    with atomic_open(path) as stream:
        figure.savefig(stream, format=suffix, dpi=150)


def _axes(x: str, y: str, results: Mapping) -> tuple[Figure, Axes]:
    if not results:
        raise UserError("there are no results to draw, expected at least one")
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes
