"""What a learner answers -> a verdict that moves on, never an exception.

A check is made by the kind of its answer: `number`, `numbers`, `letters`, `function`, or `judged`
for any other. What it needs: the task, a nudge for those who have no idea, the truth (computed, not
typed), a sentence for the right answer, and typical wrong answers, each with the hint that it
deserves.
"""

import re
import traceback
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Row: TypeAlias = tuple[Any, ...]  # the arguments of one call


@dataclass(frozen=True, repr=False)
class Verdict:
    """Shown as "Right. …", "Not yet. <hint>" or "Not answered yet. <nudge>"; true when right."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.message

    _repr_markdown_ = __repr__


class Hint(Exception):
    """What to say to an answer that is not right."""


class Unanswered(Exception):
    """There is still `...` where the answer belongs."""


@dataclass(frozen=True)
class Check:
    """Called with an answer, it gives a `Verdict`."""

    task: str  # the formula or the claim that the answer is about
    nudge: str
    right: str
    judge: Callable[[Any], None]  # raises a Hint or is content; whatever else it raises is a hint

    def __call__(self, answer: Any) -> Verdict:
        try:
            if answer is None or answer is ...:
                raise Unanswered
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.judge(answer)
        except Unanswered:
            return Verdict(False, f"Not answered yet. {self.nudge}")
        except Hint as hint:
            return Verdict(False, f"Not yet. {hint}")
        except (Exception, SystemExit) as error:  # the learner's code may raise anything
            said = " ".join(traceback.format_exception_only(error)[-1].split())
            return Verdict(False, f"Not yet. Your answer stopped with `{said}`.")
        return Verdict(True, f"Right. {self.right}")


def number(
    task: str, nudge: str, truth: Any, right: str, wrong: dict[Any, str], near: float = 1e-4
) -> Check:
    """A number within the share `near` of the truth, and nearer to it than to any wrong one."""

    def judge(answer: Any) -> None:
        value = one(answer)
        known = [v for v in (truth, *wrong) if abs(value - v) <= near * abs(v)]
        nearest = min(known, key=lambda v: abs(value - v), default=None)
        if nearest == truth:
            return
        if nearest is not None:
            raise Hint(wrong[nearest])
        if abs(value + truth) <= near * abs(truth):
            raise Hint("The size is right, the sign is not.")
        if abs(value - truth) < 0.02 * abs(truth):
            raise Hint("Within 2 %: give more digits, or count once more what is left out.")
        raise Hint(f"Too {'large' if value > truth else 'small'}. {nudge}")

    return Check(task, nudge, right, judge)


def numbers(
    task: str,
    nudge: str,
    truth: dict[str, float],
    right: str,
    wrong: Sequence[tuple[Any, str]],
    near: float = 1e-3,
) -> Check:
    """Several numbers, in the order of truth's names, each within the share `near`, or 1e-9 of 0."""
    names, wanted = list(truth), np.array(list(truth.values()), float)

    def close(values: np.ndarray, to: Any) -> np.ndarray:
        return np.isclose(values, np.asarray(to, float), rtol=near, atol=1e-9)

    def judge(answer: Any) -> None:
        given = several(answer, len(wanted), ", ".join(names))
        if (right_at := close(given, wanted)).all():
            return
        for values, hint in wrong:
            if close(given, values).all():
                raise Hint(hint)
        first = int(np.argmin(right_at))
        size = "large" if given[first] > wanted[first] else "small"
        raise Hint(f"{names[first]}: {given[first]:.4g} is too {size}. {nudge}")

    return Check(task, nudge, right, judge)


def letters(task: str, truth: str, right: str, hints: dict[str, str]) -> Check:
    """The letters of all true statements, as "AC", "a, c" or ["A", "C"]; hints: one per letter."""
    nudge = f"Which of {', '.join(hints)} are true? Give their letters, such as 'AB'."

    def judge(answer: Any) -> None:
        if not isinstance(answer, str | list | tuple | set):
            raise Hint(f"Letters are asked for, not a {type(answer).__name__}. {nudge}")
        given = set(re.sub(r"[\s,;&+]|and", "", "".join(map(str, answer)).lower()).upper())
        if not given or given - set(hints):
            raise Hint(nudge)
        for letter, hint in hints.items():
            if (letter in given) != (letter in truth):
                raise Hint(f"Think about {letter} again. {hint}")

    return Check(task, nudge, right, judge)


