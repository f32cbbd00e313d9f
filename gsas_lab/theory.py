"""Closed forms: what a sampled loss converges to, its inverse, and the memory of a full loss.

The equations are those of Petrov & Macdonald (RecSys 2023). Every function works element by
element on numbers or arrays, in float64, and needs no torch. Probabilities and scores have no unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from gsas_lab.errors import InputError

Floats: TypeAlias = Any  # np.float64 where every argument is a number, otherwise an array
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def alpha(k: ArrayLike, n_items: ArrayLike, never_drawn: ArrayLike = 1) -> Floats:
    """Sampling rate α = k / (n_items − never_drawn): how often an item is drawn for one positive.

    never_drawn: items that cannot be negatives. 1: the positive, Theorem 5.1 and Eq. (23); 0: none,
    draws from the whole catalogue; 1 + h: the positive and the h items of a history.
    """
    k, n_items = np.asarray(k, float), np.asarray(n_items, float)
    if not np.all((k >= 1) & (k < n_items)):
        raise InputError(f"k must lie between 1 and n_items - 1, not k = {k} of {n_items} items.")
    drawn = n_items - np.asarray(never_drawn, float)
    _check("n_items - never_drawn", drawn, (drawn >= 1) & (drawn <= n_items), "be 1 to n_items")
    return k / drawn


def beta_from_t(t: ArrayLike, alpha: ArrayLike) -> Floats:
    """Power β = 1 − t (1 − α), Eq. (27): t = 0 is BCE, t = 1 gives β = α.

    Written (1 − t) + t α, which is exact in floating point at both ends.
    """
    t, alpha = _share("t", t), _share("alpha", _positive("alpha", alpha))
    return (1 - t) + t * alpha


def converged_probability(
    prior: ArrayLike, alpha: ArrayLike, beta: ArrayLike, collisions: bool = False
) -> Floats:
    """σ(s) = βP / (α − αP + βP), Theorem 5.1, Eq. (10).

    The probability that a model trained to convergence predicts for an item of true probability
    `prior` = P(i); negatives drawn with replacement, never the positive. Values from 0 to 1.
    β = α returns the prior, Eq. (20); β = 1 is plain BCE, Eq. (21); with α = 1 / (n_items − 1) as
    well it is SASRec, Eq. (22).

    For a proposal q that is not uniform, alpha is k·q(i), item by item. With `collisions`, where
    the positive may be drawn as its own negative, the fixed point is βP / (α + βP).
    Both are the minimum of `expected_loss`. A non-uniform proposal that redraws collisions has a q
    that depends on the positive; the first form is then an approximation.
    """
    prior, alpha, beta = _share("prior", prior), _positive("alpha", alpha), _positive("beta", beta)
    return beta * prior / (alpha * (1.0 if collisions else 1 - prior) + beta * prior)


def prior_from_probability(
    prob: ArrayLike, alpha: ArrayLike, beta: ArrayLike, collisions: bool = False
) -> Floats:
    """P(i) = αp / (β(1 − p) + αp), the exact inverse of Eq. (10).

    With `collisions` αp / (β(1 − p)), which exceeds 1 where no P could have led to p. Near p = 1
    the rounding of `prob` itself costs digits, all of them in float32: there, start from the score
    with `prior_from_logit`.
    """
    prob, alpha, beta = _share("prob", prob), _positive("alpha", alpha), _positive("beta", beta)
    with np.errstate(divide="ignore"):
        return alpha * prob / (beta * (1 - prob) + (0.0 if collisions else alpha * prob))


def logit_offset(alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """log(β/α): by how much Eq. (10) raises every item's logit, whatever its prior.

    With collisions it is what logit σ has over log P instead of over logit P.
    """
    return np.log(_positive("beta", beta)) - np.log(_positive("alpha", alpha))


def converged_logit(
    prior: ArrayLike, alpha: ArrayLike, beta: ArrayLike, collisions: bool = False
) -> Floats:
    """logit σ(s) = logit P + log(β/α): Eq. (10) as a score; −inf at P = 0, +inf at P = 1."""
    prior = _share("prior", prior)
    with np.errstate(divide="ignore"):
        raised = np.log(prior) - (0.0 if collisions else np.log1p(-prior))
        return raised + logit_offset(alpha, beta)


def prior_from_logit(
    logit: ArrayLike, alpha: ArrayLike, beta: ArrayLike, collisions: bool = False
) -> Floats:
    """P(i) = σ(logit − log(β/α)), the inverse of `converged_logit`, for any score.

    With `collisions` e^(logit − log(β/α)), which exceeds 1 where no P could have led to the score.
    """
    shifted = np.asarray(logit, float) - logit_offset(alpha, beta)
    if collisions:
        with np.errstate(over="ignore"):
            return np.exp(shifted)
    small = np.exp(-np.abs(shifted))  # never above 1: no overflow at either end
    return np.where(shifted >= 0, 1.0, small) / (1 + small)


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """Where training with drawn negatives ends: Theorem 5.1 as one object, and beyond gBCE.

    An item of true probability P is pulled up P times with the slope −∂L/∂s⁺ of its score and pushed
    down α(1 − P) times with ∂L/∂s⁻, or α times with `collisions`; it rests where both are equal.
    For gBCE the slopes' ratio is β e^−s, and Eq. (10) follows.
    """

    alpha: Any  # how often an item is drawn for one positive: of every item, or item by item
    pull: float | Callable[[np.ndarray], np.ndarray]  # β, or s -> log(−∂L/∂s⁺ ÷ ∂L/∂s⁻)
    collisions: bool = False  # is the positive drawn as its own negative?

    @property
    def offset(self) -> float | None:
        """log(β/α), by which every logit is too high (log P, with collisions); None where it is not
        one number.
        """
        if callable(self.pull) or np.ndim(self.alpha):
            return None
        return float(logit_offset(self.alpha, self.pull))

    def prior(self, logit: ArrayLike) -> Floats:
        """P that a converged score tells; with collisions above 1 where none could have led to it."""
        if not callable(self.pull):
            return prior_from_logit(logit, self.alpha, self.pull, self.collisions)
        raised = -self.pull(np.asarray(logit, float))  # as the score s itself in gBCE with β = 1
        return prior_from_logit(raised, self.alpha, 1.0, self.collisions)

    def logit(self, prior: ArrayLike) -> Floats:
        """The score at which an item of true probability `prior` rests; ±60 at most for an own loss."""
        if not callable(self.pull):
            return converged_logit(prior, self.alpha, self.pull, self.collisions)
        wanted = converged_logit(prior, self.alpha, 1.0, self.collisions)
        low, high = np.full(np.shape(wanted), -60.0), np.full(np.shape(wanted), 60.0)
        for _ in range(60):  # halvings: 120 · 2⁻⁶⁰
            middle = (low + high) / 2
            below = -self.pull(middle) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return ((low + high) / 2)[()]

    def probability(self, prior: ArrayLike) -> Floats:
        """σ(s) there: Eq. (10)."""
        if not callable(self.pull):
            return converged_probability(prior, self.alpha, self.pull, self.collisions)
        return prior_from_logit(self.logit(prior), 1.0, 1.0)

    def forecast_sum(self, prior: ArrayLike) -> Floats:
        """Σσ(s) of a catalogue, (..., n_items) -> (...): see `forecast_sum`."""
        return self.probability(prior).sum(axis=-1)


def expected_loss(
    score: ArrayLike,
    prior: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike,
    collisions: bool = False,
) -> Floats:
    """E[L_i] = −(βP log σ(s) + α(1 − P) log(1 − σ(s))), Eq. (16): one item's share of gBCE, nats.

    The item is the positive with probability P; a negative, α times on average, unless it is the
    positive. With `collisions` it is drawn whether it is the positive or not: α in place of
    α(1 − P). The loss of a position is the sum over items, divided by k + 1, Eq. (19).
    """
    score, prior = np.asarray(score, float), _share("prior", prior)
    alpha, beta = _positive("alpha", alpha), _positive("beta", beta)
    pull, push = np.logaddexp(0, -score), np.logaddexp(0, score)
    return beta * prior * pull + alpha * (1.0 if collisions else 1 - prior) * push


def least_loss_score(
    prior: ArrayLike, alpha: ArrayLike, beta: ArrayLike, collisions: bool = False
) -> Floats:
    """The score with the least `expected_loss`, Eq. (11), found by search alone, to about 1e-6.

    Golden-section search over −40…40, which knows nothing of Theorem 5.1: it is here to check it.
    """
    prior, alpha, beta = np.broadcast_arrays(*map(np.asarray, (prior, alpha, beta)))
    low, high = np.full(prior.shape, -40.0), np.full(prior.shape, 40.0)
    golden = (5**0.5 - 1) / 2
    for _ in range(90):  # each halving keeps 0.618 of the interval: 80 · 0.618⁹⁰ < 1e-16
        left, right = high - golden * (high - low), low + golden * (high - low)
        falls = expected_loss(left, prior, alpha, beta, collisions) > expected_loss(
            right, prior, alpha, beta, collisions
        )
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    return ((low + high) / 2)[()]


def zipf(n_items: int, exponent: float = 1.0) -> np.ndarray:
    """Shares proportional to rank^−exponent, most popular first, (n_items,); they sum to 1."""
    if n_items < 1 or not 0 <= exponent < np.inf:
        raise InputError(
            f"n_items must be 1 or more and exponent 0 or more, not {n_items} and {exponent}."
        )
    shares = np.arange(1, n_items + 1) ** -float(exponent)
    return shares / shares.sum()


def forecast_sum(
    prior: ArrayLike, alpha: ArrayLike, beta: ArrayLike, collisions: bool = False
) -> Floats:
    """Σσ(s) that Theorem 5.1 predicts for a catalogue, (..., n_items) -> (...): before training.

    prior: one user's P(i), which a known-truth world gives; or the popularity shares, for a
    *ceiling* on the mean over users: Eq. (10) is concave in P where β > α, and a user's P is more
    peaked than the popularity that it averages to (Jensen).
    """
    return converged_probability(prior, alpha, beta, collisions).sum(axis=-1)


def positive_transform(score: ArrayLike, beta: ArrayLike) -> Floats:
    """γ(s) = log(1 / (σ(s)^−β − 1)), Eq. (25): gBCE(s⁺, s⁻) = BCE(γ(s⁺), s⁻), Theorem 5.2.

    With u = −β log σ(s) this is −log(eᵘ − 1), computed as −u − log(1 − e⁻ᵘ) so that no power
    overflows. Far right it becomes s − log β, equal to float64's last digit from s = 40.
    """
    score, beta = np.asarray(score, float), _positive("beta", beta)
    u = beta * np.logaddexp(0, -np.minimum(score, 40))
    return np.where(score < 40, -u - np.log(-np.expm1(-u)), score - np.log(beta))[()]


def logits_bytes(
    batch: int, length: int, n_items: int, dtype: str = "float32", gradients: bool = False
) -> int:
    """Bytes of the scores (batch, length, n_items) that a full loss builds; twice with gradients.

    The introduction's example, 64 × 200 × 1,000,000 in float32, takes 51.2e9 bytes.
    """
    if dtype not in BYTES:
        raise InputError(f"dtype must be one of {', '.join(BYTES)}, not {dtype!r}.")
    if min(batch, length, n_items) < 1:
        raise InputError(
            f"batch, length and n_items must be 1 or more, not {batch}, {length}, {n_items}."
        )
    return batch * length * n_items * BYTES[dtype] * (2 if gradients else 1)


def _share(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    _check(name, values, (values >= 0) & (values <= 1), "lie between 0 and 1")
    return values


def _positive(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    _check(name, values, (values > 0) & np.isfinite(values), "be above 0 and finite")
    return values


def _check(name: str, values: np.ndarray, good: Any, rule: str) -> None:
    if not np.all(good):  # NaN compares false, so it is caught as well
        raise InputError(f"{name} must {rule}, not {values[~np.asarray(good)].flat[0]}.")
