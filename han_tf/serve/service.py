"""The service without HTTP: embedding, searching, adding, deleting and drawing, within its limits."""

import asyncio
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from prometheus_client import generate_latest

from han_tf.common.errors import UserError
from han_tf.data.reading import resize
from han_tf.features.extractor import FeatureExtractor
from han_tf.search import Entry, Filters, Gallery
from han_tf.search.database import DATABASE_ERRORS
from han_tf.search.entries import NoEntry
from han_tf.search.reranking import reranked_among
from han_tf.serve.attention import AttentionModel, Kind, draw_overlay
from han_tf.serve.batching import Batcher, Pool
from han_tf.serve.images import encode
from han_tf.serve.limits import Limits, Refusal
from han_tf.serve.metrics import Metrics
from han_tf.serve.pictures import Picture, Pictures
from han_tf.serve.schemas import EntryOut, HitOut, SearchResult
from han_tf.serve.store import Store

SHOWN_SIDE = 512
"""Longer side of the images that are served, in pixels."""

CACHED_OVERLAYS = 2048
"""Images whose attention is cached, about 10 kB each."""

REMEMBERED = 20_000
"""Number of latest queries since the start that verdicts are accepted for, beside those that have a verdict."""

DELETED_AT_ONCE = 1000
"""Entries that are deleted at a time; their copies follow, so that a crash leaves few to be removed at the start."""

LISTED = 60
"""Default number of listed entries."""


class Example(NamedTuple):
    """An example query: an image file and its description."""

    path: str
    title: str


class Query(NamedTuple):
    """A query of a search.

    Attributes:
      name: of the query in feedback.
      feature: float32 ``[d]``; None for the feature of the entry ``id``.
      id: the entry that is searched for, if it is one.
    """

    name: str
    feature: Optional[np.ndarray] = None
    id: Optional[int] = None


class _UnknownEntry(Refusal):
    def __init__(self, id: int):
        super().__init__(404, f"no entry {id} in the gallery")


