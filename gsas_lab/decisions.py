"""Probabilities -> decisions with a cost: what was promised, what came, what the best could earn.

prob, hit and prior are (users, n_items): p̂, 0 where an item may not be recommended; True where the
target is; and the true P, where a world knows it. Money is in the unit of `value`, what a hit earns,
and `cost`, what showing an item costs, and is the mean over users.

Showing an item earns P·value − cost on average, so it is worth it where P > cost / value. Who puts
p̂ in the place of P, without a repair, takes every promise for money.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gsas_lab.calibration import check_hits, check_pairs, factorized, numbers
from gsas_lab.errors import InputError, whole_number

_Z = 1.959963984540054
_STEPS = 200  # rows of a ladder


def best(prob: ArrayLike, *others: ArrayLike) -> tuple[np.ndarray, ...]:
    """Each user's most probable item: its prob, and what the others have there, (users, 1) each."""
    p = _matrix("prob", prob)
    rest = [_same_shape("each of the others", numbers("others", each), p) for each in others]
    place = p.argmax(axis=1)[:, None]
    return tuple(np.take_along_axis(each, place, axis=1) for each in (p, *rest))


def notify(
    prob: ArrayLike, hit: ArrayLike, value: float, cost: float, prior: ArrayLike | None = None
) -> pd.Series:
    """Notify a user of its most probable item where p̂ · value > cost, else not at all.

    notified, share of users; promised, what p̂ says that it earns; realised, what it earned, with low
    and high, its 95 % interval over users; with the prior also expected, what it earns on average,
    and regret, how much more somebody who knows P would: Σ max(P·value − cost, 0) − expected.
    """
    _prices(value, cost)
    priors = [] if prior is None else [_matrix("prior", prior)]
    p, came, *true = best(prob, check_hits(hit), *priors)
    act = p * value > cost
    earned = np.where(act, came * value - cost, 0.0)
    mean, low, high = _over_users(earned)
    told = {
        "notified": act.mean(),
        "promised": np.where(act, p * value - cost, 0.0).mean(),
        "realised": mean,
        "low": low,
        "high": high,
    }
    if prior is not None:
        told["expected"] = np.where(act, true[0] * value - cost, 0.0).mean()
        most = priors[0].max(axis=1) * value - cost
        told["regret"] = np.maximum(most, 0.0).mean() - told["expected"]
    return pd.Series(told)


def by_cost(
    prob: ArrayLike,
    hit: ArrayLike,
    value: float,
    costs: ArrayLike,
    prior: ArrayLike | None = None,
) -> pd.DataFrame:
    """`notify` at each of the costs: a row each, the cost first."""
    each = np.atleast_1d(numbers("costs", costs)).astype(float)
    if each.ndim > 1 or not each.size:
        raise InputError(f"costs must be a list of amounts, not {each.shape}.")
    rows = [notify(prob, hit, value, float(cost), prior) for cost in each]
    return pd.DataFrame(rows).assign(cost=each).reset_index(drop=True)


def ladder(
    prob: ArrayLike, hit: ArrayLike, prior: ArrayLike | None = None, steps: int = _STEPS
) -> pd.DataFrame:
    """What is shown, said and hit where all items with p̂ ≥ threshold are shown, means over users.

    Rows from the highest threshold on, `steps` at most, equal p̂ never apart: threshold, shown (items),
    predicted (Σp of them), hits, and with the prior true (ΣP). Of matrices of any width, as `best`'s.
    """
    p, steps = _matrix("prob", prob), whole_number("steps", steps)
    hits = _same_shape("hit", check_hits(hit), p)
    true = None if prior is None else _same_shape("prior", _matrix("prior", prior), p)
    order = np.argsort(-p, axis=None, kind="stable")
    sorted_p = p.ravel()[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_p)), len(order) - 1)  # of equal p̂
    ends = ends[sorted_p[ends] > 0]
    wanted = np.unique(np.geomspace(1, max(len(ends), 1), steps).round().astype(int)) - 1
    ends = ends[wanted[wanted < len(ends)]]
    users = len(p)
    columns = {
        "threshold": sorted_p[ends],
        "shown": (ends + 1) / users,
        "predicted": np.cumsum(sorted_p)[ends] / users,
        "hits": np.cumsum(hits.ravel()[order])[ends] / users,
    }
    if true is not None:
        columns["true"] = np.cumsum(true.ravel()[order])[ends] / users
    return pd.DataFrame(columns)


def profit(rungs: pd.DataFrame, value: float, cost: float) -> pd.DataFrame:
    """A `ladder` with what each threshold promises and earns: promised, realised, and expected where
    the truth is known, means over users.
    """
    _prices(value, cost)
    spent = cost * rungs["shown"]
    named = {"promised": "predicted", "realised": "hits", "expected": "true"}
    return rungs.assign(
        **{name: value * rungs[of] - spent for name, of in named.items() if of in rungs}
    )


