"""Histories -> batches, with next to no padding. What a batch is, is said here and only here.

A batch holds the windows of `batch_size` users. Inside it the windows are packed into rows of one
length, several to a row, by first fit from the longest on: 99 % of MovieLens-1M's places are real,
where one window a row leaves 54 %. Each window sees itself alone (`segments`) and counts its
positions back from its own end, so a packed window gets the hidden states that it gets alone. Which
users share a batch is decided by the shuffle, never by length.

What a model reads, and what it is asked, is its task: `Windows` for SASRec and BERT4Rec, `Pairs` for
matrix factorisation. A task plans an epoch and makes its batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsas_lab.splits import Histories

WINDOWS = ("last", "all")


class Batch(NamedTuple):
    """Some users' windows, packed: what is read, and what is to be said. All (R, L), int64."""

    items: Tensor  # 0 where nothing is, and where an item is masked
    positions: Tensor  # of each item in its window, the last one being max_length − 1
    segments: Tensor  # which window of the batch an item belongs to, from 1 on; 0 where nothing is
    positives: Tensor  # the next item, or the masked one; 0 where nothing is asked


class Asked(NamedTuple):
    """The places of a batch that want negatives, as a sampler sees them."""

    batch: Batch  # with flat columns, (R · L,)
    places: Tensor | slice  # P of them
    hidden: Tensor | None = None  # (P, d) their hidden states, without a gradient
    table: Tensor | None = None  # (n_items + 1, d) what these are compared with

    @property
    def positives(self) -> Tensor:
        """(P,)"""
        return self.batch.positives[self.places]

    @property
    def segments(self) -> Tensor:
        """(P,) the window of each place."""
        return self.batch.segments[self.places]


