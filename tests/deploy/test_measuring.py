"""A model is measured in a separate process, whose crash gives one line of error."""

import sys
import threading

import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.deploy.measuring import measure_apart
from han_tf.runtimes import open_runtime

SIZE = (48, 32, 3)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (19, *SIZE), np.uint8)


def features(images, weights):
    return images.reshape(len(images), -1).astype(np.float64) @ weights


def test_features_come_back_from_the_other_process(plain_model, plain_weights, images, tmp_path):
    found = measure_apart(plain_model, images, images[:3], [])
    np.testing.assert_allclose(found.features, features(images, plain_weights), rtol=1e-3, atol=1)
    np.testing.assert_allclose(found.probes, features(images[:3], plain_weights), rtol=1e-3, atol=1)
    assert found.images_per_second > 0

    paths = [str(tmp_path / name) for name in ("b.png", "not an image.png", "a.png")]
    for path, pixels in zip(paths, images):
        Image.fromarray(pixels).save(path)
    (tmp_path / "not an image.png").write_bytes(b"text")
    found = measure_apart(plain_model, images, images[:3], paths)
    assert list(found.kept) == [0, 2]
    np.testing.assert_allclose(found.features, features(images[[0, 2]], plain_weights), rtol=1e-3, atol=1)


def test_a_model_that_cannot_be_opened_is_one_line(plain_model, images):
    (plain_model / "model.bin").write_bytes(b"half")
    with pytest.raises(UserError, match=rf"^{plain_model / 'model.bin'}: damaged or changed") as raised:
        measure_apart(plain_model, images, images, [])
    assert "\n" not in str(raised.value)


def test_a_runtime_that_crashes_is_one_line(plain_model, images, tmp_path, monkeypatch):
    """The process aborts, as TFLite and XLA do."""
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'Check failed: scale > 0' >&2\nkill -ABRT $$\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    line = "^the process that ran it was ended by SIGABRT: Check failed: scale > 0$"
    with pytest.raises(UserError, match=line):
        measure_apart(plain_model, images, images, [])


def test_inferences_that_fail_take_no_requests_with_them(plain_model, plain_weights, images):
    """With one thread there are two requests; images of a wrong size fail when they are passed to one."""
    runtime = open_runtime(plain_model, 1)[1]
    for wrong in 5 * [np.zeros([19, 8, 8, 3], np.uint8)]:
        with pytest.raises(RuntimeError):
            runtime(wrong)
    found = []
    thread = threading.Thread(target=lambda: found.append(runtime(images)), daemon=True)
    thread.start()
    thread.join(60)
    assert found, "the next inference waits for ever"
    np.testing.assert_allclose(found[0], features(images, plain_weights), rtol=1e-3, atol=1)
