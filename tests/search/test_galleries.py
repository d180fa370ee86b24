"""The interface of galleries: one suite over all engines."""

import math
import threading
from datetime import datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from han_tf.common.errors import UserError
from han_tf.metrics import rerank
from han_tf.search import Entry, Filters, create_gallery, open_gallery, vector_index
from tests.search.search_helpers import CHECKSUM, PlainGallery, clustered, labels, passes

DIMENSION = 16

ENGINES = {
    "flat": ("gallery", {"engine": "flat", "threads": 1}),
    "hnsw": ("gallery", {"engine": "hnsw", "threads": 1}),
    "ivfpq": ("gallery", {"engine": "ivfpq", "threads": 1}),
    "milvus": ("gallery.db", {"engine": "milvus", "index": "FLAT"}),
}


class Case:
    """An engine, a place for a gallery, and how it is made and opened."""

    def __init__(self, name, folder):
        place, self.options = ENGINES[name]
        self.name, self.path = name, folder / place

    def create(self, dimension=DIMENSION, path=None):
        return create_gallery(path or self.path, dimension, CHECKSUM, **self.options)


@pytest.fixture(params=ENGINES)
def case(request, tmp_path, monkeypatch):
    # So that indexes are built for few rows.
    monkeypatch.setattr(vector_index, "BUILT_LEAST", 300)
    monkeypatch.setattr(vector_index, "UNASKED_LEAST", 400)
    return Case(request.param, tmp_path)


@pytest.fixture
def gallery(case):
    with case.create() as gallery:
        yield gallery


def filled(gallery, count=600, seed=0):
    """Adds images; returns the plain gallery with the same ones."""
    plain, features, known = PlainGallery(), clustered(count, DIMENSION, seed), labels(count, seed + 1)
    ids = gallery.add(features, **known)
    plain.add(ids, features, **known)
    return plain


def pairs(hits):
    return [(hit.distance, hit.entry.id) for hit in hits]


def agrees(found, expected):
    assert [id for _, id in found] == [id for _, id in expected]
    np.testing.assert_allclose([d for d, _ in found], [d for d, _ in expected], rtol=0, atol=1e-6)


def test_hits_are_those_of_a_slow_search(gallery):
    plain = filled(gallery)
    queries = clustered(12, DIMENSION, 5)
    for query, hits in zip(queries, gallery.search(queries, 7)):
        agrees(pairs(hits), plain.search(query, 7))


def test_entries_come_back_as_they_were_added(gallery):
    known = {"paths": ["a.jpg", ""], "pids": [3, None], "camids": [None, 0], "times": [None, 1.5e9]}
    features = clustered(2, DIMENSION)
    ids = gallery.add(features, **known)
    assert ids.dtype == np.int64
    assert ids[1] > ids[0]
    expected = [Entry(int(ids[0]), "a.jpg", 3, None, None), Entry(int(ids[1]), "", None, 0, 1.5e9)]
    assert gallery.entries(ids) == expected
    assert gallery.entries(ids[::-1]) == expected[::-1]
    np.testing.assert_array_equal(gallery.features(ids[[1, 0, 1]]), features[[1, 0, 1]])
    (hits,) = gallery.search(features[:1], 1)
    assert hits[0].entry == expected[0]
    assert type(hits[0].distance) is float


def test_nothing_is_known_of_an_image_unless_it_is_said(gallery):
    (id,) = gallery.add(clustered(1, DIMENSION))
    assert gallery.entries([id]) == [Entry(int(id))]


def test_some_entries_and_all_cameras(gallery):
    assert gallery.some(5) == gallery.cameras() == []
    features, known = clustered(600, DIMENSION), labels(600)
    known["camids"][300:] = [None] * 290 + [2**62, -5] * 5
    ids = gallery.add(features, **known)
    for limit, expected in ((1, 1), (50, 50), (600, 600), (1000, 600)):
        entries = gallery.some(limit)
        assert len({entry.id for entry in entries}) == len(entries) == expected
        assert entries == gallery.entries([entry.id for entry in entries])
    halves = [entry.id < ids[300] for entry in gallery.some(50)]
    assert 5 < sum(halves) < 45  # a sample of the whole gallery
    assert gallery.cameras() == [-5, 0, 1, 2, 3, 4, 2**62]
    gallery.delete([id for id, camid in zip(ids, known["camids"]) if camid in (1, -5)])
    assert gallery.cameras() == [0, 2, 3, 4, 2**62]
    assert len(gallery.some(1000)) == len(gallery)


FILTERS = [
    Filters(cameras=(1, 3)),
    Filters(not_cameras=(0, 2)),
    Filters(cameras=(1, 2), not_cameras=(2,)),
    Filters(after=30.0),
    Filters(before=70.0),
    Filters(after=30, before=70),
    Filters(cameras=(4,), after=50.0, before=55.0),
    Filters(cameras=(17,)),
    Filters(after=60.0, before=60.0),
    Filters(cameras=(2,), not_cameras=(2, 3)),
    Filters(pids=(2, 5, 7)),
    Filters(pids=(3,), cameras=(1, 2, 3), after=10.0),
    Filters(pids=(10**9,)),
    Filters(paths=("camera",)),
    Filters(paths=("camera/17.jpg", "camera/3"), before=70.0),
]


