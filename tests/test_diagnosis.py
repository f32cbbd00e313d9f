"""Scores made from a known prior by Theorem 5.1 are diagnosed as what they are, and repaired."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax

from gsas_lab import __main__ as command_line
from gsas_lab import calibration, diagnosis, runs, theory
from gsas_lab.errors import InputError

N_ITEMS = 80
ALPHA, BETA = theory.alpha(1, N_ITEMS), 1.0  # SASRec


def world(users=400, seed=0):
    """Known priors (users, N_ITEMS) of one choice, and independent clicks with just these."""
    rng = np.random.default_rng(seed)
    prior = softmax(rng.normal(0, 2, (users, N_ITEMS)), axis=1)
    return prior, rng.random(prior.shape) < prior


def table_of(scores, hit, rows=slice(None)):
    users, items = np.indices(scores.shape)
    columns = {"user": users, "item": items, "score": scores, "clicked": hit.astype(int)}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})[rows]


def same(one, other):
    """The same findings, to rounding; users in another order are resampled in another way."""
    assert one.verdict == other.verdict and one.subtract == pytest.approx(other.subtract)
    assert one.numbers.drop("offset (95 % interval)").equals(
        other.numbers.drop("offset (95 % interval)")
    )
    assert one.interval == pytest.approx(other.interval, abs=0.02)
    pd.testing.assert_frame_equal(one.advice, other.advice)
    pd.testing.assert_frame_equal(one.repairs, other.repairs)
    pd.testing.assert_frame_equal(one.top, other.top)


@pytest.mark.parametrize("k, t", [(1, 0.0), (16, 0.0), (16, 0.75)])
def test_the_offset_of_theorem_5_1_is_found_again(k, t):
    alpha = theory.alpha(k, N_ITEMS)
    beta = theory.beta_from_t(t, alpha)
    prior, clicks = world()
    one = np.array([np.random.default_rng(u).choice(N_ITEMS, p=p) for u, p in enumerate(prior)])
    found = diagnosis.diagnose(theory.converged_logit(prior, alpha, beta), one)
    # Each prior sums to 1, one item comes next: nothing is left to chance.
    assert found.offset == pytest.approx(theory.logit_offset(alpha, beta), abs=1e-9)
    assert found.verdict.startswith("overconfident: it expects") and found.observed == 1
    assert found.expected == pytest.approx(theory.forecast_sum(prior, alpha, beta).mean())
    assert found.subtract == found.offset


def test_the_interval_covers_the_truth_19_times_in_20():
    truth, inside = theory.logit_offset(ALPHA, BETA), 0
    for seed in range(100):
        prior, clicks = world(100, seed)
        scores = theory.converged_logit(prior, ALPHA, BETA)
        count = np.full(100, N_ITEMS)
        offset, (low, high), _ = diagnosis._offset(
            diagnosis._Rows(scores.ravel(), clicks.ravel(), count)
        )
        assert low < offset < high
        inside += low <= truth <= high
    assert 90 <= inside <= 99  # binomial: 3 in 100 samples of 100 lie outside


def test_subtracting_the_offset_brings_the_error_down_to_what_sampling_makes():
    prior, clicks = world(2000)
    scores = theory.converged_logit(prior, ALPHA, BETA)
    found = diagnosis.diagnose(scores, clicks, alpha=ALPHA, beta=BETA)
    ece = found.repairs["ece"]
    perfect = calibration.expected_calibration_error(prior, clicks)
    assert ece["raw σ(s)"] == calibration.expected_calibration_error(expit(scores), clicks) > 0.2
    assert ece["offset subtracted"] < perfect + 1e-3
    assert ece["analytic"] == pytest.approx(perfect, abs=1e-9)
    repaired = diagnosis.diagnose(scores - found.subtract, clicks)
    assert repaired.verdict.startswith("calibrated: ") and repaired.subtract == 0
    np.testing.assert_array_equal(repaired.top["observed"], found.top["observed"])
    assert set(found.curves) == set(found.repairs.index)


def test_the_inverse_with_collisions_is_the_one_that_is_judged():
    prior, clicks = world(2000)
    alpha = theory.alpha(16, N_ITEMS, 0)
    scores = theory.converged_logit(prior, alpha, alpha, collisions=True)
    known = {"alpha": alpha, "beta": alpha}
    with_, without = (
        diagnosis.diagnose(scores, clicks, **known, collisions=c).repairs["ece"]["analytic"]
        for c in (True, False)
    )
    assert with_ == pytest.approx(calibration.expected_calibration_error(prior, clicks), abs=1e-9)
    assert with_ < without


@pytest.mark.parametrize(
    "shift, slope, verdict",
    [
        (0.0, 1.0, "calibrated: "),
        (0.05, 1.0, "calibrated: "),  # beyond its interval, but too little to matter
        (0.5, 1.0, "overconfident: "),
        (-0.5, 1.0, "underconfident: "),
        (None, 0.6, "calibrated on average only: "),
    ],
)
def test_scores_are_called_what_they_are(shift, slope, verdict):
    prior, clicks = world(4000)
    scores = slope * logit(prior)
    if shift is None:  # where the mean is right, whatever the slope
        shift = -diagnosis.diagnose(scores, clicks).offset
    found = diagnosis.diagnose(scores + shift, clicks)
    assert found.verdict.startswith(verdict)
    assert found.slope == pytest.approx(1 / slope, rel=0.05)
    assert ("repairs.platt" in str(found)) == (slope != 1)
    assert bool(found.subtract) == (abs(shift) == 0.5)


def test_distances_in_place_of_scores_are_suspected():
    prior, clicks = world()
    assert "Are these distances?" in str(diagnosis.diagnose(-logit(prior), clicks))


@pytest.mark.parametrize("shift", [-900, 900])
def test_no_score_is_too_large(shift):
    prior, clicks = world()
    found, level = (diagnosis.diagnose(logit(prior) + x, clicks) for x in (shift, 0))
    assert found.offset == pytest.approx(level.offset + shift)
    assert found.slope == pytest.approx(level.slope)
    assert f"{abs(found.offset):.2f} too" in found.verdict


def test_a_few_clicks_decide_nothing():
    prior, _ = world(40)
    clicks = np.zeros(prior.shape, bool)
    clicks[[3, 8, 20], prior[[3, 8, 20]].argmax(1)] = True
    found = diagnosis.diagnose(logit(prior) - 2.5, clicks)
    low, high = found.interval
    assert low < 0 < high and high - low > 1
    assert found.verdict.startswith("undecided: ") and found.subtract == 0


def test_the_first_items_are_those_of_the_ranking():
    prior, clicks = world(50)
    found = diagnosis.diagnose(logit(prior), clicks)
    for cutoff in (1, 10):
        first = [np.argsort(-row, kind="stable")[:cutoff] for row in prior]
        rows = list(zip(prior, clicks, first, strict=True))
        predicted, observed = found.top.loc[cutoff]
        assert predicted == pytest.approx(np.mean([p[i] for p, _, i in rows]))
        assert observed == pytest.approx(np.mean([c[i] for _, c, i in rows]))


def test_probabilities_and_logits_of_them_are_the_same():
    prior, clicks = world()
    same(
        diagnosis.diagnose(logit(prior), clicks),
        diagnosis.diagnose(prior, clicks, of="probabilities"),
    )


SUFFIXES = [".csv", ".tsv", ".parquet", ".jsonl", ".npy", ".csv.gz", ".tsv.xz", ".jsonl.gz"]


@pytest.mark.parametrize("suffix", [None, *SUFFIXES])
def test_a_table_in_any_order_says_what_the_matrix_says(suffix, tmp_path):
    prior, clicks = world(100)
    scores = theory.converged_logit(prior, ALPHA, BETA)
    table = table_of(scores, clicks).sample(frac=1, random_state=1).assign(also="not used")
    given = table
    if suffix:
        given = tmp_path / f"scores{suffix}"
        if suffix == ".parquet":
            table.to_parquet(given)
        elif suffix == ".npy":
            np.save(given, table.drop(columns="also").to_numpy(float))
        elif suffix.startswith(".jsonl"):
            table.to_json(given, orient="records", lines=True, double_precision=15)
        else:
            table.to_csv(given, index=False, sep="\t" if suffix.startswith(".tsv") else ",")
    same(diagnosis.diagnose_table(given), diagnosis.diagnose(scores, clicks))


def test_each_users_first_items_give_the_offset_and_say_what_they_cannot():
    prior, clicks = world(4000)
    scores = theory.converged_logit(prior, ALPHA, BETA)
    first = (scores >= np.sort(scores, axis=1)[:, [-10]]).ravel()
    found = diagnosis.diagnose_table(table_of(scores, clicks, first), n_items=N_ITEMS)
    low, high = found.interval
    assert low <= theory.logit_offset(ALPHA, BETA) <= high < low + 0.1
    assert not found.whole and found.pairs == 40_000 and "catalogue is unknown" in str(found)
    assert found.advice["k"].tolist() == [2, 2, 4, 4, 4]
    assert found.advice["sum"].iloc[-1] < 1 and "Σσ(s), these items" in str(found)
    unsized = diagnosis.diagnose_table(table_of(scores, clicks, first))
    assert unsized.advice.empty and "no advice" in str(unsized) and unsized.offset == found.offset


def choices(prior, seed=0):
    """One clicked column of each user, drawn from its prior: (users, N) True or False."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(len(row), p=row / row.sum()) for row in prior]
    return np.arange(prior.shape[1]) == np.array(drawn)[:, None]


