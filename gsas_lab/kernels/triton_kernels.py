"""The sampled losses of `fused.py` and their gradients, and the step of `rows.RowOptimizer`, on CUDA:
three Triton kernels, no atomics.

What `sampled` computes, each position's scores being of the positive, then of the k negatives:

    gBCE     (β·softplus(−s⁺) + Σ softplus(s⁻)) / (k + 1), Eq. (8)
    softmax  softplus(x), x = log Σ e^{s⁻} − s⁺, which is Eqs. (5, 6): log(1 + Σ e^{s⁻} / e^{s⁺})
    BPR      Σ softplus(s⁻ − s⁺) / k

The first kernel goes once through the rows that a position draws and leaves its loss, its hidden
state's gradient and the slopes ∂loss/∂score. The second sums slope · hidden over the pairs of each
item, which a stable sort has brought together, so that every result is the same bit by bit. The third
sums a row's values in the same way, and moves the row.
"""

from __future__ import annotations  # `tl.constexpr` is then no name to look up without Triton

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gsas_lab.interactions import PAD

try:
    import triton
    from triton import language as tl
except ImportError:  # `available` says so, and nothing calls the kernels
    triton = tl = None

_TILE = 4096  # entries of gathered rows that a program holds at once: 32 a thread
_SHORT = 1 << 15  # tables with fewer rows have 16-bit keys, which sort twice as fast


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


def available(hidden: Tensor) -> bool:
    """Can the kernels run where this tensor lies: is it on CUDA, with Triton installed?"""
    return triton is not None and hidden.is_cuda


