"""Table 5: CUHK03 under the 767/700 protocol, labelled and detected boxes, with and without re-ranking.

Reproduces: the HAN rows, from three trainings on each kind of boxes. The other methods are quoted as printed; MLFN's
FLOPs are > 2.26e9 here and ≈ 2.60e9 in Tables 3 and 4.

Expect: little training data, hence the lowest accuracies of the four sets; Large clearly above Small and Medium,
whose order depends on the boxes; 6 to 8 points of rank-1 and 12 to 13 of mAP from re-ranking.

Time: 300 epochs take about 6 h (Small), 9 h (Medium) and 11 h (Large) on two CPU cores, on each kind of boxes; the
synthetic scale about 15 min, the same trainings as Table 3's.

  make table5 DATASET=cuhk03
  python -m experiments.run table5 --dataset cuhk03
"""

from experiments.schema import CUHK03_DETECTED, CUHK03_LABELLED, Experiment, Row, han

EXPERIMENT = Experiment(
    title="Performance evaluation on CUHK03",
    columns=(CUHK03_LABELLED, CUHK03_DETECTED),
    rows=(
        Row("IDE-C (Zhong et al. 2017a)", ((15.6, 14.9), (15.1, 14.2)), flops="7.25e8"),
        Row("XQDA-C (Zhong et al. 2017a)", ((21.9, 20.0), (21.1, 19.0)), flops="7.25e8"),
        Row("IDE-R50 (Zhong et al. 2017a)", ((22.2, 21.0), (21.3, 19.7)), flops="3.80e9"),
        Row("XQDA-R50 (Zhong et al. 2017a)", ((32.0, 29.6), (31.1, 28.2)), flops="3.80e9"),
        Row("SVDNet-C (Sun et al. 2017)", (None, (27.7, 24.9)), flops="> 7.25e8"),
        Row("SVDNet-R50 (Sun et al. 2017)", (None, (41.5, 37.3)), flops="> 3.80e9"),
        Row("DPFL (Chen et al. 2017b)", ((43.0, 40.5), (40.7, 37.0)), flops="≈ 1.2e10"),
        Row("PT-R50 (Liu et al. 2018)", ((45.1, 42.0), (41.6, 38.7)), flops="> 3.80e9"),
        Row("AOS (Huang et al. 2018c)", (None, (47.1, 43.3)), flops="≈ 3.80e9"),
        Row("DaRe-R50 (Wang et al. 2018e)", ((58.1, 53.7), (55.1, 51.3)), flops="> 3.80e9"),
        Row("MLFN (Chang et al. 2018b)", ((54.7, 49.2), (52.8, 47.8)), flops="> 2.26e9"),
        han("Small", (42.7, 42.4), (40.9, 40.0)),
        han("Medium", (42.0, 42.3), (42.8, 42.0)),
        han("Large", (46.5, 46.1), (47.5, 45.5)),
        Row("AOS (Huang et al. 2018c), re-ranked", (None, (54.6, 56.1)), flops="≈ 3.80e9"),
        Row("MGCAM (Song et al. 2018), re-ranked", ((50.1, 50.2), (46.7, 46.9)), flops="3.76e8"),
        Row("DaRe-R50 (Wang et al. 2018e), re-ranked", ((66.0, 66.7), (62.8, 63.6)), flops="> 3.80e9"),
        han("Small", (49.6, 54.3), (46.9, 51.6), reranked=True),
        han("Medium", (50.1, 55.2), (49.7, 54.0), reranked=True),
        han("Large", (53.6, 58.7), (54.9, 57.9), reranked=True),
    ),
    flops=True,
)
