"""FLOPs against Tables 1 and 12, and against TensorFlow's own profiler."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from han_tf.models import create_model
from han_tf.models.costs import Cost, part_costs, total

TABLES = {
    "han_small": 3.68e8,
    "han_medium": 5.33e8,
    "han_large": 7.01e8,
    "han_inception": 1.09e9,
    "han_residual": 1.34e9,
}
"""Tables 1 and 12."""


@functools.cache
def counted(name):
    """The network and the costs of its parts."""
    model = create_model(name)
    return model, part_costs(model, model.parts(), model.input_size)


@pytest.mark.parametrize("name", TABLES)
def test_flops_are_the_tables_within_half_a_percent(name):
    _, costs = counted(name)
    assert total(costs).paper_flops == pytest.approx(TABLES[name], rel=0.005)


def profiled_flops(model):
    """Operations of convolutions and matrix products as TensorFlow's profiler counts them."""
    function = tf.function(lambda images: model(images, training=False), autograph=False).get_concrete_function(
        tf.TensorSpec([1, *model.input_size, 3])
    )
    frozen = convert_variables_to_constants_v2(function)
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(frozen.graph.as_graph_def(), name="")
        options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        options["output"] = "none"
        options["account_type_regexes"] = ["Conv2D", "DepthwiseConv2dNative", "MatMul"]
        profile = tf.compat.v1.profiler.profile(graph, options=options, cmd="op")
    return {node.name: node.total_float_ops for node in profile.children}


@pytest.mark.parametrize("name", TABLES)
def test_macs_equal_the_profilers_count(name):
    model, costs = counted(name)
    assert 2 * total(costs).macs == pytest.approx(sum(profiled_flops(model).values()), rel=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_parameters_equal_kerass_count(name):
    model, costs = counted(name)
    assert total(costs).parameters == sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_parts_by_hand():
    """The stem: 80·32 positions of 3·3·3 weights for 32 filters; batch norm on each output."""
    _, costs = counted("han_small")
    assert costs["stem"] == Cost(80 * 32 * 27 * 32, 80 * 32 * 32, 27 * 32 + 2 * 32)
    assert costs["local head"][:2] == (4 * 384 * 512, 0)
    assert costs["global head"][:2] == (384 * 512, 0)
    unit = 24 * 28 * 32 * 96 + 12 * 14 * (9 * 96 + 96 * 128)
    assert costs["local block 1"].macs == 4 * unit


def macs_of_inception_b(positions, c, d):
    """Multiply-adds of a B unit on a map of that many positions; its output has a quarter of them."""
    w = d // 4
    return positions * (2 * c * w + 9 * w * w) + positions // 4 * (2 * 9 * w * w + c * 2 * w)


def test_level_1_of_inception_by_hand():
    """A on 80×32 positions, B from there to 40×16; the local B from 24×28 in each of four streams."""
    _, costs = counted("han_inception")
    a = 80 * 32 * (3 * (32 * 32 + 9 * 32 * 32) + 32 * 32)
    b = macs_of_inception_b(80 * 32, 128, 128)
    # Outputs of convolutions: 7 of 32 channels in A; in B 3 of 32 before the stride, 2 of 32 and 1 of 64 after it.
    norms = 80 * 32 * (7 * 32 + 3 * 32) + 40 * 16 * (2 * 32 + 64)
    assert costs["global block 1"][:2] == (a + b, norms)
    assert costs["local block 1"].macs == 4 * macs_of_inception_b(24 * 28, 32, 128)


def test_level_1_of_residual_by_hand():
    """Stride 1 with a projection from 32 to 128 channels, then stride 2 with one from 80×32 to 40×16."""
    _, costs = counted("han_residual")
    first = 80 * 32 * (32 * 64 + 9 * 64 * 64 + 64 * 128 + 32 * 128)
    second = 80 * 32 * 128 * 64 + 40 * 16 * (9 * 64 * 64 + 64 * 128 + 128 * 128)
    norms = 80 * 32 * (64 + 64 + 128 + 128) + 80 * 32 * 64 + 40 * 16 * (64 + 128 + 128)
    assert costs["global block 1"][:2] == (first + second, norms)
    local = 24 * 28 * 32 * 64 + 12 * 14 * (9 * 64 * 64 + 64 * 128 + 32 * 128)
    assert costs["local block 1"].macs == 4 * local


def test_counting_leaves_the_network_as_it_was():
    model, _ = counted("han_small")
    images = np.zeros([1, 160, 64, 3], np.uint8)
    before = model(images)
    part_costs(model, model.parts(), model.input_size)
    np.testing.assert_array_equal(before, model(images))
