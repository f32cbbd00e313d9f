"""Repairs: what makes probabilities of a trained model's scores, fitted on validation users only.

    repair = repairs.choose(pairs).repair     the one that validation users prefer, and why
    prob = repair(scores)                     scores (logits p̂) -> probabilities, same shape
    repairs.save(repair, "repair.json")       and `load`: the very same repair

A repair is fitted to `Pairs`: what may be recommended to the validation users. Where Theorem 5.1
holds nothing need be fitted: `theory.FixedPoint.prior` is its inverse.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import brentq, isotonic_regression
from scipy.special import expit, logit

from gsas_lab import files
from gsas_lab.calibration import (
    brier,
    check_hits,
    check_weight,
    expected_calibration_error,
    factorized,
    in_order,
    log_loss,
    numbers,
)
from gsas_lab.errors import InputError, counted, whole_number
from gsas_lab.theory import prior_from_logit

Recalibration: TypeAlias = Callable[[ArrayLike], np.ndarray]  # scores -> probabilities, same shape

FOLDS = 5  # of users, in cross-fitting
_DEEPEST = 10  # ranks that a rank-wise repair tells apart
_Z = 1.959963984540054


@dataclass(frozen=True)
class Repair(ABC):
    """From scores (logits) of any shape to probabilities. Its fields are all that it knows."""

    needs: ClassVar[str] = ""  # "rank" or "group": what it asks for beside the scores

    @abstractmethod
    def __call__(
        self, scores: ArrayLike, rank: ArrayLike | None = None, group: ArrayLike | None = None
    ) -> np.ndarray:
        """scores, of any shape -> probabilities. rank: each one's place among what may be recommended
        to the same user, from 1; group: its group's name. Both of the scores' shape, or none.

        InputError where the repair needs what is not given.
        """

    def groups(self, items: np.ndarray, n_items: int) -> np.ndarray | None:
        """The group of each of these items, 1…n_items, where the repair knows it; else None.

        InputError where it was fitted to a catalogue of another size.
        """
        return None

    def _beside(self, given: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
        if given is None:
            raise InputError(f"This repair goes by {self.needs}: give each score's {self.needs}.")
        found = np.asarray(given)
        if found.shape != shape:
            raise InputError(f"{self.needs} must have the shape {shape} of scores: {found.shape}.")
        return found


@dataclass(frozen=True)
class Logistic(Repair):
    """σ(slope · s + shift): an offset (slope 1), a temperature (shift 0) or Platt's line."""

    slope: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        _finite("slope and shift", self.slope, self.shift)

    def __call__(
        self, scores: ArrayLike, rank: ArrayLike | None = None, group: ArrayLike | None = None
    ) -> np.ndarray:
        s = _logits(scores)
        with np.errstate(over="ignore"):
            return expit(self.slope * s + self.shift)


@dataclass(frozen=True)
class Beta(Repair):
    """logit P = a·log p̂ − b·log(1 − p̂) + c with p̂ = σ(s), a and b at least 0 (Kull et al., 2017).

    log p̂ and log(1 − p̂) come from the logits, so that p̂ = 10⁻³⁰ has all its digits.
    """

    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        _finite("a, b and c", self.a, self.b, self.c)
        if min(self.a, self.b) < 0:
            raise InputError("a and b of a beta repair are at least 0: below it does not rise.")

    def __call__(
        self, scores: ArrayLike, rank: ArrayLike | None = None, group: ArrayLike | None = None
    ) -> np.ndarray:
        s = _logits(scores)
        with np.errstate(over="ignore"):
            return expit(self.c - self.a * np.logaddexp(0, -s) + self.b * np.logaddexp(0, s))


