"""HAN as a whole: sizes, sharing, switches, features."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.layers.units import DepthwiseUnit, InceptionA, InceptionB, ResidualUnit
from han_tf.models import MODELS, create_model
from han_tf.models.han import HAN
from han_tf.models.network import joint_feature

SIZE = (48, 32)
SMALL = {"input_size": SIZE, "widths": (16, 32, 48), "strides": (2,)}
"""Arguments of a HAN that is built and run fast."""


@pytest.fixture(scope="module")
def small():
    tf.keras.utils.set_random_seed(0)
    return create_model("han_small", num_classes=10)


def random_images(batch, size=(160, 64), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3)).astype(np.uint8)


def test_map_and_region_sizes_are_the_papers(small):
    assert small.map_sizes == [(80, 32), (40, 16), (20, 8)]
    assert small.region_sizes == [(24, 28), (12, 14), (6, 7)]


def test_features_have_unit_norm_per_branch(small):
    # In training mode: with untrained moving statistics the activations nearly vanish.
    features = small(random_images(3), training=True).numpy()
    assert features.shape == (3, 1024)
    assert features.dtype == np.float32
    for half in (features[:, :512], features[:, 512:]):
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)


def test_call_is_the_joint_feature_of_the_branches(small):
    images = random_images(2)
    np.testing.assert_array_equal(small(images), joint_feature(small.branches(images)))


def test_uint8_and_float_images_mean_the_same(small):
    images = random_images(2)
    np.testing.assert_array_equal(small(images), small(images.astype(np.float32)))


def test_attention_of_all_levels_comes_with_the_forward_pass(small):
    attention = small.branches(random_images(2)).attention
    assert [level.soft.shape for level in attention] == [(2, 40, 16, 128), (2, 20, 8, 256), (2, 10, 4, 384)]
    for level in attention:
        assert level.soft.numpy().min() >= 0.5
        assert level.soft.numpy().max() < 1
        # Strips of 48 rows around 20, 60, 100 and 140; 56 columns around the middle.
        expected = [[4, centre - 24, 60, centre + 24] for centre in (20, 60, 100, 140)]
        np.testing.assert_allclose(level.boxes[0], expected, atol=1e-3)


def test_local_weights_are_shared_by_the_streams(small):
    """A local block has as many weights as one stream needs."""
    for regions in (1, 4):
        model = HAN(regions=regions, strides=[2], input_size=SIZE)
        model(random_images(1, SIZE))
        counts = [sum(int(np.prod(v.shape)) for v in block.trainable_variables) for block in model.local_blocks]
        assert counts == [16672, 76352, 188256]


def test_one_shared_first_convolution(small):
    assert small.stem.conv.kernel.shape == (3, 3, 3, 32)


@pytest.mark.parametrize(
    ("name", "strides"), [("han_small", [2, 1, 1]), ("han_medium", [1, 2, 1]), ("han_large", [1, 1, 2])]
)
def test_strides_are_table_1(name, strides):
    model = create_model(name)
    for block in model.global_blocks:
        assert [unit.separable.depthwise.strides[0] for unit in block.units] == strides


def test_nine_global_and_three_local_units(small):
    assert sum(len(block.units) for block in small.global_blocks) == 9
    assert len(small.local_blocks) == 3


@pytest.mark.parametrize("size", [(256, 128), (128, 64), (224, 224), (150, 70)])
def test_other_input_sizes_work_and_regions_follow(size):
    model = HAN(input_size=size, strides=[2], widths=(16, 32, 48))
    branches = model.branches(random_images(2, size), training=True)
    assert branches.features["local"].shape == (2, 512)
    (map_height, map_width), (height, width) = model.map_sizes[0], model.region_sizes[0]
    assert height == pytest.approx(0.3 * map_height, abs=0.5)
    assert width == pytest.approx(0.875 * map_width, abs=0.5)


def test_wrong_image_size_is_refused(small):
    with pytest.raises(ValueError, match=r"must be \[batch, 160, 64, 3\], got \(1, 128, 64, 3\)"):
        small(random_images(1, (128, 64)))


@pytest.mark.parametrize("dim", [128, 1024])
def test_feature_dimension_is_split_evenly(dim):
    features = HAN(feature_dim=dim, **SMALL).branches(random_images(1, SIZE)).features
    assert {name: feature.shape[1] for name, feature in features.items()} == {"global": dim // 2, "local": dim // 2}


TABLE_9 = [
    dict(zip(("spatial", "channel", "hard"), switches)) for switches in itertools.product([True, False], repeat=3)
]
"""The rows of Table 9: soft spatial, soft channel and hard regional attention, on or off."""

ONE_UNIT = {"num_classes": 3, "input_size": SIZE, "strides": (2,)}
"""Arguments of a HAN with the paper's attention, and one unit in each global block: it is built and run fast."""


