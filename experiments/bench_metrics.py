"""Measure evaluation and re-ranking at the sizes of the benchmarks, on features made from a seed.

  python -m experiments.bench_metrics [case ...]

Each figure is printed with its bar and with the speed of a 4096³ float32 matrix product in the same run; bars that are
stated for a machine with 330 GFLOP/s are scaled by it. Memory is the peak beyond the features. The features are
clustered by person, 1,024-D (for a million images 256-D, or 64-D if they are re-ranked) and of unit length; the
printed accuracies say nothing about any network.
"""

import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from absl import flags

from experiments.measuring import STATED_PRODUCT, check_cases, memory_mb, product_flops, seconds, write_figures
from han_tf.common import cli as command_line
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

FLAGS = command_line.new_flags()
flags.DEFINE_integer("memory_mb", 1024, "Memory for distances, MiB.", 16, flag_values=FLAGS)
command_line.old_name(FLAGS, "memory", "memory_mb")
flags.DEFINE_integer("repeats", 3, "Measurements of the short cases; the best counts.", 1, flag_values=FLAGS)
flags.DEFINE_string("output", "", "JSON file for the figures.", flag_values=FLAGS)


class Size(NamedTuple):
    """Numbers of images, dimensions, people and cameras; all but ``matching`` gallery images are distractors."""

    queries: int
    gallery: int
    dimension: int
    people: int
    matching: int
    cameras: int


MARKET = Size(3_368, 15_913, 1_024, 750, 13_115, 6)
MSMT = Size(11_659, 82_161, 1_024, 3_060, 82_161, 15)
MILLION = Size(3_368, 1_000_000, 256, 750, 13_115, 6)
RERANKED_MILLION = MILLION._replace(dimension=64)
"""Exact neighbours of a million images need 10¹² distances, which only short features make affordable."""


class Bar(NamedTuple):
    """Most seconds, and most MiB above the features; whether the seconds are scaled by the matrix product."""

    seconds: Optional[float] = None
    megabytes: Optional[float] = None
    scaled: bool = False


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


class PeakMemory:
    """Measures the most anonymous memory the process holds within a block; file pages (memory maps) do not count."""

    def __enter__(self) -> "PeakMemory":
        self._start = self.peak = memory_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, memory_mb())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.megabytes = self.peak - self._start