@dataclass(frozen=True)
class Steps(Repair):
    """Probabilities at rising scores; linear between them, constant beyond the ends."""

    scores: tuple[float, ...]
    prob: tuple[float, ...]

    def __post_init__(self) -> None:
        _finite("scores and prob", *self.scores, *self.prob)
        low, high = min(self.prob, default=-1.0), max(self.prob, default=2.0)
        rises = all(b > a for a, b in zip(self.scores, self.scores[1:], strict=False))
        falls = any(b < a for a, b in zip(self.prob, self.prob[1:], strict=False))
        if len(self.scores) != len(self.prob) or not rises or not 0 <= low <= high <= 1 or falls:
            raise InputError(
                "Steps need rising scores, and for each a probability in [0, 1] that never falls."
            )

    def __call__(
        self, scores: ArrayLike, rank: ArrayLike | None = None, group: ArrayLike | None = None
    ) -> np.ndarray:
        return np.interp(_logits(scores), self.scores, self.prob)


@dataclass(frozen=True)
class ByRank(Repair):
    """A line for each range of ranks, the last one for all ranks beyond (see `rank_wise`)."""

    last: tuple[int, ...]  # last rank of each range but the last, rising
    lines: tuple[Logistic, ...]  # one more than `last`

    needs = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(_as_line(line) for line in self.lines))
        rising = all(b > a for a, b in zip((0, *self.last), self.last, strict=False))
        whole = all(isinstance(rank, int) for rank in self.last)
        if len(self.lines) != len(self.last) + 1 or not rising or not whole:
            raise InputError("A repair by rank needs rising last ranks, and one line more.")

    def __call__(
        self, scores: ArrayLike, rank: ArrayLike | None = None, group: ArrayLike | None = None
    ) -> np.ndarray:
        s = _logits(scores)
        place = numbers("rank", self._beside(rank, s.shape))
        if place.size and not place.min() >= 1:
            raise InputError(f"Ranks count from 1, not from {place.min():g}.")
        part = np.searchsorted(self.last, place)
        slope = np.array([line.slope for line in self.lines])
        shift = np.array([line.shift for line in self.lines])
        with np.errstate(over="ignore"):
            return expit(slope[part] * s + shift[part])


@dataclass(frozen=True)
class ByGroup(Repair):
    """σ(s + the group's shift); the common shift for a group that was not seen (see `by_group`)."""

    names: tuple[Any, ...]  # of the groups: text or numbers
    shifts: tuple[float, ...]  # one each
    common: float  # the single offset that all are drawn towards
    items: tuple[Any, ...] | None = None  # each item's group, where it is the item that decides

    needs = "group"

    def __post_init__(self) -> None:
        _finite("shifts", self.common, *self.shifts)
        for told in (self.names, self.items or ()):
            if not isinstance(told, tuple) or not all(map(_plain, told)):
                raise InputError("The names of groups must be text or finite numbers.")
        if len(self.names) != len(self.shifts) or len(set(self.names)) < len(self.names):
            raise InputError("A repair by group needs one shift for each different group.")

    def groups(self, items: np.ndarray, n_items: int) -> np.ndarray | None:
        if self.items is None:
            return None
        if len(self.items) != n_items:
            raise InputError(
                f"The repair knows the groups of {len(self.items):,} items, and this catalogue has "
                f"{n_items:,}: fit it to this one."
            )
        return np.array(self.items, object)[items - 1]

    def __call__(
        self, scores: ArrayLike, rank: ArrayLike | None = None, group: ArrayLike | None = None
    ) -> np.ndarray:
        s = _logits(scores)
        if group is None and self.items is not None and s.shape[-1:] == (len(self.items),):
            group = np.broadcast_to(np.array(self.items, object), s.shape)
        place, names = factorized("group", self._beside(group, s.shape))
        known = dict(zip(self.names, self.shifts, strict=True))
        shift = np.array([known.get(name, self.common) for name in (*names, None)])  # −1: missing
        return expit(s + shift[place])


