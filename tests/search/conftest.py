"""Shared by the tests of search."""

import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def _milvus_lite_ends():
    """Ends Milvus Lite's servers, which live until the process ends otherwise: five threads for each file."""
    yield
    servers = sys.modules.get("milvus_lite.server_manager")
    if servers is not None:
        servers.server_manager_instance.release_all()
