"""Positives -> negatives. What a negative is, and whether it may be the positive, is said by name.

A sampler is a frozen object. All draw with replacement. With k negatives a positive, item i is drawn
k·q(i) times on average: its *rate* α, which decides what σ(s) becomes (Theorem 5.1) and what the logQ
correction takes away.

    positive-excluded  q = 1/(N − 1)      uniform, as Theorem 5.1 assumes
    history-excluded   q = 1/(N − h)      uniform over what is not among the window's h items
    whole-catalogue    q = 1/N            uniform, as the field's public code draws
    popularity         q ∝ count^γ        counts of training interactions
    in-batch           q ∝ count          the batch's own positives
    shared-sequence    q = 1/N            one draw of k for all positions of a window
    shared-batch       q = 1/N            one draw of k for the whole batch
    mixed              q = 1/N            half of its own, half of one draw for the whole batch

h counts the positive too, and differs from window to window: a mean stands for it in the rate, which
is that of items outside the window. Those inside are never pushed down.

The last six may draw the positive: a *collision*, which moves the fixed point (docs/decisions.md).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from gsas_lab.batches import Asked, Batch
from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD
from gsas_lab.parts import Registry
from gsas_lab.splits import Histories

_DRAWN = 2.0**-53  # the smallest share that a draw of 53 random bits can hit
Drawn = tuple[Tensor, Tensor | None]  # negatives (S, k); each position's row of them, None: its own


@dataclass(frozen=True, eq=False)
class Sampler(ABC):
    """A way to draw k negatives a positive, and how often it draws what.

    An own one has a `draw` and an `alpha`, which may be None.
    """

    k: int  # negatives per positive
    n_items: int  # size of the catalogue

    collisions: ClassVar[bool] = True  # may the positive be drawn as its own negative?
    uniform: ClassVar[bool] = True  # is every item that can be drawn as likely as the next?
    reads_windows: ClassVar[bool] = False  # does it look at the items of the window?
    has_power: ClassVar[bool] = False  # does the setting power change it?
    of_batch: ClassVar[bool] = False  # is it one draw for a batch, whatever is in it?
    shows_rates: ClassVar[bool] = True  # does one large batch show the rates, or is a draw shared?
    capturable: ClassVar[bool] = False  # on CUDA: may its steps be replayed? see training.Step

    @classmethod
    def of(cls, k: int, n_items: int, train: Histories, reads: int, power: float) -> Self:
        """The sampler of a run: train, what is trained on; reads, a window's most items; power, γ."""
        return cls(k, n_items)

    def __post_init__(self) -> None:
        if not 1 <= self.k < self.n_items:
            raise InputError(
                f"k = {self.k} negatives per positive: choose k from 1 to {self.n_items - 1}, "
                f"one less than the catalogue's {self.n_items} items."
            )

    @property
    @abstractmethod
    def alpha(self) -> Any:
        """α = k·q, how often an item is drawn for one positive: of every item, or (n_items,). None
        where no such rate exists, as when scores decide: then no theorem and no logQ applies.
        """

    @classmethod
    def check(cls) -> None:
        """Draw from a small catalogue: the negatives' form, and that items come as often as alpha
        says (within six standard errors and a twentieth; not where windows are read or draws shared).

        InputError that says which of them fails.
        """
        n_items, k, places, d = 20, 4, 30_000, 4
        generator = torch.Generator().manual_seed(0)
        items = torch.randint(1, n_items + 1, (2, places), generator=generator)
        segments = torch.arange(places) // 10 + 1
        train = Histories(items[1].numpy().astype(np.int32), np.array([0, places]))
        sampler = cls.of(k, n_items, train, 11, 1.0)
        asked = Asked(
            Batch(items[0], torch.arange(places) % 10, segments, items[1]), slice(None),
            torch.randn(places, d, generator=generator), torch.randn(n_items + 1, d, generator=generator),
        )  # fmt: skip
        drawn, sets = sampler.draw(asked, generator)
        wanted = f"({places if sets is None else 'S'}, {k})"
        if drawn.ndim != 2 or drawn.shape[1] != k or (sets is None and len(drawn) != places):
            raise InputError(f"draws {tuple(drawn.shape)} negatives where {wanted} are asked for.")
        if drawn.dtype != torch.int64 or drawn.min() < 1 or drawn.max() > n_items:
            raise InputError(
                f"draws {drawn.dtype} from {drawn.min()} to {drawn.max()}: int64 items from 1 to "
                f"{n_items} are asked for."
            )
        if sets is not None and (
            sets.shape != (places,) or sets.dtype != torch.int64
            or sets.min() < 0 or sets.max() >= len(drawn)
        ):  # fmt: skip
            raise InputError(
                f"tells each place's row as {sets.dtype} of {tuple(sets.shape)}: int64 rows from 0 to "
                f"{len(drawn) - 1} of ({places},) are asked for."
            )
        if sampler.alpha is None:
            return
        rate = np.broadcast_to(sampler.alpha, n_items).astype(float)
        if not (np.isfinite(rate) & (rate > 0)).all():  # NaN differs from nothing by more
            raise InputError(
                f"tells a rate alpha of {rate.min()}: give numbers above 0, or None where none are known."
            )
        if sampler.reads_windows or not sampler.shows_rates:
            return
        could = np.full(n_items, len(drawn))
        if not sampler.collisions and sets is None:
            if (drawn == items[1][:, None]).any():
                raise InputError("draws the positive, and says collisions = False.")
            could = places - np.bincount(items[1], minlength=n_items + 1)[1:]
        found = np.bincount(drawn.flatten(), minlength=n_items + 1)[1:] / could
        allowed = 6 * np.sqrt(np.maximum(rate, 1 / places) / could) + rate / 20
        if (wrong := np.abs(found - rate) > allowed).any():
            item = int(wrong.argmax())
            raise InputError(
                f"draws an item {found[item]:.3g} times a positive where its alpha says "
                f"{rate[item]:.3g}: mend alpha, or set it to None."
            )

    @abstractmethod
    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        """Negatives of the P places asked: (P, k) int64 and None, or (S, k) and each one's row (P,)."""


