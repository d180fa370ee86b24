"""Fixtures of the service's tests: galleries and services with the tiny run's network."""

import pytest

from han_tf.data import load_dataset
from han_tf.search import create_gallery
from han_tf.serve.attention import AttentionModel
from han_tf.serve.service import Service
from han_tf.serve.store import Store
from tests.serve.serving import FIRST_TIME, client_of


@pytest.fixture(scope="session")
def attention_model(tiny_run):
    return AttentionModel(tiny_run)


@pytest.fixture(scope="session")
def tiny_set(tiny_data):
    return load_dataset("market1501", tiny_data)


@pytest.fixture(scope="session")
def gallery_features(extractor, tiny_set):
    return extractor(tiny_set.gallery)


@pytest.fixture(scope="session")
def make_index(extractor, tiny_set, gallery_features):
    """Returns a function that makes a gallery of the tiny set in a folder."""

    def make(folder, threshold=None):
        records = tiny_set.gallery
        gallery = create_gallery(folder, extractor.feature_dim, extractor.checksum)
        gallery.add(
            gallery_features,
            paths=[record.path for record in records],
            pids=[record.pid for record in records],
            camids=[record.camid for record in records],
            times=[FIRST_TIME + 60 * n for n in range(len(records))],
        )
        gallery.set_threshold(threshold)
        return gallery

    return make


@pytest.fixture(scope="session")
def make_service(make_index, extractor, attention_model, tiny_set):
    """Returns a function that makes a service in a folder; further arguments go to :class:`Service`."""

    def make(folder, threshold=None, **options):
        gallery, store = make_index(folder / "index", threshold), Store(folder / "state")
        return Service(
            gallery, extractor, store, **{"image_roots": [tiny_set.root], "attention": attention_model, **options}
        )

    return make


@pytest.fixture
def client(make_service, tmp_path):
    with client_of(make_service(tmp_path)) as client:
        yield client
