"""Settings -> an experiment: data, split, task, loss and sampler, assembled once.

After `assemble` nobody reads a setting by its name to find out what it stands for.
"""

import hashlib
import inspect
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gsas_lab import distributed, interactions, models, splits
from gsas_lab.batches import Task
from gsas_lab.errors import InputError
from gsas_lab.losses import LOSSES, UNTRAINED, CorrectedLogQ, LogQ, Loss
from gsas_lab.models import MODELS, Model
from gsas_lab.rows import choose
from gsas_lab.samplers import SAMPLERS, Sampler
from gsas_lab.settings import OF_DATA, Settings
from gsas_lab.shards import Shards

_NOBODY = splits.Histories(np.zeros(0, np.int32), np.zeros(1, np.int64))


@dataclass(frozen=True)
class Data:
    """A loaded data set and its split."""

    interactions: interactions.Interactions
    split: splits.Split

    @cached_property
    def digest(self) -> str:
        """Hash of what is trained on and evaluated, wherever it was read from and in what form."""
        known, protocol = self.interactions, self.split.protocol
        told = [
            [str(name) for name in known.item_ids[1:]],
            None if known.titles is None else [str(title) for title in known.titles[1:]],
            {name: value for name, value in protocol.as_dict().items() if name not in _SOURCE},
        ]
        found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for part in (known.items.astype("<i4"), known.offsets.astype("<i8")):
            found.update(part.tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a run is made of. `model()` gives it with fresh weights."""

    settings: Settings
    data: Data
    task: Task  # what the model reads, and what it is asked
    sampler: Sampler
    loss: Loss

    @property
    def split(self) -> splits.Split:
        return self.data.split

    @cached_property
    def weights(self) -> int:
        """How many numbers the model's weights are; nothing is allocated. 0 where nobody can say."""
        s, (n_users, n_items) = self.settings, (len(self.split.train), self.split.n_items)
        found = []
        for blocks in (1, 2):  # each one more costs the same
            try:
                with torch.device("meta"):
                    made = model_of(
                        replace(s, blocks=blocks), n_items, n_users, None, self.split.train
                    )
            except Exception:  # noqa: BLE001 (a part of one's own may need real numbers)
                return 0
            found.append(sum(weight.numel() for weight in made.parameters()))
        return found[0] + (s.blocks - 1) * (found[1] - found[0])

    def model(self, spread: bool = False) -> Model:
        """The model with fresh weights, drawn from the settings' seed; spread: its items' tables over
        the processes, see shards.py.
        """
        train, table = self.split.train, Shards if spread else nn.Embedding
        bias = self.loss.start(self.sampler) if self.settings.theory_start else None
        return model_of(self.settings, self.split.n_items, len(train), bias, train, table)

    def spreads(self, device: torch.device) -> bool:
        """Are its tables spread over the processes? Where an optimiser moves their rows, and nothing
        reads a whole one, as a part of one's own may.
        """
        kind = choose(self.settings.table_optimizer, self.split.n_items, self.loss.whole, device)
        asks = inspect.signature(MODELS[self.settings.model]).parameters
        return (
            distributed.processes() > 1
            and kind != "dense"
            and "table" in asks
            and not self.loss.whole
            and not self.settings.own_parts
        )


def assemble(settings: Settings) -> Experiment:
    """Everything that a run with these settings is made of, its data loaded and split.

    InputError for data that cannot be read or split, and for a k that the catalogue cannot serve.
    """
    data, kind = load_data(settings), MODELS[settings.model]
    split = data.split
    reads = settings.max_length + (not kind.masked)  # of a window: with the item after
    sampler = SAMPLERS[settings.sampler].of(
        settings.k, split.n_items, split.train, reads, settings.power
    )
    loss = loss_of(settings, sampler)
    return Experiment(settings, data, kind.task(settings.masked), sampler, loss)


def loss_of(settings: Settings, sampler: Sampler) -> Loss:
    """The loss with these negatives."""
    if not MODELS[settings.model].trained:
        return UNTRAINED
    loss = LOSSES[settings.loss].of(settings.t, sampler)
    if settings.logq and sampler.alpha is None:
        raise InputError(
            f"sampler = '{settings.sampler}' tells no rates (alpha is None): leave logq at False."
        )
    if settings.logq == "corrected":
        return CorrectedLogQ(loss, sampler.alpha, sampler.n_items, sampler.collisions)
    return LogQ(loss, sampler.alpha, sampler.n_items) if settings.logq else loss


def model_of(
    settings: Settings,
    n_items: int,
    n_users: int,
    bias: float | None,
    train: splits.Histories = _NOBODY,
    table: type[nn.Embedding] = nn.Embedding,
) -> Model:
    """The model of these sizes; bias: of all scores, where it starts, or none; table: what holds a row
    for each item.
    """
    s = settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        return models.build(
            MODELS[s.model], n_items=n_items, n_users=n_users, train=train, d=s.d, blocks=s.blocks,
            heads=s.heads, max_length=s.max_length, dropout=s.dropout, tied=s.tied, block=s.block,
            bias=bias, table=table,
        )  # fmt: skip


# In a protocol: where the data came from, and what follows from them.
_SOURCE = ("dataset", "sha256", "tie_rule", "unused", "taken_again", "targets_seen", "few_rivals")

_loaded: dict[tuple, tuple[tuple | None, Data]] = {}  # of this process: read-only


def load_data(settings: Settings) -> Data:
    """The settings' data set, split by the settings' protocol.

    Kept for this process, for as long as the file stays as it is.
    """
    key = tuple(getattr(settings, name) for name in OF_DATA)
    found = stamp(settings.dataset)
    if key not in _loaded or _loaded[key][0] != found:
        data = interactions.load(
            settings.dataset, min_user=settings.min_user, min_item=settings.min_item,
            user=settings.user, item=settings.item, time=settings.time,
        )  # fmt: skip
        users, seen = settings.validation_users, settings.exclude_seen
        split = (
            splits.by_time(data, settings.split_at, users, exclude_seen=seen)
            if settings.split == "time"
            else splits.leave_one_out(data, users, variant=settings.split, exclude_seen=seen)
        )
        _loaded[key] = found, Data(data, split)
    return _loaded[key][1]


def stamp(dataset: str) -> tuple | None:
    """What changes when a file does, its bytes unread; none where the name is no file's."""
    try:
        found = Path(dataset).expanduser().stat()
    except (OSError, ValueError, RuntimeError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
