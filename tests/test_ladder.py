"""Each rung of the ladder is what its name says, on the same users."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gsas_lab import figures, ladder, metrics, ranking, results, runs


@pytest.fixture
def trained(small_world):
    return runs.train(replace(small_world, exclude_seen=False))


def test_other_rankings_of_the_same_weights(trained, monkeypatch):
    split = trained.data.split
    assert not split.protocol.exclude_seen
    rows = ladder._ranked(trained)
    here = metrics.ndcg(trained.ranks, 10)
    assert (rows[ladder.HERE] == here).all()
    assert np.allclose(rows["ideal of 10 hits"], here / metrics_ideal())
    left_out = metrics.ndcg(ranking.ranks(trained.model, split.test, True), 10)
    assert (rows["seen items left out"] == left_out).all() and (left_out >= here).all()

    weight = np.ones(split.n_items + 1)
    all_of_them = ladder._among_drawn(trained, split, weight)  # 100 of 60 items
    assert (all_of_them == ranking.ranks(trained.model, split.test, True)).all()
    monkeypatch.setattr(ladder, "CANDIDATES", 10)
    few = ladder._among_drawn(trained, split, weight)
    assert (few <= all_of_them).all() and few.max() <= 11 and few.mean() < all_of_them.mean() / 2
    likely = weight.copy()
    likely[1:11] = 1e9  # these ten and no others, but for those that the user has seen
    drawn = ladder._among_drawn(trained, split, likely)
    scores, unseen = trained.scores(split.test), split.test.candidates(split.n_items, True)
    own = scores[np.arange(len(scores)), split.test.targets - 1]
    ten = (unseen & (np.arange(split.n_items) < 10) & (scores > own[:, None])).sum(axis=1)
    whole = (unseen & ~split.test.hits(split.n_items))[:, :10].all(axis=1)  # have all ten unseen
    assert whole.any() and (drawn[whole] == 1 + ten[whole]).all()


def metrics_ideal() -> float:
    return sum(1 / np.log2(1 + place) for place in range(1, 11))


def test_equal_times_by_item_are_the_same_interactions_in_the_order_of_a_sorted_log(trained):
    data = trained.data.interactions
    table = pd.read_csv(ladder._tied(data))
    assert len(table) == data.n_interactions
    for user in (0, 17):
        own = table[table["user"] == data.user_ids[user]]
        pairs = data.history(user)[: len(own) // 2 * 2].reshape(-1, 2)
        assert (own["item"].to_numpy()[: pairs.size].reshape(-1, 2) == np.sort(pairs)).all()
        assert (own["time"].to_numpy() == np.arange(len(own)) // 2).all()


def test_the_committed_ladders_start_from_here_and_are_drawn_as_they_are():
    for dataset in ("known-truth", "ml-1m"):
        table, source = ladder.of(dataset)
        assert "Committed evidence" in source and table.index[0] == ladder.HERE
        ideal = table.loc["ideal of 10 hits", "NDCG@10"]
        assert ideal == pytest.approx(table["NDCG@10"].iloc[0] / metrics_ideal(), abs=1e-6)
        assert ((table["low"] <= table["NDCG@10"]) & (table["NDCG@10"] <= table["high"])).all()
        axes = figures.ladder(table)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == list(table.index)
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == pytest.approx(list(table["NDCG@10"]))


def test_data_whose_ladder_would_take_minutes_gets_the_known_truths_and_is_told(monkeypatch):
    monkeypatch.setattr(results, "CHEAP", 0)
    table, source = ladder.of("known-truth-small")
    assert source.startswith("NOT YOUR DATA")
    again, source = ladder.of("known-truth-small", masked=0.5)  # of a system that is not this one
    assert source.startswith("NOT YOUR DATA") and again.equals(table)
    assert len(table) == len(ladder.of("known-truth")[0])
