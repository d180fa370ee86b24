"""han_tf.visualize on a tiny untrained run of a data set of four people."""

import json

import numpy as np
import pytest
from PIL import Image

from han_tf import visualize
from han_tf.common import cli as command_line
from han_tf.data import load_dataset
from han_tf.features.archives import save_features
from han_tf.features.keras import feature_set
from han_tf.models import create_model
from han_tf.runs.checkpoints import Checkpoints
from han_tf.runs.folder import load_run
from han_tf.viz.ranked import QUERY, RIGHT, WRONG, ranked_sheet
from tests.conftest import TINY_ARGS

PEOPLE = (11, 12, 13)
SETTINGS = {
    "dataset": "market1501",
    "split": "",
    "model": "han_small",
    "input_height": 64,
    "input_width": 32,
    "feature_dim": 64,
    "num_classes": 2,
    "model_args": TINY_ARGS,
}


def draw(path, seed):
    """Draws blobs that are the same for the same seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, [4, 2, 3], np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((32, 64)).save(path, quality=95)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns the folder of runs, with one run in it, and the data set's folder.

    Each person looks the same in cameras 1 and 2, and different in camera 3.
    """
    root = tmp_path_factory.mktemp("visualize")
    data = root / "market1501"
    for pid in (1, 2):
        draw(data / "bounding_box_train" / f"{pid:04}_c1s1_000001_01.jpg", pid)
    for pid in PEOPLE:
        draw(data / "query" / f"{pid:04}_c1s1_000001_00.jpg", pid)
        for camid, look in ((1, pid), (2, pid), (3, 100 + pid)):
            draw(data / "bounding_box_test" / f"{pid:04}_c{camid}s1_000001_01.jpg", look)
        draw(data / "bounding_box_test" / f"-1_c2s1_{pid:06}_01.jpg", pid)
        draw(data / "bounding_box_test" / f"0000_c2s1_{pid:06}_01.jpg", 200 + pid)
    run_dir = root / "runs" / "tiny"
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({**SETTINGS, "data_dir": str(data)}))
    model = create_model("han_small", num_classes=2, input_size=(64, 32), feature_dim=64, **TINY_ARGS)
    Checkpoints(run_dir / "checkpoints", 1, model=model).save(1)
    return root / "runs", data


@pytest.fixture(scope="module")
def features(folders):
    """Returns the network, the data set and the features of its queries and its gallery."""
    runs, data = folders
    model = load_run(runs / "tiny").model
    dataset = load_dataset("market1501", data)
    return model, dataset, feature_set(model, dataset.query), feature_set(model, dataset.gallery)


def run(*arguments):
    # Flags keep their values between calls of one process.
    for name in visualize.FLAGS:
        visualize.FLAGS[name].unparse()
    argv = ["visualize", *(str(argument) for argument in arguments)]
    return command_line.run(visualize.main, visualize.FLAGS, visualize.__doc__, argv, positional="IMAGE")


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_ranked_lists_follow_the_protocol(features):
    model, dataset, queries, gallery = features
    lists = visualize.ranked_lists(queries, gallery, topk=50)
    alone = {}
    for record in dataset.query + dataset.gallery:
        with Image.open(record.path) as image:
            alone[record] = model(np.asarray(image)[None]).numpy()[0].astype(np.float64)
    for query, ranked in zip(dataset.query, lists):
        expected = sorted(
            (float(np.linalg.norm(alone[query] - alone[record])), record.camid, record.pid == query.pid)
            for record in dataset.gallery
            if record.pid != -1 and (record.pid, record.camid) != (query.pid, query.camid)
        )
        assert len(ranked.gallery) == len(expected) == 3 * len(PEOPLE) - 1 + len(PEOPLE)
        np.testing.assert_allclose(ranked.distances, [distance for distance, _, _ in expected], atol=1e-4)
        # The look-alike of the other camera is first, at distance 0.
        assert ranked.correct[0]
        assert ranked.camids[0] == 2
        assert ranked.distances[0] < 1e-4
        assert ranked.correct.sum() == 2
        assert ranked.caption[:2] == (f"pid {query.pid}", "camera 1")
        with Image.open(query.path) as image:
            small = np.asarray(Image.fromarray(ranked.query).resize(image.size), int)
            assert np.abs(small - np.asarray(image, int)).mean() < 4


