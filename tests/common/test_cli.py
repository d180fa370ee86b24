"""The shared part of all commands."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
from absl import flags
from PIL import Image

from experiments.results import HERE
from han_tf import __version__, bench, demo, evaluate, export, extract, index, train, visualize
from han_tf import flops as flops_command
from han_tf.common.cli import Flags, UsageError, run
from han_tf.common.errors import Note, Stopped, UserError
from han_tf.data.reading import ImageReader
from han_tf.data.synthetic import __main__ as synthetic_command
from han_tf.search import __main__ as search
from han_tf.serve import __main__ as serve
from han_tf.weights import __main__ as weights_command

COMMANDS = [train, evaluate, visualize, flops_command, bench, export, extract, index, search, serve, demo]

PROGRAMS = [
    *(module.__name__.removesuffix(".__main__") for module in COMMANDS),
    "han_tf",
    "han_tf.data.synthetic",
    "han_tf.weights",
    "experiments.chaos",
    *(f"experiments.{path.stem}" for path in sorted(HERE.glob("*.py")) if "FLAGS = " in path.read_text("utf-8")),
]
"""Modules that ``python -m`` runs."""

LIGHT = {"absl", "defusedxml", "experiments", "han_tf", "numpy", "PIL", "tqdm"}
"""Packages that take a fraction of a second to import; Pillow imports defusedxml if it is installed."""


class Command:
    """A command with one flag of each kind; ``calls`` holds the arguments of each call."""

    def __init__(self, size=3, result=None):
        self.flags = Flags()
        self.flags.integer("size", size, "How large.", 1)
        self.flags.real("rate", 0.5, "How fast.", 0, 1)
        self.flags.enum("colour", "red", ["red", "blue"], "Which colour.")
        self.flags.boolean("loud", False, "Whether to be loud.")
        self.flags.string("name", "", "What it is called.")
        self.result = result
        self.calls = []

    def main(self, values):
        names = ("size", "rate", "colour", "loud", "name", "positional")
        self.calls.append({name: getattr(values, name) for name in names})
        if self.result is not None:
            raise self.result

    def __call__(self, *arguments, **options):
        return run(self.main, self.flags, "\nDoes it.\n", ["command", *arguments], **options)


DEFAULTS = {"size": 3, "rate": 0.5, "colour": "red", "loud": False, "name": "", "positional": []}


def test_flags_reach_the_command(capsys):
    command = Command()
    assert command("--size=4", "--rate", "0.25", "--loud", "--colour=blue", "--name=a b") == 0
    assert command.calls == [{"size": 4, "rate": 0.25, "colour": "blue", "loud": True, "name": "a b", "positional": []}]
    assert capsys.readouterr() == ("", "")


def test_help_needs_no_other_flag(capsys):
    command = Command()
    command.flags.string("index", "", "Where.")
    command.flags.require("index", "a folder")
    assert command("--help") == 0
    assert capsys.readouterr().out.startswith("Does it.")
    assert command() == 2
    assert capsys.readouterr().err == "usage error: --index is missing, expected a folder (--help lists the flags)\n"
    assert command("--size=x", "--help") == 2


def test_positional_arguments_only_where_they_are_allowed():
    command = Command()
    assert command("a", "--size=4", "b", positional="files") == 0
    assert command.calls[0]["positional"] == ["a", "b"]


@pytest.mark.parametrize(
    ("exception", "status", "line"),
    [
        (UserError("a.png: no image"), 1, "error: a.png: no image"),
        (UserError("a\nb.png: no\r\nimage\n"), 1, "error: a b.png: no image"),
        (UsageError("no image"), 2, "usage error: no image (--help lists the flags)"),
        (Stopped("saved in runs/x", signal.SIGTERM), 143, "saved in runs/x"),
        (Stopped("saved in runs/x", signal.SIGINT), 130, "saved in runs/x"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_status(capsys, exception, status, line):
    assert Command(result=exception)() == status
    assert capsys.readouterr() == ("", line + "\n")


def test_a_note_is_one_line_of_stderr(capsys):
    def main(_):
        for _ in range(2):
            warnings.warn("a.jpg: left out", Note, stacklevel=1)

    shown = warnings.showwarning
    assert run(main, Flags(), "", ["command"]) == 0
    assert capsys.readouterr() == ("", "note: a.jpg: left out\n" * 2)
    assert warnings.showwarning is shown


def test_warnings_of_pillow_about_good_images_are_not_shown(tmp_path):
    Image.new("RGB", (8, 12)).convert("P").save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    exif = Image.Exif()
    exif[0x010F] = "maker" * 9
    Image.new("RGB", (8, 12)).save(tmp_path / "exif.jpg", exif=exif.tobytes()[:-20])
    paths = [tmp_path / "palette.png", tmp_path / "exif.jpg"]
    found = []

    def main(_):
        found.extend(ImageReader(paths, (12, 8), threads=2))
        warnings.warn("of something else", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert run(main, Flags(), "", ["command"]) == 0
        assert [str(warning.message) for warning in shown] == ["of something else"]
        list(ImageReader(paths, (12, 8), threads=2))  # not in a command
        assert len(shown) == 1 + len(paths)
    assert [kept.tolist() for _, kept in found] == [[0, 1]]


def test_sigterm_ends_a_command_after_its_finally_clauses():
    code = (
        "import os, signal, sys, time; from han_tf.common.cli import Flags, run\n"
        "def main(_):\n"
        "    try:\n"
        "        try:\n            os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)\n"
        "        except Exception:\n            print('swallowed', flush=True)\n"
        "    finally:\n        print('cleaned up', flush=True)\n"
        "sys.exit(run(main, Flags(), '', ['command']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "cleaned up\n", "")


def test_a_command_leaves_the_handler_of_sigterm_as_it_was():
    def another(number: int, frame: object) -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, another):
            signal.signal(signal.SIGTERM, handler)
            assert Command()() == 0
            assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        Command(result=ZeroDivisionError())()


def test_a_config_file_that_is_not_utf_8_is_one_line(tmp_path, capsys):
    (tmp_path / "flags.txt").write_bytes(b"# gr\xf6\xdfer\n--size=3\n")
    assert Command()(f"--flagfile={tmp_path / 'flags.txt'}") == 2
    assert capsys.readouterr().err.startswith("usage error: --flagfile holds the bytes b'\\xf6', expected UTF-8")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no_such_flag=1"], "no_such_flag"),
        (["--size=large"], "--size=large"),
        (["--size=0"], "--size=0"),
        (["--size=2.5"], "--size=2.5"),
        (["--size"], "size"),
        (["--rate=1.01"], "--rate=1.01"),
        (["--rate=nan"], "--rate=nan"),
        (["--rate=fast"], "--rate=fast"),
        (["--colour=pink"], "--colour=pink"),
        (["--loud=perhaps"], "--loud=perhaps"),
        (["stray.jpg"], "'stray.jpg'"),
        (["--flagfile=nowhere/flags.txt"], "nowhere/flags.txt"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(capsys, arguments, named):
    command = Command()
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage error: ")
    assert err.count("\n") == 1
    assert named in err
    assert "--help" in err
    assert command.calls == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout(capsys, flag):
    command = Command()
    assert command(flag) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Does it.\n")
    for word in ("--size", "How large.", "--[no]loud", "one of red, blue", "(default: 0.5)", "--flagfile FILE"):
        assert word in out
    assert command.calls == []


@pytest.mark.parametrize("first", [["--size=9", "--loud", "--name=x"], ["--help"], ["--rate=1", "--size=none"]])
def test_a_second_call_starts_from_the_defaults(first):
    command = Command()
    command(*first)
    assert command() == 0
    assert command.calls[-1] == DEFAULTS


def test_flags_of_two_commands_do_not_clash():
    first, second = Command(), Command(size=7)
    assert first("--size=4", "--name=first") == second() == 0
    assert second.calls == [{**DEFAULTS, "size": 7}]
    assert train.FLAGS["dataset"].default == "synthetic"
    assert evaluate.FLAGS["dataset"].default == ""
    assert "dataset" not in flags.FLAGS


@pytest.mark.parametrize("arguments", [["--wide=5"], ["--wide", "5"], ["--flagfile={flagfile}"]])
def test_an_old_name_goes_on_with_a_note(tmp_path, capsys, arguments):
    (tmp_path / "flags.txt").write_text("# a comment\n--wide=5\n")
    command = Command()
    command.flags.old_name("wide", "size")
    assert command(*(argument.format(flagfile=tmp_path / "flags.txt") for argument in arguments)) == 0
    assert command.calls[-1]["size"] == 5
    assert capsys.readouterr() == ("", "note: --wide is now called --size\n")
    assert command("--size=6") == command() == 0
    assert [call["size"] for call in command.calls[1:]] == [6, 3]
    assert capsys.readouterr() == ("", "")
    assert command("--wide=0") == 2


OLD_NAMES = {
    train: {"run_dir": "run", "model": "arch"},
    evaluate: {"weights": "model", "topk": "k", "memory": "memory_mb"},
    visualize: {"out": "output", "topk": "k"},
    extract: {"out": "output"},
    index: {"memory": "memory_mb"},
    bench: {"model": "arch"},
    flops_command: {"model": "arch"},
    synthetic_command: {"root": "output"},
    weights_command: {"store": "run"},
}


def test_flags_that_earlier_versions_had_are_taken():
    for module, names in OLD_NAMES.items():
        for old, new in names.items():
            value = {"arch": "resnet50", "memory_mb": "99", "k": "7"}.get(new, "x")
            module.FLAGS[new].unparse()  # another test may have parsed values that a list would be added to
            module.FLAGS[old].parse(value)
            module.FLAGS.mark_as_parsed()
            assert str(module.FLAGS[new].value).strip("[]'") == value
            module.FLAGS.unparse_flags()
    train.FLAGS(["train", "--model=resnet50"])
    assert train.config_of(train.FLAGS).model == "resnet50"
    train.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [8]),
        (["--sizes=1"], [1]),
        (["--sizes=1,2, 3"], [1, 2, 3]),
        (["--sizes=1,2", "--sizes=5"], [1, 2, 5]),
        (["--sizes="], None),
        (["--sizes=1,"], None),
        (["--sizes=1,x"], None),
    ],
)
def test_lists_have_commas_and_may_be_repeated(capsys, arguments, expected):
    values, found = Flags(), []
    values.list_of("sizes", [8], "How large.", flags.IntegerParser(1))
    for _ in range(2):
        status = run(lambda given: found.append(given.sizes), values, "", ["command", *arguments])
        assert status == (2 if expected is None else 0)
    assert found == ([] if expected is None else [expected] * 2)
    assert values["sizes"].help == "How large."


def test_arguments_of_the_network_may_hold_commas():
    for arguments in (
        ["--model_args=regions=6,widths=[96,192], kind = a"],
        ["--model_args=regions=6", "--model_args", "widths=[96,192],kind=a"],
    ):
        train.FLAGS.unparse_flags()
        train.FLAGS(["train", *arguments])
        assert train.config_of(train.FLAGS).model_args == {"regions": 6, "widths": [96, 192], "kind": "a"}
    train.FLAGS.unparse_flags()


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_every_command_tells_its_flags(capsys, module):
    assert run(module.main, module.FLAGS, module.__doc__, ["command", "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(module.__doc__.strip())
    assert err == ""
    assert ".py:" not in out
    for name in module.FLAGS:
        flag = module.FLAGS[name]
        negatable = flag.boolean and name not in ("help", "version", "nothreshold")
        words = f"  --[no]{name}" if negatable else f"  --{name}"
        old = name in OLD_NAMES.get(module, ())
        assert bool(re.search(re.escape(words) + r"\b", out)) != (old or name == "h")


REQUIRED = [(extract, "output"), (index, "index"), (search, "index"), (serve, "index")]


@pytest.mark.parametrize(("module", "name"), REQUIRED, ids=lambda value: getattr(value, "__name__", value))
def test_a_missing_flag_is_one_line_and_status_2(capsys, module, name):
    for arguments in ([], [f"--{name}="]):
        assert run(module.main, module.FLAGS, module.__doc__, ["command", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"usage error: --{name} is missing, expected ")


def test_help_has_groups_in_the_order_of_their_flags(capsys):
    command = Command()
    command.flags.group("output")
    command.flags.string("runs_dir", "", "100 % of them.")
    command.flags.list_of("parts", ["a", "b"], "Which.", flags.EnumParser(["a", "b", "c"]))
    command.flags.list_of("whole", ["a", "b"], "Which.", flags.EnumParser(["a", "b"]))
    command.flags.string("source", os.path.abspath("a/b"), "Whence.")
    command.flags.strings("names", [], "Their names.")
    command.flags.group("options")
    command.flags.boolean("fast", True, "Quickly.")
    command.flags.string("index", "", "Where.")
    command.flags.require("index", "a folder")
    command.flags.old_name("folder", "index")
    assert command("--help") == 0
    description, *sections = capsys.readouterr().out.strip().split("\n\n")
    assert description == "Does it."
    flags_of = {
        title: re.findall(r"^  (-.*?)(?:  |$)", text, re.M) for title, text in (s.split(":", 1) for s in sections)
    }
    assert flags_of == {
        "required": ["--index INDEX"],
        "options": ["--size N", "--rate X", "--colour COLOUR", "--[no]loud", "--name NAME", "--[no]fast"],
        "output": ["--runs_dir DIR", "--parts PARTS,...", "--whole WHOLE,...", "--source SOURCE", "--names NAMES,..."],
        "general": ["--help, -h", "--version", "--[no]quiet", "--flagfile FILE"],
    }
    assert list(flags_of) == ["required", "options", "output", "general"]
    shown = " ".join(" ".join(sections).split())
    for words in (
        "100 % of them.",
        "(one of a, b, c; default: a,b)",
        "(one of a, b; default: all of them)",
        "Whence. (default: a/b)",
        "(default: true)",
        "(one of red, blue; default: red)",
    ):
        assert words in shown


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_every_command_refuses_unknown_flags(capsys, module):
    assert run(module.main, module.FLAGS, module.__doc__, ["command", "--no_such_flag"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


ANSWERS = """
import contextlib, io, json, runpy, sys