@dataclass(frozen=True)
class Inverse(Repair):
    """Theorem 5.1 inverted: nothing is fitted. Cut at 1 where no P could have led to the score."""

    alpha: float
    beta: float
    collisions: bool = False

    def __post_init__(self) -> None:
        _finite("alpha and beta", self.alpha, self.beta)
        if min(self.alpha, self.beta) <= 0 or not isinstance(self.collisions, bool):
            raise InputError(
                "alpha and beta of Theorem 5.1 lie above 0, and collisions is True or False."
            )

    def __call__(
        self, scores: ArrayLike, rank: ArrayLike | None = None, group: ArrayLike | None = None
    ) -> np.ndarray:
        s = _logits(scores)
        return np.minimum(prior_from_logit(s, self.alpha, self.beta, self.collisions), 1.0)


KINDS: dict[str, type[Any]] = {
    "logistic": Logistic,
    "beta": Beta,
    "steps": Steps,
    "by rank": ByRank,
    "by group": ByGroup,
    "inverse": Inverse,
}


def _finite(what: str, *values: Any) -> None:
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= sys.float_info.max  # NaN compares false, so it is caught as well
        ):
            long = isinstance(value, int) and abs(value) >= 10**30
            told = "one of over 30 digits" if long else repr(value)
            raise InputError(f"{what} must be finite numbers, not {told}.")


def _plain(name: Any) -> bool:
    """Can JSON hold it, so that it comes back as it was?"""
    return isinstance(name, str) or (isinstance(name, int | float) and abs(name) < math.inf)


def _logits(scores: ArrayLike) -> np.ndarray:
    """As float64. An infinite one, of a p̂ of exactly 0 or 1, as the largest: 0 times it is 0."""
    s = numbers("scores", scores).astype(float, copy=False)
    if np.isnan(s).any():
        raise InputError("scores must be numbers: a repair has no probability for NaN.")
    return np.clip(s, -sys.float_info.max, sys.float_info.max)


def _as_line(given: Any) -> Logistic:
    return given if isinstance(given, Logistic) else Logistic(**given)


def save(repair: Repair, path: str | Path) -> Path:
    """As JSON, with all digits: `load` gives an equal repair -> its path.

    InputError where a file that is no repair would be overwritten.
    """
    kind = next((name for name, made in KINDS.items() if type(repair) is made), None)
    if kind is None:
        raise InputError(f"{type(repair).__name__} is no repair of this library: nothing is saved.")
    path = files.chosen(path, "file")
    if path.is_file() and b"gsas-lab repair" not in files.read(path):
        raise InputError(f"{path} is no repair and would be overwritten: name another file.")
    files.write(path, files.as_json({"gsas-lab repair": 1, "kind": kind, **asdict(repair)}))
    return path


def load(path: str | Path) -> Repair:
    """What `save` wrote; InputError, one sentence, for anything else."""
    path = files.chosen(path, "file")
    told = files.parsed(path, files.read(path))
    wrong = f"{path} is damaged or holds no repair of this version: fit it again."
    kind = KINDS.get(str(told.pop("kind", "")))
    if (
        told.pop("gsas-lab repair", None) != 1
        or kind is None
        or set(told) != {part.name for part in fields(kind)}
    ):
        raise InputError(wrong)
    try:
        return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in told.items()})
    except (InputError, TypeError, ValueError):
        raise InputError(wrong) from None


