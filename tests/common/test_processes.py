"""Output of C code is redirected, and comes back."""

import os

from han_tf.common.processes import redirected


def test_what_is_written_to_a_descriptor_goes_elsewhere_while_the_block_runs(tmp_path, capfd):
    with (tmp_path / "log").open("wb") as log, redirected((1, 2), log.fileno()) as (output, _):
        os.write(1, b"one ")
        os.write(2, b"two")
        os.write(output, b"kept ")
    os.write(1, b"after")
    assert (tmp_path / "log").read_bytes() == b"one two"
    assert capfd.readouterr().out == "kept after"
