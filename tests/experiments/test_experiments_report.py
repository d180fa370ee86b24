"""Tables and the report: numbers come from the JSONs and are in the right cells."""

import itertools
import json
import random
import re
import statistics

import pytest

from experiments import plots, schema, tables
from experiments import record as record_command
from experiments import report as report_command
from experiments.plan import SCHEDULE
from experiments.report import NOTES, SECTIONS, Report, fill
from experiments.results import HERE, RESULTS, Result, flags_of, load_results, score
from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.training.config import TrainConfig, parse_drops
from tests.experiments.made_results import network, training


def cells(text, name):
    """The cells of the row called ``name`` in the first Markdown table of ``text``."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def render(experiment, scale, results, link=lambda name, text: text, **options):
    """An experiment's tables of the groups with these ``options``."""
    return tables.render(experiment, scale, results, tables.groups(experiment, scale, results, **options), link)


def test_ours_stands_beside_the_papers():
    results = [training(rank1=0.902, mean_ap=0.75), training(hard=False, rank1=0.95, mean_ap=0.70)]
    text = render(schema.load("table9"), "full", results)
    assert cells(text, "HAN (All)")[1:] == ["**90.2** / 91.6 (-1.4)", "**75.0** / 76.7 (-1.7)"]
    assert cells(text, "SSA+SCA")[1:] == ["**95.0** / 88.9 (+6.1)", "**70.0** / 69.9 (+0.1)"]
    assert cells(text, "HRA")[1:] == ["– / 87.9", "– / 70.3"]
    assert text.startswith("Table 9: ")
    assert (
        "- Market-1501, rank-1: 0 of 1 pairs of rows in the paper's order, one seed each (against it: HAN (All)" in text
    )
    assert "- Market-1501, mAP: 1 of 1 pairs" in text


def test_several_seeds_give_mean_and_deviation():
    scores = (0.90, 0.92, 0.91)
    results = [training(seed=seed, rank1=value) for seed, value in enumerate(scores)]
    text = render(schema.load("table8"), "full", results)
    deviation = statistics.stdev(100 * value for value in scores)
    assert cells(text, "Global + Local")[1] == f"**91.0 ± {deviation:.1f}** / 91.6 (-0.6)"
    assert "seeds 0, 1, 2: mean ± deviation" in text


def test_each_schedule_has_a_table_of_its_own():
    results = [training(), training(epochs=40, rank1=0.7)]
    text = render(schema.load("table8"), "full", results)
    first, second = text.split("40 epochs (the paper: 300)")
    assert "**90.0** / 91.6" in first
    assert "**70.0** / 91.6" not in first
    assert "**70.0** / 91.6" in second


def test_each_feature_query_and_method_finds_its_row():
    row = {"rank-5": 0, "rank-10": 0, "rank-20": 0, "mAP_trapezoid": 0, "mINP": 0}
    result = training("han_small")
    result["results"].clear()
    expected = {}
    for number, (query, reranked) in enumerate(itertools.product(("single", "multi"), (False, True)), start=50):
        result["results"].append(
            {**row, "feature": "joint", "query": query, "reranked": reranked, "rank-1": number / 100, "mAP": 0.4}
        )
        expected[query, reranked] = number
    # Results of other methods must not be taken for the plain result.
    result["results"].insert(0, {**result["results"][0], "expanded": True, "rank-1": 0.99})
    text = render(schema.load("table3"), "full", [result])
    for name, reranked in (("HAN (Small)", False), ("HAN (Small), re-ranked", True)):
        line = cells(text, name)
        assert line[1].startswith(f"**{expected['single', reranked]}.0**")
        assert line[3].startswith(f"**{expected['multi', reranked]}.0**")
    assert score(result, "global", "single", False, "mAP") is None


def test_quoted_methods_stand_as_published():
    text = render(schema.load("table3"), "full", [training("han_small")])
    assert cells(text, "HPN (Liu et al. 2017b)")[1:4] == ["76.9", "–", "≈ 1.82e10"]


def test_on_drawn_people_nothing_is_subtracted():
    text = render(schema.load("table8"), "synthetic", [training(dataset="synthetic", epochs=12)])
    assert cells(text, "Global + Local")[1:] == ["**90.0**", "**75.0**", "91.6", "76.7"]
    assert "paper, Market-1501: R1" in text