@dataclass(frozen=True)
class Windows:
    """The task of a model that reads windows of histories.

    masked None: at each item, which comes next? (SASRec). Otherwise: items are masked at random,
    this share of them; which were they? (BERT4Rec). In a window where none is, the last one is, as
    it always is when a model is asked for the next item.
    """

    masked: float | None = None
    packed: bool = True  # several windows in a row, or one

    def plan(
        self,
        histories: Histories,
        max_length: int,
        batch_size: int,
        which: str,
        rng: np.random.Generator,
    ) -> list[np.ndarray]:
        """One epoch, shuffled: for each batch an array (b, 2) of window starts and ends."""
        reads = max_length if self.masked is None else max_length - 1
        spans = np.stack(windows(histories, reads, which, rng), axis=1)
        rng.shuffle(spans)
        return _chunks(spans, batch_size)

    def batches(
        self,
        histories: Histories,
        plan: list[np.ndarray],
        max_length: int,
        rng: np.random.Generator,
        rows_in: int = 1,
    ) -> Iterator[Batch]:
        """The batches of a plan, all of one row length: its longest window's.

        rows_in: the number of rows is rounded up to a multiple of it, so that few shapes occur. A
        batch without windows (a process's share of a small one) is one row of padding.
        """
        ahead = 1 if self.masked is None else 0  # from what is read to what is asked
        length = max(int((spans[:, 1] - spans[:, 0]).max(initial=2)) - ahead for spans in plan)
        for spans in plan:
            begin, count = spans[:, 0], spans[:, 1] - spans[:, 0] - ahead
            row, offset = pack(count, length) if self.packed else (np.arange(len(count)), 0)
            n_rows = -(-(int(row.max(initial=0)) + 1) // rows_in) * rows_in
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            place = np.repeat(row * length + offset, count) + within
            source = np.repeat(begin, count) + within
            items, positives = histories.items[source], histories.items[source + ahead]
            if self.masked is not None and len(items):
                hidden = rng.random(len(items)) < self.masked
                ends = np.cumsum(count)
                hidden[ends[np.logical_or.reduceat(hidden, ends - count) == 0] - 1] = True
                items, positives = np.where(hidden, 0, items), np.where(hidden, positives, 0)
            columns = (
                items,
                within + max_length - np.repeat(count, count),
                np.repeat(np.arange(1, len(count) + 1), count),
                positives,
            )
            filled = np.zeros((len(columns), n_rows * length), np.int64)
            for line, values in zip(filled, columns, strict=True):
                line[place] = values
            yield Batch(*torch.from_numpy(filled.reshape(-1, n_rows, length)))


class Pairs:
    """The task of a model that knows users: which items did this one take, in whatever order?

    Each interaction is a window of its own. `items` holds rows of the data set: users.
    """

    def plan(
        self,
        histories: Histories,
        max_length: int,
        batch_size: int,
        which: str,
        rng: np.random.Generator,
    ) -> list[np.ndarray]:
        """One epoch, shuffled: for each batch an array (b, 2) of an interaction's start and end."""
        every = np.arange(len(histories.items))
        spans = np.stack([every, every + 1], axis=1)
        rng.shuffle(spans)
        return _chunks(spans, batch_size)

    def batches(
        self,
        histories: Histories,
        plan: list[np.ndarray],
        max_length: int,
        rng: np.random.Generator,
        rows_in: int = 1,
    ) -> Iterator[Batch]:
        """The batches of a plan, one row each."""
        user = np.repeat(np.arange(len(histories)), histories.lengths)
        for spans in plan:
            start = spans[:, 0]
            columns = user[start], 0 * start, np.arange(1, len(start) + 1), histories.items[start]
            yield Batch(*torch.from_numpy(np.stack(columns).astype(np.int64)[:, None]))


Task = Windows | Pairs


def _chunks(spans: np.ndarray, size: int) -> list[np.ndarray]:
    return [spans[start : start + size] for start in range(0, len(spans), size)]


def pad_right(rows: list[np.ndarray], length: int) -> Tensor:
    """The last `length` items of each row -> (B, T) int64, padded on the right; T ≤ length."""
    rows = [row[-length:] for row in rows]
    items = np.zeros((len(rows), max([1, *map(len, rows)])), dtype=np.int64)
    for line, row in zip(items, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(items)


def windows(
    histories: Histories, max_length: int, which: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (n,) in `histories.items` of windows with at most max_length + 1 items.

    which "last": each user's last items, as the paper (a third of MovieLens-1M never trains).
    which "all": each history in windows that overlap by one item, so that every interaction but a
    user's first is a positive exactly once; where the cuts fall is random for each user and call.
    """
    begin, end = histories.offsets[:-1], histories.offsets[1:]
    if which == "last":
        starts, ends = np.maximum(begin, end - max_length - 1), end
    else:
        positions = np.maximum(end - begin - 1, 0)  # pairs (item, next item)
        surplus = np.where(
            positions > max_length, rng.integers(0, max_length, len(positions)), 0
        )  # length of the first window, 0 = a whole one
        count = -(-(positions - surplus) // max_length) + (surplus > 0)
        user = np.repeat(np.arange(len(count)), count)
        nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
        first = np.where(surplus > 0, surplus, max_length)[user]
        low = np.where(nth == 0, 0, first + (nth - 1) * max_length)
        high = np.minimum(first + nth * max_length, positions[user])
        starts, ends = begin[user] + low, begin[user] + high + 1
    keep = ends - starts >= 2  # one item alone has no next one
    return starts[keep], ends[keep]


def pack(counts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """First fit, longest first: windows of counts (n,) ≤ length -> the row and offset of each."""
    row, offset = np.zeros((2, len(counts)), np.int64)
    used: list[int] = []  # places taken in each row
    smallest = int(counts.min(initial=length))
    open_from = 0  # rows before this one have no room for any window
    for window in np.argsort(-counts, kind="stable").tolist():
        count = int(counts[window])
        for place in range(open_from, len(used)):
            if used[place] + count <= length:
                break
        else:
            place = len(used)
            used.append(0)
        row[window], offset[window] = place, used[place]
        used[place] += count
        while open_from < len(used) and used[open_from] + smallest > length:
            open_from += 1
    return row, offset
