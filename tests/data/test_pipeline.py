"""Batches hold every image once, decoded correctly, in the order given by (seed, epoch)."""

import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import Note, UserError
from han_tf.data import Record, reading
from han_tf.data.augmentation import augment
from han_tf.data.pipeline import load_images, training_batches
from han_tf.data.reading import ImageReader, decode_image, resize
from han_tf.data.sampling import PeopleAndImages, ShuffledImages

SIZE = (24, 12)
RNG_SEED = 5


def write_images(folder, count, size=SIZE):
    """Writes noise of mean 10·pid as PNG, which is lossless; returns the records."""
    rng = np.random.default_rng(RNG_SEED)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for pid in range(1, count + 1):
        pixels = (10 * pid + rng.integers(-3, 4, (*size, 3))).astype(np.uint8)
        records.append(Record(str(folder / f"{pid:03}.png"), pid, 1 + pid % 3))
        Image.fromarray(pixels).save(records[-1].path)
    return records


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def records(tmp_path):
    return write_images(tmp_path / "images", 9)


def read_by_hand(records):
    return np.stack([np.asarray(Image.open(record.path)) for record in records])


def png_bomb():
    """A PNG of a few bytes whose header says 30,000 × 30,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def jpeg_half():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()[: len(stream.getvalue()) // 2]


BAD = {
    "empty": b"",
    "text": b"not an image at all\n",
    "truncated": jpeg_half(),
    "bomb": png_bomb(),
    "header": png_bomb()[:20],
}


@pytest.fixture(params=BAD)
def with_bad(request, records):
    """The records, the fourth of which is a bad file."""
    with open(records[3].path, "wb") as stream:
        stream.write(BAD[request.param])
    return records


class TestDecoding:
    PIXELS = np.random.default_rng(1).integers(0, 256, (7, 5, 4), np.uint8)

    def decoded(self, image, path):
        image.save(path)
        result = decode_image(str(path))
        assert result.dtype == np.uint8
        return result

    def test_rgb(self, tmp_path):
        rgb = self.PIXELS[..., :3]
        np.testing.assert_array_equal(self.decoded(Image.fromarray(rgb), tmp_path / "a.png"), rgb)

    def test_grayscale(self, tmp_path):
        gray = self.PIXELS[..., 0]
        expected = np.repeat(gray[..., None], 3, axis=2)
        np.testing.assert_array_equal(self.decoded(Image.fromarray(gray), tmp_path / "a.png"), expected)

    def test_black_and_white(self, tmp_path):
        mask = self.PIXELS[..., 0] > 127
        expected = np.repeat(255 * mask[..., None].astype(np.uint8), 3, axis=2)
        np.testing.assert_array_equal(self.decoded(Image.fromarray(mask), tmp_path / "a.png"), expected)

    def test_palette(self, tmp_path):
        indices = self.PIXELS[..., 0] % 4
        palette = np.array([[255, 0, 0], [0, 255, 0], [1, 2, 3], [250, 251, 252]], np.uint8)
        image = Image.fromarray(indices, "P")
        image.putpalette(palette.tobytes())
        for name in ("a.png", "a.gif"):
            np.testing.assert_array_equal(self.decoded(image, tmp_path / name), palette[indices])

    def test_transparency_is_dropped(self, tmp_path):
        image = Image.fromarray(self.PIXELS)
        np.testing.assert_array_equal(self.decoded(image, tmp_path / "a.png"), self.PIXELS[..., :3])

    def test_cmyk(self, tmp_path):
        ink = self.PIXELS.astype(float)
        expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
        image = Image.fromarray(self.PIXELS, "CMYK")
        np.testing.assert_allclose(self.decoded(image, tmp_path / "a.tif"), expected, atol=1)
        even = Image.new("CMYK", (16, 16), (200, 30, 90, 40))
        rgb = [(255 - 200) * 215 / 255, (255 - 30) * 215 / 255, (255 - 90) * 215 / 255]
        np.testing.assert_allclose(self.decoded(even, tmp_path / "a.jpg").mean((0, 1)), rgb, atol=3)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_reader_keeps_the_order(records, batch_size):
    batches = list(ImageReader(records, SIZE, batch_size))
    assert [len(images) for images, _ in batches][:-1] == [batch_size] * (len(batches) - 1)
    assert np.concatenate([indices for _, indices in batches]).tolist() == list(range(9))
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), read_by_hand(records))


def test_images_are_those_of_the_files(records):
    loaded = load_images(records, SIZE)
    assert loaded.records == tuple(records)
    np.testing.assert_array_equal(loaded.images, read_by_hand(records))
    smaller = load_images(records, (10, 9)).images
    np.testing.assert_array_equal(smaller[2], resize(read_by_hand(records)[2], (10, 9)))


class TestBadImages:
    @pytest.mark.parametrize("memory_mb", [64, 0])
    def test_they_are_named(self, with_bad, tmp_path, memory_mb):
        with pytest.raises(UserError) as raised:
            load_images(with_bad, SIZE, cache_dir=tmp_path / "cache", memory_mb=memory_mb)
        message = str(raised.value)
        assert message.startswith(f"{with_bad[3].path}: not a readable image (")
        assert "--skip_bad_images" in message
        assert "\n" not in message
        assert not (tmp_path / "cache").exists() or files_below(tmp_path / "cache") == []

    @pytest.mark.parametrize("memory_mb", [64, 0])
    def test_skipping_keeps_labels_aligned(self, with_bad, tmp_path, recwarn, memory_mb):
        for _ in range(2):  # the second time from the cache file, if there is one
            loaded = load_images(
                with_bad, SIZE, cache_dir=tmp_path / "cache", memory_mb=memory_mb, skip_bad_images=True
            )
            assert loaded.records == tuple(with_bad[:3] + with_bad[4:])
            np.testing.assert_array_equal(loaded.images, read_by_hand(loaded.records))
        told = [str(warning.message) for warning in recwarn if warning.category is Note]
        assert told[0].startswith(f"{with_bad[3].path}: not a readable image (")
        if memory_mb == 0:  # Python shows the same warning once
            assert told.pop().startswith(f"1 images are left out, as when {tmp_path}/cache/images-")
        assert len(told) == 1

    def test_a_cache_made_with_skipping_is_no_excuse(self, with_bad, tmp_path):
        load_images(with_bad, SIZE, cache_dir=tmp_path / "cache", memory_mb=0, skip_bad_images=True)
        with pytest.raises(UserError, match="not a readable image"):
            load_images(with_bad, SIZE, cache_dir=tmp_path / "cache", memory_mb=0)

    def test_a_missing_file(self, records, tmp_path):
        os.unlink(records[0].path)
        for memory_mb in (64, 0):
            options = {"cache_dir": tmp_path / "cache", "memory_mb": memory_mb}
            for skip in (False, True):
                with pytest.raises(UserError, match=rf"^{records[0].path}: cannot be read .No such file"):
                    load_images(records, SIZE, skip_bad_images=skip, **options)

    def test_the_reader_tells_which_and_why(self, with_bad):
        reader = ImageReader(with_bad, SIZE, batch_size=2, skip_bad_images=True)
        kept = [index for _, indices in reader for index in indices]
        assert kept == [0, 1, 2, 4, 5, 6, 7, 8]
        assert [bad.path for bad in reader.bad_images] == [with_bad[3].path]
        assert reader.bad_images[0].reason

    @pytest.mark.parametrize("memory_mb", [64, 0])
    def test_none_readable(self, records, tmp_path, memory_mb):
        for record in records:
            open(record.path, "wb").close()
        with pytest.raises(UserError, match="none of the 9 images could be read, expected at least one"):
            load_images(records, SIZE, cache_dir=tmp_path / "cache", memory_mb=memory_mb, skip_bad_images=True)


class TestDiskCache:
    @pytest.fixture
    def cached(self, records, tmp_path):
        return lambda: load_images(records, SIZE, cache_dir=tmp_path / "cache", memory_mb=0)

    @pytest.fixture
    def no_decoding(self, monkeypatch):
        def refuse(path, depth):
            raise OSError(f"decoded {path}")

        return lambda: monkeypatch.setattr(reading, "decode_image", refuse)

    def test_it_holds_what_memory_holds(self, cached, records):
        loaded = cached()
        assert isinstance(loaded.images, np.memmap)
        assert not loaded.images.flags.writeable
        assert loaded.records == tuple(records)
        np.testing.assert_array_equal(loaded.images, load_images(records, SIZE).images)

    def test_small_sets_stay_in_memory(self, records, tmp_path):
        loaded = load_images(records, SIZE, cache_dir=tmp_path / "cache", memory_mb=1)
        assert not isinstance(loaded.images, np.memmap)
        assert not (tmp_path / "cache").exists()

    def test_it_is_used_again(self, cached, no_decoding):
        first = cached()
        no_decoding()
        np.testing.assert_array_equal(cached().images, first.images)

    def test_other_sizes_and_records_have_their_own(self, cached, records, tmp_path):
        cached()
        load_images(records, (10, 6), cache_dir=tmp_path / "cache", memory_mb=0)
        fewer = load_images(records[::-2], SIZE, cache_dir=tmp_path / "cache", memory_mb=0)
        np.testing.assert_array_equal(fewer.images, read_by_hand(records[::-2]))
        assert len(files_below(tmp_path / "cache")) == 6

    def test_a_changed_file_is_read_anew(self, cached, records):
        cached()
        changed = np.full((*SIZE, 3), 200, np.uint8)
        Image.fromarray(changed).save(records[4].path)
        np.testing.assert_array_equal(cached().images[4], changed)

    @pytest.mark.parametrize(
        ("suffix", "content"),
        [(".json", "{"), (".json", "5"), (".json", "[9, 0, 1, 2, 3, 4, 5, 6, 7]"), (".json", '["0"]'), (".npy", "x")],
    )
    def test_a_damaged_cache_is_made_again(self, cached, records, tmp_path, suffix, content):
        cached()
        (path,) = (tmp_path / "cache").glob(f"*{suffix}")
        path.write_text(content)
        np.testing.assert_array_equal(cached().images, read_by_hand(records))
        assert path.read_bytes() != content.encode()

    def test_an_interrupted_filling_leaves_nothing(self, cached, records, tmp_path, monkeypatch):
        whole = ImageReader.__iter__

        def interrupted(reader):
            yield next(whole(reader))
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ImageReader, "__iter__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                cached()
        assert files_below(tmp_path / "cache") == []
        np.testing.assert_array_equal(cached().images, read_by_hand(records))

    def test_a_kill_before_the_index_is_written(self, cached, records, tmp_path):
        cached()
        (index,) = (tmp_path / "cache").glob("*.json")
        index.unlink()
        np.testing.assert_array_equal(cached().images, read_by_hand(records))
        assert index.exists()

    def test_a_full_disk_is_one_line(self, tmp_path):
        """The full disk is simulated by a limit on the size of files."""
        records = write_images(tmp_path / "images", 20)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            with pytest.raises(UserError, match=rf"^cannot write {tmp_path}/cache/images-\w+.npy: File too large$"):
                load_images(records, (80, 64), cache_dir=tmp_path / "cache", memory_mb=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files_below(tmp_path / "cache") == []

    def test_names_that_are_not_utf8(self, tmp_path):
        records = write_images(tmp_path / "images", 2)
        odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
        os.rename(records[1].path, odd)
        loaded = load_images(
            [records[0], records[1]._replace(path=odd)], SIZE, cache_dir=tmp_path / "cache", memory_mb=0
        )
        assert loaded.records[1].path == odd


class TestBatches:
    IMAGES = np.arange(23, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 2, 3), np.uint8)
    LABELS = np.arange(23) * 7 % 5

    @pytest.mark.parametrize("sampler", [ShuffledImages(23, 5), ShuffledImages(23, 40), PeopleAndImages(LABELS, 2, 3)])
    @pytest.mark.parametrize("first_batch", [0, 1])
    def test_batches_are_those_of_the_sampler(self, sampler, first_batch):
        data = training_batches(self.IMAGES, self.LABELS, sampler, 4, 1, first_batch)
        batches, expected = list(data.as_numpy_iterator()), sampler.epoch(4, 1)[first_batch:]
        assert len(batches) == len(expected) == max(0, sampler.batches_per_epoch - first_batch)
        for (images, labels), indices in zip(batches, expected):
            assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
            np.testing.assert_array_equal(images, self.IMAGES[indices])
            np.testing.assert_array_equal(labels, self.LABELS[indices])

    def test_images_may_lie_in_a_file(self, records, tmp_path):
        loaded = load_images(records, SIZE, cache_dir=tmp_path / "cache", memory_mb=0)
        pids = np.array([record.pid for record in loaded.records])
        for images, labels in training_batches(loaded.images, pids, ShuffledImages(9, 3), 0, 0).as_numpy_iterator():
            np.testing.assert_allclose(images.mean((1, 2, 3)), 10 * labels, atol=1)

    def test_nothing_is_tuned(self):
        """With autotuning, an iterator would end only after the tuner's thread, which sleeps for up to a minute."""
        data = training_batches(self.IMAGES, self.LABELS, ShuffledImages(len(self.LABELS), 3), 0, 0)
        assert data.options().autotune.enabled is False

    @pytest.mark.parametrize("first_batch", [0, 1, 3])
    def test_augmentation_is_that_of_the_batch_wherever_the_epoch_is_entered(self, first_batch):
        """Each batch equals the result of :func:`augment` for its number."""
        noise = np.random.default_rng(0).integers(0, 256, (23, 16, 8, 3), np.uint8)
        sampler, names = ShuffledImages(23, 5), ("horizontal_flip", "random_erasing")
        data = training_batches(noise, self.LABELS, sampler, 3, 2, first_batch, names)
        indices = sampler.epoch(3, 2)
        entered = list(data.as_numpy_iterator())
        assert len(entered) == 4 - first_batch
        for number, (images, labels) in enumerate(entered, start=first_batch):
            np.testing.assert_array_equal(images, augment(noise[indices[number]], names, 3, 2, number))
            np.testing.assert_array_equal(labels, self.LABELS[indices[number]])
            assert (images != noise[indices[number]]).any()
