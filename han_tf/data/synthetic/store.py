"""The synthetic data set on disk: written completely or not at all, and recognised by its description file."""

import glob
import json
import secrets
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any, Optional

from han_tf.common.errors import UserError
from han_tf.common.files import check_no_file, locked, write_json, writing
from han_tf.common.processes import usable_cores
from han_tf.common.progress import progress_bar
from han_tf.data.folders import PathLike, is_image, is_litter
from han_tf.data.synthetic.generator import GENERATOR_VERSION, SyntheticPedestrians
from han_tf.data.synthetic.layouts import WRITTEN, check_layout, write_layout

DESCRIPTION = "synthetic.json"
"""File in the data set's folder with its arguments, layout and generator version."""


def generate(
    root: PathLike, pedestrians: SyntheticPedestrians, layout: str = "market1501", workers: Optional[int] = None
) -> None:
    """Draws a data set and writes it to the folder ``root``, with a progress bar.

    The images go to a folder beside ``root`` that is renamed at the end, so an interrupted run leaves ``root`` as it
    was. An earlier synthetic data set in ``root`` is replaced. Concurrent calls wait for each other. ``layout`` is
    a key of :data:`han_tf.data.synthetic.LAYOUTS`, ``workers`` the number of processes that draw, at least 1; that of
    the cores if None.

    Raises:
      UserError: ``root`` holds other files, the layout is unknown, ``workers`` is below 1 or a file cannot be written.
    """
    root = Path(root).absolute()
    check_layout(layout)
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}, expected at least 1")
    check_no_file(root)
    with locked(_lock_of(root)):
        _generate(root, pedestrians, layout, workers)


def _generate(root: Path, pedestrians: SyntheticPedestrians, layout: str, workers: Optional[int]) -> None:
    """Does what :func:`generate` says; the caller holds the lock."""
    _check_replaceable(root)
    unfinished = root.with_name(f".{root.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with writing(root):
            unfinished.mkdir(parents=True)
            with closing(pedestrians.images(workers or usable_cores())) as images:  # type: ignore[type-var]
                bar = progress_bar(images, total=len(pedestrians), desc=f"drawing {root.name}", unit="image")
                write_layout(layout, unfinished, bar)
            write_json(unfinished / DESCRIPTION, _description(pedestrians, layout))
            _check_replaceable(root)
            if root.exists():
                shutil.rmtree(root)
            unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def draw_once(root: PathLike, pedestrians: SyntheticPedestrians, workers: Optional[int] = None) -> None:
    """Draws a data set in Market-1501's layout as :func:`generate` does, unless ``root`` holds it.

    Of concurrent calls one draws and the others wait. A data set that another version of the generator drew from the
    same arguments is replaced.

    Raises:
      UserError: ``root`` holds a synthetic data set of other arguments or another layout, or as :func:`generate` says.
    """
    root = Path(root).absolute()
    if is_current(root, pedestrians):
        return
    with locked(_lock_of(root)):
        if is_current(root, pedestrians):
            return
        if (root / DESCRIPTION).exists():
            held, wanted = _read_description(root), _description(pedestrians)
            if not isinstance(held, dict) or {**held, "generator": GENERATOR_VERSION} != wanted:
                raise UserError(
                    f"{root / DESCRIPTION} says {json.dumps(held)}, expected {json.dumps(wanted)}; "
                    "give another folder, or delete this one to have that drawn"
                )
        for left in root.parent.glob(f".{glob.escape(root.name)}.*.unfinished"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        _generate(root, pedestrians, "market1501", workers)


def is_current(root: PathLike, pedestrians: SyntheticPedestrians, layout: str = "market1501") -> bool:
    """Returns whether the description in ``root`` is the one that :func:`generate` would write."""
    return _read_description(Path(root)) == _description(pedestrians, layout)


def _lock_of(root: Path) -> Path:
    return root.with_name(f".{root.name}.lock")


def _description(pedestrians: SyntheticPedestrians, layout: str = "market1501") -> dict[str, Any]:
    return {"generator": GENERATOR_VERSION, "layout": layout, "arguments": pedestrians.arguments()}


def _read_description(root: Path) -> Optional[Any]:
    try:
        return json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _check_replaceable(root: Path) -> None:
    """Raises UserError if ``root`` is a file or link, or a folder with files that are not of a synthetic data set."""
    check_no_file(root)
    if not root.is_dir() or not any(root.iterdir()):
        return
    if not (root / DESCRIPTION).is_file():
        raise UserError(
            f"{root} holds files but no {DESCRIPTION}, expected an earlier synthetic data set, an empty folder or none"
        )
    for path in sorted(root.rglob("*")):
        if path.parent == root:
            drawn = path.name in (DESCRIPTION, *WRITTEN)
        else:
            drawn = path.is_dir() or is_image(path.name) or is_litter(path.name)
        if not drawn:
            raise UserError(f"{root} also holds {path.relative_to(root)}, expected only a drawn data set")
