"""Measure the networks' training, their inference and the input pipeline on this machine.

Every figure is the median of several measurements. To compare machines, the speed of a float32 matrix product is
measured before and after in the same run; "of product" is the rate of multiply-adds (two operations each) as a share of
it. The input pipeline alone should deliver at least five times as many images per second as training uses.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from han_tf.common import cli as command_line
from han_tf.common.files import temporary_folder, write_json, writing
from han_tf.common.progress import progress_bar
from han_tf.data.records import Record
from han_tf.data.sampling import ShuffledImages
from han_tf.models import MODELS, create_model
from han_tf.runs import environment
from han_tf.training.config import TrainConfig

with command_line.deferred_imports(__name__):
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from han_tf.data.pipeline import LoadedImages, load_images, training_batches
    from han_tf.data.reading import ImageReader
    from han_tf.models.costs import part_costs, total
    from han_tf.models.network import inference_function
    from han_tf.training.loop import Trainer

PRODUCT_SIZE = 4096
IDENTITIES = 751

BFLOAT16 = (*environment.BFLOAT16, "bf16")
"""Instruction sets with which training in bfloat16 is measured, too."""

FLAGS = command_line.Flags()
FLAGS.list_of("arch", list(MODELS), "Networks.", flags.EnumParser(list(MODELS)))
FLAGS.old_name("model", "arch")
FLAGS.integer("repeats", 15, "Measurements per figure; the median counts.", 3)
FLAGS.integer("batch_size", 32, "Images per step.", 2)
FLAGS.string("output", "", "JSON file for the figures.")


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Returns the median time of one call, in seconds, after two calls that are not counted."""
    call(), call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product_flops(repeats: int) -> float:
    """Returns operations per second of a 4096³ float32 matrix product."""
    matrix = tf.random.stateless_normal([PRODUCT_SIZE, PRODUCT_SIZE], [0, 1])
    product = tf.function(lambda a: tf.linalg.matmul(a, a), autograph=False)
    return 2 * PRODUCT_SIZE**3 / seconds(lambda: product(matrix).numpy(), min(repeats, 7))


def network_rates(name: str, data: LoadedImages, batch_size: int, repeats: int, folder: Path) -> dict[str, float]:
    """Returns inference and training rates of one network, images per second, and its MACs.

    If the processor has one of :data:`BFLOAT16`, ``training_bfloat16`` is the rate with that precision.
    """

    def trained(precision: str) -> Trainer:
        config = TrainConfig(model=name, batch_size=batch_size, precision=precision)
        return Trainer(config, folder / name / precision, data)

    def training_rate(trainer: Trainer) -> float:
        return len(images) / seconds(lambda: trainer.train_step(images, labels)[0]["loss"].numpy(), repeats)

    trainer = trained("float32")
    # A batch may be smaller than batch_size, if there are fewer images.
    images, labels = next(iter(training_batches(data.images, trainer.labels, trainer.sampler, 0, 0)))
    embed = inference_function(trainer.model)
    model = create_model(name)
    rates = {
        "inference": len(images) / seconds(lambda: embed(images).numpy(), repeats),
        "training": training_rate(trainer),
        "macs": total(part_costs(model, model.parts(), model.input_size)).macs,
    }
    if set(BFLOAT16) & set(environment.machine()["instruction_sets"]):
        rates["training_bfloat16"] = training_rate(trained("mixed_bfloat16"))
    return rates


def pipeline_rates(files: list[Record], data: LoadedImages, batch_size: int, repeats: int) -> dict[str, float]:
    """Returns rates of the input pipeline alone, images per second: from JPEG files, and from the cache."""
    reader = ImageReader(files, data.images.shape[1:3], batch_size)
    labels = np.zeros(len(data.records), np.int64)
    sampler = ShuffledImages(len(labels), batch_size)

    def epoch() -> None:
        for _ in training_batches(data.images, labels, sampler, 0, 0):
            pass

    return {
        "decoding": len(files) / seconds(lambda: [None for _ in reader], max(3, repeats // 5)),
        "cached": sampler.batches_per_epoch * sampler.batch_size / seconds(epoch, max(3, repeats // 3)),
    }


def main(values: command_line.Flags) -> None:
    """Measures as the flags say and prints the table."""
    rng = np.random.default_rng(0)
    with temporary_folder() as folder:
        # As many identities as Market-1501 has, so that the classifiers cost as much.
        records = [Record(str(folder / f"{pid}.jpg"), pid, 1) for pid in range(IDENTITIES)]
        with writing(folder):
            for record in records:
                coarse = Image.fromarray(rng.integers(0, 256, (16, 8, 3), np.uint8))
                coarse.resize((64, 128), Image.Resampling.BICUBIC).save(record.path, quality=90)
        data = load_images(records, (160, 64))
        before = product_flops(values.repeats)
        pipeline = pipeline_rates(records, data, values.batch_size, values.repeats)
        networks = {
            name: network_rates(name, data, values.batch_size, values.repeats, folder)
            for name in progress_bar(dict.fromkeys(values.arch), desc="networks", unit="network")
        }
    product = (before + product_flops(values.repeats)) / 2

    head = f"{'':<12}{'inference':>14}{'of product':>12}{'training':>14}{'of product':>12}"
    if any("training_bfloat16" in rates for rates in networks.values()):
        head += f"{'in bfloat16':>19}"
    print(f"float32 matrix product, {PRODUCT_SIZE}³: {product / 1e9:.0f} GFLOP/s ({environment.arithmetic()})")
    print(head, "-" * len(head), sep="\n")
    for name, rates in networks.items():
        # A training step goes forward once and backward twice, for the inputs and for the weights.
        shares = (2 * rates["macs"] * rates["inference"] / product, 6 * rates["macs"] * rates["training"] / product)
        cells = (f"{rates[kind]:>8.0f} img/s{share:>12.1%}" for kind, share in zip(("inference", "training"), shares))
        bfloat16 = rates.get("training_bfloat16")
        print(f"{name:<12}{''.join(cells)}" + (f"{bfloat16:>13.0f} img/s" if bfloat16 else ""))
    fastest = max(rates["training"] for rates in networks.values())
    print(
        f"input pipeline alone: {pipeline['cached']:.0f} img/s from the cache, "
        f"{pipeline['cached'] / fastest:.0f} times the fastest training; {pipeline['decoding']:.0f} img/s from files"
    )
    if values.output:
        figures = {"product_flops": product, "networks": networks, "pipeline": pipeline}
        write_json(values.output, {**figures, "environment": environment.describe()})


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
