"""Popularity and matrix factorisation go the way of every other run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gsas_lab import ranking, runs
from gsas_lab.baselines import MF, Popularity
from gsas_lab.errors import InputError


def test_popularity_ranks_by_training_counts(small_world):
    split = runs.load_data(small_world).split
    popularity = Popularity(split.train, split.n_items)
    scores = popularity.score(torch.ones(2, 1, dtype=torch.long))
    counts = np.bincount(split.train.items, minlength=61)
    share = scores[0, 1:].softmax(-1).numpy()
    np.testing.assert_allclose(share, (counts[1:] + 1) / (counts.sum() + 60), rtol=1e-5)
    assert scores[1, 0] == -np.inf


def test_popularity_is_a_run_without_epochs(small_world):
    run = runs.train(replace(small_world, model="popularity"))
    split = run.data.split
    direct = ranking.evaluate(Popularity(split.train, split.n_items), split)
    assert run.metrics["ndcg@10"] == direct["ndcg@10"]
    assert (run.metrics["epochs"], run.metrics["training seconds"]) == (0, 0)
    assert run.metrics["mean sum of p"] == pytest.approx(1, rel=1e-5)
    best = run.recommend([1, 2], n=3, exclude_seen=False)
    counts = np.bincount(split.train.items, minlength=61)
    np.testing.assert_array_equal(best["item"], np.argsort(-counts, kind="stable")[:3])
    assert run.history.empty and list(run.history) == list(runs.training.HISTORY)


def test_mf_scores_each_user_by_their_own_vector(small_world):
    split = runs.load_data(small_world).split
    model = MF(len(split.train), split.n_items, d=8)
    test = split.test.subset([5, 17, 2])
    scores = np.concatenate([s.detach() for s, _ in ranking.score_in_batches(model, test)])
    rows = np.concatenate([rows for _, rows in ranking.score_in_batches(model, test)])
    expected = model.user_embedding.weight[[5, 17, 2]] @ model.table.T
    np.testing.assert_allclose(scores[np.argsort(rows)][:, 1:], expected[:, 1:].detach(), rtol=1e-5)
    assert (scores[:, 0] == -np.inf).all()


def test_mf_bpr_learns_who_likes_what(small_world):
    settings = replace(
        small_world, model="mf", loss="bpr", k=1, d=16, batch_size=256, lr=0.01, epochs=15
    )
    run = runs.train(settings)
    assert run.history["loss"].iloc[-1] < 0.95 * np.log(2)
    assert run.metrics["recall@10"] > 1.5 * 10 / 60
    assert settings.name == "MF-BPR"
    assert run.metrics["mean sum of p"] is None, "BPR speaks of differences, not of probabilities"
    with pytest.raises(InputError, match="knows the users"):
        run.recommend([1, 2])
    with pytest.raises(InputError, match="no fixed point"):
        run.fixed_point  # noqa: B018


def test_mf_reads_no_windows(small_world):
    with pytest.raises(InputError, match="reads no windows"):
        replace(small_world, model="mf", sampler="history-excluded")
