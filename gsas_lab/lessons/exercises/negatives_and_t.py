"""The exercises of notebook 05."""

import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr

from gsas_lab import metrics
from gsas_lab.lessons.exercises.answers import letters, number, numbers

_a, _b = np.array([0.9, 0.1, 0.2, 0.6, 0.4]), np.array([0.8, 0.1, 0.0, 0.6, 0.2])
_difference, _n = _a - _b, len(_a)
_t = _difference.mean() / (_difference.std(ddof=1) / np.sqrt(_n))

paired_t = number(
    "t = mean / (sd / √n) of the differences of five users, sd with n − 1.",
    "Each user's own difference; their mean, divided by their standard deviation over √n.",
    float(_t),
    "What is easy or hard for every system has cancelled, user by user.",
    {
        float(_difference.mean() / (_difference.std() / np.sqrt(_n))): (
            "That is the deviation with n: of a sample it takes n − 1 (`ddof=1`)."
        ),
        float(_difference.mean() / _difference.std(ddof=1)): "The error of a mean is sd / √n.",
        float(_difference.mean() / (_difference.var(ddof=1) / _n)): "That is the variance: take √.",
        0.1 / float(np.sqrt((_a.var(ddof=1) + _b.var(ddof=1)) / _n)): (
            "That is the unpaired test: what differs between users is in it still."
        ),
        0.1: "That is the mean difference: divide it by its standard error.",
    },
)

_four = np.array([0.010, 0.040, 0.030, 0.005])
_step = np.array([0.03, 0.04, 0.06, 0.02])  # without the running maximum
holm = numbers(
    "Holm's correction of p = 0.010, 0.040, 0.030, 0.005, in this order.",
    "Sort. The smallest times 4, the next times 3 and so on; none may be below the one before.",
    {f"of {p:.3f}": float(h) for p, h in zip(_four, metrics.holm(_four), strict=True)},
    "Two remain below 0.05; Bonferroni keeps the same two here, and never more.",
    [
        (
            metrics.bonferroni(_four),
            "That is Bonferroni: each times 4. Holm asks less of the next.",
        ),
        (_step, "0.04 · 1 is less than 0.03 · 2 before it: a larger p may not end up smaller."),
        (np.sort(metrics.holm(_four)), "Right values, sorted: give them in the order of the p."),
        (_four, "Four questions were asked: correct for them."),
        (_four * [1, 3, 2, 4], "That counts by place: sort the p first."),
    ],
)

_mean_of_25 = quad(
    lambda x: x * 25 * ndtr(x) ** 24 * np.exp(-x * x / 2) / np.sqrt(2 * np.pi), -9, 9
)[0]
winner = number(
    "E[max] − mean of 25 normal cells with one true value and a deviation of 0.005 each.",
    "Draw 25 normal numbers many thousand times and look at the mean of the largest.",
    0.005 * _mean_of_25,
    "Two deviations, from nothing. Choose on validation users, and report on test users.",
    {
        1e-12: "Each cell is right on average; the *largest* of 25 is not.",
        0.005: "One deviation is what one cell errs by: this is the luckiest of 25.",
        0.005 * _mean_of_25 / 5: "No mean of 25 is taken: the largest alone is reported.",
        0.005 * 1.644854: "That is where one cell in twenty lies: here are 25.",
        0.125: "Deviations of cells do not add up.",
        _mean_of_25: "In deviations that is right: how much is it in NDCG, with 0.005?",
    },
    near=0.02,
)

users_not_seeds = letters(
    "p = 1e-6 by a paired test over 6,040 users, one seed of each system: what follows?",
    "AC",
    "Users and seeds are two samples. A claim about systems needs both.",
    {
        "A": "Of what is this test a sample, users or trainings?",
        "B": "How many trainings of each system were compared?",
        "C": "With 6,040 users, how small a difference can have a small p?",
        "D": "The p over seeds is of ten numbers, the means of ten trainings: must it be as small?",
    },
)

false_alarm = number(
    "1 − 0.95²⁰: the chance of at least one star among 20 questions without any difference.",
    "How likely is it that none of the 20 comes out below 0.05?",
    1 - 0.95**20,
    "Twice in three tries: that is why the notebook corrects its twenty rows together.",
    {
        1: "That is how many to expect; how likely is at least one?",
        0.05: "So it is for one question.",
        0.95**20: "That is the chance of none.",
        0.05**20: "That is the chance that all twenty come out.",
        20 * 0.05 * 0.95**19: "That is exactly one: more than one counts as well.",
    },
)
