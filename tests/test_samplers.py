"""Each sampler draws what it says, at the rate that it says."""

import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from gsas_lab import theory
from gsas_lab.batches import Asked, Batch
from gsas_lab.errors import InputError
from gsas_lab.samplers import SAMPLERS, ByPopularity, alias_table
from gsas_lab.splits import Histories

N, K = 20, 4
COUNTS = np.arange(N, dtype=float)[::-1] ** 2  # the last item is never trained on
WINDOWS = {1: [3, 4, 5, 3], 2: [20, 1], 3: list(range(1, 18))}


def batch(times=1):
    """Windows of next-item prediction, flat, with three places of padding at the end."""
    items, segments, positives = [], [], []
    for _ in range(times):
        for window, held in WINDOWS.items():
            shift = max(segments, default=0) if window == 1 else segments[-1] - window + 1
            items += held[:-1]
            positives += held[1:]
            segments += [shift + (1 if window == 1 else window)] * (len(held) - 1)
    columns = [items, [0] * len(items), segments, positives]
    return Batch(*(torch.tensor([*column, 0, 0, 0]) for column in columns))


def sampler(name, k=K, power=1.0, longest=18, n_items=N):
    train = Histories(np.repeat(np.arange(1, N + 1), COUNTS.astype(int)), np.array([0, 1]))
    kind = SAMPLERS[name]
    if name == "history-excluded":
        return kind(k, n_items, 3.0, longest)
    return kind.of(k, n_items, train, longest, power)


def draw(name, given, asked=slice(None), seed=0, k=K, **more):
    made = sampler(name, k, **more)
    negatives, sets = made.draw(Asked(given, asked), torch.Generator().manual_seed(seed))
    return made, negatives if sets is None else negatives[sets]


@pytest.mark.parametrize("name", SAMPLERS)
def test_negatives_are_items_seeded_and_one_row_for_each_place_asked(name):
    given = batch()
    asked = given.positives.nonzero()[:, 0]
    _, negatives = draw(name, given, asked)
    assert negatives.shape == (len(asked), K)
    assert 1 <= negatives.min() and negatives.max() <= N
    assert torch.equal(negatives, draw(name, given, asked)[1])
    assert not torch.equal(negatives, draw(name, given, asked, seed=1)[1])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("asked", ["all", "some"])
def test_items_are_drawn_at_the_rate_that_theory_is_told(name, asked):
    given = batch(2000)
    if name == "in-batch":  # its rates hold where positives come as often as in training
        share = np.maximum(COUNTS, 1)
        drawn = np.random.default_rng(0).choice(N, len(given.positives), p=share / share.sum())
        given = given._replace(positives=torch.from_numpy(drawn) + 1)
    places = torch.arange(0, len(given.positives) - 3, 1 if asked == "all" else 3)
    made, negatives = draw(name, given, places, power=0.5)
    seen = torch.bincount(negatives.flatten(), minlength=N + 1)[1:].numpy() / len(places)
    if name == "history-excluded":
        return  # each window has rates of its own: see below
    rate = np.broadcast_to(made.alpha, N)
    if name == "positive-excluded":  # an item is drawn for other positives only
        own = torch.bincount(given.positives[places], minlength=N + 1)[1:].numpy() / len(places)
        rate = rate * (1 - own)
    independent = len(places) / (17 if "sequence" in name else 1)
    if name in ("shared-batch", "mixed"):  # one place of each of many batches
        negatives = torch.cat([draw(name, batch(), seed=s)[1][:1] for s in range(4000)])
        seen, independent = torch.bincount(negatives.flatten(), minlength=N + 1)[1:] / 4000, 4000
    np.testing.assert_allclose(seen, rate, atol=6 * (rate.max() / independent) ** 0.5)


def test_popularity_of_power_0_is_uniform_and_of_1_is_the_counts():
    flat = sampler("popularity", power=0.0).alpha
    np.testing.assert_allclose(flat, K / N)
    counted = sampler("popularity").alpha
    assert counted[0] / counted[1] == pytest.approx(19**2 / 18**2)
    assert counted.sum() == pytest.approx(K) and counted.min() > 0


def test_a_history_excluded_draw_is_uniform_over_what_the_window_has_not():
    given = batch(3000)
    asked = torch.arange(0, len(given.positives) - 3)
    _, negatives = draw("history-excluded", given, asked)
    windows = (given.segments[asked] - 1) % 3 + 1
    for window, held in WINDOWS.items():
        mine = torch.bincount(negatives[windows == window].flatten(), minlength=N + 1)[1:].numpy()
        free = np.setdiff1d(np.arange(1, N + 1), held)
        assert mine[np.unique(held) - 1].sum() == 0
        expected = mine.sum() / len(free)
        assert abs(mine[free - 1] - expected).max() < 5 * expected**0.5


