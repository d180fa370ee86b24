"""Write a synthetic data set in the layout of any supported data set.

Example, to try the CUHK03 reader without CUHK03:

    python -m han_tf.data.synthetic --root data/cuhk03 --layout cuhk03 --train_identities 20
"""

import inspect
import sys

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


FLAGS = command_line.Flags()
FLAGS.string("root", None, "Folder to make.")
FLAGS.require("root", "the folder to make")
FLAGS.enum("layout", "market1501", sorted(LAYOUTS), "Layout to write.")
FLAGS.integer("workers", None, "Processes that draw; one per core if not given.")
FLAGS.group("images")
for _name, _parameter in inspect.signature(SyntheticPedestrians).parameters.items():
    FLAGS.integer(_name, _parameter.default, _HELP[_name])


def main(values: command_line.Flags) -> None:
    """Draws and writes the data set that the flags describe."""
    pedestrians = SyntheticPedestrians(**{name: values[name].value for name in _HELP})
    generate(values.root, pedestrians, values.layout, values.workers)
    print(f"{len(pedestrians)} images drawn, written to {values.root} ({values.layout} layout)")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
