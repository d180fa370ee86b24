"""The synthetic set is drawn once and read with the counts that the generator plans."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from han_tf.data import load_dataset, synthetic_dataset
from han_tf.data.synthetic import SyntheticPedestrians, store

_SMALL = {
    "train_identities": 3,
    "test_identities": 2,
    "images_per_camera": 2,
    "multi_query_per_camera": 1,
    "distractors": 4,
    "junk": 3,
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(synthetic_dataset, "SyntheticPedestrians", partial(SyntheticPedestrians, **_SMALL))


@pytest.mark.usefixtures("small")
def test_drawn_once_and_read_as_planned(tmp_path, monkeypatch):
    dataset = load_dataset("synthetic", tmp_path / "data")
    found = Counter((subset, r.pid, r.camid) for subset, rs in dataset.subsets().items() for r in rs)
    planned = SyntheticPedestrians(**_SMALL).frames()
    assert found == Counter((frame.subset, frame.pid, frame.camid) for frame in planned)
    assert (dataset.name, dataset.differences, dataset.notes) == ("synthetic", (), ())

    def refuse(*_, **__):
        raise AssertionError("drawn twice")

    monkeypatch.setattr(store, "generate", refuse)
    assert load_dataset("synthetic", tmp_path / "data") == dataset
    # A deleted file is reported, not drawn again.
    Path(dataset.train[0].path).unlink()
    expected = f"train: {len(dataset.train) - 1} images, published {len(dataset.train)}"
    assert expected in load_dataset("synthetic", tmp_path / "data").differences
