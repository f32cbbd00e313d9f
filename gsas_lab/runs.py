"""Settings -> a run folder with evidence. The same settings on the same data are trained once.

A `Settings` object is the command line, the notebooks' parameters and the record of a run. A run is
found again by the hash of its settings and of the data file.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gsas_lab import distributed, interactions, metrics, ranking, samplers, splits, theory, training
from gsas_lab.baselines import MF, Popularity
from gsas_lab.batches import WINDOWS, Pairs, Task, Windows, pad_right
from gsas_lab.encoders import BLOCKS, BERT4Rec, SASRec
from gsas_lab.errors import InputError

ROOT = Path(__file__).resolve().parent.parent  # the checkout
MODELS = ("sasrec", "bert4rec", "mf", "popularity")
BERNOULLI = ("bce", "gbce", "expected_gbce")  # losses of σ(s), whose fixed point is Theorem 5.1
_SCORES = 1 << 25  # held at once at evaluation: 128 MB
FORMAT = 3  # of run folders: a change that alters results counts it up


def _option(default: Any, text: str, choices: tuple = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """One experiment. The defaults are the paper's SASRec; see `recipes` for the others."""

    dataset: str = _option(
        "known-truth", "known-truth, known-truth-small, ml-1m, beauty, video-games, or a file"
    )
    min_user: int = _option(1, "drop users with fewer interactions")
    min_item: int = _option(1, "drop items with fewer interactions")
    split: str = _option("paper", "what is held out, see splits.py", splits.VARIANTS)
    validation_users: int = _option(512, "users whose second-last item chooses the weights")
    exclude_seen: bool | None = _option(
        None, "leave seen items out of the ranking; none: as the data set's convention"
    )
    model: str = _option("sasrec", "what recommends: see encoders.py and baselines.py", MODELS)
    block: str = _option("paper", "Transformer block, see encoders.py", BLOCKS)
    d: int = _option(128, "width of embeddings and hidden states")
    blocks: int = _option(2, "Transformer blocks")
    heads: int = _option(1, "attention heads")
    max_length: int = _option(200, "longest history that is read")
    dropout: float = _option(0.5, "dropped share, 0…1")
    tied: bool = _option(False, "score with the table that reads items")
    loss: str = _option("bce", "training loss", training.LOSSES)
    k: int = _option(1, "negatives per positive (sampled losses)")
    t: float = _option(0.0, "calibration of gbce: 0 = BCE, 1 = the true probability")
    sampler: str = _option("positive-excluded", "what a negative is", samplers.SAMPLERS)
    power: float = _option(1.0, "popularity to this power (sampler popularity)")
    logq: bool = _option(False, "take log(k q) from each score in the loss, q being the sampler's")
    masked: float = _option(0.2, "share of a window's items that BERT4Rec has to fill in")
    theory_start: bool = _option(
        False, "start a scalar output bias where Theorem 5.1 puts an average item (Transformers)"
    )
    windows: str = _option("last", "train on each user's last window or on all", WINDOWS)
    epochs: int = _option(10_000, "at most so many passes")
    patience: int = _option(200, "epochs without a better validation NDCG@10 before stopping")
    batch_size: int = _option(128, "users (windows) a step")
    lr: float = _option(1e-3, "AdamW's learning rate")
    weight_decay: float = _option(0.0, "AdamW's weight decay")
    warmup: float = _option(0.0, "share of the epochs in which lr rises")
    cooldown: float = _option(0.0, "share of the epochs, at the end, in which lr falls to 0")
    precision: str = _option("float32", "of the encoder's products", training.PRECISIONS)
    seed: int = _option(1, "of weights, order, negatives and dropout")
    device: str = _option("auto", "where to train", ("auto", "cpu", "cuda", "mps"))

    def __post_init__(self) -> None:
        for item in fields(self):
            value, choices = getattr(self, item.name), item.metadata["choices"]
            if not _fits(value, item.type):
                raise InputError(
                    f"{item.name} = {value!r} is not of type {_type_name(item.type)}: "
                    f"{item.metadata['help']}."
                )
            if choices and value not in choices:
                raise InputError(f"{item.name} = {value!r}: choose one of {', '.join(choices)}.")
            if item.type is float:  # so that t = 1 and t = 1.0 are one run
                object.__setattr__(self, item.name, float(value))
        ranges: dict[str, tuple[float, float]] = {
            "t": (0, 1),
            "power": (0, math.inf),
            "masked": (0, 1),
            "dropout": (0, 0.99),
            "warmup": (0, 1),
            "cooldown": (0, 1),
            "lr": (0, math.inf),
            "weight_decay": (0, math.inf),
            **{name: (1, math.inf) for name in _AT_LEAST_ONE},
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(
                    f"{name} = {getattr(self, name)} lies outside [{low}, {high}]: "
                    f"{self.__dataclass_fields__[name].metadata['help']}."
                )
        if self.model == "bert4rec" and self.max_length < 2:
            raise InputError(
                "max_length = 1 leaves BERT4Rec no place for the mask: choose 2 or more."
            )
        if self.model == "mf" and self.sampler == "history-excluded":
            raise InputError("model = 'mf' reads no windows: choose another sampler.")
        if self.logq and self.loss in ("softmax", "expected_gbce", "bpr"):
            raise InputError(f"loss = '{self.loss}' has nothing to correct: leave logq at False.")
        if self.loss == "expected_gbce" and self.sampler in _UNEVEN:
            raise InputError(
                f"loss = 'expected_gbce' is the mean over uniform draws, not over sampler = "
                f"'{self.sampler}': choose positive-excluded or whole-catalogue."
            )

    @property
    def name(self) -> str:
        """The system's name in the paper's words."""
        if self.model == "popularity":
            return "Popularity"
        base = {"sasrec": "SASRec", "bert4rec": "BERT4Rec", "mf": "MF"}[self.model]
        k, t = f"k = {self.k}", f"t = {self.t:g}"
        if self.model == "mf":
            told = "MF-BPR" if self.loss == "bpr" else f"MF, {self.loss.replace('_', ' ')}, {k}"
        elif self.loss == "bce":
            told = base if (base, self.k) == ("SASRec", 1) else f"{base}, BCE, {k}"
        elif self.loss in ("gbce", "expected_gbce") and base == "SASRec":
            told = "gSASRec" + ("" if self.k == 256 else f", {k}")
            told += "" if (self.k, self.t) == (256, 0.75) and self.loss == "gbce" else f", {t}"
        elif self.loss in ("gbce", "expected_gbce"):
            told = f"{base}, gBCE, {k}, {t}"
        elif self.loss == "softmax":
            told = f"{base}, softmax" if base == "SASRec" else base
        else:
            told = f"{base}, {self.loss.replace('_', ' ')}"
            told += "" if (base, self.k) == ("SASRec", 16) else f", {k}"
        told += ", expected loss" if self.loss == "expected_gbce" else ""
        if self.sampler not in ("positive-excluded", "whole-catalogue"):
            told += f", {self.sampler.replace('-', ' ')} negatives"
        return told + (", logQ" if self.logq else "")

    @property
    def normalised(self) -> bool:
        """Is p̂ a softmax over the catalogue?

        With the full softmax, with sampled softmax corrected by logQ, which learns the same, and for
        Popularity. Plain sampled softmax is shown by σ(s), as in the paper's Figure 1: its own
        normaliser is a random sample of the catalogue.
        """
        if self.model == "popularity":
            return True
        return self.loss == "softmax" or (self.loss == "sampled_softmax" and self.logq)

    def beta(self, n_items: int) -> float:
        """β of Eq. (27) among n_items items; 1 for the losses without one."""
        if self.loss not in ("gbce", "expected_gbce"):
            return 1.0
        return float(theory.beta_from_t(self.t, theory.alpha(self.k, n_items)))


_UNEVEN = ("popularity", "in-batch", "history-excluded")  # samplers that prefer some items
_AT_LEAST_ONE = (
    "min_user min_item validation_users d blocks heads max_length k epochs patience batch_size"
).split()


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind).replace("None", "none"))


