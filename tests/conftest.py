"""Settings and fixtures of all tests."""

import json
import os
import re
import shutil
import signal
import subprocess

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The suite runs on two cores: tests should not compete for threads.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

# Background processes of a shell ignore SIGINT, those of nohup SIGHUP; the programs under test would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import hypothesis
import numpy as np
import pytest

from han_tf import train
from han_tf.common.cli import run
from han_tf.common.files import locked
from han_tf.data.synthetic import SyntheticPedestrians, generate
from han_tf.deploy.measuring import measure
from han_tf.features.extractor import FeatureExtractor
from han_tf.runs.card import CARD, ModelCard, hash_files
from han_tf.runtimes import open_runtime, probes

# The same examples in every run, so that a failure can be repeated.
hypothesis.settings.register_profile("seeded", derandomize=True)
hypothesis.settings.load_profile("seeded")


def messages(stderr):
    """The lines of stderr without those of progress, of which a slow machine prints one a minute."""
    return [line for line in stderr.split("\n") if line.strip() and not re.search(r": .*\d passed", line)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Prints the signal or exit status that ended a worker of pytest-xdist; xdist does not."""
    process = getattr(node.gateway._io, "popen", None)
    if error and process is not None:
        try:
            status = process.wait(5)
        except subprocess.TimeoutExpired:
            status = "none, it still runs"
        print(f"\nworker {node.gateway.id} ended with status {status}", flush=True)


def pytest_collection_modifyitems(items):
    """Puts tests marked as long first, others marked so last; pytest-xdist hands them out in this order."""
    items.sort(key=lambda item: bool(item.get_closest_marker("last")) - bool(item.get_closest_marker("long")))


PLAIN_SIZE = (48, 32)
"""Of the images of :func:`plain_model`."""

TINY_SIZE = ("--input_height=48", "--input_width=32")
"""Small enough for a training step to take milliseconds, large enough for three levels."""

TINY_ARGS = {"stem_width": 16, "widths": [16, 32, 48], "strides": [2, 1]}
"""A HAN of three levels with few filters, and with one unit of each stride: its graph is built and run fast."""

TINY_NETWORK = "--model_args=" + ",".join(f"{name}={value}" for name, value in TINY_ARGS.items()).replace(" ", "")
"""The flag for :data:`TINY_ARGS`."""


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Returns a function that makes a folder once for all workers of pytest-xdist: ``made_once(name, make)``."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder(name, make):
        with locked(base / f"{name}.lock"):
            if not (base / f"{name}.done").exists():
                make(base / name)
                (base / f"{name}.done").touch()
        return base / name

    return folder


@pytest.fixture(scope="session")
def tiny_data(made_once):
    """A few drawn pedestrians on disk, in Market-1501's layout: 8 people to train on, 4 to test."""
    pedestrians = SyntheticPedestrians(
        train_identities=8,
        test_identities=4,
        train_images_per_camera=2,
        images_per_camera=2,
        multi_query_per_camera=1,
        distractors=6,
        junk=3,
    )
    return made_once("tiny", lambda root: generate(root, pedestrians, layout="market1501", workers=1))


@pytest.fixture(scope="session")
def tiny_run(tiny_data, made_once, tmp_path_factory):
    """The folder of a finished run of two epochs on :func:`tiny_data`; each worker has a copy of its own."""

    def make(run_dir):
        arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={run_dir}", "--epochs=2"]
        assert run(train.main, train.FLAGS, train.__doc__, ["train", *arguments, *TINY_SIZE, TINY_NETWORK]) == 0

    return shutil.copytree(made_once("tiny_run", make), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def extractor(tiny_run):
    """The extractor of the tiny run, which takes seconds to load; not to be closed."""
    return FeatureExtractor(tiny_run, threads=1)


def rewrite_card(folder, **entries):
    """Changes entries of a model's card."""
    values = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**values, **entries}))


def measure_here(folder, images, drawn, paths):
    """Does in this process what ``measure_apart`` does in one of its own, whose start takes seconds."""
    card, runtime = open_runtime(folder)
    return measure(runtime, images, drawn, paths, card.input_size)


@pytest.fixture
def run_readme(tmp_path, monkeypatch):
    """Returns a function that runs a README's Python in an empty folder and returns the resulting variables."""

    def run_blocks(path, blocks):
        found = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        assert len(found) == blocks
        monkeypatch.chdir(tmp_path)
        names = {}
        for block in found:
            exec(compile(block, str(path), "exec"), names)
        return names

    return run_blocks


@pytest.fixture
def plain_weights():
    """The matrix of :func:`plain_model`."""
    return np.random.default_rng(0).normal(size=(PLAIN_SIZE[0] * PLAIN_SIZE[1] * 3, 8)).astype(np.float32)


@pytest.fixture
def plain_model(plain_weights, tmp_path):
    """The folder of an OpenVINO model that is one matrix product, and takes milliseconds to make, open and run."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    images = opset13.parameter([-1, *PLAIN_SIZE, 3], np.uint8, name="images")
    flat = opset13.reshape(opset13.convert(images, "f32"), np.array([-1, len(plain_weights)]), False)
    features = opset13.matmul(flat, opset13.constant(plain_weights), False, False)
    folder = tmp_path / "plain"
    folder.mkdir()
    openvino.save_model(openvino.Model([features], [images]), folder / "model.xml", compress_to_fp16=False)
    drawn = probes.draw(PLAIN_SIZE)
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
