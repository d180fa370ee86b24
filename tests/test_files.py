"""A reader never sees half a file, whatever happens to the writer."""

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from han_tf.errors import UserError
from han_tf.files import atomic_open, write_json, write_npz


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def assert_untouched(path):
    """The old content is there, and nothing else."""
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_the_folder_is_made_and_the_file_written(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with atomic_open(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_open(tmp_path / "file"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_the_old_file_is_there_until_the_new_one_is_whole(old):
    with atomic_open(old) as stream:
        stream.write(b"new")
        stream.flush()
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("exception", [RuntimeError("no"), KeyboardInterrupt(), UserError("no"), SystemExit(1)])
def test_what_the_block_raises_leaves_the_old_file(old, exception):
    def write():
        with atomic_open(old) as stream:
            stream.write(b"half")
            raise exception

    with pytest.raises(type(exception)) as raised:
        write()
    assert raised.value is exception
    assert_untouched(old)


WRITERS = {
    "atomic_open": "with files.atomic_open(path) as stream: stream.write(bytes(200_000))",
    "write_json": "files.write_json(path, list(range(100_000)))",
    "write_npz": "files.write_npz(path, first=np.zeros(2_000), second=np.zeros(100_000))",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(old, writer):
    """A limit on the size of files stands in for the disk."""
    script = (
        "import resource, sys; import numpy as np; from han_tf import files; from han_tf.errors import UserError\n"
        "path = sys.argv[1]; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"try:\n    {WRITERS[writer]}\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(old)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {old}: File too large\n"
    assert done.stderr == ""
    assert_untouched(old)


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(UserError, match=rf"^cannot write {tmp_path}/file: Is a directory$"):
        write_json(tmp_path / "file", 1)
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_place_of_the_folder(old):
    with pytest.raises(UserError, match=rf"^cannot write {old}/inner/file: Not a directory$"):
        write_json(old / "inner" / "file", 1)
    assert_untouched(old)


def test_json_comes_back(tmp_path):
    value = {"mAP": 0.1 + 0.2, "name": "Käse ✓", "list": [1, None, True]}
    write_json(tmp_path / "file", value)
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_json_has_no_nan(old, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(old, value)
    assert_untouched(old)


def test_arrays_come_back(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "floats": rng.normal(size=(5, 3)).astype(np.float32),
        "fortran": np.asfortranarray(rng.integers(0, 9, (4, 6))),
        "strings": np.array(["a", "ünï", ""]),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3)),
        "strided": np.arange(20)[::3],
    }
    write_npz(tmp_path / "file.npz", **arrays)
    with np.load(tmp_path / "file.npz", allow_pickle=False) as archive:
        assert archive.files == list(arrays)
        for name, array in arrays.items():
            assert archive[name].dtype == array.dtype
            np.testing.assert_array_equal(archive[name], array)


def test_python_objects_are_not_pickled(old):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(old, fine=np.zeros(3), objects=np.array([{}, None], object))
    assert_untouched(old)
