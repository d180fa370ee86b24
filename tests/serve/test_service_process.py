"""The service as a process and on the wire: starting, stopping, and clients that behave badly."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import httpx
import numpy as np
import pytest

from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.runs.card import read_card
from han_tf.search import create_gallery, open_gallery
from han_tf.serve import __main__ as command
from han_tf.serve.limits import Limits
from han_tf.serve.running import find_model, folders_of, open_service, run_of, serve
from han_tf.serve.server import listen
from han_tf.serve.service import Service
from han_tf.serve.store import Store
from tests.serve.serving import HOSTS, client_of, encoded, noise, on_socket, wait_for

QUICK = Limits(header_seconds=0.5, keep_alive_seconds=1, body_seconds=0.5, upload_bytes=100_000, connections=3)


# ------------------------------------------------------------------------------------------------ starting


def refused(capsys, *arguments, status=1):
    assert run(command.main, command.FLAGS, command.__doc__, ["serve", *arguments]) == status
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_what_is_missing_or_does_not_fit(capsys, tmp_path, tiny_run, make_index, extractor):
    assert "--index" in refused(capsys, status=2)
    assert "nowhere" in refused(capsys, f"--index={tmp_path}/nowhere", "--port=0")
    create_gallery(tmp_path / "other", extractor.feature_dim, "a" * 64).close()
    line = refused(capsys, f"--index={tmp_path}/other", f"--model={tiny_run}", "--port=0")
    assert "aaaaaaaaaaaa…" in line
    assert extractor.checksum[:12] in line
    line = refused(capsys, f"--index={tmp_path}/other", f"--runs_dir={tiny_run.parent}", "--port=0")
    assert "no model aaaaaaaaaaaa…" in line
    assert "--model" in line
    make_index(tmp_path / "index").close()
    index = f"--index={tmp_path}/index"
    assert "nosuch" in refused(capsys, index, f"--model={tiny_run}/nosuch", "--port=0")
    assert "nosuch" in refused(capsys, index, f"--model={tiny_run}", "--images=nosuch", "--port=0")
    assert "nosuch" in refused(capsys, index, f"--model={tiny_run}", "--attention=nosuch", "--port=0")
    assert "--allowed_hosts" in refused(capsys, index, "--host=0.0.0.0", "--port=0", status=2)
    assert "192.0.2.1" in refused(capsys, index, "--host=192.0.2.1", "--port=0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in refused(capsys, index, f"--port={port}")
        assert f"port {port}" in refused(capsys, index, f"--model={tiny_run}/nosuch", f"--port={port}")  # checked first
    assert "--state" in refused(capsys, "--index=http://127.0.0.1:1", "--port=0", status=2)
    with open_gallery(tmp_path / "index", writable=True):
        line = refused(capsys, index, f"--model={tiny_run}", "--port=0")
    assert f"process {os.getpid()}" in line


def test_a_model_is_found_by_its_checksum(tiny_run, extractor):
    found = find_model(tiny_run.parent, extractor.checksum)
    assert Path(found) == tiny_run
    assert Path(run_of(tiny_run / "exports" / "onnx-float32")) == tiny_run
    assert run_of("/") is None


def test_an_index_has_one_state_by_whatever_link_it_is_reached(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "index")
    assert command.state_folder(tmp_path / "link") == command.state_folder(tmp_path / "index")
    (tmp_path / "index.service").mkdir()
    assert command.state_folder(tmp_path / "link") == f"{tmp_path}/index.service"
    (tmp_path / "link.service").mkdir()  # as created by earlier versions
    assert command.state_folder(tmp_path / "link") == f"{tmp_path}/link.service"
    assert command.state_folder(tmp_path / "index") == f"{tmp_path}/index.service"


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install '.[serve]'" in refused(capsys, "--index=anywhere")


def test_where_the_images_lie(tmp_path, extractor):
    def folders(name, *paths):
        with create_gallery(tmp_path / name, 2, "a" * 64) as gallery:
            gallery.add([[1, 0]] * len(paths), paths=paths)
            return folders_of(gallery, lambda path: path.startswith("images/"))

    assert folders("none", "", "") == []
    assert folders("few", "/data/a/1.jpg", "/data/a/2.jpg", "/other/b/3.jpg", "") == ["/data/a", "/other/b"]
    assert folders("copies", "/data/a/1.jpg", "images/2.png") == ["/data/a"]
    assert folders("many", *(f"/data/people/{n}/1.jpg" for n in range(30))) == ["/data/people"]
    assert len(folders("far", *(f"/people{n}/1.jpg" for n in range(30)))) == 30


def test_a_run_that_was_trained_on_draws_nothing(tmp_path, tiny_run, make_index, extractor, monkeypatch):
    class Another:
        def __init__(self, run):
            self.run_dir, self.checksum = run, "b" * 64

    monkeypatch.setattr("han_tf.serve.running.AttentionModel", Another)
    monkeypatch.setattr("han_tf.serve.running.FeatureExtractor", lambda *_, **__: extractor)
    service = open_service(make_index(tmp_path / "index"), model=str(tiny_run), state=tmp_path / "state")
    assert service.attention is None
    asyncio.run(close(service))
    with pytest.raises(UserError, match="bbbbbbbbbbbb…"):
        open_service(
            open_gallery(tmp_path / "index"),
            model=str(tiny_run),
            attention=str(tiny_run),
            state=tmp_path / "state",
        )


def test_the_white_level_is_that_of_the_gallery(tmp_path, tiny_run, make_index, extractor, monkeypatch):
    given = []

    def opened(model, threads, white_level):
        given.append(white_level)
        return extractor

    monkeypatch.setattr("han_tf.serve.running.FeatureExtractor", opened)
    gallery = make_index(tmp_path / "index")
    gallery.note_white_level(4095.0)
    service = open_service(gallery, model=str(tiny_run), state=tmp_path / "state")
    assert given == [4095.0]
    assert extractor.white_level is None
    assert "\nnote: white in grey queries of more than 8 bits is that of their format" in service.describe()
    asyncio.run(close(service))


async def close(service):
    await service.start()
    await service.close()


@pytest.mark.parametrize(
    ("host", "address", "names", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", [], {"127.0.0.1", "localhost", "::1"}),
        ("0", "0.0.0.0", ["Box.example"], {"127.0.0.1", "localhost", "::1", "box.example"}),
        ("box.example", "10.0.0.7", [], {"box.example", "10.0.0.7"}),
        ("::1", "::1", ["[::2]"], {"127.0.0.1", "localhost", "::1", "::2"}),
    ],
)
def test_names_of_the_service(host, address, names, expected):
    assert command.allowed_hosts(host, ip_address(address), names) == expected


@pytest.mark.parametrize("host", ["0", "00.0.0.0", "0.0.0.0", "::0", ""])
def test_every_name_of_all_addresses_is_seen(capsys, tmp_path, host):
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    assert "--allowed_hosts" in refused(capsys, f"--index={tmp_path}/none", f"--host={host}", "--port=0", status=2)


def test_listening_to_other_machines_prints_a_warning(capsys, tmp_path, monkeypatch):
    arguments = [f"--index={tmp_path}/none", "--host=0.0.0.0", "--allowed_hosts=box.example", "--port=0"]

    def said(*more):
        assert run(command.main, command.FLAGS, command.__doc__, ["serve", *arguments, *more]) == 1
        return capsys.readouterr().err.splitlines()[0]

    assert "everybody who can reach it may search, add and delete" in said()
    assert "may search; --token" in said("--read_only")
    monkeypatch.setenv("HAN_TF_TOKEN", "t" * 16)
    assert "everybody who has the token may search, add and delete. Nothing is encrypted" in said()
    monkeypatch.setenv("HAN_TF_TOKEN", "short")
    assert "a token of 5 characters, expected at least 16" in said()
    assert "cannot read --token" in said(f"--token={tmp_path}/nosuch")


def test_what_is_wrong_with_the_gallery_is_said_at_the_start(make_index, extractor, tmp_path):
    make_index(tmp_path / "index").close()
    with open(tmp_path / "index/vectors-0.f32", "r+b") as stream:
        stream.write(b"damage")
    with open_gallery(tmp_path / "index") as gallery:
        lines = Service(gallery, extractor, Store(tmp_path / "state")).describe().splitlines()
    assert lines[-1].startswith("note: the vectors of 1 entries are damaged (ids 0 ")


def test_a_start_that_fails_is_one_line(make_service, tmp_path, monkeypatch, capsys):
    service = make_service(tmp_path)

    def broken(_):
        raise RuntimeError("no such\ndevice")

    monkeypatch.setattr(service._embed, "_compute", broken)
    ready = []
    with pytest.raises(UserError, match="the service cannot start: RuntimeError: no such device"):
        serve(service, listen("127.0.0.1", 0), HOSTS, lambda: ready.append(1))
    assert ready == []
    assert service.gallery.closed
    assert capsys.readouterr().err == ""


def test_a_model_that_cannot_be_opened_is_one_line(make_index, tmp_path, tiny_run, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("out of\nthreads")

    make_index(tmp_path / "index").close()
    monkeypatch.setattr("han_tf.serve.running.FeatureExtractor", broken)
    line = refused(capsys, f"--index={tmp_path}/index", f"--model={tiny_run}", "--port=0")
    assert line == "error: the service cannot start: RuntimeError: out of threads\n"
    open_gallery(tmp_path / "index", writable=True).close()  # the lock was released


# ------------------------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_what_was_answered_is_kept(number, tmp_path, plain_model):
    with create_gallery(tmp_path / "index", 8, read_card(plain_model).checksum) as gallery:
        gallery.add(np.eye(8, dtype=np.float32))
    arguments = [f"--index={tmp_path}/index", f"--model={plain_model}", "--port=0", "--threads=1"]
    log = tmp_path / "log"
    command = [sys.executable, "-m", "han_tf.serve", *arguments]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)

    def ready():
        assert process.poll() is None, log.read_text()
        return re.search(r"ready: (\S+) ", log.read_text())

    try:
        address = wait_for(ready, 300)[1]
        answered, gone = [], []

        def add():
            with httpx.Client(base_url=address, timeout=30) as client:
                for seed in range(10_000):
                    try:
                        answer = client.post("/gallery", files={"image": encoded(noise(seed=seed))})
                    except httpx.HTTPError as error:
                        gone.append(error)
                        return
                    assert answer.status_code == 201 or answer.status_code == 503
                    if answer.status_code == 201:
                        answered.append(answer.json()["id"])

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answered) >= 20, 60)
        process.send_signal(number)
        for thread in threads:
            thread.join(30)
        assert process.wait(30) == -number
    finally:
        process.kill()
    assert "Traceback" not in log.read_text()
    with open_gallery(tmp_path / "index") as gallery:
        entries = gallery.entries(answered)
        if number != signal.SIGKILL:
            assert len(gallery) == 8 + len(answered)
    assert all((tmp_path / "index.service" / entry.path).is_file() for entry in entries)


# ------------------------------------------------------------------------------------------------ on the wire


@pytest.fixture(scope="module")
def quick(make_service, tmp_path_factory):
    with on_socket(make_service(tmp_path_factory.mktemp("quick"), limits=QUICK)) as address:
        yield int(address.rpartition(":")[2])


@contextlib.contextmanager
def connection(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connected:
        yield connected


def read_all(connected):
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connected.recv(65536):
            received += data
    return received


def head(method, path, **headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_head_that_never_ends(quick):
    for silent in (b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"):
        with connection(quick) as connected:
            connected.sendall(silent)
            assert read_all(connected) == b""


def test_a_head_that_comes_byte_by_byte(quick):
    with connection(quick) as connected:
        with contextlib.suppress(ConnectionError):
            for byte in head("GET", "/healthz", X="y" * 200):
                connected.sendall(bytes([byte]))
                time.sleep(0.01)
        assert read_all(connected) == b""


def test_a_second_head_has_no_more_time_than_the_first(quick):
    with connection(quick) as connected:
        connected.sendall(head("GET", "/openapi.json"))
        time.sleep(0.3)
        connected.sendall(b"GET /heal")
        assert read_all(connected).count(b"HTTP/1.1 200") == 1


def test_a_body_that_never_comes(quick):
    with connection(quick) as connected:
        connected.sendall(head("POST", "/search", Content_Length=10))
        answer = read_all(connected)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'{"error":"the body has not arrived within 0.5 seconds"}' in answer


def test_stalled_bodies_leave_room_for_others(make_service, tmp_path):
    limits = Limits(requests=2, bodies=3, connections=16, client_connections=8)
    with on_socket(make_service(tmp_path, limits=limits)) as address, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        stalled = []
        for _ in range(6):
            stalled.append(stack.enter_context(connection(port)))
            stalled[-1].sendall(head("POST", "/search", Content_Length=10) + b"x")
        for early in stalled[:3]:
            assert read_all(early).startswith(b"HTTP/1.1 503")
        assert httpx.get(f"{address}/healthz").status_code == 200
        assert httpx.post(f"{address}/search", data={"id": 0}).status_code == 200


def test_one_client_cannot_take_every_connection(make_service, tmp_path):
    with on_socket(make_service(tmp_path, limits=Limits(connections=6, client_connections=2))) as address:
        port = int(address.rpartition(":")[2])
        with connection(port), connection(port), connection(port) as third:
            assert read_all(third).startswith(b"HTTP/1.1 503")
            with socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.2", 0)) as other:
                other.sendall(head("GET", "/healthz", Connection="close"))
                assert read_all(other).startswith(b"HTTP/1.1 200")


def test_head_is_get_without_the_body(quick):
    with connection(quick) as connected:
        connected.sendall(head("HEAD", "/healthz", Connection="close"))
        answer = read_all(connected)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", answer)[1])
    assert length == len(httpx.get(f"http://127.0.0.1:{quick}/healthz").content)


def test_an_idle_connection_is_closed(quick):
    with connection(quick) as connected:
        connected.sendall(head("GET", "/healthz"))
        assert read_all(connected).startswith(b"HTTP/1.1 200")


def test_a_chunked_body_is_counted(quick):
    with connection(quick) as connected:
        connected.sendall(head("POST", "/embed", Transfer_Encoding="chunked", Content_Type="image/png"))
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connected.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert read_all(connected).startswith(b"HTTP/1.1 413")


def test_a_body_longer_than_it_says_is_no_request(quick):
    with connection(quick) as connected:
        connected.sendall(head("POST", "/search", Content_Length=3) + b"xyz" + b"\0" * 1000)
        answer = read_all(connected)
    assert answer.startswith(b"HTTP/1.1 422")
    assert answer.count(b"HTTP/1.1") == 2
    assert b"HTTP/1.1 400" in answer


def test_no_http_at_all(quick):
    with connection(quick) as connected:
        connected.sendall(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n")
        answer = read_all(connected)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'{"error"' in answer


def test_a_head_that_is_too_long(quick):
    with connection(quick) as connected:
        with contextlib.suppress(ConnectionError):
            connected.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000)
        assert read_all(connected)[:12] in (b"HTTP/1.1 400", b"")


def test_more_connections_than_allowed(quick):
    with connection(quick), connection(quick), connection(quick), connection(quick) as fourth:
        answer = read_all(fourth)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in answer
    assert b'"error"' in answer
    with connection(quick) as connected:  # the others have been closed
        connected.sendall(head("GET", "/healthz", Connection="close"))
        assert read_all(connected).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system does not give up by itself")
def test_clients_that_read_no_answer_make_room(make_service, tmp_path):
    limits = Limits(connections=2, request_seconds=1, keep_alive_seconds=1)
    with on_socket(make_service(tmp_path, limits=limits)) as address, contextlib.ExitStack() as stack:
        for _ in range(2):
            stalled = stack.enter_context(socket.socket())
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", int(address.rpartition(":")[2])))
            stalled.sendall(head("GET", "/openapi.json") * 200)  # more than the system's buffers hold

        def status():
            return httpx.get(f"{address}/healthz").status_code

        assert status() == 503
        wait_for(lambda: status() == 200)


# ------------------------------------------------------------------------------------------------ Milvus


def test_a_gallery_in_milvus(tmp_path, extractor, tiny_set, gallery_features):
    pytest.importorskip("milvus_lite")
    gallery = create_gallery(tmp_path / "people.db", extractor.feature_dim, extractor.checksum)
    records = tiny_set.gallery
    gallery.add(
        gallery_features, paths=[record.path for record in records], camids=[record.camid for record in records]
    )
    service = Service(gallery, extractor, Store(tmp_path / "state"), image_roots=[tiny_set.root])
    with client_of(service) as client:
        assert client.get("/overview").json()["cameras"] == sorted({record.camid for record in records})
        id = client.get("/gallery?limit=1").json()["entries"][0]["id"]
        assert client.get(f"/gallery/{id}/image").status_code == 200
        assert len(client.post("/search", data={"id": id, "k": 5, "cameras": 1}).json()["hits"]) == 5
        added = client.post("/gallery", files={"image": encoded(noise())}).json()["id"]
        assert client.post("/search", files={"image": encoded(noise())}).json()["hits"][0]["id"] == added
        assert client.delete(f"/gallery/{added}").status_code == 200
        assert client.get(f"/gallery/{added}").status_code == 404
        gallery.close()
        for answer in (client.post("/search", data={"id": id}), client.get("/healthz")):
            assert answer.status_code == 503
            assert "gallery cannot be read" in answer.json()["error"]


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".b"])
def test_a_host_that_is_no_name_is_one_line(host):
    with pytest.raises(UserError, match=rf"^cannot listen on {host} port 0: no valid name, expected a free port"):
        listen(host, 0)
