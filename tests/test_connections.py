"""No command opens a connection by itself, e.g. to report its use."""

import json
import os
import socket
import subprocess
import sys
from importlib import metadata

import pytest

from experiments.results import HERE
from han_tf.__main__ import commands
from tests.conftest import TINY_SIZE

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
import importlib, json, os, signal, sys, threading, time
from http.client import HTTPConnection
from han_tf.common import cli
from han_tf.models import MODELS, Entry

def interrupt_when_ready(port):
    for _ in range(3000):
        try:
            client = HTTPConnection("127.0.0.1", port, timeout=30)
            client.request("GET", "/healthz")
            if client.getresponse().status == 200:
                return os.kill(os.getpid(), signal.SIGINT)
        except OSError:
            time.sleep(0.1)
    os._exit(1)

for module, *arguments in json.loads(sys.argv[1]):
    command = importlib.import_module(module)
    if module == "han_tf.demo":
        command.DATASET, command.STRANGERS = "market1501", 20  # the tiny set: the embedded one takes minutes to draw
    if module == "han_tf.bench":
        command.PRODUCT_SIZE, command.IDENTITIES = 64, 3
        MODELS["han_medium"] = Entry("han.HAN", {"widths": (16,), "strides": (2,)})  # its graph is built fast
    print(module, flush=True)
    ports = [int(argument[7:]) for argument in arguments if argument.startswith("--port=")]
    for port in ports:
        threading.Thread(target=interrupt_when_ready, args=(port,), daemon=True).start()
    status = cli.run(command.main, command.FLAGS, command.__doc__, [module, *arguments], "files")
    assert status == (130 if ports else 0), (module, status)  # Ctrl-C ends a service with 130
"""
"""Runs commands one after another; a service until it is ready."""

FEW = ("--train_identities=2", "--test_identities=2", "--distractors=0", "--junk=0", "--workers=1")
"""Flags for a synthetic data set that is drawn fast."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


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


@pytest.mark.long
def test_commands_open_no_connection(watched, tiny_data, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    made, data, model = f"{tmp_path}/runs/made", f"--data_dir={tiny_data}", f"--model={tmp_path}/exports/openvino-int8"
    run, network = f"--model={made}", (*TINY_SIZE, "--model_args=widths=[16],strides=[2]")  # its graph is built fast
    given = [
        ("han_tf.weights.__main__",),
        ("han_tf.data.synthetic.__main__", f"--output={tmp_path}/drawn", *FEW),
        ("han_tf.train", "--dataset=market1501", data, f"--run={made}", "--epochs=1", *network),
        ("han_tf.evaluate", run, f"--output={tmp_path}/evaluation.json"),
        ("han_tf.visualize", run, f"--output={tmp_path}"),
        ("han_tf.flops", "--arch=han_small"),
        ("han_tf.bench", "--arch=han_medium", "--repeats=3", "--batch_size=2"),
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
        ("han_tf.serve.__main__", f"--index={tmp_path}/index", model, f"--port={free_port()}"),
        ("han_tf.demo", f"--runs_dir={tmp_path}/runs", f"--port={free_port()}"),
    ]
    assert {module.removeprefix("han_tf.").removesuffix(".__main__") for module, *_ in given} == set(commands())
    assert watched(RUN, json.dumps(given)) == []


def test_extraction_on_ray_opens_no_connection(watched, plain_model, tiny_data, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    images, out = str(tiny_data / "bounding_box_train"), f"--output={tmp_path}/out"
    given = [("han_tf.extract", images, "--names=market1501", f"--model={plain_model}", out, "--ray=local")]
    assert watched(RUN, json.dumps(given)) == []


def _needs_telemetry():
    """Skips a test without the package, whose import this process may have stopped, see ``quiet_openvino``."""
    try:
        metadata.version("openvino-telemetry")
    except metadata.PackageNotFoundError:
        pytest.skip("no openvino-telemetry")


def test_a_connection_would_have_been_noticed(watched):
    _needs_telemetry()
    quiet = "from han_tf.runtimes.quiet_openvino import openvino; "
    assert watched(quiet + "import nncf") == []
    assert watched("import openvino")


def test_who_has_opted_in_reports(watched):
    _needs_telemetry()
    consent = "from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker; "
    consent += "assert OptInChecker().update_result(ConsentCheckResult.{}); "
    quiet = "from han_tf.runtimes.quiet_openvino import openvino"
    assert watched(consent.format("DECLINED") + quiet) == []
    assert watched(consent.format("ACCEPTED") + quiet)
