"""Augmentations: against literal implementations in NumPy, and reproducible to the bit."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from han_tf.data.augmentation import AUGMENTATIONS, SEEDED, augment, horizontal_flip, random_erasing, random_translation

SIZE = (40, 16)
"""Height and width in HAN's proportions."""

BATCHES, BATCH = 20, 128
P_VALUE = 1e-3
"""Smallest accepted p-value. Seeds are fixed, so the outcome is always the same; wrong distributions are far below."""


def noise(batch, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), np.uint8)


def seed_of(number):
    return tf.constant([11, number], tf.int64)


def erase_literally(rng, height, width, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3)):
    """Top, left, height and width of one rectangle by Algorithm 1 of Zhong et al., without its first lines."""
    while True:
        erased_area = rng.uniform(*area) * height * width
        ratio = rng.uniform(*aspect)
        erased_height = round(np.sqrt(erased_area * ratio))
        erased_width = round(np.sqrt(erased_area / ratio))
        left, top = rng.integers(0, width), rng.integers(0, height)
        if left + erased_width <= width and top + erased_height <= height:
            return top, left, erased_height, erased_width


def rectangle_of(before, after):
    """Top, left, height and width of the smallest rectangle that holds all changes."""
    rows, columns = np.nonzero((before != after).any(axis=-1))
    top, left = rows.min(), columns.min()
    return top, left, rows.max() + 1 - top, columns.max() + 1 - left


@pytest.fixture(scope="module")
def erased():
    """Black images and the results of erasing with probability 1; on black, nearly every erased pixel changes."""
    images = np.zeros((BATCH, *SIZE, 3), np.uint8)
    function = tf.function(lambda seed: random_erasing(images, seed, probability=1.0))
    return images, np.stack([function(seed_of(number)) for number in range(BATCHES)])


class TestRandomErasing:
    def test_rectangles_are_those_of_algorithm_1(self, erased):
        images, batches = erased
        ours = np.array([rectangle_of(images[0], image) for batch in batches for image in batch])
        rng = np.random.default_rng(1)
        theirs = np.array([erase_literally(rng, *SIZE) for _ in range(len(ours))])
        quantities = {
            "top": lambda r: r[:, 0],
            "left": lambda r: r[:, 1],
            "height": lambda r: r[:, 2],
            "width": lambda r: r[:, 3],
            "area": lambda r: r[:, 2] * r[:, 3],
            "aspect": lambda r: r[:, 2] / r[:, 3],
            "bottom": lambda r: r[:, 0] + r[:, 2],
            "right": lambda r: r[:, 1] + r[:, 3],
        }
        for name, quantity in quantities.items():
            mine, reference = quantity(ours), quantity(theirs)
            assert stats.ks_2samp(mine, reference).pvalue > P_VALUE, name
            assert stats.ttest_ind(mine, reference).pvalue > P_VALUE, name
            assert mine.std() == pytest.approx(reference.std(), rel=0.06), name
        # Area and aspect ratio depend on each other, since only rectangles that fit are kept.
        mine, reference = (np.corrcoef(r[:, 2], r[:, 3])[0, 1] for r in (ours, theirs))
        assert mine == pytest.approx(reference, abs=0.05)

    def test_areas_and_aspect_ratios_are_within_their_bounds(self, erased):
        images, batches = erased
        pixels = SIZE[0] * SIZE[1]
        for image in batches[0]:
            _, _, height, width = rectangle_of(images[0], image)
            # Rounding a side moves it by half a pixel.
            assert (height - 0.5) * (width - 0.5) <= 0.4 * pixels
            assert (height + 0.5) * (width + 0.5) >= 0.02 * pixels
            assert (height - 0.5) / (width + 0.5) <= 1 / 0.3
            assert (height + 0.5) / (width - 0.5) >= 0.3

    def test_the_fill_is_uniform_noise(self, erased):
        images, batches = erased
        values = []
        for image in batches[:3].reshape(-1, *SIZE, 3):
            top, left, height, width = rectangle_of(images[0], image)
            values.append(image[top : top + height, left : left + width].reshape(-1, 3))
        values = np.concatenate(values)
        counts = np.bincount(values.ravel(), minlength=256)
        assert stats.chisquare(counts).pvalue > P_VALUE
        # No channel and no next pixel follows another one.
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.02
        assert abs(np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]) < 0.02

    def test_only_the_rectangle_changes(self):
        images = noise(64)
        after = random_erasing(images, seed_of(0), probability=1.0).numpy()
        assert after.dtype == np.uint8
        for before, image in zip(images, after):
            changed = (before != image).any(axis=-1)
            top, left, height, width = rectangle_of(before, image)
            assert changed[top : top + height, left : left + width].mean() > 0.99
            assert changed.sum() == changed[top : top + height, left : left + width].sum()

    @pytest.mark.parametrize("probability", [0.0, 0.5, 0.8, 1.0])
    def test_as_many_images_as_wanted(self, probability):
        images = noise(4000, (8, 5))
        after = random_erasing(images, seed_of(3), probability=probability, area=(0.2, 0.4)).numpy()
        count = (images != after).any(axis=(1, 2, 3)).sum()
        assert stats.binomtest(int(count), len(images), probability).pvalue > P_VALUE

    def test_the_probability_is_a_half(self):
        images = noise(4000, (8, 5))
        count = (images != random_erasing(images, seed_of(4), area=(0.2, 0.4)).numpy()).any(axis=(1, 2, 3)).sum()
        assert stats.binomtest(int(count), len(images), 0.5).pvalue > P_VALUE

    def test_an_image_that_no_rectangle_fits_stays_whole(self):
        images = noise(16)
        after = random_erasing(images, seed_of(5), probability=1.0, area=(1.5, 2.0))
        np.testing.assert_array_equal(after, images)

    @pytest.mark.parametrize("size", [(33, 37), (32, 32), (7, 9)])
    def test_any_size(self, size):
        images = noise(16, size)
        after = random_erasing(images, seed_of(6), probability=1.0).numpy()
        assert after.shape == images.shape
        assert (after != images).any(axis=(1, 2, 3)).all()


