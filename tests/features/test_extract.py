"""Extraction: every image has one row, also after a stop; bad input gives one line of error and loses nothing."""

import csv
import dataclasses
import errno
import fcntl
import functools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from han_tf import evaluate, extract
from han_tf.common.cli import run
from han_tf.common.errors import Note, UserError
from han_tf.common.files import locked
from han_tf.data import load_dataset, reading
from han_tf.data.image_lists import UNKNOWN, list_images, listed_records
from han_tf.data.reading import BadImage
from han_tf.features import job as extraction
from han_tf.features.archives import load_features
from han_tf.features.extractor import FeatureExtractor
from han_tf.features.keras import feature_set
from han_tf.features.shards import FeatureShards, read_manifest, shard_path
from han_tf.runs.folder import load_run
from han_tf.search import __main__ as search
from han_tf.search import create_gallery
from tests.conftest import messages

SHARD_IMAGES = 20


@pytest.fixture(scope="module")
def extractor(tiny_run):
    return _loaded(tiny_run)


@pytest.fixture(scope="module")
def gallery(tiny_data):
    return load_dataset("market1501", tiny_data).gallery


@pytest.fixture(scope="module")
def expected(tiny_run, gallery):
    """Path -> feature, pid and camid of the gallery, from the function that evaluation uses."""
    features = feature_set(load_run(tiny_run).model, gallery, progress=None)
    return {path: (feature, pid, camid) for feature, pid, camid, path in zip(*features)}


@pytest.fixture
def command(tiny_run, tmp_path, monkeypatch, capsys):
    """A function that calls the command with the tiny run and returns status, stdout and the lines of stderr."""
    monkeypatch.setattr(extract, "FeatureExtractor", _extractor)

    def call(*arguments, model=tiny_run):
        arguments = [f"--output={tmp_path / 'out'}", f"--model={model}", *map(str, arguments)]
        status = run(extract.main, extract.FLAGS, extract.__doc__, ["extract", *arguments], positional="images")
        captured = capsys.readouterr()
        return status, captured.out, messages(captured.err)

    return call


@functools.cache
def _loaded(path):
    return FeatureExtractor(path)


def _extractor(path, threads, batch_size):
    extractor = _loaded(Path(path))
    extractor.threads, extractor.batch_size = threads, batch_size
    return extractor


