"""Table 6: MSMT17, with and without re-ranking.

Reproduces: the HAN rows, from three trainings on the training list alone, as for most published results. The other
methods are quoted, also ResNet50, whose training the paper does not describe.

Expect: the order Small < Medium < Large; 5 to 7 points of rank-1 and about 13 of mAP from re-ranking.

Time: 300 epochs take about 26 h (Small), 37 h (Medium) and 45 h (Large) on two CPU cores; re-ranking its 93,820
images some minutes; the synthetic scale about 15 min, the same trainings as Table 3's.

  make table6 DATASET=msmt17
  python -m experiments.run table6 --dataset msmt17
"""

from experiments.schema import MSMT17, Experiment, Row, han

EXPERIMENT = Experiment(
    title="Performance evaluation on MSMT17",
    columns=(MSMT17,),
    rows=(
        Row("GoogLeNet (Szegedy et al. 2015)", ((47.6, 23.0),), flops="1.57e9"),
        Row("PDC (Su et al. 2017)", ((58.0, 29.7),), flops="≫ 9.82e9"),
        Row("GLAD (Wei et al. 2017)", ((61.4, 34.0),), flops="≫ 7.99e9"),
        Row("ResNet50 (He et al. 2016)", ((59.7, 33.7),), flops="3.80e9"),
        han("Small", (56.3, 29.2)),
        han("Medium", (57.1, 30.3)),
        han("Large", (60.1, 32.6)),
        Row("ResNet50 (He et al. 2016), re-ranked", ((64.6, 47.6),), flops="3.80e9"),
        han("Small", (61.8, 41.8), reranked=True),
        han("Medium", (63.8, 42.9), reranked=True),
        han("Large", (66.2, 46.2), reranked=True),
    ),
    flops=True,
)
