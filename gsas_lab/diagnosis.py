"""Is a recommender overconfident, by how much, and what cures it? From scores and clicks alone.

    diagnose(scores, hit)     matrices (users, items) of any model
    diagnose_table(path)      rows user, item, score, clicked of any model
    diagnose_run(run)         a run of this library

By Theorem 5.1 negative sampling raises every logit by one offset, log(β/α). Here it is estimated:
the shift with which predicted and observed clicks agree, Σσ(s − offset) = Σ clicks over all pairs
that may be recommended. That is the shift of greatest likelihood too. Its interval comes from
resampling users.
"""

import html
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit

from gsas_lab import calibration, runs, theory
from gsas_lab.errors import InputError
from gsas_lab.settings import BERNOULLI
from gsas_lab.splits import Holdout

OF = ("logits", "probabilities")
COLUMNS = ("user", "item", "score", "clicked")

_SLIGHT = 0.1  # logits: odds that are wrong by a tenth pass for calibrated
_BLURRED = 1.0  # logits: a wider interval around 0 decides nothing
_SLOPE = 0.2  # a slope further from 1 is told
_DENSEST = 0.075  # α of the paper's k = 256 on MovieLens-1M


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What was found, and what to do; reads as text in a terminal, as tables in notebooks."""

    users: int  # judged
    pairs: int  # of user and item, judged
    n_items: int | None  # size of the catalogue; None where a partial table does not say it
    whole: bool  # whether the pairs are all items that may be recommended to these users
    expected: float  # mean Σp of a user over the pairs
    observed: float  # mean clicks of a user over the pairs
    top: pd.DataFrame  # rows: cutoffs 1 and 10; predicted: mean p of the first K, observed: P@K
    offset: float  # logits, estimated: above 0 is overconfident
    interval: tuple[float, float]  # of the offset, 95 %, by bootstrap over users
    slope: float  # Platt's; 1 where a shift is all that is wrong
    repairs: pd.DataFrame  # a row each: as it is, subtracted, by theory; offset, sum (Σp), ece
    curves: dict[str, pd.DataFrame]  # their reliability curves, for `figures.reliability`
    advice: pd.DataFrame  # k, t, alpha, beta for a retraining; `sum`: its Σσ(s) by Theorem 5.1
    notes: tuple[str, ...]  # what cannot be known from these data, or misleads

    @property
    def verdict(self) -> str:
        """One sentence that begins with over-/underconfident, calibrated or undecided."""
        low, high = self.interval
        said = f"it expects {self.expected:,.4g} clicks a user, the truth is {self.observed:.3g}"
        if low > 0 and self.offset > _SLIGHT:
            return f"overconfident: {said}; its logits are {self.offset:.2f} too high."
        if high < 0 and self.offset < -_SLIGHT:
            return f"underconfident: {said}; its logits are {-self.offset:.2f} too low."
        if high - low > _BLURRED:
            return f"undecided: {said}; the offset may be {low:.2f} to {high:.2f}, so add users."
        if abs(self.slope - 1) > _SLOPE:
            return f"calibrated on average only: {said}; but its slope is {self.slope:.2f}, not 1."
        return f"calibrated: {said}."

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
            "offset (95 % interval)": f"{self.offset:z.2f} ({low:z.2f} to {high:z.2f})",
            "slope": f"{self.slope:.2f}",
        }
        if "analytic" in self.repairs.index:
            told["offset by Theorem 5.1"] = f"{self.repairs['offset']['analytic']:z.2f}"
        if self.n_items and self.verdict.startswith("over"):
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
        if not self.subtract:
            return "Nothing to subtract."
        return f"Subtract {self.subtract:.2f} from every logit: no retraining, no rank changes."

    def _advice(self) -> pd.DataFrame:
        shown = self.advice.round({"alpha": 4, "beta": 4, "sum": 2})
        return shown.rename(columns={"sum": f"Σσ(s){self._of_these}"})

    @property
    def _of_these(self) -> str:
        return "" if self.whole else ", these items"


class _Scored(NamedTuple):
    """Users with what may be recommended to them."""

    scores: np.ndarray  # (U, C) logits; −inf, which is p = 0, where nothing may be recommended
    hit: np.ndarray  # (U, C) True where it was clicked

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and hits of the pairs, flat."""
        may = np.isfinite(self.scores)
        return self.scores[may], self.hit[may]


