"""Writing files so that a reader never sees half of one."""

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np

from han_tf.errors import UserError


@contextmanager
def atomic_open(path: Union[str, os.PathLike]) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` for binary writing; renames it to ``path`` on success.

    The folder is made if need be. When the block raises, ``path`` stays as it was.

    Raises:
      UserError: the folder or the file cannot be written (no permission, disk full, ...).
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as stream:
            temporary = stream.name
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: Union[str, os.PathLike], value: Any) -> None:
    """Writes ``value`` as indented JSON to ``path``, whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_open(path) as stream:
        stream.write(text.encode("utf-8"))


def write_npz(path: Union[str, os.PathLike], **arrays: np.ndarray) -> None:
    """Writes ``arrays`` to ``path`` as ``numpy.savez`` does, whole or not at all.

    Raises:
      UserError: it cannot be written.
      ValueError: an array holds Python objects.
    """
    # Should the disk be full, numpy.savez leaves an open archive that complains on stderr when it is collected.
    with atomic_open(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
