"""The exercises of notebook 03."""

import numpy as np

from gsas_lab import theory
from gsas_lab.lessons.exercises.answers import function, number, numbers

_N, _K = 1000, 64  # items of the known-truth world, gSASRec's negatives there
_user = theory.zipf(_N)
_A = theory.alpha(_K, _N)


def _sum(k: int, t: float) -> float:
    a = theory.alpha(k, _N)
    return float(theory.forecast_sum(_user, a, theory.beta_from_t(t, a)))


negative = function(
    "A uniform draw d of 1 … |I| − 1 as an item of 1 … |I| that is never the positive: d + [d ≥ p].",
    "negative(draw, positive)",
    lambda d, p: d + (d >= p),
    [[1, 2, 3, 4, 5, 6, 7, 8, 9] * 2, [5] * 9 + [1] * 9],
    "One draw, no second try, and each other item equally often: α = k / (|I| − 1).",
    {
        "At draw = positive it is the positive.": lambda d, p: d,
        "Nearly: at draw = positive it is the positive still.": lambda d, p: d + (d > p),
        "The item after the positive comes twice as often now, and the last one never.": (
            lambda d, p: d + (d == p)
        ),
        "Now the items before the positive are left out as well.": lambda d, p: d + p,
        "Of 1 … |I| − 1 the last item is never drawn: what moves up?": lambda d, p: d - (d >= p),
    },
)

three_sums = numbers(
    "Σσ by Theorem 5.1 of a user with Zipf's law over 1,000 items: three pairs of k and t.",
    "α from k, β from t and α, Theorem 5.1 for each item of theory.zipf(1000), then the sum.",
    {"k = 1, t = 0": _sum(1, 0), "k = 64, t = 0.75": _sum(64, 0.75), "k = 64, t = 1": _sum(64, 1)},
    "Known before anything is trained: k and t are two knobs of one ratio, β/α.",
    [
        ((1, 1, 1), "That is ΣP, the truth: what is said of each item?"),
        ((_sum(64, 1), _sum(64, 0.75), _sum(1, 0)), "The other way round."),
        ((_sum(1, 0), _sum(64, 0), _sum(64, 0)), "t changes β: without it all are BCE."),
        ((_sum(1, 0), _sum(1, 0.75), _sum(1, 1)), "k changes α: two of them draw 64 negatives."),
        ((999, 999 / 64 * (0.25 + 0.75 * _A), 1), "Those are β/α, where popular items pass 1."),
    ],
    near=5e-3,
)

_ratio = theory.beta_from_t(0.75, theory.alpha(256, 3416)) / theory.alpha(256, 3416)
_GOWALLA = theory.alpha(256, 1_271_638)
same_offset = number(
    "The t with which k = 256 among 1,271,638 items leaves the β/α of t = 0.75 among 3,416.",
    "Which β makes β/α what it is on MovieLens-1M? Solve Eq. (27), β = 1 − t(1 − α), for t.",
    (1 - _ratio * _GOWALLA) / (1 - _GOWALLA),
    "A setting that was mild on a small catalogue is loud on a large one: t makes up for it.",
    {
        0.75: "The same t leaves the same β, nearly, but α is 372 times smaller here.",
        1: "That leaves no offset at all: MovieLens-1M keeps one of 1.41.",
        1 - _ratio * _GOWALLA: "That is 1 − β: Eq. (27) divides it by 1 − α.",
        _ratio * _GOWALLA: "That is β: which t has it?",
    },
    near=2e-5,
)

start = function(
    "The logit of β / (β + k), which an average item, P = 1/|I|, reads by Theorem 5.1: log(β/k).",
    "start(k, beta)",
    lambda k, b: np.log(b / k),
    [[1, 4, 16, 64, 256, 1024], [1.0, 0.9, 0.5, 0.3, 0.1, 0.02]],
    "One number, computed before training, that gBCE would spend its first epochs on.",
    {
        "The sign: an average item is rare, and its logit far below 0.": lambda k, b: np.log(k / b),
        "That is the probability: a bias is added to scores.": lambda k, b: b / (b + k),
        "That is its log: the logit is the log of the odds.": lambda k, b: np.log(b / (b + k)),
        "So a fresh network starts, at σ = 0.5: where should it?": lambda k, b: 0.0,
        "That is log10: logits are natural logarithms.": lambda k, b: np.log10(b / k),
    },
)

_whole = theory.alpha(_K, _N, never_drawn=0)
below_one = number(
    "Σσ at t = 1 with negatives from the whole catalogue, k = 64, Zipf's law over 1,000 items.",
    "σ = βP / (α + βP) with α = k/|I| and, as t = 1 was meant, β = k/(|I| − 1).",
    theory.forecast_sum(_user, _whole, _A, True),
    "Below 1 for once: a positive that may be its own negative is pushed down by itself.",
    {
        1: "So it is where the positive is never drawn: now it may be.",
        _sum(_K, 0): "That is BCE, t = 0: β is α here.",
        0.5: "That is what an item with P = 1 reads: take Zipf's law.",
        float(theory.forecast_sum(_user, _A, 1.0, True)): "That is t = 0: β is α here.",
    },
    near=2e-3,
)