SAMPLERS = Registry("sampler", Sampler)


class PositiveExcluded(Sampler):
    """Uniform over the catalogue without the positive, as Theorem 5.1 assumes.

    Drawn from n_items − 1 places; places from the positive on move up by one.
    """

    collisions = False

    @property
    def alpha(self) -> float:
        return self.k / (self.n_items - 1)

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        positives = asked.positives
        draw = torch.randint(
            1, self.n_items, (len(positives), self.k), generator=generator, device=positives.device
        )
        draw += draw >= positives[:, None]  # in place: this is the largest tensor of a step
        return draw, None


@dataclass(frozen=True, eq=False)
class HistoryExcluded(Sampler):
    """Uniform over the catalogue without the items of the window, positives included."""

    held: float  # different items of a window, on average
    longest: int  # its most items

    collisions = False
    uniform = False
    reads_windows = True

    @classmethod
    def of(cls, k: int, n_items: int, train: Histories, reads: int, power: float) -> Self:
        windows = np.flatnonzero(train.lengths >= 2)
        held = float(np.mean([len(set(train[user][-reads:].tolist())) for user in windows]))
        return cls(k, n_items, held, reads)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest >= self.n_items:
            raise InputError(
                f"A window of {self.longest} items may leave none of {self.n_items} to draw: lower "
                "max_length, or choose another sampler than history-excluded."
            )

    @property
    def alpha(self) -> float:
        return self.k / (self.n_items - self.held)

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        """Exact, without redrawing: with the window's different items e₀ < e₁ < …, the r-th free item
        is r + 1 + #{j : eⱼ − 1 − j ≤ r}.
        """
        batch, n_items = asked.batch, self.n_items
        owner = batch.segments.repeat(2)
        key, order = torch.sort(owner * (n_items + 1) + torch.cat([batch.items, batch.positives]))
        owner, item = owner[order], key % (n_items + 1)
        new = (item > 0) & (key != torch.cat([key.new_full((1,), -1), key[:-1]]))
        so_far = torch.cat([new.new_zeros(1, dtype=torch.int64), new.cumsum(0)])
        own = asked.segments
        begin = torch.searchsorted(owner, own)  # of each place's window among the keys
        end = torch.searchsorted(owner, own, right=True)
        before = so_far[torch.searchsorted(owner, owner)]  # different items of earlier windows
        nth = so_far[1:] - before - 1  # j
        free_below = owner * (n_items + 1) + torch.where(item > 0, item - 1 - nth, 0)
        free_below = torch.where(
            item > 0, free_below, owner * (n_items + 1) - 1
        )  # padding: no item
        free = n_items - (so_far[end] - so_far[begin])  # (P,)
        draw = torch.rand(
            len(free), self.k, generator=generator, device=free.device, dtype=torch.float64
        )
        nth_free = (draw * free[:, None]).long()
        query = own[:, None] * (n_items + 1) + nth_free
        found = torch.searchsorted(free_below, query, right=True)
        return nth_free + 1 + so_far[found] - so_far[begin][:, None], None


class WholeCatalogue(Sampler):
    """Uniform over all items, positive and history included, as the field's public code draws."""

    @property
    def alpha(self) -> float:
        return self.k / self.n_items

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        size = (len(asked.positives), self.k)
        device = asked.positives.device
        return torch.randint(1, self.n_items + 1, size, generator=generator, device=device), None


