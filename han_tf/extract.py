"""Extract the features of any number of images into a folder of Parquet files.

  python -m han_tf.extract IMAGES... --output DIR [--model DIR]
  python -m han_tf.extract --dataset market1501 --subset gallery --output DIR

IMAGES are folders (with all below them), quoted patterns such as 'cam?/**/*.jpg', images, or CSV files with a column
path (relative to the CSV file) and, if known, pid, camid and time (seconds since 1970, UTC, or ISO 8601). The model is
a training run, an export of one or a network that comes with the package; without --model it is the newest run in
--runs_dir.

--output gets part-00000.parquet, part-00001.parquet, … with a row per image (path, pid, camid, time, feature, model),
manifest.json, and bad_images.csv if some images could not be read. Repeat a stopped command to continue it; images that
have changed since are read again. For another list of images, --update is needed; it keeps the features of unchanged
images and makes those of new ones. Another model, or another format or precision of it, is refused.

A file that is damaged, missing or not an image gets no row. If more files are missing than --max_bad_images, as when a
disk is not mounted, the command stops before it changes anything. A file that cannot be read (no permission, a failing
disk or network) stops the command, too; repeat it to continue.

With --ray the work is shared by the machines of a Ray cluster, or by actors on this one (--ray=local). All of them must
see the images, the model and --output under the same paths. For any other scheduler, start separate processes with
--part=1/8 to --part=8/8; the last one to end finishes the folder.
"""

import signal
import sys
import time
from pathlib import Path

from han_tf.common import cli as command_line
from han_tf.common.errors import Stopped, UserError
from han_tf.data import DATASETS, load_dataset
from han_tf.data.image_lists import NAMES, ImageList, list_images, listed_records
from han_tf.features import job as extraction
from han_tf.features.shards import missing_shards
from han_tf.runs.folder import find_run
from han_tf.runtimes import GPU_FORMATS

with command_line.deferred_imports(__name__):
    from han_tf.features.extractor import FeatureExtractor
    from han_tf.features.ray_job import check_cluster, extract_with_ray, model_card

SUBSETS = ("train", "query", "gallery", "multi_query")

FLAGS = command_line.Flags()
FLAGS.string("output", "", "Folder for the features.")
FLAGS.old_name("out", "output")
FLAGS.require("output", "a folder for the features")
FLAGS.group("model")
FLAGS.define_run("Folder of a run or an exported model", "the newest run")
FLAGS.group("data")
FLAGS.string(
    "names",
    "",
    f"How pid and camid are parsed from file names if no CSV file has them: {', '.join(NAMES)}; or a regular "
    "expression, searched for in the path, with groups (?P<pid>...), (?P<camid>...), (?P<time>...).",
    excludes="dataset",
)
FLAGS.string("dataset", "", f"Data set instead of IMAGES: {', '.join(DATASETS)}.")
FLAGS.string("split", "", "The data set's protocol variant.", needs="dataset")
FLAGS.string("data_dir", "", "The data set's folder.", needs="dataset")
FLAGS.enum("subset", "gallery", SUBSETS, "Which images of the data set.", needs="dataset")
FLAGS.real("max_bad_images", 0.1, "Largest share of images that may be damaged or missing; with more it fails.", 0, 1)
FLAGS.define_white_level()
FLAGS.group("output")
FLAGS.integer(
    "shard_images",
    None,
    f"Images per Parquet file; as in --output, or {extraction.SHARD_IMAGES} in a new one.",
    1,
    65_536,
)
FLAGS.boolean(
    "update",
    False,
    "Replace the list of images in --output by this one; images in both keep their features unless changed.",
    excludes="overwrite",
)
FLAGS.boolean("checksum", False, "Detect changed images by their bytes, not by size and modification time.")
FLAGS.boolean("overwrite", False, "Remove the features of an earlier extraction in --output.", excludes="part")
FLAGS.group("computation")
FLAGS.integer("batch_size", 64, "Images per call of the network.", 1)
FLAGS.integer("threads", None, "Threads of the network, and of decoding; all cores if not given.", 1, excludes="ray")
FLAGS.group("several machines")
FLAGS.string("ray", "", "Ray cluster: HOST:PORT of its head, auto (that of this machine), or local (one of its own).")
FLAGS.integer("actors", 0, "Ray: processes with the model; as many as there is room for if 0.", 0, needs="ray")
FLAGS.integer(
    "actor_cpus",
    1,
    "Ray: cores of each process; it also gets a GPU if the cluster has any and TensorFlow runs the model.",
    1,
    needs="ray",
)
FLAGS.string("part", "", "Make only a part of the files, such as 2/8: the second of eight processes.", excludes="ray")


