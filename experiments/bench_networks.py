"""Count a network's FLOPs and parameters and, if asked, measure how many images per second it embeds.

  python -m experiments.bench_networks --arch han_small --speed --output FILE

The speed is the median of several measurements of a batch in memory. Nothing else should be running; the load is
recorded. han_tf.bench compares speeds with the machine's matrix product.
"""

import os
import sys

from experiments.measuring import new_flags, write_figures
from han_tf.common import cli as command_line
from han_tf.models import MODELS, create_deployed

with command_line.deferred_imports(__name__):
    import numpy as np

    from han_tf import bench
    from han_tf.models.costs import part_costs, total
    from han_tf.models.network import inference_function

FLAGS = new_flags()
FLAGS.group("network")
FLAGS.enum("arch", "han_small", list(MODELS), "Network.")
FLAGS.old_name("model", "arch")
FLAGS.integer("input_height", 160, "Image height, pixels.", 32)
FLAGS.integer("input_width", 64, "Image width, pixels.", 32)
FLAGS.group("speed")
FLAGS.boolean("speed", False, "Measure images per second, too.")
FLAGS.integer("batch_size", 64, "Images per forward pass.", 1)
FLAGS.integer("repeats", 15, "Measurements; the median counts.", 3)


def main(values: command_line.Flags) -> None:
    """Counts and measures as the flags say."""
    input_size = (values.input_height, values.input_width)
    model = create_deployed(values.arch, input_size=input_size)
    cost = total(part_costs(model, model.parts(), input_size))
    figures = {
        "settings": {"model": values.arch, "input_height": input_size[0], "input_width": input_size[1]},
        "macs": cost.macs,
        "norm_macs": cost.norm_macs,
        "flops": cost.paper_flops,
        "parameters": cost.parameters,
    }
    print(f"{values.arch}: {cost.macs:.4g} multiply-adds, {cost.paper_flops:.4g} FLOPs as the paper counts them")
    if values.speed:
        figures["load"] = round(os.getloadavg()[0], 2)
        figures["batch_size"] = values.batch_size
        images = np.random.default_rng(0).integers(0, 256, (values.batch_size, *input_size, 3), np.uint8)
        embed = inference_function(model)
        figures["images_per_second"] = len(images) / bench.seconds(lambda: embed(images).numpy(), values.repeats)
        print(f"{values.arch}: {figures['images_per_second']:.0f} img/s")
    write_figures(values.output, "network", **figures)


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
