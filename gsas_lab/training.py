"""One visible loop: batches -> hidden states -> loss -> AdamW, with a checkpoint after each epoch.

Killed at any moment and started again, it goes on after the last whole epoch and ends with the same
weights, bit for bit on CPU: whatever is random in an epoch is seeded by (seed, epoch) alone.
"""

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsas_lab import batches, fused, theory
from gsas_lab.encoders import SASRec
from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD
from gsas_lab.samplers import Sampler, whole_catalogue
from gsas_lab.splits import Histories

LOSSES = ("bce", "gbce", "expected_gbce", "softmax", "sampled_softmax")
Objective = Callable[[SASRec, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and when to stop."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: float  # share of the epochs in which lr rises to its value
    cooldown: float  # share of the epochs, at the end, in which lr falls to 0
    patience: int  # epochs without a better validation NDCG@10 before stopping
    windows: str

    def rate(self, progress: float) -> float:
        """Learning rate when a share `progress` (0…1) of the epochs is done."""
        rise = progress / self.warmup if self.warmup else 1.0
        fall = (1 - progress) / self.cooldown if self.cooldown else 1.0
        return self.lr * min(1.0, rise, fall)


@dataclass
class Progress:
    """All that a resumed training needs; a checkpoint is this and nothing else."""

    epoch: int = 0  # whole epochs done
    best_epoch: int = 0
    best: float = -math.inf  # validation NDCG@10 of the best weights
    history: list[dict[str, float]] = field(default_factory=list)


def objective(loss: str, k: int, t: float, sampler: Sampler, n_items: int) -> Objective:
    """A named loss as a function of (model, hidden (P, d), positives (P,), generator) -> scalar."""
    if loss not in LOSSES:
        raise InputError(f"Loss '{loss}' is unknown: choose one of {', '.join(LOSSES)}.")
    if loss == "softmax":
        return lambda model, hidden, positives, _: fused.softmax(hidden, model.table, positives)

    beta = 1.0 if loss == "bce" else theory.beta_from_t(t, theory.alpha(k, n_items))
    if loss == "expected_gbce":
        collisions = sampler is whole_catalogue
        return lambda model, hidden, positives, _: fused.expected_gbce(
            hidden, model.table, positives, k, beta, model.bias, collisions
        )

    def sampled(
        model: SASRec, hidden: Tensor, positives: Tensor, generator: torch.Generator
    ) -> Tensor:
        negatives = sampler(positives, k, n_items, generator)
        if loss == "sampled_softmax":
            return fused.sampled_softmax(hidden, model.table, positives, negatives, model.bias)
        return fused.gbce(hidden, model.table, positives, negatives, beta, model.bias)

    return sampled


def fit(
    model: SASRec,
    histories: Histories,
    loss: Objective,
    schedule: Schedule,
    validate: Callable[[SASRec], float],
    checkpoint: Path,
    identity: str,
    seed: int,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
    label: str = "",
) -> Progress:
    """Train `model` in place, on the device where it is; it ends with its best weights.

    validate(model): validation NDCG@10, after each epoch. checkpoint: file written after each epoch
    and read when it exists. identity: of settings and data; a checkpoint of another is refused.
    on_epoch(history): called after each epoch, to draw a live curve.
    history rows: epoch, loss, ndcg@10 (validation), positions, seconds (of training alone).

    Raises InputError if the loss is not finite, naming the epoch and step.
    """
    device = model.table.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True
    )
    progress, best_weights = Progress(), copy.deepcopy(model.state_dict())
    if checkpoint.exists():
        saved = read_checkpoint(checkpoint, identity)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        progress, best_weights = Progress(**saved["progress"]), saved["best"]

    bar = _bar(schedule.epochs, progress.epoch, label)
    while progress.epoch < schedule.epochs:
        if progress.epoch - progress.best_epoch >= schedule.patience:
            break
        epoch = progress.epoch
        rng = np.random.default_rng([seed, epoch])
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))  # negatives
        torch.manual_seed(int(rng.integers(2**62)))  # dropout
        plan = batches.epoch(
            histories, model.max_length, schedule.batch_size, schedule.windows, rng
        )
        model.train()
        started, total, positions = time.perf_counter(), 0.0, 0
        for step, batch in enumerate(batches.batches(histories, plan)):
            rate = schedule.rate((epoch + (step + 1) / len(plan)) / schedule.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            positives = batch.positives.to(device)
            hidden = []  # (P, d) in the end: real positions only
            for items in batch.items:
                items = items.to(device)
                hidden.append(model(items)[items != PAD])
            value = loss(model, torch.cat(hidden), positives, generator)
            if not torch.isfinite(value):
                raise InputError(
                    f"The loss became {value.item()} in epoch {epoch + 1}, step {step + 1} of "
                    f"{len(plan)}: lower the learning rate (lr = {schedule.lr}) or raise warmup."
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            total += value.item() * len(positives)
            positions += len(positives)
            bar.update(1 / len(plan))
        seconds = time.perf_counter() - started
        model.eval()
        ndcg = validate(model)
        progress.epoch += 1
        progress.history.append(
            {
                "epoch": progress.epoch,
                "loss": total / positions,
                "ndcg@10": ndcg,
                "positions": positions,
                "seconds": seconds,
            }
        )
        if ndcg > progress.best:
            progress.best, progress.best_epoch = ndcg, progress.epoch
            best_weights = copy.deepcopy(model.state_dict())
        write_checkpoint(
            checkpoint,
            {
                "identity": identity,
                "model": model.state_dict(),
                "best": best_weights,
                "optimizer": optimizer.state_dict(),
                "progress": vars(progress),
            },
        )
        bar.set_postfix_str(
            f"loss {total / positions:.4f}, val NDCG@10 {ndcg:.4f} (best {progress.best:.4f}), "
            f"{positions / seconds:,.0f} positions/s"
        )
        if on_epoch:
            on_epoch(progress.history)
    bar.close()
    model.load_state_dict(best_weights)
    model.eval()
    return progress


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write all or nothing: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{path} could not be written ({error}): free some disk space or choose another "
            "folder; what was trained up to the last checkpoint is kept."
        ) from error


def read_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """Read weights only: nothing in the file can run code. InputError if it is cut or another's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["identity"]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: train the run first.") from None
    except Exception as error:  # torch raises a different one for every way a file can be broken
        raise InputError(
            f"{path} is not a whole checkpoint of gsas-lab: delete it and train again."
        ) from error
    if found != identity:
        raise InputError(
            f"{path} belongs to another model or data set ({found}, not {identity}): "
            "delete it or use another run folder."
        )
    return content


def _bar(epochs: int, done: int, label: str) -> Any:
    """tqdm over epochs, moving at every step; silent where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:

        class Silent:
            def update(self, n: float) -> None: ...

            def set_postfix_str(self, text: str) -> None:
                print(f"{label}: {text}", file=sys.stderr)

            def close(self) -> None: ...

        return Silent()
    layout = "{desc}: {n:.1f}/{total} epochs [{elapsed}, {remaining} left] {postfix}"
    return tqdm(
        total=epochs, initial=done, desc=label or "training", bar_format=layout, mininterval=1
    )
