"""The attention modules have the paper's counts of weights and ranges of values."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.layers.attention import (
    ChannelAttention,
    FixedRegions,
    HardAttention,
    HarmoniousAttention,
    SoftAttention,
    SpatialAttention,
    stacked_strips,
)

CHANNELS = 64


@pytest.fixture
def features():
    return tf.constant(np.random.default_rng(0).normal(size=(3, 20, 8, CHANNELS)), tf.float32)


def signature_of(features):
    return tf.reduce_mean(features, axis=[1, 2], keepdims=True)


def weights(layer):
    """Number of convolution and FC weights, without biases and those of batch norm."""
    return sum(int(np.prod(v.shape)) for v in layer.trainable_variables if "kernel" in v.name)


def test_spatial_attention_has_10_weights_and_one_map_for_all_channels(features):
    layer = SpatialAttention()
    assert layer(features).shape == (3, 20, 8, 1)
    assert weights(layer) == 9 + 1
    assert not any("bias" in v.name for v in layer.trainable_variables)


def test_spatial_attention_sees_only_the_mean_over_channels(features):
    layer = SpatialAttention()
    shuffled = tf.gather(features, np.random.default_rng(1).permutation(CHANNELS), axis=-1)
    np.testing.assert_allclose(layer(features), layer(shuffled), atol=1e-6)


@pytest.mark.parametrize("reduction", [8, 16])
def test_channel_attention_has_2c2_over_r_weights(features, reduction):
    layer = ChannelAttention(reduction)
    excitation = layer(signature_of(features))
    assert excitation.shape == (3, 1, 1, CHANNELS)
    assert weights(layer) == 2 * CHANNELS**2 // reduction
    assert excitation.numpy().min() >= 0


def test_channel_attention_is_equation_6(features):
    layer = ChannelAttention()
    signature = signature_of(features)
    layer(signature)
    w1, w2 = (k.numpy()[0, 0] for k in (layer.squeeze.conv.kernel, layer.excite.conv.kernel))
    norm = 1 / np.sqrt(1 + 1e-3)  # batch norm at its initial statistics
    squeezed = np.maximum(signature.numpy()[:, 0, 0] @ w1 * norm, 0)
    expected = np.maximum(squeezed @ w2 * norm, 0)
    np.testing.assert_allclose(layer(signature)[:, 0, 0], expected, rtol=1e-4, atol=1e-6)


def test_channel_attention_refuses_channels_that_the_reduction_does_not_divide():
    with pytest.raises(ValueError, match="channels must be a multiple of the reduction 16, got 24"):
        ChannelAttention()(tf.zeros([1, 1, 1, 24]))


@pytest.mark.parametrize(("spatial", "channel"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("training", [True, False])
def test_soft_map_lies_in_one_half_to_one(features, spatial, channel, training):
    layer = SoftAttention(spatial, channel)
    soft = layer(features, signature_of(features), training=training)[0].numpy()
    assert soft.shape == features.shape
    assert soft.min() >= 0.5
    assert soft.max() < 1
    if training:  # with untrained statistics the ReLU may output 0 everywhere, and the map is one half
        assert soft.std() > 0


def test_blend_has_c2_weights(features):
    layer = SoftAttention()
    layer(features, signature_of(features))
    assert weights(layer.blend) == CHANNELS**2


def test_soft_attention_is_the_product_of_its_factors(features):
    layer = SoftAttention()
    signature = signature_of(features)
    soft, spatial = layer(features, signature)
    np.testing.assert_allclose(spatial, layer.spatial(features), atol=1e-6)
    product = spatial * layer.channel(signature)  # eq. (3)
    np.testing.assert_allclose(soft, tf.sigmoid(layer.blend(product)), atol=1e-6)


def test_soft_attention_with_nothing_in_it_is_refused():
    with pytest.raises(ValueError, match="needs spatial or channel attention"):
        SoftAttention(spatial=False, channel=False)


def test_hard_attention_has_2tc_weights_and_starts_at_four_strips(features):
    layer = HardAttention(4)
    theta = layer(signature_of(features)[:, 0, 0])
    assert weights(layer) == 2 * 4 * CHANNELS
    strips = [(0, -0.75), (0, -0.25), (0, 0.25), (0, 0.75)]
    np.testing.assert_allclose(theta, [strips] * 3, atol=1e-6)


def test_theta_is_bounded_by_tanh(features):
    layer = HardAttention(4)
    signature = signature_of(features)[:, 0, 0]
    layer(signature)
    layer.localisation.kernel.assign(tf.random.stateless_normal(layer.localisation.kernel.shape, [1, 2]) * 100)
    assert np.abs(layer(signature)).max() <= 1
    assert layer(signature).numpy().std(axis=0).max() > 0.1


@pytest.mark.parametrize("regions", [1, 2, 4, 7])
def test_strips_divide_the_height_evenly(regions):
    strips = stacked_strips(regions)
    assert np.all(strips[:, 0] == 0)
    np.testing.assert_allclose(np.diff(strips[:, 1]), 2 / regions, atol=1e-6)
    assert strips[0, 1] - -1 == pytest.approx(1 - strips[-1, 1])


def test_fixed_regions_are_the_strips_whatever_the_image(features):
    layer = FixedRegions(4)
    np.testing.assert_array_equal(layer(signature_of(features)[:, 0, 0]), [stacked_strips(4)] * 3)
    assert not layer.variables


def test_harmonious_attention_multiplies_its_input_by_the_soft_map(features):
    attention = HarmoniousAttention()(features)
    np.testing.assert_allclose(attention.attended, features * attention.soft, atol=1e-6)
    assert attention.theta.shape == (3, 4, 2)


def test_soft_attention_off_leaves_the_input_as_it_is(features):
    attention = HarmoniousAttention(spatial=False, channel=False)(features)
    assert attention.soft is None
    np.testing.assert_array_equal(attention.attended, features)


def test_spatial_attention_starts_where_the_features_are_small(features):
    """An untrained S in training mode is the negated mean activation: smoothed, then normalised and cut at 0, twice."""
    spatial = SpatialAttention()(features, training=True).numpy()[..., 0]

    def norm_and_relu(values):
        return np.maximum((values - values.mean()) / np.sqrt(values.var() + 1e-3), 0)

    padded = np.pad(features.numpy().mean(axis=-1), ((0, 0), (0, 1), (0, 1)))  # SAME at stride 2 pads only at the end
    sums = sum(padded[:, y : y + 19 : 2, x : x + 7 : 2] for y in range(3) for x in range(3))
    resized = tf.image.resize(norm_and_relu(-sums / 3)[..., None], (20, 8)).numpy()[..., 0]
    np.testing.assert_allclose(spatial, norm_and_relu(resized), atol=1e-4)
