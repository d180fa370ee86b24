"""The building blocks of Table 12: parameters counted by hand, shapes, strides, shortcuts and pooling."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.layers.blocks import BLOCKS, GlobalBlock, LocalBlock
from han_tf.layers.units import ConvBN, ConvBNReLU, InceptionA, InceptionB, ResidualUnit


def random_map(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def parameters(layer, channels):
    layer(random_map(1, 8, 6, channels))
    return sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)


def conv(inputs, filters, size=1):
    """Weights of a convolution, scale and offset of its batch norm."""
    return size**2 * inputs * filters + 2 * filters


def inception_a(c, d):
    w = d // 4
    return 3 * (conv(c, w) + conv(w, w, 3)) + conv(c, w)


def inception_b(c, d):
    w = d // 4
    return (conv(c, w) + conv(w, w, 3)) + (conv(c, w) + 2 * conv(w, w, 3)) + conv(c, 2 * w)


def residual(c, d, projected):
    w = d // 2
    return conv(c, w) + conv(w, w, 3) + conv(w, d) + projected * conv(c, d)


def depthwise(c, d, w):
    return conv(c, w) + 9 * w + conv(w, d)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (InceptionA(128), inception_a(32, 128)),
        (InceptionB(128), inception_b(32, 128)),
        (ResidualUnit(128, 1), residual(32, 128, True)),
        (ResidualUnit(32, 2), residual(32, 32, True)),
        (ResidualUnit(32, 1), residual(32, 32, False)),
        (GlobalBlock(128), depthwise(32, 128, 64) + 2 * depthwise(128, 128, 64)),
        (GlobalBlock(128, unit="inception"), inception_a(32, 128) + inception_b(128, 128)),
        (GlobalBlock(128, unit="residual"), residual(32, 128, True) + residual(128, 128, True)),
        (GlobalBlock(32, unit="residual"), residual(32, 32, False) + residual(32, 32, True)),
        (LocalBlock(128), depthwise(32, 128, 96)),
        (GlobalBlock(128, unit="depthwise_norm"), depthwise(32, 128, 64) + 2 * depthwise(128, 128, 64) + 3 * 2 * 64),
        (LocalBlock(128, unit="depthwise_norm"), depthwise(32, 128, 96) + 2 * 96),
        (LocalBlock(128, unit="inception"), inception_b(32, 128)),
        (LocalBlock(128, unit="residual"), residual(32, 128, True)),
    ],
)
def test_parameters_by_hand(layer, expected):
    assert parameters(layer, 32) == expected


def test_the_sums_by_hand_in_numbers():
    """The first level of Table 12's networks: c = 32, d = 128."""
    assert inception_a(32, 128) == 3 * (1024 + 64 + 9216 + 64) + 1024 + 64
    assert inception_b(32, 128) == 1088 + 9280 + 1088 + 2 * 9280 + 2048 + 128
    assert residual(32, 128, True) == 2048 + 128 + 36864 + 128 + 8192 + 256 + 4096 + 256


@pytest.mark.parametrize("training", [False, True])
def test_norm_between_is_norm_and_relu_of_the_depthwise_convolution(training):
    layer, features = ConvBNReLU(8, 3, 2, depthwise_separable=True, norm_between=True), random_map(4, 8, 6, 5)
    layer(features)
    for variable in layer.variables:
        variable.assign(random_map(*variable.shape, seed=3) ** 2)

    def normalised(x, norm):
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        if training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return np.maximum(norm.gamma * (x - mean) / np.sqrt(variance + norm.epsilon) + norm.beta, 0)

    padded = np.pad(features.numpy(), ((0, 0), (0, 1), (0, 1), (0, 0)))
    kernel, pointwise = layer.depthwise.depthwise_kernel.numpy()[..., 0], layer.conv.kernel.numpy()[0, 0]
    windows = [padded[:, y : y + 7 : 2, x : x + 5 : 2] * kernel[y, x] for y in range(3) for x in range(3)]
    expected = normalised(normalised(sum(windows), layer.depthwise_norm) @ pointwise, layer.norm)
    outputs = layer(features, training=training)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("unit", BLOCKS)
@pytest.mark.parametrize("block", [GlobalBlock, LocalBlock])
@pytest.mark.parametrize(("size", "halved"), [((8, 6), (4, 3)), ((7, 5), (4, 3)), ((3, 4), (2, 2))])
def test_a_block_halves_the_map_and_rounds_up(unit, block, size, halved):
    output = block(16, unit=unit)(random_map(2, *size, 12))
    assert output.shape == (2, *halved, 16)
    assert output.numpy().min() >= 0