@pytest.fixture
def images(tiny_data, tmp_path):
    """A folder of 30 images that may be damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((tiny_data / "bounding_box_test").glob("*.jpg"))[:30]:
        shutil.copy(path, folder)
    return folder


def rows_of(folder):
    """Returns path -> (feature, pid, camid) of all rows; fails if a path has two rows."""
    rows = {}
    for batch in FeatureShards(folder):
        for feature, pid, camid, path in zip(batch.features, batch.pids, batch.camids, batch.paths):
            assert path not in rows
            rows[path] = (feature, pid, camid)
    return rows


def assert_rows(folder, expected):
    rows = rows_of(folder)
    assert sorted(rows) == sorted(expected)
    for path, (feature, pid, camid) in expected.items():
        # Images are batched differently than in evaluation, which changes the last digits.
        np.testing.assert_allclose(rows[path][0], feature, atol=2e-6)
        assert rows[path][1:] == (pid, camid)


def times_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


def test_a_data_set_gets_the_features_of_evaluation_and_its_labels(command, tiny_data, tmp_path, expected, extractor):
    status, text, lines = command("--dataset=market1501", f"--data_dir={tiny_data}", f"--shard_images={SHARD_IMAGES}")
    assert (status, lines) == (0, [])
    assert f"{len(expected)} rows in {-(-len(expected) // SHARD_IMAGES)} files written to {tmp_path / 'out'}" in text
    assert_rows(tmp_path / "out", expected)
    manifest = FeatureShards(tmp_path / "out").manifest
    assert manifest.model == extractor.checksum
    assert manifest.branch_names == ("global", "local")
    assert list(rows_of(tmp_path / "out")) == sorted(expected)


def test_evaluation_reads_the_folders(command, tiny_data, tmp_path, expected, capsys):
    """The features are ranked as if evaluation had extracted them itself."""
    folders = [tmp_path / subset for subset in ("query", "gallery")]
    for folder in folders:
        arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--subset={folder.name}", f"--output={folder}"]
        assert command(*arguments, "--shard_images=7")[0] == 0
    gallery = load_features(folders[1])
    assert list(gallery.paths) == sorted(expected)
    np.testing.assert_array_equal(gallery.pids, [expected[path][1] for path in gallery.paths])
    np.testing.assert_allclose(gallery.features, [expected[path][0] for path in gallery.paths], atol=2e-6)
    assert load_features(folders[1], labels_only=True).features.shape == (len(expected), 0)

    command_line = ["evaluate", "--features", *map(str, folders), "--branches=global,local"]
    assert run(evaluate.main, evaluate.FLAGS, "", command_line, positional="files") == 0
    assert "junk, not ranked" in capsys.readouterr().out
    command_line = ["evaluate", f"--features={folders[1]}", "--query_is_gallery"]
    assert run(evaluate.main, evaluate.FLAGS, "", command_line, positional="files") == 0
    assert f"{len(expected)} queries" in capsys.readouterr().out


def test_evaluation_wants_labels(command, images, tmp_path):
    assert command(images)[0] == 0
    with pytest.raises(UserError, match="30 of 30 rows have no pid, expected one in each"):
        load_features(tmp_path / "out")


def test_files_whose_names_tell_get_the_same(command, tiny_data, tmp_path, expected):
    assert command(tiny_data / "bounding_box_test" / "*.jpg", "--names=market1501")[0] == 0
    assert_rows(tmp_path / "out", expected)


def test_a_csv_file_gives_labels_and_times(command, tmp_path, images):
    names = sorted(path.name for path in images.iterdir())
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["time", "path", "camid"])
        writer.writerows([[1000 + n, f"images/{name}", n % 3] for n, name in enumerate(names[:10])])
        writer.writerow(["", f"images/{names[10]}", ""])
    assert command(tmp_path / "list.csv")[0] == 0
    (batch,) = FeatureShards(tmp_path / "out")
    assert list(batch.paths) == [str(images / name) for name in names[:11]]
    assert list(batch.camids) == [*[n % 3 for n in range(10)], UNKNOWN]
    np.testing.assert_array_equal(batch.times, [*range(1000, 1010), np.nan])
    assert set(batch.pids) == {UNKNOWN}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_shards_and_batches_may_have_any_sizes(extractor, gallery, tmp_path, expected, batch_size):
    extractor.batch_size = batch_size
    images = listed_records(gallery)
    for shard_images in (3, 10, 100):
        folder = tmp_path / str(shard_images)
        work = extraction.plan(folder, images, extractor, shard_images)
        extraction.extract_locally(extractor, images, folder, work)
        finished = extraction.finish(folder)
        assert (len(finished), finished.bad_images) == (len(expected), ())
        assert_rows(folder, expected)
        assert all(len(batch.paths) == shard_images for batch in list(FeatureShards(folder))[:-1])


KILLED = (
    "import os, signal, sys\n"
    "from han_tf import extract\n"
    "from han_tf.common.cli import run\n"
    "replace, written = os.replace, []\n"
    "def killing(source, target):\n"
    "    if 'part-' in str(target):\n"
    "        written.append(target)\n"
    "        if len(written) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
    "    replace(source, target)\n"
    "os.replace = killing\n"
    "run(extract.main, extract.FLAGS, '', sys.argv, positional='images')\n"
)
"""The command, killed when the third shard is whole but not yet renamed."""


def test_a_killed_extraction_goes_on_where_it_was(command, tiny_run, tiny_data, tmp_path, expected):
    out = tmp_path / "out"
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", "--shard_images=5"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, f"--model={tiny_run}", f"--output={out}"], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    finished = times_of(out)
    assert sorted(finished) == ["part-00000.parquet", "part-00001.parquet"]
    assert len(list(out.glob(".part-*.tmp"))) == 1
    with pytest.raises(UserError, match="2 of 7 files are there"):
        FeatureShards(out)

    status, text, lines = command(*arguments)
    assert (status, lines) == (0, [])
    assert "2 of 7 files are there" in text
    assert finished.items() <= times_of(out).items()
    assert not list(out.glob(".*.tmp"))
    assert_rows(out, expected)

    every = times_of(out)
    status, text, _ = command(*arguments)
    assert status == 0
    assert "7 of 7 files are there" in text
    assert times_of(out) == every


def test_an_interrupted_extraction_says_how_it_goes_on(command, images, tmp_path, monkeypatch):
    embed, calls = FeatureExtractor.embed, []

    def interrupted(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractor, "embed", interrupted)
        status, _, lines = command(images, "--batch_size=10", "--shard_images=10")
    assert (status, lines) == (130, ["interrupted: finished files stay, the same command makes the others"])
    finished = times_of(tmp_path / "out")
    assert finished
    assert command(images, "--batch_size=10")[0] == 0
    assert finished.items() <= times_of(tmp_path / "out").items()
    assert len(rows_of(tmp_path / "out")) == 30


def test_bad_images_are_listed_and_not_fatal(command, images, tmp_path):
    names = sorted(path.name for path in images.iterdir())
    (images / names[0]).write_bytes(b"no image")
    whole = (images / names[11]).read_bytes()
    (images / names[11]).write_bytes(whole[: len(whole) // 2])
    for name in names[20:]:  # a shard without rows
        (images / name).write_bytes(b"")
    (images / "gone.jpg").symlink_to(tmp_path / "later.jpg")
    nameless = os.fsencode(images / "zz") + b"\xff.jpg"
    shutil.copy(images / names[1], nameless)

    most = "--max_bad_images=0.5"
    status, text, lines = command(images, "--shard_images=10", "--batch_size=4", most)
    assert (status, lines) == (0, [])
    bad = [str(images / name) for name in [names[0], names[11], *names[20:], "gone.jpg"]]
    path = tmp_path / "out" / "bad_images.csv"
    assert f"{len(bad) + 1} of 32 images could not be read and have no row: {path}" in text
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [*sorted(bad), os.fsdecode(nameless)]
    reasons = {row["path"]: row["reason"] for row in rows}
    assert "cannot identify image file" in reasons[bad[0]]
    assert "truncated" in reasons[bad[1]]
    assert "No such file" in reasons[bad[-1]]
    assert "not UTF-8" in reasons[os.fsdecode(nameless)]
    assert sorted(rows_of(tmp_path / "out")) == [str(images / name) for name in names if str(images / name) not in bad]
    assert len(FeatureShards(tmp_path / "out").bad_images) == len(bad) + 1

    path.unlink()  # as if the command had been killed before it was written
    assert command(images, most)[0] == 0
    assert len(path.read_bytes().splitlines()) == len(bad) + 2

    status, _, (line,) = command(images)
    assert status == 1
    assert line.startswith(f"error: {len(bad) + 1} of 32 images could not be read, expected at most 10.0%; see {path}")

    shutil.copy(images / names[1], tmp_path / "later.jpg")  # a missing file is tried again
    assert command(images, most)[0] == 0
    assert str(images / "gone.jpg") in rows_of(tmp_path / "out")
    assert len(path.read_bytes().splitlines()) == len(bad) + 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOENT, errno.ESTALE])
def test_an_image_that_cannot_be_read_stops_the_work_and_is_read_later(
    command, images, tmp_path, monkeypatch, number, expected
):
    paths = sorted(map(str, images.iterdir()))
    whole = open

    def failing(path, mode):
        if path == paths[15]:
            raise OSError(number, os.strerror(number), path)
        return whole(path, mode)

    with monkeypatch.context() as patched:
        patched.setattr(reading, "open", failing, raising=False)
        status, _, (line,) = command(images, "--shard_images=10", "--batch_size=5")
    assert status == 1
    assert line.startswith(f"error: {paths[15]}: cannot be read ({os.strerror(number)})")
    assert sorted(times_of(tmp_path / "out")) == ["part-00000.parquet"]
    status, text, lines = command(images)
    assert (status, lines) == (0, [])
    assert "could not be read" not in text
    assert sorted(rows_of(tmp_path / "out")) == paths


def test_a_feature_that_is_not_finite_makes_a_bad_image(command, images, tmp_path, monkeypatch):
    paths = sorted(map(str, images.iterdir()))
    embed, calls = FeatureExtractor.embed, []

    def broken(self, pixels):
        calls.append(len(pixels))
        features = embed(self, pixels)
        if len(calls) == 2:
            features[[1, 3], [7, 0]] = np.nan, np.inf
        return features

    monkeypatch.setattr(FeatureExtractor, "embed", broken)
    assert command(images, "--batch_size=10")[0] == 0
    found = FeatureShards(tmp_path / "out")
    assert found.bad_images == tuple(
        BadImage(path, "the network's feature of it is not finite") for path in (paths[11], paths[13])
    )
    assert sorted(rows_of(tmp_path / "out")) == [path for path in paths if path not in (paths[11], paths[13])]


@pytest.fixture
def embedded(monkeypatch):
    """The numbers of images in the network's calls."""
    embed, seen = FeatureExtractor.embed, []

    def counting(self, pixels):
        seen.append(len(pixels))
        return embed(self, pixels)

    monkeypatch.setattr(FeatureExtractor, "embed", counting)
    return seen


