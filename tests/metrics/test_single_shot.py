"""Results for galleries with one image per person equal plain loops and, on average, those over all such galleries."""

import itertools

import numpy as np
import pytest

from han_tf.common.errors import UserError
from han_tf.metrics import FeatureDistances, itself, junk, single_gallery_shot, single_shot
from tests.metrics import metrics_reference as reference


def images(seed, n_query=7, n_gallery=40, people=6, whole=False):
    """Features, some of them equal, and labels with junk and distractors."""
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 3, (n_query + n_gallery, 3)) if whole else rng.random((n_query + n_gallery, 3))
    pids, camids = rng.integers(-1, people, n_query + n_gallery), rng.integers(0, 3, n_query + n_gallery)
    labels = (pids[:n_query], pids[n_query:], camids[:n_query], camids[n_query:])
    return features[:n_query].astype(np.float32), features[n_query:].astype(np.float32), labels


def left_in(labels, query):
    """The gallery images of each person that the protocol leaves in, in gallery order."""
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    people = {}
    for image, (pid, camid) in enumerate(zip(gallery_pids.tolist(), gallery_camids.tolist())):
        if not reference.standard(query_pids[query], query_camids[query], pid, camid):
            people.setdefault(pid, []).append(image)
    return {pid: people[pid] for pid in sorted(people)}


def place(distances, query, gallery, match):
    return 1 + sum((distances[query][image], image) < (distances[query][match], match) for image in gallery)


def slow(distances, labels, draws, seed):
    """Places of the matches of all queries and draws, computed one after the other."""
    places = []
    for query, pid in enumerate(labels[0].tolist()):
        people = left_in(labels, query)
        if pid == -1 or pid not in people:
            continue
        for chances in np.random.default_rng([seed, query]).random((draws, len(people))):
            drawn = {who: own[int(chance * len(own))] for (who, own), chance in zip(people.items(), chances)}
            places.append(place(distances, query, drawn.values(), drawn[pid]))
    return places


@pytest.mark.parametrize("whole", [False, True], ids=["spread", "ties"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(monkeypatch, seed, whole):
    query, gallery, labels = images(seed, whole=whole)
    squared = reference.squared_distances(query, gallery)
    expected = slow(squared, labels, 20, seed)
    # All queries at once, and one at a time.
    options = itertools.product((single_shot.BYTES_PER_VALUE, 2**19), (FeatureDistances(query, gallery), squared))
    for held, distances in options:
        monkeypatch.setattr(single_shot, "BYTES_PER_VALUE", held)
        found = single_gallery_shot(distances, *labels, draws=20, seed=seed, memory_mb=16)
        assert found.cmc.tolist() == [np.mean([at <= k for at in expected]) for k in range(1, 51)]
        assert found.mAP == pytest.approx(np.mean([1 / at for at in expected]), abs=1e-12)
        assert len(expected) == 20 * (len(query) - found.queries_without_match)


def test_draws_in_parts_are_those_of_one_call(monkeypatch):
    query, gallery, labels = images(3)
    expected = single_gallery_shot(FeatureDistances(query, gallery), *labels, draws=50)
    monkeypatch.setattr(single_shot, "BYTES_PER_DRAWN", 2**17)  # a gallery takes most of the memory
    found = single_gallery_shot(FeatureDistances(query, gallery), *labels, draws=50, memory_mb=16)
    assert found.to_dict() == expected.to_dict()


def test_memory_for_many_people():
    rng = np.random.default_rng(0)
    query, gallery = (rng.random((n, 2), np.float32) for n in (4, 20_000))
    labels = np.arange(4), np.arange(20_000), np.zeros(4, int), np.ones(20_000, int)
    with reference.memory_below(16 * 2**20):
        found = single_gallery_shot(FeatureDistances(query, gallery), *labels, draws=200, memory_mb=16)
    assert found.draws == 200


def test_the_mean_nears_that_of_all_galleries():
    query, gallery, labels = images(5, n_query=5, n_gallery=16, people=4)
    distances = reference.squared_distances(query, gallery)
    means = []
    for number, pid in enumerate(labels[0].tolist()):
        people = left_in(labels, number)
        if pid != -1 and pid in people:
            match = list(people).index(pid)
            all_drawn = itertools.product(*people.values())
            means.append(np.mean([place(distances, number, drawn, drawn[match]) == 1 for drawn in all_drawn]))
    assert 0 < np.mean(means) < 1
    found = single_gallery_shot(distances, *labels, draws=20_000)
    assert found.cmc[0] == pytest.approx(np.mean(means), abs=0.01)


def test_one_draw_and_one_rank():
    query, gallery, labels = images(7)
    distances = reference.squared_distances(query, gallery)
    found = single_gallery_shot(distances, *labels, draws=1, max_rank=1)
    assert found.cmc.tolist() == [np.mean([at == 1 for at in slow(distances, labels, 1, 0)])]


def test_memory_stays_within_the_budget():
    n_query, n_gallery = 400, 20_000
    rng = np.random.default_rng(0)
    source = FeatureDistances(*(rng.standard_normal((n, 4), np.float32) for n in (n_query, n_gallery)))
    labels = [rng.integers(0, most, n) for most in (2000, 4) for n in (n_query, n_gallery)]
    assert n_query * n_gallery * 4 > 16 * 2**20
    with reference.memory_below(16 * 2**20):
        single_gallery_shot(source, *labels, draws=1, memory_mb=16)


def test_excluders_and_what_is_told():
    query, _, labels = images(6, n_query=40)
    pids, camids = labels[0], labels[2]
    distances = reference.squared_distances(query, query)
    excluders = (junk(pids), itself())
    found = single_gallery_shot(distances, pids, pids, camids, camids, excluders=excluders, draws=3, seed=9)
    lonely = sum(pid == -1 or (pids == pid).sum() == 1 for pid in pids)
    assert found.queries_without_match == lonely
    told = found.to_dict()
    assert (told["draws"], told["seed"], told["rank-1"]) == (3, 9, found.cmc[0])
    again = single_gallery_shot(distances, pids, pids, camids, camids, excluders=excluders, draws=3, seed=10)
    assert again.cmc.tolist() != found.cmc.tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_rank": 0}, "max_rank is 0"),
        ({"memory_mb": 1}, "memory_mb is 1"),
    ],
)
def test_what_does_not_fit(options, words):
    query, gallery, labels = images(0)
    with pytest.raises(UserError, match=words):
        single_gallery_shot(FeatureDistances(query, gallery), *labels, **options)
    with pytest.raises(UserError, match="none of the 7 queries has a match"):
        single_gallery_shot(FeatureDistances(query, gallery), np.full(7, 99), *labels[1:])
