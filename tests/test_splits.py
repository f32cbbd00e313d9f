"""What is trained on, validated on and tested on, in both variants."""

from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch

from gsas_lab import interactions, splits
from gsas_lab.batches import Pairs, Windows, pack, pad_right, windows
from gsas_lab.errors import InputError
from gsas_lab.interactions import Interactions
from gsas_lab.settings import Settings
from gsas_lab.splits import Histories, leave_one_out


def data(*histories, exclude_seen=True):
    n_items = max(max(history) for history in histories if history)
    return Interactions(
        name="toy",
        items=np.concatenate(histories).astype(np.int32),
        offsets=np.cumsum([0, *map(len, histories)]),
        user_ids=np.arange(1, len(histories) + 1),
        item_ids=np.arange(n_items + 1),
        sha256="0" * 64,
        tie_rule="none",
        exclude_seen=exclude_seen,
        titles=None,
        genres=None,
        world=None,
    )


TOY = data([1, 2, 3, 4, 5], [6, 7, 8], [9, 8, 7, 6], [1, 9])


@pytest.mark.parametrize(
    "variant, trained",
    [("paper", [[1, 2, 3], [6, 7], [9, 8], [1]]), ("port", [[1, 2], [6], [9], []])],
)
def test_each_variant_holds_out_what_it_says(variant, trained):
    split = leave_one_out(TOY, validation_users=2, variant=variant)
    assert [list(split.train[user]) for user in range(4)] == trained
    assert list(split.test.targets) == [5, 8, 6, 9]
    assert [list(split.test.histories[user]) for user in range(4)] == [
        [1, 2, 3, 4], [6, 7], [9, 8, 7], [1],
    ]  # fmt: skip
    assert list(split.validation.users) == [0, 2]  # the others are too short
    assert list(split.validation.targets) == [4, 7]
    assert [list(split.validation.histories[j]) for j in range(2)] == [[1, 2, 3], [9, 8]]
    assert split.protocol.trained_interactions == sum(map(len, trained))


def test_no_validation_or_test_target_is_trained_on():
    rng = np.random.default_rng(0)
    distinct = data(*(list(range(1, rng.integers(4, 30))) for _ in range(50)))
    split = leave_one_out(distinct, validation_users=20)
    for user, target in zip(split.test.users, split.test.targets, strict=True):
        assert target not in split.train[user]
    for user, target in zip(split.validation.users, split.validation.targets, strict=True):
        assert target not in split.train[user]


def test_the_protocol_says_what_was_done_and_keeps_the_seen_filter_explicit():
    split = leave_one_out(TOY, validation_users=1)
    assert "seen items excluded" in str(split.protocol)
    kept = leave_one_out(TOY, validation_users=1, exclude_seen=False)
    assert "seen items kept" in str(kept.protocol)


def test_a_user_with_one_interaction_and_wrong_choices_are_refused():
    with pytest.raises(InputError, match="user 2 has one interaction"):
        leave_one_out(data([1, 2, 3, 4], [2]), validation_users=1)
    with pytest.raises(InputError, match="validation_users = 3: choose from 1 to 2"):
        leave_one_out(TOY, validation_users=3)
    with pytest.raises(InputError, match="Split 'random'"):
        leave_one_out(TOY, variant="random")


def test_the_protocol_says_what_is_taken_again_and_how_it_was_ordered():
    again = data([1, 2, 1, 2], [3, 4, 5, 6], [7, 8, 9, 9])
    told = leave_one_out(again, validation_users=1).protocol
    assert (told.targets_seen, told.taken_again) == (2 / 3, 3 / 12)
    assert "66.7% of the test targets and 25.0% of all interactions take an item again" in str(told)
    assert "order: none." in str(told)
    assert "taken again" not in str(leave_one_out(TOY, validation_users=1).protocol)
    weighted = replace(again, unused=("weight",))
    assert "columns not used: weight" in str(leave_one_out(weighted, validation_users=1).protocol)


def test_metrics_that_are_one_by_construction_are_refused_or_told():
    everything = data([1, 2, 3, 4], [4, 3, 2, 1])
    with pytest.raises(InputError, match="no item competes.*set exclude_seen=False"):
        leave_one_out(everything, validation_users=1)
    told = str(leave_one_out(everything, validation_users=1, exclude_seen=False).protocol)
    assert "for 2 users fewer than 10 other items compete, so their Recall@10 is 1" in told
    for seen in (True, False):
        with pytest.raises(InputError, match="it has one item; give a file with more"):
            leave_one_out(data([1, 1, 1, 1]), validation_users=1, exclude_seen=seen)
    many = data([*range(1, 12)], [*range(1, 21)])
    assert leave_one_out(many, validation_users=1).protocol.few_rivals == 2
    assert leave_one_out(many, validation_users=1, exclude_seen=False).protocol.few_rivals == 0


