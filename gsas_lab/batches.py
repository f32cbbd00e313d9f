"""Histories -> batches, with little wasted padding. What a batch is, is said here and only here.

A batch holds the windows of `batch_size` users. Inside it the windows are sorted by length and cut
into groups, each padded on the right to its own longest only; a causal encoder never lets a real
position see what stands to its right, so padding needs no mask. Which users share a batch is decided
by the shuffle alone, never by length. Positives are kept for real positions only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsas_lab.interactions import PAD
from gsas_lab.splits import Histories

WINDOWS = ("last", "all")
_GROUP = 16  # windows padded together: smaller wastes less padding, larger makes fewer calls


class Batch(NamedTuple):
    """Some users' windows: what is read, and what came next."""

    items: tuple[Tensor, ...]  # groups (b, T), int64, padded on the right
    positives: Tensor  # (P,) the next item at each real position, group by group, row by row


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


def batches(histories: Histories, plan: list[np.ndarray]) -> Iterator[Batch]:
    """The batches of one epoch's plan."""
    for spans in plan:
        spans = spans[np.argsort(spans[:, 0] - spans[:, 1], kind="stable")]  # longest first
        groups, positives = [], []
        for start in range(0, len(spans), _GROUP):
            begin, end = spans[start : start + _GROUP].T
            column = np.arange((end - begin).max() - 1)
            real = column < (end - begin - 1)[:, None]  # (b, T)
            place = np.where(real, begin[:, None] + column, 0)
            groups.append(
                torch.from_numpy(np.where(real, histories.items[place], PAD).astype(np.int64))
            )
            positives.append(histories.items[place[real] + 1])
        yield Batch(tuple(groups), torch.from_numpy(np.concatenate(positives).astype(np.int64)))
