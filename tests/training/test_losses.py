"""Losses against their formulas in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.models import create_model
from han_tf.training.config import MINING, TrainConfig
from han_tf.training.losses import TripletLoss, decayed_kernels, identity_loss, weight_penalty


def test_identity_loss_is_equations_1_and_2():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 5, 6)
    posterior = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(posterior[np.arange(6), labels]).mean()
    np.testing.assert_allclose(identity_loss(labels, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_is_that_of_keras(smoothing):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32) * 4, rng.integers(0, 5, 6)
    keras = tf.keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    np.testing.assert_allclose(identity_loss(labels, logits, smoothing), keras(np.eye(5)[labels], logits), rtol=1e-5)


def test_weight_penalty_has_the_half():
    kernels = [tf.Variable([[3.0, 4.0]]), tf.Variable([2.0])]
    assert weight_penalty(kernels).numpy() == 0.5 * (9 + 16 + 4)
    with tf.GradientTape() as tape:
        penalty = 5e-4 * weight_penalty(kernels)
    np.testing.assert_allclose(tape.gradient(penalty, kernels[0]), [[5e-4 * 3, 5e-4 * 4]])


def test_decay_acts_on_kernels_alone():
    model = create_model("han_small", num_classes=3)
    decayed = decayed_kernels(model)
    ids = {id(v) for v in decayed}
    assert all(len(v.shape) >= 2 for v in decayed)
    spared = [v for v in model.trainable_variables if id(v) not in ids]
    # The others are batch norm's scale and shift and the localisation biases.
    assert all(len(v.shape) == 1 for v in spared)
    # 1 stem, 27 + 9 in the units, 5 convolutions and 1 FC in each attention, 2 feature layers, 2 classifiers.
    assert len(decayed) == 1 + 9 * 3 + 3 * 3 + 3 * 6 + 2 + 2


@pytest.mark.parametrize("name", ["han_small", "mobilenet", "shufflenet"])
def test_depthwise_kernels_can_be_spared(name):
    model = create_model(name, num_classes=3)
    kernels = decayed_kernels(model)
    layers = [m for m in model.submodules if isinstance(m, tf.keras.layers.DepthwiseConv2D)]
    expected = [v.name for v in kernels if id(v) not in {id(layer.depthwise_kernel) for layer in layers}]
    assert [v.name for v in decayed_kernels(model, depthwise=False)] == expected
    assert len(kernels) - len(expected) == len(layers) > 0


def features_of(rng, count, dim=6):
    """Returns features as they are deployed: of unit norm and, after a ReLU, without negative entries."""
    features = np.maximum(rng.normal(size=(count, dim)), 0).astype(np.float32) + 1e-3
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def distance(a, b):
    return float(np.sqrt(((a.astype(np.float64) - b) ** 2).sum()))


def hard_literally(labels, features, margin):
    """Returns the loss of every triplet of batch hard mining (Hermans et al. 2017, eq. 5)."""
    losses = []
    for i, anchor in enumerate(features):
        others = [j for j in range(len(labels)) if j != i]
        positives = [distance(anchor, features[j]) for j in others if labels[j] == labels[i]]
        negatives = [distance(anchor, features[j]) for j in others if labels[j] != labels[i]]
        if positives and negatives:
            losses.append(max(0, margin + max(positives) - min(negatives)))
    return losses


def semihard_literally(labels, features, margin):
    """Returns the loss of every triplet of semi-hard mining (Schroff et al. 2015, Sec. 3.2)."""
    losses = []
    for i, anchor in enumerate(features):
        negatives = [distance(anchor, features[j]) for j in range(len(labels)) if labels[j] != labels[i]]
        for j in range(len(labels)):
            if j != i and labels[j] == labels[i] and negatives:
                positive = distance(anchor, features[j])
                farther = [negative for negative in negatives if negative > positive]
                losses.append(max(0, margin + positive - (min(farther) if farther else max(negatives))))
    return losses


def mean_of_active(losses):
    """Returns the mean of the losses above 0, apart from rounding errors."""
    active = [loss for loss in losses if loss > 1e-6]
    return np.mean(active) if active else 0


LITERAL = {"hard": hard_literally, "semihard": semihard_literally}

PEOPLE = {
    "P × K": np.repeat(np.arange(4), 3),
    "shuffled": np.array([2, 0, 1, 2, 3, 0, 1, 3, 2, 0]),
    "some alone": np.array([0, 0, 1, 2, 2, 2, 3]),
    "two people": np.array([0, 1, 0, 1]),
    "one person": np.array([0, 0, 0]),
    "all alone": np.array([0, 1, 2]),
}


class TestTripletLoss:
    @pytest.mark.parametrize("mining", MINING)
    @pytest.mark.parametrize("people", PEOPLE)
    @pytest.mark.parametrize("margin", [0.0, 0.3, 1.5])
    def test_it_is_its_definition(self, mining, people, margin):
        loss = TripletLoss(margin, mining)
        for seed in range(5):
            labels = PEOPLE[people]
            features = features_of(np.random.default_rng(seed), len(labels))
            expected = mean_of_active(LITERAL[mining](labels, features, margin))
            np.testing.assert_allclose(loss(labels, features), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("mining", MINING)
    def test_ties(self, mining):
        """Corners of a cube: many distances are equal, and some are 0."""
        rng = np.random.default_rng(0)
        for _ in range(10):
            features = rng.integers(0, 2, (12, 3)).astype(np.float32)
            labels = PEOPLE["P × K"]
            expected = mean_of_active(LITERAL[mining](labels, features, 0.3))
            np.testing.assert_allclose(TripletLoss(0.3, mining)(labels, features), expected, rtol=1e-5, atol=1e-6)

    def test_the_margin_is_kept_or_counts_in_full(self):
        labels = np.array([0, 0, 1, 1])
        apart = np.float32([[1, 0], [1, 0], [0, 1], [0, 1]])
        alike = np.float32([[1, 0]] * 4)
        for mining in MINING:
            assert TripletLoss(0.3, mining)(labels, apart) == 0
            np.testing.assert_allclose(TripletLoss(0.3, mining)(labels, alike), 0.3, rtol=1e-6)
        np.testing.assert_allclose(TripletLoss()(labels, alike), TrainConfig.margin, rtol=1e-6)

    @pytest.mark.parametrize("mining", MINING)
    @pytest.mark.parametrize("alike", ["positives", "negatives", "all", "zero"])
    def test_gradients_are_finite_where_features_are_equal(self, mining, alike):
        """The square root has no derivative at 0."""
        labels = PEOPLE["P × K"]
        raw = features_of(np.random.default_rng(1), len(labels))
        if alike == "positives":
            raw[1] = raw[0]
        elif alike == "negatives":
            raw[3] = raw[0]
        else:
            raw[:] = raw[0] if alike == "all" else 0
        raw = tf.Variable(raw)
        with tf.GradientTape() as tape:
            loss = TripletLoss(0.3, mining)(labels, tf.math.l2_normalize(raw, axis=-1))
        gradient = tape.gradient(loss, raw).numpy()
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() < 100

    @pytest.mark.parametrize("mining", MINING)
    @pytest.mark.parametrize("people", ["some alone", "one person", "all alone"])
    def test_gradients_are_finite_where_images_have_no_triplets(self, mining, people):
        features = tf.Variable(features_of(np.random.default_rng(3), len(PEOPLE[people])))
        with tf.GradientTape() as tape:
            loss = TripletLoss(0.3, mining)(PEOPLE[people], features)
        gradient = tape.gradient(loss, features).numpy()
        assert np.isfinite(gradient).all()
        assert gradient.any() == (people == "some alone")

    @pytest.mark.parametrize("mining", MINING)
    def test_gradients_are_finite_differences(self, mining):
        labels = PEOPLE["shuffled"]
        features = features_of(np.random.default_rng(2), len(labels))
        variable = tf.Variable(features)
        with tf.GradientTape() as tape:
            loss = TripletLoss(0.3, mining)(labels, variable)
        gradient = tape.gradient(loss, variable).numpy()
        step = 1e-5
        for place in np.ndindex(3, 3):
            moved = [features.astype(np.float64) for _ in range(2)]
            moved[0][place] += step
            moved[1][place] -= step
            slope = np.subtract(*(mean_of_active(LITERAL[mining](labels, each, 0.3)) for each in moved)) / (2 * step)
            np.testing.assert_allclose(gradient[place], slope, atol=1e-3)

    @pytest.mark.parametrize("mining", MINING)
    @pytest.mark.parametrize("people", ["P × K", "shuffled"])
    def test_times_the_share_of_active_triplets_it_is_that_of_tensorflow_addons(self, mining, people):
        tfa = pytest.importorskip("tensorflow_addons", reason="TensorFlow Addons are for Python 3.10 and 3.11")
        theirs = {"hard": tfa.losses.triplet_hard_loss, "semihard": tfa.losses.triplet_semihard_loss}[mining]
        labels, shares = PEOPLE[people], []
        for seed in range(5):
            drawn = features_of(np.random.default_rng(seed), len(labels)) + np.eye(6, dtype=np.float32)[labels]
            features = tf.Variable(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
            losses = np.array(LITERAL[mining](labels, features.numpy(), 0.1))
            shares.append((losses > 0).mean())
            with tf.GradientTape(persistent=True) as tape:
                ours, expected = TripletLoss(0.1, mining)(labels, features), theirs(labels, features, margin=0.1)
            np.testing.assert_allclose(ours * shares[-1], expected, rtol=1e-4, atol=1e-5)
            gradients = [tape.gradient(loss, features) for loss in (ours, expected)]
            np.testing.assert_allclose(gradients[0] * shares[-1], gradients[1], rtol=1e-3, atol=1e-4)
        assert 0 < min(shares) < 1

    @pytest.mark.parametrize("mining", MINING)
    def test_triplets_that_keep_the_margin_do_not_make_it_smaller(self, mining):
        """Adding people who are far from everybody does not change the loss of two who are mixed up."""
        mixed_up = np.float32([[0, 0], [1, 0], [1.2, 0], [2.2, 0]])
        losses = []
        for others in (1, 2, 10):
            far = np.repeat(np.float32([[100 * (n + 1), 0] for n in range(others)]), 2, axis=0)
            labels = np.array([0, 0, 1, 1, *np.repeat(np.arange(others) + 2, 2)])
            losses.append(TripletLoss(0.3, mining)(labels, np.concatenate([mixed_up, far])))
        np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
        assert losses[0] > 0.09

    def test_an_unknown_mining(self):
        with pytest.raises(ValueError, match="mining must be one of hard, semihard, got 'easy'"):
            TripletLoss(mining="easy")
