"""The exercises of notebook 02."""

from typing import Any

import numpy as np

from gsas_lab import theory
from gsas_lab.lessons.exercises.answers import function, letters, number

_N, _K = 3416, 256  # items of MovieLens-1M, gSASRec's negatives
_ONE, _MANY = theory.alpha(1, _N), theory.alpha(_K, _N)  # α of SASRec and of gSASRec
_rng = np.random.default_rng(5)
_S, _NEGATIVES = _rng.uniform(-5, 5, 12), _rng.normal(0, 2, (12, 5))
_P, _A, _B = _rng.uniform([[0.01], [0.01], [0.2]], [[0.6], [0.5], [0.9]], (3, 12))
_says, _zipf, _d = theory.converged_probability, theory.zipf(_N), np.array([-1e-5, 1e-5])


def _sigma(s: Any) -> Any:
    return np.exp(-_plus(-s))


def _plus(s: Any) -> Any:
    return np.logaddexp(0, s)  # softplus


sampling_rate = number(
    "α = k / |I⁻|, Theorem 5.1: of gSASRec (k = 256) on MovieLens-1M.",
    "Negatives drawn, divided by the items that they are drawn from.",
    _MANY,
    "For each positive, 7.5 % of the catalogue is drawn.",
    {
        _K / _N: "You divide by the whole catalogue: which item can never be drawn as a negative?",
        _ONE: "That is SASRec's, with k = 1.",
        1 / _MANY: "Upside down: α says how often one item is drawn, so it is at most 1.",
    },
)

sasrec_says = number(
    "σ(s) = βP / (α − αP + βP), Eq. (10): SASRec, MovieLens-1M, P = 0.01.",
    "Put SASRec's α and β into Eq. (10).",
    _says(0.01, _ONE, 1),
    "One time in a hundred, and it says 97 %.",
    {
        0.01: "So a calibrated model would say, Eq. (20). Which β has plain BCE?",
        0.01 / 0.99 / _ONE: "Those are odds, which pass 1: how do odds become a probability?",
        _says(0.01, _ONE, 1, True): "The positive is no negative of its own: look at the −αP.",
        _says(0.01, _MANY, 1): "That is k = 256: SASRec draws one negative.",
    },
)

slope = function(
    "dE[L]/ds, the derivative of Eq. (16): βP pulls the score up, α(1 − P) pushes it down.",
    "slope(s, P, alpha, beta)",
    lambda s, p, a, b: np.diff(theory.expected_loss(s + _d, p, a, b)).item() / np.ptp(_d),
    (_S, _P, _A, _B),
    "Where the pull βP(1 − σ) balances the push α(1 − P)σ, training comes to rest: Eq. (17).",
    {
        "That is the way a step of training moves: the slope has the other sign.": (
            lambda s, p, a, b: b * p * (1 - _sigma(s)) - a * (1 - p) * _sigma(s)
        ),
        "The positive is no negative of its own: how often can item i be a negative?": (
            lambda s, p, a, b: a * _sigma(s) - b * p * (1 - _sigma(s))
        ),
        "The positive's term lacks its power β.": (
            lambda s, p, a, b: a * (1 - p) * _sigma(s) - p * (1 - _sigma(s))
        ),
        "That is the derivative by σ; by s, the chain rule adds a factor: what is dσ/ds?": (
            lambda s, p, a, b: a * (1 - p) / (1 - _sigma(s)) - b * p / _sigma(s)
        ),
        "That is the loss itself, Eq. (16): now its derivative by s.": theory.expected_loss,
    },
)

least_score = number(
    "The score of least expected loss, Eqs. (16, 17), for P = 0.01, α = 0.1, β = 0.5.",
    "Set the slope to 0 and solve for σ, then for s.",
    theory.converged_logit(0.01, 0.1, 0.5),
    "`theory.least_loss_score` finds the same by search, without the theorem.",
    {
        _says(0.01, 0.1, 0.5): "That is σ(s): which score has it?",
        -np.log(99): "That is logit P: the score where β = α, which is not so here.",
        -np.log(99 * 5): "The offset's sign: does β > α raise the score or lower it?",
        theory.converged_logit(0.01, 0.1, 1): "That is BCE's: β is missing.",
        theory.converged_logit(0.01, 0.1, 0.5, True): "How often is it a negative? Not quite α.",
        -np.log10(99 / 5): "That is log10: σ is made of e, so the log is the natural one.",
    },
)

