"""The same losses, straight from hidden states, without building (P, k, d).

What each function replaces, and equals:

    positive_scores = (hidden * table[positives]).sum(-1) + bias               # (P,)
    negative_scores = (hidden[:, None] * table[negatives]).sum(-1) + bias      # (P, k)
    loss = losses.GBCE(beta).formula(positive_scores, negative_scores)

Positions whose positive is 0 are padding: they take no part, so that batches may have a fixed shape.
Where positions share negatives, `sets` (P,) says which row of negatives (S, k) is each one's own.
The loss is a scalar, so its gradients are computed in the forward pass, by one of three routes:

    native     C++, one pass over each row (native.py); CPU, where a compiler is found
    triton     the same for CUDA, without atomics (triton_kernels.py)
    portable   stock operators: `sampled_addmm` gives the chosen scores; `embedding_bag` with weights
               ∂loss/∂score gives the gradient of the hidden states and, over the pairs sorted by
               item, that of the table

Shared negatives need none of them: on CPU each set is one matrix product. On CUDA, and on the native
route where there are many sets of few, they are repeated.

They agree to 1e-5 of the largest gradient in float32; bf16 inputs are computed in float32.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD
from gsas_lab.kernels import native, triton_kernels

# torch calls its CSR layout beta, and torch 2.11 speaks of its checks although they are declined
# below; what is used of it here is held to the reference by tests.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")

ROUTES = ("auto", "native", "triton", "portable")
_FEW = 256  # negatives of a window, up to which the native route is faster than its products
_PAIRS = 1 << 19  # (position, item) pairs a chunk: a few MB a buffer, kept by the caches
# Loss, its gradients for hidden, table (none where its pairs are left) and bias.
Result = tuple[Tensor, Tensor, Tensor | None, Tensor]
Rule = Callable[[Tensor, Any], tuple[Tensor, Tensor]]  # see `_chosen`


def gbce(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    beta: float,
    bias: Tensor | None = None,
    route: str = "auto",
    sets: Tensor | None = None,
) -> Tensor:
    """`losses.GBCE` of hidden (P, d), table (n_items + 1, d), positives (P,), negatives (P, k).

    bias: a scalar added to every score, or None. route: one of ROUTES. sets: see above.
    -> scalar with gradients for hidden, table, bias. InputError if the route cannot be taken here.
    """
    return _sampled(False, beta, hidden, table, positives, negatives, bias, route, sets)


def sampled_softmax(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None = None,
    route: str = "auto",
    sets: Tensor | None = None,
) -> Tensor:
    """`losses.SampledSoftmax` of hidden (P, d), table (n_items + 1, d), positives, negatives.

    The bias, which is the same for all scores, plays no part.
    """
    loss = _sampled(True, 1.0, hidden, table, positives, negatives, None, route, sets)
    return _unmoved(loss, bias)


def bpr(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None = None,
    sets: Tensor | None = None,
) -> Tensor:
    """`losses.BPR` of hidden (P, d), table (n_items + 1, d), positives (P,), negatives (P, k).

    The bias, which is the same for both scores, plays no part.
    """

    def rule(scores: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        lead = scores[:, 1:] - scores[:, :1]  # of each negative over the positive
        slope = torch.sigmoid(lead) / lead.shape[1]
        return F.softplus(lead).mean(1), torch.cat([-slope.sum(1, keepdim=True), slope], dim=1)

    if choose(hidden, table) == "triton":  # no stock operator, which would ask the host
        drawn = negatives if sets is None else negatives[sets]
        engine = partial(triton_kernels.sampled, False, 1.0, pairwise=True)
        return _unmoved(_loss(engine, hidden, table, positives, None, drawn), bias)
    return _unmoved(_by_rule(rule, hidden, table, positives, negatives, None, sets), bias)


def _unmoved(loss: Tensor, bias: Tensor | None) -> Tensor:
    """A loss of differences of scores, on which a bias has the gradient 0.

    It is not even added: a large one would round the differences away.
    """
    return loss if bias is None else loss + 0 * bias.sum()


def offset(hidden: Tensor, table: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one more column, so that the score of item i grows by offsets[i].

    hidden (P, d), table and offsets (n_items + 1, d) and (n_items + 1,) -> (P, w), (n_items + 1, w),
    where w > d is the next width that the native route has, filled up with zeros, or d + 1 where it
    has none (from d = 256 on, where the portable route takes over).
    """
    d = table.shape[1]
    more = next((width for width in native.WIDTHS if width > d), d + 1) - d
    ones = F.pad(hidden.new_ones(len(hidden), 1), (0, more - 1))
    column = F.pad(offsets.to(table)[:, None], (0, more - 1))
    return torch.cat([hidden, ones], dim=1), torch.cat([table, column], dim=1)


