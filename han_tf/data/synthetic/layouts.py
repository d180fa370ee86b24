"""Writers of labelled images in each data set's layout, so that its reader can be tried without the data set.

Images are written one at a time and not kept in memory. Images that a layout cannot hold are left out or renumbered:

=============  ======================================================================================================
market1501     everything as it is.
dukemtmc       no junk, no multi_query; each distractor gets a pid of its own (10,000 + its frame number).
msmt17         people only: no junk, distractors or multi_query; pids from 0 in train and in test; every fourth
               training image of a person goes to the val list.
cuhk03,        people only; two views per person, so cameras 1, 3, 5, ... become view 1 and 2, 4, 6, ... view 2; at
cuhk03-np      most five images per person and view; one query per person and view, further ones join the gallery.
               ``cuhk03`` also renumbers people and distributes them evenly over the five camera pairs. The detected
               boxes are cut off at the feet, so that they differ from the labelled ones.
csv            everything as it is.
=============  ======================================================================================================
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, writing
from han_tf.data import cuhk03, market1501
from han_tf.data.csv_dataset import COLUMNS, FILE_NAME
from han_tf.data.cuhk03 import CUHK03Name
from han_tf.data.folders import PathLike
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID, SUBSETS
from han_tf.data.synthetic.images import LabelledImage

_PAIRS = 5
_SLOTS = 5  # images per person and view
_FOLDERS = dict(zip(SUBSETS, (*market1501.LAYOUTS[0], "gt_bbox")))


def write_layout(layout: str, root: PathLike, images: Iterable[LabelledImage]) -> None:
    """Writes ``images``, taken one at a time, to the folder ``root`` in a layout that is a key of :data:`LAYOUTS`.

    Raises:
      UserError: the layout is unknown, or a file cannot be written.
    """
    check_layout(layout)
    LAYOUTS[layout](Path(root), images)


def check_layout(layout: str) -> None:
    """Raises UserError if there is no layout of this name."""
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}, expected one of {', '.join(LAYOUTS)}")


def _save(path: Path, image: Image.Image) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=95)  # PNG ignores the quality


def _write_market1501(root: Path, images: Iterable[LabelledImage]) -> None:
    for subset, pid, camid, index, image in images:
        box = 0 if subset in ("query", "multi_query") else 1
        person = "-1" if pid == JUNK_PID else f"{pid:04d}"
        _save(root / _FOLDERS[subset] / f"{person}_c{camid}s1_{index:06d}_{box:02d}.jpg", image)


def _write_dukemtmc(root: Path, images: Iterable[LabelledImage]) -> None:
    for subset, pid, camid, index, image in images:
        if pid >= DISTRACTOR_PID and subset != "multi_query":
            _save(root / _FOLDERS[subset] / f"{pid or 10_000 + index:04d}_c{camid}_f{index:07d}.jpg", image)


def _people(images: Iterable[LabelledImage]) -> Iterator[LabelledImage]:
    return (image for image in images if image.pid > DISTRACTOR_PID and image.subset != "multi_query")


def _write_msmt17(root: Path, images: Iterable[LabelledImage]) -> None:
    pids: dict[str, dict[int, int]] = {"train": {}, "test": {}}
    seen: dict[tuple[str, int], int] = {}
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    for subset, pid, camid, index, image in _people(images):
        folder = "train" if subset == "train" else "test"
        pid = pids[folder].setdefault(pid, len(pids[folder]))
        number = seen[folder, pid] = seen.get((folder, pid), -1) + 1
        path = f"{pid:04d}/{pid:04d}_{number:03d}_{camid:02d}_0303morning_{index:04d}_0.jpg"
        _save(root / folder / path, image)
        lists["val" if subset == "train" and number % 4 == 3 else subset].append(f"{path} {pid}\n")
    for subset, lines in lists.items():
        with atomic_open(root / f"list_{subset}.txt") as stream:
            stream.write("".join(lines).encode())


def _write_csv(root: Path, images: Iterable[LabelledImage]) -> None:
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(COLUMNS)
    for subset, pid, camid, index, image in images:
        path = f"images/{subset}/{index:06d}.jpg"
        _save(root / path, image)
        rows.writerow((path, pid, camid, subset))
    with atomic_open(root / FILE_NAME) as stream:
        stream.write(table.getvalue().encode())


def _fold(images: Iterable[LabelledImage]) -> Iterator[tuple[str, int, int, int, dict[str, Image.Image]]]:
    """Yields labels that fit CUHK03, and boxes by split: subset, pid, view (1, 2), number (1 to 5, 6 to 10), boxes."""
    filled: dict[tuple[int, int, bool], int] = {}
    for subset, pid, camid, _, image in _people(images):
        view = 1 if camid % 2 else 2
        if subset == "query" and (pid, view, True) in filled:
            subset = "gallery"
        # The first number of a test person is reserved for the query, which may come after the gallery.
        key = pid, view, subset == "query"
        slot = filled[key] = filled.get(key, 1 if subset == "gallery" else 0) + 1
        if slot <= _SLOTS:
            detected = image.crop((0, 0, image.width, image.height - image.height // 12))
            yield subset, pid, view, (view - 1) * _SLOTS + slot, {"detected": detected, "labeled": image}


def _write_cuhk03_np(root: Path, images: Iterable[LabelledImage]) -> None:
    for subset, pid, view, number, boxes in _fold(images):
        for split, image in boxes.items():
            _save(root / split / _FOLDERS[subset] / f"{pid:04d}_c{view}_{number}.png", image)


def _write_cuhk03(root: Path, images: Iterable[LabelledImage]) -> None:
    h5py = cuhk03.require_h5py(root / "cuhk-03.mat")
    subsets: dict[CUHK03Name, str] = {}
    references: dict[str, dict[CUHK03Name, Any]] = {"detected": {}, "labeled": {}}
    people: dict[int, tuple[int, int]] = {}
    with atomic_open(root / "cuhk-03.mat") as stream:
        # MATLAB writes a text header into the first 512 bytes, which HDF5 ignores.
        with h5py.File(stream, "w", userblock_size=512) as file:
            for subset, person, view, number, boxes in _fold(images):
                pair, pid = people.setdefault(person, (len(people) % _PAIRS + 1, len(people) // _PAIRS + 1))
                name = CUHK03Name(pair, pid, view, number)
                subsets[name] = subset
                for split, image in boxes.items():
                    pixels = np.asarray(image.convert("RGB")).transpose(2, 1, 0)
                    references[split][name] = _put(file, pixels, "uint8")
            for split, cells in references.items():
                pairs = []
                for pair in range(1, _PAIRS + 1):
                    size = sum(where[0] == pair for where in people.values())
                    # HDF5 lists MATLAB's dimensions in reverse: people x 10 becomes [10, people].
                    grid = np.empty((2 * _SLOTS, size), dtype=h5py.ref_dtype)
                    for idx, pid in np.ndindex(*grid.shape):
                        name = CUHK03Name(pair, pid + 1, 1 if idx < _SLOTS else 2, idx + 1)
                        grid[idx, pid] = cells.get(name) or _put(file, np.zeros(2, np.uint64), "double", empty=True)
                    pairs.append(_put(file, grid, "cell"))
                _put(file, np.array([pairs], dtype=h5py.ref_dtype), "cell", split)
        stream.seek(0)
        header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(116)
        stream.write(header + bytes(8) + b"\x00\x02IM")
    for split in references:
        _write_protocol(root / f"cuhk03_new_protocol_config_{split}.mat", subsets)


def _put(file: Any, value: np.ndarray, matlab_class: str, name: str = "", empty: bool = False) -> Any:
    """Stores a MATLAB value, under ``name`` or as an unnamed part of a cell array; returns a reference to it.

    An ``empty`` matrix is stored as its dimensions, with an attribute that marks it as empty.
    """
    parts = file.require_group("#refs#")
    dataset = file.create_dataset(name or f"#refs#/{len(parts)}", data=value)
    dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class)
    if empty:
        dataset.attrs["MATLAB_empty"] = np.uint8(1)
    return dataset.ref


def _write_protocol(path: Path, subsets: dict[CUHK03Name, str]) -> None:
    import scipy.io

    names = sorted(subsets)
    labels = {person: rank for rank, person in enumerate(sorted({name[:2] for name in names}), start=1)}
    protocol = {
        "filelist": np.array([[f"{cuhk03.format_name(name)}.png"] for name in names], dtype=object),
        "labels": np.array([labels[name[:2]] for name in names], np.uint16)[:, None],
        "camId": np.array([name.view for name in names], np.uint8)[:, None],
    }
    for subset in ("train", "query", "gallery"):
        chosen = [index for index, name in enumerate(names, start=1) if subsets[name] == subset]
        protocol[f"{subset}_idx"] = np.array(chosen, np.uint16)[:, None]
    with atomic_open(path) as stream:
        scipy.io.savemat(stream, protocol)


LAYOUTS: dict[str, Callable[[Path, Iterable[LabelledImage]], None]] = {
    "market1501": _write_market1501,
    "dukemtmc": _write_dukemtmc,
    "msmt17": _write_msmt17,
    "cuhk03": _write_cuhk03,
    "cuhk03-np": _write_cuhk03_np,
    "csv": _write_csv,
}
"""Layout name -> writer."""

WRITTEN = frozenset(
    [
        *(*_FOLDERS.values(), "train", "test", "images", "detected", "labeled", FILE_NAME, "cuhk-03.mat"),
        *(f"list_{subset}.txt" for subset in ("train", "val", "query", "gallery")),
        *(f"cuhk03_new_protocol_config_{split}.mat" for split in ("detected", "labeled")),
        *(f"images_{split}{end}" for split in cuhk03.SPLITS for end in ("", ".partial")),
        *(f".images_{split}.lock" for split in cuhk03.SPLITS),
    ]
)
"""Names in a data set's folder that the writers give, or CUHK03's reader."""
