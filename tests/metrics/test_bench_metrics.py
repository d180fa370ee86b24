"""The benchmark runs every standard case, here at toy sizes, and says which time limits are met."""

import json
import re

import pytest

from experiments import bench_metrics as bench
from experiments import measuring
from han_tf.common.cli import run

SMALL = bench.Size(queries=20, gallery=400, dimension=32, people=12, matching=150, cameras=3)


@pytest.fixture(autouse=True)
def toy_sizes(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", dict.fromkeys(bench.SIZES, SMALL))
    monkeypatch.setattr(measuring, "PRODUCT_SIZE", 64)


def test_standard_cases(tmp_path, capsys):
    arguments = ["--memory_mb=16", "--repeats=1", f"--output={tmp_path / 'figures.json'}"]
    assert run(bench.main, bench.FLAGS, bench.__doc__, ["bench", *arguments], positional="cases") == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"\(aim: [\d.]+ s, (met|MISSED)\)", printed)) == 6
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    by_case = {figure["case"]: figure for figure in figures}
    # The same features give the same result in memory and memory-mapped.
    assert by_case["million, distances and all metrics"]["mAP"] == by_case["msmt17, distances and all metrics"]["mAP"]
    scaled = by_case["market1501, distances and all metrics"]
    assert scaled["bar_seconds"] == pytest.approx(0.8 * 330 / scaled["product_gflops"])


@pytest.mark.parametrize("kind", ["ivf", "exact"])
def test_a_million_reranked(kind, tmp_path, capsys):
    arguments = [f"rerank-million-{kind}", f"--output={tmp_path / 'figures.json'}"]
    assert run(bench.main, bench.FLAGS, bench.__doc__, ["bench", *arguments], positional="cases") == 0
    (figure,) = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figure["case"] == f"rerank-million, {kind}, re-ranking and all metrics"
    assert 0.5 < figure["mAP"] <= 1


def test_unknown_case(capsys):
    assert run(bench.main, bench.FLAGS, bench.__doc__, ["bench", "nothing"], positional="cases") == 2
    assert capsys.readouterr().err.startswith("usage error: unknown case 'nothing', expected one of market1501, ")
