"""Progress of long work: a bar on a terminal, one line a minute in a file or a pipe, nothing with ``--quiet``."""

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 60
"""Seconds between two lines if stderr is not a terminal; shorter work prints none."""

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turns all progress of this process off or on."""
    global _quiet
    _quiet = quiet


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """Returns a progress bar; takes the arguments of tqdm."""
    if _quiet or sys.stderr is None:
        options["disable"] = True
    is_terminal = getattr(sys.stderr, "isatty", lambda: False)()
    return (tqdm if is_terminal else Lines)(*arguments, **options)


class Lines(tqdm):
    """Progress as whole lines, without control characters."""

    def __init__(self, *arguments: Any, **options: Any):
        options.update(delay=LINE_SECONDS, mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS)
        self._last = time.monotonic()
        super().__init__(*arguments, **options)

    def display(self, msg: Any = None, pos: Any = None) -> None:
        """Prints a line if the last one is at least :data:`LINE_SECONDS` old."""
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            print(self._line(), file=self.fp, flush=True)

    def _line(self) -> str:
        """Returns a line such as ``features: 40%, 02:00 passed, 03:00 left, loss 1.2``."""
        now = self.format_dict
        told = [f"{now['n']:,} {now['unit']}"]
        if now["total"]:
            told = [f"{now['n'] / now['total']:.0%}"]
        told.append(f"{self.format_interval(now['elapsed'])} passed")
        done = now["n"] - now["initial"]
        if now["total"] and done > 0:
            left = now["elapsed"] / done * max(now["total"] - now["n"], 0)
            told.append(f"{self.format_interval(left)} left")
        told += [now["postfix"]] if now["postfix"] else []
        return f"{(now['prefix'] or '').rstrip(': ') or 'progress'}: {', '.join(told)}"

    def clear(self, *_: Any, **__: Any) -> None:
        """Does nothing: printed lines stay."""

    def close(self) -> None:
        """Ends the progress and prints nothing."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]
