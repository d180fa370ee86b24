"""The benchmark measures every part, and its rates count only images that exist."""

import errno
import json
import re

import numpy as np
import pytest

from han_tf import bench
from han_tf.common.cli import run
from han_tf.models import MODELS, Entry
from han_tf.models.han import HAN
from han_tf.runs import environment

TINY = Entry(HAN, {"widths": (16,), "strides": (2,), "spatial": False})
"""A network whose graph is built fast."""


def test_figures_of_one_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(bench, "IDENTITIES", 3)
    monkeypatch.setitem(MODELS, "shufflenet", TINY)

    def half_a_second(call, repeats):
        call()
        return 0.5

    monkeypatch.setattr(bench, "seconds", half_a_second)
    flags = ["--arch=shufflenet", "--repeats=3", "--batch_size=4", f"--output={tmp_path / 'figures.json'}"]
    assert run(bench.main, bench.FLAGS, bench.__doc__, ["bench", *flags]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    # There are only three images, fewer than a batch can hold.
    assert figures["pipeline"] == {"decoding": 6, "cached": 6}
    (rates,) = figures["networks"].values()
    assert (rates["inference"], rates["training"]) == (6, 6)
    assert figures["product_flops"] == 2 * 64**3 / 0.5
    out = capsys.readouterr().out
    assert re.search(r"^shufflenet +6 img/s +[\d.]+% +6 img/s", out, re.MULTILINE)
    assert f"GFLOP/s ({environment.arithmetic()})\n" in out


def test_bfloat16_is_measured_where_the_processor_has_it(tmp_path, capsys, monkeypatch):
    """The test sets the instruction sets; TensorFlow computes in bfloat16 on any processor."""
    monkeypatch.setattr(bench, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(bench, "IDENTITIES", 3)
    monkeypatch.setitem(MODELS, "tiny", TINY)
    trained = []
    monkeypatch.setattr(bench, "seconds", lambda call, repeats: trained.append(call()) or 0.5)
    machine = {**environment.machine(), "instruction_sets": ["avx2", "amx_bf16"]}
    monkeypatch.setattr(environment, "machine", lambda: machine)
    flags = ["--repeats=3", "--batch_size=2", f"--output={tmp_path / 'figures.json'}"]
    bench.FLAGS(["bench", *flags])
    bench.FLAGS.arch = ["tiny"]
    bench.main(bench.FLAGS)
    (rates,) = json.loads((tmp_path / "figures.json").read_text())["networks"].values()
    assert (rates["training"], rates["training_bfloat16"]) == (4, 4)
    float32, bfloat16 = (value for value in trained if np.shape(value) == () and value is not None)
    assert float32 != bfloat16
    assert bfloat16 == pytest.approx(float32, rel=0.05)
    assert re.search(r"in bfloat16\n-+\ntiny .* 4 img/s$", capsys.readouterr().out, re.MULTILINE)


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(image, path, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench.Image.Image, "save", full)
    assert run(bench.main, bench.FLAGS, bench.__doc__, ["bench"]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: cannot write /.*: No space left on device\n", error)


def test_seconds_are_the_median_of_the_calls_after_two(monkeypatch):
    times = iter([0, 3, 10, 11, 20, 22])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(times))
    calls = []
    assert bench.seconds(lambda: calls.append(0), 3) == 2
    assert len(calls) == 5