@dataclass(frozen=True, eq=False)
class ByPopularity(Sampler):
    """Each item by its share of the training interactions, to the power γ.

    An item that is never trained on counts as taken once, so that no q is 0. InputError for a γ so
    large (or not finite) that an item would never be drawn, whatever its rate is said to be.
    """

    counts: np.ndarray  # (n_items,) training interactions
    power: float = 1.0  # γ
    _alias: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    uniform = False
    has_power = True

    @classmethod
    def of(cls, k: int, n_items: int, train: Histories, reads: int, power: float) -> Self:
        return cls(k, n_items, np.bincount(train.items, minlength=n_items + 1)[1:], power)

    def __post_init__(self) -> None:
        super().__post_init__()
        lost = int((~(self._weight / self._weight.sum() >= _DRAWN)).sum())
        if lost:
            raise InputError(
                f"power = {self.power:g} leaves {lost:,} of {self.n_items:,} items too rare to be ever "
                "drawn: choose a smaller one; 1 is their popularity itself, 0.5 to 0.75 are usual."
            )

    @property
    def _weight(self) -> np.ndarray:
        weight = np.maximum(self.counts, 1).astype(float)
        if self.power == 1:
            return weight
        return (weight / weight.max()) ** self.power  # of the largest, so that nothing overflows

    @property
    def alpha(self) -> np.ndarray:
        return self.k * self._weight / self._weight.sum()

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        device = asked.positives.device
        if device not in self._alias:  # moved once: a captured step can copy nothing from the host
            made = alias_table(self._weight)
            self._alias[device] = tuple(torch.from_numpy(x).to(device) for x in made)  # type: ignore[assignment]
        keep, other = self._alias[device]
        size = (len(asked.positives), self.k)
        draw = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
        draw *= len(keep)
        place = draw.long().clamp_(max=len(keep) - 1)
        return torch.where(draw - place < keep[place], place, other[place]) + 1, None


def alias_table(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n,) ≥ 0 -> keep (n,) float64 and other (n,) int64: O(1) a draw (Walker, 1977).

    A place is drawn uniformly; it stands with the probability that it keeps, else for the other.
    Built by the sweep of Hübschle-Schneider & Sanders (2022) from running sums: what light places
    lack is taken from the heavy ones in their order, and a heavy one that gave too much takes from
    the next.
    """
    keep = weight / weight.sum() * len(weight)
    other = np.arange(len(weight))
    light, heavy = np.flatnonzero(keep < 1), np.flatnonzero(keep >= 1)
    if len(light) and len(heavy):
        lacks, spare = np.cumsum(1 - keep[light]), np.cumsum(keep[heavy] - 1)
        giver = np.searchsorted(spare, np.append(0.0, lacks[:-1]), side="right")
        other[light] = heavy[np.minimum(giver, len(heavy) - 1)]
        last = np.minimum(np.searchsorted(lacks, spare), len(light) - 1)  # whom it gave to last
        keep[heavy] = 1 - np.maximum(lacks[last] - spare, 0)
        other[heavy] = np.append(heavy[1:], heavy[-1])
    return keep, other


@dataclass(frozen=True, eq=False)
class InBatch(ByPopularity):
    """Positives of the same batch, drawn at random. Positives 0, which are padding, never are."""

    has_power = False

    @classmethod
    def of(cls, k: int, n_items: int, train: Histories, reads: int, power: float) -> Self:
        return super().of(k, n_items, train, reads, 1.0)

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        positives = asked.positives
        real = torch.argsort((positives == PAD).byte(), stable=True)  # real ones first
        size, device = (len(positives), self.k), positives.device
        draw = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
        return positives[real[(draw * (positives != PAD).sum()).long()]], None


class SharedSequence(WholeCatalogue):
    """One draw from the whole catalogue for all places of a window."""

    def owner(self, asked: Asked) -> Tensor:
        """(P,) which draw is each place's own: 0, 1, …"""
        return asked.segments

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        owner = self.owner(asked)
        # Asking a GPU for the last owner would hold it up.
        last = len(owner) if owner.is_cuda or not len(owner) else int(owner.max())
        size, device = (last + 1, self.k), owner.device
        return torch.randint(1, self.n_items + 1, size, generator=generator, device=device), owner


class SharedBatch(SharedSequence):
    """One draw from the whole catalogue for the whole batch."""

    of_batch = True

    def owner(self, asked: Asked) -> Tensor:
        return torch.zeros_like(asked.segments)


class Mixed(WholeCatalogue):
    """Half of the k, or one more, drawn anew for each positive; the others once for the whole batch.

    Many negatives touch few rows, and yet each positive has some that no other has.
    """

    shows_rates = False

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        places, device = len(asked.positives), asked.positives.device
        sizes = (places, self.k - self.k // 2), (1, self.k // 2)
        own, shared = (
            torch.randint(1, self.n_items + 1, size, generator=generator, device=device)
            for size in sizes
        )
        return torch.cat([own, shared.expand(places, -1)], dim=1), None


@dataclass(frozen=True, eq=False)
class Recorded(Sampler):
    """What is known of a sampler when its training is over: its rates."""

    rate: Any
    met: bool

    @property
    def alpha(self) -> Any:
        return self.rate

    @property
    def collisions(self) -> bool:  # type: ignore[override]
        return self.met

    def draw(self, asked: Asked, generator: torch.Generator | None = None) -> Drawn:
        raise InputError("Nothing can be drawn any more: assemble the experiment again.")


for _name, _sampler in {
    "positive-excluded": PositiveExcluded,
    "history-excluded": HistoryExcluded,
    "whole-catalogue": WholeCatalogue,
    "popularity": ByPopularity,
    "in-batch": InBatch,
    "shared-sequence": SharedSequence,
    "shared-batch": SharedBatch,
    "mixed": Mixed,
}.items():
    SAMPLERS.add(_name, _sampler)
