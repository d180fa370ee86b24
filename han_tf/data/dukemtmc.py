"""DukeMTMC-reID (Ristani et al., ECCVW 2016; Zheng et al., ICCV 2017).

The folders are those of Market-1501; file names are ``{pid:04}_c{camera}_f{frame:07}.jpg``, e.g.
``0005_c2_f0046985.jpg``. There is no junk. The distractors are 408 people seen by one camera only. They have pids of
their own in the gallery, which no query has, so no special rule is needed.
"""

from han_tf.data.counts import Counts, compared
from han_tf.data.folders import PathLike, find_folder, name_parser
from han_tf.data.market1501 import LAYOUTS, read_subsets
from han_tf.data.records import ReIDDataset

PUBLISHED = {
    "train": Counts(images=16_522, identities=702, cameras=8),
    "query": Counts(images=2_228, identities=702, cameras=8),
    "gallery": Counts(images=17_661, identities=702 + 408, cameras=8),
}

parse_name = name_parser(r"(?P<pid>\d{1,255})_c(?P<camid>\d{1,255})_f\d+")


def read_dukemtmc(data_dir: PathLike, split: str = "") -> ReIDDataset:
    """Reads DukeMTMC-reID in one of the :data:`LAYOUTS`; :class:`han_tf.data.DatasetEntry` says what a reader takes."""
    root = find_folder(data_dir, "dukemtmc", *LAYOUTS)
    notes: list[str] = []
    subsets = read_subsets(root, parse_name, "0005_c2_f0046985.jpg", notes)
    return compared("dukemtmc", split, root, subsets, PUBLISHED, notes)
