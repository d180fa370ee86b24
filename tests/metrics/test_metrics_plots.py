"""The curves show the numbers of the results."""

import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.metrics import FeatureDistances, evaluate, verify
from han_tf.metrics.plots import plot_cmc, plot_precision_recall, plot_roc, save_figure
from tests.metrics.test_ranking import random_problem


@pytest.fixture(scope="module")
def problem():
    return random_problem(20, 200, 8)


def lines_of(figure):
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].get_lines()}


def test_cmc(problem):
    query, gallery, labels = problem
    result = evaluate(query, gallery, *labels, max_rank=30)
    lines = lines_of(plot_cmc({"plain": result, "again": result}))
    assert list(lines) == [f"{name} (rank-1 {100 * result.rank(1):.1f} %)" for name in ("plain", "again")]
    curve = next(iter(lines.values()))
    np.testing.assert_allclose(curve, np.stack([np.arange(1, 31), 100 * result.cmc], axis=1))


def test_precision_recall(problem):
    query, gallery, labels = problem
    result = evaluate(query, gallery, *labels)
    (curve,) = lines_of(plot_precision_recall({"plain": result})).values()
    np.testing.assert_allclose(curve[[0, 50, 100], 0], [0, 50, 100])
    np.testing.assert_allclose(curve[:, 1], 100 * result.precision_recall)
    assert (np.diff(curve[:, 1]) <= 1e-9).all()


def test_roc(problem):
    query, gallery, labels = problem
    result = verify(FeatureDistances(query, gallery), *labels)
    (curve,) = lines_of(plot_roc({"plain": result})).values()
    np.testing.assert_allclose(curve, np.stack([result.roc_fpr, 100 * result.roc_tpr], axis=1))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_saved(problem, tmp_path, suffix):
    query, gallery, labels = problem
    path = tmp_path / f"cmc.{suffix}"
    save_figure(plot_cmc({"plain": evaluate(query, gallery, *labels)}), path)
    assert path.stat().st_size > 1000
    if suffix == "png":
        assert Image.open(path).size == (900, 675)


def test_nothing_to_draw_and_unknown_formats(problem, tmp_path):
    with pytest.raises(UserError, match="there are no results to draw"):
        plot_roc({})
    query, gallery, labels = problem
    with pytest.raises(UserError, match=r"ends in '\.txt', expected one of pdf, png, svg"):
        save_figure(plot_cmc({"plain": evaluate(query, gallery, *labels)}), tmp_path / "cmc.txt")
