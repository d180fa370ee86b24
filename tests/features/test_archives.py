"""Features on disk: they are read back as written, and a wrong file gives one line of error."""

import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from han_tf.common.errors import UserError
from han_tf.data import Record
from han_tf.features.archives import FeatureSet, branch_features, load_features, save_features

FEATURES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
RECORDS = [Record(f"folder/ü{n}.jpg", pid, camid) for n, (pid, camid) in enumerate([(7, 1), (-1, 2), (0, 1), (7, 3)])]
ARRAYS = {"features": FEATURES, "pids": np.array([7, -1, 0, 7]), "camids": np.array([1, 2, 1, 3])}


def error_of(path):
    """Returns the error, which is one line and names the file."""
    with pytest.raises(UserError) as raised:
        load_features(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_features_and_records_are_joined_row_by_row():
    features = FeatureSet.of(FEATURES, RECORDS)
    for row, record in enumerate(RECORDS):
        assert Record(features.paths[row], features.pids[row], features.camids[row]) == record
    assert features.pids.dtype == features.camids.dtype == np.int64


@pytest.mark.parametrize(
    ("chosen", "rows", "is_view"),
    [
        ([True, False, False, True], [0, 3], False),
        ([False, True, True, False], [1, 2], True),
        ([True] * 4, [0, 1, 2, 3], True),
        ([False] * 4, [], False),
        ([3, 0, 0], [3, 0, 0], False),
    ],
)
def test_rows_are_chosen_without_a_copy_where_they_follow_each_other(chosen, rows, is_view):
    features = FeatureSet.of(FEATURES, RECORDS)
    kept = features.where(np.array(chosen))
    for found, array in zip(kept, features):
        np.testing.assert_array_equal(found, array[rows])
    assert np.shares_memory(kept.features, features.features) == is_view


def test_round_trip(tmp_path):
    features = FeatureSet.of(FEATURES, RECORDS)
    save_features(tmp_path / "new" / "query.npz", features)
    for written, read in zip(features, load_features(tmp_path / "new" / "query.npz")):
        assert written.dtype == read.dtype
        np.testing.assert_array_equal(written, read)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels", [np.uint8, np.int32, ">i8"])
def test_archives_of_other_programs_need_no_paths(tmp_path, save, labels):
    pids = np.array([7, 1, 0, 7]).astype(labels)
    save(tmp_path / "a.npz", features=FEATURES.astype(np.float64), pids=pids, camids=pids, more=np.zeros(3))
    features = load_features(tmp_path / "a.npz")
    np.testing.assert_array_equal(features.features, FEATURES)
    assert features.pids.dtype == features.camids.dtype == np.int64
    assert features.pids.tolist() == [7, 1, 0, 7]
    assert features.paths.tolist() == [""] * 4


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_features_are_mapped_and_their_branches_are_views(tmp_path, dtype, order):
    np.savez(tmp_path / "a.npz", **{**ARRAYS, "features": np.array(FEATURES, dtype, order=order)})
    features = load_features(tmp_path / "a.npz").features
    assert isinstance(features, np.memmap)
    assert features.dtype == dtype
    np.testing.assert_array_equal(features, FEATURES.astype(dtype))
    parts = branch_features(features, ("first", "second", "third"))
    assert list(parts) == ["joint", "first", "second", "third"]
    for number, name in enumerate(list(parts)[1:]):
        assert np.shares_memory(parts[name], features)
        np.testing.assert_array_equal(parts[name], FEATURES.astype(dtype)[:, 2 * number : 2 * number + 2])
    assert isinstance(
        FeatureSet(features, *load_features(tmp_path / "a.npz")[1:]).where(np.arange(4) > 0).features, np.memmap
    )


def test_branches_that_do_not_fit():
    assert list(branch_features(FEATURES, ())) == list(branch_features(FEATURES, ("global",))) == ["joint"]
    with pytest.raises(UserError, match=r"dimension 6, expected a multiple of 4 \(branches a, b, c, d\)"):
        branch_features(FEATURES, "abcd")


def test_labels_need_no_features(tmp_path):
    np.savez(tmp_path / "a.npz", pids=ARRAYS["pids"], camids=ARRAYS["camids"])
    labels = load_features(tmp_path / "a.npz", labels_only=True)
    assert labels.features.shape == (4, 0)
    assert labels.pids.tolist() == [7, -1, 0, 7]
    assert "no array 'features'" in error_of(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", pids=ARRAYS["pids"])
    with pytest.raises(UserError, match="no array 'camids', expected pids and camids"):
        load_features(tmp_path / "b.npz", labels_only=True)
    np.savez(tmp_path / "c.npz", pids=ARRAYS["pids"], camids=np.arange(3))
    with pytest.raises(UserError, match=r"pids \(4,\), camids \(3,\)"):
        load_features(tmp_path / "c.npz", labels_only=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pids": None}, "no array 'pids', expected features, pids and camids"),
        ({"features": None, "camids": None}, "no array 'features'"),
        ({"features": FEATURES[0]}, "features (6,), pids (4,)"),
        ({"features": FEATURES[:3]}, "features (3, 6), pids (4,)"),
        ({"camids": np.arange(5)}, "camids (5,)"),
        ({"pids": np.int64(3)}, "pids ()"),
        ({"pids": np.zeros((4, 1), int)}, "pids (4, 1)"),
        ({"paths": np.array(["a"])}, "paths (1,)"),
        ({"paths": np.arange(4)}, "paths are int64, expected strings"),
        ({"features": FEATURES[:0], "pids": np.arange(0), "camids": np.arange(0)}, "no images, expected at least one"),
        ({"features": FEATURES > 0}, "features are bool, expected numbers"),
        ({"features": FEATURES.astype(complex)}, "features are complex128, expected numbers"),
        ({"features": np.full((4, 6), "x")}, "features are <U1, expected numbers"),
        ({"pids": np.array([1.0, 2, 3, 4])}, "pids are float64, expected integers"),
        ({"camids": np.array(list("abcd"))}, "camids are <U1, expected integers"),
        ({"pids": np.array([1, 2, 3, 2**63], np.uint64)}, "pids go up to 9223372036854775808, expected integers of 64"),
        ({"pids": np.array([1, None, 2, 3], object)}, "Object arrays cannot be loaded"),
        ({"paths": np.array([1, None, 2, 3], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, expected):
    arrays = {name: array for name, array in {**ARRAYS, **change}.items() if array is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    assert expected in error_of(tmp_path / "a.npz")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    np.savez(tmp_path / "a.npz", **{**ARRAYS, "features": np.array([Bomb()] * 4, object)})
    error_of(tmp_path / "a.npz")
    np.array([Bomb()], object).dump(tmp_path / "b.npz")
    error_of(tmp_path / "b.npz")
    assert not (tmp_path / "exploded").exists()


def test_other_files(tmp_path):
    assert "No such file" in error_of(tmp_path / "nowhere.npz")
    assert "Is a directory" in error_of(tmp_path)
    (tmp_path / "text.npz").write_text("pid,camid\n1,2\n")
    (tmp_path / "empty.npz").touch()
    for name in ("text.npz", "empty.npz"):
        assert "no NumPy archive" in error_of(tmp_path / name)
    np.save(tmp_path / "single.npy", FEATURES)
    assert "no NumPy archive" in error_of(tmp_path / "single.npy")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        for name in ARRAYS:
            archive.writestr(name, "no array")
    error_of(tmp_path / "zip.npz")


@pytest.fixture(scope="module", params=[np.savez, np.savez_compressed])
def whole(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "whole.npz"
    request.param(path, **ARRAYS)
    return path


def test_a_truncated_file(whole, tmp_path):
    content = whole.read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        error_of(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_one_line_or_does_no_harm(whole, tmp_path, data):
    content = bytearray(whole.read_bytes())
    positions = st.integers(0, len(content) - 1)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4)):
        content[position] = value
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    try:
        features = load_features(path)
    except UserError:
        error_of(path)
    else:
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(getattr(features, name), array)
