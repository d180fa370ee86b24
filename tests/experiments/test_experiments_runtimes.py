"""The figures of exported models are compared with bars, recorded and reported."""

import dataclasses
import json

import pytest

from experiments import bench_runtimes, record, report
from experiments.bench_runtimes import bars, exports_of
from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.features.extractor import FeatureExtractor

PRODUCT = 165e9
"""Half of the matrix product for which the bars are stated."""

ROWS = [
    {
        "format": "keras",
        "precision": "float32",
        "megabytes": None,
        "decoded": 200.0,
        "from_files": 190.0,
        "single_ms": 9.0,
    },
    {
        "format": "openvino",
        "precision": "int8",
        "megabytes": 4.25,
        "decoded": 1400.0,
        "from_files": 700.0,
        "single_ms": 2.5,
        "accuracy": {"dataset": "market1501", "rank-1": 0.71, "mAP": 0.4779},
        "mAP_difference": -0.0012,
    },
]


def test_bars_are_scaled_by_the_product_unless_measured():
    hacnn, osnet, files = bars(ROWS, PRODUCT, {"hacnn": 0.0, "osnet": 700.0})
    assert hacnn["anchor"] == pytest.approx(56)
    assert hacnn["reached"] == pytest.approx(25)
    assert not hacnn["measured_here"]
    assert osnet["reached"] == pytest.approx(2)
    assert osnet["measured_here"]
    assert files["reached"] == pytest.approx(0.5)


def test_they_are_recorded_and_reported(tmp_path):
    figures = {"product_flops": PRODUCT, "runtimes": ROWS, "bars": bars(ROWS, PRODUCT, {"hacnn": 0.0, "osnet": 700.0})}
    (tmp_path / "figures.json").write_text(json.dumps({"kind": "runtimes", **figures, "commit": "a" * 40}))
    arguments = [f"--results_dir={tmp_path / 'results'}", str(tmp_path / "figures.json")]
    assert run(record.main, record.FLAGS, record.__doc__, ["record", *arguments], positional="path") == 0
    assert json.loads((tmp_path / "results" / "runtimes.json").read_text())["kind"] == "runtimes"
    arguments = [f"--results_dir={tmp_path / 'results'}", f"--notes_dir={tmp_path}", f"--output={tmp_path / 'R.md'}"]
    assert run(report.main, report.FLAGS, report.__doc__, ["report", *arguments]) == 0
    text = (tmp_path / "R.md").read_text()
    assert "## Speed of the exported models" in text
    assert "| openvino | int8 | 4.2 MB | 1,400 img/s | 700 img/s | 2.5 ms | 71.00 | 47.79 | -0.12 |" in text
    assert "- 25.00 times torchreid HACNN (56 img/s, scaled by the product); aim: 10" in text
    assert "- 2.00 times torchreid OSNet x0.25 (700 img/s, as given); aim: 2.5, missed" in text
    assert "- 0.50 times decoded, from files; aim: 0.6, missed" in text


def test_models_of_another_network_are_left_out(tiny_run, tmp_path, capsys):
    card = FeatureExtractor(tiny_run).card
    for name, checksum in (("onnx-int8", card.checksum), ("tflite-float32", "0" * 64), (".onnx-int8.x", card.checksum)):
        (tmp_path / name).mkdir()
        dataclasses.replace(card, checksum=checksum).save(tmp_path / name)
    assert exports_of(tiny_run, tmp_path) == [tmp_path / "onnx-int8"]
    assert capsys.readouterr().out == (
        f"note: left out: {tmp_path / 'tflite-float32'} is of another network than {tiny_run}\n"
    )
    with pytest.raises(UserError, match=r"no models of this run, expected some: python -m han_tf.export --model"):
        exports_of(tiny_run, tmp_path / "onnx-int8")


def test_exports_of_a_network_of_the_package_are_looked_for_where_they_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["bench_runtimes", "--model=han_small-synthetic"]
    assert run(bench_runtimes.main, bench_runtimes.FLAGS, bench_runtimes.__doc__, arguments) == 1
    assert capsys.readouterr().err.startswith("error: runs/han_small-synthetic/exports: no models of this run, ")


def test_splits_may_be_spelt_as_in_the_files(tmp_path, capsys):
    arguments = ["bench_runtimes", "--dataset=cuhk03", "--split=labeled", f"--runs_dir={tmp_path}"]
    assert run(bench_runtimes.main, bench_runtimes.FLAGS, bench_runtimes.__doc__, arguments) == 1
    assert capsys.readouterr().err.startswith("error: no cuhk03 labelled run with a checkpoint in ")
