"""Is a recommender overconfident, by how much, and what cures it? From scores and clicks alone.

    diagnose(scores, hit)     matrices (users, items) of any model
    diagnose_table(path)      rows user, item, score, clicked of any model
    diagnose_run(run)         a run of this library

By Theorem 5.1 negative sampling raises every logit by one offset, log(β/α). Here it is estimated:
the shift with which predicted and observed clicks agree, Σ w σ(s − offset) = Σ w [clicked] over all
pairs that may be recommended. That is the shift of greatest likelihood too. Its interval comes from
resampling users, and is never narrower than the number of clicks allows.

w is 1, or what the row stands for: the inverse of its chance of being in the table. Then each sum
is that of Horvitz & Thompson (1952), unbiased for the sum over all pairs. All clicks and m of the
N − c items that a user did not click, uniformly: 1 for a click, (N − c) / m for another row.
"""

import html
import io
import math
import operator
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit

from gsas_lab import calibration, repairs, runs, theory
from gsas_lab.errors import InputError, counted
from gsas_lab.splits import Holdout
from gsas_lab.theory import FixedPoint

OF = ("logits", "probabilities")
COLUMNS = ("user", "item", "score", "clicked")
WEIGHT = "weight"  # a column that a table may have

_SLIGHT = 0.1  # logits: odds that are wrong by a tenth pass for calibrated
_BLURRED = 1.0  # logits: a wider interval around 0 decides nothing
_SLOPE = 0.2  # a slope further from 1 is told
_DENSEST = 0.075  # α of the paper's k = 256 on MovieLens-1M
_CERTAIN = 40.0  # logits: a repaired probability of exactly 0 or 1 is read as this one
_LARGEST = 1e100  # of scores and weights: squares and sums stay finite
_BLOCKS = 10_000  # more users than these are resampled in blocks of neighbours
_FEW = 30  # users: resampling fewer makes too narrow an interval
_NEARLY_ALL = 0.95  # of the users with a click among few rows: were rows chosen by clicks?


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What was found, and what to do; reads as text in a terminal, as tables in notebooks."""

    users: int  # judged
    pairs: int  # of user and item, judged: rows of a table
    n_items: int | None  # size of the catalogue; None where a partial table does not say it
    whole: bool  # whether the pairs are all items that may be recommended to these users
    expected: float  # mean Σp of a user over the pairs, by weight
    observed: float  # mean clicks of a user over the pairs, by weight
    top: pd.DataFrame  # rows: cutoffs 1 and 10; predicted: mean p of the first K, observed: P@K
    offset: float  # logits, estimated: above 0 is overconfident
    interval: tuple[
        float, float
    ]  # of the offset, 95 %; an end is infinite where clicks are too few
    slope: float  # Platt's; 1 where a shift is all that is wrong; NaN where no slope is the best
    repairs: pd.DataFrame  # a row each: as it is, subtracted, by theory; offset, sum (Σp), ece
    curves: dict[str, pd.DataFrame]  # their reliability curves, for `figures.reliability`
    advice: pd.DataFrame  # k, t, alpha, beta that would improve Σp; `sum`: Σσ(s) by Theorem 5.1
    notes: tuple[str, ...]  # what cannot be known from these data, or misleads
    sampled: bool = False  # whether sums over the catalogue are estimated from sampled negatives
    one_choice: bool = False  # one click of each user in a known catalogue: k can be read off
    doubt: str = ""  # why no verdict may be given

    @property
    def verdict(self) -> str:
        """One sentence that begins with over-/underconfident, calibrated or undecided."""
        low, high = self.interval
        said = f"it expects {self.expected:,.4g} clicks a user, the truth is {self.observed:.3g}"
        if self.doubt:
            return f"undecided: {said}; {self.doubt}."
        sure = bool(np.isfinite([low, self.offset, high]).all())
        if sure and low > 0 and self.offset > _SLIGHT:
            return f"overconfident: {said}; its logits are {_short(self.offset)} too high."
        if sure and high < 0 and self.offset < -_SLIGHT:
            return f"underconfident: {said}; its logits are {_short(-self.offset)} too low."
        if high - low <= _BLURRED and (low <= 0 <= high or abs(self.offset) <= _SLIGHT):
            if abs(self.slope - 1) <= _SLOPE:
                return f"calibrated: {said}."
            slope = "not identifiable" if np.isnan(self.slope) else f"{self.slope:.2f}, not 1"
            return f"calibrated on average only: {said}; but its slope is {slope}."
        span = f"{_short(low)} to {_short(high)}"
        return f"undecided: {said}; the offset may be {span}, so add users with clicks."

    @property
    def subtract(self) -> float:
        """What to subtract from every logit, which moves no rank; 0 unless over- or underconfident."""
        return self.offset if self.verdict.startswith(("over", "under")) else 0.0

    @property
    def numbers(self) -> pd.Series:
        """The findings in words and rounded, for reading; the fields hold them in full."""
        low, high = self.interval
        ece = self.repairs["ece"]
        told = {
            "users, pairs": f"{self.users:,}, {self.pairs:,}",
            f"Σp of a user{self._of_these}": f"{self.expected:,.4g}",
            "clicks of a user": f"{self.observed:.3g}",
        }
        for cutoff, row in self.top.iterrows():
            told[f"first {cutoff}: predicted, true"] = f"{row.predicted:.4f}, {row.observed:.4f}"
        told |= {
            "ECE as it is": f"{ece.iloc[0]:.2g}",
            "ECE, offset subtracted": f"{ece.iloc[1]:.2g}",
            "offset (95 % interval)": f"{_short(self.offset)} ({_short(low)} to {_short(high)})",
            "slope": "not identifiable" if np.isnan(self.slope) else _short(self.slope),
        }
        if "analytic" in self.repairs.index and np.isfinite(self.repairs["offset"]["analytic"]):
            told["offset by Theorem 5.1"] = f"{self.repairs['offset']['analytic']:z.2f}"
        a_shift = abs(self.slope - 1) <= _SLOPE  # with another slope it was not BCE that left it
        if self.n_items and self.one_choice and self.verdict.startswith("over") and a_shift:
            k = (self.n_items - 1) * np.exp(-self.offset)  # BCE's offset: log((n_items − 1) / k)
            told["as BCE leaves it with k"] = f"{k:,.0f}" if k >= 0.5 else "none"
        return pd.Series(told)

    def __repr__(self) -> str:
        parts = [self.verdict, self.numbers.to_string(), self._remedy(), *self.notes]
        if len(self.advice):
            parts.insert(3, f"Retrained, by Theorem 5.1:\n{self._advice().to_string(index=False)}")
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{html.escape(self.verdict)}</b></p>", self.numbers.to_frame("").to_html()]
        parts += [f"<p>{html.escape(self._remedy())}</p>"]
        if len(self.advice):
            parts += ["<p>Retrained, by Theorem 5.1:</p>", self._advice().to_html(index=False)]
        return "".join(parts + [f"<p>{html.escape(note)}</p>" for note in self.notes])

    def _remedy(self) -> str:
        if self.verdict.startswith("undecided"):
            return "What to subtract is not known."
        if not self.subtract:
            return "Nothing to subtract."
        return f"Subtract {_short(self.subtract)} from every logit: no retraining, no rank changes."

    def _advice(self) -> pd.DataFrame:
        shown = self.advice.round({"alpha": 4, "beta": 4, "sum": 2})
        return shown.rename(columns={"sum": f"Σσ(s){self._of_these}"})

    @property
    def _of_these(self) -> str:
        if self.sampled:
            return ", estimated"
        return "" if self.whole else ", these items"


class _Rows(NamedTuple):
    """Pairs of users and items, user after user: all that may be recommended, or a table's."""

    scores: np.ndarray  # (n,) logits
    hit: np.ndarray  # (n,) True where it was clicked
    lengths: np.ndarray  # (U,) rows of each user, 0 for some
    weight: np.ndarray | None = None  # (n,) above 0: what a row stands for; None: 1 each

    def weighed(self, values: np.ndarray) -> np.ndarray:
        """(n,) times each row's weight."""
        return values if self.weight is None else values * self.weight

    def total(self, values: np.ndarray) -> float:
        return float(self.weighed(values).sum())

    def by_user(self, values: np.ndarray) -> np.ndarray:
        """Σ of (n,) for each user, (U,)."""
        sums, filled = np.zeros(len(self.lengths)), self.lengths > 0
        starts = (np.cumsum(self.lengths) - self.lengths)[filled]
        sums[filled] = np.add.reduceat(self.weighed(values), starts, dtype=float)
        return sums


