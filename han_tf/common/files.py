"""Files: atomic writing, locks, checksums, JSON, CSV, and NumPy archives that can be memory-mapped."""

import csv
import errno
import hashlib
import json
import math
import os
import secrets
import stat
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Optional, Union

import numpy as np

from han_tf.common.errors import Note, UserError, one_line

CHECKED_BYTES = 2**20
"""Bytes of a file that are read at a time to compute its checksum."""

_LOCAL_HEADER = struct.Struct("<26xHH")
"""The header before a file in a zip archive; only the lengths of name and extra field are unpacked."""


@contextmanager
def writing(path: Union[str, os.PathLike]) -> Iterator[None]:
    """Turns an error of the system in the block into a UserError that ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_open(path: Union[str, os.PathLike]) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` for binary writing; renames it to ``path`` on success.

    A missing folder is created. If the block raises, ``path`` stays as it was. The new file takes the permissions of
    the one it replaces. If ``path`` is a symbolic link, its target is replaced.

    Raises:
      UserError: the folder or the file cannot be written (no permission, disk full, ...), or ``path`` is a device, a
        named pipe or a socket.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"cannot write {path}: a device, named pipe or socket, expected a file or nothing there")
        temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
        try:
            with temporary.open("x+b") as stream:
                if mode is not None and stat.S_IMODE(mode) != stat.S_IMODE(os.fstat(stream.fileno()).st_mode):
                    os.chmod(temporary, stat.S_IMODE(mode))
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            discard(temporary)


def discard(path: Path) -> None:
    """Deletes a file that is not needed, if it is there and can be deleted: for clean-up after an error."""
    with suppress(OSError):
        os.unlink(path)


def remove(path: Path) -> None:
    """Deletes a file, if it is there.

    Raises:
      UserError: it cannot be deleted.
    """
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror or error}") from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Makes a folder for temporary files, and removes it at the end.

    Raises:
      UserError: it cannot be made, for example because the disk is full.
    """
    try:
        made = tempfile.TemporaryDirectory()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"no place for temporary files ({reason}), expected TMPDIR to name a folder with room"
        ) from error
    with made as folder:
        yield Path(folder)


def exists(path: Union[str, os.PathLike]) -> bool:
    """Returns whether there is something at ``path``; a link counts as what it leads to.

    Raises:
      UserError: the system cannot tell: a folder on the way is not open to the user, or a name is too long.
    """
    try:
        return Path(path).exists()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a path that can be read") from error


def check_no_file(path: Path) -> None:
    """Raises UserError if there is a file or a link at ``path``, where a folder is to be written."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{path} is a {'link' if path.is_symlink() else 'file'}, expected a folder or nothing")


def sync_folder(folder: Path) -> None:
    """Waits until the names in ``folder`` are on disk; otherwise a power cut may bring an old file back."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # Windows cannot open folders, and a writable folder need not be readable
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some shared file systems cannot do it
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Union[str, os.PathLike]) -> str:
    """Returns the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
      OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(CHECKED_BYTES):
            digest.update(block)
    return digest.hexdigest()


LOCKED_BYTE, LOCK_SECONDS = 2**30, 0.1
"""On Windows: the offset of the locked byte, beyond any content; seconds between two tries."""


def lock(file: int, wait: bool = False) -> bool:
    """Locks an open file until it is closed; other processes cannot lock it meanwhile.

    Args:
      file: its descriptor.
      wait: whether to wait while another process holds the lock.

    Returns:
      Whether this process holds the lock.

    Raises:
      OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        while True:
            os.lseek(file, LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
                return True
            except PermissionError:
                if not wait:
                    return False
            finally:
                os.lseek(file, 0, os.SEEK_SET)
            time.sleep(LOCK_SECONDS)
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Union[str, os.PathLike], taken: Optional[str] = None, waiting: str = "") -> Iterator[int]:
    """Holds the lock file ``path`` while the block runs; the file stays, empty.

    Args:
      path: the file; a missing folder is created.
      taken: the error if another process holds the lock; None to wait for it.
      waiting: a note that is given before waiting, if it is not empty.

    Yields:
      The file's descriptor; a process that inherits it holds the lock as well.

    Raises:
      UserError: another process holds the lock, or the file cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")  # of a link, the file it leads to keeps what it holds
    with stream:
        try:
            if not lock(stream.fileno()):
                if taken is not None:
                    raise UserError(taken)
                if waiting:
                    warnings.warn(waiting, Note, stacklevel=3)
                lock(stream.fileno(), wait=True)
        except OSError:
            pass  # some shared file systems have no locks
        yield stream.fileno()


def write_json(path: Union[str, os.PathLike], value: Any) -> None:
    """Writes ``value`` as indented JSON to ``path``, whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_open(path) as stream:
        stream.write(text.encode("utf-8"))


