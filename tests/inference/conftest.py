"""Shared by the tests of inference."""

import numpy as np
import pytest

from han_tf.inference import probes
from han_tf.inference.card import ModelCard, hash_files
from han_tf.inference.probes import draw

PLAIN_SIZE = (48, 32)


@pytest.fixture
def plain_weights():
    """The matrix of :func:`plain_model`."""
    return np.random.default_rng(0).normal(size=(PLAIN_SIZE[0] * PLAIN_SIZE[1] * 3, 8)).astype(np.float32)


@pytest.fixture
def plain_model(plain_weights, tmp_path):
    """The folder of an OpenVINO model that is one product of matrices: made, opened and run in milliseconds."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    images = opset13.parameter([-1, *PLAIN_SIZE, 3], np.uint8, name="images")
    flat = opset13.reshape(opset13.convert(images, "f32"), np.array([-1, len(plain_weights)]), False)
    features = opset13.matmul(flat, opset13.constant(plain_weights), False, False)
    folder = tmp_path / "plain"
    folder.mkdir()
    openvino.save_model(openvino.Model([features], [images]), folder / "model.xml", compress_to_fp16=False)
    drawn = draw(PLAIN_SIZE)
    expected = drawn.reshape(len(drawn), -1).astype(np.float32) @ plain_weights
    ModelCard(
        format="openvino",
        precision="float32",
        checksum="ab" * 32,
        model="plain",
        input_size=PLAIN_SIZE,
        feature_dim=8,
        branch_names=("global",),
        dataset="synthetic",
        split="",
        licence="none needed",
        schedule={},
        accuracy=None,
        flops=None,
        han_tf_version="0",
        created="2026-01-01T00:00:00Z",
        files=hash_files(folder),
        probes=probes.entry(drawn, expected, expected, "float32"),
    ).save(folder)
    return folder
