"""What the service keeps in SQLite and in files."""

import csv
import io
import sqlite3
import threading

import numpy as np
import pytest
from PIL import Image

from han_tf.errors import UserError
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
    store.mark(QUERY, 3, "right", "a.jpg")  # the transaction before has ended
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
        assert path.parent == store.copies
        np.testing.assert_array_equal(np.asarray(Image.open(path)), noise())
    texts = [str(path) for path in paths]
    assert store.names([*texts, "/data/1.jpg", ""]) == ["../../etc/passwd"] * 2 + ["added image", "1.jpg", ""]
    store.remove_copy(texts[0])
    assert not paths[0].exists()
    store.remove_copy(texts[0])  # nothing to do


def test_only_copies_are_removed(store, tmp_path):
    other = tmp_path / "mine.png"
    other.write_bytes(b"x")
    for path in (other, store.copies / ".." / "service.sqlite", tmp_path):
        store.remove_copy(str(path))
    assert other.exists()
    assert store.path.exists()


def test_names_of_thousands(store):
    paths = [str(store.copies / f"{n}.png") for n in range(2000)]
    assert store.names(paths) == ["added image"] * 2000


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        Store(tmp_path / "file" / "state")
    (tmp_path / "state" / "images").mkdir(parents=True)
    (tmp_path / "state" / "service.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"service\.sqlite.*expected a database of this service"):
        Store(tmp_path / "state")


def test_a_database_of_another_version(tmp_path):
    Store(tmp_path / "state").close()
    with sqlite3.connect(tmp_path / "state" / "service.sqlite") as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(UserError, match="version 9, expected 1"):
        Store(tmp_path / "state")
