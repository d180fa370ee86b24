"""Extraction on Ray: two nodes, one of which dies; an unreachable cluster soon gives one line of error."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import Note, UserError
from han_tf.data.image_lists import list_images
from han_tf.features import job, ray_cluster, ray_job
from han_tf.features.extractor import FeatureExtractor
from han_tf.features.job import extract_shards, finish, plan
from han_tf.features.ray_job import ShardMaker, extract_with_ray
from han_tf.features.shards import FeatureShards, Manifest, read_manifest, shard_path
from tests.conftest import messages

IMAGES = 40
SHARD_IMAGES = 2
PATIENCE = 240
"""Seconds that a test waits for the cluster, which needs ten or twenty on a quiet machine."""

QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""Settings with which Ray notices a lost node within seconds instead of half a minute."""


@pytest.fixture
def images(tiny_data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((tiny_data / "bounding_box_train").glob("*.jpg"))[:IMAGES]:
        shutil.copy(path, folder)
    assert len(list(folder.iterdir())) == IMAGES
    return folder


def call(images, model, out, *arguments):
    """Starts the command in a new process."""
    command = [sys.executable, "-m", "han_tf.extract", str(images), f"--model={model}", f"--output={out}"]
    command += [f"--shard_images={SHARD_IMAGES}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process=None):
    """Returns the first true value of ``condition()``; fails if the process, if any, ends first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail(f"nothing within {PATIENCE} s")


def assert_rows(out, images, extractor):
    """Fails unless every image has one row, with the feature that the model gives without Ray."""
    paths = [path for batch in FeatureShards(out) for path in batch.paths]
    assert paths == sorted(str(path) for path in images.iterdir())
    features = np.concatenate([batch.features for batch in FeatureShards(out)])
    expected = extractor(paths)
    np.testing.assert_allclose(features, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.fixture(scope="module")
def card(extractor):
    return extractor.card


STALL = """
import builtins, os
whole = builtins.open
def waiting(path, *arguments, **options):
    if path == os.environ["STALLED_IMAGE"] and os.path.exists(os.environ["STALLED_BY"]):
        whole(os.environ["STALLED_BY"], "rb").read(1)
    return whole(path, *arguments, **options)
builtins.open = waiting
"""
"""Run at the start of every Python: opening one image waits for a named pipe while the pipe exists."""


@pytest.fixture
def stalled(images, tmp_path, monkeypatch):
    """The pipe that reading the first image waits for."""
    site, pipe = tmp_path / "site", tmp_path / "pipe"
    site.mkdir()
    (site / "sitecustomize.py").write_text(STALL)
    os.mkfifo(pipe)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("STALLED_IMAGE", str(min(images.iterdir())))
    monkeypatch.setenv("STALLED_BY", str(pipe))
    return pipe


@pytest.fixture
def two_nodes(stalled, monkeypatch):
    """A cluster on 127.0.0.1: a head that computes nothing, and two nodes with one core each."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # 127.0.0.1 only; read when Ray is imported
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "_system_config": QUICK, **store})
    try:
        yield cluster, [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
    finally:
        cluster.shutdown()


def reader_of(path, node):
    """Returns the ID of a process of the node that has the file open, or None."""
    (raylet,) = node.all_processes["raylet"]
    children = Path(f"/proc/{raylet.process.pid}/task/{raylet.process.pid}/children").read_text().split()
    for child in children:
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{child}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path) == str(path):
                        return int(child)
    return None


@pytest.mark.last
def test_a_node_that_dies_costs_no_row(two_nodes, stalled, images, plain_model, tmp_path):
    """One node is killed while it waits for an image in the middle of the first shard; the other one goes on."""
    cluster, nodes = two_nodes
    out = tmp_path / "out"
    pipe = os.open(stalled, os.O_RDWR)
    process = call(images, plain_model, out, f"--ray={cluster.address}")
    try:
        wait_for(lambda: len(list(out.glob("part-*.parquet"))) >= 5, process)
        assert not shard_path(out, 0).exists()
        wait_for(lambda: any(reader_of(stalled, node) for node in nodes), process)  # one may start much later
        ((node, reader),) = [(node, pid) for node in nodes if (pid := reader_of(stalled, node))]
        stalled.unlink()
        finished = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
        cluster.remove_node(node, allow_graceful=False)
        text, errors = process.communicate(timeout=PATIENCE)
        wait_for(lambda: not Path(f"/proc/{reader}").exists())
    finally:
        process.kill()
        os.close(pipe)
    assert process.returncode == 0, errors
    assert "note: machines of the cluster that were lost: 1; others have done their part\n" in text
    assert f"{IMAGES} rows in {IMAGES // SHARD_IMAGES} files written to {out}\n" in text
    assert "(raylet)" not in text + errors
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in finished.items())
    assert_rows(out, images, FeatureExtractor(plain_model))


