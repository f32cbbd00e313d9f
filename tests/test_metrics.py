"""Recall, NDCG, intervals and tests, against hand-made numbers, simulation and scipy."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from gsas_lab import metrics
from gsas_lab.errors import InputError


def test_one_target_makes_recall_the_hit_rate_and_the_ideal_dcg_one():
    ranks = [1, 2, 10, 11]
    assert metrics.recall(ranks, 10).tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(
        metrics.ndcg(ranks, 10), [1, 1 / np.log2(3), 1 / np.log2(11), 0], rtol=1e-15
    )
    assert metrics.ndcg([1, 2], 1).tolist() == metrics.recall([1, 2], 1).tolist()


def test_summary_names_its_cutoffs():
    assert metrics.summary([1, 3]) == {"recall@1": 0.5, "recall@10": 1.0, "ndcg@10": 0.75}
    assert set(metrics.summary([1], cutoffs=(5, 20))) == {"recall@5", "recall@20", "ndcg@20"}


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth, covered, runs = 0.3, 0, 400
    for run in range(runs):
        low, high = metrics.bootstrap_interval(
            rng.random(300) < truth, confidence=0.9, draws=400, seed=run
        )
        covered += low <= truth <= high
    # 90 % of 400 is 360, standard deviation 6.
    assert 335 <= covered <= 385


def test_counting_distinct_values_is_the_ordinary_bootstrap():
    values = metrics.ndcg(np.random.default_rng(2).integers(1, 30, 500), 10)
    rng = np.random.default_rng(3)
    means = [values[rng.integers(0, 500, 500)].mean() for _ in range(4000)]
    interval = metrics.bootstrap_interval(values, draws=4000)
    np.testing.assert_allclose(interval, np.quantile(means, [0.025, 0.975]), atol=0.003)
    assert interval == metrics.bootstrap_interval(values, draws=4000, seed=0)
    assert interval != metrics.bootstrap_interval(values, draws=4000, seed=1)


def test_the_paired_test_is_scipys_with_bonferroni():
    rng = np.random.default_rng(4)
    b = rng.random(200)
    a = b + rng.normal(0.02, 0.1, 200)
    difference, p = metrics.paired_test(a, b)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert p == pytest.approx(ttest_rel(a, b).pvalue, rel=1e-10)
    assert metrics.paired_test(a, b, comparisons=4)[1] == pytest.approx(4 * p)
    assert metrics.paired_test(a, b, comparisons=10**9)[1] == 1.0


def test_equal_systems_do_not_differ():
    assert metrics.paired_test([1, 0, 1], [1, 0, 1]) == (0.0, 1.0)
    assert metrics.paired_test([2, 1, 2], [1, 0, 1]) == (1.0, 0.0)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.recall([0, 1], 10), "count from 1, not rank 0"),
        (lambda: metrics.ndcg([1], 0), "cutoff 0"),
        (lambda: metrics.summary([]), "one number for each user"),
        (lambda: metrics.recall([[1, 2]], 10), "one number for each user"),
        (lambda: metrics.bootstrap_interval([0.1, np.nan]), "NaN"),
        (lambda: metrics.bootstrap_interval([0.1], confidence=95), "confidence must lie"),
        (lambda: metrics.paired_test([1, 2], [1, 2, 3]), "the same users"),
        (lambda: metrics.paired_test([1], [2]), "2 or more"),
        (lambda: metrics.paired_test([1, 2], [1, 3], comparisons=0), "comparisons must"),
    ],
)
def test_a_mistake_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
