"""HAN as a whole: sizes, sharing, switches, features."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.errors import UserError
from han_tf.models import MODELS, create_model
from han_tf.models.han import HAN, joint_feature


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
    # In training mode, since before any training the moving statistics let next to nothing through.
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
    """Local blocks have the weights of one stream, and swapping two streams' regions swaps their features."""
    for regions in (1, 4):
        model = HAN(regions=regions)
        model(random_images(1))
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
    model = HAN(input_size=size)
    branches = model.branches(random_images(2, size), training=True)
    assert branches.local_feature.shape == (2, 512)
    (map_height, map_width), (height, width) = model.map_sizes[0], model.region_sizes[0]
    assert height == pytest.approx(0.3 * map_height, abs=0.5)
    assert width == pytest.approx(0.875 * map_width, abs=0.5)


def test_wrong_image_size_is_refused(small):
    with pytest.raises(ValueError, match=r"must be \[batch, 160, 64, 3\], got \(1, 128, 64, 3\)"):
        small(random_images(1, (128, 64)))


@pytest.mark.parametrize("dim", [128, 1024])
def test_feature_dimension_is_split_evenly(dim):
    branches = HAN(feature_dim=dim).branches(random_images(1))
    assert branches.global_feature.shape[1] == branches.local_feature.shape[1] == dim // 2


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_eight_settings_of_table_9(spatial, channel, hard):
    model = HAN(spatial=spatial, channel=channel, hard=hard)
    branches = model.branches(random_images(2), training=True)
    variables = " ".join(v.name for v in model.trainable_variables)
    assert ("/spatial/" in variables) == spatial
    assert ("/channel/" in variables) == channel
    assert ("/localisation/" in variables) == hard
    assert bool(model.localisation_variables) == hard
    for level in branches.attention:
        assert (level.soft is None) == (not spatial and not channel)
        if not hard:
            np.testing.assert_allclose(level.theta[:, :, 1], [[-0.75, -0.25, 0.25, 0.75]] * 2)


def test_without_interaction_later_levels_get_no_gradient_from_the_local_branch():
    """Table 10: eq. (9)'s second sum is gone beyond level 1's input."""
    images = random_images(4)
    for interaction, reached in ((True, True), (False, False)):
        tf.keras.utils.set_random_seed(0)
        model = HAN(interaction=interaction)
        with tf.GradientTape() as tape:
            objective = tf.reduce_sum(model.branches(images, training=True).local_feature ** 2)
        kernel = model.global_blocks[0].units[0].normal.conv.kernel
        gradient = tape.gradient(objective, kernel)
        if reached:
            assert np.abs(gradient).max() > 0
        else:
            # θ of level 1 comes from global block 1; its zero kernel passes nothing back at the start.
            assert gradient is None or np.abs(gradient).max() == 0


def test_interaction_adds_crops_of_what_the_next_global_block_gets():
    """Equation (8), written out by hand for level 2."""
    tf.keras.utils.set_random_seed(1)
    model = HAN()
    images = tf.constant(random_images(1), tf.float32)
    model(images)
    pixels = (images - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    stem = model.stem(pixels)
    first = model.attentions[0](model.global_blocks[0](stem))
    local = model.local_blocks[0](tf.concat([stem[:, top : top + 24, 2:30] for top in (18, 38)], axis=0))
    crops = tf.concat([first.attended[:, top : top + 12, 1:15] for top in (9, 19)], axis=0)
    expected = model.local_blocks[1](local + crops)
    # The middle strips of the full network are regions 2 and 3, whole-pixel slices at the start.
    streams = model.crops[0](stem, first.theta)[0]
    added = model.crops[1](first.attended, first.theta)[0]
    ours = model.local_blocks[1](model.local_blocks[0](streams) + added)
    np.testing.assert_allclose(ours[1:3], expected, atol=1e-3)


def test_classifiers_have_no_bias_and_one_output_per_identity(small):
    branches = small.branches(random_images(2))
    for logits in small.classify(branches):
        assert logits.shape == (2, 10)
    assert small.global_classifier.bias is None


def test_a_network_without_classifiers_says_so():
    model = create_model("han_small")
    with pytest.raises(ValueError, match="num_classes 0"):
        model.classify(model.branches(random_images(1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "vgg"}, "unit must be one of"),
        ({"feature_dim": 7}, "feature_dim must be even and positive, got 7"),
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"input_size": (8, 64)}, "input_size must be at least 16"),
        ({"region_scale": (0, 1)}, r"region_scale must lie in \(0, 1\]"),
        ({"breadth": 3}, "breadth"),
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
    model = HAN(strides=(1, 2, 1), widths=(32, 64), regions=3, hard=False)
    twin = HAN(**model.get_config())
    model(random_images(1)), twin(random_images(1))
    assert [v.shape for v in model.variables] == [v.shape for v in twin.variables]