def function(
    task: str,
    call: str,
    truth: Callable[..., Any],
    columns: Sequence[Any],
    right: str,
    wrong: dict[str, Callable[..., Any]],
    extremes: Sequence[Row] = (),
    careful: str = "",
) -> Check:
    """A function equal to `truth` at every row, then at the extremes, with `careful` as their hint.

    It is called with one row of the columns at a time, so that `if`, `math` and NumPy will all do.
    wrong: hint -> a function that a learner may have written instead.
    """
    names = call[call.index("(") + 1 : -1].split(", ")
    nudge = f"Write the body of a function that is called as {call}."
    rows = list(zip(*columns, strict=True))

    def judge(answer: Any) -> None:
        if not callable(answer):
            raise Hint(f"The function itself is asked for, not a {type(answer).__name__}. {nudge}")
        given = np.array([_called(answer, row, names, nudge) for row in rows])
        expected = np.array([truth(*row) for row in rows])
        right_at = np.isclose(given, expected, rtol=1e-6, atol=1e-8)
        if not right_at.all():
            for hint, other in wrong.items():
                if np.allclose(given, [other(*row) for row in rows], rtol=1e-6, atol=1e-8):
                    raise Hint(hint)
            first = int(np.argmin(right_at))
            size = "large" if given[first] > expected[first] else "small"
            raise Hint(f"At {_place(names, rows[first])}, {given[first]:.4g} is too {size}.")
        for row in extremes:
            value = _called(answer, row, names, careful)
            if not np.isclose(value, truth(*row), rtol=1e-6, atol=1e-300):
                raise Hint(f"Nearly: only at {_place(names, row)}, not {value:g}. {careful}")

    return Check(task, nudge, right, judge)


def judged(task: str, nudge: str, right: str, judge: Callable[[Any], None]) -> Check:
    """Any other answer, such as one of many right ones: judge(answer) raises a Hint or is content."""
    return Check(task, nudge, right, judge)


def one(value: Any) -> float:
    """A finite number, or a hint that says what was given instead."""
    try:
        found = None if isinstance(value, str | bytes | bool) else np.asarray(value, float)
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise Hint(f"A number is asked for, not a {type(value).__name__}.")
    if found.shape:
        raise Hint(f"One number is asked for, not an array of shape {found.shape}.")
    if not np.isfinite(found):
        raise Hint(f"{found} is no finite number: look for a log or a division that meets 0.")
    return float(found)


def several(value: Any, length: int, what: str) -> np.ndarray:
    """So many finite numbers, or a hint; `what` names them."""
    if any(each is ... for each in (value if isinstance(value, list | tuple) else ())):
        raise Unanswered
    try:
        found = None if isinstance(value, str | bytes | dict | set) else np.asarray(value, float)
    except (TypeError, ValueError):
        found = None
    if found is None or found.shape != (length,):
        raise Hint(f"{length} numbers are asked for, in this order: {what}.")
    if not np.isfinite(found).all():
        raise Hint(f"{found[~np.isfinite(found)][0]} is no finite number.")
    return found


def _called(answer: Any, row: Row, names: Sequence[str], hint: str) -> float:
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            value = answer(*deepcopy(row))  # copies: a learner may write into them
    except ArithmeticError as error:
        raise Hint(f"At {_place(names, row)}: {error}. {hint}") from None
    if value is ...:
        raise Unanswered
    if value is None:
        raise Hint("Your function returns None: is a `return` missing?")
    return one(value)


def _place(names: Sequence[str], row: Row) -> str:
    short: dict[str, Any] = {"precision": 3, "threshold": 6, "edgeitems": 2}
    shown = (np.array2string(np.asarray(value), **short) for value in row)
    return ", ".join(f"{name} = {value}" for name, value in zip(names, shown, strict=True))
