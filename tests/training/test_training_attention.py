"""Statistics of attention against NumPy, and complaints about dead attention."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.models.network import LevelAttention
from han_tf.training.attention import AttentionStatistics, level_statistics

MAP = (20, 8)
CHANNELS = 6


def fed(theta, spatial=None, soft=None, batches=3, **options):
    """Returns statistics of arrays ``[images, levels, ...]``, updated batch by batch as in training."""
    levels = theta.shape[1]
    statistics = AttentionStatistics([MAP] * levels, **options)
    for batch in np.array_split(np.arange(len(theta)), batches):
        rows = [
            LevelAttention(
                soft=None if soft is None else tf.constant(soft[batch, level], tf.float32),
                theta=tf.constant(theta[batch, level], tf.float32),
                boxes=None,
                spatial=None if spatial is None else tf.constant(spatial[batch, level], tf.float32),
            )
            for level in range(levels)
        ]
        statistics.update([level_statistics(row) for row in rows], len(batch))
    return statistics


def thetas(seed=0, images=50, spread=0.9, levels=3):
    return np.random.default_rng(seed).uniform(-spread, spread, (images, levels, 4, 2))


def test_mean_and_deviation_of_theta_are_those_over_all_images():
    theta = thetas()
    statistics = fed(theta)
    for level, (mean, deviation) in statistics.regions.items():
        np.testing.assert_allclose(mean, theta[:, level - 1].mean(0), atol=1e-6)
        np.testing.assert_allclose(deviation, theta[:, level - 1].std(0), atol=1e-6)
    found = statistics.to_dict()
    np.testing.assert_allclose(found["deviation_pixels"], theta.std(0) * [4, 10], atol=1e-3)
    np.testing.assert_allclose(found["mean_pixels"], theta.mean(0) * [4, 10], atol=1e-3)


def test_soft_attention_is_measured_over_positions():
    rng = np.random.default_rng(1)
    spatial = rng.uniform(0, 2, (24, 2, *MAP, 1))
    spatial[:6, 1] = 0.7
    soft = rng.uniform(0.5, 1, (24, 2, *MAP, CHANNELS))
    levels = fed(thetas(images=24, levels=2), spatial, soft).levels()
    for number, level in enumerate(levels):
        assert level["spatial_mean"] == pytest.approx(spatial[:, number].mean(), rel=1e-5)
        assert level["spatial_deviation"] == pytest.approx(spatial[:, number].std(axis=(1, 2, 3)).mean(), rel=1e-5)
        assert level["spatial_constant"] == pytest.approx([0, 0.25][number])
        # The first and the fifth image of each batch of eight.
        expected = soft[::4, number].std(axis=(1, 2)).mean()
        assert level["soft_deviation"] == pytest.approx(expected, rel=1e-5)


def test_devices_that_share_a_batch_add_up():
    """Each device has six images and measures the soft map on the first and the fifth."""
    soft = np.random.default_rng(3).uniform(0.5, 1, (12, 1, *MAP, CHANNELS))
    parts = [
        level_statistics(LevelAttention(tf.constant(half[:, 0], tf.float32), None, None))
        for half in (soft[:6], soft[6:])
    ]
    statistics = AttentionStatistics([MAP])
    statistics.update([parts[0]._replace(soft=parts[0].soft + parts[1].soft)], 12, replicas=2)
    expected = soft[[0, 4, 6, 10], 0].std(axis=(1, 2)).mean()
    assert statistics.levels()[0]["soft_deviation"] == pytest.approx(expected, rel=1e-5)


def test_a_level_without_soft_attention_tells_of_regions_alone():
    assert fed(thetas()).levels() == [{}] * 3


def test_living_attention_gives_no_complaint():
    spatial = np.random.default_rng(2).uniform(0, 2, (50, 3, *MAP, 1))
    assert fed(thetas(), spatial).complaints() == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_saturated_region_is_named(sign):
    theta = thetas(2)
    theta[:, 1, 2, 0] = sign * 0.97
    (sentence,) = fed(theta).complaints()
    assert sentence.startswith("level 2 region 3 is saturated")


def test_regions_that_move_by_less_than_half_a_pixel_are_named():
    """0.49 and 0.51 pixels of a map that is 20 pixels high."""
    moves = np.where(np.arange(50) % 2, 1, -1)[:, None] * np.ones(4)
    for pixels, dead in ((0.49, True), (0.51, False)):
        theta = thetas(3)
        theta[:, 1] = (0, -0.75)
        theta[:, 1, :, 1] += moves * pixels / 10
        complaints = fed(theta).complaints()
        assert complaints == (
            [
                "the regions of level 2 hardly move: by 0.49 pixels of its map over images at most "
                "(standard deviation), expected at least 0.5"
            ]
            if dead
            else []
        )


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_dead_spatial_attention_is_named(constant):
    spatial = np.random.default_rng(4).uniform(0, 2, (50, 3, *MAP, 1))
    spatial[:40, 2] = constant
    (sentence,) = fed(thetas(), spatial).complaints()
    assert sentence.startswith("spatial attention of level 3 is dead: constant in 80% of the images")


def test_spatial_attention_that_is_all_but_flat_is_dead():
    spatial = 1 + 5e-4 * np.random.default_rng(5).standard_normal((50, 3, *MAP, 1))
    assert len(fed(thetas(), spatial).complaints()) == 3


def test_regions_that_are_fixed_by_design_give_no_complaint():
    strips = np.tile(np.array([[0, -0.97], [0, -0.25], [0, 0.25], [0, 0.97]]), (50, 3, 1, 1))
    assert len(fed(strips).complaints()) == 6 + 3
    statistics = fed(strips, learned=False)
    assert statistics.complaints() == []
    np.testing.assert_allclose(statistics.to_dict()["mean"], strips[0], atol=1e-6)