def test_flops_in_both_conventions():
    text = render(schema.load("table12"), "full", [training(), network(macs=347_664_554)])
    cost = cells(text, "Depthwise")[3:]
    assert cost == ["7.01e8 / 7.01e8 (+0.0%)", "3.48e8", "2,000,000"]
    assert cells(text, "Residual")[3:] == ["– / 1.34e9", "–", "–"]


def test_results_of_several_commits_are_told():
    results = [training(), training(hard=False, commit="b" * 40 + "+changes")]
    text = render(schema.load("table9"), "full", results)
    assert "2026-11-23; commits aaaaaaa, bbbbbbb with uncommitted changes; abacus, 2 cores, 16 GiB." in text
    assert "different commits" in text
    assert "different commits" not in render(schema.load("table9"), "full", results[:1])


def test_seeds_of_one_row_are_named_once():
    def named(name, data):
        return Result(name, data)

    results = [named("all-seed0", training()), named("all-seed1", training(seed=1)), named("hra", training(hard=False))]
    text = render(schema.load("table9"), "full", results, lambda name, shown: f"[{shown}]({name})")
    assert "Results: [all-seed0](all-seed0) [seed1](all-seed1), [hra](hra). 2026" in text


def test_schedules_without_comparison_are_left_out_of_the_report():
    results = [training(), training(hard=False), training(epochs=40)]
    table9 = schema.load("table9")
    assert [group.epochs for group in tables.groups(table9, "full", results)] == [300, 40]
    assert [group.epochs for group in tables.groups(table9, "full", results, comparable=True)] == [300]
    text = render(table9, "full", results, comparable=True)
    assert "40 epochs" not in text
    assert "300 epochs" in text


def test_one_table_shows_one_recipe_and_size():
    strong = TrainConfig.of_recipe("strong", input_height=80, input_width=32, epochs=40).to_dict()
    strong = {name: strong[name] for name in SCHEDULE}
    results = [training(), training(hard=False), training(**strong), training(hard=False, **strong)]
    first, second = tables.groups(schema.load("table9"), "full", results)
    assert (first.epochs, first.schedule) == (300, "")
    assert (second.epochs, second.schedule) == (40, "recipe strong, 80×32")
    assert [len(group.results()) for group in (first, second)] == [2, 2]
    assert "40 epochs (the paper: 300), recipe strong, 80×32, seed 0" in render(schema.load("table9"), "full", results)


def test_a_loss_without_labels_shares_the_schedule_of_the_others():
    strong = TrainConfig.of_recipe("strong", epochs=40).to_dict()
    strong = {name: strong[name] for name in SCHEDULE}
    results = [training(**strong), training(**{**strong, "loss": "triplet", "label_smoothing": 0.0})]
    (group,) = tables.groups(schema.load("table11"), "full", results)
    assert group.schedule == "recipe strong"
    assert group.results() == sorted(results, key=lambda result: result.name)


def test_costs_are_those_of_the_tables_input_size():
    small = {"input_height": 80, "input_width": 32}
    results = [training(**small), network(macs=87_000_000, settings={"model": "han_large", **small}), network()]
    text = render(schema.load("table12"), "full", results)
    assert cells(text, "Depthwise")[3:] == ["1.80e8 / 7.01e8", "8.70e7", "2,000,000"]
    assert "the papers they come from, ours at 80×32." in text
    untrained = render(schema.load("table12"), "full", results[1:])
    assert cells(untrained, "Depthwise")[-3:] == ["7.06e8 / 7.01e8 (+0.7%)", "3.50e8", "2,000,000"]
    assert "ours at 160×64." in untrained


def test_what_a_row_is_about_is_no_schedule():
    erasing = next(row for row in schema.load("table3").rows if (row.settings or {}).get("random_erasing"))
    (group,) = tables.groups(schema.load("table3"), "full", [training(**erasing.settings)])
    assert [group.experiment.rows[row] for row, _ in group.cells] == [erasing]


def test_results_apart_are_in_no_table():
    text = render(schema.load("table8"), "full", [training(apart="another network")])
    assert "**" not in text


