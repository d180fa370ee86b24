"""Statistics of θ against NumPy, and the sentences about regions that died."""

import numpy as np
import pytest

from han_tf.training.regions import RegionStatistics


def fed(theta, batches=3, **options):
    """Statistics of ``[images, levels, T, 2]``, fed in batches as training does."""
    statistics = RegionStatistics(**options)
    for batch in np.array_split(theta, batches):
        statistics.update([batch[:, level] for level in range(theta.shape[1])])
    return statistics


def test_mean_and_deviation_are_those_over_all_images():
    theta = np.random.default_rng(0).uniform(-1, 1, (50, 3, 4, 2))
    statistics = fed(theta)
    np.testing.assert_allclose(statistics.mean, theta.mean(0), atol=1e-12)
    np.testing.assert_allclose(statistics.deviation, theta.std(0), atol=1e-9)


def test_living_regions_give_no_complaint():
    assert fed(np.random.default_rng(1).uniform(-0.9, 0.9, (50, 3, 4, 2))).complaints() == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_saturated_region_is_named(sign):
    theta = np.random.default_rng(2).uniform(-0.5, 0.5, (50, 3, 4, 2))
    theta[:, 1, 2, 0] = sign * 0.97
    (sentence,) = fed(theta).complaints()
    assert sentence.startswith("level 2 region 3 is saturated")


def test_a_still_region_is_named():
    theta = np.random.default_rng(3).uniform(-0.5, 0.5, (50, 3, 4, 2))
    theta[:, 0, 0] = (0, -0.75)
    (sentence,) = fed(theta).complaints()
    assert sentence.startswith("level 1 region 1 does not move")


def test_regions_that_are_fixed_by_design_give_no_complaint():
    strips = np.tile(np.array([[0, -0.97], [0, -0.25], [0, 0.25], [0, 0.97]]), (50, 3, 1, 1))
    assert len(fed(strips).complaints()) == 12
    statistics = fed(strips, learned=False)
    assert statistics.complaints() == []
    assert statistics.to_dict()["mean"] == strips[0].tolist()
