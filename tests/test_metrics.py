"""Recall, NDCG, intervals and tests, against hand-made numbers, simulation and scipy."""

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

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


def users_of_two_systems(rng, gain: float = 0.0, n_users: int = 200) -> tuple:
    """What one user gets from either system is mostly a matter of the user: correlation 0.9."""
    user = rng.normal(0.3, 0.3, n_users)
    return user + rng.normal(gain, 0.1, n_users), user + rng.normal(0, 0.1, n_users)


def test_equal_systems_are_told_apart_five_times_in_a_hundred():
    rng, runs = np.random.default_rng(5), 2000
    pairs = [users_of_two_systems(rng) for _ in range(runs)]
    found = sum(metrics.paired_test(a, b)[1] < 0.05 for a, b in pairs)
    # 100 expected, standard deviation 9.7.
    assert 68 <= found <= 132
    # The unpaired test takes what users have in common for noise, and finds next to nothing.
    assert sum(metrics.unpaired_test(a, b)[1] < 0.05 for a, b in pairs) == 0


def test_the_unpaired_test_misses_what_the_paired_one_sees():
    rng, runs = np.random.default_rng(6), 400
    pairs = [users_of_two_systems(rng, gain=0.03) for _ in range(runs)]
    paired = sum(metrics.paired_test(a, b)[1] < 0.05 for a, b in pairs) / runs
    unpaired = sum(metrics.unpaired_test(a, b)[1] < 0.05 for a, b in pairs) / runs
    assert paired > 0.8 and unpaired < 0.05


def test_the_unpaired_test_is_scipys_and_the_public_codes_where_users_are_as_many():
    rng = np.random.default_rng(7)
    a, b = rng.random(200), 1.2 * rng.random(90)
    difference, p = metrics.unpaired_test(a, b)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert p == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue, rel=1e-10)
    students = ttest_ind(a[:90], b).pvalue
    assert metrics.unpaired_test(a[:90], b)[1] == pytest.approx(students, rel=0.01)


def slow_holm(p: list) -> list:
    """Step by step, as Holm (1979) tells it."""
    left, adjusted, floor = dict(enumerate(p)), {}, 0.0
    while left:
        smallest = min(left, key=left.get)
        floor = max(floor, len(left) * left.pop(smallest))
        adjusted[smallest] = min(1.0, floor)
    return [adjusted[place] for place in range(len(p))]


def test_corrections_are_those_worked_out_by_hand():
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(metrics.bonferroni(p), [0.04, 0.16, 0.12, 0.02], rtol=1e-15)
    # 4 · 0.005, 3 · 0.01, 2 · 0.03, and 1 · 0.04, which may not fall below 0.06.
    np.testing.assert_allclose(metrics.holm(p), [0.03, 0.06, 0.06, 0.02], rtol=1e-15)
    assert metrics.holm([0.5]).tolist() == metrics.bonferroni([0.5]).tolist() == [0.5]
    assert metrics.holm([0.9, 0.8]).tolist() == [1, 1]


def test_holm_keeps_the_order_and_is_never_weaker_than_bonferroni():
    rng = np.random.default_rng(8)
    for m in (1, 2, 5, 30):
        p = np.round(rng.random(m) ** 4, 2)  # rounded, so that some are equal
        np.testing.assert_allclose(metrics.holm(p), slow_holm(p.tolist()), rtol=1e-15)
        assert (metrics.holm(p) <= metrics.bonferroni(p)).all() and (metrics.holm(p) >= p).all()
        assert (np.diff(metrics.holm(p)[np.argsort(p)]) >= 0).all()


def test_corrections_bound_the_chance_of_any_false_claim():
    p = np.random.default_rng(9).random((2000, 10))
    for correct in (metrics.bonferroni, metrics.holm):
        found = sum((correct(row) < 0.05).any() for row in p)
        # At most 100 expected, standard deviation 9.7; without correction 803.
        assert 60 <= found <= 132


@pytest.fixture
def three_systems() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(10)
    user = rng.random(500)
    gains = {"Popularity": -0.2, "SASRec": 0.0, "gSASRec": 0.01}
    return {name: user + rng.normal(gain, 0.1, 500) for name, gain in gains.items()}


def test_compare_tests_each_system_against_the_baseline(three_systems):
    table = metrics.compare(three_systems, baseline="SASRec").set_index("system")
    assert list(table.index) == ["Popularity", "gSASRec"]
    for name, row in table.iterrows():
        a, b = three_systems[name], three_systems["SASRec"]
        expected = ttest_rel(a, b)
        assert (row["statistic"], row["p"]) == pytest.approx((expected.statistic, expected.pvalue))
        assert row["difference"] == pytest.approx(row["mean"] - row["baseline mean"])
        assert row["relative"] == pytest.approx(100 * (a.mean() / b.mean() - 1))
        assert (row["low"], row["high"]) == metrics.bootstrap_interval(a - b)
        assert row["low"] < row["difference"] < row["high"]
    assert table["p_bonferroni"].tolist() == metrics.bonferroni(table["p"]).tolist()
    assert table["p_holm"].tolist() == metrics.holm(table["p"]).tolist()


def test_without_a_baseline_every_pair_is_compared_the_later_with_the_earlier(three_systems):
    table = metrics.compare(three_systems)
    assert table[["system", "baseline"]].to_numpy().tolist() == [
        ["SASRec", "Popularity"],
        ["gSASRec", "Popularity"],
        ["gSASRec", "SASRec"],
    ]
    assert (table["difference"] > 0).all()