def sampled(scores, hit, m, seed=0):
    """A table of the clicks and, for each user, m of the others, uniformly."""
    keys = np.where(hit, -1.0, np.random.default_rng(seed).random(hit.shape))
    limit = np.sort(keys, axis=1)[np.arange(len(hit)), hit.sum(1) + m - 1]
    return table_of(scores, hit, (keys <= limit[:, None]).ravel())


@pytest.mark.parametrize("m, close", [(4, 0.3), (60, 0.05)])
def test_sampled_negatives_are_weighed_and_without_a_word_nothing_is_decided(m, close):
    prior = softmax(np.random.default_rng(0).normal(0, 2, (600, 300)), axis=1)
    alpha = theory.alpha(4, 300)
    scores, hit = theory.converged_logit(prior, alpha, 1.0), choices(prior)
    table = sampled(scores, hit, m)
    assert len(table) == 600 * (m + 1)
    bare = diagnosis.diagnose_table(table, n_items=300)
    assert bare.verdict.startswith("undecided: ") and "exactly one click" in bare.verdict
    assert "--sampled-negatives" in bare.verdict and bare.subtract == 0 and bare.advice.empty
    truth = diagnosis.diagnose(scores, hit)
    found = diagnosis.diagnose_table(table, n_items=300, sampled_negatives=True)
    low, high = found.interval
    assert found.verdict.startswith("overconfident: ") and found.sampled and not found.whole
    assert found.offset == pytest.approx(truth.offset, abs=close) and low < truth.offset < high
    assert found.expected == pytest.approx(truth.expected, rel=0.15)
    assert found.repairs["sum"]["offset subtracted"] == pytest.approx(1)  # weights: 1 click a user
    assert found.repairs["ece"]["offset subtracted"] < found.repairs["ece"]["raw σ(s)"] / 5
    assert found.slope == pytest.approx(1, abs=0.2) and found.top.empty
    assert "not known from rows that stand for others" in str(found)
    assert "as BCE leaves it" not in str(found)  # no whole catalogue: not identified
    weights = np.where(table["clicked"] == 1, 1.0, 299 / m)
    by_hand = diagnosis.diagnose_table(table.assign(weight=weights), n_items=300)
    assert (by_hand.offset, by_hand.interval) == (found.offset, found.interval)
    pd.testing.assert_frame_equal(by_hand.repairs, found.repairs)


