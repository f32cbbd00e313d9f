"""Calibration measures: literal loops, outside oracles, and what must follow from Theorem 5.1."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import binomtest

from gsas_lab import calibration, theory
from gsas_lab.errors import InputError

ALPHA, BETA = 1 / 999, 1.0  # SASRec, k = 1, a thousand items


def calibrated_pairs(n=200_000, seed=0):
    """Distinct probabilities, and hits that happen exactly as often as they say."""
    rng = np.random.default_rng(seed)
    prob = rng.beta(0.3, 3, n)
    return prob, rng.random(n) < prob


def literal_ece(prob, hit, bins=20):
    """For distinct probabilities: cut the sorted pairs into equal parts, sum the weighted gaps."""
    parts = np.array_split(np.argsort(prob), bins)
    return sum(len(i) / len(prob) * abs(hit[i].mean() - prob[i].mean()) for i in parts)


def perfect_ece_budget(prob, bins=20):
    """Mean plus five standard deviations of the ECE of a perfect model, by sampling theory.

    A bin's gap is normal with variance Σ p (1 − p) / m²; its absolute value has mean √(2/π) sd and
    variance (1 − 2/π) sd².
    """
    parts = np.array_split(np.sort(prob), bins)
    sd = np.array([np.sqrt((p * (1 - p)).sum()) / len(p) for p in parts])
    weight = np.array([len(p) / len(prob) for p in parts])
    mean = np.sqrt(2 / np.pi) * (weight @ sd)
    return mean + 5 * np.sqrt((1 - 2 / np.pi) * (weight**2 @ sd**2))


def test_a_calibrated_model_has_no_more_error_than_sampling_makes():
    prob, hit = calibrated_pairs()
    ece = calibration.expected_calibration_error(prob, hit)
    assert 0 < ece < perfect_ece_budget(prob) < 0.005
    assert ece == pytest.approx(literal_ece(prob, hit), rel=1e-9)


def test_theorem_5_1_makes_it_overconfident_and_its_inverse_cures_it():
    prior, hit = calibrated_pairs()
    over = theory.converged_probability(prior, ALPHA, BETA)
    ece = calibration.expected_calibration_error(over, hit)
    assert ece == pytest.approx(literal_ece(over, hit), rel=1e-9)
    # Every bin errs to the same side, so the ECE is the difference of the two means.
    noise = 5 * np.sqrt((prior * (1 - prior)).mean() / len(prior))
    assert ece == pytest.approx((over - prior).mean(), abs=noise) and ece > 0.5
    cured = theory.prior_from_probability(over, ALPHA, BETA)
    np.testing.assert_allclose(cured, prior, rtol=1e-11)
    assert calibration.expected_calibration_error(cured, hit) < perfect_ece_budget(prior)
    assert calibration.brier(cured, hit) < calibration.brier(over, hit)
    assert calibration.log_loss(cured, hit) < calibration.log_loss(over, hit)


def test_bins_have_equal_mass_and_wilson_intervals():
    prob, hit = calibrated_pairs(10_007)
    curve = calibration.reliability_curve(prob, hit, bins=10)
    assert curve["count"].sum() == len(prob) and np.ptp(curve["count"]) <= 1
    assert curve["predicted"].is_monotonic_increasing
    for row in curve.itertuples():
        wilson = binomtest(round(row.observed * row.count), row.count).proportion_ci(
            method="wilson"
        )
        assert (row.low, row.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_no_hit_and_only_hits_give_intervals_inside_zero_and_one():
    curve = calibration.reliability_curve(
        np.repeat([0.0, 1.0], 50), np.repeat([False, True], 50), bins=2
    )
    assert curve["observed"].tolist() == [0, 1]
    assert curve["low"][0] == 0 and 0 < curve["high"][0] < 0.1
    assert 0.9 < curve["low"][1] < 1 and curve["high"][1] == pytest.approx(1, abs=1e-15)


def test_equal_probabilities_never_part():
    rng = np.random.default_rng(5)
    prob = expit(rng.normal(10, 12, 50_000)).astype(np.float32)
    share = (prob == 1).mean()
    assert share > 0.2  # an overconfident model in float32
    hit = rng.random(50_000) < 0.1
    curve = calibration.reliability_curve(prob, hit)
    # The last bin begins with the first exact 1.0 and takes them all.
    assert curve["predicted"].iloc[-1] == 1.0
    assert curve["count"].iloc[-1] == (prob == 1).sum()
    assert curve["observed"].iloc[-1] == pytest.approx(hit[prob == 1].mean())
    assert len(curve) < 20 and curve["count"].sum() == len(prob)
    # Whatever the order of the pairs, the curve is the same.
    order = rng.permutation(len(prob))
    np.testing.assert_allclose(calibration.reliability_curve(prob[order], hit[order]), curve)


def test_one_probability_is_one_bin():
    curve = calibration.reliability_curve(np.full(100, 0.25), np.arange(100) < 40)
    assert len(curve) == 1
    assert calibration.expected_calibration_error(np.full(100, 0.25), np.arange(100) < 40) == (
        pytest.approx(0.15)
    )


def test_bins_agree_with_a_literal_assignment_when_there_are_ties():
    rng = np.random.default_rng(6)
    prob = rng.integers(0, 12, 500) / 12
    hit = rng.random(500) < prob
    ordered = sorted(prob)
    starts = sorted({ordered.index(ordered[i * 500 // 7]) for i in range(7)})
    edges = [ordered[start] for start in starts] + [np.inf]
    curve = calibration.reliability_curve(prob, hit, bins=7)
    assert len(curve) == len(starts)
    for row, low, high in zip(curve.itertuples(), edges[:-1], edges[1:], strict=True):
        inside = (prob >= low) & (prob < high)
        assert row.count == inside.sum()
        assert row.predicted == pytest.approx(prob[inside].mean())
        assert row.observed == pytest.approx(hit[inside].mean())


def test_brier_and_log_loss_by_a_literal_loop():
    prob, hit = calibrated_pairs(500)
    squared = [(p - h) ** 2 for p, h in zip(prob, hit, strict=True)]
    losses = [-np.log(p if h else 1 - p) for p, h in zip(prob, hit, strict=True)]
    assert calibration.brier(prob, hit) == pytest.approx(np.mean(squared))
    assert calibration.log_loss(prob, hit) == pytest.approx(np.mean(losses))
    assert calibration.brier(hit, hit) == calibration.log_loss(hit.astype(float), hit) == 0


def test_log_loss_from_scores_is_exact_where_probabilities_are_not():
    scores = np.array([80.0, 80.0, -80.0, -80.0], np.float32)
    hit = np.array([True, False, True, False])
    prob = expit(scores)
    assert calibration.log_loss(prob, hit) == np.inf  # said with certainty, and wrong
    for i, loss in enumerate([np.exp(-80), 80, 80, np.exp(-80)]):
        one = slice(i, i + 1)
        assert calibration.log_loss(prob[one], hit[one], scores[one]) == pytest.approx(
            loss, rel=1e-12
        )
    rng = np.random.default_rng(7)
    scores, hit = rng.normal(0, 30, 1000), rng.random(1000) < 0.3
    torchs = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(scores), torch.tensor(hit, dtype=torch.float64)
    )
    kept = scores.copy()
    assert calibration.log_loss(expit(scores), hit, scores) == pytest.approx(float(torchs))
    np.testing.assert_array_equal(scores, kept)  # the caller's array is not touched


def test_precision_against_predicted_by_a_literal_loop():
    rng = np.random.default_rng(8)
    prob = -np.sort(-rng.random((50, 6)), axis=1)
    ranks = rng.integers(1, 12, 50)
    curve = calibration.precision_vs_predicted(prob, ranks, theory.FixedPoint(ALPHA, BETA))
    for row in curve.itertuples():
        precision = np.mean([(rank <= row.cutoff) / row.cutoff for rank in ranks])
        assert row.precision == pytest.approx(precision)
        assert row.predicted == pytest.approx(np.mean([user[: row.cutoff].mean() for user in prob]))
        assert row.theory == pytest.approx(
            BETA * precision / (ALPHA - ALPHA * precision + BETA * precision)
        )
    assert curve["cutoff"].tolist() == [1, 2, 3, 4, 5, 6]
    assert "theory" not in calibration.precision_vs_predicted(prob, ranks)


def test_predicted_precision_meets_precision_when_probabilities_are_true():
    rng = np.random.default_rng(9)
    n_users, n_items = 20_000, 30
    prior = -np.sort(-softmax(rng.normal(0, 2, (n_users, n_items)), axis=1), axis=1)
    drawn = (prior.cumsum(1) < rng.random((n_users, 1))).sum(1) + 1  # the target's rank
    curve = calibration.precision_vs_predicted(prior, drawn)
    # [rank <= K] / K has a standard deviation of at most 1 / (2K).
    budget = 5 * 0.5 / curve["cutoff"] / np.sqrt(n_users)
    assert ((curve["precision"] - curve["predicted"]).abs() < budget).all()
    over = theory.converged_probability(prior, ALPHA, BETA)
    assert (calibration.precision_vs_predicted(over, drawn)["predicted"] > curve["predicted"]).all()


def test_probabilities_of_one_choice_sum_to_one_and_overconfident_ones_do_not():
    prior = softmax(np.random.default_rng(10).normal(0, 1, (5, 1000)), axis=1).astype(np.float32)
    np.testing.assert_allclose(calibration.sum_of_probabilities(prior), 1, rtol=1e-6)
    over = theory.converged_probability(prior, ALPHA, BETA)
    assert (calibration.sum_of_probabilities(over) > 300).all()


def test_distance_to_truth():
    prior = np.array([[0.1, 0.2], [0.3, 0.4]])
    assert calibration.distance_to_truth(prior, prior) == {"max_abs": 0, "mean_abs": 0, "r2": 1}
    off = calibration.distance_to_truth(prior + [[0, 0.1], [0, 0.1]], prior)
    assert off == pytest.approx({"max_abs": 0.1, "mean_abs": 0.05, "r2": 1 - 0.02 / 0.05})
    # Against the diagonal: a perfectly correlated but shifted model is not excused.
    assert calibration.distance_to_truth(prior + 0.5, prior)["r2"] < 0
    assert np.isnan(calibration.distance_to_truth([0.1, 0.2], [0.5, 0.5])["r2"])


def test_summary_is_one_row_of_the_single_measures_for_any_shape():
    prob, hit = calibrated_pairs(1000)
    scores = np.log(prob) - np.log1p(-prob)
    row = calibration.summary(prob.reshape(20, 50), hit.reshape(20, 50), scores.reshape(20, 50))
    assert row == pytest.approx(
        {
            "ece": calibration.expected_calibration_error(prob, hit),
            "brier": calibration.brier(prob, hit),
            "log_loss": calibration.log_loss(prob, hit),
            "mean_predicted": prob.mean(),
            "mean_observed": hit.mean(),
        }
    )


def test_float32_tables_are_summed_in_float64():
    prob = np.full(2_000_000, 0.1, np.float32)
    hit = np.zeros(2_000_000, bool)
    exact = float(np.float32(0.1))
    assert calibration.reliability_curve(prob, hit)["predicted"][0] == pytest.approx(exact, 1e-12)
    assert calibration.brier(prob, hit) == pytest.approx(exact**2, 1e-12)
    assert calibration.sum_of_probabilities(prob[None])[0] == pytest.approx(2e6 * exact, 1e-12)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: calibration.brier([0.5], [True, False]), "one shape"),
        (lambda: calibration.brier([], []), "one shape"),
        (lambda: calibration.brier([1.5], [True]), "pass σ"),
        (lambda: calibration.brier([np.nan], [True]), "between nan and nan"),
        (lambda: calibration.brier([0.5], [7]), "ranks do not fit"),
        (lambda: calibration.reliability_curve([0.5], [True], bins=0), "bins must"),
        (lambda: calibration.log_loss([0.5], [True], scores=[1, 2]), "1 pairs of prob, not 2"),
        (lambda: calibration.sum_of_probabilities([0.5]), r"\(users, n_items\)"),
        (lambda: calibration.sum_of_probabilities([[5.0]]), "between 0 and 1"),
        (lambda: calibration.distance_to_truth([0.5], [0.5, 0.5]), "one shape"),
        (lambda: calibration.distance_to_truth([np.nan], [0.5]), "no distance is defined"),
        (lambda: calibration.sum_of_probabilities(np.zeros((3, 0))), "users, n_items"),
        (lambda: calibration.brier(["0.5"], [1]), "real numbers, not one of <U3"),
        (lambda: calibration.brier([None], [1]), "between nan and nan"),
        (lambda: calibration.brier([[0.1], [0.1, 0.2]], [1]), "numbers of one shape"),
        (lambda: calibration.brier(np.ma.masked_equal([0.5, 0.1], 0.1), [1, 0]), "masked entries"),
        (lambda: calibration.brier([0.5 + 1j], [1]), "real numbers, not one of complex128"),
        (lambda: calibration.summary([0.5], ["yes"]), "real numbers"),
        (lambda: calibration.reliability_curve([0.5], [1], bins=np.nan), "bins must be 1 or more"),
        (lambda: calibration.reliability_curve([0.5], [1], bins=2.5), "bins must be 1 or more"),
        (lambda: calibration.precision_vs_predicted([[0.6]], [np.nan]), "count from 1"),
        (lambda: calibration.precision_vs_predicted([[0.6]], [1.5]), "Ranks are whole"),
        (lambda: calibration.log_loss([0.5], [1], [np.nan]), "not defined, because some are NaN"),
        (lambda: calibration.log_loss([0.5], [1], [3.0]), "prob is not σ"),
        (lambda: calibration.precision_vs_predicted([[0.5, 0.6]], [1]), "start with its highest"),
        (lambda: calibration.precision_vs_predicted([[0.6, 0.5]], [0]), "count from 1"),
        (lambda: calibration.precision_vs_predicted([[0.6, 0.5]], [1, 2]), "one target_rank"),
    ],
)
def test_a_mistake_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_an_item_that_never_comes_has_no_decade_and_breaks_nothing():
    point = theory.FixedPoint(0.1, 0.5)
    prior = np.tile([0.0, 0.001, 0.2, 0.799], (500, 1))
    found = calibration.deviation_from_theory(prior, point.probability(prior), point)
    assert found["max_binned"] < 1e-12 and found["r2"] == 1
    nothing = np.zeros((500, 2))
    assert np.isnan(calibration.deviation_from_theory(nothing, nothing, point)["max_binned"])


def test_odd_but_whole_input_has_its_value():
    prob = np.array([0.25, 0.5, 1.0, 0.0])
    hit = np.array([False, True, True, False])
    found = calibration.expected_calibration_error(prob, hit, 4)
    for same in (prob.astype(np.float16), prob.astype(object), list(prob)):
        assert calibration.expected_calibration_error(same, hit, 4) == pytest.approx(found)
    assert calibration.expected_calibration_error(hit, hit, 10**9) == 0  # bins: no more than pairs
    assert np.isnan(calibration.distance_to_truth([0.1, 0.3, 0.2], [0.2] * 3)["r2"])  # not −1e32
    assert calibration.wilson(np.ones(1), np.full(1, 40.0))[1] == 1


def test_bins_of_the_truth_hold_the_theorem_to_what_was_learned():
    point = theory.FixedPoint(0.1, 0.5)
    prior = np.repeat([0.0, 2e-4, 0.03, 0.9], [900, 300, 500, 100])
    learned = point.probability(prior) + 0.02 * (prior == 0.03)
    found = calibration.by_prior(prior, learned, point)
    assert found["pairs"].tolist() == [300, 500]  # P = 0 has no bin, 100 are too few
    np.testing.assert_allclose(found["prior"], [2e-4, 0.03])
    np.testing.assert_allclose(found["theory"], point.probability(np.array([2e-4, 0.03])))
    np.testing.assert_allclose(found["predicted"] - found["theory"], [0, 0.02], atol=1e-12)
    assert calibration.deviation_from_theory(prior, learned, point)["max_binned"] == pytest.approx(
        0.02
    )


def test_a_model_that_knows_less_than_the_truth_is_right_in_bins_of_what_it_tells():
    """Its σ(s) is the theorem's for the mean of what it cannot tell apart, P of 0.001 and of 0.003."""
    point = theory.FixedPoint(1e-4, 0.1)
    prior = np.tile([0.001, 0.003, 0.0], 500)
    ignorant = np.where(prior > 0, point.probability(np.array(0.002)), 0.0)
    for of, gap in ((calibration.by_prior, 0.1), (calibration.by_told, 0.0)):
        found = of(prior, ignorant, point)
        furthest = (found["predicted"] - found["theory"]).abs().max()
        assert found["pairs"].sum() == 1000 and (furthest > gap if gap else furthest < 1e-12)
    wrong = calibration.by_told(prior, np.minimum(2 * ignorant, 1.0), point)
    assert (wrong["predicted"] - wrong["theory"]).abs().max() > 0.1
    sure = calibration.by_told(np.ones(300), np.ones(300), point)
    assert list(sure) == list(found) and sure["theory"].tolist() == [1.0]


def test_bins_of_equal_hits_show_the_top_that_equal_mass_pools():
    rng = np.random.default_rng(12)
    prob = rng.beta(0.05, 5, 200_000)
    hit = rng.random(200_000) < prob
    mass = calibration.reliability_curve(prob, hit)
    curve = calibration.reliability_curve(prob, hit, equal_hits=True)
    hits = curve["observed"] * curve["count"]
    assert np.ptp(hits) <= 1.5 and curve["count"].sum() == len(prob) and len(curve) == 20
    assert curve["predicted"].iloc[-1] > 3 * mass["predicted"].iloc[-1]
    inside = (curve["low"] <= curve["predicted"]) & (curve["predicted"] <= curve["high"])
    assert inside.mean() >= 0.85
    for bad in (
        {"hit": np.zeros(5, bool)},
        {"hit": np.array([True] + [False] * 4), "weight": np.ones(5)},
    ):
        with pytest.raises(InputError, match="Bins of equal hits need a hit"):
            calibration.reliability_curve(prob[:5], equal_hits=True, **bad)
