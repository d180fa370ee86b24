"""Export of a training run to a folder, which is checked before it is kept."""

import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf

from han_tf.common.errors import UserError, one_line
from han_tf.common.files import check_no_file, locked, writing
from han_tf.data.pipeline import load_images
from han_tf.data.records import Record
from han_tf.data.sampling import spread
from han_tf.deploy.checking import compare, shortcomings
from han_tf.deploy.exporters import INT8, exporter
from han_tf.deploy.graph import deployment_function
from han_tf.deploy.measuring import Comparison, Measured, measure, measure_apart
from han_tf.evaluation.scoring import evaluate_features
from han_tf.features.archives import FeatureSet
from han_tf.runs.card import CARD, READABLE, ModelCard, hash_files, read_card
from han_tf.runs.folder import create_network, load_run
from han_tf.runs.replacing import put_back, replace_folder
from han_tf.runtimes import probes
from han_tf.runtimes.keras import card_of, runtime_of

CALIBRATION_IMAGES = 300

OLD = ".old"
"""Suffix of an earlier export while the new one takes its place."""


class Exported(NamedTuple):
    """The result of an export.

    Attributes:
      format, precision: of the model.
      megabytes: size of its files.
      images_per_second: speed on decoded images on this machine.
      check: see :func:`han_tf.deploy.checking.shortcomings`.
      failure: why it was not kept; None if it was.
      folder: of the exported model.
    """

    format: str
    precision: str
    megabytes: float
    images_per_second: float
    check: dict[str, Any]
    failure: Optional[str]
    folder: Path


