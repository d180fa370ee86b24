"""The shared part of all commands: parse the flags, call ``main``, end with an exit status or one line of error.

Each command declares its flags in a :class:`Flags` of its own, so that several commands can be imported into one
process. Slow imports stand in a ``with deferred_imports(__name__)`` block and run after the flags are parsed.
Exit status: 0 done, 1 wrong input or unwritable output, 2 wrong command line, 128 + n stopped by signal n.
"""

import builtins
import codecs
import io
import logging
import os
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from absl import flags
from tqdm import tqdm

from han_tf import __version__
from han_tf.common import quiet_tensorflow
from han_tf.common.errors import Note, Stopped, UserError, one_line, printable
from han_tf.common.flags import Flags
from han_tf.common.progress import set_quiet

# Hides TensorFlow's log lines about missing GPU drivers; to be set before TensorFlow is imported. Errors still raise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
quiet_tensorflow.install()
# A checkpoint that does not fit logs hundreds of warnings beside its one line of error.
logging.getLogger("tensorflow").setLevel(logging.ERROR)


class UsageError(UserError):
    """An error in the command line that the flags' own checks cannot find; exit status 2."""


@contextmanager
def deferred_imports(importer: str) -> Iterator[None]:
    """Delays slow imports of a command, so that ``--help`` and wrong flags are answered at once.

    In a module that runs as a program, the ``from ... import ...`` and ``import ...`` statements of the block bind
    placeholders, which :func:`run` replaces once it has parsed the flags. If the module is imported by another one,
    the block imports at once. From the block until ``main`` is called, Ctrl-C ends the program with one line.

    Args:
      importer: ``__name__`` of the module.
    """
    if importer != "__main__":
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    real_import = builtins.__import__

    def defer(name: str, caller: Optional[Mapping[str, Any]] = None, *others: Any) -> Any:
        if caller is None or caller.get("__name__") != "__main__":
            return real_import(name, caller, *others)
        return _Deferred(name)

    builtins.__import__ = defer
    try:
        yield
    finally:
        builtins.__import__ = real_import


class _Deferred:
    """A placeholder for a module, or for a name to be imported from it."""

    def __init__(self, module: str, name: str = ""):
        self.__module, self.__name = module, name

    def __getattr__(self, name: str) -> "_Deferred":
        if name.startswith("__"):  # Python looks these up itself
            raise AttributeError(name)
        return _Deferred(self.__module, name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{self.__module}.{self.__name} is not imported before the flags are parsed")

    @staticmethod
    def resolve(names: dict[str, Any]) -> None:
        """Replaces each placeholder among the values of ``names`` by what it stands for."""
        for bound, value in list(names.items()):
            if isinstance(value, _Deferred):
                # Imports the name, too, if it is a module of a package.
                module = __import__(value.__module, fromlist=[value.__name or "__name__"])
                names[bound] = getattr(module, value.__name) if value.__name else module


def _leave(number: int, _: object) -> None:
    """Ends the program at once: during imports nothing needs saving, and packages may swallow KeyboardInterrupt."""
    os.write(quiet_tensorflow.standard_error, b"interrupted\n")
    os._exit(128 + number)


def script() -> None:
    """Runs the command that the program is named after: ``han-train`` runs ``python -m han_tf.train``."""
    name = Path(sys.argv[0]).stem.removeprefix("han-")
    runpy.run_module(f"han_tf.{name}", run_name="__main__", alter_sys=True)


def run(
    main: Callable[[Flags], None],
    values: Flags,
    description: str,
    argv: Optional[Sequence[str]] = None,
    positional: Optional[str] = None,
    check: Optional[Callable[[Flags], Any]] = None,
) -> int:
    """Parses ``argv``, calls ``main`` with the flags and returns the exit status.

    Args:
      main: takes the parsed flags; positional arguments, if allowed, are in ``values.positional``.
      values: the command's flags.
      description: the command's docstring; printed by ``--help``.
      argv: the command line, program name first; ``sys.argv`` if None.
      positional: name of the positional arguments; None if the command takes none.
      check: raises UserError if the flags don't fit together; called before slow imports, and without ``positional``.
    """
    _prepare_output()
    try:
        status = _run(main, values, description, list(sys.argv if argv is None else argv), positional, check)
        sys.stdout.flush()
        return status
    except OSError as raised:
        error = _output_error(raised)
        if error is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe
            return 141  # 128 + SIGPIPE
        print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return 1


def _prepare_output() -> None:
    """Makes any text printable: to closed streams, on terminals without Unicode, and names that are not UTF-8."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Python's value for a stream that was closed before it started
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        # In the locale C, Python writes such names as they are ("surrogateescape"), but no letter beyond ASCII.
        utf8 = codecs.lookup(stream.encoding).name == "utf-8"
        if stream.errors == "strict" or (stream.errors == "surrogateescape" and not utf8):
            stream.reconfigure(errors="backslashreplace")


def _output_error(raised: OSError) -> Optional[OSError]:
    """Returns the error of writing an empty line to standard output; None if that works, or ``raised`` is no such one.

    An error of standard output comes from the system, which gives it a number, and is about no named file.
    """
    if raised.errno is None or raised.filename is not None:
        return None
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")  # an unbuffered stream keeps nothing to flush after a failed write
    except io.UnsupportedOperation:  # standard output is not a file
        return None
    except OSError as error:
        return error
    return None


@contextmanager
def _notes_in_one_line() -> Iterator[None]:
    """Prints each :class:`~han_tf.common.errors.Note` as one line while the block runs, and no warning of Pillow's."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        # About metadata and transparency, which are not used, and sizes, which are checked. The threads that decode
        # share these filters.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        plain = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, Note):
                tqdm.write(f"note: {printable(str(message))}", sys.stderr)  # above a progress bar, if there is one
            else:
                plain(message, category, *where, **options)

        warnings.showwarning = show
        yield


def _run(
    main: Callable[[Flags], None],
    values: Flags,
    description: str,
    argv: Sequence[str],
    positional: Optional[str],
    check: Optional[Callable[[Flags], Any]],
) -> int:
    values.unparse_flags()  # a second call in one process starts from the defaults again
    try:
        rest = values(argv)[1:]
        if values.help:
            print(values.help_text((description or "").strip()))
            return 0
        if values.version:
            print(f"han-tf {__version__}")
            return 0
        if rest and positional is None:
            raise flags.Error(f"takes no positional arguments, got {rest[0]!r}")
        values.check_all()
        if check is not None:
            check(values)
    except (flags.Error, UserError) as error:
        return _wrong_usage(error)
    except UnicodeDecodeError as error:
        return _wrong_usage(
            UsageError(f"--flagfile holds the bytes {error.object[error.start : error.end]!r}, expected UTF-8")
        )
    values.__dict__["positional"] = rest
    for old, new in values.old_names.items():
        if values[old].present:
            print(f"note: --{old} is now called --{new}", file=sys.stderr)
    set_quiet(values.quiet)
    try:
        _Deferred.resolve(getattr(main, "__globals__", {}))
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with _unwound_by_sigterm(), _notes_in_one_line():
            main(values)
    except UsageError as error:
        return _wrong_usage(error)
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


def _wrong_usage(error: Exception) -> int:
    print(f"usage error: {one_line(error)} (--help lists the flags)", file=sys.stderr)
    return 2


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM run the ``finally`` clauses before it ends the process, as Ctrl-C does."""
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