def test_average_precision_is_that_of_the_list(features):
    for ranked in visualize.ranked_lists(*features[2:], 50):
        hits = np.flatnonzero(ranked.correct) + 1
        precision = np.mean([(n + 1) / place for n, place in enumerate(hits)])
        assert ranked.caption[2] == f"AP {precision:.1%}"


def test_newest_run_and_its_queries(folders, tmp_path, capsys):
    runs, data = folders
    (data / "query" / "readme.txt").touch()
    assert run("--runs_dir", runs, "--output", tmp_path, "--ranked", "--k", 4, "--queries", 2) == 0
    told = capsys.readouterr().out
    assert f"written to {tmp_path / 'attention.png'}" in told
    assert "note: market1501: query: 1 files named *.txt: passed over" in told
    with Image.open(tmp_path / "ranked.png") as image:
        sheet = np.asarray(image)
    # The length of the frames' upper edges gives the number of images of each kind.
    wide = visualize.CELL_SIZE[1] + 10
    edges = {name: (sheet == colour).all(axis=-1).sum(axis=1) for name, colour in COLOURS.items()}
    tops = np.flatnonzero(edges["query"] == wide)[[0, -1]]
    for top in tops:
        assert edges["right"][top] // wide + edges["wrong"][top] // wide == 4
        assert edges["right"][top] >= wide


COLOURS = {"query": QUERY, "right": RIGHT, "wrong": WRONG}


def test_saved_features_are_used(folders, features, tmp_path, capsys):
    runs, _ = folders
    _, dataset, queries, gallery = features
    # Neither order nor values need be those that the network gives now.
    noise = np.random.default_rng(0).normal(size=gallery.features.shape).astype(np.float32)
    sizes = np.linalg.norm(gallery.features, axis=1) / np.linalg.norm(noise, axis=1)
    near = gallery._replace(features=gallery.features + 0.4 * sizes[:, None] * noise)
    title = "tiny: 3 of 3 queries"
    own, expected = (
        ranked_sheet(visualize.ranked_lists(queries, found, 5), visualize.CELL_SIZE, title) for found in (gallery, near)
    )
    assert (np.asarray(own) != np.asarray(expected)).any()
    save_features(tmp_path / "query.npz", queries.where(np.arange(len(queries.pids))[::-1]))
    save_features(tmp_path / "gallery.npz", near.where(np.arange(len(near.pids))[::-1]))
    arguments = ("--runs_dir", runs, "--output", tmp_path, "--features", tmp_path, "--ranked", "--k", 5)
    assert run(*arguments) == 0
    with Image.open(tmp_path / "ranked.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), np.asarray(expected))

    save_features(tmp_path / "query.npz", queries.where(np.arange(1, len(queries.pids))))
    assert run(*arguments) == 1
    message = f"error: {tmp_path / 'query.npz'}: no features of {dataset.query[0].path} (1 such images)"
    assert message in capsys.readouterr().err

    people = np.flatnonzero(near.pids != -1)
    save_features(tmp_path / "gallery.npz", near.where(people[2:]))
    assert run(*arguments, "--skip_bad_images") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "no features of" in line]
    assert notes == [
        f"note: {tmp_path / 'query.npz'}: no features of {dataset.query[0].path} (1 such images), left out",
        f"note: {tmp_path / 'gallery.npz'}: no features of {near.paths[people[0]]} (2 such images), left out",
    ]


def test_saved_features_of_another_network_are_refused(folders, features, tmp_path, capsys):
    runs, _ = folders
    _, _, queries, gallery = features
    for name, subset in (("query", queries), ("gallery", gallery)):
        save_features(tmp_path / f"{name}.npz", subset._replace(features=subset.features[:, :48]))
    assert run("--run", runs / "tiny", "--output", tmp_path, "--features", tmp_path, "--ranked") == 1
    expected = f"error: {tmp_path / 'query.npz'}: features have dimension 48, expected 64 as those of {runs / 'tiny'}\n"
    assert capsys.readouterr().err.endswith(expected)
    for query_sign, gallery_sign, named in ((-1, 1, "query"), (1, -1, "gallery")):
        save_features(tmp_path / "query.npz", queries._replace(features=query_sign * queries.features))
        save_features(tmp_path / "gallery.npz", gallery._replace(features=gallery_sign * gallery.features))
        assert run("--run", runs / "tiny", "--output", tmp_path, "--features", tmp_path, "--ranked") == 1
        line = f"{tmp_path / named}.npz: features of another network or of other images than those of"
        assert line in capsys.readouterr().err
    assert not (tmp_path / "ranked.png").exists()


