"""Settings -> a run folder with evidence. The same settings on the same data are trained once.

A `Settings` object is the command line, the notebooks' parameters and the record of a run. A run is
found again by the hash of its settings and of the data file.
"""

import hashlib
import io
import json
import math
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gsas_lab import (
    distributed,
    files,
    interactions,
    metrics,
    ranking,
    samplers,
    splits,
    theory,
    training,
)
from gsas_lab.baselines import MF, Popularity
from gsas_lab.batches import Pairs, Task, Windows, pad_right
from gsas_lab.encoders import BERT4Rec, SASRec
from gsas_lab.errors import InputError
from gsas_lab.settings import BERNOULLI, Settings

FORMAT = 3  # of run folders: a change that alters results counts it up


@dataclass(frozen=True)
class Data:
    """A loaded data set and its split."""

    interactions: interactions.Interactions
    split: splits.Split


_building = threading.Lock()  # weights are drawn from torch's global generator, one model at a time
_loaded: dict[tuple, Data] = {}  # the data sets of this process: read-only


def load_data(settings: Settings) -> Data:
    """The settings' data set, split by the settings' protocol (kept for this process)."""
    key = (
        settings.dataset,
        settings.min_user,
        settings.min_item,
        settings.validation_users,
        settings.split,
        settings.exclude_seen,
    )
    if key not in _loaded:
        data = interactions.load(
            settings.dataset, min_user=settings.min_user, min_item=settings.min_item
        )
        split = splits.leave_one_out(
            data, settings.validation_users, variant=settings.split,
            exclude_seen=settings.exclude_seen,
        )  # fmt: skip
        _loaded[key] = Data(data, split)
    return _loaded[key]