power_function = function(
    "β = α(t(1 − 1/α) + 1/α) = 1 − t(1 − α), Eq. (27), exact at t = 0 and t = 1.",
    "power(t, alpha)",
    theory.beta_from_t,
    (_P, _A),
    "Nothing small is ever added to 1 and then taken off again.",
    {
        "Your ends are swapped: t = 0 is BCE, with β = 1.": lambda t, a: t + (1 - t) * a,
        "At t = 0 yours is 0: BCE has β = 1.": lambda t, a: t * a,
        "At t = 1 yours is 1 − α: it should be α.": lambda t, a: 1 - t * a,
        "At t = 1 yours is 0: it should be α.": lambda t, a: 1 - t,
    },
    [(1.0, 1e-20), (0.0, 1e-20), (1.0, 0.1)],
    "The algebra is right, the arithmetic is not: 1 − (1 − 1e-20) is 0 in float64. Write the line "
    "from 1 to α so that at each end the other end's term is exactly 0.",
)

theorem = function(
    "σ(s) = βP / (α − αP + βP), Theorem 5.1, Eq. (10).",
    "sigma(P, alpha, beta)",
    _says,
    (_P, _A, _B),
    "One line, and it says what a whole training converges to.",
    {
        "The positive is no negative of its own: −αP is missing.": lambda p, a, b: (
            b * p / (a + b * p)
        ),
        "That is Eq. (21), BCE: where is β?": lambda p, a, b: p / (a - a * p + p),
        "β belongs above and below the line.": lambda p, a, b: b * p / (a - a * p + p),
        "Those are the odds σ / (1 − σ).": lambda p, a, b: b * p / (a - a * p),
        "That is the score: its σ is asked for.": theory.converged_logit,
        "α and β are swapped: that is the inverse.": theory.prior_from_probability,
    },
    [(0.0, 0.1, 0.5), (1.0, 0.1, 0.5)],
    "P = 0 and P = 1 are allowed: use a form without a logarithm or a division by P.",
)

inverse = function(
    "P = σ(s − log(β/α)), the inverse of Eq. (10), for any score from −800 to 800.",
    "prior(s, alpha, beta)",
    theory.prior_from_logit,
    (_S, _A, _B),
    "From the score nothing is lost; from σ(s) = 1 nothing can be recovered.",
    {
        "The offset's sign: β > α raised the scores.": lambda s, a, b: _sigma(s + np.log(b / a)),
        "That is what the model says: take its offset away.": lambda s, a, b: _sigma(s),
        "The offset lacks β.": lambda s, a, b: _sigma(s + np.log(a)),
        "That lacks a normaliser: it passes 1.": lambda s, a, b: np.exp(s) * a / b,
        "That is log10, not the natural log.": lambda s, a, b: _sigma(s - np.log10(b / a)),
        "That is logit P: P itself is asked for.": lambda s, a, b: s - np.log(b / a),
    },
    [(800.0, 0.1, 0.5), (-800.0, 0.1, 0.5), (40.0, 1e-20, 1.0), (-40.0, 0.1, 0.5)],
    "Shift the score before any σ, for σ(40) is already 1; and let exp see no large positive "
    "number, not even in a branch that np.where drops.",
)

offset = number(
    "log(β/α), what Eq. (10) adds to every logit: SASRec on MovieLens-1M.",
    "The log of β over α, with SASRec's β and α.",
    theory.logit_offset(_ONE, 1),
    "The same for every item and every user: overconfidence is a shift.",
    {
        np.log10(_N - 1): "That is log10: logits are natural logarithms.",
        np.log2(_N - 1): "That is log2: logits are natural logarithms.",
        _N - 1: "That is β/α itself: logits live on a log scale.",
        theory.logit_offset(_MANY, 1): "That is k = 256: SASRec draws one negative.",
        theory.logit_offset(_ONE, _ONE): "So it is for t = 1: which β has plain BCE?",
    },
)

k_needed = number(
    "The least k for which BCE's σ = P / (α − αP + P), Eq. (21), is at most 0.5 at P = 0.01.",
    "σ is one half where both terms of the odds are equal.",
    1 + int(np.argmax(_says(0.01, theory.alpha(np.arange(1, _N), _N), 1) <= 0.5)),
    "P = 0.5 would need every item: BCE's own cure is the whole catalogue.",
    {
        34: "Rounded the wrong way: what does P = 0.01 say with 34?",
        (_N - 1) / 99: "Negatives come whole, and σ may be at most 0.5.",
        (_N - 1) / 100: "Negatives come whole; and P is to be compared with α(1 − P), not α.",
        1 / 99: "That is α: how many negatives make it?",
        100: "That is 1/P, how rare the item is: compare P with α(1 − P).",
    },
)

