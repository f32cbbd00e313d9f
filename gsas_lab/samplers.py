"""Positives -> negatives. What a negative is, and whether it may be the positive, is said by name.

Both samplers draw uniformly with replacement; the draws of one positive are independent of those
of every other.
"""

from typing import Protocol

import torch
from torch import Tensor

from gsas_lab.errors import InputError


class Sampler(Protocol):
    def __call__(
        self, positives: Tensor, k: int, n_items: int, generator: torch.Generator | None = None
    ) -> Tensor: ...


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


def whole_catalogue(
    positives: Tensor, k: int, n_items: int, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform over all items, positive and history included, as the field's public code draws.

    positives (P,) -> negatives (P, k), int64. A drawn positive is a *collision*; it moves the fixed
    point of the loss (docs/decisions.md).
    """
    _check(k, n_items)
    return torch.randint(
        1, n_items + 1, (len(positives), k), generator=generator, device=positives.device
    )


def _check(k: int, n_items: int) -> None:
    if not 1 <= k < n_items:
        raise InputError(
            f"k = {k} negatives per positive: choose k from 1 to {n_items - 1}, "
            f"one less than the catalogue's {n_items} items."
        )


SAMPLERS: dict[str, Sampler] = {
    "positive-excluded": positive_excluded,
    "whole-catalogue": whole_catalogue,
}
