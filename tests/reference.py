"""The slow, literal reference: float64, gather, einsum, one formula a line. Tests and benchmarks."""

import numpy as np
import torch
from torch import Tensor


def scores(hidden: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """hidden (P, d), table (N, d), items (P, m) -> (P, m), float64, every row gathered."""
    return torch.einsum("pd,pmd->pm", hidden.double(), table.double()[items])


def gbce(positive: Tensor, negative: Tensor, beta: float) -> Tensor:
    """Eq. (8) word for word; logs of σ by the identity log σ(s) = −log(1 + e^−s)."""
    log_sigmoid = -torch.logaddexp(torch.zeros_like(positive.double()), -positive.double())
    log_complement = -torch.logaddexp(torch.zeros_like(negative.double()), negative.double())
    total = beta * log_sigmoid + log_complement.sum(-1)
    return (-total / (negative.shape[-1] + 1)).mean()


def usual_gbce(
    hidden: Tensor, table: Tensor, positives: Tensor, negatives: Tensor, beta: float
) -> Tensor:
    """gBCE as it is usually written: every embedding gathered, einsum, then Eq. (25) in float64.

    hidden (P, d), table (N, d), positives (P,), negatives (P, k). The clamps keep the power and the
    logarithm of Eq. (25) finite. What benchmarks compare with.
    """
    items = torch.cat([positives[:, None], negatives], 1)
    score = torch.einsum("pd,pmd->pm", hidden, torch.nn.functional.embedding(items, table))
    prob = torch.sigmoid(score[:, :1].double()).clamp(1e-10, 1 - 1e-10)
    odds = 1 / (prob**-beta).sub(1).clamp(1e-10, torch.finfo(torch.float64).max)
    every = torch.cat([odds.clamp(1e-10).log(), score[:, 1:].double()], 1)
    truth = torch.zeros_like(every)
    truth[:, 0] = 1
    return torch.nn.functional.binary_cross_entropy_with_logits(every, truth)


def sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    """Eqs. (5, 6)."""
    every = torch.cat([positive[..., None], negative], -1).double()
    return -torch.log_softmax(every, -1)[..., 0].mean()


def softmax(all_scores: Tensor, targets: Tensor) -> Tensor:
    """Eq. (4); column 0 is padding."""
    log_prob = torch.log_softmax(all_scores.double()[:, 1:], -1)
    return -log_prob[torch.arange(len(targets)), targets - 1].mean()


def world_probability(world, history) -> np.ndarray:
    """P(i | history) of a known-truth world, item by item, from its definition."""
    history = [item for item in history if item]
    prob = np.zeros(world.n_items + 1)
    weights = [world.memory**j for j in range(len(history))]  # j items back
    for item in range(1, world.n_items + 1):
        genre = world.genre[item]
        members = world.genre == genre
        mass = world.popularity[members].sum()
        if history:
            taste = sum(
                weight * (world.genre[past] == genre)
                for weight, past in zip(weights, reversed(history), strict=True)
            ) / sum(weights)
            follows = world.sequel[world.genre[history[-1]]] == genre
            rest = 1 - world.explore - world.follow
            mass_now = world.explore * mass + world.follow * follows + rest * taste
        else:
            mass_now = mass
        prob[item] = mass_now * world.popularity[item] / mass
    return prob
