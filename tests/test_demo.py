"""The demo: its files for a finished run, and its errors without one."""

import json
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from han_tf import demo, weights
from han_tf.common.cli import run
from han_tf.common.errors import Note, UserError
from han_tf.data import load_dataset
from han_tf.data.records import Record
from han_tf.data.synthetic import SyntheticPedestrians
from han_tf.search import create_gallery, open_gallery


@pytest.fixture(scope="module")
def made(extractor, tiny_data, tmp_path_factory):
    """The folder of a demo of the tiny set, and its description."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, demo.prepare(folder, load_dataset("market1501", tiny_data), extractor)


@pytest.fixture(autouse=True, scope="module")
def fewer_strangers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "STRANGERS", 20)
        yield


def test_the_gallery_has_cameras_times_and_a_threshold(made, tiny_data, extractor):
    folder, _ = made
    records = [record for record in load_dataset("market1501", tiny_data).gallery if record.pid != -1]
    with open_gallery(folder / "gallery", extractor.checksum) as gallery:
        entries = gallery.entries(range(len(gallery)))
        assert [entry.path for entry in entries] == [record.path for record in records]
        assert [entry.camid for entry in entries] == [record.camid for record in records]
        assert [entry.pid for entry in entries] == [record.pid or None for record in records]
        day = demo.MIDNIGHT, demo.MIDNIGHT + 24 * 3600
        assert all(day[0] <= entry.time < day[1] for entry in entries)
        assert gallery.threshold > 0
        assert gallery.calibration["kind"] == "search"
        assert gallery.calibration["measured_rate"] <= demo.FALSE_ALARMS
        assert gallery.calibration["people"] == 15


def test_examples_are_people_of_the_gallery_and_strangers(made, tiny_data):
    _, description = made
    known = {record.path for record in load_dataset("market1501", tiny_data).query}
    titles = [example["title"] for example in description["examples"]]
    assert sum(example["path"] in known for example in description["examples"]) == 4
    assert sum(title.startswith("A stranger") for title in titles) == demo.STRANGE_EXAMPLES
    assert len({example["path"] for example in description["examples"]}) == len(titles)


def test_a_demo_may_be_moved(made, extractor, tiny_data, tmp_path):
    shutil.copytree(made[0], tmp_path / "moved")
    there = demo.prepare(tmp_path / "moved", load_dataset("market1501", tiny_data), extractor)
    strangers = [Path(example["path"]) for example in there["examples"] if "stranger" in example["path"]]
    assert strangers
    assert {path.parent for path in strangers} == {tmp_path / "moved"}


def test_a_second_start_uses_what_is_there_and_another_model_does_not(made, extractor, tiny_data, monkeypatch):
    folder, description = made
    dataset = load_dataset("market1501", tiny_data)
    monkeypatch.setattr(demo, "draw_strangers", lambda: pytest.fail("drawn again"))
    assert demo.prepare(folder, dataset, extractor) == description
    for text in (json.dumps({**description, "model": "f" * 64}), "{", "[]"):
        (folder / "demo.json").write_text(text)
        with pytest.raises(pytest.fail.Exception, match="drawn again"):
            demo.prepare(folder, dataset, extractor)
        assert not (folder / "demo.json").exists()  # so that the next start makes it again


def test_a_demo_that_cannot_go_on_is_kept_with_what_was_added(made, extractor, tiny_data, tmp_path, monkeypatch):
    folder, dataset = tmp_path / "demo", load_dataset("market1501", tiny_data)
    monkeypatch.setattr(demo, "draw_strangers", lambda: pytest.fail("drawn again"))
    description = {**made[1], "version": demo.VERSION + 1}
    for number, text in enumerate((json.dumps(description), "{"), start=1):
        with create_gallery(folder / "gallery", extractor.feature_dim, extractor.checksum) as gallery:
            gallery.add(np.ones((1, extractor.feature_dim)), paths=["images/added.png"], pids=[number])
            (folder / "state" / "images").mkdir(parents=True)
            (folder / "state" / "images" / "added.png").write_bytes(b"picture")
            (folder / "demo.json").write_text(text)
            with pytest.raises(UserError, match="another process serves this demo, expected it to have ended"):
                demo.prepare(folder, dataset, extractor)
            assert (folder / "demo.json").read_text() == text
        with (
            pytest.warns(Note, match=f"now .*demo-{number}$"),
            pytest.raises(pytest.fail.Exception, match="drawn again"),
        ):
            demo.prepare(folder, dataset, extractor)
        shutil.rmtree(folder)
        aside = tmp_path / f"demo-{number}"
        with open_gallery(aside / "gallery") as gallery:
            assert [entry.pid for entry in gallery.page(10)] == [number]
        assert (aside / "state" / "images" / "added.png").read_bytes() == b"picture"
        assert (aside / "demo.json").read_text() == text


def test_a_second_first_start_waits_and_uses_what_the_first_makes(extractor, tiny_data, tmp_path, monkeypatch):
    folder, dataset = tmp_path / "demo", load_dataset("market1501", tiny_data)
    drawn, begun, waits = [], threading.Event(), threading.Event()
    draw = demo.draw_strangers

    def slow():
        drawn.append(folder)
        begun.set()
        waits.wait(2)
        return draw()

    monkeypatch.setattr(demo, "draw_strangers", slow)
    made = []
    thread = threading.Thread(target=lambda: made.append(demo.prepare(folder, dataset, extractor)), daemon=True)
    thread.start()
    assert begun.wait(60)
    with pytest.warns(Note, match=f"another process makes {folder}; waiting for it"):
        description = demo.prepare(folder, dataset, extractor)
    thread.join()
    assert made == [description]
    assert len(drawn) == 1
    assert sum(record.pid != -1 for record in dataset.gallery) == len(open_gallery(folder / "gallery"))


@pytest.mark.parametrize("name", ["plain.jpg", "two words; rm.jpg", """it's "a, b" \\ c.jpg"""])
def test_the_printed_command_uploads_any_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"picture")
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    with ThreadingHTTPServer(("127.0.0.1", 0), Upload) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        line = f"{curl} --silent --noproxy '*' --max-time 20 -F k=5 -F {demo._image_field(str(path))} {address}"
        assert subprocess.run(line, shell=True, capture_output=True, check=True).stdout.count(b"picture") == 1
        thread.join()


