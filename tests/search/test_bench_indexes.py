"""The benchmark of indexes, on small galleries."""

import json

import pytest

from experiments import bench_indexes
from han_tf.common.cli import run


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_indexes, "SIZES", {"1500x32": (1500, 32)})
    monkeypatch.setattr(bench_indexes, "CASES", ("1500x32/flat", "1500x32/ivfpq"))
    monkeypatch.setattr(bench_indexes, "QUERIES", 30)
    monkeypatch.setattr(bench_indexes, "BAR_ROWS", 1500)
    monkeypatch.setattr(bench_indexes, "product_flops", lambda: 1e9)

    def call(*arguments):
        arguments = ["bench", f"--folder={tmp_path / 'galleries'}", *arguments]
        return run(bench_indexes.main, bench_indexes.FLAGS, bench_indexes.__doc__, arguments, "cases")

    return call


def built(folder):
    files = (folder / "galleries" / "1500x32").glob("*/build.json")
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_every_case_is_built_and_measured(call, tmp_path, capsys):
    assert call("--build_only") == 0
    made = built(tmp_path)
    assert call(f"--output={tmp_path / 'figures.json'}") == 0
    out = capsys.readouterr().out
    assert "1500x32/flat: recall@10 1.000" in out
    assert "times faster than flat (aim: 20 at recall 0.95" in out
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["commit"]
    flat, ivfpq = report["figures"]
    assert flat["recall_at_10"] == 1
    assert ivfpq["recall_at_10"] > 0.9
    assert (flat["case"], ivfpq["case"]) == bench_indexes.CASES
    for figure in report["figures"]:
        assert figure["rows"] == 1500
        assert 0 < figure["p50_ms_1_threads"] <= figure["p99_ms_1_threads"]
        assert figure["bytes_on_disk"] > 1500 * 32 * 4
    # What was built beforehand was not built again.
    assert made == built(tmp_path)
    assert len(made) == 2


def test_unknown_cases_are_refused(call, capsys):
    assert call("10x10/flat") == 2
    assert "unknown case '10x10/flat', expected one of 1500x32/flat" in capsys.readouterr().err
