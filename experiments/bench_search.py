"""Measure an exact search for each feature dimension: time per query, and bytes per feature (Fig. 6).

  python -m experiments.bench_search --dimension 128,1024 --output FILE

Queries and gallery are as many as Market-1501's, float32, drawn from a seed and of unit length. A search finds the ten
nearest gallery features of all queries at once. Nothing else should be running.
"""

import os
import statistics
import sys

import numpy as np
from absl import flags

from experiments.measuring import new_flags, seconds, write_figures
from han_tf.common import cli as command_line
from han_tf.metrics import FeatureDistances, normalise
from han_tf.metrics.checks import default_threads
from han_tf.metrics.nearest import nearest

TOPK = 10

FLAGS = new_flags()
FLAGS.group("measurements")
FLAGS.list_of("dimension", [1024], "Feature dimensions.", flags.IntegerParser(2))
FLAGS.integer("queries", 3_368, "Queries.", 1)
FLAGS.integer("gallery", 15_913, "Features to search.", TOPK)
FLAGS.integer("repeats", 5, "Measurements per dimension; the median counts.", 1)


def seconds_per_query(dimension: int, queries: int, gallery: int, repeats: int) -> float:
    """Returns the median time of one query's exact search, in seconds."""
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal((count, dimension), np.float32) for count in (queries, gallery))
    source = FeatureDistances(*map(normalise, drawn))
    threads = default_threads(None)
    times = [seconds(lambda: nearest(source, TOPK, memory_mb=1024, threads=threads)) for _ in range(repeats)]
    return statistics.median(times) / queries


def main(values: command_line.Flags) -> None:
    """Measures as the flags say."""
    load = round(os.getloadavg()[0], 2)
    figures = []
    for dimension in sorted(set(values.dimension)):
        taken = seconds_per_query(dimension, values.queries, values.gallery, values.repeats)
        figures.append({"dimension": dimension, "bytes_per_identity": 4 * dimension, "seconds_per_query": taken})
        print(f"{dimension}-D: {4 * dimension} bytes, {1e3 * taken:.3f} ms per query")
    kept = {"queries": values.queries, "gallery": values.gallery, "topk": TOPK, "load": load}
    write_figures(values.output, "search", **kept, dimensions=figures)


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
