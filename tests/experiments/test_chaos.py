"""What experiments.chaos counts as a fault."""

import pytest

from experiments.chaos import kills
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