def from_parameters(
    namespace: dict[str, Any], base: Settings, also: tuple[str, ...] = ()
) -> Settings:
    """A notebook's parameters over a recipe; an unknown one is an error (papermill only warns).

    namespace: globals() right after the parameters cell. Every plain value in it (number, string,
    truth value, None) must be a field of Settings or one of `also`.
    """
    plain = (int, float, str, bool, type(None))
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and isinstance(value, plain)
    }
    known = {item.name for item in fields(Settings)}
    unknown = sorted(set(given) - known - set(also))
    if unknown:
        raise InputError(
            f"Unknown parameter '{unknown[0]}': this notebook knows "
            f"{', '.join(sorted({*also} | known))}."
        )
    return Settings(**asdict(base) | {name: given[name] for name in given if name in known})


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
        saved = training.read_checkpoint(self.folder / "model.pt", self.folder.name)
        model = build(self.settings, self.data.split)
        model.load_state_dict(saved["model"])
        return model.eval()

    def scores(self, holdout: splits.Holdout) -> np.ndarray:
        """Scores of the whole catalogue for each user of a holdout: (n, n_items) float32 logits.

        Column i − 1 is item i: padding has no column. For a few thousand users at a time.
        """
        found = np.empty((len(holdout.users), self.data.split.n_items), np.float32)
        for scores, rows in score_in_batches(self.model, holdout):
            found[rows] = scores[:, 1:]
        return found

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """p̂ of scores (n, n_items): see `probability`."""
        return probability(torch.from_numpy(scores), self.settings.normalised).numpy()

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
    def outcome(self) -> "Outcome":
        """Ranks, Σp and the first items of all test users, under the run's protocol."""
        split = self.data.split
        return examine(
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


def runs_folder() -> Path:
    """$GSAS_LAB_RUNS, or outputs/runs in the project."""
    return Path(os.environ.get("GSAS_LAB_RUNS", ROOT / "outputs" / "runs"))


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
    folder = runs_folder() / name
    if distributed.from_first((folder / "metrics.json").exists):
        return Run(settings, folder)
    device = choose_device(settings.device)
    drawn, n_items = sampler(settings), data.split.n_items
    loss = training.objective(
        settings.loss, settings.k, settings.beta(n_items), drawn, n_items, settings.logq
    )
    model = build(settings, data.split).to(device)
    with locked(folder) if distributed.first() else nullcontext():
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
        write_json(folder / "settings.json", asdict(settings))
        write_json(folder / "protocol.json", data.split.protocol.as_dict())
        write_json(folder / "environment.json", environment(device))

    held = data.split.validation
    exclude = data.split.protocol.exclude_seen
    started = time.perf_counter()

    def validate(m: Any) -> float:
        return float(metrics.ndcg(ranks(m, held, exclude), 10).mean())

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
    outcome = examine(model, data.split.test, exclude, normalised=settings.normalised)
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
    training.write_checkpoint(folder / "model.pt", {"identity": name, "model": model.state_dict()})
    write(folder / "history.csv", history.to_csv(index=False).encode())
    saved = io.BytesIO()
    np.save(saved, outcome.ranks.astype(np.int32))
    write(folder / "ranks.npy", saved.getvalue())
    write_json(folder / "metrics.json", result)  # last: its presence says that the run is whole
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def load(folder: str | Path) -> Run:
    """A run that was trained before, from its folder.

    InputError if the folder is missing, its training has not ended, or another version made it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no run folder {folder}: runs are kept in {runs_folder()}.")
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


@dataclass(frozen=True)
class Outcome:
    """What a model says of each user of a holdout, and where the target ended up."""

    ranks: np.ndarray  # (n,) rank of the target, 1-based
    sums: np.ndarray  # (n,) Σp over the whole catalogue, seen items included
    items: np.ndarray  # (n, K) the first K items of the ranking
    prob: np.ndarray  # (n, K) their predicted probabilities, highest first


def probability(scores: Tensor, normalised: bool) -> Tensor:
    """p̂ from scores (..., n): their softmax where that is what was learned, σ(s) otherwise."""
    return scores.softmax(-1) if normalised else scores.sigmoid()


def examine(
    model: Any,
    holdout: splits.Holdout,
    exclude_seen: bool,
    top: int = 100,
    normalised: bool = False,
) -> Outcome:
    """Rank the whole catalogue for each user of a holdout, by `ranking.rank_of_targets`.

    model: anything with `n_items`, `max_length` and `score(items (B, T)) -> (B, n_items + 1)`.
    exclude_seen: the history's items do not compete (the target always does). normalised: whether
    p̂ is a softmax over the catalogue, see `probability`.
    """
    found, order_of_rows = [], []
    for scores, rows in score_in_batches(model, holdout):
        order_of_rows.append(rows)
        seen_rows, seen_items, targets = _seen(holdout, rows, exclude_seen)
        rank = ranking.rank_of_targets(scores, targets, seen_rows, seen_items)
        prob = probability(scores, normalised)  # column 0: scores are −inf, so 0
        sums = prob.sum(1, dtype=torch.float64)
        own = prob.gather(1, targets[:, None])
        prob[seen_rows, seen_items] = -1.0
        prob.scatter_(1, targets[:, None], own)
        # By score and not by probability, which is exactly 1.0 for many items at once.
        order = torch.where(prob < 0, -torch.inf, scores).topk(min(top, scores.shape[1] - 1))
        found.append((rank, sums, order.indices, prob.gather(1, order.indices)))
    back = np.argsort(np.concatenate(order_of_rows))
    columns = [torch.cat(column).numpy()[back] for column in zip(*found, strict=True)]
    return Outcome(*columns)


def ranks(model: Any, holdout: splits.Holdout, exclude_seen: bool) -> np.ndarray:
    """The ranks of `examine` alone, (n,): all that a ranking metric needs, in half the time."""
    found = np.empty(len(holdout.users), np.int64)
    for scores, rows in score_in_batches(model, holdout):
        seen_rows, seen_items, targets = _seen(holdout, rows, exclude_seen)
        found[rows] = ranking.rank_of_targets(scores, targets, seen_rows, seen_items)
    return found


def _seen(
    holdout: splits.Holdout, rows: np.ndarray, exclude_seen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(row, item) pairs of seen items of some users, none if they are kept, and the targets."""
    targets = torch.from_numpy(holdout.targets[rows])
    if not exclude_seen:
        nothing = torch.empty(0, dtype=torch.int64)
        return nothing, nothing, targets
    seen = holdout.subset(rows).histories
    items = torch.from_numpy(seen.items.astype(np.int64))
    return torch.from_numpy(np.repeat(np.arange(len(rows)), seen.lengths)), items, targets


def evaluate(
    model: Any,
    split: splits.Split,
    cutoffs: tuple[int, ...] = (1, 10),
    exclude_seen: bool | None = None,
) -> dict[str, float]:
    """Test metrics over the whole catalogue: recall@K, ndcg@max K. None: as the split's protocol."""
    exclude = split.protocol.exclude_seen if exclude_seen is None else exclude_seen
    return metrics.summary(ranks(model, split.test, exclude), cutoffs)


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


@torch.no_grad()
def score_in_batches(model: Any, holdout: splits.Holdout) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Pairs (scores (b, n_items + 1) on CPU, row numbers (b,)), each row once, longest first.

    Rows of about one length share a batch, so that little padding is computed: 128 rows, or as many
    as have _SCORES scores in a catalogue of a million.
    """
    rows_at_once = max(1, min(128, _SCORES // (model.n_items + 1)))
    device = getattr(model, "table", torch.empty(0)).device
    order = np.argsort(-np.minimum(holdout.histories.lengths, model.max_length), kind="stable")
    for start in range(0, len(order), rows_at_once):
        rows = order[start : start + rows_at_once]
        if getattr(model, "by_user", False):
            given = torch.from_numpy(holdout.users[rows])
        else:
            given = pad_right([holdout.histories[row] for row in rows], model.max_length)
        yield model.score(given.to(device)).cpu(), rows


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
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return (commit or "unknown") + ("+changes" if git("status", "--porcelain") else "")
    except OSError:
        return "unknown"


def _schedule(settings: Settings) -> training.Schedule:
    names = {item.name for item in fields(training.Schedule)}
    return training.Schedule(**{n: v for n, v in asdict(settings).items() if n in names})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and be the only process to work in it; InputError if another one does.

    The kernel unlocks when the process ends, however it ends: a file "lock" that was left behind
    locks nothing.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): check the disk."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder} is being worked on by process {file.read() or 'unknown'}: wait until it "
                "ends, or stop it; the same call then goes on."
            ) from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise InputError(f"{folder} was just left by another process: start again.")
        file.truncate(0)
        print(f"{os.getpid()} on {platform.node()}", end="", file=file, flush=True)
        yield
        path.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """`write` of a dictionary as JSON."""
    write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write(path: Path, content: bytes) -> None:
    """All or nothing: a reader sees the old file or the new one. InputError on a full disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{path} could not be written ({error.strerror}): free some disk space or choose "
            "another folder; what was finished before is kept."
        ) from error
