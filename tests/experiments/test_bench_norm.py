"""bench_norm: the run's own statistics give the scores of its report; averaged ones are plain means."""

import json

import numpy as np
import pytest
import tensorflow as tf

from experiments import bench_norm
from han_tf.common.cli import run


def test_running_statistics_give_the_accuracy_of_the_run(tiny_run, tmp_path):
    output = tmp_path / "norm.json"
    arguments = [f"--run={tiny_run}", "--batches=2", f"--output={output}", "--quiet"]
    assert run(bench_norm.main, bench_norm.FLAGS, bench_norm.__doc__, ["bench_norm", *arguments]) == 0
    found = json.loads(output.read_text())
    rules = {figure["statistics"]: figure for figure in found["figures"]}
    assert list(rules) == ["running", "batch", "averaged", "momentum 0.9"]
    trained = json.loads((tiny_run / "metrics.json").read_text())["results"][0]
    assert rules["running"]["rank-1"] == trained["rank-1"]
    assert rules["running"]["mAP"] == pytest.approx(trained["mAP"], abs=1e-6)
    assert (found["kind"], found["batches"]) == ("norm", 2)


def test_averaged_statistics_are_plain_means():
    norm = tf.keras.layers.BatchNormalization(momentum=0.5)
    model = tf.keras.Sequential([norm])
    batches = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
    bench_norm.update_averages(model, batches)
    np.testing.assert_allclose(norm.moving_mean, batches.mean(1).mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, batches.var(1).mean(0), atol=1e-6)
