"""The exercises of notebook 01."""

from typing import Any

import numpy as np

from gsas_lab.lessons.exercises.answers import function, letters, number


def _sigma(s: Any) -> Any:
    return np.exp(-np.logaddexp(0, -np.asarray(s, float)))


alarm = function(
    "Σσ(s) over the scores of one user: the alarm of notebook 01.",
    "alarm(scores)",
    lambda s: _sigma(s).sum(),
    [np.random.default_rng(1).normal(0, 3, (8, 6))],
    "No label, no click, no threshold: one number a user.",
    {
        "A softmax adds up to 1 whatever was trained: each score has a σ of its own.": lambda s: (
            1.0
        ),
        "That is the mean: one item comes next, however many there are.": lambda s: _sigma(
            s
        ).mean(),
        "Those are scores: put each through σ first.": lambda s: s.sum(),
        "σ of the sum is no sum of σ: first σ, then the sum.": lambda s: _sigma(s.sum()),
        "That is the largest one: they all count.": lambda s: _sigma(s).max(),
        "1 − σ is the probability of the contrary.": lambda s: _sigma(-s).sum(),
    },
    [(np.array([800.0, -800.0]),)],
    "A score may be ±800: let exp see no large positive number, or use np.logaddexp.",
)

ceiling = number(
    "The share that comes true of 40 items of a user of whom one is next: 1 / 40.",
    "How many of these pairs of user and item can come true, and how many are there?",
    1 / 40,
    "Whatever the order: 40 items at 0.99 promise 39.6 hits, and one can come.",
    {
        0.99: "So the model says. How many of the 40 can come true for one user?",
        39.6: "That is how many hits it promises: which share can come true?",
        1: "That is the number of hits: of how many pairs is it a share?",
        1 / 39.6: "Divide by the items, not by what they promise.",
        1 / 0.99 / 40: "Divide by the items alone: the model's 0.99 has no say in what happens.",
    },
)

permuted = letters(
    "Each user's probabilities are dealt out anew among the items: what changes?",
    "BD",
    "Σp does not know which item got which probability. It is an alarm, and no proof.",
    {
        "A": "In which order are the terms of a sum added?",
        "B": "NDCG@10 asks at which place the target stands: does it stay there?",
        "C": "The curve sorts the probabilities first: do the sorted ones change?",
        "D": "Of the items that say 0.5, does one in two still come next?",
    },
)

pull = number(
    "(1 − σ) at σ = 0.99, divided by (1 − σ) at σ = 0.5: the gradient of −log σ(s).",
    "By s, −log σ(s) has the slope −(1 − σ). Divide that at 0.99 by that at 0.5.",
    0.01 / 0.5,
    "A fiftieth: what says 0.99 is hardly taught any more, and its order stays as it is.",
    {
        50: "Upside down: how much of the pull is left?",
        0.01: "That is the pull at 0.99: divide it by the pull at 0.5.",
        0.0099 / 0.25: "That is the slope σ(1 − σ) of σ: the loss is −log σ, whose slope is 1 − σ.",
        0.98: "That is how much was lost: how much is left?",
        0.5 / 0.99: "By s, not by σ: the chain rule brings the factor σ(1 − σ).",
    },
)
