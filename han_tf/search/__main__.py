"""Search a gallery for the people on images.

  python -m han_tf.search --index DIR IMAGE... --model DIR
  python -m han_tf.search --index DIR --id N
  python -m han_tf.search --index DIR --features FILE.npz

--index is a folder or an address of Milvus, made by python -m han_tf.index. --model is the training run or export that
made the gallery's features. Hits beyond the gallery's threshold are left out; if none is left, the answer is "not in
the gallery". --white_level is by default that of the gallery's images. Times are seconds since 1970, UTC, or ISO 8601
(UTC if they name no zone), in the years 1 to 9999.
"""

import json
import math
import sys
from datetime import datetime, timezone
from typing import Any, Optional

import numpy as np
from absl import flags

from han_tf.common import cli as command_line
from han_tf.common.errors import UserError, printable
from han_tf.common.files import read_npz
from han_tf.search.entries import Hit
from han_tf.search.filter_flags import define_filters, filters_of
from han_tf.search.gallery import Gallery
from han_tf.search.opening import open_gallery

FLAGS = command_line.Flags()
FLAGS.group("gallery")
FLAGS.string("index", "", "The gallery: a folder, or an address of Milvus.")
FLAGS.group("what to search for")
FLAGS.string("model", "", "Folder of the run or export, or name of the network of the package, that embeds the images.")
FLAGS.list_of("id", [], "Search for the images of these entries; an entry is no hit of its own.", flags.IntegerParser())
FLAGS.string("features", "", "Search for the features in this .npz file.")
FLAGS.define_white_level("that of the gallery's images")
FLAGS.group("hits")
FLAGS.integer("k", 10, "Hits per query, at most.", 1, 10_000)
FLAGS.real("threshold", None, "Greatest distance; the gallery's own if not given.", 0)
FLAGS.boolean("any_distance", False, "Ignore the gallery's threshold.")
FLAGS.boolean("rerank", False, "Sort the nearest by k-reciprocal re-ranking.")
FLAGS.boolean("json", False, "Print JSON.")
define_filters(FLAGS)
FLAGS.require("index", "the folder or address of a gallery")
FLAGS.check_pair("any_distance", "threshold", False, "--any_distance and --threshold exclude each other")


def main(values: command_line.Flags) -> None:
    """Searches as the flags say."""
    if bool(values.positional) + bool(values.id) + bool(values.features) != 1:
        raise command_line.UsageError("expected either images, --id or --features to search for")
    filters = filters_of(values)
    with open_gallery(values.index) as gallery:
        location = gallery.location
        if not len(gallery):
            raise UserError(f"{location}: the gallery is empty, expected images added by python -m han_tf.index")
        names, features = _queries(values, gallery)
        options: dict[str, Any] = {"filters": filters, "rerank": values.rerank}
        options["threshold"] = math.inf if values.any_distance else values.threshold
        found = gallery.search(features, values.k + bool(values.id), **options)
        if values.id:
            pairs = zip(values.id, found)
            found = [[hit for hit in hits if hit.entry.id != id][: values.k] for id, hits in pairs]
        for note in gallery.notes:
            print(f"note: {note}", file=sys.stderr)
    if values.json:
        plain = [[{**hit.entry._asdict(), "distance": hit.distance} for hit in hits] for hits in found]
        queries = [{"query": name, "known": bool(hits), "hits": hits} for name, hits in zip(names, plain)]
        print(json.dumps({"index": location, "queries": queries}, indent=2))
    else:
        for name, hits in zip(names, found):
            print(printable(name))
            for line in _lines(hits):
                print(f"  {line}")


def _queries(values: command_line.Flags, gallery: Gallery) -> tuple[list[str], np.ndarray]:
    """Returns the queries: names to print, and features ``[n, dimension]``."""
    from han_tf.features.extractor import FeatureExtractor

    if values.model and (values.id or values.features):
        gallery.check_model(FeatureExtractor(values.model).checksum)
    if values.id:
        return [f"entry {id}" for id in values.id], gallery.features(values.id)
    if values.features:
        arrays = read_npz(values.features, ("features", "paths"))
        if "features" not in arrays:
            raise UserError(f"{values.features}: no array 'features', expected one, [n, {gallery.dimension}]")
        features = arrays["features"]
        if features.ndim != 2 or features.shape[1] != gallery.dimension:
            found = list(features.shape)
            raise UserError(f"{values.features}: features {found}, expected [n, {gallery.dimension}]")
        paths = [str(path) for path in np.ravel(arrays.get("paths", []))]
        named = len(paths) == len(features)
        names = [paths[i] if named and paths[i] else f"row {i}" for i in range(len(features))]
        spoiled = np.flatnonzero(~np.isfinite(features).all(axis=1)) if features.dtype.kind == "f" else ()
        if len(spoiled):
            raise UserError(
                f"{values.features}: the feature of {names[spoiled[0]]} is not finite ({len(spoiled)} such features), "
                "expected finite numbers"
            )
        return names, features
    if not values.model:
        raise command_line.UsageError("--model is missing, expected the run or export whose features the gallery holds")
    white_level = values.white_level or gallery.white_level
    if note := gallery.white_level_note(white_level):
        print(f"note: {note}", file=sys.stderr)
    extractor = FeatureExtractor(values.model, white_level=white_level)
    gallery.check_model(extractor.checksum)
    return list(values.positional), extractor(values.positional)


def _lines(hits: list[Hit]) -> list[str]:
    if not hits:
        return ["not in the gallery"]
    rows = [("", "distance", "id", "pid", "camera", "time (UTC)", "path")]
    for rank, (entry, distance) in enumerate(hits, 1):
        known = [str(value) if value is not None else "-" for value in (entry.id, entry.pid, entry.camid)]
        rows.append((str(rank), f"{distance:.4f}", *known, _shown(entry.time), printable(entry.path) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return ["  ".join([*(text.rjust(width) for text, width in zip(row, widths)), row[6]]) for row in rows]


def _shown(time: Optional[float]) -> str:
    if time is None:
        return "-"
    try:
        return datetime.fromtimestamp(time, timezone.utc).isoformat(" ", "seconds").removesuffix("+00:00")
    except (OverflowError, ValueError, OSError):  # beyond the calendar
        return f"{time:g}"


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="images"))
