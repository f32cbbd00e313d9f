"""Leave-one-out, or a split by time: what is trained on, what chooses the best weights, what is reported.

Every choice that moves a number is in `Protocol`, which is stored with each result and printed
below each table.
"""

import math
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import ArrayLike

from gsas_lab.errors import InputError, counted, whole_number
from gsas_lab.interactions import Interactions

VARIANTS = ("paper", "port", "time")


@dataclass(frozen=True)
class Histories:
    """Histories of different lengths, one after another."""

    items: np.ndarray  # (n_interactions,) int32, oldest first
    offsets: np.ndarray  # (n + 1,) int64; history j is items[offsets[j]:offsets[j + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, j: int | np.integer) -> np.ndarray:
        return self.items[self.offsets[j] : self.offsets[j + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(n,) interactions of each history."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Holdout:
    """Users, what is known of them, and the item that comes next."""

    users: np.ndarray  # (n,) rows of the data set
    histories: Histories  # n of them: everything before the target
    targets: np.ndarray  # (n,) int64 items

    def subset(self, rows: ArrayLike) -> "Holdout":
        """The same, for some of the users (row numbers of this holdout)."""
        rows = np.asarray(rows)
        starts, lengths = self.histories.offsets[rows], self.histories.lengths[rows]
        return Holdout(
            self.users[rows], _cut(self.histories.items, starts, lengths), self.targets[rows]
        )

    def first(self, users: int) -> "Holdout":
        """The same, for at most so many users: the first."""
        return self.subset(range(min(users, len(self.users))))

    def hits(self, n_items: int) -> np.ndarray:
        """(n, n_items): True where the target is; column i − 1 is item i."""
        return np.arange(1, n_items + 1) == self.targets[:, None]

    def candidates(self, n_items: int, exclude_seen: bool) -> np.ndarray:
        """(n, n_items): what may be recommended; without the history's items, but for the target."""
        may = np.ones((len(self.users), n_items), bool)
        if exclude_seen:
            rows = np.repeat(np.arange(len(self.users)), self.histories.lengths)
            may[rows, self.histories.items - 1] = False
        return may | self.hits(n_items)


@dataclass(frozen=True)
class Protocol:
    """Everything that makes two numbers comparable, or not."""

    dataset: str
    sha256: str  # of the source file
    users: int
    items: int
    interactions: int
    trained_interactions: int
    tie_rule: str  # what orders interactions, and equal times
    split: str  # "paper", "port", or "time, before …"
    validation_users: int
    split_seed: int
    exclude_seen: bool  # seen items do not compete when the target is ranked
    taken_again: float  # share of the interactions with an item that the user had taken before
    targets_seen: float  # the same, of the test targets
    few_rivals: int  # users for whom fewer items compete with the target than the largest cutoff
    unused: tuple[str, ...] = ()  # columns of the file that count for nothing
    candidates: str = "whole catalogue"
    rank_ties: str = "equal scores: the lower item id first"
    cutoffs: tuple[int, ...] = (1, 10)

    def __str__(self) -> str:
        seen = "excluded, but for the target" if self.exclude_seen else "kept"
        again = (
            f"{self.targets_seen:.1%} of the test targets and {self.taken_again:.1%} of all "
            "interactions take an item again; "
        )
        few = (
            f"for {counted(self.few_rivals, 'user')} fewer than {max(self.cutoffs)} other items "
            f"compete, so their Recall@{max(self.cutoffs)} is 1 whatever is recommended; "
        )
        by_time = self.split.startswith("time")
        kind = self.split if by_time else f"leave-one-out, {self.split}'s variant"
        unused = f"; columns not used: {', '.join(self.unused[:8])}"
        unused += " …" if len(self.unused) > 8 else ""
        return (
            f"Protocol: {self.dataset} (sha256 {self.sha256[:12]}), {counted(self.users, 'user')}, "
            f"{counted(self.items, 'item')}, {counted(self.interactions, 'interaction')}, "
            f"{self.trained_interactions:,} of them trained on; {kind}; "
            f"{counted(self.validation_users, 'validation user')} (seed {self.split_seed}); "
            f"ranked over the {self.candidates}, seen items {seen}; "
            f"{again if self.taken_again else ''}{few if self.few_rivals else ''}{self.rank_ties}; "
            f"order: {self.tie_rule}{unused if self.unused else ''}."
        )

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Split:
    """Training histories, validation and test holdouts, and the protocol that made them."""

    train: Histories  # one for each user
    validation: Holdout
    test: Holdout
    n_items: int
    protocol: Protocol
    cut: float | None = None  # of a split by time: what is before it may be trained on


def leave_one_out(
    interactions: Interactions,
    validation_users: int = 512,
    seed: int = 42,
    variant: str = "paper",
    exclude_seen: bool | None = None,
) -> Split:
    """The last interaction of each user is the test target; some users also lose one to validation.

    variant "paper": the second-last interaction of the validation users is their validation target;
    all other interactions are trained on (993,059 of MovieLens-1M's).
    variant "port" (the public PyTorch code): nobody's second-last interaction is trained on, and
    the validation users' third-last is not either (987,019).
    Validation users are drawn by RandomState(seed).choice without replacement among users with at
    least 4 interactions (all of MovieLens-1M's): seed 42 gives the port's own 512 users.
    exclude_seen: None takes the data set's convention. The default of 512 validation users means half
    of them where there are fewer.

    Raises InputError for a user with a single interaction, who has nothing to predict from, and for
    data in which no item ever competes with the target.
    """
    if variant not in ("paper", "port"):
        raise InputError(f"Split '{variant}' is no leave-one-out: choose paper or port.")
    lengths = np.diff(interactions.offsets)
    short = np.flatnonzero(lengths < 2)
    if len(short):
        raise InputError(
            f"{interactions.name}: user {interactions.user_ids[short[0]]} has one interaction, so "
            f"nothing is left to predict it from ({len(short)} such users); load with min_user=3."
        )
    eligible, validation_users = np.flatnonzero(lengths >= 4), _users(validation_users)
    if validation_users == 512 > len(eligible):  # the default, which is MovieLens-1M's
        validation_users = max(1, len(eligible) // 2)
    if not len(eligible):
        raise InputError(
            f"{interactions.name}: no user has 4 interactions, as a validation user must: lower "
            "min_item, or give longer histories."
        )
    if not 1 <= validation_users <= len(eligible):
        raise InputError(
            f"validation_users = {validation_users}: choose from 1 to {len(eligible)}, the users "
            f"of {interactions.name} with at least 4 interactions."
        )
    chosen = np.random.RandomState(seed).choice(len(eligible), validation_users, replace=False)
    held = np.sort(eligible[chosen])

    starts = interactions.offsets[:-1]
    dropped = np.full(len(lengths), 1 if variant == "paper" else 2)
    dropped[held] += 1
    train = _cut(interactions.items, starts, np.maximum(lengths - dropped, 0))
    everyone = np.arange(len(lengths))
    test = Holdout(
        everyone,
        _cut(interactions.items, starts, lengths - 1),
        interactions.items[interactions.offsets[1:] - 1].astype(np.int64),
    )
    validation = Holdout(
        held,
        _cut(interactions.items, starts[held], lengths[held] - 2),
        interactions.items[interactions.offsets[held + 1] - 2].astype(np.int64),
    )
    targets = interactions.offsets[1:] - 1
    drawn = validation_users, seed
    protocol = _protocol(interactions, train, everyone, targets, variant, drawn, exclude_seen)
    return Split(train, validation, test, interactions.n_items, protocol)


def by_time(
    interactions: Interactions,
    at: str = "0.8",
    validation_users: int = 512,
    seed: int = 42,
    exclude_seen: bool | None = None,
) -> Split:
    """Everything before a moment is trained on, nothing after it: no user's future, and nobody else's.

    at: a date such as 2009-06-01 (of UTC; a number where the file's times are no dates), or the share
    of interactions that lie before, such as 0.8. Test: of each user with an interaction before, the
    first after it. Validation: the last before it, of users drawn as in `leave_one_out` among those
    with at least 3 before; these interactions are not trained on. Items that are first taken after
    the moment stay in the catalogue, untrained, as they are in service.

    Raises InputError for data without times or with one time only, a moment outside of them, one that
    cannot be read, and one that leaves nobody to test or to validate.
    """
    cut, label = _moment(interactions, at)
    times, starts = interactions.times, interactions.offsets[:-1]
    assert times is not None
    before = np.add.reduceat(times < cut, starts, dtype=np.int64)
    tested = np.flatnonzero((before >= 1) & (before < interactions.lengths))
    if not len(tested):
        raise InputError(
            f"{interactions.name}: nobody has interactions both before and after {at}."
        )
    eligible, validation_users = np.flatnonzero(before >= 3), _users(validation_users)
    if validation_users == 512 > len(eligible):
        validation_users = max(1, len(eligible) // 2)
    if not 1 <= validation_users <= len(eligible):
        raise InputError(
            f"validation_users = {validation_users}: choose from {counted(len(eligible), 'user')} "
            f"of {interactions.name} with 3 interactions before {at}."
        )
    chosen = np.random.RandomState(seed).choice(len(eligible), validation_users, replace=False)
    held, trained = np.sort(eligible[chosen]), before.copy()
    trained[held] -= 1
    items = interactions.items
    test = Holdout(
        tested, _cut(items, starts[tested], before[tested]),
        items[starts[tested] + before[tested]].astype(np.int64),
    )  # fmt: skip
    validation = Holdout(
        held, _cut(items, starts[held], trained[held]),
        items[starts[held] + trained[held]].astype(np.int64),
    )  # fmt: skip
    train = _cut(items, starts, trained)
    told = (
        f"time, before {label}: {counted(len(tested), 'user')} tested on their first item after it"
    )
    targets = starts[tested] + before[tested]
    drawn = validation_users, seed
    protocol = _protocol(interactions, train, tested, targets, told, drawn, exclude_seen)
    return Split(train, validation, test, interactions.n_items, protocol, cut)


def _protocol(
    interactions: Interactions,
    train: Histories,
    users: np.ndarray,
    targets: np.ndarray,
    split: str,
    drawn: tuple[int, int],
    exclude_seen: bool | None,
) -> Protocol:
    """What was chosen, and what follows for the metrics; of both splits.

    users, targets (U,): who is tested, and at which interaction. drawn: validation users and the seed
    that chose them. InputError where no item competes with anybody's target.
    """
    exclude_seen = interactions.exclude_seen if exclude_seen is None else exclude_seen
    again, starts = interactions.again, interactions.offsets[users]
    before = np.concatenate([[0], np.cumsum(again, dtype=np.int64)])
    distinct = targets + 1 - starts - (before[targets + 1] - before[starts])  # the target's too
    rivals = interactions.n_items - (distinct if exclude_seen else np.ones_like(distinct))
    if not rivals.any():
        raise InputError(
            f"{interactions.name}: no item competes with anybody's target, so every metric is 1: "
            + (
                "everybody has seen everything; set exclude_seen=False."
                if interactions.n_items > 1
                else "it has one item; give a file with more."
            )
        )
    return Protocol(
        dataset=interactions.name,
        sha256=interactions.sha256,
        users=interactions.n_users,
        items=interactions.n_items,
        interactions=interactions.n_interactions,
        trained_interactions=len(train.items),
        tie_rule=interactions.tie_rule,
        split=split,
        validation_users=drawn[0],
        split_seed=drawn[1],
        exclude_seen=exclude_seen,
        taken_again=float(again.mean()),
        targets_seen=float(again[targets].mean()),
        few_rivals=int((rivals < max(Protocol.cutoffs)).sum()),
        unused=interactions.unused,
    )


def after(
    interactions: Interactions, split: Split, most: int = 10_000, seed: int = 0
) -> tuple[Holdout, np.ndarray]:
    """What came after the cut of a split by time: each interaction with all before it, and when.

    Of users with an interaction before the cut; `most` of them drawn, in the order of time. The times
    (n,) are those of `Interactions.times`. A user comes several times.
    """
    if split.cut is None or interactions.times is None:
        raise InputError(f"{interactions.name} was not split by time: nothing is after.")
    user = np.repeat(np.arange(interactions.n_users), interactions.lengths)
    first = interactions.times[interactions.offsets[user]] < split.cut
    rows = np.flatnonzero((interactions.times >= split.cut) & first)
    if len(rows) > most:
        rows = np.random.default_rng(seed).choice(rows, most, replace=False)
    rows = rows[np.lexsort([rows, interactions.times[rows]])]
    start = interactions.offsets[user[rows]]
    held = Holdout(
        user[rows], _cut(interactions.items, start, rows - start),
        interactions.items[rows].astype(np.int64),
    )  # fmt: skip
    return held, interactions.times[rows]


def _users(validation_users: int) -> int:
    return whole_number("validation_users", validation_users, 0)  # its range is told with the data


def _moment(interactions: Interactions, at: str) -> tuple[float, str]:
    """The moment of a split, and its words in the protocol."""
    name, times = interactions.name, interactions.times
    if times is None:
        raise InputError(
            f"{name} has no times: a split by time is not possible, choose split=paper."
        )
    low, high = float(times.min()), float(times.max())
    if low == high:
        raise InputError(
            f"{name}: all times are equal, so nothing comes after any: use split=paper."
        )
    dated = 0 <= low and high > 6.3e8
    text = str(at).strip()
    try:
        if dated and re.fullmatch(r"\d{4}", text):  # a year, as no file's times are so early
            raise ValueError
        value = float(text)
        share = 0 < value < 1
        cut = float(np.quantile(times, value, method="higher")) if share else value
    except ValueError:
        cut = _seconds(text)
    if not math.isfinite(cut):
        raise InputError(
            f"split_at = {text!r} is no date such as 2009-06-01, and no share between 0 and 1."
        )
    words = [_written(x, dated) for x in (low, high, cut)]
    if not low < cut <= high:
        raise InputError(
            f"split_at = {text!r}: the times of {name} go from {words[0]} to {words[1]}, so nothing "
            f"lies {'before' if cut <= low else 'after'} it: give a date between, or a share such as 0.8."
        )
    return cut, words[2]


def _seconds(text: str) -> float:
    """Seconds from 1970, of UTC where the date says no zone; NaN for what is no date."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # also 2009 and 2009-06, which numpy reads
        shorter = re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2]))?", text)
        return float(np.datetime64(text, "s").astype(np.int64)) if shorter else math.nan


def _written(moment: float, dated: bool) -> str:
    dated = dated and abs(moment) < 2e11  # later than the year 8000 nothing is a date
    return str(np.datetime64(int(moment), "s")) if dated else f"{moment:g}"


def _cut(items: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Histories:
    """The pieces items[start : start + length], one after another."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return Histories(items[place], offsets)
