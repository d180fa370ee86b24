"""Compare the statistics that batch norm may use in a trained network, by rank-1 and mAP of single queries.

  python -m experiments.bench_norm --run runs/NAME --output FILE

Each rule is applied to the same network, whose weights do not change: ``running``, the moving averages at the end of
training; ``batch``, the statistics of each batch of test images; ``averaged``, plain means over batches of training
images; ``momentum 0.9``, moving averages with this momentum that start from those means and see the batches again.
"""

import sys

import numpy as np

from experiments.measuring import new_flags, write_figures
from han_tf.common import cli as command_line
from han_tf.data import load_dataset
from han_tf.data.records import Record
from han_tf.runs.folder import data_of, load_run

with command_line.deferred_imports(__name__):
    import tensorflow as tf

    from han_tf.data.pipeline import load_images
    from han_tf.data.reading import ImageReader
    from han_tf.evaluation.scoring import evaluate_features
    from han_tf.features.archives import FeatureSet
    from han_tf.models.network import ReIDNetwork

BATCH = 32

FLAGS = new_flags()
FLAGS.string("run", "", "Folder of the run.")
FLAGS.require("run", "the folder of a training run")
FLAGS.group("data")
FLAGS.string("data_dir", "", "Data folder; that of the run if empty.")
FLAGS.integer("batches", 64, "Batches of training images for the statistics.", 2)
FLAGS.integer("seed", 0, "Seed of their choice.", 0)


def norms(model: ReIDNetwork) -> list[tf.keras.layers.BatchNormalization]:
    """Returns the batch norm layers of a network."""
    return [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.BatchNormalization)]


def update_averages(model: ReIDNetwork, batches: np.ndarray, momentum: float = 0.0) -> None:
    """Updates the network's moving averages with training images, ``[n, batch, height, width, 3]`` uint8.

    With a ``momentum`` of 0 they become plain means over all batches.
    """
    for number, images in enumerate(batches):
        for layer in norms(model):
            layer.momentum = momentum or number / (number + 1)
        model(images, training=True)


def score(model: ReIDNetwork, query: list[Record], gallery: list[Record], training: bool) -> dict[str, float]:
    """Returns rank-1 and mAP, fractions; ``training``: with each batch's statistics, otherwise moving averages."""
    for layer in norms(model):
        layer.momentum = 1.0  # test images leave the moving averages as they are
    embed = tf.function(lambda images: model(images, training=training), autograph=False, reduce_retracing=True)

    def features(records: list[Record]) -> FeatureSet:
        # In random order, so that each batch has images of many people.
        order = np.random.default_rng(0).permutation(len(records))
        chosen = [records[index] for index in order]
        found = [embed(images).numpy() for images, _ in ImageReader(chosen, model.input_size, BATCH)]
        return FeatureSet.of(np.concatenate(found), chosen)

    result = evaluate_features(features(query), features(gallery), topk=0)[0]["result"]
    return {"rank-1": float(result.rank(1)), "mAP": float(result.mAP)}


def main(values: command_line.Flags) -> None:
    """Measures as the flags say."""
    run = load_run(values.run)
    named = data_of(run.config)
    dataset = load_dataset(named.name, values.data_dir or named.data_dir or None, named.split)
    images = load_images(dataset.train, run.model.input_size, progress="training images").images
    chosen = np.random.default_rng(values.seed).permutation(len(images))[: values.batches * BATCH]
    batches = images[chosen[: len(chosen) // BATCH * BATCH]].reshape(-1, BATCH, *images.shape[1:])
    figures = []
    for rule, momentum in {"running": None, "batch": None, "averaged": 0.0, "momentum 0.9": 0.9}.items():
        if momentum is not None:
            update_averages(run.model, batches, momentum)
        scores = score(run.model, list(dataset.query), list(dataset.gallery), training=rule == "batch")
        figures.append({"statistics": rule, **scores})
        print(f"{rule}: rank-1 {scores['rank-1']:.1%}, mAP {scores['mAP']:.1%}", flush=True)
    told = {name: run.config.get(name) for name in ("model", "dataset", "epochs")}
    told |= {"input_size": list(run.model.input_size), "batches": len(batches)}
    write_figures(values.output, "norm", **told, figures=figures)


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