def diagnose(
    scores: ArrayLike,
    hit: ArrayLike,
    *,
    of: str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    collisions: bool = False,
    candidates: ArrayLike | None = None,
    repair: repairs.Repair | None = None,
) -> Diagnosis:
    """From what a model says of the whole catalogue, and what was clicked. Estimate and judgement
    are of the same users.

    scores (users, n_items): of "logits", before σ, or "probabilities"; a softmax gives
    probabilities. None takes logits, without a verdict where all lie between 0 and 1.
    hit: (users, n_items) True where clicked, or (users,) each user's clicked column, counted from
    0. candidates (users, n_items): what may be recommended, chosen without looking at the clicks;
    everything if None.
    alpha, beta, collisions: Theorem 5.1's, if known, to compare with its inverse.
    repair: diagnosed is what it makes of the scores, as logits.
    Raises InputError for shapes that do not fit, scores that are not finite, no click or only clicks.
    """
    s = _array("scores", scores)
    real = np.issubdtype(s.dtype, np.integer) or np.issubdtype(s.dtype, np.floating)
    if s.ndim != 2 or not s.size or not (real or s.dtype == bool):
        raise InputError(f"scores must be numbers of (users, n_items), not {s.dtype} of {s.shape}.")
    clicked = _matrix_of_hits(hit, s.shape)
    may = np.ones(s.shape, bool) if candidates is None else _array("candidates", candidates)
    if may.shape != s.shape or may.dtype != bool:
        raise InputError(
            f"candidates must be True or False for each of {s.shape} scores, not {may.dtype} of "
            f"{may.shape}."
        )
    if (row := np.flatnonzero((clicked & ~may).any(axis=1))).size:
        raise InputError(f"Row {row[0]} of hit has a click outside candidates: add it to them.")
    _check_clicks(clicked[may])
    if (alpha is None) != (beta is None):
        raise InputError("alpha and beta belong together: give both or neither.")
    logits = _logits(s[may], of, lambda at: f"Row {np.argwhere(may)[at][0]} of scores")
    given = _Rows(logits, clicked[may], may.sum(axis=1))
    if repair is not None:
        group = repair.groups(np.nonzero(may)[1] + 1, s.shape[1])
        given = _repaired(given, repair, group)
    known = None if alpha is None or beta is None else FixedPoint(alpha, beta, collisions)
    return _judge(
        given,
        given,
        s.shape[1],
        True,
        known,
        one_choice=_one_choice(given),
        doubt=_seem_probabilities(s[may], of),
    )


