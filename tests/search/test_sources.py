"""Repeated updates of a gallery from features on disk."""

import json
import sqlite3

import numpy as np
import pytest

from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.archives import FeatureSet, save_features
from han_tf.features.shards import FeatureBatch
from han_tf.search import create_gallery, open_gallery
from han_tf.search.sources import Added, add_source, open_source
from tests.search.search_helpers import CHECKSUM, clustered, write_shards

DIMENSION = 16


@pytest.fixture(params=["gallery", "gallery.db"])
def gallery(request, tmp_path):
    options = {"engine": "flat"} if request.param == "gallery" else {"index": "FLAT"}
    with create_gallery(tmp_path / request.param, DIMENSION, CHECKSUM, **options) as gallery:
        yield gallery


def rows(count, seed=0, **changed):
    """Returns the columns of ``count`` images."""
    columns = {
        "features": clustered(count, DIMENSION, seed),
        "pids": 1 + np.arange(count) // 3,
        "camids": np.arange(count) % 4,
        "times": 1.7e9 + np.arange(count),
        "paths": np.array([f"/crops/{i}.jpg" for i in range(count)], object),
    }
    return FeatureBatch(**{**columns, **changed})


def shards(folder, batch, size=20):
    return open_source(write_shards(folder, batch, size))


def archive(path, batch, save=save_features):
    images = FeatureSet(batch.features, batch.pids, batch.camids, batch.paths.astype(str))
    save(path, images) if save is save_features else save(path, **images._asdict())
    return open_source(path)


def content(gallery):
    """Returns what is in a gallery, by path and feature, without ids."""
    entries = gallery.some(10_000)
    features = gallery.features([entry.id for entry in entries])
    return sorted((entry.path, entry.pid, entry.camid, entry.time, *row) for entry, row in zip(entries, features))


def test_parquet_and_archive_have_one_rule_for_junk_and_distractors(gallery, tmp_path):
    batch = rows(60, times=np.full(60, np.nan))
    batch.pids[::7], batch.pids[1::5] = -1, 0
    junk, distractors = int((batch.pids == -1).sum()), int((batch.pids == 0).sum())
    contents = []
    for source in (shards(tmp_path / "features", batch), archive(tmp_path / "features.npz", batch)):
        assert add_source(gallery, source) == Added(60 - junk, 60 - junk)
        assert (
            source.note
            == f"{junk} junk images (pid -1) left out, {distractors} distractors (pid 0) taken without a pid"
        )
        contents.append(content(gallery))
        gallery.delete([entry.id for entry in gallery.some(100)])
    assert contents[0] == contents[1]
    assert [row[1] for row in contents[0]].count(None) == distractors
    assert -1 not in [row[1] for row in contents[0]]
    nothing = rows(4, pids=np.full(4, -1))
    for source in (shards(tmp_path / "junk", nothing), archive(tmp_path / "junk.npz", nothing)):
        with pytest.raises(UserError, match=r"4 junk images \(pid -1\) left out, expected others"):
            add_source(gallery, source)


@pytest.mark.parametrize("paths", [True, False], ids=["paths", "no paths"])
def test_a_source_that_has_grown_adds_what_is_new(gallery, tmp_path, paths):
    whole = rows(55) if paths else rows(55, paths=np.full(55, "", object))
    part = FeatureBatch(*(column[:50] for column in whole))
    assert add_source(gallery, shards(tmp_path / "first", part)) == Added(50, 50)
    ids = sorted(entry.id for entry in gallery.some(100))
    assert add_source(gallery, shards(tmp_path / "second", whole, 6)) == Added(55, 5)
    assert len(gallery) == 55
    assert set(ids) < {entry.id for entry in gallery.some(100)}
    # Archives have no times; the entries' times stay.
    before = content(gallery)
    for save in (save_features, np.savez, np.savez_compressed):
        assert add_source(gallery, archive(tmp_path / "whole.npz", whole, save)) == Added(55)
        assert content(gallery) == before
    gallery.delete(ids[:7])
    assert add_source(gallery, archive(tmp_path / "whole.npz", whole)) == Added(55, 7)
    gallery.delete([entry.id for entry in gallery.some(100)])
    assert add_source(gallery, shards(tmp_path / "second", whole, 6)) == Added(55, 55)
    assert content(gallery) == before


