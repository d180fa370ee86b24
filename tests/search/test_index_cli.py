"""python -m han_tf.index and python -m han_tf.search."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from han_tf import index
from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.archives import FeatureSet, save_features
from han_tf.features.shards import FeatureBatch
from han_tf.search import __main__ as search
from han_tf.search import create_gallery, open_gallery
from han_tf.search import sources as feature_sources
from han_tf.search.milvus_gallery import MilvusGallery
from tests.search import search_helpers
from tests.search.search_helpers import CHECKSUM, clustered, labels, write_shards

DIMENSION = 16
COUNT = 90


@pytest.fixture
def call(capsys):
    def call(command, *arguments, status=0):
        positional = "features" if command is index else "images"
        found = run(command.main, command.FLAGS, command.__doc__, ["x", *map(str, arguments)], positional)
        out, err = capsys.readouterr()
        assert found == status, err
        if status:
            last = err.splitlines()[-1]
            assert last.startswith("error: " if status == 1 else "usage error: ")
            return last
        return out

    return call


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "features.npz")


def write_archive(path, count=COUNT, seed=0, dimension=DIMENSION):
    pids = 1 + np.arange(count) // 3
    paths = np.array([f"{seed}/{i}.jpg" for i in range(count)])
    save_features(path, FeatureSet(clustered(count, dimension, seed), pids, np.arange(count) % 4, paths))
    return path


@pytest.fixture
def shards(tmp_path):
    """A folder of Parquet files as han_tf.extract writes it."""
    features, known = clustered(COUNT, DIMENSION), labels(COUNT)

    def numbers(name):
        return np.array([UNKNOWN if value is None else value for value in known[name]])

    times = np.array([np.nan if time is None else time for time in known["times"]])
    paths = np.array(known["paths"], object)
    return write_shards(
        tmp_path / "extracted", FeatureBatch(features, numbers("pids"), numbers("camids"), times, paths), 40
    )


@pytest.mark.parametrize("place", ["gallery", "gallery.db"])
def test_parquet_becomes_a_gallery(call, tmp_path, shards, place):
    path = tmp_path / place
    out = call(index, "--index", path, shards)
    assert f"{COUNT} of {COUNT} images added" in out
    assert ("milvus" if place.endswith("db") else "few enough (128 MiB) to compare all of them exactly") in out
    known = labels(COUNT)
    with open_gallery(path, CHECKSUM) as gallery:
        found = [hits[0] for hits in gallery.search(clustered(COUNT, DIMENSION), 1)]
        assert [hit.distance for hit in found] == [0.0] * COUNT
        entries = [hit.entry for hit in found]
        for name, values in (("path", "paths"), ("pid", "pids"), ("camid", "camids"), ("time", "times")):
            assert [getattr(entry, name) for entry in entries] == known[values]
    assert f"0 of {COUNT} images added" in call(index, "--index", path, shards)
    with open_gallery(path) as gallery:
        assert len(gallery) == COUNT


@pytest.mark.parametrize("place", ["gallery", "gallery.db"])
def test_an_addition_that_was_interrupted_goes_on(call, tmp_path, shards, place):
    path, third = tmp_path / place, shards / "part-00002.parquet"
    whole = third.read_bytes()
    content = bytearray(whole)
    content[whole.index(clustered(COUNT, DIMENSION)[85].tobytes())] ^= 1
    third.write_bytes(content)
    assert "part-00002.parquet" in call(index, "--index", path, shards, status=1)
    with open_gallery(path) as gallery:
        assert len(gallery) == 80
    third.write_bytes(whole)
    assert f"10 of {COUNT} images added" in call(index, "--index", path, shards)
    with open_gallery(path) as gallery:
        assert len(gallery) == COUNT
        assert sorted(hits[0].entry.path for hits in gallery.search(clustered(COUNT, DIMENSION), 1)) == sorted(
            labels(COUNT)["paths"]
        )


def test_milvus_rows_that_were_in_when_the_process_died_are_not_doubled(call, tmp_path, shards, monkeypatch):
    path = tmp_path / "gallery.db"
    upsert, calls = MilvusGallery._upsert, []

    def dies_once(self, ids, columns):
        calls.append(ids)
        upsert(self, ids, columns)
        if len(calls) == 2:
            monkeypatch.setattr(self.client, "delete", lambda *_, **__: None)  # as if the process were dead
            raise UserError("gone")

    monkeypatch.setattr(MilvusGallery, "_upsert", dies_once)
    assert call(index, "--index", path, shards, status=1) == "error: gone"
    with open_gallery(path) as gallery:
        assert len(gallery) == 80
    assert f"10 of {COUNT} images added, 80 there already" in call(index, "--index", path, shards)
    with open_gallery(path) as gallery:
        assert len(gallery) == COUNT


def test_an_archive_needs_a_model_and_is_added_to_what_there_is(call, tmp_path, archive, monkeypatch):
    monkeypatch.setattr(feature_sources, "ROWS", 32)
    path = tmp_path / "gallery"
    assert "does not say which model made it" in call(index, "--index", path, archive, status=1)
    assert not path.exists()
    call(index, "--index", path, archive, "--checksum=mine")
    more = write_archive(tmp_path / "more.npz", 30, 5)
    out = call(index, "--index", path, archive, more, "--checksum=mine", "--engine=hnsw", "--delete=3,4")
    assert "more.npz: 30 of 30 images added" in out
    assert "deleted 2 entries" in out
    assert "engine hnsw (asked for)" in out
    with open_gallery(path, "mine") as gallery:
        assert len(gallery) == COUNT + 30 - 2
        assert gallery.entries([COUNT])[0].path == "5/0.jpg"
    assert "expected the same model" in call(index, "--index", path, more, "--checksum=another", status=1)
    out = call(index, "--index", path, "--compact", "--engine=auto")
    assert "engine flat" in out
    assert (path / "vectors-1.f32").stat().st_size == (COUNT + 28) * 4 * DIMENSION


def test_junk_is_left_out_and_distractors_are_nobody(call, tmp_path):
    """As in Market-1501: pid -1 is junk, and pid 0 stands for many people."""
    pids, place = np.array([-1, 0, 5, -1, 0, 7]), tmp_path / "gallery"
    images = FeatureSet(clustered(6, DIMENSION), pids, np.arange(6), np.array([f"{i}.jpg" for i in range(6)]))
    save_features(tmp_path / "market.npz", images)
    out = call(index, "--index", place, tmp_path / "market.npz", "--checksum=mine")
    assert "market.npz: 2 junk images (pid -1) left out, 2 distractors (pid 0) taken without a pid" in out
    assert "market.npz: 4 of 4 images added" in out
    with open_gallery(place) as gallery:
        assert [(e.path, e.pid, e.camid) for e in gallery.entries(range(4))] == [
            ("1.jpg", None, 1),
            ("2.jpg", 5, 2),
            ("4.jpg", None, 4),
            ("5.jpg", 7, 5),
        ]
        np.testing.assert_array_equal(gallery.features(range(4)), clustered(6, DIMENSION)[[1, 2, 4, 5]])
    save_features(tmp_path / "junk.npz", images.where(pids == -1))
    line = call(index, "--index", place, tmp_path / "junk.npz", "--checksum=mine", status=1)
    assert "junk.npz: 2 junk images (pid -1) left out, expected others" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npz"], "nowhere.npz: no such file or folder"),
        (["."], "manifest.json: No such file"),
        ([], "no gallery here, expected FEATURES"),
        (["features.npz", "--checksum=a", "--calibrate=nowhere"], "nowhere: no such file or folder"),
        (["features.npz", "wide.npz", "--checksum=a"], "wide.npz: features of dimension 20, expected 16"),
        (["broken.npz", "--checksum=a"], "broken.npz: no NumPy archive"),
        (["features.npz", "--model=nowhere"], "nowhere"),
        (["features.npz", "--checksum=a", "--index=file/gallery"], "cannot write file/gallery: Not a directory"),
        (["features.npz", "--checksum=a", "--engine=milvus"], "is no address of Milvus"),
        (
            ["features.npz", "--checksum=a", "--engine=flat", "--index=g.db"],
            "engine is 'flat', expected milvus at g.db",
        ),
        (["features.npz", "--checksum=a", "--index=g.db", "--milvus_index=BEST"], "index is 'BEST', expected FLAT"),
        (
            ["features.npz", "--checksum=a", "--index=http://127.0.0.1:9"],
            "http://127.0.0.1:9#gallery: Milvus cannot be ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(call, tmp_path, archive, monkeypatch, arguments, message):
    monkeypatch.setattr("han_tf.search.milvus_client.SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "wide.npz", dimension=20)
    (tmp_path / "broken.npz").write_bytes(archive.read_bytes()[:1000])
    (tmp_path / "file").touch()
    line = call(index, "--index=gallery", *arguments, status=1)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("place", "flags", "message"),
    [
        ("gallery", ["--engine=milvus"], "--engine is 'milvus', expected auto, flat, hnsw, ivfpq"),
        ("gallery", ["--milvus_index=FLAT"], "--milvus_index FLAT, but {} is a folder already"),
        ("gallery.db", ["--engine=flat"], "--engine is 'flat', expected auto, milvus"),
        ("gallery.db", ["--milvus_index=FLAT"], "--milvus_index FLAT, but {}#gallery is HNSW already"),
    ],
)
def test_an_index_that_the_gallery_cannot_have_is_refused_before_anything_is_added(
    call, tmp_path, archive, place, flags, message
):
    call(index, "--index", tmp_path / place, archive, "--checksum=a")
    more = write_archive(tmp_path / "more.npz", seed=1)
    line = call(index, "--index", tmp_path / place, more, "--checksum=a", *flags, status=1)
    assert message.format(tmp_path / place) in line
    assert f"{COUNT} images" in call(index, "--index", tmp_path / place)


@pytest.mark.parametrize(
    ("place", "flags", "new", "later"),
    [
        ("gallery", ["--memory_mb=90"], False, True),
        ("gallery", ["--memory_mb=90", "--engine=auto"], False, False),
        ("gallery", ["--memory_mb=90", "--engine=flat"], True, True),
        ("gallery.db", ["--memory_mb=90", "--milvus_index=FLAT"], True, True),
    ],
)
def test_memory_that_decides_nothing_is_said(call, tmp_path, archive, place, flags, new, later):
    for expected in (new, later):  # the second command is the first one, repeated
        out = call(index, "--index", tmp_path / place, archive, "--checksum=a", *flags)
        assert ("note: --memory_mb changes nothing here" in out) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--index=g", "--within"],
        ["--index=g", "--false_accept_rate=0.1"],
        ["--index=g", "--calibrate=v", "--per_pair", "--within"],
        ["--index=g", "--calibrate=v", "--threshold=1"],
        ["--index=g", "--calibrate=v", "--false_accept_rate=2"],
        ["--index=g", "--engine=annoy"],
        ["--index=g", "--memory=0"],
        ["--index=g", "--delete=1,b"],
        ["--index=g", "--delete_where"],
        ["--index=g", "--camera=1"],
        ["--index=g", "--list", "--count"],
    ],
    ids=" ".join,
)
def test_flags_that_mean_nothing(call, arguments):
    call(index, *arguments, status=2)


def test_vectors_are_compared_with_their_checksums(call, tmp_path, shards):
    path = tmp_path / "gallery"
    assert f"checked: {COUNT} vectors\n" in call(index, "--index", path, shards, "--check")
    with open(path / "vectors-0.f32", "r+b") as stream:
        stream.seek(4 * DIMENSION * 5)
        stream.write(b"\1\2")
    (line,) = (line for line in call(index, "--index", path).splitlines() if line.startswith("note: "))
    named = f"the vectors of 1 entries are damaged (ids 5 {labels(COUNT)['paths'][5]})"
    assert named in line
    assert named in call(index, "--index", path, "--check", status=1)
    out = call(index, "--index", path, shards, "--check")
    assert f"0 of {COUNT} images added, 1 replaced" in out
    assert f"checked: {COUNT} vectors\n" in out
    milvus = tmp_path / "gallery.db"
    assert "only a gallery in a folder can be checked" in call(index, "--index", milvus, shards, "--check", status=1)


def test_the_threshold_is_chosen_and_used(call, tmp_path, archive):
    path = tmp_path / "gallery"
    strangers = write_archive(tmp_path / "validation.npz", 300, 7)
    model = "--checksum=mine"
    out = call(index, "--index", path, archive, model, "--calibrate", strangers, "--false_accept_rate=0.1", "--within")
    assert "of 300 searches of strangers among 300 images have a hit (wanted 10.000%; 100 people)" in out
    with open_gallery(path) as gallery:
        facts = gallery.calibration
        assert (facts["kind"], facts["rate"], facts["validation"]) == ("search", 0.1, str(strangers))
    out = call(index, "--index", path, "--calibrate", strangers, "--per_pair", model)
    assert "of 89,100 pairs of two people are accepted (wanted 1.000%" in out
    out = call(index, "--index", path, "--threshold=0.001")
    assert "threshold 0.0010, set by hand" in out
    for facts in ({"who": "me"}, {"kind": "search", "trials": "many"}, {"kind": []}):
        with open_gallery(path) as gallery:
            gallery.set_threshold(0.001, facts)
        assert "threshold 0.0010, set by hand" in call(index, "--index", path)
    far = tmp_path / "far.npz"
    np.savez(far, features=np.concatenate([clustered(COUNT, DIMENSION)[:1], np.ones((1, DIMENSION))]))
    out = call(search, "--index", path, "--features", far, "--k=2")
    assert out.splitlines()[0] == "row 0"
    assert "0/0.jpg" in out.splitlines()[2]
    assert out.splitlines()[-2:] == ["row 1", "  not in the gallery"]
    assert "not in the gallery" not in call(search, "--index", path, "--features", far, "--any_distance")
    assert "no threshold" in call(index, "--index", path, "--nothreshold")


def test_searching_for_an_entry_with_filters_as_json(call, tmp_path, shards):
    path = tmp_path / "gallery"
    call(index, "--index", path, shards)
    cameras = ("--not_camera=1", "--camera=1,2")
    times = ("--after=1970-01-01T00:00:20", "--before=90")
    out = call(search, "--index", path, "--id=7,8", "--k=5", *cameras, *times, "--rerank", "--json")
    found = json.loads(out)
    assert [query["query"] for query in found["queries"]] == ["entry 7", "entry 8"]
    known = labels(COUNT)
    for query, own in zip(found["queries"], (7, 8)):
        assert query["known"]
        passing = [
            i for i in range(COUNT) if known["camids"][i] == 2 and 20 <= (known["times"][i] or 0) < 90 and i != own
        ]
        assert len(query["hits"]) == min(5, len(passing)) >= 4
        for hit in query["hits"]:
            assert hit["id"] != own
            assert hit["camid"] == known["camids"][hit["id"]] == 2
            assert 20 <= hit["time"] < 90
            assert hit["path"] == known["paths"][hit["id"]]
    out = call(search, "--index", path, "--id=7", f"--k={COUNT}", "--pid=1,2", "--any_distance", "--json")
    found = {hit["id"] for hit in json.loads(out)["queries"][0]["hits"]}
    assert found == {i for i in range(COUNT) if known["pids"][i] in (1, 2) and i != 7} != set()


@pytest.mark.parametrize("place", ["gallery", "gallery.db"])
def test_entries_are_listed_counted_relabelled_and_deleted(call, tmp_path, shards, place):
    path, known, table = tmp_path / place, labels(COUNT), tmp_path / "entries.csv"
    call(index, "--index", path, shards)

    def listed(*filters):
        rows = list(csv.DictReader(call(index, "--index", path, "--list", *filters).splitlines()))
        ids = [int(row["id"]) for row in rows]
        assert ids == sorted(ids)
        return sorted(rows, key=lambda row: known["paths"].index(row["path"]))  # Milvus draws ids at random

    rows = listed()
    assert [row["path"] for row in rows] == known["paths"]
    for name in ("pid", "camid", "time"):
        assert [float(row[name]) if row[name] else None for row in rows] == known[f"{name}s"]
    third = [row for row in rows if row["camid"] == "3"]
    assert listed("--camera=3") == third != []
    assert call(index, "--index", path, "--count", "--camera=3") == f"{len(third)}\n"
    assert [row["path"] for row in listed("--path=camera/7.jpg", "--path=camera/5.jpg")] == [
        "camera/5.jpg",
        "camera/7.jpg",
    ]

    table.write_text("id,path,pid\n" + "".join(f"{row['id']},ignored,-77\n" for row in third[:2]))
    assert "labels of 2 entries changed\n" in call(index, "--index", path, "--relabel", table)
    table.write_text("path,time,camid\ncamera/5.jpg,1970-01-01T00:01:40Z,\n")
    call(index, "--index", path, "--relabel", table)
    assert [row["path"] for row in listed("--pid=-77")] == [row["path"] for row in third[:2]]
    assert listed("--path=camera/7.jpg,camera/5.jpg") == []  # a comma is part of the name
    (fifth,) = listed("--path=camera/5.jpg")
    assert (fifth["camid"], fifth["time"], fifth["pid"]) == ("", "100.0", rows[5]["pid"])

    old = sum(time is not None and time < 50 for number, time in enumerate(known["times"]) if number != 5)
    assert f"deleted {old} entries\n" in call(index, "--index", path, "--delete_where", "--before=50")
    assert call(index, "--index", path, "--count") == f"{COUNT - old}\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,name\n1,x\n", "new.csv, line 2: expected a column id or path, and pid, camid or time"),
        ("pid\n1\n", "new.csv, line 2: expected a column id or path"),
        ("id,pid\n", "new.csv: no entries, expected a line for each"),
        ("id,pid\nx,1\n", "new.csv, line 2: id is 'x', expected an integer"),
        ("path,pid\n,1\n", "new.csv, line 2: path is empty, expected that of an entry"),
        ("id,pid\n1,7\n400,1\n", "no entry 400"),
        ("path,pid\n0/1.jpg,7\nb.jpg,1\n", "no entry of 'b.jpg'"),
        ("id,time\n1,noon\n", "new.csv, line 2: time is 'noon', expected seconds since 1970"),
    ],
)
def test_tables_of_labels_that_are_not_valid_change_nothing(call, tmp_path, archive, table, message):
    path = tmp_path / "gallery"
    call(index, "--index", path, archive, "--checksum=mine")
    before = call(index, "--index", path, "--list")
    (tmp_path / "new.csv").write_text(table)
    assert message in call(index, "--index", path, "--relabel", tmp_path / "new.csv", status=1)
    assert call(index, "--index", path, "--list") == before


@pytest.mark.parametrize(
    ("flags", "used", "note"),
    [
        ([], 4095.0, ""),
        (["--white_level=4095"], 4095.0, ""),
        (["--white_level=1023"], 1023.0, "is 1,023, in the gallery's images 4,095\n"),
    ],
)
def test_images_are_read_with_the_white_level_of_the_gallery(
    call, capsys, tmp_path, shards, monkeypatch, flags, used, note
):
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps({**manifest, "white_level": 4095.0}))
    path, given = tmp_path / "gallery", []
    call(index, "--index", path, shards)

    def extractor(model, white_level):
        given.append(white_level)
        raise UserError("this is enough")

    monkeypatch.setattr("han_tf.features.extractor.FeatureExtractor", extractor)
    assert run(search.main, search.FLAGS, "", ["x", f"--index={path}", "--model=m", "a.png", *flags], "files") == 1
    assert given == [used]
    assert capsys.readouterr().err == (f"note: white in grey queries of more than 8 bits {note}" if note else "") + (
        "error: this is enough\n"
    )


def test_searching_for_images(call, tmp_path, tiny_run, tiny_data, monkeypatch):
    from han_tf.features import extractor as module

    images = sorted((tiny_data / "bounding_box_test").glob("*.jpg"))[:12]
    loaded = {str(tiny_run): module.FeatureExtractor(tiny_run)}  # once: that takes seconds
    monkeypatch.setattr(module, "FeatureExtractor", lambda path, **_: loaded[path])
    features = loaded[str(tiny_run)](images)
    ones = np.arange(12)
    archive = tmp_path / "gallery.npz"
    save_features(archive, FeatureSet(features, ones, ones, np.array([str(image) for image in images])))
    path = tmp_path / "gallery"
    call(index, "--index", path, archive, "--model", tiny_run)
    with open_gallery(path) as gallery:
        assert gallery.checksum == loaded[str(tiny_run)].checksum
    out = call(search, "--index", path, "--model", tiny_run, images[4], images[9], "--k=1")
    assert [line.split()[-1] for line in out.splitlines()[2::3]] == [str(images[4]), str(images[9])]
    shutil.rmtree(path)
    call(index, "--index", path, archive, "--checksum=another")
    line = call(search, "--index", path, "--model", tiny_run, images[4], status=1)
    assert "the gallery holds features of the model another…" in line
    assert "--model is missing" in call(search, "--index", path, images[4], status=2)


def test_sources_of_two_models_make_no_gallery(call, tmp_path, shards, monkeypatch):
    monkeypatch.setattr(search_helpers, "CHECKSUM", "b" * 64)
    ones = np.ones(5, np.int64)
    batch = FeatureBatch(clustered(5, DIMENSION), ones, ones, ones * 1.0, np.array(["a"] * 5, object))
    other = write_shards(tmp_path / "other", batch, 5)
    line = call(index, "--index", tmp_path / "gallery", shards, other, status=1)
    assert line == f"error: {other}: features of the model bbbbbbbbbbbb…, expected {CHECKSUM[:12]}…, as in {shards}"
    assert not (tmp_path / "gallery").exists()


def test_validation_features_that_do_not_fit_make_no_gallery(call, tmp_path, archive, shards):
    wide = write_archive(tmp_path / "wide.npz", dimension=20)
    for sources, validation, words in (
        ([shards], [wide, f"--checksum={CHECKSUM}"], "features of dimension 20, expected"),
        ([archive, "--checksum=mine"], [shards], f"features of the model {CHECKSUM[:12]}…, expected mine"),
    ):
        line = call(index, "--index", tmp_path / "gallery", *sources, "--calibrate", *validation, status=1)
        assert words in line
        assert not (tmp_path / "gallery").exists()
    call(index, "--index", tmp_path / "gallery", archive, "--checksum=mine")
    line = call(index, "--index", tmp_path / "gallery", archive, "--calibrate", wide, "--checksum=mine", status=1)
    assert line == f"error: {wide}: features of dimension 20, expected {DIMENSION}"


def test_the_model_is_compared_without_features(call, tmp_path, archive):
    call(index, "--index", tmp_path / "gallery", archive, "--checksum=mine")
    line = call(index, "--index", tmp_path / "gallery", "--checksum=another", status=1)
    assert "the gallery holds features of the model mine…, these are of another…" in line


def test_queries_of_another_model_are_refused(call, tmp_path, archive, tiny_run):
    call(index, "--index", tmp_path / "gallery", archive, "--checksum=another")
    for query in ("--id=1", f"--features={archive}"):
        line = call(search, "--index", tmp_path / "gallery", query, "--model", tiny_run, status=1)
        assert "the gallery holds features of the model another…" in line


def test_names_with_carriage_returns_come_back(call, tmp_path, archive):
    names = ["a\rb.jpg", "c.jpg"]
    with create_gallery(tmp_path / "gallery", DIMENSION, "mine") as gallery:
        gallery.add(clustered(2, DIMENSION), paths=names)
    listing = call(index, "--index", tmp_path / "gallery", "--list")
    (tmp_path / "list.csv").write_text(listing.replace(",,,", ",7,,"), newline="")
    call(index, "--index", tmp_path / "gallery", "--relabel", tmp_path / "list.csv")
    with open_gallery(tmp_path / "gallery") as gallery:
        assert [entry.path for entry in gallery.page(9)] == names


def test_lists_hold_nothing_but_entries(call, tmp_path, archive, capsys):
    path = tmp_path / "gallery"
    changes = [str(archive), "--checksum=mine", "--delete=0", "--threshold=1", "--check"]
    assert run(index.main, index.FLAGS, "", ["index", "--index", str(path), "--list", *changes], "features") == 0
    out, err = capsys.readouterr()
    assert [row["id"] for row in csv.DictReader(out.splitlines())] == [str(id) for id in range(1, COUNT)]
    for words in (f"{COUNT:,} of {COUNT:,} images added", "deleted 1 entries", f"checked: {COUNT - 1:,} vectors"):
        assert words in err
    (tmp_path / "entries.csv").write_text(out)
    call(index, "--index", path, "--relabel", tmp_path / "entries.csv")
    assert call(index, "--index", path, "--list", "--delete_where", "--pid=1", status=2).startswith(
        "usage error: expected"
    )


def test_names_reach_the_terminal_without_control_characters(call, tmp_path):
    path = tmp_path / "gallery"
    with create_gallery(path, 2, CHECKSUM) as gallery:
        gallery.add([[1, 0]], paths=["a\x1b]0;owned\x07\nentry 99\n\x9b2Kü.jpg"])
        gallery.add([[0, 1]])
    out = call(search, "--index", path, "--id=1", "--any_distance")
    assert r"a\x1b]0;owned\x07\nentry 99\n\x9b2Kü.jpg" in out
    assert out.count("\n") == 3


def test_a_query_that_is_not_finite_is_named(call, tmp_path, archive):
    call(index, "--index", tmp_path / "gallery", archive, "--checksum=mine")
    features = clustered(5, DIMENSION)
    features[3, 2] = np.nan
    paths = np.array([f"query/{i}.jpg" for i in range(5)])
    ones = np.ones(5, np.int64)
    save_features(tmp_path / "queries.npz", FeatureSet(features, ones, ones, paths))
    line = call(search, "--index", tmp_path / "gallery", "--features", tmp_path / "queries.npz", status=1)
    assert "queries.npz: the feature of query/3.jpg is not finite (1 such features)" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage error: expected either images, --id or --features"),
        (["--id=1", "--features=features.npz"], "usage error: expected either images"),
        (["--id=400"], "no entry 400"),
        (["--features=wide.npz"], "expected [n, 16]"),
        (["--features=nowhere.npz"], "nowhere.npz: No such file"),
        (["--id=1", "--path="], "usage error: paths hold '', expected files or folders"),
        (["--id=1", "--after=yesterday"], "usage error: --after yesterday"),
        (
            ["--id=1", "--before=1767225600250"],
            "usage error: --before 1767225600250: 1767225600250 is not in the years",
        ),
        (
            ["--id=1", "--after=2026-03-02", "--before=2026-03-01"],
            "usage error: --after 2026-03-02 is not earlier than --b",
        ),
        (["--id=1", "--camera=1", "--not_camera=1"], "usage error: --camera 1 are all in --not_camera"),
        (["--id=1", "--index=nowhere"], "nowhere: no gallery here"),
        (["--id=1", "--index=nowhere.db"], "nowhere.db: no such file"),
        (["--id=1", "--index=empty"], "empty: the gallery is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_searches_are_one_line(call, tmp_path, archive, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("gallery", "empty"):
        call(index, f"--index={name}", archive, "--checksum=a")
    call(index, "--index=empty", "--delete", ",".join(map(str, range(COUNT))))
    write_archive(tmp_path / "wide.npz", dimension=20)
    status = 2 if message.startswith("usage error") else 1
    assert message in call(search, "--index=gallery", *arguments, status=status)