def test_users_of_two_or_three_interactions_cannot_be_validated_on():
    with pytest.raises(InputError, match="no user has 4 interactions, as a validation user must"):
        leave_one_out(data([1, 2], [2, 3, 1]))


HISTORIES = Histories(np.arange(1, 1001, dtype=np.int32), np.array([0, 3, 4, 504, 1000, 1000]))


def positives_of(which, seed=0, max_length=7):
    rng = np.random.default_rng(seed)
    plan = Windows().plan(HISTORIES, max_length, 2, which, rng)
    return [batch for batch in Windows().batches(HISTORIES, plan, max_length, rng)]


def real(column):
    return column[column != 0].numpy()


def test_all_windows_train_on_every_interaction_but_the_first_exactly_once():
    for seed in range(5):
        seen = np.sort(np.concatenate([real(b.positives) for b in positives_of("all", seed)]))
        firsts = {1, 4, 5, 505}
        assert list(seen) == [i for i in range(1, 1001) if i not in firsts]


def test_last_windows_train_on_the_last_items_only():
    seen = np.sort(np.concatenate([real(b.positives) for b in positives_of("last")]))
    assert list(seen) == [2, 3, *range(498, 505), *range(994, 1001)]


@pytest.mark.parametrize("which", ["last", "all"])
def test_each_positive_is_the_item_after_what_was_read(which):
    for batch in positives_of(which):
        there = batch.items != 0
        assert ((batch.positives - batch.items)[there] == 1).all()  # items count up in this data
        for column in (batch.positives, batch.segments, batch.positions):
            assert column.shape == batch.items.shape and not column[~there].any()
        for row in range(len(batch.items)):
            for segment in batch.segments[row].unique():
                if segment:
                    own = batch.segments[row] == segment
                    assert (batch.items[row][own].diff() == 1).all(), "one window, in order"
                    n = int(own.sum())
                    assert batch.positions[row][own].tolist() == list(range(7 - n, 7))


def test_windows_are_packed_whole_without_overlap_and_nearly_without_gaps():
    rng = np.random.default_rng(0)
    for length in (1, 7, 200):
        counts = rng.integers(1, length + 1, 300)
        row, offset = pack(counts, length)
        taken = np.zeros((row.max() + 1, length), int)
        for r, start, count in zip(row, offset, counts, strict=True):
            assert start + count <= length
            taken[r, start : start + count] += 1
        assert taken.max() == 1
        assert len(taken) <= 11 / 9 * counts.sum() / length + 1  # the bound of first fit decreasing


def test_the_number_of_rows_can_be_rounded_up():
    rng = np.random.default_rng(0)
    plan = Windows().plan(HISTORIES, 7, 2, "all", rng)
    for batch in Windows().batches(HISTORIES, plan, 7, rng, rows_in=5):
        assert batch.items.shape == (5, 7)


@pytest.mark.parametrize("which", ["last", "all"])
def test_a_cloze_asks_for_what_it_hides_and_for_something_in_every_window(which):
    rng = np.random.default_rng(1)
    task, hidden, places = Windows(masked=0.2), 0, 0
    for _ in range(20):
        plan = task.plan(HISTORIES, 30, 2, which, rng)
        for batch in task.batches(HISTORIES, plan, 30, rng):
            there = batch.segments > 0
            masked = batch.positives > 0
            assert (masked == (there & (batch.items == 0))).all()
            whole = torch.where(masked, batch.positives, batch.items)
            assert not whole[~there].any()
            for window in batch.segments.unique():
                if window:
                    own = batch.segments == window
                    assert (whole[own].diff() == 1).all(), "one window, in order"
                    n = int(own.sum())
                    assert 2 <= n <= 30
                    assert batch.positions[own].tolist() == list(range(30 - n, 30))
                    assert masked[own].any()
                    if n == 30:  # long enough for the rule of empty windows not to matter
                        hidden, places = hidden + int(masked[own].sum()), places + n
    assert abs(hidden / places - 0.2) < 4 * (0.16 / places) ** 0.5 + 0.8**30


def test_the_last_item_is_asked_for_where_chance_hides_nothing():
    rng = np.random.default_rng(0)
    task = Windows(masked=0.0)
    for batch in task.batches(HISTORIES, task.plan(HISTORIES, 7, 2, "all", rng), 7, rng):
        assert ((batch.positives > 0) == (batch.positions == 6)).all()


def test_pairs_are_every_interaction_with_its_user_once():
    rng = np.random.default_rng(0)
    plan = Pairs().plan(HISTORIES, 1, 300, "last", rng)
    made = list(Pairs().batches(HISTORIES, plan, 1, rng))
    assert [batch.items.shape for batch in made] == [(1, 300)] * 3 + [(1, 100)]
    users = torch.cat([batch.items[0] for batch in made])
    items = torch.cat([batch.positives[0] for batch in made])
    order = items.argsort()
    assert items[order].tolist() == list(range(1, 1001))
    assert users[order].tolist() == np.repeat(np.arange(5), HISTORIES.lengths).tolist()
    assert (items.diff() < 0).any(), "shuffled"


