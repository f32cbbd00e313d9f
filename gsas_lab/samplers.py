"""Positives -> negatives. What a negative is, and whether it may be the positive, is said by name.

All draw with replacement. With k negatives a positive, item i is drawn k·q(i) times on average: its
*rate* α, which decides what σ(s) becomes (Theorem 5.1) and what the logQ correction takes away.

    positive-excluded  q = 1/(N − 1)      uniform, as Theorem 5.1 assumes
    history-excluded   q = 1/(N − h)      uniform over what is not among the window's h items
    whole-catalogue    q = 1/N            uniform, as the field's public code draws
    popularity         q ∝ count^γ        counts of training interactions
    in-batch           q ∝ count          the batch's own positives
    shared-sequence    q = 1/N            one draw of k for all positions of a window
    shared-batch       q = 1/N            one draw of k for the whole batch

h counts the positive too, and differs from window to window: a mean stands for it in the rate, which
is that of items outside the window. Those inside are never pushed down.

The last five may draw the positive: a *collision*, which moves the fixed point (docs/decisions.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsas_lab.batches import Batch
from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD

_DRAWN = 2.0**-53  # the smallest share that a draw of 53 random bits can hit
SAMPLERS = (
    "positive-excluded",
    "history-excluded",
    "whole-catalogue",
    "popularity",
    "in-batch",
    "shared-sequence",
    "shared-batch",
)


@dataclass(frozen=True)
class Sampler:
    """A way to draw negatives, and how often it draws what.

    draw(batch, asked, generator): batch with flat columns, asked: which P of its places want
    negatives -> negatives (S, k), and for each place asked the row of its own (P,), or None where
    S = P and each has its own.
    """

    draw: Callable[[Batch, Tensor | slice, torch.Generator | None], tuple[Tensor, Tensor | None]]
    alpha: float | np.ndarray  # α = k·q: of every item, or item by item (n_items,)
    collisions: bool  # may the positive be drawn as its own negative?


def sampler(
    name: str, k: int, counts: np.ndarray, power: float = 1.0, longest: int = 1, held: float = 0.0
) -> Sampler:
    """One of SAMPLERS with k negatives a positive.

    counts (n_items,): training interactions of each item; power: γ of "popularity"; longest: a
    window's most items, and held: how many different ones it has on average, both for
    "history-excluded". An item that is never trained on counts as taken once, so that no q is 0.
    Raises InputError for a k that the catalogue cannot serve, and for a power so large (or not
    finite) that an item would never be drawn, whatever its rate is said to be.
    """
    n_items = len(counts)
    _check(k, n_items)
    weight = np.maximum(counts, 1).astype(float)
    if name == "popularity":
        if power != 1:
            weight = (weight / weight.max()) ** power  # of the largest, so that nothing overflows
        lost = int((~(weight / weight.sum() >= _DRAWN)).sum())
        if lost:
            raise InputError(
                f"power = {power:g} leaves {lost:,} of {n_items:,} items too rare to be ever drawn: "
                "choose a smaller one; 1 is their popularity itself, 0.5 to 0.75 are usual."
            )
    popular = k * weight / weight.sum()
    uniform = k / n_items
    if name == "positive-excluded":
        return Sampler(
            lambda batch, asked, g: (positive_excluded(batch.positives[asked], k, n_items, g), None),
            k / (n_items - 1), False,
        )  # fmt: skip
    if name == "history-excluded":
        if longest >= n_items:
            raise InputError(
                f"A window of {longest} items may leave none of {n_items} to draw: lower "
                "max_length, or choose another sampler than history-excluded."
            )
        return Sampler(
            lambda batch, asked, g: (history_excluded(batch, asked, k, n_items, g), None),
            k / (n_items - held), False,
        )  # fmt: skip
    if name == "whole-catalogue":
        return Sampler(
            lambda batch, asked, g: (whole_catalogue(batch.positives[asked], k, n_items, g), None),
            uniform, True,
        )  # fmt: skip
    if name == "popularity":
        shares = torch.from_numpy(np.cumsum(weight) / weight.sum())

        def by_popularity(
            batch: Batch, asked: Tensor | slice, g: torch.Generator | None
        ) -> tuple[Tensor, None]:
            nonlocal shares  # moved once: a captured step can copy nothing from the host
            shares = shares.to(batch.positives.device)
            return popularity(batch.positives[asked], k, shares, g), None

        return Sampler(by_popularity, popular, True)
    if name == "in-batch":
        return Sampler(
            lambda batch, asked, g: (in_batch(batch.positives[asked], k, g), None), popular, True
        )
    if name == "shared-sequence":
        return Sampler(
            lambda batch, asked, g: shared(batch.segments[asked], k, n_items, g), uniform, True
        )
    if name == "shared-batch":
        return Sampler(
            lambda batch, asked, g: shared(torch.zeros_like(batch.segments[asked]), k, n_items, g),
            uniform, True,
        )  # fmt: skip
    raise InputError(f"Sampler '{name}' is unknown: choose one of {', '.join(SAMPLERS)}.")


def positive_excluded(
    positives: Tensor, k: int, n_items: int, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform over the catalogue without the positive, as Theorem 5.1 assumes.

    positives (P,) items 1…n_items -> negatives (P, k), int64, on the positives' device. Drawn from
    n_items − 1 places; places from the positive on move up by one.
    """
    _check(k, n_items)
    draw = torch.randint(
        1, n_items, (len(positives), k), generator=generator, device=positives.device
    )
    draw += draw >= positives[:, None]  # in place: this is the largest tensor of a step
    return draw