def test_filters_are_exact(gallery):
    plain = filled(gallery)
    queries = clustered(4, DIMENSION, 6)
    for filters in FILTERS:
        for query, hits in zip(queries, gallery.search(queries, 9, filters=filters)):
            assert all(passes(hit.entry, filters) for hit in hits), filters
            agrees(pairs(hits), plain.search(query, 9, filters))


def test_entries_page_by_page_and_counted(gallery):
    plain = filled(gallery)
    gone = [image.entry.id for image in plain.images[100:160]]
    gallery.delete(gone)
    plain.delete(gone)
    for filters in [Filters(), *FILTERS]:
        expected = [image.entry for image in plain.images if passes(image.entry, filters)]
        assert gallery.count(filters) == len(expected)
        pages, after = [], -1
        while page := gallery.page(97, after, filters):
            pages.append(page)
            after = page[-1].id
        assert sum(pages, []) == expected  # noqa: RUF017
        assert {len(page) for page in pages[:-1]} <= {97}
    assert len(gallery.page(10_000)) == gallery.count() == len(gallery) == 540
    with pytest.raises(UserError, match="limit is 0"):
        gallery.page(0)


def test_people_are_found_listed_and_deleted_as_they_are_called_now(gallery):
    plain = filled(gallery)
    chosen = [image.entry for image in plain.images if image.entry.pid == 3]
    gallery.relabel([entry.id for entry in chosen], pids=[10**6] * len(chosen))
    renamed = [entry._replace(pid=10**6) for entry in chosen]
    assert gallery.page(1000, filters=Filters(pids=(10**6,))) == renamed
    assert gallery.count(Filters(pids=(3,))) == 0
    query = gallery.features([chosen[0].id])
    assert {hit.entry.id for hit in gallery.search(query, 600, filters=Filters(pids=(10**6,)))[0]} == {
        entry.id for entry in chosen
    }
    assert gallery.delete_where(Filters(pids=(10**6,))) == len(chosen) > 0
    assert len(gallery) == 600 - len(chosen)


def test_labels_are_changed_by_path(gallery):
    paths = ["a.jpg", "b.jpg", "a.jpg", 'it\'s "c".jpg']
    ids = gallery.add(clustered(4, DIMENSION), paths=paths, pids=[1, 2, 3, 4], camids=[5] * 4, times=[0.0] * 4)
    assert gallery.relabel_named([paths[3], "a.jpg"], pids=[8, 9], times=[None, 7.0]) == 3
    assert gallery.entries(ids) == [
        Entry(ids[0], "a.jpg", 9, 5, 7.0),
        Entry(ids[1], "b.jpg", 2, 5, 0.0),
        Entry(ids[2], "a.jpg", 9, 5, 7.0),
        Entry(ids[3], paths[3], 8, 5, None),
    ]
    before = gallery.entries(ids)
    for arguments, message in (
        ({"paths": ["a.jpg", "d.jpg"], "pids": [1, 2]}, "no entry of 'd.jpg'"),
        ({"paths": ["a.jpg", "a.jpg"], "pids": [1, 2]}, "paths hold one twice"),
        ({"paths": ["a.jpg"], "pids": [1, 2]}, "pids has 2 entries, expected 1, one per path"),
        ({"paths": ["a.jpg"], "pids": ["x"]}, "expected integers or None"),
    ):
        with pytest.raises(UserError, match=message):
            gallery.relabel_named(**arguments)
    assert gallery.entries(ids) == before
    assert gallery.relabel_named([]) == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_ends_like_the_slow_gallery(data, tmp_path_factory):
    """Random additions, deletions, builds, compactions and reopenings; distances tie often."""
    engine = data.draw(st.sampled_from(["flat", "hnsw", "ivfpq"]))
    path = tmp_path_factory.mktemp("history") / "gallery"
    plain, gallery = PlainGallery(), create_gallery(path, 3, CHECKSUM, engine, threads=1)
    numbers = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
    optional = st.one_of(st.none(), st.integers(0, 2))
    try:
        for step in data.draw(st.lists(st.sampled_from("aaadrcb"), min_size=1, max_size=8)):
            if step == "a":
                rows = data.draw(st.lists(st.tuples(numbers, optional, optional), min_size=1, max_size=12))
                features = np.array([row[0] for row in rows], np.float32)
                n = len(rows)
                known = {"paths": ["x"] * n, "pids": [None] * n, "camids": [row[1] for row in rows]}
                known["times"] = [None if row[2] is None else float(row[2]) for row in rows]
                plain.add(gallery.add(features, **known), features, **known)
            elif step == "d" and plain.images:
                chosen = data.draw(st.lists(st.sampled_from([image.entry.id for image in plain.images])))
                assert gallery.delete([*chosen, 10**9]) == len(set(chosen))
                plain.delete(chosen)
            elif step == "c":
                gallery.compact()
            elif step == "b":
                gallery.build()
            elif step == "r":
                gallery.close()
                gallery = open_gallery(path)
        assert len(gallery) == len(plain.images)
        cameras = st.lists(st.integers(0, 2), max_size=2).map(tuple)
        limit = st.one_of(st.none(), st.integers(0, 3).map(float))
        after, before = data.draw(limit), data.draw(limit)
        if None not in (after, before):
            after, before = sorted((after, before))
        filters = Filters(data.draw(cameras), data.draw(cameras), after, before)
        query, k = np.array([data.draw(numbers)], np.float32), data.draw(st.integers(1, 9))
        threshold = data.draw(st.sampled_from([0.0, 1.0, 2.0, math.inf]))
        (hits,) = gallery.search(query, k, filters=filters, threshold=threshold)
        agrees(pairs(hits), plain.search(query[0], k, filters, threshold))
    finally:
        gallery.close()


