"""Replacement of a whole folder, of which either the earlier or the new one remains."""

import os
import shutil
from pathlib import Path


def replace_folder(target: Path, new: Path, old: Path) -> None:
    """Renames ``new`` to ``target`` and removes what was there, which is called ``old`` in between.

    After a failure the earlier folder is ``target`` again; after a kill :func:`put_back` brings it back.

    Raises:
      OSError: a folder cannot be renamed.
    """
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        put_back(target, old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def put_back(target: Path, old: Path) -> None:
    """Renames ``old`` to ``target`` if it is there and ``target`` is not.

    Raises:
      OSError: it cannot be renamed.
    """
    if old.exists() and not target.exists():
        os.rename(old, target)
