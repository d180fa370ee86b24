"""Runs commands in forked children, with kills and disk faults at a chosen moment.

Forked children need not import TensorFlow again. All computation is in children: a process that has used TensorFlow
cannot be forked any more.
"""

import atexit
import ctypes
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional

from experiments.measuring import memory_mb

LIBRARY = "HAN_TF_CHAOS_LIBRARY"
"""Environment variable with the path of the library of faults, set once the library is loaded."""

COUNT, KILL, FULL, BROKEN, UNREADABLE = range(5)
"""Kinds of faults, numbered as in ``faults.c``: none, SIGKILL, ENOSPC, EIO of writes, EIO of reads."""

CRASHED = 70
"""Exit status of a child that ended with a traceback."""


class Fault(NamedTuple):
    """A fault: its kind, and the number of calls beneath the command's folder after which it begins."""

    kind: int = COUNT
    after: int = 0


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      status: exit status; minus the signal that ended it.
      said: the end of what it printed.
      calls: writes and reads beneath the folder; zeros if it was killed or the library is not loaded.
      seconds: how long it ran.
    """

    status: int
    said: str
    calls: tuple[int, int]
    seconds: float


def load_faults(folder: Path) -> str:
    """Compiles the library of faults and restarts this program with it; returns "" then, or why it cannot compile."""
    if os.environ.get(LIBRARY):
        atexit.register(shutil.rmtree, Path(os.environ[LIBRARY]).parent, True)
        return ""
    library = folder / "faults.so"
    source = Path(__file__).parent / "faults.c"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no C compiler ({error}): no kills at chosen writes, no full disk and no EIO"
    preloaded = f"{library}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
    os.environ.update({LIBRARY: str(library), "LD_PRELOAD": preloaded})
    os.execv(sys.executable, sys.orig_argv)


def start(call: Callable[[], Any], log: Path, folder: Path, fault: Fault = Fault()) -> int:  # noqa: B008
    """Starts ``call`` in a child with a fault beneath ``folder``; returns its process id.

    The child prints into ``log``, which is not beneath ``folder``, so that writing it does not fail.
    """
    process = os.fork()
    if process:
        return process
    status: Any = CRASHED
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # instead of this program's handler
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        library = ctypes.CDLL(os.environ[LIBRARY]) if os.environ.get(LIBRARY) else None
        if library:
            library.chaos_arm(os.fsencode(folder), fault.kind, ctypes.c_long(fault.after))
        status = call() or 0
        if library:
            calls = " ".join(str(library.chaos_calls(reading)) for reading in (0, 1))
            log.with_suffix(".calls").write_text(calls)
    except BaseException:
        traceback.print_exc()
    _leave(status)


def _leave(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def wait(process: int, log: Path, seconds: Optional[float] = None, most: float = 600) -> Ended:
    """Waits for a child and returns how it ended; kills it after ``seconds``, or after ``most`` if it hangs."""
    begun = time.monotonic()
    end = begun + min(most, most if seconds is None else seconds)
    while not (ended := os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG)):
        if time.monotonic() >= end:
            os.kill(process, signal.SIGKILL)
            ended = os.waitid(os.P_PID, process, os.WEXITED)
            break
        time.sleep(0.002)
    status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    counted, calls = log.with_suffix(".calls"), (0, 0)
    if counted.exists():
        calls = tuple(map(int, counted.read_text().split()))
        counted.unlink()
    said = log.read_text(errors="replace")[-4000:] if log.exists() else ""
    return Ended(status, said, calls, time.monotonic() - begun)


def result_of(call: Callable[[], Any], log: Path) -> Any:
    """Runs ``call`` in a child and returns its result.

    Raises:
      RuntimeError: it raised, or the child died; the message has the end of the output.
    """
    answer = log.with_suffix(".answer")
    ended = wait(start(lambda: answer.write_bytes(pickle.dumps(call())) and None, log, log), log)
    if ended.status:
        raise RuntimeError(f"status {ended.status}: {ended.said}")
    return pickle.loads(answer.read_bytes())  # written by this program


def bound_memory(more: int) -> None:
    """Limits this process's memory to ``more`` bytes above its present size."""
    most = int(2**20 * memory_mb("VmSize")) + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