@dataclass(frozen=True)
class Run:
    """A trained run: its settings and the folder that holds its evidence."""

    settings: Settings
    folder: Path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Test metrics, seconds, device: metrics.json."""
        return json.loads((self.folder / "metrics.json").read_text())

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: epoch, loss, ndcg@10 (validation), positions, seconds."""
        return pd.read_csv(self.folder / "history.csv")

    @cached_property
    def environment(self) -> dict[str, str]:
        """What made the run, see `environment`: environment.json."""
        return json.loads((self.folder / "environment.json").read_text())

    @cached_property
    def ranks(self) -> np.ndarray:
        """Rank of each test user's target, in the order of the users: (n_users,) int32."""
        return np.load(self.folder / "ranks.npy")

    @cached_property
    def data(self) -> Data:
        return load_data(self.settings)

    @cached_property
    def model(self) -> Any:
        """The best weights, on CPU, ready to score."""
        saved = files.read_checkpoint(self.folder / "model.pt", self.folder.name)
        model = build(self.settings, self.data.split)
        model.load_state_dict(saved["model"])
        return model.eval()

    def scores(self, holdout: splits.Holdout) -> np.ndarray:
        """Scores of the whole catalogue for each user of a holdout: (n, n_items) float32 logits.

        Column i − 1 is item i: padding has no column. For a few thousand users at a time.
        """
        found = np.empty((len(holdout.users), self.data.split.n_items), np.float32)
        for scores, rows in ranking.score_in_batches(self.model, holdout):
            found[rows] = scores[:, 1:]
        return found

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """p̂ of scores (n, n_items): see `ranking.probability`."""
        return ranking.probability(torch.from_numpy(scores), self.settings.normalised).numpy()

    @torch.no_grad()
    def recommend(
        self, history: Sequence[int | str], n: int = 10, exclude_seen: bool | None = None
    ) -> pd.DataFrame:
        """The n items most probable to come next, for anybody's history, oldest item first.

        history: items by their ids in the data set's file, or by their exact titles.
        exclude_seen: leave the history's items out; None: as the run's protocol. Columns: rank,
        item (id in the file), title, probability (of the whole catalogue: Theorem 5.1 inverted for
        BCE and gBCE, the softmax of the scores for the others) and raw, the model's own p̂.
        Raises InputError for an empty history, for items that the data set does not have, and for a
        model that knows users and not histories. BPR has no probabilities: NaN there.
        """
        if getattr(self.model, "by_user", False):
            raise InputError(f"{self.settings.name} knows the users of its data set, no histories.")
        data = self.data.interactions
        items = np.array([data.item(name) for name in history], np.int64)
        if not len(items) or n < 1:
            raise InputError(
                f"A history of {len(items)} items and n = {n}: give 1 or more of both."
            )
        scores = self.model.score(pad_right([items], self.model.max_length))[:, 1:].numpy()
        if self.settings.loss in BERNOULLI and not self.settings.normalised:
            # With collisions the inverse exceeds 1 where no P could have led to the score.
            prior = np.minimum(theory.prior_from_logit(scores[0], *self.fixed_point), 1.0)
        else:
            learned = scores[0].astype(float)  # with sampled softmax log(P / q)
            if self.settings.loss == "sampled_softmax" and not self.settings.logq:
                learned += np.log(sampler(self.settings).alpha)
            prior = torch.from_numpy(learned).softmax(-1).numpy()
        raw = self.probabilities(scores)[0]
        if self.settings.loss == "bpr":
            prior, raw = np.full((2, len(prior)), np.nan)
        order = np.argsort(-scores[0], kind="stable")
        if self.data.split.protocol.exclude_seen if exclude_seen is None else exclude_seen:
            order = order[~np.isin(order + 1, items)]
        first = order[:n]
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(first) + 1),
                "item": data.item_ids[first + 1],
                "title": [data.title(item) for item in first + 1],
                "probability": prior[first],
                "raw": raw[first],
            }
        )

    @cached_property
    def outcome(self) -> ranking.Outcome:
        """Ranks, Σp and the first items of all test users, under the run's protocol."""
        split = self.data.split
        return ranking.examine(
            self.model, split.test, split.protocol.exclude_seen, normalised=self.settings.normalised
        )

    @property
    def fixed_point(self) -> tuple[Any, float, bool]:
        """Theorem 5.1's α (one, or (n_items,) of them), β and collisions for this run.

        A softmax learns P itself: (1, 1, False). With logQ the loss sees s − log α, which leaves an α
        of 1 for s. InputError for losses that learn differences of scores only.
        """
        if self.settings.normalised:
            return 1.0, 1.0, False
        if self.settings.loss not in BERNOULLI:
            raise InputError(
                f"{self.settings.name} learns differences of scores: there is no fixed point of σ(s)."
            )
        beta, drawn = self.settings.beta(self.data.split.n_items), sampler(self.settings)
        return (1.0 if self.settings.logq else drawn.alpha), beta, drawn.collisions


def identity(settings: Settings, data: Data) -> str:
    """The run's name: a hash of everything that decides its result.

    Settings at their defaults are left out of it, so that a new one does not rename old runs.
    """
    told = {item.name: getattr(settings, item.name) for item in fields(settings)
            if getattr(settings, item.name) != item.default}  # fmt: skip
    record = json.dumps([FORMAT, told, data.interactions.sha256], sort_keys=True)
    kind = settings.model if settings.model == "popularity" else f"{settings.model}-{settings.loss}"
    return f"{kind}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"


def build(settings: Settings, split: splits.Split) -> Any:
    """The settings' model with fresh weights, drawn from the settings' seed."""
    if settings.model == "popularity":
        return Popularity(split.train, split.n_items)
    n_items, bias = split.n_items, None
    if settings.theory_start and settings.loss in BERNOULLI:
        alpha = float(np.mean(sampler(settings).alpha))
        start = theory.converged_logit(1 / n_items, alpha, settings.beta(n_items))
        bias = float(start) + (math.log(alpha) if settings.logq else 0.0)
    with _building, torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.model == "mf":
            return MF(len(split.train), n_items, settings.d)
        return {"sasrec": SASRec, "bert4rec": BERT4Rec}[settings.model](
            n_items,
            d=settings.d,
            blocks=settings.blocks,
            heads=settings.heads,
            max_length=settings.max_length,
            dropout=settings.dropout,
            tied=settings.tied,
            variant=settings.block,
            bias=bias,
        )


