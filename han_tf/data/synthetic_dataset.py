"""The embedded synthetic set: drawn once, then read like Market-1501."""

from han_tf.data.counts import count
from han_tf.data.folders import PathLike
from han_tf.data.market1501 import read_market1501
from han_tf.data.records import Record, ReIDDataset
from han_tf.data.synthetic import SyntheticPedestrians, generate, is_current


def read_synthetic(data_dir: PathLike, split: str = "") -> ReIDDataset:
    """Reads the default synthetic set, drawing it first unless ``data_dir`` holds the current one.

    Args:
      data_dir: the folder for the images, in Market-1501's layout.
      split: only ``""``.

    Raises:
      UserError: the images cannot be written, or files were changed by hand.
    """
    pedestrians = SyntheticPedestrians()
    if not is_current(data_dir, pedestrians):
        generate(data_dir, pedestrians, layout="market1501")
    planned: dict[str, list[Record]] = {}
    for frame in pedestrians.frames():
        planned.setdefault(frame.subset, []).append(Record("", frame.pid, frame.camid))
    published = {subset: count(records) for subset, records in planned.items()}
    return read_market1501(data_dir, split, name="synthetic", published=published)
