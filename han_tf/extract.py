"""Extract the features of any number of images into a folder of Parquet files.

  python -m han_tf.extract IMAGES... --out DIR [--model DIR]
  python -m han_tf.extract --dataset market1501 --subset gallery --out DIR

IMAGES are folders (with all below them), quoted patterns such as 'cam?/**/*.jpg', images, or CSV files with a column
path (relative to the CSV file) and, if known, pid, camid and time (seconds since 1970, UTC, or ISO 8601). The model is
a training run or an export of one; without --model it is the newest run in --runs_dir.

--out gets part-00000.parquet, part-00001.parquet, ... with one row per image (path, pid, camid, time, feature, model),
manifest.json, and bad_images.csv if some images could not be read. Whatever stops the command, the same command goes on
where it was. Another list of images or another model, or another format or precision of it, is refused there.

With --ray the work is shared by the machines of a Ray cluster, or by actors on this one (--ray=local). All of them must
see the images, the model and --out under the same paths.
"""

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from han_tf import cli as command_line
from han_tf.data import DATASETS, load_dataset
from han_tf.data.image_lists import NAMES, ImageList, list_images, listed_records
from han_tf.errors import Stopped, UserError
from han_tf.inference import extraction
from han_tf.inference.runs import find_run
from han_tf.inference.runtimes import GPU_FORMATS

with command_line.deferred_imports(__name__):
    from han_tf.inference.extractor import FeatureExtractor
    from han_tf.inference.ray_extraction import check_cluster, extract_with_ray, model_card

SUBSETS = ("train", "query", "gallery", "multi_query")

FLAGS = command_line.new_flags()
flags.DEFINE_string("out", "", "Folder for the features.", flag_values=FLAGS)
flags.DEFINE_string("model", "", "Folder of a run or an exported model; the newest run if empty.", flag_values=FLAGS)
flags.DEFINE_string("runs_dir", "runs", "Where runs are kept.", flag_values=FLAGS)
flags.DEFINE_string(
    "names",
    "",
    f"How file names tell pid and camid, where no CSV file does: {', '.join(NAMES)}; or a regular expression, searched "
    "for in the path, with groups (?P<pid>...), (?P<camid>...), (?P<time>...).",
    flag_values=FLAGS,
)
flags.DEFINE_string("dataset", "", f"Data set instead of IMAGES: {', '.join(DATASETS)}.", flag_values=FLAGS)
flags.DEFINE_string("split", "", "The data set's protocol variant.", flag_values=FLAGS)
flags.DEFINE_string("data_dir", "", "The data set's folder.", flag_values=FLAGS)
flags.DEFINE_enum("subset", "gallery", SUBSETS, "Which images of the data set.", flag_values=FLAGS)
flags.DEFINE_integer(
    "shard_images",
    None,
    f"Images per Parquet file; as in --out, or {extraction.SHARD_IMAGES} in a new one.",
    1,
    65_536,
    flag_values=FLAGS,
)
flags.DEFINE_integer("batch_size", 64, "Images per call of the network.", 1, flag_values=FLAGS)
flags.DEFINE_integer(
    "threads", None, "Threads of the network, and of decoding; all cores if empty.", 1, flag_values=FLAGS
)
flags.DEFINE_string(
    "ray",
    "",
    "Ray cluster: HOST:PORT of its head, auto (that of this machine), or local (one of its own).",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "actors", 0, "Ray: processes with the model; as many as there is room for if 0.", 0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "actor_cpus",
    1,
    "Ray: cores of each; and a GPU if the cluster has any and TensorFlow runs the model.",
    1,
    flag_values=FLAGS,
)
flags.DEFINE_boolean("overwrite", False, "Remove the features of an earlier extraction in --out.", flag_values=FLAGS)

for _flag, _other, _together in (
    ("actors", "ray", True),
    ("actor_cpus", "ray", True),
    ("threads", "ray", False),
    ("split", "dataset", True),
    ("data_dir", "dataset", True),
    ("subset", "dataset", True),
    ("names", "dataset", False),
):

    def _check(values: Mapping[str, Any], flag: str = _flag, other: str = _other, together: bool = _together) -> bool:
        return values[flag] == FLAGS[flag].default or bool(values[other]) == together

    flags.register_multi_flags_validator(
        [_flag, _other],
        _check,
        f"--{_flag} means nothing {'without' if _together else 'with'} --{_other}",
        flag_values=FLAGS,
    )


def main(values: flags.FlagValues) -> None:
    """Extracts as the flags say."""
    if not values.out:
        raise UserError("no --out, expected a folder for the features")
    images = _images(values)
    if images.duplicates:
        print(f"note: {images.duplicates} images were listed more than once, taken once")
    model = values.model or find_run(values.runs_dir)
    with extraction.locked(values.out):
        if values.ray:
            card = model_card(model)
        else:
            extractor = FeatureExtractor(model, threads=values.threads, batch_size=values.batch_size)
            card = extractor.card
        gpu = card.format in GPU_FORMATS
        if values.ray and values.overwrite:
            check_cluster(values.ray, values.actor_cpus, gpu)  # before anything is removed
        work = extraction.plan(values.out, images, card, values.shard_images, values.overwrite)
        for sentence in work.notes:
            print(f"note: {sentence}")
        print(
            f"{len(images)} images with {model} ({card.format}, {card.precision}): "
            f"{work.manifest.shards - len(work.pending)} of {work.manifest.shards} files are there"
        )
        start = time.perf_counter()
        try:
            if values.ray:
                lost = extract_with_ray(
                    values.ray,
                    model,
                    images,
                    values.out,
                    work,
                    batch_size=values.batch_size,
                    actors=values.actors,
                    actor_cpus=values.actor_cpus,
                    gpu=gpu,
                )
                if lost:
                    print(f"note: machines of the cluster that were lost: {lost}; others have done their part")
            else:
                extraction.extract_locally(extractor, images, values.out, work)
        except KeyboardInterrupt as interrupt:
            raise Stopped("interrupted: finished files stay, the same command goes on", signal.SIGINT) from interrupt
        seconds = time.perf_counter() - start
        done = extraction.finish(values.out, work.manifest)
    if work.pending:
        looked_at = sum(end - first for first, end in map(work.manifest.bounds, work.pending))
        print(f"{looked_at} images in {seconds:.1f} s, {looked_at / seconds:.0f} img/s")
    if done.bad_images:
        path = Path(values.out) / extraction.BAD_IMAGES
        print(f"{done.bad_images} of {len(images)} images could not be read and have no row: {path}")
    print(f"{done.rows} rows in {work.manifest.shards} files written to {values.out}")


def _images(values: flags.FlagValues) -> ImageList:
    if not values.dataset:
        if not values.positional:
            raise UserError("no images, expected folders, patterns, CSV files or images, or --dataset")
        return list_images(values.positional, values.names)
    if values.positional:
        raise UserError(f"unexpected argument {values.positional[0]!r}: --dataset stands in place of IMAGES")
    dataset = load_dataset(values.dataset, values.data_dir or None, values.split)
    records = dataset.subsets().get(values.subset)
    if not records:
        raise UserError(f"{dataset.name} in {dataset.root} has no {values.subset} images, expected another --subset")
    for sentence in dataset.notes + dataset.differences:
        print(f"note: {dataset.name}: {sentence}")
    return listed_records(records)


def cli() -> None:
    """Runs the command line."""
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="images"))


if __name__ == "__main__":
    cli()
