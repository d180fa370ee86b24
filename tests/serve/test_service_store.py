"""The service's data in SQLite and in files."""

import csv
import io
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.serve.store import COLUMNS, Store
from tests.serve.serving import encoded, noise

QUERY = "sha256:" + 64 * "a"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "state")
    yield store
    store.close()


def rows(store):
    return list(csv.DictReader(io.StringIO(store.export())))


def test_verdicts_are_kept_replaced_and_taken_back(store):
    store.mark(QUERY, 3, "right", "a.jpg", 0.5)
    store.mark(QUERY, 4, "right", "b.jpg")
    store.mark(QUERY, 4, "wrong", "b.jpg")
    store.mark("id:7", 3, "wrong", "a.jpg")
    assert store.verdicts(QUERY, [(3, "a.jpg"), (4, "b.jpg"), (5, "c.jpg")]) == {3: "right", 4: "wrong"}
    assert store.count() == 3
    assert store.mark(QUERY, 3, None, "a.jpg") is None
    assert store.verdicts(QUERY, [(3, "a.jpg")]) == {}
    assert [(row["query"], row["hit"], row["verdict"]) for row in rows(store)] == [
        (QUERY, "4", "wrong"),
        ("id:7", "3", "wrong"),
    ]


def test_they_survive_a_restart(tmp_path):
    first = Store(tmp_path / "state")
    when = first.mark(QUERY, 3, "right", "a.jpg", 0.25)
    first.close()
    second = Store(tmp_path / "state")
    (row,) = rows(second)
    assert row == {
        "time": repr(when),
        "query": QUERY,
        "hit": "3",
        "verdict": "right",
        "distance": "0.25",
        "image": "a.jpg",
        "gallery": "",
    }
    assert tuple(row) == COLUMNS
    second.close()


def test_an_index_that_was_built_anew_has_other_images_under_old_ids(store):
    store.mark(QUERY, 3, "right", "a.jpg")
    assert store.verdicts(QUERY, [(3, "other.jpg")]) == {}


@pytest.mark.parametrize("name", ["=1+1.jpg", "+1.jpg", "-1_c1.jpg", "@x.jpg", "a,b.jpg", 'a"b.jpg', "ä.jpg"])
def test_no_cell_is_a_formula(store, name):
    store.mark(QUERY, 3, "right", name)
    (row,) = rows(store)
    assert row["image"].lstrip("'") == name
    assert row["image"][0] not in "=+-@"


def test_unknown_verdicts_are_refused(store):
    with pytest.raises(sqlite3.IntegrityError):
        store.mark(QUERY, 3, "maybe", "a.jpg")
    store.mark(QUERY, 3, "right", "a.jpg")  # the failed transaction has ended
    assert store.count() == 1


def test_a_full_disk_is_named_and_the_next_change_succeeds(store):
    """SQLite ends the transaction itself; taking it back again would be another error."""
    full = "BEGIN SELECT RAISE(ROLLBACK, 'disk full'); END"
    store._database.execute(f"CREATE TRIGGER full BEFORE INSERT ON verdicts {full}")
    with pytest.raises(sqlite3.IntegrityError, match="disk full"):
        store.mark(QUERY, 3, "right", "a.jpg")
    store._database.execute("DROP TRIGGER full")
    store.mark(QUERY, 3, "right", "a.jpg")
    assert store.count() == 1


def test_many_threads(store):
    def work(number):
        for hit in range(20):
            store.mark(f"id:{number}", hit, "right", "a.jpg")
            store.verdicts(f"id:{number}", [(hit, "a.jpg")])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 80


def test_copies_have_names_of_their_own(store):
    paths = [store.save_copy(encoded(noise()), name) for name in ("../../etc/passwd", "../../etc/passwd", "")]
    assert len(set(paths)) == 3
    for path in paths:
        assert store.file_of(path) == store.folder / path
        np.testing.assert_array_equal(np.asarray(Image.open(store.file_of(path))), noise())
    assert store.names([*paths, "/data/1.jpg", ""]) == ["../../etc/passwd"] * 2 + ["added image", "1.jpg", ""]
    store.remove_copy(paths[0])
    assert not store.file_of(paths[0]).exists()
    store.remove_copy(paths[0])  # nothing to do


def test_copies_are_found_wherever_the_folder_is(tmp_path):
    store = Store(tmp_path / "state")
    path = store.save_copy(encoded(noise()), "kept")
    as_once = str(store.folder / path)  # absolute, as earlier versions wrote it
    store.close()
    (tmp_path / "state").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    store = Store(tmp_path / "link")
    for one in (path, as_once):
        assert store.names([one]) == ["kept"]
        assert store.file_of(one).read_bytes() == encoded(noise())
    store.remove_copy(as_once)
    assert not list((tmp_path / "moved" / "images").iterdir())
    foreign = f"/elsewhere/images/{'0' * 32}.png"
    assert store.file_of(foreign) == Path(foreign)
    store.close()


