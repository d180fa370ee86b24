"""The synthetic data set: its people, and the images of them that six cameras take."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.processes import end_with_parent
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID
from han_tf.data.synthetic.camera import CAMERAS
from han_tf.data.synthetic.identity import FIRST_TEST_PID, FIRST_TRAIN_PID, Identity, identity_of
from han_tf.data.synthetic.images import Frame, LabelledImage
from han_tf.data.synthetic.sighting import draw_frame

GENERATOR_VERSION = 2
"""Increased by every change after which the same arguments give other pixels."""

_INDICES_PER_PART = 250_000
# Frame numbers reserved for each of training, test, distractor and junk images, so that none depends on the others.


def _number(default: int, help: str) -> int:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class SyntheticPedestrians:
    """A data set of drawn pedestrians seen by six cameras.

    Each image depends on (seed, pid, camid, index) alone, so images can be drawn in any order and in
    parallel, and adding identities does not change the people that were there. Every identity is seen by
    4 to 6 of the cameras. About 30 % of the identities have a look-alike in their half (train, test), who differs in
    one attribute.

    Raises:
      UserError: a number is out of its range.
    """

    seed: int = _number(0, "Seed of everything: people, cameras' scenes, poses, faults.")
    train_identities: int = _number(160, "Number of people to train on.")
    test_identities: int = _number(60, "Number of other people to test on.")
    train_images_per_camera: int = _number(3, "Images of a training person by each of the 4 to 6 cameras that see it.")
    images_per_camera: int = _number(
        3, "Images of a test person by each of the 4 to 6 cameras that see it; one is the query."
    )
    multi_query_per_camera: int = _number(2, "Further images of a test person per camera, for multi-query evaluation.")
    distractors: int = _number(400, "Gallery images of people who are in no query.")
    junk: int = _number(150, "Gallery images of body fragments and background.")

    def __post_init__(self):
        most_people, most_images = FIRST_TEST_PID - FIRST_TRAIN_PID - 1, _INDICES_PER_PART // len(CAMERAS)
        of_train, of_test = (most_images // max(n, 1) for n in (self.train_identities, self.test_identities))
        ranges = {
            "seed": (0, 2**31 - 1),
            "train_identities": (2, most_people),
            "test_identities": (2, most_people),
            "train_images_per_camera": (1, of_train),
            "images_per_camera": (2, of_test),
            "multi_query_per_camera": (0, of_test - self.images_per_camera),
            "distractors": (0, _INDICES_PER_PART - 1),
            "junk": (0, _INDICES_PER_PART - 1),
        }
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"synthetic data: {name} is {getattr(self, name)}, expected {least} to {most}")

    def arguments(self) -> dict[str, int]:
        """Returns the constructor's arguments by name."""
        return asdict(self)

    def identities(self) -> dict[int, Identity]:
        """Returns the people by pid."""
        halves = (FIRST_TRAIN_PID, self.train_identities), (FIRST_TEST_PID, self.test_identities)
        return {pid: identity_of(self.seed, pid) for first, people in halves for pid in range(first, first + people)}

    def frames(self) -> list[Frame]:
        """Returns the labels of all images, in the order of :meth:`images`."""
        tested = ["query"] + ["gallery"] * (self.images_per_camera - 1) + ["multi_query"] * self.multi_query_per_camera
        halves = (
            (FIRST_TRAIN_PID, self.train_identities, ["train"] * self.train_images_per_camera),
            (FIRST_TEST_PID, self.test_identities, tested),
        )
        frames: list[Frame] = []
        for part, (first_pid, people, subsets) in enumerate(halves):
            for rank in range(people):
                for camid in self._cameras(first_pid + rank):
                    first = part * _INDICES_PER_PART + (rank * len(CAMERAS) + camid - 1) * len(subsets) + 1
                    frames += [Frame(subset, first_pid + rank, camid, first + k) for k, subset in enumerate(subsets)]
        for part, pid, count in ((2, DISTRACTOR_PID, self.distractors), (3, JUNK_PID, self.junk)):
            first = part * _INDICES_PER_PART + 1
            frames += [Frame("gallery", pid, k % len(CAMERAS) + 1, first + k) for k in range(count)]
        return frames

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.frames())

    def images(self, workers: int = 1) -> Iterator[LabelledImage]:
        """Yields the images one after the other; more than one of ``workers`` processes draw ahead of the caller.

        The images do not depend on ``workers``. Where processes are spawned rather than forked (macOS,
        Windows), a script that asks for several workers needs an ``if __name__ == "__main__"``.

        Raises:
          UserError: the system has killed one of the processes.
        """
        if workers == 1:
            yield from map(self.draw, self.frames())
            return
        try:
            with ProcessPoolExecutor(workers, initializer=_leave_signals_to_the_parent) as pool:
                yield from pool.map(self.draw, self.frames(), chunksize=16)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that draws synthetic images was killed (is memory short?), expected it to finish"
            ) from error

    def draw(self, frame: Frame) -> LabelledImage:
        """Returns the image of one frame."""
        return LabelledImage(*frame, draw_frame(self.seed, frame))

    def _cameras(self, pid: int) -> list[int]:
        rng = np.random.default_rng((self.seed, 2, pid))
        seen = rng.permutation(len(CAMERAS))[: rng.integers(4, len(CAMERAS) + 1)]
        return sorted(int(c) + 1 for c in seen)


def _leave_signals_to_the_parent() -> None:
    """Makes a worker ignore Ctrl-C, which the parent handles, and end if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