def weighted(
    loss: Any,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    log_weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """`Loss.weighted` of hidden (P, d), table (n_items + 1, d), positives (P,), negatives and
    log_weight (P, k), by autograd of its formula over some positions at a time.
    """

    def rule(scores: Tensor, part: Any) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            scores = scores.requires_grad_()
            losses = torch.func.vmap(loss.weighted)(scores[:, 0], scores[:, 1:], log_weight[part])
            (slope,) = torch.autograd.grad(losses.sum(), scores)
        return losses.detach(), slope

    return _by_rule(rule, hidden, table, positives, negatives, bias)


def expected_gbce(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    k: int,
    beta: float,
    bias: Tensor | None = None,
    collisions: bool = False,
) -> Tensor:
    """`losses.ExpectedGBCE` over the whole catalogue, never (P, n_items) at once.

    hidden (P, d), table (n_items + 1, d), positives (P,), bias: a scalar or None -> scalar.
    """
    n_items = len(table) - 1
    alpha = k / (n_items if collisions else n_items - 1)

    def rule(scores: Tensor, part: slice, target: Tensor) -> tuple[Tensor, Tensor]:
        own = scores.gather(1, target)
        push = 1.0 if collisions else 0.0  # does the positive count as its own negative?
        # Left out, not subtracted: a large score would take the small ones' digits along.
        others = F.softplus(scores).scatter_(1, target, push * F.softplus(own)).sum(1)
        loss = alpha * others + beta * F.softplus(-own)[:, 0]
        slope = scores.sigmoid_().mul_(alpha)
        mine = push * alpha * torch.sigmoid(own) - beta * torch.sigmoid(-own)
        return loss / (k + 1), slope.scatter_(1, target, mine).div_(k + 1)

    return _loss(partial(_whole, rule), hidden, table, positives, bias)


def softmax(hidden: Tensor, table: Tensor, positives: Tensor) -> Tensor:
    """`losses.Softmax` over the whole catalogue, never (P, n_items) at once.

    hidden (P, d), table (n_items + 1, d), positives (P,) -> scalar.
    """

    def rule(scores: Tensor, part: slice, target: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = scores.log_softmax(-1)
        loss = -log_prob.gather(1, target)[:, 0]
        slope = log_prob.exp_()
        slope.scatter_add_(1, target, -torch.ones_like(target, dtype=slope.dtype))
        return loss, slope

    return _loss(partial(_whole, rule), hidden, table, positives, None)


def choose(hidden: Tensor, table: Tensor) -> str:
    """The route that "auto" takes, by what `make bench` and `make bench-gpu` measure.

    On CPU the native route, where it builds and has this d, else the portable one. On CUDA the Triton
    kernels, a choice that no measurement stands behind yet.
    """
    if torch.float64 not in (hidden.dtype, table.dtype):
        if triton_kernels.available(hidden):
            return "triton"
        on_cpu = hidden.device.type == "cpu"
        if on_cpu and table.shape[1] in native.WIDTHS and native.load() is not None:
            return "native"
    return "portable"


def _sampled(
    softmax: bool,
    beta: float,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None,
    route: str,
    sets: Tensor | None,
) -> Tensor:
    if route not in ROUTES:
        raise InputError(f"Route '{route}' is unknown: choose one of {', '.join(ROUTES)}.")
    repeated = hidden.is_cuda or route != "auto"
    if len(negatives) > 8 and negatives.shape[1] <= _FEW:  # a product for each set is slower
        repeated = repeated or choose(hidden, table) == "native"
    if sets is not None and repeated:
        negatives, sets = negatives[sets], None
    if sets is not None:
        return _by_rule(_chosen(softmax, beta), hidden, table, positives, negatives, bias, sets)
    route = choose(hidden, table) if route == "auto" else route
    if route == "triton" and not triton_kernels.available(hidden):
        raise InputError("The Triton route needs CUDA and Triton: choose route='portable'.")
    if route == "native" and hidden.device.type != "cpu":
        raise InputError("The native route needs tensors on CPU: choose route='portable'.")
    if route == "portable":
        return _by_rule(_chosen(softmax, beta), hidden, table, positives, negatives, bias)

    engine: Callable[..., Any] = native.sampled if route == "native" else triton_kernels.sampled
    if route == "native" and (pairs := _unsummed.get()) is not None:
        engine = partial(_leaving, pairs)
    return _loss(partial(engine, softmax, beta), hidden, table, positives, bias, negatives)


@contextmanager
def in_pairs() -> Iterator[list[native.Pairs]]:
    """Within it the native route leaves the table's gradient as Pairs in the list that it gives, and
    autograd gets none. They are of the loss itself: whoever multiplies it must multiply them, too.
    """
    left: list[native.Pairs] = []
    token = _unsummed.set(left)
    try:
        yield left
    finally:
        _unsummed.reset(token)


_unsummed: ContextVar[list[native.Pairs] | None] = ContextVar("unsummed", default=None)


def _leaving(left: list[native.Pairs], softmax: bool, beta: float, *given: Any) -> Result:
    loss, d_hidden, pairs, d_bias = native.sampled(softmax, beta, *given, summed=False)
    assert isinstance(pairs, native.Pairs)
    left.append(pairs)
    return loss, d_hidden, None, d_bias


def _by_rule(
    rule: Rule,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None,
    sets: Tensor | None = None,
) -> Tensor:
    """A rule of the chosen scores, see `_chosen`, by stock operators."""
    if sets is None:
        return _loss(partial(_stock, rule), hidden, table, positives, bias, negatives)
    if hidden.is_cuda:
        return _loss(partial(_stock, rule), hidden, table, positives, bias, negatives[sets])
    return _loss(partial(_in_sets, rule), hidden, table, positives, bias, negatives, sets)


def _chosen(softmax: bool, beta: float) -> Rule:
    """Scores (c, k + 1), the positive first, and which positions they are -> losses (c,), slopes
    ∂loss/∂score (c, k + 1).
    """

    def gbce(scores: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        width = scores.shape[1]
        loss = beta * F.softplus(-scores[:, 0]) + F.softplus(scores[:, 1:]).sum(1)
        slope = torch.sigmoid(scores)
        slope[:, 0] = -beta * torch.sigmoid(-scores[:, 0])
        return loss / width, slope / width

    def sampled_softmax(scores: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        # log Σ e^s of scores near 10⁶ is right to 0.06 only: it is never formed.
        top, own = scores.amax(1), scores[:, 0]
        slope = torch.exp(scores - top[:, None])
        others = slope[:, 1:].sum(1)
        whole = slope[:, 0] + others
        loss = top - own + whole.log()
        slope[:, 0] = -others  # p − 1 without cancellation
        return loss, slope.div_(whole[:, None])

    return sampled_softmax if softmax else gbce


def _whole(
    rule: Callable[[Tensor, slice, Tensor], tuple[Tensor, Tensor]],
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    bias: Tensor | None,
) -> Result:
    """rule: scores (c, n_items) of some positions, which, columns of their positives (c, 1)."""
    items = table[1:]  # padding takes no part
    loss, d_bias = hidden.new_zeros(()), hidden.new_zeros(())
    d_hidden, d_table = torch.empty_like(hidden), torch.zeros_like(table)
    share = _share(positives, hidden.dtype)
    for part in _parts(len(hidden), 8 * _PAIRS // len(items)):
        h = hidden[part]
        scores = h @ items.T
        if bias is not None:
            scores += bias
        losses, slope = rule(scores, part, (positives[part, None] - 1).clamp(min=0))
        loss += losses @ share[part]
        slope *= share[part, None]
        d_bias += slope.sum()
        d_hidden[part] = slope @ items
        d_table[1:].addmm_(slope.T, h)
    return loss, d_hidden, d_table, d_bias


def _stock(
    rule: Rule,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None,
) -> Result:
    items = torch.cat([positives[:, None], negatives], dim=1)  # (P, k + 1)
    width = items.shape[1]
    loss, d_bias = hidden.new_zeros(()), hidden.new_zeros(())
    d_hidden, d_table = torch.empty_like(hidden), torch.zeros_like(table)
    share = _share(positives, hidden.dtype)
    for part in _parts(len(hidden), _PAIRS // width):
        h, chosen = hidden[part], items[part].flatten()  # (c, d), (c · (k + 1),)
        starts = torch.arange(0, len(chosen) + 1, width, device=chosen.device)
        pattern = torch.sparse_csr_tensor(
            starts,
            chosen,
            h.new_zeros(len(chosen)),
            (len(h), len(table)),
            check_invariants=False,  # columns may repeat and need no order
        )
        scores = torch.sparse.sampled_addmm(pattern, h, table.T, beta=0.0).values()
        scores = scores.view(len(h), width)
        if bias is not None:
            scores = scores + bias
        losses, slope = rule(scores, part)
        loss += losses @ share[part]
        slope *= share[part, None]
        d_bias += slope.sum()
        d_hidden[part] = _bags(chosen, table, starts[:-1], slope)
        _add_by_item(d_table, chosen, h, slope)
    return loss, d_hidden, d_table, d_bias


def _in_sets(
    rule: Rule,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    sets: Tensor,
    bias: Tensor | None,
) -> Result:
    """Negatives (S, k), of which positions with the same entry in sets (P,) share a row."""
    loss, d_bias = hidden.new_zeros(()), hidden.new_zeros(())
    d_hidden, d_table = torch.zeros_like(hidden), torch.zeros_like(table)
    share = _share(positives, hidden.dtype)
    real = (positives != PAD).nonzero()[:, 0]
    order = real[sets[real].argsort(stable=True)]
    names, counts = torch.unique_consecutive(sets[order], return_counts=True)
    for name, rows in zip(names.tolist(), order.split(counts.tolist()), strict=True):
        drawn = negatives[name]  # (k,)
        items, d_items = table[drawn], hidden.new_zeros(len(drawn), table.shape[1])
        for part in _parts(len(rows), 8 * _PAIRS // len(drawn)):
            here = rows[part]
            h, own = hidden[here], table[positives[here]]  # (c, d) both
            scores = torch.cat([(h * own).sum(1, keepdim=True), h @ items.T], dim=1)
            if bias is not None:
                scores += bias
            losses, slope = rule(scores, here)
            loss += losses @ share[here]
            slope = slope * share[here, None]
            d_bias += slope.sum()
            d_hidden[here] = torch.addmm(slope[:, :1] * own, slope[:, 1:], items)
            d_items.addmm_(slope[:, 1:].T, h)
            d_table.index_add_(0, positives[here], slope[:, :1] * h)
        d_table.index_add_(0, drawn, d_items)
    return loss, d_hidden, d_table, d_bias


def _parts(n: int, rows: int) -> list[slice]:
    rows = max(1, rows)
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _share(positives: Tensor, dtype: torch.dtype) -> Tensor:
    """(P,) each position's weight in the mean: padding has none."""
    real = (positives != PAD).to(dtype)
    return real / real.sum().clamp(min=1)


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


def _loss(
    engine: Callable[..., Result],
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    bias: Tensor | None,
    *negatives: Tensor,
) -> Tensor:
    """The engine's loss, with its gradients attached."""
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, table.dtype), torch.float32)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        loss, *gradients = engine(
            hidden.detach().to(dtype), table.detach().to(dtype), positives, *negatives, bias
        )
    pairs = zip((hidden, table, bias), gradients, strict=True)
    inputs = {x: g.view_as(x) for x, g in pairs if x is not None and g is not None}
    return _WithGradients.apply(loss, [*inputs.values()], *inputs)


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known already. They are handed over once, not copied."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = [g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("A fused loss can go backward once: compute it again.")
        if upstream.is_cuda or upstream != 1:  # asking a GPU would cost more than multiplying
            gradients = [gradient.mul_(upstream) for gradient in gradients]
        return None, None, *gradients
