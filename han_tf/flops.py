"""Print FLOPs and parameters of networks, part by part, beside Tables 1 and 12.

"FLOPs (paper)" counts a multiply-add as two operations and batch norm as one multiply-add for each output element of a
convolution. The paper says "the number of multiply-adds"; that it counts its own networks this way is inferred, since
no other count matches all five figures. "MACs" counts a multiply-add once and leaves batch norm out, as the paper's
figures for other networks do. Parameters are the trainable ones, without the classifiers, which only training needs.
Networks are counted in their deployed form, in which CondenseNet's learned group convolutions have 1/C of their
connections.
"""

import sys
from typing import Optional

from absl import flags

from han_tf.common import cli as command_line
from han_tf.models import MODELS, create_deployed

with command_line.deferred_imports(__name__):
    from han_tf.models.costs import Cost, part_costs, total


PUBLISHED = {
    "han_small": ("Table 1", 3.68e8),
    "han_medium": ("Table 1", 5.33e8),
    "han_large": ("Table 1", 7.01e8),
    "han_inception": ("Table 12", 1.09e9),
    "han_residual": ("Table 12", 1.34e9),
}
"""Network -> the paper's table, and its operations as the paper counts them, for images of 160×64 pixels."""

PUBLISHED_ELSEWHERE = {"mobilenet": 5.69e8, "shufflenet": 1.40e8, "condensenet": 2.74e8, "resnet50": 3.80e9}
"""Network -> the figure in Tables 6 and 7, quoted from its own paper: multiply-adds at 224×224 with 1,000 classes."""

FLAGS = command_line.Flags()
FLAGS.list_of("arch", list(MODELS), "Networks.", flags.EnumParser(list(MODELS)))
FLAGS.old_name("model", "arch")
FLAGS.integer("input_height", 160, "Image height, pixels.", 32)
FLAGS.integer("input_width", 64, "Image width, pixels.", 32)


def report(name: str, costs: dict[str, Cost], published: Optional[tuple[str, float]] = None) -> str:
    """Returns a table of one network's parts, with published figures below the sum if there are any."""
    head = f"{name:<18}{'FLOPs (paper)':>15}{'MACs':>13}{'parameters':>13}"
    rows = [head, "-" * len(head)]
    for part, cost in [*costs.items(), ("total", total(costs))]:
        if cost != Cost():
            rows.append(f"{part:<18}{cost.paper_flops:>15.4g}{cost.macs:>13.4g}{cost.parameters:>13,}")
    if published:
        table, flops = published
        rows.append(f"{table:<18}{flops:>15.4g}   ({total(costs).paper_flops / flops - 1:+.2%})")
    if name in PUBLISHED_ELSEWHERE:
        macs = PUBLISHED_ELSEWHERE[name]
        rows.append(f"{'its own paper':<18}{'':>15}{macs:>13.4g}   (at 224×224, with 1,000 classes)")
    return "\n".join(rows)


def main(values: command_line.Flags) -> None:
    """Prints a table for each network that the flags name."""
    input_size = (values.input_height, values.input_width)
    for name in dict.fromkeys(values.arch):
        model = create_deployed(name, input_size=input_size)
        published = PUBLISHED.get(name) if input_size == (160, 64) else None
        print(report(name, part_costs(model, model.parts(), input_size), published), end="\n\n")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