def test_the_same_seed_gives_the_same_epoch_and_another_does_not():
    def order(seed):
        return np.concatenate([real(b.positives) for b in positives_of("all", seed)])

    np.testing.assert_array_equal(order(1), order(1))
    assert (order(1) != order(2)).any()


def test_no_user_is_favoured_by_the_packing():
    """Which windows share a batch is the shuffle's choice alone, so lengths meet at random."""
    lengths = np.arange(2, 42)
    histories = Histories(np.ones(lengths.sum(), np.int32), np.concatenate([[0], lengths.cumsum()]))
    first = np.zeros(len(lengths))  # how often a user is in the first of two batches
    for seed in range(400):
        rng = np.random.default_rng(seed)
        plan = Windows().plan(histories, 50, 20, "last", rng)
        batch = next(Windows().batches(histories, plan, 50, rng))
        met = plan[0][:, 1] - plan[0][:, 0]
        assert (batch.items != 0).sum() == (met - 1).sum()
        first[np.searchsorted(lengths, met)] += 1
    assert abs(first - 200).max() < 5 * 10  # binomial(400, 1/2): one deviation is 10


def test_no_user_is_favoured_by_where_the_windows_are_cut():
    starts = [windows(HISTORIES, 100, "all", np.random.default_rng(s))[0] for s in range(300)]
    second = np.array([s[s >= 4][1] for s in starts]) - 4  # cut between windows 1 and 2 of user 2
    assert second.min() <= 5 and second.max() >= 95


def test_pad_right_keeps_the_last_items():
    assert pad_right([np.array([1, 2, 3]), np.array([4])], 2).tolist() == [[2, 3], [4, 0]]


def test_hits_and_candidates_of_a_holdout():
    test = leave_one_out(data([1, 2, 2, 3], [3, 1, 3], [2, 1]), validation_users=1).test
    assert test.hits(4).tolist() == [
        [False, False, True, False],
        [False, False, True, False],  # taken before as well: still the target
        [True, False, False, False],
    ]
    assert test.candidates(4, exclude_seen=True).tolist() == [
        [False, False, True, True],
        [False, True, True, True],
        [True, False, True, True],
    ]
    assert test.candidates(4, exclude_seen=False).all()
    assert list(test.first(2).targets) == [3, 3] and len(test.first(99).users) == 3


# --- by time ---------------------------------------------------------------------------------------


