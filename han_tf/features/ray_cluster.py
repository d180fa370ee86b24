"""A Ray cluster: connecting to it, its machines, and whether it can still be reached; every failure is one line."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Optional

from tqdm import tqdm

from han_tf.common.errors import Note, UserError
from han_tf.common.processes import usable_cores

LOCAL = "local"
AUTO = "auto"

CONNECT_SECONDS = 5
ANSWER_SECONDS = 20
"""Time limits for a cluster to accept a connection, and to answer. Ray itself tries for minutes."""

WATCH_SECONDS = 5
LOST_SECONDS = 20
"""Interval between checks that the cluster's head can be reached, and time after which an unreachable head counts as
lost. Ray itself would end the process after a minute, without a message."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a local Ray, which holds only paths and numbers."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable; 0 makes Ray use 127.0.0.1 instead of an address that other machines can reach."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Yields the module ``ray``, which is connected to the cluster while the block runs.

    Args:
      address: ``HOST:PORT`` of a cluster's head; ``auto`` for the cluster of this machine, or that in ``RAY_ADDRESS``;
        ``local`` for a new one on this machine, which ends with the block.

    Raises:
      UserError: Ray is not installed, the cluster cannot be reached or is of another version; in the block, Ray failed,
        or a task or actor raised UserError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a future change
    options: dict[str, Any] = {}
    if address == LOCAL:
        os.environ.setdefault(_LOOPBACK, "0")
        options = {"num_cpus": usable_cores(), "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    elif address != AUTO:
        _check_address(address)
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({error}), expected: pip install '.[ray]' in han-tf's folder") from error
    if address != LOCAL:
        _check_answer(address)
    try:
        with _without_dashboard(ray) if address == LOCAL else contextlib.nullcontext():
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (Exception, SystemExit) as error:  # Ray exits the process after a timeout
        raise UserError(f"Ray at {address}: {_line(str(error))}, expected a cluster to connect to") from error
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise  # a bug
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray at {address} failed: {_line(str(error))}; the same command makes the others") from error
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_dashboard(ray: ModuleType) -> Iterator[None]:
    """Keeps Ray from starting the process of its dashboard while the block runs.

    ``include_dashboard=False`` leaves a part of it, which asks the servers of three cloud providers whether it runs
    there, even if reports are off. Ray has no option for that, so a private function is replaced; if a newer version
    does not have it, the part starts, with a note.
    """
    services = getattr(getattr(ray, "_private", None), "services", None)
    start = getattr(services, "start_api_server", None)
    if start is None:
        warnings.warn(
            "this Ray starts a part of its dashboard, which may ask servers of cloud providers where it runs",
            Note,
            stacklevel=2,
        )
        yield
        return
    services.start_api_server = lambda *_, **__: ("", None)  # address of the dashboard, and its process
    try:
        yield
    finally:
        services.start_api_server = start


def machines(ray: ModuleType) -> dict[str, Mapping[str, float]]:
    """Returns ID -> resources, by Ray's names, of the cluster's machines."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def actor_needs(ray: ModuleType, address: str, cpus: int, gpu: bool) -> dict[str, int]:
    """Returns the resources that an actor takes, by Ray's names.

    Args:
      ray: from :func:`connected`.
      address: of the cluster, for messages.
      cpus: cores of each actor.
      gpu: whether each actor also gets a GPU, if the cluster has any.

    Raises:
      UserError: no machine has these resources.
    """
    has_gpus = any(has.get("GPU", 0) >= 1 for has in machines(ray).values())
    needs = {"CPU": cpus, "GPU": 1} if gpu and has_gpus else {"CPU": cpus}
    if not _room(ray, needs):
        most = max((has.get("CPU", 0) for has in machines(ray).values()), default=0)
        raise UserError(
            f"Ray at {address}: at most {most:g} cores on a machine, expected one with at least {cpus}"
            + (" and a GPU" if "GPU" in needs else "")
        )
    return needs


def _room(ray: ModuleType, needs: Mapping[str, int]) -> int:
    """Returns how many actors the cluster has room for; an actor cannot be spread over machines."""
    return sum(min(int(has.get(name, 0)) // number for name, number in needs.items()) for has in machines(ray).values())


def rooms(ray: ModuleType, address: str, needs: Mapping[str, int]) -> Iterator[int]:
    """Yields, without end, how many actors the cluster has room for now; prints a note when there is none.

    Raises:
      UserError: the cluster's head has been lost.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    reached, room = time.monotonic(), 1
    while True:
        if _refusal(host, int(port)) is None:
            reached = time.monotonic()
            before, room = room, _room(ray, needs)
            if before and not room:
                tqdm.write(f"note: no machine of {address} has room for an actor; waiting for one", sys.stderr)
        elif time.monotonic() - reached > LOST_SECONDS:
            raise UserError(
                f"Ray at {address}: the head of the cluster was lost; finished files stay, the same command makes the "
                "others"
            )
        yield room


def _check_address(address: str) -> None:
    """Raises UserError unless something accepts connections there."""
    host, separator, port = address.rpartition(":")
    if "://" in address or not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--ray {address}: expected HOST:PORT of the cluster's head, {AUTO} or {LOCAL}")
    if host in ("127.0.0.1", "localhost"):
        # Ray replaces these by the machine's outer address, at which a cluster of one machine may not listen.
        if _refusal(_outer_address(), int(port)) is None:
            return
        os.environ.setdefault(_LOOPBACK, "0")
    refusal = _refusal(host, int(port))
    if refusal is not None:
        raise UserError(f"Ray at {address} cannot be reached ({refusal}), expected HOST:PORT of a cluster's head")


def _refusal(host: str, port: int) -> Optional[str]:
    """Returns why nothing accepts connections there, or None if something does."""
    try:
        socket.create_connection((host.strip("[]"), port), CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError:  # two dots side by side, for example
        return "no valid name"
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
    """Raises UserError unless a Ray of the same version answers; asks in another process, to limit the time."""
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
    """Returns the first and the last line of Ray's message, without the traceback between them."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return " … ".join(dict.fromkeys(line[:200] for line in [*lines[:1], *lines[-1:]]))
