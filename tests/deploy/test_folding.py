"""Folding batch norm and the other changes of the exported graph do not change the features."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.deploy.folding import fold_batch_norm
from han_tf.deploy.graph import GatheredCrop, deployment_function
from han_tf.layers.crop import AffineCrop
from han_tf.models import create_deployed, create_model
from tests.conftest import TINY_ARGS

SIZE = (48, 32)


def trained_looking(model, seed=0):
    """Gives norms and localisation values as after training; the initial ones would hide mistakes."""
    rng = np.random.default_rng(seed)
    norms = [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
        for weight, mean in ((layer.gamma, 1), (layer.beta, 0.1)):
            if weight is not None:
                weight.assign(rng.normal(mean, 0.2, weight.shape))
    model(images(8), training=True)
    for variable in model.localisation_variables:
        variable.assign_add(rng.normal(0, 0.05, variable.shape))
    return model


def images(count=3):
    """Returns images with a different colour in each quarter."""
    colours = np.random.default_rng(1).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return colours.repeat(SIZE[0] // 2, axis=1).repeat(SIZE[1] // 2, axis=2)


@pytest.mark.parametrize(
    ("name", "arguments", "folded"),
    [
        ("han_small", {}, (42, 0)),
        ("han_small", {"unit": "depthwise_norm"}, (54, 0)),
        ("mobilenet", {}, (28, 0)),
        # Its norms stand before the convolutions, and the stem's output is also concatenated.
        ("condensenet", {}, (1, 73)),
    ],
)
def test_a_folded_network_is_the_original(name, arguments, folded):
    model = trained_looking(create_deployed(name, input_size=SIZE, **arguments))
    expected = model(images()).numpy()
    assert fold_batch_norm(model) == folded
    # The features are of unit norm; a wrong fold changes them by more than the rounding errors of some ninety layers.
    np.testing.assert_allclose(model(images()).numpy(), expected, rtol=0, atol=1e-4)
    assert expected.std(axis=0).max() > 0.01  # the images differ


def test_a_shared_layer_is_left_alone():
    """A norm cannot be folded into a convolution whose output is also read elsewhere."""

    class Shared(tf.keras.Model):
        input_size = SIZE

        def __init__(self):
            super().__init__()
            self.conv = tf.keras.layers.Conv2D(4, 3, name="conv")
            self.norm = tf.keras.layers.BatchNormalization(name="norm")

        def call(self, inputs, training=None):
            outputs = self.conv(inputs)
            return outputs + self.norm(outputs, training=training)

    model = Shared()
    model(tf.zeros([1, *SIZE, 3]))
    model.norm.moving_mean.assign([1.0, 2, 3, 4])
    model.norm.moving_variance.assign([0.5, 1, 2, 3])
    inputs = images().astype(np.float32)
    expected = model(inputs).numpy()
    assert fold_batch_norm(model) == (0, 1)
    np.testing.assert_allclose(model(inputs).numpy(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "switches",
    [{}, {"spatial": False}, {"channel": False, "hard": False}],
    ids=lambda switches: "-".join(switches) or "all",
)
def test_the_exported_graph_gives_the_features(switches, flat):
    model = trained_looking(create_model("han_small", input_size=SIZE, **TINY_ARGS, **switches))
    expected = model(images()).numpy()
    function = deployment_function(model, flat)
    for count in (1, 3):
        found = function(images=tf.constant(images()[:count]))["features"]
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-4)


@pytest.mark.parametrize("flat", [False, True])
def test_gathering_crops_as_matrices_do(flat):
    """Also for regions past the border and at whole pixels."""
    rng = np.random.default_rng(2)
    feature_map = rng.normal(size=(5, 12, 7, 3)).astype(np.float32)
    theta = rng.uniform(-1, 1, (5, 4, 2)).astype(np.float32)
    theta[0] = [[-1, -1], [1, 1], [0, 0], [-1, 1]]
    expected = AffineCrop((5, 6))(feature_map, theta)
    np.testing.assert_allclose(GatheredCrop((5, 6), flat)(feature_map, theta), expected, atol=1e-5)
