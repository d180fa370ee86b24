"""MobileNet and ResNet50 with ImageNet weights from a file normalise images as Keras' own networks do."""

import numpy as np
import pytest
import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.models import create_model
from han_tf.runs.folder import create_network
from han_tf.training.config import TrainConfig

SIZE = (64, 32)
WIDTH = 0.25


def random_images(batch):
    return np.random.default_rng(0).integers(0, 256, (batch, *SIZE, 3)).astype(np.uint8)


def keras_mobilenet():
    return tf.keras.applications.MobileNet((*SIZE, 3), WIDTH, include_top=False, weights=None)


def keras_resnet50():
    return tf.keras.applications.ResNet50(include_top=False, weights=None, input_shape=(*SIZE, 3))


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory):
    tf.keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_2_5_64_tf_no_top.h5"
    keras_mobilenet().save_weights(str(path))
    return path


@pytest.mark.parametrize(
    ("name", "arguments", "make", "preprocess"),
    [
        ("mobilenet", {"width": WIDTH}, keras_mobilenet, tf.keras.applications.mobilenet.preprocess_input),
        ("resnet50", {}, keras_resnet50, tf.keras.applications.resnet50.preprocess_input),
    ],
)
def test_pretrained_maps_are_those_of_keras(name, arguments, make, preprocess, tmp_path):
    tf.keras.utils.set_random_seed(1)
    theirs = make()
    theirs.save_weights(str(tmp_path / "weights.h5"))
    model = create_model(name, input_size=SIZE, feature_dim=8, weights=tmp_path / "weights.h5", **arguments)
    images = random_images(2)
    ours = model.backbone(model.normalised(tf.constant(images)), training=False)
    expected = theirs(preprocess(images.astype(np.float32)), training=False).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected).max() > 0


def test_a_checkpoint_knows_the_normalisation(mobilenet_file, tmp_path):
    arguments = {"input_size": SIZE, "feature_dim": 8, "width": WIDTH}
    model = create_model("mobilenet", weights=mobilenet_file, **arguments)
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "model"))
    restored = create_model("mobilenet", **arguments)
    images = random_images(2)
    # HAN's normalisation, which is used with random weights.
    expected = (images - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(restored.normalised(tf.constant(images)), expected, atol=1e-5)
    tf.train.Checkpoint(model=restored).restore(path).assert_consumed()
    np.testing.assert_allclose(restored.normalised(tf.constant(images)), images / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(restored(images), model(images))


def refusal(path, name="mobilenet", **arguments):
    with pytest.raises(UserError) as caught:
        create_model(name, input_size=SIZE, weights=path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_a_file_that_is_not_there(tmp_path):
    message = refusal(tmp_path / "no.h5", width=WIDTH)
    assert "no such file, expected the ImageNet weights of mobilenet_0.25_64 without its top layers" in message


def test_a_name_keras_would_download_or_misread(tmp_path):
    assert "the name ends in 'nothing', expected the ImageNet weights" in refusal("imagenet", width=WIDTH)
    assert "the name ends in '.index'" in refusal(tmp_path / "ckpt-1.index", width=WIDTH)


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: b"",
        lambda whole: b"no HDF5",
        lambda whole: whole[:5000],
        lambda whole: whole.replace(b"TREE", b"tree"),  # the signature of its tables of contents
        lambda whole: whole.replace(b"TREE", b"tree").replace(b"layer_names", b"layer names"),
    ],
    ids=["empty", "something else", "cut off", "damaged", "twice damaged"],
)
def test_a_file_of_something_else(mobilenet_file, tmp_path, content):
    path = tmp_path / "weights.h5"
    path.write_bytes(content(mobilenet_file.read_bytes()))
    assert "expected the ImageNet weights of mobilenet" in refusal(path, width=WIDTH)


def test_weights_of_another_network(mobilenet_file):
    assert "expected the ImageNet weights of mobilenet_0.50_64" in refusal(mobilenet_file, width=0.5)


def test_the_name_of_a_run_tells_the_file(mobilenet_file):
    config = TrainConfig(model="mobilenet", weights=str(mobilenet_file), input_height=SIZE[0], input_width=SIZE[1])
    assert config.run_name().endswith(f"-input_width_32-weights_{mobilenet_file.name}-300epochs-seed0")


def test_han_has_no_such_weights(mobilenet_file):
    with pytest.raises(UserError, match="model han_small has no weights '"):
        create_network(TrainConfig().to_dict(), weights=str(mobilenet_file))