def test_a_related_network_stands_in_until_there_is_the_right_one():
    table8 = schema.load("table8")
    small = [training(model="han_small", feature="global")]
    text = render(table8, "full", [*small, training(model="resnet50")])
    assert "; han_small in place of the paper's han_large. Ours" in text
    assert text.count("Ours / the paper's") == 1
    large = training(model="han_large")
    assert "in place of" not in render(table8, "full", [*small, large])
    assert "han_small in place of" in render(table8, "full", [*small, large], model="han_small")
    # Tables that compare networks do not show results of other networks.
    assert "in place of" not in render(schema.load("table12"), "full", small)


def test_order_agreement_is_that_of_all_pairs():
    rng = random.Random(0)
    for _ in range(50):
        names = list("abcdefg")
        ours, theirs = ([rng.randrange(6) for _ in names] for _ in range(2))
        pairs = [(i, j) for i, j in itertools.permutations(range(7), 2) if theirs[i] > theirs[j]]
        agreeing = sum(ours[i] > ours[j] for i, j in pairs)
        text = tables.order_agreement(names, [[number] for number in ours], theirs)
        assert text.startswith(f"{agreeing} of {len(pairs)} pairs")
        assert "in the paper's order, one seed each" in text
    assert tables.order_agreement(["a", "b"], [[1], [2]], [3, 3]) == "the paper has no order"
    assert tables.order_agreement(["a", "b"], [[2], [1]], [3, 4]).endswith("(against it: b not above a)")


def test_pairs_whose_seeds_do_not_overlap_are_told():
    ours = [[1, 2], [3, 4], [2.5, 5], [0, 0.5]]
    # Pairs whose seeds do not overlap: a < b and a < c, as in the paper, and d below all others; b and c overlap.
    text = tables.order_agreement(["a", "b", "c", "d"], ours, [1, 2, 3, 4])
    assert text.startswith("3 of 6 pairs of rows in the paper's order; of the 5 in which the seeds do not overlap, 2 (")
    assert tables.order_agreement(["a", "b"], [[1, 2], [3]], [1, 2]).endswith("do not overlap, 1")
    assert tables.order_agreement(["a", "b"], [[1, 4], [2, 3]], [1, 2]) == (
        "0 of 1 pairs of rows in the paper's order; of the 0 in which the seeds do not overlap, 0 "
        "(against it: b not above a)"
    )


def test_where_many_pairs_differ_the_order_of_ours_is_told():
    text = tables.order_agreement(list("abcd"), [[4], [3], [1], [2]], [1, 2, 3, 4])
    assert text == "1 of 6 pairs of rows in the paper's order, one seed each (ours from the best down: a, b, d, c)"


def test_statistics():
    counts = {"identities": 1_501, "train": 751, "test": 750, "images": 32_667, "cameras": 6}
    data = {"kind": "statistics", "dataset": "market1501", "counts": counts, "differences": ["train: 1 image less"]}
    text = render(schema.load("table2"), "full", [tables.Result("statistics-market1501", data)])
    assert cells(text, "Market-1501")[4] == "**32,667** / 32,668"
    assert cells(text, "MSMT17")[1] == "– / 4,101"
    assert "- MSMT17: not found here, the published counts are shown; datasets/msmt17/README.md" in text
    assert "- Market-1501: train: 1 image less" in text


def test_pictures_are_drawn_from_results(tmp_path):
    networks = {"han_small": 100, "resnet50": 900}
    results = [training(model, rank1=0.8) for model in networks]
    results += [network(model, 10**6 * macs, images_per_second=50.0) for model, macs in networks.items()]
    for model, dimension in itertools.product(("han_large", "resnet50"), (128, 512)):
        results.append(training(model, feature_dim=dimension, rank1=dimension / 1200))
    row = {"dimension": 128, "bytes_per_identity": 512, "seconds_per_query": 1e-4}
    results.append(tables.Result("search", {"kind": "search", "gallery": 100, "dimensions": [row]}))
    for name in ("cost_effectiveness", "figure6"):
        (path,) = plots.draw(tables.groups(schema.load(name), "full", results), results, tmp_path)
        assert path == tmp_path / f"{name}-full-300epochs.png"
        assert path.read_bytes().startswith(b"\x89PNG")
    assert plots.draw(tables.groups(schema.load("table9"), "full", results), results, tmp_path) == []


