"""The record of a run's environment."""

import os
import subprocess
import sys
import types
from importlib import metadata

import pytest

from han_tf.runs import environment


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that runs git in a repository with one module of source code."""
    module = tmp_path / "han_tf" / "training" / "environment.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(module))

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    return git


def test_the_commit_is_that_of_the_source_code(repository, tmp_path):
    module, results = tmp_path / "han_tf" / "training" / "environment.py", tmp_path / "RESULTS.md"
    results.write_text("none")
    repository("add", ".")
    repository("commit", "-qm", "no code yet")
    assert environment.git_commit() == "unknown"
    module.write_text("one")
    repository("add", ".")
    repository("commit", "-qm", "code")
    code = repository("rev-parse", "HEAD")
    assert environment.git_commit() == code
    results.write_text("some")
    assert environment.git_commit() == code
    repository("commit", "-qam", "results")
    assert environment.git_commit() == code
    module.write_text("two")
    assert environment.git_commit() == f"{code}+changes"


def test_outside_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_commit() == "unknown"


def test_tensorflow_of_another_package_has_a_version(monkeypatch):
    """Such as tensorflow-cpu."""

    def version(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(environment.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(__version__="2.99"))
    monkeypatch.setattr(environment, "PACKAGES", ("tensorflow", "no_such_package"))
    assert environment.describe()["packages"] == {"tensorflow": "2.99", "no_such_package": "unknown"}


def test_the_machine_is_described():
    machine = environment.describe()["machine"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["processor"]
    assert machine["TF_ENABLE_ONEDNN_OPTS"] == os.environ["TF_ENABLE_ONEDNN_OPTS"]


SET = {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_FORCE_GPU_ALLOW_GROWTH": "false"}
"""What a user may have set."""

CPUINFO = {
    "x86": ("model name\t: A\nflags\t\t: fpu avx avx2 fma amx_tile\n", "A", ["avx", "fma", "avx2", "amx_tile"]),
    "arm": ("Features\t: fp asimd asimddp bf16\n", "aarch64", ["asimd", "asimddp", "bf16"]),
}


@pytest.mark.parametrize("kind", CPUINFO)
def test_the_instruction_sets_are_those_of_the_processor(tmp_path, monkeypatch, kind):
    text, name, expected = CPUINFO[kind]
    for processor in range(2):
        with (tmp_path / "cpuinfo").open("a") as stream:
            stream.write(f"processor\t: {processor}\n{text}\n")
    monkeypatch.setattr(environment.platform, "processor", lambda: "aarch64")
    monkeypatch.setattr("builtins.open", lambda path, **options: os.fdopen(os.open(tmp_path / "cpuinfo", os.O_RDONLY)))
    machine = environment.machine()
    assert (machine["processor"], machine["instruction_sets"]) == (name, expected)


@pytest.mark.parametrize(
    ("sets", "onednn", "expected"),
    [
        (["avx2", "avx512_bf16"], "1", True),
        (["amx_bf16"], None, True),
        (["amx_bf16"], "0", False),
        (["avx512_vnni"], "1", False),
    ],
)
def test_bfloat16_is_faster_with_its_instructions_and_onednn(monkeypatch, sets, onednn, expected):
    monkeypatch.setattr(environment, "_processor", lambda: ("A", sets))
    monkeypatch.delenv(environment.ONEDNN, raising=False)
    if onednn is not None:
        monkeypatch.setenv(environment.ONEDNN, onednn)
    assert environment.faster_in_bfloat16() == expected


def test_a_system_without_cpuinfo_and_sysconf(monkeypatch):
    def missing(path, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr("builtins.open", missing)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    machine = environment.machine()
    assert machine["memory_gib"] is None
    assert machine["instruction_sets"]
    assert environment.arithmetic().endswith("; TF_ENABLE_ONEDNN_OPTS: not set")


@pytest.mark.parametrize(
    ("given", "before", "expected"),
    [({}, "", "1 true"), (SET, "", "0 false"), ({}, "import tensorflow", "None None")],
    ids=["by default", "the user's", "imported before"],
)
def test_onednn_and_growing_gpu_memory_are_on_where_this_package_imports_tensorflow(given, before, expected):
    environ = {name: value for name, value in os.environ.items() if name not in SET}
    code = f"{before}\nimport os, han_tf; print(*(os.environ.get(name) for name in {list(SET)}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**environ, **given}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
