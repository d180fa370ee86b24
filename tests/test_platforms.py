"""Differences between Python versions, TensorFlow versions and systems."""

import os
import subprocess
import sys

import pytest

from han_tf.common import files

KERAS_2_ALONE = pytest.mark.skipif(sys.version_info < (3, 12), reason="TensorFlow 2.15 has no Keras 3")


def python(code, **environ):
    """Runs code in a separate process; returns its stdout and the last line of its stderr."""
    given = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", code], env={**given, **environ}, capture_output=True, text=True)
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""


WITHOUT_POSIX = """
import builtins, importlib, pkgutil
import han_tf

import_module = builtins.__import__

def guarded(name, globals=None, *arguments, **options):
    importer = (globals or {}).get("__name__", "")
    if name in ("fcntl", "grp", "pwd", "resource", "termios") and importer.startswith(("han_tf", "experiments")):
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return import_module(name, globals, *arguments, **options)

builtins.__import__ = guarded
for module in pkgutil.walk_packages(han_tf.__path__, "han_tf."):
    if not module.name.startswith("han_tf.serve"):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_no_module_outside_the_service_imports_what_windows_does_not_have():
    out, complaint = python(WITHOUT_POSIX)
    assert complaint == ""
    expected = ("metrics", "common.files", "search.store", "search.__main__", "training.loop", "weights.__main__")
    assert {f"han_tf.{name}" for name in expected} <= set(out.split())


def test_locks_on_windows(tmp_path, monkeypatch):
    """Uses a stand-in for Windows' module that locks bytes."""
    held = set()

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(file, mode, count):
            byte = (os.fstat(file).st_ino, os.lseek(file, 0, os.SEEK_CUR))
            assert (mode, count) == (Msvcrt.LK_NBLCK, 1)
            if byte in held:
                raise PermissionError(13, "Permission denied")
            held.add(byte)

    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(files.time, "sleep", lambda seconds: held.clear())
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as another:
        assert files.lock(one.fileno())
        assert not files.lock(another.fileno())
        assert held == {(os.fstat(one.fileno()).st_ino, files.LOCKED_BYTE)}
        assert files.lock(another.fileno(), wait=True)
        assert another.tell() == 0


@KERAS_2_ALONE
@pytest.mark.parametrize("before", ["import keras", "import tensorflow", ""])
def test_keras_2_is_chosen_where_it_still_can_be(before):
    code = f"{before}\nimport han_tf.models.han, tensorflow as tf; print(tf.keras.Model.__module__.split('.')[0])"
    assert python(code) == ("tf_keras", "")


@KERAS_2_ALONE
@pytest.mark.parametrize(
    ("before", "switch"),
    [("import tensorflow as tf; tf.keras.Model", "1"), ("import os; os.environ['TF_USE_LEGACY_KERAS'] = '0'", "0")],
    ids=["used before", "chosen"],
)
def test_keras_3_is_one_line(before, switch):
    _, complaint = python(f"{before}\nfrom han_tf.models import create_model; create_model('han_small')")
    assert "UserError: tf.keras is Keras 3." in complaint
    assert complaint.endswith(
        f"(TF_USE_LEGACY_KERAS={switch}), expected Keras 2: import han_tf before anything that uses tf.keras, or set "
        "TF_USE_LEGACY_KERAS=1"
    )