@dataclass(frozen=True, eq=False)
class Pairs:
    """What may be recommended to each user, user after user: what a repair is fitted to."""

    scores: np.ndarray  # (n,) logits
    hit: np.ndarray  # (n,) True where it came
    lengths: np.ndarray  # (U,) pairs of each user
    group: np.ndarray | None = None  # (n,) each pair's group
    weight: np.ndarray | None = None  # (n,) above 0: what a pair stands for; None: 1 each
    items: tuple[Any, ...] | None = None  # (n_items,) the group of each, where it is the item's

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        hit: ArrayLike,
        candidates: ArrayLike | None = None,
        group: ArrayLike | None = None,
    ) -> "Pairs":
        """From matrices (users, n_items). candidates: what may be recommended, everything if None;
        group: (n_items,) of the items, (users, 1) of the users, or of each pair.
        """
        s, hits = numbers("scores", scores).astype(float, copy=False), check_hits(hit)
        if s.ndim != 2 or hits.shape != s.shape:
            raise InputError(
                f"scores and hit must be (users, n_items): {s.shape} and {hits.shape}."
            )
        may = _candidates(candidates, hits)
        if group is None:
            return cls(s[may], hits[may], may.sum(axis=1))
        names = _labels(group)
        try:
            of_pair = np.broadcast_to(names, s.shape)[may]
        except ValueError:
            raise InputError(
                f"group has labels of shape {names.shape}, which does not fit scores of {s.shape}."
            ) from None
        items = tuple(names.tolist()) if names.ndim == 1 else None
        return cls(s[may], hits[may], may.sum(axis=1), of_pair, items=items)

    def __post_init__(self) -> None:
        _scored(self.scores, self.hit)
        lengths = np.asarray(self.lengths)
        object.__setattr__(self, "lengths", lengths)
        if lengths.dtype.kind not in "iu" or lengths.min(initial=0) < 0:
            raise InputError("lengths must tell how many pairs each user has, 0 or more.")
        if lengths.sum() != len(self.scores):
            raise InputError(f"lengths tell {lengths.sum()} pairs of {len(self.scores)}.")
        if self.group is not None and np.shape(self.group) != self.scores.shape:
            raise InputError(f"group must have a name for each of {len(self.scores)} pairs.")
        if self.weight is not None:
            check_weight(self.weight, self.scores.shape)

    @cached_property
    def user(self) -> np.ndarray:
        """(n,) row of each pair's user."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def rank(self) -> np.ndarray:
        """(n,) place of each pair among its user's, from 1; equal scores in their order."""
        order = np.lexsort([-self.scores, self.user])
        found = np.empty(len(order), np.int64)
        starts = np.cumsum(self.lengths) - self.lengths
        found[order] = np.arange(1, len(order) + 1) - np.repeat(starts, self.lengths)
        return found

    def some(self, users: np.ndarray) -> "Pairs":
        """Those of some users; users (U,) bool."""
        keep = np.repeat(users, self.lengths)
        group = None if self.group is None else self.group[keep]
        weight = None if self.weight is None else self.weight[keep]
        found = Pairs(
            self.scores[keep], self.hit[keep], self.lengths[users], group, weight, self.items
        )
        if "rank" in self.__dict__:
            found.__dict__["rank"] = self.rank[keep]
        return found

    def repaired(self, repair: "Repair | Recalibration") -> np.ndarray:
        """(n,) probabilities; InputError where it gives something else."""
        if isinstance(repair, Repair):
            rank = self.rank if repair.needs == "rank" else None
            prob = repair(self.scores, rank=rank, group=self.group)
        else:
            prob = numbers("What the repair gives", repair(self.scores))
        if prob.shape != self.scores.shape or not ((prob >= 0) & (prob <= 1)).all():
            raise InputError("The repair does not give each pair a probability from 0 to 1.")
        return prob

    def by_user(self, values: np.ndarray) -> np.ndarray:
        """Σ of (n,), by weight, for each user: (U,)."""
        weighed = values if self.weight is None else values * self.weight
        return np.bincount(self.user, weights=weighed, minlength=len(self.lengths))


def offset(scores: ArrayLike, hit: ArrayLike, weight: ArrayLike | None = None) -> Logistic:
    """σ(s − o) with the o of least log loss: predicted and observed hits agree, Σσ(s − o) = Σhit.

    weight (n,), above 0: each pair counts so often. It moves no rank.
    """
    s, hits = _scored(scores, hit)
    mass = np.ones_like(s) if weight is None else check_weight(weight, s.shape)
    wanted, level = float((mass * hits).sum()), float(logit((mass * hits).sum() / mass.sum()))

    def apart(shift: float) -> float:
        return math.log(max(float(mass @ expit(s + shift)), 1e-300)) - math.log(wanted)

    # Were all scores the highest, or the lowest, this would be the shift.
    slack = 1 + 4 * float(np.spacing(np.abs(s).max()))
    shift = float(brentq(apart, level - s.max() - slack, level - s.min() + slack, maxiter=2000))
    if abs(apart(shift)) > 1e-6:
        raise InputError("The offset is not identifiable, because no shift meets the hits.")
    return Logistic(1.0, shift)


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


