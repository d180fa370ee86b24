"""Group convolutions against loops over groups, condensing against a literal implementation."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from han_tf.layers.groups import GroupConv, IndexedGroupConv, LearnedGroupConv, channel_shuffle

CHANNELS, FILTERS, GROUPS, CONDENSATION = 12, 8, 2, 4


def random_maps(channels, seed=0, batch=2):
    return tf.constant(np.random.default_rng(seed).normal(size=(batch, 5, 4, channels)), tf.float32)


@pytest.fixture
def learned():
    tf.keras.utils.set_random_seed(0)
    layer = LearnedGroupConv(FILTERS, GROUPS, CONDENSATION)
    layer(random_maps(CHANNELS))
    return layer


def literal_condensing(kernel, kept, count):
    """The connections that one stage leaves: it removes the ``count`` smallest of each group.

    ``kernel`` is ``[channels, filters]``, ``kept`` the channels of each group.
    """
    size = FILTERS // GROUPS
    left = []
    for group, channels in enumerate(kept):
        weights = {
            channel: sum(abs(kernel[channel, group * size + number]) for number in range(size)) / size
            for channel in channels
        }
        gone = sorted(channels, key=weights.get)[:count]
        left.append([channel for channel in channels if channel not in gone])
    return left


def kept_channels(layer):
    return [list(np.flatnonzero(column)) for column in layer.mask.numpy().T]


@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (12, 4), (6, 1), (6, 6), (60, 3)])
def test_channel_shuffle_is_the_permutation_of_the_paper(channels, groups):
    """Channel c of group g becomes the g-th channel of the c-th set of one channel per group."""
    inputs = random_maps(channels).numpy()
    expected = np.empty_like(inputs)
    for group in range(groups):
        for number in range(channels // groups):
            expected[..., number * groups + group] = inputs[..., group * (channels // groups) + number]
    np.testing.assert_array_equal(channel_shuffle(tf.constant(inputs), groups), expected)


@pytest.mark.parametrize(("kernel_size", "groups"), [(1, 3), (3, 3), (3, 1)])
def test_group_conv_is_a_conv_per_group(kernel_size, groups):
    inputs = random_maps(12)
    layer = GroupConv(6, kernel_size, groups)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
        objective = tf.reduce_sum(outputs**2)
    gradients = tape.gradient(objective, [inputs, layer.kernel])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        parts = zip(tf.split(inputs, groups, -1), tf.split(layer.kernel, groups, -1))
        expected = tf.concat([tf.nn.conv2d(part, kernel, 1, "SAME") for part, kernel in parts], -1)
        objective = tf.reduce_sum(expected**2)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    for ours, theirs in zip(gradients, tape.gradient(objective, [inputs, layer.kernel])):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


ONE_STEP = """
import sys

import numpy as np
import tensorflow as tf

from han_tf.layers.groups import GroupConv, grouped_kernel_has_gradient

given = np.load(sys.argv[1])
layer = GroupConv(6, 3, 3)
layer.build(given["inputs"].shape)
layer.kernel.assign(given["kernel"])
inputs = tf.constant(given["inputs"])