def test_an_image_that_was_replaced_is_made_again_alone(command, images, tmp_path, extractor, embedded):
    out = tmp_path / "out"
    paths = sorted(map(str, images.iterdir()))
    assert command(images, "--shard_images=10")[0] == 0
    before = rows_of(out)
    embedded.clear()
    shutil.copy(paths[3], paths[14])
    status, text, lines = command(images)
    assert (status, lines, sum(embedded)) == (0, [], 1)
    assert f"note: {shard_path(out, 1)}: image files have changed, their features are made again" in text
    after = rows_of(out)
    np.testing.assert_allclose(after[paths[14]][0], before[paths[3]][0], atol=2e-6)
    for path in paths[:14] + paths[15:]:
        np.testing.assert_array_equal(after[path][0], before[path][0])
    assert {*os.listdir(out)} == {*times_of(out), ".lock", "manifest.json"}
    embedded.clear()
    assert command(images)[0] == 0
    assert embedded == []


def test_checksums_tell_bytes_and_nothing_else(command, images, tmp_path, embedded):
    paths = sorted(map(str, images.iterdir()))
    assert command(images, "--checksum")[0] == 0
    embedded.clear()
    for path in paths:
        os.utime(path, (1, 1))
    assert command(images, "--checksum")[0] == 0
    assert embedded == []
    with open(paths[4], "r+b") as stream:  # of the same size
        stream.seek(-3, os.SEEK_END)
        stream.write(b"x")
    os.utime(paths[4], (1, 1))
    assert command(images, "--checksum")[0] == 0
    assert sum(embedded) == 1