def isotonic(scores: ArrayLike, hit: ArrayLike) -> Steps:
    """The non-decreasing steps of least squared error on these pairs (Zadrozny & Elkan, 2002).

    Between two steps it is linear, beyond the ends constant: scores may become equal.
    """
    s, hits = _scored(scores, hit)
    s, place, count = np.unique(s, return_inverse=True, return_counts=True)
    share = np.bincount(place, weights=hits) / count
    steps = isotonic_regression(share, weights=count).x
    flat = np.diff(steps) == 0  # of a flat stretch its two ends are enough
    keep = ~(np.append(False, flat) & np.append(flat, False))
    return Steps(tuple(s[keep].tolist()), tuple(steps[keep].tolist()))


def beta(scores: ArrayLike, hit: ArrayLike, weight: ArrayLike | None = None) -> Beta:
    """Beta calibration: a, b ≥ 0 and c of least log loss (Kull, Silva Filho & Flach, 2017).

    A coefficient that would fall below 0 is 0, and the others are fitted again. InputError where
    none is identifiable, as for `platt`.
    """
    s, hits = _scored(scores, hit)
    line = platt(s, hits, weight)  # says so where nothing is identifiable
    mass = np.ones(1) if weight is None else check_weight(weight, s.shape)
    both = np.stack([-np.logaddexp(0, -s), np.logaddexp(0, s)])  # log p̂, −log(1 − p̂)
    middle = both.mean(axis=1, keepdims=True)
    spread = np.abs(both - middle).mean(axis=1, keepdims=True)
    used = [row for row in (0, 1) if spread[row, 0] > 1e-9 * np.abs(both[row]).max()]
    while True:
        x = np.concatenate([(both[used] - middle[used]) / spread[used], np.ones((1, len(s)))])
        start = np.zeros(len(used) + 1)
        start[0] = max(line.slope, 0.0) * spread[used[0], 0] if used else 0.0
        share = float((mass * hits).sum() / (mass * np.ones_like(s)).sum())
        start[-1] = float(logit(share))
        found = _logistic(x, hits, start, mass)
        if not used or (found[:-1] >= 0).all():
            break
        used.pop(int(found[:-1].argmin()))
    slopes = np.zeros(2)
    slopes[used] = found[:-1] / spread[used, 0]
    return Beta(float(slopes[0]), float(slopes[1]), float(found[-1] - slopes @ middle[:, 0]))


def rank_wise(pairs: Pairs, deepest: int = _DEEPEST) -> ByRank:
    """A line for each range of the first `deepest` ranks, fitted to what stands there.

    After Sato (RecSys 2024), who fits distinct calibrators to groups of top ranks with weights by
    rank. Its paper's grouping and weights are not copied; here: ranges 1, 2, 3–4, 5–8, … as wide as
    what lies above them; pairs within one weigh 1 / log₂(1 + rank), as in DCG; all ranks beyond share
    one line, fitted to them. Where a range has no slope of its own it gets the line of all pairs,
    shifted so that its hits are met, or as it is where it holds no hit.
    """
    whole, deepest = platt(pairs.scores, pairs.hit, pairs.weight), whole_number("deepest", deepest)
    last = [2**power for power in range(64) if 2**power < deepest] + [deepest]
    part = np.searchsorted(last, pairs.rank)
    lines = []
    for number in range(len(last) + 1):
        here = part == number
        s, hit = pairs.scores[here], pairs.hit[here]
        weight = np.ones(len(s)) if pairs.weight is None else pairs.weight[here]
        if number < len(last):
            weight = weight / np.log2(1 + pairs.rank[here])
        try:
            lines.append(platt(s, hit, weight))
        except InputError:
            try:
                moved = offset(whole.slope * s + whole.shift, hit, weight).shift
                lines.append(Logistic(whole.slope, whole.shift + moved))
            except InputError:
                lines.append(whole)
    return ByRank(tuple(last), tuple(lines))


