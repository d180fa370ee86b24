"""Table 10: cross-attention interaction learning (CAIL).

Reproduces: all six rows from two trainings of HAN Large. Without CAIL the local branch sees the crops of the first
level only (eq. 8 without its sum); the training with CAIL is that of Table 8.

Expect: without CAIL a very weak local feature, and a joint feature that is worse than the global one alone.

Time: 300 epochs on Market-1501 take about 19 h for each of the two trainings on two CPU cores; the synthetic scale
about 12 min.

  make table10 DATASET=market1501
  python -m experiments.run table10 --dataset market1501
"""

from experiments.schema import DUKE, LARGE, MARKET, Experiment, Row

_WITHOUT = {**LARGE, "interaction": False}

EXPERIMENT = Experiment(
    title="Evaluating the cross-attention interaction learning (CAIL) component",
    columns=(MARKET, DUKE),
    rows=(
        Row("Global (w/o CAIL)", ((84.1, 64.0), (73.2, 53.3)), _WITHOUT, feature="global"),
        Row("Global (w/ CAIL)", ((88.9, 72.2), (77.9, 59.8)), LARGE, feature="global"),
        Row("Local (w/o CAIL)", ((17.1, 7.6), (24.3, 14.3)), _WITHOUT, feature="local"),
        Row("Local (w/ CAIL)", ((89.3, 73.0), (77.8, 59.8)), LARGE, feature="local"),
        Row("Global+Local (w/o CAIL)", ((72.1, 50.9), (56.7, 40.1)), _WITHOUT),
        Row("Global+Local (w/ CAIL)", ((91.6, 76.7), (80.6, 64.1)), LARGE),
    ),
)
