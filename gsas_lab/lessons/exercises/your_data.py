"""The exercises of notebook 08."""

from typing import Any

import numpy as np
from scipy.optimize import brentq

from gsas_lab.lessons.exercises.answers import function, letters, number, numbers

_rng = np.random.default_rng(8)
_scores = _rng.normal(1, 3, (6, 40))
_clicks = np.array([1, 2, 3, 4, 6, 8])


def _sigma(s: Any) -> Any:
    return np.exp(-np.logaddexp(0, -np.asarray(s, float)))


def _offset(scores: Any, clicks: Any) -> float:
    return float(brentq(lambda c: _sigma(scores - c).sum() - clicks, -60, 60, xtol=1e-12))


offset = function(
    "The c at which Σσ(s − c) over all pairs is the number of clicks.",
    "offset(scores, clicks)",
    _offset,
    [_scores, _clicks],
    "One equation with one unknown: that is the whole diagnosis of notebook 08.",
    {
        "That is what to add: the scores are too high by c.": lambda s, n: -_offset(s, n),
        "Near 1 a sum of σ does not fall in proportion to e^−c: solve the equation itself.": (
            lambda s, n: np.log(_sigma(s).sum() / n)
        ),
        "The shift of the sum is in logits: the difference of two counts is none.": (
            lambda s, n: _sigma(s).sum() - n
        ),
        "That is the mean score: where are the clicks?": lambda s, n: s.mean(),
        "Σσ(s − c) is to be the number of clicks, not their share.": (
            lambda s, n: _offset(s, n / len(s))
        ),
    },
)

slope_two = numbers(
    "Platt's fit σ(as + b) was a = 1, b = −8. All scores are multiplied by 2: the new a and b.",
    "P must stay what it was: a·(2s) + b = s − 8 for every s.",
    {"a": 0.5, "b": -8.0},
    "A slope, and no subtraction mends it: the diagnosis tells by that line alone.",
    [
        ((2, -8), "The scores are too steep now: the fit must flatten them."),
        ((0.5, -4), "The shift stands outside a·s: it stays."),
        ((0.5, -16), "The shift stands outside a·s: it stays."),
        ((1, -8), "That is the old fit: at s = 10 it would say something else now."),
        ((1, -16), "No shift can do it: try s = 0 and s = 8 of the old scores."),
    ],
)

rows_by_clicks = letters(
    "A table of each user's first 100 items, to which the clicked item was added where it lacked.",
    "AD",
    "Choose rows by score alone. Who looked at the clicks has already answered the question.",
    {
        "A": "Σp of 101 rows, and a click in every user's rows: which side is too large?",
        "B": "The model promises less than these rows keep: is that overconfidence?",
        "C": "Each user's rows err the same way: does that shrink when there are more users?",
        "D": "Were rows that the model put first looked at for clicks before they were chosen?",
    },
)

profit = numbers(
    "A click is worth 1, showing costs 0.05. An item says 0.97, its P is 0.01: promised and real.",
    "Value of a click times its probability, minus the cost: by p̂, then by P.",
    {"promised": 0.92, "real": -0.04},
    "The ranking was right, and the decision wrong: levels matter where a threshold decides.",
    [
        ((0.97, 0.01), "Showing costs something each time."),
        ((0.92, 0.04), "Is it a gain or a loss?"),
        ((-0.04, 0.92), "The other way round: what the model promises first."),
        ((0.92, 0.92), "What comes true goes by P."),
        ((0.92, -0.0495), "The cost is paid for each show, the click comes once in a hundred."),
        ((0.97 * 0.95, 0.01 * 0.95), "The cost is subtracted, whether somebody clicks or not."),
    ],
    near=1e-6,
)

k_behind = number(
    "k = 49,999 · e^−7.42: BCE's negatives in a catalogue of 50,000 with an offset of 7.42.",
    "BCE's offset is log((|I| − 1) / k). Solve for k, which is a whole number.",
    round(49_999 * np.exp(-7.42)),
    "Read backwards, the theorem tells how somebody else's model was trained.",
    {
        round(np.exp(7.42)): "That is e^offset, (|I| − 1) / k: solve for k.",
        50_000 / 7.42: "The offset is a logarithm: take e to its power.",
        49_999 * 10**-7.42: "The logarithm is the natural one.",
        1: "With one negative the offset would be 10.8.",
    },
    near=0.01,
)
