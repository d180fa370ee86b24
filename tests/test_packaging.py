"""What is built and installed: the wheel, the sdist, requirements on each system, pinned versions, make's choices."""

import json
import os
import py_compile
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from han_tf.__main__ import commands
from han_tf.common.files import locked
from han_tf.weights import HERE, read_about, shipped_names

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of this source tree, which holds bytecode beside the networks, too."""
    pytest.importorskip("wheel")
    py_compile.compile(str(ROOT / "han_tf/weights/__init__.py"), doraise=True)
    folder = tmp_path_factory.mktemp("built")
    (folder / "egg").mkdir()
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder / "egg", "build", "--build-base"]
    command += [folder / "build", "bdist_wheel", "--dist-dir", folder, "sdist", "--dist-dir", folder]
    # One at a time: setuptools makes a folder in the source tree for the sdist.
    with locked(tmp_path_factory.getbasetemp().parent / "built.lock"):
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata_of(wheel, name):
    (found,) = [entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}")]
    return wheel.read(found).decode()


def sources(folder, *left_out):
    """Relative paths of the files below a folder of the source tree."""
    found = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix not in left_out}


def test_the_wheel_holds_the_whole_package(wheel):
    """Data as well as code: networks, the service's page, the mark of annotated code."""
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == sources("han_tf", ".md")
    assert {"han_tf/py.typed", "han_tf/serve/page/index.html"} <= files
    for name in ("about.json", "config.json", "metrics.json", "weights.safetensors"):
        assert f"han_tf/weights/han_small-synthetic/{name}" in files


