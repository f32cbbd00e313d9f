"""One visible loop: batches -> hidden states -> loss -> optimiser, with a checkpoint an epoch.

Killed at any moment and started again, it goes on after the last whole epoch and ends with the same
weights, bit for bit on CPU: whatever is random in an epoch is seeded by (seed, epoch) alone.

Several processes may train one model (distributed.py): all plan the same batches, each takes its
share of every batch, and the gradients are those of the mean over the whole batch.
"""

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gsas_lab import distributed, files, rows, shards
from gsas_lab.batches import Asked, Batch
from gsas_lab.errors import InputError
from gsas_lab.experiment import Experiment
from gsas_lab.kernels import fused, native, triton_kernels
from gsas_lab.models import Dropout, Model
from gsas_lab.settings import Settings

_capturing = threading.Lock()  # one capture at a time: it waits for the whole device first
HISTORY = ("epoch", "loss", "ndcg@10", "positions", "seconds")  # what is kept of each epoch


def rate(settings: Settings, progress: float) -> float:
    """Learning rate when a share `progress` (0…1) of the epochs is done: it rises, stays and falls."""
    rise = progress / settings.warmup if settings.warmup else 1.0
    fall = (1 - progress) / settings.cooldown if settings.cooldown else 1.0
    return settings.lr * min(1.0, rise, fall)


