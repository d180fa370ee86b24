"""Write a synthetic data set in the layout of any supported data set.

Example, to try the CUHK03 reader without CUHK03:

    python -m han_tf.data.synthetic --root data/cuhk03 --layout cuhk03 --train_identities 20
"""

import sys
from dataclasses import fields

from absl import flags

from han_tf.common import cli as command_line
from han_tf.data.synthetic import LAYOUTS, SyntheticPedestrians, generate

FLAGS = command_line.new_flags()
flags.DEFINE_string("root", None, "Folder to make.", flag_values=FLAGS)
command_line.require(FLAGS, "root", "the folder to make")
flags.DEFINE_enum("layout", "market1501", sorted(LAYOUTS), "Layout to write.", flag_values=FLAGS)
flags.DEFINE_integer("workers", None, "Processes that draw; one per core if not given.", flag_values=FLAGS)
command_line.group(FLAGS, "images")
for _field in fields(SyntheticPedestrians):
    flags.DEFINE_integer(_field.name, _field.default, _field.metadata["help"], flag_values=FLAGS)


def main(values: flags.FlagValues) -> None:
    """Draws and writes the data set that the flags describe."""
    pedestrians = SyntheticPedestrians(**{name: values[name].value for name in SyntheticPedestrians().arguments()})
    generate(values.root, pedestrians, values.layout, values.workers)
    print(f"{len(pedestrians)} images drawn, written to {values.root} ({values.layout} layout)")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
