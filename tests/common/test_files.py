"""Files are written whole or not at all, and mapped arrays equal loaded ones."""

import errno
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import warnings
import zipfile

import numpy as np
import pytest

from han_tf.common import files
from han_tf.common.errors import Note, UserError
from han_tf.common.files import (
    atomic_open,
    locked,
    read_json,
    read_npz,
    remove,
    sha256_of,
    temporary_folder,
    write_json,
    write_npz,
)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def assert_untouched(path):
    """Fails unless the folder holds the old file, unchanged, and nothing else."""
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


def test_the_permissions_of_other_threads_files_are_left_alone(tmp_path, monkeypatch):
    """The umask belongs to the whole process: changing it for a moment would affect other threads' files."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("umask was changed"))
    write_json(tmp_path / "file", 1)


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
        "import resource, sys; import numpy as np; from han_tf.common import files\n"
        "from han_tf.common.errors import UserError\n"
        "path = sys.argv[1]; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"try:\n    {WRITERS[writer]}\nexcept UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(old)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {old}: File too large\n"
    assert done.stderr == ""
    assert_untouched(old)


def test_the_error_of_a_broken_disk_is_that_of_writing_not_of_cleaning_up(old, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(os, "unlink", broken)
    with pytest.raises(UserError, match=f"^cannot write {old}: Input/output error$"):
        write_json(old, [1])
    assert old.read_bytes() == b"old"
    with pytest.raises(UserError, match=f"^cannot remove {old}: Input/output error$"):
        remove(old)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_killed_writer_leaves_the_old_file(old, moment):
    """After SIGKILL no handler runs; only a hidden temporary file is left."""
    script = (
        "import os, signal, sys; from han_tf.common import files\n"
        f"os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_json(sys.argv[1], list(range(100_000)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(old)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"old"
    assert [name for name in os.listdir(old.parent) if not name.startswith(".file.")] == [old.name]


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(UserError, match=rf"^cannot write {tmp_path}/file: Is a directory$"):
        write_json(tmp_path / "file", 1)
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for place in (path, "/dev/null"):
        with pytest.raises(UserError, match=rf"^cannot write {place}: a device, named pipe or socket, expected a file"):
            write_json(place, 1)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_of_a_link_the_file_it_leads_to_is_written(old, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    (links / "link").symlink_to("../file")
    (links / "new").symlink_to("../other")
    for name in ("link", "new"):
        with atomic_open(links / name) as stream:
            stream.write(b"new")
    assert old.read_bytes() == (tmp_path / "other").read_bytes() == b"new"
    assert os.readlink(links / "link") == "../file"
    (links / "circle").symlink_to("circle")
    with pytest.raises(UserError, match=r"^cannot write .*circle: Too many levels of symbolic links"):
        write_json(links / "circle", 1)
    assert sorted(os.listdir(links)) == ["circle", "link", "new"]


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o755])
def test_a_file_keeps_its_permissions(old, mode):
    old.chmod(mode)
    with atomic_open(old) as stream:
        assert stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == mode  # before anything is in it
        stream.write(b"new")
    assert stat.S_IMODE(old.stat().st_mode) == mode
    assert old.read_bytes() == b"new"


def test_the_folder_is_on_disk_after_the_new_name(old, monkeypatch):
    """Otherwise a power cut could bring the old file back."""
    fsync, replace, done = os.fsync, os.replace, []

    def synced(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def replaced(source, target):
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_json(old, 1)
    assert done == [old.stat().st_ino, "replace", old.parent.stat().st_ino]


@pytest.mark.parametrize(("reason", "harmless"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced(old, monkeypatch, reason, harmless):
    """Some shared file systems cannot do it, which is no error; the disk's errors are."""
    fsync = os.fsync

    def synced(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(reason, "the reason")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    if harmless:
        write_json(old, 1)
    else:
        with pytest.raises(UserError, match=rf"^cannot write {old}: the reason$"):
            write_json(old, 1)


def test_no_file_stays_open(old):
    def lowest_unused():
        descriptor = os.open(old, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest_unused()
    write_json(old, 1)
    assert lowest_unused() == before


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_the_checksum_is_that_of_the_whole_file(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_file_in_place_of_the_folder(old):
    with pytest.raises(UserError, match=rf"^cannot write {old}/inner/file: Not a directory$"):
        write_json(old / "inner" / "file", 1)
    assert_untouched(old)


HOLD = (
    "import sys; from han_tf.common.files import locked\n"
    "with locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
)


def test_a_lock_is_refused_or_waited_for(tmp_path):
    path = tmp_path / "folder" / ".lock"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    got = threading.Event()

    def wait():
        told = "another one is at work; waiting for it"
        with pytest.warns(Note, match=told), locked(path, waiting=told):
            got.set()

    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"^another one is at work$"), locked(path, "another one is at work"):
            pass
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(0.3)
        holder.kill()
        assert got.wait(30)
        waiting.join()
    with warnings.catch_warnings(), locked(path, "another one is at work", "no note without waiting") as lock:
        warnings.simplefilter("error")
        assert path.read_bytes() == b""
        assert os.path.samestat(os.fstat(lock), path.stat())


def test_where_a_file_system_has_no_locks_work_goes_on(tmp_path, monkeypatch):
    def unsupported(file, wait=False):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "lock", unsupported)
    with locked(tmp_path / "lock", "taken") as lock:
        assert os.path.samestat(os.fstat(lock), (tmp_path / "lock").stat())


def test_a_lock_that_is_a_link_empties_no_file(tmp_path):
    (tmp_path / "other").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "other")
    with locked(tmp_path / ".lock", "taken"):
        pass
    assert (tmp_path / "other").read_text() == "kept"