def test_verdicts_stay_with_the_gallery_whose_ids_they_name(store):
    store.gallery = "a" * 32
    store.mark("id:7", 3, "right", "a.jpg")
    store.mark(QUERY, 3, "right", "a.jpg")
    store.gallery = "b" * 32
    assert store.verdicts("id:7", [(3, "a.jpg")]) == store.verdicts(QUERY, [(3, "a.jpg")]) == {}
    assert not store.has("id:7")
    store.mark("id:7", 3, "wrong", "a.jpg")
    assert store.verdicts("id:7", [(3, "a.jpg")]) == {3: "wrong"}
    store.gallery = "a" * 32
    assert store.verdicts("id:7", [(3, "a.jpg")]) == {3: "right"}
    assert [row["gallery"][0] for row in rows(store)] == ["a", "a", "b"]


VERSION_1 = """
CREATE TABLE verdicts (
  query TEXT NOT NULL, hit INTEGER NOT NULL, verdict TEXT NOT NULL CHECK (verdict IN ('right', 'wrong')),
  distance REAL, image TEXT NOT NULL, time REAL NOT NULL, PRIMARY KEY (query, hit)
);
CREATE TABLE names (file TEXT PRIMARY KEY, name TEXT NOT NULL);
PRAGMA user_version = 1;
"""


def test_what_an_earlier_version_kept(tmp_path):
    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "service.sqlite") as database:
        database.executescript(VERSION_1)
        for query in (QUERY, "id:7"):
            database.execute("INSERT INTO verdicts VALUES (?, 3, 'right', 0.5, 'a.jpg', 1.5)", (query,))
        database.execute("INSERT INTO names VALUES (?, 'door')", (f"{'0' * 32}.png",))
    database.close()
    store = Store(tmp_path / "state")
    assert store.names([f"images/{'0' * 32}.png"]) == ["door"]
    assert store.verdicts("id:7", [(3, "a.jpg")]) == {3: "right"}  # an old gallery has no identity
    store.gallery = "a" * 32
    assert store.verdicts(QUERY, [(3, "a.jpg")]) == {3: "right"}
    assert store.verdicts("id:7", [(3, "a.jpg")]) == {}
    assert store.copies_of_gallery() == []
    store.mark(QUERY, 3, "wrong", "a.jpg")
    assert store.count() == 2
    store.close()


def test_nothing_is_written_where_only_reading_is_wanted(tmp_path):
    store = Store(tmp_path / "none", read_only=True)
    assert store.count() == 0
    store.close()
    assert not (tmp_path / "none").exists()
    store = Store(tmp_path / "state")
    store.mark(QUERY, 3, "right", "a.jpg")
    store.close()
    store = Store(tmp_path / "state", read_only=True)
    assert store.verdicts(QUERY, [(3, "a.jpg")]) == {3: "right"}
    with pytest.raises(sqlite3.OperationalError):
        store.mark(QUERY, 4, "right", "a.jpg")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["images", "service.sqlite"]
    store.close()


def test_parts_of_pictures_do_not_outlive_a_kill(store):
    """A process was killed while it wrote a picture; another one is writing one now, whose name is stored already."""
    store.gallery = "a" * 32
    written = store.save_copy(b"png", "door")
    killed, other = (store.copies / f".{digit * 32}.png.{'f' * 16}.tmp" for digit in "12")
    for path in (killed, other):
        path.write_bytes(b"part of a picture")
    store._database.execute("INSERT INTO names (file, name, gallery) VALUES (?, 'hall', 'b')", (f"{'2' * 32}.png",))
    store.remove_unfinished()
    assert sorted(store.copies.iterdir()) == sorted([store.file_of(written), other])


def test_only_copies_are_removed(store, tmp_path):
    other = tmp_path / "mine.png"
    other.write_bytes(b"x")
    for path in (other, store.copies / ".." / "service.sqlite", tmp_path):
        store.remove_copy(str(path))
    assert other.exists()
    assert store.path.exists()


def test_names_of_thousands(store):
    paths = [f"images/{n:032x}.png" for n in range(2000)]
    assert store.names(paths) == ["added image"] * 2000


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        Store(tmp_path / "file" / "state")
    (tmp_path / "state" / "images").mkdir(parents=True)
    (tmp_path / "state" / "service.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"service\.sqlite.*expected a database of this service"):
        Store(tmp_path / "state")


def test_a_damaged_database(tmp_path):
    Store(tmp_path).close()
    path, schema = tmp_path / "service.sqlite", b"CREATE TABLE names ("
    assert path.read_bytes().count(schema) == 1
    path.write_bytes(path.read_bytes().replace(schema, b"CREATE TABLE names \x8f"))
    with pytest.raises(UserError, match=f"{path}: .*expected a database of this service"):
        Store(tmp_path)


def test_a_database_of_another_version(tmp_path):
    Store(tmp_path / "state").close()
    with sqlite3.connect(tmp_path / "state" / "service.sqlite") as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(UserError, match="version 9, expected 2"):
        Store(tmp_path / "state")