def test_identical_images_tie_in_the_order_of_their_ids(gallery):
    features = clustered(500, DIMENSION)
    features[50:450] = features[0]
    ids = gallery.add(features)
    (hits,) = gallery.search(features[:1], 20)
    assert [hit.entry.id for hit in hits] == [ids[0], *ids[50:69]]
    assert {hit.distance for hit in hits} == {0.0}


def test_deleted_images_are_gone_and_their_ids_are_not_given_again(gallery):
    plain = filled(gallery)
    ids = [image.entry.id for image in plain.images]
    assert gallery.delete([*ids[::2], ids[0], 123_456_789]) == 300
    plain.delete(ids[::2])
    assert len(gallery) == 300
    assert gallery.delete(ids[::2]) == 0
    queries = clustered(6, DIMENSION, 7)
    for query, hits in zip(queries, gallery.search(queries, 8)):
        agrees(pairs(hits), plain.search(query, 8))
    new = gallery.add(clustered(3, DIMENSION))
    assert not set(new.tolist()) & set(ids)
    for ask in (gallery.entries, gallery.features):
        with pytest.raises(UserError, match=f"no entry {ids[0]}"):
            ask([ids[1], ids[0]])


def test_what_passes_a_filter_is_deleted(gallery, monkeypatch):
    monkeypatch.setattr("han_tf.search.gallery.DELETED_AT_ONCE", 50)
    plain = filled(gallery)
    old = Filters(before=40.0)
    left = [image.entry for image in plain.images if not passes(image.entry, old)]
    assert gallery.delete_where(old) == 600 - len(left) > 100
    assert gallery.page(1000) == left
    assert gallery.delete_where(old) == 0
    with pytest.raises(UserError, match="let every entry pass, expected a camera, a person, a time or a path"):
        gallery.delete_where(Filters())
    assert len(gallery) == len(left)


def test_entries_are_chosen_by_file_and_by_folder(gallery):
    paths = ["a/1.jpg", "a/b/2.jpg", "a", "a-1/3.jpg", "a0", "", "/a/4.jpg", 'é"%_/5.jpg', 'é"xy/6.jpg']
    ids = gallery.add(clustered(len(paths), DIMENSION), paths=paths).tolist()
    for chosen, expected in (
        (["a"], [0, 1, 2]),
        (["a/"], [0, 1, 2]),
        (["a/b/2.jpg", "a0"], [1, 4]),
        (["a/b", "a/b/2.jpg"], [1]),
        (["/"], [6]),
        (['é"%_'], [7]),
        (["b"], []),
    ):
        filters = Filters(paths=chosen)
        assert [entry.id for entry in gallery.page(100, filters=filters)] == [ids[i] for i in expected], chosen
        assert gallery.count(filters) == len(expected)
        (hits,) = gallery.search(clustered(1, DIMENSION), 100, filters=filters)
        assert {hit.entry.id for hit in hits} == {ids[i] for i in expected}
    assert gallery.delete_where(Filters(paths=["a"])) == 3
    assert {entry.path for entry in gallery.page(100)} == set(paths[3:])


def test_ids_and_distances_are_those_of_the_hits(gallery):
    filled(gallery, 40)
    queries, few = clustered(3, DIMENSION, 5), Filters(cameras=(1, 2))
    ids, distances = gallery.search_ids(queries, 30, filters=few)
    assert (ids.shape, ids.dtype, distances.shape) == ((3, 30), np.int64, (3, 30))
    for row, hits in enumerate(gallery.search(queries, 30, filters=few)):
        assert 0 < len(hits) < 30
        assert ids[row].tolist() == [hit.entry.id for hit in hits] + [-1] * (30 - len(hits))
        assert distances[row].tolist() == [hit.distance for hit in hits] + [np.inf] * (30 - len(hits))
    assert gallery.search_ids(np.empty((0, DIMENSION)), 5)[0].shape == (0, 5)


