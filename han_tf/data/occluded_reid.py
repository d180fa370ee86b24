"""Occluded-REID (Zhuo et al., ICME 2018): 200 people, five occluded and five whole images each; evaluation only.

There is one folder per person, with images such as ``occluded_body_images/001/001_01.tif`` and
``whole_body_images/001/001_01.tif``. File names contain no cameras. The occluded images are the queries, with camera id
1; the others are the gallery, with camera id 2, so that all images of a person are matches.
"""

from pathlib import Path

from han_tf.common.errors import UserError
from han_tf.data.counts import Counts, compared
from han_tf.data.folders import PathLike, find_folder, is_image, name_parser, read_folder
from han_tf.data.records import Record, ReIDDataset

PUBLISHED = {
    "query": Counts(images=1_000, identities=200, cameras=1),
    "gallery": Counts(images=1_000, identities=200, cameras=1),
}

FOLDERS = {"query": ("occluded_body_images", 1), "gallery": ("whole_body_images", 2)}
"""Subset -> its folder, and the camera id of its images."""


def read_occluded_reid(data_dir: PathLike, split: str = "") -> ReIDDataset:
    """Reads Occluded-REID; :class:`han_tf.data.DatasetEntry` says what a reader takes.

    Raises:
      UserError: as there, and if an image lies in another person's folder.
    """
    root = find_folder(data_dir, "occludedreid", [folder for folder, _ in FOLDERS.values()])
    notes = ["no training images: for evaluation only"]
    subsets = {subset: _read_subset(root / folder, camid, notes) for subset, (folder, camid) in FOLDERS.items()}
    return compared("occluded_reid", split, root, subsets, PUBLISHED, notes)


def _read_subset(folder: Path, camid: int, notes: list[str]) -> tuple[Record, ...]:
    """Returns the images in the folders of people, or those in ``folder`` itself if there are no such folders."""
    parse = name_parser(r"(?P<pid>\d{1,255})_\d+", camid)
    people = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    records = [record for person in people for record in read_folder(person, parse, "001_01.tif", notes)]
    for record in records:
        person = Path(record.path).parent.name
        if person.isdecimal() and int(person) != record.pid:
            raise UserError(f"{record.path}: an image of person {record.pid}, expected one of {person}, as its folder")
    if not people:
        records.extend(read_folder(folder, parse, "001_01.tif", notes))
    elif left := sum(is_image(child.name) and child.is_file() for child in folder.iterdir()):
        notes.append(f"{folder.name}: {left:,} images beside the folders of people: passed over")
    return tuple(records)
