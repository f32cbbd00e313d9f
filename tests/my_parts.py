"""Parts that are not the library's, as a user writes them; `parts.load` executes this file."""

import torch
import torch.nn.functional as F
from torch import nn

from gsas_lab.losses import Loss
from gsas_lab.models import Encoder
from gsas_lab.parts import register
from gsas_lab.samplers import Sampler


@register("focal")
class Focal(Loss):
    """(1 − p̂)² of the positive's BCE and p̂² of the negatives' (Lin et al., 2017)."""

    def formula(self, positive_scores, negative_scores):
        positive = torch.sigmoid(-positive_scores) ** 2 * F.softplus(-positive_scores)
        negative = torch.sigmoid(negative_scores) ** 2 * F.softplus(negative_scores)
        return ((positive + negative.sum(-1)) / (negative_scores.shape[-1] + 1)).mean()


@register("hard")
class Hard(Sampler):
    """Of 4k uniform draws the k that the model now scores highest."""

    alpha = None

    def draw(self, asked, generator=None):
        size, device = (len(asked.positives), 4 * self.k), asked.positives.device
        pool = torch.randint(1, self.n_items + 1, size, generator=generator, device=device)
        scores = (asked.table[pool] @ asked.hidden.unsqueeze(-1)).squeeze(-1)
        return pool.gather(1, scores.topk(self.k).indices), None


@register("gru")
class GRU4Rec(Encoder):
    """A GRU over the history (Hidasi et al., 2016)."""

    def __init__(self, n_items, d, max_length, dropout, bias):
        super().__init__(n_items, d, max_length, bias)
        self.drop, self.gru = nn.Dropout(dropout), nn.GRU(d, d, batch_first=True)

    def forward(self, items, positions=None, segments=None):
        return self.gru(self.drop(self.item_embedding(items)))[0]