def test_sampled_negatives_of_users_with_many_clicks_or_none():
    prior, clicks = world(2000)
    scores = theory.converged_logit(prior, ALPHA, BETA)
    assert len({*clicks.sum(1)}) > 3
    table = sampled(scores, clicks, 20)
    found = diagnosis.diagnose_table(table, n_items=N_ITEMS, sampled_negatives=True)
    assert found.interval[0] < theory.logit_offset(ALPHA, BETA) < found.interval[1]
    assert found.observed == pytest.approx(clicks.sum() / 2000)
    everything = table_of(scores, clicks)
    same(
        diagnosis.diagnose_table(everything, n_items=N_ITEMS, sampled_negatives=True),
        diagnosis.diagnose_table(everything),
    )


def test_the_same_share_of_clicks_for_all_is_no_chance():
    """Four negatives for each click, for users with several; and a few users without their click."""
    prior = softmax(np.random.default_rng(0).normal(0, 2, (100, 200)), axis=1)
    several = prior >= np.sort(prior, axis=1)[:, [-10]]
    keys = np.where(several, -1.0, np.random.default_rng(0).random(several.shape))
    rows = keys <= np.sort(keys, axis=1)[:, [49]]
    table = table_of(logit(prior), several, rows.ravel())
    assert "the same share" in diagnosis.diagnose_table(table).verdict
    one = sampled(logit(prior), choices(prior), 4)
    one.loc[one["user"] == 7, "clicked"] = 0
    assert "99 of 100 users" in diagnosis.diagnose_table(one).verdict


