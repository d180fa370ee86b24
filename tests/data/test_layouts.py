"""Labelled images written in each layout are read unchanged by that data set's reader."""

import io
from collections import Counter

import h5py
import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.data import load_dataset
from han_tf.data.synthetic import SyntheticPedestrians, generate
from han_tf.data.synthetic.images import LabelledImage
from han_tf.data.synthetic.layouts import LAYOUTS, write_layout

_READERS = {
    "market1501": ("market1501", ""),
    "dukemtmc": ("dukemtmc", ""),
    "msmt17": ("msmt17", ""),
    "cuhk03": ("cuhk03", "detected"),
    "cuhk03-np": ("cuhk03", "labelled"),
    "csv": ("csv", ""),
}


def _labels():
    """Six training and four test people; some test people have a query per camera, junk and distractors."""
    for pid in (2, 3, 5, 8, 13, 21):
        for camid in (1, 2, 3, 6):
            yield from [("train", pid, camid)] * (pid % 3 + 1)
    for pid in (1, 4, 34, 55):
        yield from [("gallery", pid, 1)] * 4
        for camid in (1, 2, 5, 6):
            yield ("query", pid, camid)
            yield from [("gallery", pid, camid)] * 2
            yield from [("multi_query", pid, camid)] * 2
    for camid in (1, 2, 4):
        yield ("gallery", -1, camid)
        yield ("gallery", 0, camid)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    made = []
    for index, (subset, pid, camid) in enumerate(_labels(), start=1):
        height, width = rng.integers(24, 40), rng.integers(9, 20)
        colours = rng.integers(0, 256, (4, 2, 3), np.uint8)
        image = Image.fromarray(colours).resize((int(width), int(height)), Image.Resampling.BILINEAR)
        made.append(LabelledImage(subset, pid, camid, index, image))
    return made


def _read(layout, root):
    name, split = _READERS[layout]
    return load_dataset(name, root, split)


def test_every_layout_has_a_reader():
    assert set(_READERS) == set(LAYOUTS)


@pytest.mark.parametrize("layout", ["market1501", "csv"])
def test_everything_comes_back(tmp_path, images, layout):
    write_layout(layout, tmp_path, iter(images))
    found = Counter(
        (subset, r.pid, r.camid) for subset, records in _read(layout, tmp_path).subsets().items() for r in records
    )
    assert found == Counter((image.subset, image.pid, image.camid) for image in images)


def test_dukemtmc_gives_each_distractor_a_pid(tmp_path, images):
    write_layout("dukemtmc", tmp_path, iter(images))
    dataset = _read("dukemtmc", tmp_path)
    people = [image for image in images if image.pid >= 0 and image.subset != "multi_query"]
    for subset, records in dataset.subsets().items():
        expected = Counter(
            (image.pid or 10_000 + image.index, image.camid) for image in people if image.subset == subset
        )
        assert Counter((r.pid, r.camid) for r in records) == expected


def test_msmt17_numbers_people_from_zero(tmp_path, images):
    write_layout("msmt17", tmp_path, iter(images))
    first = (tmp_path / "list_train.txt").read_text().splitlines()[0]
    assert first.endswith(".jpg 0")
    dataset = load_dataset("msmt17", tmp_path, "trainval")
    assert dataset.train_pids() == [1, 2, 3, 4, 5, 6]
    assert {r.pid for r in dataset.query} == {r.pid for r in dataset.gallery} == {10_001, 10_002, 10_003, 10_004}
    for subset, records in dataset.subsets().items():
        source = [image for image in images if image.pid > 0 and image.subset == subset]
        assert Counter(r.camid for r in records) == Counter(image.camid for image in source)
        assert sorted(Counter(r.pid for r in records).values()) == sorted(
            Counter(image.pid for image in source).values()
        )
    train = _read("msmt17", tmp_path).train
    assert 0 < len(train) < len(dataset.train)
    assert set(train) < set(dataset.train)


