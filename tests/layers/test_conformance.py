"""Every layer must build, take any batch size in one graph, learn, and be restored from a checkpoint."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import tensorflow as tf

from han_tf import layers
from han_tf.layers import attention, blocks, convolutions, crop, groups, norm, units
from han_tf.models.network import FeatureHead

MAP = (20, 8, 32)
SIGNATURE = (1, 1, 32)
THETA = (4, 2)

# (constructor, shapes of its inputs without the batch, whether it has trainable weights)
LAYERS = {
    "Conv": (lambda: convolutions.Conv(16, 1), [MAP], True),
    "DepthwiseConv": (lambda: convolutions.DepthwiseConv(3, 2), [MAP], True),
    "ConvBN": (lambda: units.ConvBN(16, 3, 2), [MAP], True),
    "ConvBNReLU": (lambda: units.ConvBNReLU(16, 3, 2), [MAP], True),
    "ConvBNReLU, separable": (lambda: units.ConvBNReLU(16, 3, 2, depthwise_separable=True), [MAP], True),
    "DepthwiseUnit": (lambda: units.DepthwiseUnit(16, 2, 8), [MAP], True),
    "InceptionA": (lambda: units.InceptionA(16), [MAP], True),
    "InceptionB": (lambda: units.InceptionB(16), [MAP], True),
    "ResidualUnit": (lambda: units.ResidualUnit(32, 1), [MAP], True),
    "ResidualUnit, projected": (lambda: units.ResidualUnit(16, 2), [MAP], True),
    "GlobalBlock": (lambda: blocks.GlobalBlock(16, strides=(1, 2, 1)), [MAP], True),
    "GlobalBlock, inception": (lambda: blocks.GlobalBlock(16, unit="inception"), [MAP], True),
    "GlobalBlock, depthwise_norm": (lambda: blocks.GlobalBlock(16, unit="depthwise_norm"), [MAP], True),
    "GlobalBlock, residual": (lambda: blocks.GlobalBlock(16, unit="residual"), [MAP], True),
    "LocalBlock": (lambda: blocks.LocalBlock(16), [MAP], True),
    "LocalBlock, inception": (lambda: blocks.LocalBlock(16, unit="inception"), [MAP], True),
    "LocalBlock, residual": (lambda: blocks.LocalBlock(16, unit="residual"), [MAP], True),
    "SpatialAttention": (attention.SpatialAttention, [MAP], True),
    "ChannelAttention": (attention.ChannelAttention, [SIGNATURE], True),
    "SoftAttention": (attention.SoftAttention, [MAP, SIGNATURE], True),
    "HardAttention": (attention.HardAttention, [SIGNATURE[2:]], True),
    "FixedRegions": (attention.FixedRegions, [SIGNATURE[2:]], False),
    "HarmoniousAttention": (attention.HarmoniousAttention, [MAP], True),
    "AffineCrop": (lambda: crop.AffineCrop((6, 7)), [MAP, THETA], False),
    "GroupConv": (lambda: groups.GroupConv(16, 3, 4), [MAP], True),
    "LearnedGroupConv": (lambda: groups.LearnedGroupConv(16, 4, 2), [MAP], True),
    "IndexedGroupConv": (lambda: groups.IndexedGroupConv(16, 4, 2), [MAP], True),
    "SynchronisedBatchNorm": (norm.SynchronisedBatchNorm, [MAP], True),
    "FeatureHead": (lambda: FeatureHead(16), [(32,)], True),
}


@pytest.fixture(params=list(LAYERS))
def case(request):
    return LAYERS[request.param]


def inputs_for(shapes, batch, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.uniform(-0.5, 0.5, (batch, *shape)), tf.float32) for shape in shapes]


def tensors(result):
    return [tensor for tensor in tf.nest.flatten(result) if tensor is not None]


def test_every_layer_of_the_package_is_listed():
    defined = {
        name
        for module in pkgutil.iter_modules(layers.__path__)
        for name, value in vars(importlib.import_module(f"{layers.__name__}.{module.name}")).items()
        if isinstance(value, type) and issubclass(value, tf.keras.layers.Layer)
    }
    assert defined <= {name.split(",")[0] for name in LAYERS}


def test_any_batch_size_in_one_graph(case):
    make, shapes, _ = case
    layer = make()
    layer(*inputs_for(shapes, 2))
    graph = tf.function(lambda *inputs: layer(*inputs), [tf.TensorSpec([None, *shape]) for shape in shapes])
    for batch in (1, 5):
        inputs = inputs_for(shapes, batch)
        for ours, eager in zip(tensors(graph(*inputs)), tensors(layer(*inputs))):
            assert ours.shape[0] == batch
            np.testing.assert_allclose(ours, eager, atol=1e-5)


def test_all_variables_get_gradients(case):
    make, shapes, learns = case
    layer = make()
    inputs = inputs_for(shapes, 8)
    layer(*inputs)
    takes_training = "training" in inspect.signature(layer.call).parameters
    with tf.GradientTape() as tape:
        outputs = tensors(layer(*inputs, training=True) if takes_training else layer(*inputs))
        weights = [np.random.default_rng(2).normal(size=output.shape) for output in outputs]
        objective = tf.add_n([tf.reduce_sum(out * tf.cast(w, tf.float32)) for out, w in zip(outputs, weights)])
    variables = layer.trainable_variables
    assert bool(variables) == learns
    for variable, gradient in zip(variables, tape.gradient(objective, variables)):
        assert gradient is not None, variable.name
        assert np.isfinite(gradient).all(), variable.name
        assert np.abs(gradient).max() > 0, variable.name


def test_comes_back_from_a_checkpoint(case, tmp_path):
    make, shapes, _ = case
    inputs = inputs_for(shapes, 3)
    saved, restored = make(), make()
    saved(*inputs)
    for number, variable in enumerate(saved.variables):
        noise = np.random.default_rng(number).uniform(0.1, 0.5, variable.shape)
        # An index of channels is an integer.
        variable.assign(tf.cast(20 * noise if variable.dtype.is_integer else noise, variable.dtype))
    path = tf.train.Checkpoint(layer=saved).save(str(tmp_path / "layer"))
    restored(*inputs)
    tf.train.Checkpoint(layer=restored).restore(path).assert_consumed()
    for ours, theirs in zip(tensors(restored(*inputs)), tensors(saved(*inputs))):
        np.testing.assert_array_equal(ours, theirs)
