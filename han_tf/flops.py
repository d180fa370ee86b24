"""Print FLOPs and parameters of HAN, part by part, beside Table 1.

"FLOPs (paper)" counts a multiply-add as two operations and batch norm as one multiply-add for each output
element of a convolution, as the paper's own networks were counted. "MACs" counts a multiply-add once and leaves
batch norm out, as the paper's figures for other networks do. Trainable parameters, without the classifiers,
which are only there for training.
"""

import sys

from absl import flags

from han_tf import cli as command_line
from han_tf.models import MODELS, create_model
from han_tf.models.costs import Cost, part_costs, total

PUBLISHED_FLOPS = {"han_small": 3.68e8, "han_medium": 5.33e8, "han_large": 7.01e8}
"""Table 1."""

FLAGS = command_line.new_flags()
flags.DEFINE_multi_enum("model", list(MODELS), list(MODELS), "Networks (Table 1).", flag_values=FLAGS)
flags.DEFINE_integer("input_height", 160, "Image height, pixels.", 32, flag_values=FLAGS)
flags.DEFINE_integer("input_width", 64, "Image width, pixels.", 32, flag_values=FLAGS)


def report(name: str, costs: dict[str, Cost], published: float = 0) -> str:
    """Returns a table of one network's parts, with the published FLOPs beside the sum if there are any."""
    head = f"{name:<18}{'FLOPs (paper)':>15}{'MACs':>13}{'parameters':>13}"
    rows = [head, "-" * len(head)]
    for part, cost in [*costs.items(), ("total", total(costs))]:
        if cost != Cost():
            rows.append(f"{part:<18}{cost.paper_flops:>15.4g}{cost.macs:>13.4g}{cost.parameters:>13,}")
    if published:
        error = total(costs).paper_flops / published - 1
        rows.append(f"{'Table 1':<18}{published:>15.4g}   ({error:+.2%})")
    return "\n".join(rows)


def main(values: flags.FlagValues) -> None:
    """Prints the tables that the flags ask for."""
    input_size = (values.input_height, values.input_width)
    for name in dict.fromkeys(values.model):
        model = create_model(name, input_size=input_size)
        published = PUBLISHED_FLOPS[name] if input_size == (160, 64) else 0
        print(report(name, part_costs(model, model.parts(), input_size), published), end="\n\n")


def cli() -> None:
    """Runs the command line."""
    sys.exit(command_line.run(main, FLAGS, __doc__))


if __name__ == "__main__":
    cli()
