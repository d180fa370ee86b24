"""Table 2: what the data sets hold, counted by the readers.

Reproduces: identities, training and test identities, images and cameras. The paper's numbers of images are not all of
one kind: that of Market-1501 leaves out the queries and holds the junk, those of the others hold every image of the
protocol, for CUHK03 the labelled and the detected boxes together. Here they are counted the same way.

Expect: the published numbers, but for one image more of CUHK03 (14,096 labelled and 14,097 detected boxes).

Time: seconds per data set that is there; the others stand as published.

  make table2
  python -m experiments.run table2 --dataset market1501 --data_dir datasets/market1501
"""

from experiments.schema import Counts, Experiment

_ALL = ("train", "query", "gallery")

EXPERIMENT = Experiment(
    title="Data statistics",
    counts=(
        Counts("CUHK03", "cuhk03", (1_467, 767, 700, 28_192, 2), {"labelled": _ALL, "detected": _ALL}),
        Counts("Market-1501", "market1501", (1_501, 751, 750, 32_668, 6), {"": ("train", "gallery")}),
        Counts("DukeMTMC", "dukemtmc", (1_404, 702, 702, 36_411, 8), {"": _ALL}),
        Counts("MSMT17", "msmt17", (4_101, 1_041, 3_060, 126_441, 15), {"trainval": _ALL}),
    ),
)
