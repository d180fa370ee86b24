"""The networks HAN is compared with: cost, training, checkpoints, features, conversion."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from han_tf import flops, visualize
from han_tf.common import cli
from han_tf.common.errors import UserError
from han_tf.models import MODELS, create_model
from han_tf.models.applications import MobileNet, ResNet50
from han_tf.models.condensenet import CondenseNet
from han_tf.models.costs import Cost, part_costs, total
from han_tf.models.shufflenet import ShuffleNet
from han_tf.runs.folder import LoadedRun
from han_tf.viz.attention import attention_panels

SIZE = (64, 32)
TINY = {
    "mobilenet": {"width": 0.25},
    "shufflenet": {"scale": 0.25},
    "condensenet": {"depths": (1, 2, 1), "growth": (4, 8, 8), "groups": 2, "condensation": 4},
    "resnet50": {},
}
"""Network -> arguments that make it small, where it has any."""

TINY_HAN = {"stem_width": 16, "widths": (16,), "regions": 2}


def random_images(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *SIZE, 3)).astype(np.uint8)


def tiny(name, **arguments):
    arguments = {"input_size": SIZE, "feature_dim": 16, "num_classes": 3, **TINY.get(name, TINY_HAN), **arguments}
    return create_model(name, **arguments)


@pytest.fixture(scope="module")
def network_of():
    """Makes each network once."""
    made = {}

    def network(name):
        if name not in made:
            tf.keras.utils.set_random_seed(0)
            made[name] = tiny(name)
        return made[name]

    return network


# Millions of multiply-adds and parameters at 224×224 with 1,000 classes. MobileNet: Howard et al., Table 8; ResNet50:
# He et al., Table 1, and Keras' documentation; ShuffleNet: Zhang et al., Table 1, and the authors' repository;
# CondenseNet: Huang et al., Table 4.
PUBLISHED = {
    "MobileNet": (MobileNet, {}, 569, 4.2),
    "ResNet50": (ResNet50, {}, 3800, 25.6),
    "ShuffleNet, g = 3": (ShuffleNet, {}, 137, 1.9),
    "CondenseNet, G = C = 8": (CondenseNet, {"condensed": True}, 274, 2.9),
    "CondenseNet, G = C = 4": (CondenseNet, {"groups": 4, "condensation": 4, "condensed": True}, 529, 4.8),
}


@pytest.mark.parametrize("name", TINY)
def test_running_statistics_take_a_tenth_of_each_batch(name):
    model, images = tiny(name), random_images(4)
    norms = [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.BatchNormalization)]
    means = []
    for _ in range(2):
        model.branches(images, training=True)
        means.append([norm.moving_mean.numpy() for norm in norms])
    for once, twice in zip(*means):
        # 0.1 μ, then 0.9 · 0.1 μ + 0.1 μ.
        np.testing.assert_allclose(twice, 1.9 * once, rtol=1e-3, atol=1e-5)
    assert max(abs(mean).max() for mean in means[0]) > 0.01


def profiled_flops(model):
    """Operations of convolutions and matrix products as TensorFlow's profiler counts them."""
    function = tf.function(lambda images: model(images, training=False), autograph=False).get_concrete_function(
        tf.TensorSpec([1, *model.input_size, 3])
    )
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    options["account_type_regexes"] = ["Conv2D", "DepthwiseConv2dNative", "MatMul"]
    profile = tf.compat.v1.profiler.profile(function.graph, options=options, cmd="op")
    return sum(node.total_float_ops for node in profile.children)


@pytest.mark.parametrize(("factory", "arguments", "macs", "parameters"), PUBLISHED.values(), ids=list(PUBLISHED))
def test_size_is_the_profilers_and_the_published_one(factory, arguments, macs, parameters):
    model = factory(input_size=(224, 224), **arguments)
    model.make_variables()
    costs = part_costs(model, model.parts(), (224, 224))
    assert 2 * total(costs).macs == pytest.approx(profiled_flops(model), rel=1e-6)

    del costs["global head"]
    body = total(costs)
    inputs = model.global_head.dense.kernel.shape[0]
    elementwise = 0
    if factory is CondenseNet:
        # Huang et al. also remove half of the classifier's connections, and count the elements into ReLU and pooling.
        inputs //= 2
        elementwise = elements_into_relu_and_pooling()
    # He et al. print 3.8 billion where 3.86 are counted.
    tolerance = 0.016 if factory is ResNet50 else 0.0101
    assert (body.macs + inputs * 1000 + elementwise) / 1e6 == pytest.approx(macs, rel=tolerance)
    assert round((body.parameters + (inputs + 1) * 1000) / 1e6, 1) == parameters


