"""Writing the synthetic data set: completely or not at all, recognised later, and from the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.data import DATASETS, load_dataset
from han_tf.data.synthetic import LAYOUTS, SyntheticPedestrians, draw_once, generate, is_current, store
from han_tf.data.synthetic import __main__ as command

TINY = {
    "train_identities": 2,
    "test_identities": 2,
    "train_images_per_camera": 1,
    "images_per_camera": 2,
    "multi_query_per_camera": 1,
    "distractors": 2,
    "junk": 2,
}


def _files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "deep" / "market"
    generate(root, SyntheticPedestrians(**TINY), workers=1)
    return root


def test_writes_every_image_and_a_description(made):
    pedestrians = SyntheticPedestrians(**TINY)
    assert len(list(made.rglob("*.jpg"))) == len(pedestrians)
    assert json.loads((made / "synthetic.json").read_text())["arguments"] == {"seed": 0, **TINY}
    assert sorted(path.name for path in made.parent.iterdir()) == [".market.lock", "market"]


def test_is_current_knows_arguments_layout_and_generator(made, tmp_path, monkeypatch):
    pedestrians = SyntheticPedestrians(**TINY)
    assert is_current(made, pedestrians)
    assert not is_current(made, SyntheticPedestrians(**{**TINY, "junk": 3}))
    assert not is_current(made, pedestrians, "csv")
    assert not is_current(tmp_path / "nowhere", pedestrians)
    monkeypatch.setattr(store, "GENERATOR_VERSION", store.GENERATOR_VERSION + 1)
    assert not is_current(made, pedestrians)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_broken_description_is_not_current(tmp_path, content):
    (tmp_path / "synthetic.json").write_bytes(content)
    assert not is_current(tmp_path, SyntheticPedestrians(**TINY))


def test_an_earlier_set_is_replaced(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    generate(root, SyntheticPedestrians(seed=1, **TINY), workers=1)
    (root / "query" / "leftover.jpg").write_bytes(b"")
    other = SyntheticPedestrians(seed=2, **TINY)
    generate(root, other, workers=1)
    assert is_current(root, other)
    assert not (root / "query" / "leftover.jpg").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sets_of_any_layout_are_replaced_once_they_were_read(tmp_path, layout):
    root = tmp_path / "set"
    for seed in (1, 2):
        generate(root, SyntheticPedestrians(seed=seed, **TINY), layout, workers=1)
        name = layout.partition("-")[0]
        for split in DATASETS[name].splits:
            assert load_dataset(name, root, split).query
    assert is_current(root, SyntheticPedestrians(seed=2, **TINY), layout)


@pytest.mark.parametrize("name", ["labels.csv", "notes/todo.txt", "query/faces.csv", ".git/HEAD"])
def test_what_lies_beside_the_drawn_images_is_kept(tmp_path, monkeypatch, name):
    root, pedestrians = tmp_path / "set", SyntheticPedestrians(**TINY)
    generate(root, pedestrians, workers=1)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("mine")
    (root / "query" / "Thumbs.db").touch()
    before = _files(root)
    named = name.split("/")[0] if (root / name).parent.name in ("notes", ".git") else name
    message = rf"^{re.escape(str(root))} also holds {re.escape(named)}, expected only a drawn data set$"
    with pytest.raises(UserError, match=message):
        generate(root, pedestrians, workers=1)
    monkeypatch.setattr(store, "GENERATOR_VERSION", store.GENERATOR_VERSION + 1)
    with pytest.raises(UserError, match=message):
        draw_once(root, pedestrians)
    assert _files(root) == before


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))} holds files but no synthetic.json, expected"):
        generate(tmp_path, SyntheticPedestrians(**TINY), workers=1)
    with pytest.raises(UserError, match="is a file, expected a folder or nothing"):
        generate(tmp_path / "thesis.tex", SyntheticPedestrians(**TINY), workers=1)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link, expected a folder or nothing"):
        generate(tmp_path / "link", SyntheticPedestrians(**TINY), workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "thesis.tex"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, UserError])
@pytest.mark.parametrize("existing", [False, True])
def test_what_breaks_off_leaves_nothing_half_made(tmp_path, monkeypatch, error, existing):
    root, pedestrians = tmp_path / "set", SyntheticPedestrians(**TINY)
    if existing:
        root.mkdir()
        (root / "synthetic.json").write_text("{}")
    whole = SyntheticPedestrians.draw

    def break_off(self, frame):
        if frame.subset == "query":
            raise error("stop")
        return whole(self, frame)

    monkeypatch.setattr(SyntheticPedestrians, "draw", break_off)
    with pytest.raises(error):
        generate(root, pedestrians, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", *["set"] * existing]
    assert not existing or _files(root) == {"synthetic.json": b"{}"}


def test_what_was_drawn_of_other_arguments_or_in_another_layout_is_kept(tmp_path):
    root, mine = tmp_path / "set", SyntheticPedestrians(**{**TINY, "junk": 3})
    generate(root, mine, workers=1)
    before = _files(root)
    with pytest.raises(UserError, match=r'synthetic.json says \{.*"junk": 3.*, expected \{.*"junk": 2.*another folder'):
        draw_once(root, SyntheticPedestrians(**TINY))
    assert _files(root) == before
    for text, says in ((before["synthetic.json"].replace(b"market1501", b"csv"), '.*"csv".*'), (b"{", "null")):
        (root / "synthetic.json").write_bytes(text)
        with pytest.raises(UserError, match=rf'synthetic.json says {says}, expected .*"market1501"'):
            draw_once(root, mine)


def test_what_an_earlier_generator_drew_is_replaced(tmp_path, monkeypatch):
    root, pedestrians = tmp_path / "set", SyntheticPedestrians(**TINY)
    draw_once(root, pedestrians)
    leftover = root / "query" / "leftover.jpg"
    leftover.write_bytes(b"")
    draw_once(root, pedestrians)
    assert leftover.exists()
    monkeypatch.setattr(store, "GENERATOR_VERSION", store.GENERATOR_VERSION + 1)
    draw_once(root, pedestrians)
    assert not leftover.exists()
    assert is_current(root, pedestrians)


def test_two_that_start_at_once_draw_once(tmp_path):
    """Each process prints whether it draws, and counts the images afterwards."""
    script = (
        "import sys; from pathlib import Path; from han_tf.data.synthetic import SyntheticPedestrians, store\n"
        "write = store.write_layout\n"
        "store.write_layout = lambda *arguments: (print('draws', flush=True), write(*arguments))\n"
        "root = Path(sys.argv[1]); print('ready', flush=True); sys.stdin.read(1)\n"
        f"store.draw_once(root, SyntheticPedestrians(**{TINY}))\n"
        "print(sum(len(path.read_bytes()) > 0 for path in root.rglob('*.jpg')))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "set")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=120)[0].split() for process in processes)
    count = str(len(SyntheticPedestrians(**TINY)))
    assert said == [[count], ["draws", count]]


def test_who_draws_waits_for_another_who_draws_there(tmp_path, monkeypatch):
    order, begun, waits = [], threading.Event(), threading.Event()
    write = store.write_layout

    def slow(layout, root, images):
        order.append("begins")
        begun.set()
        waits.wait(0.5)
        write(layout, root, images)
        order.append("ends")

    monkeypatch.setattr(store, "write_layout", slow)
    root, pedestrians = tmp_path / "set", SyntheticPedestrians(**TINY)
    thread = threading.Thread(target=generate, args=(root, pedestrians, "market1501", 1), daemon=True)
    thread.start()
    assert begun.wait(30)
    generate(root, pedestrians, workers=1)
    thread.join()
    draw_once(root, pedestrians)
    assert order == ["begins", "ends"] * 2
    assert is_current(root, pedestrians)


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_the_command_line_leaves_nothing(tmp_path, number):
    """No worker survives (it would keep stderr open) and, unless the command is killed, no file remains."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's end")
    command = [sys.executable, "-m", "han_tf.data.synthetic", "--output", str(tmp_path / "set"), "--workers", "2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Background jobs of a shell and their children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        if list(tmp_path.glob(".set.*/**/*.jpg")):
            break
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C does, to the workers too
    else:
        process.send_signal(number)
    try:
        _, stderr = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in stderr
    assert number == signal.SIGKILL or [path.name for path in tmp_path.iterdir()] == [".set.lock"]


def test_a_killed_worker_is_one_line(tmp_path, monkeypatch):
    parent = os.getpid()
    whole = SyntheticPedestrians.draw

    def die(self, frame):
        if os.getpid() != parent:
            os._exit(9)
        return whole(self, frame)

    monkeypatch.setattr(SyntheticPedestrians, "draw", die)
    with pytest.raises(UserError, match="a process that draws synthetic images was killed"):
        generate(tmp_path / "set", SyntheticPedestrians(**TINY), workers=2)
    assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]


