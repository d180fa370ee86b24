"""Batches: their people, how often each appears, and that they depend on (seed, epoch) alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han_tf.data.records import Record
from han_tf.data.sampling import PeopleAndImages, ShuffledImages, spread

PROPERTY = settings(max_examples=50, deadline=None)

COUNTS = st.lists(st.integers(1, 9), min_size=2, max_size=12)
"""Images of each person."""


def labels_of(counts, seed=0):
    """Labels that are neither sorted nor 0, 1, 2, …"""
    return np.random.default_rng(seed).permutation(np.repeat(3 * np.arange(len(counts)) + 5, counts))


@st.composite
def samplers(draw):
    labels = labels_of(draw(COUNTS))
    people = draw(st.integers(2, len(set(labels))))
    return labels, PeopleAndImages(labels, people, draw(st.integers(2, 5)))


class TestShuffledImages:
    @PROPERTY
    @given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(0, 300))
    def test_every_image_at_most_once_and_full_batches(self, images, batch_size, seed, epoch):
        sampler = ShuffledImages(images, batch_size)
        batches = sampler.epoch(seed, epoch)
        assert batches.shape == (sampler.batches_per_epoch, min(batch_size, images))
        assert images - batches.size < batches.shape[1]
        assert len(set(batches.ravel())) == batches.size
        assert set(batches.ravel()) <= set(range(images))

    def test_the_order_is_what_it_always_was(self):
        """The order must not change between versions, so that interrupted runs continue with the same batches."""
        expected = np.random.default_rng([7, 2]).permutation(11)[:9].reshape(3, 3)
        np.testing.assert_array_equal(ShuffledImages(11, 3).epoch(7, 2), expected)


class TestPeopleAndImages:
    @PROPERTY
    @given(samplers(), st.integers(0, 2**32 - 1), st.integers(0, 300))
    def test_p_people_with_k_images_in_each_batch(self, case, seed, epoch):
        labels, sampler = case
        batches = sampler.epoch(seed, epoch)
        assert batches.shape == (sampler.batches_per_epoch, sampler.people * sampler.images_per_person)
        sizes = Counter(labels)
        for batch in batches.reshape(-1, sampler.people, sampler.images_per_person):
            pids = labels[batch]
            assert (pids == pids[:, :1]).all()
            assert len(set(pids[:, 0])) == sampler.people
            for pid, images in zip(pids[:, 0], batch):
                assert len(set(images)) == min(sampler.images_per_person, sizes[pid])

    @PROPERTY
    @given(samplers(), st.integers(0, 99))
    def test_an_epoch_is_whole_passes_over_all_people(self, case, seed):
        labels, sampler = case
        batches = sampler.epoch(seed, 0)
        per_pass = len(batches) // sampler.passes
        for start in range(0, len(batches), per_pass):
            firsts = labels[batches[start : start + per_pass, :: sampler.images_per_person]].ravel()
            shown = Counter(firsts)
            assert set(shown) == set(labels)
            # Only the last batch of a pass is filled up, with people of earlier ones.
            assert max(shown.values()) <= 2
            assert sum(shown.values()) - len(shown) == -len(shown) % sampler.people

    @PROPERTY
    @given(samplers())
    def test_passes_bring_the_epoch_nearest_to_the_training_set(self, case):
        labels, sampler = case
        images_of_pass = len(set(labels)) * sampler.images_per_person
        distances = {passes: abs(passes * images_of_pass - len(labels)) for passes in range(1, 60)}
        assert distances[sampler.passes] == min(distances.values())

    @PROPERTY
    @given(samplers(), st.integers(0, 99))
    def test_a_persons_images_are_shown_evenly(self, case, seed):
        _, sampler = case
        shown = Counter(sampler.epoch(seed, 0).ravel())
        wanted = sampler.images_per_person
        for images in sampler.images_of:
            turns = sum(shown[image] for image in images) // wanted
            if len(images) >= wanted:
                rounds, left = divmod(turns, len(images) // wanted)
                assert all(shown[image] <= rounds + (left > 0) for image in images)
            else:
                assert all(shown[image] >= turns for image in images)

    def test_all_images_are_shown_in_time(self):
        labels = labels_of([7, 2, 5, 13])
        sampler = PeopleAndImages(labels, 2, 4)
        seen = {image for epoch in range(12) for image in sampler.epoch(1, epoch).ravel()}
        assert seen == set(range(len(labels)))

    @PROPERTY
    @given(samplers(), st.integers(0, 99), st.integers(0, 99))
    def test_the_same_seed_and_epoch_give_the_same_batches(self, case, seed, epoch):
        labels, sampler = case
        twin = PeopleAndImages(labels, sampler.people, sampler.images_per_person)
        np.testing.assert_array_equal(sampler.epoch(seed, epoch), twin.epoch(seed, epoch))

    def test_the_order_is_what_it_always_was(self):
        labels = np.array([3, 1, 2, 0, 4])
        expected = np.argsort(labels)[np.random.default_rng([7, 2]).permutation(5)]
        np.testing.assert_array_equal(PeopleAndImages(labels, 5, 1).epoch(7, 2), expected[None])
        sampler = PeopleAndImages(labels_of([50, 40]), 2, 4)
        assert all((np.diff(images) > 0).all() for images in sampler.images_of)

    def test_other_seeds_and_epochs_give_others(self):
        sampler = PeopleAndImages(labels_of([5] * 20), 4, 3)
        epochs = [sampler.epoch(seed, epoch).tolist() for seed in (3, 4) for epoch in (0, 1, 3, 4)]
        assert len({str(epoch) for epoch in epochs}) == len(epochs)

    @pytest.mark.parametrize("images_per_person", [2, 4])
    def test_people_and_images_are_drawn_alike(self, images_per_person):
        """Each of 10 people is drawn equally often to fill up batches, and so is each of a person's 3 images."""
        labels = labels_of([3] * 10)
        sampler = PeopleAndImages(labels, 4, images_per_person)
        shown = Counter(image for epoch in range(600) for image in sampler.epoch(0, epoch).ravel())
        counts = np.array(list(shown.values()))
        assert len(counts) == 30
        # The standard deviation of a Poisson variable is the square root of its mean; these counts vary less.
        mean = counts.mean()
        assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)

    def test_fewer_people_than_a_batch_holds(self):
        with pytest.raises(ValueError, match="5 people per batch, but only 3 in all"):
            PeopleAndImages(labels_of([4, 4, 4]), 5, 2)


def test_spread_takes_both_ends_and_all_of_few():
    records = [Record(str(n), n, 1) for n in range(11)]
    assert [record.pid for record in spread(records, 3)] == [0, 5, 10]
    assert spread(records, 100) == tuple(records)
    assert [record.pid for record in spread(records, 1)] == [0]