def test_compaction_changes_no_answer(gallery):
    plain = filled(gallery)
    ids = [image.entry.id for image in plain.images]
    gallery.delete(ids[:250])
    plain.delete(ids[:250])
    gallery.compact()
    queries = clustered(6, DIMENSION, 8)
    for query, hits in zip(queries, gallery.search(queries, 8)):
        agrees(pairs(hits), plain.search(query, 8))
    np.testing.assert_array_equal(gallery.features(ids[250:]), np.array([i.feature for i in plain.images], np.float32))


def test_what_was_added_is_there_when_it_is_opened_again(case):
    with case.create() as gallery:
        plain = filled(gallery)
        gallery.set_threshold(1.25, {"kind": "search", "rate": 0.01})
        gallery.build()
    with open_gallery(case.path, CHECKSUM) as gallery:
        assert len(gallery) == 600
        assert (gallery.dimension, gallery.checksum, gallery.engine) == (DIMENSION, CHECKSUM, case.name)
        assert gallery.threshold == 1.25
        assert gallery.calibration == {"kind": "search", "rate": 0.01}
        queries = clustered(5, DIMENSION, 9)
        for query, hits in zip(queries, gallery.search(queries, 6)):
            agrees(pairs(hits), plain.search(query, 6, threshold=1.25))
        gallery.set_threshold(None)
        assert gallery.threshold is gallery.calibration is None


def test_a_search_answers_not_in_the_gallery(gallery):
    plain = filled(gallery)
    query = clustered(1, DIMENSION, 11)
    nearest = plain.search(query[0], 3)
    gallery.set_threshold(nearest[1][0] + 1e-6)
    assert [hit.entry.id for hit in gallery.search(query, 10)[0]] == [id for _, id in nearest[:2]]
    assert gallery.search(query, 10, threshold=nearest[0][0] / 2) == [[]]
    assert len(gallery.search(query, 10, threshold=math.inf)[0]) == 10
    assert gallery.search(query + 9) == [[]]
    gallery.set_threshold(math.inf)
    assert gallery.threshold is None


def test_a_hit_at_the_threshold_is_one(gallery):
    gallery.add(np.eye(DIMENSION, dtype=np.float32)[:1] * 2)
    query = np.zeros((1, DIMENSION))
    assert len(gallery.search(query, threshold=2.0)[0]) == 1
    assert gallery.search(query, threshold=np.nextafter(2.0, 0)) == [[]]


def test_an_empty_gallery_finds_nothing(gallery):
    assert len(gallery) == 0
    assert gallery.search(clustered(2, DIMENSION)) == [[], []]
    assert gallery.search(clustered(1, DIMENSION), filters=Filters(cameras=(1,)), rerank=True) == [[]]


def test_more_hits_than_entries(gallery):
    gallery.add(clustered(4, DIMENSION))
    assert [len(hits) for hits in gallery.search(clustered(2, DIMENSION), 50)] == [4, 4]


def test_reranking_is_that_of_the_metrics_over_the_candidates(gallery):
    plain = filled(gallery)
    query = clustered(1, DIMENSION, 12)
    candidates = plain.search(query[0], 100)
    features = {image.entry.id: image.feature.astype(np.float32) for image in plain.images}
    expected = rerank(query, np.array([features[id] for _, id in candidates]), progress=False).dense(slice(0, 1))[0]
    order = np.argsort(expected, kind="stable")[:8]
    (hits,) = gallery.search(query, 8, rerank=True)
    assert [hit.entry.id for hit in hits] == [candidates[i][1] for i in order]
    np.testing.assert_allclose([hit.distance for hit in hits], np.maximum(expected[order], 0), atol=1e-6)
    assert [hit.entry.id for hit in hits] != [id for _, id in candidates[:8]]


def test_reranking_takes_only_what_the_threshold_lets_pass(gallery):
    plain = filled(gallery)
    query = clustered(1, DIMENSION, 12)
    near = plain.search(query[0], 5)
    (hits,) = gallery.search(query, 8, rerank=True, threshold=near[-1][0] + 1e-6)
    assert {hit.entry.id for hit in hits} == {id for _, id in near}


