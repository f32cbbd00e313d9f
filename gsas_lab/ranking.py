"""Scores -> the target's rank over the whole catalogue."""

import torch
from torch import Tensor

from gsas_lab.errors import InputError

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
