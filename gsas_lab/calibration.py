"""Predicted probabilities against what happened: is "0.99" right 99 times in 100?

Two populations, and their numbers cannot be compared with each other:
- *all pairs*: every (user, item) pair of the catalogue, flat `prob` and `hit` of the same shape. A
  user has one hit among thousands of items, so nearly all probabilities are nearly 0 and the
  means are tiny, whatever the model;
- *top K*: the K items that each user's ranking puts first, where overconfidence is seen (Figure 2).
Functions on flat arrays take either; say beside the number which it was. A table of 20 million
pairs in float32 takes a few seconds.
"""

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from gsas_lab.errors import InputError, whole_number
from gsas_lab.theory import FixedPoint

_Z = 1.959963984540054  # the normal's 97.5 % point, for 95 % intervals


def precision_vs_predicted(
    prob: ArrayLike,
    target_rank: ArrayLike,
    point: FixedPoint | None = None,
) -> pd.DataFrame:
    """Mean Precision@K against mean predicted probability@K, K = 1 … Kmax: Figure 2. Top K.

    prob (U, Kmax): probabilities of each user's items by rank, highest first.
    target_rank (U,): the target's 1-based rank in the same ranking, any size.
    Columns: cutoff; precision, the mean over users of [rank <= K] / K; predicted, the mean over
    users and their first K items; theory, Eq. (10) of the precision, if its point is given.
    """
    prob, ranks = numbers("prob", prob), numbers("target_rank", target_rank)
    if prob.ndim != 2 or ranks.shape != prob.shape[:1] or not prob.size:
        raise InputError(
            f"prob must be (users, Kmax) with one target_rank for each user, "
            f"not {prob.shape} with {ranks.shape}."
        )
    _check_probabilities(prob)
    if not ranks.min() >= 1 or np.any(prob[:, 1:] > prob[:, :-1]) or np.any(ranks % 1):
        raise InputError(
            "Ranks are whole and count from 1, and each row of prob must start with its highest."
        )
    n_users, largest = prob.shape
    cutoff = np.arange(1, largest + 1)
    hits = np.bincount(np.minimum(ranks, largest + 1).astype(int), minlength=largest + 2)[
        1:-1
    ].cumsum()
    curve = pd.DataFrame(
        {
            "cutoff": cutoff,
            "precision": hits / n_users / cutoff,
            "predicted": prob.mean(axis=0, dtype=float).cumsum() / cutoff,
        }
    )
    if point is not None:
        curve["theory"] = point.probability(curve["precision"].to_numpy())
    return curve