def call(*arguments):
    return run(command.main, command.FLAGS, command.__doc__, ["synthetic", *arguments])


def test_command_line_writes_any_layout(tmp_path, capsys):
    arguments = [f"--{name}={value}" for name, value in TINY.items()]
    assert call(f"--output={tmp_path / 'set'}", "--layout=csv", "--seed=7", "--workers=1", *arguments) == 0
    assert is_current(tmp_path / "set", SyntheticPedestrians(seed=7, **TINY), "csv")
    assert "csv layout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "usage error: --output is missing, expected the folder to make (--help lists the flags)"),
        (["--output=x", "--junk=-1"], 1, "error: synthetic data: junk is -1, expected 0 to 249999"),
        (["--output=x", "--workers=0"], 1, "error: workers is 0, expected at least 1"),
        (["--output=x", "--layout=viper"], 2, "usage error: "),
        (["--output=x", "--seed=one"], 2, "usage error: "),
        (["x"], 2, "usage error: takes no positional arguments, got 'x'"),
    ],
)
def test_command_line_errors(arguments, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == status
    stderr = capsys.readouterr().err
    assert stderr.startswith(message)
    assert stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_argument_and_layout(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for name in ("output", "workers", *SyntheticPedestrians().arguments()):
        assert f"--{name} " in text
    for layout in LAYOUTS:
        assert layout in text
