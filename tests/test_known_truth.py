"""The claim of notebook 04, asserted: trained models lie on Theorem 5.1's curve over the true P.

The runs are those of the notebooks, so that whoever comes first trains them for both.
"""

import numpy as np
import pytest

from gsas_lab import calibration, recipes, runs, theory

TOLERANCE = {"SASRec": 0.06, "gSASRec": 0.03, "gSASRec, t = 1": 0.02}  # of the mean σ in a bin


@pytest.fixture(scope="module")
def truth():
    data = runs.load_data(recipes.systems("known-truth")["SASRec"])
    some = data.split.test.subset(np.arange(2000))
    return some, runs.true_probabilities(data, some)


@pytest.mark.parametrize("name", TOLERANCE)
def test_learned_probabilities_lie_on_the_theorems_curve(name, truth):
    some, prior = truth
    run = runs.train(recipes.systems("known-truth")[name])
    learned = run.probabilities(run.scores(some))
    distance = calibration.deviation_from_theory(prior, learned, *run.fixed_point)
    assert distance["max_binned"] < TOLERANCE[name], distance
    if name == "gSASRec, t = 1":
        assert run.fixed_point[0] == run.fixed_point[1], "the curve is the diagonal"
    else:  # and the diagonal is refused: the test can tell the two apart
        assert calibration.deviation_from_theory(prior, learned, 1, 1)["max_binned"] > 0.2


def test_sasrec_is_overconfident_and_the_inverse_of_the_theorem_repairs_it(truth):
    some, prior = truth
    run = runs.train(recipes.systems("known-truth")["SASRec"])
    scores = run.scores(some)
    said = run.probabilities(scores).sum(1).mean()
    expected = theory.converged_probability(prior, *run.fixed_point).sum(1).mean()
    repaired = theory.prior_from_logit(scores, *run.fixed_point)
    assert said > 100 and said == pytest.approx(expected, rel=0.1)
    assert repaired.sum(1).mean() == pytest.approx(1, abs=0.1)