def sampler(settings: Settings) -> samplers.Sampler:
    """What draws the settings' negatives, and how often which item."""
    split = load_data(settings).split
    read = settings.max_length + (settings.model != "bert4rec")  # SASRec: with the item after
    held = 1.0
    if settings.sampler == "history-excluded":
        windows = np.flatnonzero(split.train.lengths >= 2)
        held = float(np.mean([len(set(split.train[user][-read:].tolist())) for user in windows]))
    counts = np.bincount(split.train.items, minlength=split.n_items + 1)[1:]
    return samplers.sampler(settings.sampler, settings.k, counts, settings.power, read, held)


def task(settings: Settings) -> Task:
    """What the settings' model reads, and what it is asked."""
    if settings.model == "mf":
        return Pairs()
    return Windows(settings.masked if settings.model == "bert4rec" else None)


def train(
    settings: Settings, on_epoch: Callable[[list[dict[str, float]]], None] | None = None
) -> Run:
    """Train, or find what was trained already: settings -> Run.

    A run that was interrupted goes on after its last whole epoch. on_epoch(history) is called after
    each epoch with all rows so far. With several processes (distributed.py) the first one leaves the
    folder; the others return when the training ends, before it is whole. InputError if another
    process is training this run.
    """
    data = load_data(settings)
    name = identity(settings, data)
    folder = files.runs_folder() / name
    if distributed.from_first((folder / "metrics.json").exists):
        return Run(settings, folder)
    device = choose_device(settings.device)
    drawn, n_items = sampler(settings), data.split.n_items
    loss = training.objective(
        settings.loss, settings.k, settings.beta(n_items), drawn, n_items, settings.logq
    )
    model = build(settings, data.split).to(device)
    with files.locked(folder) if distributed.first() else nullcontext():
        done = distributed.from_first((folder / "metrics.json").exists)
        if not done:  # another process may have ended it just now
            _train(settings, data, model, device, loss, folder, on_epoch)
    return Run(settings, folder)