class Bench:
    """Runs cases and prints their figures.

    Args:
      memory_mb: memory budget handed to the metrics.
      repeats: measurements of the short cases.
      output: JSON file for the figures, written anew after each; empty for none.
    """

    def __init__(self, memory_mb: int, repeats: int, output: str = ""):
        self.memory_mb = memory_mb
        self.repeats = repeats
        self.output = output
        self.flops = product_flops()
        self.figures: list[dict[str, Any]] = []
        print(f"4096³ float32 product: {self.flops / 1e9:.0f} GFLOP/s")

    def measure(self, name: str, call: Callable[[], Any], bar: Bar, repeats: int = 1) -> Any:
        """Measures ``call`` against its bar and returns what it returned."""
        best, results = np.inf, []
        with PeakMemory() as memory:
            for _ in range(repeats):
                best = min(best, seconds(lambda: results.append(call())))
                del results[:-1]
        figure = {"case": name, "seconds": best, "megabytes": memory.megabytes, "product_gflops": self.flops / 1e9}
        text = f"{name}: {best:.2f} s"
        if bar.seconds:
            limit = bar.seconds * (STATED_PRODUCT / self.flops if bar.scaled else 1)
            figure["bar_seconds"] = limit
            text += f" (bar {limit:.2f} s: {'met' if best <= limit else 'MISSED'})"
        text += f", {memory.megabytes:.0f} MiB above the features"
        if bar.megabytes:
            figure["bar_megabytes"] = bar.megabytes
            text += f" (bar {bar.megabytes:.0f}: {'met' if memory.megabytes <= bar.megabytes else 'MISSED'})"
        print(f"{text}; product {self.flops / 1e9:.0f} GFLOP/s", flush=True)
        self.figures.append(figure)
        write_figures(self.output, self.figures)
        return results[0]

    def scores(self, name: str, call: Callable[[], Any], bar: Bar, repeats: int = 1) -> None:
        """Measures ``call``, which returns an evaluation; prints its scores and adds its mAP to the figures."""
        result = self.measure(name, call, bar, repeats)
        print(f"  rank-1 {100 * result.rank(1):.2f} %, mAP {100 * result.mAP:.2f} %", flush=True)
        self.figures[-1]["mAP"] = result.mAP
        write_figures(self.output, self.figures)

    def _evaluate(self, name: str, problem: Problem, bar: Bar, repeats: int = 1) -> None:
        def call() -> Any:
            return evaluate(problem.query, problem.gallery, *problem.labels, memory_mb=self.memory_mb)

        self.scores(f"{name}, distances and all metrics", call, bar, repeats)

    def _rerank(self, name: str, problem: Problem, bar: Bar, **options: Any) -> None:
        def call() -> Any:
            distances = rerank(problem.query, problem.gallery, memory_mb=self.memory_mb, **options)
            return evaluate_distances(distances, *problem.labels, memory_mb=self.memory_mb)

        self.scores(f"{name}, re-ranking and all metrics", call, bar)

    def market1501(self) -> None:
        """3,368 × 15,913 × 1,024-D: all metrics, from features and from given distances; verification."""
        problem = make(MARKET)
        self._evaluate("market1501", problem, Bar(0.8, self.memory_mb, scaled=True), self.repeats)
        source = FeatureDistances(problem.query, problem.gallery)
        distances = source.dense(slice(0, MARKET.queries))
        self.measure(
            "market1501, all metrics of given distances",
            lambda: evaluate_distances(distances, *problem.labels, memory_mb=self.memory_mb),
            Bar(COMMON_SECONDS / 10),
            self.repeats,
        )
        pairs = self.measure(
            "market1501, verification", lambda: verify(source, *problem.labels, memory_mb=self.memory_mb), Bar()
        )
        print(f"  equal error rate {100 * pairs.equal_error_rate:.2f} % over {pairs.impostors:,} impostor pairs")

    def msmt17(self) -> None:
        """11,659 × 82,161 × 1,024-D: distances and all metrics."""
        self._evaluate("msmt17", make(MSMT), Bar(25, 1536))

    def million(self) -> None:
        """3,368 × 1,000,000 × 256-D, the gallery memory-mapped: distances and all metrics."""
        with tempfile.TemporaryDirectory() as folder:
            self._evaluate("million", make(MILLION, Path(folder)), Bar(90, 1536))

    def rerank_market1501(self) -> None:
        """N = 19,281, 1,024-D: re-ranking, and the metrics of its distances."""
        self._rerank("rerank-market1501", make(MARKET), Bar(12, 1024))

    def rerank_msmt17(self) -> None:
        """N = 93,820, 1,024-D: re-ranking, and the metrics of its distances."""
        self._rerank("rerank-msmt17", make(MSMT), Bar(300, 4096))

    def rerank_million(self, kind: str) -> None:
        """N = 1,003,368, 64-D: re-ranking with approximate or exact neighbours, to compare their mAP."""
        neighbours = exact_neighbours if kind == "exact" else FaissNeighbours(kind)
        with tempfile.TemporaryDirectory() as folder:
            self._rerank(f"rerank-million, {kind}", make(RERANKED_MILLION, Path(folder)), Bar(), neighbours=neighbours)


CASES = {
    "market1501": Bench.market1501,
    "msmt17": Bench.msmt17,
    "million": Bench.million,
    "rerank-market1501": Bench.rerank_market1501,
    "rerank-msmt17": Bench.rerank_msmt17,
    "rerank-million-ivf": lambda bench: bench.rerank_million("ivf"),
    "rerank-million-hnsw": lambda bench: bench.rerank_million("hnsw"),
    "rerank-million-exact": lambda bench: bench.rerank_million("exact"),
}
STANDARD = ("market1501", "rerank-market1501", "msmt17", "million", "rerank-msmt17")
"""The cases that run if none is named; re-ranking a million images takes too long to be among them."""


def main(values: flags.FlagValues) -> None:
    """Runs the named cases."""
    names = values.positional or STANDARD
    check_cases(names, CASES)
    bench = Bench(values.memory_mb, values.repeats, values.output)
    for name in names:
        CASES[name](bench)


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="cases"))
