"""The known-truth world: its formula, and that its users really follow it."""

import resource
import time

import numpy as np
import pytest
import reference
from scipy.stats import chisquare

from gsas_lab.errors import InputError
from gsas_lab.interactions import from_world, load
from gsas_lab.worlds import World

TOY = World(n_users=200, length=6, n_items=30, n_genres=4, seed=3)


def test_probability_is_the_definition_for_any_history_and_padding_side():
    histories = np.array([[0, 0, 5, 7], [0, 0, 0, 0], [1, 2, 3, 4], [9, 9, 9, 9]])
    prob = TOY.probability(histories)
    for row, history in zip(prob, histories, strict=True):
        np.testing.assert_allclose(row, reference.world_probability(TOY, history), atol=1e-15)
    np.testing.assert_allclose(prob.sum(1), 1)
    assert (prob[:, 0] == 0).all()
    left, right = np.array([[0, 0, 5, 7]]), np.array([[5, 7, 0, 0]])
    np.testing.assert_array_equal(TOY.probability(left), TOY.probability(right))


def test_users_follow_the_stated_probability():
    items = TOY.sample(60_000, 3, seed=5)
    prob = TOY.probability(items[:, :2])
    expected = prob[:, 1:].sum(0)
    observed = np.bincount(items[:, 2], minlength=31)[1:]
    assert chisquare(observed, expected).pvalue > 1e-3
    # and not only on average: inside the users whose last item is of one genre
    same = TOY.genre[items[:, 1]] == 2
    inside = chisquare(np.bincount(items[same, 2], minlength=31)[1:], prob[same, 1:].sum(0))
    assert inside.pvalue > 1e-3


def test_popularity_is_zipf_and_seeds_matter():
    np.testing.assert_allclose(
        np.sort(TOY.popularity[1:])[::-1], (1 / np.arange(1, 31)) / (1 / np.arange(1, 31)).sum()
    )
    np.testing.assert_array_equal(TOY.sample(), TOY.sample())
    assert (TOY.sample(seed=8) != TOY.sample(seed=9)).any()
    assert (World(seed=1).popularity != World(seed=2).popularity).any()
    assert len(set(TOY.item_names)) == TOY.n_items + 1


def test_users_of_different_lengths_follow_the_same_probability():
    lengths = np.random.default_rng(0).permutation(np.repeat([1, 2, 3], 30_000))
    items, begin = TOY.users(lengths, seed=6), np.cumsum(lengths) - lengths
    last = begin[lengths == 3] + 2
    expected = TOY.probability(np.stack([items[last - 2], items[last - 1]], 1))[:, 1:].sum(0)
    assert chisquare(np.bincount(items[last], minlength=31)[1:], expected).pvalue > 1e-3


def test_lengths_add_up_and_differ():
    world = World(n_users=1000, n_items=30, n_genres=4, interactions=80_000)
    assert world.lengths.sum() == len(from_world(world).items) == 80_000
    assert world.lengths.min() >= 5 and world.lengths.max() > 5 * np.median(world.lengths)
    assert (np.diff(from_world(world).offsets) == world.lengths).all()
    with pytest.raises(InputError, match="interactions = 4,999 leave 1,000 users less than 5 each"):
        World(n_users=1000, interactions=4999)


def test_the_million_world_has_gowallas_size_in_a_minute_and_a_gigabyte():
    """Time of this process alone, on a machine that may be busy; titles are not made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    data = load("known-truth-million")
    assert time.process_time() - started < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6 < 1
    assert (data.n_users, data.n_items, data.n_interactions) == (86_168, 1_271_638, 6_397_903)
    assert data.titles is None and "item_names" not in vars(data.world)
    assert data.title(5) == data.world.item_names[5] != "5"
    assert (np.bincount(data.items) >= 50).sum() > 9_000


def test_millions_of_items_need_no_dense_matrix():
    large = World(n_users=50, length=5, n_items=2_000_000, n_genres=100)
    items = large.sample()
    assert items.min() >= 1 and items.max() <= 2_000_000
    genre, last = large.genre_probability(items[:, :4]), items[:, 4]
    np.testing.assert_allclose(genre.sum(1), 1)
    prob = genre[np.arange(50), large.genre[last]] * large.within_genre[last]
    assert ((prob > 0) & (prob < 1)).all()


@pytest.mark.parametrize(
    "change", [{"n_genres": 0}, {"n_genres": 31}, {"explore": 0.8}, {"memory": 0}, {"length": 0}]
)
def test_impossible_worlds_are_refused(change):
    with pytest.raises(InputError, match="World:"):
        World(**{"n_items": 30, "n_genres": 4, **change})


def test_histories_outside_the_catalogue_are_refused():
    with pytest.raises(InputError, match=r"0…30"):
        TOY.probability(np.array([[31]]))