class TestHorizontalFlip:
    def test_an_image_is_mirrored_or_stays(self):
        images = noise(200)
        after = horizontal_flip(images, seed_of(0)).numpy()
        assert after.dtype == np.uint8
        mirrored = np.array([np.array_equal(image, before[:, ::-1]) for image, before in zip(after, images)])
        same = np.array([np.array_equal(image, before) for image, before in zip(after, images)])
        assert (mirrored ^ same).all()
        assert mirrored.any()
        assert same.any()

    @pytest.mark.parametrize("probability", [0.0, 0.5, 0.9, 1.0])
    def test_as_many_images_as_wanted(self, probability):
        images = noise(4000, (2, 3))
        after = horizontal_flip(images, seed_of(1), probability).numpy()
        count = int((images != after).any(axis=(1, 2, 3)).sum())
        assert stats.binomtest(count, len(images), probability).pvalue > P_VALUE


class TestRandomTranslation:
    def enlarged(self, image):
        """Bilinear enlargement by 1/8 in NumPy: 40×16 to 45×18, centres of pixels aligned, edges repeated."""
        for axis in (0, 1):
            size = image.shape[axis]
            larger = size + size // 8
            place = np.clip((np.arange(larger) + 0.5) * size / larger - 0.5, 0, size - 1)
            low = np.minimum(np.floor(place).astype(int), size - 2)
            part = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
            image = image.take(low, axis) * (1 - part) + image.take(low + 1, axis) * part
        return image

    def test_an_image_is_a_crop_of_the_enlarged_one_or_stays(self):
        images = noise(150)
        after = random_translation(images, seed_of(0)).numpy()
        assert after.dtype == np.uint8
        places = []
        for before, image in zip(images, after):
            large = self.enlarged(before.astype(np.float64))
            found = [
                (top, left)
                for top in range(6)
                for left in range(3)
                if np.abs(large[top : top + 40, left : left + 16] - image).max() <= 0.51
            ]
            same = np.array_equal(before, image)
            assert len(found) == (not same)
            places += found
        assert stats.binomtest(len(places), len(images), 0.5).pvalue > P_VALUE
        tops, lefts = np.array(places).T
        assert stats.chisquare(np.bincount(tops, minlength=6)).pvalue > P_VALUE
        assert stats.chisquare(np.bincount(lefts, minlength=3)).pvalue > P_VALUE

    @pytest.mark.parametrize("size", [(160, 64), (33, 37), (7, 9)])
    def test_any_size_in_a_graph(self, size):
        images = noise(8, size)
        after = tf.function(lambda seed: random_translation(images, seed, 1.0))(seed_of(1))
        assert after.shape == images.shape


class TestAugment:
    @pytest.mark.parametrize(
        "names", [("horizontal_flip",), ("random_translation",), ("random_erasing",), tuple(AUGMENTATIONS)]
    )
    def test_seed_epoch_and_batch_decide_and_nothing_else(self, names):
        images = noise(32)
        results = {}
        for seed in (0, 1, 2**32 - 1):
            for epoch in (0, 1):
                for batch in (0, 1):
                    again = [augment(images, names, seed, epoch, tf.constant(batch)).numpy() for _ in range(2)]
                    np.testing.assert_array_equal(*again)
                    results[seed, epoch, batch] = again[0].tobytes()
        assert len(set(results.values())) == len(results)

    def test_every_one_has_a_seed(self):
        assert sorted(SEEDED) == sorted(AUGMENTATIONS)

    def test_none_is_none(self):
        images = noise(4)
        np.testing.assert_array_equal(augment(images, (), 0, 0, tf.constant(0)), images)

    def test_flips_and_erasing_are_independent(self):
        """Each augmentation draws the same with and without the other, and their draws are uncorrelated."""
        images = noise(2000, (10, 4))
        flipped, erased, both = (
            augment(images, names, 5, 6, tf.constant(7)).numpy()
            for names in (("horizontal_flip",), ("random_erasing",), ("horizontal_flip", "random_erasing"))
        )
        kept = (erased == images).all(axis=-1)
        np.testing.assert_array_equal(both[kept], flipped[kept])
        np.testing.assert_array_equal(both[~kept], erased[~kept])
        is_flipped = (flipped != images).any(axis=(1, 2, 3))
        is_erased = ~kept.all(axis=(1, 2))
        table = [[(is_flipped & is_erased).sum(), (is_flipped & ~is_erased).sum()]]
        table.append([(~is_flipped & is_erased).sum(), (~is_flipped & ~is_erased).sum()])
        assert stats.fisher_exact(table)[1] > P_VALUE
