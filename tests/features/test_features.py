"""Extracted features equal those of the network on the decoded images."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.data import Record
from han_tf.features.archives import branch_features
from han_tf.features.keras import feature_set
from han_tf.models.network import inference_function
from han_tf.runs.folder import load_run

SIZE = (48, 32)


@pytest.fixture(scope="module")
def model(tiny_run):
    """A trained network: the features of an untrained one are too small to be normalised."""
    return load_run(tiny_run).model


@pytest.fixture
def records(tmp_path):
    """Seven images of different sizes."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(7):
        made.append(Record(str(tmp_path / f"{number}.png"), 100 + number, 1 + number % 3))
        size = (30 + 11 * number, 20 + 5 * number, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(made[-1].path)
    return made


def by_hand(model, record):
    pixels = np.asarray(Image.open(record.path), np.float32)
    resized = np.round(tf.image.resize(pixels, SIZE).numpy()).astype(np.uint8)
    return model(resized[None], training=False).numpy()[0]


def test_features_are_the_networks(model, records):
    found = feature_set(model, records, batch_size=3, progress=None)
    features = found.features
    assert found.paths.tolist() == [record.path for record in records]
    assert features.dtype == np.float32
    expected = np.stack([by_hand(model, record) for record in records])
    np.testing.assert_allclose(features, expected, atol=1e-5)
    # The images differ enough for a wrong order to show.
    distances = np.linalg.norm(features[:, None] - expected[None], axis=2)
    assert distances.argmin(axis=1).tolist() == list(range(7))
    assert np.sort(distances, axis=1)[:, 1].min() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_batch_size_does_not_matter(model, records, batch_size):
    expected = feature_set(model, records, progress=None).features
    features = feature_set(model, records, batch_size=batch_size, progress=None).features
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_each_half_has_unit_norm(model, records):
    features = feature_set(model, records, progress=None).features
    parts = branch_features(features, model.branch_names)
    assert list(parts) == ["joint", "global", "local"]
    np.testing.assert_array_equal(parts["joint"], features)
    np.testing.assert_array_equal(np.hstack([parts["global"], parts["local"]]), features)
    for name in ("global", "local"):
        assert parts[name].shape == (7, 512)
        np.testing.assert_allclose(np.linalg.norm(parts[name], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("bad", [(0,), (2, 3), (6,), (0, 1, 2, 3, 4, 5)])
def test_bad_images_are_dropped_with_their_records(model, records, bad):
    expected = feature_set(model, records, progress=None).features
    for number in bad:
        with open(records[number].path, "wb") as stream:
            stream.write(b"no image")
    good = [number for number in range(7) if number not in bad]
    features = feature_set(model, records, batch_size=2, skip_bad_images=True, progress=None)
    np.testing.assert_allclose(features.features, expected[good], atol=1e-5)
    assert features.pids.tolist() == [100 + number for number in good]
    assert features.camids.tolist() == [1 + number % 3 for number in good]
    assert features.paths.tolist() == [records[number].path for number in good]

    with pytest.raises(UserError, match=rf"^{records[bad[0]].path}: not a readable image"):
        feature_set(model, records, progress=None)


def test_the_graph_is_made_once(model):
    assert inference_function(model) is inference_function(model)
    embed = inference_function(model)
    for count in (1, 2, 5):
        embed(tf.zeros([count, *SIZE, 3], tf.uint8))
    assert embed.experimental_get_tracing_count() == 1


def test_the_graph_follows_the_weights(model, records):
    """Evaluation uses the current weights of a network in training."""
    before = feature_set(model, records, progress=None).features
    kernel = model.trainable_variables[0]
    saved = kernel.numpy()
    kernel.assign(kernel * np.random.default_rng(0).normal(size=kernel.shape))
    after = feature_set(model, records, progress=None).features
    expected = by_hand(model, records[0])
    kernel.assign(saved)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after[0], expected, atol=1e-5)
