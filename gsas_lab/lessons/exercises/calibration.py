"""The exercises of notebook 04."""

from typing import Any

import numpy as np

from gsas_lab.lessons.exercises.answers import Hint, function, judged, numbers, several

_rng = np.random.default_rng(4)
_prob = _rng.uniform(0, 1, (6, 30))
_hit = (_rng.uniform(0, 1, (6, 30)) < 0.5).astype(int)  # too modest low, too bold high
_bin = np.minimum(np.sqrt(_prob) * 4, 3).astype(int)  # of unequal sizes


def _gaps(prob: Any, hit: Any, bin: Any) -> tuple[np.ndarray, np.ndarray]:
    """Observed minus said in each bin that holds a pair, and how many it holds."""
    held = [bin == b for b in np.unique(bin)]
    return np.array([(hit[m] - prob[m]).mean() for m in held]), np.array([m.sum() for m in held])


def _weighed(prob: Any, hit: Any, bin: Any) -> Any:
    gap, count = _gaps(prob, hit, bin)
    return (np.abs(gap) * count).sum() / count.sum()


ece = function(
    "ECE = Σ over bins of n_b / n · |share of hits − mean p̂|, the bin of each pair given.",
    "ece(prob, hit, bin)",
    _weighed,
    [_prob, _hit, _bin],
    "And it depends on the bins: the next exercise.",
    {
        "Bins count by their pairs: weigh each gap with n_b / n.": lambda p, h, b: np.abs(
            _gaps(p, h, b)[0]
        ).mean(),
        "That is the mean |hit − p̂| of single pairs: take means in the bin before the difference.": (
            lambda p, h, b: np.abs(h - p).mean()
        ),
        "Gaps of opposite signs must not cancel: where is the absolute value?": (
            lambda p, h, b: (h - p).mean()
        ),
        "Not cancelling between bins is what |…| is for: take it in each bin, not at the end.": (
            lambda p, h, b: abs((h - p).mean())
        ),
        "Squares belong to Brier's score: ECE takes absolute gaps.": lambda p, h, b: (
            (_gaps(p, h, b)[0] ** 2 * _gaps(p, h, b)[1]).sum() / len(p)
        ),
        "That is the worst bin (the *maximum* calibration error): ECE is a mean.": lambda p, h, b: (
            np.abs(_gaps(p, h, b)[0]).max()
        ),
    },
)

moved_by_bins = numbers(
    "ECE of p̂ = 0.2, 0.2, 0.8, 0.8 with hits 1, 1, 0, 0: with two bins, and with one.",
    "In each bin, the mean p̂ and the share of hits; then the mean of the gaps by count.",
    {"two bins": 0.8, "one bin": 0.0},
    "As wrong as can be, and an ECE of 0: a bin hides whatever cancels inside it.",
    [
        ((0.8, 0.8), "In one bin stand all four: what is their mean p̂, and their share of hits?"),
        ((0.0, 0.8), "The other way round: two bins first."),
        ((0.0, 0.0), "With two bins: of the pairs at 0.2, which share came true?"),
        ((0.2, 0.0), "At 0.2 all came true: the gap is not 0.2."),
        ((1.6, 0.0), "A mean of the two gaps, not their sum."),
    ],
)

brier_parts = numbers(
    "Reliability, resolution and uncertainty of eight pairs at 0.25 (4 hits) and two at 0.75 (2).",
    "Σ n_b/n (p̂_b − o_b)², Σ n_b/n (o_b − ō)² and ō(1 − ō): o_b the share of hits in a bin, ō in all.",
    {"reliability": 0.0625, "resolution": 0.04, "uncertainty": 0.24},
    "0.0625 − 0.04 + 0.24 = 0.2625, which is the Brier score: a shift moves the first part alone.",
    [
        ((0.0625, 0.085, 0.24), "Bins count by their pairs: weigh the resolution with n_b / n."),
        (
            (0.04, 0.0625, 0.24),
            "Reliability compares with p̂, resolution with the share of all hits.",
        ),
        ((0.25, 0.16, 0.24), "Squares of the gaps, not the gaps themselves."),
        ((0.0625, 0.04, 0.2625), "That is the Brier score: uncertainty is ō(1 − ō)."),
        ((0.0625, 0.04, 0.6), "That is ō: uncertainty is ō(1 − ō)."),
    ],
)