@pytest.mark.long
def test_a_local_ray_does_what_is_left(images, tiny_run, extractor, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    out = tmp_path / "out"
    grey = sorted(images.iterdir())[: 2 * SHARD_IMAGES : SHARD_IMAGES]  # one in each of two shards
    for path, brightest in zip(grey, (50_000, 60_000)):
        pixels = np.linspace(0, brightest, 128 * 64, dtype=np.uint16).reshape(128, 64)
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        path.unlink()
    listed = list_images([str(images)])
    work = plan(out, listed, extractor.card, SHARD_IMAGES)
    made = range(3, len(work.pending))
    for number in made:
        extract_shards(extractor, listed.part(*work.manifest.bounds(number)), out, work.manifest, [number])
    finished = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(finished) == len(made)
    process = call(images, tiny_run, out, "--ray=local", "--actors=1")
    text, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert f"{len(made)} of {len(work.pending)} files are there" in text
    assert (
        "note: 2 images of more than 8 bits per pixel: 65,535 became white, their brightest pixel is 60,000\n" in text
    )
    assert messages(errors) == []
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in finished.items())
    assert_rows(out, images, extractor)


class TestShardMaker:
    """The actors' work, without Ray."""

    @pytest.fixture(autouse=True)
    def loaded(self, extractor, tiny_run, monkeypatch):
        """Loads the tiny run only once."""

        def load(path, **options):
            return extractor if path == str(tiny_run) else FeatureExtractor(path, **options)

        monkeypatch.setattr(ray_job, "FeatureExtractor", load)

    @pytest.fixture
    def work(self, images, card, tmp_path):
        listed = list_images([str(images)])
        manifest = plan(tmp_path / "out", listed, card, 25).manifest
        parts = [(number, listed.part(*manifest.bounds(number))) for number in range(manifest.shards)]
        return str(tmp_path / "out"), manifest, parts

    def test_makes_each_shard_once(self, work, images, tiny_run, extractor):
        out, manifest, parts = work
        maker = ShardMaker(str(tiny_run), out, manifest, 1, 7)
        for part in parts:
            maker.make(*part)
        assert len(finish(out)) == IMAGES
        assert_rows(out, images, extractor)
        before = [shard_path(out, number).stat().st_mtime_ns for number in range(2)]
        shard_path(out, 1).write_bytes(b"half")
        for part in parts:
            maker.make(*part)
        after = [shard_path(out, number).stat().st_mtime_ns for number in range(2)]
        assert after[0] == before[0]
        assert after[1] != before[1]
        assert_rows(out, images, extractor)

    def test_looks_at_earlier_shards_once(self, work, images, card, tiny_run, tmp_path, extractor, monkeypatch):
        out, _, parts = work
        maker = ShardMaker(str(tiny_run), out, read_manifest(out), 1, 7)
        for part in parts:
            maker.make(*part)
        sorted(images.iterdir())[0].unlink()
        listed = list_images([str(images)])
        manifest = plan(out, listed, card, 10, update=True).manifest
        read, looked_at, embedded = job.read_summary, [], []
        monkeypatch.setattr(job, "read_summary", lambda *place: looked_at.append(place) or read(*place))
        monkeypatch.setattr(extractor, "embed", embedded.append)
        maker = ShardMaker(str(tiny_run), out, manifest, 1, 7)
        for number in range(manifest.shards):
            maker.make(number, listed.part(*manifest.bounds(number)))
        assert manifest.shards == 4
        assert len(looked_at) == len(parts) == 2
        assert embedded == []
        assert len(finish(out)) == IMAGES - 1

    def test_makes_no_bad_images_of_those_that_it_cannot_see(self, work, images, tiny_run, tmp_path):
        """A machine may lack a disk that the others have."""
        out, manifest, parts = work
        images.rename(tmp_path / "elsewhere")
        maker = ShardMaker(str(tiny_run), out, manifest, 1, 7)
        for part in parts:
            with pytest.raises(UserError, match=rf"^{socket.gethostname()}: {images}/.*cannot be read \(No such file"):
                maker.make(*part)
        assert not list(Path(out).glob("part*"))
        (tmp_path / "elsewhere").rename(images)
        for part in parts:
            maker.make(*part)
        assert len(finish(out)) == IMAGES

    def test_says_in_one_line_what_is_wrong(self, work, tiny_run, tmp_path):
        out, manifest, (part, _) = work
        other = Manifest(**{**manifest.__dict__, "model": "0" * 64})
        (tmp_path / "file").touch()
        for arguments, words in (
            ((str(tmp_path / "no"), out, manifest), f"{tmp_path}/no: neither config.json nor card.json in it"),
            ((str(tiny_run), out, other), f"checksum {manifest.model}, expected {'0' * 64}"),
            ((str(tiny_run), str(tmp_path / "file"), manifest), f"cannot write {tmp_path}/file"),
        ):
            with pytest.raises(UserError, match=f"^{socket.gethostname()}: .*{words}") as raised:
                ShardMaker(*arguments, 1, 64).make(*part)
            assert "\n" not in str(raised.value)
        assert not list(Path(out).glob("part*"))


