"""Every measure of calibration at once, with 95 % intervals over users and what chance would give.

Pairs of one user are not independent, so users are resampled and never pairs. That is done with
sums: each pair falls into one of about a thousand *cells* of p̂, no wider than 1/512 in p̂ or 1/14 in
logit, and what is resampled is the sum of hit − p̂ in each user's cells. Bins of equal mass are
unions of cells; smooth ECE and CORP see nothing finer than a cell.

A measure of error is a norm of these gaps, so that noise alone makes it positive, and the usual
bootstrap fails. Its interval is found by inversion: gaps, plus the noise of resampled users, give the
measure a distribution, and that belongs to the interval for which the measured value lies between its
2.5 % and 97.5 % points. What noise adds depends on how the error is spread over the bins, which few
users cannot tell; so each end supposes what is worst for it (see `Cells.completed`). The lower end is
0 where users' noise, or chance, explains the value, but never below that of the mean gap (99 %),
which no error can be smaller than. For CORP the gaps are those of the isotonic fit, see `redrawn`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import brentq, isotonic_regression
from scipy.special import chdtri, erf, expit, logit, pdtr, pdtrc, xlogy
from scipy.stats import t as student

from gsas_lab.calibration import (
    brier,
    check_pairs,
    factorized,
    in_order,
    log_loss,
    numbers,
    wilson,
)
from gsas_lab.errors import InputError, whole_number
from gsas_lab.metrics import LEVEL, holm

_BLOCKS = 10_000  # users that are resampled one by one; more are joined to so many, at random
_CHUNK = 1_000_000  # pairs that are put into cells at a time
_LOWEST = 1e-9  # p̂ below share a cell, and so do those above 1 − 1e-9
_ROUNDING = 1e-5  # of float32, relative
_FEW = 30  # hits of a group, below which the normal interval alone is not trusted
_SURE = 2.576  # standard errors of a 99 % interval
_ENDS = (0.975, 0.025)  # where the value lies in the distributions of the interval's two ends


@dataclass(frozen=True)
class Cells:
    """Pairs counted in cells of p̂: all that the measures need to know of them."""

    edges: np.ndarray  # (J + 1,) of all cells, from 0 to 1
    place: np.ndarray  # (F,) the cells that hold pairs
    count: np.ndarray  # (F,) pairs, or as many as their weight is worth
    share: np.ndarray  # (F,) of all pairs, or of their weight
    prob: np.ndarray  # (F,) mean p̂
    gap: np.ndarray  # (F,) mean over all pairs of (hit − p̂) in this cell; their sum is hits − Σp
    starts: np.ndarray  # (B,) the first cell of each bin of equal mass
    noise: np.ndarray | None  # (F, R) gaps of resampled users, less `gap`; None without users
    chance: np.ndarray  # (F, R) gaps when hits are drawn from p̂; R = 0 without resampling
    truth: np.ndarray | None  # (F,) gaps of the true probabilities
    note: str = ""  # why there is no interval

    def completed(self, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gaps (F,) for the lower and for the upper end of an interval; noise: of resampled users.

        Noise adds most to a norm where few bins have all of the error: for the lower end those keep
        their gap that exceed √(2 log B) standard errors, what noise alone gives the largest of B
        (Donoho & Johnstone, 1994), and the others have none. It adds least where all bins have
        equally much, in standard errors: for the upper end they do, with the measured signs, or else
        the measured gaps stay, whichever end is higher.
        """
        gap, width = (
            np.add.reduceat(self.gap, self.starts),
            np.add.reduceat(self.share, self.starts),
        )
        error = np.add.reduceat(noise, self.starts).std(axis=1)
        clear = np.abs(gap) > np.sqrt(2 * np.log(len(gap))) * error
        each = np.diff(self.starts, append=len(self.gap))
        even = self.share * np.repeat(np.sign(gap) * error / width, each)
        return self.gap * np.repeat(clear, each), even if even.any() else self.gap