@pytest.fixture(scope="module", params=TABLE_9, ids=lambda row: "+".join(name for name in row if row[name]) or "none")
def row_of_table_9(request):
    tf.keras.utils.set_random_seed(0)
    return request.param, create_model("han_small", **ONE_UNIT, **request.param)


def test_what_is_off_has_no_variables(row_of_table_9):
    row, model = row_of_table_9
    variables = " ".join(v.name for v in model.trainable_variables)
    assert ("/spatial/" in variables) == row["spatial"]
    assert ("/channel/" in variables) == row["channel"]
    assert ("/blend/" in variables) == (row["spatial"] or row["channel"])
    assert ("/localisation/" in variables) == row["hard"]
    assert len(model.localisation_variables) == (6 if row["hard"] else 0)


def test_what_is_off_is_not_in_the_attention(row_of_table_9):
    row, model = row_of_table_9
    for level in model.branches(random_images(2, SIZE), training=True).attention:
        assert (level.soft is None) == (not row["spatial"] and not row["channel"])
        if not row["hard"]:
            np.testing.assert_allclose(level.theta[:, :, 0], 0)
            np.testing.assert_allclose(level.theta[:, :, 1], [[-0.75, -0.25, 0.25, 0.75]] * 2)


def attention_parameters(spatial, channel, hard):
    """Parameters by the paper's counts for each kind, plus batch norm's scale and offset and the regions' biases."""
    numbers = 0
    for c in (128, 256, 384):
        numbers += spatial * (9 + 1 + 4)
        numbers += channel * (2 * c * c // 16 + 2 * (c // 16 + c))
        numbers += (spatial or channel) * (c * c + 2 * c)
        numbers += hard * (8 * c + 8)
    return numbers


def test_rows_of_table_9_differ_by_the_parameters_of_what_is_off(row_of_table_9):
    row, model = row_of_table_9
    numbers = sum(int(np.prod(v.shape)) for attention in model.attentions for v in attention.trainable_variables)
    assert numbers == attention_parameters(**row)


def test_rows_of_table_9_are_eight_networks():
    assert len({attention_parameters(**row) for row in TABLE_9}) == 8


def assert_finite_gradients(model):
    """Checks the gradients of both branches' cross-entropies, of a network for three people."""
    labels = tf.constant([0, 1, 2, 1])
    with tf.GradientTape() as tape:
        logits = model.classify(model.branches(random_images(4, model.input_size), training=True))
        objective = tf.add_n(
            [
                tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
                for scores in logits.values()
            ]
        )
    assert np.isfinite(objective)
    for variable, gradient in zip(model.trainable_variables, tape.gradient(objective, model.trainable_variables)):
        assert gradient is not None, variable.name
        assert np.isfinite(gradient).all(), variable.name


def test_every_variable_of_a_row_of_table_9_gets_a_finite_gradient(row_of_table_9):
    _, model = row_of_table_9
    assert_finite_gradients(model)


def test_without_interaction_only_the_first_level_has_regions():
    """Table 10: the other levels have no crops and no regions, and every variable has a gradient."""
    tf.keras.utils.set_random_seed(0)
    model = create_model("han_small", **ONE_UNIT, interaction=False)
    assert_finite_gradients(model)
    first, *others = model.branches(random_images(2, SIZE)).attention
    assert first.theta.shape == (2, 4, 2)
    assert first.boxes.shape == (2, 4, 4)
    for level in others:
        assert level.soft is not None
        assert level.theta is None
        assert level.boxes is None
    assert len(model.localisation_variables) == 2
    fixed = HAN(**SMALL, interaction=False, hard=False)
    assert fixed.branches(random_images(2, SIZE)).attention[0].theta.shape == (2, 4, 2)
    assert fixed.localisation_variables == []


@functools.cache
def of_table_12(name):
    tf.keras.utils.set_random_seed(0)
    return create_model(name, num_classes=3, input_size=SIZE)


@pytest.mark.parametrize("name", ["han_large", "han_inception", "han_residual"])
def test_every_variable_of_table_12_gets_a_finite_gradient(name):
    assert_finite_gradients(of_table_12(name))


@pytest.mark.parametrize(
    ("name", "global_units", "local_unit"),
    [
        ("han_large", [DepthwiseUnit] * 3, DepthwiseUnit),
        ("han_inception", [InceptionA, InceptionB], InceptionB),
        ("han_residual", [ResidualUnit] * 2, ResidualUnit),
    ],
)
def test_units_of_table_12(name, global_units, local_unit):
    model = of_table_12(name)
    for block in model.global_blocks:
        assert [type(unit) for unit in block.units] == global_units
    assert [type(block.unit) for block in model.local_blocks] == [local_unit] * 3
    maps = [level.soft.shape[1:] for level in model.branches(random_images(1, SIZE)).attention]
    assert maps == [(12, 8, 128), (6, 4, 256), (3, 2, 384)]


def test_building_blocks_differ_in_nothing_but_the_blocks():
    """Table 12: stem, attention and heads are the same."""

    def shapes(name):
        parts = of_table_12(name).parts()
        return {part: [v.shape for v in module.variables] for part, module in parts.items() if "block" not in part}

    assert shapes("han_inception") == shapes("han_residual") == shapes("han_large")


def test_without_interaction_later_levels_get_no_gradient_from_the_local_branch():
    """Table 10: eq. (9) has no second sum beyond level 1's input."""
    images = random_images(4, SIZE)
    for interaction, reached in ((True, True), (False, False)):
        tf.keras.utils.set_random_seed(0)
        model = HAN(**SMALL, interaction=interaction)
        with tf.GradientTape() as tape:
            objective = tf.reduce_sum(model.branches(images, training=True).features["local"] ** 2)
        kernel = model.global_blocks[0].units[0].normal.conv.kernel
        gradient = tape.gradient(objective, kernel)
        if reached:
            assert np.abs(gradient).max() > 0
        else:
            # θ of level 1 comes from global block 1; at the start its kernel is zero and passes no gradient back.
            assert gradient is None or np.abs(gradient).max() == 0


@pytest.fixture
def scattered():
    """A small HAN with other regions at each level and with batch norm that lets signals through; and pixels."""
    tf.keras.utils.set_random_seed(1)
    model = HAN(input_size=(80, 40), stem_width=8, widths=(16, 32, 48), feature_dim=16)
    images = random_images(3, (80, 40))
    model.make_variables()
    norms = [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model.branches(images, training=True)
    rng = np.random.default_rng(0)
    for attend in model.attentions:
        kernel, bias = attend.hard.localisation.get_weights()
        attend.hard.localisation.set_weights([rng.normal(size=kernel.shape), rng.uniform(-1, 1, bias.shape)])
    return model, model.normalised(images)


def test_interaction_adds_crops_of_what_the_next_global_block_gets(scattered):
    """Equation (8) at all levels, stream by stream, against tensorflow-addons' resampler."""
    tfa = pytest.importorskip("tensorflow_addons", reason="TensorFlow Addons are for Python 3.10 and 3.11")
    model, pixels = scattered

    def cropped(features, shift, size):
        """Regions of ``size`` at unit spacing, with centres ``shift`` from the map's centre, in halves of the map."""
        _, height, width, _ = features.shape
        x = (shift[:, 0, None] + 1) * width / 2 - 0.5 + np.arange(size[1]) - (size[1] - 1) / 2
        y = (shift[:, 1, None] + 1) * height / 2 - 0.5 + np.arange(size[0]) - (size[0] - 1) / 2
        grid = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), axis=-1)
        return tfa.image.resampler(features, grid.astype(np.float32))

    features = model.stem(pixels)
    streams, shifts = [None] * 4, []
    for level, size in enumerate(model.region_sizes):
        attention = model.attentions[level](model.global_blocks[level](features))
        shifts.append(attention.theta.numpy())
        for stream in range(4):
            region = cropped(features, shifts[-1][:, stream], size)
            streams[stream] = model.local_blocks[level](region if level == 0 else streams[stream] + region)
        features = attention.attended
    expected = np.concatenate([stream.numpy().mean(axis=(1, 2)) for stream in streams], axis=1)
    for one, other in itertools.combinations(shifts, 2):
        assert np.abs(one - other).max() > 0.5
    np.testing.assert_allclose(model.pooled(pixels)[0]["local"], expected, atol=1e-3)