@pytest.fixture
def refused(images, tiny_run, card, tmp_path):
    """A function that takes an address and returns the line of error."""
    listed = list_images([str(images)])
    work = plan(tmp_path / "out", listed, card)

    def message(address):
        with pytest.raises(UserError) as raised:
            extract_with_ray(address, tiny_run, listed, tmp_path / "out", work)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return message


def test_the_model_has_a_name_on_all_machines(tiny_run, monkeypatch):
    """Machines may have the package, whose networks have names, at different places."""
    monkeypatch.chdir(tiny_run.parent)
    assert ray_job._everywhere(tiny_run.name) == str(tiny_run)
    assert ray_job._everywhere("han_small-synthetic") == "han_small-synthetic"


def test_ray_reports_its_use_only_if_asked_to(refused, monkeypatch):
    for given, expected in (({}, "0"), ({"RAY_USAGE_STATS_ENABLED": "1"}, "1")):
        monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        refused("nowhere")
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == expected


@pytest.mark.parametrize(
    "address", ["here", "ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:", ":6379", "a:0", "a:99999"]
)
def test_addresses_that_are_none(refused, address):
    assert refused(address) == f"--ray {address}: expected HOST:PORT of the cluster's head, auto or local"


def test_a_name_that_is_none(refused):
    address = "head..example.com:6379"
    assert refused(address) == (
        f"Ray at {address} cannot be reached (no valid name), expected HOST:PORT of a cluster's head"
    )


def test_nobody_there(refused):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert refused(address) == (
        f"Ray at {address} cannot be reached (Connection refused), expected HOST:PORT of a cluster's head"
    )
    assert "no.such.host.invalid:6379 cannot be reached" in refused("no.such.host.invalid:6379")


def test_somebody_else_there(refused, monkeypatch):
    pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert refused(address).startswith(f"Ray at {address} cannot be used (no answer within 5 s)")


def test_without_ray_the_line_that_installs_it_is_shown(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install '.[ray]'" in refused("local")


def local_ray(monkeypatch, private, begin=lambda: None):
    """Makes a fake Ray with these private modules the one that is imported, and returns it."""
    errors = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)
    ray = SimpleNamespace(init=lambda *_, **__: begin(), shutdown=lambda: None, exceptions=errors, **private)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_a_local_ray_starts_no_dashboard(monkeypatch):
    def start():
        pytest.fail("started")

    answers, services = [], SimpleNamespace(start_api_server=start)
    private = {"_private": SimpleNamespace(services=services)}
    ray = local_ray(monkeypatch, private, lambda: answers.append(services.start_api_server(False, port=1)))
    with ray_cluster.connected("local") as found:
        assert found is ray
    assert answers == [("", None)]
    assert services.start_api_server is start


