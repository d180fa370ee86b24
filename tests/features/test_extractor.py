"""The feature extractor takes any model and any kind of images."""

import errno
import io
import shutil
import threading
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

import han_tf
from han_tf.common.errors import Note, UserError
from han_tf.data import Record, reading
from han_tf.features.extractor import FeatureExtractor
from han_tf.features.keras import feature_set
from han_tf.runs.folder import load_run

SIZE = (48, 32)


@pytest.fixture(scope="module")
def extractor(tiny_run):
    return han_tf.FeatureExtractor(tiny_run, batch_size=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Seven images of different sizes."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number in range(7):
        paths.append(folder / f"{number}.png")
        shape = (30 + 11 * number, 20 + 5 * number, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def expected(tiny_run, files):
    records = [Record(str(path), 1, 1) for path in files]
    return feature_set(load_run(tiny_run).model, records, progress=None).features


def pixels(files):
    return [np.asarray(Image.open(path)) for path in files]


def test_it_says_what_it_is(extractor):
    assert (extractor.format, extractor.precision) == ("keras", "float32")
    assert (extractor.feature_dim, extractor.input_size) == (1024, SIZE)
    assert extractor.branch_names == ("global", "local")
    assert len(extractor.checksum) == 64
    card = extractor.card
    assert (card.model, card.dataset, card.schedule["epochs"]) == ("han_small", "market1501", 2)
    assert "research use only" in card.licence
    assert 0 <= card.accuracy["mAP"] <= 1
    assert card.flops > 1e6


def test_paths_records_and_arrays_give_the_same(extractor, files, expected):
    for images in (files, [str(path) for path in files], pixels(files)):
        features = extractor(images)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected, atol=1e-5)
    mixed = [files[0], pixels(files)[1], Record(str(files[2]), 1, 1), pixels(files)[3].astype(np.float64)]
    np.testing.assert_allclose(extractor(mixed), expected[:4], atol=1e-5)


def test_an_array_of_images_of_any_size(extractor):
    images = np.random.default_rng(1).integers(0, 256, (5, 60, 40, 3), np.uint8)
    one_by_one = extractor(list(images))
    np.testing.assert_allclose(extractor(images), one_by_one, atol=1e-5)
    np.testing.assert_allclose(extractor(images.astype(np.float32)), one_by_one, atol=1e-5)


@pytest.mark.parametrize("model", ["extractor", "plain_model"])
def test_a_tf_data_pipeline(model, request):
    """Its arrays are read-only; OpenVINO runs the plain model."""
    extractor = request.getfixturevalue(model)
    if model == "plain_model":
        extractor = FeatureExtractor(extractor)
    images = np.random.default_rng(2).integers(0, 256, (5, *SIZE, 3), np.uint8)
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(5))).batch(2)
    expected = extractor.embed(images)
    np.testing.assert_allclose(extractor(batches), expected, rtol=1e-6, atol=1e-5)
    images_alone = batches.map(lambda images, labels: images)
    np.testing.assert_allclose(extractor(images_alone), expected, rtol=1e-6, atol=1e-5)


def test_one_image_is_one_row(extractor, files, expected):
    for image in (files[0], str(files[0]), pixels(files)[0], Image.open(files[0])):
        np.testing.assert_allclose(extractor(image), expected[:1], atol=1e-5)


def test_pictures_of_pil_and_iterators(extractor, files, expected):
    mixed = [Image.open(files[0]), *files[1:]]
    np.testing.assert_allclose(extractor(mixed), expected, atol=1e-5)
    np.testing.assert_allclose(extractor(iter(mixed)), expected, atol=1e-5)
    palette = Image.open(files[0]).convert("RGBA")
    np.testing.assert_allclose(extractor(palette), expected[:1], atol=1e-5)