def _train(
    settings: Settings,
    data: Data,
    model: Any,
    device: torch.device,
    loss: training.Objective,
    folder: Path,
    on_epoch: Callable[[list[dict[str, float]]], None] | None,
) -> None:
    name = folder.name
    if distributed.first():
        files.write_json(folder / "settings.json", asdict(settings))
        files.write_json(folder / "protocol.json", data.split.protocol.as_dict())
        files.write_json(folder / "environment.json", environment(device))

    held = data.split.validation
    exclude = data.split.protocol.exclude_seen
    started = time.perf_counter()

    def validate(m: Any) -> float:
        return float(metrics.ndcg(ranking.ranks(m, held, exclude), 10).mean())

    if settings.model == "popularity":  # nothing is learned
        progress = training.Progress(best=validate(model))
    else:
        progress = training.fit(
            model,
            data.split.train,
            task(settings),
            loss,
            _schedule(settings),
            validate,
            folder / "checkpoint.pt",
            name,
            settings.seed,
            on_epoch,
            settings.name,
        )
    if not distributed.first():
        return
    history = pd.DataFrame(progress.history, columns=training.HISTORY)
    outcome = ranking.examine(model, data.split.test, exclude, normalised=settings.normalised)
    low, high = metrics.bootstrap_interval(metrics.ndcg(outcome.ranks, 10))
    pairwise = settings.loss == "bpr"  # whose scores say nothing alone, so that there is no p̂
    result: dict[str, Any] = metrics.summary(outcome.ranks)
    result |= {
        "ndcg@10 95% interval": [low, high],
        "mean sum of p": None if pairwise else float(outcome.sums.mean()),
        "median sum of p": None if pairwise else float(np.median(outcome.sums)),
        "validation ndcg@10": progress.best,
        "best epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "training seconds": float(history["seconds"].sum()),
        "total seconds": time.perf_counter() - started,
        "positions": int(history["positions"].sum()),
        "device": str(device),
        "processes": distributed.processes(),
    }
    files.write_checkpoint(folder / "model.pt", {"identity": name, "model": model.state_dict()})
    files.write(folder / "history.csv", history.to_csv(index=False).encode())
    saved = io.BytesIO()
    np.save(saved, outcome.ranks.astype(np.int32))
    files.write(folder / "ranks.npy", saved.getvalue())
    files.write_json(
        folder / "metrics.json", result
    )  # last: its presence says that the run is whole
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def load(folder: str | Path) -> Run:
    """A run that was trained before, from its folder.

    InputError if the folder is missing, its training has not ended, or another version made it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"There is no run folder {folder}: runs are kept in {files.runs_folder()}."
        )
    if not (folder / "metrics.json").exists():
        raise InputError(f"{folder} holds no finished run: train it to its end first.")
    try:
        made_by = json.loads((folder / "environment.json").read_text()).get("format")
        saved = json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read ({error}): train the run again.") from None
    if made_by != str(FORMAT) or set(saved) - {item.name for item in fields(Settings)}:
        raise InputError(
            f"{folder} comes from another version of gsas-lab: train the run again, "
            "or check out the commit that its environment.json names."
        )
    return Run(Settings(**saved), folder)


def train_many(settings: Sequence[Settings], at_once: int | None = None) -> list[Run]:
    """Train several runs side by side in this process -> one Run each, in their order.

    For small models, which do not fill the machine alone. On CPU each run computes with one thread,
    so that its result is bit for bit that of `train` with one thread, whatever runs beside it; on
    CUDA each has a stream of its own. at_once: None for as many as torch has threads.
    """
    threads = torch.get_num_threads()
    at_once = threads if at_once is None else at_once
    if at_once < 1:
        raise InputError(f"at_once = {at_once}: choose 1 or more.")
    for each in settings:
        load_data(each)  # once, and not in every thread

    def one(each: Settings) -> Run:
        torch.set_num_threads(1)
        if choose_device(each.device).type != "cuda":
            return train(each)
        with torch.cuda.stream(torch.cuda.Stream()):
            return train(each)

    try:
        with ThreadPoolExecutor(at_once) as pool:
            found = {each: pool.submit(one, each) for each in dict.fromkeys(settings)}
            return [found[each].result() for each in settings]
    finally:
        torch.set_num_threads(threads)  # of threads that are still to come


def true_probabilities(data: Data, holdout: splits.Holdout) -> np.ndarray:
    """P(i | history) of a known-truth world for each user of a holdout: (n, n_items)."""
    world = data.interactions.world
    if world is None:
        raise InputError(
            f"The true probabilities of {data.interactions.name} are not known: use known-truth."
        )
    longest = int(holdout.histories.lengths.max())
    rows = [holdout.histories[row] for row in range(len(holdout.users))]
    return world.probability(pad_right(rows, longest).numpy())[:, 1:]


def choose_device(name: str) -> torch.device:
    """ "auto": CUDA, then MPS, then CPU; a named device that is not there is an InputError."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((device for device, found in here.items() if found), "cpu")
    if not here.get(name, True):
        raise InputError(f"device = '{name}': this machine has none; choose 'auto' or 'cpu'.")
    return torch.device(name)


def environment(device: torch.device) -> dict[str, str]:
    """What made a number: versions, machine, commit, date."""
    packages = {}
    for package in ("gsas-lab", "torch", "numpy", "pandas", "scipy"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    chip = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "format": str(FORMAT),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": f"{device} ({chip}, {torch.get_num_threads()} threads)",
        "python": platform.python_version(),
        "system": platform.system(),
        **packages,
    }


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(files.ROOT), *words], capture_output=True, text=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return (commit or "unknown") + ("+changes" if git("status", "--porcelain") else "")
    except OSError:
        return "unknown"


def _schedule(settings: Settings) -> training.Schedule:
    names = {item.name for item in fields(training.Schedule)}
    return training.Schedule(**{n: v for n, v in asdict(settings).items() if n in names})
