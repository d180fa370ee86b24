"""Table 12: depthwise, Inception and residual building blocks.

Reproduces: HAN with each kind of unit, and the FLOPs of each.

Expect: the depthwise units, those of HAN Large, both cheapest and best; the published FLOPs within 0.5 %.

Time: 300 epochs on Market-1501 take about 19 h with depthwise units on two CPU cores; the others have no measured
figure until one has been trained (--dry_run estimates them by their multiply-adds, 1.6 and 1.9 times as many).

  make table12 DATASET=market1501
  python -m experiments.run table12 --dataset market1501
"""

from experiments.schema import DUKE, MARKET, Experiment, Row

EXPERIMENT = Experiment(
    title="Evaluating different types of building blocks",
    columns=(MARKET, DUKE),
    rows=(
        Row("Depthwise", ((91.6, 76.7), (80.6, 64.1)), {"model": "han_large"}, flops="7.01e8"),
        Row("Inception", ((91.2, 75.7), (80.5, 63.8)), {"model": "han_inception"}, flops="1.09e9"),
        Row("Residual", ((91.0, 75.0), (78.5, 62.1)), {"model": "han_residual"}, flops="1.34e9"),
    ),
    flops=True,
)