def diagnose_table(
    table: pd.DataFrame | str | Path,
    *,
    of: str | None = None,
    n_items: int | None = None,
    sampled_negatives: bool = False,
    repair: repairs.Repair | None = None,
) -> Diagnosis:
    """From rows user, item, score, clicked (1 or 0): a DataFrame or a file, see docs/your-data.md.

    of: whether scores are "logits" or "probabilities"; None takes logits, without a verdict where
    all lie between 0 and 1. n_items: size of the catalogue; None for the number of different items,
    if every user has a row for each. A column weight, if there is one, says what a row stands for:
    the inverse of its chance of being in the table, or how often it is counted. Each row is an
    impression: a user may have an item several times. Other columns are not used.

    A table without all items, such as each user's first 100, is diagnosed by the rows that it has,
    which must have been chosen without looking at the clicks; where they cannot have been, there is
    no verdict. sampled_negatives: the rows are all clicks of these users and, for each user, others
    drawn uniformly from the n_items it did not click; all sums are then estimates of the
    catalogue's.
    repair: diagnosed is what it makes of the scores, as logits; ranks are counted in the table.
    Raises InputError, which names the row (from 1, without a header), for whatever cannot be used.
    """
    if n_items is not None:
        n_items = _count(n_items)
    if sampled_negatives and n_items is None:
        raise InputError("sampled_negatives needs n_items (--items): how many they stand for.")
    where = "The table" if isinstance(table, pd.DataFrame) else str(table)
    if not isinstance(table, pd.DataFrame):
        path = Path(table).expanduser()
        if path.suffix.lower() == ".npz":
            if sampled_negatives or n_items is not None:
                raise InputError(f"{path} holds whole matrices: leave out --items and the like.")
            return diagnose(*_matrices(path), of=of, repair=repair)
        table = _read(path)
    columns = _columns(where, table)
    n = len(table)
    if not n:
        raise InputError(f"{where} is empty: give a row for each pair of user and item.")
    (user, users), (item, items) = (_codes(where, columns[name]) for name in ("user", "item"))
    clicked = _numbers(columns["clicked"])
    _refuse(~np.isin(clicked, (0, 1)), where, "clicked is neither 0 nor 1")
    hit = clicked == 1
    _check_clicks(hit)
    values = _numbers(columns["score"])
    score = _logits(values, of, lambda at: f"{where}, row {at + 1}")
    doubt = _seem_probabilities(values, of)
    weight = _numbers(columns[WEIGHT]) if WEIGHT in columns else None
    if n_items is not None and n_items < items:
        raise InputError(f"n_items = {n_items}, but {where} has {items} different items.")
    if weight is not None:
        good = np.isfinite(weight) & (weight >= 0) & (weight <= _LARGEST)
        _refuse(~good, where, "the weight is not a finite number of 0 or more")
        lost = (weight > 0) & (weight < 1e-15 * weight.max())
        _refuse(lost, where, "the weight is below 1e-15 of the largest: no sum holds both")
        if sampled_negatives:
            raise InputError(f"{where} has weights: drop the column, or sampled_negatives.")
        _check_clicks(hit[weight > 0])
    told = sampled_negatives or weight is not None  # how the rows were chosen
    if weight is not None and (weight == 1).all():
        weight = None
    # One order whatever the file's: of users, items, scores, clicked last.
    order = np.lexsort([hit, score, item, user])
    user, item, score, hit = user[order], item[order], score[order], hit[order]
    again = np.append(False, (np.diff(user) == 0) & (np.diff(item) == 0))
    rows = _Rows(score, hit, np.bincount(user, minlength=users))
    whole = weight is None and not again.any() and n == users * (n_items or items)
    sampled = sampled_negatives and not whole
    if sampled and n_items is not None:
        both = order[again & (hit | np.roll(hit, 1))]
        _refuse(np.isin(np.arange(n), both), where, "its user has this item as a click elsewhere")
        clicks = rows.by_user(hit)
        others = rows.lengths - clicks
        _refuse((others == 0)[user][np.argsort(order)], where, "its user has no sampled negative")
        rows = rows._replace(weight=np.where(hit, 1.0, ((n_items - clicks) / others)[user]))
    elif weight is not None:
        weight = weight[order]
        keep = weight > 0
        rows = _Rows(score[keep], hit[keep], np.bincount(user[keep], minlength=users), weight[keep])
    if repair is not None:
        rows = _repaired(rows, repair)
    return _judge(
        rows,
        rows,
        n_items or (items if whole else None),
        whole,
        sampled=sampled,
        one_choice=whole and _one_choice(rows),
        doubt=doubt,
        bare=not told and n < math.exp(-_SLIGHT) * users * (n_items or items),
        notes=(_impressions(again),) if again.any() and not sampled else (),
    )


