"""CUHK03 (Li et al., CVPR 2014), detected or labelled, 767/700 protocol (Zhong et al., CVPR 2017).

Two forms on disk are read:

- the original ``cuhk-03.mat`` (MATLAB v7.3, which is HDF5) with the two protocol files
  ``cuhk03_new_protocol_config_{detected,labeled}.mat`` (MATLAB v5). Its images are extracted once, as PNG,
  to ``images_detected`` or ``images_labelled`` beside it, under the names that the protocol uses:
  ``{pair}_{pid:03}_{view}_{idx:02}.png``;
- CUHK03-NP, the same images sorted into ``{detected,labeled}/{bounding_box_train,query,bounding_box_test}``,
  with names such as ``0001_c1_1.png`` or those above.

A record's camera is the view (1 or 2) within its camera pair. In the file names people are numbered from 1 in each of
the five pairs; a record's pid is the protocol's label, which is unique over all pairs. There are no junk images and no
distractors.
"""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Optional

import numpy as np
from PIL import Image

from han_tf.common.errors import UserError, one_line
from han_tf.common.files import locked, writing
from han_tf.common.processes import signal_name
from han_tf.common.progress import progress_bar
from han_tf.data.counts import Counts, compared
from han_tf.data.folders import PathLike, image_stem, name_parser, search_folder
from han_tf.data.market1501 import LAYOUTS, read_subsets
from han_tf.data.reading import MAX_PIXELS
from han_tf.data.records import Record, ReIDDataset

SPELLINGS = {"detected": ("detected",), "labelled": ("labeled", "labelled")}
"""Split -> its names in files and folders, and as --split takes it; the first split is the default."""

SPLITS = tuple(SPELLINGS)
PUBLISHED = {
    "detected": {
        "train": Counts(images=7_365, identities=767, cameras=2),
        "query": Counts(images=1_400, identities=700, cameras=2),
        "gallery": Counts(images=5_332, identities=700, cameras=2),
    },
    "labelled": {
        "train": Counts(images=7_368, identities=767, cameras=2),
        "query": Counts(images=1_400, identities=700, cameras=2),
        "gallery": Counts(images=5_328, identities=700, cameras=2),
    },
}
PAIR_IDENTITIES = (843, 440, 77, 58, 49)
"""People per camera pair; they add up to the 1,467 labels of the protocol."""

_NAME = re.compile(r"([1-5])_(\d{3})_([12])_(\d{2})")
_parse_np_name = name_parser(r"(?P<pid>\d{1,255})_c(?P<camid>[12])_\d+")


class CUHK03Name(NamedTuple):
    """The fields of a file name: pair 1 to 5, pid within the pair, view 1 or 2, idx 1 to 10."""

    pair: int
    pid: int
    view: int
    idx: int


def parse_name(stem: str) -> Optional[CUHK03Name]:
    """Returns the fields of a file name without extension, or None if it does not fit."""
    match = _NAME.fullmatch(stem)
    return CUHK03Name(*map(int, match.groups())) if match else None


def format_name(name: CUHK03Name) -> str:
    """Returns the file name without extension; the inverse of :func:`parse_name`."""
    return f"{name.pair}_{name.pid:03d}_{name.view}_{name.idx:02d}"


