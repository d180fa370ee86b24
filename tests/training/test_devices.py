"""The same batches give the same losses on one device, on two devices, and in two processes."""

import json
import os
import socket
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from experiments.results import HERE
from han_tf import train
from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.training.devices import CLUSTER, create_strategy
from tests.conftest import TINY_SIZE

ONE_LEVEL = ("--model_args=widths=[16],strides=[2],regions=2", "--batch_size=16", "--panel_images=0")
"""A HAN whose graph is built fast."""

TWO_DEVICES = """
import os
import signal
import sys
from pathlib import Path

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from han_tf.data import load_dataset
from han_tf.data.pipeline import load_images
from han_tf.common.errors import Stopped, UserError
from han_tf.models import MODELS, Entry
from han_tf.training.config import TrainConfig
from han_tf.training.loop import Trainer
from tests.training.conftest import Colours

data = load_images(load_dataset("market1501", sys.argv[1]).train, (48, 32))
settings = {
    "dataset": "market1501", "input_height": 48, "input_width": 32, "epochs": 1,
    "model_args": {"widths": [16], "strides": [2], "regions": 2},
    "loss": "cross_entropy+triplet", "people": 4, "images_per_person": 4, "batch_size": 16, "lr": 0.005,
}

def trainer(name, **changes):
    made = Trainer(TrainConfig(**{**settings, **changes}), Path(sys.argv[2]) / name, data)
    assert (made.trained is made.model) == (made.strategy.num_replicas_in_sync == 1)
    return made

trainer("one", strategy="one_device").run()
trainer("two", strategy="mirrored").run()

# A network whose graph is built fast, with batch norm in its head.
MODELS["colours"] = Entry(Colours, {})
settings.update(model="colours", model_args={}, lr=0.001)
trainer("float32", strategy="one_device").run()

def halved(name, then, **changes):
    # Stops a run on two devices after half an epoch, and resumes it with the strategy `then`.
    first = trainer(name, strategy="mirrored", **changes)
    step = first.train_step

    def stopping(*batch):
        if first.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(*batch)

    first.train_step = stopping
    try:
        first.run()
    except Stopped as stopped:
        print(stopped)
    resumed = trainer(name, strategy=then, **changes)
    assert resumed.global_step == 2
    resumed.run()

halved("halved", "one_device")
apart = trainer("apart", strategy="mirrored", sync_batch_norm=False)
apart.run()
try:
    trainer("apart", strategy="one_device", sync_batch_norm=False)
except UserError as error:
    print(error)
try:
    trainer("odd", strategy="mirrored", people=3, images_per_person=5, batch_size=15)
except UserError as error:
    print(error)

halved("bfloat16", "mirrored", precision="mixed_bfloat16")
for name in ("loss", "people", "images_per_person"):
    del settings[name]
settings["sync_batch_norm"] = False
trainer("plain", strategy="mirrored").run()
halved("compiled", "mirrored", xla=True)
"""


def row_of(run_dir):
    (row,) = json.loads((run_dir / "history.json").read_text())
    return row


def losses(row):
    return {name: value for name, value in row.items() if name.endswith(("loss", "accuracy"))}


