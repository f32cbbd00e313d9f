"""Recommenders without an encoder: the floor, and matrix factorisation."""

import numpy as np
import torch
from torch import Tensor, nn

from gsas_lab.batches import Pairs
from gsas_lab.models import Model, uniform
from gsas_lab.splits import Histories


class Popularity(Model):
    """Every user gets the most popular items: score = log(1 + training interactions).

    The softmax of these scores is each item's share of all interactions, with one more of each.
    """

    words = "Popularity"
    trained = False
    bias = None
    scores: Tensor

    def __init__(self, train: Histories, n_items: int):
        super().__init__()
        counts = np.bincount(train.items, minlength=n_items + 1)
        self.n_items, self.max_length = n_items, 1
        self.register_buffer("scores", torch.from_numpy(np.log1p(counts).astype(np.float32)))

    @property
    def table(self) -> Tensor:
        """(n_items + 1, 1) the scores, of a hidden state that is 1 for everyone."""
        return self.scores[:, None]

    def forward(self, items: Tensor, *_: Tensor | None) -> Tensor:
        """items (B, T) -> (B, T, 1)."""
        return torch.ones(*items.shape, 1, device=items.device)

    def score(self, items: Tensor) -> Tensor:
        """items (B, T) -> (B, n_items + 1), the same row for everyone; column 0 is −inf."""
        scores = self.scores.to(items.device).repeat(len(items), 1)
        scores[:, 0] = -torch.inf
        return scores


class MF(Model):
    """Matrix factorisation: a user's vector against an item's. With `losses.BPR` it is MF-BPR
    (Rendle et al., 2009); the order of a history plays no part.
    """

    words = "MF"
    by_user = True
    bias = None

    def __init__(self, n_users: int, n_items: int, d: int = 128):
        super().__init__()
        self.n_items, self.max_length = n_items, 1
        self.user_embedding = nn.Embedding(n_users, d)
        self.output_embedding = nn.Embedding(n_items + 1, d)
        for module in (self.user_embedding, self.output_embedding):
            uniform(module)

    @property
    def table(self) -> Tensor:
        """(n_items + 1, d) what the users' vectors are compared with; row 0 is padding."""
        return self.output_embedding.weight

    @classmethod
    def task(cls, masked: float) -> Pairs:
        return Pairs()

    def forward(self, users: Tensor, *_: Tensor | None) -> Tensor:
        """users: rows of the data set (B, T) -> their vectors (B, T, d)."""
        return self.user_embedding(users)

    def last_hidden(self, users: Tensor) -> Tensor:
        """users: rows of the data set (B,) -> their vectors (B, d)."""
        return self.user_embedding(users)
