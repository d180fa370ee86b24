"""What every command line shares: flags in, one call, a report or one line of error out.

Each command declares its flags in an ``absl.flags.FlagValues`` of its own, so that several commands
can be imported into one process. Exit status: 0 done, 1 the input was wrong, 2 the command line was
wrong, 128 + n stopped by signal n.
"""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

from absl import flags

from han_tf.errors import Stopped, UserError

# TensorFlow logs dozens of lines about drivers that a CPU has no use for; it reads this when it is imported,
# which the command lines do after this module. What goes wrong still raises.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A checkpoint that does not fit brings hundreds of warnings, too, beside the one line that says so.
logging.getLogger("tensorflow").setLevel(logging.ERROR)


def new_flags() -> flags.FlagValues:
    """Returns an empty set of flags that already knows ``--help``."""
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "Show these flags and exit.", short_name="h", flag_values=values)
    return values


def run(
    main: Callable[[flags.FlagValues], None],
    values: flags.FlagValues,
    description: str,
    argv: Optional[Sequence[str]] = None,
    positional: Optional[str] = None,
) -> int:
    """Parses ``argv``, calls ``main`` with the flags and returns the exit status.

    Args:
      main: takes the parsed flags; positional arguments, if allowed, are in ``values.positional``.
      values: the command's flags, from :func:`new_flags`.
      description: the command's docstring; printed by ``--help``.
      argv: the command line, program name first; ``sys.argv`` if None.
      positional: what positional arguments are called, where the command takes any.
    """
    argv = list(sys.argv if argv is None else argv)
    values.unparse_flags()  # a second call in one process starts from the defaults again
    try:
        try:
            rest = values(argv)[1:]
        except flags.IllegalFlagValueError:
            # A flag that must be given is missed only by those who want more than help.
            if not (values.is_parsed() and values.help):
                raise
        if values.help:
            print(f"{(description or '').strip()}\n\nFlags:\n{values.get_help(include_special_flags=False)}")
            return 0
        if rest and positional is None:
            raise flags.Error(f"takes no positional arguments, got {rest[0]!r}")
        for name, value in values.flag_values_dict().items():
            # NaN is neither below a lower bound nor above an upper one.
            if isinstance(value, float) and not math.isfinite(value):
                raise flags.Error(f"flag --{name}={value}: expected a finite number")
    except flags.Error as error:
        print(f"usage error: {' '.join(str(error).split())} (--help lists the flags)", file=sys.stderr)
        return 2
    values.__dict__["positional"] = rest
    try:
        with _unwound_by_sigterm():
            main(values)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the process only after what stands in ``finally`` clauses, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    came: list[int] = []

    def unwind(number: int, _: object) -> None:
        came.append(number)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGTERM)
