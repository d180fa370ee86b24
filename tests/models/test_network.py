"""The base class of networks, with a minimal subclass; and HAN's checkpoints stay readable."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from han_tf.models import create_model
from han_tf.models.network import IMAGE_DEVIATION, IMAGE_MEAN, Branches, ReIDNetwork, joint_feature, unit_features

KEYS = Path(__file__).parent / "han_checkpoint_keys.txt"
"""Names of HAN Small's variables in checkpoints: trainable ones in the optimizer's order, then the others."""

SIZE = (6, 4)


class Means(ReIDNetwork):
    """A network of three branches; the input of each is the mean of one colour."""

    branch_names = ("red", "green", "blue")

    def __init__(self, num_classes=0, input_size=SIZE, feature_dim=12):
        super().__init__(num_classes, input_size, feature_dim, "means")
        self.add_heads()

    def pooled(self, pixels, training=None):
        means = tf.reduce_mean(pixels, axis=[1, 2])
        return {name: means[:, i : i + 1] for i, name in enumerate(self.branch_names)}, ()

    def body_parts(self):
        return {}


def images_of(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *SIZE, 3), np.uint8)


@pytest.fixture
def model():
    tf.keras.utils.set_random_seed(0)
    return Means(num_classes=5)


class TestReIDNetwork:
    def test_images_are_normalised_and_go_through_the_heads(self, model):
        images = images_of(7)
        branches = model.branches(images, training=True)
        assert list(branches.features) == ["red", "green", "blue"]
        assert branches.attention == ()
        for channel, name in enumerate(branches.features):
            pixels = (images[..., channel].astype(float) - IMAGE_MEAN[channel]) / IMAGE_DEVIATION[channel]
            dense = pixels.mean(axis=(1, 2))[:, None] @ getattr(model, f"{name}_head").dense.kernel.numpy()
            normed = (dense - dense.mean(0)) / np.sqrt(dense.var(0) + 1e-3)
            np.testing.assert_allclose(branches.features[name], np.maximum(normed, 0), atol=1e-4)

    def test_gradients_of_the_heads_are_sums_of_two_terms_at_most(self, model):
        """TensorFlow adds three gradients or more (AddN) in an order that timing decides, so that training would not
        repeat; batch norm of vectors, as Keras computes it, has three."""

        @tf.function
        def gradients(images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(images, training=True) ** 3)
            return tape.gradient(loss, [getattr(model, f"{name}_head").dense.kernel for name in model.branch_names])

        operations = gradients.get_concrete_function(tf.TensorSpec((7, *SIZE, 3))).graph.get_operations()
        assert any(operation.type == "FusedBatchNormGradV3" for operation in operations)
        assert not [op.name for op in operations if op.type == "AddN" and len(op.inputs) > 2]

    def test_the_joint_feature_joins_unit_features_in_order(self, model):
        images = images_of(7)
        features = model.branches(images, training=True).features
        expected = [f.numpy() / np.linalg.norm(f, axis=1, keepdims=True).clip(1e-6) for f in features.values()]
        joint = model(images, training=True)
        assert joint.shape == (7, 12)
        np.testing.assert_allclose(joint, np.hstack(expected), atol=1e-5)

    def test_classifiers_see_the_features_before_normalisation(self, model):
        branches = model.branches(images_of(3), training=True)
        logits = model.classify(branches)
        assert list(logits) == list(model.branch_names)
        for name, scores in logits.items():
            kernel = getattr(model, f"{name}_classifier").kernel.numpy()
            np.testing.assert_allclose(scores, branches.features[name].numpy() @ kernel, rtol=1e-5)
            assert scores.shape == (3, 5)

    def test_without_classifiers(self):
        model = Means()
        with pytest.raises(ValueError, match="num_classes 0"):
            model.classify(model.branches(images_of(2)))
        assert list(model.parts()) == ["red head", "green head", "blue head"]

    def test_parts_are_heads_then_classifiers(self, model):
        heads = [f"{name} {kind}" for kind in ("head", "classifier") for name in model.branch_names]
        assert list(model.parts()) == heads
        assert model.localisation_variables == []

    @pytest.mark.parametrize("feature_dim", [0, -3, 10])
    def test_a_feature_that_cannot_be_divided(self, feature_dim):
        expected = f"feature_dim must be a positive multiple of 3, the number of branches, got {feature_dim}"
        with pytest.raises(ValueError, match=expected):
            Means(feature_dim=feature_dim)

    def test_images_of_another_size(self, model):
        with pytest.raises(ValueError, match=r"images must be \[batch, 6, 4, 3\], got \(2, 4, 6, 3\)"):
            model(np.zeros((2, 4, 6, 3), np.uint8))


def test_a_zero_feature_stays_zero():
    branches = Branches({"global": tf.constant([[0.0, 0.0], [3.0, 4.0]])})
    np.testing.assert_allclose(unit_features(branches)["global"], [[0, 0], [0.6, 0.8]])
    np.testing.assert_allclose(joint_feature(branches), [[0, 0], [0.6, 0.8]])


def test_checkpoints_of_han_keep_their_names_and_order(tmp_path):
    """The list is from the first version: with other names or another order, trained networks are unreadable."""
    model = create_model("han_small", num_classes=3, input_size=(48, 32))
    for variable in model.non_trainable_variables:
        variable.assign(tf.fill(variable.shape, np.inf))
    for place, variable in enumerate(model.trainable_variables):
        variable.assign(tf.fill(variable.shape, float(place)))
    reader = tf.train.load_checkpoint(tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint")))
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    places = {
        key[: -len(suffix)]: reader.get_tensor(key).flat[0]
        for key in reader.get_variable_to_shape_map()
        if key.endswith(suffix)
    }
    assert sorted(places, key=lambda key: (places[key], key)) == KEYS.read_text(encoding="utf-8").split()
