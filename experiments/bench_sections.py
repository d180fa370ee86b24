"""The sections of RESULTS.md on benchmarks: one function for each kind of result, which returns its paragraphs.

The first paragraph says what was measured and with which command.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.bench_metrics import CASES, STANDARD
from experiments.measuring import ANCHORS
from experiments.results import Result
from experiments.tables import markdown_table
from han_tf.models import MODELS

EXACT_MILLION = "rerank-million, exact"
"""Start of the name of the case that approximate neighbours are compared with."""

ORIGINS = {True: "as given", False: "scaled by the product"}
"""Whether the rate of somebody else's network was given to the command -> where it comes from."""

DISTURBED = ("kill", "disk full", "EIO, write", "EIO, read", "compared", "lost", "doubled", "differing", "unreadable")
DAMAGED = ("inputs", "read", "refused", "peak_mb")
"""Entries of a chaos run's figures, for disturbed commands and for damaged inputs."""


def figures_table(head: str, line: str, figures: Iterable[Mapping[str, Any]], left: int = 1) -> str:
    """Returns a Markdown table with a line for each figure, whose first ``left`` columns are aligned to the left.

    ``head`` holds the headings, with `` | `` in between, ``line`` the formats of the cells, e.g. ``{case} |
    {seconds:.2f} s``. Where an entry is missing, the cell is empty.
    """

    def cell(form: str, figure: Mapping[str, Any]) -> str:
        try:
            return form.format_map(figure)
        except (KeyError, TypeError):
            return ""

    lines = [[cell(form, figure) for form in line.split(" | ")] for figure in figures]
    return markdown_table(head.split(" | "), lines, left)


def bench(result: Result, _: Sequence[Result]) -> list[str]:
    """Speed of inference and training, and the share of a matrix product's operations that they reach."""
    product, figures = result["product_flops"], []
    for name, rates in result["networks"].items():
        # A training step goes forward once and backward twice, for the inputs and for the weights.
        passes = {"inference": 1, "training": 3}
        shares = {f"{what}_of_product": 2 * n * rates["macs"] * rates[what] / product for what, n in passes.items()}
        figures.append({"network": name, **shares, **rates})
    pipeline = result["pipeline"]
    fastest = max(max(figure["training"], figure.get("training_bfloat16") or 0) for figure in figures)
    times = float(f"{pipeline['cached'] / fastest:.2g}")
    return [
        f"`python -m han_tf.bench{_some(result['networks'], MODELS, ' --arch ', ',')}`, {_product(product / 1e9)}.",
        figures_table(
            "network | inference | of product | training | of product | in bfloat16",
            "{network} | {inference:.0f} img/s | {inference_of_product:.1%} | {training:.0f} img/s | "
            "{training_of_product:.1%} | {training_bfloat16:.0f} img/s",
            figures,
        ),
        f"The input pipeline alone delivers {pipeline['cached']:,.0f} img/s from the cache, "
        f"about {times:.0f} times the fastest training, and {pipeline['decoding']:,.0f} img/s from files.",
    ]


def runtimes(result: Result, _: Sequence[Result]) -> list[str]:
    """Size, speed and accuracy of exported models, and a comparison of the fastest with its aims."""
    figures, datasets = [], set()
    for row in result["runtimes"]:
        figures.append(dict(row))
        if "accuracy" in row:
            datasets.add(row["accuracy"]["dataset"])
            figures[-1] |= {metric: 100 * row["accuracy"][metric] for metric in ("rank-1", "mAP")}
            figures[-1]["mAP_difference"] = 100 * row["mAP_difference"]
    bars = []
    for bar in result["bars"]:
        origin = f" ({bar['anchor']:.0f} img/s, {ORIGINS[bar['measured_here']]})" if "measured_here" in bar else ""
        missed = "" if bar["reached"] >= bar["factor"] else ", missed"
        bars.append(f"- {bar['reached']:.2f} times {bar['of']}{origin}; aim: {bar['factor']:g}{missed}")
    given = "".join(
        f" --{flag} {bar['anchor']:.0f}"
        for flag, (name, *_) in ANCHORS.items()
        for bar in result["bars"]
        if bar["of"] == name and bar["measured_here"]
    )
    command = f"python -m experiments.bench_runtimes --model RUN{given}"
    about = f"`{command}`, {_product(result['product_flops'] / 1e9)}."
    if datasets:
        about += f" Accuracies on {', '.join(sorted(datasets))}; the last column is against the Keras network."
    table = figures_table(
        "format | precision | size | decoded | from files | one image | rank-1 | mAP | mAP, difference",
        "{format} | {precision} | {megabytes:.1f} MB | {decoded:,.0f} img/s | {from_files:,.0f} img/s | "
        "{single_ms:.1f} ms | {rank-1:.2f} | {mAP:.2f} | {mAP_difference:+.2f}",
        figures,
        left=2,
    )
    return [about, table, "The fastest of them reaches:\n\n" + "\n".join(bars)]