gbce = function(
    "gBCE of one position, Eq. (8): −1/(k+1) · (log σ^β(s⁺) + Σ log(1 − σ(s⁻))).",
    "gbce(positive, negatives, beta)",
    lambda p, n, b: (
        (theory.expected_loss(p, 1, 1, b) + theory.expected_loss(n, 0, 1, 1).sum()) / (len(n) + 1)
    ),
    (_S, _NEGATIVES, _B),
    "No clamp and no epsilon: every score keeps its gradient.",
    {
        "Eq. (8) divides the sum by something.": lambda p, n, b: b * _plus(-p) + _plus(n).sum(),
        "You divide by k: how many terms are there with the positive?": (
            lambda p, n, b: (b * _plus(-p) + _plus(n).sum()) / len(n)
        ),
        "1/(k+1) stands before the whole bracket.": lambda p, n, b: b * _plus(-p) + _plus(n).mean(),
        "That is BCE, Eq. (7): where is β?": lambda p, n, b: np.append(_plus(n), _plus(-p)).mean(),
        "β is the power of the positive alone.": (
            lambda p, n, b: b * np.append(_plus(n), _plus(-p)).mean()
        ),
        "A loss is above 0: look at the sign before the bracket.": (
            lambda p, n, b: -np.append(_plus(n), b * _plus(-p)).mean()
        ),
        "Of a negative, the log of 1 − σ counts: what is 1 − σ(s) as another σ?": (
            lambda p, n, b: np.append(_plus(-n), b * _plus(-p)).mean()
        ),
        "That is the sampled softmax, Eq. (6): gBCE judges each score by its own σ.": (
            lambda p, n, b: np.logaddexp.reduce(np.append(n, p)) - p
        ),
    },
    [(p, np.array([n, 0.5]), 0.3) for p, n in ((-800.0, 0.0), (800.0, -800.0), (0.0, 800.0))],
    "The log of a power is a product; and neither log needs σ itself, nor a clamp: NumPy has a "
    "function for log(eᵃ + eᵇ) that is safe everywhere.",
)

gamma = function(
    "γ(s) = log(1 / (σ(s)^−β − 1)), Eq. (25), Theorem 5.2: gBCE(s⁺, s⁻) = BCE(γ(s⁺), s⁻).",
    "gamma(s, beta)",
    theory.positive_transform,
    (_S, _B),
    "gBCE is BCE with its positive seen through γ; at β = 1, γ(s) = s.",
    {
        "The sign: log(1/x) is −log x.": lambda s, b: -theory.positive_transform(s, b),
        "That is log σ^β: the −1 under the fraction is missing.": lambda s, b: -b * _plus(-s),
        "So it is for β = 1 only.": lambda s, b: s,
        "True only far right: the limit of γ, not γ.": lambda s, b: s - np.log(b),
        "A power of σ is no multiple of the score.": lambda s, b: b * s,
    },
    [(40.0, 0.3), (700.0, 0.3), (-800.0, 0.95)],
    "Name u = −β log σ(s), so that σ^−β = eᵘ, and compute u as in the loss before. For large u take "
    "eᵘ out of eᵘ − 1; for small u there is expm1.",
)

collisions = number(
    "σ = βP / (α + βP), Theorem 5.1 with draws from the whole catalogue: P = 0.33 at t = 1.",
    "In Eq. (10) the item is a negative α(1 − P) times; how often is it now? And t = 1 is β = α.",
    _says(0.33, 1, 1, True),
    "At t = 1 only a positive that is never its own negative reads its true probability.",
    {
        0.33: "So it is without collisions: now a positive may be drawn as its own negative.",
        0.33 / 0.67: "Those are the odds, and they go up: collisions push down.",
        0.33 * 0.67: "Collisions do not shrink P: they make negatives of positives. Count those.",
    },
    near=1e-3,  # β from k / |I⁻| and α from k / |I| will do as well
)

forecast = number(
    "Σσ over a catalogue by Eq. (10): a user whose P is Zipf's law over 3,416 items, SASRec.",
    "Theorem 5.1 for each item of theory.zipf(3416), then the sum.",
    theory.forecast_sum(_zipf, _ONE, 1),
    "Almost nine hundred items' worth of certainty, for the one that comes next.",
    {
        1: "That is ΣP, the truth: what would SASRec say of each item?",
        theory.forecast_sum(_zipf, _ONE, 1) / _N: "That is the mean over items, not the sum.",
        theory.forecast_sum(_zipf, _MANY, 1): "That is k = 256: SASRec draws one negative.",
        _N - 1: "That is ΣP/α, where popular items pass 1: use all of Eq. (10).",
    },
)

