"""Ranks -> Recall and NDCG, with intervals and paired tests.

One target a user: recall is the hit rate and the ideal DCG is 1. Ranks are 1-based, (n_users,).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr

from gsas_lab.errors import InputError


def recall(ranks: ArrayLike, cutoff: int) -> np.ndarray:
    """[rank <= cutoff] for each user, (n_users,) float64."""
    return (_checked(ranks, cutoff) <= cutoff).astype(float)


def ndcg(ranks: ArrayLike, cutoff: int) -> np.ndarray:
    """[rank <= cutoff] / log2(1 + rank) for each user, (n_users,) float64."""
    ranks = _checked(ranks, cutoff)
    return np.where(ranks <= cutoff, 1 / np.log2(1 + ranks), 0.0)


def summary(ranks: ArrayLike, cutoffs: Sequence[int] = (1, 10)) -> dict[str, float]:
    """Mean recall at every cutoff and mean NDCG at the largest (NDCG@1 equals recall@1).

    With the default cutoffs: {"recall@1": …, "recall@10": …, "ndcg@10": …}.
    """
    means = {f"recall@{cutoff}": float(recall(ranks, cutoff).mean()) for cutoff in cutoffs}
    return means | {f"ndcg@{max(cutoffs)}": float(ndcg(ranks, max(cutoffs)).mean())}


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of per-user values.

    A resample is drawn as the counts of the distinct values, multinomial(n, share of each): the
    same distribution as drawing n users, at the cost of the few values that a metric can take.
    """
    values, counts = np.unique(_per_user(values), return_counts=True)
    if not 0 < confidence < 1 or draws < 1:
        raise InputError(
            f"confidence must lie between 0 and 1, draws be 1 or more, not {confidence}, {draws}."
        )
    n, rng = counts.sum(), np.random.default_rng(seed)
    means = [rng.multinomial(n, counts / n) @ values / n for _ in range(draws)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_test(a: ArrayLike, b: ArrayLike, comparisons: int = 1) -> tuple[float, float]:
    """Mean of a − b over users and its two-sided p: paired t-test, Bonferroni-corrected.

    p = min(1, comparisons · P(|T| >= t)), T with n − 1 degrees of freedom, t = mean / (sd / √n).
    `comparisons` is the number of tests made together. `a` and `b` hold the same users, in the same
    order. Equal values for every user give p = 1; an equal, non-zero difference gives p = 0.
    """
    a, b = _per_user(a), _per_user(b)
    if a.shape != b.shape or len(a) < 2:
        raise InputError(f"A paired test needs the same users, 2 or more, not {len(a)}, {len(b)}.")
    if comparisons < 1:
        raise InputError(f"comparisons must be 1 or more, not {comparisons}.")
    difference = a - b
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
    if error == 0:
        return float(mean), float(mean == 0)
    p = 2 * stdtr(len(difference) - 1, -abs(mean) / error)
    return float(mean), min(1.0, float(p) * comparisons)


def _checked(ranks: ArrayLike, cutoff: int) -> np.ndarray:
    ranks = _per_user(ranks)
    if cutoff < 1 or ranks.min() < 1:
        raise InputError(
            f"Ranks and cutoffs count from 1, not rank {ranks.min():g}, cutoff {cutoff}."
        )
    return ranks


def _per_user(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise InputError(
            f"Per-user values must be one number for each user, not an array of shape "
            f"{values.shape} or with NaN."
        )
    return values
