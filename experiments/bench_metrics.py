"""Measure evaluation and re-ranking at the sizes of the benchmarks, on features made from a seed.

  python -m experiments.bench_metrics [case ...]

Each figure is printed with its aim, the most time or memory that it should take, and with the speed of a 4096³ float32
matrix product in the same run; aims that are stated for a machine with 330 GFLOP/s are scaled by it. Memory is the peak
beyond the features. The features are clustered by person, 1,024-D (for a million images 256-D, or 64-D if they are re-
ranked) and of unit length; the printed accuracies say nothing about any network.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from experiments.measuring import STATED_PRODUCT, check_names, new_flags, product_flops, watched_memory, write_figures
from han_tf.common import cli as command_line
from han_tf.common.files import temporary_folder
from han_tf.metrics import (
    FaissNeighbours,
    FeatureDistances,
    evaluate,
    evaluate_distances,
    exact_neighbours,
    rerank,
    verify,
)

LATENT = 48
"""Dimensions in which the features vary; trained networks have about as many."""

SPREAD = 0.95
"""Deviation of one person's features in each of these dimensions, where people deviate by 1."""

COMMON_SECONDS = 3.2
"""Time of the common Cython code for the metrics of Market-1501 from given distances."""

FLAGS = new_flags()
FLAGS.group("measurements")
FLAGS.integer("memory_mb", 1024, "Memory for distances, MiB.", 16)
FLAGS.old_name("memory", "memory_mb")
FLAGS.integer("repeats", 3, "Measurements of the short cases; the best counts.", 1)


class Size(NamedTuple):
    """Numbers of images, dimensions, people and cameras; all but ``matching`` gallery images are distractors."""

    queries: int
    gallery: int
    dimension: int
    people: int
    matching: int
    cameras: int


SIZES = {
    "market1501": Size(3_368, 15_913, 1_024, 750, 13_115, 6),
    "msmt17": Size(11_659, 82_161, 1_024, 3_060, 82_161, 15),
    "million": Size(3_368, 1_000_000, 256, 750, 13_115, 6),
    # Exact neighbours of a million images need 10¹² distances, which only short features make affordable.
    "rerank-million": Size(3_368, 1_000_000, 64, 750, 13_115, 6),
}


class Case(NamedTuple):
    """A measurement."""

    size: str  # a key of SIZES
    seconds: Optional[float] = None  # the most that it should take
    megabytes: Optional[float] = None  # the most memory above the features that it should take
    scaled: bool = False  # whether ``seconds`` is scaled by the matrix product
    neighbours: str = ""  # those of the re-ranking: exact, ivf or hnsw; "" for no re-ranking
    repeated: bool = False  # whether it is short enough to be measured several times


CASES = {
    "market1501": Case("market1501", 0.8, 1024, scaled=True, repeated=True),
    "rerank-market1501": Case("market1501", 12, 1024, neighbours="exact"),
    "msmt17": Case("msmt17", 25, 1536),
    "million": Case("million", 90, 1536),
    "rerank-msmt17": Case("msmt17", 300, 4096, neighbours="exact"),
    "rerank-million-ivf": Case("rerank-million", neighbours="ivf"),
    "rerank-million-hnsw": Case("rerank-million", neighbours="hnsw"),
    "rerank-million-exact": Case("rerank-million", neighbours="exact"),
}
STANDARD = [name for name in CASES if not name.startswith("rerank-million")]
"""The cases that run if none is named; re-ranking a million images takes too long to be among them."""