class Upload(BaseHTTPRequestHandler):
    """Answers with what was sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_strangers_are_nobody_of_the_data_set(monkeypatch):
    monkeypatch.setattr(demo, "STRANGERS", 3)
    drawn = demo.draw_strangers()
    people = {frame.pid for frame in SyntheticPedestrians().frames()}
    assert len(drawn) == 6
    assert len({(frame.pid, frame.camid) for frame, _ in drawn}) == 6
    assert not people & {frame.pid for frame, _ in drawn}


def test_people_walk_from_camera_to_camera():
    records = [Record("", pid, camid) for pid in (5, 6, 0) for camid in (1, 1, 2, 3, 3)]
    times = np.array(demo.plausible_times(records))
    assert times.tolist() == demo.plausible_times(records)
    hours = (times - demo.MIDNIGHT) / 3600
    assert hours.min() >= 7
    assert hours.max() < 19
    for first in (0, 5):
        own = times[first : first + 5]
        assert 0 < own[1] - own[0] < 5
        assert 0 < own[4] - own[3] < 5
        apart = np.diff(np.sort(own[[0, 2, 3]]))
        assert ((apart > 60) & (apart < 900)).all()


def test_the_newest_finished_run(tmp_path, tiny_run):
    config = json.loads((tiny_run / "config.json").read_text())
    runs = [("old", "synthetic"), ("new", "synthetic"), ("other", "market1501"), ("half", "synthetic")]
    for number, (name, dataset) in enumerate(runs):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, "dataset": dataset}))
        if name != "half":
            (folder / "metrics.json").write_text("{}")
            os.utime(folder / "metrics.json", (1000 + number, 1000 + number))
    assert demo.newest_finished_run(tmp_path).name == "new"


def test_without_a_run_the_network_of_the_package_stands_in(tmp_path, capsys, monkeypatch):
    assert demo.newest_finished_run(tmp_path) == weights.HERE / "han_small-synthetic"
    monkeypatch.setattr(demo, "SHIPPED", "none")
    assert run(demo.main, demo.FLAGS, demo.__doc__, ["demo", f"--runs_dir={tmp_path}"]) == 1
    line = capsys.readouterr().err
    assert line == f"error: no finished run on the synthetic data set in {tmp_path}: make train makes one\n"
