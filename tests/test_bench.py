"""The benchmark measures every part and tells rates of images that there are."""

import json
import re

from han_tf import bench
from han_tf.cli import run
from han_tf.training import environment


def test_figures_of_one_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(bench, "IDENTITIES", 3)

    def half_a_second(call, repeats):
        call()
        return 0.5

    monkeypatch.setattr(bench, "seconds", half_a_second)
    flags = ["--model=shufflenet", "--repeats=3", "--batch_size=4", f"--output={tmp_path / 'figures.json'}"]
    assert run(bench.main, bench.FLAGS, bench.__doc__, ["bench", *flags]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    # There are three images, however many a batch might hold.
    assert figures["pipeline"] == {"decoding": 6, "cached": 6}
    (rates,) = figures["networks"].values()
    assert (rates["inference"], rates["training"]) == (6, 6)
    assert figures["product_flops"] == 2 * 64**3 / 0.5
    out = capsys.readouterr().out
    assert re.search(r"^shufflenet +6 img/s +[\d.]+% +6 img/s", out, re.MULTILINE)
    assert f"GFLOP/s ({environment.arithmetic()})\n" in out


def test_seconds_are_the_median_of_the_calls_after_two(monkeypatch):
    times = iter([0, 3, 10, 11, 20, 22])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(times))
    calls = []
    assert bench.seconds(lambda: calls.append(0), 3) == 2
    assert len(calls) == 5