class Problem(NamedTuple):
    """Features and labels as :func:`han_tf.metrics.evaluate` takes them."""

    query: np.ndarray
    gallery: np.ndarray
    labels: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make(size: Size, folder: Optional[Path] = None) -> Problem:
    """Returns features of ``size`` from a seed; the gallery is memory-mapped from ``folder`` if given."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((size.people, LATENT), np.float32)
    axes = rng.standard_normal((LATENT, size.dimension), np.float32)

    def fill(features: np.ndarray, pids: np.ndarray) -> np.ndarray:
        for start in range(0, len(pids), 4096):
            known = pids[start : start + 4096]
            latent = SPREAD * rng.standard_normal((len(known), LATENT), np.float32)
            strangers = rng.standard_normal((len(known), LATENT), np.float32)
            latent += np.where(known[:, None] > 0, people[known - 1], strangers)
            block = latent @ axes
            features[start : start + 4096] = block / np.linalg.norm(block, axis=1, keepdims=True)
        return features

    query_pids = rng.integers(1, size.people + 1, size.queries)
    gallery_pids = np.zeros(size.gallery, np.int64)
    gallery_pids[: size.matching] = rng.integers(1, size.people + 1, size.matching)
    rng.shuffle(gallery_pids)
    shape = (size.gallery, size.dimension)
    if folder is None:
        gallery = fill(np.empty(shape, np.float32), gallery_pids)
    else:
        written = np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float32, shape)
        fill(written, gallery_pids).flush()  # type: ignore[attr-defined]  # mapped
        del written
        gallery = np.load(folder / "gallery.npy", mmap_mode="r")
    camids = rng.integers(0, size.cameras, size.queries), rng.integers(0, size.cameras, size.gallery)
    query = fill(np.empty((size.queries, size.dimension), np.float32), query_pids)
    return Problem(query, gallery, (query_pids, gallery_pids, *camids))


class Bench:
    """Runs cases and prints their figures; ``values`` are the flags."""

    def __init__(self, values: command_line.Flags):
        self.values = values
        self.flops = product_flops()
        self.figures: list[dict[str, Any]] = []

    def run(self, name: str) -> None:
        """Measures all metrics, of distances between features or of re-ranked ones."""
        case, memory = CASES[name], {"memory_mb": self.values.memory_mb}
        with temporary_folder() as folder:
            problem = make(SIZES[case.size], folder if "million" in case.size else None)

            def call() -> Any:
                if not case.neighbours:
                    return evaluate(problem.query, problem.gallery, *problem.labels, **memory)
                neighbours = exact_neighbours if case.neighbours == "exact" else FaissNeighbours(case.neighbours)
                distances = rerank(problem.query, problem.gallery, neighbours=neighbours, **memory)
                return evaluate_distances(distances, *problem.labels, **memory)

            what = "re-ranking" if case.neighbours else "distances"
            result = self.measure(f"{name.replace('million-', 'million, ')}, {what} and all metrics", call, case)
            print(f"  rank-1 {100 * result.rank(1):.2f} %, mAP {100 * result.mAP:.2f} %", flush=True)
            self.figures[-1]["mAP"] = result.mAP
            if name == "market1501":
                self._given_distances(problem, memory)
        write_figures(self.values.output, "metrics_bench", figures=self.figures)

    def _given_distances(self, problem: Problem, memory: dict[str, int]) -> None:
        """Measures all metrics of given distances, and verification."""
        source = FeatureDistances(problem.query, problem.gallery)
        distances = source.dense(slice(0, len(problem.query)))
        self.measure(
            "market1501, all metrics of given distances",
            lambda: evaluate_distances(distances, *problem.labels, **memory),
            Case("market1501", COMMON_SECONDS / 10, repeated=True),
        )
        pairs = self.measure(
            "market1501, verification", lambda: verify(source, *problem.labels, **memory), Case("market1501")
        )
        print(f"  equal error rate {100 * pairs.equal_error_rate:.2f} % over {pairs.impostors:,} impostor pairs")

    def measure(self, title: str, call: Callable[[], Any], case: Case) -> Any:
        """Measures ``call`` against the aims of ``case`` and returns what it returned."""
        best, result = math.inf, None
        with watched_memory() as memory:
            for _ in range(self.values.repeats if case.repeated else 1):
                result = None  # two results at a time would need twice the memory
                start = time.perf_counter()
                result = call()
                best = min(best, time.perf_counter() - start)
        more = max(memory) - memory[0]
        figure = {"case": title, "seconds": best, "megabytes": more, "product_gflops": self.flops / 1e9}
        text = f"{title}: {best:.2f} s"
        if case.seconds:
            limit = case.seconds * (STATED_PRODUCT / self.flops if case.scaled else 1)
            figure["bar_seconds"] = limit
            text += f" (aim: {limit:.2f} s, {'met' if best <= limit else 'MISSED'})"
        text += f", {more:.0f} MiB above the features"
        if case.megabytes:
            figure["bar_megabytes"] = case.megabytes
            text += f" (aim: {case.megabytes:.0f}, {'met' if more <= case.megabytes else 'MISSED'})"
        print(f"{text}; product {self.flops / 1e9:.0f} GFLOP/s", flush=True)
        self.figures.append(figure)
        return result


def main(values: command_line.Flags) -> None:
    """Runs the named cases."""
    names = values.positional or STANDARD
    check_names(names, CASES)
    bench = Bench(values)
    for name in names:
        bench.run(name)


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="cases"))
