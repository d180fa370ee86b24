"""Results of a ranking, and their files."""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, write_csv, write_npz
from han_tf.metrics.checks import check_count

REPORTED_RANKS = (1, 5, 10, 20)
"""Ranks of the CMC curve in reports."""


def cmc_curve(first: np.ndarray, max_rank: int) -> np.ndarray:
    """Returns the CMC curve, float64 ``[max_rank]``, of the first matches' places, counted from 1."""
    return np.cumsum(np.bincount(first, minlength=max_rank + 1)[1 : max_rank + 1]) / len(first)


def no_match(n_query: int) -> UserError:
    """Returns the error that none of so many queries has a match."""
    return UserError(
        f"none of the {n_query} queries has a match in the gallery, expected images of the same pid "
        "that the excluders leave in (by default: from another camera)"
    )


class CameraPair(NamedTuple):
    """Results of ranking the gallery images of one camera for the queries of another.

    Attributes:
      query_camid, gallery_camid: the cameras.
      queries: number of queries of the first camera with a match on the second; only these are evaluated.
      rank1: fraction of them whose nearest image on the gallery camera is a match.
      mAP: their mean average precision on the gallery camera.
    """

    query_camid: int
    gallery_camid: int
    queries: int
    rank1: float
    mAP: float


@dataclass(frozen=True)
class RankingResult:
    """Results of a ranking, overall and per query.

    All rates are fractions in [0, 1]; means are over the queries that have a match.

    Attributes:
      cmc: float64 ``[max_rank]``; entry k − 1 is the fraction of queries with a match among the first k.
      mAP: mean over queries of the mean precision at the hits.
      mAP_trapezoid: mAP as in Market-1501's MATLAB code: the area under the precision–recall polygon
        that starts at precision 1.
      mINP: mean inverse negative penalty: number of matches divided by the place of the last one (Ye et al. 2021).
      precision_recall: float64 ``[101]``; mean interpolated precision at recall 0, 0.01, …, 1.
      queries, gallery: number of images.
      junk: gallery images with pid −1.
      distractors: gallery images whose pid is neither −1 nor any query's.
      queries_without_match: queries left out of every mean because the gallery holds no match for them.
      query_pids, query_camids: int64 ``[queries]``.
      matches: int64 ``[queries]``; number of true matches that are ranked.
      first_hit: int64 ``[queries]``; place of the first match, from 1; 0 without a match.
      ap, ap_trapezoid, inp: float64 ``[queries]``; NaN without a match.
      topk_indices: int64 ``[queries, topk]``; nearest ranked gallery images, −1 if there are fewer.
      topk_distances: float64 ``[queries, topk]``; infinite if there are fewer.
      camera_pairs: one entry per pair of cameras that has matches; empty if not requested.
    """

    cmc: np.ndarray
    mAP: float
    mAP_trapezoid: float
    mINP: float
    precision_recall: np.ndarray
    queries: int
    gallery: int
    junk: int
    distractors: int
    queries_without_match: int
    query_pids: np.ndarray
    query_camids: np.ndarray
    matches: np.ndarray
    first_hit: np.ndarray
    ap: np.ndarray
    ap_trapezoid: np.ndarray
    inp: np.ndarray
    topk_indices: np.ndarray
    topk_distances: np.ndarray
    camera_pairs: tuple[CameraPair, ...]

    def rank(self, k: int) -> float:
        """Returns the fraction of queries with a match among the first ``k``.

        Raises:
          UserError: ``k`` is not within 1 to the length of the curve.
        """
        return float(self.cmc[check_count(k, "rank", 1, len(self.cmc)) - 1])

    def to_dict(self) -> dict[str, Any]:
        """Returns the overall results, without those per query, as values for JSON."""
        return {
            **{f"rank-{k}": self.rank(k) for k in REPORTED_RANKS if k <= len(self.cmc)},
            "mAP": self.mAP,
            "mAP_trapezoid": self.mAP_trapezoid,
            "mINP": self.mINP,
            "queries": self.queries,
            "gallery": self.gallery,
            "junk": self.junk,
            "distractors": self.distractors,
            "queries_without_match": self.queries_without_match,
            "cmc": self.cmc.tolist(),
            "precision_recall": self.precision_recall.tolist(),
            "camera_pairs": [pair._asdict() for pair in self.camera_pairs],
        }

    def save_npz(
        self,
        path: Union[str, os.PathLike],
        query_names: Optional[Sequence[str]] = None,
        gallery_names: Optional[Sequence[str]] = None,
    ) -> None:
        """Writes the curves and all per-query arrays to a NumPy archive.

        Args:
          path: the file.
          query_names: as for :meth:`save_csv`; written as ``query_names``, ``[queries]`` strings.
          gallery_names: likewise; those of the top-k lists are written as ``topk_names``, ``[queries, topk]``,
            empty if there are fewer images.

        Raises:
          UserError: a list of names has the wrong length.
        """
        self._check_names(query_names, gallery_names)
        named = {}
        if query_names is not None:
            named["query_names"] = np.asarray(query_names, np.str_)
        if gallery_names is not None:
            chosen = np.asarray(gallery_names, np.str_)[self.topk_indices]
            named["topk_names"] = np.where(self.topk_indices < 0, "", chosen)
        names = [
            "cmc",
            "precision_recall",
            "query_pids",
            "query_camids",
            "matches",
            "first_hit",
            "ap",
            "ap_trapezoid",
            "inp",
            "topk_indices",
            "topk_distances",
        ]
        write_npz(path, **{name: getattr(self, name) for name in names}, **named)

    def save_csv(
        self,
        path: Union[str, os.PathLike],
        query_names: Optional[Sequence[str]] = None,
        gallery_names: Optional[Sequence[str]] = None,
    ) -> None:
        """Writes a CSV file with one line per query: its labels, its results and its top-k list.

        Args:
          path: the file.
          query_names: names of the queries, e.g. their paths; their indices if None.
          gallery_names: names of the gallery images; their indices if None.

        Raises:
          UserError: a list of names has the wrong length.
        """
        self._check_names(query_names, gallery_names)
        k = self.topk_indices.shape[1]
        rows: list[list[Any]] = [
            ["query", "pid", "camid", "matches", "first_hit", "ap", "ap_trapezoid", "inp"]
            + [f"{what}_{place}" for place in range(1, k + 1) for what in ("image", "distance")]
        ]
        for query in range(self.queries):
            scores = [self.ap[query], self.ap_trapezoid[query], self.inp[query]]
            nearest = []
            for image, distance in zip(self.topk_indices[query], self.topk_distances[query]):
                name = image if gallery_names is None else gallery_names[image]
                nearest += ["", ""] if image < 0 else [name, repr(float(distance))]
            rows.append(
                [
                    query if query_names is None else query_names[query],
                    self.query_pids[query],
                    self.query_camids[query],
                    self.matches[query],
                    self.first_hit[query] or "",
                    *("" if math.isnan(score) else repr(float(score)) for score in scores),
                    *nearest,
                ]
            )
        text = io.StringIO()
        write_csv(text, rows)
        with atomic_open(path) as stream:
            # File names may contain bytes that are not valid UTF-8.
            stream.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def _check_names(self, query_names: Optional[Sequence[str]], gallery_names: Optional[Sequence[str]]) -> None:
        for names, what, count in (
            (query_names, "query_names", self.queries),
            (gallery_names, "gallery_names", self.gallery),
        ):
            if names is not None and len(names) != count:
                raise UserError(f"{what} has {len(names)} entries, expected {count}")