def test_the_picture_shows_every_network_where_it_belongs():
    results = [training("han_small", rank1=0.8), network("han_small", 180_000_000, images_per_second=450.0)]
    experiment = schema.load("cost_effectiveness")
    (group,) = tables.groups(experiment, "full", results)
    figure = plots.cost_effectiveness(group, results)
    by_cost, by_speed = figure.axes[:2]

    def points(axes):
        return [tuple(map(float, point)) for collection in axes.collections for point in collection.get_offsets()]

    assert (180_000_000, 80.0) in points(by_cost)
    assert points(by_speed) == [(450.0, 80.0)]
    assert by_cost.get_xlabel().startswith("multiply-adds per image at 160×64; quoted: ")
    # Quoted points: MSCAN at its multiply-adds, the paper's HAN Small at its FLOPs.
    assert (1.36e9, 80.3) in points(by_cost)
    assert (3.68e8, 89.4) in points(by_cost)


def test_the_picture_names_the_input_size():
    small = {"input_height": 80, "input_width": 32}
    results = [training("han_small", **small), network("han_small", settings={"model": "han_small", **small})]
    (group,) = tables.groups(schema.load("cost_effectiveness"), "full", results)
    by_cost = plots.cost_effectiveness(group, results).axes[0]
    assert by_cost.get_xlabel().startswith("multiply-adds per image at 80×32; quoted: ")


def test_numbers_in_prose_come_from_results():
    result = training(seed=3)
    text = "{{market1501-han_large-seed_3:results.0.mAP:.1%}} at seed {{market1501-han_large-seed_3:settings.seed}}"
    assert fill(text, [result], "note.md") == "75.0% at seed 3"
    for wrong, words in (
        ("{{nothing:seconds}}", "note.md: there is no result 'nothing'"),
        ("{{market1501-han_large-seed_3:results.7.mAP}}", "has no entry 'results.7.mAP' .at '7'."),
        ("{{market1501-han_large-seed_3:results:.2f}}", "note.md: market1501.*'s results cannot be written as '.2f'"),
        ("{{market1501-han_large-seed_3:seconds:.2?}}", "note.md: market1501.*'s seconds cannot be written as '.2.'"),
    ):
        with pytest.raises(UserError, match=words):
            fill(wrong, [result], "note.md")


def test_no_number_in_prose_is_typed_by_hand():
    for path in NOTES.glob("*.md"):
        without = re.sub(r"\{\{.*?\}\}|`.*?`", "", path.read_text(encoding="utf-8"))
        assert re.findall(r"\d+\.\d+|\d+ ?%", without) == [], path.name
    known = {*SECTIONS, *(result.name for result in load_results(RESULTS)), *schema.names()}
    for path in NOTES.glob("*.md"):
        assert path.stem in known or path.read_text(encoding="utf-8").startswith("## "), path.name


def test_the_report_in_the_repository_is_the_one_its_results_give():
    report = Report(load_results(RESULTS), NOTES, HERE / "RESULTS.md", RESULTS)
    expected = report.text()
    assert (HERE / "RESULTS.md").read_text(encoding="utf-8") == expected, "make report builds it anew"
    for link in re.findall(r"\]\((?!http)([^)]+)\)", expected):
        assert (HERE / link).exists(), link


