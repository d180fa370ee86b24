"""The choice of an engine, the recall of the indexes, and their parts."""

import threading
import time

import faiss
import numpy as np
import pytest

from han_tf.common.errors import UserError
from han_tf.search import Filters, create_gallery, faiss_gallery
from han_tf.search.approximate import KINDS, ApproximateIndex, principal_axes
from han_tf.search.choice import choose_engine
from han_tf.search.exact import squared_distances
from han_tf.search.guard import Guard
from tests.search.search_helpers import CHECKSUM, clustered


@pytest.mark.parametrize(
    ("rows", "dimension", "memory_mb", "engine"),
    [
        (0, 1024, 1, "flat"),
        (32_768, 1024, 1, "flat"),
        (32_769, 1024, 1000, "hnsw"),
        (1_000_000, 1024, 1250, "hnsw"),
        (1_000_000, 1024, 1000, "ivfpq"),
        (131_073, 256, 1, "ivfpq"),
        (10**9, 256, 64_000, "ivfpq"),
    ],
)
def test_size_and_memory_choose_the_engine(rows, dimension, memory_mb, engine):
    choice = choose_engine(rows, dimension, memory_mb)
    assert choice.engine == engine
    assert f"{rows:,} vectors of {dimension:,} values" in choice.reason
    assert "\n" not in choice.reason


def test_auto_says_why(tmp_path):
    for rows, engine in ((100, "flat"), (10**6, "hnsw"), (10**8, "ivfpq")):
        options = {"rows": rows, "memory_mb": 2000}
        with create_gallery(tmp_path / engine, 1024, CHECKSUM, **options) as gallery:
            assert gallery.engine == engine
            assert f"{rows:,} vectors" in gallery.info()["reason"]


def test_a_gallery_that_has_outgrown_its_engine_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_gallery, "FLAT_BYTES", 100 * 4 * 16)
    for engine, noted in (("auto", [False, True]), ("flat", [False, False])):
        with create_gallery(tmp_path / engine, 16, CHECKSUM, engine) as gallery:
            found = []
            for count in (100, 1):
                gallery.add(clustered(count, 16))
                found.append(any("101 rows have outgrown flat" in note for note in gallery.notes))
            assert found == noted


@pytest.mark.parametrize("engine", ["hnsw", "ivfpq"])
@pytest.mark.parametrize("latent", [12, 60])
def test_indexes_find_nearly_all_that_are_nearest(tmp_path, engine, latent):
    features = clustered(6000, 64, latent=latent)
    queries = clustered(100, 64, 1, latent=latent, people=300)
    camids = np.arange(6000) % 8
    with create_gallery(tmp_path / "g", 64, CHECKSUM, engine, threads=1) as gallery:
        gallery.add(features, camids=camids)
        gallery.build()
        assert gallery.info()["axes"] == (64 if latent == 60 else 16)
        for filters, passing in (
            (Filters(), camids >= 0),
            (Filters(not_cameras=(3,)), camids != 3),
            (Filters(cameras=(5,)), camids == 5),
        ):
            found = gallery.search(queries, 10, filters=filters)
            recall = 0
            for query, hits in zip(queries, found):
                distances = np.where(passing, squared_distances(query, features, np.arange(6000)), np.inf)
                best = np.argsort(distances, kind="stable")[:10]
                recall += len({hit.entry.id for hit in hits} & set(best.tolist())) / 10
                ids = [hit.entry.id for hit in hits]
                np.testing.assert_allclose([hit.distance for hit in hits], np.sqrt(distances[ids]), rtol=1e-12)
            assert recall / len(queries) > 0.95


