"""Table 2: what the data sets hold, counted by the readers.

Reproduces: identities, training and test identities, images and cameras. The paper counts images in two ways, and so
does this table: for Market-1501 without the queries and with the junk, for the others every image of the protocol, for
CUHK03 the labelled and the detected boxes together.

Expect: the published numbers, except for one more image of CUHK03 (14,096 labelled and 14,097 detected boxes).

Time: seconds per data set that is present; the others are shown as published.

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