def metrics_bench(result: Result, results: Sequence[Result]) -> list[str]:
    """Time and memory of evaluation and re-ranking; approximate neighbours beside exact ones, if both were measured."""
    of_kind = [figure for other in results if other["kind"] == result["kind"] for figure in other["figures"]]
    exact = [figure["mAP"] for figure in of_kind if figure["case"].startswith(EXACT_MILLION)]
    figures, notes = [], []
    for figure in result["figures"]:
        aims = {}
        for what in ("seconds", "megabytes"):
            if (bar := figure.get(f"bar_{what}")) is not None:
                aim = f"{bar:.2f} s" if what == "seconds" else f"{bar:.0f} MiB"
                aims[f"{what}_aim"] = aim + ("" if figure[what] <= bar else ", missed")
        figures.append({**figure, **aims})
        if figure["case"].startswith("rerank-million"):
            note = f"- {figure['case'].split(',')[1].strip()} neighbours of a million: mAP {100 * figure['mAP']:.2f} %"
            if exact and not figure["case"].startswith(EXACT_MILLION):
                note += f", {100 * (figure['mAP'] - exact[-1]):+.2f} points against exact ones"
            notes.append(note)
    products = [f", {_product(figure['product_gflops'])}" for figure in figures if "product_gflops" in figure]
    table = figures_table(
        "case | time | aim | memory above the features | aim",
        "{case} | {seconds:.2f} s | {seconds_aim} | {megabytes:.0f} MiB | {megabytes_aim}",
        figures,
    )
    cases = _some({_case(figure["case"]) for figure in figures}, STANDARD, " ", " ")
    about = f"`python -m experiments.bench_metrics{cases}`, features made from a seed{''.join(products[:1])}."
    return [about, table, *(["\n".join(notes)] if notes else [])]


def index_bench(result: Result, _: Sequence[Result]) -> list[str]:
    """Recall, latency, memory and build time of the galleries' engines."""
    figures = []
    for figure in result["figures"]:
        threads = sorted(int(key.split("_")[2]) for key in figure if key.startswith("p50_ms_"))
        latencies = [f"{figure[f'p50_ms_{n}_threads']:.2f} / {figure[f'p99_ms_{n}_threads']:.2f}" for n in threads]
        figures.append({**figure, "one": latencies[0], "every": latencies[-1]})
    table = figures_table(
        "vectors | engine | recall@10 | 1 thread, ms p50 / p99 | all threads | times flat | memory | mapped files | "
        "processor time to build",
        "{rows:,} × {dimension:,} | {engine} | {recall_at_10:.4f} | {one} | {every} | {times_faster_than_flat:.0f} | "
        "{memory_mb:.0f} MiB | {mapped_mb:.0f} MiB | {build_cpu_seconds:.0f} s",
        figures,
        left=2,
    )
    cases = " ".join(figure["case"] for figure in figures)
    about = f"`python -m experiments.bench_indexes --folder DIR {cases}`, features made from a seed, single queries; "
    return [f"{about}{_product(figures[0]['product_gflops'])}.", table]