def history_excluded(
    batch: Batch,
    asked: Tensor | slice,
    k: int,
    n_items: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform over the catalogue without the items of the window, positives included.

    batch: with flat columns; asked: P of its places -> negatives (P, k), int64. Exact, without
    redrawing: with the window's different items e₀ < e₁ < …, the r-th free item is
    r + 1 + #{j : eⱼ − 1 − j ≤ r}.
    """
    _check(k, n_items)
    owner = batch.segments.repeat(2)
    key, order = torch.sort(owner * (n_items + 1) + torch.cat([batch.items, batch.positives]))
    owner, item = owner[order], key % (n_items + 1)
    new = (item > 0) & (key != torch.cat([key.new_full((1,), -1), key[:-1]]))
    so_far = torch.cat([new.new_zeros(1, dtype=torch.int64), new.cumsum(0)])
    own = batch.segments[asked]
    begin = torch.searchsorted(owner, own)  # of each place's window among the keys
    end = torch.searchsorted(owner, own, right=True)
    before = so_far[torch.searchsorted(owner, owner)]  # different items of earlier windows
    nth = so_far[1:] - before - 1  # j
    free_below = owner * (n_items + 1) + torch.where(item > 0, item - 1 - nth, 0)
    free_below = torch.where(item > 0, free_below, owner * (n_items + 1) - 1)  # padding: no item
    free = n_items - (so_far[end] - so_far[begin])  # (P,)
    draw = torch.rand(len(free), k, generator=generator, device=free.device, dtype=torch.float64)
    nth_free = (draw * free[:, None]).long()
    query = own[:, None] * (n_items + 1) + nth_free
    found = torch.searchsorted(free_below, query, right=True)
    return nth_free + 1 + so_far[found] - so_far[begin][:, None]


def whole_catalogue(
    positives: Tensor, k: int, n_items: int, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform over all items, positive and history included, as the field's public code draws.

    positives (P,) -> negatives (P, k), int64.
    """
    _check(k, n_items)
    return torch.randint(
        1, n_items + 1, (len(positives), k), generator=generator, device=positives.device
    )


def popularity(
    positives: Tensor, k: int, cumulative: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Each item by its share: positives (P,), cumulative shares (n_items,) -> negatives (P, k)."""
    draw = torch.rand(
        len(positives), k, generator=generator, device=positives.device, dtype=cumulative.dtype
    )
    return torch.searchsorted(cumulative, draw, right=True).clamp_(max=len(cumulative) - 1) + 1


def in_batch(positives: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Positives of the same batch, drawn at random: positives (P,) -> negatives (P, k).

    Positives 0, which are padding, are never drawn.
    """
    real = torch.argsort((positives == PAD).byte(), stable=True)  # real ones first
    draw = torch.rand(
        len(positives), k, generator=generator, device=positives.device, dtype=torch.float64
    )
    return positives[real[(draw * (positives != PAD).sum()).long()]]


def shared(
    owner: Tensor, k: int, n_items: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One draw from the whole catalogue for all places of an owner.

    owner (P,): 0, 1, … -> negatives (owners, k), and for each place the row of its own: owner.
    """
    _check(k, n_items)
    # Asking a GPU for the last owner would hold it up.
    last = len(owner) if owner.is_cuda or not len(owner) else int(owner.max())
    size = (last + 1, k)
    return torch.randint(1, n_items + 1, size, generator=generator, device=owner.device), owner


def _check(k: int, n_items: int) -> None:
    if not 1 <= k < n_items:
        raise InputError(
            f"k = {k} negatives per positive: choose k from 1 to {n_items - 1}, "
            f"one less than the catalogue's {n_items} items."
        )