def test_rows_that_nobody_chose_by_clicks_keep_their_verdict():
    prior, clicks = world(2000)
    nearly = prior > np.quantile(prior, 0.02)  # all but the seen ones, say
    one = choices(prior * nearly)
    shown = table_of(logit(prior) + 2, one, nearly.ravel())
    assert diagnosis.diagnose_table(shown).verdict.startswith("overconfident: ")
    # Impressions of which all users click some: as many as the repaired probabilities say.
    rng = np.random.default_rng(0)
    few = logit(prior)[:, :20] + 4
    many = rng.random(few.shape) < expit(few)
    shown = table_of(few, many, (rng.random(few.shape) < 0.9).ravel())
    assert diagnosis.diagnose_table(shown, n_items=500).verdict.startswith("calibrated: ")
    # One click each among half of the catalogue: only who made the table knows.
    half = prior > np.median(prior)
    shown = table_of(logit(prior) + 2, choices(prior * half), half.ravel())
    assert diagnosis.diagnose_table(shown).verdict.startswith("undecided: ")
    assert diagnosis.diagnose_table(shown.assign(weight=1)).verdict.startswith("overconfident: ")


@pytest.mark.parametrize("few", [1, 2, 3])
def test_one_click_in_a_thousand_users_decides_nothing(few):
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (1000, 50))
    clicks = np.zeros(scores.shape, bool)
    clicks[np.arange(few), 3] = True
    found = diagnosis.diagnose(scores, clicks)
    assert found.verdict.startswith("undecided: ") and found.interval[1] == np.inf
    assert found.subtract == 0 and "nan" not in str(found)
    # The other way round: all but a few.
    found = diagnosis.diagnose(scores, ~clicks)
    assert found.verdict.startswith("undecided: ") and found.interval[0] == -np.inf


def test_the_interval_is_as_wide_as_few_clicks_make_it():
    inside, widths = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        prior = softmax(rng.normal(0, 1.5, (200, 40)), axis=1) * 8 / 200
        hit = rng.random(prior.shape) < prior
        rows = diagnosis._Rows(logit(prior).ravel(), hit.ravel(), np.full(200, 40))
        _, (low, high), _ = diagnosis._offset(rows)
        inside += low <= 0 <= high
        widths.append(high - low)
    assert inside >= 56 and np.median(widths) > 1.2  # 8 clicks: exact bounds are 0.8 to 2 of them


def test_equal_scores_have_a_level_and_no_slope():
    prior, clicks = world()
    for level, verdict in ((2.0, "overconfident: "), (logit(clicks.mean()), "calibrated on aver")):
        found = diagnosis.diagnose(np.full(clicks.shape, level), clicks)
        assert found.verdict.startswith(verdict) and np.isnan(found.slope)
        assert found.offset == pytest.approx(level - logit(clicks.mean()))
        assert "not identifiable, because all scores are equal" in str(found)
    parted = np.where(clicks, 1.0, -3.0) + prior  # a threshold parts the clicks from the rest
    assert "threshold" in str(diagnosis.diagnose(parted, clicks))
    by_user = np.repeat(np.random.default_rng(0).normal(3, 1, (400, 1)), N_ITEMS, axis=1)
    assert diagnosis.diagnose(by_user, clicks).verdict.startswith("overconfident: ")


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9, 1e12])
def test_scores_of_any_spread_are_judged(scale):
    prior, clicks = world()
    found = diagnosis.diagnose(scale * logit(prior), clicks)
    low, high = found.interval
    p = expit(scale * logit(prior) - found.offset)
    assert p.sum() == pytest.approx(clicks.sum()) or found.verdict.startswith("undecided: ")
    assert low <= found.offset <= high and found.slope == pytest.approx(1 / scale, rel=0.15)
    assert not found.verdict.startswith("calibrated")


def test_counts_in_place_of_scores_are_overconfident():
    rng = np.random.default_rng(0)
    popularity = (50_000 / np.arange(1, 201) ** 0.8).astype(int)
    clicks = np.arange(200) == rng.choice(200, 500, p=popularity / popularity.sum())[:, None]
    found = diagnosis.diagnose(np.tile(popularity, (500, 1)), clicks)
    assert found.verdict.startswith("overconfident: it expects 200 clicks") and found.slope < 0.01
    assert np.isfinite(found.interval).all()


def test_scores_beyond_all_shifts_are_not_identifiable():
    prior, clicks = world()
    found = diagnosis.diagnose(1e17 + 1e3 * np.round(logit(prior)), clicks)
    assert found.verdict.startswith("undecided: ") or np.isfinite(found.interval).all()
    with pytest.raises(InputError, match="too large for a logit"):
        diagnosis.diagnose(1e200 * logit(prior), clicks)


