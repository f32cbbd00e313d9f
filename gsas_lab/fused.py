"""The same losses, straight from hidden states, without ever building (P, k, d).

What each function replaces, and equals:

    positive_scores = (hidden * table[positives]).sum(-1) + bias               # (P,)
    negative_scores = (hidden[:, None] * table[negatives]).sum(-1) + bias      # (P, k)
    loss = losses.gbce(positive_scores, negative_scores, beta)

The loss is a scalar, so its gradients are computed in the forward pass, chunk by chunk, with stock
operators that run on CPU and CUDA: `sampled_addmm` gives the chosen scores, `embedding_bag` with
weights ∂loss/∂score gives the gradient of the hidden states and, over the pairs sorted by item,
that of the table.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# torch calls its CSR layout beta; what is used of it here is held to the reference by tests.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

_PAIRS = 1 << 19  # (position, item) pairs a chunk: a few MB a buffer, kept by the caches


def bce(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """`losses.bce` of hidden (P, d), table (n_items + 1, d), positives (P,), negatives (P, k)."""
    return gbce(hidden, table, positives, negatives, 1.0, bias)


def gbce(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    beta: float,
    bias: Tensor | None = None,
) -> Tensor:
    """`losses.gbce` of hidden (P, d), table (n_items + 1, d), positives (P,), negatives (P, k).

    bias: a scalar added to every score, or None. -> scalar with gradients for hidden, table, bias.
    """
    k = negatives.shape[1]

    def rule(scores: Tensor) -> tuple[Tensor, Tensor]:  # (c, k + 1), the positive first
        loss = beta * F.softplus(-scores[:, 0]).sum() + F.softplus(scores[:, 1:]).sum()
        slope = torch.sigmoid(scores)
        slope[:, 0] = -beta * torch.sigmoid(-scores[:, 0])
        return loss / (k + 1), slope / (k + 1)

    return _sampled(rule, hidden, table, positives, negatives, bias)


def sampled_softmax(
    hidden: Tensor, table: Tensor, positives: Tensor, negatives: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`losses.sampled_softmax` of hidden (P, d), table (n_items + 1, d), positives, negatives."""

    def rule(scores: Tensor) -> tuple[Tensor, Tensor]:
        total = scores.logsumexp(-1, keepdim=True)
        slope = torch.exp(scores - total)
        slope[:, 0] = torch.expm1(scores[:, 0] - total[:, 0])
        return (total[:, 0] - scores[:, 0]).sum(), slope

    return _sampled(rule, hidden, table, positives, negatives, bias)


