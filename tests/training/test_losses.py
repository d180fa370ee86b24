"""Losses against their formulas in NumPy."""

import numpy as np
import tensorflow as tf

from han_tf.models import create_model
from han_tf.training.losses import decayed_kernels, identity_loss, weight_penalty


def test_identity_loss_is_equations_1_and_2():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 5, 6)
    posterior = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(posterior[np.arange(6), labels]).mean()
    np.testing.assert_allclose(identity_loss(labels, logits), expected, rtol=1e-5)


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
    # Batch norm's scale and shift and the localisation biases are all that is left.
    assert all(len(v.shape) == 1 for v in spared)
    # 1 stem, 27 + 9 in the units, 5 convolutions and 1 FC in each attention, 2 feature layers, 2 classifiers.
    assert len(decayed) == 1 + 9 * 3 + 3 * 3 + 3 * 6 + 2 + 2
