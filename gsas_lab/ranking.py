"""A model and held-out users -> ranks of their targets over the whole catalogue, Σp, first items."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsas_lab import distributed, metrics, shards
from gsas_lab.batches import pad_right
from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD
from gsas_lab.kernels import scan
from gsas_lab.losses import SIGMOID, SOFTMAX, Link
from gsas_lab.models import Model
from gsas_lab.splits import Holdout, Split

_SCORES = 1 << 25  # held at once at evaluation: 128 MB
_SCANNED = 100_000  # items; below, the encoder takes most of the time
_PATIENCE = 5.0  # seconds without a word
_BLOCK = 2**21  # scores compared at once: three masks of 2 MiB stay in a core's cache


def rank_of_targets(
    scores: Tensor, targets: Tensor, seen_rows: Tensor, seen_items: Tensor
) -> Tensor:
    """rank = 1 + number of items placed before the target, among items 1 … n_items.

    An item is placed before the target if its score is higher, or equal with a lower item id: the
    order of a stable sort. Neither column 0 (padding) nor the target's seen items count; a target
    that was seen itself is still ranked. Rank by scores, never by probabilities: in float32, σ
    turns every score above 17 into the same 1.0.

    scores (B, n_items + 1): any float type, ±inf allowed, NaN an `InputError`.
    targets (B,): item ids.
    seen_rows, seen_items (S,): pairs (row of `scores`, item id) in any order, repeats allowed;
        both empty means no seen filter.
    Returns ranks (B,), int64, 1-based. Memory beyond the inputs: 3 bytes × max(2²¹, n_items).
    """
    n_rows, n_columns = scores.shape
    _check_ids("targets", targets, 1, n_columns)
    _check_ids("seen_rows", seen_rows, 0, n_rows)
    _check_ids("seen_items", seen_items, 0, n_columns)
    if targets.shape != (n_rows,) or seen_rows.shape != seen_items.shape:
        raise InputError(
            f"rank_of_targets needs one target for each of the {n_rows} rows of scores and one "
            f"seen row for each seen item, not {len(targets)} targets, {len(seen_rows)} seen rows "
            f"and {len(seen_items)} seen items."
        )
    items = torch.arange(n_columns, device=scores.device)
    ranks = torch.empty(n_rows, dtype=torch.int64, device=scores.device)
    step = max(1, _BLOCK // n_columns)
    for start in range(0, n_rows, step):
        block = scores[start : start + step]  # (b, n_items + 1)
        target = targets[start : start + step, None].long()  # (b, 1)
        if block[:, 1:].amax().isnan():
            raise InputError(
                f"The scores hold NaN in rows {start} to {start + len(block) - 1}; "
                "check the model's weights and its learning rate."
            )
        own = block.gather(1, target)
        before = block == own  # (b, n_items + 1)
        before &= items < target
        before |= block > own
        here = (seen_rows >= start) & (seen_rows < start + step)
        # Assigned, not subtracted: a pair that a history holds twice is taken out once.
        before[seen_rows[here] - start, seen_items[here]] = False
        before[:, 0] = False
        ranks[start : start + step] = 1 + before.sum(1, dtype=torch.int32)
    return ranks


def _check_ids(name: str, ids: Tensor, low: int, high: int) -> None:
    # A negative index would silently count from the end.
    if len(ids) and not low <= int(ids.min()) <= int(ids.max()) < high:
        raise InputError(
            f"{name} must lie between {low} and {high - 1}, "
            f"not between {int(ids.min())} and {int(ids.max())}."
        )


@dataclass(frozen=True)
class Outcome:
    """What a model says of each user of a holdout, and where the target ended up."""

    ranks: np.ndarray  # (n,) rank of the target, 1-based
    sums: np.ndarray  # (n,) Σp over the whole catalogue, seen items included
    items: np.ndarray  # (n, K) the first K items of the ranking; 0 where it has fewer, with p = 0
    prob: np.ndarray  # (n, K) their predicted probabilities, highest first


def examine(
    model: Model,
    holdout: Holdout,
    exclude_seen: bool,
    top: int = 100,
    link: Link | None = SIGMOID,
) -> Outcome:
    """Rank the whole catalogue for each user of a holdout, by `rank_of_targets`.

    exclude_seen: the history's items do not compete (the target always does). link: p̂ of scores
    (..., n), see losses.py; None: there is none, and sums and prob are NaN.
    """
    n, places = len(holdout.users), min(top, model.n_items)
    # Made before the loop: kept pieces between a batch's scores would leave its memory in holes.
    found = Outcome(
        np.empty(n, np.int64), np.empty(n), np.empty((n, places), np.int64),
        np.empty((n, places), np.float32),
    )  # fmt: skip
    for scores, rows in score_in_batches(model, holdout):
        seen_rows, seen_items, targets = _seen(holdout, rows, exclude_seen)
        found.ranks[rows] = rank_of_targets(scores, targets, seen_rows, seen_items)
        prob = torch.full_like(scores, torch.nan) if link is None else link(scores)
        found.sums[rows] = prob.sum(1, dtype=torch.float64)  # column 0: scores are −inf, so 0
        own = scores.gather(1, targets[:, None])
        scores[seen_rows, seen_items] = -torch.inf
        # By score and not by probability, which is exactly 1.0 for many items at once.
        order = scores.scatter_(1, targets[:, None], own).topk(places)
        none = order.values == -torch.inf  # seen: there are fewer candidates than places
        found.items[rows] = order.indices.masked_fill(none, 0)
        found.prob[rows] = prob.gather(1, order.indices).masked_fill(none, 0.0)
    return found


def ranks(model: Model, holdout: Holdout, exclude_seen: bool) -> np.ndarray:
    """The ranks of `examine` alone, (n,): all that a ranking metric needs, in half the time.

    A large catalogue is scanned, see kernels/scan.py: the same ranks, of scores that are summed in
    one fixed order. Where tables are spread over processes, all call it together.
    """
    if shards.over(model) > 1:
        return over_shards(model, holdout, exclude_seen)[0]
    if scans(model):
        return _scanned(model, holdout, exclude_seen, 0, holdout.targets)[0]
    found = np.empty(len(holdout.users), np.int64)
    for scores, rows in score_in_batches(model, holdout):
        seen_rows, seen_items, targets = _seen(holdout, rows, exclude_seen)
        found[rows] = rank_of_targets(scores, targets, seen_rows, seen_items)
    return found


@torch.no_grad()
def over_shards(
    model: Model, holdout: Holdout, exclude_seen: bool, link: Link | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks by `rank_of_targets` and Σp (NaN without a link) of a model whose tables are spread over
    the processes (shards.py): (n,) both, the same in all processes, which call it together.

    Each runs the encoder and scores the items that it holds; what it counts is added up.
    """
    number, processes = distributed.number(), distributed.processes()
    items = torch.arange(number, model.n_items + 1, processes, device=model.table.device)
    found, sums = np.empty(len(holdout.users), np.int64), np.full(len(holdout.users), np.nan)
    at_once = max(
        1, min(128, _SCORES // (model.n_items + 1))
    )  # as one process; its share of scores
    for given, rows in _in_batches(model, holdout, at_once, _bar if not number else iter):
        scores = model.last_hidden(given).float() @ model.table.T  # (b, items held)
        scores = scores if model.bias is None else scores + model.bias
        scores[:, items == PAD] = -torch.inf
        seen_rows, seen_items, targets = (
            x.to(scores.device) for x in _seen(holdout, rows, exclude_seen)
        )
        own, here = scores.new_zeros(len(rows)), targets % processes == number
        own[here] = scores[here, targets[here] // processes]
        own = distributed.added(own)[:, None]
        before = (scores > own) | ((scores == own) & (items < targets[:, None]))
        here = seen_items % processes == number
        before[seen_rows[here], seen_items[here] // processes] = False
        counts = torch.stack([before.sum(1), scores.isnan().sum(1)])
        ahead, broken = distributed.added(counts).cpu()
        if broken.any():
            raise InputError(
                "The scores hold NaN; check the model's weights and its learning rate."
            )
        found[rows] = 1 + ahead
        if link is SOFTMAX:  # over the whole catalogue
            sums[rows] = 1.0
        elif link is not None:
            sums[rows] = distributed.added(link(scores).sum(1, dtype=torch.float64)).cpu()
    return found, sums


def first_items(
    model: Model, holdout: Holdout, exclude_seen: bool, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first items (n, most) of each user and their scores, equal ones by `rank_of_targets`' rule;
    0 and −inf where there are no more. The holdout's targets play no part.
    """
    most = min(most, model.n_items)
    if scans(model):
        return _scanned(model, holdout, exclude_seen, most, np.zeros_like(holdout.targets))[1:]
    items = np.zeros((len(holdout.users), most), np.int64)
    found = np.full(items.shape, -np.inf, np.float32)
    for scores, rows in score_in_batches(model, holdout):
        items[rows], found[rows] = first_of(scores, holdout.subset(rows), exclude_seen, most)
    return items, found


def first_of(
    scores: Tensor, some: Holdout, exclude_seen: bool, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """`first_items` of users whose scores (B, n_items + 1) are there; seen items are masked in them."""
    seen_rows, seen_items, _ = _seen(some, np.arange(len(some.users)), exclude_seen)
    scores[seen_rows, seen_items] = -torch.inf
    items = np.zeros((len(scores), most), np.int64)
    found = np.full(items.shape, -np.inf, np.float32)
    # topk breaks ties in any order: all that reach the last score are sorted.
    reach = (scores >= scores.topk(most).values[:, -1:]).numpy()
    for row, (user, reached) in enumerate(zip(scores.numpy(), reach, strict=True)):
        place = np.flatnonzero(reached & (user > -np.inf))
        place = place[np.argsort(-user[place], kind="stable")[:most]]
        items[row, : len(place)], found[row, : len(place)] = place, user[place]
    return items, found


def scans(model: Model) -> bool:
    """Is its catalogue so large, and the model on a processor that can, that `scan` ranks it?"""
    return (
        model.n_items >= _SCANNED
        and model.table.device.type == "cpu"
        and type(model).score is Model.score  # else the scores are no products with the table
        and scan.fast(model.table.shape[1])
    )


@torch.no_grad()
def hidden_states(model: Model, holdout: Holdout) -> Tensor:
    """What each user's next item is compared with, on CPU: (n, d)."""
    found = torch.empty(len(holdout.users), model.table.shape[1])
    for given, rows in _in_batches(model, holdout, 128):
        found[torch.from_numpy(rows)] = model.last_hidden(given).float().cpu()
    return found


def _scanned(
    model: Model, holdout: Holdout, exclude_seen: bool, most: int, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `Catalogue.scan` says of all users, some thousand at a time."""
    bias = 0.0 if model.bias is None else float(model.bias.detach())
    catalogue = scan.Catalogue(model.table, bias)
    found, step = [], scan.USERS * torch.get_num_threads()
    for start in _bar(range(0, len(targets), step)):
        some = holdout.subset(np.arange(start, min(start + step, len(targets))))
        seen: Any = np.zeros(0, np.int64)
        offsets: Any = np.zeros(len(some.users) + 1, np.int64)
        if exclude_seen:
            seen, offsets = some.histories.items.astype(np.int64), some.histories.offsets
            users = np.repeat(np.arange(len(some.users)), some.histories.lengths)
            seen = seen[np.lexsort([seen, users])]
        own, seen, offsets = map(torch.from_numpy, (targets[start : start + step], seen, offsets))
        found.append(catalogue.scan(hidden_states(model, some), own, seen, offsets, most))
    ranks, items, scores = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return ranks, items, scores


def _seen(holdout: Holdout, rows: np.ndarray, exclude_seen: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(row, item) pairs of seen items of some users, none if they are kept, and the targets."""
    targets = torch.from_numpy(holdout.targets[rows])
    if not exclude_seen:
        nothing = torch.empty(0, dtype=torch.int64)
        return nothing, nothing, targets
    seen = holdout.subset(rows).histories
    items = torch.from_numpy(seen.items.astype(np.int64))
    return torch.from_numpy(np.repeat(np.arange(len(rows)), seen.lengths)), items, targets


def evaluate(
    model: Model,
    split: Split,
    cutoffs: tuple[int, ...] = (1, 10),
    exclude_seen: bool | None = None,
) -> dict[str, float]:
    """Test metrics over the whole catalogue: recall@K, ndcg@max K. None: as the split's protocol."""
    exclude = split.protocol.exclude_seen if exclude_seen is None else exclude_seen
    return metrics.summary(ranks(model, split.test, exclude), cutoffs)


@torch.no_grad()
def score_in_batches(model: Model, holdout: Holdout) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Pairs (scores (b, n_items + 1) on CPU, row numbers (b,)), each row once, longest first.

    128 rows at once, or as many as have _SCORES scores in a catalogue of a million.
    """
    rows_at_once = max(1, min(128, _SCORES // (model.n_items + 1)))
    for given, rows in _in_batches(model, holdout, rows_at_once, _bar):
        yield model.score(given).cpu(), rows


def _in_batches(
    model: Model, holdout: Holdout, rows_at_once: int, bar: Callable[[range], Iterable[int]] = iter
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """What the model reads of some rows, and their numbers (b,).

    Rows of about one length share a batch, so that little padding is computed.
    """
    order = np.argsort(-np.minimum(holdout.histories.lengths, model.max_length), kind="stable")
    for start in bar(range(0, len(order), rows_at_once)):
        rows = order[start : start + rows_at_once]
        if model.by_user:
            given = torch.from_numpy(holdout.users[rows])
        else:
            given = pad_right([holdout.histories[row] for row in rows], model.max_length)
        yield given.to(model.table.device), rows


def _bar(batches: range) -> Iterable[int]:
    """With the time left, where it takes longer than _PATIENCE; silent without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    return tqdm(
        batches,
        desc="ranking the whole catalogue",
        bar_format="{desc}: {percentage:.0f} % [{elapsed}, {remaining} left]",
        delay=_PATIENCE,
        mininterval=1,
        leave=False,
        disable="TQDM_DISABLE" in os.environ,
    )
