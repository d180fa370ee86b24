"""A short run of experiments.bench_service."""

import contextlib
import io
import signal
import subprocess
from types import SimpleNamespace

import pytest

from experiments import bench_service
from han_tf.common.cli import run
from han_tf.search import open_gallery
from tests.serve.serving import on_socket


def test_many_clients_get_what_they_ask_for(make_service, tmp_path):
    with on_socket(make_service(tmp_path)) as address:
        host, port = address.removeprefix("http://").split(":")
        load = bench_service.Load(gallery=31)
        for seed in range(20):  # a busy machine answers few requests
            load.run(host, int(port), clients=16, seconds=1.5, seed=seed)
            if {kind for kind, _ in load.seconds} == set(bench_service.MIX):
                break
    assert load.broken == 0
    assert {status for _, status in load.seconds} <= {200, 201}
    assert {kind for kind, _ in load.seconds} == set(bench_service.MIX)
    assert load.ids
    with open_gallery(tmp_path / "index") as gallery:
        assert len(gallery) == 31 + len(load.ids)
        assert all(entry.camid == 3 for entry in gallery.entries(sorted(load.ids.values())))

    bench_service.FLAGS.unparse_flags()
    values = bench_service.FLAGS(["bench", "--seconds=1.5"]) and bench_service.FLAGS
    whole, *kinds = bench_service._figures(load, values, [500.0, 510.0, 505.0], 330e9)
    answered = sum(map(len, load.seconds.values()))
    assert sum(whole["statuses"].values()) == answered
    assert sum(sum(kind["statuses"].values()) for kind in kinds) == answered
    assert whole["memory_mb"] == {"start": 500.0, "middle": 510.0, "end": 505.0, "peak": 510.0}
    assert 0 < whole["p50_ms"] <= whole["p99_ms"]


def test_a_model_that_is_not_there(capsys):
    command = ["bench", "--run=nowhere", "--seconds=1"]
    assert run(bench_service.main, bench_service.FLAGS, bench_service.__doc__, command) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.fixture
def standing_in(monkeypatch):
    """Puts a service in the real one's place that answers nothing; calls of ``load.run`` are made up."""
    process = SimpleNamespace(pid=1, send_signal=lambda _: None, kill=lambda: None)
    process.stdout, process.wait = io.StringIO("ready: http://127.0.0.1:9\n"), lambda _: -signal.SIGTERM
    extractor = SimpleNamespace(feature_dim=8, checksum="ab" * 32)
    monkeypatch.setattr(bench_service, "FeatureExtractor", lambda _: extractor)
    monkeypatch.setattr(bench_service, "product_flops", lambda: 1e9)
    monkeypatch.setattr(bench_service, "watched_memory", lambda *_, **__: contextlib.nullcontext([1.0]))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: process)
    return process


def bench(monkeypatch, *statuses):
    """Runs the command; the warm-up and then the load are answered with these statuses."""
    answers = iter(statuses)
    answered = lambda load, *_: load.seconds.setdefault(("search", next(answers)), []).append(0.01)  # noqa: E731
    monkeypatch.setattr(bench_service.Load, "run", answered)
    command = ["bench", "--gallery=4", "--seconds=1"]
    return run(bench_service.main, bench_service.FLAGS, bench_service.__doc__, command)


@pytest.mark.parametrize(("statuses", "status"), [((200, 200), 0), ((503, 200), 0), ((500, 200), 1), ((200, 500), 1)])
def test_an_error_during_the_warm_up_counts(standing_in, monkeypatch, capsys, statuses, status):
    assert bench(monkeypatch, *statuses) == status
    assert ("answered with [500], " in capsys.readouterr().err) == (status == 1)


def test_a_service_that_does_not_end_is_one_line(standing_in, monkeypatch, capsys):
    def never(seconds):
        raise subprocess.TimeoutExpired("serve", seconds)

    standing_in.wait = never
    assert bench(monkeypatch, 200, 200) == 1
    assert capsys.readouterr().err == "error: the service still runs 60 s after SIGTERM, expected it to end\n"