def read_cuhk03(data_dir: PathLike, split: str = "detected") -> ReIDDataset:
    """Reads either form of CUHK03; :class:`han_tf.data.DatasetEntry` says what a reader takes.

    CUHK03-NP is read if both are there. The images of ``cuhk-03.mat`` are extracted first if they have not been
    extracted yet.

    Raises:
      UserError: as there, and if h5py is needed and not installed.
    """
    notes: list[str] = []
    data_dir = _parent_of_split(Path(data_dir), split)
    for spelling in SPELLINGS[split]:
        folders = [f"{spelling}/{folder}" for folder in LAYOUTS[0]]
        root = search_folder(data_dir, "cuhk03", folders, folders[1:])
        if root is not None:
            subsets = read_subsets(root / spelling, _pid_and_view, "0001_c1_1.png", notes)
            break
    else:
        root = search_folder(data_dir, "cuhk03", ["cuhk-03.mat"])
        if root is None:
            raise UserError(
                f"{data_dir}: neither cuhk-03.mat nor a folder {SPELLINGS[split][0]} with "
                f"{', '.join(LAYOUTS[0])} found, expected one of the two"
            )
        protocol = _find_protocol(root, split)
        subsets = _read_protocol(protocol, extract_images(root / "cuhk-03.mat", split))
    return compared("cuhk03", split, root, subsets, PUBLISHED[split], notes)


def _parent_of_split(data_dir: Path, split: str) -> Path:
    """Returns the parent if ``data_dir`` is the folder of one split of CUHK03-NP, otherwise ``data_dir``."""
    if not all((data_dir / name).is_dir() for name in ("query", "bounding_box_test")):
        return data_dir
    found = next((name for name, spellings in SPELLINGS.items() if data_dir.absolute().name in spellings), split)
    if found != split:
        raise UserError(f"{data_dir}: the split {found}, expected {split}; give the folder above, or --split {found}")
    return data_dir.absolute().parent