BAD_ADDITIONS = [
    ({"features": np.zeros((2, DIMENSION + 1))}, f"features has dimension {DIMENSION + 1}, expected {DIMENSION}"),
    ({"features": np.zeros(DIMENSION)}, r"features has shape \[16\]"),
    ({"features": np.full((2, DIMENSION), np.nan)}, "features row 0 holds nan"),
    ({"features": np.zeros((0, DIMENSION))}, "features is empty"),
    ({"features": np.full((1, DIMENSION), "a")}, "features has dtype"),
    ({"paths": ["a"]}, "paths has 1 entries, expected 2"),
    ({"paths": ["a.jpg", "caf\udce9.jpg"]}, r"path 'caf\\udce9.jpg' is not UTF-8"),
    ({"pids": [1, 2, 3]}, r"pids has shape \[3\], expected \[2\]"),
    ({"pids": [0.5, 1.0]}, "pids are float64"),
    ({"camids": ["a", "b"]}, "camids are <U1"),
    ({"times": [0.0, math.inf]}, "times hold an infinity"),
    ({"times": ["now", "then"]}, "times are <U4"),
    ({"times": [None, 1.7e12], "paths": ["a", "b"]}, r"times hold 1700000000000.0 \(of b\), expected seconds since"),
    ({"times": [-62135596800.5, 0]}, "times hold -62135596800.5, expected seconds since 1970 UTC, in the years 1 to"),
    ({"pids": [2**63, None]}, "pids hold 9223372036854775808, expected integers from"),
    ({"camids": [-(2**63) - 1, 2**64]}, "camids hold -9223372036854775809, expected integers from"),
    ({"checksum": "f" * 64}, "of the model 0123456789ab…, these are of ffffffffffff…"),
]

BAD_SEARCHES = [
    ({"queries": np.zeros((1, 3))}, "queries has dimension 3"),
    ({"k": 0}, "k is 0, expected at least 1"),
    ({"k": 2.5}, "k is 2.5"),
    ({"threshold": -1.0}, "threshold is -1.0"),
    ({"threshold": math.nan}, "threshold is nan"),
    ({"checksum": "f" * 64}, "expected the same model"),
]


def test_what_does_not_fit_is_refused(gallery):
    for arguments, message in BAD_ADDITIONS:
        with pytest.raises(UserError, match=message) as caught:
            gallery.add(**{"features": np.zeros((2, DIMENSION)), **arguments})
        assert "\n" not in str(caught.value)
    assert len(gallery) == 0
    gallery.add(clustered(3, DIMENSION))
    for arguments, message in BAD_SEARCHES:
        with pytest.raises(UserError, match=message):
            gallery.search(**{"queries": np.zeros((1, DIMENSION)), **arguments})


