"""The progress of a training run and its TensorBoard files."""

from unittest import mock

import pytest
import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.training.progress import Progress, draw_pictures, draw_scalars

FULL = tf.errors.ResourceExhaustedError(None, None, "{{node Flush}} events.v2; No space left on device\n\tFailed")
ONE_LINE = r"^cannot write TensorBoard's files: events\.v2; No space left on device$"


def on_a_full_disk(folder):
    """Returns a progress whose files cannot be written, and what keeps it so."""
    progress = Progress(folder, 1, 0)
    return progress, mock.patch.object(progress.writer, "flush", side_effect=FULL)


def test_a_full_disk_is_one_line(tmp_path):
    progress, full = on_a_full_disk(tmp_path)
    with full, pytest.raises(UserError, match=ONE_LINE), progress:
        draw_scalars({"loss": 1.0}, 0)


def test_a_full_disk_does_not_hide_what_ended_the_training(tmp_path):
    progress, full = on_a_full_disk(tmp_path)
    with full, pytest.raises(UserError, match=r"^cannot write the checkpoint$"), progress:
        raise UserError("cannot write the checkpoint")


@pytest.mark.parametrize(("draw", "summary"), [(draw_scalars, "scalar"), (draw_pictures, "image")])
def test_what_cannot_be_drawn_is_one_line(tmp_path, draw, summary):
    full = mock.patch.object(tf.summary, summary, side_effect=FULL)
    with Progress(tmp_path, 1, 0), full, pytest.raises(UserError, match=ONE_LINE):
        draw({"loss": [1.0]}, 0)
