"""Runs commands in forked children, with kills and disk faults at a chosen moment.

Forked children need not import TensorFlow again. All computation is in children: a process that has used TensorFlow
cannot be forked any more.
"""

import atexit
import ctypes
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, NamedTuple, Optional

LIBRARY = "HAN_TF_CHAOS_LIBRARY"
"""Environment variable with the path of the library of faults, set once the library is loaded."""

KINDS = ("", "kill", "disk full", "EIO, write", "EIO, read")
OF_DISK = KINDS[2:]
"""Kinds of faults, numbered as in ``faults.c``; the first one is none."""


class Fault(NamedTuple):
    """What disturbs a command."""

    kind: str = ""  # one of KINDS
    after: int = 0  # number of calls beneath the command's folder after which it begins
    seconds: Optional[float] = None  # time after its start at which the command is killed instead; None for never


UNDISTURBED = Fault()


class Ended(NamedTuple):
    """How a command ended."""

    status: int  # exit status, or minus the signal that ended it
    said: str  # the end of what it printed
    calls: tuple[int, int]  # writes and reads beneath the folder; zeros if it was killed or the library is not loaded
    seconds: float  # how long it ran
    hung: bool = False  # whether it had to be killed because it did not end


class Tally:
    """The figures of one case: counts by name, and ``faults``, a line for each thing that went wrong."""

    def __init__(self, case: str):
        self._case, self._begun = case, time.monotonic()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    @property
    def seconds(self) -> float:
        """Time since the case began."""
        return time.monotonic() - self._begun

    def figures(self, names: Iterable[str], **more: Any) -> dict[str, Any]:
        """Returns the figures as results hold them: the counts called ``names``, ``more``, seconds and faults."""
        counts = {name: self.counts[name] for name in names}
        return {"case": self._case, **counts, **more, "seconds": self.seconds, "faults": self.faults}


class Child(ForkProcess):
    """A call in a child process, which starts at once, with a fault beneath ``folder``.

    ``call`` returns the exit status; None for 0. The child prints into ``log``, which is not beneath ``folder``, so
    that writing it does not fail.
    """

    def __init__(self, call: Callable[[], Any], log: Path, folder: Optional[Path] = None, fault: Fault = UNDISTURBED):
        super().__init__()
        self._call, self._log, self._folder, self._fault = call, log, folder, fault
        self._calls, self._begun = RawArray("l", 2), time.monotonic()
        self._killer = threading.Timer(fault.seconds or 0, self.kill)
        self.start()
        if fault.seconds is not None:
            self._killer.start()

    def run(self) -> None:
        """Runs the call; in the child."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # instead of this program's handler
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        library = ctypes.CDLL(os.environ[LIBRARY]) if os.environ.get(LIBRARY) else None
        if library and self._folder:
            kind, after, _ = self._fault
            library.chaos_arm(os.fsencode(self._folder), KINDS.index(kind), ctypes.c_long(after))
        status = self._call()
        if library:
            self._calls[:] = [library.chaos_calls(reading) for reading in (0, 1)]
        sys.exit(status)

    def end(self, most: float = 600) -> Ended:
        """Waits for the end and returns it; kills the command if it has not ended after ``most`` seconds."""
        self.join(most)
        hung = self.is_alive()
        self.kill()
        self.join()
        self._killer.cancel()
        said = self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""
        return Ended(self.exitcode, said, tuple(self._calls), time.monotonic() - self._begun, hung)


def result_of(call: Callable[[], Any], log: Path) -> Any:
    """Runs ``call`` in a child and returns its result.

    Raises:
      RuntimeError: it raised, or the child died; the message has the end of the output.
    """
    answer = log.with_suffix(".answer")
    ended = Child(lambda: answer.write_bytes(pickle.dumps(call())) and None, log).end()
    if ended.status:
        raise RuntimeError(f"status {ended.status}: {ended.said}")
    return pickle.loads(answer.read_bytes())  # written by this program


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