def main(values: command_line.Flags) -> None:
    """Extracts as the flags say."""
    part = extraction.Part.parse(values.part)
    images = _images(values)
    for note in images.notes:
        print(f"note: {note}")
    model = values.model or find_run(values.runs_dir)
    with extraction.locked(values.output, part):
        if values.ray:
            card = model_card(model)
        else:
            extractor = FeatureExtractor(model, threads=values.threads, batch_size=values.batch_size)
            card = extractor.card
        gpu = card.format in GPU_FORMATS
        if values.ray and values.overwrite:
            check_cluster(values.ray, values.actor_cpus, gpu)  # before anything is removed
        with extraction.planning(values.output, part):
            work = extraction.plan(
                values.output,
                images,
                card,
                values.shard_images,
                values.overwrite,
                update=values.update,
                white_level=values.white_level,
                part=part,
                max_bad_images=values.max_bad_images,
            )
        for sentence in work.notes:
            print(f"note: {sentence}")
        own = sum(map(part.holds, range(work.manifest.shards)))
        print(
            f"{len(images)} images with {model} ({card.format}, {card.precision}): "
            f"{own - len(work.pending)} of {own} files are there" + (f" in part {values.part}" if values.part else "")
        )
        start = time.perf_counter()
        try:
            if values.ray:
                notes = extract_with_ray(
                    values.ray,
                    model,
                    images,
                    values.output,
                    work,
                    batch_size=values.batch_size,
                    actors=values.actors,
                    actor_cpus=values.actor_cpus,
                    gpu=gpu,
                )
            else:
                notes = extraction.extract_locally(extractor, images, values.output, work)
        except KeyboardInterrupt as interrupt:
            raise Stopped(
                "interrupted: finished files stay, the same command makes the others", signal.SIGINT
            ) from interrupt
        seconds = time.perf_counter() - start
        for sentence in notes:
            print(f"note: {sentence}")
        with extraction.planning(values.output, part):
            missing = len(missing_shards(values.output, work.manifest))
            done = None
            if not (missing and values.part):
                done = extraction.finish(values.output, values.max_bad_images)
    if work.pending:
        looked_at = sum(end - first for first, end in map(work.manifest.bounds, work.pending))
        print(f"{looked_at} images in {seconds:.1f} s, {looked_at / seconds:.0f} img/s")
    if done is None:
        print(f"part {values.part} is done; {missing} of {work.manifest.shards} files are to come from other parts")
        return
    if done.bad_images:
        path = Path(values.output) / extraction.BAD_IMAGES
        print(f"{len(done.bad_images)} of {len(images)} images could not be read and have no row: {path}")
    print(f"{len(done)} rows in {work.manifest.shards} files written to {values.output}")


def _images(values: command_line.Flags) -> ImageList:
    if not values.dataset:
        if not values.positional:
            raise command_line.UsageError("no images, expected folders, patterns, CSV files or images, or --dataset")
        return list_images(values.positional, values.names, values.checksum)
    if values.positional:
        raise command_line.UsageError(f"unexpected argument {values.positional[0]!r}: --dataset replaces IMAGES")
    dataset = load_dataset(values.dataset, values.data_dir or None, values.split)
    records = dataset.subsets().get(values.subset)
    if not records:
        raise UserError(f"{dataset.name} in {dataset.root} has no {values.subset} images, expected another --subset")
    for sentence in dataset.notes + dataset.differences:
        print(f"note: {dataset.name}: {sentence}")
    return listed_records(records, values.checksum)


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="images"))