@dataclass
class Progress:
    """How far a training has come; in a checkpoint, weights and the states of optimiser and draws
    stand beside it.
    """

    epoch: int = 0  # whole epochs done
    best_epoch: int = 0
    best: float = -math.inf  # validation NDCG@10 of the best weights
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    experiment: Experiment,
    model: Model,
    validate: Callable[[Model], float],
    checkpoint: Path,
    identity: str,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> Progress:
    """Train `model` in place, on the device where it is; it ends with its best weights.

    validate(model): validation NDCG@10, after each epoch. checkpoint: file written after each epoch
    and read when it exists; the best weights lie beside it, as a table of a million items is too
    large to be kept twice in memory. identity: of settings and data; a checkpoint of another is refused.
    on_epoch(history): called after each epoch, to draw a live curve.
    history rows: epoch, loss, ndcg@10 (validation), positions, seconds (of training alone).

    With several processes the first validates, writes and reports; all must find its checkpoint.
    Where tables are spread over them, all validate together, and each keeps its share in a file of
    its own, share-<epoch>-<number>.pt.

    Raises InputError if the loss is not finite, naming the epoch and step, if no history has two
    items, and for a checkpoint that is broken, another run's, of tables spread over another number of
    processes, or not the same for all processes.
    """
    device, task = model.table.device, experiment.task
    histories, settings = experiment.split.train, experiment.settings
    step = Step(experiment, model)
    progress, spread = Progress(), shards.over(model)
    if checkpoint.exists():
        saved = files.read_checkpoint(checkpoint, identity)
        if (then := saved.get("spread", 1)) != spread:
            raise InputError(
                f"{checkpoint} is of tables spread over {then} process{'es' * (then > 1)}, and not "
                f"{spread}: start as many as then (torchrun --nproc-per-node), or delete it and train "
                "again."
            )
        if spread > 1:
            saved |= files.read_checkpoint(
                share_of(checkpoint, saved["progress"]["epoch"]), identity
            )
        model.load_state_dict(saved["model"])
        step.load(saved["optimizer"])
        progress = Progress(**saved["progress"])
        del saved
        best = (share_of if spread > 1 else best_of)(checkpoint, progress.best_epoch)
        if not best.exists():
            raise InputError(
                f"{best} is gone: delete {checkpoint}, which needs it, and train again."
            )
    if distributed.from_first(lambda: progress.epoch) != progress.epoch:
        raise InputError(
            f"{checkpoint} is not the same file for all processes: put the run folder "
            "(GSAS_LAB_RUNS) where every machine reads it."
        )

    bar = _bar(settings.epochs, progress.epoch, settings.name)
    while progress.epoch < settings.epochs:
        if progress.epoch - progress.best_epoch >= settings.patience:
            break
        epoch = progress.epoch
        rng = np.random.default_rng([settings.seed, epoch])
        own = distributed.number()  # processes draw differently
        negatives, noise = int(rng.integers(2**62)), int(rng.integers(2**62))
        alike = spread > 1 and experiment.sampler.of_batch  # else more rows would have to travel
        step.seed(negatives + own * (not alike), noise + own)
        plan = task.plan(histories, model.max_length, settings.batch_size, settings.windows, rng)
        if not plan:
            raise InputError("No history has two interactions to train on: choose another split.")
        plan = [distributed.share(spans) for spans in plan]
        model.train()
        started, values, counts = time.perf_counter(), [], []
        on_gpu = device.type == "cuda"
        made = task.batches(histories, plan, model.max_length, rng, 8 if on_gpu else 1)
        torch.manual_seed(settings.seed << 20 | epoch)  # for own parts that draw from torch's
        for number, batch in enumerate(_ahead(made, on_gpu)):
            counts.append(int(batch.positives.count_nonzero()))
            lr = rate(settings, (epoch + (number + 1) / len(plan)) / settings.epochs)
            values.append(step(batch, lr))
            if not on_gpu:  # a GPU is asked once an epoch: each answer would hold it up
                _check(values[-1:], epoch, len(plan), settings, number)
            bar.update(1 / len(plan))
        values = [*distributed.mean(torch.stack(values))]
        counts = distributed.total(counts)
        _check(values, epoch, len(plan), settings)
        mean_loss = float(np.average(torch.stack(values).tolist(), weights=counts))
        step.wake()
        seconds = time.perf_counter() - started
        model.eval()
        ndcg = validate(model) if spread > 1 else distributed.from_first(lambda: validate(model))
        progress.epoch += 1
        row = progress.epoch, mean_loss, ndcg, sum(counts), seconds
        progress.history.append(dict(zip(HISTORY, row, strict=True)))
        content: dict[str, Any] = {"identity": identity, "model": model.state_dict()}
        if better := ndcg > progress.best:
            progress.best, progress.best_epoch = ndcg, progress.epoch
        if spread > 1:
            content["optimizer"] = step.state_dict()
            files.write_checkpoint(share_of(checkpoint, progress.epoch), content)
            distributed.meet()
            if distributed.first():
                told = {"identity": identity, "spread": spread, "progress": vars(progress)}
                files.write_checkpoint(checkpoint, told)
            distributed.meet()
            kept = {share_of(checkpoint, each) for each in (progress.epoch, progress.best_epoch)}
            for earlier in {*checkpoint.parent.glob(share_of(checkpoint, "*").name)} - kept:
                earlier.unlink()
        elif distributed.first():
            best = best_of(checkpoint, progress.best_epoch)
            if better:
                files.write_checkpoint(best, content)
            content |= {"optimizer": step.state_dict(), "progress": vars(progress)}
            files.write_checkpoint(checkpoint, content)
            for earlier in {*checkpoint.parent.glob(best_of(checkpoint, "*").name)} - {best}:
                earlier.unlink()
        bar.set_postfix_str(
            f"loss {mean_loss:.4f}, val NDCG@10 {ndcg:.4f} (best {progress.best:.4f}), "
            f"{sum(counts) / seconds:,.0f} positions/s"
        )
        if on_epoch and distributed.first():
            on_epoch(progress.history)
    bar.close()
    del step
    if distributed.from_first(lambda: progress.best_epoch) != progress.epoch:
        best = (share_of if spread > 1 else best_of)(checkpoint, progress.best_epoch)
        model.load_state_dict(files.read_checkpoint(best, identity)["model"])
    model.eval()
    return progress


def best_of(checkpoint: Path, epoch: int | str) -> Path:
    """The file with the best weights, which are those after this epoch."""
    return checkpoint.with_name(f"best-{epoch}.pt")


def share_of(checkpoint: Path, epoch: int | str) -> Path:
    """The file with what this process holds, of weights and optimisers, after this epoch."""
    return checkpoint.with_name(f"share-{epoch}-{distributed.number()}.pt")


