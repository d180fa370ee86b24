"""Checkpoints that survive a kill at any moment, with one-line errors."""

import os
from pathlib import Path
from typing import Optional, Union

import tensorflow as tf

from han_tf.common.errors import UserError, first_line
from han_tf.common.files import exists


def check_folder(folder: Path, what: str = "checkpoints") -> None:
    """Raises UserError if TensorFlow could write ``what`` to the folder ``folder`` but not read it again.

    It takes the path of a checkpoint for a pattern, and for UTF-8.
    """
    if any(character in "[\\" or "\udc80" <= character <= "\udcff" for character in folder.as_posix()):
        raise UserError(f"{folder}: {what} here could not be read, expected a path in UTF-8, without [ and \\")


class Checkpoints:
    """The newest checkpoints of one folder.

    TensorFlow writes a checkpoint's files under temporary names and points to it only when they are
    whole, so an interrupted save leaves the previous checkpoint in place.

    Args:
      folder: where the checkpoints are.
      keep: how many are kept.
      **objects: what a checkpoint holds.

    Raises:
      UserError: the file that names the newest checkpoint is damaged; TensorFlow cannot read from such a folder.
    """

    def __init__(self, folder: Union[str, os.PathLike], keep: int, **objects: tf.Module):
        self.folder = Path(folder)
        check_folder(self.folder)
        self.checkpoint = tf.train.Checkpoint(**objects)
        listing = self.folder / "checkpoint"
        try:
            self.manager = tf.train.CheckpointManager(self.checkpoint, str(folder), keep)
            damaged = self.latest is None and exists(listing)
        except ValueError:
            damaged = True
        if damaged:
            raise UserError(f"{listing}: damaged, expected the name of the newest checkpoint")

    @property
    def latest(self) -> Optional[str]:
        """Path prefix of the newest checkpoint, or None."""
        return self.manager.latest_checkpoint

    def save(self, number: int) -> None:
        """Saves a checkpoint under ``number``.

        Raises:
          UserError: it cannot be written (disk full, no permission); earlier checkpoints remain.
        """
        try:
            self.manager.save(checkpoint_number=number)
        except (tf.errors.OpError, OSError) as error:
            raise UserError(
                f"cannot write a checkpoint to {self.folder}: {first_line(error)}; kept {self.latest or 'none'}"
            ) from error

    def restore(self, partial: bool = False) -> str:
        """Restores the newest checkpoint and returns its path prefix.

        Args:
          partial: whether the checkpoint may hold more than the objects given here.

        Raises:
          UserError: there is none, it is damaged, or it belongs to another model.
        """
        path = self.latest
        if path is None:
            raise UserError(f"{self.folder}: no checkpoint found, expected one of a training run")
        try:
            status = self.checkpoint.restore(path)
            if partial:
                status.assert_existing_objects_matched().expect_partial()
            else:
                status.assert_consumed()
        except (tf.errors.OpError, OSError, IndexError) as error:  # IndexError: TensorFlow read less than it expected
            raise UserError(f"{path}: damaged or incomplete checkpoint ({first_line(error)})") from error
        except (AssertionError, ValueError) as error:
            raise UserError(f"{path}: checkpoint of another model ({first_line(error)})") from error
        return path
