"""Slow, obvious reference metrics: loops over lists, written from the definitions."""

import itertools
import math
import tracemalloc
from contextlib import contextmanager
from fractions import Fraction

import numpy as np


@contextmanager
def memory_below(most):
    """Fails if the block ever holds ``most`` bytes or more that it has allocated."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


def squared_distances(query, gallery):
    """Squared L2 distances in float64, pair by pair."""
    query, gallery = np.asarray(query, np.float64), np.asarray(gallery, np.float64)
    return np.array([[((q - g) ** 2).sum() for g in gallery] for q in query])


def standard(query_pid, query_camid, gallery_pid, gallery_camid):
    """Whether the standard protocol leaves a gallery image out."""
    return gallery_pid == -1 or (gallery_pid == query_pid and gallery_camid == query_camid)


def ranking(distances, query_pids, gallery_pids, query_camids, gallery_camids, left_out=standard, only_camid=None):
    """For each query the ranked gallery images, nearest first, ties in gallery order."""
    lists = []
    for q in range(len(query_pids)):
        images = [
            g
            for g in range(len(gallery_pids))
            if not left_out(query_pids[q], query_camids[q], gallery_pids[g], gallery_camids[g])
            and only_camid in (None, gallery_camids[g])
        ]
        lists.append(sorted(images, key=lambda g: (distances[q][g], g)))
    return lists


def average_precision(is_match):
    """Mean precision at the hits of a ranked list of booleans."""
    total = hits = 0
    for place, match in enumerate(is_match, 1):
        if match:
            hits += 1
            total += hits / place
    return total / hits


def matlab_average_precision(is_match):
    """Market-1501's evaluation code, statement by statement."""
    good = sum(is_match)
    old_recall, old_precision, ap, hits = 0.0, 1.0, 0.0, 0
    for ranked, match in enumerate(is_match):
        hits += match
        recall = hits / good
        precision = hits / (ranked + 1)
        ap += (recall - old_recall) * ((old_precision + precision) / 2)
        old_recall, old_precision = recall, precision
        if hits == good:
            break
    return ap


def scores(distances, query_pids, gallery_pids, query_camids, gallery_camids, max_rank=50, **options):
    """All metrics, as a dictionary; None if no query has a match."""
    lists = ranking(distances, query_pids, gallery_pids, query_camids, gallery_camids, **options)
    matches = [[gallery_pids[g] == pid != -1 for g in images] for images, pid in zip(lists, query_pids)]
    scored = [m for m in matches if any(m)]
    if not scored:
        return None
    first = [m.index(True) + 1 if any(m) else 0 for m in matches]
    aps = [average_precision(m) for m in scored]
    inps = [sum(m) / (len(m) - m[::-1].index(True)) for m in scored]
    return {
        "lists": lists,
        "cmc": [sum(0 < f <= k for f in first) / len(scored) for k in range(1, max_rank + 1)],
        "mAP": math.fsum(aps) / len(aps),
        "mAP_trapezoid": math.fsum(map(matlab_average_precision, scored)) / len(scored),
        "mINP": math.fsum(inps) / len(inps),
        "first_hit": first,
        "matches": [sum(m) for m in matches],
        "queries_without_match": len(matches) - len(scored),
    }


def reranked(query, gallery, k1, k2, lambda_value):
    """Zhong et al. 2017, dense and literal, in float64; float64 ``[n_query, n_gallery]``."""
    features = np.concatenate([query, gallery])
    return reranked_distances(squared_distances(features, features), len(query), k1, k2, lambda_value)


def reranked_distances(original, n_query, k1, k2, lambda_value):
    """The same from the distances among all images, float64 ``[n, n]``, the queries first."""
    n = len(original)
    greatest = original.max(axis=1, keepdims=True)
    normed = original / np.where(greatest > 0, greatest, 1)
    initial_rank = np.argsort(original, axis=1, kind="stable")

    def reciprocal(image, k):
        forward = initial_rank[image, : k + 1]
        return [other for other in forward if image in initial_rank[other, : k + 1]]

    vectors = np.zeros((n, n))
    for image in range(n):
        neighbours = reciprocal(image, k1)
        expanded = {image, *neighbours}
        for candidate in neighbours:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if 3 * len(set(theirs) & set(neighbours)) > 2 * len(theirs):
                expanded |= set(theirs)
        members = sorted(expanded)
        weights = np.exp(-normed[image, members])
        vectors[image, members] = weights / weights.sum()
    if k2 > 1:
        vectors = np.stack([vectors[initial_rank[image, :k2]].mean(axis=0) for image in range(n)])
    jaccard = np.empty((n_query, n - n_query))
    for q in range(n_query):
        for g in range(n_query, n):
            overlap = np.minimum(vectors[q], vectors[g]).sum()
            jaccard[q, g - n_query] = 1 - overlap / (2 - overlap)
    return (1 - lambda_value) * jaccard + lambda_value * normed[:n_query, n_query:]


def separation(distances, query_pids, gallery_pids, query_camids, gallery_camids, wanted_fpr):
    """Thresholds, rates and equal error rate from all pairs; None without genuine or impostor pairs."""
    genuine, impostors = [], []
    for q in range(len(query_pids)):
        for g in range(len(gallery_pids)):
            if not standard(query_pids[q], query_camids[q], gallery_pids[g], gallery_camids[g]):
                same = query_pids[q] == gallery_pids[g]
                (genuine if same else impostors).append(distances[q][g])
    if not genuine or not impostors:
        return None
    genuine, impostors = np.array(genuine), np.array(impostors)
    thresholds = []
    for rate in wanted_fpr:
        passing = [t for t in [*impostors, np.inf] if (impostors < t).sum() <= rate * len(impostors) + 1e-9]
        thresholds.append(max(passing))
    corners = [(Fraction(0), Fraction(1), -np.inf)]
    for value in np.unique(np.concatenate([genuine, impostors])):
        accepted, missed = int((impostors <= value).sum()), int((genuine > value).sum())
        corners.append((Fraction(accepted, len(impostors)), Fraction(missed, len(genuine)), value))
    for (fpr, fnr, _), (next_fpr, next_fnr, value) in itertools.pairwise(corners):
        if next_fpr >= next_fnr:
            share = (fnr - fpr) / ((next_fpr - fpr) + (fnr - next_fnr))
            return {
                "thresholds": thresholds,
                "fpr": [(impostors < t).mean() for t in thresholds],
                "tpr": [(genuine < t).mean() for t in thresholds],
                "equal_error_rate": float(fpr + share * (next_fpr - fpr)),
                "equal_error_threshold": value,
                "genuine": len(genuine),
                "impostors": len(impostors),
            }
    raise AssertionError("the last corner is (1, 1)")
