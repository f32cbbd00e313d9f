"""Repairs: outside optimisers, literal loops, and what must follow from Theorem 5.1."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from gsas_lab import calibration, repairs, theory
from gsas_lab.errors import InputError

ALPHA, BETA = 1 / 999, 1.0  # SASRec, k = 1, a thousand items


def drawn(slope: float, shift: float, n: int = 200_000):
    """Scores, and hits that happen with probability σ(slope · s + shift)."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, n)
    return scores, rng.random(n) < expit(slope * scores + shift)


def test_platt_and_temperature_find_what_made_the_hits():
    scores, hit = drawn(0.7, -4.0)
    fitted = repairs.platt(scores, hit)
    grid = np.linspace(-8, 8, 9)
    np.testing.assert_allclose(fitted(grid), expit(0.7 * grid - 4.0), rtol=0.1)
    scores, hit = drawn(0.5, 0.0)
    np.testing.assert_allclose(repairs.temperature(scores, hit)(grid), expit(grid / 2), atol=0.01)


def test_the_logistic_fits_are_the_minimum_that_another_optimiser_finds():
    scores, hit = drawn(1.3, -6.0, 5_000)
    for fit, start in ((repairs.temperature, [1.0]), (repairs.platt, [1.0, 0.0])):

        def loss(w):
            logits = w[0] * scores + (w[1] if len(w) == 2 else 0.0)
            return np.logaddexp(0, np.where(hit, -logits, logits)).mean()

        best = minimize(loss, start, method="Nelder-Mead", options={"fatol": 1e-12, "xatol": 1e-9})
        ours = calibration.log_loss(fit(scores, hit)(scores), hit)
        assert ours <= best.fun + 1e-9


def test_isotonic_never_falls_and_has_the_least_squared_error():
    scores, hit = drawn(0.7, -1.0, 2_000)
    scores = scores.round(1)  # with ties
    prob = repairs.isotonic(scores, hit)(scores)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(prob[order]) >= 0).all()
    s, place = np.unique(scores, return_inverse=True)
    # Each pooled level is the mean of its hits: the mark of the least-squares solution.
    for level in np.unique(prob):
        assert hit[prob == level].mean() == pytest.approx(level, abs=1e-12)
    others = [repairs.platt(scores, hit)(scores), np.full(len(scores), hit.mean())]
    assert all(calibration.brier(prob, hit) <= calibration.brier(p, hit) for p in others)
    assert repairs.isotonic(scores, hit)(np.array([-99.0, 99.0])).tolist() == [
        prob.min(), prob.max()
    ]  # fmt: skip


def test_the_analytic_form_cures_and_keeps_the_order_to_the_last_item():
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.full(3_000, 0.05), size=40)
    scores = theory.converged_logit(np.maximum(prior, 1e-12), ALPHA, BETA).astype(np.float32)
    hit = rng.random(prior.shape) < prior
    prob = theory.FixedPoint(ALPHA, BETA).prior(scores)
    assert (np.argsort(prob, kind="stable") == np.argsort(scores, kind="stable")).all()
    raw = calibration.expected_calibration_error(expit(scores.astype(float)), hit)
    assert calibration.expected_calibration_error(prob, hit) < raw / 10


def test_temperature_alone_cannot_take_the_offset_away():
    scores, hit = drawn(1.0, -8.0)  # an honest model, raised by 8
    ece = {
        fit.__name__: calibration.expected_calibration_error(fit(scores, hit)(scores), hit)
        for fit in (repairs.temperature, repairs.platt)
    }
    assert ece["platt"] < ece["temperature"] / 50


@pytest.mark.parametrize("fit", [repairs.temperature, repairs.platt, repairs.isotonic])
def test_a_fit_needs_hits_misses_and_finite_scores(fit):
    with pytest.raises(InputError, match="hits and misses"):
        fit([1.0, 2.0], [True, True])
    with pytest.raises(InputError, match="finite"):
        fit([1.0, np.inf], [True, False])
    with pytest.raises(InputError, match="finite"):
        fit([1.0, 2.0, 3.0], [True, False])


def test_compare_counts_candidates_only_and_sees_a_moved_target():
    scores = np.array([[3.0, 2.0, 1.0, 9.0], [1.0, 2.0, 3.0, 9.0]])
    hit = np.array([[True, False, False, False], [False, True, False, False]])
    may = np.array([[True, True, True, False], [True, True, True, True]])
    cures = {
        "raw": expit,
        "backwards": lambda s: expit(-s),
        "flat": lambda s: np.full(s.shape, 0.5),
    }
    table = repairs.compare(cures, scores, hit, may, top=1)
    prob = expit(scores)
    assert table.loc["raw", "sum"] == pytest.approx((prob[0, :3].sum() + prob[1].sum()) / 2)
    assert table.loc["raw", "brier"] == pytest.approx(calibration.brier(prob[may], hit[may]))
    assert table.loc["raw", "predicted_top"] == pytest.approx((expit(3.0) + expit(9.0)) / 2)
    assert table.loc["raw", "observed_top"] == 0.5
    # Row 0: first of three. Row 1: third of four; the other way round it is second.
    assert table["moved"].tolist() == [0, 2, 2]
    with pytest.raises(InputError, match="one hit in each row"):
        repairs.compare(cures, scores, ~hit)
