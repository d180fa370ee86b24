"""Which uploads are decoded, and into which pixels."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from han_tf.data.depth import Depth
from han_tf.data.reading import decode_image
from han_tf.serve.images import decode_upload, encode
from han_tf.serve.limits import Refusal
from tests.serve.serving import encoded, noise

PIXELS = 1_000_000


def refused(data, max_pixels=PIXELS):
    with pytest.raises(Refusal) as refusal:
        decode_upload(data, max_pixels)
    assert "\n" not in str(refusal.value)
    return refusal.value


def status_of(data):
    try:
        decode_upload(data, PIXELS)
    except Refusal as error:
        return error.status
    return 200


def png_claiming(width, height):
    """A PNG whose header claims a size, with little data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def jpeg_claiming(width, height):
    data = bytearray(encoded(noise(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width, height, lossless):
    data = bytearray(encoded(noise(), "WEBP", lossless=lossless))
    if lossless:
        data[21:25] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)


def extended_webp_claiming(width, height):
    data = bytearray(encoded(noise(), "WEBP", exif=b"Exif\0\0" + b"a" * 10))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def bmp_claiming(width, height):
    data = bytearray(encoded(noise(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(noise()),
        Image.fromarray(noise()[..., 0]),
        Image.fromarray(noise()).convert("P"),
        Image.fromarray(noise()).convert("1"),
        Image.fromarray(np.dstack([noise(), noise(seed=1)[..., :1]])),
        Image.fromarray(noise()[..., :2], "LA"),
        Image.fromarray(noise()[..., 0].astype(np.uint16) * 257),
    ],
    ids=["RGB", "L", "P", "1", "RGBA", "LA", "I;16"],
)
def test_pixels_are_those_that_training_reads(image, tmp_path):
    path = tmp_path / "image.png"
    image.save(path)
    np.testing.assert_array_equal(decode_upload(path.read_bytes(), PIXELS), decode_image(str(path)))


def test_a_white_level_is_that_of_files(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(noise()[..., 0].astype(np.uint16) * 16).save(path)
    plain = np.repeat(noise()[..., :1], 3, axis=2)
    np.testing.assert_array_equal(decode_upload(path.read_bytes(), PIXELS, white_level=4095), plain)
    np.testing.assert_array_equal(decode_image(str(path), Depth(4095)), plain)


@pytest.mark.parametrize(
    ("format", "image"),
    [
        ("JPEG", Image.fromarray(noise())),
        ("JPEG", Image.fromarray(noise()).convert("CMYK")),
        ("WEBP", Image.fromarray(noise())),
        ("BMP", Image.fromarray(noise())),
    ],
    ids=["JPEG", "CMYK", "WEBP", "BMP"],
)
def test_other_formats_too(format, image, tmp_path):
    path = tmp_path / "image"
    image.save(path, format)
    np.testing.assert_array_equal(decode_upload(path.read_bytes(), PIXELS), decode_image(str(path)))


def test_transparent_palette():
    image = Image.fromarray(noise()).convert("P")
    data = encoded(image, transparency=bytes(range(256)))
    assert decode_upload(data, PIXELS).shape == (40, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation, tmp_path):
    """EXIF orientations apply to uploads and to files."""
    upright = noise()
    as_stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    as_stored = np.ascontiguousarray(as_stored)
    data = encoded(as_stored, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_upload(data, PIXELS), upright)
    for name, content in (("a.png", data), ("a.tif", encoded(as_stored, "TIFF", exif=exif))):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(decode_image(str(tmp_path / name)), upright)


def test_invalid_metadata_are_ignored():
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xfe" * 60_000
    assert decode_upload(encoded(noise(), "JPEG", exif=exif), PIXELS).shape == (40, 20, 3)


@pytest.mark.parametrize(
    "claim",
    [
        png_claiming,
        jpeg_claiming,
        bmp_claiming,
        extended_webp_claiming,
        lambda w, h: webp_claiming(w, h, True),
        lambda w, h: webp_claiming(w, h, False),
    ],
    ids=["PNG", "JPEG", "BMP", "WEBP extended", "WEBP lossless", "WEBP lossy"],
)
def test_a_bomb_is_judged_by_its_header(claim, monkeypatch):
    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    error = refused(claim(12_000, 12_000))
    assert error.status == 413
    assert "12000 × 12000 = 144,000,000" in str(error)
    assert refused(claim(16_383, 16_383)).status == 413  # beyond Pillow's own limit


def jpeg_of_scans(scans):
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + (scans - data.count(b"\xff\xda") + 1) * data[last:-2] + data[-2:]


def test_a_jpeg_of_endless_scans_is_not_decoded(monkeypatch):
    assert decode_upload(jpeg_of_scans(100), PIXELS).shape == (40, 20, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    error = refused(jpeg_of_scans(101))
    assert error.status == 422
    assert "more than 100 scans" in str(error)


def test_bytes_that_only_look_like_scans_do_not_count():
    """The bytes may be in a comment, or in the video that phones append to a picture."""
    marks = 200 * b"\xff\xda"
    data = encoded(noise(), "JPEG", comment=marks) + marks
    assert data.count(b"\xff\xda") > 400
    np.testing.assert_array_equal(decode_upload(data, PIXELS), decode_upload(encoded(noise(), "JPEG"), PIXELS))


def test_scans_do_not_hide_in_a_segment_that_decoders_do_not_know():
    data = jpeg_of_scans(300)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    assert "more than 100 scans" in str(refused(data[:second] + b"\xff\x02\xff\xff" + data[second:]))


def test_a_size_at_the_limit_is_decoded():
    data = encoded(noise(40, 20))
    assert decode_upload(data, 800).shape == (40, 20, 3)
    assert refused(data, 799).status == 413


def test_text_that_expands_to_gigabytes_is_refused():
    text = b"Comment\0\0" + zlib.compress(b"a" * 30_000_000, 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = encoded(noise())
    assert refused(data[:33] + chunk + data[33:]).status == 422


@pytest.mark.parametrize(
    "data",
    [
        b"no image at all",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(noise(), "TIFF"),
        encoded(noise(), "GIF"),
        encoded(noise(), "PPM"),
        encoded(noise(64, 64), "ICO"),
        b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 20,
    ],
    ids=["text", "EPS", "SVG", "TIFF", "GIF", "PPM", "ICO", "no WEBP"],
)
def test_nothing_but_the_listed_formats(data):
    error = refused(data)
    assert error.status in (415, 422)
    if error.status == 415:
        assert "JPEG, PNG, WEBP, BMP" in str(error)


def test_empty():
    assert refused(b"").status == 422


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_or_damaged_anywhere(format):
    data = encoded(noise(), format)
    for end in range(1, len(data) - 12, 37):
        assert status_of(data[:end]) in (200, 413, 415, 422)
    assert refused(data[: len(data) // 2]).status == 422
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            damaged[place] = rng.integers(256)
        assert status_of(bytes(damaged)) in (200, 413, 415, 422)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animated_images_are_refused(format):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    error = refused(encoded(frames[0], format, save_all=True, append_images=frames[1:]))
    assert error.status == 422
    assert "3 frames" in str(error)


def test_the_first_picture_of_several_is_used():
    first, second = Image.fromarray(noise()), Image.fromarray(noise(seed=1))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_upload(data, PIXELS), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_encoding_keeps_pixels_and_nothing_else():
    data = encode(noise(), "PNG")
    np.testing.assert_array_equal(decode_upload(data, PIXELS), noise())
    assert Image.open(io.BytesIO(encode(noise(400, 100), "JPEG", 200))).size == (50, 200)
    assert Image.open(io.BytesIO(encode(noise(40, 10), "JPEG", 200))).size == (10, 40)


@pytest.mark.parametrize(("height", "width", "size"), [(4096, 1, (1, 200)), (1, 4096, (200, 1)), (900, 2, (1, 200))])
def test_the_narrowest_picture_can_be_shrunk(height, width, size):
    assert Image.open(io.BytesIO(encode(noise(height, width), "PNG", 200))).size == size


def test_images_decoded_in_threads_leave_the_filters_of_warnings_alone():
    before, data = list(warnings.filters), encoded(noise())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_upload(data, PIXELS), range(2000)))
    assert warnings.filters == before