def sampled(
    softmax: bool,
    beta: float,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None,
    pairwise: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gBCE with `beta`, or the sampled softmax or BPR (`pairwise`), which have no use for it, and all
    gradients.

    hidden (P, d) and table (n_items + 1, d), float32 or bfloat16; positives (P,) and negatives
    (P, k), int64; bias: a scalar added to every score, or None. A position whose positive is
    padding counts for nothing, whatever its negatives: shapes depend on no data, nothing waits for
    the device, and a CUDA graph can capture the call (after a first one, which compiles).
    -> mean loss (), ∂/∂hidden (P, d), ∂/∂table (n_items + 1, d), ∂/∂bias (), all float32.
    """
    hidden, table = hidden.detach().contiguous(), table.detach().contiguous()
    (n_rows, d), (positions, k) = table.shape, negatives.shape
    kind = torch.int16 if n_rows < _SHORT else torch.int32
    items = torch.cat([positives[:, None].to(kind), negatives.to(kind)], dim=1)  # (P, k + 1)
    items.masked_fill_(positives[:, None] == PAD, n_rows)  # sorted behind every row
    slopes = torch.empty(items.shape, dtype=torch.float32, device=hidden.device)
    totals = slopes.new_empty(2, positions)  # losses, gradients of the bias
    d_hidden = torch.empty_like(hidden, dtype=torch.float32)
    d_table = torch.empty_like(table, dtype=torch.float32)
    block_d = triton.next_power_of_2(d)
    block = max(2, _TILE // block_d)
    with torch.cuda.device_of(hidden):
        _each_position[(positions,)](
            hidden, table, items, bias, slopes, totals, d_hidden, beta, n_rows,
            SOFTMAX=softmax, PAIRWISE=pairwise, K=k, D=d, BLOCK=block, BLOCK_D=block_d, BLOCK_K=1024,
        )  # fmt: skip
        keys, order = items.flatten().sort(stable=True)
        rows = torch.arange(n_rows + 1, dtype=kind, device=hidden.device)
        bounds = torch.searchsorted(keys, rows)  # where each row's pairs begin
        few = triton.next_power_of_2(max(2, order.numel() // n_rows))  # what most rows hold
        _each_item[(n_rows,)](
            hidden, slopes, order, bounds, d_table,
            K=k, D=d, BLOCK=min(block, few), BLOCK_D=block_d,
        )  # fmt: skip
    loss, d_bias = totals.sum(1)
    share = 1 / (positives != PAD).sum().clamp(min=1)
    return loss * share, d_hidden.mul_(share), d_table.mul_(share), d_bias.mul_(share)


def update(tensors: Mapping[str, Tensor | None], betas: tuple[float, float], eps: float) -> None:
    """`native.update` on CUDA, in place, of a table (N, d) in float32.

    tensors: table; mean (N, d) and root (R,), both None for row-wise Adagrad; square (N, d), or (N,);
    rows (R,) int64, each once; begin (R + 1,) and order (M,), int64: row r's values are
    values[order[begin[r] : begin[r + 1]]], of (M, d); keep (R,), what weight decay leaves of a row;
    rate (R,). root: √(1 − β₂ᵗ) after the t-th touch.
    """
    table, rows = tensors["table"], tensors["rows"]
    assert table is not None and rows is not None
    d = table.shape[1]
    block_d = triton.next_power_of_2(d)
    names = "table mean square rows begin order values keep rate root".split()
    with torch.cuda.device_of(table):
        _each_row[(len(rows),)](
            *(tensors[name] for name in names), 1 - betas[0], 1 - betas[1], eps,
            D=d, BLOCK=max(2, _TILE // block_d // 8), BLOCK_D=block_d,
        )  # fmt: skip


@_jit
def _log1p(e: tl.tensor) -> tl.tensor:
    """log(1 + e) of 0 ≤ e ≤ 1 as 2·artanh(z), z = e / (2 + e) ≤ 1/3: the series to z¹⁵."""
    z = e / (2.0 + e)
    s = z * z
    tail = 1 / 9 + s * (1 / 11 + s * (1 / 13 + s * (1 / 15)))
    return 2.0 * z * (1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * tail))))


@_jit
def _softplus_sigmoid(x: tl.tensor) -> tl.tensor:
    """softplus(x) and its slope σ(x): neither overflows, both keep their relative precision."""
    e = tl.exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + _log1p(e), tl.where(x >= 0, 1.0, e) / (1.0 + e)


@_jit
def _each_position(
    hidden: tl.tensor,  # (P, D)
    table: tl.tensor,  # (n_rows, D)
    items: tl.tensor,  # (P, K + 1): the positive, or n_rows for padding, then the negatives
    bias: tl.tensor,
    slopes: tl.tensor,  # (P, K + 1), written where the position is no padding
    totals: tl.tensor,  # (2, P), written: losses, gradients of the bias
    d_hidden: tl.tensor,  # (P, D), written
    beta: tl.tensor,
    n_rows: tl.tensor,
    SOFTMAX: tl.constexpr,
    PAIRWISE: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    position = tl.program_id(0).to(tl.int64)
    items += position * (K + 1)
    slopes += position * (K + 1)
    totals += position
    positive = tl.load(items).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    if positive == n_rows:
        tl.store(totals, 0.0)
        tl.store(totals + tl.num_programs(0), 0.0)
        tl.store(d_hidden + position * D + columns, tl.zeros([BLOCK_D], tl.float32), inside)
        return
    h = tl.load(hidden + position * D + columns, inside, other=0.0).to(tl.float32)
    positive_row = tl.load(table + positive * D + columns, inside, other=0.0).to(tl.float32)
    positive_score = tl.sum(h * positive_row, 0)
    shift = 0.0
    if PAIRWISE:  # a bias moves no difference
        shift = -positive_score
    elif bias is not None:
        shift = tl.load(bias).to(tl.float32)
    width: tl.constexpr = K if PAIRWISE else K + 1

    # Sums stay apart for each line of the tile until the end: no thread waits for another.
    pull = tl.zeros([BLOCK, BLOCK_D], tl.float32)  # Σ weight · row of the negatives
    weights = tl.zeros([BLOCK], tl.float32)
    losses = tl.zeros([BLOCK], tl.float32)
    top = tl.full([BLOCK], -3e38, tl.float32)  # the softmax's weights are e^(score − top)
    for start in range(0, K, BLOCK):
        j = start + tl.arange(0, BLOCK)
        drawn = j < K
        negative = tl.load(items + 1 + j, drawn, other=0).to(tl.int64)
        place = table + negative[:, None] * D + columns[None, :]
        row = tl.load(place, drawn[:, None] & inside[None, :], other=0.0).to(tl.float32)
        score = tl.sum(h[None, :] * row, 1)
        if SOFTMAX:
            tl.store(slopes + 1 + j, score, drawn)
            score = tl.where(drawn, score, -3e38)  # never the highest, so of no weight in the end
            higher = tl.maximum(top, score)
            fade = tl.exp(top - higher)
            weight = tl.exp(score - higher)
            weights = weights * fade + weight
            pull = pull * fade[:, None] + weight[:, None] * row
            top = higher
        else:
            loss, slope = _softplus_sigmoid(score + shift)
            slope = tl.where(drawn, slope / width, 0.0)
            tl.store(slopes + 1 + j, slope, drawn)
            losses += tl.where(drawn, loss, 0.0)
            weights += slope
            pull += slope[:, None] * row

    if SOFTMAX:
        highest = tl.max(top, 0)
        fade = tl.exp(top - highest)
        total = tl.sum(weights * fade, 0)  # from 1 to K
        loss, push = _softplus_sigmoid(highest - positive_score + tl.log(total))
        scale = push / total
        tl.debug_barrier()  # the scores are read by other threads than wrote them
        for start in range(0, K, BLOCK_K):
            j = start + tl.arange(0, BLOCK_K)
            score = tl.load(slopes + 1 + j, j < K, other=-3e38)
            tl.store(slopes + 1 + j, scale * tl.exp(score - highest), j < K)
        d_h = scale * tl.sum(pull * fade[:, None], 0) - push * positive_row
        tl.store(slopes, -push)
        tl.store(totals, loss)
        tl.store(totals + tl.num_programs(0), 0.0)  # a common bias moves no softmax
    elif PAIRWISE:
        push = tl.sum(weights, 0)
        d_h = tl.sum(pull, 0) - push * positive_row
        tl.store(slopes, -push)
        tl.store(totals, tl.sum(losses, 0) / width)
        tl.store(totals + tl.num_programs(0), 0.0)
    else:
        loss, push = _softplus_sigmoid(-positive_score - shift)
        push *= beta / width
        d_h = tl.sum(pull, 0) - push * positive_row
        tl.store(slopes, -push)
        tl.store(totals, (beta * loss + tl.sum(losses, 0)) / width)
        tl.store(totals + tl.num_programs(0), tl.sum(weights, 0) - push)
    tl.store(d_hidden + position * D + columns, d_h, inside)


@_jit
def _each_item(
    hidden: tl.tensor,  # (P, D)
    slopes: tl.tensor,  # (P, K + 1), flat: pair by pair
    order: tl.tensor,  # (P · (K + 1),): the pairs, sorted by item
    bounds: tl.tensor,  # (n_rows + 1,): the row's pairs are order[bounds[row] : bounds[row + 1]]
    d_table: tl.tensor,  # (n_rows, D), written
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(bounds + row + 1)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    gradient = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(tl.load(bounds + row), end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        own = i < end
        pair = tl.load(order + i, own, other=0)
        slope = tl.load(slopes + pair, own, other=0.0)
        place = hidden + (pair // (K + 1))[:, None] * D + columns[None, :]
        h = tl.load(place, own[:, None] & inside[None, :], other=0.0).to(tl.float32)
        gradient += slope[:, None] * h
    tl.store(d_table + row * D + columns, tl.sum(gradient, 0), inside)


@_jit
def _each_row(
    table: tl.tensor,  # (N, D), moved, as are the next two
    mean: tl.tensor,  # (N, D)
    square: tl.tensor,  # (N, D), or (N,) where there is no mean
    rows: tl.tensor,  # (R,)
    begin: tl.tensor,  # (R + 1,)
    order: tl.tensor,
    values: tl.tensor,  # (M, D)
    keep: tl.tensor,  # (R,), as are the next two
    rate: tl.tensor,
    root: tl.tensor,
    mean_rate: tl.tensor,  # 1 − β₁, 1 − β₂: a float32 of β₂ would leave less of it
    square_rate: tl.tensor,
    eps: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place)
    end = tl.load(begin + place + 1)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    parts = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(tl.load(begin + place), end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        own = i < end
        line = values + tl.load(order + i, own, other=0)[:, None] * D + columns[None, :]
        parts += tl.load(line, own[:, None] & inside[None, :], other=0.0)
    gradient = tl.sum(parts, 0)
    cells = row * D + columns
    if mean is None:
        total = tl.load(square + row) + tl.sum(gradient * gradient, 0) / D
        tl.store(square + row, total)
        move = gradient / (tl.sqrt(total) + eps)
    else:
        first = tl.load(mean + cells, inside, other=0.0)
        first += mean_rate * (gradient - first)
        second = tl.load(square + cells, inside, other=0.0)
        second += square_rate * (gradient * gradient - second)
        tl.store(mean + cells, first, inside)
        tl.store(square + cells, second, inside)
        move = first / (tl.sqrt(second) / tl.load(root + place) + eps)
    weight = tl.load(table + cells, inside, other=0.0)
    weight = weight * tl.load(keep + place) - tl.load(rate + place) * move
    tl.store(table + cells, weight, inside)
