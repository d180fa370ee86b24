"""The model card: what a network is, what it was trained on and what it may be used for."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional, Union

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, read_json, sha256_of, write_json
from han_tf.common.json_fields import checked_fields
from han_tf.data.joined import SEPARATOR

CARD = "card.json"
"""The card's name in the folder of an exported model."""

KIND = "han_tf model"
VERSION = 1
"""Kind and version of a card; a card of another kind or version is refused."""

READABLE = "MODEL_CARD.md"

LICENCES = {
    "synthetic": "none needed: the training images are drawn by han_tf (Apache-2.0) and show no real people",
    "csv": "that of the owner of the training images, who decides on the use of networks trained on them",
}
"""Data set -> terms for networks trained on it."""

RESEARCH_ONLY = "research use only: the training images are licensed for research only"
"""The terms for networks trained on any other data set."""


def licence_of(*datasets: str) -> str:
    """Returns the terms for networks trained on these data sets; a string may name several, separated by commas."""
    names = [name for dataset in datasets for name in dataset.split(SEPARATOR)]
    return "; ".join(dict.fromkeys(LICENCES.get(name, RESEARCH_ONLY) for name in names))


_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class ModelCard:
    """What a network is, how it was trained and checked, and its terms of use.

    Attributes:
      format: ``keras`` for a run's folder, else the format of the export.
      precision: ``float32``, ``float16``, ``bfloat16`` or ``int8``, as the network was exported.
      checksum: hex SHA-256 of the network, see :func:`han_tf.runtimes.keras.network_checksum`; a run and all its
        exports have the same.
      model: registry name of the network.
      input_size: height and width of the images, in pixels.
      feature_dim: dimension of the feature.
      branch_names: names of the feature's equally wide parts, in order; each part is of unit norm.
      dataset, split: what it was trained on; several data sets are separated by commas.
      licence: terms of the training data, which also apply to the network.
      schedule: epochs, batch size, loss, learning rate and seed of the training; ``epochs_done`` when the network was
        saved, if known.
      accuracy: rank-1 and mAP (fractions) of the joint feature after the training, single query, on the
        first of several data sets; None if not known.
      flops: operations for one image as the paper counts them; None if not counted.
      files: name of each model file in the folder -> its hex SHA-256; empty for a run.
      check: comparison of the export with the Keras network, see :mod:`han_tf.deploy.checking`; empty for a run.
      probes: images and their features, which the export has to reproduce wherever it is opened, see
        :mod:`han_tf.runtimes.probes`; empty for a run and in older exports.
      han_tf_version: of the package that wrote the card.
      created: when, UTC.
    """

    format: str
    precision: str
    checksum: str
    model: str
    input_size: tuple[int, int]
    feature_dim: int
    branch_names: tuple[str, ...]
    dataset: str
    split: str
    licence: str
    schedule: Mapping[str, Any]
    accuracy: Optional[Mapping[str, float]]
    flops: Optional[int]
    han_tf_version: str
    created: str
    files: Mapping[str, str] = field(default_factory=dict)
    check: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Union[str, os.PathLike]) -> None:
        """Writes the card into ``folder``, as JSON and as Markdown.

        Raises:
          UserError: it cannot be written.
        """
        write_json(Path(folder) / CARD, {"kind": KIND, "version": VERSION, **asdict(self)})
        with atomic_open(Path(folder) / READABLE) as stream:
            stream.write(self.describe().encode("utf-8"))

    def describe(self) -> str:
        """Returns the card in Markdown."""
        trained_on = f"{self.dataset} {self.split}".rstrip()
        on_which = f" on {self.dataset.split(SEPARATOR)[0]}" * (SEPARATOR in self.dataset)
        height, width = self.input_size
        branches = ", ".join(self.branch_names)
        lines = [
            f"# {self.model}, {self.format}, {self.precision}",
            "",
            f"Person re-identification: RGB images of people, uint8 [n, {height}, {width}, 3], to features, float32 "
            f"[n, {self.feature_dim}]. Their parts ({branches}) are of unit norm each; features are compared by L2 "
            "distance. Normalisation of the pixels is part of the model; other image sizes are resized bilinearly "
            "without antialiasing, which `han_tf.FeatureExtractor` does.",
            "",
            "| | |",
            "|---|---|",
            f"| training data | {trained_on} |",
            f"| terms | {self.licence} |",
            f"| schedule | {', '.join(f'{name} {value}' for name, value in self.schedule.items())} |",
            f"| accuracy of the network{on_which} | {_percent(self.accuracy)} |",
            f"| FLOPs per image | {'not counted' if self.flops is None else f'{self.flops:.4g}'}, a multiply-add "
            "counted as two |",
            f"| checksum of the network | `{self.checksum}` |",
            f"| made by | han_tf {self.han_tf_version}, {self.created} |",
        ]
        if self.check:
            lines.append(
                f"| against the Keras network | features differ by at most {self.check['largest_difference']:.2g}, "
                f"least cosine {self.check['least_cosine']:.6f}, on {self.check['images']} images |"
            )
        if "accuracy" in self.check:
            lines.append(
                f"| accuracy on {self.check['dataset']} | {_percent(self.check['accuracy'])}; "
                f"the Keras network {_percent(self.check['keras_accuracy'])} |"
            )
        if self.probes:
            lines.append(
                f"| checked on | {self.probes['processor']}; wherever the model is opened, the cosine to the Keras "
                f"features of {len(self.probes['images'])} probe images must be {self.probes['least_cosine']:.6f} or "
                f"more, and is {self.probes['cosine']:.6f} there |"
            )
        if self.files:
            lines += ["", "| file | SHA-256 |", "|---|---|"]
            lines += [f"| {name} | `{digest}` |" for name, digest in sorted(self.files.items())]
        return "\n".join(lines) + "\n"


