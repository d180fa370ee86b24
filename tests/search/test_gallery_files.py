"""The folder of a gallery: crashes, damage, several processes, and its derived index."""

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from han_tf.common.errors import UserError
from han_tf.search import Filters, create_gallery, open_gallery, vector_index
from han_tf.search import database as database_module
from han_tf.search import faiss_gallery as faiss_engine
from han_tf.search import store as store_module
from han_tf.search.entries import Entry
from han_tf.search.tables import relabel_as_listed
from tests.search.search_helpers import CHECKSUM, clustered

DIMENSION = 16
HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gallery"


@pytest.fixture
def small_builds(monkeypatch):
    monkeypatch.setattr(vector_index, "BUILT_LEAST", 300)
    monkeypatch.setattr(vector_index, "UNASKED_LEAST", 10**9)


def built(path, engine="hnsw", count=600):
    with create_gallery(path, DIMENSION, CHECKSUM, engine, threads=1) as gallery:
        gallery.add(clustered(count, DIMENSION))
        gallery.build()
    return clustered(count, DIMENSION)


def sql(path, statement, *values):
    """Runs a statement on the database of a gallery; returns the rows of its answer."""
    with contextlib.closing(sqlite3.connect(path / database_module.DATABASE)) as database, database:
        return database.execute(statement, values).fetchall()


def index_file(path):
    (file,) = path.glob("index-*.faiss")
    return file


def finds_itself(gallery, features):
    return [hits[0].entry.id for hits in gallery.search(features, 1)] == list(range(len(features)))


def run(code, *arguments, **options):
    """Starts a Python process that can import the helpers."""
    head = f"import sys; sys.path.insert(0, {str(HERE)!r}); from search_helpers import *\n"
    head += "from han_tf.search import create_gallery, open_gallery; import han_tf.search.vector_index as engine\n"
    return subprocess.Popen([sys.executable, "-c", head + code, *map(str, arguments)], **options)


def test_bytes_that_a_crash_left_are_overwritten(path):
    with create_gallery(path, DIMENSION, CHECKSUM, "flat") as gallery:
        gallery.add(clustered(10, DIMENSION))
    with open(path / "vectors-0.f32", "ab") as stream:
        stream.write(b"\xff" * 1001)
    features = clustered(15, DIMENSION, 3)
    with open_gallery(path) as gallery:
        assert len(gallery) == 10
        np.testing.assert_array_equal(gallery.add(features), np.arange(10, 25))
        np.testing.assert_array_equal(gallery.features(range(10, 25)), features)
    assert (path / "vectors-0.f32").stat().st_size == 25 * DIMENSION * 4


def test_a_commit_that_fails_changes_nothing(path, monkeypatch):
    features = clustered(10, DIMENSION)
    with create_gallery(path, DIMENSION, CHECKSUM, "flat") as gallery:
        gallery.add(features)
        sql(path, "CREATE TRIGGER full BEFORE INSERT ON entries BEGIN SELECT RAISE(FAIL, 'disk full'); END")
        with pytest.raises(UserError, match=r"cannot write .*gallery.sqlite: disk full"):
            gallery.add(features)
        assert len(gallery) == 10
        assert finds_itself(gallery, features)


ADD_FOREVER = """
gallery = open_gallery(sys.argv[1])
for i in range(10**6):
    ids = gallery.add(clustered(40, 16, i))
    print(ids[-1], flush=True)
"""


