"""SASRec and BERT4Rec: Transformers over a history, with four kinds of block."""

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD
from gsas_lab.models import Dropout, Model, scalar, uniform

_NEVER = -1e30  # as a logit: e^x is 0, and unlike −∞ it leaves no NaN behind


class Block(nn.Module):
    """One Transformer block; `BLOCKS` has its kinds, which differ in what is normed and added."""

    drops_weights: ClassVar[bool] = True  # of the attention
    widens: ClassVar[int] = 4  # width of the feed-forward, in d
    projects: ClassVar[bool] = True  # the attention's output

    def __init__(self, d: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.drop = heads, Dropout(dropout)
        self.attention_norm, self.forward_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query_key_value = nn.Linear(d, 3 * d)
        self.output = nn.Linear(d, d) if self.projects else nn.Identity()
        self.expand = nn.Linear(d, self.widens * d)
        self.contract = nn.Linear(self.widens * d, d)

    @abstractmethod
    def forward(
        self, x: Tensor, barred: Tensor | None = None, last: Tensor | None = None
    ) -> Tensor:
        """x (B, T, d) -> (B, T, d); with positions last (B,) only what stands there, (B, 1, d).

        barred (B, 1 or T, T): −∞ (a large negative number) where a position must not look, 0 where
        it may; None: what stands to its right.
        """

    def attend(self, query: Tensor, memory: Tensor, barred: Tensor | None) -> Tensor:
        """softmax(QKᵀ/√(d/heads))V over the positions that one may look at: (B, T or 1, d)."""
        d = query.shape[-1]
        if query is memory:
            q, k, v = self.query_key_value(memory).chunk(3, dim=-1)
        else:
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            q = F.linear(query, weight[:d], bias[:d])
            k, v = F.linear(memory, weight[d:], bias[d:]).chunk(2, dim=-1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1) for part in (q, k, v)
        )  # (B · heads, T, d / heads)
        if barred is None and not (self.drops_weights and self.training):
            mixed = F.scaled_dot_product_attention(
                q[:, None], k[:, None], v[:, None], is_causal=True
            )[:, 0]
        else:
            if barred is None:
                barred = mask(query.new_ones(1, query.shape[1]), causal=True)
            barred = barred[:, None].expand(query.shape[0], self.heads, -1, -1).flatten(0, 1)
            logits = torch.baddbmm(barred, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
            weights = logits.softmax(-1)
            mixed = (self.drop(weights) if self.drops_weights else weights) @ v
        return mixed.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)


class PaperBlock(Block):
    """SASRec's as its public code runs it: only the query is normed, the residual adds the normed
    query, there is no output projection, and the feed-forward keeps the width d.
    """

    widens, projects = 1, False

    def forward(
        self, x: Tensor, barred: Tensor | None = None, last: Tensor | None = None
    ) -> Tensor:
        query = self.attention_norm(_at(x, last))
        x = self.forward_norm(query + self.attend(query, x, barred))
        return x + self.drop(self.contract(self.drop(F.relu(self.expand(x)))))


class ModernBlock(Block):
    """Pre-norm, output projection, feed-forward of width 4d, attention weights kept."""

    drops_weights = False

    def forward(
        self, x: Tensor, barred: Tensor | None = None, last: Tensor | None = None
    ) -> Tensor:
        memory = self.attention_norm(x)
        x = _at(x, last)
        query = memory if last is None else self.attention_norm(x)
        x = x + self.drop(self.through(0, query, self.output(self.attend(query, memory, barred))))
        query = self.forward_norm(x)
        return x + self.drop(self.through(1, query, self.contract(F.relu(self.expand(query)))))

    def through(self, branch: int, query: Tensor, found: Tensor) -> Tensor:
        """What is added of what attention (branch 0) or feed-forward (1) found for the normed query:
        both (B, T or 1, d), and so is what comes back.
        """
        return found


class GatedBlock(ModernBlock):
    """ModernBlock with a gate in each branch, found ⊙ σ(query W + b), as LiGR (Borisyuk et al., 2025),
    whose gates read x before its norm.
    """

    def __init__(self, d: int, heads: int, dropout: float):
        super().__init__(d, heads, dropout)
        self.gates = nn.ModuleList(nn.Linear(d, d) for _ in range(2))

    def through(self, branch: int, query: Tensor, found: Tensor) -> Tensor:
        return found * self.gates[branch](query).sigmoid()


class BertBlock(Block):
    """Devlin et al. (2019): norms after the residuals, feed-forward of width 4d with GELU."""

    def forward(
        self, x: Tensor, barred: Tensor | None = None, last: Tensor | None = None
    ) -> Tensor:
        query = _at(x, last)
        mixed = self.attend(query, x, barred)
        x = self.attention_norm(query + self.drop(self.output(mixed)))
        return self.forward_norm(x + self.drop(self.contract(F.gelu(self.expand(x)))))


BLOCKS: dict[str, type[Block]] = {
    "paper": PaperBlock,
    "modern": ModernBlock,
    "gated": GatedBlock,
    "bert": BertBlock,
}


def _at(x: Tensor, last: Tensor | None) -> Tensor:
    """x (B, T, d) -> what stands at the positions last (B,), (B, 1, d); all of it for None."""
    return x if last is None else x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))


