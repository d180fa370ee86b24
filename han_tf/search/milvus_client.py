"""Connections to Milvus, and the collections of a gallery there.

A gallery consists of two collections: one with the entries, and ``NAME_settings`` with keys and JSON values.
"""

import json
import logging
import logging.config
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from han_tf.common.errors import UserError
from han_tf.common.files import lock
from han_tf.search.address import Address
from han_tf.search.gallery import check_format

FORMAT = 1
"""Version of the collections, as that of the files in :mod:`han_tf.search.database`."""

TOKEN = "MILVUS_TOKEN"
"""The environment variable with the token, or user:password, that is used if none is given."""

SETTINGS, CREATION = "settings", "creation "
"""The key of the gallery's settings; the prefix of the keys that processes write while they create a gallery."""

SETTLED_SECONDS, CREATED_SECONDS = 3.0, 60.0
"""How long a process that creates a gallery waits for the keys of others; how long others wait for it to finish."""

SECONDS = 10.0
"""Time limit for a connection; ten times as much for an answer."""

LOGGERS = ("pymilvus", "pymilvus.milvus_client", "milvus_lite", "grpc")

LINKS, CONSTRUCTION, SEARCHED, LISTS, LISTS_READ = 32, 80, 192, 1024, 64
INDEXES: dict[str, tuple[dict[str, Any], Callable[[int], dict[str, Any]]]] = {
    "FLAT": ({}, lambda k: {}),
    "HNSW": ({"M": LINKS, "efConstruction": CONSTRUCTION}, lambda k: {"ef": max(SEARCHED, 2 * k)}),
    "IVF_FLAT": ({"nlist": LISTS}, lambda k: {"nprobe": LISTS_READ}),
    "AUTOINDEX": ({}, lambda k: {}),
}
"""Milvus's index types that keep float32: parameters of building, and of a search for k hits."""

APPEARS_SECONDS = 3.0
"""How long to wait for a collection of the same name that another process seems to be creating."""


def _import_client() -> Any:
    # When imported, pymilvus configures the logging of the whole process, which closes all other handlers.
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise UserError(
            f"this gallery needs pymilvus ({error}), expected: pip install '.[milvus]' in han-tf's folder"
        ) from error
    finally:
        logging.config.dictConfig = configure
    # Errors that these packages log are raised as well, and reported in one line.
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MilvusClient


@contextmanager
def connected(address: Address, token: Optional[str] = None) -> Iterator[Any]:
    """Yields a client, which is closed after the block; errors of Milvus in the block become UserErrors."""
    client = connect(address, token)
    try:
        with milvus_errors(str(address)):
            yield client
    finally:
        client.close()


def connect(address: Address, token: Optional[str]) -> Any:
    """Returns a client.

    Args:
      address: of the cluster or file.
      token: of the cluster; if None, that in the address, else that in the environment variable ``MILVUS_TOKEN``.

    Raises:
      UserError: the address cannot be reached, or pymilvus is not installed.
    """
    client = _import_client()
    token = address.token or os.environ.get(TOKEN, "") if token is None else token
    try:
        with milvus_errors(str(address), "reached"):
            return client(address.uri, token="" if address.local else token, timeout=SECONDS)
    except UserError:
        if address.local:
            raise _why_closed(address.uri) from None
        raise


def _why_closed(path: str) -> UserError:
    """Returns the likely reason why Milvus Lite cannot open a file; its own error names none."""
    try:
        with open(Path(path) / "LOCK", "rb") as stream:
            if not lock(stream.fileno()):
                return UserError(f"{path}: another process has this file of Milvus Lite open, expected one at a time")
    except OSError as error:
        return UserError(f"cannot open {path} with Milvus Lite: {error.strerror or error}")
    return UserError(f"{path}: Milvus Lite cannot open this, expected one of its files")


@contextmanager
def milvus_errors(location: str, what: str = "used") -> Iterator[None]:
    """Turns errors of Milvus in the block into UserErrors of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Besides MilvusException, pymilvus raises other errors of its own and those of gRPC.
        if type(error).__module__.split(".")[0] not in ("pymilvus", "grpc", "milvus_lite"):
            raise
        reason = " ".join(str(getattr(error, "message", "") or error).split())
        raise UserError(f"{location}: Milvus cannot be {what} ({reason[:300]})") from error


def read_settings(client: Any, address: Address) -> Optional[dict[str, Any]]:
    """Returns the gallery's settings; None if there is no gallery or its creation is not complete."""
    name = _settings_of(address)
    if not client.has_collection(name):
        return None
    client.load_collection(name)
    rows = client.query(name, f'key == "{SETTINGS}"', output_fields=["value"], consistency_level="Strong")
    return json.loads(rows[0]["value"]) if rows else None


