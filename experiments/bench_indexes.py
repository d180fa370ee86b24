"""Measure the embedded engines of galleries: recall, latency, memory and build time, by index type and size.

  python -m experiments.bench_indexes --folder DIR [case ...] --output FILE

A case is a size and an engine, e.g. ``1000000x1024/hnsw``; all twelve run if none is named. Missing galleries are
built in DIR and kept there. ``--build_only`` makes the long builds beforehand, so that the measurements can run on a
quiet machine. Each gallery is opened in a separate process.

The features are drawn from a seed and resemble those of a trained network: 25 images per person, clustered, varying in
48 latent dimensions, of unit length. Searches use the public interface and return the hits' labels; the files are in
the page cache. Recall is of the ten nearest of an exact search. ``memory_mb`` is the memory that opening and searching
a gallery adds to the process (index and labels), ``mapped_mb`` the file pages that it has mapped and touched. Other
load on the machine changes a build's seconds, but not its CPU seconds.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench_metrics import Size, make
from experiments.measuring import check_names, memory_mb, new_flags, product_flops, seconds, write_figures
from han_tf.common import cli as command_line
from han_tf.common.files import write_json
from han_tf.common.progress import progress_bar
from han_tf.metrics.checks import default_threads
from han_tf.search import Gallery, create_gallery
from han_tf.search.faiss_gallery import FaissGallery

SIZES = {"100000x256": (100_000, 256), "100000x1024": (100_000, 1_024)}
SIZES |= {"1000000x256": (1_000_000, 256), "1000000x1024": (1_000_000, 1_024)}
ENGINES = ("flat", "hnsw", "ivfpq")
CASES = tuple(f"{size}/{engine}" for size in SIZES for engine in ENGINES)

IMAGES_PER_PERSON = 25
CAMERAS = 6
QUERIES = 1_000
K = 10

TIMED_SECONDS = 20
"""Queries are timed until all are done, or until this time is over and at least a hundred are done."""

BAR_ROWS, BAR_RECALL, BAR_SPEEDUP = 1_000_000, 0.95, 20
"""What HNSW and IVF-PQ should reach: from this number of rows on, the recall, and speed as a multiple of flat's."""

CHUNK = 16_384

FLAGS = new_flags()
FLAGS.group("galleries")
FLAGS.string("folder", "", "Where galleries are built and kept.")
FLAGS.boolean("build_only", False, "Build what is missing and measure nothing.")
FLAGS.require("folder", "a folder to keep galleries in")


def build(folder: Path, size: str, engine: str) -> Path:
    """Returns the folder of a gallery, which is built if it is missing."""
    gallery_folder = folder / size / engine
    if (gallery_folder / "build.json").exists():
        return gallery_folder
    shutil.rmtree(gallery_folder, ignore_errors=True)
    rows, dimension = SIZES[size]
    if engine == "flat":
        (folder / size).mkdir(parents=True, exist_ok=True)
        problem = make(Size(QUERIES, rows, dimension, rows // IMAGES_PER_PERSON, rows, CAMERAS), folder / size)
        np.save(folder / size / "query.npy", problem.query)
        with create_gallery(gallery_folder, dimension, "bench", "flat") as gallery, _clocked() as clock:
            _, pids, _, camids = problem.labels
            for start in progress_bar(range(0, rows, CHUNK), f"{size} add", unit_scale=CHUNK):
                part = slice(start, start + CHUNK)
                paths = [f"{i}.jpg" for i in range(*part.indices(rows))]
                gallery.add(problem.gallery[part], paths=paths, pids=pids[part], camids=camids[part])
        (folder / size / "gallery.npy").unlink()
    else:
        # A hard link is enough: the vectors' file is only appended to, and nothing is added here.
        flat = build(folder, size, "flat")
        gallery_folder.mkdir(parents=True)
        shutil.copy(flat / "gallery.sqlite", gallery_folder)
        os.link(flat / "vectors-0.f32", gallery_folder / "vectors-0.f32")
        bar = progress_bar(total=rows, desc=f"{size} {engine}")
        with bar, FaissGallery(gallery_folder, writable=True) as gallery, _clocked() as clock:
            gallery.build(engine, progress=lambda done, _: bar.update(done - bar.n))
    write_json(gallery_folder / "build.json", clock)
    return gallery_folder


@contextmanager
def _clocked() -> Iterator[dict[str, float]]:
    """Yields a dict that gets the block's seconds, its CPU seconds of all threads, and the load after it."""
    figures: dict[str, float] = {}
    start, cpu = time.perf_counter(), time.process_time()
    yield figures
    figures |= {"build_seconds": time.perf_counter() - start, "build_cpu_seconds": time.process_time() - cpu}
    figures["build_load"] = os.getloadavg()[1]


def measure(gallery_folder: Path, truth: np.ndarray) -> dict[str, Any]:
    """Returns the figures of one gallery; to be called in a fresh process."""
    queries = np.load(gallery_folder.parent / "query.npy")
    before = memory_mb("RssAnon"), memory_mb("RssFile")
    start = time.perf_counter()
    gallery = FaissGallery(gallery_folder)
    opened = time.perf_counter() - start
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(gallery.search_ids(queries, K)[0], truth)])
    figures = {
        "rows": len(gallery),
        "dimension": gallery.dimension,
        "engine": gallery_folder.name,
        "recall_at_10": float(recall),
        "batch_ms_per_query": 10 * seconds(lambda: gallery.search(queries[:100], K)),
        "memory_mb": memory_mb("RssAnon") - before[0],
        "mapped_mb": memory_mb("RssFile") - before[1],
        "open_seconds": opened,
    }
    gallery.close()
    for threads in sorted({1, default_threads(None)}):
        with FaissGallery(gallery_folder, threads=threads) as gallery:
            latencies = _latencies(gallery, queries)
        p50, p99 = np.percentile(latencies, [50, 99])
        figures |= {f"p50_ms_{threads}_threads": p50, f"p99_ms_{threads}_threads": p99}
    figures["timed_queries"] = len(latencies)
    figures["bytes_on_disk"] = sum(path.stat().st_size for path in gallery_folder.iterdir())
    return {**figures, **json.loads((gallery_folder / "build.json").read_text())}