class Export:
    """Exports the network of one run in several formats. It is measured when a result is first asked for.

    Args:
      run_dir: the run's folder.
      checkpoint: which network of the run, see :func:`han_tf.runs.folder.load_run`.
      comparison: the images to check the exports with.
      calibration: training records for int8; None if there are none.

    Attributes:
      checksum: of the network, see :func:`han_tf.runtimes.keras.network_checksum`.

    Raises:
      UserError: there is no such run.
    """

    def __init__(
        self,
        run_dir: Union[str, os.PathLike],
        checkpoint: str,
        comparison: Comparison,
        calibration: Optional[Sequence[Record]],
    ):
        self.comparison = comparison
        self._calibration = calibration
        self._functions: dict[bool, tf.types.experimental.ConcreteFunction] = {}
        run = load_run(run_dir, checkpoint)
        # Kept, since the run may still be training and replace its checkpoint before an export.
        self._model, self._config, self._weights = run.model, run.config, run.model.get_weights()
        self._card = card_of(run)
        self.checksum = self._card.checksum
        self._paths = [record.path for record in (*comparison.query, *comparison.gallery)]
        self._probes = probes.draw(self._card.input_size)

    @functools.cached_property
    def original(self) -> Measured:
        """Features and speed of the Keras network."""
        size = self._card.input_size
        return measure(runtime_of(self._model), self.comparison.images, self._probes, self._paths, size)

    @functools.cached_property
    def accuracy(self) -> Optional[dict[str, float]]:
        """Rank-1 and mAP of the Keras network; None if they are not compared."""
        return self._accuracy(self.original)

    @functools.cached_property
    def card(self) -> ModelCard:
        """The network's card; an accuracy that is not known is measured, if the images are of the run's data set."""
        if self._card.accuracy is None and self.comparison.name == f"{self._card.dataset} {self._card.split}".rstrip():
            return dataclasses.replace(self._card, accuracy=self.accuracy)
        return self._card

    def export(self, format_name: str, precision: str, parent: Path, overwrite: bool = False) -> Exported:
        """Writes and checks one model; it is kept as ``parent/FORMAT-PRECISION`` if it passes.

        Args:
          format_name, precision: of the model.
          parent: the folder of exports.
          overwrite: whether it may replace an export of another network.

        Raises:
          UserError: it cannot be converted, run or written, int8 cannot be calibrated, or something else is in its
            place, see :func:`check_place`.
        """
        target = parent / f"{format_name}-{precision}"
        with locked(parent / f".{target.name}.lock"):
            return self._export(format_name, precision, target, overwrite)

    def _export(self, format_name: str, precision: str, target: Path, overwrite: bool) -> Exported:
        parent = target.parent
        with writing(target):
            # Left by killed exports; this process holds the lock, so no other one is working on them.
            for folder in parent.glob(f".{target.name}.*.*"):
                if folder.suffix == OLD and (folder / CARD).exists():
                    put_back(target, folder)
                shutil.rmtree(folder, ignore_errors=True)
            check_place(target, self.checksum, overwrite)
            temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{target.name}.", suffix=".tmp"))
            temporary.chmod(parent.stat().st_mode)  # readable for those who can read the folder
            try:
                images = self._calibration_images() if precision == INT8 else None
                writer = exporter(format_name)
                try:
                    writer.export(self._function(writer.FLAT), temporary, precision, images)
                except (UserError, OSError):
                    raise
                except Exception as error:  # each converter has exceptions of its own
                    raise UserError(f"cannot be converted ({one_line(error)[:300]})") from error
                card = dataclasses.replace(
                    self.card,
                    format=format_name,
                    precision=precision,
                    files=hash_files(temporary),
                    created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                )
                card.save(temporary)
                found = measure_apart(temporary, self.comparison.images, self._probes, self._paths)
                check = self._check(found)
                failure = shortcomings(check, precision)
                if failure is None and not np.isfinite(found.probes).all():
                    failure = "its features of the probe images are not finite"
                size = sum((temporary / name).stat().st_size for name in card.files) / 1e6
                if failure is None:
                    proof = probes.entry(self._probes, self.original.probes, found.probes, precision)
                    dataclasses.replace(card, check=check, probes=proof).save(temporary)
                    check_place(target, self.checksum, overwrite)  # the user may have put something there meanwhile
                    replace_folder(target, temporary, temporary.with_suffix(OLD))
                return Exported(format_name, precision, size, found.images_per_second, check, failure, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _function(self, flat: bool) -> tf.types.experimental.ConcreteFunction:
        if flat not in self._functions:
            model = create_network(self._config, self._model.num_classes)
            model.set_weights(self._weights)
            self._functions[flat] = deployment_function(model, flat)
        return self._functions[flat]

    def _calibration_images(self) -> np.ndarray:
        """Returns training images, evenly spread over the people, ``[n, height, width, 3]`` uint8."""
        if not self._calibration:
            raise UserError(
                f"int8 is calibrated on training images of {self.card.dataset}, which are not there; "
                "expected --data_dir to say where they are"
            )
        records = spread(self._calibration, CALIBRATION_IMAGES)
        return load_images(records, self.card.input_size, skip_bad_images=True).images

    def _accuracy(self, found: Measured) -> Optional[dict[str, float]]:
        """Returns rank-1 and mAP of the joint feature; None if there is no ranking, or if a feature is not finite."""
        if not self._paths or not np.isfinite(found.features).all():
            return None
        records, queries = (*self.comparison.query, *self.comparison.gallery), len(self.comparison.query)
        query, gallery = (
            FeatureSet.of(found.features[part], [records[index] for index in found.kept[part]])
            for part in (found.kept < queries, found.kept >= queries)
        )
        result = evaluate_features(query, gallery, topk=0)[0]["result"]
        return {"rank-1": float(result.rank(1)), "mAP": float(result.mAP)}

    def _check(self, found: Measured) -> dict[str, Any]:
        check: dict[str, Any] = compare(self.original.features, found.features, len(self.card.branch_names))
        reached = self._accuracy(found)
        if reached is not None:
            check["dataset"] = self.comparison.name
            check["accuracy"] = reached
            check["keras_accuracy"] = self.accuracy
        return check


def check_place(target: Path, checksum: str, overwrite: bool) -> Optional[ModelCard]:
    """Returns the card of the export that a new one in the folder ``target`` replaces; None if there is none.

    Args:
      target: the folder.
      checksum: of the new export's network.
      overwrite: whether an export of another network may be replaced.

    Raises:
      UserError: ``target`` is a file or a link, holds a file that is not part of an exported model, or holds an export
        of another network.
    """
    with writing(target):
        check_no_file(target)
        inside = [path for path in target.rglob("*") if path.is_symlink() or not path.is_dir()]
    if not inside:
        return None
    try:
        card = read_card(target)
        own = {CARD, READABLE, *(Path(name).as_posix() for name in card.files)}
    except UserError:
        card, own = None, set()
    others = {path.relative_to(target).as_posix() for path in inside} - own
    if others or card is None:
        raise UserError(f"{target} holds {min(others)}, which is not part of the model; expected another --output")
    if card.checksum != checksum and not overwrite:
        raise UserError(
            f"{target} holds an export of another network, checksum {card.checksum[:16]}; expected --overwrite or "
            "another --output"
        )
    return card