@tf.function
def step(inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
        objective = tf.reduce_sum(outputs**2)
    return outputs, *tape.gradient(objective, [inputs, layer.kernel])


np.savez(sys.argv[2], *step(inputs), own_kernel=grouped_kernel_has_gradient(tf.float32))
"""


def test_group_conv_is_the_same_with_and_without_onednn(tmp_path):
    """Without oneDNN, the kernel of TensorFlow 2.15 to 2.21 has no gradient on a CPU."""
    rng = np.random.default_rng(0)
    kernel, inputs = rng.normal(size=(3, 3, 4, 6)), rng.normal(size=(2, 5, 4, 12))
    np.savez(tmp_path / "given.npz", kernel=kernel.astype(np.float32), inputs=inputs.astype(np.float32))
    made = {}
    for switch in "01":
        files = [str(tmp_path / name) for name in ("given.npz", f"{switch}.npz")]
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": switch}
        subprocess.run([sys.executable, "-c", ONE_STEP, *files], env=environment, check=True)
        with np.load(files[1]) as arrays:
            made[switch] = dict(arrays)
    for name in ("arr_0", "arr_1", "arr_2"):
        np.testing.assert_allclose(made["0"][name], made["1"][name], rtol=1e-4, atol=1e-4)
    if platform.machine() in ("x86_64", "AMD64") and not tf.config.list_physical_devices("GPU"):
        assert (bool(made["0"]["own_kernel"]), bool(made["1"]["own_kernel"])) == (False, True)


def test_with_all_connections_it_is_a_plain_conv(learned):
    inputs = random_maps(CHANNELS, 1)
    plain = tf.keras.layers.Conv2D(FILTERS, 1, use_bias=False)
    plain.build(inputs.shape)
    plain.set_weights([learned.kernel.numpy()])
    np.testing.assert_allclose(learned(inputs), plain(inputs), atol=1e-6)


def test_each_stage_removes_what_a_literal_implementation_removes(learned):
    kept = [list(range(CHANNELS))] * GROUPS
    for stage in range(1, CONDENSATION):
        # Changes the weights between the stages, as training does.
        kernel = np.random.default_rng(stage).normal(size=(1, 1, CHANNELS, FILTERS)).astype(np.float32)
        learned.kernel.assign(kernel)
        kept = literal_condensing(kernel[0, 0], kept, CHANNELS // CONDENSATION)
        learned.condense(stage)
        assert kept_channels(learned) == kept
        assert [len(channels) for channels in kept] == [CHANNELS * (CONDENSATION - stage) // CONDENSATION] * GROUPS


def test_groups_choose_for_themselves(learned):
    learned.condense(CONDENSATION - 1)
    first, second = kept_channels(learned)
    assert first != second


def test_several_stages_at_once_are_as_good_as_one_after_another(learned):
    twin = LearnedGroupConv(FILTERS, GROUPS, CONDENSATION)
    twin(random_maps(CHANNELS))
    twin.set_weights(learned.get_weights())
    for stage in range(1, CONDENSATION):
        twin.condense(stage)
    learned.condense(CONDENSATION - 1)
    assert kept_channels(twin) == kept_channels(learned)


def test_what_is_removed_learns_nothing_more(learned):
    learned.condense(2)
    with tf.GradientTape() as tape:
        objective = tf.reduce_sum(learned(random_maps(CHANNELS)) ** 2) + learned.group_lasso()
    gradient = np.abs(tape.gradient(objective, learned.kernel)[0, 0])
    there = np.repeat(learned.mask.numpy(), FILTERS // GROUPS, axis=1)
    assert (gradient[there == 0] == 0).all()
    assert (gradient[there == 1] > 0).all()


def test_group_lasso_sums_the_norms_of_connections(learned):
    learned.condense(1)
    kernel, size = learned.kernel.numpy()[0, 0], FILTERS // GROUPS
    expected = sum(
        np.linalg.norm(kernel[channel, group * size : (group + 1) * size])
        for group, channels in enumerate(kept_channels(learned))
        for channel in channels
    )
    assert float(learned.group_lasso()) == pytest.approx(expected, rel=1e-5)


def test_group_lasso_of_zero_weights_has_a_derivative(learned):
    learned.kernel.assign(tf.zeros_like(learned.kernel))
    with tf.GradientTape() as tape:
        lasso = learned.group_lasso()
    assert np.isfinite(tape.gradient(lasso, learned.kernel)).all()


@pytest.mark.parametrize("condensation", [1, 2, 4])
def test_index_layer_and_group_conv_are_the_condensed_layer(condensation):
    inputs = random_maps(CHANNELS, 2)
    learned = LearnedGroupConv(FILTERS, GROUPS, condensation)
    learned(inputs)
    learned.condense(condensation - 1)
    deployed = IndexedGroupConv(FILTERS, GROUPS, condensation)
    deployed(inputs)
    deployed.set_weights(learned.condensed())
    np.testing.assert_allclose(deployed(inputs), learned(inputs), atol=1e-5)
    assert deployed.conv.kernel.shape == (1, 1, CHANNELS // condensation, FILTERS)
    assert deployed.index.numpy().tolist() == np.concatenate(kept_channels(learned)).tolist()


def test_an_unfinished_layer_cannot_be_deployed(learned):
    learned.condense(CONDENSATION - 2)
    with pytest.raises(ValueError, match="has 6 connections per group, expected 3"):
        learned.condensed()


def test_tflite_gives_the_same():
    """Shuffling and indexing are converted to reshape, transpose and gather."""
    learned, conv = IndexedGroupConv(FILTERS, GROUPS, CONDENSATION), GroupConv(6, 3, GROUPS)

    @tf.function(input_signature=[tf.TensorSpec([1, 5, 4, CHANNELS])])
    def chain(inputs):
        return conv(channel_shuffle(learned(inputs), GROUPS))

    inputs = random_maps(CHANNELS, batch=1)
    chain(inputs)
    learned.index.assign([11, 2, 3, 7, 5, 0])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([chain.get_concrete_function()], learned)
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs)
    interpreter.invoke()
    converted = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(converted, chain(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedGroupConv(9, 2, 2), "filters must be a multiple of the groups 2, got 9"),
        (lambda: LearnedGroupConv(8, 2, 5), "channels must be a multiple of the condensation factor 5, got 12"),
        (lambda: IndexedGroupConv(8, 2, 5), "channels must be a multiple of the condensation factor 5, got 12"),
        (lambda: GroupConv(9, groups=2), "filters must be evenly divisible by the number of groups"),
        (lambda: GroupConv(10, groups=5), "number of input channels must be evenly divisible by the number of groups"),
    ],
)
def test_sizes_that_do_not_divide(make, message):
    with pytest.raises(ValueError, match=message):
        make()(random_maps(CHANNELS))