def _percent(accuracy: Optional[Mapping[str, float]]) -> str:
    if not accuracy:
        return "not known"
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in accuracy.items())


def read_card(folder: Union[str, os.PathLike]) -> ModelCard:
    """Returns the card of an exported model.

    Raises:
      UserError: there is none, or it is damaged, of another kind or of another version.
    """
    path = Path(folder) / CARD
    values = read_json(path, "the folder of an exported model (python -m han_tf.export makes one)")
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind != KIND:
        raise UserError(f"{path}: kind is {kind!r}, expected {KIND!r}")
    version = values.pop("version", None)
    if version != VERSION:
        raise UserError(f"{path}: version is {version!r}, expected {VERSION}; export the run anew")
    unknown = sorted(set(values) - {entry.name for entry in fields(ModelCard)})
    if unknown:
        raise UserError(f"{path}: unknown entry {unknown[0]!r}, expected those of version {VERSION}")
    card = ModelCard(**checked_fields(path, values, ModelCard, later=("probes",)))
    checks = {
        "checksum": (_is_digest(card.checksum), "64 hexadecimal digits"),
        "branch_names": (bool(card.branch_names), "a list of names"),
        "files": (
            all(map(_is_digest, card.files.values())) and all(map(_inside, card.files)),
            "names in the folder and their SHA-256",
        ),
    }
    for name, (holds, expected) in checks.items():
        if not holds:
            raise UserError(f"{path}: {name} is {str(values[name])[:80]!r}, expected {expected}")
    return card


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= _HEX


def _inside(name: str) -> bool:
    """Returns whether a file of this name can lie in the folder or below it."""
    try:
        os.fsencode(name)
    except ValueError:  # half of a surrogate pair
        return False
    path = Path(name)
    return "\0" not in name and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def hash_files(folder: Union[str, os.PathLike]) -> dict[str, str]:
    """Returns relative path, with slashes -> hex SHA-256 of every file below ``folder``, without the card."""
    folder = Path(folder)
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder) not in (Path(CARD), Path(READABLE))
    }


def verify_files(folder: Union[str, os.PathLike], card: ModelCard) -> None:
    """Compares the files of an exported model with the checksums of its card.

    Raises:
      UserError: a file is missing or has changed.
    """
    for name, expected in card.files.items():
        path = Path(folder) / name
        try:
            found = sha256_of(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}, expected a file that {CARD} names") from error
        if found != expected:
            raise UserError(f"{path}: damaged or changed, SHA-256 is {found}, expected {expected} as in {CARD}")