def reliability_curve(
    prob: ArrayLike,
    hit: ArrayLike,
    bins: int = 20,
    weight: ArrayLike | None = None,
    equal_hits: bool = False,
) -> pd.DataFrame:
    """Mean predicted probability against the share of hits, in bins of equal mass, or equal hits.

    Bins hold equally many pairs, except that equal probabilities never part: a bin that would begin
    among equals begins with the first of them. Thousands of exact 1.0 are one point, and there may
    be fewer than `bins` rows. Columns: predicted, observed, count, low, high (Wilson 95 % interval
    of the observed share). Rows ascend. All pairs or top K.

    weight (n,), above 0: each pair counts so often, in the means and in a bin's mass, which is
    `count` then; the interval is that of (Σ weight)² / Σ weight² pairs (Kish's effective number).

    equal_hits: bins hold equally many hits instead, so that what few pairs say loudly has bins of its
    own; each but the first begins at a hit, which favours `observed` by about 1 in its hits.
    """
    prob, hit = check_pairs(prob, hit)
    bins = min(whole_number("bins", bins), len(prob))  # more would be empty
    if equal_hits and (weight is not None or not hit.any()):
        raise InputError("Bins of equal hits need a hit, and pairs without weights.")
    if weight is None:
        ordered = np.sort(prob)
        first = ordered[np.arange(bins) * len(ordered) // bins]
        if equal_hits:
            of_hits = np.sort(prob[hit])
            first = np.append(ordered[0], of_hits[np.arange(1, bins) * len(of_hits) // bins])
        starts = np.unique(np.searchsorted(ordered, first))
        count = pairs = np.diff(starts, append=len(ordered))
        predicted = np.add.reduceat(ordered, starts, dtype=float) / count
        of_hit = np.searchsorted(ordered[starts], prob[hit], side="right") - 1  # hits are few
        observed = np.bincount(of_hit, minlength=len(starts)) / count
    else:
        order = np.argsort(prob, kind="stable")
        mass = check_weight(weight, prob.shape)[order]
        ordered, hits = prob[order], hit[order]
        upto = np.cumsum(mass)
        place = np.searchsorted(upto, np.arange(bins) * (upto[-1] / bins), side="right")
        first = ordered[np.minimum(place, len(ordered) - 1)]
        starts = np.unique(np.searchsorted(ordered, first))
        count = np.add.reduceat(mass, starts)
        pairs = (count / mass.max()) ** 2 / np.add.reduceat((mass / mass.max()) ** 2, starts)
        predicted = np.add.reduceat(mass * ordered, starts) / count
        observed = np.minimum(np.add.reduceat(mass * hits, starts) / count, 1.0)  # rounding
    low, high = wilson(observed, pairs)
    return pd.DataFrame(
        {"predicted": predicted, "observed": observed, "count": count, "low": low, "high": high}
    )


def wilson(observed: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of shares observed in so many pairs: both roots p of
    (observed − p)² = z² p (1 − p) / pairs.
    """
    spread = _Z**2 / pairs
    high = observed + spread / 2 + np.sqrt(spread * (observed * (1 - observed) + spread / 4))
    high = np.minimum(high / (1 + spread), 1.0)  # rounding
    return observed**2 / (1 + spread) / high, high  # the roots' product: exactly 0 without a hit


def expected_calibration_error(
    prob: ArrayLike, hit: ArrayLike, bins: int = 20, weight: ArrayLike | None = None
) -> float:
    """ECE = Σ over bins of count / n · |observed − predicted|, equal-mass bins. Same population.

    weight as for `reliability_curve`. Sampling alone makes it positive: about
    Σ count / n · √(2 p (1 − p) / (π count)) when perfect.
    """
    return error_of(reliability_curve(prob, hit, bins, weight))


def error_of(curve: pd.DataFrame) -> float:
    """ECE of a `reliability_curve`."""
    gap = (curve["observed"] - curve["predicted"]).abs()
    return float((gap * curve["count"]).sum() / curve["count"].sum())


def brier(prob: ArrayLike, hit: ArrayLike) -> float:
    """Mean of (prob − hit)² over the pairs. All pairs or top K."""
    prob, hit = check_pairs(prob, hit)
    error = np.subtract(prob, hit, dtype=float)
    return float(error @ error / len(error))


def log_loss(prob: ArrayLike, hit: ArrayLike, scores: ArrayLike | None = None) -> float:
    """−mean of log prob for hits and log(1 − prob) for the others, in nats. All pairs or top K.

    With `scores`, where prob = σ(scores), it is log(1 + e^−s) and log(1 + e^s) and exact for any
    score. From `prob` alone nothing is clamped: a 1.0 that is no hit costs infinity.
    """
    prob, hit = check_pairs(prob, hit)
    if scores is None:
        with np.errstate(divide="ignore"):
            log_likelihood = np.where(hit, prob, np.subtract(1, prob, dtype=float))
            np.log(log_likelihood, out=log_likelihood)
        return 0.0 - float(log_likelihood.mean())
    logits = numbers("scores", scores).astype(float).ravel()  # a copy: turned into losses in place
    if logits.shape != prob.shape:
        raise InputError(f"scores must have the {len(prob)} pairs of prob, not {len(logits)}.")
    if np.isnan(logits).any():
        raise InputError(
            "scores must be numbers: the log loss is not defined, because some are NaN."
        )
    if not np.allclose(expit(logits), prob, rtol=0, atol=1e-3):
        raise InputError(
            "prob is not σ(scores): give the scores that these probabilities come from."
        )
    logits[hit] *= -1
    return float(np.logaddexp(0, logits, out=logits).mean())


def sum_of_probabilities(prob: ArrayLike) -> np.ndarray:
    """Σp over the whole catalogue for each user, (U,); 1 if they are probabilities of one choice.

    prob (U, n_items): without the padding column and without a seen filter.
    """
    prob = numbers("prob", prob)
    if prob.ndim != 2 or not prob.size:
        raise InputError(f"prob must be (users, n_items), not {prob.shape}.")
    _check_probabilities(prob)
    return prob.sum(axis=1, dtype=float)


def distance_to_truth(prob: ArrayLike, prior: ArrayLike) -> dict[str, float]:
    """Distance of predictions from the true P(i | history), where a world knows it. Any shape.

    max_abs and mean_abs of prob − prior; r2 = 1 − Σ(prob − prior)² / Σ(prior − mean prior)²,
    measured against the diagonal and not against a fitted line (NaN for a constant prior).
    """
    prob, prior = (
        numbers(name, values).astype(float, copy=False)
        for name, values in (("prob", prob), ("prior", prior))
    )
    if prob.shape != prior.shape or not prob.size:
        raise InputError(f"prob and prior must have one shape, not {prob.shape} and {prior.shape}.")
    if not (np.isfinite(prob).all() and np.isfinite(prior).all()):
        raise InputError(
            "prob and prior must be finite numbers: no distance is defined beside NaN."
        )
    error = np.abs(prob - prior)
    total = np.square(prior - prior.mean()).sum()
    r2 = 1 - np.square(error).sum() / total if np.ptp(prior) > 0 else np.nan
    return {"max_abs": float(error.max()), "mean_abs": float(error.mean()), "r2": float(r2)}


def summary(prob: ArrayLike, hit: ArrayLike, scores: ArrayLike | None = None) -> dict[str, float]:
    """One table row: ece (20 bins), brier, log_loss, mean_predicted, mean_observed."""
    flat, hits = check_pairs(prob, hit)
    return {
        "ece": expected_calibration_error(flat, hits),
        "brier": brier(flat, hits),
        "log_loss": log_loss(flat, hits, scores),
        "mean_predicted": float(flat.mean(dtype=float)),
        "mean_observed": float(hits.mean()),
    }


def check_weight(weight: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    mass = numbers("weight", weight).astype(float, copy=False).ravel()
    if mass.shape != shape or not (np.isfinite(mass) & (mass > 0)).all():
        raise InputError("weight must be a finite number above 0 for each pair.")
    return mass


def check_pairs(prob: ArrayLike, hit: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    prob, hit = numbers("prob", prob), check_hits(hit)
    if prob.shape != hit.shape or not prob.size:
        raise InputError(f"prob and hit must have one shape, not {prob.shape} and {hit.shape}.")
    _check_probabilities(prob)
    return prob.ravel(), hit.ravel()


def check_hits(hit: ArrayLike, name: str = "hit") -> np.ndarray:
    """As bool, of the same shape; InputError for what is neither True nor False, 1 nor 0."""
    found = numbers(name, hit)
    if found.dtype != bool and not np.all((found == 0) | (found == 1)):
        raise InputError(
            f"{name} must be True or False (1 or 0) for each pair; ranks do not fit here."
        )
    return found.astype(bool, copy=False)


def numbers(name: str, values: ArrayLike) -> np.ndarray:
    """As an array of real numbers or True and False; InputError for text, for objects that are none,
    for lists of several lengths, and where a mask or a missing value hides one.
    """
    try:
        found = np.asarray(values)
        if found.dtype.kind == "O":
            found = found.astype(float)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"{name} is no array of numbers of one shape ({reason}).") from None
    if found.dtype.kind not in "biuf" or np.ma.is_masked(values):
        told = "with masked entries" if found.dtype.kind in "biuf" else f"of {found.dtype}"
        raise InputError(f"{name} must be an array of real numbers, not one {told}.")
    return found.astype(np.float32) if name == "prob" and found.dtype == bool else found


def factorized(name: str, values: ArrayLike) -> tuple[np.ndarray, list]:
    """Labels of any shape -> a code for each, −1 where it is missing, and the different labels.

    InputError for what is no label, such as a list, and for rows of several lengths.
    """
    try:
        found = np.asarray(values)
        if found.dtype.kind in "US" and not hasattr(values, "dtype"):
            found = np.asarray(values, object)  # else what is missing becomes the text "nan"
        code, different = pd.factorize(found.ravel())
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{name} must hold a name or a number for each pair, in one shape ({error})."
        ) from None
    return code.reshape(found.shape), list(different)


def in_order(code: np.ndarray, names: list) -> tuple[np.ndarray, list]:
    """The same with the names in the order of their words and of the numbers in them."""
    places = sorted(range(len(names)), key=lambda at: _natural(names[at]))
    new = np.full(len(names) + 1, -1, np.int32)  # the last is what code −1, missing, stays
    new[places] = np.arange(len(names))
    return new[code], [names[at] for at in places]


def _natural(label: Any) -> list[str | float]:
    """A key for sorting: the label's words and numbers, in turn."""
    words = re.split(r"((?:(?<!\w)-)?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(label))
    return [float(word) if at % 2 else word for at, word in enumerate(words)]


def _check_probabilities(prob: np.ndarray) -> None:
    low, high = prob.min(), prob.max()
    if not 0 <= low <= high <= 1:  # NaN compares false, so it is caught as well
        raise InputError(f"prob must lie between 0 and 1, not between {low} and {high}; pass σ(s).")


def by_prior(
    prior: ArrayLike, prob: ArrayLike, point: FixedPoint, fewest: int = 200
) -> pd.DataFrame:
    """Learned σ(s) beside Theorem 5.1's in bins of the true P, ten a decade. Any shape; all pairs.

    Columns: prior, theory (Eq. (10)) and predicted, each the mean of a bin, and pairs. Rows ascend;
    bins with fewer than `fewest` pairs are left out, and so are pairs with P = 0.
    """
    prior = np.asarray(prior, float)
    parts = {"prior": prior, "theory": point.probability(prior), "predicted": prob}
    return _by_decade(prior, parts, fewest)


def by_told(
    prior: ArrayLike, prob: ArrayLike, point: FixedPoint, fewest: int = 200
) -> pd.DataFrame:
    """`by_prior` in bins of the P that σ(s) tells; theory is Eq. (10) of a bin's mean true P.

    Theorem 5.1 speaks of the P that a model's inputs and its training leave. Where they leave less
    than the truth, as of an item that was seen twice, σ(s) is the same for pairs whose true P differ:
    `by_prior` has a gap then, whatever is done, and here there is none.
    """
    prob = np.asarray(prob, float)
    bins = _by_decade(point.prior(logit(prob)), {"prior": prior, "predicted": prob}, fewest)
    bins.insert(1, "theory", point.probability(bins["prior"].to_numpy()))
    return bins


def _by_decade(value: np.ndarray, parts: dict[str, ArrayLike], fewest: int) -> pd.DataFrame:
    """Means of the parts in bins of a value, ten a decade, and pairs: how many a bin has."""
    can = (value > 0) & np.isfinite(value)  # 0 has no decade
    place = np.floor(10 * np.log10(value[can])).astype(int)
    place -= place.min(initial=0)
    count = np.bincount(place)
    enough = count >= fewest
    means = {
        name: np.bincount(place, weights=np.asarray(values, float)[can])[enough] / count[enough]
        for name, values in parts.items()
    }
    return pd.DataFrame(means | {"pairs": count[enough]})


def deviation_from_theory(
    prior: ArrayLike,
    prob: ArrayLike,
    point: FixedPoint,
    fewest: int = 200,
) -> dict[str, float]:
    """Learned σ(s) against Theorem 5.1's curve over the true P: (users, n_items), all pairs.

    max_binned: largest |mean learned − mean of Eq. (10)| of `by_prior`'s bins: single predictions
    scatter, their mean must not; NaN where there is no such bin. max_item: the same over the items,
    each a mean over users. Also r2, mean_abs and max_abs of single pairs against the curve
    (`distance_to_truth`).
    """
    theory = point.probability(np.asarray(prior))
    single = distance_to_truth(prob, theory)
    gaps = np.asarray(prob, float) - theory  # (users, n_items)
    bins = by_prior(prior, prob, point, fewest)
    return {
        "max_binned": float((bins["predicted"] - bins["theory"]).abs().max()),
        "max_item": float(np.abs(gaps.mean(axis=0)).max()),
        **single,
    }
