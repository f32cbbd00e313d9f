"""Decisions with a cost: literal loops, and what must follow where P is known."""

import numpy as np
import pytest

from gsas_lab import decisions
from gsas_lab.errors import InputError


def world(users=4_000, items=30, seed=0):
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.full(items, 0.3), users)
    drawn = (rng.random((users, 1)) > prior.cumsum(axis=1)).sum(axis=1).clip(max=items - 1)
    return prior, np.arange(items) == drawn[:, None]


def over(prior, offset=3.0):
    """p̂ of a model whose logits are too high by one constant."""
    odds = prior / (1 - prior) * np.exp(offset)
    return odds / (1 + odds)


def test_notify_earns_what_a_literal_loop_counts():
    prior, hit = world(300)
    found = decisions.notify(over(prior), hit, 2.0, 0.9, prior)
    promised = earned = expected = most = 0.0
    for p, h, true in zip(over(prior), hit, prior, strict=True):
        item = p.argmax()
        most += max(true.max() * 2.0 - 0.9, 0)
        if p[item] * 2.0 > 0.9:
            promised += p[item] * 2.0 - 0.9
            earned += h[item] * 2.0 - 0.9
            expected += true[item] * 2.0 - 0.9
    literal = [promised / 300, earned / 300, expected / 300, (most - expected) / 300]
    np.testing.assert_allclose(found[["promised", "realised", "expected", "regret"]], literal)
    assert found["low"] < found["realised"] < found["high"]


def test_who_knows_p_has_no_regret_and_keeps_its_promise_and_overconfidence_pays_for_both():
    prior, hit = world()
    honest = decisions.notify(prior, hit, 1.0, 0.4, prior)
    assert honest["regret"] == pytest.approx(0, abs=1e-12)
    assert honest["promised"] == pytest.approx(honest["expected"])
    assert honest["low"] < honest["promised"] < honest["high"]
    raw = decisions.notify(over(prior), hit, 1.0, 0.4, prior)
    assert raw["promised"] > raw["high"] + 0.1
    assert raw["regret"] > 0.01 and raw["notified"] > honest["notified"]
    timid = decisions.notify(over(prior, -1.5), hit, 1.0, 0.4, prior)
    assert timid["notified"] < honest["notified"] and timid["regret"] > 0.002


def test_on_a_ladder_the_most_profitable_threshold_of_p_itself_is_cost_over_value():
    prior, hit = world()
    p, h, true = decisions.best(prior, hit, prior)
    rungs = decisions.ladder(p, h, true, steps=100_000)
    for cost in (0.2, 0.35, 0.6):
        table = decisions.profit(rungs, 1.0, cost)
        top = table.loc[table["expected"].idxmax()]
        assert top["threshold"] == pytest.approx(cost, abs=0.01)
        np.testing.assert_allclose(table["promised"], table["expected"])
        at = table[table["threshold"] > cost].iloc[-1]
        assert at["realised"] == pytest.approx(decisions.notify(prior, hit, 1.0, cost)["realised"])


def test_a_ladder_counts_what_a_literal_loop_counts_and_never_parts_equals():
    prob = np.array([[0.5, 0.5, 0.1], [0.5, 0.2, 0.0]])
    hit = np.array([[1, 0, 0], [0, 1, 0]], bool)
    rungs = decisions.ladder(prob, hit)
    assert rungs["threshold"].tolist() == [0.5, 0.2, 0.1]  # 0 may not be recommended
    assert rungs["shown"].tolist() == [1.5, 2.0, 2.5]
    np.testing.assert_allclose(rungs["predicted"], [0.75, 0.85, 0.9])
    assert rungs["hits"].tolist() == [0.5, 1.0, 1.0]


def test_a_slate_promises_what_its_probabilities_say():
    prior, hit = world()
    honest, raw = (decisions.slate(p, hit, prior, size=3) for p in (prior, over(prior)))
    assert honest["predicted"] == pytest.approx(honest["expected"])
    assert honest["expected"] == pytest.approx(honest["most"])
    assert honest["low"] < honest["realised"] < honest["high"]
    assert raw["realised"] == honest["realised"], "an offset moves no rank"
    assert raw["predicted"] > 1.5 * raw["high"]
    literal = np.mean([h[np.argsort(-p)[:3]].sum() for p, h in zip(prior, hit, strict=True)])
    assert honest["realised"] == pytest.approx(literal)


