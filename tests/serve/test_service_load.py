"""A short run of experiments.bench_service."""

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
