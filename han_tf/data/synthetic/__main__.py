"""Write a synthetic data set in the layout of any supported data set.

Example, to try the CUHK03 reader without CUHK03:

    python -m han_tf.data.synthetic --output data/cuhk03 --layout cuhk03 --train_identities 20
"""

import sys
from dataclasses import fields

from han_tf.common import cli as command_line
from han_tf.data.synthetic import LAYOUTS, SyntheticPedestrians, generate

FLAGS = command_line.Flags()
FLAGS.string("output", None, "Folder to make.")
FLAGS.old_name("root", "output")
FLAGS.require("output", "the folder to make")
FLAGS.enum("layout", "market1501", sorted(LAYOUTS), "Layout to write.")
FLAGS.integer("workers", None, "Processes that draw; one per core if not given.")
FLAGS.group("images")
for _field in fields(SyntheticPedestrians):
    FLAGS.integer(_field.name, _field.default, _field.metadata["help"])


def main(values: command_line.Flags) -> None:
    """Draws and writes the data set that the flags describe."""
    pedestrians = SyntheticPedestrians(**{name: values[name].value for name in SyntheticPedestrians().arguments()})
    generate(values.output, pedestrians, values.layout, values.workers)
    print(f"{len(pedestrians)} images drawn, written to {values.output} ({values.layout} layout)")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