@pytest.fixture
def grown(images, tiny_data, tmp_path):
    """A function that adds three images to the folder, removes two and returns the remaining paths."""

    def grow():
        for path in sorted((tiny_data / "query").glob("*.jpg"))[:3]:
            shutil.copy(path, images / f"new_{path.name}")
        for path in sorted(images.iterdir())[4:6]:
            path.unlink()
        return sorted(map(str, images.iterdir()))

    return grow


def test_a_list_that_has_grown_takes_over_what_is_there(command, images, tmp_path, grown, embedded, extractor):
    out = tmp_path / "out"
    assert command(images, "--shard_images=10")[0] == 0
    before = rows_of(out)
    paths = grown()
    embedded.clear()
    status, _, (line,) = command(images)
    assert status == 1
    assert "holds features of 30 images, expected 31" in line
    assert "--update keeps the features of images that are the same" in line
    status, _, lines = command(images, "--update")
    assert (status, lines, sum(embedded)) == (0, [], 3)
    after = rows_of(out)
    assert list(after) == paths
    for path in before.keys() & after.keys():
        np.testing.assert_array_equal(after[path][0], before[path][0])
    new = [path for path in paths if path not in before]
    np.testing.assert_allclose([after[path][0] for path in new], extractor(new), atol=2e-6)
    assert not list(out.glob("previous-*"))

    embedded.clear()
    assert command(images, "--update", "--shard_images=7")[0] == 0  # with another shard size, too
    assert embedded == []
    assert len(times_of(out)) == 5
    for path, (feature, *_) in rows_of(out).items():
        np.testing.assert_array_equal(feature, after[path][0])


def test_an_update_that_was_interrupted_goes_on(command, images, tmp_path, grown, embedded, monkeypatch):
    out = tmp_path / "out"
    assert command(images, "--shard_images=10")[0] == 0
    before = rows_of(out)
    paths = grown()
    embedded.clear()
    replace = os.replace

    def stopping(most):
        done = []

        def interrupted(source, target):
            done.append(target)
            if len(done) == most:
                raise KeyboardInterrupt
            replace(source, target)

        return interrupted

    for most in (1, 3, 3, 3, 3):  # while the old shards are moved, before the new manifest, and after it
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", stopping(most))
            assert command(images, "--update")[0] == 130
    assert command(images, "--update")[0] == 0
    after = rows_of(out)
    assert list(after) == paths
    for path in before.keys() & after.keys():
        np.testing.assert_array_equal(after[path][0], before[path][0])
    assert not list(out.glob("previous-*"))


