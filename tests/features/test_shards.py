"""Features in Parquet: they are read back as written, and a wrong folder gives one line that names the file."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.data.reading import BadImage
from han_tf.features.shards import (
    FeatureBatch,
    FeatureShards,
    Manifest,
    read_manifest,
    read_shard,
    read_summary,
    shard_path,
    write_manifest,
    write_shard,
)

ROWS = 7
MANIFEST = Manifest("ab" * 32, 4, ("global", "local"), "cd" * 32, images=ROWS + 3, shard_images=ROWS + 1)
BAD = BadImage("/images/ü.jpg", "image file is truncated")


def batch(rows=ROWS, dimension=4, seed=0):
    rng = np.random.default_rng(seed)
    return FeatureBatch(
        rng.normal(size=(rows, dimension)).astype(np.float32),
        np.where(np.arange(rows) % 3, np.arange(rows) - 1, UNKNOWN),
        np.where(np.arange(rows) % 2, np.arange(rows), UNKNOWN),
        np.where(np.arange(rows) % 4, rng.random(rows) * 2e9, np.nan),
        np.array([f"/images/ü {row}.jpg" for row in range(rows)], object),
    )


@pytest.fixture
def folder(tmp_path):
    """Two shards: one with a bad image, one with two images."""
    write_manifest(tmp_path, MANIFEST)
    write_shard(tmp_path, MANIFEST, 0, batch(), [BAD])
    write_shard(tmp_path, MANIFEST, 1, batch(2, seed=1))
    return tmp_path


def assert_equal(found, expected):
    for name, ours, theirs in zip(FeatureBatch._fields, found, expected):
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours, theirs, name)


def message(call, *arguments):
    """Returns the error, which is one line."""
    with pytest.raises(UserError) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def read_all(folder):
    return list(FeatureShards(folder))


def rewrite(folder, change, number=0):
    """Replaces the table of a shard by ``change(table)``, with the same metadata."""
    path = shard_path(folder, number)
    table = pq.read_table(path)
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    return path


def test_what_is_written_comes_back(folder):
    shards = FeatureShards(folder)
    first, second = shards
    assert_equal(first, batch())
    assert_equal(second, batch(2, seed=1))
    assert len(shards) == ROWS + 2
    assert shards.manifest == MANIFEST
    assert shards.bad_images == (BAD,)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rows_come_back(tmp_path, data):
    rows, dimension = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))
    ids = st.one_of(st.just(UNKNOWN), st.integers(-1, 2**63 - 1))
    times = st.one_of(st.just(np.nan), st.floats(-1e12, 1e12))
    texts = st.text(st.characters(blacklist_categories=["Cs"]))

    def draw(values, dtype):
        return np.array(data.draw(st.lists(values, min_size=rows, max_size=rows)), dtype)

    features = draw(st.lists(st.floats(-1, 1, width=32), min_size=dimension, max_size=dimension), np.float32)
    written = FeatureBatch(
        features.reshape(rows, dimension),
        draw(ids, np.int64),
        draw(ids, np.int64),
        draw(times, float),
        draw(texts, object),
    )
    bad = [BadImage(*pair) for pair in data.draw(st.lists(st.tuples(st.text(), st.text()), max_size=3))]
    bad += [BAD] * (rows + len(bad) == 0)
    manifest = Manifest("ab" * 32, dimension, ("joint",), "cd" * 32, rows + len(bad), rows + len(bad))
    write_shard(tmp_path, manifest, 0, written, bad)
    assert_equal(read_shard(tmp_path, manifest, 0), written)
    assert read_summary(tmp_path, manifest, 0)[:2] == (rows, tuple(bad))


def test_the_features_are_a_view_of_what_was_read(folder):
    (first, _) = FeatureShards(folder)
    assert first.features.base is not None
    assert not first.features.flags.writeable
    assert first.features.flags.c_contiguous


def test_others_read_the_columns_that_are_promised(folder):
    table = pq.read_table(shard_path(folder, 0))
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("path", "string"),
        ("pid", "int64"),
        ("camid", "int64"),
        ("time", "double"),
        ("feature", "fixed_size_list<element: float not null>[4]"),
        ("model", "dictionary<values=string, indices=int32, ordered=0>"),
    ]
    rows = batch()
    expected = [
        {
            "path": path,
            "pid": None if pid == UNKNOWN else pid,
            "camid": None if camid == UNKNOWN else camid,
            "time": None if np.isnan(time) else time,
            "feature": list(feature),
            "model": MANIFEST.model,
        }
        for feature, pid, camid, time, path in zip(*rows)
    ]
    assert table.to_pylist() == expected
    metadata = table.schema.metadata
    assert metadata[b"feature_dim"] == b"4"
    assert json.loads(metadata[b"branch_names"]) == ["global", "local"]
    assert metadata[b"han_tf_version"] == MANIFEST.han_tf.encode()


def test_bytes_that_change_do_not_change_what_is_read_unnoticed(folder):
    """Changes every fifth byte in turn, of data and metadata."""
    path = shard_path(folder, 0)
    whole = path.read_bytes()
    expected = batch()
    messages = []
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_shard(folder, MANIFEST, 0)
        except UserError as error:
            messages.append(str(error))
        else:
            assert_equal(found, expected)
    assert len(messages) > 100
    assert all(text.startswith(f"{path}: ") for text in messages)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(folder, share):
    path = shard_path(folder, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert message(FeatureShards, folder).startswith(f"{path}: damaged")


def test_a_missing_file_is_named(folder):
    shard_path(folder, 1).unlink()
    text = message(FeatureShards, folder)
    assert text.startswith(f"{folder}: 1 of 2 files are there (part-00001.parquet is not)")
    assert message(read_summary, folder, MANIFEST, 1).startswith(f"{shard_path(folder, 1)}: no such file")


def test_a_file_of_another_extraction_is_named(folder, tmp_path):
    for changed, words in (
        ({"model": "ef" * 32}, f"model is '{'ef' * 32}', expected '{MANIFEST.model}'"),
        ({"fingerprint": "ef" * 32}, "fingerprint is"),
        ({"shard_images": ROWS, "images": ROWS}, f"images is {ROWS}, expected {ROWS + 1}"),
    ):
        manifest = Manifest(**{**MANIFEST.__dict__, **changed})
        write_shard(folder, manifest, 0, batch(manifest.bounds(0)[1]))
        text = message(FeatureShards, folder)
        assert text.startswith(f"{shard_path(folder, 0)}: {words}")
        assert "another extraction" in text
    os.replace(shard_path(folder, 1), shard_path(folder, 0))
    write_shard(folder, MANIFEST, 1, batch(2))
    assert f"{shard_path(folder, 0)}: shard is 1, expected 0" in message(FeatureShards, folder)


NO_FEATURE = "damaged or no Parquet|1 rows have no feature"
"""Older versions of pyarrow cannot read what they have written."""


def with_column(name, values, kind=None):
    def change(table):
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, pa.array(values, kind))

    return change


VECTORS = [[float(number)] * 4 for number in range(ROWS)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop_columns(["camid"]), "no column camid, expected int64"),
        (with_column("pid", ["1"] * ROWS), "column of string pid, expected int64"),
        (with_column("time", [1] * ROWS), "column of int64 time, expected double"),
        (with_column("feature", VECTORS), "feature, expected fixed_size_list<float32>[4]"),
        (with_column("feature", VECTORS, pa.list_(pa.float64(), 4)), "feature, expected fixed_size_list<float32>[4]"),
        (
            with_column("feature", [vector[:3] for vector in VECTORS], pa.list_(pa.float32(), 3)),
            "feature, expected fixed_size_list<float32>[4]",
        ),
        (with_column("feature", [None, *VECTORS[1:]], pa.list_(pa.float32(), 4)), NO_FEATURE),
        (
            with_column("feature", [[None, 1, 2, 3], *VECTORS[1:]], pa.list_(pa.float32(), 4)),
            "a feature lacks a number, expected 4 in each",
        ),
        (with_column("path", [None] * ROWS, pa.string()), f"{ROWS} rows have no path"),
        (with_column("model", ["0" * 64] * ROWS), f"features of model {'0' * 64}, expected {MANIFEST.model}"),
        (lambda table: table.slice(1), f"{ROWS - 1} rows and 1 bad images, expected {ROWS + 1} together"),
    ],
)
def test_columns_that_do_not_fit_are_named(folder, change, words):
    path = rewrite(folder, change)
    text = message(read_all, folder)
    assert text.startswith(f"{path}: ")
    assert any(part in text for part in words.split("|"))


def test_columns_of_the_same_kind_will_do(folder):
    """Other programs write nullable features, plain strings, and further columns."""

    def change(table):
        table = with_column("feature", table["feature"].to_pylist(), pa.list_(pa.float32(), 4))(table)
        table = with_column("model", [MANIFEST.model] * ROWS)(table)
        return table.append_column("score", pa.array([1.0] * ROWS))

    rewrite(folder, change)
    assert_equal(next(iter(FeatureShards(folder))), batch())


def test_a_file_of_nobody_is_named(folder):
    path = shard_path(folder, 0)
    pq.write_table(pa.table({"path": ["a"]}), path)
    assert (
        message(FeatureShards, folder) == f"{path}: not written by python -m han_tf.extract, expected one of its files"
    )


def test_rows_that_do_not_fit_are_a_bug_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="expected \\(8, 4\\)"):
        write_shard(tmp_path, MANIFEST, 0, batch())
    with pytest.raises(ValueError, match="expected \\(7, 4\\)"):
        write_shard(tmp_path, MANIFEST, 0, batch(dimension=5), [BAD])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "format None, expected 1"),
        ('{"format": 2}', "format 2, expected 1"),
        ('{"format": 1}', "no entry 'model'"),
    ],
)
def test_a_manifest_that_is_none_is_named(folder, text, words):
    (folder / "manifest.json").write_text(text)
    found = message(FeatureShards, folder)
    assert found.startswith(f"{folder}/manifest.json: ")
    assert words in found


def test_no_folder_is_named(tmp_path):
    assert message(FeatureShards, tmp_path / "no").startswith(f"{tmp_path}/no/manifest.json: No such file")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*Manifest.__annotations__, "format", "other"]), value=JSON)
def test_a_manifest_is_read_as_it_was_written_or_refused(tmp_path, name, value):
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, name: value}))
    try:
        found = read_manifest(tmp_path)
    except UserError as error:
        found = str(error)
    if isinstance(found, str):
        assert found.startswith(f"{path}: ")
        assert name != "other"
    else:
        expected = tuple(value) if name == "branch_names" else value
        assert name in ("format", "other") or getattr(found, name) == expected
        assert found.shards > 0


def test_a_full_disk_is_one_line_and_leaves_the_old_file(folder):
    """A limit on the size of files stands in for the disk."""
    before = shard_path(folder, 0).read_bytes()
    script = (
        "import resource, sys; import numpy as np\n"
        "from han_tf.common.errors import UserError; from han_tf.features.shards import *\n"
        "manifest = Manifest('0' * 64, 512, (), '0' * 64, 50, 50)\n"
        "labels = np.zeros(50, int)\n"
        "rows = FeatureBatch(np.zeros([50, 512]), labels, labels, np.zeros(50), np.array(['a'] * 50, object))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    write_shard(sys.argv[1], manifest, 0, rows)\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {shard_path(folder, 0)}: File too large\n"
    assert done.stderr == ""
    assert shard_path(folder, 0).read_bytes() == before
    assert sorted(os.listdir(folder)) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]


def test_without_pyarrow_the_line_that_installs_it_is_shown(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install '.[extract]'" in message(FeatureShards, folder)