def expected_gbce(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    k: int,
    beta: float,
    bias: Tensor | None = None,
    collisions: bool = False,
) -> Tensor:
    """`losses.expected_gbce` over the whole catalogue, never (P, n_items) at once.

    hidden (P, d), table (n_items + 1, d), positives (P,), bias: a scalar or None -> scalar.
    """
    n_items = len(table) - 1
    alpha = k / (n_items if collisions else n_items - 1)

    def rule(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        own = scores.gather(1, target)
        push = 1.0 if collisions else 0.0  # does the positive count as its own negative?
        loss = alpha * (F.softplus(scores).sum() - (1 - push) * F.softplus(own).sum())
        loss += beta * F.softplus(-own).sum()
        slope = scores.sigmoid_().mul_(alpha)
        mine = push * alpha * torch.sigmoid(own) - beta * torch.sigmoid(-own)
        return loss / (k + 1), slope.scatter_(1, target, mine).div_(k + 1)

    return _whole(rule, hidden, table, positives, bias)


def softmax(hidden: Tensor, table: Tensor, positives: Tensor) -> Tensor:
    """`losses.softmax` over the whole catalogue, never (P, n_items) at once.

    hidden (P, d), table (n_items + 1, d), positives (P,) -> scalar.
    """

    def rule(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = scores.log_softmax(-1)
        loss = -log_prob.gather(1, target).sum()
        slope = log_prob.exp_()
        slope.scatter_add_(1, target, -torch.ones_like(target, dtype=slope.dtype))
        return loss, slope

    return _whole(rule, hidden, table, positives, None)


def _whole(
    rule: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """rule: scores (c, n_items), columns of the positives (c, 1) -> (summed loss, slopes)."""
    with torch.no_grad():
        items = table[1:]  # padding takes no part
        loss, d_bias = hidden.new_zeros(()), hidden.new_zeros(())
        d_hidden = torch.empty_like(hidden)
        d_table = torch.zeros_like(table)
        rows = max(1, 8 * _PAIRS // len(items))
        for part in torch.arange(len(hidden), device=hidden.device).split(rows):
            h = hidden[part]
            scores = h @ items.T  # (c, n_items)
            if bias is not None:
                scores += bias
            part_loss, slope = rule(scores, positives[part, None] - 1)
            loss += part_loss
            d_bias += slope.sum()
            d_hidden[part] = slope @ items
            d_table[1:] += slope.T @ h
    return _with_gradients(loss, (d_hidden, d_table), d_bias, hidden, table, bias)


def _with_gradients(
    loss: Tensor,
    gradients: tuple[Tensor, Tensor],
    d_bias: Tensor,
    hidden: Tensor,
    table: Tensor,
    bias: Tensor | None,
) -> Tensor:
    inputs: tuple[Tensor, ...] = (hidden, table)
    if bias is not None:
        return _WithGradients.apply(
            len(hidden), loss, (*gradients, d_bias.view_as(bias)), *inputs, bias
        )
    return _WithGradients.apply(len(hidden), loss, gradients, *inputs)


Rule = Callable[[Tensor], tuple[Tensor, Tensor]]


def _sampled(
    rule: Rule,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """rule: scores (c, k + 1) -> (summed loss, its slopes ∂loss/∂scores (c, k + 1))."""
    with torch.no_grad():
        items = torch.cat([positives[:, None], negatives], dim=1)  # (P, k + 1)
        width = items.shape[1]
        columns = table.detach().T
        loss, d_bias = hidden.new_zeros(()), hidden.new_zeros(())
        d_hidden = torch.empty_like(hidden)
        d_table = torch.zeros_like(table)
        for part in torch.arange(len(hidden), device=hidden.device).split(max(1, _PAIRS // width)):
            h, chosen = hidden[part], items[part].flatten()  # (c, d), (c · (k + 1),)
            starts = torch.arange(0, len(chosen) + 1, width, device=chosen.device)
            pattern = torch.sparse_csr_tensor(
                starts,
                chosen,
                h.new_zeros(len(chosen)),
                (len(h), len(table)),
                check_invariants=False,  # columns may repeat and need no order
            )
            scores = torch.sparse.sampled_addmm(pattern, h, columns, beta=0.0).values()
            scores = scores.view(len(h), width)
            if bias is not None:
                scores = scores + bias
            part_loss, slope = rule(scores)
            loss += part_loss
            d_bias += slope.sum()
            d_hidden[part] = _bags(chosen, table, starts[:-1], slope)
            _add_by_item(d_table, chosen, h, slope)
    return _with_gradients(loss, (d_hidden, d_table), d_bias, hidden, table, bias)


def _bags(rows: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of table rows, one for each bag: Σ weights · table[rows] from each start on."""
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights.flatten())


def _add_by_item(d_table: Tensor, chosen: Tensor, hidden: Tensor, slope: Tensor) -> None:
    """∂loss/∂table: the pairs sorted by item, then one bag of hidden states for each item.

    In a table with more rows than there are pairs, only those rows that were chosen are touched.
    """
    n = len(d_table)
    key = chosen.short() if n <= 1 << 15 else chosen.int()  # short keys sort twice as fast
    order = key.argsort(stable=True)
    position = order.div(slope.shape[1], rounding_mode="floor")
    weights = slope.flatten()[order]
    if n <= len(chosen):
        count = torch.bincount(chosen, minlength=n)
        d_table += _bags(position, hidden, count.cumsum(0) - count, weights)
    else:
        rows, count = torch.unique_consecutive(chosen[order], return_counts=True)
        d_table.index_add_(0, rows, _bags(position, hidden, count.cumsum(0) - count, weights))


class _WithGradients(torch.autograd.Function):
    """The mean of a summed loss whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, positions: int, loss: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.gradients, ctx.positions = gradients, positions
        return loss / positions

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream / ctx.positions
        return None, None, None, *(gradient * scale for gradient in ctx.gradients)