def diagnose(
    scores: ArrayLike,
    hit: ArrayLike,
    *,
    of: str = "logits",
    alpha: float | None = None,
    beta: float | None = None,
    collisions: bool = False,
    candidates: ArrayLike | None = None,
) -> Diagnosis:
    """From what a model says of the whole catalogue, and what was clicked. Estimate and judgement
    are of the same users.

    scores (users, n_items): of "logits", before σ, or "probabilities"; a softmax gives
    probabilities. hit: (users, n_items) True where clicked, or (users,) each user's clicked column,
    counted from 0. candidates (users, n_items): what may be recommended; everything if None.
    alpha, beta, collisions: Theorem 5.1's, if known, to compare with its inverse.
    Raises InputError for shapes that do not fit, scores that are not finite, no click or only clicks.
    """
    s = np.asarray(scores)
    if s.ndim != 2 or not s.size or not (np.issubdtype(s.dtype, np.number) or s.dtype == bool):
        raise InputError(f"scores must be numbers of (users, n_items), not {s.dtype} of {s.shape}.")
    clicked = _matrix_of_hits(hit, s.shape)
    may = np.ones(s.shape, bool) if candidates is None else np.asarray(candidates)
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
    logits = np.full(s.shape, -np.inf)
    logits[may] = _logits(s[may], of, lambda at: f"Row {np.argwhere(may)[at][0]} of scores")
    given = _Scored(logits, clicked)
    known = None if alpha is None or beta is None else (alpha, beta, collisions)
    return _judge(given, given, s.shape[1], True, known)


def diagnose_table(
    table: pd.DataFrame | str | Path, *, of: str = "logits", n_items: int | None = None
) -> Diagnosis:
    """From rows user, item, score, clicked (1 or 0): a DataFrame, or a .csv, .tsv or .parquet file.

    Other columns are not used. of: whether scores are "logits" or "probabilities". n_items: size of
    the catalogue; None for the number of different items, if every user has a row for each.
    A table without that, such as each user's first 100, is diagnosed by the rows that it has. They
    must have been chosen without looking at the clicks.
    Raises InputError, which names the row (from 1, without a header), for whatever cannot be used.
    """
    where = "The table" if isinstance(table, pd.DataFrame) else str(table)
    table = table if isinstance(table, pd.DataFrame) else _read(Path(table).expanduser())
    if absent := [name for name in COLUMNS if name not in table.columns]:
        raise InputError(
            f"{where} needs the columns {', '.join(COLUMNS)}; {', '.join(absent)} not among "
            f"{', '.join(map(str, table.columns))}: rename or add."
        )
    if table.empty:
        raise InputError(f"{where} is empty: give a row for each pair of user and item.")
    (user, users), (item, items) = (pd.factorize(table[name]) for name in ("user", "item"))
    for name, codes in (("user", user), ("item", item)):
        _refuse(codes < 0, where, f"the {name} is missing")
    twice = pd.DataFrame({"user": user, "item": item}).duplicated().to_numpy()
    _refuse(twice, where, "its user had this item before; keep one of the two rows")
    score, clicked = (
        pd.to_numeric(table[name], errors="coerce").to_numpy(float) for name in ("score", "clicked")
    )
    _refuse(~np.isin(clicked, (0, 1)), where, "clicked is neither 0 nor 1")
    _check_clicks(clicked == 1)
    score = _logits(score, of, lambda at: f"{where}, row {at + 1}")
    if n_items is not None and n_items < len(items):
        raise InputError(f"n_items = {n_items}, but {where} has {len(items)} different items.")
    whole = len(table) == len(users) * (n_items or len(items))

    order = np.argsort(user, kind="stable")
    count = np.bincount(user)
    column = np.arange(len(table)) - np.repeat(np.cumsum(count) - count, count)
    given = _Scored(
        np.full((len(users), count.max()), -np.inf), np.zeros((len(users), count.max()), bool)
    )
    given.scores[user[order], column] = score[order]
    given.hit[user[order], column] = clicked[order] == 1
    return _judge(given, given, n_items or (len(items) if whole else None), whole, None)