def test_labels_are_those_of_the_data_set(folders, features, tmp_path):
    """Saved ones may have been corrected since."""
    runs, _ = folders
    for name, subset in zip(("query", "gallery"), features[2:]):
        save_features(tmp_path / f"{name}.npz", subset._replace(pids=subset.pids + 1, camids=subset.camids + 1))
    assert run("--run", runs / "tiny", "--output", tmp_path, "--features", tmp_path, "--ranked") == 0
    expected = ranked_sheet(visualize.ranked_lists(*features[2:]), visualize.CELL_SIZE, "tiny: 3 of 3 queries")
    with Image.open(tmp_path / "ranked.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), np.asarray(expected))


def test_pictures_go_to_the_run_by_default(folders):
    runs, _ = folders
    assert run("--run", runs / "tiny", "--queries", 3) == 0
    two_rows, three_rows = runs / "two", runs / "tiny"
    assert run("--run", runs / "tiny", "--queries", 2, "--output", two_rows) == 0
    narrow, wide = size_of(two_rows / "attention.png"), size_of(three_rows / "attention.png")
    assert wide[0] == narrow[0]
    assert wide[1] - narrow[1] > 2 * 64
    assert not (three_rows / "ranked.png").exists()


def test_images_of_ones_own_of_any_size(folders, tmp_path):
    runs, _ = folders
    Image.new("L", (50, 90), 70).save(tmp_path / "grey.png")
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "red.jpg")
    assert run("--run", runs / "tiny", "--output", tmp_path, tmp_path / "grey.png", tmp_path / "red.jpg") == 0
    with Image.open(tmp_path / "attention.png") as image:
        sheet = np.asarray(image)
    for colour in ((70, 70, 70), (200, 30, 30)):
        assert (np.abs(sheet.astype(int) - colour).max(axis=-1) <= 3).sum() >= 4 * 64 * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranked", "some.jpg"], "usage error: --ranked with image some.jpg"),
        (["--k", "5"], "usage error: --k means nothing without --ranked"),
        (["missing.jpg"], "error: missing.jpg: cannot be read (No such file"),
        (["--run", "nowhere"], "error: nowhere: no such folder, expected that of a training run, or one of han_"),
        (["--dataset", "msmt17"], "error: no msmt17 run"),
        (["--split", "detected"], "error: no detected run"),
        (["--dataset", "cuhk03", "--split", "labeled"], "error: no cuhk03 labelled run"),
        (["--queries", "8", "some.jpg"], "usage error: --queries 8 means nothing with image some.jpg"),
        (["--data_dir", "x", "some.jpg"], "usage error: --data_dir x means nothing with image some.jpg"),
        (
            ["--model", "m", "--dataset", "msmt17", "some.jpg"],
            "usage error: --dataset msmt17 means nothing with --model m and image some.jpg",
        ),
        (
            ["--run", "m", "--split", "new", "some.jpg"],
            "usage error: --split new means nothing with --model m and image some.jpg",
        ),
        (["--dataset", "msmt17", "some.jpg"], "error: no msmt17 run"),
        (["--ranked", "--features", "nowhere"], "error: nowhere/query.npz: No such file"),
        (["--data_dir", "nowhere"], "error: nowhere"),
    ],
)
def test_mistakes_are_one_line(folders, tmp_path, capsys, arguments, message):
    runs, _ = folders
    status = run("--runs_dir", runs, "--output", tmp_path, *arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == (2 if error.startswith("usage error: ") else 1)
    assert error.startswith(message)
    assert not list(tmp_path.glob("ranked*"))


@pytest.mark.parametrize("flag", ["--queries", "--k", "--batch_size"])
def test_counts_start_at_one(flag, capsys):
    assert run(flag, 0) == 2
    assert "usage error" in capsys.readouterr().err
