"""Kinds of inputs: functions that make valid ones, and functions that read them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.chaos.kills import MODEL, extract_features
from han_tf.common.files import write_json, write_npz
from han_tf.data import load_dataset
from han_tf.data.image_lists import list_images
from han_tf.data.reading import ImageReader
from han_tf.data.synthetic import SyntheticPedestrians, generate
from han_tf.features.archives import load_features
from han_tf.features.shards import FeatureShards
from han_tf.runs.card import CARD, hash_files, read_card, verify_files
from han_tf.runs.checkpoints import Checkpoints
from han_tf.runs.folder import CHECKPOINTS, create_network, load_run, read_config
from han_tf.search import create_gallery, open_gallery
from han_tf.serve.images import decode_upload
from han_tf.serve.limits import Limits, Refusal
from han_tf.weights import read_arrays, resolve


class Kind(NamedTuple):
    """A kind of input.

    ``make`` gets the folder that :func:`experiments.chaos.kills.prepare` has filled, and a folder into which it writes
    valid inputs, each as a file or folder; ``read`` reads one of them.
    """

    name: str
    share: float  # of all inputs
    make: Callable[[Path, Path], Any]
    read: Callable[[Path], Any]


def _make_images(_: Path, folder: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (48, 24, 3), np.uint8))
    for format in ("jpg", "png", "webp", "bmp", "tif", "gif"):
        pixels.save(folder / f"colour.{format}")
    pixels.save(folder / "progressive.jpg", progressive=True)
    pixels.convert("CMYK").save(folder / "cmyk.jpg")
    pixels.convert("P").save(folder / "palette.png")
    pixels.convert("1").save(folder / "fax.tif", compression="group4")
    pixels.save(folder / "lzw.tif", compression="tiff_lzw")
    pixels.save(folder / "jpeg.tif", compression="jpeg")
    pixels.save(folder / "frames.gif", save_all=True, append_images=[pixels.rotate(90)] * 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.save(folder / "turned.jpg", exif=exif)
    for format in ("png", "tif"):
        Image.fromarray(rng.integers(0, 65_536, (48, 24), np.uint16)).save(folder / f"deep.{format}")
    Image.fromarray(rng.random((48, 24), np.float32)).save(folder / "float.tif")


def _read_image(path: Path) -> None:
    limits = Limits()
    try:
        decode_upload(path.read_bytes(), limits.pixels, of_file=bool(path.stat().st_size % 2))
    except Refusal as error:
        if error.status >= 500:
            raise
    list(ImageReader([path], (48, 32), skip_bad_images=True, threads=1))


def _make_mats(_: Path, folder: Path) -> None:
    people = SyntheticPedestrians(
        train_identities=2, test_identities=2, train_images_per_camera=1, images_per_camera=2, distractors=0, junk=0
    )
    generate(folder / "cuhk03", people, layout="cuhk03")


def _make_npz(root: Path, folder: Path) -> None:
    features = load_features(root / "features.npz").where(np.arange(20))
    write_npz(folder / "plain.npz", **{**features._asdict(), "paths": features.paths.astype(str)})
    np.savez_compressed(folder / "compressed.npz", **{**features._asdict(), "paths": features.paths.astype(str)})


def _make_csv(root: Path, folder: Path) -> None:
    paths = sorted((root / "data" / "query").glob("*.jpg"))[:6]
    rows = [f"{path},{pid},{pid % 3},2026-03-01T08:30:0{pid}Z" for pid, path in enumerate(paths)]
    (folder / "list.csv").write_text("\n".join(["path,pid,camid,time", *rows, ""]))
    subsets = ["train", "train", "query", "query", "gallery", "gallery"]
    rows = [f"{path},{n % 2 + 1},{n},{subset}" for n, (path, subset) in enumerate(zip(paths, subsets))]
    (folder / "set.csv").write_text("\r\n".join(["path,pid,camid,subset", *rows, ""]))


def _read_csv(path: Path) -> None:
    if path.stem == "set":
        load_dataset("csv", path)
    else:
        list_images([str(path)])


def _make_run(root: Path, folder: Path) -> None:
    shutil.copytree(root / "run", folder / "run", ignore=shutil.ignore_patterns("*.png", "tensorboard", "events*"))


_MODELS: dict[str, Any] = {}


def _read_run(path: Path) -> None:
    """Does the same as :func:`han_tf.runs.folder.load_run`, but reuses one network for all runs with equal settings."""
    config = read_config(path)
    known = repr(sorted(config.items(), key=str))
    if known not in _MODELS:
        if _MODELS:
            load_run(path)
            return
        _MODELS[known] = create_network(config, config["num_classes"])
    Checkpoints(path / CHECKPOINTS["last"], 1, model=_MODELS[known]).restore(partial=True)


def _make_card(root: Path, folder: Path) -> None:
    shutil.copytree(root / "exports" / MODEL, folder / "model")
    (folder / "model" / "model.onnx").write_bytes(b"a model")  # small, so that its checksum is computed quickly
    card = json.loads((folder / "model" / CARD).read_text())
    write_json(folder / "model" / CARD, {**card, "files": hash_files(folder / "model")})


def _make_galleries(_: Path, folder: Path) -> None:
    rng = np.random.default_rng(0)
    for engine, dimension, rows in (("flat", 16, 50), ("hnsw", 8, 1200), ("ivfpq", 8, 1200)):
        with create_gallery(folder / engine, dimension, "a" * 64, engine) as gallery:
            features = rng.standard_normal((rows, dimension)).astype(np.float32)
            gallery.add(features, paths=[f"{n}.jpg" for n in range(rows)], camids=rng.integers(1, 4, rows).tolist())
            gallery.delete([3, 4])
            gallery.build()


def _read_gallery(path: Path) -> None:
    with open_gallery(path, writable=path.name == "ivfpq") as gallery:
        hits = gallery.search(np.ones((2, gallery.dimension), np.float32), 5)
        gallery.entries([hit.entry.id for hit in hits[0]])
        gallery.page(10)
        gallery.info()


KINDS = (
    Kind("images", 0.3, _make_images, _read_image),
    Kind("mats", 0.05, _make_mats, lambda path: load_dataset("cuhk03", path, "detected")),
    Kind("npz", 0.1, _make_npz, load_features),
    Kind(
        "parquet",
        0.1,
        lambda root, folder: extract_features(root / "exports" / MODEL, root / "data" / "query", folder / "features"),
        lambda path: list(FeatureShards(path)),
    ),
    Kind("csv", 0.1, _make_csv, _read_csv),
    Kind("checkpoints", 0.03, _make_run, _read_run),
    Kind(
        "weights",
        0.02,
        lambda _, folder: shutil.copytree(resolve("han_small-synthetic"), folder / "stored"),
        lambda path: (read_config(path), read_arrays(path)),
    ),
    Kind("cards", 0.1, _make_card, lambda path: verify_files(path, read_card(path))),
    Kind("galleries", 0.1, _make_galleries, _read_gallery),
)
"""Kinds of inputs in files; the rest of the inputs are HTTP requests."""
