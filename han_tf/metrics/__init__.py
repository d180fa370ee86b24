"""Person re-identification metrics on plain NumPy arrays: ranking, re-ranking and verification.

All functions take features or distances, pids and camera ids from any source; README.md beside this file has examples.
:mod:`han_tf.metrics.plots`, which draws curves, is not imported here, since it needs Matplotlib.
"""

from han_tf.metrics.distances import DistanceSource, FeatureDistances, MatrixDistances, pairwise_distances
from han_tf.metrics.excluders import Excluder, distractors, frame_window, itself, junk, same_group, same_pid_and_camera
from han_tf.metrics.expansion import (
    check_normalised,
    database_augmentation,
    normalise,
    pool_multi_query,
    query_expansion,
)
from han_tf.metrics.neighbours import FaissNeighbours, Neighbours, exact_neighbours
from han_tf.metrics.ranking import evaluate, evaluate_distances
from han_tf.metrics.reranking import RerankedDistances, rerank, rerank_distances
from han_tf.metrics.results import CameraPair, RankingResult
from han_tf.metrics.single_shot import SingleShotResult, single_gallery_shot
from han_tf.metrics.verification import VerificationResult, verify

__all__ = [
    "CameraPair",
    "DistanceSource",
    "Excluder",
    "FaissNeighbours",
    "FeatureDistances",
    "MatrixDistances",
    "Neighbours",
    "RankingResult",
    "RerankedDistances",
    "SingleShotResult",
    "VerificationResult",
    "check_normalised",
    "database_augmentation",
    "distractors",
    "evaluate",
    "evaluate_distances",
    "exact_neighbours",
    "frame_window",
    "itself",
    "junk",
    "normalise",
    "pairwise_distances",
    "pool_multi_query",
    "query_expansion",
    "rerank",
    "rerank_distances",
    "same_group",
    "same_pid_and_camera",
    "single_gallery_shot",
    "verify",
]