def by_group(pairs: Pairs) -> ByGroup:
    """An offset for each group, drawn towards the common one by what chance alone would scatter.

    The common shift c is `offset`'s; group g's is c + δ with δ ~ N(0, τ²) beforehand and the δ of
    greatest posterior density: the fewer hits a group has, the closer to c. τ² is estimated from the
    groups (DerSimonian & Laird, 1986) at each step of the fit, and 0 if they differ no more than by
    chance. Where the item decides its group, the repair keeps each item's, and needs no more.
    """
    if pairs.group is None:
        raise InputError("A repair by group needs each pair's group.")
    common = offset(pairs.scores, pairs.hit, pairs.weight).shift
    place, names = in_order(*factorized("group", pairs.group))
    if place.min() < 0:
        raise InputError("group: the name of some pairs is missing; name one for each.")
    mass = np.ones(len(place)) if pairs.weight is None else pairs.weight

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=mass * values, minlength=len(names))

    came, delta = sums(pairs.hit), np.zeros(len(names))
    for _ in range(100):
        p = expit(pairs.scores + (common + delta)[place])
        information = np.maximum(sums(p * (1 - p)), 1e-12)
        seen = delta + (came - sums(p)) / information  # its variance is 1 / information
        middle = (information @ seen) / information.sum()
        excess = information @ (seen - middle) ** 2 - (len(names) - 1)
        scale = information.sum() - (information @ information) / information.sum()
        between = max(excess / scale, 0.0) if scale > 0 else 0.0
        new = np.clip(between / (between + 1 / information) * seen, delta - 2, delta + 2)
        settled, delta = np.abs(new - delta).max() < 1e-9, new
        if settled:
            break
    told = tuple(name.item() if isinstance(name, np.generic) else name for name in names)
    return ByGroup(told, tuple((common + delta).tolist()), common, pairs.items)


def popularity_groups(counts: ArrayLike, parts: int = 5) -> np.ndarray:
    """Each item's group by how often it was taken in training (n_items,) -> names (n_items,).

    Cut so that each group has about the same share of all interactions: "1 most taken" are a few
    items, "5 least taken" most of the catalogue. Equal counts may part, the lower item first.
    """
    parts, taken = whole_number("parts", parts, 2), numbers("counts", counts).astype(float)
    if taken.ndim != 1 or not taken.size or not (np.isfinite(taken) & (taken >= 0)).all():
        raise InputError("Groups by popularity need each item's count, 0 or more.")
    order = np.argsort(-taken, kind="stable")
    upto = np.cumsum(taken[order]) - taken[order] / 2
    part = np.empty(len(taken), np.int64)
    part[order] = np.minimum(upto * parts / max(taken.sum(), 1.0), parts - 1).astype(int)
    names = [str(number + 1) for number in range(parts)]
    names[0], names[-1] = "1 most taken", f"{parts} least taken"
    return np.array(names)[part]


# From the plainest to the most flexible: among equals the first is chosen.
FITS: dict[str, Callable[[Pairs], Repair]] = {
    "offset": lambda pairs: offset(pairs.scores, pairs.hit, pairs.weight),
    "temperature": lambda pairs: temperature(pairs.scores, pairs.hit),
    "Platt": lambda pairs: platt(pairs.scores, pairs.hit, pairs.weight),
    "beta": lambda pairs: beta(pairs.scores, pairs.hit, pairs.weight),
    "by group": by_group,
    "rank-wise": rank_wise,
    "isotonic": lambda pairs: isotonic(pairs.scores, pairs.hit),
}