def test_parts_make_together_what_one_makes(command, images, tmp_path, embedded):
    out = tmp_path / "out"
    status, text, lines = command(images, "--part=2/3", "--shard_images=4")
    assert (status, lines) == (0, [])
    assert "part 2/3 is done; 5 of 8 files are to come from other parts" in text
    assert sorted(times_of(out)) == [f"part-0000{number}.parquet" for number in (1, 4, 7)]
    with pytest.raises(UserError, match="3 of 8 files are there"):
        FeatureShards(out)
    with extraction.locked(out, extraction.Part(2, 3)):
        status, _, (line,) = command(images, "--part=2/3")
        assert status == 1
        assert "another process makes part 2/3 there" in line
        status, _, (line,) = command(images)
        assert status == 1
        assert "another extraction is writing to it" in line
        assert "part 1/3 is done" in command(images, "--part=1/3")[1]
    status, text, _ = command(images, "--part=3/3")
    assert (status, sum(embedded)) == (0, 30)
    assert f"30 rows in 8 files written to {out}" in text
    assert sorted(rows_of(out)) == sorted(map(str, images.iterdir()))


@pytest.mark.parametrize("part", ["0/3", "4/3", "2", "2/0", "a/b", "-1/2", "1/2/3"])
def test_parts_that_are_none(command, images, part):
    status, _, (line,) = command(images, f"--part={part}")
    assert status == 1
    assert line == f"error: --part is {part!r}, expected one such as 2/8: from 1/8 to 8/8"


def test_what_folders_hold_besides_images_is_counted(command, images, tmp_path):
    (images / "notes.txt").touch()
    os.mkfifo(images / "pipe.jpg")
    status, text, _ = command(images)
    assert status == 0
    others = "1 folders, links to nothing or other things that are no files"
    assert f"note: 1 files named *.txt, {others}: passed over" in text