def test_report_command(tmp_path, capsys):
    drawn = training(dataset="synthetic", rank1=0.5)
    for result in (training(), training(hard=False), training(apart="stopped early", seed=7), network(), drawn):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{result.name}.json").write_text(json.dumps(result))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "table9.md").write_text("Said of {{network-han_large-160x64:parameters:,}} parameters.\n")
    arguments = [f"--results_dir={tmp_path / 'results'}", f"--notes_dir={tmp_path / 'notes'}"]
    arguments.append(f"--output={tmp_path / 'RESULTS.md'}")
    assert run(report_command.main, report_command.FLAGS, report_command.__doc__, ["report", *arguments]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    sections = {section.splitlines()[0]: section for section in text.split("\n## ")}
    real, people = sections["Accuracy on real people"], sections["Accuracy on drawn people"]
    published = cells(real, "**the paper's HAN (Small)**, 300 epochs")
    assert published[1:] == ["market1501", "89.4", "73.2", "93.2", "80.8", "91.2", "85.5", "–", "–"]
    erased = cells(real, "**the paper's HAN (Large)**, 300 epochs, erasing")
    assert erased[1:] == ["market1501", "91.1", "78.1", "94.1", "84.7", "93.1", "89.6", "–", "–"]
    assert cells(real, f"[han_large, 300 epochs, hard False](results/{training(hard=False).name}.json)")[2] == "90.0"
    assert real.count(f"results/{training(apart='stopped early', seed=7).name}.json") == 1
    assert f"results/{training(apart='stopped early', seed=7).name}.json): stopped early." in real
    assert "synthetic" not in real
    assert "| 50.0 | 75.0 |" in people
    assert cells(sections["What the networks cost"], "[han_large](results/network-han_large-160x64.json)")[1:] == [
        "7.06e8 / 7.01e8 (+0.7%)",
        "3.50e8",
        "2,000,000",
        "–",
    ]
    (ablation,) = (section for heading, section in sections.items() if heading.startswith("Table 9: "))
    assert "Said of 2,000,000 parameters." in ablation
    # A single row cannot be compared.
    assert not any(heading.startswith(("Table 12: ", "Table 3: ")) for heading in sections)
    assert capsys.readouterr().out.splitlines() == [f"written to {tmp_path / 'RESULTS.md'}"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("[]", "kind is None"), ('{"kind": "guess"}', "kind is 'guess', expected one of training, ")],
)
def test_a_damaged_result_is_named(tmp_path, content, words):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError, match=f"odd.json: {words}"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        ("settings", ["han_large"], "TypeError: "),
        ("results", None, "TypeError: "),
        ("results", [{"feature": "joint"}], "KeyError: 'query'"),
        ("machine", "abacus", "TypeError: "),
    ],
)
def test_a_result_of_other_types_is_named(tmp_path, capsys, entry, value, reason):
    results = [training(), training(hard=False), network()]
    results[1][entry] = value
    for result in results:
        (tmp_path / f"{result.name}.json").write_text(json.dumps(result))
    arguments = [f"--results_dir={tmp_path}", f"--notes_dir={tmp_path}", f"--output={tmp_path / 'RESULTS.md'}"]
    assert run(report_command.main, report_command.FLAGS, report_command.__doc__, ["report", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / results[1].name}.json: damaged ({reason}")
    assert not (tmp_path / "RESULTS.md").exists()


def test_a_result_with_an_unknown_setting_is_named(tmp_path):
    result = training()
    result["settings"]["colour"] = "blue"
    with pytest.raises(UserError, match=f"^{result.name}: setting 'colour' is unknown"):
        Report([result], tmp_path, tmp_path / "RESULTS.md", tmp_path).text()


def test_what_has_other_types_is_not_recorded(tmp_path, capsys):
    run_dir, figures, results = tmp_path / "run", tmp_path / "figures.json", tmp_path / "results"
    run_dir.mkdir()
    results.mkdir()
    (run_dir / "config.json").write_text(json.dumps(TrainConfig().to_dict()))
    (run_dir / "metrics.json").write_text('{"results": [1], "counts": {}}')
    assert record(run_dir, f"--results_dir={results}") == 1
    figures.write_text('{"kind": "norm", "environment": []}')
    assert record(figures, f"--results_dir={results}") == 1
    figures.write_text('{"kind": "norm"}')
    (results / "norm.json").write_text("[]")
    assert record(figures, f"--results_dir={results}") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": damaged (")[0] for line in lines] == [
        f"error: {path}" for path in (run_dir, figures, results / "norm.json")
    ]


def record(*arguments):
    argv = ["record", *map(str, arguments)]
    return run(record_command.main, record_command.FLAGS, record_command.__doc__, argv, "path")


