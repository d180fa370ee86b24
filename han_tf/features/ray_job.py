"""Extraction on the machines of a Ray cluster: a Ray Data set of shards, mapped by actors with the model.

A row of the data set is a shard's number and its images; the result is its number and the error, if any. The actors
write the features directly into the folder. All machines must see the folder, the images and the model under the same
paths. If a machine dies, Ray gives its unfinished shards to other actors. A shard appears only when it is whole; one
that is made twice is replaced by an equal one.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Union

from tqdm import tqdm

from han_tf.common.errors import UserError
from han_tf.common.processes import usable_cores
from han_tf.common.progress import progress_bar
from han_tf.data.image_lists import ImageList
from han_tf.features.extractor import FeatureExtractor
from han_tf.features.job import Plan, extract_shards
from han_tf.features.shards import Manifest, read_shard, read_summary
from han_tf.runs.card import CARD, ModelCard, read_card, verify_files
from han_tf.weights import resolve

LOCAL = "local"
AUTO = "auto"

CONNECT_SECONDS = 5
ANSWER_SECONDS = 20
"""Time limits for a cluster to accept a connection, and to answer. Ray itself tries for minutes."""

WATCH_SECONDS = 5
WATCH_FAILURES = 4
"""Interval between checks that the cluster's head is reachable; number of failures in a row after which it counts as
lost. Ray would end the process after a minute, without a message."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a local Ray; only paths and numbers pass through it."""

MOST_BLOCKS = 10_000
"""Largest number of blocks of the Ray Data set, each a task; with more shards, some tasks make several."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable; 0 makes Ray use 127.0.0.1 instead of an address that other machines can reach."""


def extract_with_ray(
    address: str,
    model: Union[str, os.PathLike],
    images: ImageList,
    folder: Union[str, os.PathLike],
    work: Plan,
    *,
    batch_size: int = 64,
    actors: int = 0,
    actor_cpus: int = 1,
    gpu: bool = True,
) -> int:
    """Makes the pending shards on a Ray cluster, with a progress bar over all images.

    Args:
      address: ``HOST:PORT`` of the cluster's head; ``auto`` for the cluster of this machine, or that of
        ``RAY_ADDRESS``; ``local`` for one on this machine that ends with the call.
      model: folder of a run or an exported model, or the name of a network that comes with the package.
      images: all images of the plan.
      folder: where the shards go.
      work: the plan.
      batch_size: images per call of the network.
      actors: number of processes that load the model; as many as the cluster has room for if 0.
      actor_cpus: cores of each actor.
      gpu: whether each actor also gets a GPU, if the cluster has any.

    Returns:
      Number of machines that were lost meanwhile.

    Raises:
      UserError: Ray is not installed; the cluster cannot be reached or is too small; an actor cannot use the model
        or cannot write.
    """
    if not work.pending:
        return 0
    with _connected(address) as ray:
        needs = _needs(ray, actor_cpus, gpu)
        room = min(_checked_room(ray, address, needs), len(work.pending))
        free = ray.available_resources()
        if any(free.get(name, 0) < number for name, number in needs.items()):
            print(f"note: Ray at {address} is busy with other work; waiting until there is room for an actor")
        machines = _machines(ray)
        rows = _rows(images, work)
        with _silent(), _watched(ray, address, needs):
            shards = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map(
                ShardMaker,
                fn_constructor_args=(
                    _everywhere(model),
                    os.path.abspath(folder),
                    work.manifest,
                    actor_cpus,
                    batch_size,
                ),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=actors or room, initial_size=min(actors or room, room)
                ),
                num_cpus=actor_cpus,
                num_gpus=needs.get("GPU", 0),
            )
            done = len(images) - sum(end - start for start, end in map(work.manifest.bounds, work.pending))
            with progress_bar(total=len(images), initial=done, desc="features", unit="img", smoothing=0.1) as bar:
                for summary in shards.iter_rows():
                    if summary["problem"]:
                        raise UserError(summary["problem"])
                    bar.update(summary["images"])
        return len(machines.keys() - _machines(ray).keys())


