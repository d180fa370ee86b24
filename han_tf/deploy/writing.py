"""Export of a training run to a folder, which is checked before it is kept."""

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

from han_tf.common.errors import UserError, one_line
from han_tf.common.files import locked, writing
from han_tf.data.pipeline import load_images
from han_tf.data.records import Record
from han_tf.data.sampling import spread
from han_tf.deploy.checking import compare, shortcomings
from han_tf.deploy.exporters import INT8, exporter
from han_tf.deploy.graph import deployment_function
from han_tf.deploy.measuring import Comparison, Measured, measure, measure_apart
from han_tf.evaluation.scoring import evaluate_features
from han_tf.features.archives import FeatureSet
from han_tf.runs.card import CARD, hash_files
from han_tf.runs.folder import create_network, load_run
from han_tf.runtimes import probes
from han_tf.runtimes.keras import card_of, runtime_of

CALIBRATION_IMAGES = 300


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
    """Exports the network of one run in several formats.

    Args:
      run_dir: the run's folder.
      checkpoint: which network of the run, see :func:`han_tf.runs.folder.load_run`.
      comparison: the images to check the exports with.
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
        # Kept, since the run may still be training and replace its checkpoint before an export.
        self._config, self._weights = run.config, run.model.get_weights()
        self._classes = run.model.num_classes
        self.card = card_of(run)
        self._paths = [record.path for record in (*comparison.query, *comparison.gallery)]
        self._probes = probes.draw(self.card.input_size)
        self.original = measure(
            runtime_of(run.model), comparison.images, self._probes, self._paths, self.card.input_size
        )
        self.accuracy = self._accuracy(self.original)
        if self.card.accuracy is None and comparison.name == f"{self.card.dataset} {self.card.split}".rstrip():
            self.card = dataclasses.replace(self.card, accuracy=self.accuracy)

    def export(self, format_name: str, precision: str, parent: Path) -> Exported:
        """Writes and checks one model; it is kept as ``parent/FORMAT-PRECISION`` if it passes.

        Raises:
          UserError: it cannot be converted, run or written, or int8 cannot be calibrated.
        """
        target = parent / f"{format_name}-{precision}"
        with locked(parent / f".{target.name}.lock"):
            return self._export(format_name, precision, target)

    def _export(self, format_name: str, precision: str, target: Path) -> Exported:
        parent = target.parent
        # Left by killed exports; this process holds the lock, so no other one is working on them.
        for folder in parent.glob(f".{target.name}.*.*"):
            shutil.rmtree(folder, ignore_errors=True)
        with writing(target):
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
                    _replace(target, temporary)
                return Exported(format_name, precision, size, found.images_per_second, check, failure, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _function(self, flat: bool) -> tf.types.experimental.ConcreteFunction:
        if flat not in self._functions:
            model = create_network(self._config, self._classes)
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


def _replace(target: Path, temporary: Path) -> None:
    """Renames a finished folder to ``target`` and removes an exported model that was there.

    Raises:
      UserError: ``target`` exists and is not an exported model.
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
