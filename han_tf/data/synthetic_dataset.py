"""The embedded synthetic data set: drawn once, then read like Market-1501."""

from han_tf.data.counts import count
from han_tf.data.folders import PathLike
from han_tf.data.market1501 import read_market1501
from han_tf.data.records import Record, ReIDDataset
from han_tf.data.synthetic import SyntheticPedestrians, draw_once


def read_synthetic(data_dir: PathLike, split: str = "") -> ReIDDataset:
    """Reads the default synthetic data set; draws it first as :func:`~han_tf.data.synthetic.draw_once` does.

    Missing images are only reported in ``differences``.

    Raises:
      UserError: the images cannot be drawn, or files or folders in ``data_dir`` were renamed.
    """
    pedestrians = SyntheticPedestrians()
    draw_once(data_dir, pedestrians)
    planned: dict[str, list[Record]] = {}
    for frame in pedestrians.frames():
        planned.setdefault(frame.subset, []).append(Record("", frame.pid, frame.camid))
    published = {subset: count(records) for subset, records in planned.items()}
    return read_market1501(data_dir, split, name="synthetic", published=published)
