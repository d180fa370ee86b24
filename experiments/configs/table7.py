"""Table 7: HAN against MobileNet, ShuffleNet and CondenseNet on all four data sets.

Reproduces: every row; all six networks are trained here, from scratch and under the same schedule. The published FLOPs
of the three efficient networks are those of their own papers: multiply-adds at 224×224. Ours are counted at 160×64.

Expect: every HAN above every efficient network on each set; ShuffleNet and CondenseNet cheapest.

Time: on Market-1501 about 46 h for the three HANs on two CPU cores; the other networks have no measured figure until
one has been trained (--dry_run estimates them). The HAN trainings are those of Tables 3 to 6.

  make table7 DATASET=market1501
  python -m experiments.run table7 --dataset market1501,dukemtmc,cuhk03,msmt17
"""

from experiments.schema import (
    CUHK03_DETECTED,
    CUHK03_LABELLED,
    DUKE,
    MARKET_MQ,
    MARKET_SQ,
    MSMT17,
    Experiment,
    efficient,
    han,
)

EXPERIMENT = Experiment(
    title="Comparisons with efficient neural networks",
    columns=(MARKET_SQ, MARKET_MQ, DUKE, CUHK03_LABELLED, CUHK03_DETECTED, MSMT17),
    rows=(
        efficient("MobileNet", (84.6, 64.3), (89.3, 72.8), (72.1, 50.9), (36.1, 35.5), (35.0, 34.3), (53.8, 26.4)),
        efficient("ShuffleNet", (80.6, 58.4), (86.4, 67.0), (70.0, 48.2), (35.6, 35.1), (33.2, 33.3), (42.8, 18.9)),
        efficient("CondenseNet", (83.5, 62.8), (88.2, 70.8), (72.6, 51.3), (33.4, 33.5), (32.1, 31.8), (54.2, 26.5)),
        han("Small", (89.4, 73.2), (93.2, 80.8), (78.9, 61.9), (42.7, 42.4), (40.9, 40.0), (56.3, 29.2)),
        han("Medium", (90.7, 74.5), (93.9, 81.9), (80.0, 63.4), (42.0, 42.3), (42.8, 42.0), (57.1, 30.3)),
        han("Large", (91.6, 76.7), (94.2, 83.4), (80.6, 64.1), (46.5, 46.1), (47.5, 45.5), (60.1, 32.6)),
    ),
    flops=True,
)
