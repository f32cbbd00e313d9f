"""What a model is: histories -> hidden states -> scores of the catalogue. No loss in here.

A reader's own encoder inherits from `Encoder` and says `forward`; see `parts.register`.
"""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gsas_lab.batches import Task, Windows
from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD
from gsas_lab.parts import Registry
from gsas_lab.shards import Shards
from gsas_lab.splits import Histories


class Model(nn.Module, ABC):
    """What recommends. Items (B, T) are padded on the *right*; item 0 is none.

    Its constructor is given, by name, whatever it asks for of: n_items, n_users, train (histories),
    d, blocks, heads, max_length, dropout, tied, block, bias.
    """

    words: ClassVar[str] = ""  # its name in tables; none: the class's
    packed: ClassVar[bool] = False  # can a row hold several histories, told apart by `segments`?
    masked: ClassVar[bool] = False  # is it asked for masked items, or for the next one?
    trained: ClassVar[bool] = True  # or is it ready when it is built?
    by_user: ClassVar[bool] = False  # does it know users of the data set, and not histories?
    capturable: ClassVar[bool] = False  # on CUDA: may its steps be replayed? see training.Step

    n_items: int
    max_length: int  # of what it reads
    bias: Tensor | None  # a scalar added to every score

    @classmethod
    def task(cls, masked: float) -> Task:
        """What it reads in training, and what it is asked; masked: the share of items to fill in."""
        return Windows(masked if cls.masked else None, cls.packed)

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """(n_items + 1, d) what the hidden states are compared with; row 0 is padding."""

    @abstractmethod
    def forward(
        self, items: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """items (B, T) -> hidden states (B, T, d), at each place that of the next item.

        positions (B, T): of each item in its window, the last one being max_length − 1. segments
        (B, T): which window of the batch an item belongs to, for models whose rows are packed.
        """

    @classmethod
    def check(cls) -> None:
        """Try a small one: its shapes; that a place sees nothing to its right (where it predicts the
        next item) and nothing of the row's other histories (where rows are packed). No training.

        InputError that says which of them fails.
        """
        if cls.by_user or not cls.trained:
            return
        n_items, d, longest = 30, 8, 6
        nobody = Histories(np.zeros(0, np.int32), np.zeros(1, np.int64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build(
                cls, n_items=n_items, n_users=1, train=nobody, d=d, blocks=2, heads=2, tied=False,
                max_length=longest, dropout=0.0, block="paper", bias=None,
            ).eval()  # fmt: skip

        def read(items: list[int], positions: list[int], segments: list[int]) -> Tensor:
            given = (torch.tensor([each]) for each in (items, positions, segments))
            return model(*given)[0]

        with torch.no_grad():
            places = [3, 4, 5]  # of three items in a window of six
            hidden = read([1, 2, 3], places, [1, 1, 1])
            _shaped("table", model.table, (n_items + 1, model.table.shape[-1]))
            _shaped("hidden states of 3 items", hidden, (3, model.table.shape[-1]))
            _shaped("score", model.score(torch.tensor([[1, 2, 3]])), (1, n_items + 1))
            if not torch.isfinite(hidden).all():
                raise InputError("gives hidden states that are not finite: mend it.")
            two = (torch.tensor([each] * 2) for each in ([1, 2, 3], places, [1, 1, 1]))
            items, *more = two
            items[1] = torch.tensor([7, 8, 9])
            if not _same(model(items, *more)[0], hidden):
                raise InputError(
                    "gives a history other hidden states beside another one: let rows be independent."
                )
            other = read([1, 2, 9], places, [1, 1, 1])
            if not cls.masked and not _same(hidden[:2], other[:2]):
                raise InputError(
                    "sees what is to the right of a place, which is what it has to predict: read from "
                    "left to right, or set masked = True."
                )
            if _same(hidden[2:], other[2:]):
                raise InputError(
                    "does not see the item at a place: its hidden state stays the same."
                )
            if cls.packed:
                row = read([7, 8, 1, 2, 3, 0], [4, 5, *places, 0], [1, 1, 2, 2, 2, 0])
                if not _same(row[2:5], hidden):
                    raise InputError(
                        "lets a history of a packed row run into the next one: heed segments, or leave "
                        "packed at False."
                    )

    def last_hidden(self, items: Tensor) -> Tensor:
        """items (B, T) padded on the right, none empty -> hidden state of the next item (B, d)."""
        last = (items != PAD).sum(1) - 1
        return self(items)[torch.arange(items.shape[0], device=items.device), last]

    def score(self, items: Tensor) -> Tensor:
        """items (B, T) padded on the right -> scores of the next item (B, n_items + 1), logits.

        Column 0 (padding) is −inf.
        """
        scores = self.last_hidden(items) @ self.table.T
        if self.bias is not None:
            scores = scores + self.bias
        scores[:, PAD] = -torch.inf
        return scores


def _shaped(what: str, found: Tensor, wanted: tuple[int, ...]) -> None:
    if found.shape != wanted:
        raise InputError(f"gives {tuple(found.shape)} as {what}: {wanted} is asked for.")


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)


class Encoder(Model):
    """A start for an encoder of one's own: a table of items that reads and scores, and a bias.

    It reads one history a row, so that no state can run from one history into the next; set
    `packed = True` for one that looks at `segments`, which `parts.register` then checks.
    """

    def __init__(self, n_items: int, d: int, max_length: int, bias: float | None = None):
        super().__init__()
        self.n_items, self.max_length = n_items, max_length
        self.item_embedding = nn.Embedding(n_items + 1, d)
        uniform(self.item_embedding)
        self.bias = scalar(bias)

    @property
    def table(self) -> Tensor:
        return self.item_embedding.weight


class Serving(nn.Module):
    """What a server computes: items (B, max_length) -> hidden (B, d) of the next item, and the table."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.last_hidden(items), self.model.table


MODELS = Registry("model", Model)


def uniform(table: nn.Embedding) -> None:
    """Fresh weights, U(±0.05), as the paper's code."""
    if isinstance(table, Shards):
        table.fill(lambda piece: nn.init.uniform_(piece, -0.05, 0.05))
    else:
        nn.init.uniform_(table.weight, -0.05, 0.05)


def scalar(start: float | None) -> nn.Parameter | None:
    """The bias that starts at this value; None for none."""
    return None if start is None else nn.Parameter(torch.tensor(float(start)))


def build(kind: type[Model], **offered: Any) -> Model:
    """A model with fresh weights, given those of the offered arguments that it asks for.

    InputError for one that asks for something else, or cannot be made of these.
    """
    asked = inspect.signature(kind).parameters
    for name, argument in asked.items():
        if name not in offered and argument.default is argument.empty:
            raise InputError(
                f"The model {kind.__name__} asks for {name}, which nobody has: its constructor may "
                f"ask for {', '.join(offered)}."
            )
    try:
        return kind(**{name: value for name, value in offered.items() if name in asked})
    except (AssertionError, ValueError, TypeError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        told = f"({type(error).__name__}: {error}): mend it, or choose other sizes."
        raise InputError(f"The model {kind.__name__} cannot be made {told}") from error


class Dropout(nn.Module):
    """Dropout from random bytes: the probability is rounded to 1/256. x of any shape.

    Eight elements share one 64-bit draw, which on CPU costs a quarter of `F.dropout`. `generator`:
    what it draws from, on the device of x; None: torch's global one.
    """

    def __init__(self, p: float):
        super().__init__()
        self.threshold = round(p * 256)
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return x
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None, generator=self.generator)
        keep = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return _Kept.apply(x, keep, 256 / (256 - self.threshold))


class _Kept(torch.autograd.Function):
    """x · keep · scale, of which one byte an element is held for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return x * keep.to(x.dtype).mul_(scale)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return upstream * keep.to(upstream.dtype).mul_(ctx.scale), None, None
