"""Progress: a bar on a terminal, lines elsewhere, nothing if quiet."""

import sys
from types import SimpleNamespace

import pytest

from han_tf.common import progress
from han_tf.common.progress import progress_bar, set_quiet


@pytest.fixture(autouse=True)
def loud():
    yield
    set_quiet(False)


def shown(capsys):
    with progress_bar(total=200, desc="features", unit="img", initial=100, file=sys.stderr) as bar:
        for _ in range(4):
            bar.update(25)
    return capsys.readouterr().err


def test_a_terminal_shows_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "features: 100%|" in shown(capsys)


def test_short_work_shows_nothing_in_a_file(capsys):
    assert shown(capsys) == ""


def test_long_work_shows_lines_in_a_file(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    found = shown(capsys)
    lines = found.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"features: {n}%" for n in (50, 62, 75, 88, 100)]
    assert lines[-1].endswith("passed, 00:00 left")
    assert "\r" not in found


def test_an_iterable_and_a_postfix(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    bar = progress_bar(iter(range(3)), unit="block", miniters=1, file=sys.stderr)
    bar.set_postfix_str("loss 1.5", refresh=False)
    assert list(bar) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines()[-1] == "progress: 3 block, 00:00 passed, loss 1.5"


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=lambda text: None, flush=lambda: None)])
def test_a_process_may_have_no_terminal_or_nothing_at_all(monkeypatch, stream):
    """As a service without standard error, or one that logs it."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar(range(3))) == [0, 1, 2]


def test_quiet_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    set_quiet(True)
    assert shown(capsys) == ""
