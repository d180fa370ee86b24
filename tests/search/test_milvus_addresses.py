"""Addresses of Milvus galleries, sharing between processes, and errors."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from han_tf import index
from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.search import Filters, create_gallery, milvus_client, milvus_gallery, open_gallery
from han_tf.search import __main__ as search
from han_tf.search.address import Address
from tests.search.search_helpers import CHECKSUM, clustered, labels

DIMENSION = 16


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("http://host:19530", Address("http://host:19530", "gallery")),
        ("https://host#people", Address("https://host", "people")),
        ("data/milvus.db", Address("data/milvus.db", "gallery")),
        ("milvus.db#a_1", Address("milvus.db", "a_1")),
        ("people", None),
        ("a.db/folder", None),
        ("people_db", None),
        ("http", None),
        ("http://me:s@cret@host", Address("http://host", "gallery", "me:s@cret")),
        ("s3://bucket", None),
        ("http://me:se#cr%40et@host:1#people", Address("http://host:1", "people", "me:se#cr@et")),
        ("https://key@host", Address("https://host", "gallery", "key")),
        ("HTTP://me:secret@host", Address("http://host", "gallery", "me:secret")),
    ],
)
def test_an_address_is_told_from_a_folder(path, expected):
    assert Address.of(path) == expected
    if expected:
        assert Address.of(str(expected)) == expected._replace(token="")
        assert expected.local == ("http" not in path.lower())
        assert Address.of(path, "other") == expected._replace(collection="other")


def test_a_host_whose_name_ends_like_a_file_is_no_file():
    assert not Address.of("http://people.db").local


def test_a_gallery_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "gallery.db"
    with monkeypatch.context() as newer:
        newer.setattr(milvus_client, "FORMAT", 2)
        create_gallery(path, DIMENSION, CHECKSUM).close()
    with pytest.raises(UserError, match="a gallery of format 2, expected 1: a newer han-tf made it, update this one"):
        open_gallery(path)


def test_a_password_is_used_and_never_shown(monkeypatch, capsys):
    milvus_client._import_client()  # before pymilvus itself, which would configure all logging
    from pymilvus import MilvusException

    given, path = [], "http://me:secret@127.0.0.1:9#people"

    def connect(uri, token, timeout):
        given.append((uri, token))
        raise MilvusException(message="no such host")

    monkeypatch.setattr(milvus_client, "_import_client", lambda: connect)
    messages = []
    for use in (lambda: open_gallery(path), lambda: create_gallery(path, DIMENSION, CHECKSUM)):
        with pytest.raises(UserError) as caught:
            use()
        messages.append(str(caught.value))
    for command, arguments in ((index, []), (search, ["--id=1"])):
        assert run(command.main, command.FLAGS, "", ["x", f"--index={path}", *arguments], "files") == 1
        messages.append("".join(capsys.readouterr()))
    assert given == 4 * [("http://127.0.0.1:9", "me:secret")]
    for message in [*messages, repr(Address.of(path))]:
        assert "http://127.0.0.1:9#people" in message
        assert "secret" not in message


def test_a_password_in_an_address_of_another_kind_is_not_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, arguments in ((index, []), (search, ["--id=1"])):
        arguments = ["x", "--index=milvus://me:secret@host:1", *arguments]
        assert run(command.main, command.FLAGS, "", arguments, "files") == 1
        told = "".join(capsys.readouterr())
        assert "milvus:// is no address of Milvus, expected http://HOST:PORT" in told
        assert "secret" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "1a", "ü", "a-b", 'x" or 1'])
def test_names_of_collections(name):
    with pytest.raises(UserError, match="expected letters, digits and underscores"):
        Address.of("http://host", name)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a server of Milvus Lite, which stands for a cluster."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    monkeypatch.setattr(milvus_gallery, "SETTLED_SECONDS", 1.0)
    server, database, port = start_server_in_thread(data_dir=str(tmp_path / "data"), host="127.0.0.1", port=0)
    yield f"http://127.0.0.1:{port}"
    server.stop(grace=0)
    database.close()


def test_the_same_code_serves_an_address(server):
    """Two clients share a gallery."""
    features, known = clustered(300, DIMENSION), labels(300)
    path = f"{server}#people"
    with create_gallery(path, DIMENSION, CHECKSUM) as first, open_gallery(path, CHECKSUM) as second:
        assert first.location == second.location == path
        ids = first.add(features, **known)
        np.testing.assert_array_equal(second.features(ids[:5]), features[:5])
        (hits,) = second.search(features[:1], 4, filters=Filters(cameras=(1, 2)))
        assert {hit.entry.camid for hit in hits} <= {1, 2}
        assert second.delete(ids[:100]) == 100
        assert len(first) == 200
        more = second.add(features[:3])
        assert [hits[0].entry.id for hits in first.search(features[:3], 1)] == more.tolist()
        assert ids.max() < 2**53
    with pytest.raises(UserError, match=f"{server}#others: no gallery here"):
        open_gallery(f"{server}#others")


def test_one_of_several_at_once_makes_a_gallery(server):
    address, made, refused = Address.of(f"{server}#people"), [], []
    client = milvus_client.connect(address, None)  # which all clients of a process share
    together = threading.Barrier(3)

    def make(checksum):
        together.wait()
        try:
            milvus_client.make_collections(client, address, DIMENSION, checksum, "FLAT", 1.0)
            made.append(checksum)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=make, args=(letter * 64,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another process makes a gallery" in line or "a gallery already" in line for line in refused), refused
    assert len(refused) == 2
    with open_gallery(str(address)) as gallery:
        assert [gallery.checksum] == made
        assert len(gallery.add(clustered(50, DIMENSION))) == len(gallery) == 50


def test_a_gallery_is_made_where_somebody_was_interrupted(server, monkeypatch):
    monkeypatch.setattr(milvus_client, "CREATED_SECONDS", 2.0)
    path, make_entries = f"{server}#people", milvus_client._make_entries

    def interrupted(*arguments):
        make_entries(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(milvus_client, "_make_entries", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create_gallery(path, DIMENSION, CHECKSUM)
    monkeypatch.setattr(milvus_client, "_make_entries", make_entries)
    with create_gallery(path, 2 * DIMENSION, CHECKSUM) as gallery:
        assert gallery.dimension == 2 * DIMENSION
        assert len(gallery.add(clustered(5, 2 * DIMENSION))) == 5
    with pytest.raises(UserError, match="there is a gallery already"):
        create_gallery(path, DIMENSION, CHECKSUM)


def test_an_addition_that_fails_is_taken_back(tmp_path, monkeypatch):
    with create_gallery(tmp_path / "g.db", DIMENSION, CHECKSUM, index="FLAT") as gallery:
        gallery.add(clustered(10, DIMENSION))
        upsert, calls = gallery.client.upsert, []

        def fails_later(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                raise UserError("connection lost")
            return upsert(*arguments)

        monkeypatch.setattr(milvus_gallery, "REQUEST_BYTES", 40 * 4 * DIMENSION)
        monkeypatch.setattr(gallery.client, "upsert", fails_later)
        with pytest.raises(UserError, match="connection lost"):
            gallery.add(clustered(100, DIMENSION))
        assert len(calls) == 3
        assert len(gallery) == 10
        monkeypatch.setattr(gallery.client, "upsert", upsert)
        assert len(gallery.add(clustered(100, DIMENSION))) == 100
        assert len(gallery) == 110


def test_a_file_belongs_to_one_process(tmp_path):
    path = tmp_path / "g.db"
    code = "import sys; from han_tf.search import open_gallery; open_gallery(sys.argv[1])"
    with create_gallery(path, DIMENSION, CHECKSUM):
        process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert process.stderr.splitlines()[-1] == (
        f"han_tf.common.errors.UserError: {path}: another process has this file of Milvus Lite open, "
        "expected one at a time"
    )


def test_what_is_no_file_of_milvus(tmp_path):
    (tmp_path / "g.db").write_text("something else")
    with pytest.raises(UserError, match=r"g\.db"):
        open_gallery(tmp_path / "g.db")


@pytest.mark.parametrize(("module", "path", "extra"), [("faiss", "g", "search"), ("pymilvus", "g.db", "milvus")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, path, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install '\.\[{extra}\]'") as caught:
        create_gallery(tmp_path / path, DIMENSION, CHECKSUM)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / path).exists()


def test_what_other_processes_set_stays(tmp_path):
    """Many processes may use a cluster's gallery at once; each has read the settings when it opened it."""
    with create_gallery(tmp_path / "g.db", 8, CHECKSUM, "milvus", index="FLAT") as gallery:
        others = {**gallery.settings, "threshold": 0.9, "calibration": {"kind": "search"}}
        milvus_client.write_settings(gallery.client, gallery.address, others)
        gallery.note_white_level(4095.0)
        stored = milvus_client.load_settings(gallery.client, gallery.address)
        assert (stored["threshold"], stored["calibration"]) == (0.9, {"kind": "search"})
        assert stored["white_levels"] == [4095.0]
        assert gallery.threshold == 0.9
