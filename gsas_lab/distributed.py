"""One model, several processes: each takes its share of every batch, as torchrun starts them.

    torchrun --nproc-per-node 2 -m -- gsas_lab train …

The "--" keeps torchrun from taking --d for one of its own options.

Inside `group` the functions below know the processes; outside, and without torchrun, there is one
process and each of them does nothing. A process that fails ends, and torchrun then ends the others;
one that hangs, or is lost with its machine, makes the others fail after TIMEOUT. The same command
goes on after the last whole epoch.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD

TIMEOUT = timedelta(minutes=10)  # that one waits for another; the first validates within it
T = TypeVar("T")


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Meet the processes that torchrun started: NCCL on GPU number LOCAL_RANK, gloo on CPU.

    Once in a process. InputError if a machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.type == "cuda":
        mine, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if mine >= gpus:
            raise InputError(
                f"Process {mine + 1} of this machine finds {gpus} GPUs: start torchrun with "
                f"--nproc-per-node {gpus}, or choose device = 'cpu'."
            )
        torch.cuda.set_device(mine)  # "cuda" is this one from here on
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: the others may never come to it


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """This process's: 0…processes − 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Is this the process that validates, writes and reports?"""
    return number() == 0


def here(device: torch.device) -> float:
    """Which part of all processes share this one's memory: those of its machine, or one a GPU."""
    if device.type == "cuda":
        return 1 / processes()
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes())) / processes()


def share(windows: np.ndarray) -> np.ndarray:
    """This process's windows of a batch's, (b, 2) -> every so many-th of them, perhaps none."""
    return windows[number() :: processes()]


def from_first(compute: Callable[[], T]) -> T:
    """What the first process, and it alone, computes: told to all."""
    told: list[Any] = [compute() if first() else None]
    if processes() > 1:
        dist.broadcast_object_list(told)
    return told[0]


def wrapped(module: nn.Module, own: Iterable[str] = ()) -> nn.Module:
    """The module whose gradients are the mean over all processes: its whole use is its forward.

    own: names of weights that each process keeps to itself, see shards.py.
    """
    if processes() == 1:
        return module
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, own)
    return DistributedDataParallel(module)


def part(value: Tensor, positives: Tensor) -> Tensor:
    """A mean over the real ones of this process's positives -> its part of that over all processes.

    The parts' mean over the processes, which is what `wrapped` takes of the gradients, is the mean
    over all positions: each part is scaled by positions here × processes / positions everywhere.
    """
    if processes() == 1:
        return value
    here = (positives != PAD).sum()
    everywhere = here.clone()
    dist.all_reduce(everywhere)
    return value * (here * processes() / everywhere)


def meet() -> None:
    """Wait until all have come here."""
    if processes() > 1:
        dist.barrier()


def added(values: Tensor) -> Tensor:
    """Element by element, over the processes, in place."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def total(counts: list[int]) -> list[int]:
    """Element by element, over the processes."""
    if processes() == 1:
        return counts
    every: list[Any] = [None] * processes()
    dist.all_gather_object(every, counts)
    return [sum(column) for column in zip(*every, strict=True)]


def mean(values: Tensor) -> Tensor:
    """Element by element, over the processes."""
    if processes() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / processes()