@pytest.mark.parametrize(("dimension", "latent"), [(32, 12), (37, 37), (400, 160)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_knows_one_that_it_wrote(tmp_path, kind, dimension, latent):
    features = clustered(900, dimension, latent=latent)
    index = ApproximateIndex(kind, dimension)
    index.train(features, np.arange(900))
    index.add(features[:500])
    index.write(tmp_path / "i")
    assert (index.width < dimension) == (dimension != 37)
    again = ApproximateIndex.read(kind, tmp_path / "i", dimension)
    assert again.rows == 500
    again.add(features[500:])
    again.write(tmp_path / "j")
    last = ApproximateIndex.read(kind, tmp_path / "j", dimension)
    rows = last.propose(features[:50], 30, None, 1)
    assert rows.max() < 900
    assert all(i in found for i, found in enumerate(rows))
    mask = np.zeros(900, bool)
    mask[[7, 650]] = True
    found = last.propose(features[:1], 5, mask, 16)
    assert set(found[found >= 0]) <= {7, 650}
    for other in (dimension - 1, 2 * dimension):
        with pytest.raises(UserError, match=r"dimension|another kind"):
            ApproximateIndex.read(kind, tmp_path / "i", other)


@pytest.mark.parametrize(("kind", "dimension"), [("hnsw", 32), ("ivfpq", 32), ("ivfpq", 37)])
def test_files_of_earlier_versions_are_read(tmp_path, kind, dimension):
    """Their projection has no offset, and the files lack the transform that pads."""
    features = clustered(900, dimension, latent=12)
    axes = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)[2][:16]
    reduced = np.pad(features, ((0, 0), (0, 1))) if dimension == 37 else np.ascontiguousarray(features @ axes.T)
    width = reduced.shape[1]
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit, 32)
    else:
        quantiser = faiss.IndexFlatL2(width)
        index = faiss.IndexIVFPQ(quantiser, width, 5, width // 2, 8)
        index.by_residual = False
    index.train(reduced)
    index.add(reduced)
    if dimension == 32:
        transform = faiss.LinearTransform(dimension, width, False)
        faiss.copy_array_to_vector(axes.ravel(), transform.A)
        transform.is_trained = True
        index = faiss.IndexPreTransform(transform, index)
    faiss.write_index(index, str(tmp_path / "i"))
    read = ApproximateIndex.read(kind, tmp_path / "i", dimension)
    assert (read.rows, read.width) == (900, width)
    read.add(features[:3])
    found = read.propose(features[:50], 30, None, 1)
    assert found.max() >= 900
    assert all(i in rows for i, rows in enumerate(found))


def test_principal_axes_hold_the_variance_and_are_no_more_than_half():
    features = clustered(500, 64, latent=12)
    assert principal_axes(features) == 16
    spread = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    assert spread[:16].sum() > 0.99 * spread.sum()
    assert principal_axes(np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)) == 0
    assert principal_axes(np.zeros((10, 64), np.float32)) == 0


def test_readers_and_writers_exclude_each_other_and_take_turns():
    guard, inside, most, seen = Guard(), [0, 0], [0, 0], []
    stop = threading.Event()

    def enter(kind):
        while not stop.is_set():
            with guard.writing() if kind else guard.reading():
                inside[kind] += 1
                most[kind] = max(most[kind], inside[kind])
                seen.append((kind, tuple(inside)))
                time.sleep(0.001)
                inside[kind] -= 1

    threads = [threading.Thread(target=enter, args=(kind,)) for kind in (0, 0, 0, 1, 1)]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    assert most[1] == 1
    assert all(there[0] == 0 for kind, there in seen if kind)


def test_readers_and_writers_that_wait_take_turns():
    guard, entered = Guard(), []
    leave = {"reading": threading.Semaphore(0), "writing": threading.Semaphore(0)}

    def visit(kind):
        with getattr(guard, kind)():
            entered.append(kind)
            leave[kind].acquire()

    def wait_until(condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, entered
            time.sleep(0.001)

    threads = []

    def begin(kind, waits):
        threads.append(threading.Thread(target=visit, args=(kind,), daemon=True))
        threads[-1].start()
        wait_until(waits)

    begin("reading", lambda: entered == ["reading"])
    begin("writing", lambda: guard._waiting_writers == 1)
    begin("reading", lambda: guard._waiting_readers == 1)  # a later reader does not overtake the writer
    begin("writing", lambda: guard._waiting_writers == 2)
    for leaving, following in (("reading", "writing"), ("writing", "reading"), ("reading", "writing")):
        leave[leaving].release()
        before = len(entered)
        wait_until(lambda before=before: len(entered) > before)
        assert entered[before:] == [following]
    leave["writing"].release()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