def test_the_mark_follows_bonferroni_and_significant_follows_holm(three_systems):
    # Of three tests the largest p: Holm leaves it as it is, Bonferroni multiplies it by 3.
    table = metrics.compare(three_systems)
    last = table.iloc[-1]
    assert last["p"] < 0.05 < 3 * last["p"]
    assert table["significant"].tolist() == [True, True, True]
    assert table["mark"].tolist() == ["*", "*", ""]


def test_a_baseline_that_never_hits_has_no_relative_difference():
    table = metrics.compare({"none": [0.0, 0, 0], "some": [0.0, 1, 1]}, "none")
    assert np.isnan(table["relative"][0]) and table["difference"][0] == pytest.approx(2 / 3)


def test_users_and_seeds_are_uncertain_each_in_their_own_way():
    rng, n_users = np.random.default_rng(11), 2000
    user, seed = rng.normal(0, 0.3, n_users), np.array([-0.02, 0.0, 0.02, 0.04])
    told = metrics.over_seeds(0.2 + seed[:, None] + user)
    assert told["seed deviation"] == pytest.approx(seed.std(ddof=1), rel=1e-9)
    assert told["user error"] == pytest.approx(user.std(ddof=1) / n_users**0.5, rel=1e-9)
    assert told["mean"] == pytest.approx(0.21 + user.mean())
    assert (told["seeds"], told["users"]) == (4, n_users)


def test_models_may_differ_on_other_users_where_another_training_need_not():
    """A lucky seed: sure for these models, and no evidence for the system."""
    rng = np.random.default_rng(12)
    user = rng.normal(0.3, 0.3, 2000)
    a, b = (
        user + np.array(seeds)[:, None] + rng.normal(0, 0.05, (3, 2000))
        for seeds in ([0.05, 0.0, 0.01], [0.0, 0.01, 0.02])
    )
    table = metrics.compare_seeds(a, b)
    assert table.loc["users", "p"] < 1e-6 and table.loc["seeds", "p"] > 0.3
    assert table["difference"].tolist() == pytest.approx(2 * [a.mean() - b.mean()])
    assert table["sample"].tolist() == [2000, 3]
    oracle = ttest_rel(a.mean(0), b.mean(0)), ttest_ind(a.mean(1), b.mean(1), equal_var=False)
    assert table["p"].tolist() == pytest.approx([each.pvalue for each in oracle], rel=1e-9)
    assert table["statistic"].tolist() == pytest.approx(
        [each.statistic for each in oracle], rel=1e-9
    )


def test_a_claim_about_systems_with_several_seeds_needs_users_and_seeds():
    """p is the larger of the two tests; a system of one seed has that of users alone."""
    rng = np.random.default_rng(13)
    user = rng.normal(0.3, 0.3, 2000)

    def trained(*seeds):
        return user + np.array(seeds)[:, None] + rng.normal(0, 0.05, (len(seeds), 2000))

    values = {"base": trained(0.0, 0.01, 0.02), "lucky": trained(0.06, 0.0), "better": trained(
        0.2, 0.21, 0.22, 0.2), "one": trained(0.1)[0]}  # fmt: skip
    table = metrics.compare(values, "base").set_index("system")
    assert (table["p_users"] < 1e-6).all()
    for name in ("lucky", "better"):
        oracle = ttest_ind(values[name].mean(1), values["base"].mean(1), equal_var=False)
        assert table.loc[name, "p_seeds"] == pytest.approx(oracle.pvalue, rel=1e-9)
        seeds = metrics.compare_seeds(values[name], values["base"])
        assert seeds["p"].tolist() == table.loc[name, ["p_users", "p_seeds"]].tolist()
    assert np.isnan(table.loc["one", "p_seeds"])
    assert table["p"].tolist() == table[["p_users", "p_seeds"]].max(axis=1).tolist()
    assert table["mark"].to_dict() == {"lucky": "", "better": "*", "one": "*"}


def test_seeds_without_any_spread_still_answer():
    a, b = np.ones((2, 3)), np.zeros((2, 3))
    assert metrics.compare_seeds(a, b)["p"].tolist() == [0, 0]
    assert metrics.compare_seeds(a, a)["p"].tolist() == [1, 1]


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
        (lambda: metrics.unpaired_test([1], [2, 3]), "2 values or more of each, not 1, 2"),
        (lambda: metrics.holm([0.1, np.nan]), "from 0 to 1 for each test"),
        (lambda: metrics.bonferroni([]), "from 0 to 1 for each test"),
        (lambda: metrics.holm([1.2]), "from 0 to 1 for each test"),
        (lambda: metrics.compare({"a": [0, 1], "b": [1, 1]}, "c"), "baseline 'c' is none of a, b"),
        (lambda: metrics.compare({"a": [0, 1]}, "a"), "2 systems or more, not 1"),
        (lambda: metrics.compare({"a": [0, 1], "b": [1]}), "the same users"),
        (lambda: metrics.compare({"a": [0, 1], "b": [1, np.nan]}), "NaN"),
        (lambda: metrics.over_seeds([[1, 2, 3]]), "2 seeds or more"),
        (lambda: metrics.over_seeds([[1, np.nan], [1, 2]]), "NaN"),
        (lambda: metrics.compare_seeds(np.ones((2, 3)), np.ones((2, 4))), "the same users"),
        (lambda: metrics.compare({"a": np.ones((2, 3)), "b": np.ones((2, 4))}), "the same users"),
        (lambda: metrics.compare({"a": np.ones((0, 3)), "b": np.ones(3)}), "each seed and user"),
        (lambda: metrics.compare_seeds(np.ones(3), np.ones(3)), r"shape \(3,\)"),
    ],
)
def test_a_mistake_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