def test_what_shares_negatives_shares_them_and_nothing_else_does():
    given = batch()
    _, by_window = draw("shared-sequence", given)
    _, by_batch = draw("shared-batch", given)
    assert (by_batch == by_batch[0]).all()
    _, mixed = draw("mixed", given, k=5)
    assert (mixed[:, 3:] == mixed[0, 3:]).all() and not (mixed[:, :3] == mixed[0, :3]).all()
    for one in given.segments.unique():
        own = by_window[given.segments == one]
        assert (own == own[0]).all()
        assert not (by_window[given.segments != one] == own[0]).all(1).any()


def test_in_batch_negatives_are_the_batchs_own_positives():
    _, negatives = draw("in-batch", batch())
    assert set(negatives.flatten().tolist()) <= set(batch().positives.tolist()) - {0}


def test_only_the_two_that_exclude_never_collide():
    given = batch(50)
    asked = torch.arange(0, len(given.positives) - 3)
    for name in SAMPLERS:
        made, negatives = draw(name, given, asked)
        met = bool((negatives == given.positives[asked, None]).any())
        assert met == made.collisions == (not name.endswith("excluded"))


@pytest.mark.parametrize("collisions", [True, False])
def test_the_rate_of_each_item_is_the_theorems_alpha(collisions):
    """Theorem 5.1 and the search that knows no theorem agree for rates item by item."""
    rate = sampler("popularity").alpha
    prior = np.full(N, 1 / N)
    score = theory.least_loss_score(prior, rate, 0.7, collisions)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-score)),
        theory.converged_probability(prior, rate, 0.7, collisions),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("k", [0, N])
def test_a_k_that_the_catalogue_cannot_serve_is_refused_by_every_sampler(name, k):
    with pytest.raises(InputError, match=f"k = {k}.*from 1 to {N - 1}"):
        sampler(name, k)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_without_places_gets_no_negatives(name):
    none = Batch(*(torch.zeros(0, dtype=torch.long),) * 4)
    assert draw(name, none)[1].shape == (0, K)


def test_a_window_that_may_hold_the_whole_catalogue_leaves_nothing_to_draw():
    with pytest.raises(InputError, match="lower max_length"):
        sampler("history-excluded", longest=N)
    with pytest.raises(InputError, match="sampler = 'magic': choose one of"):
        SAMPLERS["magic"]


@pytest.mark.parametrize("power", [float("inf"), float("nan"), 1000.0, 20.0])
def test_a_power_that_leaves_items_never_drawn_is_refused(power):
    """Garbage otherwise: shares of inf / inf, or of 0, of which Theorem 5.1 and logQ know nothing."""
    with pytest.raises(InputError, match="power = .* [34] of 4 items too rare"):
        ByPopularity(2, 4, np.array([1, 2, 40, 0]), power)


def test_what_decides_is_the_proposal_and_not_the_power():
    """Equal counts stay uniform under any power; a moderate one is exact."""
    even = ByPopularity(2, 5, np.full(5, 7), 1000.0)
    np.testing.assert_array_equal(even.alpha, 2 / 5)
    counts = np.array([1, 10, 100, 1000])
    for power in (0.0, 0.5, 1.0, 2.0, 4.0):
        wanted = [Fraction(int(c)) ** Fraction(power) for c in counts]
        found = ByPopularity(2, 4, counts, power).alpha
        np.testing.assert_allclose(found, [2 * float(w / sum(wanted)) for w in wanted], rtol=1e-14)


def test_the_drawn_shares_of_popularity_itself_are_the_same_bits_as_ever():
    counts = np.random.default_rng(0).integers(0, 500, 300)
    weight = np.maximum(counts, 1).astype(float)
    found = ByPopularity(7, 300, counts).alpha
    np.testing.assert_array_equal(found, 7 * weight / weight.sum())


WEIGHTS = {
    "one": [3.0],
    "even": [1.0] * 7,
    "zeros": [0.0, 2, 0, 1],
    "counts": [1.0, 10, 100, 1000, 1, 1],
    "zipf": 1 / np.arange(1, 100_001),
    "hardly one": [1.0, *[1e-12] * 9],
    "random": np.random.default_rng(0).gamma(0.1, size=5000),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_alias_table_holds_the_shares_to_rounding(name):
    """What is drawn is counted without drawing: each place is as likely, and tells two items."""
    weight = np.asarray(WEIGHTS[name], float)
    keep, other = alias_table(weight)
    assert (keep >= 0).all() and (keep <= 1 + 1e-12).all()
    drawn = np.bincount(other, 1 - np.minimum(keep, 1), len(weight)) + np.minimum(keep, 1)
    np.testing.assert_allclose(drawn / len(weight), weight / weight.sum(), rtol=1e-9, atol=1e-15)


def test_an_alias_table_of_a_million_items_is_made_in_a_moment():
    counts = np.random.default_rng(0).zipf(1.5, 1_271_638).clip(max=10**6).astype(float)
    started = time.process_time()
    keep, _ = alias_table(counts)
    assert time.process_time() - started < 2 and keep.shape == counts.shape
