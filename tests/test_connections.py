"""No command opens a connection by itself, e.g. to report its use."""

import json
import os
import subprocess
import sys

import pytest

from experiments.results import HERE

WATCH = """
import os, socket, sys

LOCAL = ("", "localhost", "::", "::1", "0.0.0.0", socket.gethostname())

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else ""  # a socket in the file system
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0] or ""
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host not in LOCAL and not host.startswith("127."):
        with open(os.environ["CONNECTIONS"], "a") as stream:
            stream.write(f"{event} {host}\\n")
        raise PermissionError("no connections")

sys.addaudithook(watch)
"""
"""Code that refuses and records connections to other machines."""

RUN = """
import importlib, json, sys
from han_tf.common import cli
for module, *arguments in json.loads(sys.argv[1]):
    command = importlib.import_module(module)
    print(module, flush=True)
    status = cli.run(command.main, command.FLAGS, command.__doc__, [module, *arguments], "files")
    assert status == 0, (module, status)
"""


@pytest.fixture
def watched(tmp_path):
    """Returns a function that runs Python with an empty home folder and returns the addresses it connected to."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    connections = tmp_path / "connections"
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment.update(
        PYTHONPATH=os.pathsep.join([str(tmp_path / "watch"), str(HERE.parent)]),
        HOME=str(tmp_path / "home"),
        CONNECTIONS=str(connections),
    )

    def run(code, *arguments):
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return connections.read_text().splitlines() if connections.exists() else []

    return run


def test_commands_open_no_connection(watched, tiny_data, tiny_run, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    run, data, model = f"--model={tiny_run}", f"--data_dir={tiny_data}", f"--model={tmp_path}/exports/openvino-int8"
    size = ("--input_height=48", "--input_width=32")
    commands = [
        ("han_tf.train", "--dataset=market1501", data, f"--run={tmp_path}/run", "--epochs=1", *size),
        ("han_tf.evaluate", run, f"--output={tmp_path}/evaluation.json"),
        ("han_tf.visualize", run, f"--output={tmp_path}"),
        ("han_tf.flops", "--arch=han_small"),
        ("han_tf.export", run, "--format=openvino", "--precision=int8", "--noaccuracy", f"--output={tmp_path}/exports"),
        (
            "han_tf.extract",
            str(tiny_data / "bounding_box_test"),
            "--names=market1501",
            model,
            f"--output={tmp_path}/out",
        ),
        ("han_tf.index", f"--index={tmp_path}/index", f"{tmp_path}/out"),
        ("han_tf.search.__main__", f"--index={tmp_path}/index", "--id=1"),
    ]
    assert watched(RUN, json.dumps(commands)) == []


def test_a_connection_would_have_been_noticed(watched):
    pytest.importorskip("openvino_telemetry")
    quiet = "from han_tf.runtimes.quiet_openvino import openvino; "
    assert watched(quiet + "import nncf") == []
    assert watched("import openvino")


def test_who_has_opted_in_reports(watched):
    pytest.importorskip("openvino_telemetry")
    consent = "from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker; "
    consent += "assert OptInChecker().update_result(ConsentCheckResult.{}); "
    quiet = "from han_tf.runtimes.quiet_openvino import openvino"
    assert watched(consent.format("DECLINED") + quiet) == []
    assert watched(consent.format("ACCEPTED") + quiet)
