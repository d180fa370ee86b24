"""What experiments.chaos counts as a fault."""

import socket
import threading

import pytest

from experiments.chaos import kills, requests, service
from experiments.chaos.process import UNDISTURBED, Ended, Fault, Tally


@pytest.mark.parametrize(
    ("fault", "status", "said", "hung", "words"),
    [
        (UNDISTURBED, 0, "", False, None),
        (Fault("kill", 3), -9, "", False, None),
        (Fault(seconds=1.0), -9, "", False, None),
        (Fault("disk full", 3), 1, "error: cannot write a", False, None),
        (UNDISTURBED, 1, "error: cannot read a", False, "1: error: cannot read a"),
        (Fault("disk full", 3), 1, "Traceback\nerror: a", False, "1: Traceback"),
        (UNDISTURBED, -9, "step 3", True, "hang: step 3"),
        (Fault("EIO, read", 3), -9, "step 3", True, "hang: step 3"),
    ],
)
def test_commands_that_end_wrongly_or_hang_are_faults(fault, status, said, hung, words):
    found = kills.complaints("training", fault, Ended(status, said, (0, 0), 1.0, hung))
    assert found == [] if words is None else words in found[0]


def test_rows_that_are_lost_doubled_or_different_are_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "result_of", lambda call, log: call())
    rows = [("a", 1.0), ("b", 2.5), ("b", 2.0), ("d", 0.0)]
    work, tally = kills.Work("indexing", lambda folder: 0, lambda folder: rows, 0.1), Tally("indexing")
    kills._compare(work, [("a", 1.05), ("b", 2.0), ("c", 3.0)], tmp_path, tmp_path, tally)
    assert [tally.counts[what] for what in ("compared", "lost", "doubled", "differing")] == [1, 1, 2, 1]
    assert tally.faults == ["indexing: lost: ['c']", "indexing: doubled: ['b', 'd']", "indexing: differing: ['b']"]


def test_a_command_is_killed_as_often_as_wanted_and_then_ends(tmp_path, monkeypatch):
    class Scripted:
        def __init__(self, call, log, folder, fault=UNDISTURBED):
            folder.mkdir(exist_ok=True)
            self.fault = fault

        def end(self):
            return Ended(0 if self.fault == UNDISTURBED else -9, "", (0, 0), 1.0)

    monkeypatch.setattr(kills, "Child", Scripted)
    monkeypatch.setattr(kills, "result_of", lambda call, log: call())
    figures = kills.disturb(kills.Work("export", lambda folder: 0, lambda folder: [("a", 1)]), tmp_path, 2, 60, 0)
    expected = {"case": "export", "kill": 2, "compared": 1, "lost": 0, "rows": 1, "faults": []}
    assert {name: figures[name] for name in expected} == expected


class NeverReady:
    """A service that runs, but does not become ready."""

    pid = 0

    def is_alive(self):
        return True

    def kill(self):
        pass

    terminate = kill

    def end(self):
        return Ended(-9, "", (0, 0), 60.0)


def test_a_service_that_does_not_become_ready_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "start_service", lambda *_, **__: (NeverReady(), None))
    monkeypatch.setattr(service, "result_of", lambda call, log: call())
    monkeypatch.setattr(service, "audit", lambda folder, load: {})
    monkeypatch.setattr(service, "_orphans", lambda folder: 0)
    figures = service.disturb_service(tmp_path, tmp_path, 1, 60, 0)
    assert figures["kill"] == 1
    assert [fault.endswith(": not ready after a minute") for fault in figures["faults"]].count(True) == 2


def test_an_answer_that_ends_within_its_first_line_is_a_closed_connection():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1")

        thread = threading.Thread(target=answer)
        thread.start()
        assert requests._ask(server.getsockname()[1], b"GET / HTTP/1.1\r\n\r\n", 30) == ("closed", b"HTTP/1.1")
        thread.join()
