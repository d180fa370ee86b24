"""MSMT17 (Wei et al., CVPR 2018), V1 and V2.

``list_train.txt``, ``list_val.txt``, ``list_query.txt`` and ``list_gallery.txt`` have one ``path pid`` per
line; the paths are relative to ``train/`` and ``test/`` (V1) or ``mask_train_v2/`` and ``mask_test_v2/`` (V2,
faces masked). The camera is the third field of the file name, as in ``0000_001_03_0303morning_0015_0.jpg``.
There are no junk images and no distractors.

The files number training and test people from 0 each. A record's pid is the file's plus :data:`TRAIN_OFFSET` or
:data:`TEST_OFFSET`, so that the two do not overlap and pid 0 does not mean distractor.
"""

import os
import re
from pathlib import Path

from han_tf.common.errors import UserError
from han_tf.data.counts import Counts, compared
from han_tf.data.folders import PathLike, find_folder, image_stem, name_parser
from han_tf.data.records import Record, ReIDDataset, parse_label

TRAIN_OFFSET = 1
TEST_OFFSET = 10_001

PUBLISHED = {
    "train": Counts(images=30_248, identities=1_041, cameras=15),
    "query": Counts(images=11_659, identities=3_060, cameras=15),
    "gallery": Counts(images=82_161, identities=3_060, cameras=15),
}
PUBLISHED_TRAINVAL = {**PUBLISHED, "train": Counts(images=30_248 + 2_373, identities=1_041, cameras=15)}

_VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
# The part after the camera (day and time, frame, box) differs between copies: some names end in "_ex".
parse_name = name_parser(r"(?P<pid>\d{1,255})_\d+_(?P<camid>\d{1,255})_.+")


def read_msmt17(data_dir: PathLike, split: str = "") -> ReIDDataset:
    """Reads MSMT17; :class:`han_tf.data.DatasetEntry` says what a reader takes.

    For evaluation the lists of query and gallery are enough. The split ``""`` trains on ``list_train.txt`` alone, as
    most published results do; ``"trainval"`` adds ``list_val.txt``.
    """
    tested = ["list_query.txt", "list_gallery.txt"]
    if split == "trainval":
        root = find_folder(data_dir, "msmt17", ["list_train.txt", "list_val.txt", *tested])
    else:
        root = find_folder(data_dir, "msmt17", ["list_train.txt", *tested], tested)
    trained = (root / "list_train.txt").exists()
    for train, test in _VERSIONS:
        if (root / test).is_dir() and (not trained or (root / train).is_dir()):
            break
    else:
        expected = " or ".join(f"{train} and {test}" for train, test in _VERSIONS)
        raise UserError(f"{root}: no image folders, expected {expected}")
    subsets = {
        "train": _read_list(root / "list_train.txt", root / train, TRAIN_OFFSET) if trained else (),
        "query": _read_list(root / "list_query.txt", root / test, TEST_OFFSET),
        "gallery": _read_list(root / "list_gallery.txt", root / test, TEST_OFFSET),
    }
    if split == "trainval":
        subsets["train"] += _read_list(root / "list_val.txt", root / train, TRAIN_OFFSET)
    published = PUBLISHED_TRAINVAL if split == "trainval" else PUBLISHED
    notes = () if trained else ("no list_train.txt: for evaluation only",)
    return compared("msmt17", split, root, subsets, published, notes)


def _read_list(path: Path, folder: Path, offset: int) -> tuple[Record, ...]:
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error.reason}), expected lines 'path pid'") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not re.fullmatch("[0-9]{1,17}", fields[1]):
            raise UserError(f"{path}, line {number}: found {line!r}, expected 'path pid'")
        image = os.path.join(folder, fields[0])
        labels = parse_name(image_stem(os.path.basename(image)) or "")
        if labels is None:
            raise UserError(
                f"{path}, line {number}: the file name in {fields[0]!r} does not fit, expected one like "
                "0000_001_03_0303morning_0015_0.jpg"
            )
        if not os.path.isfile(image):
            raise UserError(f"{path}, line {number}: {image} is not there, expected every listed image")
        camid = parse_label(f"{path}, line {number}", "camid", labels[1])
        records.append(Record(image, int(fields[1]) + offset, camid))
    return tuple(records)