class Transformer(Model):
    """What SASRec and BERT4Rec share: embeddings, blocks and the scoring of the catalogue.

    Items (B, T) are padded on the *right*. Positions count back from the last real item (it is
    always number max_length − 1), as in the usual left-padded form. Rows may also be packed with
    several histories each, see `batches.Batch`. Row 0 of the item table, which is no item, stands
    at a masked place.

    tied: the table that scores is the one that reads (modern) or its own (paper).
    bias: start value of one scalar added to all scores, or None for no bias.
    table: what holds a row for each item: nn.Embedding, or shards.Shards.
    """

    packed = True

    def __init__(
        self,
        n_items: int,
        d: int = 128,
        blocks: int = 2,
        heads: int = 1,
        max_length: int = 200,
        dropout: float = 0.5,
        tied: bool = False,
        block: str = "paper",
        bias: float | None = None,
        table: type[nn.Embedding] = nn.Embedding,
    ):
        super().__init__()
        if block not in BLOCKS:
            raise InputError(f"Block '{block}' is unknown: choose one of {', '.join(BLOCKS)}.")
        if d % heads:
            raise InputError(f"d = {d} cannot be shared by heads = {heads}: choose a divisor of d.")
        self.n_items, self.max_length, self.drop = n_items, max_length, Dropout(dropout)
        self.item_embedding = table(n_items + 1, d)
        self.position_embedding = nn.Embedding(max_length, d)
        self.output_embedding = self.item_embedding if tied else table(n_items + 1, d)
        self.blocks = nn.ModuleList(BLOCKS[block](d, heads, dropout) for _ in range(blocks))
        self.norm: nn.Module = nn.LayerNorm(d)
        if block == "bert":  # normed already: BERT's head before the table
            self.norm = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.LayerNorm(d))
        self.bias = scalar(bias)
        for module in [self.item_embedding, self.position_embedding, self.output_embedding]:
            uniform(module)

    @property
    def table(self) -> Tensor:
        """(n_items + 1, d) what the hidden states are compared with; row 0 is padding."""
        return self.output_embedding.weight

    def embed(self, items: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads: item plus position, (B, T, d)."""
        return self.drop(self.item_embedding(items) + self.position_embedding(positions))

    def positions(self, items: Tensor, length: Tensor) -> Tensor:
        """Positions (B, T) of rows that hold `length` (B,) places, padded on the right."""
        positions = torch.arange(items.shape[1], device=items.device) - length[:, None]
        return (positions + self.max_length).clamp(max=self.max_length - 1)  # padding: any will do

    def at_end(self, items: Tensor, length: Tensor) -> Tensor:
        """Hidden state of place `length` − 1 of each row, which sees all before it: (B, d).

        The last block computes this one position only: it takes half of that block's work away.
        """
        x = self.embed(items, self.positions(items, length))
        right = torch.arange(items.shape[1], device=items.device) >= length[:, None]  # (B, T)
        barred = torch.where(right, _NEVER, 0.0)[:, None].to(x.dtype)
        for block in self.blocks[:-1]:
            x = block(x, self.inner(barred))
        return self.norm(self.blocks[-1](x, barred, length - 1)[:, 0])

    @abstractmethod
    def inner(self, barred: Tensor) -> Tensor | None:
        """What the blocks before the last must not see where the end must not see `barred`."""


class SASRec(Transformer):
    """A causal Transformer over the history (Kang & McAuley, 2018): read left to right, predict next.

    A position sees only what stands left of it, so padding on the right cannot leak, and no row is
    ever fully masked, so it cannot become NaN. Arguments: see `Transformer`.
    """

    def forward(
        self, items: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """items (B, T), T ≤ max_length, padded on the right -> hidden (B, T, d).

        Packed rows say the position of each item and the history that it belongs to: (B, T) both.
        """
        if positions is None:
            positions = self.positions(items, (items != PAD).sum(1))
        x = self.embed(items, positions)
        barred = None if segments is None else mask(segments, causal=True)
        for block in self.blocks:
            x = block(x, barred)
        return self.norm(x)

    def inner(self, barred: Tensor) -> None:
        return None

    def last_hidden(self, items: Tensor) -> Tensor:
        return self.at_end(items, (items != PAD).sum(1))


class BERT4Rec(Transformer):
    """A bidirectional Transformer that fills masked places (Sun et al., 2019).

    It is asked for the next item by a masked place after the last one, so that it reads
    max_length − 1 items of a history. Arguments: see `Transformer`.
    """

    words = "BERT4Rec"
    masked = True

    def forward(  # type: ignore[override]
        self, items: Tensor, positions: Tensor, segments: Tensor
    ) -> Tensor:
        """items (B, T), 0 where one is masked, in packed rows, see `batches.Batch` -> (B, T, d)."""
        x, barred = self.embed(items, positions), mask(segments, causal=False)
        for block in self.blocks:
            x = block(x, barred)
        return self.norm(x)

    def inner(self, barred: Tensor) -> Tensor:
        return barred

    def last_hidden(self, items: Tensor) -> Tensor:
        length = (items != PAD).sum(1)
        if items.shape[1] < self.max_length:
            items = F.pad(items, (0, 1))
        else:  # no place is left for the mask: the oldest item makes room
            full = length == items.shape[1]
            items = torch.where(full[:, None], F.pad(items[:, 1:], (0, 1)), items)
            length = length - full.long()
        return self.at_end(items, length + 1)


def mask(segments: Tensor, causal: bool) -> Tensor:
    """segments (B, T) -> (B, T, T), to be added to logits: one's own history, or up to oneself."""
    own, seen = (
        segments[:, :, None] == segments[:, None, :],
        segments.new_zeros((), dtype=torch.float32),
    )
    if causal:
        place = torch.arange(segments.shape[1], device=segments.device)
        seen = torch.where(place[:, None] >= place, 0.0, _NEVER)  # (T, T)
    return torch.where(own, seen, _NEVER)