def elements_into_relu_and_pooling(depths=(4, 6, 8, 10, 8), growth=(8, 16, 32, 64, 128)):
    positions, channels, count = 112 * 112, 2 * growth[0], 0
    for block, (depth, rate) in enumerate(zip(depths, growth)):
        if block:
            count += positions * channels
            positions //= 4
        for _ in range(depth):
            count += positions * (channels + 4 * rate)
            channels += rate
    return count + 2 * positions * channels


@pytest.mark.parametrize("name", list(TINY))
def test_one_branch_of_unit_norm_without_attention(network_of, name):
    model = network_of(name)
    branches = model.branches(random_images(2), training=True)
    assert list(branches.features) == ["global"]
    assert branches.attention == ()
    assert not model.localisation_variables
    features = model(random_images(3), training=True).numpy()
    assert features.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert model.classify(branches)["global"].shape == (2, 3)


@pytest.mark.parametrize("name", list(TINY))
def test_the_map_is_a_32nd_of_the_image(network_of, name):
    model = network_of(name)
    shape = model.backbone(tf.zeros([1, *SIZE, 3])).shape
    blocks = 3 if name == "condensenet" else 5
    assert shape[1:3] == (SIZE[0] >> blocks, SIZE[1] >> blocks)


@pytest.mark.parametrize("name", list(TINY))
def test_what_only_han_has_is_refused(name):
    message = f"^model {name} has no argument 'hard', expected some of num_classes, "
    with pytest.raises(UserError, match=message) as caught:
        create_model(name, hard=False)
    assert "\n" not in str(caught.value)


def test_a_shufflenet_whose_units_do_not_split():
    """Stage 2 has 576 channels: 36 of the stem and 540 of its first unit."""
    with pytest.raises(UserError, match=r"scale must make the width 576 .* stem's 36 .* groups 8, got 1\.5$") as caught:
        create_model("shufflenet", groups=8, scale=1.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(TINY))
def test_images_that_are_too_small(name):
    with pytest.raises(UserError, match=f"^model {name}: input_size must be at least 32 pixels either way"):
        create_model(name, input_size=(64, 16))


@pytest.fixture
def run_of(network_of, monkeypatch, tmp_path):
    """Makes han_tf.visualize find a run of a ShuffleNet."""
    run = LoadedRun(network_of("shufflenet"), {"model": "shufflenet"}, tmp_path, "ckpt-1")
    monkeypatch.setattr(visualize, "load_run", lambda *_: run)
    Image.fromarray(random_images(1)[0]).save(tmp_path / "person.png")
    return tmp_path


def test_there_is_no_attention_to_show(network_of, run_of, capsys):
    arguments = ["visualize", f"--run={run_of}", str(run_of / "person.png")]
    assert cli.run(visualize.main, visualize.FLAGS, "", arguments, positional="IMAGE") == 1
    expected = f"error: {run_of}: shufflenet has no attention to show, expected a HAN, or --ranked\n"
    assert capsys.readouterr().err.endswith(expected)
    assert not (run_of / "attention.png").exists()
    assert attention_panels(network_of("shufflenet"), random_images(2)) == {}


def test_figures_of_other_papers_are_told_apart():
    *_, last = flops.report("condensenet", {"body": Cost(2, 0, 3)}).splitlines()
    assert last.split() == ["its", "own", "paper", "2.74e+08", "(at", "224×224,", "with", "1,000", "classes)"]
    assert "paper" not in flops.report("han_small", {}).splitlines()[-1]


# Every network of the registry, the HANs too.


@pytest.mark.parametrize("name", list(MODELS))
def test_it_trains_and_comes_back_from_a_checkpoint(network_of, name, tmp_path):
    model = network_of(name)
    norms = [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in norms} == {0.9}
    images, labels = random_images(4), tf.constant([0, 1, 2, 0])

    def loss():
        logits = model.classify(model.branches(images, training=True))
        losses = (tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores) for scores in logits.values())
        return tf.reduce_mean(sum(losses)) + model.penalty()

    with tf.GradientTape() as tape:
        before = loss()
    variables = model.trainable_variables
    gradients = tape.gradient(before, variables)
    for variable, gradient in zip(variables, gradients):
        assert gradient is not None, variable.name
        assert np.isfinite(gradient).all(), variable.name
    optimizer = tf.keras.optimizers.SGD(0.01)
    optimizer.apply_gradients(zip(gradients, variables))
    assert float(loss()) != float(before)

    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "model"))
    twin = type(model)(**model.get_config())
    twin.make_variables()
    tf.train.Checkpoint(model=twin).restore(path).assert_consumed()
    np.testing.assert_array_equal(twin(images), model(images))
