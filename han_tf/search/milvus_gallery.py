"""The distributed engine: a Milvus cluster, or Milvus Lite in a file, through pymilvus.

A gallery consists of two collections: one with the entries, and ``NAME_settings`` with keys and JSON values. Unknown
labels are stored as special values, because some versions of Milvus cannot compare nulls.
"""

import json
import logging
import logging.config
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import lock
from han_tf.search.address import Address
from han_tf.search.exact import SPARE, error_bound, nearest, widened
from han_tf.search.gallery import (
    UNKNOWN,
    Columns,
    Entry,
    Filters,
    Gallery,
    Progress,
    check_format,
    check_ids,
)

FORMAT = 1
"""Version of the collections, as that of the files in :mod:`han_tf.search.store`."""

TOKEN = "MILVUS_TOKEN"
"""The environment variable with the token, or user:password, that is used if none is given."""

SETTINGS, CREATION = "settings", "creation "
"""The key of the gallery's settings; the prefix of the keys that processes write while they create a gallery."""

SETTLED_SECONDS, CREATED_SECONDS = 3.0, 60.0
"""How long a process that creates a gallery waits for the keys of others; how long others wait for it to finish."""

NO_TIME = -1e300
"""Stands for an unknown time."""

SECONDS = 10.0
"""Time limit for a connection; ten times as much for an answer."""

REQUEST_BYTES = 2**24
"""Most bytes of vectors in a request or answer; gRPC refuses messages of more than 64 MiB."""

MOST_HITS = 16_384
"""Most hits that Milvus returns per query."""

CAMERAS_AT_ONCE = 1000
"""Most entries in an answer of which the cameras are read."""

PATHS_AT_ONCE = 500
ROWS_AT_ONCE = MOST_HITS
"""Paths in one request, and rows in its answer."""

ID_BITS = 52
"""Ids are random, so that several writers need not coordinate; JavaScript represents such integers exactly."""

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

FIELDS = ["id", "path", "pid", "camid", "time"]


