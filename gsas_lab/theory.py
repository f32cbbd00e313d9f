"""Closed forms: what a sampled loss converges to, its inverse, and the memory of a full loss.

The equations are those of Petrov & Macdonald (RecSys 2023). Every function works element by
element on numbers or arrays, in float64, and needs no torch. Probabilities and scores have no unit.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from gsas_lab.errors import InputError

Floats: TypeAlias = Any  # np.float64 where every argument is a number, otherwise an array
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def alpha(k: ArrayLike, n_items: ArrayLike) -> Floats:
    """Sampling rate α = k / (n_items - 1), the share of the negatives drawn; Theorem 5.1."""
    k, n_items = np.asarray(k, float), np.asarray(n_items, float)
    if not np.all((k >= 1) & (k < n_items)):
        raise InputError(f"k must lie between 1 and n_items - 1, not k = {k} of {n_items} items.")
    return k / (n_items - 1)


def beta_from_t(t: ArrayLike, alpha: ArrayLike) -> Floats:
    """Power β = 1 − t (1 − α), Eq. (27): t = 0 is BCE, t = 1 gives β = α.

    Written (1 − t) + t α, which is exact in floating point at both ends.
    """
    t, alpha = _share("t", t), _share("alpha", _positive("alpha", alpha))
    return (1 - t) + t * alpha


def converged_probability(prior: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """σ(s) = βP / (α − αP + βP), Theorem 5.1, Eq. (10).

    The probability that a model trained to convergence predicts for an item of true probability
    `prior` = P(i); negatives drawn uniformly, with replacement, never the positive. Values from 0
    to 1. β = α returns the prior, Eq. (20); β = 1 is plain BCE, Eq. (21).
    """
    prior, alpha, beta = _share("prior", prior), _positive("alpha", alpha), _positive("beta", beta)
    return beta * prior / (alpha * (1 - prior) + beta * prior)


def prior_from_probability(prob: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """P(i) = αp / (β(1 − p) + αp), the exact inverse of Eq. (10).

    Near p = 1 the rounding of `prob` itself costs digits, all of them in float32: there, start
    from the score with `prior_from_logit`.
    """
    prob, alpha, beta = _share("prob", prob), _positive("alpha", alpha), _positive("beta", beta)
    return alpha * prob / (beta * (1 - prob) + alpha * prob)


def logit_offset(alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """log(β/α): by how much Eq. (10) raises every item's logit, whatever its prior."""
    return np.log(_positive("beta", beta)) - np.log(_positive("alpha", alpha))


def converged_logit(prior: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """logit σ(s) = logit P + log(β/α): Eq. (10) as a score; −inf at P = 0, +inf at P = 1."""
    prior = _share("prior", prior)
    with np.errstate(divide="ignore"):
        return np.log(prior) - np.log1p(-prior) + logit_offset(alpha, beta)


def prior_from_logit(logit: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Floats:
    """P(i) = σ(logit − log(β/α)), the inverse of `converged_logit`, for any score."""
    shifted = np.asarray(logit, float) - logit_offset(alpha, beta)
    small = np.exp(-np.abs(shifted))  # never above 1: no overflow at either end
    return np.where(shifted >= 0, 1.0, small) / (1 + small)


def converged_probability_of_proposal(
    prior: ArrayLike, k: ArrayLike, q: ArrayLike, beta: ArrayLike, collisions: bool
) -> Floats:
    """Theorem 5.1 for k negatives drawn from a proposal; `q` = chance that one draw is the item.

    Without collisions (the positive is never drawn as its own negative)
        σ(s) = βP / (βP + k·q·(1 − P)),   q given that another item is the positive;
    with collisions
        σ(s) = βP / (βP + k·q).
    The paper's case is q = 1 / (n_items - 1) without, the public code's q = 1 / n_items with
    collisions. Both are the minimum of the expected loss: item i is the positive with weight
    βP, and a negative with weight k·q times the chance that it may be drawn at all.
    A non-uniform proposal that redraws collisions has a q that depends on the positive; the first
    form is then an approximation.
    """
    prior, beta = _share("prior", prior), _positive("beta", beta)
    k, q = np.asarray(k, float), _share("q", _positive("q", q))
    _check("k", k, k >= 1, "be 1 or more")
    return beta * prior / (beta * prior + k * q * (1.0 if collisions else 1 - prior))


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
