"""The exercises of notebook 07."""

import numpy as np

from gsas_lab.lessons.exercises.answers import letters, number

_ideal = float((1 / np.log2(np.arange(2, 12))).sum())  # ten relevant items in front

mismatches = letters(
    "Two reports of NDCG@10 on 'MovieLens-1M': which lines of their protocols do not agree?",
    "BD",
    "Two lines, and the two numbers are of two problems, however alike the tables look.",
    {
        "A": "Do both hold out each user's last interaction?",
        "B": "How many items does each file have?",
        "C": "Is a target's place read off up to the same rank?",
        "D": "Against how many other items is the target ranked?",
        "E": "Are items that a user has seen left out in both?",
    },
)

ideal = number(
    "Σ 1/log₂(1 + i), i = 1 … 10: by how much NDCG@10 is divided where ten items are relevant.",
    "With one target the best DCG is 1, at rank 1. What is it with ten relevant items?",
    _ideal,
    "The same ranks, 4.5 times less: ask which ideal before you compare.",
    {
        10: "The ten do not count alike: rank i counts 1 / log₂(1 + i).",
        1: "So it is with one target: the libraries in question assume ten.",
        float((1 / np.log(np.arange(2, 12))).sum()): "That is the natural log: DCG takes log₂.",
        float((1 / np.log2(np.arange(2, 11))).sum()): "Ranks 1 to 10: one is missing.",
        float((1 / np.log2(np.arange(1 + 1e-9, 11))).sum()): "Rank i counts 1 / log₂(1 + i).",
    },
)

hundred = number(
    "1 + 100 · 50 / 3,415: the expected rank among 100 uniform negatives of a target of rank 51.",
    "Fifty of the 3,415 other items stand before it. How many of 100 drawn ones, on average?",
    1 + 100 * 50 / 3415,
    "Rank 51 became 2.5: NDCG over a hundred candidates is another measure, and a flattering one.",
    {
        51: "So it is over the whole catalogue: only 100 others are ranked.",
        100 * 50 / 3415: "Those stand before it: at which place does it stand itself?",
        1 + 100 * 51 / 3415: "Fifty stand before rank 51.",
        1 + 100 * 50 / 3416: "The target is none of its own rivals: 3,415 others.",
        50: "Fifty of 3,415 stand before it: how many of 100?",
    },
    near=2e-5,
)