def service_bench(result: Result, _: Sequence[Result]) -> list[str]:
    """Speed and memory of the service under the load of many clients."""
    whole = result["figures"][0]
    return [
        f"`python -m experiments.bench_service`: {whole['clients']} clients for {whole['seconds']:.0f} s "
        f"on a gallery of {whole['gallery']:,}, clients and service on the same {whole['cores']} cores; "
        f"{_product(whole['product_gflops'])}.",
        figures_table(
            "requests | answered | p50 | p99 | answers",
            "{case} | {per_second:.1f}/s | {p50_ms:.0f} ms | {p99_ms:.0f} ms | {answers}",
            [{**figure, "answers": _answers(figure)} for figure in result["figures"]],
        ),
        _memory(whole),
    ]


def chaos(result: Result, _: Sequence[Result]) -> list[str]:
    """Losses and errors after kills, failing disks, damaged inputs and load."""
    parts = ",".join(dict.fromkeys(figure["part"] for figure in result["figures"]))
    cases = ",".join(dict.fromkeys(figure["case"] for figure in result["figures"] if figure["part"] == "kills"))
    command = f"python -m experiments.chaos --parts {parts}" + (f" --cases {cases}" if cases else "")
    about = f"`{command}`, seed {result['seed']}, {result['minutes']:.0f} min without the load."
    paragraphs = [about + (f" {result['skipped']}." if result["skipped"] else "")]
    figures = [{**figure, "faults": len(figure["faults"])} for figure in result["figures"]]
    for part, head, names in (
        ("kills", ["disturbed", *DISTURBED, "faults"], DISTURBED),
        ("fuzz", ["damaged", *DAMAGED[:-1], "MiB more, at most", "faults"], DAMAGED),
    ):
        line = " | ".join(["{case}", *(f"{{{name}:,}}" for name in names), "{faults:,}"])
        of_part = [{**dict.fromkeys(names, 0), **figure} for figure in figures if figure["part"] == part]
        paragraphs += [figures_table(" | ".join(head), line, of_part)] if of_part else []
    for load in (figure for figure in figures if figure["part"] == "load" and "statuses" in figure):
        paragraphs.append(
            f"{load['clients']} clients for {load['seconds'] / 60:.0f} min (load average {load['load_average']:.0f}): "
            f"{_answers(load)}, {load['faults']} faults. {_memory(load)}"
        )
    return paragraphs


def norm(result: Result, _: Sequence[Result]) -> list[str]:
    """Accuracy of one network with each kind of statistics of batch norm."""
    height, width = result["input_size"]
    lines = [[f["statistics"], f"{100 * f['rank-1']:.1f}", f"{100 * f['mAP']:.1f}"] for f in result["figures"]]
    return [
        f"`python -m experiments.bench_norm` on {result['model']}, {result['dataset']}, {height}×{width}, "
        f"{result['epochs']} epochs; {result['batches']} batches of training images.",
        markdown_table(["statistics", "rank-1", "mAP"], lines),
    ]


SECTIONS = {
    "bench": ("Speed of the networks", bench),
    "runtimes": ("Speed of the exported models", runtimes),
    "metrics_bench": ("Speed of the metrics", metrics_bench),
    "index_bench": ("Search", index_bench),
    "service_bench": ("The service under load", service_bench),
    "chaos": ("Kills, faults and damaged inputs", chaos),
    "norm": ("Statistics of batch norm", norm),
}
"""Kind of result -> the heading of its section, and the function that renders one result; it also gets all results."""


def _some(chosen: Iterable[str], everything: Iterable[str], flag: str, separator: str) -> str:
    """Returns the part of a command that chooses what was measured; empty if that is what it measures anyway."""
    chosen = dict.fromkeys(chosen)
    return "" if {*chosen} == {*everything} else flag + separator.join(chosen)


def _case(figure: str) -> str:
    """Returns the case of ``experiments.bench_metrics`` that a figure's name begins with."""
    name, more = figure.split(", ")[:2]
    return name if name in CASES else f"{name}-{more}"


def _product(gflops: float) -> str:
    return f"float32 matrix product of the same run: {gflops:.0f} GFLOP/s"


def _answers(figure: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(figure["statuses"].items()))


def _memory(figure: Mapping[str, Any]) -> str:
    memory = figure["memory_mb"]
    return (
        f"Memory of the service at the start, half-way and at the end: {memory['start']:.0f}, "
        f"{memory['middle']:.0f} and {memory['end']:.0f} MiB."
    )
