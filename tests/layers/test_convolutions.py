"""Convolutions in bfloat16 against Keras' own in float32, forward and backward."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.layers.convolutions import Conv, DepthwiseConv
from han_tf.training.devices import computing

CASES = {
    "pointwise": (Conv, tf.keras.layers.Conv2D, {"filters": 24, "kernel_size": 1}),
    "strided pointwise": (Conv, tf.keras.layers.Conv2D, {"filters": 24, "kernel_size": 1, "strides": 2}),
    "3×3": (Conv, tf.keras.layers.Conv2D, {"filters": 24, "kernel_size": 3, "strides": 2}),
    "with bias": (Conv, tf.keras.layers.Conv2D, {"filters": 24, "kernel_size": 1, "use_bias": True}),
    "depthwise": (DepthwiseConv, tf.keras.layers.DepthwiseConv2D, {"kernel_size": 3}),
    "strided depthwise": (DepthwiseConv, tf.keras.layers.DepthwiseConv2D, {"kernel_size": 3, "strides": 2}),
    "without padding": (
        DepthwiseConv,
        tf.keras.layers.DepthwiseConv2D,
        {"kernel_size": 3, "strides": 2, "padding": "valid"},
    ),
}


def rounded(values):
    """Numbers that bfloat16 holds exactly."""
    return tf.cast(tf.cast(values, tf.bfloat16), tf.float32)


def results(layer, inputs, weights, upstream):
    """Outputs, and gradients by the inputs and by the weights; float32."""
    layer(inputs)
    layer.set_weights(weights)

    @tf.function(autograph=False)
    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
            objective = tf.reduce_sum(tf.cast(outputs, tf.float32) * upstream)
        return outputs, *tape.gradient(objective, [inputs, *layer.trainable_variables])

    return [tf.cast(result, tf.float32).numpy() for result in run(inputs)]


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_keras_with_fewer_digits(name):
    own, keras, arguments = CASES[name]
    rng = np.random.default_rng(0)
    inputs = rounded(rng.normal(size=(6, 9, 8, 16)))
    reference = keras(**{"padding": "same", "use_bias": False, **arguments})
    shape = reference(inputs).shape
    weights = [rounded(rng.normal(size=weights.shape)).numpy() for weights in reference.get_weights()]
    upstream = rounded(rng.normal(size=shape))
    expected = results(reference, inputs, weights, upstream)
    for precision, tolerance in (("float32", 1e-5), ("mixed_bfloat16", 3e-2)):
        with computing(precision, synchronised=False):
            layer = own(**arguments)
        assert layer.get_config()["padding"] == reference.get_config()["padding"]
        for actual, wanted in zip(results(layer, inputs, weights, upstream), expected):
            assert actual.shape == wanted.shape
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_slow_gradients_are_not_in_the_graph():
    def operations(layer):
        with computing("mixed_bfloat16", synchronised=False):
            layer = layer()

        def gradients(inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = tf.reduce_sum(layer(inputs))
            return tape.gradient(outputs, [inputs, *layer.trainable_variables])

        graph = tf.function(gradients, autograph=False).get_concrete_function(tf.zeros([2, 8, 8, 4])).graph
        return {
            (operation.type, operation.outputs[0].dtype) for operation in graph.get_operations() if operation.outputs
        }

    pointwise = operations(lambda: Conv(8, 1))
    assert ("MatMul", tf.bfloat16) in pointwise
    assert "Conv2DBackpropFilter" not in {kind for kind, _ in pointwise}
    by_inputs = "DepthwiseConv2dNativeBackpropInput"
    assert {(kind, dtype) for kind, dtype in operations(lambda: DepthwiseConv(3, 2)) if kind == by_inputs} == {
        (by_inputs, tf.float32)
    }
    assert (by_inputs, tf.bfloat16) in operations(lambda: DepthwiseConv(3))
