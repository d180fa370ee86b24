"""The affine crop, against tensorflow-addons' resampler, finite differences and its definition."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.layers.crop import AffineCrop, region_origins

LEVELS = [((80, 32), (24, 28)), ((40, 16), (12, 14)), ((20, 8), (6, 7)), ((9, 5), (3, 4))]


def resampled(feature_map, theta, region_size):
    """The same crop as one resampling per region, at explicit sample positions in pixels."""
    tfa = pytest.importorskip("tensorflow_addons", reason="TensorFlow Addons are for Python 3.10 and 3.11")
    _, height, width, _ = feature_map.shape
    region_height, region_width = region_size
    # The grid of eq. (7) over [-1, 1], pixel centres at half pixels, scales region / map.
    rows = (2 * np.arange(region_height) + 1) / region_height - 1
    columns = (2 * np.arange(region_width) + 1) / region_width - 1
    crops = []
    for region in range(theta.shape[1]):
        x = columns * region_width / width + theta[:, region, 0, None]
        y = rows * region_height / height + theta[:, region, 1, None]
        x = (x + 1) * width / 2 - 0.5
        y = (y + 1) * height / 2 - 0.5
        grid_x = tf.repeat(x[:, None, :], region_height, axis=1)
        grid_y = tf.repeat(y[:, :, None], region_width, axis=2)
        crops.append(tfa.image.resampler(feature_map, tf.stack([grid_x, grid_y], axis=-1)))
    return tf.stack(crops, axis=1)


def random_inputs(map_size, channels=3, batch=4, regions=4, seed=0):
    rng = np.random.default_rng(seed)
    feature_map = tf.constant(rng.normal(size=(batch, *map_size, channels)), tf.float32)
    theta = rng.uniform(-1, 1, (batch, regions, 2))
    theta[0, 0], theta[0, 1] = (-0.99, -0.99), (0.99, 0.99)  # half outside, at two corners
    return feature_map, tf.constant(theta, tf.float32)


@pytest.mark.parametrize(("map_size", "region_size"), LEVELS)
def test_values_and_gradients_equal_the_resampler(map_size, region_size):
    feature_map, theta = random_inputs(map_size)
    weights = tf.constant(np.random.default_rng(1).normal(size=(4, 4, *region_size, 3)), tf.float32)
    results = []
    for crop in (AffineCrop(region_size), lambda m, t: resampled(m, t, region_size)):
        with tf.GradientTape() as tape:
            tape.watch([feature_map, theta])
            regions = crop(feature_map, theta)
            objective = tf.reduce_sum(regions * weights)
        results.append((regions, *tape.gradient(objective, [feature_map, theta])))
    for ours, oracle, tolerance in zip(*results, (1e-4, 1e-4, 2e-2)):
        np.testing.assert_allclose(ours, oracle, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize(("map_size", "region_size"), LEVELS)
def test_theta_gradient_equals_finite_differences(map_size, region_size):
    feature_map, theta = random_inputs(map_size, channels=2, batch=2, regions=2, seed=3)
    feature_map, theta = tf.cast(feature_map, tf.float64), tf.cast(theta, tf.float64)
    crop = AffineCrop(region_size, dtype=tf.float64)

    def objective(value):
        return tf.reduce_sum(crop(feature_map, value) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(theta)
        value = objective(theta)
    gradient = tape.gradient(value, theta).numpy()
    step = 1e-7  # well inside a pixel, so that no sample crosses a whole-pixel position
    for index in np.ndindex(*theta.shape):
        move = np.zeros(theta.shape)
        move[index] = step
        slope = (objective(theta + move) - objective(theta - move)) / (2 * step)
        assert gradient[index] == pytest.approx(float(slope), rel=1e-4, abs=1e-3)


def test_whole_pixel_positions_have_the_derivative_to_the_right():
    """The gradient is not 0, so that a centred region can move."""
    ramp = tf.tile(tf.range(8.0)[None, None, :, None], [1, 6, 1, 1])
    theta = tf.zeros([1, 1, 2])
    with tf.GradientTape() as tape:
        tape.watch(theta)
        total = tf.reduce_sum(AffineCrop((2, 4))(ramp, theta))
    gradient = tape.gradient(total, theta)[0, 0]
    # 8 samples on a slope of 1 per pixel; one unit of t_x is half the width, 4 pixels.
    np.testing.assert_allclose(gradient, [8 * 4, 0], atol=1e-5)


def test_whole_pixel_translations_are_slices():
    feature_map, _ = random_inputs((80, 32), batch=1)
    theta = tf.constant([[[0.0, 0.0], [0.125, 0.25], [0.0, -0.75]]])  # +2 columns, +10 rows; -30 rows
    regions = AffineCrop((24, 28))(feature_map, theta)[0]
    np.testing.assert_array_equal(regions[0], feature_map[0, 28:52, 2:30])
    np.testing.assert_array_equal(regions[1], feature_map[0, 38:62, 4:32])
    np.testing.assert_array_equal(regions[2, 2:], feature_map[0, :22, 2:30])
    np.testing.assert_array_equal(regions[2, :2], np.zeros((2, 28, 3)))


def test_outside_the_map_reads_zero():
    theta = tf.constant([[[1.0, 1.0]]])
    region = AffineCrop((24, 28))(tf.ones([1, 80, 32, 1]), theta)[0, 0, ..., 0]
    assert region.numpy()[:12, :14].min() == 1.0
    assert np.abs(region.numpy()[12:]).max() == 0.0
    assert np.abs(region.numpy()[:, 14:]).max() == 0.0


def test_origins_of_the_strips():
    theta = tf.constant([[[0.0, -0.75], [0.0, 0.75]]])
    np.testing.assert_allclose(region_origins(theta, (80, 32), (24, 28))[0], [[2, -2], [2, 58]])


CONVERTED = ((20, 8), (6, 7))


@pytest.fixture
def graph():
    """A crop of any number of maps, its inputs named."""
    (height, width), region_size = CONVERTED
    signature = [
        tf.TensorSpec([None, height, width, 3], name="feature_map"),
        tf.TensorSpec([None, 4, 2], name="theta"),
    ]
    return tf.function(AffineCrop(region_size), signature)


def test_converts_to_tflite_with_builtin_ops_alone(graph):
    inputs = dict(zip(("feature_map", "theta"), random_inputs(CONVERTED[0])))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    details = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    for name, value in inputs.items():
        interpreter.resize_tensor_input(details[name], value.shape)
    interpreter.allocate_tensors()
    for name, value in inputs.items():
        interpreter.set_tensor(details[name], value)
    interpreter.invoke()
    converted = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(converted, graph(*inputs.values()), atol=1e-5)


def test_converts_to_onnx(graph):
    tf2onnx = pytest.importorskip("tf2onnx", reason="the test extra installs tf2onnx on Python 3.10 and later")
    onnxruntime = pytest.importorskip("onnxruntime")
    inputs = dict(zip(("feature_map", "theta"), random_inputs(CONVERTED[0])))
    model, _ = tf2onnx.convert.from_function(graph, graph.input_signature, opset=15)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (converted,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(converted, graph(*inputs.values()), atol=1e-5)


def test_any_batch_size_in_one_graph():
    crop = AffineCrop((6, 7))
    graph = tf.function(crop, [tf.TensorSpec([None, 20, 8, 5]), tf.TensorSpec([None, 4, 2])])
    for batch in (1, 3):
        assert graph(tf.ones([batch, 20, 8, 5]), tf.zeros([batch, 4, 2])).shape == (batch, 4, 6, 7, 5)


def test_empty_region_is_refused():
    with pytest.raises(ValueError, match=r"region_size must be at least \(1, 1\), got \(0, 3\)"):
        AffineCrop((0, 3))