def test_an_image_that_changed_takes_the_place_of_the_old_one(gallery, tmp_path):
    old = rows(30)
    add_source(gallery, shards(tmp_path / "old", old))
    ids = {entry.path: entry.id for entry in gallery.some(100)}
    new = old._replace(features=old.features.copy(), pids=old.pids.copy(), times=old.times.copy())
    new.features[3] = clustered(1, DIMENSION, 8)[0]
    new.features[4] *= 1 + 3e-4  # another precision
    new.features[5] *= 1 + 1e-7  # another batch
    new.pids[6], new.pids[7], new.times[8] = 99, UNKNOWN, np.nan
    assert add_source(gallery, shards(tmp_path / "new", new)) == Added(30, 0, 2, 1)
    assert len(gallery) == 30
    entries = {entry.path: entry for entry in gallery.some(100)}
    for row, path in enumerate(old.paths):
        entry = entries[path]
        assert (entry.id == ids[path]) == (row not in (3, 4))
        assert entry[2:] == (99 if row == 6 else old.pids[row], old.camids[row], old.times[row])
        expected = new.features[row] if row in (3, 4) else old.features[row]
        np.testing.assert_array_equal(gallery.features([entry.id])[0], expected)
    assert add_source(gallery, shards(tmp_path / "new", new)) == Added(30)


def test_a_source_whose_name_is_not_utf8(gallery, tmp_path):
    source = archive(tmp_path / "caf\udce9.npz", rows(4))
    for added in (4, 0):
        assert add_source(gallery, source) == Added(4, added)
        assert gallery.notes == []


def test_a_path_that_a_source_has_more_than_once_names_no_image(gallery, tmp_path):
    """For example crops that have the name of their video; identical crops are separate images."""
    batch = rows(40, paths=np.array([f"video{i % 4}.mp4" for i in range(39)] + ["alone.jpg"], object))
    batch.features[8] = batch.features[4]
    assert add_source(gallery, archive(tmp_path / "crops.npz", batch)) == Added(40, 40)
    assert add_source(gallery, archive(tmp_path / "crops.npz", batch)) == Added(40)
    more = FeatureBatch(*(np.concatenate([a, b]) for a, b in zip(batch, rows(3, 5, paths=batch.paths[:3]))))
    assert add_source(gallery, archive(tmp_path / "more.npz", more)) == Added(43, 3)
    assert add_source(gallery, shards(tmp_path / "more", more, 50)).added == 0
    assert len(gallery) == 43


def test_a_gallery_that_was_doubled_is_mended(gallery, tmp_path):
    """Older versions added entries twice, and junk and distractors with their pids."""
    batch = rows(20)
    batch.pids[2], batch.pids[5] = -1, 0
    for _ in range(2):
        gallery.add(batch.features, paths=batch.paths, pids=batch.pids, camids=batch.camids, times=batch.times)
    assert add_source(gallery, shards(tmp_path / "features", batch)) == Added(19, 0, 0, 1, 2)
    assert len(gallery) == 19
    assert {entry.pid for entry in gallery.some(100) if entry.path == "/crops/5.jpg"} == {None}


def test_people_who_turn_out_to_be_junk_or_distractors_are_people_no_longer(gallery, tmp_path):
    batch = rows(20)
    batch.paths[[8, 9]] = "", ""
    batch.paths[[12, 13]] = "/crops/12.jpg"
    add_source(gallery, archive(tmp_path / "before.npz", batch))
    batch.pids[[3, 8, 12]], batch.pids[4], batch.camids[4] = -1, 0, 9
    for source in (archive(tmp_path / "after.npz", batch), archive(tmp_path / "again.npz", batch)):
        added = add_source(gallery, source)
        assert len(gallery) == 19
        (distractor,) = gallery.named(["/crops/4.jpg"])
        assert (distractor.pid, distractor.camid) == (None, 9)
        assert not list(gallery.named(["/crops/3.jpg"]))
        # Paths that identify no image
        assert len(list(gallery.named(["", "/crops/12.jpg"]))) == 4
    assert added == Added(17)


def test_people_in_any_batch_of_a_source_may_turn_out_to_be_distractors(gallery, tmp_path):
    batch = rows(20)
    add_source(gallery, shards(tmp_path / "before", batch, size=5))
    batch.pids[[1, 2, 6, 12, 18]] = 0
    add_source(gallery, shards(tmp_path / "after", batch, size=5))
    without = {entry.path for entry in gallery.some(100) if entry.pid is None}
    assert without == set(batch.paths[batch.pids == 0])


