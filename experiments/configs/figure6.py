"""Figure 6: accuracy against the dimension of the feature, HAN Large and ResNet50.

Reproduces: the plot, and beside it a picture of bytes per identity, search time per query and accuracy, which the paper
discusses but does not plot. Each branch of HAN has half of the dimensions. The paper's text gives only one point of its
curves: 1,024 dimensions of HAN Large, the feature of Tables 3 and 4.

Expect: HAN Large above ResNet50 at every dimension; little lost down to a few hundred dimensions; bytes and search time
proportional to the dimension.

Time: 300 epochs on Market-1501 take about 19 h on two CPU cores for each of the ten HAN trainings; ResNet50 has no
measured figure until one has been trained. The synthetic scale takes two to three hours; --rows picks dimensions.

  make figure6 DATASET=market1501
  python -m experiments.run figure6 --dataset market1501 --rows "HAN (Large) 128" --rows "HAN (Large) 1024"
"""

from experiments.schema import DUKE, MARKET, Experiment, Row

DIMENSIONS = (128, 256, 320, 448, 512, 640, 720, 832, 928, 1024)
_NETWORKS = {"HAN (Large)": "han_large", "ResNet50": "resnet50"}
_READABLE = {("HAN (Large)", 1024): ((91.6, 76.7), (80.6, 64.1))}

EXPERIMENT = Experiment(
    title="Evaluating a set of feature dimensions",
    columns=(MARKET, DUKE),
    rows=tuple(
        Row(
            f"{network} {dimension}",
            _READABLE.get((network, dimension), (None, None)),
            {"model": model, "feature_dim": dimension},
            smoke=dimension in (DIMENSIONS[0], DIMENSIONS[-1]),
        )
        for network, model in _NETWORKS.items()
        for dimension in DIMENSIONS
    ),
    search=True,
)