def test_scores_between_0_and_1_are_logits_only_if_somebody_says_so():
    prior, clicks = world()
    found = diagnosis.diagnose(prior, clicks)
    assert found.verdict.startswith("undecided: ") and "between 0 and 1" in found.verdict
    assert found.subtract == 0 and found.advice.empty
    assert "--of" in diagnosis.diagnose_table(table_of(prior, clicks)).verdict
    told = diagnosis.diagnose(prior, clicks, of="logits")
    assert told.verdict.startswith("overconfident: ") and told.offset == found.offset
    assert diagnosis.diagnose(prior, clicks, of="probabilities").verdict.startswith("calibrated: ")


def test_k_is_read_off_only_where_it_is_identified():
    prior = softmax(np.random.default_rng(0).normal(0, 2, (400, 60)), axis=1)
    hit = choices(prior)
    scores = theory.converged_logit(prior, theory.alpha(4, 60), 1.0)
    line = "as BCE leaves it with k"
    assert diagnosis.diagnose(scores, hit).numbers[line] == "4"
    hit[:200] = False  # half of the users without a click: the offset holds log 2 too
    assert line not in diagnosis.diagnose(scores, hit).numbers
    first = (scores >= np.sort(scores, axis=1)[:, [-5]]).ravel()
    found = diagnosis.diagnose_table(table_of(scores, hit, first), n_items=60)
    assert found.verdict.startswith("overconfident: ") and line not in found.numbers


def test_only_settings_that_improve_are_advised():
    prior = softmax(np.random.default_rng(0).normal(0, 2, (600, 400)), axis=1)
    hit = choices(prior)
    alpha = theory.alpha(16, 400)
    beta = theory.beta_from_t(0.97, alpha)  # better than any t of 0.75 or 0.9
    found = diagnosis.diagnose(theory.converged_logit(prior, alpha, beta), hit)
    assert found.verdict.startswith("overconfident: ") and found.advice["t"].tolist() == [1.0]
    plain = diagnosis.diagnose(theory.converged_logit(prior, alpha, 1.0), hit)
    assert len(plain.advice) == 5 and (plain.advice["sum"] < plain.expected).all()
    assert diagnosis.diagnose(logit(prior), hit).advice.empty


def test_rows_may_repeat_and_count_by_weight():
    prior, clicks = world(200)
    table = table_of(logit(prior) + 1, clicks)
    times = np.random.default_rng(0).integers(0, 4, len(table))
    repeated = diagnosis.diagnose_table(table.loc[table.index.repeat(times)])
    weighed = diagnosis.diagnose_table(table.assign(weight=times))
    assert "rows repeat a user and item" in str(repeated) and "by its weight" in str(weighed)
    for name in ("offset", "expected", "observed", "slope"):
        assert getattr(repeated, name) == pytest.approx(getattr(weighed, name), abs=1e-6)
    assert weighed.repairs["ece"].to_numpy() == pytest.approx(
        repeated.repairs["ece"].to_numpy(), abs=1e-3
    )
    scaled = diagnosis.diagnose_table(table.assign(weight=7.5 * times))
    assert scaled.interval == pytest.approx(weighed.interval) and scaled.top.empty
    same(diagnosis.diagnose_table(table.assign(weight=1.0)), diagnosis.diagnose_table(table))