def test_features_that_are_not_finite_are_named_and_the_others_are_added(gallery, tmp_path):
    batch = rows(30)
    batch.features[[3, 11, 12, 20, 25], [0, 4, 5, 1, 0]] = np.nan, np.inf, -np.inf, 1e30, np.nan
    batch.paths[25] = ""
    batch.pids[11] = -1  # left out as junk
    for source in (shards(tmp_path / "features", batch), archive(tmp_path / "features.npz", batch)):
        added = add_source(gallery, source)
        assert source.note.endswith(
            "4 images left out whose features are not finite: /crops/3.jpg, /crops/12.jpg, /crops/20.jpg, …"
        )
        assert added.images == len(gallery) == 25
    assert added.added == 0
    few = rows(4)
    few.features[3] = np.nan
    few.paths[3] = ""
    source = shards(tmp_path / "few", few, 2)
    add_source(gallery, source)
    assert source.note == "1 images left out whose features are not finite: row 3"


def test_an_addition_that_stopped_is_noted_until_it_is_done(tmp_path):
    source = shards(tmp_path / "features", rows(50))
    with create_gallery(tmp_path / "gallery", DIMENSION, CHECKSUM, "flat") as gallery:

        def stop(done, _):
            if done == 40:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            add_source(gallery, source, stop)
        assert gallery.notes == [f"40 of 50 rows of {source.name} have been added: add it again to go on"]
    # A setting as older versions wrote it, for a source that has grown since.
    with sqlite3.connect(tmp_path / "gallery" / "gallery.sqlite") as database:
        mark = json.dumps(["e" * 64, source.name, 20, 45])
        database.execute("INSERT INTO settings VALUES (?, ?)", ["source " + "e" * 64, mark])
    database.close()
    with open_gallery(tmp_path / "gallery") as gallery:
        assert len(gallery.notes) == 2
        assert add_source(gallery, source) == Added(50, 10)
        assert gallery.notes == []


def test_additions_may_replace_by_path(gallery):
    batch = rows(6)
    known = {name: getattr(batch, name) for name in ("paths", "pids", "camids", "times")}
    ids = gallery.add(batch.features, **known, replace=True)
    changed = batch.features.copy()
    changed[1] = clustered(1, DIMENSION, 9)[0]
    again = gallery.add(changed, **known, replace=True)
    assert (again == ids).tolist() == [True, False, True, True, True, True]
    assert len(gallery) == 6
    np.testing.assert_array_equal(gallery.features(again), changed)
    assert len(gallery.add(changed[:2], replace=True)) == 2
    assert len(gallery) == 8
    with pytest.raises(UserError, match="paths hold 'a' twice"):
        gallery.add(changed[:2], paths=["a", "a"], replace=True)


def test_any_path_names_an_image(gallery):
    paths = [
        'a"b',
        "a'b",
        "a\\b",
        "a\\",
        "a\\nb",
        "a\nb",
        "a\r\tb",
        "a\x01\x1b[1mb",
        "a\u2028b",
        " %s{0} ",
        "日本/😀",
        "a" * 4000,
    ]
    features = clustered(len(paths), DIMENSION)
    ids = gallery.add(features, paths=paths, replace=True)
    np.testing.assert_array_equal(gallery.add(features, paths=paths, replace=True), ids)
    assert [entry.path for entry in gallery.entries(ids)] == paths
    assert gallery.relabel_named(paths, pids=range(1, len(paths) + 1)) == len(paths)


def test_labels_can_be_changed(gallery):
    batch = rows(12)
    known = {name: getattr(batch, name) for name in ("paths", "pids", "camids", "times")}
    ids = gallery.add(batch.features, **known)
    gallery.relabel(ids[[3, 1]], pids=[77, None], times=[5.0, None])
    entries = gallery.entries(ids)
    assert [entry.pid for entry in entries[:5]] == [1, None, 1, 77, 2]
    assert [entry.time for entry in entries[:4]] == [1.7e9, None, 1.7e9 + 2, 5.0]
    assert [entry.camid for entry in entries] == batch.camids.tolist()
    np.testing.assert_array_equal(gallery.features(ids), batch.features)
    from han_tf.search import Filters

    (hits,) = gallery.search(batch.features[:1], 12, filters=Filters(before=100.0))
    assert [hit.entry.id for hit in hits] == [ids[3]]
    gallery.relabel(ids[:1], camids=[None])
    (hits,) = gallery.search(batch.features[:1], 12, filters=Filters(not_cameras=(0, 1, 2, 3)))
    assert [hit.entry.id for hit in hits] == [ids[0]]
    for arguments, message in (
        ({"ids": [ids[0], ids[0]], "pids": [1, 2]}, "ids hold one twice"),
        ({"ids": [10**9], "pids": [1]}, "no entry 1000000000"),
        ({"ids": ids[:2], "pids": [1]}, r"pids has shape \[1\], expected \[2\]"),
    ):
        with pytest.raises(UserError, match=message):
            gallery.relabel(**arguments)