def test_swapping_the_regions_of_two_streams_swaps_their_features(scattered):
    model, pixels = scattered
    order = [2, 1, 0, 3]
    before = model.pooled(pixels)[0]["local"].numpy().reshape(3, 4, -1)
    for attend in model.attentions:
        weights = attend.hard.localisation.get_weights()
        swapped = [w.reshape(*w.shape[:-1], 4, 2)[..., order, :].reshape(w.shape) for w in weights]
        attend.hard.localisation.set_weights(swapped)
    after = model.pooled(pixels)[0]["local"].numpy().reshape(3, 4, -1)
    np.testing.assert_allclose(after, before[:, order], atol=1e-5)
    assert np.abs(before[:, 0] - before[:, 2]).max() > 0.01


def test_classifiers_have_no_bias_and_one_output_per_identity(small):
    branches = small.branches(random_images(2))
    logits = small.classify(branches)
    assert {name: scores.shape for name, scores in logits.items()} == {"global": (2, 10), "local": (2, 10)}
    assert small.global_classifier.bias is None


def test_a_network_without_classifiers_says_so():
    model = HAN(**SMALL)
    with pytest.raises(ValueError, match="num_classes 0"):
        model.classify(model.branches(random_images(1, SIZE)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "vgg"}, "unit must be one of"),
        ({"feature_dim": 7}, "feature_dim must be a positive multiple of 2, the number of branches, got 7"),
        ({"strides": (2, 2, 1)}, "strides must be a single 2 among 1s"),
        (
            {"unit": "inception", "widths": (128, 250, 384), "channel": False},
            "filters must be a multiple of 4, got 250",
        ),
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"input_size": (8, 64)}, "input_size must be at least 16"),
        ({"region_scale": (0, 1)}, r"region_scale must be two numbers that lie in \(0, 1\]"),
        ({"region_scale": (0.3,)}, r"region_scale must be two numbers .* got \(0.3,\)"),
        ({"widths": ()}, r"widths must be one or more, a level for each, got \(\)"),
        ({"widths": (100, 200, 300)}, "widths must be multiples of 16 with channel attention, got"),
        ({"input_size": (64,)}, r"input_size must be height and width, got \(64,\)"),
        ({"breadth": 3}, "breadth"),
        ({"stem_width": np.inf}, "cannot convert float infinity to integer"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        create_model("han_small", **arguments)
    assert "\n" not in str(caught.value)


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(UserError, match=", ".join(MODELS)):
        create_model("han_huge")


def test_config_makes_the_same_network():
    model = HAN(strides=(1, 2, 1), widths=(32, 64), regions=3, hard=False, input_size=SIZE)
    twin = HAN(**model.get_config())
    model(random_images(1, SIZE)), twin(random_images(1, SIZE))
    assert [v.shape for v in model.variables] == [v.shape for v in twin.variables]
