"""The exercises of notebook 06."""

import numpy as np

from gsas_lab.lessons.exercises.answers import letters, number, numbers

two_by_two = numbers(
    "SASRec 0.130 (BCE), 0.160 (softmax); BERT4Rec 0.125, 0.158: the corner, and the interaction.",
    "The corner: SASRec with BCE plus both single changes. The interaction: what it is off by.",
    {"expected": 0.155, "interaction": 0.003},
    "An effect 'of the loss' is one number only where the interaction is small.",
    [
        ((0.155, -0.003), "Measured minus expected: was BERT4Rec with softmax better or worse?"),
        ((0.158, 0.0), "That is what was measured: add the two single changes to 0.130."),
        ((0.165, -0.007), "Architecture costs 0.005 here: take it off."),
        ((0.155, 0.033), "That is the loss's effect within BERT4Rec: compare it with SASRec's."),
        ((0.155, 0.028), "That changes both at once: take both single changes off."),
    ],
    near=1e-6,
)

passes = number(
    "Passes in which BERT4Rec, asked about a fifth of the items, is asked as often as SASRec in 24.",
    "How many answers does one pass of each give for 100 items?",
    120,
    "Equal passes are unequal lessons: count answers, or let both train to their end.",
    {
        24: "The same passes, but each teaches a fifth as much.",
        24 / 5: "The other way round: it learns *less* in a pass.",
        30: "It is asked about a fifth, not about four fifths.",
        29: "Five times as many, not five more.",
    },
)

logq_gap = number(
    "log(0.001 / 0.01): score gap of two items of equal P, q = 0.01 and 0.001, negatives by q.",
    "By Theorem 5.1 with α = kq, each score is its own log P − log(kq), nearly. Popular minus rare.",
    np.log(0.001 / 0.01),
    "The same P and another score: this offset changes ranks. logQ takes it out.",
    {
        np.log10(0.1): "That is log10: logits are natural logarithms.",
        0.1: "That is the ratio of rates: scores live on a log scale.",
        10: "That is the ratio of rates: scores live on a log scale.",
        1e-12: "Equal P, but one is drawn as a negative ten times as often.",
        -0.009: "Rates divide on a log scale: log q, not q.",
        np.log(16 * 0.01): "That is the popular one's own offset: compare it with the other's.",
    },
)

history = letters(
    "Items of the history are never drawn as negatives, and come again: where do they rest?",
    "ABD",
    "Without a push there is nothing to balance the pull: no fixed point, and no offset to subtract.",
    {
        "A": "Which of the two terms of Eq. (16) is missing for such an item?",
        "B": "With a pull alone, where does the score go?",
        "C": "Theorem 5.1 needs an α above 0: what is α of an item that is never drawn?",
        "D": "Items outside are drawn a little more often: what does that do to their α?",
    },
)

level = letters(
    "Sampled softmax: 5 is added to every score of a trained model. What changes?",
    "C",
    "The loss sees differences alone, so the level is arbitrary, and σ of it no promise.",
    {
        "A": "In the softmax over positive and negatives, where does a common e⁵ go?",
        "B": "Do two scores change places when both grow by 5?",
        "C": "σ(s) is taken of the score itself, one by one.",
        "D": "In a softmax over the catalogue, where does a common e⁵ go?",
    },
)
