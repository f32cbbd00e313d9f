"""How long an offset lasts: a split by time of worlds whose P is known, and of data without times."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.special import expit, logit

from gsas_lab import evidence, interactions, repairs, runs, splits
from gsas_lab.errors import InputError
from gsas_lab.experiment import Data
from gsas_lab.losses import BPR, GBCE, Loss
from gsas_lab.settings import Settings
from gsas_lab.theory import FixedPoint
from gsas_lab.worlds import World


@dataclass
class Drifting:
    """The true P with 2 added to its logits; with 3, after `since` interactions or more."""

    data: Data
    since: int = 9
    loss: Loss = GBCE(1.0)
    settings: Settings = Settings(loss="bpr")
    theorem: FixedPoint | None = None

    def scores(self, held):
        shift = np.where(held.histories.lengths >= self.since, 3.0, 2.0)
        return logit(runs.true_probabilities(self.data, held)) + shift[:, None]

    def logits(self, scores):
        return scores


def drifting(dated: bool = True) -> Drifting:
    """300 users with an interaction a month; twenty of them have the last one a month late."""
    world = World(n_users=300, length=12, n_items=60, n_genres=5, seed=7)
    month = np.tile(np.arange(12), 300)
    month[11 : 20 * 12 : 12] += 1
    start = np.datetime64("2009-01") + month
    times = start.astype("datetime64[s]").astype(float) if dated else month.astype(float)
    data = replace(interactions.from_world(world), times=times)
    return Drifting(Data(data, splits.by_time(data, "2009-07-01" if dated else "6", 50)))


def test_a_fitted_offset_lasts_until_the_model_drifts():
    run = drifting()
    table = evidence.over_time(run).set_index("month")
    assert list(table.index) == [f"2009-{month:02}" for month in range(7, 13)]  # 20 clicks: no row
    assert list(table["clicks"]) == [300] * 5 + [280]
    np.testing.assert_allclose(table["offset"], [2, 2, 2, 3, 3, 3], atol=1e-6)
    held, _ = splits.after(run.data.interactions, run.data.split, most=10**6)
    trained = set(run.data.split.train.items.tolist())
    for month, row in table.iterrows():
        at = np.flatnonzero(held.histories.lengths == int(month[-2:]) - 1)
        at = at[held.users[at] >= 20] if month == "2009-12" else at
        scores = run.scores(held.subset(at))
        assert row["raw"] == pytest.approx(expit(scores).sum(1).mean(), rel=1e-9)
        assert row["repaired"] == pytest.approx(expit(scores - 2).sum(1).mean(), rel=1e-6)
        assert row["new"] == pytest.approx(np.mean([i not in trained for i in held.targets[at]]))
    assert (table["low"] <= table["offset"]).all() and (table["offset"] <= table["high"]).all()
    lasts = table["repaired"].sub(1).abs() < 1e-6
    assert list(lasts) == [True] * 3 + [False] * 3


def test_the_offset_is_fitted_to_nothing_after_the_cut():
    run = replace(drifting(), since=6)  # of the first month after it
    split = run.data.split
    assert (split.validation.histories.lengths == 5).all() and (
        split.test.histories.lengths == 6
    ).all()
    table = evidence.over_time(run)
    np.testing.assert_allclose(table["offset"], 3, atol=1e-6)
    assert (table["repaired"] > 1.5).all()


def test_another_repair_is_judged_where_one_is_given():
    table = evidence.over_time(drifting(), repairs.Logistic(1.0, -3.0))
    assert table["repaired"].sub(1).abs().lt(1e-6).tolist() == [False] * 3 + [True] * 3


def test_times_that_are_no_dates_are_cut_into_twelve_parts():
    table = evidence.over_time(drifting(dated=False))
    assert list(table["month"]) == [f"part {number:2}" for number in range(1, 13)]
    assert list(table["clicks"]) == [150] * 12
    np.testing.assert_allclose(table["offset"], np.repeat([2, 3], 6), atol=1e-6)


def test_a_month_of_a_large_catalogue_is_a_sample_that_is_the_same_each_time():
    run = drifting()
    table = evidence.over_time(run, most=60 * 40)
    assert list(table["clicks"]) == [40] * 6
    assert table.equals(evidence.over_time(run, most=60 * 40))


def test_months_with_too_few_clicks_and_scores_without_probabilities_are_a_sentence():
    run = drifting()
    for most in (0, 2.5, float("nan")):
        with pytest.raises(InputError, match="most must be 1 or more"):
            evidence.over_time(run, most=most)
    known = run.data.interactions
    late = Data(known, splits.by_time(known, "2010-01-01", 50))  # twenty clicks
    with pytest.raises(InputError, match="no month after the cut has 30 clicks"):
        evidence.over_time(replace(run, data=late))
    pairwise = replace(run, loss=BPR())
    with pytest.raises(InputError, match="there is no p̂ to judge"):
        evidence.over_time(pairwise)
    with pytest.raises(InputError, match="there is no p̂ to judge"):
        evidence.probabilities(pairwise, late.split.test)
    with pytest.raises(InputError, match="use choose_repair"):
        evidence.recalibrations(replace(run, theorem=None))
    table = evidence.over_time(pairwise, repairs.Logistic(1.0, -2.0))
    assert table["raw"].isna().all() and table["repaired"].notna().all()


def test_a_repair_by_group_of_the_items_lasts_too():
    run = drifting()
    by = repairs.by_group(evidence.pairs(run, run.data.split.validation))
    table = evidence.over_time(run, by)
    assert table["repaired"].iloc[0] == pytest.approx(1, abs=0.05)
    other = replace(by, items=by.items[:-1])
    with pytest.raises(InputError, match="groups of 59 items, and this catalogue has 60"):
        evidence.over_time(run, other)


def test_data_without_times_say_so(small_world):
    run = runs.train(replace(small_world, epochs=1))
    with pytest.raises(InputError, match="was not split by time: nothing is after") as error:
        evidence.over_time(run)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has no times: a split by time is not possible"):
        splits.by_time(run.data.interactions)