class Service:
    """A service over a gallery and its network, with feedback and added images in a folder.

    Methods that are not asynchronous use the gallery, which may take long: :meth:`ask` calls those that read, and
    :meth:`change` those that write, in other threads.

    All methods raise Refusal: 404 if there is no such entry or example, no image of it that may be shown, or no network
    that draws attention; 503 if the gallery cannot be read or written, or a queue is full.

    Args:
      gallery: open; closed by :meth:`close`.
      extractor: the network that made the gallery's features.
      store: the service's own folder; closed by :meth:`close`.
      image_roots: folders from which images of the gallery are shown; symbolic links are resolved before the check.
      limits: the bounds.
      attention: the network that overlays are drawn with; None for no overlays.
      examples: queries to offer.

    Raises:
      UserError: the gallery's features, or the overlays, are of another network.
    """

    def __init__(
        self,
        gallery: Gallery,
        extractor: FeatureExtractor,
        store: Store,
        *,
        image_roots: Sequence[Union[str, Path]] = (),
        limits: Limits = Limits(),  # noqa: B008 - frozen
        attention: Optional[AttentionModel] = None,
        examples: Sequence[Example] = (),
    ):
        gallery.check_model(extractor.checksum)
        if extractor.feature_dim != gallery.dimension:
            raise UserError(
                f"{gallery.location}: features of dimension {gallery.dimension}, "
                f"expected {extractor.feature_dim} as the model gives"
            )
        if attention is not None and attention.checksum != gallery.checksum:
            raise UserError(
                f"{attention.run_dir}: the network {attention.checksum[:12]}…, expected {gallery.checksum[:12]}… as in "
                f"{gallery.location}: overlays would show what another network attends to"
            )
        self.gallery = gallery
        self.extractor = extractor
        self.store = store
        self.limits = limits
        self.attention = attention
        self.examples = tuple(examples)
        self.metrics = metrics = Metrics()
        self._roots = tuple(Path(root).resolve() for root in (*image_roots, store.copies))
        self._cameras: set[int] = set()
        self._overlays: OrderedDict[str, Any] = OrderedDict()
        self._queries: OrderedDict[str, None] = OrderedDict()
        store.gallery = gallery.identity
        queue = limits.queue

        def batcher(compute: Callable[[Sequence[Any]], Sequence[Any]], what: str, network: str) -> Batcher:
            observe = metrics.batch.labels(network).observe
            return Batcher(compute, what, limits.batch, limits.batch_wait_ms, queue, observe)

        self._embed = batcher(lambda images: extractor.embed(np.stack(images)), "images", "features")
        self._attend = batcher(lambda images: attention(images), "overlays", "attention")
        self.pictures = Pictures(limits, extractor.input_size, extractor.white_level)
        self._search = Pool(2, "searches", queue)
        self._write = Pool(1, "changes", queue)
        self._queues: dict[str, Union[Batcher, Pool]] = {
            "embed": self._embed,
            "attention": self._attend,
            "decode": self.pictures.small,
            "decode_large": self.pictures.large,
            "search": self._search,
            "write": self._write,
        }
        for name, part in self._queues.items():
            metrics.waiting.labels(name).set_function(part.__len__)

    def describe(self) -> str:
        """Returns a few lines about what is served, for the operator."""
        gallery, extractor = self.gallery, self.extractor
        threshold = "none, so every search has hits" if gallery.threshold is None else f"{gallery.threshold:.4f}"
        lines = [
            f"gallery: {gallery.location}, {len(gallery)} images, {gallery.engine}",
            f"model: {extractor.card.model}, {extractor.format}, {extractor.precision}, {extractor.checksum[:12]}…",
            f"threshold: {threshold}",
            f"images shown from: {', '.join(map(str, self._roots[:-1])) or 'nowhere (see --images)'}",
            f"attention: {self.attention.run_dir if self.attention else 'not drawn (see --attention)'}",
            f"feedback and added images: {self.store.folder}",
        ]
        notes = [*gallery.notes, gallery.white_level_note(extractor.white_level)]
        return "\n".join([*lines, *(f"note: {note}" for note in notes if note)])

    async def start(self) -> None:
        """Starts the service in the running event loop, and warms up the network."""
        self._embed.start()
        self._attend.start()
        await self._embed.warm_up(np.zeros((*self.extractor.input_size, 3), np.uint8))
        self._cameras.update(await self._search(self.gallery.cameras))
        await self._write(self._sweep_now)

    def _sweep_now(self) -> None:
        """Removes the copies of images that have no entry, and parts of copies, which a crash may have left."""
        paths = self.store.copies_of_gallery()
        kept = {entry.path for entry in self.gallery.named(paths)} if paths else set()
        for path in paths:
            if path not in kept:
                self.store.remove_copy(path)
        self.store.remove_unfinished()

    async def close(self) -> None:
        """Finishes accepted requests, then closes gallery and store."""
        for part in self._queues.values():
            await part.close()
        self.gallery.close()
        self.store.close()

    async def embed(self, picture: Picture) -> np.ndarray:
        """Returns the feature of a picture, float32 ``[d]``."""
        return await self._embed(picture.resized)

    def search(self, query: Query, k: int, filters: Filters, threshold: Optional[float], rerank: bool) -> SearchResult:
        """Finds the nearest entries; those beyond the threshold are included and marked.

        Args:
          query: what to search for; an entry that is searched for is not among its own hits.
          k: most hits.
          filters: conditions that hits meet.
          threshold: L2 distance; the gallery's own if None.
          rerank: whether to re-rank the nearest entries; the distances remain those of the features.
        """
        gallery = self.gallery
        if threshold is None:
            threshold = gallery.threshold
        feature = query.feature
        if feature is None:
            (feature,) = gallery.features([query.id])
        options = {"filters": filters, "threshold": math.inf}
        wanted = k + (query.id is not None)
        (hits,) = gallery.search(feature[None], reranked_among(wanted) if rerank else wanted, **options)
        hits = [hit for hit in hits if hit.entry.id != query.id]
        known = None if threshold is None else any(hit.distance <= threshold for hit in hits)
        if rerank:
            near = {hit.entry.id: hit for hit in hits}
            ((ids,), _) = gallery.search_ids(feature[None], wanted, rerank=True, **options)
            # An entry that was added meanwhile has no distance here.
            hits = [near[id] for id in ids.tolist() if id in near]
        hits = hits[:k]
        names = self.store.names([hit.entry.path for hit in hits])
        verdicts = self.store.verdicts(query.name, [(hit.entry.id, Path(hit.entry.path).name) for hit in hits])
        found = [
            HitOut.of(
                entry,
                name,
                distance=distance,
                beyond=threshold is not None and distance > threshold,
                verdict=verdicts.get(entry.id),
            )
            for (entry, distance), name in zip(hits, names)
        ]
        self._cameras.update(hit.entry.camid for hit in hits if hit.entry.camid is not None)
        _remember(self._queries, query.name, None, REMEMBERED)
        return SearchResult(query=query.name, known=known, threshold=threshold, reranked=rerank, hits=found)

    def entry(self, id: int) -> EntryOut:
        """Returns an entry with its name."""
        return self._named([self._entry(id)])[0]

    def _entry(self, id: int) -> Entry:
        return self.gallery.entries([id])[0]

    def _named(self, entries: Sequence[Entry]) -> list[EntryOut]:
        return list(map(EntryOut.of, entries, self.store.names([entry.path for entry in entries])))

    def sample(self, limit: int = LISTED) -> list[EntryOut]:
        """Returns a sample of the entries with their names."""
        return self._named(self.gallery.some(limit))

    def page(self, limit: int, after: int, filters: Filters) -> list[EntryOut]:
        """Returns the first entries that pass and have ids above ``after``, with their names."""
        return self._named(self.gallery.page(limit, after, filters))

    @property
    def cameras(self) -> list[int]:
        """The gallery's cameras at the start, and those of entries that were added or found since, sorted."""
        return sorted(self._cameras)

    async def add(
        self,
        pictures: Sequence[Picture],
        names: Sequence[str],
        pid: Optional[int],
        camid: Optional[int],
        time: Optional[float],
    ) -> list[int]:
        """Adds pictures that were decoded with ``to_keep``, all or none; on disk when it returns.

        Args:
          pictures: one or more.
          names: of the images, one each.
          pid, camid, time: of all images; None if not known.

        Returns:
          Their ids.
        """
        features: list[np.ndarray] = []
        most = min(self.limits.batch, self.limits.queue)  # leaves room in the queue for others
        for start in range(0, len(pictures), most):
            features += await asyncio.gather(*map(self.embed, pictures[start : start + most]))
        copies = [picture.copy for picture in pictures]
        ids = await self.change(self._add_now, np.stack(features), copies, names, (pid, camid, time))
        if camid is not None:
            self._cameras.add(camid)
        return ids

    def _add_now(
        self,
        features: np.ndarray,
        copies: Sequence[bytes],
        names: Sequence[str],
        known: tuple[Optional[int], Optional[int], Optional[float]],
    ) -> list[int]:
        paths: list[str] = []
        try:
            paths += (self.store.save_copy(copy, name) for copy, name in zip(copies, names))
            pids, camids, times = ([value] * len(paths) for value in known)
            if self.gallery.white_levels:
                self.gallery.note_white_level(self.extractor.white_level or 0.0)
            ids = self.gallery.add(
                features, paths=paths, pids=pids, camids=camids, times=times, checksum=self.extractor.checksum
            )
        except BaseException:
            for path in paths:
                self.store.remove_copy(path)
            raise
        return ids.tolist()

    def correct(self, id: int, changes: dict[str, Optional[float]]) -> EntryOut:
        """Changes ``pid``, ``camid`` or ``time`` of an entry, None for not known; on disk when it returns.

        Returns:
          The changed entry and its name.
        """
        self._entry(id)
        self.gallery.relabel([id], **{f"{name}s": [value] for name, value in changes.items()})
        if changes.get("camid") is not None:
            self._cameras.add(changes["camid"])
        return self.entry(id)

    def delete(self, id: int) -> None:
        """Deletes an entry, and its image if that is a copy in the service's own folder."""
        if not self._delete_entries([self._entry(id)]):
            raise _UnknownEntry(id)

    def delete_where(self, filters: Filters) -> int:
        """Deletes the entries that pass, as :meth:`delete` does; returns their number."""
        deleted = 0
        while entries := self.gallery.page(DELETED_AT_ONCE, filters=filters):
            deleted += self._delete_entries(entries)
        return deleted

    def _delete_entries(self, entries: Sequence[Entry]) -> int:
        deleted = self.gallery.delete([entry.id for entry in entries])
        for entry in entries if deleted else ():
            self._overlays.pop(f"id:{entry.id}", None)
            self.store.remove_copy(entry.path)
        return deleted

    async def shown_image(self, id: int) -> bytes:
        """Returns the image of an entry, as JPEG of at most :data:`SHOWN_SIDE` pixels a side.

        It is decoded and encoded again, so that only pixels are sent, whatever the file contains.
        """
        return await self._of_entry(id, lambda pixels: encode(pixels, "JPEG", SHOWN_SIDE))

    async def _of_entry(self, id: int, use: Callable[[np.ndarray], Any]) -> Any:
        path = await self.ask(lambda: self.store.file_of(self._entry(id).path))
        return await self.pictures.of_file(path, self._roots, f"entry {id}", use)

    async def example_image(self, number: int) -> bytes:
        """Returns the image of an example as PNG, unchanged."""
        if not 0 <= number < len(self.examples):
            raise Refusal(
                404, f"no example {number}, expected 0 to {len(self.examples) - 1}" if self.examples else "no examples"
            )
        path = Path(self.examples[number].path)
        as_png = lambda pixels: encode(pixels, "PNG")  # noqa: E731
        return await self.pictures.of_file(path, [path.parent.resolve()], f"example {number}", as_png)

    async def overlay_of_entry(self, id: int, kind: Kind, level: int) -> bytes:
        """Returns an entry's image with the attention drawn over it, as PNG.

        Raises:
          Refusal: 422, there is no such level; others as in the class.
        """
        self._check_attention()
        image = await self._of_entry(id, lambda pixels: resize(pixels, self.attention.input_size))
        return await self._overlay(f"id:{id}", image, kind, level)

    async def overlay_of_picture(self, picture: Picture, kind: Kind, level: int) -> bytes:
        """Returns a picture with the attention drawn over it, as PNG; see :meth:`overlay_of_entry`."""
        self._check_attention()
        return await self._overlay(f"sha256:{picture.sha256}", picture.resized, kind, level)

    def _check_attention(self) -> None:
        if self.attention is None:
            raise Refusal(404, "this service draws no attention: it was started without a training run that could")

    async def _overlay(self, key: str, image: np.ndarray, kind: Kind, level: int) -> bytes:
        levels = self._overlays.get(key)
        if levels is None:
            levels = await self._attend(image)
        _remember(self._overlays, key, levels, CACHED_OVERLAYS)
        return await self.pictures.small(draw_overlay, image, levels, kind, level)

    def mark(self, query: str, hit: int, verdict: Optional[str], distance: Optional[float]) -> Optional[float]:
        """Stores a verdict on a hit and returns its time, see :meth:`han_tf.serve.store.Store.mark`.

        Raises:
          Refusal: 404, also if this query was not searched for; 409, too many are stored; others as in the class.
        """
        entry = self._entry(hit)
        if query not in self._queries and not self.store.has(query):
            raise Refusal(404, f"{query[:40]} was not searched for since the service started: search again")
        if verdict is not None and (kept := self.store.count()) >= self.limits.verdicts:
            raise Refusal(409, f"{kept:,} verdicts are kept, expected fewer: this service keeps no more")
        return self.store.mark(query, hit, verdict, Path(entry.path).name, distance)

    async def check(self) -> int:
        """Returns the number of entries, after reading from the gallery as a test."""
        with suppress(_UnknownEntry):
            await self.ask(self._entry, 0)
        return await self.ask(self.gallery.__len__)

    async def measure(self) -> bytes:
        """Returns the metrics in Prometheus' text format; NaN entries if the gallery cannot be read."""
        try:
            self.metrics.entries.set(await self.check())
        except Refusal:
            self.metrics.entries.set(math.nan)
        return generate_latest(self.metrics.registry)

    async def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the result of a function that reads from the gallery or the store, called in another thread.

        Raises:
          Refusal: as in the class, or what the function raises.
        """
        return await _using_gallery(self._search(function, *arguments), "read")

    async def change(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the result of a function that writes, one at a time, called in another thread; see :meth:`ask`.

        A function that has begun is completed even if the client disconnects.
        """
        return await _using_gallery(self._write(function, *arguments), "written")


def _remember(latest: OrderedDict[str, Any], key: str, value: Any, most: int) -> None:
    """Puts ``key`` at the end of ``latest``, and drops the first keys if there are more than ``most``."""
    latest.pop(key, None)  # another thread may have removed it
    latest[key] = value
    while len(latest) > most:
        latest.popitem(last=False)


async def _using_gallery(call: Any, what: str) -> Any:
    """Awaits a call that uses the gallery. Prints its errors to stderr; the client gets them without paths."""
    try:
        return await call
    except NoEntry as error:
        raise _UnknownEntry(error.id) from error
    except (UserError, OSError, *DATABASE_ERRORS) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise Refusal(503, f"the gallery cannot be {what} at the moment; the service's log says why") from error