@pytest.mark.long
def test_two_devices_do_what_one_does(tiny_data, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(tiny_data), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = (row_of(tmp_path / name) for name in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    # The statistics of attention are sums over the images of both devices.
    np.testing.assert_allclose(two["attention"]["mean"], one["attention"]["mean"], atol=1e-4)
    for ours, theirs in zip(two["attention"]["levels"], one["attention"]["levels"]):
        assert ours == pytest.approx(theirs, rel=1e-3)
    float32, halved, apart, bfloat16, plain, compiled = (
        losses(row_of(tmp_path / name)) for name in ("float32", "halved", "apart", "bfloat16", "plain", "compiled")
    )
    assert halved == pytest.approx(float32, rel=1e-4)
    # Ten times what the others may differ by.
    assert abs(apart["loss"] / float32["loss"] - 1) > 1e-3, "batch norm over half of a batch is another network"
    assert bfloat16["loss"] == pytest.approx(float32["loss"], rel=0.02)
    assert compiled == pytest.approx(plain, rel=1e-5)
    refused = done.stdout.splitlines()
    assert sum(line.startswith("stopped by SIGTERM after 2 steps") for line in refused) == 3
    assert any("batch norm saw a part of a batch on each of 2 devices, there are 1 now" in line for line in refused)
    assert any("batches of 15 images on 2 devices: expected a multiple of 2" in line for line in refused)


def test_gpu_memory_grows_also_where_tensorflow_was_imported_before(monkeypatch):
    config, grown = tf.config, {}
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: [f"{kind}:{number}" for number in range(2)])
    monkeypatch.setattr(config.experimental, "set_memory_growth", grown.__setitem__)
    create_strategy("one_device")
    assert grown == {"GPU:0": True, "GPU:1": True}


@pytest.mark.parametrize(
    "text", ["", "{", '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 1}}']
)
def test_a_worker_that_is_told_nothing_of_the_others(monkeypatch, text):
    monkeypatch.setenv(CLUSTER, text)
    with pytest.raises(UserError, match=r"^--strategy multi_worker: TF_CONFIG is '.*', expected for example \{"):
        create_strategy("multi_worker")


def test_an_address_without_a_port_is_one_line(monkeypatch):
    """TensorFlow's own error, of a process whose only worker is at "localhost"."""
    cluster = {"cluster": {"worker": ["localhost"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv(CLUSTER, json.dumps(cluster))
    error = tf.errors.InvalidArgumentError(None, None, 'Could not parse port for local server from "localhost".')
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=r"^--strategy multi_worker: Could not parse port .* \(TF_CONFIG is \{"):
        create_strategy("multi_worker")


@pytest.mark.parametrize(
    "cluster",
    [{"master": ["localhost:1"]}, {"chief": ["localhost:1", "localhost:2"]}, {"ps": ["localhost:1"]}],
    ids=["of older generators", "two chiefs", "a parameter server"],
)
def test_clusters_of_other_kinds_are_one_line(monkeypatch, cluster):
    task = {"type": next(iter(cluster)), "index": 0}
    monkeypatch.setenv(CLUSTER, json.dumps({"cluster": cluster, "task": task}))
    with pytest.raises(UserError, match=r"^--strategy multi_worker: .+ \(TF_CONFIG is \{") as raised:
        create_strategy("multi_worker")
    assert "\n" not in str(raised.value)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.mark.long
def test_two_workers_do_what_one_does_and_one_that_is_killed_goes_on(tiny_data, tmp_path):
    ports = free_ports(2)
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", *TINY_SIZE, *ONE_LEVEL, "--lr=0.005", "--epochs=4"]
    arguments += ["--eval_every=4"]

    def start(index):
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        environment = {
            **os.environ,
            CLUSTER: json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "han_tf.train", *arguments, f"--run={tmp_path / 'two'}", "--strategy=multi_worker"],
            env=environment,
            stdout=(tmp_path / f"worker{index}.txt").open("ab"),
            stderr=subprocess.STDOUT,
        )

    workers = [start(0), start(1)]
    try:
        deadline = time.monotonic() + 250
        while not (tmp_path / "two" / "checkpoints" / "checkpoint").exists() and time.monotonic() < deadline:
            assert all(worker.poll() is None for worker in workers), (tmp_path / "worker0.txt").read_text()
            time.sleep(0.05)
        workers[1].kill()
        workers[1].wait()
        assert not (tmp_path / "two" / "metrics.json").exists(), "killed too late for the test to mean anything"
        workers[1] = start(1)
        assert [worker.wait(250) for worker in workers] == [0, 0], (tmp_path / "worker0.txt").read_text()
    finally:
        for worker in workers:
            worker.kill()
    assert "another worker is lost" in (tmp_path / "worker0.txt").read_text()
    assert run(train.main, train.FLAGS, train.__doc__, ["train", *arguments, f"--run={tmp_path / 'one'}"]) == 0
    one, two = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-2)
    assert (tmp_path / "two" / "metrics.json").exists()