def diagnose_run(run: runs.Run, users: int = 2000) -> Diagnosis:
    """A run of this library: estimated on its validation users, judged on the first test users.

    Over the items that may be recommended by the run's protocol; p̂ as in `ranking.probability`.
    InputError for BPR, which has none.
    """
    if run.settings.loss == "bpr":
        raise InputError("BPR learns differences of scores: there is no p̂ to diagnose.")
    split, known = run.data.split, None
    if run.settings.loss in BERNOULLI and not run.settings.normalised:
        # One α only: where each item has its own, no single offset is the theorem's.
        known = run.fixed_point if np.ndim(run.fixed_point[0]) == 0 else None
    fit, judged = (_of_run(run, held) for held in (split.validation, split.test.first(users)))
    return _judge(fit, judged, split.n_items, True, known)


def _of_run(run: runs.Run, held: Holdout) -> _Scored:
    split = run.data.split
    scores = run.scores(held).astype(float)
    if run.settings.normalised:
        scores = logit(run.probabilities(scores))
    may = held.candidates(split.n_items, split.protocol.exclude_seen)
    return _Scored(np.where(may, scores, -np.inf), held.hits(split.n_items))


def _judge(
    fit: _Scored,
    judged: _Scored,
    n_items: int | None,
    whole: bool,
    known: tuple[float, float, bool] | None,
) -> Diagnosis:
    """Offset and slope from `fit`, all else from `judged`; known: α, β, collisions."""
    if len(fit.scores) < 2:
        raise InputError("One user tells nothing of how sure the offset is: give more users.")
    offset, interval = _offset(fit)
    s, hit = fit.pairs()
    slope = calibration.platt(s - offset, hit).slope  # from near the solution, so always found
    s, hit = judged.pairs()
    raw, shifted = calibration.Logistic(1.0), calibration.Logistic(1.0, -offset)
    cures: dict[str, tuple[float, np.ndarray]] = {
        "raw σ(s)": (0.0, raw(s)),
        "offset subtracted": (offset, shifted(s)),
    }
    if known:
        # With collisions the inverse exceeds 1 where no P could have led to the score.
        prob = np.minimum(calibration.analytic(*known)(s), 1.0)
        cures["analytic"] = float(theory.logit_offset(*known[:2])), prob
    users = len(judged.scores)
    rows = {
        name: {
            "offset": by,
            "sum": prob.sum() / users,
            "ece": calibration.expected_calibration_error(prob, hit),
        }
        for name, (by, prob) in cures.items()
    }
    return Diagnosis(
        users=users,
        pairs=len(s),
        n_items=n_items,
        whole=whole,
        expected=float(rows["raw σ(s)"]["sum"]),
        observed=float(hit.sum() / users),
        top=_top(judged),
        offset=offset,
        interval=interval,
        slope=slope,
        repairs=pd.DataFrame(rows).T,
        curves={n: calibration.reliability_curve(prob, hit) for n, (_, prob) in cures.items()},
        advice=_advice(n_items, shifted(judged.scores)),
        notes=_notes(judged, whole, n_items, slope),
    )


def _offset(fit: _Scored) -> tuple[float, tuple[float, float]]:
    """The shift with which Σσ(s − shift) = Σ clicks, and its 95 % interval over users."""
    s, hit = fit.pairs()
    level = logit(hit.mean())
    # With all scores at the lowest or the highest, the shift would be this; 1 for rounding.
    ends = s.min() - level - 1, s.max() - level + 1
    offset = float(brentq(lambda shift: np.log(expit(s - shift).sum() / hit.sum()), *ends))
    p = expit(fit.scores - offset)
    by_user = np.stack([p.sum(1), (p * (1 - p)).sum(1), fit.hit.sum(1)], axis=1)  # (U, 3)
    rng, n = np.random.default_rng(0), len(by_user)
    drawn = np.array([by_user[rng.integers(n, size=n)].sum(axis=0) for _ in range(1000)])
    expected, change, clicks = drawn.T
    # One Newton step from the estimate, on the logarithm, which is almost linear in the shift.
    with np.errstate(divide="ignore"):  # a resample without a click would need an infinite shift
        resampled = offset + np.log(expected / clicks) * expected / change
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return offset, (float(low), float(high))


