"""Progress of a training run: a bar, and TensorBoard's curves and pictures."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Optional

import numpy as np
import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.common.progress import progress_bar

TENSORBOARD = "tensorboard"


class Progress:
    """The progress bar over all steps of a run, and the writer of its TensorBoard files.

    Args:
      run_dir: the run's folder; None to write nothing.
      total: number of steps of the whole run.
      done: how many of them are done.

    Raises:
      UserError: TensorBoard's files cannot be written; also at the end, where they are flushed.
    """

    def __init__(self, run_dir: Optional[Path], total: int, done: int):
        self.bar = progress_bar(total=total, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05)
        with _writing():
            self.writer = (
                tf.summary.create_noop_writer()
                if run_dir is None
                else tf.summary.create_file_writer(str(run_dir / TENSORBOARD))
            )

    def __enter__(self) -> "Progress":
        self._stack = ExitStack()
        self._stack.enter_context(self.writer.as_default())
        self._stack.enter_context(self.bar)
        return self

    def __exit__(self, kind: Optional[type], *_: object) -> None:
        # An error of the training itself is not hidden by one of the curves.
        with suppress(UserError) if kind else nullcontext(), _writing():
            self._stack.close()  # flushes the writer

    def start_epoch(self, number: int, epochs: int) -> None:
        """Shows the epoch that begins, counted from 1, and restarts its clock."""
        self.bar.set_description(f"epoch {number}/{epochs}", refresh=False)
        self.started, self.seen = time.perf_counter(), 0

    @property
    def seconds(self) -> float:
        """Seconds since the epoch began in this process."""
        return time.perf_counter() - self.started

    @property
    def images_per_second(self) -> float:
        """Images per second since the epoch began in this process."""
        return self.seen / self.seconds

    def step(self, means: Mapping[str, tf.keras.metrics.Mean], images: int) -> None:
        """Shows that a step on ``images`` images is done, and the epoch's means so far."""
        self.seen += images
        shown = [f"loss {means['loss'].result():.3f}"]
        accuracies = [mean.result() for name, mean in means.items() if name.endswith("_accuracy")]
        if accuracies:
            shown.append("acc " + "/".join(f"{accuracy:.1%}" for accuracy in accuracies))
        shown.append(f"{self.images_per_second:.0f} img/s")
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        reason = error.message.split("}} ")[-1].split("\n")[0]
        raise UserError(f"cannot write TensorBoard's files: {reason}") from error


def draw_scalars(numbers: Mapping[str, float], step: int) -> None:
    """Adds a point to each named curve of TensorBoard.

    Raises:
      UserError: its files cannot be written.
    """
    with _writing():
        for name, value in numbers.items():
            tf.summary.scalar(name, value, step)


def draw_pictures(pictures: Mapping[str, np.ndarray], step: int) -> None:
    """Adds pictures, ``[n, height, width, 3]`` uint8 each, to TensorBoard.

    Raises:
      UserError: its files cannot be written.
    """
    with _writing():
        for name, images in pictures.items():
            tf.summary.image(name, images, step, max_outputs=len(images))
