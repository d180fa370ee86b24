"""Opening a service, and running it until a signal."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional, Union

import uvicorn

from han_tf.common.errors import UserError
from han_tf.common.run_files import CONFIG
from han_tf.features.extractor import FeatureExtractor
from han_tf.runs.card import CARD, read_card
from han_tf.runs.folder import CHECKPOINTS, load_run
from han_tf.runtimes.keras import network_checksum
from han_tf.search import Gallery
from han_tf.serve.access import Access
from han_tf.serve.app import create_app, guarded
from han_tf.serve.attention import AttentionModel
from han_tf.serve.limits import Limits
from han_tf.serve.server import server_config
from han_tf.serve.service import Example, Service
from han_tf.serve.store import Store
from han_tf.weights import resolve, shipped_names

FORMATS = ("openvino", "onnx", "saved_model", "tflite")
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
"""The order in which exports are preferred if none is named: the fastest runtime first, then the highest precision."""

SAMPLED = 1000
"""Entries whose paths tell where a gallery's images are."""

FEW_FOLDERS = 20
"""If the images are in more folders, their common parent is used."""


@contextmanager
def starting() -> Iterator[None]:
    """Turns any error while a service starts into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the service cannot start: {type(error).__name__}: {reason}") from error


def open_service(
    gallery: Gallery,
    *,
    model: Optional[str] = None,
    extractor: Optional[FeatureExtractor] = None,
    attention: Optional[str] = None,
    runs_dir: Union[str, os.PathLike] = "runs",
    state: Union[str, os.PathLike],
    read_only: bool = False,
    image_roots: Sequence[str] = (),
    threads: Optional[int] = None,
    white_level: Optional[float] = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    examples: Sequence[Example] = (),
) -> Service:
    """Opens everything that a service needs; after an error all of it is closed again.

    Args:
      gallery: open, and writable unless ``read_only``; the service closes it.
      model: a run's folder or an exported model; None for one in ``runs_dir`` with the gallery's checksum.
      extractor: the model, if it is open already.
      attention: run whose network draws overlays; None for the model's own run, if any.
      runs_dir: where to look for a model.
      state: folder for feedback and added images.
      read_only: whether nothing is written to ``state``.
      image_roots: folders from which images may be shown; the folders of the gallery's images if empty.
      threads: threads of the network.
      white_level: the value that is white in grey images of more than 8 bits, see :class:`han_tf.data.depth.Depth`;
        None for that of the gallery's images.
      limits, examples: see :class:`Service`.

    Raises:
      UserError: something is missing, damaged or of another model.
    """
    store = None
    try:
        for root in image_roots:
            if not Path(root).is_dir():
                raise UserError(f"{root}: no such folder, expected one that holds images of the gallery")
        if extractor is None:
            model = model or find_model(runs_dir, gallery.checksum)
            white_level = white_level or gallery.white_level
            extractor = FeatureExtractor(model, threads=threads, white_level=white_level)
        gallery.check_model(extractor.checksum)
        run = attention or (run_of(model) if model else None)
        drawing = None
        if run:
            try:
                drawing = AttentionModel(run)
            except UserError:
                if attention:
                    raise
            if drawing is not None and not attention and drawing.checksum != gallery.checksum:
                drawing = None  # the run was trained further after the export
        store = Store(state, read_only)
        return Service(
            gallery,
            extractor,
            store,
            image_roots=image_roots or folders_of(gallery, store.holds),
            limits=limits,
            attention=drawing,
            examples=examples,
        )
    except BaseException:
        gallery.close()
        if store is not None:
            store.close()
        raise


def find_model(runs_dir: Union[str, os.PathLike], checksum: str) -> str:
    """Returns the folder of a model with this checksum: an export if there is one, else the run.

    Raises:
      UserError: there is none.
    """
    exports = []
    for card_path in Path(runs_dir).glob(f"*/**/{CARD}"):
        try:
            card = read_card(card_path.parent)
        except UserError:
            continue
        if card.checksum == checksum and card.format in FORMATS and card.precision in PRECISIONS:
            rank = FORMATS.index(card.format), PRECISIONS.index(card.precision)
            exports.append((rank, str(card_path.parent)))
    if exports:
        return min(exports)[1]
    # Newest first, because a run's weights must be loaded to compute its checksum.
    runs = [config.parent for config in Path(runs_dir).glob(f"*/{CONFIG}")]
    for run in sorted(runs, key=_last_change, reverse=True):
        with suppress(UserError):
            loaded = load_run(run)
            if network_checksum(loaded.model, loaded.config) == checksum:
                return str(run)
    for name in shipped_names():
        loaded = load_run(name)
        if network_checksum(loaded.model, loaded.config) == checksum:
            return name
    raise UserError(
        f"{runs_dir}: no model {checksum[:12]}…, which made the index's features; expected --model with its run's "
        "folder or one of its exports"
    )


def _last_change(run: Path) -> float:
    return max((path.stat().st_mtime for path in run.glob(f"{CHECKPOINTS['last']}/checkpoint")), default=0.0)


def run_of(model: Union[str, os.PathLike]) -> Optional[str]:
    """Returns the folder of the run that a model is or is in, as exports are; None if there is none.

    Exports of a network that comes with the package lie in ``runs/NAME``; its folder is that of the package.
    """
    parents = Path(model).absolute().parents[:3]
    shipped = [resolve(folder.name) for folder in parents if folder.name in shipped_names()]
    folders = (resolve(model), *parents, *shipped)
    return next((str(folder) for folder in folders if (folder / CONFIG).is_file()), None)


def folders_of(gallery: Gallery, is_copy: Callable[[str], bool]) -> list[str]:
    """Returns the folders of a gallery's images, according to a sample of them.

    Many folders, for example one per person, are replaced by their common parent unless that is the root.

    Args:
      gallery: the gallery.
      is_copy: returns whether a path is that of an added image, which the service keeps in its own folder.
    """
    entries = gallery.some(SAMPLED)
    folders = {Path(entry.path).absolute().parent for entry in entries if entry.path and not is_copy(entry.path)}
    if len(folders) > FEW_FOLDERS:
        common = Path(os.path.commonpath(folders))
        if common != Path(common.anchor):
            return [str(common)]
    return sorted(map(str, folders))


class _Server(uvicorn.Server):
    """A server that starts the service before the first request, closes it after the last, and ends on SIGHUP, too."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]):
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: Optional[list[socket.socket]] = None) -> None:
        try:
            with starting():
                await self._service.start()
        except UserError:
            await self._service.close()
            raise
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: Optional[list[socket.socket]] = None) -> None:
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._service.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():  # raises the signals again that were handled in the block
            in_main = threading.current_thread() is threading.main_thread()
            if not (in_main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL):
                yield
                return
            signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, signal.SIG_DFL)


def serve(
    service: Service,
    bound: socket.socket,
    hosts: Collection[str],
    ready: Callable[[], None],
    started: Callable[[uvicorn.Server], None] = lambda server: None,
    access: Access = Access(),  # noqa: B008 - frozen
) -> None:
    """Answers requests until SIGINT, SIGTERM or SIGHUP; then finishes the accepted ones and raises the signal again.

    SIGHUP, which a closed terminal sends, stays ignored if it was ignored before, as under ``nohup``.

    Args:
      service: what to serve; closed at the end.
      bound: socket of :func:`han_tf.serve.server.listen`.
      hosts: names of the service.
      ready: called when requests are answered.
      started: called with the server; setting its ``should_exit`` ends it in a thread, which gets no signals.
      access: who may do what.

    Raises:
      UserError: the service cannot start.
    """
    app = guarded(create_app(service, access), service, hosts, access)
    server = _Server(server_config(app, service.limits), service, ready)
    started(server)
    server.run([bound])


def address_of(bound: socket.socket) -> str:
    """Returns the address of a bound socket, to be opened in a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
