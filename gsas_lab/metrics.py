"""Ranks -> Recall and NDCG, with intervals and tests over users and over seeds.

One target a user: recall is the hit rate and the ideal DCG is 1. Ranks are 1-based, (n_users,).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from gsas_lab.errors import InputError

LEVEL = 0.05  # below it a corrected p is significant, as in the paper


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
    if comparisons < 1:
        raise InputError(f"comparisons must be 1 or more, not {comparisons}.")
    mean, _, p = _paired(_per_user(a), _per_user(b))
    return mean, min(1.0, p * comparisons)


def unpaired_test(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Mean of a − mean of b and its two-sided p: Welch's t-test of two independent samples.

    The wrong test for two systems on the same users: the variance between users is common to both,
    and cancels only when paired. The paper's public code uses it (Student's form, which has the
    same t where both samples are as large).
    """
    a, b = _per_user(a), _per_user(b)
    if min(len(a), len(b)) < 2:
        raise InputError(
            f"An unpaired test needs 2 values or more of each, not {len(a)}, {len(b)}."
        )
    difference, _, p = _welch(a, b)
    return difference, p


def bonferroni(p: ArrayLike) -> np.ndarray:
    """p-values corrected for the m tests made together, in the order given: min(1, m · p)."""
    p = _p_values(p)
    return np.minimum(1, len(p) * p)


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's correction, in the order given: the j-th smallest p becomes max_{i<=j} (m − i + 1) pᵢ.

    At most 1. Like Bonferroni's it bounds the chance of any false rejection, whatever the tests
    have in common, and it never gives a larger p.
    """
    p = _p_values(p)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(1, adjusted)


def compare(values: Mapping[str, ArrayLike], baseline: str | None = None) -> pd.DataFrame:
    """Paired t-tests between systems, one row each, corrected for all rows together.

    values: each system's metric, (n_users,), or (n_seeds, n_users) of a system that was trained
    with several seeds; all for the same users in the same order. Every system is compared with
    `baseline`; without one, every pair is, the later system with the earlier.

    Users are paired by their means over seeds: p_users. Where both systems have several seeds,
    p_seeds is Welch's test of the seeds' means (see `compare_seeds`), and since a claim about the
    systems needs both, p is the larger of the two (an intersection-union test); elsewhere p_seeds
    is NaN and p is p_users.

    Columns: system, baseline; their means; difference and relative, system minus baseline, the
    latter in % of the baseline; low and high, the 95 % bootstrap interval of the difference over
    users; statistic, t of the users; p_users, p_seeds, p; p_bonferroni, p_holm; significant, by
    Holm; mark, "*" by Bonferroni, as in the paper's Figure 3.
    """
    seeds = {name: _per_system(each) for name, each in values.items()}
    users = {name: each.mean(axis=0) for name, each in seeds.items()}
    if baseline is None:
        pairs = [(later, earlier) for earlier, later in combinations(users, 2)]
    elif baseline in users:
        pairs = [(name, baseline) for name in users if name != baseline]
    else:
        raise InputError(f"The baseline {baseline!r} is none of {', '.join(users)}.")
    if not pairs:
        raise InputError(f"A comparison needs 2 systems or more, not {len(users)}.")
    rows = []
    for name, other in pairs:
        mean, t, p_users = _paired(users[name], users[other])
        several = min(len(seeds[name]), len(seeds[other])) > 1
        p_seeds = _welch(*(seeds[n].mean(axis=1) for n in (name, other)))[2] if several else np.nan
        low, high = bootstrap_interval(users[name] - users[other])
        base = users[other].mean()
        rows.append(
            {
                "system": name,
                "baseline": other,
                "mean": users[name].mean(),
                "baseline mean": base,
                "difference": mean,
                "relative": 100 * mean / base if base else np.nan,
                "low": low,
                "high": high,
                "statistic": t,
                "p_users": p_users,
                "p_seeds": p_seeds,
                "p": float(np.fmax(p_users, p_seeds)),
            }
        )
    table = pd.DataFrame(rows)
    table["p_bonferroni"], table["p_holm"] = bonferroni(table["p"]), holm(table["p"])
    table["significant"] = table["p_holm"] < LEVEL
    table["mark"] = np.where(table["p_bonferroni"] < LEVEL, "*", "")
    return table


def over_seeds(values: ArrayLike) -> dict[str, float]:
    """The mean of values (n_seeds, n_users), and how far users and seeds each leave it uncertain.

    "user error" is the standard error of the mean over users, each averaged over seeds first: what
    other test users would change. "seed deviation" is the standard deviation of the seeds' means:
    what another training would change. Either may be small where the other is large. Also
    "seeds" and "users", how many of each.
    """
    values = _per_seed(values)
    n_seeds, n_users = values.shape
    return {
        "mean": float(values.mean()),
        "user error": float(values.mean(axis=0).std(ddof=1) / np.sqrt(n_users)),
        "seed deviation": float(values.mean(axis=1).std(ddof=1)),
        "seeds": n_seeds,
        "users": n_users,
    }


def compare_seeds(a: ArrayLike, b: ArrayLike) -> pd.DataFrame:
    """Two systems with several seeds each, (n_seeds, n_users): two questions, one row each.

    "users": would these trained models differ on other users? Paired t-test of each user's values,
    averaged over seeds. "seeds": would another training differ, on these users? Welch's t-test of
    the seeds' means; unpaired, as a seed has nothing in common between two systems. A claim about
    the systems needs both. Columns: question, sample (its size; of unequal numbers of seeds the
    smaller), difference (a − b), statistic, p.
    """
    a, b = _per_seed(a), _per_seed(b)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"Two systems are compared over the same users, not over arrays of shapes {a.shape} and "
            f"{b.shape}."
        )
    n_seeds, n_users = min(len(a), len(b)), a.shape[1]
    users, seeds = _paired(a.mean(axis=0), b.mean(axis=0)), _welch(a.mean(axis=1), b.mean(axis=1))
    rows = {
        "users": ("would these models differ on other users?", n_users, *users),
        "seeds": ("would another training differ?", n_seeds, *seeds),
    }
    columns = ["question", "sample", "difference", "statistic", "p"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    if a.shape != b.shape or len(a) < 2:
        raise InputError(f"A paired test needs the same users, 2 or more, not {len(a)}, {len(b)}.")
    return _told((a - b).mean(), stats.ttest_rel, a, b)


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    return _told(a.mean() - b.mean(), partial(stats.ttest_ind, equal_var=False), a, b)


def _told(
    mean: float, test: Callable[..., Any], a: np.ndarray, b: np.ndarray
) -> tuple[float, float, float]:
    """(mean, t, two-sided p). Without any spread t is 0 or infinite, and p 1 or 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are nearly the same
        found = test(a, b)
    if np.isnan(found.statistic):  # 0 / 0
        return float(mean), 0.0, 1.0
    return float(mean), float(found.statistic), float(found.pvalue)


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


def _per_system(values: ArrayLike) -> np.ndarray:
    """(n_users,) or (n_seeds, n_users) -> (n_seeds, n_users)."""
    values = np.asarray(values, float)
    if values.ndim != 2:
        return _per_user(values)[None]
    if not values.size or np.isnan(values).any():
        raise InputError(
            f"Values of several seeds must be one number for each seed and user, not an array of "
            f"shape {values.shape} or with NaN."
        )
    return values


def _per_seed(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 2 or min(values.shape) < 2 or np.isnan(values).any():
        raise InputError(
            f"Values over seeds must be one number for each of 2 seeds or more and 2 users or "
            f"more, (n_seeds, n_users), not an array of shape {values.shape} or with NaN."
        )
    return values


def _p_values(p: ArrayLike) -> np.ndarray:
    p = np.asarray(p, float)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise InputError("p-values must be one number from 0 to 1 for each test.")
    return p