def test_a_lock_that_cannot_be_written_is_one_line(old):
    with pytest.raises(UserError, match=rf"^cannot write {old}/.lock: "), locked(old / ".lock"):
        pass
    assert_untouched(old)


def test_json_comes_back(tmp_path):
    value = {"mAP": 0.1 + 0.2, "name": "Käse ✓", "list": [1, None, True]}
    write_json(tmp_path / "file", value)
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")


def test_no_place_for_temporary_files_is_one_line(monkeypatch):
    with temporary_folder() as folder:
        (folder / "file").touch()
    assert not folder.exists()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", list)
    with (
        pytest.raises(UserError, match=r"^no place for temporary files \(No usable temporary directory found .*TMPDIR"),
        temporary_folder(),
    ):
        pass


@pytest.mark.parametrize("text", ["[", "[" * 100_000, "1" * 5000, "\xff"])
def test_what_is_no_json_is_one_line(tmp_path, text):
    (tmp_path / "file").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"^\S+/file: not JSON \(.+\), expected numbers$"):
        read_json(tmp_path / "file", "numbers")


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


ARRAYS = {
    "floats": np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32),
    "half": np.arange(12).reshape(4, 3).astype(np.float16),
    "double": np.linspace(0, 1, 7),
    "fortran": np.asfortranarray(np.arange(24).reshape(4, 6)),
    "swapped": np.arange(5).astype(">i4"),
    "strings": np.array(["a", "ünï", ""]),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3)),
}


def prefixed(path, **arrays):
    """Writes an archive behind other bytes and with a comment, like a self-extracting one."""
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"comment"
    path.write_bytes(bytes(1001) + path.read_bytes())


def plain_zip(path, **arrays):
    """Writes an archive without the fields for members beyond 4 GiB, which NumPy's archives have."""
    with zipfile.ZipFile(path, "w", allowZip64=False) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(2, 0))
            archive.writestr(f"{name}.npy", member.getvalue())


@pytest.mark.parametrize("save", [write_npz, np.savez, np.savez_compressed, prefixed, plain_zip])
def test_mapped_arrays_equal_loaded_ones(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    found = read_npz(path, [*ARRAYS, "more"], mapped=ARRAYS)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert isinstance(found[name], np.memmap) == (save is not np.savez_compressed)
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].flags.f_contiguous == array.flags.f_contiguous
        np.testing.assert_array_equal(found[name], array)
    loaded = read_npz(path, ["floats"])["floats"]
    assert not isinstance(loaded, np.memmap)
    np.testing.assert_array_equal(loaded, ARRAYS["floats"])


def test_a_mapped_array_is_the_file_itself(tmp_path):
    """It is not copied, is read-only, and stays valid when the file is replaced."""
    path = tmp_path / "a.npz"
    write_npz(path, floats=ARRAYS["floats"])
    mapped = read_npz(path, ["floats"], mapped=["floats"])["floats"]
    assert mapped.offset + mapped.nbytes < path.stat().st_size
    assert path.read_bytes()[mapped.offset :][: mapped.nbytes] == ARRAYS["floats"].tobytes()
    with pytest.raises(ValueError, match="read-only"):
        mapped[0, 0] = 1
    write_npz(path, floats=np.zeros(3))
    np.testing.assert_array_equal(mapped, ARRAYS["floats"])


def error_of(path, mapped):
    with pytest.raises(UserError) as raised:
        read_npz(path, ["a", "b"], mapped)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("mapped", [(), ("a", "b")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_one_line_or_does_no_harm(tmp_path, save, mapped):
    path = tmp_path / "a.npz"
    arrays = {"a": ARRAYS["floats"], "b": np.arange(40)}
    save(path, **arrays)
    content = path.read_bytes()
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        assert "no NumPy archive" in error_of(path, mapped)
    refused = 0
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = read_npz(path, ["a", "b"], mapped)
        except UserError:
            error_of(path, mapped)
            refused += 1
        else:
            for name, array in found.items():
                np.testing.assert_array_equal(array, arrays[name])
    assert refused > 0.7 * len(content) / 7  # the rest are times, attributes and the like


@pytest.mark.parametrize("mapped", [(), ("a",)])
@pytest.mark.parametrize("count", [11, 13])
def test_an_array_of_another_size_than_its_header_says(tmp_path, mapped, count):
    member = io.BytesIO()
    np.lib.format.write_array(member, np.zeros(12))
    header = member.getvalue()[: -12 * 8]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header + bytes(8 * count))
    error_of(tmp_path / "a.npz", mapped)


@pytest.mark.parametrize("mapped", [(), ("a",)])
def test_python_objects_are_not_unpickled(tmp_path, mapped):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    np.savez(tmp_path / "a.npz", a=np.array([Bomb()] * 4, object))
    assert "Object arrays cannot be loaded" in error_of(tmp_path / "a.npz", mapped)
    assert not (tmp_path / "exploded").exists()


def test_what_is_no_archive(tmp_path):
    assert (
        error_of(tmp_path / "nowhere", ())
        == f"{tmp_path}/nowhere: No such file or directory, expected a NumPy archive (.npz)"
    )
    assert "Is a directory" in error_of(tmp_path, ())
    (tmp_path / "text").write_text("pid,camid\n1,2\n")
    assert "no NumPy archive (.npz) of plain arrays" in error_of(tmp_path / "text", ())