def read_json(path: Union[str, os.PathLike], expected: str) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: the file.
      expected: what the file should be, for the error: "the settings of a training run".

    Raises:
      UserError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected {expected}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({one_line(error)}), expected {expected}") from error


def write_csv(stream: IO[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows as CSV, with newlines between them; None is an empty field.

    Python quotes a carriage return in a field, such as a file's name, only if lines end with one.
    """
    plain, quoted = (
        csv.writer(stream, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC)
    )
    for row in rows:
        (quoted if any("\r" in cell for cell in row if isinstance(cell, str)) else plain).writerow(row)


def write_npz(path: Union[str, os.PathLike], **arrays: np.ndarray) -> None:
    """Writes ``arrays`` to ``path`` as ``numpy.savez`` does, whole or not at all.

    Raises:
      UserError: it cannot be written.
      ValueError: an array holds Python objects.
    """
    # If the disk is full, numpy.savez leaves an open archive, which prints an error when it is garbage-collected.
    with atomic_open(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def read_npz(
    path: Union[str, os.PathLike], names: Collection[str], mapped: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Returns arrays, by name, of an archive that :func:`write_npz` or ``numpy.savez`` wrote.

    Args:
      path: the archive.
      names: the arrays to read; missing ones are left out.
      mapped: those of ``names`` to memory-map, read-only, instead of loading them. Their bytes are read once, block
        by block, to compare the checksum. Compressed arrays are always loaded.

    Raises:
      UserError: the file cannot be read, is not a NumPy archive, is damaged, or an array holds Python objects.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            members = {name: info for name in names for info in archive.filelist if info.filename == f"{name}.npy"}
            return {
                name: _mapped(archive, stream, info)
                if name in mapped and info.compress_type == zipfile.ZIP_STORED
                else _loaded(archive, info)
                for name, info in members.items()
            }
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a NumPy archive (.npz)") from error
    except Exception as error:  # a damaged archive raises any error of zlib, zipfile, tokenize or NumPy
        raise UserError(f"{path}: no NumPy archive (.npz) of plain arrays ({one_line(error)})") from error


def _loaded(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # reading to the end of the member compares its checksum
            raise ValueError(f"{info.filename} goes on after its array")
        return array


def _mapped(archive: zipfile.ZipFile, stream: BinaryIO, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} has format version {version}, expected (1, 0) or (2, 0)")
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, fortran_order, dtype = read_header(member)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
        header_bytes, array_bytes = member.tell(), math.prod(shape) * dtype.itemsize
        if header_bytes + array_bytes != info.file_size:
            found = info.file_size - header_bytes
            raise ValueError(f"{info.filename} holds {found} bytes, expected {array_bytes} for its shape {shape}")
        while member.read(CHECKED_BYTES):
            pass
    stream.seek(info.header_offset)
    start = info.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size)))
    return np.memmap(stream, dtype, "r", start + header_bytes, shape, "F" if fortran_order else "C")
