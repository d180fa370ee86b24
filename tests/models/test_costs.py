"""FLOPs against Table 1, and against TensorFlow's own profiler."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from han_tf import flops
from han_tf.models import MODELS, create_model
from han_tf.models.costs import Cost, part_costs, total


@pytest.fixture(scope="module", params=list(MODELS))
def network(request):
    return request.param, create_model(request.param)


def test_flops_are_table_1_within_half_a_percent(network):
    name, model = network
    flops_of_all = total(part_costs(model, model.parts(), model.input_size)).paper_flops
    assert flops_of_all == pytest.approx(flops.PUBLISHED_FLOPS[name], rel=0.005)


def profiled_flops(model):
    """Operations of convolutions and matrix products as TensorFlow's profiler counts them."""
    function = tf.function(lambda images: model(images, training=False)).get_concrete_function(
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


def test_macs_equal_the_profilers_count(network):
    _, model = network
    profiled = sum(profiled_flops(model).values())
    assert 2 * total(part_costs(model, model.parts(), model.input_size)).macs == pytest.approx(profiled, rel=1e-6)


def test_parameters_equal_kerass_count(network):
    _, model = network
    expected = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert total(part_costs(model, model.parts(), model.input_size)).parameters == expected


def test_parts_by_hand():
    """The stem: 80·32 positions of 3·3·3 weights for 32 filters; batch norm on each output."""
    model = create_model("han_small")
    costs = part_costs(model, model.parts(), model.input_size)
    assert costs["stem"] == Cost(80 * 32 * 27 * 32, 80 * 32 * 32, 27 * 32 + 2 * 32)
    assert costs["local head"].macs == 4 * 384 * 512
    unit = 24 * 28 * 32 * 96 + 12 * 14 * (9 * 96 + 96 * 128)
    assert costs["local block 1"].macs == 4 * unit


def test_counting_leaves_the_network_as_it_was():
    model = create_model("han_small")
    images = np.zeros([1, 160, 64, 3], np.uint8)
    before = model(images)
    part_costs(model, model.parts(), model.input_size)
    np.testing.assert_array_equal(before, model(images))


def test_command_prints_a_table_per_network(capsys):
    assert flops.command_line.run(flops.main, flops.FLAGS, flops.__doc__, ["flops", "--model", "han_large"]) == 0
    printed = capsys.readouterr().out
    assert "han_large" in printed
    assert "Table 1" in printed
    assert "han_small" not in printed