def slate(
    prob: ArrayLike, hit: ArrayLike, prior: ArrayLike | None = None, size: int = 10
) -> pd.Series:
    """Hits of each user's `size` most probable items: predicted (Σp), realised with low and high (its
    95 % interval over users), and with the prior expected (ΣP of them) and most, the best slate's.
    """
    p, size = _matrix("prob", prob), whole_number("size", size)
    hits = _same_shape("hit", check_hits(hit), p)
    first = np.argsort(-p, axis=1, kind="stable")[:, :size]
    mean, low, high = _over_users(np.take_along_axis(hits, first, 1).sum(axis=1))
    told = {
        "predicted": np.take_along_axis(p, first, axis=1).sum(axis=1).mean(),
        "realised": mean,
        "low": low,
        "high": high,
    }
    if prior is not None:
        true = _same_shape("prior", _matrix("prior", prior), p)
        told["expected"] = np.take_along_axis(true, first, axis=1).sum(axis=1).mean()
        told["most"] = -np.sort(-true, axis=1)[:, :size].sum(axis=1).mean()
    return pd.Series(told)


def alarm(
    prob: ArrayLike, hit: ArrayLike, day: ArrayLike, slack: float = 0.5, limit: float = 5.0
) -> pd.DataFrame:
    """Does what comes still agree with what is said? One row a day, in order; rings where not.

    prob, hit (n,): p̂ of what was shown and whether it was a hit; day (n,). Columns: day, shown,
    predicted (Σp), hits, z = (hits − Σp) / √Σp(1 − p), up and down, the two CUSUM sums of z beyond
    `slack` (Page, 1954), and rings, where one of them is above `limit`. With calibrated p̂ and slack
    0.5, limit 5 a false alarm comes once in about 470 days (both sums), and a shift of one standard
    deviation a day is heard after about 10.
    """
    if not (_amount(limit) and _amount(slack, or_none=True)):  # with NaN it would never ring
        raise InputError(f"slack = {slack}, limit = {limit}: numbers of 0 or more, and above 0.")
    p, came = numbers("prob", prob).ravel(), check_hits(hit).ravel()
    code, _ = factorized("day", day)
    if not p.size == came.size == code.size != 0:
        raise InputError("An alarm needs p̂, hit and day of each item that was shown.")
    p, came = check_pairs(p, came)
    if code.min() < 0:
        raise InputError("The day of some items is missing: name one for each.")
    try:
        names, place = np.unique(np.ravel(day), return_inverse=True)
    except TypeError:
        raise InputError("day must hold days of one kind, which have an order.") from None
    shown, predicted, hits, spread = (
        np.bincount(place, weights=x) for x in (np.ones(len(p)), p, came, p * (1 - p))
    )
    z = (hits - predicted) / np.sqrt(np.maximum(spread, 1e-12))
    up, down = np.zeros(len(z)), np.zeros(len(z))
    for at, value in enumerate(z):
        up[at] = max(0.0, (up[at - 1] if at else 0.0) + value - slack)
        down[at] = max(0.0, (down[at - 1] if at else 0.0) - value - slack)
    return pd.DataFrame(
        {"day": names, "shown": shown.astype(int), "predicted": predicted, "hits": hits, "z": z,
         "up": up, "down": down, "rings": np.maximum(up, down) > limit}
    )  # fmt: skip


def _matrix(name: str, values: ArrayLike) -> np.ndarray:
    found = numbers(name, values).astype(float, copy=False)
    if found.ndim != 2 or not found.size or not 0 <= found.min() <= found.max() <= 1:
        raise InputError(f"{name} must hold probabilities of (users, n_items), {found.shape} here.")
    return found


def _same_shape(name: str, found: np.ndarray, prob: np.ndarray) -> np.ndarray:
    if found.shape != prob.shape:
        raise InputError(f"{name} must have the shape {prob.shape} of prob, not {found.shape}.")
    return found


def _prices(value: float, cost: float) -> None:
    if not (_amount(value) and _amount(cost)):
        raise InputError(f"value = {value} and cost = {cost}: both are amounts above 0.")


def _amount(value: Any, or_none: bool = False) -> bool:
    number = isinstance(value, int | float | np.number)
    return number and (bool(0 < value < math.inf) or (or_none and value == 0))


def _over_users(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % interval, by the normal; as wide as can be for one user."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.inf
    error = _Z * spread / math.sqrt(len(values))
    return float(values.mean()), float(values.mean()) - error, float(values.mean()) + error
