"""Table 3: Market-1501, single- and multi-query, with and without re-ranking and random erasing.

Reproduces: the HAN rows of all four groups. Six trainings give the twelve rows, since re-ranking needs no training.
The other methods are quoted.

Expect: with the paper's 300 epochs the published order Small < Medium < Large, multi-query above single-query by 2.5
to 4 points of rank-1, and 11 to 12 points of mAP from re-ranking. Short schedules fall 5 to 20 points short.

Time: 300 epochs take about 11 h (Small), 16 h (Medium) and 19 h (Large) on two CPU cores, each of them twice; the
synthetic scale about 30 min in all.

  make table3 DATASET=market1501
  python -m experiments.run table3 --dataset market1501
"""

from experiments.schema import MARKET_MQ, MARKET_SQ, Experiment, Row, han

EXPERIMENT = Experiment(
    title="Performance evaluation on Market-1501",
    columns=(MARKET_SQ, MARKET_MQ),
    rows=(
        Row("CRAFT (Chen et al. 2017c)", ((68.7, 42.3), (77.0, 50.3)), flops="N/A"),
        Row("CAN (Liu et al. 2017a)", ((60.3, 35.9), (72.1, 47.9)), flops="> 1.55e10"),
        Row("G-SCNN (Varior et al. 2016)", ((65.8, 39.5), (76.0, 48.4)), flops="≈ 1.11e8"),
        Row("HPN (Liu et al. 2017b)", ((76.9, None), None), flops="≈ 1.82e10"),
        Row("SVDNet (Sun et al. 2017)", ((82.3, 62.1), None), flops="> 3.80e9"),
        Row("MSCAN (Li et al. 2017a)", ((80.3, 57.5), (86.8, 66.7)), flops="1.36e9"),
        Row("DLPA (Zhao et al. 2017)", ((81.0, 63.4), None), flops="> 7.29e8"),
        Row("PDC (Su et al. 2017)", ((84.1, 63.4), None), flops="≫ 9.82e9"),
        Row("GLAD (Wei et al. 2017)", ((89.9, 73.9), None), flops="≫ 7.99e9"),
        Row("DPFL (Chen et al. 2017b)", ((88.9, 73.1), (92.3, 80.7)), flops="≈ 1.2e10"),
        Row("AACN (Xu et al. 2018)", ((85.9, 66.9), (89.8, 75.1)), flops="> 1.57e9"),
        Row("DML (Zhang et al. 2018b)", ((89.3, 70.5), (92.8, 79.0)), flops="5.69e8"),
        Row("DaRe-D201 (Wang et al. 2018e)", ((86.0, 69.9), None), flops="> 4.00e9"),
        Row("PT-D169 (Liu et al. 2018)", ((87.7, 68.9), None), flops="> 3.00e9"),
        Row("AOS (Huang et al. 2018c)", ((86.5, 70.4), (91.3, 78.3)), flops="≈ 3.80e9"),
        Row("BraidNet (Wang et al. 2018d)", ((83.7, 69.5), None), flops="> 2.26e9"),
        Row("MLFN (Chang et al. 2018b)", ((90.0, 74.3), (92.3, 82.4)), flops="≈ 2.60e9"),
        Row("CamStyle (Zhong et al. 2018b)", ((88.1, 68.7), None), flops="≈ 3.80e9"),
        Row("PSE (Saquib et al. 2018)", ((87.7, 69.0), None), flops="> 3.80e9"),
        Row("KPM (Shen et al. 2018a)", ((90.1, 75.3), None), flops="> 3.80e9"),
        Row("PoseNorm (Qian et al. 2018)", ((89.4, 72.6), (92.9, 80.2)), flops="> 3.80e9"),
        Row("HAP2S (Yu et al. 2018)", ((84.6, 69.4), (90.2, 76.8)), flops="≈ 3.80e9"),
        han("Small", (89.4, 73.2), (93.2, 80.8)),
        han("Medium", (90.7, 74.5), (93.9, 81.9)),
        han("Large", (91.6, 76.7), (94.2, 83.4)),
        Row("AACN (Xu et al. 2018), re-ranked", ((88.7, 83.0), (92.2, 87.3)), flops="> 1.57e9"),
        Row("DaRe-D201 (Wang et al. 2018e), re-ranked", ((88.6, 82.2), None), flops="> 4.00e9"),
        Row("MGCAM (Song et al. 2018), re-ranked", ((83.8, 74.3), None), flops="3.76e8"),
        Row("AOS (Huang et al. 2018c), re-ranked", ((88.7, 83.3), (92.5, 88.6)), flops="≈ 3.80e9"),
        Row("PSE (Saquib et al. 2018), re-ranked its own way", ((90.3, 84.0), None), flops="> 3.80e9"),
        han("Small", (91.2, 85.5), (93.7, 90.1), reranked=True),
        han("Medium", (92.0, 86.9), (94.1, 90.8), reranked=True),
        han("Large", (92.0, 87.5), (94.3, 90.9), reranked=True),
        Row("SGGNN (Shen et al. 2018b), erasing", ((92.3, 82.8), None), flops="> 3.80e9"),
        Row("GCS (Chen et al. 2018a), erasing", ((93.5, 81.6), None), flops="> 3.80e9"),
        han("Small", (90.0, 75.3), (93.2, 82.3), erasing=True),
        han("Medium", (90.9, 77.9), (93.7, 84.0), erasing=True),
        han("Large", (91.1, 78.1), (94.1, 84.7), erasing=True),
        Row("RW (Shen et al. 2018a), erasing, re-ranked its own way", ((92.7, 82.5), None), flops="> 3.80e9"),
        han("Small", (92.3, 87.5), (93.8, 91.0), erasing=True, reranked=True),
        han("Medium", (92.9, 88.8), (94.5, 92.0), erasing=True, reranked=True),
        han("Large", (93.1, 89.6), (94.8, 92.5), erasing=True, reranked=True),
    ),
    flops=True,
)