@pytest.mark.parametrize(
    ("unit", "strides"),
    [
        ("depthwise", [2, 1, 1]),
        ("depthwise_norm", [2, 1, 1]),
        ("inception", [1, 2]),
        ("residual", [1, 2]),
    ],
)
def test_strides_of_the_units(unit, strides):
    """Checks which of the units halves the map."""
    block, features = GlobalBlock(16, unit=unit), random_map(1, 8, 8, 12)
    block(features)
    found = []
    for layer in block.units:
        height = features.shape[1]
        features = layer(features)
        found.append(height // features.shape[1])
    assert found == strides


@pytest.mark.parametrize("unit", BLOCKS)
def test_other_strides_move_the_halving_and_set_the_number_of_units(unit):
    block = GlobalBlock(16, (1, 1, 1, 2), unit)
    assert block(random_map(1, 8, 6, 12)).shape == (1, 4, 3, 16)
    assert len(block.units) == 4


@pytest.mark.parametrize("strides", [(), (1, 1), (2, 2), (1, 4), (0, 2), (-1, -2)])
def test_strides_that_do_not_halve_are_refused(strides):
    with pytest.raises(ValueError, match=r"strides must be a single 2 among 1s, got \("):
        GlobalBlock(16, strides)


@pytest.mark.parametrize("layer", [InceptionA, InceptionB])
def test_filters_that_cannot_be_shared_out_are_refused(layer):
    with pytest.raises(ValueError, match="filters must be a multiple of 4, got 18"):
        layer(18)


def test_relu_follows_batch_norm_only_where_it_should():
    features = random_map(4, 6, 5, 3)
    plain, rectified = ConvBN(7, 3, 2), ConvBNReLU(7, 3, 2)
    plain(features), rectified(features)
    rectified.set_weights(plain.get_weights())
    assert plain(features).numpy().min() < 0
    np.testing.assert_array_equal(rectified(features), np.maximum(plain(features), 0))


@pytest.mark.parametrize(
    ("filters", "strides", "projected"), [(12, 1, False), (12, 2, True), (16, 1, True), (16, 2, True)]
)
def test_the_shortcut_is_projected_only_where_the_shape_changes(filters, strides, projected):
    """If the last batch norm's scale is 0, the output is ReLU(shortcut)."""
    unit, features = ResidualUnit(filters, strides), random_map(2, 7, 5, 12)
    unit(features)
    assert (unit.projection is not None) == projected
    unit.expand.norm.gamma.assign(tf.zeros(filters))
    shortcut = features.numpy()
    if projected:
        kernel = unit.projection.conv.kernel.numpy()[0, 0]
        # A new batch norm divides by sqrt(1 + epsilon).
        shortcut = shortcut[:, ::strides, ::strides] @ kernel / np.sqrt(1 + unit.projection.norm.epsilon)
    np.testing.assert_allclose(unit(features), np.maximum(shortcut, 0), atol=1e-5)


def test_relu_comes_after_the_addition():
    """A bottleneck of −100 everywhere makes the sum negative: there is no ReLU before it."""
    unit, features = ResidualUnit(12, 1), random_map(2, 4, 4, 12)
    unit(features)
    unit.expand.norm.gamma.assign(tf.zeros(12))
    unit.expand.norm.beta.assign(tf.fill([12], -100.0))
    np.testing.assert_array_equal(unit(features), 0)


def pooled(features, strides, pool):
    """3×3 pooling in loops. As in TensorFlow's SAME, an odd pixel of padding is at the end; padding is not pooled."""
    _, height, width, _ = features.shape
    rows, columns = -(-height // strides), -(-width // strides)
    top = max((rows - 1) * strides + 3 - height, 0) // 2
    left = max((columns - 1) * strides + 3 - width, 0) // 2
    output = np.empty([len(features), rows, columns, features.shape[3]], np.float32)
    for row in range(rows):
        for column in range(columns):
            y, x = row * strides - top, column * strides - left
            window = features[:, max(y, 0) : y + 3, max(x, 0) : x + 3]
            output[:, row, column] = pool(window, axis=(1, 2))
    return output


@pytest.mark.parametrize(
    ("make", "strides", "pool", "channels"), [(InceptionA, 1, np.mean, 4), (InceptionB, 2, np.max, 8)]
)
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_the_last_stream_pools(make, strides, pool, channels, size):
    unit, features = make(16), random_map(2, *size, 12)
    output = unit(features)
    expected = pooled(features.numpy(), strides, pool) @ unit.pooled.conv.kernel.numpy()[0, 0]
    expected = np.maximum(expected / np.sqrt(1 + unit.pooled.norm.epsilon), 0)
    np.testing.assert_allclose(output[..., -channels:], expected, atol=1e-5)


def receptive_field(unit, channels):
    """Height of the input window on which an output pixel depends, for the channels of one stream."""
    features = tf.Variable(random_map(1, 17, 17, 8))
    unit(features)
    for layer in unit.submodules:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.beta.assign(tf.fill(layer.beta.shape, 50.0))  # keeps every ReLU open
    with tf.GradientTape() as tape:
        output = unit(features)
        centre = tf.reduce_sum(output[0, output.shape[1] // 2, output.shape[2] // 2, channels])
    seen = np.abs(tape.gradient(centre, features)[0]).sum(axis=(1, 2)) > 0
    rows = np.flatnonzero(seen)
    return rows[-1] - rows[0] + 1


def test_streams_see_as_far_as_their_convolutions():
    """A: three streams of 3 pixels. B: one 3×3 conv; two of them, the second of stride 2."""
    assert [receptive_field(InceptionA(16), slice(4 * n, 4 * n + 4)) for n in range(4)] == [3, 3, 3, 3]
    assert [receptive_field(InceptionB(16), slice(4 * n, 4 * n + 4)) for n in range(2)] == [3, 5]
