"""Figure 7: what HAN attends to.

Reproduces: the sheet of images, each with the regions of hard attention (red, blue, green, violet) and the soft
attention of the three levels, for HAN Large. The paper does not name the network of its figure. The sheet of drawn
pedestrians goes to experiments/figures; that of a real data set stays in the run's folder, since it shows real people.

Expect: the four regions on head and shoulders, upper body, upper legs and lower legs; soft attention on the whole body
at the first level and on parts of it at the third.

Time: 300 epochs on Market-1501 take about 19 h on two CPU cores; the synthetic scale about 6 min. The training is that
of Table 8.

  make figure7
  python -m experiments.run figure7 --dataset market1501
"""

from experiments.schema import LARGE, MARKET, Experiment, Row

EXPERIMENT = Experiment(
    title="Visualisation of the harmonious re-id attention",
    columns=(MARKET,),
    rows=(Row("HAN (Large)", ((91.6, 76.7),), LARGE),),
    sheet=True,
)