@pytest.mark.parametrize("layout", ["cuhk03", "cuhk03-np"])
@pytest.mark.parametrize("split", ["detected", "labelled"])
def test_cuhk03_pixels_and_labels(tmp_path, images, layout, split):
    """PNG is lossless, so that the pixels identify each record's image."""
    write_layout(layout, tmp_path, iter(images))
    dataset = load_dataset("cuhk03", tmp_path, split)
    sources = {}
    for source in images:
        cut = source.image.height // 12 if split == "detected" else 0
        pixels = np.asarray(source.image)[: source.image.height - cut]
        sources[pixels.shape, pixels.tobytes()] = source
    people = {}
    traced, moved = [], 0
    for subset, records in dataset.subsets().items():
        for record in records:
            pixels = np.asarray(Image.open(record.path))
            source = sources[pixels.shape, pixels.tobytes()]
            traced.append(source.index)
            assert people.setdefault(record.pid, source.pid) == source.pid
            assert record.camid == (1 if source.camid in (1, 3, 5) else 2)
            # Of several queries of one view, all but one are in the gallery.
            moved += (subset, source.subset) == ("gallery", "query")
            assert subset == source.subset or subset == "gallery"
    assert len(set(traced)) == len(traced)
    assert moved == 4
    assert sorted(people.values()) == sorted({image.pid for image in images if image.pid > 0})
    if layout == "cuhk03":
        assert sorted(people) == list(range(1, len(people) + 1))
    per_view = Counter((subset, r.pid, r.camid) for subset, records in dataset.subsets().items() for r in records)
    for (subset, _, _), number in per_view.items():
        assert number == 1 if subset == "query" else number <= 5
    assert sum(subset == "query" for subset, _, _ in per_view) == 4 * 2


def test_cuhk03_mat_is_as_matlab_writes_it(tmp_path, images):
    write_layout("cuhk03", tmp_path, iter(images))
    assert (tmp_path / "cuhk-03.mat").read_bytes().startswith(b"MATLAB 7.3 MAT-file")
    assert (tmp_path / "cuhk-03.mat").read_bytes()[116:128] == bytes(8) + b"\x00\x02IM"
    with h5py.File(tmp_path / "cuhk-03.mat") as file:
        assert file["labeled"].shape == (1, 5)
        assert file["labeled"].attrs["MATLAB_class"] == b"cell"
        # Ten people over five pairs: two each.
        pairs = [file[reference] for reference in file["labeled"][0]]
        assert [pair.shape for pair in pairs] == [(10, 2)] * 5
        cells = [file[reference] for pair in pairs for reference in pair[()].ravel()]
        empty = [cell for cell in cells if cell.attrs.get("MATLAB_empty")]
        assert empty
        assert all(cell.dtype == np.uint64 and (cell[()] == 0).all() for cell in empty)
        first = file[pairs[0][0, 0]][()]
    np.testing.assert_array_equal(first.T, np.asarray(images[0].image))


def test_images_are_taken_one_by_one(tmp_path, images):
    """Each layout writes the first image before it takes the last one."""
    for layout in LAYOUTS:
        root = tmp_path / layout

        def stream(root=root):
            for number, image in enumerate(images):
                if number == 5:
                    assert any(path.is_file() for path in root.rglob("*"))
                yield image

        write_layout(layout, root, stream())


def test_the_same_images_give_the_same_files(tmp_path, images):
    for layout in set(LAYOUTS) - {"cuhk03"}:
        for turn in "ab":
            write_layout(layout, tmp_path / turn, iter(images))
    first, second = (
        {path.relative_to(tmp_path / turn): path.read_bytes() for path in (tmp_path / turn).rglob("*.*")}
        for turn in "ab"
    )
    assert first == second


def test_jpeg_is_close_to_the_image(tmp_path, images):
    write_layout("csv", tmp_path, iter(images[:10]))
    for source in images[:10]:
        with Image.open(tmp_path / f"images/train/{source.index:06d}.jpg") as image:
            difference = np.asarray(image, float) - np.asarray(source.image, float)
        buffer = io.BytesIO()
        source.image.save(buffer, "JPEG", quality=75)
        worse = np.asarray(Image.open(buffer), float) - np.asarray(source.image, float)
        assert np.abs(difference).mean() < np.abs(worse).mean()


def test_unknown_layout(tmp_path):
    with pytest.raises(UserError, match="unknown layout 'viper', expected one of market1501"):
        generate(tmp_path / "set", SyntheticPedestrians(), "viper", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_cannot_write(tmp_path, images):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_layout("market1501", tmp_path / "file", iter(images))


def test_interrupted_mat_leaves_nothing(tmp_path, images):
    def stream():
        yield from images[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_layout("cuhk03", tmp_path, stream())
    assert list(tmp_path.iterdir()) == []
