"""The floor: recommenders without an encoder."""

import numpy as np
import torch
from torch import Tensor

from gsas_lab.splits import Histories


class Popularity:
    """Every user gets the most popular items: score = number of training interactions."""

    def __init__(self, train: Histories, n_items: int):
        counts = np.bincount(train.items, minlength=n_items + 1).astype(np.float32)
        self.n_items, self.max_length = n_items, 1
        self.counts = torch.from_numpy(counts)

    def score(self, items: Tensor) -> Tensor:
        """items (B, T) -> (B, n_items + 1), the same row for everyone; column 0 is −inf."""
        scores = self.counts.to(items.device).repeat(len(items), 1)
        scores[:, 0] = -torch.inf
        return scores