def diagnose_run(
    run: runs.Run, users: int = 2000, *, repair: repairs.Repair | None = None
) -> Diagnosis:
    """A run of this library: estimated on its validation users, judged on the first test users.

    Over the items that may be recommended by the run's protocol; p̂ by its loss's link, or
    what a repair of the run's `logits` makes of it. InputError for BPR, which has none, unless
    repaired.
    """
    if run.loss.link is None and repair is None:
        raise InputError(
            f"{run.settings.name} learns differences of scores: there is no p̂ to diagnose."
        )
    split, known = run.data.split, run.theorem
    if known is not None and np.ndim(known.alpha):
        known = None  # where each item has its own α, no single offset is the theorem's
    known = known if repair is None else None
    fit, judged = (
        _of_run(run, held, repair) for held in (split.validation, split.test.first(users))
    )
    # How a run was trained is known: only with BCE or gBCE its offset is that of some k.
    return _judge(fit, judged, split.n_items, True, known, one_choice=known is not None)


def _of_run(run: runs.Run, held: Holdout, repair: repairs.Repair | None) -> _Rows:
    split = run.data.split
    scores = run.logits(run.scores(held))
    may = held.candidates(split.n_items, split.protocol.exclude_seen) & np.isfinite(scores)
    rows = _Rows(scores[may], held.hits(split.n_items)[may], may.sum(axis=1))
    if repair is None:
        return rows
    return _repaired(rows, repair, repair.groups(np.nonzero(may)[1] + 1, split.n_items))


def _repaired(rows: _Rows, repair: repairs.Repair, group: np.ndarray | None = None) -> _Rows:
    """The same pairs with the logits of what a repair makes of them; group: each one's."""
    pairs = repairs.Pairs(rows.scores, rows.hit, rows.lengths, group)
    prob = pairs.repaired(repair)
    with np.errstate(divide="ignore"):
        # An exact 0 or 1, as of isotonic steps, has no logit; one beyond all others counts as it.
        return rows._replace(scores=np.clip(logit(prob), -_CERTAIN, _CERTAIN))


def _judge(
    fit: _Rows,
    judged: _Rows,
    n_items: int | None,
    whole: bool,
    known: FixedPoint | None = None,
    *,
    sampled: bool = False,
    one_choice: bool = False,
    doubt: str = "",
    bare: bool = False,
    notes: tuple[str, ...] = (),
) -> Diagnosis:
    """Offset and slope from `fit`, all else from `judged`; known: Theorem 5.1's; bare: some rows
    of a catalogue, and nothing is said of how they were chosen.
    """
    if len(fit.lengths) < 2:
        raise InputError("One user tells nothing of how sure the offset is: give more users.")
    offset, interval, met = _offset(fit)
    if not met:
        doubt = doubt or "the offset is not identifiable, because no shift meets the clicks"
    if bare:
        doubt = doubt or _chosen_by_clicks(fit, offset)
    slope, no_slope = _slope(fit, offset)
    s, hit = judged.scores, judged.hit
    raw, shifted = repairs.Logistic(1.0), repairs.Logistic(1.0, -offset)
    cures: dict[str, tuple[float, np.ndarray]] = {
        "raw σ(s)": (0.0, raw(s)),
        "offset subtracted": (offset, shifted(s)),
    }
    if known:
        # With collisions the inverse exceeds 1 where no P could have led to the score.
        by = np.nan if known.offset is None else known.offset
        cures["analytic"] = by, np.minimum(known.prior(s), 1.0)
    users = len(judged.lengths)
    curves = {
        name: calibration.reliability_curve(prob, hit, weight=judged.weight)
        for name, (_, prob) in cures.items()
    }
    rows = {
        name: {
            "offset": by,
            "sum": judged.total(prob) / users,
            "ece": calibration.error_of(curves[name]),
        }
        for name, (by, prob) in cures.items()
    }
    found = Diagnosis(
        users=users,
        pairs=len(s),
        n_items=n_items,
        whole=whole,
        expected=float(rows["raw σ(s)"]["sum"]),
        observed=judged.total(hit) / users,
        top=_top(judged),
        offset=offset,
        interval=interval,
        slope=slope,
        repairs=pd.DataFrame(rows).T,
        curves=curves,
        advice=_advice(n_items, judged, shifted(s)),
        notes=(*_notes(judged, whole, sampled, n_items, slope, no_slope), *notes),
        sampled=sampled,
        one_choice=one_choice,
        doubt=doubt,
    )
    improves = (found.advice["sum"] - found.observed).abs() < abs(found.expected - found.observed)
    return replace(found, advice=found.advice[improves & bool(found.subtract)])