def _everywhere(model: Union[str, os.PathLike]) -> str:
    """Returns what names a model on all machines: an absolute path, or the name of one that comes with the package."""
    return os.path.abspath(model) if resolve(model) == Path(model) else str(model)


def check_cluster(address: str, actor_cpus: int = 1, gpu: bool = True) -> None:
    """Connects to a Ray cluster and disconnects; the arguments are those of :func:`extract_with_ray`.

    Raises:
      UserError: Ray is not installed; the cluster cannot be reached or is too small.
    """
    with _connected(address) as ray:
        _checked_room(ray, address, _needs(ray, actor_cpus, gpu))


def model_card(model: Union[str, os.PathLike]) -> ModelCard:
    """Returns the card of a run or an exported model, without using a GPU, which the actors need.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    if (Path(model) / CARD).exists():
        card = read_card(model)
        verify_files(model, card)
        return card
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return FeatureExtractor(model).card


class ShardMaker:
    """Makes one shard per call; an actor of Ray Data, which loads the model once.

    Args:
      model: folder of a run or an exported model.
      folder: where the shards go.
      manifest: the folder's manifest.
      threads: number of threads of the network, and of those that decode.
      batch_size: images per call of the network.
    """

    def __init__(self, model: str, folder: str, manifest: Manifest, threads: int, batch_size: int):
        self._folder, self._manifest = folder, manifest
        self._problem = ""
        try:
            # Created in the actor: a runtime cannot be sent to another process.
            self._extractor = FeatureExtractor(model, threads=threads, batch_size=batch_size)
            if self._extractor.checksum != manifest.model:
                found = self._extractor.checksum
                raise UserError(f"{model}: checksum {found}, expected {manifest.model} as where the command was given")
        except UserError as error:
            # An exception would show as Ray's, with a traceback, and only after Ray has retried.
            self._problem = f"{socket.gethostname()}: {error}"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Makes a shard, unless an actor that has died since has made it.

        Args:
          row: its number ``shard`` and its ``images``, a pickled :class:`ImageList`.

        Returns:
          ``shard``, its number of ``images``, and the ``problem`` in one line, ``""`` if there is none.
        """
        number = int(row["shard"])
        start, end = self._manifest.bounds(number)
        problem = self._problem
        if not problem:
            try:
                self._make(number, row["images"])
            except UserError as error:
                problem = f"{socket.gethostname()}: {error}"
        return {"shard": number, "images": end - start, "problem": problem}

    def _make(self, number: int, pickled: bytes) -> None:
        try:
            read_shard(self._folder, self._manifest, number)
        except UserError:
            extract_shards(self._extractor, pickle.loads(pickled), self._folder, self._manifest, [number])
            read_summary(self._folder, self._manifest, number)


def _machines(ray: ModuleType) -> dict[str, Mapping[str, float]]:
    """Returns ID -> resources of the machines of the cluster, by Ray's names."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _needs(ray: ModuleType, actor_cpus: int, gpu: bool) -> dict[str, int]:
    """Returns the resources that an actor takes, by Ray's names."""
    has_gpus = any(has.get("GPU", 0) >= 1 for has in _machines(ray).values())
    return {"CPU": actor_cpus, "GPU": 1} if gpu and has_gpus else {"CPU": actor_cpus}