class MilvusGallery(Gallery):
    """A gallery in Milvus.

    Several processes may read and write a cluster's gallery at once. A file of Milvus Lite can be open in one process
    at a time, which may open all galleries in it. The next search finds what was added (strong consistency). An
    addition of more than 16 MiB of vectors takes several requests: if one fails, the rows of the others are deleted;
    they stay if the process dies in between.

    Args:
      address: of the gallery.
      token: of the cluster; if None, that in the address, else that in the environment variable ``MILVUS_TOKEN``.

    Raises:
      UserError: the address cannot be reached, there is no such gallery, it is of another version, or pymilvus is not
        installed.
    """

    engine = "milvus"

    def __init__(self, address: Address, token: Optional[str] = None):
        self.address = address
        self.location = str(address)
        if address.local and not Path(address.uri).exists():
            raise UserError(f"{address.uri}: no such file, expected a gallery of Milvus Lite")
        self.client = _connect(address, token)
        try:
            self._settings_name = f"{address.collection}_settings"
            with self._errors():
                rows = _read_settings(self.client, self._settings_name)
            if not rows:
                raise UserError(f"{self.location}: no gallery here, expected one made by python -m han_tf.index")
            self._settings = json.loads(rows[0]["value"])
            check_format(self._settings.get("format"), FORMAT, self.location)
            with self._errors():
                self.client.load_collection(address.collection)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls, address: Address, dimension: int, checksum: str, *, index: str = "HNSW", token: Optional[str] = None
    ) -> "MilvusGallery":
        """Creates an empty gallery; see :func:`han_tf.search.create_gallery`.

        Args:
          address: of the gallery.
          dimension: of the features.
          checksum: of the model.
          index: Milvus's index type, one of :data:`INDEXES`; ``FLAT`` is exact.
          token: of the cluster.
        """
        if index not in INDEXES:
            raise UserError(f"index is {index!r}, expected {', '.join(INDEXES)}")
        if address.local:
            try:
                Path(address.uri).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write {address.uri}: {error.strerror or error}") from error
        client = _connect(address, token)
        try:
            with _milvus_errors(str(address)):
                cls._make(client, address, dimension, checksum, index, 0 if address.local else SETTLED_SECONDS)
        finally:
            client.close()
        return cls(address, token)

    @staticmethod
    def exists(address: Address) -> bool:
        """Returns whether there is a gallery."""
        if address.local and not Path(address.uri).exists():
            return False
        client = _connect(address, None)
        try:
            with _milvus_errors(str(address)):
                return bool(_read_settings(client, f"{address.collection}_settings"))
        finally:
            client.close()

    @staticmethod
    def _make(client: Any, address: Address, dimension: int, checksum: str, index: str, settled: float) -> None:
        """Creates the collections of a new gallery; if several processes try at once, one succeeds.

        Milvus has no locks. So each process writes a random key to the collection of settings and waits until those
        that began at the same time have written theirs. The process with the least key creates the gallery, the others
        are refused.

        Args:
          client, address, dimension, checksum, index: as of :meth:`create`.
          settled: how long to wait, in seconds.
        """
        name, settings_name = address.collection, f"{address.collection}_settings"
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
        while not _read_settings(client, settings_name) and (before := _creations(client, settings_name)):
            if not settled or time.monotonic() > end:
                break  # those processes were interrupted
            time.sleep(settled / 4)
        if _read_settings(client, settings_name):
            raise already
        client.upsert(settings_name, _settings_row(own, {}))
        time.sleep(settled)
        if min(_creations(client, settings_name) - before) != own:
            raise UserError(f"{address}: another process makes a gallery there, expected one at a time")
        if _read_settings(client, settings_name):
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
        client.upsert(settings_name, _settings_row(SETTINGS, value))
        client.delete(settings_name, ids=sorted({own, *before}))

    @property
    def settings(self) -> dict[str, Any]:  # noqa: D102
        return self._settings

    def _add(self, columns: Columns, gone: Sequence[int] = ()) -> np.ndarray:
        n = len(columns.features)
        with self._errors():
            first = self._free_ids(n)
            ids = np.arange(first, first + n)
            try:
                self._upsert(ids, columns)
            except BaseException:
                self.client.delete(self.address.collection, filter=f"id >= {first} and id < {first + n}")
                raise
        if gone:
            self.delete(gone)  # last: if the process dies before, adding the same images again deletes them
        return ids

    def _update_index(self) -> None:
        """Does nothing: Milvus updates its indexes itself."""

    def _relabel(self, ids: np.ndarray, pids: np.ndarray, camids: np.ndarray, times: np.ndarray) -> None:
        paths, features = [entry.path for entry in self.entries(ids)], self.features(ids)
        with self._errors():
            self._upsert(ids, Columns(features, paths, pids, camids, times))

    def _named(self, paths: list[str]) -> Iterator[Entry]:
        for part in _parts(paths, PATHS_AT_ONCE):
            for row in self._rows_where(f"path in [{', '.join(map(_quoted, part))}]"):
                yield _entry(row)

    def _note_source(self, name: str, done: int, rows: int) -> None:
        """Does nothing: several processes may add the same source at once."""

    def _rows_where(self, expression: str, last: int = -1, at_once: int = ROWS_AT_ONCE) -> Iterator[dict[str, Any]]:
        """Yields the rows that match, by ascending id, with ids above ``last``; requests ``at_once`` at a time."""
        at_once = min(at_once, ROWS_AT_ONCE)
        while True:
            terms = " and ".join(term for term in (expression, f"id > {last}") if term)
            with self._errors():
                rows = self._query(self.address.collection, FIELDS, terms, limit=at_once)
            rows = sorted(rows, key=lambda row: row["id"])
            yield from rows
            if len(rows) < at_once:
                return
            last = rows[-1]["id"]

    def _upsert(self, ids: np.ndarray, columns: Columns) -> None:
        step = max(1, REQUEST_BYTES // (4 * self.dimension))
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            times = np.where(np.isnan(columns.times[part]), NO_TIME, columns.times[part])
            rows = zip(
                ids[part].tolist(),
                columns.features[part],
                columns.paths[part],
                columns.pids[part].tolist(),
                columns.camids[part].tolist(),
                times.tolist(),
            )
            names = ("id", "feature", "path", "pid", "camid", "time")
            self.client.upsert(self.address.collection, [dict(zip(names, row)) for row in rows])

    def _free_ids(self, n: int) -> int:
        while True:
            first = secrets.randbelow(2**ID_BITS)
            if not self._query(self.address.collection, ["id"], f"id >= {first} and id < {first + n}", limit=1):
                return first

    def delete(self, ids: Sequence[int]) -> int:  # noqa: D102
        self._check_open()
        found = list(self._entries(set(check_ids(ids).tolist())))
        with self._errors():
            for part in _parts(found, MOST_HITS):
                self.client.delete(self.address.collection, ids=part)
        return len(found)

    def _some(self, limit: int) -> list[Entry]:
        # Features of the same length are equally far from the origin: the hits are spread over the gallery.
        origin = np.zeros((1, self.dimension), np.float32)
        (hits,) = self._request(origin, min(limit, MOST_HITS), "", FIELDS)
        return [_entry({"id": hit["id"], **hit["entity"]}) for hit in hits]

    def _page(self, limit: int, after: int, filters: Filters) -> list[Entry]:
        return [_entry(row) for row in islice(self._rows_where(_expression(filters), after, limit), limit)]

    def _count(self, filters: Filters) -> int:
        with self._errors():
            return self._query(self.address.collection, ["count(*)"], _expression(filters))[0]["count(*)"]

    def _cameras(self) -> list[int]:
        found: set[int] = set()
        with self._errors():
            while True:
                # UNKNOWN itself cannot be written as a literal.
                expression = f"camid >= {UNKNOWN + 1} and camid not in {sorted(found)}"
                rows = self._query(self.address.collection, ["camid"], expression, limit=CAMERAS_AT_ONCE)
                if not rows:
                    return sorted(found)
                found.update(row["camid"] for row in rows)

    def _entries(self, ids: set[int]) -> dict[int, Entry]:
        return {row["id"]: _entry(row) for row in self._by_ids(sorted(ids), FIELDS, MOST_HITS)}

    def _features(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self._by_ids(np.unique(ids).tolist(), ["id", "feature"], max(1, REQUEST_BYTES // (4 * self.dimension)))
        found = {row["id"]: row["feature"] for row in rows}
        present = np.array([id for id in ids.tolist() if id in found], np.int64)
        features = np.array([found[id] for id in present.tolist()], np.float32)
        return present, features.reshape(len(present), self.dimension)

    def _by_ids(self, ids: list[int], fields: list[str], step: int) -> Iterator[dict[str, Any]]:
        with self._errors():
            for part in _parts(ids, step):
                yield from self._query(self.address.collection, fields, f"id in {part}")

    def _query(self, name: str, fields: list[str], expression: str, **options: Any) -> list[dict[str, Any]]:
        return self.client.query(
            name, expression, output_fields=fields, consistency_level="Strong", timeout=10 * SECONDS, **options
        )

    def _search(self, queries: np.ndarray, k: int, filters: Filters) -> list[tuple[np.ndarray, np.ndarray]]:
        expression = _expression(filters)

        def ask(numbers: list[int], asked: int) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], bool]]:
            limit = min(asked, MOST_HITS)
            for part in _parts(numbers, max(1, REQUEST_BYTES // (4 * self.dimension * limit))):
                for i, (ids, features, distances) in zip(part, self._candidates(queries[part], limit, expression)):
                    rows, exact = nearest(queries[i], features, np.arange(len(ids)), k)
                    certain = len(ids) < limit or limit == MOST_HITS
                    if not certain:  # rounding, or many at the same distance, may have excluded a nearer one
                        norms = np.einsum("ij,ij->i", features, features, dtype=np.float64)
                        greatest = max(float(queries[i] @ queries[i]), norms.max())
                        certain = exact[-1] < distances.max() - error_bound(self.dimension, greatest)
                    yield (ids[rows], np.sqrt(exact)), certain

        return widened(len(queries), k + SPARE, ask)

    def _candidates(
        self, queries: np.ndarray, limit: int, expression: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields, per query, the ids that Milvus finds, ascending, their features, and Milvus's squared distances."""
        for hits in self._request(queries, limit, expression, ["feature"]):
            ids = np.array([hit["id"] for hit in hits], np.int64)
            order = np.argsort(ids)
            features = np.array([hit["entity"]["feature"] for hit in hits], np.float32).reshape(
                len(ids), self.dimension
            )
            distances = np.array([hit["distance"] for hit in hits])
            yield ids[order], features[order], distances[order]

    def _request(self, queries: np.ndarray, limit: int, expression: str, fields: list[str]) -> Any:
        """Returns Milvus's answer: for each query at most ``limit`` hits, with ``fields``."""
        parameters = {"metric_type": "L2", "params": INDEXES[self._settings["index"]][1](limit)}
        with self._errors():
            return self.client.search(
                self.address.collection,
                queries,
                filter=expression,
                limit=limit,
                output_fields=fields,
                search_params=parameters,
                consistency_level="Strong",
                timeout=10 * SECONDS,
            )

    def _set(self, settings: dict[str, Any]) -> None:
        settings = {**self._settings, **settings}
        with self._errors():
            self.client.upsert(self._settings_name, _settings_row(SETTINGS, settings))
        self._settings = settings

    def build(self, engine: Optional[str] = None, *, anew: bool = False, progress: Progress = None) -> None:
        """Makes Milvus write its data in memory to storage. Milvus builds its indexes itself.

        Raises:
          UserError: ``engine`` is another one.
        """
        if engine not in (None, "auto", self.engine):
            raise UserError(f"engine is {engine!r}, expected milvus at {self.location}")
        with self._errors():
            self.client.flush(self.address.collection)

    def compact(self, progress: Progress = None) -> None:
        """Makes a cluster free the space of deleted entries; Milvus Lite does so itself."""
        self.build()
        if not self.address.local:
            with self._errors():
                self.client.compact(self.address.collection)

    def info(self) -> dict[str, Any]:  # noqa: D102
        return {**super().info(), "index": self._settings["index"]}

    def close(self) -> None:  # noqa: D102
        self.closed = True
        self.client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        self._check_open()
        with _milvus_errors(self.location):
            yield


def _import_client() -> Any:
    # When imported, pymilvus configures the logging of the whole process, which closes all other handlers.
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise UserError(f"this gallery needs pymilvus ({error}), expected: pip install 'han-tf[milvus]'") from error
    finally:
        logging.config.dictConfig = configure
    # Errors that these packages log are raised as well, and reported in one line.
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MilvusClient


def _connect(address: Address, token: Optional[str]) -> Any:
    client = _import_client()
    token = address.token or os.environ.get(TOKEN, "") if token is None else token
    try:
        with _milvus_errors(str(address), "reached"):
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
def _milvus_errors(location: str, what: str = "used") -> Iterator[None]:
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


def _read_settings(client: Any, name: str) -> list[dict[str, Any]]:
    """Returns the row of the gallery's settings; none if there is no gallery or its creation is not complete."""
    if not client.has_collection(name):
        return []
    client.load_collection(name)
    return client.query(name, f'key == "{SETTINGS}"', output_fields=["value"], consistency_level="Strong")


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


def _settings_row(key: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": json.dumps(value, allow_nan=False), "unused": [0.0, 0.0]}]


def _entry(row: dict[str, Any]) -> Entry:
    pid, camid = (None if row[name] == UNKNOWN else row[name] for name in ("pid", "camid"))
    return Entry(row["id"], row["path"], pid, camid, None if row["time"] == NO_TIME else row["time"])


def _quoted(text: str) -> str:
    """Returns a string literal of Milvus; Milvus Lite does not know JSON's escape sequences of control characters."""
    for character, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n"), ("\r", r"\r")):
        text = text.replace(character, escaped)
    return f'"{text}"'


def _expression(filters: Filters) -> str:
    terms = []
    if filters.cameras:
        terms.append(f"camid in {[*filters.cameras]}")
    if filters.not_cameras:
        terms.append(f"camid not in {[*filters.not_cameras]}")
    if filters.pids:
        terms.append(f"pid in {[*filters.pids]}")
    if filters.after is not None:
        terms.append(f"time >= {max(filters.after, NO_TIME / 2)!r}")
    if filters.before is not None:
        terms.append(f"time > {NO_TIME / 2!r} and time < {filters.before!r}")
    return " and ".join(terms)


def _parts(values: list[Any], step: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), step):
        yield values[start : start + step]
