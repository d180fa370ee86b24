"""Thresholds for wanted false-accept rates, checked on people who were not used to choose them."""

import numpy as np
import pytest

from han_tf.common.errors import UserError
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.archives import FeatureSet
from han_tf.search import create_gallery
from han_tf.search.calibration import accepted_rate, calibrate_pair, calibrate_search, calibrate_search_within
from tests.search.search_helpers import CHECKSUM

LATENT, DIMENSION = 24, 32


def people(first, count, images, seed):
    """Returns images of ``count`` people, pids from ``first``, all drawn from one population."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(0).standard_normal((LATENT, DIMENSION))
    pids = np.repeat(np.arange(first, first + count), images)
    centres = rng.standard_normal((count, LATENT))
    features = (centres[pids - first] + 0.4 * rng.standard_normal((len(pids), LATENT))) @ axes
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    camids = rng.integers(0, 4, len(pids))
    return FeatureSet(features.astype(np.float32), pids, camids, np.full(len(pids), ""))


def gallery_of(path, *sets, labelled=True):
    gallery = create_gallery(path, DIMENSION, CHECKSUM, "flat")
    for images in sets:
        gallery.add(images.features, pids=images.pids if labelled else None, camids=images.camids)
    return gallery


def nearest_distances(queries, others):
    return np.array([np.linalg.norm(others - query, axis=1).min() for query in queries])


@pytest.mark.parametrize("rate", [0.2, 0.05, 0.01])
def test_strangers_are_found_at_the_wanted_rate(tmp_path, rate):
    known, validation, test = (people(1000 * i, 250, 4, i) for i in range(1, 4))
    with gallery_of(tmp_path / "g", known) as gallery:
        chosen = calibrate_search(validation, rate, gallery)
        gallery.set_threshold(chosen.threshold, chosen.facts)
        achieved = np.mean([bool(hits) for hits in gallery.search(test.features, 1)])
        of_validation = np.mean([bool(hits) for hits in gallery.search(validation.features, 1)])
    # The share computed here, the share of the gallery's answers, and the reported rate.
    distances = nearest_distances(validation.features.astype(float), known.features.astype(float))
    assert of_validation == np.mean(distances <= chosen.threshold) == chosen.facts["measured_rate"]
    assert rate - 1 / 1000 < chosen.facts["measured_rate"] <= rate
    # 250 people of 4 alike images: an error of a few standard deviations of 250 trials.
    assert abs(achieved - rate) < 3 * np.sqrt(rate / 250)
    facts = {name: chosen.facts[name] for name in ("kind", "rate", "trials", "people", "gallery_images")}
    assert facts == {"kind": "search", "rate": rate, "trials": 1000, "people": 250, "gallery_images": 1000}


def test_people_of_the_gallery_are_strangers_to_the_rest_of_it(tmp_path):
    known = people(0, 100, 6, 1)
    with gallery_of(tmp_path / "g", known) as gallery:
        chosen = calibrate_search(known, 0.1, gallery)
    expected = [
        nearest_distances(known.features[[i]].astype(float), known.features[known.pids != known.pids[i]])[0]
        for i in range(600)
    ]
    assert np.mean(np.array(expected) <= chosen.threshold) == pytest.approx(0.1)
    within = calibrate_search_within(known, 0.1)
    assert within.threshold == pytest.approx(chosen.threshold, abs=1e-6)
    assert (within.facts["emulated_by"], chosen.facts["emulated_by"]) == ("validation", "gallery")


def test_people_with_more_images_than_the_first_request_brings(tmp_path):
    features = np.zeros((62, DIMENSION), np.float32)
    features[:, 0] = [*np.linspace(0, 0.1, 40), *range(5, 25), 100, 101]
    images = FeatureSet(features, np.repeat([1, 2, 3], [40, 20, 2]), np.zeros(62, int), np.full(62, ""))
    with gallery_of(tmp_path / "g", images) as gallery:
        chosen = calibrate_search(images, 0.5, gallery)
    # The nearest others of person 1's images are 4.9 to 5 away, of person 2's 4.9 to 23.9, of person 3's 76 and 77.
    assert 4.9 < chosen.threshold < 5
    assert chosen.facts["measured_rate"] == 0.5


def test_a_rate_per_pair_is_another_thing(tmp_path):
    known, validation, test = (people(1000 * i, 150, 4, i) for i in range(1, 4))
    chosen = calibrate_pair(validation, 0.01)
    distances = np.linalg.norm(test.features[:, None].astype(float) - test.features[None], axis=2)
    strangers = test.pids[:, None] != test.pids[None]
    assert np.mean(distances[strangers] <= chosen.threshold) == pytest.approx(0.01, rel=0.3)
    assert chosen.facts["kind"] == "pair"
    assert chosen.facts["trials"] == 600 * 596
    with gallery_of(tmp_path / "g", known) as gallery:
        found = np.mean([bool(hits) for hits in gallery.search(test.features, 1, threshold=chosen.threshold)])
        assert found > 0.3  # 1 % of the pairs, most of the searches
        assert calibrate_search(validation, 0.01, gallery).threshold < chosen.threshold


def test_a_search_accepts_the_pairs_that_were_counted():
    positions, pids = np.array([0, 1, 3, 6, 10, 15]), np.array([1, 1, 2, 2, 3, 3])
    images = FeatureSet(positions[:, None].astype(np.float32), pids, np.arange(6), np.full(6, ""))
    chosen = calibrate_pair(images, 0.25)
    distances = np.abs(positions[:, None] - positions)[pids[:, None] != pids]
    assert np.mean(distances <= chosen.threshold) == chosen.facts["measured_rate"] == 0.25


def test_cameras_that_are_not_known_change_no_rate():
    validation = people(0, 60, 4, 1)
    blind = validation._replace(camids=np.full(240, UNKNOWN))
    assert calibrate_pair(blind, 0.05).threshold == calibrate_pair(validation, 0.05).threshold
    assert calibrate_search_within(blind, 0.05).threshold == calibrate_search_within(validation, 0.05).threshold


def test_images_of_nobody_known_take_no_part(tmp_path):
    known, named = people(0, 100, 4, 1), people(1000, 100, 4, 2)
    more = people(2000, 30, 4, 3)
    validation = FeatureSet(*map(np.concatenate, zip(named, more._replace(pids=np.full(120, UNKNOWN)))))
    with gallery_of(tmp_path / "g", known) as gallery:
        assert calibrate_search(validation, 0.05, gallery) == calibrate_search(named, 0.05, gallery)
    assert calibrate_search_within(validation, 0.05) == calibrate_search_within(named, 0.05)
    assert calibrate_pair(validation, 0.05) == calibrate_pair(named, 0.05)


def test_the_share_of_images_that_are_recognised():
    features = np.array([[0.0], [1.0], [3.0], [50.0]])
    images = FeatureSet(features, np.array([1, 1, 1, 2]), np.array([0, 0, 1, 0]), np.full(4, ""))
    assert accepted_rate(images, 2.0) == 2 / 3  # images 0 and 1 have the same camera; person 2 has one image
    assert accepted_rate(images._replace(camids=np.full(4, UNKNOWN)), 1.0) == 2 / 3
    assert accepted_rate(images.where(np.array([0, 3])), 9.0) is None


def test_an_outgrown_threshold_is_noted(tmp_path):
    known = people(0, 50, 4, 1)
    with gallery_of(tmp_path / "g", known) as gallery:
        chosen = calibrate_search(known, 0.1, gallery)
        gallery.set_threshold(chosen.threshold, chosen.facts)
        assert gallery.notes == []
        gallery.add(known.features)
        assert any("200 images, there are 400" in note for note in gallery.notes)


def test_what_cannot_be_calibrated_is_said_in_one_line(tmp_path):
    few = people(0, 10, 3, 1)
    with gallery_of(tmp_path / "g") as empty, gallery_of(tmp_path / "h", few) as gallery:
        for call, message in (
            (lambda: calibrate_search(few, 0.1, empty), "the gallery is empty"),
            (
                lambda: calibrate_search(few, 0.001, gallery),
                "30 searches cannot show a rate of 0.001, expected at least 1,000",
            ),
            (lambda: calibrate_search_within(few, 0.001), "30 searches cannot show"),
            (lambda: calibrate_pair(few, 1e-6), "810 pairs of two people cannot show"),
            (lambda: calibrate_search_within(few._replace(pids=few.pids * 0), 0.1), "show one person"),
            (
                lambda: calibrate_search(few._replace(pids=np.full(30, UNKNOWN)), 0.1, gallery),
                "none of 30 .* has a pid",
            ),
            (lambda: calibrate_search(few, 0.0, gallery), "false-accept rate is 0.0"),
            (lambda: calibrate_search(few, 1.0, gallery), "false-accept rate is 1.0"),
        ):
            with pytest.raises(UserError, match=message) as caught:
                call()
            assert "\n" not in str(caught.value)
    only = people(0, 1, 40, 1)
    with gallery_of(tmp_path / "i", only) as gallery, pytest.raises(UserError, match="only the people of the"):
        calibrate_search(only, 0.1, gallery)


def test_identical_images_of_two_people_are_no_ground_for_a_threshold(tmp_path):
    validation = people(0, 20, 5, 1)
    validation.features[:30] = validation.features[0]  # six people
    gallery = validation._replace(pids=validation.pids + 100)
    with gallery_of(tmp_path / "g", gallery) as opened:
        for call in (
            lambda rate: calibrate_pair(validation, rate),
            lambda rate: calibrate_search_within(validation, rate),
            lambda rate: calibrate_search(validation, rate, opened),
        ):
            with pytest.raises(
                UserError, match=r"more than a share of 0.01 of the .* images of two people with the same"
            ):
                call(0.01)
    chosen = calibrate_search_within(validation, 0.5)
    assert chosen.threshold > 0
    assert chosen.facts["measured_rate"] == 0.5


@pytest.mark.parametrize("rate", [0.29, 0.57, 0.58])
def test_rounding_of_the_rate_costs_no_search(tmp_path, rate):
    assert int(rate * 100) < round(rate * 100)
    with gallery_of(tmp_path / "g", people(1000, 250, 4, 1)) as gallery:
        chosen = calibrate_search(people(0, 50, 2, 2), rate, gallery)
    assert chosen.facts["measured_rate"] == rate