def _room(ray: ModuleType, needs: Mapping[str, int]) -> int:
    """Returns how many actors the cluster has room for; each has to fit into one machine."""
    return sum(
        min(int(has.get(name, 0)) // number for name, number in needs.items()) for has in _machines(ray).values()
    )


def _checked_room(ray: ModuleType, address: str, needs: Mapping[str, int]) -> int:
    room = _room(ray, needs)
    if not room:
        most = max((has.get("CPU", 0) for has in _machines(ray).values()), default=0)
        raise UserError(
            f"Ray at {address}: at most {most:g} cores on a machine, expected one with at least {needs['CPU']}"
            + (" and a GPU" if "GPU" in needs else "")
        )
    return room


def _rows(images: ImageList, work: Plan) -> list[dict[str, Any]]:
    return [
        {"shard": number, "images": pickle.dumps(images.part(*work.manifest.bounds(number)))} for number in work.pending
    ]


@contextlib.contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    """Connects to a cluster, or starts one, while the block runs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Silences warnings about future changes and about restarts of actors.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == LOCAL:
        os.environ.setdefault(_LOOPBACK, "0")
    else:
        _check_address(address)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({error}), expected: pip install 'han-tf[ray]'") from error
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options.update(
            num_cpus=usable_cores(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
    else:
        _check_answer(address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with _without_stderr():  # Ray's C++ code prints that it was told to be quiet
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except (Exception, SystemExit) as error:  # Ray exits the process after a timeout
        raise UserError(f"Ray at {address}: {_line(str(error))}, expected a cluster to connect to") from error
    try:
        yield ray
    except ray.exceptions.RayTaskError:
        raise  # an exception of our own code
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray at {address} failed: {_line(str(error))}; the same command goes on") from error
    finally:
        with _silent():
            ray.shutdown()


class _HeadLost(BaseException):
    """The cluster's head is lost; like KeyboardInterrupt, Ray's own handlers do not catch it."""


@contextlib.contextmanager
def _watched(ray: ModuleType, address: str, needs: Mapping[str, int]) -> Iterator[None]:
    """Raises UserError in the block if the cluster's head is lost; prints a note if no machine has room for an actor.

    To be called from the main thread.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    done = threading.Event()

    def watch() -> None:
        failures, waiting = 0, False
        while not done.wait(WATCH_SECONDS) and failures < WATCH_FAILURES:
            failures = failures + 1 if _refusal(host.strip("[]"), int(port)) else 0
            if not failures:
                was, waiting = waiting, not _room(ray, needs)
                if waiting and not was:
                    tqdm.write(f"note: no machine of {address} has room for an actor; waiting for one", sys.stderr)
        if not done.is_set():
            # Only a signal interrupts the main thread while it waits for the cluster. SIGINT will not do: a command
            # in the background ignores it.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

    def give_up(*_: object) -> None:
        if not done.is_set():
            raise _HeadLost

    before = signal.signal(signal.SIGUSR2, give_up)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except _HeadLost as error:
        raise UserError(
            f"Ray at {address}: the head of the cluster was lost; finished files stay, the same command goes on"
        ) from error
    finally:
        done.set()
        signal.signal(signal.SIGUSR2, before)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discards what is written to Python's standard output, such as Ray's messages."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Discards everything that the process writes to standard error, C++ code included."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_address(address: str) -> None:
    """Raises UserError unless something accepts connections there."""
    if address == AUTO:
        return
    host, separator, port = address.rpartition(":")
    if "://" in address or not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--ray {address}: expected HOST:PORT of the cluster's head, {AUTO} or {LOCAL}")
    if host in ("127.0.0.1", "localhost"):
        # Ray replaces these by the machine's outer address, where a cluster of one machine may not listen.
        if _refusal(_outer_address(), int(port)) is None:
            return
        os.environ.setdefault(_LOOPBACK, "0")
    refusal = _refusal(host.strip("[]"), int(port))
    if refusal is not None:
        raise UserError(f"Ray at {address} cannot be reached ({refusal}), expected HOST:PORT of a cluster's head")


def _refusal(host: str, port: int) -> Optional[str]:
    """Returns why nothing accepts connections there, or None if something does."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _outer_address() -> str:
    """Returns this machine's address for connections to others; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        try:
            stream.connect(("192.0.2.1", 9))  # reserved for documentation
            return stream.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _check_answer(address: str) -> None:
    """Raises UserError unless a Ray of the same version answers; asks in another process, which can be timed out."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == AUTO else ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        reason = done.stderr.strip().rpartition("\n")[2][:200] if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"no answer within {ANSWER_SECONDS} s"
    if reason:
        raise UserError(f"Ray at {address} cannot be used ({reason}), expected HOST:PORT of a cluster's head")


def _line(text: str) -> str:
    """Returns the first and the last line of Ray's message, without the traceback that often stands between them."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return " … ".join(dict.fromkeys(line[:200] for line in [*lines[:1], *lines[-1:]]))
