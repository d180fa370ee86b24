"""Table 9: different types of attention.

Reproduces: HAN Large without attention, with soft spatial (SSA), soft channel (SCA) and hard regional attention (HRA)
in every combination. Without HRA the local branch stays and its regions are four fixed strips; with one soft attention
the soft map is made from it alone; without both there is no soft map.

Expect: each type alone better than none, each pair better than its parts, all three best; HRA worth most in mAP.

Time: 300 epochs on Market-1501 take about 19 h for each of the eight trainings on two CPU cores; the synthetic scale
about 45 min in all. The last row is the HAN (Large) of Table 3.

  make table9 DATASET=market1501
  python -m experiments.run table9 --dataset market1501
"""

from experiments.schema import DUKE, LARGE, MARKET, Experiment, Row

_NO_SSA, _NO_SCA, _NO_HRA = {"spatial": False}, {"channel": False}, {"hard": False}

EXPERIMENT = Experiment(
    title="Evaluating different types of attention",
    columns=(MARKET, DUKE),
    rows=(
        Row("No Attention", ((85.2, 64.2), (72.8, 50.7)), {**LARGE, **_NO_SSA, **_NO_SCA, **_NO_HRA}),
        Row("SSA", ((86.3, 65.3), (74.6, 51.2)), {**LARGE, **_NO_SCA, **_NO_HRA}, smoke=False),
        Row("SCA", ((87.2, 67.7), (74.8, 53.0)), {**LARGE, **_NO_SSA, **_NO_HRA}, smoke=False),
        Row("SSA+SCA", ((88.9, 69.9), (77.2, 56.1)), {**LARGE, **_NO_HRA}, smoke=False),
        Row("HRA", ((87.9, 70.3), (77.1, 60.0)), {**LARGE, **_NO_SSA, **_NO_SCA}, smoke=False),
        Row("SSA+HRA", ((89.5, 72.1), (77.5, 60.1)), {**LARGE, **_NO_SCA}, smoke=False),
        Row("SCA+HRA", ((90.1, 74.9), (78.9, 62.9)), {**LARGE, **_NO_SSA}, smoke=False),
        Row("HAN (All)", ((91.6, 76.7), (80.6, 64.1)), LARGE),
    ),
)