def test_a_user_with_many_rows_costs_its_rows():
    rng = np.random.default_rng(0)
    user = np.append(np.zeros(200_000, int), rng.integers(1, 20_001, 60_000))
    scores = rng.normal(-6, 1, len(user))
    table = pd.DataFrame({"user": user, "item": np.arange(len(user)), "score": scores + 1})
    table["clicked"] = (rng.random(len(user)) < expit(scores)).astype(int)
    tracemalloc.start()
    found = diagnosis.diagnose_table(table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6  # users times the longest would be 32 GB
    assert found.interval[0] < 1 < found.interval[1]


def test_more_users_than_are_resampled_singly_are_resampled_in_blocks():
    rng = np.random.default_rng(0)
    prior = expit(rng.normal(-2, 1, (25_000, 4)))
    clicks = rng.random(prior.shape) < prior
    low, high = diagnosis.diagnose(logit(prior) + 0.5, clicks).interval
    assert low < 0.5 < high and high - low == pytest.approx(4 / np.sqrt(clicks.sum()), rel=0.25)


@pytest.mark.parametrize(
    "of, spelt", [("bool", None), ("text", ("True", "False")), ("text", (" 1", "0.0")),
                  ("category", None), ("Int64", None), ("Float32", None)]
)  # fmt: skip
def test_clicks_and_scores_are_read_from_any_type(of, spelt):
    prior, clicks = world(20)
    table = table_of(logit(prior), clicks)
    other = table.copy()
    if spelt:
        other["clicked"] = [spelt[0] if c else spelt[1] for c in table["clicked"]]
        other["score"] = [repr(float(s)) for s in table["score"]]
    else:
        other["clicked"] = table["clicked"].astype(of)
    same(diagnosis.diagnose_table(other), diagnosis.diagnose_table(table))


def test_added_targets_are_suspected():
    prior, _ = world(100)
    clicks = np.arange(N_ITEMS) == np.random.default_rng(0).integers(N_ITEMS, size=100)[:, None]
    first = prior >= np.sort(prior, axis=1)[:, [-10]]
    table = table_of(logit(prior), clicks, (first | clicks).ravel())
    assert "clicked items were added" in str(diagnosis.diagnose_table(table))


def test_only_candidates_count_and_may_be_unscored_otherwise():
    prior, clicks = world(200)
    may = np.random.default_rng(1).random(prior.shape) < 0.7
    scores = np.where(may | clicks, logit(prior), np.nan)
    found = diagnosis.diagnose(scores, clicks, candidates=may | clicks)
    assert found.pairs == (may | clicks).sum() and "may be recommended" in str(found)
    assert found.expected == pytest.approx(prior[may | clicks].sum() / 200)


@pytest.mark.parametrize("n_items, k", [(3416, 256), (1_000_000, 256), (1000, 64), (60, 4), (5, 1)])
def test_the_advice_is_the_papers_scaled_to_the_catalogue(n_items, k):
    prior = np.full(2 * n_items, 1 / n_items)
    rows = diagnosis._Rows(logit(prior), prior > 1, np.full(2, n_items))
    advice = diagnosis._advice(n_items, rows, prior)
    assert advice["k"].max() == k and advice["k"].min() == max(k // 2, 1)
    assert set(advice["t"]) == {0.75, 0.9, 1.0}
    for row in advice.itertuples():
        assert row.beta == theory.beta_from_t(row.t, theory.alpha(row.k, n_items))
        one = theory.converged_probability(1 / n_items, row.alpha, row.beta)
        assert row.sum == pytest.approx(n_items * one)
    assert advice["sum"].iloc[-1] == pytest.approx(1)  # t = 1


def test_the_negatives_of_bce_are_read_off_the_offset():
    prior, clicks = world()  # as many clicks as users, but for chance
    for k in (1, 8):
        scores = theory.converged_logit(prior, theory.alpha(k, N_ITEMS), 1.0)
        assert diagnosis.diagnose(scores, clicks).numbers["as BCE leaves it with k"] == str(k)


@pytest.mark.parametrize("loss", ["bce", "gbce", "softmax", "sampled_softmax"])
def test_a_run_is_estimated_on_validation_and_judged_on_test(small_world, loss):
    run = runs.train(replace(small_world, loss=loss, epochs=1))
    split = run.data.split
    found = diagnosis.diagnose_run(run, users=100)
    test = split.test.first(100)
    prob = run.probabilities(run.scores(test))
    assert found.users == 100 and found.pairs == 6000  # seen items are kept in this world
    assert found.expected == pytest.approx(prob.sum(1).mean(), rel=1e-5)
    held = run.probabilities(run.scores(split.validation).astype(float))
    shifted = expit(logit(held) - found.offset)
    assert shifted.sum() == pytest.approx(len(split.validation.users))
    known = loss in ("bce", "gbce")
    assert ("analytic" in found.repairs.index) == known == ("Theorem" in found.numbers.to_string())


def test_a_notebook_shows_the_verdict_and_no_markup_of_ours():
    prior, clicks = world(100)
    found = diagnosis.diagnose(logit(prior) + 1, clicks)
    page = found._repr_html_()
    assert f"<b>{found.verdict}</b>" in page and page.count("<table") == 2


S, H = np.zeros((3, 4)), np.eye(3, 4, dtype=bool)


@pytest.mark.parametrize(
    "scores, hit, options, message",
    [
        (S[0], H[0], {}, "scores must be numbers of"),
        (np.full((3, 4), "1"), H, {}, "scores must be numbers of"),
        (S[:, :0], H[:, :0], {}, "scores must be numbers of"),
        (S, H.T, {}, "hit must have the shape"),
        (S, [0.0, 1.0, 2.0], {}, "hit must have the shape"),
        (S, [0, 1, 4], {}, "hit names columns 0 to 4, scores has 0 to 3"),
        (S, [-1, 1, 2], {}, "hit names columns"),
        (S, H * 2, {}, "hit must be True or False"),
        (S, ~H & False, {}, "None of the 12 pairs"),
        (S, H | True, {}, "All of the 12 pairs"),
        (S[:1], H[:1], {}, "more users"),
        (np.where(H, np.nan, 0), H, {}, "Row 0 of scores: the score nan is not a finite"),
        (np.where(H[[1, 0, 2]], -np.inf, 0), H, {}, "leave the pair out"),
        (S + 1.5, H, {"of": "probabilities"}, "1.5 is no probability"),
        (S - 0.1, H, {"of": "probabilities"}, "-0.1 is no probability"),
        (S + 1, H, {"of": "probabilities"}, "1 has no logit"),
        (S, H, {"of": "scores"}, "logits or probabilities"),
        (S, H, {"alpha": 0.1}, "alpha and beta belong together"),
        (S, H, {"alpha": 0.1, "beta": -1.0}, "beta must be above 0"),
        (S, H, {"candidates": H[:2]}, "candidates must be"),
        (S, H, {"candidates": ~H}, "outside candidates"),
    ],
)
def test_matrices_that_cannot_be_diagnosed(scores, hit, options, message):
    with pytest.raises(InputError, match=message):
        diagnosis.diagnose(scores, hit, **options)


def _set(column, value):
    return lambda table: table.astype(object).assign(**{column: [value, *table[column][1:]]})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop(columns="score"), "score not among user, item, clicked"),
        (lambda t: t[:0], "is empty"),
        (_set("user", None), "row 1: the user is missing"),
        (_set("user", [1]), "neither a number nor text"),
        (_set("score", [1]), "row 1: the score nan is not a finite"),
        (_set("score", b"0.5"), "row 1: the score nan is not a finite"),
        (_set("score", pd.Timestamp(2020, 1, 1)), "row 1: the score nan is not a finite"),
        (_set("score", 10**400), "row 1: the score"),
        (_set("clicked", "yes"), "row 1: clicked is neither 0 nor 1"),
        (lambda t: t.assign(score=t["score"].astype(complex)), "row 1: the score nan"),
        (lambda t: pd.concat([t, t[["user"]]], axis=1), "the column user twice"),
        (lambda t: t.assign(weight=-1.0), "row 1: the weight is not"),
        (lambda t: t.assign(weight=np.inf), "row 1: the weight is not"),
        (lambda t: t.assign(weight=1 - t["clicked"]), "None of the 9 pairs"),
        (_set("item", np.nan), "row 1: the item is missing"),
        (_set("score", "high"), "row 1: the score nan is not a finite"),
        (_set("score", np.inf), "row 1: the score inf"),
        (_set("clicked", 2), "row 1: clicked is neither 0 nor 1"),
        (_set("clicked", None), "row 1: clicked is neither"),
        (lambda t: t.assign(clicked=0), "None of the 12 pairs"),
        (lambda t: t.assign(clicked=1), "All of the 12 pairs"),
        (lambda t: t[t["user"] == 0], "more users"),
    ],
)
def test_tables_that_cannot_be_diagnosed(change, message):
    with pytest.raises(InputError, match=message):
        diagnosis.diagnose_table(change(table_of(S, H)))
    with pytest.raises(InputError, match="n_items = 3, but"):
        diagnosis.diagnose_table(table_of(S, H), n_items=3)


