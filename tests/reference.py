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


def pooled(values, weights) -> list[float]:
    """Isotonic regression by pooling adjacent violators, block by block."""
    blocks = []  # [mean, weight, how many]
    for value, weight in zip(values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, v, m), (b, w, n) = blocks[-2:]
            blocks[-2:] = [[(a * v + b * w) / (v + w), v + w, m + n]]
    return [mean for mean, _, n in blocks for _ in range(n)]


def corp(prob, hit, score) -> dict[str, float]:
    """Dimitriadis, Gneiting and Jordan (2021), Eq. (4): a score's three parts, pair by pair."""
    said = sorted(set(prob.tolist()))
    done = [hit[prob == value].mean() for value in said]
    count = [(prob == value).sum() for value in said]
    fit = dict(zip(said, pooled(done, count), strict=True))
    own = np.mean([score(p, h) for p, h in zip(prob, hit, strict=True)])
    best = np.mean([score(fit[p], h) for p, h in zip(prob.tolist(), hit, strict=True)])
    mean = np.mean([score(hit.mean(), h) for h in hit])
    return {
        "score": own,
        "miscalibration": own - best,
        "discrimination": mean - best,
        "uncertainty": mean,
    }


def smooth_ece(prob, hit, width: float, on_logits: bool = False, points: int = 4000) -> float:
    """∫ |mean of (hit − p̂) K(t − p̂)| dt of Błasiok and Nakkiran (2023): every pair at every t."""
    if on_logits:
        at = np.log(prob) - np.log1p(-prob)
        step = (at.max() - at.min() + 12 * width) / points
        t = at.min() - 6 * width + step * (np.arange(points) + 0.5)
        images = [at]
    else:
        step = 1 / points
        t, images = step * (np.arange(points) + 0.5), [prob, -prob, 2 - prob]
    total = np.zeros(points)
    for start in range(0, len(prob), 500):
        part = slice(start, start + 500)
        for image in images:
            kernel = np.exp(-(((t[:, None] - image[part]) / width) ** 2) / 2)
            total += kernel @ (hit[part] - prob[part]) / (width * np.sqrt(2 * np.pi))
    return float(np.abs(total).sum() * step / len(prob))