def test_kill_9_while_adding_loses_no_confirmed_and_keeps_no_partial_addition(path):
    create_gallery(path, DIMENSION, CHECKSUM, "flat").close()
    confirmed = 0
    for round_number in range(3):
        process = run(ADD_FOREVER, path, stdout=subprocess.PIPE, text=True)
        for _ in range(round_number + 2):
            confirmed = int(process.stdout.readline()) + 1
        time.sleep(0.003 * round_number)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        confirmed = max([confirmed, *(int(line) + 1 for line in rest[:-1])])
        with open_gallery(path) as gallery:
            assert len(gallery) >= confirmed
            assert len(gallery) % 40 == 0
            last = gallery.features(range(len(gallery) - 40, len(gallery)))
            assert any(np.array_equal(last, clustered(40, DIMENSION, i)) for i in range(len(gallery) // 40))
            assert [hits[0].distance for hits in gallery.search(last, 1)] == [0.0] * 40


CHANGE_AND_GO_ON = """
engine.BUILT_LEAST = 300
gallery = open_gallery(sys.argv[1], writable=True)
gallery.delete(range(50))
gallery.store.database._writer.set_trace_callback(lambda sql: sql == "COMMIT" and print("commits", flush=True))
print("begun", flush=True)
sys.stdin.readline()
try:
    gallery.compact() if sys.argv[2] == "compact" else gallery.add(clustered(70, 16, 2))
except KeyboardInterrupt:
    print("interrupted", flush=True)
gallery.store.database._writer.set_trace_callback(None)
print(len(gallery), gallery.add(clustered(40, 16, 3))[0], gallery.search(clustered(40, 16, 3)[7:8], 1)[0][0].entry.id)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
@pytest.mark.parametrize(("change", "more"), [("compact", 0), ("add", 70)])
def test_a_signal_while_the_disk_confirms(path, number, change, more, small_builds):
    """A reader delays the commit. After SIGINT the commit succeeds, after SIGKILL it does not take place."""
    features = built(path)[50:]
    reader = sqlite3.connect(path / "gallery.sqlite", isolation_level=None)
    process = run(CHANGE_AND_GO_ON, path, change, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchone()
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "commits\n"
    time.sleep(0.5)
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
    reader.execute("ROLLBACK")
    reader.close()
    out = process.communicate()[0].split()
    if number == signal.SIGINT:
        assert out == ["interrupted", str(550 + more), str(600 + more), str(607 + more)]
        features = np.concatenate([features, clustered(70, DIMENSION, 2)[:more], clustered(40, DIMENSION, 3)])
    with open_gallery(path, writable=True) as gallery:
        assert len(gallery) == len(features)
        assert [hits[0].distance for hits in gallery.search(features, 1)] == [0.0] * len(features)
        ids = list(range(50, 50 + len(features)))
        np.testing.assert_array_equal(gallery.features(ids), features)
        assert [hits[0].entry.id for hits in gallery.search(features, 1)] == ids
        assert [file.name for file in path.glob("vectors-*")] == [gallery.store.settings["vectors"]]


def test_vectors_that_a_killed_compaction_left_are_removed(path):
    features = built(path, "flat", 20)
    code = (
        "import os; from pathlib import Path\n"
        "Path.unlink = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "gallery = open_gallery(sys.argv[1]); gallery.delete([0]); gallery.compact()"
    )
    assert run(code, path).wait() == -signal.SIGKILL
    (path / "vectors-2.f32").touch()  # and of one that was killed before it committed
    assert len(list(path.glob("vectors-*"))) == 3
    with open_gallery(path, writable=True) as gallery:
        np.testing.assert_array_equal(gallery.features(range(1, 20)), features[1:])
        assert [file.name for file in path.glob("vectors-*")] == ["vectors-1.f32"]


def held(path, feature, name="no name"):
    """Returns which files of a gallery hold the bytes of a vector or a path."""
    needles = (feature.tobytes(), name.encode())
    return {file.name for file in path.iterdir() if any(needle in file.read_bytes() for needle in needles)}


def test_what_is_deleted_is_in_no_file(path):
    features, names = clustered(50, DIMENSION), [f"somebody/{i}/portrait.jpg" for i in range(50)]
    with create_gallery(path, DIMENSION, CHECKSUM, "flat") as gallery:
        gallery.add(features, paths=names)
        assert held(path, features[7], names[7]) == {"vectors-0.f32", "gallery.sqlite"}
        with open_gallery(path) as reader:
            assert gallery.delete([7, 8, 20, 49]) == 4
            for row in (7, 8, 20, 49):
                assert held(path, features[row], names[row]) == set()
            gone = {7, 8, 20, 49}
            for hits in reader.search(features, 50):  # its rows still include the deleted ones
                assert {hit.entry.id for hit in hits} == set(range(50)) - gone
            with pytest.raises(UserError, match="no entry 8"):
                reader.features([8])
        gallery.add(features[:1], paths=names[:1], replace=True)
        (new,) = gallery.add(features[1:2] + 0.5, paths=names[1:2], replace=True)
        assert new == 50
        assert held(path, features[1]) == set()
        kept = [i for i in range(50) if i not in gone | {1}]
        np.testing.assert_array_equal(gallery.features(kept), features[kept])


def test_vectors_that_a_kill_left_are_overwritten_by_the_next_writer(path):
    features = built(path, "flat", 50)
    code = (
        "import os; from han_tf.search.store import Store\n"
        "Store._overwrite = lambda self, rows: len(rows) and os.kill(os.getpid(), 9)\n"
        "open_gallery(sys.argv[1]).delete([3, 4])"
    )
    assert run(code, path).wait() == -signal.SIGKILL
    assert held(path, features[3]) == {"vectors-0.f32"}
    with open_gallery(path, writable=True) as gallery:
        assert held(path, features[3]) == held(path, features[4]) == set()
        assert len(gallery) == 48


def flip(path, row, byte=5, bit=16):
    """Changes one bit of a stored vector."""
    (file,) = path.glob("vectors-*.f32")
    with open(file, "r+b") as stream:
        stream.seek(row * DIMENSION * 4 + byte)
        (before,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([before ^ bit]))


def test_a_vector_whose_last_digit_is_damaged_is_replaced(path):
    """It equals the given feature but for rounding, yet not its checksum."""
    features, paths = clustered(50, DIMENSION), [f"{number}.jpg" for number in range(50)]
    with create_gallery(path, DIMENSION, CHECKSUM) as gallery:
        assert gallery.add(features, paths=paths).tolist() == list(range(50))
    flip(path, 6, byte=0, bit=1)
    with open_gallery(path) as gallery:
        assert "(ids 6 6.jpg)" in gallery.notes[0]
        assert gallery.add(features, paths=paths, replace=True).tolist() == [*range(6), 50, *range(7, 50)]
        assert gallery.notes == []
        assert gallery.check() == 50


def test_somebody_elses_file_called_lock_stays(path):
    path.mkdir()
    (path / "lock").write_text("my notes\n")
    with pytest.raises(UserError, match="holds 'lock', expected a new or an empty folder"):
        create_gallery(path, DIMENSION, CHECKSUM)
    assert (path / "lock").read_text() == "my notes\n"


@pytest.mark.parametrize("checksum", ["eight", b"\0", 1e300, -(2**63), 2**32])
def test_a_checksum_that_is_none_counts_as_a_damaged_vector(path, checksum):
    with create_gallery(path, DIMENSION, CHECKSUM) as gallery:
        gallery.add(clustered(3, DIMENSION), paths=["0.jpg", "1.jpg", "2.jpg"])
        sql(path, "UPDATE checksums SET crc = ? WHERE id = 1", checksum)
        with pytest.raises(UserError, match=r"the vectors of 1 entries are damaged \(ids 1 1.jpg\)"):
            gallery.check()


@pytest.mark.parametrize("engine", ["flat", "hnsw"])
def test_a_damaged_vector_is_named_and_its_source_mends_it(path, engine, small_builds):
    features, names = clustered(600, DIMENSION), [f"{i}.jpg" for i in range(600)]
    with create_gallery(path, DIMENSION, CHECKSUM, engine, threads=1) as gallery:
        gallery.add(features, paths=names)
        gallery.build()
        gallery.delete([3, 599])
        gallery.compact()
        assert gallery.check() == 598
    flip(path, 6)  # the row of entry 7, because 3 has no row any more
    with open_gallery(path) as gallery:
        (note,) = gallery.notes
        assert note.startswith("the vectors of 1 entries are damaged (ids 7 7.jpg): add their sources again")
        with pytest.raises(UserError, match=r"gallery: the vectors of 1 entries are damaged \(ids 7 7.jpg\)"):
            gallery.check()
        ids = gallery.add(features[4:20], paths=names[4:20], replace=True)
        assert ids.tolist() == [4, 5, 6, 600, *range(8, 20)]
        assert gallery.notes == []  # at once
        assert gallery.check() == 598
        assert gallery.notes == []
        np.testing.assert_array_equal(gallery.features([600]), features[7:8])


def test_a_large_gallery_is_checked_when_it_is_asked_for(path, monkeypatch):
    built(path, "flat", 50)
    flip(path, 6)
    monkeypatch.setattr(faiss_engine, "FLAT_BYTES", 50 * DIMENSION * 4 - 1)
    with open_gallery(path) as gallery:
        assert gallery.store.damaged()[0] == gallery.entries([6])
        assert not any("damaged" in note for note in gallery.notes)
        with pytest.raises(UserError, match="ids 6"):
            gallery.check()
        assert any("damaged" in note for note in gallery.notes)
        gallery.delete([6])
        assert gallery.check() == 49


def test_a_vector_that_is_deleted_while_it_is_checked_is_not_damaged(path):
    built(path, "flat", 50)
    with open_gallery(path) as reader, open_gallery(path) as writer:
        writer.delete([3, 4])
        assert reader.store.damaged() == ([], 48)


def test_a_gallery_of_an_earlier_version_has_checksums_of_what_is_added_later(path):
    features = built(path, "flat", 50)
    sql(path, "DROP TABLE checksums")
    with open_gallery(path) as gallery:
        assert gallery.check() == 0
        gallery.delete([0])
        gallery.add(features[:5] + 1)
        assert (gallery.check(), len(gallery)) == (5, 54)
    flip(path, 52)
    with open_gallery(path) as gallery:
        assert ["ids 52" in note for note in gallery.notes] == [True]


@pytest.mark.parametrize("engine", ["hnsw", "ivfpq"])
def test_an_index_is_built_over_deleted_rows(path, engine, small_builds):
    features = built(path, engine, 900)
    with open_gallery(path) as gallery:
        gone = np.arange(0, 900, 3)
        gallery.delete(gone)
        gallery.build(anew=True)
        kept = np.setdiff1d(np.arange(900), gone)
        assert gallery.info()["indexed"] == 900
        assert [hits[0].entry.id for hits in gallery.search(features[kept], 1)] == kept.tolist()


def test_an_addition_stands_although_the_index_cannot_be_written(path, small_builds, monkeypatch):
    monkeypatch.setattr(vector_index, "UNASKED_LEAST", 400)
    features = clustered(650, DIMENSION)
    write = vector_index.ApproximateIndex.write

    def full(*_):
        raise RuntimeError("Error in write_index:\n No space left on device")

    with create_gallery(path, DIMENSION, CHECKSUM, "hnsw", threads=1) as gallery:
        monkeypatch.setattr(vector_index.ApproximateIndex, "write", full)
        np.testing.assert_array_equal(gallery.add(features[:500]), np.arange(500))
        (note,) = gallery.notes
        assert note.startswith("cannot write")
        assert "No space left on device" in note
        monkeypatch.setattr(vector_index, "_add_rows", full)
        np.testing.assert_array_equal(gallery.add(features[500:600]), np.arange(500, 600))
        assert gallery.info()["indexed"] == 0
        assert finds_itself(gallery, features[:600])
        monkeypatch.undo()
        monkeypatch.setattr(vector_index, "BUILT_LEAST", 300)
        assert vector_index.ApproximateIndex.write is write
        gallery.build()
        assert gallery.notes == []
        assert gallery.info()["indexed"] == 600


def test_searches_go_on_while_a_reader_becomes_the_writer(path, small_builds, monkeypatch):
    """Another process has renumbered the rows: searches use the old index only with the old rows."""
    features = built(path, count=900)
    with open_gallery(path) as reader:
        with open_gallery(path) as other:
            other.delete(range(400))
            other.compact()
        read, found = reader.index._read_snapshot, []

        def search_first():
            found.extend(hits[0].entry.id for hits in reader.search(features[400:], 1))
            return read()

        monkeypatch.setattr(reader.index, "_read_snapshot", search_first)
        reader.set_threshold(1.0)
        assert found == list(range(400, 900))
        assert [hits[0].entry.id for hits in reader.search(features[400:], 1)] == found


BUILD_FOREVER = """
engine.BUILT_LEAST = 300
gallery = open_gallery(sys.argv[1], writable=True)
print("begun", flush=True)
while True:
    gallery.build(anew=True)
    print("built", flush=True)
"""


@pytest.mark.parametrize("engine", ["hnsw", "ivfpq"])
def test_kill_9_while_building_leaves_the_old_index_or_the_new(path, engine, small_builds):
    features = built(path, engine)
    for delay in (0.0, 0.04, 0.11):
        process = run(BUILD_FOREVER, path, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with open_gallery(path) as gallery:
            info = gallery.info()
            assert info["notes"] == []
            assert info["indexed"] == len(gallery) == 600
            assert finds_itself(gallery, features)
    with open_gallery(path) as gallery:
        gallery.build(anew=True)
    left = {file.name for file in path.iterdir()}
    assert left == {"gallery.sqlite", "vectors-0.f32", "lock", index_file(path).name}


@pytest.mark.parametrize("engine", ["hnsw", "ivfpq"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "one byte", "missing"])
def test_a_damaged_index_is_not_loaded(path, engine, damage, small_builds):
    features = built(path, engine)
    file = index_file(path)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "longer":
        file.write_bytes(content + b"0")
    elif damage == "one byte":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with open_gallery(path) as gallery:
        (note,) = [note for note in gallery.notes if file.name in note]
        assert "\n" not in note
        assert gallery.info()["indexed"] == 0
        assert finds_itself(gallery, features)
        gallery.build()
        assert gallery.notes == []
    with open_gallery(path) as gallery:
        assert gallery.info()["indexed"] == 600
        assert finds_itself(gallery, features)


@pytest.mark.parametrize("engine", ["hnsw", "ivfpq"])
def test_rows_that_the_index_lacks_are_found(path, engine, small_builds):
    features = built(path, engine)
    more = clustered(50, DIMENSION, 4)
    with open_gallery(path) as gallery:
        gallery.add(more)
        assert gallery.info()["indexed"] == 650
        written = json.loads(json.dumps(gallery.store.settings["snapshot"]))
        assert written["rows"] == 600
        process = run(
            "gallery = open_gallery(sys.argv[1]); print(gallery.info()['indexed'], len(gallery))\n"
            "print(gallery.search(clustered(50, 16, 4)[7:8], 1)[0][0].entry.id)",
            path,
            stdout=subprocess.PIPE,
        )
        assert process.communicate()[0].split() == [b"600", b"650", b"607"]
    with open_gallery(path) as gallery:
        assert gallery.info()["indexed"] == 650
        assert finds_itself(gallery, np.concatenate([features, more]))


def scenes(kind):
    """Returns first and later features; an index that was trained on the former has a low recall for the latter."""
    people = clustered(1200, DIMENSION, 3, people=1200)
    if kind == "a still scene first":
        return np.repeat(clustered(1, DIMENSION, 9), 1000, axis=0) + 1e-6 * people[:1000], people
    rotated = np.linalg.qr(np.random.default_rng(4).standard_normal((DIMENSION, DIMENSION)))[0].astype(np.float32)
    return clustered(1000, DIMENSION, latent=2), 3 * people @ rotated


def exactly(gallery, features, queries):
    ids = [[hit.entry.id for hit in hits] for hits in gallery.search(queries, 5)]
    distances = ((queries[:, None].astype(np.float64) - features[None].astype(np.float64)) ** 2).sum(axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :5]
    return np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids, expected.tolist())])


@pytest.mark.parametrize("kind", ["a still scene first", "day and night"])
@pytest.mark.parametrize("engine", ["hnsw", "ivfpq"])
def test_an_index_that_learned_from_other_images_is_noticed_and_built_anew(path, engine, kind, monkeypatch):
    for name, value in (("BUILT_LEAST", 300), ("UNASKED_LEAST", 400), ("CANDIDATES_LEAST", 10), ("EXACT_SHARE", 50)):
        monkeypatch.setattr(vector_index, name, value)
    monkeypatch.setattr(vector_index, "CANDIDATES_PER_HIT", 2)
    first, later = scenes(kind)
    features, may_build = np.concatenate([first, later]), threading.Event()
    train, queries = vector_index.VectorIndex._train, later[::40]

    def waits(self, *arguments):
        assert may_build.wait(60)
        train(self, *arguments)

    with create_gallery(path, DIMENSION, CHECKSUM, engine, threads=1) as gallery:
        gallery.add(first)
        assert gallery.info()["recall"] > 0.8
        monkeypatch.setattr(vector_index.VectorIndex, "_train", waits)
        with monkeypatch.context() as unnoticed:
            unnoticed.setattr(faiss_engine.FaissGallery, "_tend", lambda self: None)
            gallery.add(later)
            assert exactly(gallery, features, queries) < 0.9  # the low recall that is to be noticed
        gallery._tend()
        while not (notes := gallery.notes):
            time.sleep(0.01)
        assert re.match(r"the index was trained on other images and finds only \d+% of the nearest ones", notes[0])
        assert exactly(gallery, features, queries) == 1.0
        with open_gallery(path) as reader:
            assert reader.notes == notes
            assert exactly(reader, features, queries) == 1.0
        may_build.set()
        gallery._worker.join()
        assert gallery.notes == []
        assert gallery.info()["recall"] > 0.85
        assert exactly(gallery, features, queries) > 0.95
    with open_gallery(path) as gallery:
        assert (gallery.notes, gallery.info()["indexed"]) == ([], len(features))


def test_build_checks_the_index_and_an_old_snapshot_is_checked_when_it_is_next_changed(path, small_builds, monkeypatch):
    first, later = scenes("a still scene first")
    with create_gallery(path, DIMENSION, CHECKSUM, "hnsw", threads=1) as gallery:
        gallery.add(first)
        gallery.build()
        monkeypatch.setattr(vector_index.VectorIndex, "unchecked", lambda self: False)  # as in older versions
        gallery.add(later)
        gallery.build()
        bad = gallery.store.settings["snapshot"]
        assert bad["trained"] == len(first)
        old = {name: bad[name] for name in ("file", "sha256", "kind", "rows", "trained")}
        gallery.store.commit({"snapshot": old})
    monkeypatch.undo()
    monkeypatch.setattr(vector_index, "BUILT_LEAST", 300)
    with open_gallery(path) as gallery:
        assert gallery.store.settings["snapshot"] == old
        gallery.build()
        assert gallery.store.settings["snapshot"]["trained"] == len(first) + len(later)
        assert exactly(gallery, np.concatenate([first, later]), later[::40]) > 0.95


def test_a_gallery_compacts_itself_when_many_are_deleted(path, monkeypatch):
    monkeypatch.setattr(faiss_engine, "COMPACTED_LEAST", 100)
    features = built(path, "flat", 600)
    with open_gallery(path) as gallery:
        gallery.delete(range(119))
        assert gallery._worker is None
        gallery.delete(range(119, 130))
        gallery._worker.join()
        assert gallery.info()["deleted"] == 0
        assert (path / "vectors-1.f32").stat().st_size == 470 * 4 * DIMENSION
        assert [hits[0].entry.id for hits in gallery.search(features[130:], 1)] == list(range(130, 600))


def test_closing_ends_what_is_built_in_a_thread(path, small_builds, monkeypatch):
    first, later = scenes("a still scene first")
    begun, close = threading.Event(), threading.Event()

    def begins(index, state, most, add=vector_index._add_rows):
        if threading.current_thread().name == "han-gallery":
            begun.set()
            assert close.wait(60)
            most = 100
        add(index, state, most)

    gallery = create_gallery(path, DIMENSION, CHECKSUM, "hnsw", threads=1)
    gallery.add(first)
    gallery.build()
    monkeypatch.setattr(vector_index, "_add_rows", begins)
    gallery.add(later)
    assert begun.wait(60)
    threading.Timer(0.2, close.set).start()
    gallery.close()
    assert not gallery._worker.is_alive()
    with open_gallery(path) as gallery:
        assert len(gallery) == len(first) + len(later)
        assert exactly(gallery, np.concatenate([first, later]), later[::40]) == 1.0


def test_the_engine_can_be_changed(path, small_builds):
    features = built(path, "flat")
    with open_gallery(path) as gallery:
        for engine in ("hnsw", "ivfpq", "auto"):
            gallery.build(engine)
            assert gallery.engine == ("flat" if engine == "auto" else engine)
            assert finds_itself(gallery, features)
        assert list(path.glob("index-*")) == []
        with pytest.raises(UserError, match="engine is 'annoy', expected auto, flat, hnsw, ivfpq"):
            gallery.build("annoy")


def test_one_process_writes_and_others_read(path):
    features = clustered(20, DIMENSION)
    with create_gallery(path, DIMENSION, CHECKSUM, "flat") as gallery:
        gallery.add(features[:10])
        with open_gallery(path) as reader:
            assert finds_itself(reader, features[:10])
            for change in (
                lambda: reader.add(features),
                lambda: reader.delete([1]),
                lambda: reader.set_threshold(1.0),
                lambda: reader.compact(),
                lambda: open_gallery(path, writable=True),
            ):
                with pytest.raises(UserError, match=f"process {os.getpid()} is writing to this gallery") as caught:
                    change()
                assert "\n" not in str(caught.value)
            gallery.add(features[10:])
            gallery.delete([0])
            gallery.compact()
            # The reader sees the gallery as it was opened, without what was deleted since.
            found = [[hit.entry.id for hit in hits] for hits in reader.search(features[[3, 0]], 10)]
            assert found[0][0] == 3
            assert [sorted(ids) for ids in found] == 2 * [list(range(1, 10))]
            assert [hit.entry.id for hit in reader.search(features[12:13], 20)[0]].count(12) == 0
            gallery.close()
            np.testing.assert_array_equal(reader.add(features[:1]), [20])  # loads the changes of the other first
            assert len(reader) == 20
            np.testing.assert_array_equal(reader.features([19, 20]), features[[19, 0]])


@pytest.mark.parametrize("engine", ["flat", "hnsw"])
def test_a_reader_finds_as_many_as_the_writer_after_deletions(path, engine):
    # So far from each other that zeros, which overwrite a deleted vector, are nearer.
    vectors = np.random.default_rng(0).standard_normal((3005, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[3000:]
    with create_gallery(path, 64, CHECKSUM, engine) as gallery:
        gallery.add(vectors[:3000])
        gallery.build()

    def reading(action):
        with open_gallery(path) as reader, open_gallery(path, writable=True) as writer:
            first, last = writer.page(1)[0].id, writer.page(3000)[-1].id
            writer.delete(range(first, first + 500))
            return action(reader), action(writer), range(first + 500, last + 1)

    for action in (
        lambda gallery: [[hit.entry.id for hit in hits] for hits in gallery.search(queries, 10)],
        lambda gallery: gallery.search_ids(queries, 10)[0].tolist(),
        lambda gallery: [[hit.entry.id for hit in hits] for hits in gallery.search(queries, 10, rerank=True)],
    ):
        found, expected, left = reading(action)
        assert found == expected
        assert all(len(ids) == 10 and set(ids) <= set(left) for ids in found)
    found, _, left = reading(lambda gallery: [entry.id for entry in gallery.page(10, after=left[0] - 1)])
    assert found == [*left[:10]]


def test_entries_that_are_deleted_during_a_search_make_room_for_others(path):
    vectors = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with create_gallery(path, 64, CHECKSUM, "flat") as gallery:
        gallery.add(vectors)
        search = gallery.index.search

        def slow_search(*arguments):
            found = search(*arguments)
            gallery.index.search = search
            gallery.delete(found[0][0][:7])
            return found

        gallery.index.search = slow_search
        ids = [hit.entry.id for hit in gallery.search(vectors[:1], 10)[0]]
        assert len(ids) == 10
        assert ids == [hit.entry.id for hit in gallery.search(vectors[:1], 10)[0]]


def test_replacing_in_another_order_touches_no_other_vector(path):
    features = clustered(8, DIMENSION)
    with create_gallery(path, DIMENSION, CHECKSUM, "flat") as gallery:
        gallery.add(features[:5], paths=["d", "c", "b", "a", "e"])
        gallery.add(features[5:], paths=["a", "b", "d"], replace=True)
        np.testing.assert_array_equal(gallery.features([1, 4, 5, 6, 7]), features[[1, 4, 5, 6, 7]])
        assert gallery.check() == 5
    stored = np.fromfile(path / "vectors-0.f32", "<f4").reshape(-1, DIMENSION)
    assert not stored[[0, 2, 3]].any()


def test_a_sample_and_what_is_deleted_by_filters_are_of_now(path):
    features = clustered(40, DIMENSION)
    with create_gallery(path, DIMENSION, CHECKSUM, "flat") as gallery:
        gallery.add(features[:30], camids=[3] * 30)
    with open_gallery(path) as reader:
        with open_gallery(path, writable=True) as writer:
            writer.relabel([0], camids=[4])
            writer.delete(range(5, 30))
            writer.add(features[30:], camids=[3] * 10)
        assert [entry.id for entry in reader.some(10)] == [0, 1, 2, 3, 4]
        assert reader.delete_where(Filters(cameras=(3,))) == 14
        assert [entry.id for entry in reader.page(50)] == [0]


@pytest.mark.parametrize("place", ["renamed", "made anew", "removed"])
def test_a_gallery_in_the_place_of_the_opened_one_stays_whole(path, tmp_path, place):
    features = clustered(50, DIMENSION)
    create_gallery(path, DIMENSION, CHECKSUM, "flat").close()
    with open_gallery(path, writable=True) as gallery:
        gallery.add(features[:5])
        if place == "renamed":
            path.rename(tmp_path / "moved")
        else:
            shutil.rmtree(path)
        if place != "removed":
            with create_gallery(path, DIMENSION, CHECKSUM, "flat") as new:
                new.add(features)
                new.delete([7])
                new.compact()
        before = sorted((file.name, file.read_bytes()) for file in path.glob("vectors-*"))
        for change in (
            lambda: gallery.add(features[:1]),
            lambda: gallery.delete([0]),
            lambda: gallery.relabel([0], pids=[3]),
            lambda: gallery.set_threshold(1.0),
            lambda: gallery.build("hnsw"),
            gallery.compact,
        ):
            with pytest.raises(UserError, match="the gallery that was opened is no longer there"):
                change()
        assert sorted((file.name, file.read_bytes()) for file in path.glob("vectors-*")) == before
    if place != "removed":
        with open_gallery(path) as new:
            assert len(new) == 49
            assert new.notes == []


def test_a_reader_changes_no_gallery_in_the_place_of_the_opened_one(path, tmp_path):
    create_gallery(path, DIMENSION, CHECKSUM, "flat").close()
    with open_gallery(path) as reader:
        path.rename(tmp_path / "moved")
        with create_gallery(path, DIMENSION, CHECKSUM, "flat") as new:
            new.add(clustered(5, DIMENSION))
            new.delete([0])
            new.compact()
        with pytest.raises(UserError, match="the gallery that was opened is no longer there"):
            reader.add(clustered(1, DIMENSION))
        with open_gallery(path) as new:
            assert len(new) == 4
        shutil.rmtree(path)
        path.mkdir()
        with pytest.raises(UserError, match="the gallery that was opened is no longer there"):
            reader.add(clustered(1, DIMENSION))
        assert list(path.iterdir()) == []


def test_an_index_over_few_living_rows_is_searched_exactly(path):
    features = clustered(1100, DIMENSION)
    with create_gallery(path, DIMENSION, CHECKSUM, "ivfpq") as gallery:
        gallery.add(features)
        gallery.delete(range(950))
        gallery.build(anew=True)
        assert gallery.info()["indexed"] == 0
        assert [hits[0].entry.id for hits in gallery.search(features[950:], 1)] == [*range(950, 1100)]


def test_what_is_no_gallery_is_said_in_one_line(path, tmp_path):
    with pytest.raises(UserError, match=r"no gallery here \(gallery.sqlite is missing\)"):
        open_gallery(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds 'notes.txt', expected a new or an empty folder"):
        create_gallery(tmp_path, DIMENSION, CHECKSUM)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    built(path, "flat", 10)
    (path / "vectors-0.f32").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"vectors-0.f32: 4 bytes, expected at least 640"):
        open_gallery(path)
    (path / "vectors-0.f32").unlink()
    with pytest.raises(UserError, match=r"vectors-0.f32: No such file"):
        open_gallery(path)
    sql(path, "UPDATE settings SET value = '7' WHERE key = 'format'")
    with pytest.raises(UserError, match="a gallery of format 7, expected 1: a newer han-tf made it, update this one"):
        open_gallery(path)
    sql(path, "UPDATE settings SET value = '0' WHERE key = 'format'")
    with pytest.raises(UserError, match="a gallery of format 0, expected 1: build it again"):
        open_gallery(path)
    (path / "gallery.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"gallery.sqlite: file is not a database"):
        open_gallery(path)


@pytest.mark.parametrize("column", ["row = 0", "row = 99", "row = 'x'", "id = id + 50 * (row = 1)"])
def test_a_damaged_database_is_said_in_one_line(path, column):
    built(path, "flat", 10)
    sql(path, f"UPDATE entries SET {column} WHERE row in (1, 2)")
    with pytest.raises(UserError, match=r"gallery.sqlite: damaged|expected a gallery"):
        open_gallery(path)


def test_a_database_whose_damage_is_no_text_is_said_in_one_line(path):
    with create_gallery(path, DIMENSION, CHECKSUM) as gallery:
        gallery.add(clustered(3, DIMENSION))
    database = path / "gallery.sqlite"
    schema, damaged = b"CREATE TABLE entries (", b"CREATE TABLE entries \x8f"  # SQLite's message quotes these bytes
    assert database.read_bytes().count(schema) == 1
    database.write_bytes(database.read_bytes().replace(schema, damaged))
    with pytest.raises(UserError, match=f"{database}: .*expected a gallery's database"):
        open_gallery(path)


def test_checksums_out_of_order_are_one_line(path):
    """SQLite walks through a damaged tree without a word, perhaps for ever."""
    with create_gallery(path, DIMENSION, CHECKSUM) as gallery:
        gallery.add(clustered(3, DIMENSION))
        last = zlib.crc32(gallery.store.state.vectors[2])
    database = path / database_module.DATABASE
    content = bytearray(database.read_bytes())
    record = last.to_bytes(4 if last < 2**31 else 6, "big")
    # A cell is its size, its id, the sizes of the columns (3 bytes) and the checksum.
    place = content.index(bytes([2, 3, 0, 4 if last < 2**31 else 5]) + record)
    content[place] = 0
    database.write_bytes(content)
    problem = f"{database}: damaged, its checksums are not in order"
    with open_gallery(path) as gallery:
        assert gallery.notes == [f"the vectors cannot be checked: {problem}"]
        with pytest.raises(UserError, match=f"^{problem}$"):
            gallery.check()


def test_a_record_beyond_the_memory_is_one_line(path, monkeypatch):
    with create_gallery(path, DIMENSION, CHECKSUM) as gallery:
        gallery.add(clustered(3, DIMENSION))
        monkeypatch.setattr(database_module, "_entries_where", mock.Mock(side_effect=MemoryError))
        database = path / database_module.DATABASE
        with pytest.raises(UserError, match=f"^{database}: too large for the memory, or damaged$"):
            gallery.entries([1])


def test_an_index_on_a_broken_disk_is_one_line(path, monkeypatch, small_builds):
    unlink = os.unlink

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    def broken_for_indexes(file):
        (broken if str(file).endswith(".faiss") else unlink)(file)

    with create_gallery(path, DIMENSION, CHECKSUM, "hnsw", threads=1) as gallery:
        gallery.add(clustered(600, DIMENSION))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", broken)
            patch.setattr(os, "unlink", broken)
            with pytest.raises(UserError, match=r"^cannot write .*index-\d+\.faiss: Input/output error$"):
                gallery.build()
        gallery.build()
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", broken_for_indexes)
            with pytest.raises(UserError, match=r"^cannot remove .*index-\d+\.faiss: Input/output error$"):
                gallery.build(anew=True)
    with open_gallery(path) as gallery:
        assert len(gallery) == 600


def test_no_room_on_the_disk(path, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    built(path, "flat", 300)
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "gallery = open_gallery(sys.argv[1]); engine.BUILT_LEAST = 100\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "for change in (lambda: gallery.add(clustered(900, 16)), lambda: gallery.build('hnsw')):\n"
        "    try: change()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
        "print(len(gallery), len(gallery.search(clustered(1, 16), 5)[0]))\n"
    )
    process = run(code, path, stdout=subprocess.PIPE, text=True)
    lines = process.communicate()[0].splitlines()
    assert lines[0].startswith("UserError cannot write")
    assert "File too large" in lines[0]
    assert lines[1].startswith("UserError cannot write")
    assert lines[2:] == ["300 5"]
    with open_gallery(path) as gallery:
        assert len(gallery) == 300
        assert list(gallery.add(clustered(2, DIMENSION))) == [300, 301]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_can_be_searched(path):
    features = built(path, "flat", 20)
    for file in path.iterdir():
        file.chmod(0o444)
    path.chmod(0o555)
    try:
        with open_gallery(path) as gallery:
            assert finds_itself(gallery, features)
            with pytest.raises(UserError, match="cannot write"):
                gallery.add(features)
    finally:
        path.chmod(0o755)


def test_no_permission_to_write(path, monkeypatch):
    features = built(path, "flat", 20)
    opened = os.open

    def refused(name, flags, *mode):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, flags, *mode)

    monkeypatch.setattr(os, "open", refused)
    with open_gallery(path) as gallery:
        assert finds_itself(gallery, features)
        for change in (lambda: gallery.add(features), lambda: gallery.delete([1]), gallery.build):
            with pytest.raises(UserError, match=r"cannot write .*lock: Permission denied"):
                change()


CREATE_AND_ADD = """
for folder in sys.argv[1:]:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with create_gallery(folder, 16, CHECKSUM, "flat") as gallery:
            answer = len(gallery.add(clustered(40, 16)))
            gallery.search(clustered(1, 16))
    except Exception as error:
        answer = f"{type(error).__name__} {error}"
    print(answer, flush=True)
"""


def test_of_processes_that_create_one_gallery_one_does(tmp_path):
    """One process creates it and adds images, which stay; the others are refused."""
    folders = [tmp_path / f"gallery{number}" for number in range(5)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [run(CREATE_AND_ADD, *folders, **pipes) for _ in range(3)]
    for folder in folders:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = sorted(process.stdout.readline().strip() for process in processes)
        assert answers[0] == "40"
        assert all(answer.startswith("UserError ") for answer in answers[1:]), answers
        with open_gallery(folder) as gallery:
            assert len(gallery) == 40
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def test_a_creation_holds_the_lock_until_the_gallery_is_open(path, monkeypatch):
    """While the files are created, others can neither create nor open the gallery for changes."""
    made = store_module.create_database

    def another_comes(*arguments):
        made(*arguments)
        with pytest.raises(UserError, match="there is a gallery already"):
            create_gallery(path, DIMENSION, CHECKSUM)
        with pytest.raises(UserError, match=f"process {os.getpid()} is writing"):
            open_gallery(path, writable=True)

    monkeypatch.setattr(store_module, "create_database", another_comes)
    with create_gallery(path, DIMENSION, CHECKSUM, "flat") as gallery:
        with pytest.raises(UserError, match=f"process {os.getpid()} is writing"):
            open_gallery(path, writable=True)
        gallery.add(clustered(3, DIMENSION))
    with open_gallery(path) as gallery:
        assert len(gallery) == 3


@pytest.mark.parametrize("name", ["/{0}/victim", "../victim", "vectors-0.f32/../../victim", "victim\n", 7, None])
@pytest.mark.parametrize("setting", ["vectors", "snapshot"])
def test_names_from_the_database_lead_nowhere_else(path, tmp_path, setting, name):
    victim = tmp_path / "victim"
    victim.write_bytes(b"\0" * 100_000)
    built(path, count=1100)
    name = name.format(tmp_path) if isinstance(name, str) else name
    ((value,),) = sql(path, "SELECT value FROM settings WHERE key = ?", setting)
    value = {**json.loads(value), "file": name} if setting == "snapshot" else name
    sql(path, "UPDATE settings SET value = ? WHERE key = ?", json.dumps(value), setting)
    with pytest.raises(UserError, match=r"gallery.sqlite: damaged .*expected a gallery"):
        open_gallery(path)
    assert victim.read_bytes() == b"\0" * 100_000


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rows", -1),
        ("rows", 10**15),
        ("rows", "1"),
        ("dimension", 0),
        ("dimension", 1.5),
        ("next_id", None),
        ("checksum", 3),
        ("threshold", "far"),
        ("threshold", -1),
        ("snapshot", "index-1.faiss"),
        ("greatest_norm", []),
        ("engine", "milvus"),
        ("reason", None),
        ("calibration", [1]),
        ("calibration", {"gallery_images": "many"}),
        ("white_levels", 4095),
        ("white_levels", [-1.0]),
        ("white_levels", ["4095"]),
    ],
)
def test_settings_that_are_none(path, setting, value):
    built(path, "flat", 10)
    sql(path, "INSERT OR REPLACE INTO settings VALUES (?, ?)", setting, json.dumps(value))
    with pytest.raises(UserError, match=r"gallery.sqlite: damaged|vectors-0.f32: 640 bytes, expected at least"):
        open_gallery(path)


def test_vectors_that_are_a_link_are_not_written_through(path, tmp_path):
    built(path, "flat", 10)
    file, elsewhere = path / "vectors-0.f32", tmp_path / "elsewhere"
    content = file.read_bytes()
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with open_gallery(path) as gallery, pytest.raises(UserError, match=r"cannot write .*vectors-0.f32"):
        gallery.add(clustered(3, DIMENSION))
    assert elsewhere.read_bytes() == content


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        create_gallery(tmp_path / "file" / "gallery", DIMENSION, CHECKSUM)


def test_a_reader_shows_the_labels_that_its_filters_see(path):
    """Another process changes labels: lists, hits and filters of the reader keep to those of its opening."""
    with create_gallery(path, 2, CHECKSUM, "flat") as writer:
        times = [float(second) for second in range(10)]
        writer.add(np.arange(20).reshape(10, 2), pids=[1] * 10, camids=[1] * 10, times=times)
        with open_gallery(path) as reader:
            before = reader.page(10)
            writer.relabel([0, 1], pids=[2, None], camids=[2, 3], times=[None, 99.0])
            assert reader.page(10) == before == [*reader.entries(range(10))]
            for filters in (Filters(cameras=(1,)), Filters(cameras=(2,)), Filters(pids=(1,)), Filters(before=50.0)):
                hits = [hit.entry for hit in reader.search([[0, 0]], 10, filters=filters)[0]]
                passing = [entry for entry in before if filters.cameras != (2,)]
                assert sorted(hits) == reader.page(10, filters=filters) == passing
            assert writer.page(2) == [Entry(0, "", 2, 2, None), Entry(1, "", None, 3, 99.0)]
        with open_gallery(path) as reader:
            assert reader.page(10) == writer.page(10)


def test_features_however_small_are_told_apart(path):
    with create_gallery(path, 2, CHECKSUM, "flat") as gallery:
        (first,) = gallery.add([[1e-24, 0]], paths=["a"])
        assert gallery.add([[1e-24, 0]], paths=["a"], replace=True).tolist() == [first]
        (second,) = gallery.add([[0, 1e-24]], paths=["a"], replace=True)
        assert gallery.features([second]).tolist() == [[0, np.float32(1e-24)]]


def test_blanks_of_names_are_kept_when_labels_are_changed(path, tmp_path):
    names = ["a.jpg", "a.jpg ", " a.jpg", " ", "a\t.jpg"]
    table = tmp_path / "new.csv"
    with create_gallery(path, 1, CHECKSUM, "flat") as gallery:
        gallery.add([[1], [2], [3], [4], [5]], paths=names, pids=[1] * 5)
        for number, name in enumerate(names):
            with table.open("w", newline="") as stream:
                csv.writer(stream).writerows([["pid", "path"], [f" {10 + number} ", name]])
            assert relabel_as_listed(gallery, table) == 1
        assert [(entry.path, entry.pid) for entry in gallery.page(9)] == list(zip(names, range(10, 15)))
        table.write_text("path,pid\na.jpg  ,1\n")
        with pytest.raises(UserError, match=r"no entry of 'a\.jpg  '"):
            relabel_as_listed(gallery, table)
