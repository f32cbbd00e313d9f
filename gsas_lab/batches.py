"""Histories -> batches, with next to no padding. What a batch is, is said here and only here.

A batch holds the windows of `batch_size` users. Inside it the windows are packed into rows of one
length, several to a row, by first fit from the longest on: 99 % of MovieLens-1M's places are real,
where one window a row leaves 54 %. Each window sees itself alone (`segments`) and counts its
positions back from its own end, so a packed window gets the hidden states that it gets alone. Which
users share a batch is decided by the shuffle, never by length.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsas_lab.splits import Histories

WINDOWS = ("last", "all")


class Batch(NamedTuple):
    """Some users' windows, packed: what is read, and what came next. All (R, L), int64."""

    items: Tensor  # 0 where nothing is
    positions: Tensor  # of each item in its window, the last one being max_length − 1
    segments: Tensor  # which window of its row an item belongs to, from 1 on; 0 where nothing is
    positives: Tensor  # the next item; 0 where nothing is


def pad_right(rows: list[np.ndarray], length: int) -> Tensor:
    """The last `length` items of each row -> (B, T) int64, padded on the right; T ≤ length."""
    rows = [row[-length:] for row in rows]
    items = np.zeros((len(rows), max(1, *map(len, rows), 1)), dtype=np.int64)
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


def epoch(
    histories: Histories,
    max_length: int,
    batch_size: int,
    which: str,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """One epoch's plan: for each batch an array (b, 2) of window starts and ends, shuffled."""
    spans = np.stack(windows(histories, max_length, which, rng), axis=1)
    rng.shuffle(spans)
    return [spans[start : start + batch_size] for start in range(0, len(spans), batch_size)]


def batches(
    histories: Histories, plan: list[np.ndarray], max_length: int, rows_in: int = 1
) -> Iterator[Batch]:
    """The batches of one epoch's plan, all of one row length: its longest window's.

    rows_in: the number of rows is rounded up to a multiple of it, so that few shapes occur.
    """
    length = max(int((spans[:, 1] - spans[:, 0]).max()) - 1 for spans in plan)
    for spans in plan:
        begin, count = spans[:, 0], spans[:, 1] - spans[:, 0] - 1
        row, offset, nth = pack(count, length)
        n_rows = -(-(int(row.max()) + 1) // rows_in) * rows_in
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        place = np.repeat(row * length + offset, count) + within
        source = np.repeat(begin, count) + within
        columns = (
            histories.items[source],
            within + max_length - np.repeat(count, count),
            np.repeat(nth, count),
            histories.items[source + 1],
        )
        filled = np.zeros((len(columns), n_rows * length), np.int64)
        for line, values in zip(filled, columns, strict=True):
            line[place] = values
        yield Batch(*torch.from_numpy(filled.reshape(-1, n_rows, length)))


def pack(counts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First fit, longest first: windows of counts (n,) ≤ length -> row, offset, number in the row."""
    row, offset, nth = np.zeros((3, len(counts)), np.int64)
    used: list[int] = []  # places taken in each row
    held: list[int] = []  # windows in each row
    smallest = int(counts.min())
    open_from = 0  # rows before this one have no room for any window
    for window in np.argsort(-counts, kind="stable").tolist():
        count = int(counts[window])
        for place in range(open_from, len(used)):
            if used[place] + count <= length:
                break
        else:
            place = len(used)
            used.append(0)
            held.append(0)
        row[window], offset[window] = place, used[place]
        used[place] += count
        held[place] += 1
        nth[window] = held[place]
        while open_from < len(used) and used[open_from] + smallest > length:
            open_from += 1
    return row, offset, nth