_eight = np.array([1, 0, 0, 0, 1, 0, 0, 0])


def _useless(answer: Any) -> None:
    prob = several(answer, 8, "p̂ of each of the eight pairs")
    if prob.min() < 0 or prob.max() > 1:
        raise Hint("Probabilities lie between 0 and 1.")
    said, place = np.unique(prob.round(9), return_inverse=True)
    done = np.bincount(place, weights=_eight) / np.bincount(place)
    if (gap := np.abs(done - said).max()) > 1e-6:
        raise Hint(
            f"Not calibrated: among equal p̂, the share that came true is up to {gap:.2f} away."
        )
    if len(said) > 1:
        raise Hint("Calibrated, but it knows something: it tells pairs apart. Make it useless.")


useless = judged(
    "Probabilities of eight pairs, hits 1, 0, 0, 0, 1, 0, 0, 0: calibrated, and of no use at all.",
    "Eight numbers. Calibrated: of the pairs that say p̂, the share p̂ comes true. Useless: no pair "
    "is told from another.",
    "Calibration asks that p̂ is kept, not that it knows: resolution is the other half.",
    _useless,
)

_P = np.array([0.4, 0.3, 0.2, 0.1])


def _adds_up(answer: Any) -> None:
    prob = several(answer, 4, "p̂ of the four items")
    if prob.min() < 0 or prob.max() > 1:
        raise Hint("Probabilities lie between 0 and 1.")
    if abs(prob.sum() - 1) > 1e-6:
        raise Hint(f"They add up to {prob.sum():.4g}, not to 1: the alarm would ring.")
    if (np.diff(prob) >= 0).any():
        raise Hint("The order has to stay: the first item the likeliest, and so on, without ties.")
    if (away := np.abs(prob - _P).max()) < 0.2 - 1e-9:
        raise Hint(f"Right to {away:.2f}: make one of them wrong by 0.2 or more.")


sums_to_one = judged(
    "p̂ of four items, P = 0.4, 0.3, 0.2, 0.1: same order, adds up to 1, and wrong by 0.2 or more.",
    "Four numbers that fall, add up to 1, and of which one lies 0.2 or more away from its P.",
    "A sum of 1 is what P has, and what much else has: a softmax has it by construction.",
    _adds_up,
)

two_meanings = numbers(
    "p̂ = 0.2 for all; half of the pairs have P = 0.1, half 0.3. Mean gaps by p̂, and by P.",
    "Among all pairs with p̂ = 0.2: what comes true? Then among those with one P: what is said?",
    {"binned by p̂": 0.0, "binned by P": 0.1},
    "E[Y | p̂] = p̂ holds and p̂ = P does not: two meanings of the word. Clicks show only the first.",
    [
        ((0.1, 0.1), "Binned by p̂ there is one bin: the mean of its P is what comes true in it."),
        ((0.0, 0.0), "Binned by P there are two bins: in each, compare p̂ = 0.2 with its P."),
        ((0.1, 0.0), "The other way round: by p̂ first."),
        ((0.0, 0.2), "The mean of the two gaps, not their sum."),
    ],
)

temperature = numbers(
    "Logits 3 too high; an item says 0.5. Its P, σ(−3), and what any temperature makes of it.",
    "Which score says 0.5? Take 3 off for P; divide it by T for the other.",
    {"P": 1 / (1 + np.exp(3)), "after any T": 0.5},
    "Temperature turns scores about σ = 0.5. A shift it cannot mend.",
    [
        ((1 / (1 + np.exp(-3)), 0.5), "The logits are too *high*: the truth is below."),
        ((1 / (1 + np.exp(3)),) * 2, "Which T divides the score 0 into another number?"),
        ((0.5 - 3, 0.5), "Logits are shifted, not probabilities."),
        ((0.5, 0.5), "Its logit is 3 too high: what is it without the 3?"),
        ((0.5 / np.exp(3), 0.5), "The odds, not the probability, are e³ times too high."),
    ],
)