class Step:
    """One step: batch -> hidden states -> loss -> gradients -> AdamW. -> the loss, on the device.

    The items' tables may have an optimiser of their own, see rows.py.

    On CUDA a step of one shape is captured as a graph when it has been taken a few times, and is
    replayed from then on: one launch where there were hundreds, with nothing read back. Whatever is
    random comes from two generators of its own, so that several models can train side by side. A
    graph holds what the first step did: a part of one's own that asks the host, branches on data or
    draws from another generator would go wrong in silence. Only parts that say `capturable = True`,
    as the library's do (but for the corrected logQ), are captured; others train step by step.
    """

    SMALL = 1 << 20  # weights that one thread steps faster than all, who meet at each tensor
    WARM = 3  # steps before a capture: everything is compiled and allocated by then

    def __init__(self, experiment: Experiment, model: Model):
        self.model, self.device, settings = model, model.table.device, experiment.settings
        self.negatives, self.noise = torch.Generator(self.device), torch.Generator(self.device)
        for module in model.modules():
            if isinstance(module, Dropout):
                module.generator = self.noise
        n_items, weights = experiment.split.n_items, dict(model.named_parameters())
        tables = rows.tables(model)
        self.rows: rows.RowOptimizer | None = None
        kind = rows.choose(settings.table_optimizer, n_items, experiment.loss.whole, self.device)
        if kind != "dense" and tables:
            for table in tables:
                table.sparse = True  # its lookups have a gradient of rows
            of_tables = list(dict.fromkeys(table.weight for table in tables))
            self.rows = rows.RowOptimizer(kind, of_tables, settings.lr, settings.weight_decay)
            weights = {n: w for n, w in weights.items() if all(w is not t for t in of_tables)}
        forward = _Forward(experiment, model, self.negatives, settings.precision == "bfloat16")
        self.unsummed = forward.unsummed
        self.forward = distributed.wrapped(forward, shards.names(forward))
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            [*weights.values()] or [torch.zeros(())],  # a model may be its tables alone
            lr=torch.tensor(settings.lr, device=self.device) if cuda else settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=cuda,
        )
        # Eager, too, where rows or the portable route ask the host, and DDP talks to other processes.
        parts = experiment.loss, experiment.sampler, model
        self.captures = (
            triton_kernels.available(model.table)
            and not self.rows
            and distributed.processes() == 1
            and all(part.capturable for part in parts)
        )
        self.small = not cuda and sum(w.numel() for w in weights.values()) <= self.SMALL
        self.taken: dict[tuple[int, ...], int] = {}  # steps of each shape
        self.captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Batch, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        of_rows = self.rows and self.rows.state_dict()
        return self.optimizer.state_dict() | {"rows": of_rows}

    def load(self, state: dict[str, Any]) -> None:
        """The optimisers' state of a checkpoint, which was read into host memory."""
        options = self.optimizer.state_dict()["param_groups"]  # this device's, not the saved one's
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": options})
        if self.rows:
            self.rows.load_state_dict(state["rows"])

    def wake(self) -> None:
        """Before the weights are judged or saved."""
        if self.rows:
            self.rows.wake()

    def seed(self, negatives: int, noise: int) -> None:
        self.negatives.manual_seed(negatives)
        self.noise.manual_seed(noise)

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            if self.device.type == "cuda":
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if not self.captures:
            return self.compute(Batch(*(x.to(self.device, non_blocking=True) for x in batch)), rate)
        shape = tuple(batch.items.shape)
        self.taken[shape] = self.taken.get(shape, 0) + 1
        if self.taken[shape] <= self.WARM:
            return self._aside(Batch(*(x.to(self.device, non_blocking=True) for x in batch)))
        if shape not in self.captured:
            self.captured[shape] = self._capture(batch)
        graph, inputs, value = self.captured[shape]
        for place, given in zip(inputs, batch, strict=True):
            place.copy_(given, non_blocking=True)
        graph.replay()
        return value.clone()

    def compute(self, batch: Batch, rate: float = 0.0) -> Tensor:
        """rate: of the rows; AdamW has been told."""
        value = self.forward(batch)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        with _one_thread() if self.small else nullcontext():
            self.optimizer.step()
        if self.rows:
            self.rows.step(rate, self.unsummed)
            self.rows.zero_grad()
        return value.detach()

    def _aside(self, batch: Batch) -> Tensor:
        """A step on another stream, as what is captured later must have run there first."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            value = self.compute(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return value

    def _capture(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, Tensor]:
        inputs = Batch(*(x.to(self.device) for x in batch))
        graph = torch.cuda.CUDAGraph()
        for generator in (self.negatives, self.noise):
            graph.register_generator_state(generator)
        self.optimizer.zero_grad(set_to_none=True)
        with _capturing, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            value = self.compute(inputs)
        return graph, inputs, value


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch's operations on the CPU in the calling thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Forward(nn.Module):
    """Batch -> hidden states -> loss: DDP wants every use of the weights in the forward it wraps."""

    def __init__(
        self, experiment: Experiment, model: Model, negatives: torch.Generator, autocast: bool
    ):
        super().__init__()
        self.loss, self.sampler = experiment.loss, experiment.sampler
        self.model, self.negatives, self.autocast = model, negatives, autocast
        self.of_rows = [table for table in rows.tables(model) if table.sparse]
        self.unsummed: dict[Tensor, native.Pairs] = {}  # of the last batch, by table

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.items.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self.model(batch.items, batch.positions, batch.segments)
        flat = Batch(*(x.flatten() for x in batch))
        places = _asked(flat)
        hidden, table = hidden.float().flatten(0, 1), self.model.table
        if not isinstance(places, slice):  # else the gradient would be copied once more
            hidden = hidden[places]
        negatives = sets = None
        if not self.loss.whole:
            asked = Asked(flat, places, hidden.detach(), table.detach())
            negatives, sets = self.sampler.draw(asked, self.negatives)
        positives, loss = flat.positives[places], self.loss
        scoring = next((own for own in self.of_rows if own.weight is table), None)
        self.unsummed.clear()
        if scoring is not None and self._sums_later(hidden, table, negatives, sets):
            with fused.in_pairs() as pairs:
                value = loss(hidden, table, positives, self.model.bias, negatives)
            self.unsummed[table] = pairs[0]
            return value
        if negatives is not None and scoring is not None:
            named, table, positives, negatives = rows.only(scoring, positives, negatives)
            loss = loss.at(named)
        value = loss(hidden, table, positives, self.model.bias, negatives, sets)
        return distributed.part(value, batch.positives)

    def _sums_later(
        self, hidden: Tensor, table: Tensor, negatives: Tensor | None, sets: Tensor | None
    ) -> bool:
        """Can the optimiser of rows sum the gradient of the table that scores while it steps? Else the
        loss reads a copy of the rows, whose gradient is as large again.
        """
        return (
            negatives is not None
            and sets is None
            and negatives.numel() < 1 << 30
            and self.loss.leaves_pairs
            and fused.choose(hidden, table) == "native"
            and distributed.processes() == 1
        )


def _asked(batch: Batch) -> Tensor | slice:
    """The places with a positive, where they are few, as in masked windows. On a GPU all places, so
    that a captured step keeps its shapes.
    """
    if batch.positives.device.type == "cpu":
        asked = batch.positives.nonzero()[:, 0]
        if 2 * len(asked) < len(batch.positives):
            return asked
    return slice(None)


def _check(
    values: list[Tensor], epoch: int, steps: int, settings: Settings, first: int = 0
) -> None:
    """InputError if a loss of the steps from `first` on is not finite, naming that step."""
    finite = torch.stack(values).isfinite()
    if finite.all():
        return
    step = int(finite.long().argmin())
    raise InputError(
        f"The loss became {values[step].item()} in epoch {epoch + 1}, step {first + step + 1} of "
        f"{steps}: "
        f"lower the learning rate (lr = {settings.lr}) or raise warmup."
    )


def _ahead(made: Iterator[Batch], on_gpu: bool) -> Iterator[Batch]:
    """For a GPU the next batches are made, in pinned memory, while it works on this one."""
    if not on_gpu:
        yield from made
        return
    with ThreadPoolExecutor(1) as worker:

        def prepare() -> Batch | None:
            batch = next(made, None)
            return batch and Batch(*(x.pin_memory() for x in batch))

        waiting = deque(worker.submit(prepare) for _ in range(4))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(worker.submit(prepare))
            yield batch


def _bar(epochs: int, done: int, label: str) -> Any:
    """tqdm over epochs, moving at every step; of the first process; silent without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:

        class Silent:
            def update(self, n: float) -> None: ...

            def set_postfix_str(self, text: str) -> None:
                if distributed.first():
                    print(f"{label}: {text}", file=sys.stderr)

            def close(self) -> None: ...

        return Silent()
    layout = "{desc}: {n:.1f}/{total} epochs [{elapsed}, {remaining} left] {postfix}"
    return tqdm(
        total=epochs,
        initial=done,
        desc=label or "training",
        bar_format=layout,
        mininterval=1,
        disable=not distributed.first() or "TQDM_DISABLE" in os.environ,
    )
