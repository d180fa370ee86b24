"""Cost-effectiveness: rank-1 and mAP against FLOPs and against measured images per second, for every network.

Reproduces: the paper's claims about Tables 3, 7 and 12 in one picture. Grey points are the methods that Table 3 quotes.
Our networks are at their multiply-adds at 160×64. The quoted FLOPs are multiply-adds, too, but at the input sizes of
the papers they come from; the paper's own HAN figures, hollow points, count a multiply-add as two operations.

Expect: the HANs at the upper left, above all cheaper networks and left of all better ones.

Time: that of the trainings of Tables 3, 7, 12 and the last one of Figure 6, with which they are shared; then about a
minute per network to measure its speed, for which nothing else should be running.

  make cost_effectiveness DATASET=market1501
  python -m experiments.run cost_effectiveness --dataset market1501
"""

from experiments.schema import MARKET, Experiment, Row, efficient, han

EXPERIMENT = Experiment(
    title="Cost-effectiveness of every network",
    columns=(MARKET,),
    rows=(
        han("Small", (89.4, 73.2)),
        han("Medium", (90.7, 74.5)),
        han("Large", (91.6, 76.7)),
        Row("HAN, Inception units", ((91.2, 75.7),), {"model": "han_inception"}, flops="1.09e9"),
        Row("HAN, residual units", ((91.0, 75.0),), {"model": "han_residual"}, flops="1.34e9"),
        efficient("MobileNet", (84.6, 64.3)),
        efficient("ShuffleNet", (80.6, 58.4)),
        efficient("CondenseNet", (83.5, 62.8)),
        Row("ResNet50", (None,), {"model": "resnet50"}, flops="3.80e9"),
    ),
    flops=True,
    speed=True,
)