def _top(judged: _Scored, cutoffs: tuple[int, ...] = (1, 10)) -> pd.DataFrame:
    """Mean p and share of clicks among each user's first K; a user with fewer items gives those."""
    order = np.argsort(-judged.scores, axis=1, kind="stable")[:, : max(cutoffs)]
    first = _Scored(*(np.take_along_axis(values, order, axis=1) for values in judged))
    rows = {}
    for cutoff in cutoffs:
        s, hit = _Scored(first.scores[:, :cutoff], first.hit[:, :cutoff]).pairs()
        rows[cutoff] = {"predicted": expit(s).mean(), "observed": hit.mean()}
    return pd.DataFrame(rows).T


def _advice(n_items: int | None, prior: np.ndarray) -> pd.DataFrame:
    """The paper's k and t; k is halved until α is no larger than on MovieLens-1M. No rows without
    the catalogue's size. prior (U, C): what the model says of the items, repaired.
    """
    rows = []
    if n_items and n_items > 1:
        k = 2 ** int(np.clip(np.log2(_DENSEST * (n_items - 1)), 0, 8))
        pairs = [(few, t) for few in sorted({max(k // 2, 1), k}) for t in (0.75, 0.9)]
        for negatives, t in [*pairs, (k, 1.0)]:
            alpha = theory.alpha(negatives, n_items)
            beta = theory.beta_from_t(t, alpha)
            total = theory.forecast_sum(prior, alpha, beta).mean()
            rows.append((negatives, t, alpha, beta, total))
    return pd.DataFrame(rows, columns=["k", "t", "alpha", "beta", "sum"])


def _notes(judged: _Scored, whole: bool, n_items: int | None, slope: float) -> tuple[str, ...]:
    notes = []
    if whole and np.isinf(judged.scores).any():
        notes += [
            "Only items that may be recommended count: what the model gives to the others, such as "
            "those already seen, is missing from Σp."
        ]
    if slope <= 0:
        notes += [f"The slope is {slope:.2f}: clicks fall as scores rise. Are these distances?"]
    elif abs(slope - 1) > _SLOPE:
        notes += [
            f"The slope is {slope:.2f}: a shift repairs the level, not the spread, which needs "
            "calibration.platt."
        ]
    if not whole:
        notes += [
            "Not every user has every item: Σp over the whole catalogue is unknown, and each sum "
            "here is of these items."
        ]
        if n_items is None:
            notes += ["Without the catalogue's size (n_items) there is no advice on k and t."]
        if judged.hit.any(axis=1).all():
            notes += [
                "Every user has a click among its rows. If clicked items were added to the table, "
                "the offset comes out too low."
            ]
    return tuple(notes)


def _matrix_of_hits(hit: ArrayLike, shape: tuple[int, int]) -> np.ndarray:
    hits = np.asarray(hit)
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


def _logits(values: np.ndarray, of: str, place: Any) -> np.ndarray:
    """Logits of what was given, flat float64; place(at) says where entry `at` stands."""
    if of not in OF:
        raise InputError(f"of = {of!r}: say whether the scores are {' or '.join(OF)}.")
    values = np.asarray(values, float)

    def refuse(bad: np.ndarray, why: str) -> None:
        if bad.any():
            at = int(bad.argmax())
            raise InputError(f"{place(at)}: the score {values[at]:g} {why}.")

    refuse(~np.isfinite(values), "is not a finite number; leave the pair out or correct it")
    if of == "logits":
        return values
    refuse((values < 0) | (values > 1), 'is no probability; for logits say of="logits"')
    refuse((values == 0) | (values == 1), "has no logit: it was rounded; export logits instead")
    return logit(values)


def _refuse(bad: np.ndarray, where: str, why: str) -> None:
    if bad.any():
        raise InputError(f"{where}, row {int(bad.argmax()) + 1}: {why}.")


def _read(path: Path) -> pd.DataFrame:
    """A table with ids as text, so that "7" and "007" stay two items."""
    readers = {".csv": ",", ".tsv": "\t", ".parquet": None}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: give a table that ends in {', '.join(readers)}.")
    if not path.is_file():
        raise InputError(f"There is no file {path}: correct the path.")
    separator = readers[path.suffix.lower()]
    try:
        if separator is None:
            return pd.read_parquet(path)
        with warnings.catch_warnings():  # pandas only warns of a field too many
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=separator,
                dtype={"user": str, "item": str},
                keep_default_na=False,  # "NA" may be somebody's id
                na_values=[""],
                index_col=False,  # else one field too many would shift the columns
            )
    except (ValueError, OSError, ImportError, Warning) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"{path} cannot be read ({reason}): correct the file.") from error
