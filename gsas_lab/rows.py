"""Rows, not tables: embedding tables of which a step touches few rows, and their optimisers.

A catalogue of a million items has a table of 650 MB (d = 128). A dense gradient is as large, and a
dense optimiser reads and writes four such tables a step, whatever the batch holds. Here the gradient
of a table is (rows, values), input and output side together (torch's sparse COO layout), and

    lazy_adam   each row runs AdamW on its own clock, which ticks when the row is touched
    adagrad     row-wise Adagrad, one number a row: G += mean(g²), w −= lr·g / (√G + ε), as in FBGEMM

move those rows alone. Weight decay is decoupled and misses no step: a row that slept is multiplied by
∏ (1 − lr·weight_decay) over all the steps since it was last touched. In C++ where the native route
builds (kernels/native.cpp), by a Triton kernel on CUDA, else by stock operators.

Where each position has negatives of its own, a step touches half of a million rows. The native route
then leaves the gradient of the table that scores as `native.Pairs`, and a row's is summed while the row
is moved: values for half a table are never written.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsas_lab.errors import InputError
from gsas_lab.kernels import native, triton_kernels

KINDS = ("auto", "dense", "lazy_adam", "adagrad")
BETAS, EPS = (0.9, 0.999), 1e-8  # AdamW's in torch; Adagrad's ε is the same
FROM_ITEMS = 100_000  # where lazy Adam is faster than dense AdamW: benchmarks/results.csv, "table:"


def choose(kind: str, n_items: int, whole: bool, device: torch.device) -> str:
    """What "auto" comes to: dense where the catalogue is small, the loss reads the whole of it, or
    the device is a GPU, whose captured steps can ask the host nothing; else lazy_adam.
    """
    if kind != "auto":
        return kind
    few = n_items >= FROM_ITEMS and not whole and device.type == "cpu"
    return "lazy_adam" if few else "dense"


def tables(model: nn.Module) -> list[nn.Embedding]:
    """The modules that hold a row for each item, padding's row first: `item_embedding`, which reads,
    and the one that scores; a tied one once. Not positions or users, which may be as many.
    """
    every = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    return [m for name, m in every if name == "item_embedding" or m.weight is model.table]


def only(table: nn.Embedding, positives: Tensor, negatives: Tensor) -> tuple[Tensor, ...]:
    """The rows of a table that a loss reads: row 0 and those of its positives and negatives.

    table (n_items + 1, d) -> rows (R,) ascending, from 0; table(rows) (R, d), whose gradient reaches
    a sparse table as (rows, values); positives and negatives, any shape, as places in it.
    """
    asked = torch.cat([positives.new_zeros(1), positives.flatten(), negatives.flatten()])
    if len(asked) < table.num_embeddings // 8:
        rows, place = torch.unique(asked, return_inverse=True)
    else:  # a table of marks is cheaper than a sort
        marked = torch.zeros(table.num_embeddings, dtype=torch.bool, device=asked.device)
        marked[asked] = True
        rows = marked.nonzero()[:, 0]
        place = (marked.cumsum(0) - 1)[asked]
    _, positive, negative = place.split([1, positives.numel(), negatives.numel()])
    return rows, table(rows), positive.view_as(positives), negative.view_as(negatives)


class RowOptimizer:
    """lazy_adam or adagrad, see above, of tables whose gradients are sparse; a dense one, as of a
    loss over the whole catalogue, touches every row.

    Memory beyond a table (N, d) of float32: lazy_adam 8·N·d + 4·N bytes, adagrad 4·N; with weight
    decay 8·N more.
    """

    def __init__(self, kind: str, weights: Iterable[Tensor], lr: float, weight_decay: float):
        if lr * weight_decay >= 1:
            raise InputError(
                f"lr · weight_decay = {lr * weight_decay:g} leaves nothing of a row: lower one of them."
            )
        self.weights, self.weight_decay = list(weights), weight_decay
        self.decayed = 0.0  # Σ log(1 − lr·weight_decay) over the steps taken
        self.state: list[dict[str, Tensor]] = []
        for weight in self.weights:
            n, device = len(weight), weight.device
            if kind == "lazy_adam":
                state = {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
                state["ticks"] = torch.zeros(n, dtype=torch.int32, device=device)
            else:
                state = {"square": torch.zeros(n, device=device)}
            if weight_decay:  # `decayed` when the row was touched last
                state["decayed"] = torch.zeros(n, dtype=torch.float64, device=device)
            self.state.append(state)

    def state_dict(self) -> dict[str, Any]:
        return {"decayed": self.decayed, "state": self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.decayed = saved["decayed"]
        for mine, theirs in zip(self.state, saved["state"], strict=True):
            for name, values in mine.items():
                values.copy_(theirs[name])

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, lr: float, unsummed: Mapping[Tensor, native.Pairs] | None = None) -> None:
        """One step of all rows that the gradients name; lr: learning rate of this step.
        unsummed: by weight, what the native route has not summed of its gradient.
        """
        self.decayed += math.log1p(-lr * self.weight_decay)
        for weight, state in zip(self.weights, self.state, strict=True):
            pairs = (unsummed or {}).get(weight)
            if weight.grad is not None or pairs is not None:
                self._step(weight, pairs, state, lr)

    def _step(
        self, weight: Tensor, pairs: native.Pairs | None, state: dict[str, Tensor], lr: float
    ) -> None:
        gradient = weight.grad
        if gradient is None:
            named, values = torch.empty(0, dtype=torch.long), weight.new_empty(0, weight.shape[1])
        elif gradient.is_sparse:
            named, values = gradient._indices()[0], gradient._values()  # rows may come again
        else:
            named, values = torch.arange(len(weight), device=weight.device), gradient
        sorted_rows, order = named.sort(stable=True)
        rows, counts = torch.unique_consecutive(sorted_rows, return_counts=True)
        if pairs is not None:  # rows that have none may have values, and the other way round
            touched = pairs.begin[1:] > pairs.begin[:-1]
            touched[rows] = True
            both = touched.nonzero()[:, 0]
            counts = torch.zeros_like(both).index_add_(0, torch.searchsorted(both, rows), counts)
            rows = both
        keep = self._left(state, rows)
        rate, root = torch.full_like(keep, lr), None
        if "mean" in state:
            ticks = state["ticks"][rows] + 1
            state["ticks"][rows] = ticks
            ticks = ticks.double()
            rate = (lr / (1 - BETAS[0] ** ticks)).float()
            root = (1 - BETAS[1] ** ticks).sqrt().float()
        by_triton = triton_kernels.available(weight)
        if weight.dtype == torch.float32 and (by_triton or (not weight.is_cuda and native.load())):
            begin = F.pad(counts.cumsum(0), (1, 0))
            mean, values = state.get("mean"), values.contiguous()
            given = dict(table=weight, mean=mean, square=state["square"], rows=rows, begin=begin)
            given |= dict(order=order, values=values, keep=keep, rate=rate, root=root)
            if pairs is not None:
                given |= dict(pair_begin=pairs.begin, pairs=pairs.pairs, hidden=pairs.hidden)
            (triton_kernels if by_triton else native).update(given, BETAS, EPS)
            return
        place = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
        summed = values.new_zeros(len(rows), values.shape[1]).index_add_(0, place, values[order])
        if root is None:
            total = state["square"][rows] + summed.square().mean(1)
            state["square"][rows] = total
            move = summed / (total.sqrt() + EPS)[:, None]
        else:
            mean = state["mean"][rows].lerp_(summed, 1 - BETAS[0])
            square = (
                state["square"][rows].mul_(BETAS[1]).addcmul_(summed, summed, value=1 - BETAS[1])
            )
            state["mean"][rows], state["square"][rows] = mean, square
            move = mean / (square.sqrt() / root[:, None] + EPS)
        weight[rows] = weight[rows] * keep[:, None] - rate[:, None] * move

    def _left(self, state: dict[str, Tensor], rows: Tensor) -> Tensor:
        """(R,) float32: what weight decay leaves of these rows since they were touched last."""
        if not self.weight_decay:
            return torch.ones(len(rows), device=rows.device)
        slept = self.decayed - state["decayed"][rows]
        state["decayed"][rows] = self.decayed
        return slept.exp().float()

    @torch.no_grad()
    def wake(self) -> None:
        """Let weight decay reach the rows that sleep: before the weights are judged or saved."""
        if self.weight_decay:
            for weight, state in zip(self.weights, self.state, strict=True):
                every = torch.arange(len(weight), device=weight.device)
                weight.mul_(self._left(state, every)[:, None])


def check_memory(
    n_items: int,
    d: int,
    count: int,
    kind: str,
    device: torch.device,
    room: float | None = None,
    share: float = 1.0,
) -> None:
    """InputError, before anything is allocated, where `count` tables of n_items + 1 rows and what the
    optimiser keeps of them do not fit. room: bytes that are free; None: as the machine says. share:
    how much of them its processes hold together.
    """
    room = _free(device) if room is None else room
    copies = {"dense": 4, "lazy_adam": 3, "adagrad": 1}[kind]  # weights, gradient, two moments
    needs = 4 * (n_items + 1) * d * count * copies * share
    if room is None or needs <= room:
        return
    advice = {1: "", 2: ", or tied = True"}[min(count, 2)]
    advice += ", or more machines" if share < 1 else ""
    advice += "" if kind == "adagrad" else ", or table_optimizer = 'adagrad', which keeps one copy"
    raise InputError(
        f"{count * copies} tables of {n_items + 1:,} rows × d = {d} need {needs / 1e9:,.1f} GB, and "
        f"{room / 1e9:,.1f} GB are free: choose a smaller d{advice}."
    )


def check_weights(count: int, device: torch.device, room: float | None = None) -> None:
    """The same for all of a model's weights, which are held at least once with a gradient."""
    room = _free(device) if room is None else room
    if room is not None and 8 * count > room:
        raise InputError(
            f"The model's {count:,} weights and their gradients need {8 * count / 1e9:,.1f} GB, and "
            f"{room / 1e9:,.1f} GB are free: lower d, max_length or blocks."
        )


def _free(device: torch.device) -> float | None:
    """Bytes that are free on the device; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return 1024.0 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        return None
