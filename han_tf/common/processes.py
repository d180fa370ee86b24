"""Processes that this one starts, and the cores there are for them."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Called in a new process: it gets SIGTERM when its parent ends, in whatever way. Only Linux can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def usable_cores() -> int:
    """Returns how many cores this process may use: containers and ``taskset`` often grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Turns SIGINT, SIGTERM and SIGHUP into entries of the list it gives, for as long as the block runs."""
    caught: list[int] = []
    previous = {
        number: signal.signal(number, lambda received, _: caught.append(received))
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))  # which Windows does not have
        if number in (signal.SIGINT, signal.SIGTERM) or (number and signal.getsignal(number) != signal.SIG_IGN)  # nohup
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
