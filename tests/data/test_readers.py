"""Readers on small hand-made folders with each peculiarity of the real data sets."""

import dataclasses
import os
import re
import shutil
import sys

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.data import (
    DATASETS,
    Record,
    ReIDDataset,
    canonical_split,
    check_protocol,
    cuhk03,
    dukemtmc,
    load_dataset,
    market1501,
    msmt17,
    only_tested,
)
from han_tf.data.counts import Counts, count, differences
from han_tf.data.folders import SUFFIXES, image_stem
from han_tf.data.records import check_training


def touch(root, *paths):
    """Makes empty files: readers do not open images."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def labels(records):
    return [(record.pid, record.camid) for record in records]


def raises(pattern):
    """Expects a UserError of one line."""
    return pytest.raises(UserError, match=rf"\A[^\n]*{pattern}[^\n]*\Z")


# --- names ---------------------------------------------------------------------------------------

PARSERS = {
    market1501: "{:04d}_c{}s1_000451_03",
    dukemtmc: "{:04d}_c{}_f0046985",
    msmt17: "{:04d}_000_{:02d}_0303morning_0015_0",
}
"""Module -> the form of its file names."""


@pytest.mark.parametrize("module", PARSERS)
@settings(deadline=None)
@given(pid=st.integers(0, 10**20), camid=st.integers(0, 10**20), stem=st.text())
def test_names_hold_pid_and_camid(module, pid, camid, stem):
    assert module.parse_name(PARSERS[module].format(pid, camid)) == (pid, camid)
    assert module.parse_name(stem) is None


@settings(deadline=None)
@given(name=st.builds(cuhk03.CUHK03Name, st.integers(1, 5), st.integers(0, 999), st.integers(1, 2), st.integers(0, 99)))
def test_names_of_cuhk03_come_back(name):
    assert cuhk03.parse_name(cuhk03.format_name(name)) == name


def test_a_number_too_long_for_an_integer_does_not_fit():
    """Python refuses to convert more than 4,300 digits."""
    assert market1501.parse_name(PARSERS[market1501].format(1, 1).replace("0001", "1" * 5000)) is None


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("0002_c1s1_000451_03.jpg", "0002_c1s1_000451_03"),
        ("0002_c1s1_000451_03.jpg.jpg", "0002_c1s1_000451_03"),
        ("1_001_1_01.PNG", "1_001_1_01"),
        *((f"a{suffix}", "a") for suffix in SUFFIXES),
        ("._0002_c1s1_000451_03.jpg", None),
        ("Thumbs.db", None),
        ("0001_c1s1_001051_00_good.mat", None),
        (".jpg", None),
    ],
)
def test_image_stem(name, stem):
    assert image_stem(name) == stem


# --- counts --------------------------------------------------------------------------------------


def test_count_leaves_junk_and_distractors_out_of_the_identities():
    records = [Record("", *label) for label in [(-1, 9), (0, 1), (5, 1), (5, 2), (7, 2)]]
    assert count(records) == Counts(images=4, identities=2, cameras=2, junk=1)


def test_differences_are_sentences():
    found = {"train": [Record("", 1, 1)] * 12_935, "query": []}
    published = {"train": Counts(12_936, 1, 1, 0), "query": Counts(None, None, None, 2), "gallery": Counts(0)}
    assert differences(found, published) == (
        "train: 12,935 images, published 12,936",
        "query: 0 junk images, published 2",
    )


# --- Market-1501 ---------------------------------------------------------------------------------


def market_tree(root):
    touch(root, *(f"{folder}/Thumbs.db" for folder in ("bounding_box_train", "query", "bounding_box_test")))
    return touch(
        root,
        "readme.txt",
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0007_c2s3_070952_01.jpg",
        "bounding_box_train/._0007_c2s3_070952_01.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "query/1488_c6s3_094992_00.jpg.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/-1_c4s6_022316_11.jpg.jpg",
        "bounding_box_test/0000_c1s6_023071_04.jpg.jpg",
        "bounding_box_test/0001_c2s1_000301_00.jpg",
        "bounding_box_test/1488_c2s3_065527_02.jpg.jpg",
        "gt_bbox/0001_c1s1_001051_00.jpg",
        "gt_bbox/0001_c1s1_002301_00.jpg",
        "gt_bbox/0001_c2s1_000301_00.jpg",
        "gt_bbox/0002_c1s1_000451_00.jpg",
        "gt_bbox/1488_c6s3_094992_00.jpg.jpg",
        "gt_query/0001_c1s1_001051_00_good.mat",
    )


def test_market_traps(tmp_path):
    dataset = load_dataset("market1501", market_tree(tmp_path))
    assert labels(dataset.train) == [(2, 1), (7, 2)]
    assert labels(dataset.query) == [(1, 1), (1488, 6)]
    assert labels(dataset.gallery) == [(-1, 1), (-1, 4), (0, 1), (1, 2), (1488, 2)]
    # Only the boxes of a query's person from the query's camera.
    assert labels(dataset.multi_query) == [(1, 1), (1, 1), (1488, 6)]
    assert dataset.query[1].path == str(tmp_path / "query/1488_c6s3_094992_00.jpg.jpg")
    assert (dataset.name, dataset.split, dataset.notes) == ("market1501", "", ())
    assert "train: 2 images, published 12,936" in dataset.differences
    assert "gallery: 2 junk images, published 3,819" in dataset.differences
    assert "multi_query: 5 images, published 25,259" in dataset.differences


def test_market_without_gt_bbox_says_so(tmp_path):
    market_tree(tmp_path)
    for path in (tmp_path / "gt_bbox").iterdir():
        path.unlink()
    (tmp_path / "gt_bbox").rmdir()
    dataset = load_dataset("market1501", tmp_path)
    assert dataset.multi_query == ()
    assert dataset.notes == ("no gt_bbox folder: no multi-query evaluation",)
    assert not any("multi_query" in sentence for sentence in dataset.differences)


@pytest.mark.parametrize(
    "inner", ["Market-1501-v15.09.15", "market1501", "market1501/Market-1501-v15.09.15", "Market1501"]
)
def test_market_is_found_below_its_parent(tmp_path, inner):
    market_tree(tmp_path / inner)
    # Another data set beside it has the same folders.
    touch(tmp_path, *(f"DukeMTMC-reID/{folder}/x.txt" for folder in ("bounding_box_train", "query")))
    assert load_dataset("market1501", tmp_path).root == str(tmp_path / inner)


def test_market_found_twice(tmp_path):
    market_tree(tmp_path / "market1501")
    market_tree(tmp_path / "Market-1501-v15.09.15")
    with raises("more than once .Market-1501-v15.09.15 and market1501."):
        load_dataset("market1501", tmp_path)


@pytest.mark.parametrize("name", ["0002_c1_000451.jpg", "person.png", "0002_c1s1_000451_03_flipped.jpg"])
def test_market_name_that_does_not_fit(tmp_path, name):
    touch(market_tree(tmp_path), f"bounding_box_test/{name}")
    with raises(f"{re.escape(name)}: the file name does not fit, expected one like 0002_c1s1_000451_03.jpg"):
        load_dataset("market1501", tmp_path)


def test_missing_folder_names_it(tmp_path):
    with raises(r"nowhere: no such folder"):
        load_dataset("market1501", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with raises(r"file: a file, expected"):
        load_dataset("market1501", tmp_path / "file")
    (tmp_path / "query").mkdir()
    with raises("no bounding_box_train and no bounding_box_test in it"):
        load_dataset("market1501", tmp_path)


@pytest.mark.parametrize("name", ["query", "bounding_box_test"])
def test_a_file_in_place_of_a_folder(tmp_path, name):
    shutil.rmtree(market_tree(tmp_path) / name)
    (tmp_path / name).touch()
    with raises(rf"market1501: cannot read {tmp_path}/{name} \(Not a directory\), expected readable files"):
        load_dataset("market1501", tmp_path)


def test_empty_folder(tmp_path):
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / folder).mkdir()
    with raises("no query images found"):
        load_dataset("market1501", tmp_path)


def test_market_takes_every_format_and_counts_what_it_passes_over(tmp_path):
    market_tree(tmp_path)
    touch(tmp_path, "query/0003_c1s1_000001_00.webp", "bounding_box_test/0003_c2s1_000001_00.TIFF")
    touch(tmp_path, "query/0003.psd", "query/0004.psd", "query/Thumbs.db", "query/more/0005_c1s1_000001_00.jpg")
    os.mkfifo(tmp_path / "query/0006_c1s1_000001_00.jpg")
    dataset = load_dataset("market1501", tmp_path)
    assert (3, 1) in labels(dataset.query)
    assert (3, 2) in labels(dataset.gallery)
    (note,) = dataset.notes
    others = "2 folders, links to nothing or other things that are no files"
    assert note.startswith(f"query: 2 files named *.psd, {others}: passed over (images are .jpg .jpeg")


def test_market_pid_of_more_digits_than_64_bits_hold(tmp_path):
    touch(market_tree(tmp_path), "query/10000000000000000000_c1s1_000451_03.jpg")
    with raises("_03.jpg: pid is 10000000000000000000, expected an integer of at least -1, up to 18 digits"):
        load_dataset("market1501", tmp_path)


@pytest.mark.parametrize("gallery", ["bounding_box_test", "gallery"])
@pytest.mark.parametrize("inner", ["", "Market-1501"])
def test_query_and_gallery_are_enough_to_evaluate(tmp_path, gallery, inner):
    touch(tmp_path / inner, "query/0001_c1s1_000001_00.tif", f"{gallery}/0001_c2s1_000001_00.tif")
    dataset = load_dataset("market1501", tmp_path)
    assert dataset.train == ()
    assert labels(dataset.query + dataset.gallery) == [(1, 1), (1, 2)]
    assert "no bounding_box_train folder: for evaluation only" in dataset.notes
    with raises("no train images found, expected some to train on; a set of query and gallery alone"):
        check_training(dataset)


def test_every_layout_may_lack_the_training_images(tmp_path):
    touch(tmp_path / "duke", "query/0005_c2_f0046985.jpg", "bounding_box_test/0005_c5_f0051341.jpg")
    touch(tmp_path / "np/detected", "query/0002_c1_21.png", "bounding_box_test/0002_c2_26.png")
    msmt_tree(tmp_path / "msmt")
    (tmp_path / "msmt/list_train.txt").unlink()
    shutil.rmtree(tmp_path / "msmt/train")
    csv_tree(tmp_path / "csv", *(row for row in _ROWS if "train" not in row))
    for name, folder in (("dukemtmc", "duke"), ("cuhk03", "np"), ("msmt17", "msmt"), ("csv", "csv")):
        dataset = load_dataset(name, tmp_path / folder)
        assert (dataset.train, len(dataset.query)) == ((), 1)
        assert dataset.gallery
        check_training(dataclasses.replace(dataset, train=dataset.query))
        with raises(f"{name} in .*: no train images found"):
            check_training(dataset)


# --- DukeMTMC-reID -------------------------------------------------------------------------------


def duke_tree(root):
    return touch(
        root,
        "CITATION.txt",
        "bounding_box_train/0001_c2_f0046182.jpg",
        "bounding_box_train/0007_c8_f0092013.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0005_c5_f0051341.jpg",
        "bounding_box_test/7139_c1_f0100001.jpg",
    )


def test_duke(tmp_path):
    dataset = load_dataset("dukemtmc", duke_tree(tmp_path / "dukemtmc-reid" / "DukeMTMC-reID").parent.parent)
    assert labels(dataset.train) == [(1, 2), (7, 8)]
    assert labels(dataset.query) == [(5, 2)]
    assert labels(dataset.gallery) == [(5, 5), (7139, 1)]
    assert "gallery: 2 identities, published 1,110" in dataset.differences


def test_duke_of_another_name_is_pointed_to(tmp_path):
    duke_tree(tmp_path / "Occluded_Duke")
    with raises(rf"they are in {tmp_path}/Occluded_Duke: give that folder itself"):
        load_dataset("dukemtmc", tmp_path)
    assert load_dataset("dukemtmc", tmp_path / "Occluded_Duke").query


def test_duke_does_not_take_market_names(tmp_path):
    touch(duke_tree(tmp_path), "query/0001_c1s1_001051_00.jpg")
    with raises("0001_c1s1_001051_00.jpg: the file name does not fit, expected one like 0005_c2_f0046985.jpg"):
        load_dataset("dukemtmc", tmp_path)


# --- Occluded-REID -------------------------------------------------------------------------------


def test_occluded_reid_has_queries_and_gallery_alone(tmp_path):
    root = tmp_path / "Occluded_REID"
    touch(root / "occluded_body_images", "001/001_01.tif", "002/002_05.tif", "002/Thumbs.db", ".git/x.tif")
    touch(root / "whole_body_images", "001/001_01.tif", "001/001_02.tif", "010/010_01.tif")
    dataset = load_dataset("occluded_reid", tmp_path)
    assert dataset.train == ()
    assert labels(dataset.query) == [(1, 1), (2, 1)]
    assert labels(dataset.gallery) == [(1, 2), (1, 2), (10, 2)]
    assert "query: 2 images, published 1,000" in dataset.differences
    with raises("occluded_reid in .*: no train images found"):
        check_training(dataset)


def test_occluded_reid_of_200_people_is_as_published(tmp_path):
    names = [f"{pid:03}/{pid:03}_{index:02}.tif" for pid in range(1, 201) for index in range(1, 6)]
    for folder in ("occluded_body_images", "whole_body_images"):
        touch(tmp_path / folder, *names)
    assert load_dataset("occluded_reid", tmp_path).differences == ()


def test_occluded_reid_may_lie_flat_and_refuses_a_wrong_folder_or_name(tmp_path):
    for folder in ("occluded_body_images", "whole_body_images"):
        touch(tmp_path / folder, "001_01.tif", "002_01.tif")
    assert labels(load_dataset("occluded_reid", tmp_path).gallery) == [(1, 2), (2, 2)]
    touch(tmp_path / "whole_body_images", "002/001_03.tif")
    with raises("002/001_03.tif: an image of person 1, expected one of 002, as its folder"):
        load_dataset("occluded_reid", tmp_path)
    (tmp_path / "whole_body_images/002/001_03.tif").rename(tmp_path / "whole_body_images/002/002_03.tif")
    dataset = load_dataset("occluded_reid", tmp_path)
    assert labels(dataset.gallery) == [(2, 2)]
    assert "whole_body_images: 2 images beside the folders of people: passed over" in dataset.notes
    assert not any("occluded_body_images" in note for note in dataset.notes)
    touch(tmp_path / "occluded_body_images", "001/001_c1_05.tif")
    with raises("001_c1_05.tif: the file name does not fit, expected one like 001_01.tif"):
        load_dataset("occluded_reid", tmp_path)


def test_sets_that_are_for_evaluation_only_are_known():
    assert [name for name, entry in DATASETS.items() if not entry.training] == ["occluded_reid"]
    assert only_tested("market1501,occluded_reid") == ["occluded_reid"]
    assert only_tested("market1501") == only_tested("") == only_tested("unknown") == []


# --- MSMT17 --------------------------------------------------------------------------------------


def msmt_tree(root, train="train", test="test"):
    lists = {
        "train": (train, [("0000/0000_000_01_0303morning_0015_0.jpg", 0)]),
        "val": (train, [("0001/0001_003_15_0113noon_0398_0_ex.jpg", 1)]),
        "query": (test, [("0000/0000_001_03_0303morning_0033_1.jpg", 0)]),
        "gallery": (test, [("0000/0000_002_14_0303morning_0044_1.jpg", 0)]),
    }
    lists["train"][1].append(("0001/0001_000_02_0303morning_0020_1.jpg", 1))
    for name, (folder, rows) in lists.items():
        touch(root, *(f"{folder}/{path}" for path, _ in rows))
        (root / f"list_{name}.txt").write_text("".join(f"{path} {pid}\n" for path, pid in rows))
    return root


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt_keeps_train_and_test_people_apart(tmp_path, folders):
    msmt_tree(tmp_path / "MSMT17_V1", *folders)
    dataset = load_dataset("msmt17", tmp_path)
    assert labels(dataset.train) == [(1, 1), (2, 2)]
    assert labels(dataset.query) == [(10_001, 3)]
    assert labels(dataset.gallery) == [(10_001, 14)]
    assert dataset.train[0].path.endswith(f"{folders[0]}/0000/0000_000_01_0303morning_0015_0.jpg")
    assert "train: 2 images, published 30,248" in dataset.differences


def test_msmt_trainval(tmp_path):
    dataset = load_dataset("msmt17", msmt_tree(tmp_path), "trainval")
    assert labels(dataset.train) == [(1, 1), (2, 2), (2, 15)]
    assert dataset.split == "trainval"
    assert "train: 3 images, published 32,621" in dataset.differences
    (tmp_path / "list_val.txt").unlink()
    with raises(rf"\A{tmp_path}: no list_val.txt in it, expected list_train.txt"):
        load_dataset("msmt17", tmp_path, "trainval")
    msmt_tree(tmp_path / "parent/MSMT17_V1")
    (tmp_path / "parent/MSMT17_V1/list_val.txt").unlink()
    with raises(rf"\A{tmp_path}/parent/MSMT17_V1: no list_val.txt in it, expected list_train.txt"):
        load_dataset("msmt17", tmp_path / "parent", "trainval")
    assert len(load_dataset("msmt17", tmp_path).train) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000/0000_000_01_0303morning_0015_0.jpg", "line 2: found .*, expected 'path pid'"),
        ("0000/0000_000_01_0303morning_0015_0.jpg x", "line 2: found .*, expected 'path pid'"),
        ("0000/portrait.jpg 0", "line 2: the file name in '0000/portrait.jpg' does not fit"),
        ("0000/0000_009_01_0303morning_0015_0.jpg 0", "line 2: .* is not there"),
    ],
)
def test_msmt_bad_line(tmp_path, line, message):
    msmt_tree(tmp_path)
    with (tmp_path / "list_query.txt").open("a") as stream:
        stream.write(line + "\n")
    with raises(f"list_query.txt, {message}"):
        load_dataset("msmt17", tmp_path)


def test_msmt_without_images_or_lists(tmp_path):
    msmt_tree(tmp_path)
    (tmp_path / "test").rename(tmp_path / "test_images")
    with raises("no image folders, expected train and test or mask_train_v2 and mask_test_v2"):
        load_dataset("msmt17", tmp_path)
    (tmp_path / "list_query.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "test_images").rename(tmp_path / "test")
    with raises("list_query.txt: not a text file"):
        load_dataset("msmt17", tmp_path)
    (tmp_path / "list_query.txt").unlink()
    with raises("no list_query.txt in it"):
        load_dataset("msmt17", tmp_path)


# --- CUHK03 --------------------------------------------------------------------------------------

_CUHK03_IMAGES = {
    # name: (subset, label). Two people in pair 1 and one in pair 5 train, one in pair 2 is tested.
    "1_001_1_01": ("train", 1),
    "1_001_2_06": ("train", 1),
    "1_002_1_05": ("train", 2),
    "2_001_1_01": ("query", 3),
    "2_001_1_03": ("gallery", 3),
    "2_001_2_10": ("gallery", 3),
    "5_001_2_07": ("train", 4),
}


def _pixels(name, split):
    rng = np.random.default_rng([*name.encode(), len(split)])
    return rng.integers(0, 256, (7 + len(split), 5, 3), np.uint8)


def cuhk03_mat(root, people=(2, 1, 0, 0, 1)):
    """Writes cuhk-03.mat from height x width x 3 images in people x 10 cell arrays, as in MATLAB."""
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "cuhk-03.mat", "w", userblock_size=512) as file:
        number = 0

        def put(matlab_value, name=None):
            nonlocal number
            number += 1
            # A column-major array of dimensions (a, b, c) is, byte by byte, a row-major one of (c, b, a).
            return file.create_dataset(name or f"#refs#/{number}", data=matlab_value.T)

        for split in ("detected", "labeled"):
            pairs = np.empty((5, 1), h5py.ref_dtype)
            for pair in range(5):
                cells = np.empty((people[pair], 10), h5py.ref_dtype)
                for pid, idx in np.ndindex(*cells.shape):
                    name = f"{pair + 1}_{pid + 1:03d}_{1 if idx < 5 else 2}_{idx + 1:02d}"
                    if name in _CUHK03_IMAGES:
                        cells[pid, idx] = put(_pixels(name, split)).ref
                    else:
                        empty = put(np.zeros(2, np.uint64))
                        empty.attrs["MATLAB_empty"] = np.uint8(1)
                        cells[pid, idx] = empty.ref
                pairs[pair, 0] = put(cells).ref
            put(pairs, split)
    return root


def cuhk03_protocol(root, split="detected", **changes):
    names = list(_CUHK03_IMAGES)
    protocol = {
        "filelist": np.array([[f"{name}.png"] for name in names], dtype=object),
        "labels": np.array([[label] for _, label in _CUHK03_IMAGES.values()], np.uint16),
        "camId": np.array([[int(name.split("_")[2])] for name in names], np.uint8),
    }
    for subset in ("train", "query", "gallery"):
        chosen = [i + 1 for i, name in enumerate(names) if _CUHK03_IMAGES[name][0] == subset]
        protocol[f"{subset}_idx"] = np.array(chosen, np.uint16)[:, None]
    protocol.update(changes)
    scipy.io.savemat(root / f"cuhk03_new_protocol_config_{split}.mat", protocol)
    return root


def read_cuhk03_tree(root, split="detected"):
    dataset = load_dataset("cuhk03", root, split)
    found = {}
    for subset, records in dataset.subsets().items():
        for record in records:
            name = record.path.rsplit("/", 1)[1][:-4]
            found[name] = (subset, record.pid)
            assert record.camid == int(name.split("_")[2])
            np.testing.assert_array_equal(np.asarray(Image.open(record.path)), _pixels(name, split))
    assert found == _CUHK03_IMAGES
    return dataset


@pytest.mark.parametrize("inner", ["", "cuhk03/cuhk03_release"])
def test_cuhk03_original(tmp_path, inner):
    root = cuhk03_mat(tmp_path / inner)
    # The protocol lies beside the .mat or, as in deep-person-reid's layout, one folder up.
    cuhk03_protocol(root.parent if inner else root)
    dataset = read_cuhk03_tree(tmp_path)
    assert dataset.split == "detected"
    assert sorted(path.name for path in (root / "images_detected").iterdir()) == [
        f"{name}.png" for name in sorted(_CUHK03_IMAGES)
    ]
    assert "train: 4 images, published 7,365" in dataset.differences


@pytest.mark.parametrize(
    ("dataset", "split", "canonical"),
    [
        ("cuhk03", "labeled", "labelled"),
        ("cuhk03", "detected", "detected"),
        ("", "labeled", "labelled"),
        ("cuhk03", "", ""),
        ("cuhk03", "other", "other"),
        ("msmt17", "labeled", "labeled"),
        ("unknown", "labeled", "labeled"),
        ("market1501,cuhk03", ",labeled", ",labelled"),
        ("market1501,cuhk03", "", ""),
    ],
)
def test_splits_by_the_name_of_the_registry(dataset, split, canonical):
    assert canonical_split(dataset, split) == canonical


@pytest.mark.parametrize("split", ["labelled", "labeled"])
@pytest.mark.parametrize("spelling", ["labelled", "labeled"])
def test_cuhk03_labelled_in_either_spelling(tmp_path, split, spelling):
    cuhk03_protocol(cuhk03_mat(tmp_path), spelling)
    dataset = load_dataset("cuhk03", tmp_path, split)
    assert dataset.split == "labelled"
    assert "train: 4 images, published 7,368" in dataset.differences
    image = np.asarray(Image.open(dataset.query[0].path))
    np.testing.assert_array_equal(image, _pixels("2_001_1_01", "labeled"))


def test_cuhk03_goes_on_after_an_interruption(tmp_path, monkeypatch):
    cuhk03_protocol(cuhk03_mat(tmp_path))
    save, written = Image.Image.save, []

    def interrupted(image, path, **options):
        if len(written) == 3:
            path.write_bytes(b"half an image")
            raise KeyboardInterrupt
        written.append(path)
        save(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_dataset("cuhk03", tmp_path)
    assert not (tmp_path / "images_detected").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "images_detected.partial").glob("*.png")}
    assert len(kept) == 3
    read_cuhk03_tree(tmp_path)
    for path, modified in kept.items():
        assert (tmp_path / "images_detected" / path.name).stat().st_mtime_ns == modified


def test_cuhk03_is_extracted_once(tmp_path, monkeypatch):
    cuhk03_protocol(cuhk03_mat(tmp_path))
    first = load_dataset("cuhk03", tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert load_dataset("cuhk03", tmp_path) == first


def test_cuhk03_without_h5py(tmp_path, monkeypatch):
    cuhk03_protocol(cuhk03_mat(tmp_path))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with raises(r"pip install h5py.*'\.\[cuhk03\]'"):
        load_dataset("cuhk03", tmp_path)


def test_cuhk03_missing_protocol(tmp_path):
    cuhk03_protocol(cuhk03_mat(tmp_path), "labeled")
    with raises("no protocol file cuhk03_new_protocol_config_detected.mat found"):
        load_dataset("cuhk03", tmp_path)
    assert not (tmp_path / "images_detected").exists()


def test_cuhk03_neither_form(tmp_path):
    with raises("neither cuhk-03.mat nor a folder labeled with bounding_box_train, query, bounding_box_test"):
        load_dataset("cuhk03", tmp_path, "labelled")


def _scramble(path):
    path.write_bytes(np.random.default_rng(0).bytes(4000))


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


def _without_key(path):
    with h5py.File(path, "r+") as file:
        del file["detected"]


def _not_cells(path):
    _without_key(path)
    with h5py.File(path, "r+") as file:
        file["detected"] = np.zeros((3, 3))


def _grey_image(path):
    with h5py.File(path, "r+") as file:
        cells = file[file["detected"][0, 0]]
        cells[0, 0] = file.create_dataset("grey", data=np.zeros((1, 4, 4), np.uint8)).ref


def _huge_image(path):
    with h5py.File(path, "r+") as file:
        cells = file[file["detected"][0, 0]]
        huge = file.create_dataset("huge", (3, 10_000, 10_000), np.uint8, chunks=True)  # no chunk is stored
        cells[0, 0] = huge.ref


@pytest.mark.parametrize("damage", [_scramble, _cut, _empty, _without_key, _not_cells, _grey_image, _huge_image])
def test_cuhk03_damaged_mat(tmp_path, damage):
    cuhk03_protocol(cuhk03_mat(tmp_path))
    damage(tmp_path / "cuhk-03.mat")
    with raises(r"cuhk-03.mat: unreadable \(.*MATLAB v7.3 \(HDF5\)"):
        load_dataset("cuhk03", tmp_path)


def test_cuhk03_protocol_that_crashes_scipy(tmp_path, monkeypatch):
    cuhk03_protocol(cuhk03_mat(tmp_path))
    (tmp_path / "scipy.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of child processes
    with raises(r"config_detected.mat: unreadable \(SIGSEGV while read\).*MATLAB v5"):
        load_dataset("cuhk03", tmp_path)


@pytest.mark.parametrize("damage", [_scramble, _cut, _empty])
def test_cuhk03_damaged_protocol(tmp_path, damage):
    cuhk03_protocol(cuhk03_mat(tmp_path))
    damage(tmp_path / "cuhk03_new_protocol_config_detected.mat")
    with raises(r"config_detected.mat: unreadable \(.*MATLAB v5"):
        load_dataset("cuhk03", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_idx": np.array([[1], [8]])}, r"train_idx leaves 1\.\.7"),
        ({"query_idx": np.array([[0]])}, r"query_idx leaves 1\.\.7"),
        ({"labels": np.array([[1], [2]])}, "7 file names, 2 labels"),
        ({"camId": np.ones((7, 1))}, "'1_001_2_06.png' with camId 1 does not fit"),
        ({"filelist": np.array([["1_001_1_02.png"]] * 7, object), "camId": np.ones((7, 1))}, "not there though"),
        ({"filelist": np.array([["portrait.png"]] * 7, object)}, "file name 'portrait.png' .* does not fit"),
    ],
)
def test_cuhk03_protocol_that_does_not_fit(tmp_path, changes, message):
    cuhk03_protocol(cuhk03_mat(tmp_path), **changes)
    with raises(message):
        load_dataset("cuhk03", tmp_path)


def test_cuhk03_mat_without_images(tmp_path):
    cuhk03_protocol(cuhk03_mat(tmp_path, people=(0, 0, 0, 0, 0)))
    with raises("no detected images in it"):
        load_dataset("cuhk03", tmp_path)


@pytest.mark.parametrize("spelling", ["labeled", "labelled"])
def test_cuhk03_np(tmp_path, spelling):
    touch(
        tmp_path / "cuhk03-np" / spelling,
        "bounding_box_train/0001_c1_1.png",
        "bounding_box_train/0004_c2_12.png",
        "query/0002_c1_21.png",
        "bounding_box_test/0002_c2_26.png",
        "bounding_box_test/Thumbs.db",
    )
    dataset = load_dataset("cuhk03", tmp_path, "labelled")
    assert labels(dataset.train) == [(1, 1), (4, 2)]
    assert labels(dataset.query) == [(2, 1)]
    assert labels(dataset.gallery) == [(2, 2)]
    with raises("neither cuhk-03.mat nor a folder detected with"):
        load_dataset("cuhk03", tmp_path, "detected")
    assert load_dataset("cuhk03", tmp_path / "cuhk03-np" / spelling, "labelled") == dataset  # the split's folder itself
    with raises(rf"cuhk03-np/{spelling}: the split labelled, expected detected; give the folder above, or --split"):
        load_dataset("cuhk03", tmp_path / "cuhk03-np" / spelling)


def test_cuhk03_np_with_the_original_names_counts_on_through_the_pairs(tmp_path):
    touch(
        tmp_path / "detected",
        "bounding_box_train/1_001_1_01.png",
        "bounding_box_train/2_001_2_06.png",
        "bounding_box_train/5_049_2_06.png",
        "query/1_843_1_01.png",
        "bounding_box_test/1_843_2_06.png",
    )
    dataset = load_dataset("cuhk03", tmp_path)
    # Pairs 1 to 5 have 843, 440, 77, 58 and 49 people: the last one has label 1,467.
    assert labels(dataset.train) == [(1, 1), (844, 2), (1467, 2)]
    assert labels(dataset.query) == [(843, 1)]
    touch(tmp_path, "detected/query/5_050_1_01.png")
    with raises("5_050_1_01.png: the file name does not fit"):
        load_dataset("cuhk03", tmp_path)


# --- CSV -----------------------------------------------------------------------------------------

_ROWS = (
    "path,pid,camid,subset",
    "a.jpg,1,1,train",
    "b.jpg,2,1,train",
    "c.jpg,3,1,query",
    "d.jpg,3,2,gallery",
    "e.jpg,-1,2,gallery",
    "f.jpg,0,2,gallery",
    "g.jpg,3,1,multi_query",
)


def csv_tree(root, *rows, encoding="utf-8"):
    touch(root, *(f"{letter}.jpg" for letter in "abcdefgh"))
    (root / "records.csv").write_text("\n".join(rows) + "\n", encoding=encoding)
    return root


def test_csv(tmp_path):
    dataset = load_dataset("csv", csv_tree(tmp_path, *_ROWS))
    assert dataset.train == (Record(str(tmp_path / "a.jpg"), 1, 1), Record(str(tmp_path / "b.jpg"), 2, 1))
    assert labels(dataset.query) == [(3, 1)]
    assert labels(dataset.gallery) == [(3, 2), (-1, 2), (0, 2)]
    assert labels(dataset.multi_query) == [(3, 1)]
    assert dataset.differences == ()
    assert load_dataset("csv", tmp_path / "records.csv") == dataset


def test_csv_from_a_spreadsheet(tmp_path):
    """A byte order mark, a further column, another order, quotes, an empty line, an absolute path."""
    rows = [
        "subset,note,camid,pid,path",
        *(",".join([s, '"x, y"', c, p, f'"{path}"']) for path, p, c, s in (r.split(",") for r in _ROWS[1:-1])),
        "",
        f"multi_query,,1,3,{tmp_path / 'g.jpg'}",
    ]
    csv_tree(tmp_path, *rows, encoding="utf-8-sig")
    dataset = load_dataset("csv", tmp_path)
    assert dataset == load_dataset("csv", csv_tree(tmp_path, *_ROWS))


@pytest.mark.parametrize(
    "changed",
    [
        [f"{row},," for row in _ROWS],
        [_ROWS[0], *(f"{row}," for row in _ROWS[1:])],
        [f"{_ROWS[0]},,", *_ROWS[1:]],
        [_ROWS[0].upper(), *_ROWS[1:]],
        ["Path,PID,CamID,Subset", "", *_ROWS[1:3], " , ,,", ",,,", *_ROWS[3:], ",,,,"],
    ],
)
def test_csv_with_capitals_blank_lines_and_empty_columns_at_the_end(tmp_path, changed):
    dataset = load_dataset("csv", csv_tree(tmp_path, *changed))
    assert dataset == load_dataset("csv", csv_tree(tmp_path, *_ROWS))


def test_csv_with_one_file_in_two_places(tmp_path):
    (tmp_path / "link.jpg").symlink_to("c.jpg")
    rows = [*_ROWS, "link.jpg,3,1,gallery", "a.jpg,1,1,train", "./b.jpg,2,1,train"]
    assert load_dataset("csv", csv_tree(tmp_path, *rows)).notes == (
        "1 files stand in query and gallery",
        "2 files stand in train more than once",
    )
    for row, found in (("link.jpg,4,1,gallery", "pid 4 and camid 1"), ("c.jpg,3,2,gallery", "pid 3 and camid 2")):
        with raises(f"line 9: .*{found}, expected pid 3 and camid 1 as in line 4: it is the same file"):
            load_dataset("csv", csv_tree(tmp_path, *_ROWS, row))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,pid,subset", "a.jpg,1,train"], "line 1: no column camid; .*camera"),
        (["a.jpg,1,1,train"], "line 1: found the header 'a.jpg,1,1,train', expected path,pid,camid,subset"),
        (["path;pid;camid;subset"], "line 1: found the header 'path;pid;camid;subset'"),
        (["path,pid,camid,subset,pid"], "line 1: found the header"),
        (["path,pid,camid,,"], "line 1: found the header"),
        ([], "line 1: found the header ''"),
        ([*_ROWS, "h.jpg,4,1"], "line 9: 3 columns, expected 4"),
        ([*_ROWS, "h.jpg,4,1,train,x"], "line 9: 5 columns, expected 4"),
        ([*_ROWS, "h.jpg,4,,train"], "line 9: camid is empty; .*camera"),
        ([*_ROWS, "h.jpg,4,c1,train"], "line 9: camid is 'c1', expected an integer"),
        ([*_ROWS, "h.jpg,-2,1,train"], "line 9: pid is '-2', expected an integer of at least -1"),
        ([*_ROWS, "h.jpg,anna,1,train"], "line 9: pid is 'anna', expected an integer"),
        ([*_ROWS, "h.jpg,9223372036854775808,1,train"], "line 9: pid is '9223372036854775808', expected an integer"),
        ([*_ROWS, "h.jpg,4,9223372036854775808,train"], "line 9: camid is '9223372036854775808', expected an integer"),
        ([*_ROWS, "h.jpg,1_0,1,train"], "line 9: pid is '1_0', expected an integer"),
        ([*_ROWS, "h.jpg,4,1,test"], "line 9: subset is 'test', expected one of train, query, gallery"),
        ([*_ROWS, "missing.jpg,4,1,train"], "line 9: .*missing.jpg is not there"),
        ([*_ROWS, '"h.jpg,4,1,train'], "not a CSV file in UTF-8"),
    ],
)
def test_csv_mistakes(tmp_path, rows, message):
    csv_tree(tmp_path, *rows)
    with raises(f"records.csv.*{message}"):
        load_dataset("csv", tmp_path)


def test_csv_missing_or_binary(tmp_path):
    with raises("records.csv: no such file"):
        load_dataset("csv", tmp_path)
    (tmp_path / "records.csv").write_bytes(b"path,pid\xff\n")
    with raises("records.csv: not a CSV file in UTF-8"):
        load_dataset("csv", tmp_path)


# --- registry and protocol -----------------------------------------------------------------------


def test_unknown_name_and_split(tmp_path):
    with raises("unknown dataset 'market', expected one of .*market1501"):
        load_dataset("market", tmp_path)
    with raises("cuhk03 has no split 'manual', expected one of detected, labelled"):
        load_dataset("cuhk03", tmp_path, "manual")
    with raises("market1501 has no split 'train', expected none"):
        load_dataset("market1501", tmp_path, "train")


def test_default_folder_and_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cuhk03_protocol(cuhk03_mat(tmp_path / "datasets" / "cuhk03"))
    assert load_dataset("cuhk03").split == "detected"


def test_registry_names_its_folders():
    for name, entry in DATASETS.items():
        assert entry.data_dir.startswith(f"datasets/{'own' if name == 'csv' else name}")
        assert set(entry.spellings.values()) <= set(entry.splits)


def test_unreadable_folder_is_a_user_error(tmp_path, monkeypatch):
    def refuse(data_dir, split):
        raise PermissionError(13, "Permission denied", str(data_dir))

    entry = DATASETS["dukemtmc"]
    monkeypatch.setitem(DATASETS, "dukemtmc", type(entry)(refuse, entry.data_dir, entry.description))
    with raises(r"dukemtmc: cannot read .* \(Permission denied\)"):
        load_dataset("dukemtmc", tmp_path)


def _dataset(**subsets):
    good = {
        "train": [(1, 1), (2, 1)],
        "query": [(3, 1)],
        "gallery": [(3, 2), (3, 1), (0, 1), (-1, 1)],
    }
    return ReIDDataset(
        name="csv",
        split="",
        root="here",
        **{
            subset: tuple(Record(f"{subset}.jpg", *label) for label in rows)
            for subset, rows in {**good, **subsets}.items()
        },
    )


TESTED = ("query", "gallery", "multi_query")


def test_a_fingerprint_tells_names_labels_and_sizes_but_not_where_the_set_is(tmp_path):
    def fingerprints(folder):
        dataset = load_dataset("csv", folder)
        return dataset.fingerprint("train"), dataset.fingerprint(*TESTED)

    train, test = fingerprints(csv_tree(tmp_path / "set", *_ROWS))
    assert train != test
    root = (tmp_path / "set").rename(tmp_path / "moved")
    assert fingerprints(root) == (train, test)

    swapped = [row.replace("a.jpg,1", "a.jpg,9").replace("b.jpg,2", "b.jpg,1") for row in _ROWS]
    for rows in (swapped, [row.replace("a.jpg,1,1", "a.jpg,1,2") for row in _ROWS], [*_ROWS, "h.jpg,1,1,train"]):
        changed = fingerprints(csv_tree(root, *rows))
        assert changed[0] != train
        assert changed[1] == test
    changed = fingerprints(csv_tree(root, *(row.replace("d.jpg", "h.jpg") for row in _ROWS)))
    assert changed[0] == train
    assert changed[1] != test
    csv_tree(root, *_ROWS)
    (root / "a.jpg").write_bytes(b"larger")
    assert fingerprints(root)[0] != train
    (root / "a.jpg").unlink()
    assert ReIDDataset("csv", "", str(root), (Record(str(root / "a.jpg"), 1, 1),), (), ()).fingerprint("train")


def test_check_protocol_passes_a_good_set():
    dataset = _dataset()
    assert check_protocol(dataset) is dataset


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ({"query": []}, "no query images"),
        ({"gallery": []}, "no gallery images"),
        ({"train": [(1, 1), (1, 2)]}, "one training identity only .pid 1., expected at least 2"),
        ({"train": [(1, 1), (3, 1)]}, "pid 3 is in both train and test .1 such pids."),
        ({"train": [(0, 1), (1, 1), (2, 1)]}, "train image train.jpg has pid 0, expected pids from 1"),
        ({"query": [(-1, 1), (3, 1)]}, "query image query.jpg has pid -1, expected pids from 1"),
        ({"gallery": [(3, 1), (0, 2), (4, 2)]}, "no query has a gallery image .* another camera"),
        ({"multi_query": [(3, 1), (3, 2)]}, "multi_query image multi_query.jpg has pid 3 and camid 2, expected"),
    ],
)
def test_check_protocol(subsets, message):
    with raises(f"csv in here: {message}"):
        check_protocol(_dataset(**subsets))
