"""Grey images of more than 8 bits are scaled to 8 bits by their format's range or a given one."""

import struct

import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import Note
from han_tf.data.depth import Depth
from han_tf.data.reading import ImageReader, decode_image

SHAPE = (7, 6)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(path, pixels, bits, kind, data=None):
    """Writes a grey TIFF of one strip, little-endian."""
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes() if data is None else data
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4 if value > 65535 else 3, 1, value) for tag, value in tags.items())
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    return str(path)


def values(most, dtype, least=0):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(least, most, SHAPE).astype(dtype)
    pixels[0, :2] = least, most
    return pixels


def grey(path, depth=None):
    """Returns one channel, after a check that all three are equal."""
    pixels = decode_image(path, depth)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_upper_eight(tmp_path, suffix):
    pixels = values(65_535, np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(grey(str(tmp_path / f"a.{suffix}")), pixels // 256)


def test_a_camera_of_12_bits_in_16_is_told_and_noticed(tmp_path):
    pixels = values(4095, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    depth = Depth(4095)
    np.testing.assert_array_equal(grey(str(tmp_path / "a.png"), depth), pixels // 16)
    (note,) = depth.notes
    assert note == "1 images of more than 8 bits per pixel: 4,095 became white, their brightest pixel is 4,095"
    depth = Depth()
    assert grey(str(tmp_path / "a.png"), depth).max() == 15
    (note,) = depth.notes
    assert "65,535 became white, their brightest pixel is 4,095" in note


def test_beyond_the_white_level_is_white(tmp_path):
    Image.fromarray(np.array([[0, 4095, 4096, 60_000]], np.uint16)).save(tmp_path / "a.png")
    assert grey(str(tmp_path / "a.png"), Depth(4095)).tolist() == [[0, 255, 255, 255]]


def test_a_tiff_of_12_bits_says_so_itself(tmp_path):
    pixels = values(4095, np.uint16)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pixels.reshape(-1, 2).tolist())
    np.testing.assert_array_equal(grey(tiff(tmp_path / "a.tif", pixels, 12, UNSIGNED, packed)), pixels // 16)


@pytest.mark.parametrize(
    ("dtype", "bits", "kind", "most"),
    [(np.uint32, 32, UNSIGNED, 2**32 - 1), (np.int32, 32, SIGNED, 2**31 - 1), (np.int16, 16, SIGNED, 2**15 - 1)],
)
def test_other_integers_are_scaled_by_their_range(tmp_path, dtype, bits, kind, most):
    pixels = values(most, dtype)
    found = grey(tiff(tmp_path / "a.tif", pixels, bits, kind))
    np.testing.assert_array_equal(found, (pixels.astype(object) * 256 // (most + 1)).astype(int))


def test_floats_go_from_0_to_1_or_to_the_white_level(tmp_path):
    pixels = values(1, np.float32)
    path = tiff(tmp_path / "a.tif", pixels, 32, FLOAT)
    np.testing.assert_array_equal(grey(path), np.rint(255 * pixels.astype(float)))
    np.testing.assert_array_equal(grey(path, Depth(2)), np.rint(127.5 * pixels.astype(float)))


@pytest.mark.parametrize(
    ("pixels", "bits", "kind", "words"),
    [
        (values(200, np.uint16), 16, UNSIGNED, "from 0 to 200 of 65535 become black"),
        (values(60_000, np.uint32), 32, UNSIGNED, "from 0 to 60000 of 4.29497e+09 become black"),
        (values(200, np.float32), 32, FLOAT, "from 0 to 200, expected 0 to 1, or a white level"),
        (values(99, np.int32, -1), 32, SIGNED, "from -1 to 99, expected 0 to 2.14748e+09"),
        (np.full(SHAPE, np.nan, np.float32), 32, FLOAT, "not finite"),
    ],
)
def test_what_would_be_lost_is_a_bad_image(tmp_path, pixels, bits, kind, words):
    path = tiff(tmp_path / "a.tif", pixels, bits, kind)
    Image.new("RGB", (8, 12)).save(tmp_path / "b.png")
    reader = ImageReader([path, tmp_path / "b.png"], (12, 8), skip_bad_images=True)
    list(reader)
    (bad,) = reader.bad_images
    assert words in bad.reason
    if "black" in words:
        assert grey(path, Depth(pixels.max())).max() == 255


def test_a_black_picture_is_one(tmp_path):
    assert not grey(tiff(tmp_path / "a.tif", np.zeros(SHAPE, np.uint32), 32, UNSIGNED)).any()


def test_the_reader_says_what_it_scaled(tmp_path):
    for number in range(3):
        Image.fromarray(values(1000 + number, np.uint16)).save(tmp_path / f"{number}.png")
    Image.new("L", (8, 12)).save(tmp_path / "3.png")
    said = "^3 images of more than 8 bits per pixel: 4,095 became white, their brightest pixel is 1,002$"
    with pytest.warns(Note, match=said):
        list(ImageReader([tmp_path / f"{number}.png" for number in range(4)], (12, 8), white_level=4095))
