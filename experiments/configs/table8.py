"""Table 8: the global feature, the local feature, and both.

Reproduces: all three rows from one training of HAN Large; each half of the feature is also evaluated alone.

Expect: either half alone about equally good, and the joint feature 2 to 3 points of rank-1 and 4 of mAP above both.

Time: 300 epochs on Market-1501 take about 19 h on two CPU cores; the synthetic scale about 6 min.

  make table8 DATASET=market1501
  python -m experiments.run table8 --dataset market1501
"""

from experiments.schema import DUKE, LARGE, MARKET, Experiment, Row

EXPERIMENT = Experiment(
    title="Evaluating the global and local-level features",
    columns=(MARKET, DUKE),
    rows=(
        Row("Global", ((88.9, 72.2), (77.9, 59.8)), LARGE, feature="global"),
        Row("Local", ((89.3, 73.0), (77.8, 59.8)), LARGE, feature="local"),
        Row("Global + Local", ((91.6, 76.7), (80.6, 64.1)), LARGE),
    ),
)