memory_full = number(
    "Scores of a full loss, in 10⁹ bytes: 64 sequences × 200 positions × 1,000,000 items, float32.",
    "One score for each sequence, position and item; how many bytes has a float32?",
    theory.logits_bytes(64, 200, 1_000_000) / 1e9,
    "Twice that with the gradients: the reason why negatives are sampled at all.",
    {
        51.2e9: "That is in bytes: the answer is asked in 10⁹ bytes.",
        51.2e9 / 2**30: "Those are GiB, 2³⁰ bytes: GB are asked for.",
        12.8: "That is the number of scores: each takes more than one byte.",
        102.4: "That includes the gradients: only the scores are asked for.",
    },
)

memory_sampled = number(
    "Scores of a sampled loss, in 10⁶ bytes: 64 × 200 positions, a positive and k = 256, float32.",
    "At each position, which scores does Eq. (8) need?",
    theory.logits_bytes(64, 200, _K + 1) / 1e6,
    "About 3,900 times less, and it no longer grows with the catalogue.",
    {
        12_800 * _K * 4 / 1e6: "Each position needs one more score: which one is no negative?",
        12_800 * (_K + 1) * 4: "That is in bytes: the answer is asked in 10⁶ bytes.",
        12_800 * (_K + 1) * 4 / 1e9: "That is in GB: the answer is asked in 10⁶ bytes.",
        12_800 * (_K + 1) / 1e6: "That is the number of scores: each takes more than one byte.",
    },
)

_whole = np.arange(1, 100, dtype=np.float32)
ties = number(
    "The least whole score at which 1 / (1 + e^−s), all in float32, is exactly 1.",
    "Where is e^−s so small that 1 + e^−s rounds to 1?",
    int(_whole[np.argmax(1 / (1 + np.exp(-_whole)) == 1)]),
    "All items above tie at 1.0, and SASRec's offset of 8 is half of the way there.",
    {
        37: "That is float64: make every number of the formula a float32.",
        16: "e^−16 is about 1.1e-7: just enough to move 1 to the next float32.",
        18: "So it is for the exact σ, rounded once; the sum 1 + e^−s rounds earlier.",
        88: "There e^s comes near the largest float32: the ties come much earlier.",
    },
    near=1e-6,
)

pairs_ece = letters(
    "Expected calibration error over all (user, item) pairs: what does a small one prove?",
    "ABD",
    "Choose the population first: a mean over millions of easy pairs says nothing about the top.",
    {
        "A": "Ten of 3,416 gaps are 1 and the rest 0: what is their mean?",
        "B": "Compare what that model predicts with how often a pair comes true.",
        "C": "How much weight have the few pairs at 0.9 in a mean over all of them?",
        "D": "Which pairs does a user ever see?",
    },
)

recalibration = letters(
    "P = σ(s − log(β/α)), the inverse of Eq. (10), for a trained model's scores: what changes?",
    "BC",
    "A shift moves what the model says, never whom it prefers.",
    {
        "A": "NDCG@10 reads ranks: can one constant, taken from all scores, change a rank?",
        "B": "Recall@10 reads ranks: can one constant, taken from all scores, change a rank?",
        "C": "Every probability moves the same way: what becomes of their sum?",
        "D": "What does a rising function do to the order of two scores?",
    },
)

popular_proposal = number(
    "σ = βP / (kq + βP): BCE, k = 256, negatives by popularity, collisions; P = 0.02, q = 0.005.",
    "Theorem 5.1 with this item's own α: how often is it drawn for one positive?",
    _says(0.02, _K * 0.005, 1, True),
    "What a popular item gains in P it loses in q: where P = q, every item says 1 / (k + 1).",
    {
        _says(0.02, _K * 0.005, 1): "That leaves collisions out: here they are kept.",
        _says(0.02, 0.005, 1, True): "256 negatives are drawn, not one.",
        _says(0.02, _MANY, 1): "That α is of uniform draws: here each draw takes it with q.",
        0.02 / (_K * 0.005): "Those are the odds σ / (1 − σ).",
        0.02: "Plain BCE does not read P: here too there is an offset, item by item.",
    },
)

logq = function(
    "log P = s + log(kq): what the scores of BCE with a proposal q lack, collisions kept.",
    "correction(q, k)",
    lambda q, k: -theory.logit_offset(k * q, 1),
    (_A, [1, 2, 4, 8, 16, 32] * 2),
    "The logQ correction: it differs from item to item, so unlike a constant it changes ranks.",
    {
        "The sign: a frequent negative was pushed down.": lambda q, k: -np.log(k * q),
        "Enough for the order, not for P: how many draws are there?": lambda q, k: np.log(q),
        "That is log10, not the natural log.": lambda q, k: np.log10(k * q),
        "That is α: scores live on a log scale.": lambda q, k: k * q,
        "That is the same for every item: where is its q?": lambda q, k: np.log(k),
    },
)