def _offset(fit: _Rows) -> tuple[float, tuple[float, float], bool]:
    """The shift with which Σσ(s − shift) = Σ clicks; its 95 % interval; whether it meets them.

    The interval is the percentile one over 1,000 resamples of users, or wider: as wide as the exact
    binomial interval (Clopper & Pearson, 1934) of the number of clicks, unless all users have
    equally many, which is then by design; and with few users as Student's t over users.
    """
    s, hit, users = fit.scores, fit.hit, len(fit.lengths)
    clicks, total = fit.total(hit), fit.total(np.ones(len(s)))
    if 2 * clicks > total:  # by symmetry: the other pairs are the few
        offset, (low, high), met = _offset(fit._replace(scores=-s, hit=~hit))
        return -offset, (-high, -low), met

    def expected(shift: float) -> float:
        return max(fit.total(expit(s - shift)), np.finfo(float).tiny)

    def solve(target: float) -> float:
        """The shift with which Σσ(s − shift) = target; infinite where none is."""
        if not 0 < target < total:
            return np.inf if target <= 0 else -np.inf
        # With all scores at the lowest or the highest, the shift would be this; 1 for rounding.
        level = float(logit(target / total))
        slack = 1 + 4 * float(np.spacing(np.abs(s).max()))
        ends = s.min() - level - slack, s.max() - level + slack
        return float(
            brentq(lambda x: math.log(expected(x)) - math.log(target), *ends, maxiter=2000)
        )

    offset = solve(clicks)
    met = abs(math.log(expected(offset) / clicks)) < 1e-6
    p = expit(s - offset)
    of_user = np.stack([fit.by_user(x) for x in (p, p * (1 - p), hit)], axis=1)  # (U, 3)
    blocks = of_user
    if users > _BLOCKS:
        blocks = np.add.reduceat(of_user, np.arange(_BLOCKS) * users // _BLOCKS)
    rng, n = np.random.default_rng(0), len(blocks)
    drawn = np.array([blocks[rng.integers(n, size=n)].sum(axis=0) for _ in range(1000)])
    sums, change, came = drawn.T
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # A resample without a click would need an infinite shift.
        apart = np.where(came > 0, np.log(sums / came), np.inf)
        # One Newton step from the estimate, on the logarithm, which is almost linear in the shift.
        resampled = offset + apart * sums / change
        rate = of_user[:, 1].sum() / of_user[:, 0].sum()  # −d log Σσ(s − shift) / d shift
    low, high = map(float, np.quantile(resampled, [0.025, 0.975], method="inverted_cdf"))

    def linear(shift: float) -> bool:
        gone = math.log(expected(shift) / clicks) + (shift - offset) * rate
        return abs(gone) < 0.1

    if not (all(linear(x) for x in (low, high) if np.isfinite(x)) and low <= offset <= high):
        least, most = np.quantile(apart, [0.025, 0.975], method="inverted_cdf")
        low, high = (solve(clicks * math.exp(min(-x, 700.0))) for x in (least, most))  # no overflow
    fewest, most = _bounds(fit, of_user)
    low, high = min(low, solve(clicks * most)), max(high, solve(clicks * fewest))
    # Where the sum is met by design the interval is a point, and rounding may put it beside offset.
    return offset, (min(low, offset), max(high, offset)), met


def _bounds(fit: _Rows, of_user: np.ndarray) -> tuple[float, float]:
    """95 % bounds of Σ of what the clicks stand for, as shares of the clicks that came; (1, 1) where
    resampling says it all. of_user (U, 3): Σp, Σp(1 − p) and Σ clicks of each user.
    """
    sums, _, came = of_user.T
    bounds = [(1.0, 1.0)]
    if came.min() < came.max():
        number, trials = float(fit.hit.sum()), float(len(came))
        if fit.weight is not None:
            mass = fit.weight[fit.hit] / fit.weight[fit.hit].max()
            number = mass.sum() ** 2 / (mass**2).sum()  # Kish's effective number
        if fit.weight is not None or came.max() > 1:  # else each user is one trial
            trials = number * fit.total(np.ones(len(fit.hit))) / came.sum()
        ends = stats.beta.ppf(
            [0.025, 0.975], [number, number + 1], [trials - number + 1, trials - number]
        )
        bounds += [tuple(ends * trials / number)]
    if len(came) < _FEW:
        error = (sums / came.sum() - came / came.sum()).std(ddof=1) * np.sqrt(len(came))
        error = min(error * stats.t.ppf(0.975, len(came) - 1), 500.0)
        bounds += [(np.exp(-error), np.exp(error))]
    fewest, most = np.array(bounds).T
    return float(fewest.min()), float(most.max())


def _slope(fit: _Rows, offset: float) -> tuple[float, str]:
    """Platt's slope, or NaN and why there is none."""
    try:
        return repairs.platt(fit.scores - offset, fit.hit, fit.weight).slope, ""
    except InputError as error:
        return np.nan, str(error)


def _chosen_by_clicks(fit: _Rows, offset: float) -> str:
    """Why rows of a catalogue cannot have been chosen without looking at the clicks; "" if they can.

    They cannot where each user has exactly one click, or the same share of clicks as all others; or
    where nearly all have a click, by far more than the repaired probabilities allow.
    """
    clicks, users = fit.by_user(fit.hit), len(fit.lengths)
    if (clicks == 1).all():
        seen = f"each of the {users:,} users has exactly one click"
    elif users >= 10 and np.ptp(clicks / fit.lengths) < 1e-9:
        seen = f"each of the {users:,} users has the same share of clicks"
    else:
        none = np.exp(fit.by_user(-np.logaddexp(0, fit.scores - offset)))  # Π(1 − p)
        with_click = int((clicks > 0).sum())
        beyond = with_click - (1 - none).sum() > 3 * np.sqrt((none * (1 - none)).sum()) + 0.5
        if with_click < _NEARLY_ALL * users or not beyond:
            return ""
        seen = f"{with_click:,} of {users:,} users have a click"
    return (
        f"{seen} among few rows, as if clicked items were added to the table or others drawn "
        "beside them. Clicks and uniformly sampled others: say sampled_negatives with n_items "
        "(--sampled-negatives --items); all that may be recommended: add a column weight of 1"
    )


def _one_choice(rows: _Rows) -> bool:
    """Whether there is one click a user, as in theory, within twice the error of a sum of chances.

    Where users are without a click, the offset holds log(users / clicks) beside that of training.
    """
    return bool(abs(rows.hit.sum() - len(rows.lengths)) <= 2 * np.sqrt(len(rows.lengths)))


def _seem_probabilities(values: np.ndarray, of: str | None) -> str:
    """Why scores that nobody called logits may be none."""
    if of is None and values.min() >= 0 and values.max() <= 1:
        return (
            "its scores all lie between 0 and 1 and were read as logits: say what they are, "
            'of="probabilities" or of="logits" (--of)'
        )
    return ""


def _top(judged: _Rows) -> pd.DataFrame:
    """Mean p and share of clicks among each user's first 1 and 10; one with fewer items gives those.
    No rows where rows stand for others, which may be among the first.
    """
    rows = {}
    if judged.weight is None:
        user = np.repeat(np.arange(len(judged.lengths)), judged.lengths)
        order = np.lexsort([-judged.scores, user])  # stable
        place = np.arange(len(order)) - np.repeat(
            np.cumsum(judged.lengths) - judged.lengths, judged.lengths
        )
        for cutoff in (1, 10):
            first = order[place < cutoff]
            rows[cutoff] = {
                "predicted": expit(judged.scores[first]).mean(),
                "observed": judged.hit[first].mean(),
            }
    return pd.DataFrame(rows, index=["predicted", "observed"]).T


def _advice(n_items: int | None, judged: _Rows, prior: np.ndarray) -> pd.DataFrame:
    """The paper's k and t; k is halved until α is no larger than on MovieLens-1M. No rows without
    the catalogue's size. prior (n,): what the model says of the pairs, repaired.
    """
    rows = []
    if n_items and n_items > 1:
        k = 2 ** int(np.clip(np.log2(_DENSEST * (n_items - 1)), 0, 8))
        pairs = [(few, t) for few in sorted({max(k // 2, 1), k}) for t in (0.75, 0.9)]
        for negatives, t in [*pairs, (k, 1.0)]:
            alpha = theory.alpha(negatives, n_items)
            beta = theory.beta_from_t(t, alpha)
            prob = theory.converged_probability(prior, alpha, beta)
            rows.append((negatives, t, alpha, beta, judged.total(prob) / len(judged.lengths)))
    return pd.DataFrame(rows, columns=["k", "t", "alpha", "beta", "sum"])


def _notes(
    judged: _Rows, whole: bool, sampled: bool, n_items: int | None, slope: float, no_slope: str
) -> tuple[str, ...]:
    notes = []
    if whole and n_items and len(judged.hit) < len(judged.lengths) * n_items:
        notes += [
            "Only items that may be recommended count: what the model gives to the others, such as "
            "those already seen, is missing from Σp."
        ]
    if no_slope:
        notes += [no_slope]
    elif slope <= 0:
        notes += [f"The slope is {slope:.2f}: clicks fall as scores rise. Are these distances?"]
    elif abs(slope - 1) > _SLOPE:
        notes += [
            f"The slope is {_short(slope)}: a shift repairs the level, not the spread, which needs "
            "repairs.platt."
        ]
    if sampled:
        notes += [
            "All sums are estimated for the catalogue: a click counts once, a sampled negative as "
            "often as it stands for items that the user did not click."
        ]
    elif judged.weight is not None:
        notes += ["Each row counts by its weight."]
    if judged.weight is not None:
        notes += ["Which items are a user's first is not known from rows that stand for others."]
    if not whole and not sampled:
        notes += [
            "Not every user has every item: Σp over the whole catalogue is unknown, and each sum "
            "here is of these items."
        ]
        if n_items is None:
            notes += ["Without the catalogue's size (n_items) there is no advice on k and t."]
        if (judged.by_user(judged.hit) > 0).all():
            notes += [
                "Every user has a click among its rows. If clicked items were added to the table, "
                "the offset comes out too low."
            ]
    return tuple(notes)


def _impressions(again: np.ndarray) -> str:
    rows = int(again.sum())
    return (
        f"{counted(rows, 'row')} repeat{'s' * (rows == 1)} a user and item: each row counts as "
        "an impression of its own."
    )


def _short(value: float) -> str:
    """Two decimals; fewer digits of what is large."""
    return f"{value:z.2f}" if not abs(value) >= 1e5 else f"{value:.4g}"


def _array(name: str, values: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} is no array of one shape: give (users, n_items).") from error


def _matrix_of_hits(hit: ArrayLike, shape: tuple[int, int]) -> np.ndarray:
    hits = _array("hit", hit)
    if hits.shape == shape[:1] and np.issubdtype(hits.dtype, np.integer):
        if hits.min() < 0 or hits.max() >= shape[1]:
            raise InputError(
                f"hit names columns {hits.min()} to {hits.max()}, scores has 0 to {shape[1] - 1}."
            )
        return np.arange(shape[1]) == hits[:, None]
    if hits.shape != shape:
        raise InputError(
            f"hit must have the shape {shape} of scores, or one integer column for each of "
            f"{shape[0]} users, not {hits.dtype} of {hits.shape}."
        )
    if not np.isin(hits, (0, 1)).all():
        raise InputError("hit must be True or False (1 or 0) for each pair.")
    return hits.astype(bool)


def _check_clicks(clicked: np.ndarray) -> None:
    if not 0 < clicked.sum() < len(clicked):
        raise InputError(
            f"{'All' if clicked.any() else 'None'} of the {len(clicked):,} pairs are clicked: a "
            "diagnosis needs clicks and other items beside them."
        )


def _logits(values: np.ndarray, of: str | None, place: Any) -> np.ndarray:
    """Logits of what was given, flat float64; place(at) says where entry `at` stands."""
    if of is not None and of not in OF:
        raise InputError(f"of = {of!r}: say whether the scores are {' or '.join(OF)}.")
    values = np.asarray(values, float)

    def refuse(bad: np.ndarray, why: str) -> None:
        if bad.any():
            at = int(bad.argmax())
            raise InputError(f"{place(at)}: the score {values[at]:g} {why}.")

    refuse(~np.isfinite(values), "is not a finite number; leave the pair out or correct it")
    if of != "probabilities":
        refuse(np.abs(values) > _LARGEST, "is too large for a logit")
        return values
    refuse((values < 0) | (values > 1), 'is no probability; for logits say of="logits"')
    refuse((values == 0) | (values == 1), "has no logit: it was rounded; export logits instead")
    return logit(values)


def _refuse(bad: np.ndarray, where: str, why: str) -> None:
    if bad.any():
        raise InputError(f"{where}, row {int(bad.argmax()) + 1}: {why}.")


def _count(n_items: Any) -> int:
    try:
        return operator.index(n_items)
    except TypeError:
        raise InputError(f"n_items must be a whole number, not {n_items!r}.") from None


# --- tables --------------------------------------------------------------------------------------


def _columns(where: str, table: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns that are used, each once."""
    names = [str(name) for name in table.columns]
    if absent := [name for name in COLUMNS if name not in names]:
        raise InputError(
            f"{where} needs the columns {', '.join(COLUMNS)}; {', '.join(absent)} not among "
            f"{', '.join(names)}: rename or add."
        )
    if twice := [name for name in (*COLUMNS, WEIGHT) if names.count(name) > 1]:
        raise InputError(f"{where} has the column {twice[0]} twice: keep one.")
    return {name: table.iloc[:, names.index(name)] for name in (*COLUMNS, WEIGHT) if name in names}


def _codes(where: str, ids: pd.Series) -> tuple[np.ndarray, int]:
    """Ids (n,) -> their places (n,) among the sorted different ids, and how many these are."""
    try:
        codes, different = pd.factorize(ids)
        _refuse(codes < 0, where, f"the {ids.name} is missing")
        if different.dtype == object and len({type(x) for x in different}) > 1:  # 7 and "7" are one
            same, different = pd.factorize(pd.Index([_same(x) for x in different], dtype=object))
            codes = same[codes]
        try:
            order = np.argsort(np.asarray(different), kind="stable")
        except TypeError:  # of several types
            order = np.argsort([f"{type(x).__name__} {x}" for x in different], kind="stable")
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 (lists and other objects, of which each may fail)
        raise InputError(f"{where}: a {ids.name} is neither a number nor text.") from error
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    return place[codes], len(different)


def _same(value: Any) -> Any:
    """A number as the text that a file has for it, anything else as it is."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return str(int(value)) if value == int(value) else str(value)
    return value


def _numbers(column: pd.Series) -> np.ndarray:
    """(n,) float64 of numbers, True and False, and text that spells them; NaN for all else."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy(float)
    codes, texts = pd.factorize(np.array([_text(x) for x in column], dtype=object))
    spelt = {"true": "1", "false": "0"}
    words = pd.Series([spelt.get(text.strip().lower(), text) for text in texts], dtype=object)
    return pd.to_numeric(words, errors="coerce").to_numpy(float)[codes]


def _text(value: Any) -> str:
    try:
        return str(value).encode("ascii", "replace").decode()
    except Exception:  # noqa: BLE001 (an object of anybody's)
        return ""


_TEXTS = {".csv": ",", ".tsv": "\t", ".jsonl": None}
_PACKED = (".gz", ".bz2", ".xz", ".zip")


def _read(path: Path) -> pd.DataFrame:
    """A table with ids as text, so that "7" and "007" stay two items."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in _PACKED
    suffix = suffixes[-2 if packed else -1] if len(suffixes) > packed else ""
    if suffix not in _TEXTS and (packed or suffix not in (".parquet", ".npy")):
        raise InputError(
            f"{path}: give a table that ends in .csv, .tsv, .parquet, .jsonl or .npy, or in .npz."
        )
    if not path.is_file():
        raise InputError(f"There is no file {path}: correct the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of a field too many
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # all text is read alike
            if suffix == ".parquet":
                return pd.read_parquet(path)
            if suffix == ".npy":
                return _of_array(np.load(io.BytesIO(path.read_bytes()), allow_pickle=False))
            if suffix == ".jsonl":
                with pd.read_json(path, lines=True, dtype=False, chunksize=100_000) as chunks:
                    return pd.concat(list(chunks), ignore_index=True)
            table = pd.read_csv(
                path,
                sep=_TEXTS[suffix],
                dtype={"user": str, "item": str},
                keep_default_na=False,  # "NA" may be somebody's id
                na_values=[""],
                skipinitialspace=True,
                index_col=False,  # else one field too many would shift the columns
            )
        for name, column in table.items():
            if not pd.api.types.is_numeric_dtype(column):  # a stray quote swallows lines
                broken = column.astype(str).str.contains("\n", regex=False)
                _refuse(
                    broken.to_numpy(bool), str(path), f"{name} goes over two lines; mend quotes"
                )
        return table
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 (damaged files raise some forty kinds)
        raise InputError(f"{path} cannot be read ({_reason(error)}): correct the file.") from error


def _matrices(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """scores and hit of a .npz."""
    if not path.is_file():
        raise InputError(f"There is no file {path}: correct the path.")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return stored["scores"], stored["hit"]
    except KeyError:
        raise InputError(f"{path} needs two arrays (users, n_items), scores and hit.") from None
    except Exception as error:  # noqa: BLE001 (as above)
        raise InputError(f"{path} cannot be read ({_reason(error)}): correct the file.") from error


def _of_array(rows: np.ndarray) -> pd.DataFrame:
    """Rows of a .npy: an array with named fields, or (n, 4) in the order of COLUMNS."""
    if rows.dtype.names:
        return pd.DataFrame({name: list(rows[name].ravel()) for name in rows.dtype.names})
    if rows.ndim != 2 or rows.shape[1] not in (len(COLUMNS), len(COLUMNS) + 1):
        raise InputError(
            f"A .npy holds rows of {', '.join(COLUMNS)}, (n, 4), not {rows.shape}: for matrices "
            "save a .npz with scores and hit."
        )
    return pd.DataFrame(rows, columns=[*COLUMNS, WEIGHT][: rows.shape[1]])


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