def test_a_run_is_recorded(tiny_run, tmp_path, capsys):
    assert record(tiny_run, f"--results_dir={tmp_path}") == 0
    (result,) = load_results(tmp_path)
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert [row["mAP"] for row in result["results"]] == [row["mAP"] for row in metrics["results"]]
    assert result["settings"]["epochs"] == 2
    assert "data_dir" not in json.dumps(result)
    assert str(tiny_run.parent) not in json.dumps(result)
    assert result["command"] == "python -m han_tf.train " + " ".join(
        flags_of(TrainConfig.from_dict(result["settings"], "settings"))
    )
    assert result["train_images"] > 0
    assert result["seconds"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", result["date"])

    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "peak_mb": 1234.5}))  # as experiments.run does
    measured = load_results(tmp_path)
    assert record(tiny_run, f"--results_dir={tmp_path}") == 0  # recording again changes nothing
    assert load_results(tmp_path) == measured
    assert record(tiny_run, f"--results_dir={tmp_path}", "--apart=for a test") == 1
    assert "holds the result of something else; give another --name" in capsys.readouterr().err
    assert record(tiny_run, f"--results_dir={tmp_path}", "--apart=for a test", "--name=other") == 0
    assert [r.get("apart") for r in load_results(tmp_path)] == [None, "for a test"]


def test_search_and_service_are_reported(tmp_path):
    index = {"case": "1000000x256/hnsw", "rows": 1_000_000, "dimension": 256, "engine": "hnsw", "recall_at_10": 0.9712}
    index |= {"p50_ms_1_threads": 1.5, "p99_ms_1_threads": 3.25, "p50_ms_2_threads": 1.25, "p99_ms_2_threads": 2.5}
    index |= {"memory_mb": 300.4, "mapped_mb": 1000, "build_cpu_seconds": 77, "times_faster_than_flat": 31.4}
    whole = {"case": "all", "per_second": 75, "p50_ms": 864, "p99_ms": 2113, "statuses": {"200": 4197, "503": 2}}
    whole |= {"clients": 64, "seconds": 60, "gallery": 10_000, "cores": 2, "product_gflops": 200}
    idle = {"case": "embed", "per_second": 0, "statuses": {}}
    whole["memory_mb"] = {"start": 540, "middle": 538, "end": 539}
    results = [
        Result("indexes", {"kind": "index_bench", "figures": [{**index, "product_gflops": 200}]}),
        Result("load", {"kind": "service_bench", "figures": [whole, idle]}),
    ]
    text = Report(results, tmp_path, tmp_path / "RESULTS.md", tmp_path).text()
    expected = ["hnsw", "0.9712", "1.50 / 3.25", "1.25 / 2.50", "31", "300 MiB", "1000 MiB", "77 s"]
    assert cells(text, "1,000,000 × 256")[1:] == expected
    assert cells(text, "all")[1:] == ["75.0/s", "864 ms", "2113 ms", "4,197 × 200, 2 × 503"]
    assert "64 clients for 60 s on a gallery of 10,000" in text
    assert "540, 538 and 539 MiB" in text


def test_rates_and_their_shares_of_a_product_are_reported(tmp_path):
    plain = {"inference": 100, "training": 50, "macs": 100_000_000}
    networks = {"with": {**plain, "training_bfloat16": 70}, "without": plain}
    pipeline = {"cached": 5000, "decoding": 2000}
    result = {"kind": "bench", "product_flops": 2e11, "networks": networks, "pipeline": pipeline}
    text = Report([Result("speed", result)], tmp_path, tmp_path / "RESULTS.md", tmp_path).text()
    assert cells(text, "with")[1:] == ["100 img/s", "10.0%", "50 img/s", "15.0%", "70 img/s"]
    assert cells(text, "without")[1:] == ["100 img/s", "10.0%", "50 img/s", "15.0%"]
    assert "about 71 times the fastest training" in text


