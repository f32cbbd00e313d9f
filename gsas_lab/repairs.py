"""Repairs: scores in, probabilities out, fitted after training on validation users only.

Where Theorem 5.1 holds nothing need be fitted: `theory.FixedPoint.prior` is its inverse.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from gsas_lab.calibration import brier, check_weight, expected_calibration_error, log_loss
from gsas_lab.errors import InputError

Recalibration: TypeAlias = Callable[[ArrayLike], np.ndarray]  # scores -> probabilities, same shape


@dataclass(frozen=True)
class Logistic:
    """σ(slope · s + shift)."""

    slope: float
    shift: float = 0.0

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        return expit(self.slope * np.asarray(scores, float) + self.shift)


def temperature(scores: ArrayLike, hit: ArrayLike) -> Logistic:
    """σ(s / T) with the T of least log loss on these pairs (Guo et al., 2017).

    InputError where no T is the best: all scores 0, or hits above 0 and the others below.
    """
    s, hits = _scored(scores, hit)
    if (spread := np.abs(s).max()) == 0:
        raise InputError("The temperature is not identifiable, because all scores are 0.")
    if not ((s[hits] < 0).any() or (s[~hits] > 0).any()):
        raise InputError(
            "The temperature is not identifiable, because the scores' signs are the hits."
        )
    (slope,) = _logistic((s / spread)[None], hits, np.zeros(1), np.ones(1))
    return Logistic(float(slope / spread))


def platt(scores: ArrayLike, hit: ArrayLike, weight: ArrayLike | None = None) -> Logistic:
    """σ(a·s + b) with the a and b of least log loss on these pairs (Platt, 1999).

    weight (n,), above 0: each pair counts so often. InputError where no a is the best: all scores
    equal, or a threshold that parts hits from the others, so that a steeper line is always better.
    """
    s, hits = _scored(scores, hit)
    mass = np.ones(1) if weight is None else check_weight(weight, s.shape)
    lowest, highest = s.min(), s.max()
    if lowest == highest:
        raise InputError("The slope is not identifiable, because all scores are equal.")
    if s[hits].min() >= s[~hits].max() or s[hits].max() <= s[~hits].min():
        raise InputError(
            "The slope is not identifiable, because a threshold parts hits from the rest."
        )
    middle = s.mean()
    spread = np.abs(s - middle).mean()
    x = np.stack([(s - middle) / spread, np.ones_like(s)])
    share = (mass * hits).sum() / (mass * np.ones_like(s)).sum()
    slope, shift = _logistic(x, hits, np.array([0.0, logit(share)]), mass)
    return Logistic(float(slope / spread), float(shift - slope * (middle / spread)))


def isotonic(scores: ArrayLike, hit: ArrayLike) -> Recalibration:
    """The non-decreasing steps of least squared error on these pairs (Zadrozny & Elkan, 2002).

    Between two steps it is linear, beyond the ends constant: scores may become equal.
    """
    s, hits = _scored(scores, hit)
    s, place, count = np.unique(s, return_inverse=True, return_counts=True)
    share = np.bincount(place, weights=hits) / count
    steps = isotonic_regression(share, weights=count).x
    flat = np.diff(steps) == 0  # of a flat stretch its two ends are enough
    keep = ~(np.append(False, flat) & np.append(flat, False))
    return lambda new: np.interp(np.asarray(new, float), s[keep], steps[keep])


def compare(
    recalibrations: Mapping[str, Recalibration],
    scores: ArrayLike,
    hit: ArrayLike,
    candidates: ArrayLike | None = None,
    top: int = 10,
) -> pd.DataFrame:
    """One row for each recalibration of the same scores: (users, n_items), one hit a user.

    candidates (users, n_items): which items may be recommended; all if None. Only these count.
    Columns: ece, brier, log_loss over all candidates; sum, the mean Σp of a user; ece_top and
    predicted_top over the first `top` items, with observed_top beside them; moved, how many targets
    stand at another place when p is sorted instead of s (equal values count against the target).
    """
    s, hits = np.asarray(scores, float), np.asarray(hit, bool)
    if s.ndim != 2 or hits.shape != s.shape or not (hits.sum(axis=1) == 1).all():
        raise InputError("compare needs scores (users, n_items) and one hit in each row.")
    may = np.ones_like(hits) if candidates is None else np.asarray(candidates, bool)
    ranked = np.where(may, s, -np.inf)
    first = np.argsort(-ranked, axis=1, kind="stable")[:, :top]
    first_hits = np.take_along_axis(hits, first, axis=1)
    rows = {}
    for name, recalibrate in recalibrations.items():
        prob = np.where(may, recalibrate(s), 0.0)
        best = np.take_along_axis(prob, first, axis=1)
        ahead = prob >= prob[hits][:, None], ranked >= s[hits][:, None]
        rows[name] = {
            "ece": expected_calibration_error(prob[may], hits[may]),
            "brier": brier(prob[may], hits[may]),
            "log_loss": log_loss(prob[may], hits[may]),
            "sum": prob.sum(axis=1).mean(),
            "ece_top": expected_calibration_error(best, first_hits),
            "predicted_top": best.mean(),
            "observed_top": first_hits.mean(),
            "moved": int(((ahead[0] & may).sum(1) != (ahead[1] & may).sum(1)).sum()),
        }
    return pd.DataFrame(rows).T


def _scored(scores: ArrayLike, hit: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    s, hits = np.asarray(scores, float).ravel(), np.asarray(hit, bool).ravel()
    if s.shape != hits.shape or not np.isfinite(s).all():
        raise InputError("A fit needs one finite score for each hit or miss.")
    if not 0 < hits.sum() < len(hits):
        raise InputError("A fit needs hits and misses: these pairs hold only one of them.")
    return s, hits


def _logistic(x: np.ndarray, hit: np.ndarray, weights: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The w with the least log loss of σ(w @ x), x (1 or 2, n) of about unit size, from `weights`
    on by damped Newton steps; mass (n,) or (1,): what each pair counts.
    """
    signed = np.where(hit, -1.0, 1.0)
    loss = (mass * np.logaddexp(0, signed * (weights @ x))).sum()
    for _ in range(100):
        p = expit(weights @ x)
        gradient = x @ (mass * (p - hit))
        curvature = (x * (mass * p * (1 - p))) @ x.T
        step = np.linalg.lstsq(curvature, gradient)[0]
        for _ in range(60):  # Newton's step overshoots where σ is flat: halve it until it helps
            with np.errstate(over="ignore", invalid="ignore"):
                new = (mass * np.logaddexp(0, signed * ((weights - step) @ x))).sum()
            if new <= loss:
                break
            step /= 2
        if not loss - new > 1e-12 * loss:
            break
        weights, loss = weights - step, new
    return weights
