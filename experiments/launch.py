"""Running the project's commands: each in a child process or, for work of a few seconds, in this process."""

import contextlib
import importlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from experiments.measuring import memory_mb
from experiments.results import HERE
from han_tf.common import cli
from han_tf.common.errors import Stopped, UserError
from han_tf.common.processes import end_with_parent, signal_name, stop_signals

POLL_SECONDS = 0.2


def in_child(
    module: str,
    arguments: Sequence[str],
    log: Path,
    held: Sequence[int] = (),
    poll: Callable[[], object] = lambda: None,
) -> Optional[float]:
    """Runs ``python -m module arguments`` in a child process, whose memory is freed when it ends.

    SIGINT, SIGTERM and SIGHUP are passed on to the command, and this function waits until it has saved its state. If
    this process is killed, Linux sends the command a signal to stop.

    Args:
      module, arguments: the command line.
      log: file to which its output is appended.
      held: descriptors of lock files that stay locked until the command ends, even if this process is killed.
      poll: called a few times a second.

    Returns:
      The most memory it held until shortly before its end, in MiB; None if the system does not report it.

    Raises:
      Stopped: a signal came, and the command has stopped.
      UserError: the command failed; its last line is quoted.
    """
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with stop_signals() as caught, log.open("ab") as stream:
        start = stream.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=held,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which passes it on
            preexec_fn=end_with_parent,
        )
        peak_mb, handed_on = None, 0
        try:
            while child.poll() is None:
                with contextlib.suppress(UserError):
                    peak_mb = memory_mb("VmHWM", child.pid)
                poll()
                for number in caught[handed_on:]:
                    child.send_signal(number)
                    handed_on += 1
                time.sleep(POLL_SECONDS)
        except BaseException:
            child.terminate()
            child.wait()
            raise
    _check(module, child.returncode, caught[0] if caught else 0, log, start)
    return peak_mb


def in_process(module: str, arguments: Sequence[str], log: Path, *_: object) -> None:
    """Runs a command as :func:`in_child` does, but in this process and eagerly.

    Tracing graphs would take longer than a tiny run. Memory is not measured.
    """
    import tensorflow as tf

    command = importlib.import_module(module)
    log.parent.mkdir(parents=True, exist_ok=True)
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings(), log.open("a", encoding="utf-8") as stream:
            start = stream.tell()
            # tf.data warns that it still uses graphs.
            warnings.filterwarnings("ignore", message="Even though the .*run_functions_eagerly")
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                status = cli.run(command.main, command.FLAGS, command.__doc__, [module, *arguments], "files")
    finally:
        tf.config.run_functions_eagerly(eager)
        tf.keras.backend.clear_session()
    _check(module, status, max(status - 128, 0), log, start)


def _check(module: str, status: int, stopped_by: int, log: Path, start: int) -> None:
    """Raises Stopped or UserError if a command was stopped or failed.

    ``status`` is its exit status, or minus the signal that killed it; ``stopped_by`` the signal that this program
    received, 0 for none; ``start`` where its output begins in ``log``, in bytes.
    """
    if stopped_by:
        raise Stopped(f"stopped by {signal_name(stopped_by)}; the same command goes on", stopped_by)
    if status:
        text = log.read_bytes()[start:].decode("utf-8", errors="replace").replace("\r", "\n")
        lines = [line.strip() for line in text.splitlines() if line.strip() and "%|" not in line]
        reason = lines[-1].removeprefix("error: ") if lines else f"exit status {status}"
        if status < 0:
            name = signal_name(-status)
            reason = f"killed by {name}" + (" (is memory short?)" if name == "SIGKILL" else "")
        raise UserError(f"{module}: {reason} (all of it in {log})")