def _latencies(gallery: Gallery, queries: np.ndarray) -> list[float]:
    """Returns the times of searches for one query each, in milliseconds."""
    for query in queries[:20]:
        gallery.search(query[None], K)
    latencies: list[float] = []
    for query in queries:
        latencies.append(1e3 * seconds(lambda query=query: gallery.search(query[None], K)))
        if len(latencies) >= 100 and sum(latencies) > 1e3 * TIMED_SECONDS:
            break
    return latencies


def exact(flat: Path) -> np.ndarray:
    """Returns the ids of the :data:`K` nearest of every query by an exact search, int64 ``[QUERIES, K]``."""
    path = flat.parent / "truth.npy"
    if not path.exists():
        with FaissGallery(flat) as gallery:
            np.save(path, gallery.search_ids(np.load(flat.parent / "query.npy"), K)[0])
    return np.load(path)


def main(values: command_line.Flags) -> None:
    """Builds and measures the named cases."""
    names = values.positional or CASES
    check_names(names, CASES)
    folder = Path(values.folder)
    gallery_folders = {name: build(folder, *name.split("/")) for name in names}
    if values.build_only:
        return
    product = product_flops() / 1e9
    figures: dict[str, dict[str, Any]] = {}
    for name, gallery_folder in gallery_folders.items():
        size, engine = name.split("/")
        truth = exact(build(folder, size, "flat"))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(measure, (gallery_folder, truth))
        figure = {"case": name, **measured, "load": os.getloadavg()[0], "product_gflops": product}
        figures[name] = figure
        print(
            f"{name}: recall@10 {figure['recall_at_10']:.3f}, p50 {figure['p50_ms_1_threads']:.2f} ms, "
            f"p99 {figure['p99_ms_1_threads']:.2f} ms on one thread, {figure['memory_mb']:.0f} MiB, "
            f"built in {figure['build_seconds']:.0f} s ({figure['build_cpu_seconds']:.0f} s of CPU)"
        )
        flat = figures.get(f"{size}/flat")
        if flat and engine != "flat":
            speedup = flat["p50_ms_1_threads"] / figure["p50_ms_1_threads"]
            figure["times_faster_than_flat"] = speedup
            text = f"  {speedup:.0f} times faster than flat"
            if figure["rows"] >= BAR_ROWS:
                met = speedup >= BAR_SPEEDUP and figure["recall_at_10"] >= BAR_RECALL
                text += f" (aim: {BAR_SPEEDUP} at recall {BAR_RECALL}: {'met' if met else 'MISSED'})"
            print(text, flush=True)
        write_figures(values.output, "index_bench", figures=list(figures.values()))


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="cases"))
