"""From a training run to the folder of an exported model, checked before it is kept."""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf

from han_tf.data.reading import ImageReader
from han_tf.data.records import Record
from han_tf.errors import UserError
from han_tf.inference.card import CARD, hash_files
from han_tf.inference.checking import accuracy, compare, images_per_second, shortcomings
from han_tf.inference.deployment import deployment_function
from han_tf.inference.exporters import INT8, exporter
from han_tf.inference.extractor import FeatureExtractor
from han_tf.inference.feature_files import FeatureSet
from han_tf.inference.runs import create_network, load_run
from han_tf.inference.runtimes.keras import KerasRun, card_of

CALIBRATION_IMAGES = 300


class Comparison(NamedTuple):
    """What exports are checked with.

    Attributes:
      images: ``[n, height, width, 3]`` uint8, on which the features are compared and the speed is measured.
      query, gallery: records whose ranking is compared; empty for no ranking.
      name: of their data set.
    """

    images: np.ndarray
    query: Sequence[Record] = ()
    gallery: Sequence[Record] = ()
    name: str = ""


class Exported(NamedTuple):
    """An export and how it did.

    Attributes:
      format, precision: what it is.
      megabytes: of its files.
      images_per_second: decoded images on this machine.
      check: see :func:`han_tf.inference.checking.shortcomings`.
      failure: why it was not kept; None if it was.
      folder: where it is.
    """

    format: str
    precision: str
    megabytes: float
    images_per_second: float
    check: dict[str, Any]
    failure: Optional[str]
    folder: Path


class Export:
    """Exports the network of one run in several formats.

    Args:
      run_dir: the run's folder.
      checkpoint: which network of the run, see :func:`han_tf.inference.runs.load_run`.
      comparison: what to check the exports with.
      calibration: training records for int8; None if there are none.

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
        # Kept, since the run may still be training: its checkpoint can be another one by the time of an export.
        self._config, self._weights = run.config, run.model.get_weights()
        self.card = card_of(run)
        self.original = self._measured(KerasRun(run.model))
        if self.card.accuracy is None and comparison.name == f"{self.card.dataset} {self.card.split}".rstrip():
            self.card = dataclasses.replace(self.card, accuracy=self.original.accuracy)

    def export(self, format_name: str, precision: str, parent: Path) -> Exported:
        """Writes and checks one model; it is kept as ``parent/FORMAT-PRECISION`` if it passes.

        Raises:
          UserError: it cannot be written, or int8 cannot be calibrated.
        """
        target = parent / f"{format_name}-{precision}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{target.name}.", suffix=".tmp"))
            temporary.chmod(parent.stat().st_mode)  # others may read the model where they may read what is beside it
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        try:
            images = self._calibration_images() if precision == INT8 else None
            writer = exporter(format_name)
            writer.export(self._function(writer.FLAT), temporary, precision, images)
            card = dataclasses.replace(
                self.card,
                format=format_name,
                precision=precision,
                files=hash_files(temporary),
                created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
            card.save(temporary)
            found = self._measured(FeatureExtractor(temporary))
            check = self._check(found)
            failure = shortcomings(check, precision)
            size = sum((temporary / name).stat().st_size for name in card.files) / 1e6
            if failure is None:
                dataclasses.replace(card, check=check).save(temporary)
                _replace(target, temporary)
            return Exported(format_name, precision, size, found.images_per_second, check, failure, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        finally:
            # This one, and what was left by an export that was killed.
            for folder in parent.glob(f".{target.name}.*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _function(self, flat: bool) -> tf.types.experimental.ConcreteFunction:
        if flat not in self._functions:
            model = create_network(self._config, self._config["num_classes"])
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
        chosen = np.linspace(0, len(self._calibration) - 1, min(CALIBRATION_IMAGES, len(self._calibration)))
        records = [self._calibration[round(index)] for index in chosen]
        return np.concatenate([batch for batch, _ in ImageReader(records, self.card.input_size, skip_bad_images=True)])

    def _measured(self, runtime: Union[KerasRun, FeatureExtractor]) -> "_Measured":
        speed = images_per_second(runtime, self.comparison.images)
        query, gallery = self.comparison.query, self.comparison.gallery
        if not query:
            return _Measured(runtime.embed(self.comparison.images), speed, None)
        parts = []
        for records in (query, gallery):
            kept: list[int] = []
            features = []
            for images, indices in ImageReader(records, self.card.input_size, skip_bad_images=True):
                features.append(runtime.embed(images))
                kept.extend(indices)
            parts.append(FeatureSet.of(np.concatenate(features), [records[index] for index in kept]))
        joined = np.concatenate([part.features for part in parts])
        # What is not finite cannot be ranked.
        return _Measured(joined, speed, accuracy(*parts) if np.isfinite(joined).all() else None)

    def _check(self, found: "_Measured") -> dict[str, Any]:
        check: dict[str, Any] = compare(self.original.features, found.features, len(self.card.branch_names))
        if found.accuracy is not None:
            check["dataset"] = self.comparison.name
            check["accuracy"] = found.accuracy
            check["keras_accuracy"] = self.original.accuracy
        return check


class _Measured(NamedTuple):
    features: np.ndarray
    images_per_second: float
    accuracy: Optional[dict[str, float]]


def _replace(target: Path, temporary: Path) -> None:
    """Renames a finished folder to ``target``; one that stands there, if it is an exported model, goes.

    Raises:
      UserError: something else stands there.
    """
    if target.exists():
        if not (target / CARD).exists():
            raise UserError(f"{target}: exists and is no exported model, expected another --output")
        old = temporary.with_suffix(".old")
        os.rename(target, old)
        os.rename(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, target)