def test_an_honest_alarm_is_quiet_until_the_day_of_the_drift_and_a_raw_one_rings_at_once():
    calm, found, at_once = 0, 0, 0
    for seed in range(10):
        prior, hit = world(6_000, seed=seed)
        day = np.arange(6_000) % 60
        calm += decisions.alarm(*decisions.best(prior, hit), day)["rings"].any()
        late = np.where((day >= 40)[:, None], np.roll(hit, 1, axis=0), hit)  # another's clicks
        drifted = decisions.alarm(*decisions.best(prior, late), day)
        rings = drifted.loc[drifted["rings"] & (drifted["day"] >= 40), "day"].min()
        found += rings <= 44
        raw = decisions.alarm(*decisions.best(over(prior), hit), day)
        at_once += raw["rings"].iloc[1:].all()
        assert len(drifted) == 60
    assert calm <= 4 and found == at_once == 10  # of 10 calm times 60 days 1.2 ring by chance


def test_the_alarm_rings_by_chance_as_seldom_as_it_says():
    rng = np.random.default_rng(0)
    first = []
    for _ in range(400):
        table = decisions.alarm(
            np.full(60_000, 0.5), rng.random(60_000) < 0.5, np.arange(60_000) % 1_500
        )
        rings = np.flatnonzero(table["rings"])
        first.append(rings[0] if len(rings) else 1_500)
    median = np.log(2) * 470  # of a geometric time
    assert 0.8 * median < np.median(first) < 1.2 * median


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: decisions.notify([[0.5]], [[True]], 0.0, 1.0), "value = 0.0"),
        (lambda: decisions.notify([[0.5]], [[True]], 1.0, float("nan")), "cost = nan"),
        (lambda: decisions.slate([0.5], [True]), "probabilities of"),
        (lambda: decisions.slate([[1.5]], [[True]]), "probabilities of"),
        (lambda: decisions.ladder([[0.5]], [True]), "shape"),
        (lambda: decisions.alarm([0.5], [True], [1, 2]), "hit and day"),
        (lambda: decisions.alarm([np.nan, 0.5], [1, 0], [1, 2]), "between nan and nan"),
        (lambda: decisions.alarm([1.5], [True], [1]), "between 1.5 and 1.5"),
        (lambda: decisions.alarm([0.5], [7], [1]), "hit must be True or False"),
        (lambda: decisions.alarm([0.5, 0.5], [1, 0], [1, np.nan]), "day of some items is missing"),
        (lambda: decisions.alarm([0.5], [True], [1], limit=np.nan), "limit = nan"),
        (lambda: decisions.alarm([0.5], [True], [1], slack=-1), "slack = -1"),
        (lambda: decisions.notify([[0.5]], [[3]], 1.0, 0.1), "hit must be True or False"),
        (lambda: decisions.notify([[0.5]], [[1]], "much", 0.1), "value = much"),
        (lambda: decisions.notify([[0.5]], [[1]], 1.0, 0.1, [[np.nan]]), "prior must hold"),
        (lambda: decisions.notify([[0.5]], [[1]], 1.0, 0.1, [[0.5, 0.5]]), "must have the shape"),
        (lambda: decisions.by_cost([[0.5]], [[1]], 1.0, []), "list of amounts"),
        (lambda: decisions.slate([[0.5]], [[1]], size=-1), "size must be 1"),
        (lambda: decisions.slate([[0.5]], [[1, 0]]), "hit must have the shape"),
        (lambda: decisions.slate([[0.5]], [[1]], [[0.5, 0.5]]), "prior must have the shape"),
        (lambda: decisions.ladder([[0.5]], [[2]]), "hit must be True or False"),
        (lambda: decisions.ladder([[0.5]], [[1]], [[0.5, 0.5]]), "prior must have the shape"),
        (lambda: decisions.ladder([[0.5]], [[1]], steps=0), "steps must be 1"),
    ],
)
def test_a_mistake_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
