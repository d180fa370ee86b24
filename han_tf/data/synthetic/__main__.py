"""Write a synthetic data set in the layout of any supported data set.

Example, to try the CUHK03 reader without CUHK03:

    python -m han_tf.data.synthetic --root data/cuhk03 --layout cuhk03 --train_identities 20
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Optional

from absl import flags

from han_tf.common import cli as command_line
from han_tf.data.synthetic import LAYOUTS, SyntheticPedestrians, generate

_HELP = {
    "seed": "Seed of everything: people, cameras' scenes, poses, faults.",
    "train_identities": "Number of people to train on.",
    "test_identities": "Number of other people to test on.",
    "train_images_per_camera": "Images of a training person by each of the 4 to 6 cameras that see it.",
    "images_per_camera": "Images of a test person by each of the 4 to 6 cameras that see it; one is the query.",
    "multi_query_per_camera": "Further images of a test person per camera, for multi-query evaluation.",
    "distractors": "Gallery images of people who are in no query.",
    "junk": "Gallery images of body fragments and background.",
}


def define_flags() -> flags.FlagValues:
    """Returns the flags; the numbers default to those of :class:`SyntheticPedestrians`."""
    values = command_line.new_flags()
    flags.DEFINE_string("root", None, "Folder to make.", flag_values=values)
    command_line.require(values, "root", "the folder to make")
    flags.DEFINE_enum("layout", "market1501", sorted(LAYOUTS), "Layout to write.", flag_values=values)
    for name, parameter in inspect.signature(SyntheticPedestrians).parameters.items():
        flags.DEFINE_integer(name, parameter.default, _HELP[name], flag_values=values)
    flags.DEFINE_integer("workers", None, "Processes that draw; one per core if not given.", flag_values=values)
    return values


def main(values: flags.FlagValues) -> None:
    """Draws and writes the data set that the flags describe."""
    pedestrians = SyntheticPedestrians(**{name: values[name].value for name in _HELP})
    generate(values.root, pedestrians, values.layout, values.workers)
    print(f"{len(pedestrians)} images drawn, written to {values.root} ({values.layout} layout)")


def cli(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line and returns its exit status."""
    return command_line.run(main, define_flags(), __doc__, argv)


if __name__ == "__main__":
    sys.exit(cli())