before, answers = set(sys.modules), []
for flag in ("--help", "--nosuchflag", "--version"):
    sys.argv, out, err = ["command", flag], io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        answers.append((stop.code, out.getvalue(), err.getvalue()))
print(json.dumps([answers, sorted(set(sys.modules) - before)]))
"""
"""Runs a program three times; prints each one's status, stdout and stderr, and the modules that they imported."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_wrong_flags_and_version_import_nothing_that_takes_long(program, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE.parent}"}
    code = ANSWERS.replace("PROGRAM", repr(program))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (helped, refused, version), imported = json.loads(done.stdout)
    assert (helped[0], helped[2]) == (0, "")
    assert "general:" in helped[1]
    assert refused[:2] == [2, ""]
    assert refused[2].count("\n") == 1
    assert version == [0, f"han-tf {__version__}\n", ""]
    # Packages have files; cython_runtime is a module without one.
    packages = {name.partition(".")[0] for name in imported} - {"cython_runtime"}
    heavy = {name for name in packages if not name.startswith("_")} - LIGHT - set(sys.stdlib_module_names)
    assert not heavy


def launch(program, *arguments, path=None, **options):
    """Starts a command; it looks for packages in ``path`` first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, [path, HERE.parent])))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    environment.update(options.pop("variables", {}))
    return subprocess.Popen(
        [sys.executable, "-m", program, *arguments], env=environment, **{**pipes, **options}, cwd=HERE.parent
    )


def test_the_version_is_that_of_the_package():
    assert metadata.version("han-tf") == __version__


def test_the_installed_programs_run_the_commands():
    code = "import sys; from han_tf.common.cli import script; sys.argv = ['/usr/bin/han-%s', '--help']; script()"
    for name in ("flops", "search"):
        done = subprocess.run([sys.executable, "-c", code % name], capture_output=True, text=True)
        as_module = launch(f"han_tf.{name}", "--help").communicate()[0]
        assert (done.returncode, done.stderr, done.stdout) == (0, "", as_module)
        assert len(as_module) > 500


CAUGHT = {
    "by nobody": "finally: pass",
    "to raise another error": "except BaseException: raise ImportError",
    "to go on": "except BaseException: pass\nclass config: list_physical_devices = list",
}
"""How a package deals with a KeyboardInterrupt while it is imported."""


@pytest.mark.parametrize(
    "arguments", [["han_tf.flops"], ["han_tf.evaluate", "--images=."]], ids=["before main", "in main"]
)
@pytest.mark.parametrize("caught", CAUGHT)
@pytest.mark.parametrize("level", ["2", "3"])
def test_ctrl_c_while_tensorflow_is_imported_is_one_line(tmp_path, arguments, caught, level):
    """Commands that may do without TensorFlow import it when they need it."""
    waiting = "import time\ntry: print('importing', flush=True), time.sleep(60)\n"
    (tmp_path / "tensorflow.py").write_text(waiting + CAUGHT[caught])
    command = launch(*arguments, path=tmp_path, variables={"TF_CPP_MIN_LOG_LEVEL": level})
    assert command.stdout.readline() == "importing\n"
    command.send_signal(signal.SIGINT)
    assert command.communicate() == ("", "interrupted\n")
    assert command.returncode == 130


@pytest.mark.parametrize(("level", "fails", "told"), [("3", False, ""), ("3", True, "log"), ("2", False, "log")])
def test_what_tensorflow_logs_while_it_is_imported(tmp_path, level, fails, told):
    """Nobody sees it, unless the import fails or the log level asks for it."""
    lines = ["import os", "os.write(2, b'log')", "class config: list_physical_devices = list", "1 / 0" * fails]
    (tmp_path / "tensorflow.py").write_text("\n".join(lines))
    looked_up = "import han_tf.common.cli, importlib.util\nimportlib.util.find_spec('tensorflow')"
    code = looked_up + "\ntry: import tensorflow\nexcept ZeroDivisionError: pass"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{HERE.parent}", "TF_CPP_MIN_LOG_LEVEL": level}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", told, 0)


def test_tensorflow_is_imported_where_no_temporary_file_can_be_made(tmp_path):
    (tmp_path / "tensorflow.py").write_text("class config: list_physical_devices = list")
    code = "import tempfile; tempfile._candidate_tempdir_list = list; import han_tf.common.cli, tensorflow"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{HERE.parent}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    for variables in ({}, {"PYTHONUNBUFFERED": "1"}):
        reading, writing = os.pipe()
        os.close(reading)
        command = launch("han_tf.train", "--help", stdout=writing, variables=variables)
        os.close(writing)
        assert command.communicate()[1] == ""
        assert command.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line():
    for variables in ({}, {"PYTHONUNBUFFERED": "1"}):
        with open("/dev/full", "w") as full:
            command = launch("han_tf.train", "--help", stdout=full, variables=variables)
            assert command.communicate()[1] == "error: cannot write to standard output: No space left on device\n"
        assert command.returncode == 1


@pytest.mark.parametrize("error", [OSError("broken data stream"), FileNotFoundError(2, "No such file", "a.jpg")])
def test_an_error_that_is_not_of_standard_output_writes_nothing_there(capfd, error):
    with pytest.raises(OSError, match=r"broken data stream|No such file") as raised:
        Command(result=error)()
    assert raised.value is error
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(redirection):
    for arguments, status in (("--help", 0), ("--nosuchflag", 2)):
        command = f"exec {sys.executable} -m han_tf.flops {arguments} {redirection}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=HERE.parent)
        assert done.returncode == status
        assert (done.stdout == "") == (status > 0 or redirection.startswith(">"))
        assert done.stderr.count("\n") == (status > 0 and "2" not in redirection)


WITHOUT_GREEK = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},  # as some containers and cron jobs
}


@pytest.mark.parametrize("encoding", WITHOUT_GREEK)
def test_a_terminal_without_greek_shows_help_all_the_same(encoding):
    command = launch("han_tf.train", "--help", encoding=encoding, variables=WITHOUT_GREEK[encoding])
    out, err = command.communicate()
    assert (command.returncode, err) == (0, "")
    assert "\\u03bb" in out
    assert ("·" if encoding == "latin-1" else "\\xb7") in out


def test_names_that_are_not_utf_8_are_written_as_they_are():
    """In the locale C, where Python takes UTF-8 all the same."""
    code = "import os; from han_tf.common.cli import Flags, run\n"
    code += "run(lambda _: print(os.fsdecode(b'\\xff')), Flags(), '', ['command'])"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.stdout, done.stderr, done.returncode) == (b"\xff\n", b"", 0)


def test_an_error_of_the_system_in_a_command_keeps_its_traceback(capsys):
    with pytest.raises(FileNotFoundError):
        Command(result=FileNotFoundError("a.png"))()


def test_deferred_imports_are_what_imports_are(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("value = 1")
    (tmp_path / "package/part.py").write_text("value = 2")
    (tmp_path / "program.py").write_text(
        "import sys; from typing import Optional; from han_tf.common.cli import Flags, deferred_imports, run\n"
        "with deferred_imports(__name__):\n"
        "    import package\n    import package as same\n    from package import part, value as one\n"
        "    from package.part import value\n"
        "    assert ('package' in sys.modules) == (__name__ != '__main__')\n"
        "def main(values: Optional[part]): print(same is package, package.value, part.value, one, value)\n"
        "if __name__ == '__main__':\n"
        "    try: value()\n"
        "    except RuntimeError as error: print(error)\n"
        "    sys.exit(run(main, Flags(), '', ['program']))\n"
        "main(None)"
    )
    out, err = launch("program", path=tmp_path).communicate()
    assert (out, err) == ("package.part.value is not imported before the flags are parsed\nTrue 1 2 1 2\n", "")
    done = subprocess.run([sys.executable, "-c", "import program"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True 1 2 1 2\n", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr_drops=a"], "--lr_drops 'a', expected fractions such as"),
        (["--freeze_epochs=2"], "--freeze_epochs means nothing without --init_from"),
        (["--people=4"], "--people 4 is a setting of the triplet loss"),
    ],
)
def test_flags_of_a_training_that_do_not_fit_together(flags, message):
    command = launch("han_tf.train", *flags)
    out, err = command.communicate()
    assert (command.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"usage error: {message}")


def test_help_tells_defaults_that_are_zero_and_nothing_of_absl(capsys):
    values = Flags()
    values.integer("seed", 0, "Seed.")
    values.real("alpha", 0.0, "Alpha.")
    values.repeated("path", [], "A file. Repeat it for several.")
    values.string("name", "", "Name.")
    told = " ".join(values.help_text("Does it.").split())
    assert "--seed N Seed. (default: 0)" in told
    assert "--alpha X Alpha. (default: 0.0)" in told
    assert "--path PATH A file. Repeat it for several. --name NAME Name." in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train", "expected python -m han_tf.train; python -m han_tf lists the commands"),
        ("fly", "no command 'fly'; python -m han_tf lists the commands"),
    ],
)
def test_a_command_after_the_package_is_told_how_it_is_called(given, message):
    command = launch("han_tf", given)
    assert command.communicate() == ("", f"usage error: {message} (--help lists the flags)\n")
    assert command.returncode == 2


def test_errors_and_notes_hold_no_control_characters():
    assert str(UserError("a\x1b[2K\tb\nc\x7f\u2028d ü")) == r"a\x1b[2K\tb c\x7f d ü"


def test_the_package_lists_its_commands():
    lines = launch("han_tf").communicate()[0].splitlines()
    listed = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {module.__name__.removesuffix(".__main__").removeprefix("han_tf.") for module in COMMANDS} <= listed
