"""The distributed engine: a Milvus cluster, or Milvus Lite in a file, through pymilvus.

Unknown labels are stored as special values, because some versions of Milvus cannot compare nulls.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import writing
from han_tf.data.image_lists import UNKNOWN
from han_tf.features.shards import FeatureBatch
from han_tf.search.address import Address
from han_tf.search.entries import Entry, Filters, below, check_choice, check_ids
from han_tf.search.exact import SPARE, error_bound, nearest, widened
from han_tf.search.gallery import Gallery, Progress
from han_tf.search.milvus_client import (
    INDEXES,
    SECONDS,
    SETTLED_SECONDS,
    connect,
    connected,
    load_settings,
    make_collections,
    milvus_errors,
    read_settings,
    write_settings,
)

NO_TIME = -1e300
"""Stands for an unknown time."""

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

FIELDS = ["id", "path", "pid", "camid", "time"]


class MilvusGallery(Gallery):
    """A gallery in Milvus.

    README.md in this folder says how processes share it, and what is left of an addition that fails.

    Args:
      address, token: as of :func:`han_tf.search.milvus_client.connect`.

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
        self.client = connect(address, token)
        try:
            with self._errors():
                self.settings = load_settings(self.client, address)
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
          address, dimension, checksum: of the gallery.
          index: Milvus's index type, one of :data:`INDEXES`; ``FLAT`` is exact.
          token: of the cluster.
        """
        check_choice(index, "index", INDEXES)
        if address.local:
            with writing(address.uri):
                Path(address.uri).parent.mkdir(parents=True, exist_ok=True)
        with connected(address, token) as client:
            make_collections(client, address, dimension, checksum, index, 0 if address.local else SETTLED_SECONDS)
        return cls(address, token)

    @staticmethod
    def exists(address: Address) -> bool:
        """Returns whether there is a gallery."""
        if address.local and not Path(address.uri).exists():
            return False
        with connected(address) as client:
            return read_settings(client, address) is not None

    def _add(self, images: FeatureBatch, gone: Sequence[int] = ()) -> np.ndarray:
        n = len(images.features)
        with self._errors():
            first = secrets.randbelow(2**ID_BITS)
            while self._query(self.address.collection, ["id"], f"id >= {first} and id < {first + n}", limit=1):
                first = secrets.randbelow(2**ID_BITS)
            ids = np.arange(first, first + n)
            try:
                self._upsert(ids, images)
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
            self._upsert(ids, FeatureBatch(features, pids, camids, times, paths))

    def _named(self, paths: list[str]) -> Iterable[Entry]:
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

    def _upsert(self, ids: np.ndarray, images: FeatureBatch) -> None:
        step = max(1, REQUEST_BYTES // (4 * self.dimension))
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            features, pids, camids, times, paths = images.where(part)
            times = np.where(np.isnan(times), NO_TIME, times)
            rows = zip(features, ids[part].tolist(), paths, pids.tolist(), camids.tolist(), times.tolist())
            self.client.upsert(self.address.collection, [dict(zip(("feature", *FIELDS), row)) for row in rows])

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
        parameters = {"metric_type": "L2", "params": INDEXES[self.settings["index"]][1](limit)}
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
        with self._errors():
            # Another process may have stored others since this one opened the gallery.
            settings = {**load_settings(self.client, self.address), **settings}
            write_settings(self.client, self.address, settings)
        self.settings = settings

    def build(self, engine: Optional[str] = None, *, anew: bool = False, progress: Progress = None) -> None:
        """Makes Milvus write its data in memory to storage. Milvus builds its indexes itself.

        Raises:
          UserError: ``engine`` is another one.
        """
        self._check_building(anew, progress)
        if engine is not None:
            check_choice(engine, "engine", ("auto", self.engine), f"milvus at {self.location}")
        with self._errors():
            self.client.flush(self.address.collection)

    def compact(self, progress: Progress = None) -> None:
        """Makes a cluster free the space of deleted entries; Milvus Lite does so itself."""
        self.build(progress=progress)
        if not self.address.local:
            with self._errors():
                self.client.compact(self.address.collection)

    def info(self) -> dict[str, Any]:  # noqa: D102
        return {**super().info(), "index": self.settings["index"]}

    def close(self) -> None:  # noqa: D102
        self.closed = True
        self.client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        self._check_open()
        with milvus_errors(self.location):
            yield


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
    if filters.paths:
        bounds = [(path, *below(path)) for path in filters.paths]
        ranges = [
            f"path == {_quoted(path)} or (path >= {_quoted(first)} and path < {_quoted(end)})"
            for path, first, end in bounds
        ]
        terms.append(f"({' or '.join(ranges)})")
    if filters.after is not None:
        terms.append(f"time >= {max(filters.after, NO_TIME / 2)!r}")
    if filters.before is not None:
        terms.append(f"time > {NO_TIME / 2!r} and time < {filters.before!r}")
    return " and ".join(terms)


def _parts(values: list[Any], step: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), step):
        yield values[start : start + step]
