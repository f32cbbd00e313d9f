"""The losses in their exact closed forms: scores in, one scalar out, the mean over positions.

No clamp, no epsilon, no float64: log σ(s)^β is β·logsigmoid(s), so that every gradient lives from
s = −80 to 80, and is right to rounding for scores of a million. `fused.py` computes the same values without building the scores' inputs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bce(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """Eq. (7): −1/(k+1) · (log σ(s⁺) + Σ log(1 − σ(s⁻))), SASRec's loss.

    positive_scores (...,), negative_scores (..., k) -> scalar.
    """
    return gbce(positive_scores, negative_scores, beta=1.0)


def gbce(positive_scores: Tensor, negative_scores: Tensor, beta: float) -> Tensor:
    """Eq. (8): −1/(k+1) · (log σ^β(s⁺) + Σ log(1 − σ(s⁻))), gSASRec's loss.

    positive_scores (...,), negative_scores (..., k), beta in (0, 1] -> scalar.
    """
    k = negative_scores.shape[-1]
    positive = beta * F.softplus(-positive_scores)
    negative = F.softplus(negative_scores).sum(-1)
    return ((positive + negative) / (k + 1)).mean()


def expected_gbce(
    scores: Tensor, targets: Tensor, k: int, beta: float, collisions: bool = False
) -> Tensor:
    """The mean of Eq. (8) over all draws of its k negatives: Eqs. (12–16), no sampling noise left.

    1/(k+1) · (β·softplus(−s⁺) + α · Σ softplus(sᵢ)), over all items but the positive with
    α = k / (n_items − 1), or with `collisions` over all items with α = k / n_items.
    scores (..., n_items + 1), where column 0 is padding and takes no part; targets (...,) -> scalar.
    """
    positive = scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    every = F.softplus(scores[..., 1:])
    n_items = every.shape[-1]
    if collisions:
        negative = k / n_items * every.sum(-1)
    else:  # left out, not subtracted: a large score would take the small ones' digits along
        others = every.scatter(-1, targets.unsqueeze(-1) - 1, 0.0)
        negative = k / (n_items - 1) * others.sum(-1)
    return ((beta * F.softplus(-positive) + negative) / (k + 1)).mean()


def softmax(scores: Tensor, targets: Tensor) -> Tensor:
    """Eq. (4): −log softmax(s)_target over the whole catalogue.

    scores (..., n_items + 1), where column 0 is padding and takes no part; targets (...,) items
    1…n_items -> scalar.
    """
    return F.cross_entropy(scores[..., 1:].flatten(0, -2), targets.flatten() - 1)


def sampled_softmax(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """Eqs. (5, 6): −log( e^{s⁺} / (e^{s⁺} + Σ e^{s⁻}) ) over the positive and its k negatives.

    positive_scores (...,), negative_scores (..., k) -> scalar.
    """
    together = torch.cat([positive_scores.unsqueeze(-1), negative_scores], dim=-1)
    # Not logsumexp − s⁺: near 10⁶ that sum is right to 0.06 only, and so are its gradients.
    return -together.log_softmax(-1)[..., 0].mean()


def bpr(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """−log σ(s⁺ − s⁻), the mean over negatives: Bayesian personalised ranking (Rendle et al., 2009).

    positive_scores (...,), negative_scores (..., k) -> scalar.
    """
    return F.softplus(negative_scores - positive_scores.unsqueeze(-1)).mean()


def transform_positive(positive_scores: Tensor, beta: float) -> Tensor:
    """γ(s) = log(1 / (σ^{−β}(s) − 1)), Eq. (25): Theorem 5.2, gBCE(s⁺, s⁻) = BCE(γ(s⁺), s⁻).

    Written as −log(expm1(β·softplus(−s))), which overflows for no score; for large x,
    log(expm1(x)) is x + log1p(−e^{−x}), and above s = 40, where x is e^{−s}β, log β − s. Any shape
    -> the same shape.
    """
    x = beta * F.softplus(-positive_scores)  # −log σ^β(s), above 0
    large, sure = x > 1, positive_scores > 40
    safe = torch.where(large, x, torch.ones_like(x))
    small = torch.where(large | sure, torch.ones_like(x), x)
    rest = torch.where(sure, math.log(beta) - positive_scores, torch.log(torch.expm1(small)))
    return -torch.where(large, safe + torch.log1p(-torch.exp(-safe)), rest)
