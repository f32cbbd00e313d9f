"""Tables spread by rows over the processes of a run, so that none has to hold a whole one.

With P processes row r is row r // P of process r % P, and so is what the optimiser keeps of it. A step
asks the owners for the distinct rows that this process's part of the batch reads, and sends their
gradients back; each owner adds up what comes, and its optimiser (rows.py) moves its own rows alone.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gsas_lab import distributed, files

PIECE = 1 << 16  # rows of a whole table that are in memory at once, where all are passed by


class Shards(nn.Embedding):
    """An nn.Embedding (rows, d) of which `weight` has this process's rows alone: every P-th.

    All processes call it together, each with ids of its own, and each gets the vectors of these.
    """

    def __init__(self, rows: int, d: int):
        held = len(range(distributed.number(), rows, distributed.processes()))
        super().__init__(held, d, device="meta")
        self.weight = nn.Parameter(torch.empty(held, d))
        self.num_embeddings = rows
        self.fill(nn.init.normal_)  # what is drawn after it is then as after a whole table

    def forward(self, items: Tensor) -> Tensor:
        """items, any shape -> (…, d)."""
        rows, place = torch.unique(items, return_inverse=True)
        return F.embedding(place, _Fetched.apply(self.weight, rows))

    @torch.no_grad()
    def fill(self, draw: Callable[[Tensor], object]) -> None:
        """Fresh weights: those that draw(whole table), normal_ or uniform_, would have left here."""
        number, processes, rows = distributed.number(), distributed.processes(), self.num_embeddings
        cuts = [*range(0, rows - PIECE + 1, PIECE), rows] if rows > PIECE else [0, rows]
        for start, end in zip(cuts, cuts[1:], strict=False):
            # Whole sixteens but for the last, which is no shorter: normal_ then draws as in one piece.
            piece = torch.empty(end - start, self.embedding_dim)
            draw(piece)
            own = piece[(number - start) % processes :: processes]
            place = -(-(start - number) // processes)
            self.weight[place : place + len(own)] = own

    @torch.no_grad()
    def pieces(self) -> Iterator[Tensor]:
        """The whole table, some rows at a time and in their order, for the first process; the others
        go through it at the same time and get pieces of their own.
        """
        processes, rows = distributed.processes(), self.num_embeddings
        most, step = -(-rows // processes), max(1, PIECE // processes)
        for start in range(0, most, step):
            own = self.weight[start : start + step]
            own = F.pad(own, (0, 0, 0, min(step, most - start) - len(own))).contiguous()
            every = (
                [torch.empty_like(own) for _ in range(processes)] if distributed.first() else None
            )
            dist.gather(own, every)
            if every is not None:
                own = torch.stack(every, 1).flatten(0, 1)[: rows - start * processes]
            yield own.cpu()


class _Fetched(torch.autograd.Function):
    """Distinct rows (R,) of a table from the processes that hold them: (R, d).

    The gradient of `weight` is that of the rows held here, of the mean over the processes, sparse; a
    row comes as often as processes asked for it.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        processes = distributed.processes()
        owner = rows % processes
        order = torch.argsort(owner, stable=True)
        asked = torch.bincount(owner, minlength=processes)  # of each process
        wanted = torch.empty_like(asked)  # by each process, of this one
        dist.all_to_all_single(wanted, asked)
        here, there = wanted.tolist(), asked.tolist()
        places = _exchanged(rows[order] // processes, here, there)
        values = _exchanged(weight[places], there, here)
        ctx.kept = order, places, here, there, weight.shape
        return torch.empty_like(values).index_copy_(0, order, values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        order, places, here, there, shape = ctx.kept
        values = _exchanged(upstream[order] / distributed.processes(), here, there)
        named = places[None]
        return torch.sparse_coo_tensor(named, values, shape, check_invariants=False), None


def _exchanged(values: Tensor, received: list[int], sent: list[int]) -> Tensor:
    """values (Σ sent, …), in the order of the processes that they go to -> (Σ received, …)."""
    found = values.new_empty(sum(received), *values.shape[1:])
    dist.all_to_all_single(found, values, received, sent)
    return found


def over(model: nn.Module) -> int:
    """How many processes a model's tables are spread over; 1: each has them whole."""
    spread = any(isinstance(module, Shards) for module in model.modules())
    return distributed.processes() if spread else 1


def names(module: nn.Module) -> list[str]:
    """Of the weights in a module that are spread."""
    return [f"{name}.weight" for name, each in module.named_modules() if isinstance(each, Shards)]


def save(model: nn.Module, path: Path) -> str:
    """The whole model as one file, by the first process, to which its checksum is told; all call it
    together, and none holds a whole table.
    """
    tables = {id(module.weight): module for module in model.modules() if isinstance(module, Shards)}
    parts: dict[str, tuple[tuple[int, ...], Iterator[Tensor]]] = {}
    for name, weight in model.named_parameters():
        table = tables.get(id(weight))
        if table is None:
            parts[name] = tuple(weight.shape), iter([weight.detach().cpu()])
        else:
            parts[name] = (table.num_embeddings, table.embedding_dim), table.pieces()
    if distributed.first():
        return files.write_weights(path, parts)
    for _, pieces in parts.values():
        for _ in pieces:
            pass
    return ""