def test_the_sdist_holds_what_make_uses(built):
    """Code, tests, experiments with their C source, documents, and what CI runs."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    expected = set().union(*(sources(folder) for folder in ("han_tf", "tests", ".ci", "docs")))
    expected |= {name for name in sources("experiments") if not name.startswith("experiments/results/")}
    expected |= {path.name for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert expected - files == set()


def test_the_wheels_metadata(wheel):
    told = Parser().parsestr(metadata_of(wheel, "METADATA"))
    assert told["Author"]
    assert told["Project-URL"].startswith("Paper, https://doi.org/")
    assert (told["License"], SpecifierSet(told["Requires-Python"])) == ("Apache-2.0", SpecifierSet(">=3.10,<3.14"))
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    classifiers = told.get_all("Classifier")
    versions = [name.rpartition(" ")[2] for name in classifiers if "Python :: 3" in name]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert "Typing :: Typed" in classifiers
    terms = next(name for name in wheel.namelist() if name.endswith("/LICENSE-weights"))
    for name in shipped_names():
        told = read_about(HERE / name)["licence"]
        items = wheel.read(terms).decode().split("\n- ")
        (item,) = (text for text in items if f"-{name.split('-')[1]} were" in " ".join(text.split()))
        assert ("research" in told) == ("research use only" in " ".join(item.split()))


def test_every_command_is_a_program(wheel):
    programs = dict(re.findall(r"^(\S+) = (\S+)$", metadata_of(wheel, "entry_points.txt"), re.MULTILINE))
    names = set(commands()) - {"data.synthetic"}
    assert programs == {f"han-{name}": "han_tf.common.cli:script" for name in names}


def on(python, system, machine, extra=""):
    return {"python_version": python, "sys_platform": system, "platform_machine": machine, "extra": extra}


LINUX, ARM = ("linux", "x86_64"), ("linux", "aarch64")
MAC, INTEL_MAC, WINDOWS = ("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "AMD64")


@pytest.fixture(scope="module")
def needed(wheel):
    """A function that returns name -> specifier of what an installation needs."""
    requirements = [
        Requirement(text) for text in Parser().parsestr(metadata_of(wheel, "METADATA")).get_all("Requires-Dist")
    ]

    def needed(python, system, extra=""):
        found = [each for each in requirements if not each.marker or each.marker.evaluate(on(python, *system, extra))]
        specifiers = {}
        for each in found:
            specifiers[each.name] = specifiers.get(each.name, SpecifierSet()) & each.specifier
        return specifiers

    return needed


@pytest.mark.parametrize("system", [LINUX, ARM, MAC, INTEL_MAC, WINDOWS], ids="-".join)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_system_asks_for_what_exists_there(needed, python, system):
    """TensorFlow 2.15 ends with Python 3.11, and TensorFlow Addons with it, which have no wheels for ARM on Linux nor
    for Windows; OpenVINO has none for Macs with Intel."""
    base, old = needed(python, system), python in ("3.10", "3.11")
    assert set(base) - {"tf-keras"} == {
        *("absl-py", "matplotlib", "numpy", "pillow", "safetensors", "scipy", "tensorboard", "tensorflow", "tqdm")
    }
    assert ("tf-keras" in base) != old
    assert base["tensorflow"].contains("2.15.1") == old
    assert base["tensorflow"].contains("2.21.0") != old
    test = needed(python, system, "test")
    assert ("tensorflow-addons" in test) == (old and system in (LINUX, MAC, INTEL_MAC))
    for extra in ("export", "test"):
        assert ("openvino" in needed(python, system, extra)) == (system != INTEL_MAC)


@pytest.mark.parametrize(
    ("name", "python"), [("py310", "3.10"), ("py310", "3.11"), ("py312", "3.12"), ("py312", "3.13")]
)
def test_constraints_pin_all_that_setup_asks_for(needed, name, python):
    text = (ROOT / f"constraints-{name}.txt").read_text(encoding="utf-8")
    assert "#    make constraints\n" in text
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))
    resolved = (ROOT / "constraints.in").read_text(encoding="utf-8")
    resolved += (ROOT / f"constraints-{name}.in").read_text(encoding="utf-8")
    asked = set(re.findall(r"^([a-z0-9-]+)", resolved, re.MULTILINE))
    for extra in ("", "test", "lint"):
        for package, specifier in needed(python, LINUX, extra).items():
            assert specifier.contains(pins[package]), package
            assert package in asked | {"numpy", "pyarrow", "onnx"}, package


SUITABLE = "(3, 10) <= sys.version_info"


@pytest.fixture
def make(tmp_path):
    """A function that runs ``make setup`` with stand-ins for Pythons and uv, and returns status, error and calls.

    The stand-ins write what they are called with. ``python3.14`` is too new; uv's Python is there once it is installed.
    pip's settings are ``settings``. The uv that pip installs ends with the status ``installer``; None: pip gets none.
    """
    tool, log, tools = shutil.which("make"), tmp_path / "calls", tmp_path / "bin"
    own_uv = tmp_path / "own_uv"
    if tool is None:
        pytest.skip("no make")
    tools.mkdir()
    (tools / "touch").symlink_to(shutil.which("touch"))

    def write(path, lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n" + lines)
        path.chmod(0o755)

    def python(path, version, settings=""):
        """A stand-in that says whether it is suitable, names its constraints, and makes environments of its kind."""
        suitable, name = int("3.10" <= version <= "3.13"), "py310" if version < "3.12" else "py312"
        write(
            path,
            f'case "$2" in *"{SUITABLE}"*) exit {1 - suitable};; *print*) echo {name}; exit;; esac\n'
            f'case "$*" in *"config list"*) echo "{settings}"; exit;; esac\n'
            f'echo "{version} $*" >> {log}\n'
            f'if [ "$2" = venv ]; then /bin/mkdir -p "$4/bin"; /bin/cp "{path}" "$4/bin/python"; fi\n'
            f'case "$*" in *" uv") [ -x {own_uv} ] && /bin/cp {own_uv} "${{0%/*}}/uv";; esac\n',
        )

    def run(pythons=(), uv=None, settings="", installer=None, **variables):
        if installer is not None:
            write(own_uv, f'echo "own uv $*" >> {log}\nexit {installer}\n')
        for version in pythons:
            python(tools / f"python{version}", version, settings)
        if uv is not None:
            managed = tmp_path / "managed" / "python"
            if uv:
                python(managed, "3.13")
            python(tmp_path / "to be installed", "3.13")
            write(
                tools / "uv",
                f'echo "uv $*" >> {log}\n'
                f'if [ "$2" = find ]; then [ -x {managed} ] && echo {managed}; exit; fi\n'
                f'/bin/mkdir -p {managed.parent}; /bin/sed "s|{tmp_path}/to be installed|{managed}|" '
                f'"{tmp_path}/to be installed" > {managed}; /bin/chmod +x {managed}\n',
            )
        given = [f"{name}={value}" for name, value in variables.items()]
        environment = {"PATH": str(tools), "HOME": str(tmp_path)}
        command = [tool, "setup", f"VENV={tmp_path / 'venv'}", *given]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []

    return run


@pytest.mark.skipif(os.name != "posix", reason="make and sh")
class TestMake:
    @pytest.mark.parametrize(
        ("there", "taken", "constraints"),
        [
            (["3.10", "3.13", "3.14"], "3.13", "py312"),
            (["3.12", "3.11", "3"], "3.12", "py312"),
            (["3.11", "3.10"], "3.11", "py310"),
        ],
    )
    def test_the_newest_suitable_python_and_its_constraints(self, make, tmp_path, there, taken, constraints):
        status, _, calls = make(there, uv=True)
        assert status == 0
        assert f"{taken} -m venv --clear {tmp_path / 'venv'}" in calls
        installed = [call for call in calls if " pip install" in call]
        assert [call.rsplit(" ", 1)[1] for call in installed] == ["wheel", "uv", ".[test,lint]"]
        assert all(call.startswith(taken) and f" -c constraints-{constraints}.txt " in call for call in installed)
        assert not any(call.startswith("uv") for call in calls)

    @pytest.mark.parametrize(
        ("settings", "installer", "installers"),
        [
            ("global.extra-index-url='https://example.org'", 0, ["own uv"]),
            ("", 1, ["own uv", "3.11 -m"]),
            ("", None, ["3.11 -m"]),
            (":env:.index-url='https://example.org'", 0, ["3.11 -m"]),
            ("install.no-index='true'", 0, ["3.11 -m"]),
        ],
        ids=["uv", "uv fails", "no uv", "pip has an index", "pip has none"],
    )
    def test_uv_installs_and_pip_where_uv_cannot(self, make, settings, installer, installers):
        status, _, calls = make(["3.11"], settings=settings, installer=installer)
        assert status == 0
        installs = [call for call in calls if call.endswith(" -e .[test,lint]")]
        assert [call.split(" pip install ")[0] for call in installs] == installers
        assert all(" -c constraints-py310.txt " in call for call in installs)

    def test_without_one_uv_gets_it(self, make):
        status, error, calls = make(["3.14"], uv=False)
        assert (status, error) == (0, "")
        assert [call for call in calls if call.startswith("uv")] == [
            *("uv python find 3.13", "uv python install 3.13", "uv python find 3.13")
        ]
        assert any(call.startswith("3.13 -m pip install") and "constraints-py312.txt" in call for call in calls)

    def test_what_uv_has_already_is_taken(self, make):
        status, _, calls = make(uv=True)
        assert status == 0
        assert [call for call in calls if call.startswith("uv")] == ["uv python find 3.13"]

    def test_without_both_one_line_says_what_to_install(self, make):
        status, error, calls = make(["3.14"])
        assert status == 2
        line, *rest = error.splitlines()
        assert line.startswith("error: no Python 3.10 to 3.13 found; install one, or uv, which gets one")
        assert all(text.startswith("make") for text in rest)
        assert calls == []

    def test_a_python_that_is_too_new_is_refused(self, make, tmp_path):
        chosen = tmp_path / "bin" / "python3.14"
        status, error, calls = make(["3.14", "3.13"], PYTHON=chosen)
        assert (status, calls) == (2, [])
        assert error.startswith(f"error: PYTHON={chosen} is no Python 3.10 to 3.13\n")


@pytest.mark.skipif(os.name != "posix", reason="make and sh")
@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        ("train", ["han_tf.train --dataset synthetic"]),
        ("train DATASET=csv DATA_DIR=a.csv RUN=mine", ["han_tf.train --dataset csv --run mine --data_dir a.csv"]),
        ("evaluate", ["han_tf.evaluate"]),
        ("evaluate DATASET=synthetic", ["han_tf.evaluate --dataset synthetic"]),
        ("evaluate RUN=a DATASET=occluded_reid", ["han_tf.evaluate --run a --dataset occluded_reid"]),
        ("visualize RUN=a SPLIT=detected", ["han_tf.visualize --ranked --run a --split detected"]),
        ("demo RUN=a", ["han_tf.demo --run a"]),
        (
            "bench RUN=a",
            [
                "han_tf.bench",
                "experiments.bench_metrics",
                "han_tf.export --run a --format openvino --precision all",
                "experiments.bench_runtimes --run a",
            ],
        ),
    ],
)
def test_what_make_calls(arguments, commands):
    """Data sets and runs that are named reach the command; those that are not leave it its default."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    environment = {name: value for name, value in os.environ.items() if name not in ("DATASET", "RUN", "MAKEFLAGS")}
    done = subprocess.run(
        ["make", "-n", *arguments.split()], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    called = [shlex.split(line) for line in done.stdout.splitlines() if "python -m han_tf" in line or " -m exp" in line]
    assert [" ".join(words[2:]) for words in called] == commands


AUDITED = [
    {"name": "safe", "version": "1.0", "vulns": []},
    {"name": "unreachable", "skip_reason": "no data"},
    {"name": "old", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1", "3.0"]}]},
]


@pytest.mark.parametrize(
    ("audit", "status", "told"),
    [
        (json.dumps({"dependencies": AUDITED[:1]}), 0, "1 packages audited, 0 known vulnerabilities\n"),
        (
            json.dumps({"dependencies": AUDITED}),
            1,
            "old 2.0: CVE-1, fixed in 2.1, 3.0\n"
            "NOT AUDITED: 1 of 3 packages, the data on them cannot be reached\n"
            "2 packages audited, 1 known vulnerabilities\n",
        ),
        ("", 0, "NOT AUDITED: no network\n"),
    ],
    ids=["none", "one", "unreachable"],
)
def test_an_audit_says_what_it_could_not_compare(tmp_path, audit, status, told):
    """With a stand-in for pip-audit."""
    (tmp_path / "pip_audit.py").write_text(f"import sys; print({audit!r}); print('no network', file=sys.stderr)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / ".ci" / "audit")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, told)