@pytest.mark.filterwarnings("ignore::han_tf.common.errors.Note")
def test_a_deep_picture_of_pil_stays_as_it_is(extractor, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("I;16", (30, 80), 300).save(tmp_path / "a.png", exif=turned)
    picture = Image.open(tmp_path / "a.png")
    np.testing.assert_array_equal(extractor(picture), extractor([tmp_path / "a.png"]))
    assert picture.size == (30, 80)


@pytest.mark.filterwarnings("ignore::han_tf.common.errors.Note")
def test_pictures_of_pil_are_read_as_their_files(tiny_run, tmp_path):
    """Deep grey is scaled, the orientation of a camera applied, and a damaged one is a bad image."""
    rng = np.random.default_rng(4)
    Image.fromarray(rng.integers(0, 4096, (40, 20), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rng.random((40, 20), np.float32)).save(tmp_path / "float.tif")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (20, 40, 3), np.uint8)).save(tmp_path / "turned.png", exif=turned)
    whole = (tmp_path / "turned.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])
    for white_level, names in ((4095, ("deep.png",)), (None, ("float.tif", "turned.png"))):
        extractor = FeatureExtractor(tiny_run, white_level=white_level)
        paths = [tmp_path / name for name in names]
        np.testing.assert_array_equal(extractor([Image.open(path) for path in paths]), extractor(paths))
    image = Image.open(tmp_path / "turned.png")
    extractor(image)
    assert image.size == (40, 20)
    left_out = []
    images = [Image.open(tmp_path / name) for name in ("turned.png", "bad.png")]
    assert len(extractor(images, skip_bad_images=True, bad_images=left_out)) == 1
    assert [bad.path for bad in left_out] == [str(tmp_path / "bad.png")]


@pytest.mark.parametrize(
    "images",
    [lambda path: path, Image.open, lambda path: [Image.open(path)], lambda path: iter([Image.open(path)])],
    ids=["file", "PIL image", "list", "iterator"],
)
def test_how_a_deep_picture_became_8_bits_is_noted(extractor, tmp_path, images):
    Image.fromarray(np.full((40, 20), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.warns(Note) as told:
        extractor(images(tmp_path / "deep.png"))
    became = "65,535 became white, their brightest pixel is 40,000"
    assert [str(warning.message) for warning in told] == [f"1 images of more than 8 bits per pixel: {became}"]


def test_an_iterator_is_one_list(extractor, files, expected, tmp_path, monkeypatch, capsys):
    bad, grey = tmp_path / "bad.jpg", tmp_path / "grey.png"
    bad.write_bytes(b"no image")
    Image.fromarray(np.full((40, 20), 40_000, np.uint16)).save(grey)
    images = [grey, *(files[number % 7] for number in range(47)), bad, grey, bad]
    bars, left_out = [], []

    def progress_bar(*arguments, **options):
        bars.append(tqdm(*arguments, **options, file=io.StringIO()))
        return bars[-1]

    monkeypatch.setattr(reading, "progress_bar", progress_bar)
    with pytest.warns(Note) as told:
        found = extractor(iter(images), skip_bad_images=True, bad_images=left_out, progress="features")
    np.testing.assert_allclose(found[1:-1], expected[np.arange(47) % 7], atol=1e-5)
    np.testing.assert_allclose(found[-1], found[0], atol=1e-5)
    assert [image.path for image in left_out] == [str(bad)] * 2
    assert [bar.n for bar in bars] == [len(images)]
    of_depth, *of_bad = (str(warning.message) for warning in told)
    assert of_depth.startswith("2 images of more than 8 bits per pixel")
    assert of_bad == [f"{bad}: not a readable image ({image.reason}), left out" for image in left_out]
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UserError, match="none of the 2 images could be read"):
        extractor(iter([bad, bad]), skip_bad_images=True)
    assert extractor(iter([])).shape == (0, 1024)


def test_an_iterator_is_not_read_far_ahead(extractor, files):
    taken = []

    def endless():
        while True:
            taken.append(files[len(taken) % 7])
            yield taken[-1]

    stream = iter(extractor.stream(endless()))
    for _ in range(4):
        next(stream)
    stream.close()
    assert len(taken) <= 3 * (4 + reading._AHEAD)


def test_a_closed_extractor_says_so(tiny_run, files):
    with han_tf.FeatureExtractor(tiny_run) as extractor:
        assert len(extractor(files[0])) == 1
    with pytest.raises(UserError, match="this extractor is closed"):
        extractor(files[0])


def test_nothing_gives_nothing(extractor):
    for nothing in ([], np.empty((0, 10, 10, 3), np.uint8)):
        assert extractor(nothing).shape == (0, 1024)
    assert extractor.embed(np.empty((0, *SIZE, 3), np.uint8)).shape == (0, 1024)


def test_features_come_batch_by_batch(extractor, files, expected):
    stream = extractor.stream(files)
    parts = list(stream)
    assert [kept.tolist() for _, kept in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    np.testing.assert_allclose(np.concatenate([features for features, _ in parts]), expected, atol=1e-5)
    assert stream.bad_images == []


def test_bad_images_are_left_out_or_named(extractor, files, expected, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    images = [files[0], bad, files[1]]
    with pytest.raises(UserError, match=rf"^{bad}: not a readable image"):
        extractor(images)
    left_out = []
    found = extractor(images, skip_bad_images=True, bad_images=left_out)
    np.testing.assert_allclose(found, expected[:2], atol=1e-5)
    assert [image.path for image in left_out] == [str(bad)]
    stream = extractor.stream(images, skip_bad_images=True)
    assert [kept.tolist() for _, kept in stream] == [[0, 2]]
    assert [image.path for image in stream.bad_images] == [str(bad)]


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (b"a.jpg", "expected a sequence of paths, arrays or PIL images"),
        (7, "images are a int, expected paths, arrays or PIL images"),
        ({"a.jpg"}, "images are a set, expected paths, arrays or PIL images"),
        ("missing.jpg", r"missing.jpg: cannot be read \(No such file"),
        ([np.zeros((4, 4), np.uint8)], r"shape \[4, 4\], expected \[height, width, 3\]"),
        (np.zeros((2, 48, 32, 3), np.float32) + 0.5, "not scaled to 1"),
        (["missing.jpg"], r"missing.jpg: cannot be read \(No such file"),
        ([None], "an image is of type NoneType, expected a path, an array or a PIL image"),
        (iter([b"a.jpg"]), "an image is of type bytes, expected a path, an array or a PIL image"),
        ([["a.jpg"]], "an image is of type list, expected a path, an array or a PIL image"),
        (np.arange(3), "an image is of type int64, expected a path, an array or a PIL image"),
        (np.array("a.jpg"), r"shape \[\], expected \[height, width, 3\]"),
        (np.zeros((4, 4), np.uint8), r"shape \[4, 4\], expected \[height, width, 3\]"),
        ([np.zeros((2, 48, 32, 3), np.uint8)], r"shape \[2, 48, 32, 3\], expected \[height, width, 3\]"),
        (np.zeros((1, 2, 48, 32, 3), np.uint8), r"shape \[1, 2, 48, 32, 3\], expected \[height, width, 3\]"),
    ],
)
def test_what_are_no_images_is_one_line(extractor, images, line):
    with pytest.raises(UserError, match=line):
        extractor(images)


@pytest.mark.parametrize("images", [np.zeros((2, 47, 32, 3), np.uint8), np.zeros((2, *SIZE, 3), np.float32)])
def test_embedding_takes_the_networks_size_alone(extractor, images):
    with pytest.raises(UserError, match=r"expected uint8 \[n, 48, 32, 3\]"):
        extractor.embed(images)


def test_several_threads_at_once(extractor):
    images = np.random.default_rng(3).integers(0, 256, (8, *SIZE, 3), np.uint8)
    expected = extractor.embed(images)
    found = [None] * 4

    def embed(number):
        found[number] = extractor.embed(images[2 * number : 2 * number + 2])

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)


def test_the_checksum_is_that_of_the_weights(tiny_run, extractor, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    assert FeatureExtractor(copy).checksum == extractor.checksum
    run = load_run(copy)
    from han_tf.runtimes.keras import network_checksum

    assert network_checksum(run.model, run.config) == extractor.checksum
    classifier = run.model.global_classifier.kernel
    classifier.assign(classifier + 1)
    assert network_checksum(run.model, run.config) == extractor.checksum
    assert network_checksum(run.model, {**run.config, "hard": False}) != extractor.checksum
    for unseen in ({"strides": [1, 2]}, {"region_scale": [0.5, 0.5]}):  # the weights have the same shapes
        other = {**run.config, "model_args": {**run.config["model_args"], **unseen}}
        assert network_checksum(run.model, other) != extractor.checksum
    stem = run.model.stem.conv.kernel
    stem.assign(stem * 1.001)
    assert network_checksum(run.model, run.config) != extractor.checksum


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"neither config.json nor card.json in it, expected the folder"):
        FeatureExtractor(tmp_path)
    with pytest.raises(UserError, match=r"neither config\.json nor card\.json"):
        FeatureExtractor(tmp_path / "missing")
    for path in (None, 7):
        with pytest.raises(UserError, match=r"^path is of type .*, expected the folder of a run or an exported model$"):
            FeatureExtractor(path)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"threads": 0}])
def test_sizes_are_checked(tiny_run, arguments):
    with pytest.raises(UserError, match="expected at least 1"):
        FeatureExtractor(tiny_run, **arguments)


@pytest.mark.parametrize("white_level", [-5, np.inf, np.nan])
def test_white_levels_are_checked(tiny_run, white_level):
    with pytest.raises(UserError, match=f"^white_level is {white_level}, expected a positive number"):
        FeatureExtractor(tiny_run, white_level=white_level)


def test_the_white_level_0_is_that_of_the_format(tiny_run):
    assert FeatureExtractor(tiny_run, white_level=0).white_level is None


def test_the_package_has_nothing_else_on_demand():
    with pytest.raises(AttributeError, match="no attribute 'FeatureExtractors'"):
        _ = han_tf.FeatureExtractors


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error"), OSError(errno.EIO, "I/O error")])
def test_a_pil_image_that_fails_for_another_reason_is_no_bad_image(extractor, monkeypatch, error):
    monkeypatch.setattr(Image.Image, "copy", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=r"PIL image RGB \[8, 16\]: "):
        extractor([Image.new("RGB", (8, 16))] * 2, skip_bad_images=True)