@dataclass(frozen=True, eq=False)
class Choice:
    """The repair that validation users prefer, and what each of them would have done."""

    name: str
    repair: Repair  # fitted to all users
    why: str  # one sentence
    table: pd.DataFrame  # a row each, cross-fitted: see `choose`
    repairs: dict[str, Repair]  # all of them, fitted to all users


def choose(
    pairs: Pairs,
    known: Mapping[str, Repair] | None = None,
    top: int | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> Choice:
    """The plainest repair whose log loss on users that it was not fitted to is not beaten.

    pairs: of validation users. known: repairs that need no fit, such as {"analytic": Inverse(…)}.
    Users are cut into folds; each fold is repaired by what the others teach. Table, a row a repair,
    the plainest first: log_loss, of a user (nats); better, by how much less than the scores as they
    are, with low and high, its 95 % interval over users; sum, a user's Σp, with sum_low and sum_high;
    ece (20 bins, all pairs); moved, targets at another place than before, ties counted against them;
    undefined: why there is none. Chosen is the first row whose loss is at most one standard error (of
    the difference over users) above the least.
    top: loss, sum and ece of each user's first so many items alone, which is what matters to whoever
    shows no more than these; all fits but the rank-wise one are made to all pairs all the same.
    """
    users = len(pairs.lengths)
    if users < 2:
        raise InputError("One user cannot judge what it was fitted to: give more users.")
    top = None if top is None else whole_number("top", top)
    folds, seed = min(whole_number("folds", folds, 2), users), whole_number("seed", seed, 0)
    fold = np.random.default_rng(seed).permutation(users) % folds
    at = pairs.rank <= (len(pairs.rank) if top is None else top)  # where it is judged
    fixed: dict[str, Repair] = {"as it is": Logistic(1.0), **(known or {})}
    wanted = [name for name in FITS if name != "by group" or pairs.group is not None]
    rows: dict[str, dict[str, Any]] = {}
    losses: dict[str, np.ndarray] = {}
    whole: dict[str, Repair] = dict(fixed)
    before = _places(pairs, pairs.scores)
    for name in [*fixed, *wanted]:
        prob = np.empty(len(pairs.scores))
        try:
            if name in fixed:
                prob = pairs.repaired(fixed[name])
            else:
                for number in range(folds):
                    held = fold == number
                    made = FITS[name](pairs.some(~held))
                    prob[held[pairs.user]] = pairs.some(held).repaired(made)
                whole[name] = FITS[name](pairs)
        except InputError as error:
            rows[name] = {"undefined": str(error)}
            continue
        with np.errstate(divide="ignore"):
            each = -np.where(pairs.hit, np.log(prob), np.log1p(-prob))
        losses[name] = pairs.by_user(np.where(at, each, 0.0))
        mean, low, high = _mean_of_users(pairs.by_user(np.where(at, prob, 0.0)))
        rows[name] = {
            "log_loss": losses[name].mean(),
            "sum": mean, "sum_low": low, "sum_high": high,
            "ece": expected_calibration_error(
                prob[at], pairs.hit[at], weight=None if pairs.weight is None else pairs.weight[at]
            ),
            "moved": int((_places(pairs, prob) != before).sum()),
        }  # fmt: skip
        if np.isfinite(losses[name]).all() and np.isfinite(losses["as it is"]).all():
            better, low, high = _mean_of_users(losses["as it is"] - losses[name])
            rows[name] |= {"better": better, "low": low, "high": high}
        elif not np.isfinite(losses[name]).all():
            rows[name]["undefined"] = "It gives probability 0 to what came, or 1 to what did not."
    means = {name: float(loss.mean()) for name, loss in losses.items() if np.isfinite(loss).all()}
    if not means:
        raise InputError(
            "No repair gives every hit a chance: each has probability 0 for what came, or 1 for what "
            "did not. Are these scores logits?"
        )
    best = min(means, key=lambda name: means[name])
    for name in means:
        apart = losses[name] - losses[best]
        if means[name] - means[best] <= apart.std(ddof=1) / math.sqrt(users):
            break
    where = "" if top is None else f" and among their first {counted(top, 'item')}"
    why = f"On users that it was not fitted to{where}, {name} has a log loss of {means[name]:.4f} a user"
    if name == best:
        why += ", the least of all."
    else:
        why += f": no more than one standard error above {best} ({means[best]:.4f}), and plainer."
    columns = "log_loss better low high sum sum_low sum_high ece moved undefined".split()
    table = pd.DataFrame(rows).T.reindex(columns=columns)
    return Choice(name, whole[name], why, table, whole)


def _mean_of_users(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over users with its 95 % interval, by the normal."""
    error = _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean()) - error, float(values.mean()) + error


def _places(pairs: Pairs, values: np.ndarray) -> np.ndarray:
    """How many of its user's pairs have no less than each hit: (hits,)."""
    starts = np.cumsum(pairs.lengths) - pairs.lengths
    return np.array(
        [
            int((values[a : a + n] >= values[at]).sum())
            for at in np.flatnonzero(pairs.hit)
            for a, n in [(starts[pairs.user[at]], pairs.lengths[pairs.user[at]])]
        ]
    )


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
    s, hits = numbers("scores", scores).astype(float, copy=False), check_hits(hit)
    if s.ndim != 2 or hits.shape != s.shape or not (hits.sum(axis=1) == 1).all():
        raise InputError("compare needs scores (users, n_items) and one hit in each row.")
    may, top = _candidates(candidates, hits), whole_number("top", top)
    ranked = np.where(may, s, -np.inf)
    order = np.argsort(-ranked, axis=1, kind="stable")
    first = order[:, :top]
    rank = np.empty(s.shape, np.int64)
    np.put_along_axis(rank, order, np.arange(1, s.shape[1] + 1)[None], axis=1)
    first_hits = np.take_along_axis(hits, first, axis=1)
    rows = {}
    for name, recalibrate in recalibrations.items():
        by = recalibrate
        found = by(s, rank=rank) if isinstance(by, Repair) else by(s)
        prob = np.where(may, found, 0.0)
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


def _candidates(candidates: ArrayLike | None, hits: np.ndarray) -> np.ndarray:
    """(users, n_items): what may be recommended. InputError where a hit may not."""
    if candidates is None:
        return np.ones(hits.shape, bool)
    may = check_hits(candidates, "candidates")
    if may.shape != hits.shape:
        raise InputError(f"candidates must have the shape {hits.shape} of hit, not {may.shape}.")
    if (outside := (hits & ~may).any(axis=1)).any():
        raise InputError(
            f"Row {int(outside.argmax())} of hit has a hit outside candidates: add it to them."
        )
    return may


def _labels(group: ArrayLike) -> np.ndarray:
    """Names of groups as they were given, text and numbers apart."""
    code, names = factorized("group", group)
    if code.size and code.min() < 0:
        raise InputError("group: the name of some pairs is missing; name one for each.")
    plain = [name.item() if isinstance(name, np.generic) else name for name in names]
    return np.array([*plain, None], object)[code.ravel()].reshape(code.shape)


def _scored(scores: ArrayLike, hit: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    s, hits = numbers("scores", scores).astype(float, copy=False).ravel(), check_hits(hit).ravel()
    if s.shape != hits.shape or not np.isfinite(s).all():
        raise InputError("A fit needs one finite score for each hit or miss.")
    if not 0 < hits.sum() < len(hits):
        raise InputError("A fit needs hits and misses: these pairs hold only one of them.")
    return s, hits


def _logistic(x: np.ndarray, hit: np.ndarray, weights: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The w with the least log loss of σ(w @ x), x (m, n) of about unit size, from `weights`
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
