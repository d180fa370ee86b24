"""Table 11: cross-entropy, triplet loss, and both.

Reproduces: HAN Large under the three objectives. The triplet loss takes the hardest triplet of each image of a batch
and drops those that keep the margin.

Expect: the triplet loss alone far behind; both together about as good as cross-entropy alone.

Time: 300 epochs on Market-1501 take about 19 h for each of the three trainings on two CPU cores; the synthetic scale
about 17 min. The first row is the HAN (Large) of Table 3.

  make table11 DATASET=market1501
  python -m experiments.run table11 --dataset market1501
"""

from experiments.schema import DUKE, LARGE, MARKET, Experiment, Row

EXPERIMENT = Experiment(
    title="Evaluating different types of objective functions",
    columns=(MARKET, DUKE),
    rows=(
        Row("Cross-Entropy", ((91.6, 76.7), (80.6, 64.1)), LARGE),
        Row("Triplet", ((63.7, 41.7), (57.8, 37.6)), {**LARGE, "loss": "triplet"}),
        Row(
            "Cross-Entropy + Triplet",
            ((91.5, 76.3), (79.9, 61.5)),
            {**LARGE, "loss": "cross_entropy+triplet"},
            smoke=False,
        ),
    ),
)
