"""The closed forms against the paper's literal formulas, exact fractions and numerical minima."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from gsas_lab import theory
from gsas_lab.errors import InputError

PRIORS = np.concatenate([np.geomspace(1e-12, 0.5, 60), 1 - np.geomspace(1e-12, 0.5, 60)])
N_ML1M = 3416


def test_calibration_t_gives_beta_in_both_forms_of_equation_27():
    t = np.linspace(0, 1, 21)
    for k in (1, 16, 256, N_ML1M - 1):
        a = theory.alpha(k, N_ML1M)
        assert a == k / (N_ML1M - 1)
        beta = theory.beta_from_t(t, a)
        np.testing.assert_allclose(beta, a * (t * (1 - 1 / a) + 1 / a), rtol=1e-12)
        np.testing.assert_allclose(beta, 1 - t * (1 - a), rtol=1e-12)
        assert beta[0] == 1.0 and beta[-1] == a  # exactly: t = 0 is BCE, t = 1 the true probability


@pytest.mark.parametrize("k, t", [(1, 0.0), (1, 1.0), (16, 0.25), (256, 0.75), (256, 0.9)])
def test_theorem_5_1_is_the_papers_formula_and_exact_at_both_ends(k, t):
    a = theory.alpha(k, N_ML1M)
    beta = theory.beta_from_t(t, a)
    literal = beta * PRIORS / (a - a * PRIORS + beta * PRIORS)  # Eq. (10)
    np.testing.assert_allclose(theory.converged_probability(PRIORS, a, beta), literal, rtol=1e-9)
    assert theory.converged_probability([0.0, 1.0], a, beta).tolist() == [0.0, 1.0]
    assert theory.prior_from_probability([0.0, 1.0], a, beta).tolist() == [0.0, 1.0]


def test_beta_equal_to_alpha_recovers_the_true_probability():
    for k in (1, 64, 256):  # Eq. (20)
        a = theory.alpha(k, N_ML1M)
        np.testing.assert_allclose(theory.converged_probability(PRIORS, a, a), PRIORS, rtol=1e-15)


def test_bce_and_sasrec_forms_of_the_theorem():
    p, n = np.linspace(0, 1, 101), N_ML1M
    for k in (1, 16, 256):  # Eq. (21)
        a = theory.alpha(k, n)
        np.testing.assert_allclose(
            theory.converged_probability(p, a, 1), p / (a - a * p + p), rtol=1e-12
        )
    sasrec = theory.converged_probability(p, theory.alpha(1, n), 1)  # Eq. (22), both forms
    np.testing.assert_allclose(sasrec, p * (n - 1) / (p * (n - 2) + 1), rtol=1e-12)
    np.testing.assert_allclose(sasrec, (p * n - p) / (p * n - 2 * p + 1), rtol=1e-12)


def test_the_inverse_is_exact_for_the_probability_that_it_is_given():
    a, beta = float(theory.alpha(1, 1_000_000)), 1.0
    for prob in PRIORS:  # exact rational arithmetic, so the test rounds nothing
        p = Fraction(float(prob))
        exact = Fraction(a) * p / (Fraction(beta) * (1 - p) + Fraction(a) * p)
        assert abs(Fraction(float(theory.prior_from_probability(prob, a, beta))) / exact - 1) < (
            Fraction(1, 10**12)
        )


@pytest.mark.parametrize("k, t", [(1, 0.0), (16, 0.5), (256, 0.75), (256, 1.0)])
def test_the_inverse_brings_back_the_prior(k, t):
    a = theory.alpha(k, N_ML1M)
    beta = theory.beta_from_t(t, a)
    prob = theory.converged_probability(PRIORS, a, beta)
    # Rounding of prob near 1 is amplified by beta / alpha; the logits carry no such loss.
    budget = 1e-12 + 4 * np.finfo(float).eps * beta / a
    np.testing.assert_allclose(
        theory.prior_from_probability(prob, a, beta), PRIORS, rtol=float(budget)
    )
    logit = theory.converged_logit(PRIORS, a, beta)
    np.testing.assert_allclose(theory.prior_from_logit(logit, a, beta), PRIORS, rtol=1e-12)
    np.testing.assert_allclose(expit(logit), prob, rtol=1e-12)


@pytest.mark.parametrize("k, t", [(1, 0.0), (16, 0.5), (256, 1.0)])
def test_with_collisions_the_inverse_brings_back_the_prior_as_well(k, t):
    a = theory.alpha(k, N_ML1M, never_drawn=0)
    beta = theory.beta_from_t(t, theory.alpha(k, N_ML1M))
    prob = theory.converged_probability(PRIORS, a, beta, collisions=True)
    back = theory.prior_from_probability(prob, a, beta, collisions=True)
    np.testing.assert_allclose(back, PRIORS, rtol=1e-12 + 4e-16 * float(1 + beta / a))
    logit = theory.converged_logit(PRIORS, a, beta, collisions=True)
    np.testing.assert_allclose(expit(logit), prob, rtol=1e-12)
    back = theory.prior_from_logit(logit, a, beta, collisions=True)
    np.testing.assert_allclose(back, PRIORS, rtol=1e-12)
    # No P leads above β / (α + β): what lies there is answered with more than 1.
    assert theory.prior_from_logit(50, a, beta, collisions=True) > 1


def test_overconfidence_is_one_offset_for_all_scores_and_no_score_overflows():
    a = theory.alpha(1, N_ML1M)
    assert theory.logit_offset(a, 1) == pytest.approx(8.136, abs=1e-3)  # SASRec on MovieLens-1M
    scores = np.array([-np.inf, -800, -80, -1, 0, 1, 80, 800, np.inf])
    with np.errstate(all="raise", under="ignore"):
        prior = theory.prior_from_logit(scores, a, 1)
    np.testing.assert_allclose(prior, expit(scores - np.log(N_ML1M - 1)), rtol=1e-12)
    ends = theory.converged_logit([0.0, 1.0], a, 1)
    assert ends.tolist() == [-np.inf, np.inf]


@pytest.mark.parametrize("collisions", [False, True])
@pytest.mark.parametrize("k, t", [(1, 0.0), (1, 1.0), (2, 0.5), (4, 0.9)])
@pytest.mark.parametrize("prior", [(0.6, 0.25, 0.1, 0.04, 0.01), (0.2, 0.2, 0.2, 0.2, 0.2)])
def test_the_minimum_of_the_expected_loss_is_the_theorem(prior, k, t, collisions):
    prior, n = np.array(prior), len(prior)
    a = theory.alpha(k, n)
    beta = float(theory.beta_from_t(t, a))

    def expected_gbce(s):
        """Eq. (8) averaged over every positive, and over every negative that may be drawn."""
        total = 0.0
        for positive in range(n):
            drawn = [i for i in range(n) if collisions or i != positive]
            negative = np.mean([log_expit(-s[i]) for i in drawn])
            total -= prior[positive] * (beta * log_expit(s[positive]) + k * negative) / (k + 1)
        return total

    found = minimize(
        expected_gbce, np.zeros(n), method="Powell", options={"xtol": 1e-10, "ftol": 1e-15}
    )
    a = theory.alpha(k, n, never_drawn=0 if collisions else 1)
    theorem = theory.converged_probability(prior, a, beta, collisions)
    np.testing.assert_allclose(expit(found.x), theorem, atol=1e-6)


@pytest.mark.parametrize("collisions", [False, True])
@pytest.mark.parametrize("k, t", [(1, 0.0), (1, 1.0), (16, 0.5), (256, 0.75)])
def test_a_search_that_knows_no_theorem_finds_it(k, t, collisions):
    prior = np.geomspace(1e-6, 0.9, 40)
    a = theory.alpha(k, N_ML1M, never_drawn=0 if collisions else 1)
    beta = theory.beta_from_t(t, theory.alpha(k, N_ML1M))
    found = theory.least_loss_score(prior, a, beta, collisions)
    theorem = theory.converged_probability(prior, a, beta, collisions)
    np.testing.assert_allclose(expit(found), theorem, atol=1e-6)
    least = theory.expected_loss(found, prior, a, beta, collisions)
    for shift in (-0.01, 0.01):  # and it is a minimum
        assert (theory.expected_loss(found + shift, prior, a, beta, collisions) > least).all()


def test_the_expected_loss_is_the_mean_of_sampled_losses():
    rng, n, k, beta, s, prior = np.random.default_rng(0), 50, 4, 0.6, 0.7, 0.2
    draws = 400_000
    positive = rng.random(draws) < prior  # is the item the positive?
    drawn = np.where(positive, 0, rng.binomial(k, 1 / (n - 1), draws))
    sampled = -beta * positive * log_expit(s) - drawn * log_expit(-s)
    expected = theory.expected_loss(s, prior, theory.alpha(k, n), beta)
    assert abs(sampled.mean() - expected) < 4 * sampled.std() / draws**0.5


def test_excluding_a_history_raises_the_sampling_rate_of_the_rest():
    assert theory.alpha(5, 101) == theory.alpha(5, 101, never_drawn=1) == 0.05
    assert theory.alpha(5, 100, never_drawn=0) == 0.05
    assert theory.alpha(5, 101, never_drawn=51) == 0.1


def test_the_forecast_from_popularity_is_a_ceiling_on_the_mean_over_users():
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.full(100, 0.1), size=500)  # users who differ
    a = theory.alpha(1, 100)
    users = theory.forecast_sum(prior, a, 1.0)
    assert users.shape == (500,)
    ceiling = theory.forecast_sum(prior.mean(0), a, 1.0)
    assert 1.5 * users.mean() < ceiling
    assert theory.forecast_sum(prior[0], a, a) == pytest.approx(1)  # β = α: nothing to add


def test_zipf_shares():
    shares = theory.zipf(4, 1.0)
    np.testing.assert_allclose(shares, np.array([12, 6, 4, 3]) / 25)
    np.testing.assert_allclose(theory.zipf(5, 0.0), 0.2)


def test_the_minimum_holds_for_a_proposal_that_is_not_uniform():
    prior, q, k, beta = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.2, 0.1]), 3, 0.4

    def expected_gbce(s):
        return -(prior @ (beta * log_expit(s)) + k * (q @ log_expit(-s)))

    found = minimize(
        expected_gbce, np.zeros(3), method="Powell", options={"xtol": 1e-10, "ftol": 1e-15}
    )
    theorem = theory.converged_probability(prior, k * q, beta, collisions=True)
    np.testing.assert_allclose(expit(found.x), theorem, atol=1e-6)


def test_collisions_cost_what_the_public_code_loses():
    # At t = 1 and k = 1: P = 0.13 reads 0.115 and P = 0.33 reads 0.25.
    beta = theory.alpha(1, N_ML1M)
    a = theory.alpha(1, N_ML1M, never_drawn=0)
    read = theory.converged_probability([0.13, 0.33], a, beta, collisions=True)
    np.testing.assert_allclose(read, [0.115, 0.248], atol=5e-4)


@pytest.mark.parametrize("beta", [1e-3, 0.25, 0.9, 1.0])
def test_gbce_is_bce_of_the_transformed_score(beta):
    s = np.linspace(-20, 15, 200)  # where the literal formula still works in float64
    gamma = theory.positive_transform(s, beta)
    np.testing.assert_allclose(gamma, np.log(1 / (expit(s) ** -beta - 1)), rtol=1e-6, atol=1e-6)
    # Theorem 5.2: -log sigma(s)^beta = -log sigma(gamma(s)); the negatives' terms are the same.
    # The literal power lies near 1, so its rounding is an absolute error of about 1e-16.
    np.testing.assert_allclose(-log_expit(gamma), -np.log(expit(s) ** beta), rtol=1e-9, atol=1e-15)


def test_the_transform_survives_every_score():
    s = np.array([-1e4, -800, -80, -40, 0, 39.999, 40, 40.001, 80, 800, 1e4])
    with np.errstate(all="raise", under="ignore"):
        gamma = theory.positive_transform(s, 0.25)
        assert np.isfinite(gamma).all() and (np.diff(gamma) > 0).all()
        np.testing.assert_allclose(theory.positive_transform(s, 1.0), s, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(-log_expit(gamma), -0.25 * log_expit(s), rtol=1e-12)


def test_the_introduction_needs_51_gb():
    assert theory.logits_bytes(64, 200, 1_000_000) == 51_200_000_000
    assert theory.logits_bytes(64, 200, 1_000_000, gradients=True) > 100e9
    assert theory.logits_bytes(64, 200, 1_000_000, "bfloat16") == 25_600_000_000


def test_numbers_give_numbers_and_arrays_broadcast():
    assert isinstance(theory.alpha(1, 10), float)
    assert isinstance(theory.converged_probability(0.5, 0.1, 1), float)
    assert isinstance(theory.prior_from_logit(0.5, 0.1, 1), float)
    assert isinstance(theory.positive_transform(0.5, 0.1), float)
    assert theory.converged_probability(np.zeros((3, 1)), 0.1, np.ones(4)).shape == (3, 4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: theory.alpha(0, 10), "k must lie"),
        (lambda: theory.alpha(10, 10), "k must lie"),
        (lambda: theory.beta_from_t(1.01, 0.5), "t must lie between 0 and 1, not 1.01"),
        (lambda: theory.beta_from_t(-0.01, 0.5), "t must lie"),
        (lambda: theory.beta_from_t(0.5, 0.0), "alpha must be above 0"),
        (lambda: theory.converged_probability([0.5, 1.5], 0.5, 1), "prior must .* not 1.5"),
        (lambda: theory.converged_probability(np.nan, 0.5, 1), "prior must .* not nan"),
        (lambda: theory.converged_logit(-0.5, 0.5, 1), "prior must"),
        (lambda: theory.prior_from_probability(2, 0.5, 1), "prob must"),
        (lambda: theory.prior_from_logit(2, 0.5, 0), "beta must be above 0"),
        (lambda: theory.positive_transform(2, np.inf), "beta must be above 0 and finite"),
        (lambda: theory.alpha(1, 10, never_drawn=10), "n_items - never_drawn must be 1 to"),
        (lambda: theory.alpha(1, 10, never_drawn=-1), "n_items - never_drawn must be 1 to"),
        (lambda: theory.expected_loss(0, 2, 0.5, 1), "prior must"),
        (lambda: theory.zipf(0), "n_items must be 1 or more"),
        (lambda: theory.zipf(3, -1.0), "exponent 0 or more"),
        (lambda: theory.logits_bytes(1, 1, 1, "int3"), "dtype must be one of"),
        (lambda: theory.logits_bytes(0, 1, 1), "must be 1 or more"),
    ],
)
def test_a_mistake_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_theory_runs_without_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['scipy'] = None; import gsas_lab.theory"
    subprocess.run([sys.executable, "-c", code], check=True)
