"""Import TensorFlow without its log lines, and so that Ctrl-C always raises KeyboardInterrupt.

TensorFlow 2.21 writes log lines to standard error even with ``TF_CPP_MIN_LOG_LEVEL=3``. Packages that it imports may
turn a KeyboardInterrupt into an ImportError, or go on without what was interrupted.
"""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import IO, Any, Optional

from han_tf.common.processes import redirected

standard_error = 2
"""File descriptor that shows what is written to it, also while TensorFlow is imported."""


@contextmanager
def _silenced() -> Iterator[None]:
    """Discards what is written to standard error, or shows it at the end if an error leaves the block."""
    global standard_error
    with _log() as log:
        try:
            with redirected([2], log.fileno()) as (standard_error,):
                yield
        except Exception:
            log.seek(0)
            os.write(2, log.read())
            raise
        finally:
            standard_error = 2


def _log() -> IO[bytes]:
    """Returns a new temporary file; one that keeps nothing where none can be made, as on a full disk."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt at the end if Ctrl-C was pressed in the block, whatever became of it there."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def note(number: int, frame: Optional[FrameType]) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException as error:
        if came and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


class _QuietFinder(MetaPathFinder):
    """Makes the import of TensorFlow interruptible and, if ``silent``, silent."""

    def __init__(self, silent: bool):
        self._silent = silent

    def find_spec(self, name: str, path: Any = None, target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if name != "tensorflow":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def quietly(module: ModuleType) -> None:
            with _silenced() if self._silent else nullcontext(), _interruptible():
                execute(module)
                module.config.list_physical_devices()  # so that it looks for GPUs now

        spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Makes the import of TensorFlow in this process interruptible; silent, too, if ``TF_CPP_MIN_LOG_LEVEL`` is 3."""
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietFinder(os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3"))