def cells(
    prob: ArrayLike,
    hit: ArrayLike,
    user: ArrayLike | None = None,
    bins: int = 20,
    resamples: int = 1000,
    weight: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    seed: int = 0,
) -> Cells:
    """prob, hit, truth and weight (above 0) of one shape; user likewise, or None: rows are users.

    user None and a flat prob: no users are known, and there is no interval. truth: the true P.
    """
    prob = numbers("prob", prob)
    shape = prob.shape
    p, hits = check_pairs(prob, hit)
    bins = min(whole_number("bins", bins), len(p))  # more would be empty
    resamples = whole_number("resamples", resamples, 0)
    seed = whole_number("seed", seed, 0)
    mass = None if weight is None else _like("weight", weight, shape)
    true = None if truth is None else _like("truth", truth, shape)
    if mass is not None and not mass.min() > 0:
        raise InputError("weight must be a number above 0 for each pair.")
    if true is not None and not 0 <= true.min() <= true.max() <= 1:
        raise InputError("truth must lie between 0 and 1.")
    rng = np.random.default_rng(seed)
    group, n_groups, n_users = _groups(user, shape, rng) if resamples else (None, 0, 0)
    at = np.unique(np.arange(bins) * len(p) // bins)
    first = np.partition(p, at)[at].astype(float)  # of each bin; equals never part
    edges = np.unique(np.concatenate([_grid(), first]))
    size = len(edges)
    total, said, done = np.zeros(size), np.zeros(size), np.zeros(size)
    expected = np.zeros(size)
    of_user = np.zeros((n_groups, size), np.float32)
    of_weight = np.zeros(n_groups)
    for start in range(0, len(p), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = p[part].astype(float)
        w = np.ones(1) if mass is None else mass[part]
        code = np.searchsorted(edges, values, side="right") - 1
        gap = w * (hits[part] - values)
        total += np.bincount(code, w if mass is not None else None, size)
        said += np.bincount(code, w * values, size)
        done += np.bincount(code, w * hits[part], size)
        if true is not None:
            expected += np.bincount(code, w * true[part], size)
        if group is not None:
            of = group[part]
            low, high = of.min(), of.max() + 1
            key = (of - low).astype(np.int64) * size + code
            added = np.bincount(key, gap, (high - low) * size).reshape(-1, size)
            of_user[low:high] += added
            of_weight[low:high] += np.bincount(
                of - low, w if mass is not None else None, high - low
            )
    place = np.flatnonzero(total)
    whole = total.sum()
    share, mean = total[place] / whole, np.clip(said[place] / total[place], 0, 1)
    gap = (done - said)[place] / whole
    note, noise = "", None
    if resamples and group is None:
        note = "no interval, because users are not given"
    elif resamples and n_users < 2:
        note = "no interval, because there is one user"
    elif resamples and n_users < bins:
        note = f"no interval, because {n_users} users are fewer than {bins} bins"
    elif resamples:
        noise = _noise(of_user[:, place], of_weight, gap, resamples, rng)
    counts = np.maximum(np.round(total[place] * len(p) / whole), 1).astype(np.int64)
    drawn = rng.binomial(counts[:, None], mean[:, None], (len(place), resamples)) / counts[:, None]
    return Cells(
        edges=np.append(edges, 1.0),
        place=place,
        count=counts,
        share=share,
        prob=mean,
        gap=gap,
        starts=np.unique(np.searchsorted(edges[place], np.unique(first))),
        noise=noise,
        chance=share[:, None] * (drawn - mean[:, None]),
        truth=None if true is None else (expected - said)[place] / whole,
        note=note,
    )


def _noise(
    of_user: np.ndarray,
    weight: np.ndarray,
    gap: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """(F, R): gaps of resampled users less the measured ones, as wide as Student's t for few."""
    n = len(of_user)
    drawn = np.zeros((resamples, n), np.float32)
    for row in drawn:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    again = (drawn @ of_user).T.astype(float) / (drawn @ weight)
    widen = student.ppf(0.975, n - 1) / student.ppf(0.975, np.inf) * np.sqrt(n / (n - 1))
    return widen * (again - gap[:, None])


# --- the measures: what is linear in the gaps, and a norm of it -----------------------------------


@dataclass(frozen=True)
class Measure:
    """norm(lift(gaps)): gaps (F, R) -> (R,). `lift` is linear."""

    lift: Callable[[np.ndarray], np.ndarray]
    norm: Callable[[np.ndarray], np.ndarray]

    def __call__(self, gaps: np.ndarray) -> np.ndarray:
        return self.norm(self.lift(gaps))


def binned(of: Cells) -> Measure:
    """ECE over the bins of equal mass: Σ over bins |Σ of their gaps|."""
    return Measure(
        lambda gaps: np.add.reduceat(gaps, of.starts), lambda sums: np.abs(sums).sum(axis=0)
    )


def smooth(of: Cells, on_logits: bool = False) -> Measure:
    """Smooth ECE (Błasiok & Nakkiran, 2023): Σ |gaps smoothed by a Gauss kernel of width h|.

    On probabilities the kernel is reflected at 0 and 1, and h is the fixed point: the h that equals
    the error which it gives. On logits h is a distance of logits, and it equals the shift of all
    logits that would make such an error, error / mean p̂ (1 − p̂): at P of 1e-4 a kernel on [0, 1]
    is either wider than all probabilities or no kernel at all.
    """
    unit = float(of.share @ (of.prob * (1 - of.prob))) if on_logits else 1.0
    if unit == 0:
        return Measure(lambda gaps: gaps, lambda gaps: np.abs(gaps).sum(axis=0))
    every = np.column_stack([of.gap, of.chance, *([] if of.noise is None else [of.noise])])
    largest = np.abs(of.gap).sum() + np.abs(every).sum(axis=0).max()  # no width needs to be larger
    widths = np.geomspace(1 / 500, 1, 16) * min(max(largest, 1e-12), 1.0) / unit
    kernels = [_kernel(of, width, on_logits) for width in widths]
    begin = np.cumsum([0, *(len(kernel) for kernel in kernels[:-1])])
    kernel = np.concatenate(kernels)  # (all cells of all widths, F)

    def lift(gaps: np.ndarray) -> np.ndarray:
        return kernel @ gaps.astype(np.float32)

    def norm(smoothed: np.ndarray) -> np.ndarray:
        error = np.add.reduceat(np.abs(smoothed), begin)  # (H, R), falls with the width
        return _fixed_point(error, widths * unit)

    return Measure(lift, norm)


def corp(of: Cells, log: bool = False) -> Measure:
    """Miscalibration of the Brier score, or of the log loss, by isotonic regression over cells.

    Dimitriadis, Gneiting & Jordan (2021): mean score of p̂ less that of the isotonic fit.
    """

    def norm(gaps: np.ndarray) -> np.ndarray:
        return np.array([_miscalibration(of, gap, log) for gap in gaps.T])

    return Measure(lambda gaps: gaps, norm)


def _miscalibration(of: Cells, gap: np.ndarray, log: bool) -> float:
    done = of.prob + gap / of.share
    if log:
        done = np.clip(np.round(done, 15), 0, 1)  # 1 − 1e-16 would be infinitely wrong at p̂ = 1
    fit = np.clip(isotonic_regression(done, weights=of.share).x, 0, 1)
    if not log:
        return float(of.share @ ((of.prob - done) ** 2 - (fit - done) ** 2))
    with np.errstate(divide="ignore"):
        own = xlogy(done, of.prob) + xlogy(1 - done, 1 - of.prob)
    return float(of.share @ (xlogy(done, fit) + xlogy(1 - done, 1 - fit) - own))


def _kernel(of: Cells, width: float, on_logits: bool) -> np.ndarray:
    """(J, F): how much of each cell's gap a kernel at its mean p̂ spreads to cells no wider than an
    eighth of it, or as they are.
    """
    at, edges, images = of.prob, of.edges, [of.prob, -of.prob, 2 - of.prob]
    if on_logits:
        with np.errstate(divide="ignore"):
            edges = logit(edges)
        at = logit(np.clip(at, _LOWEST, 1 - _LOWEST))
        images = [at]
    low, high = at.min() - 6 * width, at.max() + 6 * width
    inner = edges[(edges > low) & (edges < high)]
    inner = inner[np.unique(np.floor(inner / width * 8), return_index=True)[1]]
    edges = np.concatenate([edges[:1], inner[inner > edges[0]], edges[-1:]])
    upto = sum(erf((edges[:, None] - image) / (width * np.sqrt(2))) for image in images) / 2
    return np.diff(np.asarray(upto), axis=0).astype(np.float32)


def _fixed_point(error: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """(H, R) errors that fall with (H,) widths -> (R,) where they cross, in logarithms."""
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.log(error)
        over = height - np.log(widths)[:, None]
    after = np.clip((over >= 0).sum(axis=0), 1, len(widths) - 1)
    column = np.arange(error.shape[1])
    a, b = over[after - 1, column], over[after, column]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip(a / (a - b), 0, 1)
        value = np.exp((1 - part) * height[after - 1, column] + part * height[after, column])
    return np.where(error[after - 1, column] > 0, np.nan_to_num(value), 0.0)


def redrawn(of: Cells, seed: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """Gaps (F,) of the isotonic fit, and noise (F, R) of hits that are drawn from it.

    Where no hit fell, resampled users have none either, and a fit that follows the data cell by cell
    would seem certain there. Drawn hits are independent; so they are widened by as much as users
    scatter more in the bins.
    """
    if of.noise is None:
        return None
    size = of.noise.shape[1]
    fit = np.clip(isotonic_regression(of.prob + of.gap / of.share, weights=of.share).x, 0, 1)
    count = of.count[:, None]
    hits = np.random.default_rng([seed, 1]).binomial(count, fit[:, None], (len(fit), size))
    noise = of.share[:, None] * (hits / count - fit[:, None])
    of_users, drawn = (np.add.reduceat(n, of.starts).var(axis=1).sum() for n in (of.noise, noise))
    wider = np.sqrt(max(1.0, of_users / drawn)) if drawn > 0 else 1.0
    return of.share * (fit - of.prob), noise * wider


def interval(
    measure: Measure, of: Cells, model: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, float]:
    """value, debiased, low, high, chance and truth of one measure; NaN for what is not known.

    debiased: value − (mean over resampled users − value), at least 0, as Kumar, Liang and Ma (2019)
    do with normal draws; it leaves half of the bias of a calibrated model. chance: the mean when
    hits are drawn from p̂. truth: the measure's value without any noise. model: gaps and noise
    instead of the measured ones and the users', such as `redrawn`. low, high: of binned ECE they held
    the error of users without end in at least 93.7 % of simulations, by fault (docs/LOG.md).
    """
    value = float(measure(of.gap[:, None])[0])
    row = {"value": value} | dict.fromkeys(("debiased", "low", "high", "chance", "truth"), np.nan)
    chance = measure(of.chance)
    if chance.size:
        row["chance"] = float(chance.mean())
    if of.truth is not None:
        row["truth"] = float(measure(of.truth[:, None])[0])
    if of.noise is None or not np.isfinite(value):
        return row
    gap, noise = (of.gap, of.noise) if model is None else model
    sparse, even = of.completed(noise) if model is None else (gap, gap)
    lift = measure.lift(noise)
    along = measure.lift(gap[:, None])
    bias = float((measure.norm(along + lift) - measure.norm(along)).mean())
    row["debiased"] = max(0.0, value - bias)
    # Bins without a hit have none among resampled users either: chance must not explain the value.
    explained = np.quantile(chance, _ENDS[0]) >= value
    row["low"] = 0.0 if explained else _end(measure, sparse, lift, value, _ENDS[0])
    directions = [gap] if even is gap else [gap, even]  # smoothed, equal errors cancel
    row["high"] = max(_end(measure, at, lift, value, _ENDS[1]) for at in directions)
    if model is None:
        # Two lower ends, either may be missed: the mean gap's is that of its 99 % interval.
        error = max(_SURE * noise.sum(axis=0).std(), _ROUNDING * float(of.share @ of.prob))
        row["low"] = max(row["low"], abs(gap.sum()) - error)
    return row


def _end(measure: Measure, gaps: np.ndarray, noise: np.ndarray, value: float, q: float) -> float:
    """The measure of c · gaps for the c >= 0 at which `value` is the q quantile of norm(c · gaps +
    noise); 0 if it is none.
    """
    along = measure.lift(gaps[:, None])

    def over(c: float) -> float:
        return float(np.quantile(measure.norm(c * along + noise), q)) - value

    if not gaps.any() or over(0.0) >= 0:
        return 0.0
    high = 1.0
    while over(high) < 0 and high < 1e6:
        high *= 2
    c = float(brentq(over, 0.0, high, xtol=2e-3)) if high < 1e6 else high
    return float(measure(c * gaps[:, None])[0])


# --- tables ---------------------------------------------------------------------------------------


def measures(
    prob: ArrayLike,
    hit: ArrayLike,
    user: ArrayLike | None = None,
    rank: ArrayLike | None = None,
    top: int = 10,
    bins: int = 20,
    resamples: int = 1000,
    truth: ArrayLike | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """All measures of these pairs, one row each.

    prob, hit, and user, rank (1-based, by the user's scores), truth (the true P) of one shape:
    (users, n_items), where rows are users, or flat, where `user` names them. Without rank, p̂ ranks
    each user's items, equals in their order here. resamples = 0: values alone.

    Rows: "mean gap", hits less Σp, by pair; "ECE", bins of equal mass; "ECE@N" and "RDECE@N", the
    same over each user's first N, the latter with pairs weighted by 1 / log2(1 + rank); "smooth ECE"
    and "smooth ECE, logits"; "Brier miscalibration" and "log loss miscalibration", by CORP; with
    truth, "distance to truth", the mean of |p̂ − P|.

    ECE@N and rank-discounted ECE@N are named by Sato (RecSys 2024), whose abstract alone was at hand
    here: bins and discount are this library's choice, and that paper's may differ.

    Columns: value; debiased, low, high, chance, truth as in `interval`; detected, whether the
    interval leaves 0 out; note, why something is not defined.
    """
    prob = numbers("prob", prob)
    shape = prob.shape
    p, hits = check_pairs(prob, hit)
    if hits.all() or not hits.any():
        raise InputError(
            f"Calibration is not defined, because {'all' if hits.all() else 'none'} of the "
            f"{len(p):,} pairs are hits: give hits and others."
        )
    of = cells(prob, hit, user, bins, resamples, None, truth, seed)
    rows = {"mean gap": _mean_gap(of), "ECE": interval(binned(of), of)}
    notes = dict.fromkeys(rows, of.note)
    first = _first(prob, user, rank, top)
    if first is None or not len(first[0]):
        why = "neither users nor ranks are given" if first is None else "no pair has such a rank"
        for name in (f"ECE@{top}", f"RDECE@{top}"):
            rows[name], notes[name] = {"value": np.nan}, f"not defined, because {why}"
    else:
        at, place = first
        who = _user_of(user, shape, at)
        true = None if truth is None else np.asarray(truth).ravel()[at]
        for name, weight in {f"ECE@{top}": None, f"RDECE@{top}": 1 / np.log2(1 + place)}.items():
            best = cells(p[at], hits[at], who, bins, resamples, weight, true, seed)
            rows[name], notes[name] = interval(binned(best), best), best.note
    for name, measure, model in (
        ("smooth ECE", smooth(of), None),
        ("smooth ECE, logits", smooth(of, on_logits=True), None),
        ("Brier miscalibration", corp(of), redrawn(of, seed)),
        ("log loss miscalibration", corp(of, log=True), redrawn(of, seed)),
    ):
        rows[name], notes[name] = interval(measure, of, model), of.note
    if not np.isfinite(rows["log loss miscalibration"]["value"]):
        notes["log loss miscalibration"] = (
            "infinite, because p̂ of exactly 0 or 1 was wrong: no interval"
        )
    if truth is not None:
        away = np.abs(p.astype(float) - np.asarray(truth).ravel()).mean()
        rows["distance to truth"] = {"value": float(away), "truth": float(away)}
        notes["distance to truth"] = ""
    columns = ["value", "debiased", "low", "high", "chance", "truth"]
    table = pd.DataFrame(rows).T.reindex(columns=columns).astype(float)
    table["detected"] = (table["low"] > 0) | (table["high"] < 0)
    table["note"] = pd.Series(notes)
    return table


def decomposition(prob: ArrayLike, hit: ArrayLike, scores: ArrayLike | None = None) -> pd.DataFrame:
    """Brier score and log loss in three parts: score = miscalibration − discrimination + uncertainty.

    Dimitriadis, Gneiting & Jordan (2021, CORP): with S of p̂, S* of the isotonic fit to hits and S° of
    the mean of hits, the parts are S − S*, S° − S* and S°. All pairs, exactly: between two hits the
    fit is constant, so that only as many blocks as hits are fitted. scores: as for `log_loss`.
    Columns: score, the parts, and note, why one is not defined. Smaller miscalibration is better,
    larger discrimination too.
    """
    p, hits = check_pairs(prob, hit)
    at, times = np.unique(p[hits], return_counts=True)
    ordered = np.sort(p)
    low, high = (np.searchsorted(ordered, at, side=side) for side in ("left", "right"))
    ends = np.concatenate([[0], np.stack([low, high], axis=1).ravel(), [len(p)]])
    count = np.diff(ends)  # misses before the first hit's p̂, pairs of that p̂, misses, …
    done = np.zeros(len(count))
    done[1::2] = times
    count, done = count[count > 0], done[count > 0]
    fit = np.clip(isotonic_regression(done / count, weights=count).x, 0, 1)
    share, mean = count / len(p), float(hits.mean())
    fits = {
        "Brier": (float(share @ (fit * (1 - fit))), mean * (1 - mean)),
        "log loss": (float(share @ _entropy(fit)), float(_entropy(np.array(mean)))),
    }
    said = {"Brier": brier(prob, hit), "log loss": log_loss(prob, hit, scores)}
    rows = {
        name: {
            "score": said[name],
            "miscalibration": said[name] - best,
            "discrimination": constant - best,
            "uncertainty": constant,
            "note": "",
        }
        for name, (best, constant) in fits.items()
    }
    if mean in (0, 1):
        for row in rows.values():
            row["discrimination"] = np.nan
            row["note"] = (
                "discrimination is not defined, because "
                f"{'all' if mean else 'none'} of the pairs are hits"
            )
    elif said["log loss"] == np.inf:
        rows["log loss"]["note"] = "infinite, because p̂ of exactly 0 or 1 was wrong: give scores"
    return pd.DataFrame.from_dict(rows, orient="index")


def corp_curve(
    prob: ArrayLike, hit: ArrayLike, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """CORP's reliability curve: isotonic regression, with a consistency band around the diagonal.

    One row for each cell that holds pairs: predicted, observed (the fit), count; low and high hold
    95 % of the fits, at this p̂, when hits are drawn from p̂ (pair by pair: a user's pairs count as
    independent). A fit outside the band is not calibrated there.
    """
    of = cells(prob, hit, None, resamples=resamples, seed=seed)
    fits = [
        isotonic_regression(np.round(of.prob + gap / of.share, 15), weights=of.share).x
        for gap in (of.gap, *of.chance.T)
    ]
    low, high = np.quantile(fits[1:], _ENDS[::-1], axis=0) if resamples else (np.nan, np.nan)
    return pd.DataFrame(
        {
            "predicted": of.prob,
            "observed": np.clip(fits[0], 0, 1),
            "count": np.round(of.share * np.size(prob)).astype(int),
            "low": low,
            "high": high,
        }
    )


def by_rank(
    prob: ArrayLike,
    hit: ArrayLike,
    user: ArrayLike | None = None,
    rank: ArrayLike | None = None,
    top: int = 20,
) -> pd.DataFrame:
    """Reliability at each rank: rank, predicted, observed, count, low, high; arguments as above.

    A user has one pair at a rank, so these pairs are independent: Wilson's 95 % interval.
    """
    p, hits = check_pairs(prob, hit)
    first = _first(prob, user, rank, top)
    if first is None:
        raise InputError("Reliability by rank needs users, or ranks: give one of them.")
    at, place = first
    if not len(at):
        raise InputError(f"No pair stands at one of the first {top} ranks: raise top.")
    count = np.bincount(place)[1:]
    rows = {
        "rank": np.arange(1, len(count) + 1),
        "predicted": np.bincount(place, p[at])[1:] / np.maximum(count, 1),
        "observed": np.bincount(place, hits[at])[1:] / np.maximum(count, 1),
        "count": count,
    }
    table = pd.DataFrame(rows)[count > 0].reset_index(drop=True)
    table["low"], table["high"] = wilson(
        table["observed"].to_numpy(), table["count"].to_numpy(float)
    )
    return table


def by_group(
    prob: ArrayLike,
    hit: ArrayLike,
    groups: Mapping[str, ArrayLike],
    user: ArrayLike | None = None,
    truth: ArrayLike | None = None,
) -> pd.DataFrame:
    """How much more each group of pairs is promised than comes: predicted / observed, one row each.

    groups: for each grouping the label of each pair, of the shape of prob or one that broadcasts to
    it: (n_items,) for items, (users, 1) for users. Rows in the order of the labels, of the numbers in
    them where there are any: "3 to 7" before "12 to 20"; categories keep theirs. user, truth: as for
    `measures`; without users, pairs count as independent.

    The first row is of all pairs. Columns: grouping, group, pairs, hits, predicted and observed
    (means), ratio = predicted / observed with low and high (95 %), p, p_holm over all groups,
    verdict, note; with truth also true_ratio, predicted / mean P. The interval is the normal one of
    log ratio over users (t for few), and with fewer than 30 hits as wide at least as Poisson's exact
    one; p likewise.
    """
    prob = numbers("prob", prob)
    shape = prob.shape
    p, hits = check_pairs(prob, hit)
    true = None if truth is None else _like("truth", truth, shape)
    who, n_users, _ = _groups(user, shape, np.random.default_rng(0))
    if who is None:
        who, n_users, _ = _groups(np.arange(len(p)), (len(p),), np.random.default_rng(0))
        assert who is not None
    if not isinstance(groups, Mapping | pd.DataFrame):
        raise InputError('groups must name each grouping, as in {"genre": labels}.')
    rows = [_row("all", "all pairs", _sums(p, hits, true, who, n_users, None, 1), 0)]
    for name, labels in groups.items():
        code, names = _codes(name, labels, shape)
        sums = _sums(p, hits, true, who, n_users, code, len(names))
        rows += [_row(name, str(label), sums, at) for at, label in enumerate(names)]
    table = pd.DataFrame([row for row in rows if row["pairs"]])
    if true is None:
        table = table.drop(columns="true_ratio")
    rest = table.index[1:]
    table["p_holm"] = table["p"]
    if len(rest):
        table.loc[rest, "p_holm"] = holm(table.loc[rest, "p"])
    wrong = table["p_holm"] < LEVEL
    over = table["predicted"] > table["observed"]
    table["verdict"] = np.where(~wrong, "", np.where(over, "overconfident", "underconfident"))
    return table[[*(c for c in table.columns if c not in ("p", "p_holm", "verdict", "note")),
                  "p", "p_holm", "verdict", "note"]]  # fmt: skip


def hidden(table: pd.DataFrame, within: float = 0.0) -> str:
    """One sentence on a table of `by_group`: which groups does "calibrated on average" hide?

    within: what errs by less, such as 0.1 for 10 %, counts as calibrated, the average and the groups
    alike, however sure it is: with many users every average differs from 1.
    """
    near = np.abs(np.log(table["ratio"].astype(float).clip(lower=1e-300))) <= np.log1p(within)
    wrong_at = (table["verdict"] != "") & ~near  # a ratio of NaN is near nothing
    whole, groups = table.iloc[0], table.iloc[1:]
    wrong = groups[wrong_at.iloc[1:]].sort_values("p_holm")
    if not 0 < whole["ratio"] < np.inf:
        missing = "no pair is a hit" if whole["predicted"] > 0 else "nothing was promised"
        return f"Promised / observed is not defined, because {missing}."
    average = f"{whole['ratio']:.2f} ({whole['low']:.2f} to {whole['high']:.2f})"
    limit = f" to within {within:.0%}" if within else ""
    on_average = (
        f"Promised / observed on average {average}"
        if wrong_at.iloc[0]
        else f"Calibrated on average{limit}, promised / observed {average}"
    )
    if wrong.empty:
        more = " by more" if within else ""
        return f"{on_average}; no group is shown to differ from calibrated{more}."
    named = [
        f"{row['group']} ({row['grouping']}, "
        + (f"{_ratio(row)})" if row["ratio"] < np.inf else f"{_never(row)})")
        for row in wrong.head(5).to_dict("records")
    ]
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    joint = "and not" if wrong_at.iloc[0] else "but not"
    return f"{on_average}, {joint} for {', '.join(named)}{more}."


def _ratio(row: Mapping[Any, Any]) -> str:
    said = row["ratio"] * row["hits"]
    told = f"{said:,.0f} promised, {row['hits']:,} came: {row['ratio']:.2f}"
    return f"{told}, {row['low']:.2f} to {row['high']:.2f}"


def _never(row: Mapping[Any, Any]) -> str:
    return "promised and never hit" if row["predicted"] > 0 else "hit and never promised"


def quantile_groups(values: ArrayLike, parts: int = 4) -> np.ndarray:
    """Labels (n,) such as "3 to 7" for numbers (n,), in groups of about equal size; equals never part.

    `repairs.popularity_groups` cuts into equal shares of all interactions instead, for equally sure
    fits.
    """
    parts, size = whole_number("parts", parts), numbers("values", values).astype(float).ravel()
    if not len(size) or not np.isfinite(size).all():
        raise InputError("Groups by size need a finite number for each user or item.")
    different, place, count = np.unique(size, return_inverse=True, return_counts=True)
    middle = (np.cumsum(count) - count / 2) / len(size)
    code = np.unique((middle * parts).astype(int), return_inverse=True)[1][place]
    names = []
    for at in range(code.max() + 1):
        inside = size[code == at]
        low, high = inside.min(), inside.max()
        names.append(f"{low:g}" if low == high else f"{low:g} to {high:g}")
    return np.array(names)[code]


def rank_groups(prob: ArrayLike, ends: tuple[int, ...] = (1, 5, 10, 50)) -> np.ndarray:
    """Labels (users, n_items) by the rank of each pair among its user's: "ranks 2 to 5" …"""
    prob = numbers("prob", prob)
    if prob.ndim != 2 or np.isnan(prob).any():
        raise InputError(f"prob must be numbers of (users, n_items), no NaN, not {prob.shape}.")
    code = np.full(prob.shape, len(ends), np.int8)
    order = np.argsort(-prob, axis=1, kind="stable")[:, : ends[-1]]
    band = np.searchsorted(ends, np.arange(1, order.shape[1] + 1)).astype(np.int8)
    np.put_along_axis(code, order, np.broadcast_to(band, order.shape), axis=1)
    starts = [1, *(end + 1 for end in ends)]
    names = [
        f"rank {a}" if a == b else f"ranks {a} to {b}" for a, b in zip(starts, ends, strict=False)
    ]
    return np.array([*names, f"ranks beyond {ends[-1]}"])[code]


def _entropy(p: np.ndarray) -> np.ndarray:
    return 0.0 - xlogy(p, p) - xlogy(1 - p, 1 - p)


def _mean_gap(of: Cells) -> dict[str, float]:
    """Signed, so neither bias nor inversion: value − the resampled noise."""
    value = float(of.gap.sum())
    row = {"value": value, "truth": np.nan if of.truth is None else float(of.truth.sum())}
    if of.chance.size:
        row["chance"] = float(of.chance.sum(axis=0).mean())
    if of.noise is not None:
        low, high = np.quantile(of.noise.sum(axis=0), _ENDS)
        rounding = _ROUNDING * float(of.share @ of.prob)  # all there is where Σp = 1 = hits
        low, high = max(low, rounding), min(high, -rounding)
        row |= {"debiased": value, "low": value - float(low), "high": value - float(high)}
    return row


def _first(
    prob: ArrayLike, user: ArrayLike | None, rank: ArrayLike | None, top: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """(m,) flat places of each user's first `top` pairs, and their ranks; None if nobody knows."""
    top, p = whole_number("top", top), numbers("prob", prob)
    if rank is not None:
        place = _like("rank", rank, p.shape)
        if place.min() < 1 or np.any(place % 1):
            raise InputError(f"Ranks count from 1 and are whole, not from {place.min():g}.")
        at = np.flatnonzero(place <= top)
        return at, place[at].astype(int)
    if user is None and p.ndim == 2:
        n = p.shape[1]
        few = min(top, n)
        columns = np.empty((len(p), few), int)
        for start in range(0, len(p), max(1, _CHUNK // n)):
            rows = slice(start, start + max(1, _CHUNK // n))
            lowest = np.partition(p[rows], n - few, axis=1)[:, n - few, None]
            above = p[rows] > lowest  # equals of the last place come in the order of the columns
            level = p[rows] == lowest
            take = above | (level & (np.cumsum(level, 1) <= few - above.sum(1, keepdims=True)))
            chosen = np.nonzero(take)[1].reshape(-1, few)
            values = np.take_along_axis(p[rows], chosen, axis=1)
            columns[rows] = np.take_along_axis(
                chosen, np.argsort(-values, axis=1, kind="stable"), axis=1
            )
        at = (np.arange(len(p))[:, None] * n + columns).ravel()
        return at, np.tile(np.arange(1, few + 1), len(p))
    if user is None:
        return None
    found, _ = factorized("user", user)
    if found.shape != p.shape or found.min() < 0:
        raise InputError(f"user must name one for each of {p.shape} pairs, not {found.shape}.")
    code = found.ravel()
    order = np.lexsort([-p.ravel(), code])
    begin = np.flatnonzero(np.diff(code[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(begin, np.diff(begin, append=len(order))) + 1
    kept = place <= top
    return order[kept], place[kept]


def _user_of(user: ArrayLike | None, shape: tuple[int, ...], at: np.ndarray) -> np.ndarray | None:
    if user is not None:
        return np.asarray(user).ravel()[at]
    return at // shape[1] if len(shape) == 2 else None


def _codes(name: str, labels: ArrayLike, shape: tuple[int, ...]) -> tuple[np.ndarray, list]:
    """Labels -> (n,) codes of each pair, and the labels in order."""
    if isinstance(labels, pd.Series) and isinstance(labels.dtype, pd.CategoricalDtype):
        labels = pd.Categorical(labels)
    if isinstance(labels, pd.Categorical):
        form = labels.shape
        code, names = np.asarray(labels.codes, np.int32), list(labels.categories)
    else:
        found, different = factorized(name, labels)
        form = found.shape
        code, names = in_order(found, different)
    if code.size and code.min() < 0:
        raise InputError(f"{name}: the label of some pairs is missing; name one for each.")
    try:
        return np.broadcast_to(code.reshape(form), shape).ravel(), names
    except ValueError:
        raise InputError(
            f"{name} has labels of shape {form}, which does not fit prob of shape {shape}."
        ) from None


def _sums(
    p: np.ndarray,
    hits: np.ndarray,
    true: np.ndarray | None,
    who: np.ndarray,
    n_users: int,
    code: np.ndarray | None,
    n: int,
) -> dict[str, np.ndarray]:
    """Sums of pairs, hits, p̂ and P: (n_users, n), by user and group."""
    sums = {name: np.zeros(n_users * n) for name in ("pairs", "hits", "said", "true")}
    for start in range(0, len(p), _CHUNK):
        part = slice(start, start + _CHUNK)
        key = who[part].astype(np.int64) * n + (0 if code is None else code[part])
        low, high = key.min(), key.max() + 1
        key -= low
        sums["pairs"][low:high] += np.bincount(key, minlength=high - low)
        sums["hits"][low:high] += np.bincount(key, hits[part], high - low)
        sums["said"][low:high] += np.bincount(key, p[part], high - low)
        if true is not None:
            sums["true"][low:high] += np.bincount(key, true[part], high - low)
    return {name: each.reshape(n_users, n) for name, each in sums.items()}


def _row(grouping: str, group: str, sums: dict[str, np.ndarray], at: int) -> dict[str, Any]:
    pairs, hits, said, true = (
        float(sums[name][:, at].sum()) for name in ("pairs", "hits", "said", "true")
    )
    row: dict[str, Any] = {"grouping": grouping, "group": group, "pairs": int(pairs)}
    row |= {"hits": int(hits), "predicted": np.nan, "observed": np.nan, "ratio": np.nan}
    row |= {"low": np.nan, "high": np.nan, "true_ratio": said / true if true > 0 else np.nan}
    row |= {"p": 1.0, "note": ""}
    if not pairs:
        return row
    row |= {"predicted": said / pairs, "observed": hits / pairs}
    if said == 0:
        row["note"] = "not defined, because nothing was promised"
        row["p"] = 1.0 if hits == 0 else 0.0
        return row
    with np.errstate(divide="ignore"):
        fewest, most = chdtri(2 * max(hits, 0.5), 0.975) / 2, chdtri(2 * hits + 2, 0.025) / 2
        exact = said / most, said / fewest if hits else np.inf
    p_exact = min(1.0, 2 * min(pdtr(hits, said), 1.0 if hits == 0 else pdtrc(hits - 1, said)))
    if hits == 0:
        note = "the ratio is not defined, because there is no hit: the interval is Poisson's"
        return row | {"ratio": np.inf, "low": exact[0], "high": np.inf, "p": p_exact, "note": note}
    users = np.flatnonzero(sums["pairs"][:, at])
    lean = sums["hits"][users, at] / hits - sums["said"][users, at] / said
    n = len(users)
    ratio = said / hits
    row |= {"ratio": ratio, "low": exact[0], "high": exact[1], "p": p_exact}
    if n < 2:
        return row | {"note": "one user: the interval is Poisson's"}
    # Where all users have one hit and Σp = 1 there is no error, but for that of rounding.
    error = max(float(np.sqrt(np.square(lean).sum() * n / (n - 1))), _ROUNDING)
    wide = float(student.ppf(0.975, n - 1)) * error
    low, high = ratio * np.exp(-wide), ratio * np.exp(wide)
    p_users = float(2 * student.sf(abs(np.log(ratio)) / error, n - 1))
    if hits >= _FEW:
        return row | {"low": low, "high": high, "p": p_users}
    return row | {
        "low": min(low, exact[0]),
        "high": max(high, exact[1]),
        "p": max(p_users, p_exact),
    }


def _grid() -> np.ndarray:
    """Lower edges of cells: geometric in the odds up to 0.027 and beyond 0.973, even between."""
    tail = expit(np.linspace(logit(_LOWEST), logit(0.027), 251))
    even = np.arange(14, 499) / 512
    return np.concatenate([[0.0], tail, even, 1 - tail[::-1]])


def _like(name: str, values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    array = numbers(name, values)
    if array.shape != shape:
        raise InputError(f"{name} must have the shape {shape} of prob, not {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be a finite number for each pair.")
    return array.ravel()


def _groups(
    user: ArrayLike | None, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray | None, int, int]:
    """(n,) what is resampled together, how many such groups there are, and how many users."""
    if user is None:
        if len(shape) != 2:
            return None, 0, 0
        code, n = np.repeat(np.arange(shape[0], dtype=np.int32), shape[1]), shape[0]
    else:
        found, different = factorized("user", user)
        if found.shape != shape:
            raise InputError(f"user must have the shape {shape} of prob, not {found.shape}.")
        if found.min() < 0:
            raise InputError("user is missing for some pairs: name one for each.")
        code, n = found.ravel().astype(np.int32), len(different)
    if n > _BLOCKS:
        code = (rng.permutation(n) % _BLOCKS).astype(np.int32)[code]
    return code, min(n, _BLOCKS), n