@pytest.mark.parametrize("private", [{}, {"_private": None}, {"_private": SimpleNamespace(services=SimpleNamespace())}])
def test_a_newer_ray_without_that_private_function_gets_a_note(private, monkeypatch):
    ray = local_ray(monkeypatch, private)
    with (
        pytest.warns(Note, match="starts a part of its dashboard, which may ask servers of cloud providers"),
        ray_cluster.connected("local") as found,
    ):
        assert found is ray
    assert not hasattr(getattr(getattr(ray, "_private", None), "services", None), "start_api_server")


def test_the_installed_ray_has_that_private_function():
    services = pytest.importorskip("ray._private.services", reason="needs Ray: pip install '.[ray]'")
    assert callable(services.start_api_server)


def cluster(*machines):
    """Returns a fake Ray of these machines, given by their resources, and a lost one."""
    nodes = [{"NodeID": str(number), "Alive": True, "Resources": has} for number, has in enumerate(machines)]
    lost = {"NodeID": "lost", "Alive": False, "Resources": {"CPU": 64, "GPU": 8}}
    return SimpleNamespace(nodes=lambda: [*nodes, lost])


@pytest.mark.parametrize(
    ("machines", "cpus", "gpu", "room"),
    [
        ([{"CPU": 4.0}, {"CPU": 4.0}], 1, True, 8),
        ([{"CPU": 4.0}, {"CPU": 4.0}], 3, True, 2),
        ([{"CPU": 4.0}, {"CPU": 4.0}], 8, True, "at most 4 cores on a machine, expected one with at least 8"),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}], 2, True, 1),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}], 2, False, 4),
        ([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 4.0}], 2, True, "expected one with at least 2 and a GPU"),
        ([{}], 1, True, "at most 0 cores on a machine, expected one with at least 1"),
    ],
)
def test_each_actor_has_to_fit_into_a_machine(machines, cpus, gpu, room):
    ray = cluster(*machines)
    if isinstance(room, int):
        with socket.create_server(("127.0.0.1", 0)) as head:
            ray.get_runtime_context = lambda: SimpleNamespace(gcs_address=f"127.0.0.1:{head.getsockname()[1]}")
            needs = ray_cluster.actor_needs(ray, "head:6379", cpus, gpu)
            assert next(ray_cluster.rooms(ray, "head:6379", needs)) == room
    else:
        with pytest.raises(UserError, match=f"^Ray at head:6379: .*{room}$"):
            ray_cluster.actor_needs(ray, "head:6379", cpus, gpu)


class TestWatch:
    """Messages on a cluster that has lost its head or all other machines, with a fake Ray."""

    @pytest.fixture
    def rooms(self):
        def watch(port, cores):
            context = SimpleNamespace(gcs_address=f"127.0.0.1:{port}")
            ray = SimpleNamespace(get_runtime_context=lambda: context, nodes=cluster({"CPU": cores}).nodes)
            return ray_cluster.rooms(ray, "head:6379", {"CPU": 1})

        return watch

    def test_without_a_head_it_ends_in_one_line(self, rooms, monkeypatch):
        monkeypatch.setattr(ray_cluster, "LOST_SECONDS", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as head:
            watched = rooms(head.getsockname()[1], 3)
            assert next(watched) == 3
        assert next(watched) == 3
        time.sleep(0.5)
        with pytest.raises(
            UserError, match=r"^Ray at head:6379: the head of the cluster was lost; finished files stay"
        ):
            next(watched)

    @pytest.mark.parametrize("cores", [0, 1])
    def test_without_machines_it_says_once_that_it_waits(self, rooms, cores, capsys):
        with socket.create_server(("127.0.0.1", 0)) as head:
            watched = rooms(head.getsockname()[1], cores)
            assert [next(watched) for _ in range(3)] == [cores] * 3
        expected = "note: no machine of head:6379 has room for an actor; waiting for one\n"
        assert capsys.readouterr().err == (expected if not cores else "")