BAD_FILTERS = [
    ({"not_cameras": ("1",)}, "not_cameras hold '1', expected integers"),
    ({"cameras": "12"}, "cameras is '12', expected a tuple of integers"),
    ({"cameras": 1}, "cameras is 1, expected a tuple of integers"),
    ({"cameras": (True,)}, "cameras hold True, expected integers"),
    ({"cameras": (1.0,)}, "cameras hold 1.0, expected integers"),
    ({"cameras": [[1]]}, r"cameras hold \[1\], expected integers"),
    ({"not_cameras": (2**63,)}, "not_cameras hold 9223372036854775808"),
    ({"cameras": (-(2**63),)}, "cameras hold -9223372036854775808"),  # stands for a camera that is not known
    ({"pids": ("1",)}, "pids hold '1', expected integers"),
    ({"pids": 7}, "pids is 7, expected a tuple of integers"),
    ({"pids": (-(2**63),)}, "pids hold -9223372036854775808"),  # stands for a person that is not known
    ({"paths": "a"}, "paths is 'a', expected several"),
    ({"paths": (5,)}, "paths hold 5, expected text"),
    ({"paths": ("a", "")}, "paths hold '', expected files or folders"),
    ({"after": math.nan}, "after is nan, expected a finite number"),
    ({"before": math.inf}, "before is inf, expected a finite number"),
    ({"after": 10**400}, "after is 1000"),
    ({"after": datetime(2026, 3, 1)}, r"after is datetime.datetime\(2026, 3, 1, 0, 0\), expected a finite number"),
    ({"before": "70"}, "before is '70', expected a finite number"),
    ({"before": False}, "before is False, expected a finite number"),
    ({"before": 253_402_300_800}, "before is 253402300800, expected .* seconds since 1970 UTC, in the years 1 to 9999"),
    ({"after": -62_135_596_801.0}, "after is -62135596801.0, expected"),
    ({"after": 7.0, "before": 5.0}, r"after is 7\.0 and before 5\.0, expected an earlier time after which"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_FILTERS, ids=lambda value: str(value)[:30])
def test_filters_are_checked_before_any_engine_sees_them(arguments, message):
    with pytest.raises(UserError, match=message):
        Filters(**arguments)


def test_filters_are_kept_as_plain_values():
    expected = Filters((1, 3), (0,), 5.0, 7.0)
    assert Filters([1, 3], np.array([0]), np.int64(5), np.float32(7)) == expected
    assert Filters({1: "a", 3: "b"}.keys(), frozenset([0]), 5, 7) == expected
    assert not Filters(cameras=[], not_cameras=np.empty(0, np.int64))


def test_a_time_in_no_calendar_of_an_earlier_version_stays_until_it_is_corrected(gallery):
    features = clustered(2, DIMENSION)
    ids = gallery.add(features, paths=["a", "b"], pids=[1, 2], times=[5.0, None])
    gallery._relabel(ids, np.array([1, 2]), np.array([3, 3]), np.array([1.7e12, -1e12]))
    gallery.relabel(ids, pids=[7, 8])
    gallery.add(features, paths=["a", "b"], camids=[4, 5], replace=True)
    expected = [Entry(int(ids[0]), "a", 7, 4, 1.7e12), Entry(int(ids[1]), "b", 8, 5, -1e12)]
    assert gallery.entries(ids) == expected
    with pytest.raises(UserError, match=r"times hold 2000000000000\.0, expected"):
        gallery.relabel(ids, times=[1.7e9, 2e12])
    assert gallery.entries(ids) == expected
    gallery.relabel(ids[:1], times=[1.7e9])
    assert gallery.entries(ids[:1])[0].time == 1.7e9


def test_white_levels_are_kept_and_compared_with_that_of_queries(case):
    with case.create() as gallery:
        gallery.set_threshold(0.5)
        assert gallery.white_levels == ()
        assert gallery.white_level is None
        assert gallery.white_level_note(None) == gallery.white_level_note(4095.0) == ""
        gallery.note_white_level(4095.0)
        gallery.note_white_level(4095.0)
        assert gallery.threshold == 0.5
        gallery.set_threshold(0.25)
    with open_gallery(case.path) as gallery:
        assert (gallery.threshold, gallery.white_levels, gallery.white_level) == (0.25, (4095.0,), 4095.0)
        assert gallery.white_level_note(4095.0) == ""
        queries = "white in grey queries of more than 8 bits is"
        format, wanted = "that of their format", "in the gallery's images 4,095"
        assert gallery.white_level_note(None) == f"{queries} {format}, {wanted}"
        assert gallery.white_level_note(1023.0) == f"{queries} 1,023, {wanted}"
        gallery.note_white_level(0.0)
        assert (gallery.white_levels, gallery.white_level) == ((0.0, 4095.0), None)
        assert gallery.white_level_note(4095.0) == ""
        wanted = f"in the gallery's images {format} or 4,095"
        assert gallery.white_level_note(None) == f"{queries} {format}, {wanted}"


def test_the_white_level_of_the_format(gallery):
    gallery.note_white_level(0.0)
    assert (gallery.white_levels, gallery.white_level, gallery.white_level_note(None)) == ((0.0,), None, "")
    assert "is 4,095, in the gallery's images that of their format" in gallery.white_level_note(4095.0)


def test_no_queries_have_no_answers(gallery):
    gallery.add(clustered(3, DIMENSION))
    assert gallery.search(np.empty((0, DIMENSION)), 5) == gallery.search([], 5, rerank=True) == []
    with pytest.raises(UserError, match="k is 0"):
        gallery.search([], 0)
    with pytest.raises(UserError, match="queries"):
        gallery.search(np.empty((0, DIMENSION + 1)))


def test_ids_beyond_64_bits_are_named(gallery):
    gallery.add(clustered(3, DIMENSION))
    for ask in (gallery.entries, gallery.features, gallery.delete):
        for id in (2**63, -(2**63) - 1, 2**200):
            with pytest.raises(UserError, match=f"ids hold {id}, expected integers from"):
                ask([-1, id])
        with pytest.raises(UserError, match=f"ids hold {2**63}, expected integers from"):
            ask(np.array([2**63], np.uint64))
    assert len(gallery) == 3


ARGUMENTS = {
    "__len__": {},
    "add": {"features": np.ones((1, DIMENSION)), "paths": ["a"]},
    "build": {},
    "cameras": {},
    "check": {},
    "check_model": {"checksum": None},
    "compact": {},
    "count": {},
    "delete": {"ids": []},
    "delete_where": {"filters": Filters(cameras=(1,))},
    "entries": {"ids": []},
    "features": {"ids": []},
    "info": {},
    "named": {"paths": []},
    "note_source": {"name": "a", "done": 1, "rows": 1},
    "note_white_level": {"level": 1.0},
    "page": {"limit": 1},
    "put": {
        **{"features": np.ones((1, DIMENSION)), "paths": ["a"], "pids": [1], "camids": [1], "times": [1.0]},
        "twins": {},
    },
    "relabel": {"ids": []},
    "relabel_named": {"paths": []},
    "search": {"queries": []},
    "search_ids": {"queries": []},
    "set_threshold": {"threshold": 1.0},
    "some": {"limit": 1},
    "white_level_note": {"used": None},
}
"""Valid arguments of each public method."""


def test_every_method_of_a_closed_gallery_says_so(case):
    with case.create() as gallery:
        gallery.add(clustered(1, DIMENSION))
    methods = {name for name in dir(gallery) if name[0] != "_" and callable(getattr(type(gallery), name, None))}
    assert methods - {"close", "create", "exists"} == ARGUMENTS.keys() - {"__len__"}
    line = f"{gallery.location}: the gallery is closed, expected an open one"
    for name, arguments in ARGUMENTS.items():
        with pytest.raises(UserError) as caught:
            getattr(gallery, name)(**arguments)
        assert str(caught.value) == line, name
    with pytest.raises(UserError, match="the gallery is closed"):
        gallery.notes  # noqa: B018
    assert (gallery.dimension, gallery.threshold) == (DIMENSION, None)
    gallery.close()


RAGGED = [[1.0], [1.0, 2.0]]

WRONG_TYPES = [
    ("add", {"features": ["a.jpg"]}, r"features has shape \[1\], expected \[images, dimension\]"),
    ("add", {"features": [["0.5"] * DIMENSION]}, "features has dtype <U3, expected real numbers"),
    ("add", {"features": RAGGED}, "features cannot be made an array of numbers"),
    ("add", {"paths": "a"}, "paths is 'a', expected several"),
    ("add", {"paths": 5}, "paths is 5, expected several"),
    ("add", {"paths": [5]}, "paths hold 5, expected text"),
    ("add", {"paths": [b"a"]}, "paths hold b'a', expected text"),
    ("add", {"pids": RAGGED}, "pids cannot be made an array of numbers"),
    ("add", {"times": RAGGED}, "times cannot be made an array of numbers"),
    ("add", {"checksum": 5}, "checksum is 5, expected the text that names a model"),
    ("add", {"replace": "no"}, "replace is 'no', expected True or False"),
    ("build", {"engine": np.array(["flat", "hnsw"])}, "engine is array.*, expected"),
    ("build", {"engine": ["flat"]}, r"engine is \['flat'\], expected"),
    ("build", {"anew": "no"}, "anew is 'no', expected True or False"),
    ("build", {"progress": 5}, "progress is 5, expected a function of two numbers"),
    ("check", {"progress": 5}, "progress is 5, expected a function of two numbers"),
    ("compact", {"progress": "no"}, "progress is 'no', expected a function of two numbers"),
    ("put", {"paths": None, "twins": [None]}, r"twins are \[None\], expected entries or None by row"),
    ("put", {"twins": {0: 5}}, r"twins are \{0: 5\}, expected entries or None by row"),
    ("put", {"nobody": "a.jpg"}, "nobody is 'a.jpg', expected paths"),
    ("relabel", {"ids": RAGGED}, "ids cannot be made an array of numbers"),
    ("relabel_named", {"paths": "a"}, "paths is 'a', expected several"),
    ("relabel_named", {"paths": [None]}, "paths hold None, expected text"),
    ("relabel_named", {"paths": ["a"], "pids": 5}, "pids is 5, expected one label per path"),
    ("named", {"paths": "a"}, "paths is 'a', expected several"),
    ("note_source", {"name": 5}, "name is 5, expected that of a source"),
    ("note_source", {"rows": "1"}, "rows is '1', expected a whole number"),
    ("note_white_level", {"level": "1"}, "the white level is '1', expected a finite number"),
    ("note_white_level", {"level": -1.0}, "the white level is -1.0, expected a finite number from 0 up"),
    ("note_white_level", {"level": math.inf}, "the white level is inf, expected a finite number"),
    ("white_level_note", {"used": "1"}, "the white level is '1', expected a finite number"),
    ("delete", {"ids": "5"}, r"ids are <U1 of shape \[\], expected integers"),
    ("delete_where", {"filters": "x"}, r"filters is 'x', expected Filters\(…\)"),
    ("delete_where", {"filters": None}, r"filters is None, expected Filters\(…\)"),
    ("some", {"limit": "1"}, "limit is '1', expected a whole number"),
    ("some", {"limit": 0}, "limit is 0, expected at least 1"),
    ("page", {"limit": None}, "limit is None, expected a whole number"),
    ("page", {"after": "0 or id >= 0"}, "after is '0 or id >= 0', expected a whole number"),
    ("page", {"filters": {"cameras": (1,)}}, r"filters is \{'cameras': \(1,\)\}, expected Filters\(…\)"),
    ("count", {"filters": "x"}, r"filters is 'x', expected Filters\(…\)"),
    ("entries", {"ids": RAGGED}, "ids cannot be made an array of numbers"),
    ("features", {"ids": RAGGED}, "ids cannot be made an array of numbers"),
    ("search", {"queries": ["a.jpg"]}, r"queries has shape \[1\], expected \[images, dimension\]"),
    ("search", {"queries": RAGGED}, "queries cannot be made an array of numbers"),
    ("search", {"k": "5"}, "k is '5', expected a whole number"),
    ("search", {"filters": None}, r"filters is None, expected Filters\(…\)"),
    ("search", {"filters": "x"}, r"filters is 'x', expected Filters\(…\)"),
    ("search", {"rerank": "no"}, "rerank is 'no', expected True or False"),
    ("search", {"rerank": np.array([True, False])}, "rerank is array.*, expected True or False"),
    ("search", {"threshold": "1"}, "threshold is '1', expected a distance"),
    ("search", {"threshold": 1j}, "threshold is 1j, expected a distance"),
    ("search", {"threshold": 10**400}, "threshold is 1000.*, expected a distance"),
    ("search_ids", {"k": 2**70}, f"k is {2**70}, expected less"),
    ("search_ids", {"filters": "x"}, r"filters is 'x', expected Filters\(…\)"),
    ("set_threshold", {"threshold": np.complex64(1)}, "threshold is .*, expected a distance"),
    ("set_threshold", {"calibration": "x"}, "calibration is 'x', expected JSON values by name"),
    ("set_threshold", {"calibration": {"kind": object}}, "calibration cannot be stored .*, expected JSON values"),
    ("set_threshold", {"calibration": {"rate": math.nan}}, "calibration cannot be stored .*, expected JSON values"),
    ("set_threshold", {"calibration": {"gallery_images": "9"}}, "gallery_images of the calibration is '9'"),
    ("check_model", {"checksum": b"x"}, "checksum is b'x', expected the text that names a model"),
]


def test_values_of_wrong_types_are_named_and_change_nothing(case):
    with case.create() as gallery:
        gallery.add(clustered(1, DIMENSION), paths=["a"], pids=[3])
        for name, wrong, message in WRONG_TYPES:
            with pytest.raises(UserError, match=message) as caught:
                list(getattr(gallery, name)(**{**ARGUMENTS[name], **wrong}))
            assert "\n" not in str(caught.value)
    with open_gallery(case.path) as gallery:
        assert [(entry.path, entry.pid) for entry in gallery.page(10)] == [("a", 3)]
        assert (gallery.threshold, gallery.calibration, gallery.white_levels) == (None, None, ())
        assert gallery.notes == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 5}, "path is of type int, expected a folder or an address of Milvus"),
        ({"path": b"g.db"}, "path is of type bytes"),
        ({"collection": 5, "path": "g.db"}, "collection is 5, expected letters"),
        ({"dimension": "8"}, "dimension is '8', expected a whole number"),
        ({"checksum": 5}, "checksum is 5, expected the text"),
        ({"engine": np.array(["flat", "hnsw"])}, "engine is array.*, expected the name of one"),
        ({"engine": np.array(["milvus"] * 2), "path": "g.db"}, "engine is array.*, expected milvus at g.db"),
        ({"index": ["FLAT"], "path": "g.db"}, r"index is \['FLAT'\], expected FLAT, HNSW"),
        ({"rows": "9"}, "rows is '9', expected a whole number"),
        ({"memory_mb": "9"}, "memory_mb is '9', expected a whole number"),
    ],
)
def test_no_gallery_is_made_of_wrong_types(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        create_gallery(**{"path": "g", "dimension": DIMENSION, "checksum": CHECKSUM, **arguments})
    assert not list(tmp_path.iterdir())


def test_a_gallery_made_anew_has_another_identity(case):
    with case.create() as gallery:
        first = gallery.identity
    with open_gallery(case.path) as gallery:
        assert gallery.identity == gallery.info()["identity"] == first != ""
    with case.create(path=case.path.with_name("other" + case.path.suffix)) as gallery:
        assert gallery.identity != first


def test_a_gallery_is_not_made_twice_nor_opened_with_another_model(case):
    case.create().close()
    with pytest.raises(UserError, match="there is a gallery already"):
        case.create()
    with pytest.raises(UserError, match="expected the same model"):
        open_gallery(case.path, "f" * 64)
    with pytest.raises(UserError, match="writable is 'no', expected True or False"):
        open_gallery(case.path, writable="no")


def test_threads_search_while_others_add_and_delete(gallery):
    features = clustered(800, DIMENSION)
    first = gallery.add(features[:450])
    failures, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            try:
                for hits in gallery.search(features[:3], 5):
                    distances = [hit.distance for hit in hits]
                    assert len(hits) == 5
                    assert distances == sorted(distances)
            except BaseException as error:
                failures.append(error)
                return

    def add():
        try:
            for start in range(450, 800, 35):
                gallery.add(features[start : start + 35])
                gallery.delete(first[start - 400 : start - 398])
        except BaseException as error:
            failures.append(error)

    searchers = [threading.Thread(target=search) for _ in range(2)]
    adders = [threading.Thread(target=add) for _ in range(2)]
    for thread in searchers + adders:
        thread.start()
    for thread in adders:
        thread.join()
    stop.set()
    for thread in searchers:
        thread.join()
    assert not failures
    assert len(gallery) == 450 + 2 * 350 - 20
    (hits,) = gallery.search(features[-1:], 2)
    assert [hit.distance for hit in hits] == [0.0, 0.0]
