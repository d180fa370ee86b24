"""Images are read and resized without TensorFlow, with the same results as TensorFlow's."""

import errno
import os
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.data import Record, reading
from han_tf.data.reading import ImageReader, checked_pixels, decode_image, resize


@pytest.mark.parametrize("size", [(160, 64), (24, 12), (9, 200), (1, 1), (77, 31)])
@pytest.mark.parametrize("source", [(128, 64), (1, 1), (300, 7), (33, 121), (160, 64), (900, 701)])
def test_resizing_is_tensorflows_bit_by_bit(source, size):
    image = np.random.default_rng(source[0]).integers(0, 256, (*source, 3), np.uint8)
    expected = tf.cast(tf.round(tf.image.resize(image, size, "bilinear")), tf.uint8).numpy()
    np.testing.assert_array_equal(resize(image, size), expected)


def test_batches_and_floats_are_resized_alike():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 10, 3), np.uint8)
    expected = np.stack([resize(image, (17, 13)) for image in images])
    np.testing.assert_array_equal(resize(images, (17, 13)), expected)
    np.testing.assert_array_equal(resize(images.astype(np.float64), (17, 13)), expected)
    np.testing.assert_array_equal(resize(images.astype(np.float32), (20, 10)), images)


def test_a_large_picture_is_never_float_as_a_whole():
    image = np.zeros((2000, 1500, 3), np.uint8)
    tracemalloc.start()
    try:
        resize(image, (160, 64))
        assert tracemalloc.get_traced_memory()[1] < image.nbytes / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("pixels", "line"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \[4, 4\], expected \[height, width, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (np.zeros((4, 4, 3), np.int32), "pixels are int32, expected uint8 or float"),
        (np.full((4, 4, 3), np.nan), r"lie in \[nan, nan\], expected RGB in \[0, 255\]"),
        (np.full((4, 4, 3), -1.0), r"lie in \[-1, -1\]"),
        (np.full((4, 4, 3), 256.0), r"lie in \[256, 256\]"),
        (np.full((4, 4, 3), 0.5), r"lie in \[0.5, 0.5\], expected RGB in \[0, 255\], not scaled to 1"),
    ],
)
def test_what_is_no_image_is_one_line(pixels, line):
    with pytest.raises(UserError, match=line):
        checked_pixels(pixels)


def test_records_paths_and_pixels_can_be_mixed(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (3, 12, 8, 3), np.uint8)
    for number in (0, 1):
        Image.fromarray(images[number]).save(tmp_path / f"{number}.png")
    sources = [Record(str(tmp_path / "0.png"), 1, 1), tmp_path / "1.png", images[2]]
    batches = list(ImageReader(sources, (12, 8), batch_size=2, threads=2))
    assert [kept.tolist() for _, kept in batches] == [[0, 1], [2]]
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in batches]), images)


@pytest.mark.parametrize("format", ["EPS", "PPM", "PDF"])
def test_other_formats_stay_untouched_whatever_they_are_called(tmp_path, format):
    """Pillow could open EPS, by running Ghostscript, and PPM."""
    Image.new("RGB", (8, 12)).save(tmp_path / "a.jpg", format)
    with pytest.raises(UserError, match=r"a.jpg: not a readable image \(cannot identify image file"):
        list(ImageReader([tmp_path / "a.jpg"], (12, 8)))


def test_a_size_beyond_the_limit_is_not_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (8, 12)).save(tmp_path / "a.png")
    monkeypatch.setattr(reading, "MAX_PIXELS", 8 * 12)
    assert decode_image(str(tmp_path / "a.png")).shape == (12, 8, 3)
    monkeypatch.setattr(reading, "MAX_PIXELS", 8 * 12 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="8 × 12 = 96 pixels, expected at most 95"):
        list(ImageReader([tmp_path / "a.png"], (12, 8)))


def raising(monkeypatch, folder, error):
    """Writes two images; decoding the first raises ``error``."""
    for colour, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (8, 12), (colour, 0, 0)).save(folder / name)
    first, whole = (folder / "a.png").read_bytes(), Image.open

    def damaged(stream, **options):
        if stream.getvalue() == first:
            raise error
        return whole(stream, **options)

    monkeypatch.setattr(Image, "open", damaged)


@pytest.mark.parametrize("error", [struct.error, KeyError, EOFError, OSError, OverflowError])
def test_whatever_a_damaged_file_raises_it_is_left_out(tmp_path, monkeypatch, error):
    raising(monkeypatch, tmp_path, error("damaged"))
    reader = ImageReader([tmp_path / "a.png", tmp_path / "b.png"], (12, 8), skip_bad_images=True)
    ((_, kept),) = reader
    assert kept.tolist() == [1]
    assert "damaged" in reader.bad_images[0].reason


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")])
def test_short_memory_says_nothing_about_an_image(tmp_path, monkeypatch, error):
    raising(monkeypatch, tmp_path, error)
    with pytest.raises(UserError, match=r"a.png: not enough memory to decode it$"):
        list(ImageReader([tmp_path / "a.png", tmp_path / "b.png"], (12, 8), skip_bad_images=True))


def test_an_image_is_not_left_unturned_for_short_memory(tmp_path, monkeypatch):
    Image.new("RGB", (8, 12)).save(tmp_path / "a.png")
    monkeypatch.setattr(reading.ImageOps, "exif_transpose", mock.Mock(side_effect=MemoryError))
    with pytest.raises(UserError, match=r"a.png: not enough memory to decode it$"):
        decode_image(tmp_path / "a.png")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOENT, errno.ESTALE])
def test_what_the_system_cannot_read_says_nothing_about_an_image(tmp_path, monkeypatch, number):
    Image.new("RGB", (8, 12)).save(tmp_path / "a.png")

    def failing(path, mode):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(reading, "open", failing, raising=False)
    with pytest.raises(UserError, match=rf"a.png: cannot be read \({os.strerror(number)}\)"):
        list(ImageReader([tmp_path / "a.png"], (12, 8), skip_bad_images=True))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    Image.new("RGB", (8, 12)).save(tmp_path / "c.png")
    reader = ImageReader([tmp_path / f"{name}.png" for name in "abc"], (12, 8), skip_bad_images=True)
    assert [kept.tolist() for _, kept in reader] == [[2]]
    assert [bad.reason for bad in reader.bad_images] == ["not a regular file"] * 2


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    Image.new("RGB", (8, 12)).save(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    monkeypatch.setattr(reading, "MAX_BYTES", size)
    assert decode_image(str(tmp_path / "a.png")).shape == (12, 8, 3)
    monkeypatch.setattr(reading, "MAX_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"{size} bytes, expected at most {size - 1}"):
        decode_image(str(tmp_path / "a.png"))


def test_leaving_early_ends_the_threads(monkeypatch):
    """The pool is still referenced, so that only the reader can end its threads."""
    pools, decoded = [], []

    class Pool(ThreadPoolExecutor):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            pools.append(self)

    monkeypatch.setattr(reading, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(reading, "decode_image", lambda path, _: decoded.append(path) or np.zeros((12, 8, 3), np.uint8))
    reader = iter(ImageReader(["a.png"] * 100, (12, 8), batch_size=4, threads=2))
    next(reader)
    (pool,) = pools
    assert any(thread.is_alive() for thread in pool._threads)
    reader.close()
    assert not any(thread.is_alive() for thread in pool._threads)
    assert len(decoded) <= 4 * reading._AHEAD


def test_no_tensorflow_is_imported():
    code = "import sys, han_tf.data.reading, han_tf.features.extractor; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
