"""Import TensorFlow without its log lines.

TensorFlow 2.21 writes them to standard error even with ``TF_CPP_MIN_LOG_LEVEL=3``.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Optional

standard_error = 2
"""File descriptor that shows what is written to it, also while TensorFlow is imported."""


@contextmanager
def _silenced() -> Iterator[None]:
    """Discards what is written to standard error, or shows it at the end if an exception leaves the block."""
    global standard_error
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        standard_error = os.dup(2)
        os.dup2(log.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            standard_error = 2
            if failed:
                log.seek(0)
                os.write(2, log.read())


class _QuietFinder(MetaPathFinder):
    """Makes the import of TensorFlow silent."""

    def find_spec(self, name: str, path: Any = None, target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if name != "tensorflow":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def quietly(module: ModuleType) -> None:
            with _silenced():
                execute(module)
                module.config.list_physical_devices()  # so that it looks for GPUs now

        spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Makes the import of TensorFlow in this process silent, unless ``TF_CPP_MIN_LOG_LEVEL`` is below 3."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3" and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietFinder())