def require_h5py(path: PathLike) -> ModuleType:
    """Returns the module h5py, which is an optional dependency.

    Raises:
      UserError: it is not installed; the message names ``path``, the file that needs it.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path}: a MATLAB v7.3 file takes h5py, which is not installed; "
            "expected `pip install h5py` (or the extra: `pip install '.[cuhk03]'` in han-tf's folder)"
        ) from error
    return h5py


def extract_images(mat: Path, split: str) -> Path:
    """Writes all images of one split of ``mat`` as PNG to ``images_{split}`` beside it, and returns that folder.

    If the folder exists, nothing is written. The images are written to a temporary folder that is renamed when it is
    complete. After an interruption the next call continues where the last one stopped.

    Raises:
      UserError: h5py is not installed, or ``mat`` is not as expected.
    """
    folder = mat.parent / f"images_{split}"
    if folder.is_dir():
        return folder
    h5py = require_h5py(mat)
    partial = mat.parent / f"images_{split}.partial"
    with locked(mat.parent / f".images_{split}.lock"):
        if folder.is_dir():  # another process has made it meanwhile
            return folder
        try:
            with h5py.File(mat, "r") as file:
                for name, image in _images(file, file[SPELLINGS[split][0]]):
                    _save_png(partial / f"{format_name(name)}.png", image)
        except (
            OSError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
            RuntimeError,
            MemoryError,
        ) as error:
            # h5py raises these on files that are truncated, damaged or of another structure.
            raise UserError(
                f"{mat}: unreadable ({one_line(error)}), expected CUHK03's MATLAB v7.3 (HDF5) file"
            ) from error
        if not partial.is_dir():
            raise UserError(f"{mat}: no {split} images in it, expected some")
        partial.rename(folder)
    return folder


def _images(file: Any, cells: Any) -> Iterator[tuple[CUHK03Name, np.ndarray]]:
    """Yields (name, uint8 [height, width, 3]) for each image; ``cells`` is the cell array of camera pairs.

    HDF5 lists MATLAB's dimensions in reverse: a cell array of people x 10 images reads as [10, people], and
    an image of height x width x 3 as [3, width, height]. Images 1 to 5 are of the first view, 6 to 10 of the
    second.
    """
    pairs = [file[reference][()] for reference in cells[()].ravel()]
    slots = [
        (pair, pid, idx)
        for pair, references in enumerate(pairs, start=1)
        for pid, idx in itertools.product(range(1, references.shape[1] + 1), range(1, references.shape[0] + 1))
    ]
    for pair, pid, idx in progress_bar(slots, desc=f"extracting {cells.name.strip('/')} images", unit="cell"):
        cell = file[pairs[pair - 1][idx - 1, pid - 1]]
        # An empty matrix is stored as the vector of its dimensions.
        if cell.attrs.get("MATLAB_empty", 0) or cell.ndim < 3:
            continue
        if cell.shape[0] != 3 or cell.dtype != np.uint8 or cell.size > 3 * MAX_PIXELS:
            raise ValueError(f"image {cell.name} has shape {cell.shape} and type {cell.dtype}")
        yield CUHK03Name(pair, pid, 1 if idx <= 5 else 2, idx), cell[()].transpose(2, 1, 0)


def _save_png(path: Path, image: np.ndarray) -> None:
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="PNG")
        temporary.replace(path)


def _find_protocol(root: Path, split: str) -> Path:
    """Returns the path of the protocol file, which lies beside ``cuhk-03.mat`` or one folder up."""
    names = [f"cuhk03_new_protocol_config_{spelling}.mat" for spelling in SPELLINGS[split]]
    for folder, name in itertools.product((root, root.parent), names):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{root}: no protocol file {names[0]} found, expected it beside cuhk-03.mat")


def _read_protocol(path: Path, images: Path) -> dict[str, tuple[Record, ...]]:
    """Returns the records of each subset; the protocol's indices count from 1."""
    import scipy.io

    # SciPy crashes on some damaged files; a process of its own finds out.
    command = [sys.executable, "-c", "import scipy.io, sys; scipy.io.loadmat(sys.argv[1])", str(path)]
    tried = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if tried.returncode < 0:
        ended = signal_name(-tried.returncode)
        raise UserError(f"{path}: unreadable ({ended} while read), expected CUHK03's protocol as a MATLAB v5 file")
    try:
        protocol = scipy.io.loadmat(path, squeeze_me=True)
        names = [str(name) for name in np.atleast_1d(protocol["filelist"])]
        labels = np.atleast_1d(protocol["labels"]).astype(int)
        views = np.atleast_1d(protocol["camId"]).astype(int)
        indices = {
            subset: np.atleast_1d(protocol[f"{subset}_idx"]).astype(int) - 1 for subset in ("train", "query", "gallery")
        }
        if not len(names) == len(labels) == len(views):
            raise ValueError(f"{len(names)} file names, {len(labels)} labels, {len(views)} camera ids")
        for subset, chosen in indices.items():
            if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(names):
                raise ValueError(f"{subset}_idx leaves 1..{len(names)}")
    except Exception as error:  # scipy raises about a dozen undocumented kinds of exception on damaged files
        raise UserError(
            f"{path}: unreadable ({type(error).__name__}: {one_line(error)}), "
            "expected CUHK03's protocol as a MATLAB v5 file"
        ) from error
    there = set(os.listdir(images))
    subsets = {}
    for subset, chosen in indices.items():
        records = []
        for index in chosen:
            name = parse_name(image_stem(names[index]) or "")
            if name is None or name.view != views[index]:
                raise UserError(
                    f"{path}: file name {names[index]!r} with camId {views[index]} does not fit, "
                    "expected one like 1_001_2_06.png with camId 2"
                )
            if names[index] not in there:
                raise UserError(
                    f"{images / names[index]}: not there though the protocol lists it; "
                    f"delete {images} to have it written anew"
                )
            records.append(Record(os.path.join(images, names[index]), int(labels[index]), name.view))
        subsets[subset] = tuple(records)
    return subsets


def _pid_and_view(stem: str) -> Optional[tuple[int, int]]:
    """Returns (label, view) of a file name of CUHK03-NP."""
    if (labels := _parse_np_name(stem)) is not None:
        return labels
    name = parse_name(stem)
    if name is None or not 1 <= name.pid <= PAIR_IDENTITIES[name.pair - 1]:
        return None
    return sum(PAIR_IDENTITIES[: name.pair - 1]) + name.pid, name.view