def timed(users=40, seed=0, unit=1.0):
    """A table of interactions on days of 2009, some at one moment."""
    rng = np.random.default_rng(seed)
    rows = [
        (user, int(rng.integers(1, 60)), 1_230_768_000 + 86_400 * int(rng.integers(0, 365)))
        for user in range(users)
        for _ in range(rng.integers(2, 30))
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    return frame.assign(timestamp=(frame["timestamp"] * unit).astype(np.int64))


@pytest.mark.parametrize("at", ["2009-09-01", "0.7", "1251763200"])
def test_a_split_by_time_trains_on_nobodys_future(at):
    frame = timed()
    data = interactions.load(frame)
    split = splits.by_time(data, at, validation_users=5)
    cut = split.cut
    if at != "0.7":
        assert cut == pd.Timestamp("2009-09-01").timestamp()
    else:
        assert (frame["timestamp"] < cut).mean() == pytest.approx(0.7, abs=0.01)
    test = {data.user_ids[user]: row for row, user in enumerate(split.test.users)}
    held = {data.user_ids[user]: row for row, user in enumerate(split.validation.users)}
    assert len(held) == 5
    for row, (user, own) in enumerate(frame.groupby("user")):
        own = own.sort_values("timestamp", kind="stable")
        past = own.loc[own["timestamp"] < cut, "item"].tolist()
        later = own.loc[own["timestamp"] >= cut, "item"].tolist()
        trained = [int(data.item_ids[i]) for i in split.train[row]]
        assert trained == (past[:-1] if user in held else past)
        assert (user in test) == bool(past and later)
        if user in test:
            seen = [int(data.item_ids[i]) for i in split.test.histories[test[user]]]
            assert seen == past
            assert data.item_ids[split.test.targets[test[user]]] == later[0]
        if user in held:
            assert data.item_ids[split.validation.targets[held[user]]] == past[-1]
    assert "time, before 2009-" in str(split.protocol)


def test_what_came_after_is_each_interaction_with_all_before_it():
    frame = timed()
    data = interactions.load(frame)
    split = splits.by_time(data, "2009-09-01", validation_users=5)
    held, when = splits.after(data, split)
    ordered = frame.sort_values(["user", "timestamp"], kind="stable")
    expected = sum(
        int((own["timestamp"] >= split.cut).sum())
        for _, own in ordered.groupby("user")
        if (own["timestamp"] < split.cut).any()
    )
    assert len(held.users) == expected == len(when)
    assert (np.diff(when) >= 0).all() and when.min() >= split.cut
    for row in range(0, expected, 7):
        own = ordered[ordered["user"] == data.user_ids[held.users[row]]]["item"].tolist()
        seen = [int(data.item_ids[i]) for i in held.histories[row]]
        assert own[: len(seen)] == seen and own[len(seen)] == data.item_ids[held.targets[row]]
    few, times = splits.after(data, split, most=10)
    assert len(few.users) == len(times) == 10


@pytest.mark.parametrize("unit", [1.0, 1e3, 1e6])
def test_seconds_milliseconds_microseconds_and_dates_are_the_same_moments(unit):
    seconds = interactions.load(timed()).times
    assert (interactions.load(timed(unit=unit)).times == seconds).all()
    dated = timed()
    dated["timestamp"] = pd.to_datetime(dated["timestamp"], unit="s")
    assert (interactions.load(dated).times == seconds).all()
    dated["timestamp"] = dated["timestamp"].astype(str)
    assert (interactions.load(dated).times == seconds).all()


@pytest.mark.parametrize(
    ("frame", "at", "words"),
    [
        (timed(), "2008-01-01", "nothing lies before"),
        (timed(), "2010-06-01", "nothing lies after"),
        (timed(), "next week", "no date such as"),
        (timed(), "1.5", "nothing lies before"),
        (timed(), "2010", "go from 2009-01-01T00:00:00 to .* nothing lies after"),
        (timed(), "nan", "no date such as"),
        (timed(), "inf", "no date such as"),
        (timed(), "NaT", "no date such as"),
        (timed(), "", "no date such as"),
        (timed(), "today", "no date such as"),  # another day, another split
        (timed(), None, "no date such as"),
        (timed(), "1e300", "nothing lies after"),
        (timed(), "20090901", "give a date between, or a share"),
        (timed().assign(timestamp=5), "0.5", "all times are equal"),
        (timed().drop(columns="timestamp"), "0.5", "has no times"),
    ],
)
def test_a_moment_that_splits_nothing_is_one_sentence(frame, at, words):
    with pytest.raises(InputError, match=words) as error:
        splits.by_time(interactions.load(frame), at, validation_users=5)
    assert "\n" not in str(error.value)
    if "timestamp" in frame and frame["timestamp"].nunique() > 1:
        with pytest.raises(InputError, match="not split by time"):
            data = interactions.load(frame)
            splits.after(data, splits.leave_one_out(data, 5))


def test_a_moment_is_the_same_in_all_that_writes_it_and_a_time_zone_is_heard():
    data = interactions.load(timed())
    midnight = pd.Timestamp("2009-09-01").timestamp()
    same = ["2009-09", "2009-09-01T00:00:00Z", "2009-09-01 02:00+02:00", date(2009, 9, 1)]
    for at in ("2009-09-01", *same, np.datetime64("2009-09-01")):
        assert splits.by_time(data, at, 5).cut == midnight
    assert splits.by_time(data, 0.7, 5).cut == splits.by_time(data, "0.7", 5).cut
    earlier = replace(data, times=data.times - 40 * 86_400)
    assert splits.by_time(earlier, "2009", 1).cut == pd.Timestamp("2009").timestamp()
    assert Settings(split="time", split_at=0.7) == Settings(split="time", split_at="0.7")
    assert Settings(split_at=date(2009, 9, 1)).split_at == "2009-09-01"
    with pytest.raises(InputError, match="validation_users must be 0 or more, a whole number"):
        splits.by_time(data, "0.7", 2.5)


def test_a_split_by_time_counts_rivals_by_distinct_items_and_refuses_where_there_are_none():
    rows = [(0, item, 10 + item) for item in range(13)]  # a catalogue of 13, seen by one user
    rows += [(user, 0, when) for user in (1, 2, 3) for when in range(20, 30)]  # ten times one item
    rows += [(user, 1, 1000) for user in (1, 2, 3)]  # the target: 11 others compete
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    protocol = splits.by_time(interactions.load(frame), "500", 1, exclude_seen=True).protocol
    assert protocol.few_rivals == 0 and protocol.targets_seen == 0
    two = frame[frame["user"] > 0]
    assert (
        splits.by_time(interactions.load(two), "500", 1, exclude_seen=False).protocol.few_rivals
        == 3
    )
    with pytest.raises(InputError, match="no item competes with anybody's target"):
        splits.by_time(interactions.load(two), "500", 1, exclude_seen=True)
