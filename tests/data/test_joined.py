"""Joined data sets keep people and cameras distinct; the flags give each one's folder."""

import shutil

import pytest

from han_tf.common.errors import UserError
from han_tf.data import Record, ReIDDataset, load_dataset
from han_tf.data.joined import NamedDataset, joined, named_datasets
from han_tf.data.synthetic import SyntheticPedestrians, generate


def made(name, split="", multi_query=True, shift=0):
    """Three people to train on and two to test, with pids and camids that other data sets have, too."""

    def images(subset, pids, camids=(0, 1)):
        return tuple(Record(f"/{name}/{subset}/{p}-{c}", p + shift * (p > 0), c) for p in pids for c in camids)

    query = images("query", (4, 9), (0,))
    return ReIDDataset(
        name=name,
        split=split,
        root=f"/{name}",
        train=images("train", (2, 3, 7)),
        query=query,
        gallery=images("gallery", (-1, 0, 4, 9)),
        multi_query=tuple(record._replace(path=f"{record.path}-more") for record in query) if multi_query else (),
        differences=("too few",),
        notes=("a file left out",),
    )


def test_people_and_cameras_stay_apart():
    parts = made("one"), made("two", "detected", multi_query=False), made("three", shift=100)
    whole = joined(parts)
    assert (whole.name, whole.split, whole.parts) == ("one,two,three", ",detected,", parts)
    assert whole.notes == tuple(f"{name}: a file left out" for name in ("one", "two", "three"))
    assert whole.differences == ("one: too few", "two: too few", "three: too few")
    # Pairs of (data set, pid or camid before) and pid or camid after.
    people, cameras = set(), set()
    for subset in ("train", "query", "gallery", "multi_query"):
        before = [(part.name, record) for part in parts for record in getattr(part, subset)]
        after = getattr(whole, subset)
        assert [record.path for record in after] == [record.path for _, record in before]
        for (name, old), new in zip(before, after):
            cameras.add(((name, old.camid), new.camid))
            if old.pid in (-1, 0):
                assert new.pid == old.pid
            else:
                assert new.pid > 0
                people.add(((name, old.pid), new.pid))
    for pairs, count in ((people, 3 * 5), (cameras, 3 * 2)):
        assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}) == count
    assert whole.train[: len(parts[0].train)] == parts[0].train
    assert len(whole.train_pids()) == 9


def test_a_data_set_by_itself_is_its_only_part():
    dataset = made("one")
    assert dataset.separate() == (dataset,)
    assert joined([dataset, made("two")]).separate()[0] is dataset
    assert joined([dataset, made("two")]).split == ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of two drawn data sets, which stay as they are."""
    root = tmp_path_factory.mktemp("folders")
    for seed, layout in ((1, "market1501"), (2, "csv")):
        people = SyntheticPedestrians(
            seed=seed,
            train_identities=2,
            test_identities=2,
            train_images_per_camera=1,
            images_per_camera=2,
            multi_query_per_camera=0,
            distractors=1,
            junk=1,
        )
        generate(root / layout, people, layout=layout, workers=1)
    return root


def test_names_folders_and_splits_go_together(folders):
    parts = load_dataset("market1501", folders / "market1501"), load_dataset("csv", folders / "csv")
    whole = load_dataset("market1501, csv", f"{folders}/market1501,{folders}/csv")
    assert (whole.name, whole.parts) == ("market1501,csv", parts)
    assert named_datasets("a,b,c", ",x,", "s,,") == [
        NamedDataset("a", "", "s"),
        NamedDataset("b", "x", ""),
        NamedDataset("c", "", ""),
    ]
    assert named_datasets("a,b") == [NamedDataset("a"), NamedDataset("b")]
    assert named_datasets("a", "x,y", "s") == [NamedDataset("a", "x,y", "s")]


def test_fingerprints_tell_of_every_part_and_not_of_its_place(folders, tmp_path):
    def fingerprint(root):
        return load_dataset("market1501,csv", f"{root}/market1501,{root}/csv").fingerprint("train")

    before = fingerprint(folders)
    moved = shutil.copytree(folders, tmp_path / "moved")
    assert fingerprint(moved) == before
    for part, name in ((0, "market1501"), (1, "csv")):
        path = load_dataset("market1501,csv", f"{moved}/market1501,{moved}/csv").parts[part].train[0].path
        assert f"/{name}/" in path
        with open(path, "ab") as stream:
            stream.write(b"\0")
        assert fingerprint(moved) != before
        before = fingerprint(moved)


@pytest.mark.parametrize(
    ("name", "data_dir", "split", "message"),
    [
        ("csv,csv", "a,b", "", "--dataset csv,csv names 'csv' twice, expected every data set once"),
        ("csv,msmt17", "a", "", "--data_dir a has 1 parts, expected 2 separated by commas, one for each of --dataset"),
        ("csv,msmt17", "a,b,c", "", "--data_dir a,b,c has 3 parts, expected 2"),
        ("csv,msmt17", "", "trainval", "--split trainval has 1 parts, expected 2"),
        ("csv,market", "{csv},", "", "unknown dataset 'market', expected one of synthetic, "),
        ("csv,", "{csv},", "", "unknown dataset ''"),
        ("csv,msmt17", "{csv},", ",detected", "msmt17 has no split 'detected'"),
        ("csv,dukemtmc", "{csv},{csv}", "", "/csv: no bounding_box_train"),
    ],
)
def test_what_does_not_go_together(folders, name, data_dir, split, message):
    with pytest.raises(UserError, match=message):
        load_dataset(name, data_dir.format(csv=folders / "csv"), split)
