"""Results as the runner writes them, made up for tests."""

from experiments.results import Result, settings_of

MACHINE = {"processor": "abacus", "cores": 2, "memory_gib": 16.0}


def training(model="han_large", *, rank1=0.9, mean_ap=0.75, feature="joint", reranked=False, query="single", **changes):
    """A training's result whose one row has the given scores; ``changes`` are settings or other entries."""
    entries = {name: changes.pop(name) for name in ("commit", "machine", "apart", "peak_mb", "date") if name in changes}
    settings = settings_of({"dataset": "market1501", "model": model, "epochs": 300, **changes})
    row = {"feature": feature, "query": query, "reranked": reranked, "rank-1": rank1, "mAP": mean_ap}
    row.update(dict.fromkeys(("rank-5", "rank-10", "rank-20", "mAP_trapezoid", "mINP"), 0.5))
    data = {
        "kind": "training",
        "settings": settings,
        "train_images": 12_936,
        "seconds": 3600.0,
        "images_per_second": 60.0,
        "differences": [],
        "counts": {"queries": 10, "gallery": 30, "junk": 3, "distractors": 5, "queries_without_match": 0},
        "results": [row],
        "commit": "a" * 40,
        "date": "2026-11-23T10:00:00Z",
        "machine": MACHINE,
        **entries,
    }
    changed = "-".join(f"{name}_{value}" for name, value in changes.items())
    return Result(f"market1501-{model}-{changed}", data)


def network(model="han_large", macs=350_000_000, **entries):
    """A network's result."""
    data = {
        "kind": "network",
        "settings": {"model": model, "input_height": 160, "input_width": 64},
        "macs": macs,
        "norm_macs": 3_000_000,
        "flops": 2 * (macs + 3_000_000),
        "parameters": 2_000_000,
        "commit": "a" * 40,
        "date": "2026-11-23T10:00:00Z",
        "machine": MACHINE,
        **entries,
    }
    return Result(f"network-{model}-160x64", data)
