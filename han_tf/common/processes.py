"""Child processes, usable cores, free memory, redirected output, and signals that ask to stop."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Makes this process get SIGTERM when its parent ends, in whatever way; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def signal_name(number: int) -> str:
    """Returns the name of a signal, such as ``SIGSEGV``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def usable_cores() -> int:
    """Returns how many cores this process may use; containers and ``taskset`` may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory_mb() -> Optional[int]:
    """Returns how much memory is free for programs, in MiB; None if the system does not report it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(int(line.split()[1]) // 1024 for line in stream if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


@contextmanager
def redirected(descriptors: Sequence[int], target: int) -> Iterator[list[int]]:
    """Sends what is written to file descriptors, also by C++ code, to the open file ``target`` while the block runs.

    Yields copies of ``descriptors`` (1 is standard output, 2 standard error) that are not redirected.
    """
    sys.stdout.flush(), sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in descriptors]
    try:
        for descriptor in descriptors:
            os.dup2(target, descriptor)
        yield kept
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for descriptor, original in zip(descriptors, kept):
            os.dup2(original, descriptor)
            os.close(original)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that collects SIGINT, SIGTERM and SIGHUP while the block runs, instead of their usual effect.

    A SIGHUP that is ignored (``nohup``) stays ignored.
    """
    caught: list[int] = []
    previous = {
        number: signal.signal(number, lambda received, _: caught.append(received))
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))  # Windows has no SIGHUP
        if number in (signal.SIGINT, signal.SIGTERM) or (number and signal.getsignal(number) != signal.SIG_IGN)
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
