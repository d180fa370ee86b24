"""Table 1: strides of the global units, and what they cost.

Reproduces: the FLOPs of HAN Small, Medium and Large from the layers' kernels and output sizes, in the paper's
convention (a multiply-add is two operations, batch norm counts) and in that of most other papers (multiply-adds of
convolutions and fully connected layers). Accuracies are shown where Table 3 has been run.

Expect: the published FLOPs within 0.5 %.

Time: seconds; nothing is trained.

  make table1
  python -m experiments.run table1
"""

from experiments.schema import MARKET_SQ, Experiment, Row

EXPERIMENT = Experiment(
    title="The three HAN models: strides and FLOPs",
    columns=(MARKET_SQ,),
    rows=(
        Row("HAN (Small), strides 2, 1, 1", ((89.4, 73.2),), {"model": "han_small"}, flops="3.68e8"),
        Row("HAN (Medium), strides 1, 2, 1", ((90.7, 74.5),), {"model": "han_medium"}, flops="5.33e8"),
        Row("HAN (Large), strides 1, 1, 2", ((91.6, 76.7),), {"model": "han_large"}, flops="7.01e8"),
    ),
    trains=False,
    flops=True,
)
