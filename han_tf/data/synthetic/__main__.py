"""Write a synthetic data set in the layout of any supported data set.

Example, to try the CUHK03 reader without CUHK03:

    python -m han_tf.data.synthetic --root data/cuhk03 --layout cuhk03 --train_identities 20
"""

import inspect
import sys

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


FLAGS = command_line.new_flags()
flags.DEFINE_string("root", None, "Folder to make.", flag_values=FLAGS)
command_line.require(FLAGS, "root", "the folder to make")
flags.DEFINE_enum("layout", "market1501", sorted(LAYOUTS), "Layout to write.", flag_values=FLAGS)
flags.DEFINE_integer("workers", None, "Processes that draw; one per core if not given.", flag_values=FLAGS)
command_line.group(FLAGS, "images")
for _name, _parameter in inspect.signature(SyntheticPedestrians).parameters.items():
    flags.DEFINE_integer(_name, _parameter.default, _HELP[_name], flag_values=FLAGS)


def main(values: flags.FlagValues) -> None:
    """Draws and writes the data set that the flags describe."""
    pedestrians = SyntheticPedestrians(**{name: values[name].value for name in _HELP})
    generate(values.root, pedestrians, values.layout, values.workers)
    print(f"{len(pedestrians)} images drawn, written to {values.root} ({values.layout} layout)")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
