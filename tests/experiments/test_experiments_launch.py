"""Commands in child processes: memory is freed, signals reach them, and errors are one line."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments.launch import in_child
from han_tf.common.errors import Stopped, UserError
from han_tf.common.files import locked

COMMAND = """
import os, signal, sys, time
what = sys.argv[1]
if what == "allocate":
    block = bytearray(500 * 2**20)
    time.sleep(1)
elif what == "fail":
    print("working:  50%|#####     |", file=sys.stderr)
    print("error: data/x: no such folder", file=sys.stderr)
    sys.exit(1)
elif what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "stopped":
    sys.exit(128 + signal.SIGTERM)
elif what == "wait":
    def stop(number, _):
        open(sys.argv[2] + ".stopped", "w").write(str(number))
        sys.exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    open(sys.argv[2] + ".started", "w").write(str(os.getpid()))
    time.sleep(60)
print(f"did {what}")
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The name of a module whose first argument chooses what it does."""
    (tmp_path / "stub_command.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "stub_command"


def wait_for(path):
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_peak_memory_and_log(command, tmp_path):
    kept = np.ones(2**30, np.uint8)  # this process's memory does not count
    peak = in_child(command, ["allocate"], tmp_path / "logs" / "log")
    assert 500 < peak < 900
    assert in_child(command, ["nothing"], tmp_path / "logs" / "log") < 500
    assert (tmp_path / "logs" / "log").read_text().splitlines() == ["did allocate", "did nothing"]
    assert kept.all()


def test_a_failure_is_the_commands_own_line(command, tmp_path):
    with pytest.raises(UserError, match=r"^stub_command: data/x: no such folder \(all of it in .*/log\)$"):
        in_child(command, ["fail"], tmp_path / "log")


def test_a_killed_command_is_no_success(command, tmp_path):
    with pytest.raises(UserError, match=r"^stub_command: killed by SIGKILL \(is memory short\?\)"):
        in_child(command, ["die"], tmp_path / "log")


def test_a_command_that_others_stopped_stops_nothing_else(command, tmp_path):
    in_child(command, ["nothing"], tmp_path / "log")  # its output is not that of the next one
    with pytest.raises(UserError, match=r"^stub_command: exit status 143 \(all of it in "):
        in_child(command, ["stopped"], tmp_path / "log")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_handed_on_and_waited_for(command, tmp_path, number):
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]

    def send():
        wait_for(tmp_path / "w.started")
        signal.raise_signal(number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Stopped, match="the same command goes on") as stopped:
        in_child(command, ["wait", str(tmp_path / "w")], tmp_path / "log")
    sender.join()
    assert stopped.value.signal == number
    assert (tmp_path / "w.stopped").read_text() == str(int(number))
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_runner_stops_its_command_which_keeps_the_lock_until_then(command, tmp_path):
    runner = f"""
from pathlib import Path
from experiments.launch import in_child
from han_tf.common.files import locked
with locked({str(tmp_path / "lock")!r}) as lock:
    in_child({command!r}, ["wait", {str(tmp_path / "w")!r}], Path({str(tmp_path / "log")!r}), held=(lock,))
"""
    process = subprocess.Popen([sys.executable, "-c", runner])
    wait_for(tmp_path / "w.started")
    process.kill()
    process.wait()
    with locked(tmp_path / "lock"):
        assert (tmp_path / "w.stopped").read_text() == str(int(signal.SIGTERM))