def load_settings(client: Any, address: Address) -> dict[str, Any]:
    """Returns the settings of a gallery that is to be opened.

    Raises:
      UserError: there is no gallery, or it is of another version.
    """
    settings = read_settings(client, address)
    if settings is None:
        raise UserError(f"{address}: no gallery here, expected one made by python -m han_tf.index")
    check_format(settings.get("format"), FORMAT, address)
    return settings


def write_settings(client: Any, address: Address, settings: dict[str, Any], key: str = SETTINGS) -> None:
    """Stores the gallery's settings, or those of another key."""
    row = {"key": key, "value": json.dumps(settings, allow_nan=False), "unused": [0.0, 0.0]}
    client.upsert(_settings_of(address), [row])


def _settings_of(address: Address) -> str:
    return f"{address.collection}_settings"


def make_collections(client: Any, address: Address, dimension: int, checksum: str, index: str, settled: float) -> None:
    """Creates the collections of a new gallery; if several processes try at once, one succeeds.

    Milvus has no locks. So each process writes a random key to the collection of settings and waits until those
    that began at the same time have written theirs. The process with the least key creates the gallery, the others
    are refused. ``settled`` is how long to wait, in seconds.
    """
    name, settings_name = address.collection, _settings_of(address)
    already = UserError(f"{address}: there is a gallery already, expected a new collection")
    if not client.has_collection(settings_name):
        if client.has_collection(name):
            raise UserError(f"{address}: there is a collection of another kind, expected a new one")
        try:
            _make_settings(client, settings_name)
        except Exception:
            # Another process may be creating it.
            end = time.monotonic() + APPEARS_SECONDS
            while not client.has_collection(settings_name):
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
    own, end = f"{CREATION}{secrets.token_hex(8)}", time.monotonic() + CREATED_SECONDS
    while not read_settings(client, address) and (before := _creations(client, settings_name)):
        if not settled or time.monotonic() > end:
            break  # those processes were interrupted
        time.sleep(settled / 4)
    if read_settings(client, address):
        raise already
    write_settings(client, address, {}, own)
    time.sleep(settled)
    if min(_creations(client, settings_name) - before) != own:
        raise UserError(f"{address}: another process makes a gallery there, expected one at a time")
    if read_settings(client, address):
        raise already
    if client.has_collection(name):
        client.drop_collection(name)  # left by a creation that was interrupted
    _make_entries(client, name, dimension, index)
    value = {
        "format": FORMAT,
        "identity": secrets.token_hex(8),
        "dimension": dimension,
        "checksum": checksum,
        "index": index,
        "threshold": None,
        "calibration": None,
    }
    write_settings(client, address, value)
    client.delete(settings_name, ids=sorted({own, *before}))


def _creations(client: Any, name: str) -> set[str]:
    """Returns the keys of processes that are creating a gallery, or were interrupted."""
    rows = client.query(name, f'key like "{CREATION}%"', output_fields=["key"], consistency_level="Strong")
    return {row["key"] for row in rows}


def _make_settings(client: Any, name: str) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("value", DataType.VARCHAR, max_length=65_535)
    schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # Milvus requires a vector in every collection
    parameters = client.prepare_index_params()
    parameters.add_index("unused", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, index_params=parameters, consistency_level="Strong")


def _make_entries(client: Any, name: str, dimension: int, index: str) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("feature", DataType.FLOAT_VECTOR, dim=dimension)
    schema.add_field("path", DataType.VARCHAR, max_length=65_535)
    schema.add_field("pid", DataType.INT64)
    schema.add_field("camid", DataType.INT64)
    schema.add_field("time", DataType.DOUBLE)
    parameters = client.prepare_index_params()
    parameters.add_index("feature", index_type=index, metric_type="L2", params=INDEXES[index][0])
    client.create_collection(name, schema=schema, index_params=parameters, consistency_level="Strong")