def test_a_white_level_is_part_of_what_features_are(command, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 4096, (48, 32)).astype(np.uint16)
    Image.fromarray(pixels).save(folder / "deep.png")
    Image.fromarray((pixels // 16).astype(np.uint8)).save(folder / "plain.png")
    status, text, _ = command(folder, "--white_level=4095")
    assert status == 0
    assert "note: 1 images of more than 8 bits per pixel: 4,095 became white" in text
    (batch,) = FeatureShards(tmp_path / "out")
    np.testing.assert_allclose(batch.features[0], batch.features[1], atol=2e-6)
    status, _, (line,) = command(folder)
    assert status == 1
    assert "holds features with the white level 4095.0, expected 0" in line


def test_a_search_takes_a_white_level_too(tiny_run, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 4096, (48, 32)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    Image.fromarray((pixels // 16).astype(np.uint8)).save(tmp_path / "plain.png")
    with create_gallery(tmp_path / "index", _loaded(tiny_run).feature_dim, _loaded(tiny_run).checksum) as gallery:
        gallery.add(_loaded(tiny_run)([tmp_path / "plain.png"]), paths=["plain.png"])
    arguments = [f"--index={tmp_path / 'index'}", f"--model={tiny_run}", "--json", str(tmp_path / "deep.png")]

    def distance(*more):
        argv = ["search", *arguments, *more]
        assert run(search.main, search.FLAGS, search.__doc__, argv, positional="images") == 0
        captured = capsys.readouterr()
        assert "note: 1 images of more than 8 bits per pixel" in captured.err
        return json.loads(captured.out)["queries"][0]["hits"][0]["distance"]

    assert distance("--white_level=4095") < 1e-5 < distance()


def test_no_readable_image_at_all_is_an_error(command, images, tmp_path):
    for path in images.iterdir():
        path.write_bytes(b"no image")
    status, _, (line,) = command(images)
    assert status == 1
    assert line.startswith("error: none of the 30 images could be read, expected at least one; see ")
    assert len((tmp_path / "out" / "bad_images.csv").read_bytes().splitlines()) == 31


@pytest.fixture
def finished(command, images, tmp_path):
    """A finished folder."""
    assert command(images, "--shard_images=10")[0] == 0
    return tmp_path / "out"


def inverted(data, start, end):
    """Returns ``data`` with every bit from byte ``start`` to ``end`` inverted, so that it differs for certain."""
    return data[:start] + bytes(byte ^ 255 for byte in data[start:end]) + data[end:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(inverted(path.read_bytes(), 9000, 9008)),
        lambda path: shutil.copy(path.with_name("part-00000.parquet"), path),
    ],
)
def test_a_damaged_shard_is_named_and_made_again(command, images, finished, damage):
    before, times = rows_of(finished), times_of(finished)
    damage(shard_path(finished, 1))
    status, text, lines = command(images)
    assert (status, lines) == (0, [])
    assert f"note: {shard_path(finished, 1)}: " in text
    after = rows_of(finished)
    assert list(after) == list(before)
    for path, row in before.items():
        np.testing.assert_allclose(after[path][0], row[0], atol=2e-6)
    changed = {name for name, time in times_of(finished).items() if time != times[name]}
    assert changed == {"part-00001.parquet"}


def test_another_list_or_model_or_division_is_refused(command, images, finished, extractor):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    status, _, (line,) = command(images, "--shard_images=20")
    assert status == 1
    assert "holds shards of 10 images, expected 20; give another --output, or --overwrite" in line
    (images / "zz.jpg").write_bytes(b"")
    status, _, (line,) = command(images)
    assert status == 1
    assert f"{finished}: holds features of 30 images, expected 31; give another --output" in line
    (images / "zz.jpg").unlink()
    status, _, (line,) = command(images, r"--names=_c(?P<camid>\d)")
    assert status == 1
    assert f"{finished}: holds features of another list of images, with the fingerprint" in line

    other = dataclasses.replace(extractor.card, checksum="0" * 64)
    with pytest.raises(UserError, match=f"holds features of model {extractor.checksum}, expected {'0' * 64}"):
        extraction.plan(finished, list_images([str(images)]), other)
    for changed, words in (
        ({"precision": "int8"}, "holds features of a model in float32, expected int8"),
        ({"format": "openvino"}, "holds features of a model in format keras, expected openvino"),
    ):
        with pytest.raises(UserError, match=words):
            extraction.plan(finished, list_images([str(images)]), dataclasses.replace(extractor.card, **changed))
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_folder_of_an_older_version_goes_on(command, images, finished):
    """Its manifest lacks format and precision."""
    path = finished / "manifest.json"
    values = json.loads(path.read_text())
    assert (values.pop("model_format"), values.pop("precision")) == ("keras", "float32")
    path.write_text(json.dumps(values))
    shard_path(finished, 1).unlink()
    assert command(images)[0] == 0
    assert len(rows_of(finished)) == 30


def test_overwrite_removes_nothing_before_ray_is_there(command, images, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        status, _, (line,) = command(images, "--overwrite", f"--ray=127.0.0.1:{free.getsockname()[1]}")
    assert status == 1
    assert "cannot be reached" in line
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_damaged_shard_counts_as_missing_for_other_parts(command, images, finished):
    shard_path(finished, 1).write_bytes(b"PAR1")
    plan = extraction.plan(finished, list_images([str(images)]), _card(finished), part=extraction.Part(2, 3))
    assert plan.pending == (1,)
    assert plan.progress().n == 0
    status, text, lines = command(images, "--part=1/3")
    assert (status, lines) == (0, [])
    assert "part 1/3 is done; 1 of 3 files are to come from other parts" in text


def _card(folder):
    manifest = read_manifest(folder)
    return SimpleNamespace(
        checksum=manifest.model,
        feature_dim=manifest.feature_dim,
        branch_names=manifest.branch_names,
        format=manifest.model_format,
        precision=manifest.precision,
    )


def test_checksums_are_not_mixed_with_size_and_time(command, images, finished):
    before = times_of(finished)
    status, _, (line,) = command(images, "--checksum")
    assert status == 1
    assert "changes of image files are detected by size and time (without --checksum) there" in line
    assert times_of(finished) == before
    assert command(images, "--checksum", "--overwrite")[0] == 0
    status, _, (line,) = command(images)
    assert status == 1
    assert "changes of image files are detected by their bytes (--checksum) there" in line


def contents_of(folder):
    """Returns path -> bytes of all files below ``folder``."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("share", [1, 0.5])
def test_a_disk_that_is_not_mounted_costs_no_feature(command, images, tmp_path, share):
    links = tmp_path / "links"
    links.mkdir()
    names = sorted(path.name for path in images.iterdir())
    for name in names[: int(share * len(names))]:
        (links / name).symlink_to(images / name)
    for name in names[int(share * len(names)) :]:
        shutil.copy(images / name, links)
    assert command(links, "--shard_images=10")[0] == 0
    before = contents_of(tmp_path / "out")
    images.rename(tmp_path / "elsewhere")
    for flags in ([], ["--update"], ["--overwrite"], *[["--max_bad_images=1"]] * (share == 1)):
        status, _, (line,) = command(links, *flags)
        assert status == 1
        assert line.startswith(
            f"error: {int(30 * share)} of 30 images are missing, the first is {links / names[0]}; expected at least"
        )
        assert contents_of(tmp_path / "out") == before


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), MemoryError("none left")], ids=str)
@pytest.mark.parametrize("changed", [False, True])
def test_a_shard_that_cannot_be_read_now_stays(command, images, finished, monkeypatch, error, changed):
    """It may lie on a network's disk; with a changed image, the earlier shard cannot be read."""
    if changed:
        shutil.copy(sorted(images.iterdir())[1], sorted(images.iterdir())[0])
        with monkeypatch.context() as patched:
            patched.setattr(extraction, "extract_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert command(images)[0] == 130
    before = contents_of(finished)

    class Failing(parquet.ParquetFile):
        def __init__(self, source, **kwargs):
            if not changed or "previous-" in str(source):
                raise error
            super().__init__(source, **kwargs)

    monkeypatch.setattr(parquet, "ParquetFile", Failing)
    status, _, (line,) = command(images)
    assert status == 1
    assert re.fullmatch(r"error: .*/part-00000\.parquet: cannot be read \(.*\), expected a readable file", line)
    assert contents_of(finished) == before


def test_an_update_does_not_mix_checksums_with_size_and_time(command, images, finished, grown, embedded):
    grown()
    before = contents_of(finished)
    embedded.clear()
    status, _, (line,) = command(images, "--update", "--checksum")
    assert status == 1
    assert "changes of image files are detected by size and time (without --checksum) there" in line
    assert embedded == []
    assert contents_of(finished) == before


def test_what_an_interrupted_update_left_is_not_taken_for_another_networks(command, images, tmp_path, grown, extractor):
    out = tmp_path / "out"
    assert command(images, "--shard_images=10")[0] == 0
    grown()
    plan = extraction.plan(out, list_images([str(images)]), extractor.card, update=True)
    assert len(list(out.glob("previous-*/part-*.parquet"))) == 3
    found = extraction.EarlierShards(out, plan.manifest)
    assert len(list(found.of(list_images([str(images)])))) == 3
    for name, value in (("model", "0" * 64), ("precision", "int8"), ("white_level", 4095.0)):
        other = dataclasses.replace(plan.manifest, **{name: value})
        assert not list(extraction.EarlierShards(out, other).of(list_images([str(images)])))


@pytest.mark.parametrize(
    ("name", "content"),
    [("manifest.json", '{"name": "my web page"}'), ("manifest.json", "[]"), ("bad_images.csv", "image,why\n")],
)
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_files_of_others_with_names_of_an_extraction_stay(command, images, tmp_path, name, content, flags):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    status, _, (line,) = command(images, *flags)
    assert (status, line) == (1, f"error: {out / name}: not of an extraction, expected another --output")
    assert {path.name for path in contents_of(out)} == {name, ".lock"}
    assert (out / name).read_text() == content


def test_parquet_files_of_other_programs_stay(command, images, tmp_path):
    theirs = tmp_path / "out" / "part-00000-1f2e.c000.snappy.parquet"
    theirs.parent.mkdir()
    theirs.write_bytes(b"precious")
    assert command(images)[0] == 0
    assert command(images, "--overwrite")[0] == 0
    assert theirs.read_bytes() == b"precious"
    assert len(rows_of(theirs.parent)) == 30


def test_a_part_says_that_it_waits(tmp_path):
    holding, told = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / ".lock"):
            holding.set()
            told.wait(60)

    def release(message, *_, **__):
        notes.append(str(message))
        told.set()

    notes, other = [], threading.Thread(target=hold)
    other.start()
    assert holding.wait(60)
    with warnings.catch_warnings():
        warnings.showwarning = release
        warnings.simplefilter("always", Note)
        with extraction.planning(tmp_path, extraction.Part(1, 2)):
            assert notes == [f"{tmp_path}: another process is at work there; waiting for it"]
    other.join()


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_what_others_put_into_the_folder_stays(command, images, finished, flags):
    kept = [finished / name for name in ("previous-work/a.txt", "previous-0123456789abcdef-10/a.txt", "previous-notes")]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (kept[1].parent / "part-00000.parquet").touch()
    (finished / "previous-0123456789abcdef-20").mkdir()
    shutil.copy(next(images.iterdir()), images / "zz.jpg")
    assert command(images, *(flags or ["--update"]))[0] == 0
    assert all(path.exists() for path in kept)
    assert not (kept[1].parent / "part-00000.parquet").exists()
    assert not (finished / "previous-0123456789abcdef-20").exists()


def test_overwrite_makes_everything_anew_and_touches_nothing_else(command, images, finished):
    (finished / "notes.txt").write_text("precious")
    sorted(images.iterdir())[0].unlink()
    status, _, lines = command(images, "--overwrite", "--shard_images=25")
    assert (status, lines) == (0, [])
    assert len(rows_of(finished)) == 29
    assert sorted(times_of(finished)) == ["part-00000.parquet", "part-00001.parquet"]
    assert (finished / "notes.txt").read_text() == "precious"


def test_shards_without_a_manifest_are_refused(command, images, finished):
    (finished / "manifest.json").unlink()
    status, _, (line,) = command(images)
    assert status == 1
    assert "holds part-00000.parquet but no manifest.json, expected an empty folder or --overwrite" in line
    assert len(times_of(finished)) == 3


def test_two_extractions_do_not_write_to_one_folder(command, images, finished):
    with (finished / ".lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        status, _, (line,) = command(images)
    assert status == 1
    assert "another extraction is writing to it" in line
    assert command(images)[0] == 0


def test_a_full_disk_is_one_line_and_goes_on_later(command, images, finished):
    """A limit on the size of files stands in for the disk."""
    shard_path(finished, 1).unlink()
    times = times_of(finished)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        status, _, (line,) = command(images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    assert line == f"error: cannot write {shard_path(finished, 1)}: File too large"
    assert times_of(finished) == times
    assert not list(finished.glob(".part*"))
    assert command(images)[0] == 0
    assert len(rows_of(finished)) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage error: no images, expected folders, patterns, CSV files or images, or --dataset"),
        (
            ["{images}", "--dataset=market1501"],
            "usage error: unexpected argument '{images}': --dataset replaces IMAGES",
        ),
        (["{images}/no"], "no such file or folder"),
        (["--dataset=market"], "unknown dataset 'market'"),
        (["--dataset=market1501", "--data_dir={data}", "--subset=multi_query"], ""),
        (["{images}", "--model={images}"], "expected the folder of a training run or of an exported model"),
        (["{images}", "--output={file}"], "cannot write"),
        (["{images}", "--output={file}/x"], "cannot write"),
    ],
)
def test_what_does_not_fit_is_one_line(command, images, tiny_data, tmp_path, arguments, words):
    file = tmp_path / "file"
    file.write_text("precious")
    if not words:
        shutil.copytree(tiny_data, tmp_path / "data", ignore=shutil.ignore_patterns("gt_bbox"))
        words = "has no multi_query images, expected another --subset"
    names = {"images": images, "file": file, "data": tmp_path / "data"}
    status, _, (line,) = command(*[argument.format(**names) for argument in arguments])
    assert status == (2 if line.startswith("usage error: ") else 1)
    assert line.startswith(("error: ", "usage error: "))
    assert words.format(**names) in line
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output="], "expected a folder for the features"),
        (["--shard_images=0"], "--shard_images=0"),
        (["--shard_images=70000"], "--shard_images=70000"),
        (["--batch_size=0"], "--batch_size=0"),
        (["--subset=all"], "--subset=all"),
        (["--subset=query"], "--subset means nothing without --dataset"),
        (["--data_dir=x"], "--data_dir means nothing without --dataset"),
        (["--dataset=market1501", "--names=market1501"], "--names means nothing with --dataset"),
        (["--actors=2"], "--actors means nothing without --ray"),
        (["--ray=local", "--threads=2"], "--threads means nothing with --ray"),
        (["--ray=local", "--part=1/2"], "--part means nothing with --ray"),
        (["--overwrite", "--part=1/2"], "--overwrite means nothing with --part"),
        (["--update", "--overwrite"], "--update means nothing with --overwrite"),
        (["--max_bad_images=1.5"], "--max_bad_images=1.5"),
        (["--white_level=-1"], "--white_level=-1"),
    ],
)
def test_flags_that_do_not_fit(command, images, arguments, words):
    status, _, (line,) = command(images, *arguments)
    assert status == 2
    assert line.startswith("usage error: ")
    assert words in line


def test_without_pyarrow_nothing_is_begun(command, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, (line,) = command(images)
    assert status == 1
    assert "pip install '.[extract]'" in line
    assert os.listdir(tmp_path / "out") == [".lock"]


def test_the_newest_run_is_taken(command, images, tiny_run, tmp_path):
    status, text, _ = command(images, f"--runs_dir={tiny_run.parent}", model="")
    assert status == 0
    assert f"30 images with {tiny_run} (keras, float32)" in text