def test_sampled_negatives_that_cannot_be():
    t = table_of(S, H)
    few = t[(t["item"] < 3)]
    for table, options, message in (
        (few, {}, r"needs n_items \(--items\)"),
        (few, {"n_items": 9.5}, "whole number"),
        (few.assign(weight=2.0), {"n_items": 9}, "drop the column"),
        (pd.concat([few, few[4:5]]), {"n_items": 9}, "as a click elsewhere"),
        (few[(few["user"] > 0) | few["clicked"] == 1], {"n_items": 9}, "no sampled negative"),
    ):
        with pytest.raises(InputError, match=message):
            diagnosis.diagnose_table(table, sampled_negatives=True, **options)


def test_matrices_in_a_file_and_the_options_reach_the_diagnosis(tmp_path, capsys):
    prior, clicks = world(50)
    np.savez(tmp_path / "both.npz", scores=logit(prior), hit=clicks)
    assert command_line.main(["diagnose", str(tmp_path / "both.npz")]) == 0
    assert capsys.readouterr().out == f"{diagnosis.diagnose(logit(prior), clicks)}\n"
    table = sampled(logit(prior), choices(prior), 9)
    table.to_csv(tmp_path / "some.csv.gz", index=False)
    words = ["--sampled-negatives", "--items", str(N_ITEMS)]
    assert command_line.main(["diagnose", str(tmp_path / "some.csv.gz"), *words]) == 0
    told = diagnosis.diagnose_table(table, n_items=N_ITEMS, sampled_negatives=True)
    assert capsys.readouterr().out.splitlines()[0] == told.verdict
    np.save(tmp_path / "matrix.npy", logit(prior))
    for name, rest, message in (
        ("matrix.npy", [], "for matrices save a .npz"),
        ("both.npz", words, "holds whole matrices"),
        ("nowhere.npz", [], "There is no file"),
    ):
        assert command_line.main(["diagnose", str(tmp_path / name), *rest]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("nowhere.csv", None, "There is no file"),
        ("scores.txt", b"1", "ends in .csv, .tsv, .parquet"),
        ("scores.gz", b"1", "ends in .csv, .tsv, .parquet"),
        ("cut.csv.gz", b"\x1f\x8b\x08\x00", "cannot be read"),
        ("no.npy", b"\x93NUMPY", "cannot be read"),
        ("no.npz", b"PK", "cannot be read"),
        ("no.jsonl", b"{", "cannot be read"),
        ("empty.csv", b"", "cannot be read"),
        ("header.csv", b"user,item,score,clicked\n", "is empty"),
        ("wide.csv", b"user,item,score,clicked\n1,2,0.5,1,9\n1,3,0.5,0,9\n", "cannot be read"),
        ("binary.csv", b"\xff\xfe\x00user", "cannot be read"),
        ("no.parquet", b"PAR", "cannot be read"),
    ],
)
def test_files_that_cannot_be_diagnosed(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert command_line.main(["diagnose", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error and name in error and error.count("\n") == 1


def test_ids_stay_text_and_the_command_line_prints_the_diagnosis(tmp_path, capsys):
    rows = ["user,item,score,clicked"]
    rows += [
        f"{u},{i},{s},{c}" for u in ("NA", "1") for i, s, c in (("7", 0.9, 1), ("007", 0.5, 0))
    ]
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    words = ["diagnose", str(tmp_path / "scores.csv"), "--of", "probabilities", "--items", "9"]
    assert command_line.main(words) == 0
    told = diagnosis.diagnose_table(tmp_path / "scores.csv", of="probabilities", n_items=9)
    assert capsys.readouterr().out == f"{told}\n"
    assert (told.users, told.pairs, told.whole) == (2, 4, False)


@pytest.mark.parametrize("sampler", ["popularity", "in-batch"])
def test_a_run_with_a_rate_for_each_item_is_diagnosed_without_a_single_theory(small_world, sampler):
    run = runs.train(replace(small_world, sampler=sampler, epochs=1))
    found = diagnosis.diagnose_run(run)
    assert "analytic" not in found.repairs.index and np.isfinite(found.offset)


def test_a_runs_own_probabilities_are_diagnosed(small_world):
    """Popularity's p̂ is its share of all, not σ of a score; BPR has none."""
    found = diagnosis.diagnose_run(runs.train(replace(small_world, model="popularity")))
    assert found.expected == pytest.approx(1, rel=1e-4)
    with pytest.raises(InputError, match="no p̂"):
        diagnosis.diagnose_run(runs.train(replace(small_world, loss="bpr", epochs=1)))


def test_an_id_as_a_number_and_as_text_is_one_id():
    rng = np.random.default_rng(0)
    scores = rng.normal(-2, 1, (40, 20))
    hit = rng.random(scores.shape) < expit(scores - 1)
    user, item = (place.ravel() for place in np.indices(scores.shape))
    plain = pd.DataFrame(
        {"user": user, "item": item, "score": scores.ravel(), "clicked": hit.ravel()}
    )
    mixed = plain.astype({"user": object, "item": object})
    mixed.loc[::2, "user"] = mixed.loc[::2, "user"].astype(str)
    mixed.loc[::3, "item"] = mixed.loc[::3, "item"].astype(float)
    one, other = diagnosis.diagnose_table(plain), diagnosis.diagnose_table(mixed)
    assert (one.users, one.n_items, one.offset) == (other.users, other.n_items, other.offset)


def test_a_blank_behind_a_comma_is_no_part_of_a_name(tmp_path):
    rows = "".join(f"u{u}, {i}, {u - i}, {int(i == u % 3)}\n" for u in range(9) for i in range(3))
    (tmp_path / "a.csv").write_text("user, item, score, clicked\n" + rows)
    assert diagnosis.diagnose_table(tmp_path / "a.csv").n_items == 3
