"""Extraction shared by the machines of a Ray cluster: a Ray Data set of shards, mapped by actors with the model.

A row of the data set is a shard's number and its images; what comes back is its number and whether it was made. The
features themselves go straight from the actors into the folder, which all machines must see under the same path, as
they must the images and the model. What a machine that dies had not finished Ray gives to another actor; a shard
appears only when it is whole, and whoever makes it twice puts the same in its place.
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

LOCAL = "local"
AUTO = "auto"

CONNECT_SECONDS = 5
ANSWER_SECONDS = 20
"""How long a cluster may take to accept a connection, and to answer. Ray itself tries for minutes."""

WATCH_SECONDS = 5
WATCH_FAILURES = 4
"""How often the head of the cluster is looked for while it works, and how often in a row it may be missing. Ray would
end the process after a minute, without a word."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a local Ray: only paths and numbers pass through it."""

MOST_BLOCKS = 10_000
"""Blocks of the Ray Data set at most, each a task of its own; with more shards some tasks make several."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, this makes Ray use 127.0.0.1 instead of an address that other machines can reach."""


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
      model: folder of a run or an exported model.
      images: all images of the plan.
      folder: where the shards go.
      work: what is to be done.
      batch_size: images per call of the network.
      actors: how many processes load the model; as many as the cluster has room for if 0.
      actor_cpus: cores of each.
      gpu: whether each also gets a GPU, if the cluster has any.

    Returns:
      How many machines were lost meanwhile.

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
                    os.path.abspath(model),
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


def check_cluster(address: str, actor_cpus: int = 1, gpu: bool = True) -> None:
    """Connects to a Ray cluster and leaves it again; the arguments are those of :func:`extract_with_ray`.

    Raises:
      UserError: Ray is not installed; the cluster cannot be reached or is too small.
    """
    with _connected(address) as ray:
        _checked_room(ray, address, _needs(ray, actor_cpus, gpu))


def model_card(model: Union[str, os.PathLike]) -> ModelCard:
    """Returns the card of a run or an exported model, and takes no GPU away from the actors for it.

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
      manifest: what it is to hold.
      threads: how many decode, and how many the network runs with.
      batch_size: images per call of the network.
    """

    def __init__(self, model: str, folder: str, manifest: Manifest, threads: int, batch_size: int):
        self._folder, self._manifest = folder, manifest
        self._problem = ""
        try:
            # Made here, in the actor: no runtime's network can be sent to another process.
            self._extractor = FeatureExtractor(model, threads=threads, batch_size=batch_size)
            if self._extractor.checksum != manifest.model:
                found = self._extractor.checksum
                raise UserError(f"{model}: checksum {found}, expected {manifest.model} as where the command was given")
        except UserError as error:
            # An exception would come out as Ray's, with a traceback, and only after Ray has tried it again.
            self._problem = f"{socket.gethostname()}: {error}"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Makes a shard, unless an actor that died right afterwards has made it.

        Args:
          row: its number ``shard`` and its ``images``, a pickled :class:`ImageList`.

        Returns:
          ``shard``, its number of ``images``, and the ``problem`` in one line, ``""`` if there was none.
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
    """Returns the machines of the cluster and what each has, by Ray's names."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _needs(ray: ModuleType, actor_cpus: int, gpu: bool) -> dict[str, int]:
    """Returns what an actor takes of a machine."""
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
    """Connects to a cluster, or starts one, until the block ends."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Warnings about the future, and about what restarts of actors depend on.
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
        with _without_stderr():  # where Ray's C++ says that it was told to be quiet
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except (Exception, SystemExit) as error:  # Ray exits the process when it has tried for too long
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
    """Passes through Ray's own handlers of exceptions, as KeyboardInterrupt does."""


@contextlib.contextmanager
def _watched(ray: ModuleType, address: str, needs: Mapping[str, int]) -> Iterator[None]:
    """Ends the block with an error when the cluster's head is lost, and says when all other machines are.

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
            # A signal, since nothing else gets the main thread out of waiting for the cluster; not that of Ctrl-C,
            # which a command in the background ignores.
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
    """Keeps what Ray prints of its own attempts from stdout; what comes of them is said by the command."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Sends the process's standard error nowhere, whoever writes to it."""
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
        # Ray replaces these by the address that other machines see, where a cluster of one machine may not listen.
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
    """Returns the address under which this machine would speak to others; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        try:
            stream.connect(("192.0.2.1", 9))  # an address for documentation, nobody's
            return stream.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _check_answer(address: str) -> None:
    """Raises UserError unless a Ray of the same version answers there. In a process of its own, which can be ended."""
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
    """Returns the first and the last line of what Ray says; between them there often is a traceback."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return " … ".join(dict.fromkeys(line[:200] for line in [*lines[:1], *lines[-1:]]))
