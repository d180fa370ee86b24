"""A run that was begun with one version of TensorFlow opens in other versions and resumes there; so do its exports.

Each stored run holds the checkpoint after the first of two epochs, exports of it, and the features after both epochs in
its own version. ``python tests/training/test_stored_runs.py`` stores a run of the installed TensorFlow.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from han_tf import FeatureExtractor
from han_tf.data.pipeline import LoadedImages
from han_tf.data.records import Record
from han_tf.layers import norm
from han_tf.models.network import inference_function
from han_tf.runs.folder import CHECKPOINTS, CONFIG, load_run
from han_tf.training.config import TrainConfig
from han_tf.training.loop import Trainer

STORED = sorted(Path(__file__).with_name("stored_runs").iterdir())
PEOPLE, IMAGES, HEIGHT, WIDTH = 4, 4, 48, 32
FORMATS = ("saved_model", "tflite", "onnx", "openvino")


def images():
    """Returns patterns, ``[16, 48, 32, 3]`` uint8, without random numbers, whose generator may change."""
    index, y, x, channel = np.ogrid[: PEOPLE * IMAGES, :HEIGHT, :WIDTH, :3]
    person, image = np.divmod(index, IMAGES)
    return ((y * (7 + 3 * person) + x * (5 + person) + 83 * channel + 19 * image * (x > y)) % 256).astype(np.uint8)


def train(run_dir):
    """Trains for two epochs, or for the rest of them."""
    records = tuple(Record(f"{index}.jpg", index // IMAGES, 0) for index in range(PEOPLE * IMAGES))
    config = TrainConfig(
        dataset="market1501",
        epochs=2,
        batch_size=8,
        lr=0.01,
        input_height=HEIGHT,
        input_width=WIDTH,
        feature_dim=32,
        model_args={"stem_width": 8, "widths": [16, 16]},
    )
    Trainer(config, run_dir, LoadedImages(images(), records), fingerprints={"train": "a", "test": "b"}).run()


def features(run_dir):
    return inference_function(load_run(run_dir).model)(images()).numpy()


@pytest.mark.parametrize("stored", STORED, ids=lambda folder: folder.name)
class TestStored:
    def test_its_features_are_those_it_had(self, stored):
        with np.load(stored / "features.npz") as expected:
            np.testing.assert_allclose(features(stored), expected["first"], atol=1e-5)

    @pytest.mark.parametrize("format", FORMATS)
    def test_its_exports_give_its_features(self, stored, format):
        with FeatureExtractor(stored / "exports" / f"{format}-float32") as extractor:
            found = extractor.embed(images())
        with np.load(stored / "features.npz") as expected:
            np.testing.assert_allclose(found, expected["first"], atol=1e-5)

    def test_it_goes_on(self, stored, tmp_path, monkeypatch):
        monkeypatch.setattr(norm, "MOMENTUM", 0.99)  # HAN's when the runs were stored
        run_dir = shutil.copytree(stored, tmp_path / "run")
        train(run_dir)
        with np.load(stored / "features.npz") as expected:
            np.testing.assert_allclose(features(run_dir), expected["second"], atol=1e-3)
            assert abs(expected["second"] - expected["first"]).max() > 0.05


def store():
    """Stores a run of this TensorFlow."""
    folder = Path(__file__).resolve().parent / "stored_runs" / f"tensorflow-{tf.__version__}"
    train(folder)
    second = features(folder)
    checkpoints = folder / CHECKPOINTS["last"]
    paths = tf.train.get_checkpoint_state(str(checkpoints)).all_model_checkpoint_paths
    first, last = (Path(path).name for path in paths)
    for path in checkpoints.glob(f"{last}.*"):
        path.unlink()
    tf.compat.v1.train.update_checkpoint_state(str(checkpoints), first, [first])
    np.savez(folder / "features.npz", first=features(folder), second=second)
    store_exports(folder)
    for path in folder.iterdir():
        if path.name not in (CONFIG, checkpoints.name, "features.npz", "exports"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def store_exports(folder):
    exports = folder / "exports"
    flags = [f"--model={folder}", f"--output={exports}", f"--format={','.join(FORMATS)}", "--noaccuracy"]
    subprocess.run([sys.executable, "-m", "han_tf.export", *flags], check=True)
    for path in exports.iterdir():
        if not path.is_dir():
            path.unlink()


if __name__ == "__main__":
    store()