def test_kills_and_damaged_inputs_are_reported(tmp_path):
    kills = {"part": "kills", "case": "training", "kill": 1000, "disk full": 8, "EIO, write": 6, "EIO, read": 5}
    kills |= {"compared": 9, "lost": 0, "doubled": 1, "differing": 2, "unreadable": 3, "faults": ["a", "b"]}
    fuzz = {"part": "fuzz", "case": "images", "inputs": 3000, "read": 700, "refused": 2300, "peak_mb": 18, "faults": []}
    load = {"part": "load", "case": "load", "clients": 64, "seconds": 300, "load_average": 7.2, "faults": []}
    load |= {"statuses": {"200": 4197, "503": 2}, "memory_mb": {"start": 540, "middle": 538, "end": 539}}
    result = {"kind": "chaos", "seed": 4, "skipped": "", "minutes": 29.7, "figures": [kills, fuzz, load]}
    text = Report([Result("fire", result)], tmp_path, tmp_path / "RESULTS.md", tmp_path).text()
    assert cells(text, "training")[1:] == ["1,000", "8", "6", "5", "9", "0", "1", "2", "3", "2"]
    assert cells(text, "images")[1:] == ["3,000", "700", "2,300", "18", "0"]
    assert "64 clients for 5 min (load average 7): 4,197 × 200, 2 × 503, 0 faults." in text


def test_approximate_neighbours_stand_beside_exact_ones(tmp_path):
    def figures(kind, mean_ap):
        case = f"rerank-million, {kind}, re-ranking and all metrics"
        figure = {"case": case, "seconds": 1.0, "megabytes": 1.0, "mAP": mean_ap}
        return Result(kind, {"kind": "metrics_bench", "figures": [figure]})

    results = [figures("exact", 0.17), figures("hnsw", 0.16), figures("ivf", 0.1)]
    text = Report(results, tmp_path, tmp_path / "RESULTS.md", tmp_path).text()
    assert "- hnsw neighbours of a million: mAP 16.00 %, -1.00 points against exact ones" in text
    assert "- ivf neighbours of a million: mAP 10.00 %, -7.00 points against exact ones" in text
    assert "- exact neighbours of a million: mAP 17.00 %\n" in text
    alone = Report(results[1:], tmp_path, tmp_path / "RESULTS.md", tmp_path).text()
    assert "- hnsw neighbours of a million: mAP 16.00 %\n" in alone


@pytest.mark.parametrize(
    ("figures", "kind"),
    [
        ({"networks": {}, "product_flops": 1.0, "environment": {"commit": "c", "command": ["x"]}}, "bench"),
        ({"kind": "index_bench", "figures": [{"case": "a"}], "commit": "c"}, "index_bench"),
    ],
)
def test_a_benchmark_is_recorded(tmp_path, figures, kind):
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    assert record(tmp_path / "figures.json", f"--results_dir={tmp_path / 'results'}", "--name=fast") == 0
    (result,) = load_results(tmp_path / "results")
    assert (result.name, result["kind"], result["commit"]) == ("fast", kind, "c")
    assert "command" not in result
    assert result["machine"]["cores"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "neither a run's folder nor"), (None, "expected a run's folder or a benchmark's figures")],
)
def test_what_is_no_result_is_not_recorded(tmp_path, capsys, content, words):
    path = tmp_path / "odd.json"
    if content is not None:
        path.write_text(content)
    assert record(path, f"--results_dir={tmp_path / 'results'}") == 1
    assert words in capsys.readouterr().err
    assert record() == 2


def test_the_flags_of_a_result_give_its_settings():
    config = TrainConfig(dataset="csv", hard=False, epochs=40)
    assert flags_of(config) == ["--dataset=csv", "--arch=han_small", "--hard=false", "--epochs=40", "--seed=0"]
    (drops,) = [flag for flag in flags_of(TrainConfig()) if flag.startswith("--lr_drops=")]  # train's own are others
    assert parse_drops(drops.partition("=")[2]) == TrainConfig().lr_drops


def test_the_shares_in_the_notes_on_costs_are_those_of_the_results():
    def macs(network):
        return json.loads((HERE / "results" / f"network-{network}-160x64.json").read_text())["macs"]

    text = " ".join((HERE / "notes" / "costs.md").read_text(encoding="utf-8").split())
    assert macs("mobilenet") < macs("han_small")
    assert f"needs {100 * macs('han_large') / macs('resnet50'):.0f} percent of ResNet50's" in text
    large, resnet50 = 7.01e8, 3.80e9  # Table 7
    assert f"by the paper's figures it would be {100 * large / resnet50:.0f}." in text
