"""Settings -> a run folder with evidence. The same settings on the same data are trained once.

A `Settings` object is the command line, the notebooks' parameters and the record of a run. A run is
found again by the hash of its settings and of the data file.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

from gsas_lab import interactions, metrics, ranking, splits, theory, training
from gsas_lab.batches import WINDOWS, pad_right
from gsas_lab.encoders import BLOCKS, SASRec
from gsas_lab.errors import InputError
from gsas_lab.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parent.parent  # the checkout
BERNOULLI = ("bce", "gbce", "expected_gbce")  # losses of σ(s), whose fixed point is Theorem 5.1
_SCORES = 1 << 25  # held at once at evaluation: 128 MB
FORMAT = 2  # of run folders: a change that alters results counts it up


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
    sampler: str = _option("positive-excluded", "what a negative is", tuple(SAMPLERS))
    theory_start: bool = _option(
        False, "start a scalar output bias where Theorem 5.1 puts an average item"
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
        ranges: dict[str, tuple[float, float]] = {
            "t": (0, 1),
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

    @property
    def name(self) -> str:
        """The system's name in the paper's words."""
        if self.loss == "bce":
            return "SASRec" if self.k == 1 else f"SASRec, BCE, k = {self.k}"
        if self.loss == "expected_gbce":
            return f"{_gsasrec(self.k, self.t)}, expected loss"
        if self.loss == "gbce":
            return "gSASRec" if (self.k, self.t) == (256, 0.75) else _gsasrec(self.k, self.t)
        return "SASRec, softmax" if self.loss == "softmax" else "SASRec, sampled softmax"

    def beta(self, n_items: int) -> float:
        """β of Eq. (27) among n_items items; 1 for the losses without one."""
        if self.loss not in ("gbce", "expected_gbce"):
            return 1.0
        return float(theory.beta_from_t(self.t, theory.alpha(self.k, n_items)))


_AT_LEAST_ONE = (
    "min_user min_item validation_users d blocks heads max_length k epochs patience batch_size"
).split()


def _gsasrec(k: int, t: float) -> str:
    return f"gSASRec, t = {t:g}" if k == 256 else f"gSASRec, k = {k}, t = {t:g}"


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
    def data(self) -> Data:
        return load_data(self.settings)

    @cached_property
    def model(self) -> SASRec:
        """The best weights, on CPU, ready to score."""
        saved = training.read_checkpoint(self.folder / "model.pt", self.folder.name)
        model = build(self.settings, self.data.split.n_items)
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
        return probability(torch.from_numpy(scores), self.settings.loss).numpy()

    @torch.no_grad()
    def recommend(
        self, history: Sequence[int | str], n: int = 10, exclude_seen: bool | None = None
    ) -> pd.DataFrame:
        """The n items most probable to come next, for anybody's history, oldest item first.

        history: items by their ids in the data set's file, or by their exact titles.
        exclude_seen: leave the history's items out; None: as the run's protocol. Columns: rank,
        item (id in the file), title, probability (of the whole catalogue: Theorem 5.1 inverted for
        BCE and gBCE, the softmax of the scores for the others) and raw, the model's own p̂.
        Raises InputError for an empty history and for items that the data set does not have.
        """
        data = self.data.interactions
        items = np.array([data.item(name) for name in history], np.int64)
        if not len(items) or n < 1:
            raise InputError(
                f"A history of {len(items)} items and n = {n}: give 1 or more of both."
            )
        scores = self.model.score(pad_right([items], self.model.max_length))[:, 1:].numpy()
        if self.settings.loss in BERNOULLI:
            # With collisions the inverse exceeds 1 where no P could have led to the score.
            prior = np.minimum(theory.prior_from_logit(scores[0], *self.fixed_point), 1.0)
        else:
            prior = torch.from_numpy(scores[0].astype(float)).softmax(-1).numpy()
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
                "raw": self.probabilities(scores)[0, first],
            }
        )

    @cached_property
    def outcome(self) -> "Outcome":
        """Ranks, Σp and the first items of all test users, under the run's protocol."""
        split = self.data.split
        return examine(self.model, split.test, split.protocol.exclude_seen, loss=self.settings.loss)

    @property
    def fixed_point(self) -> tuple[float, float, bool]:
        """Theorem 5.1's α, β and collisions for this run; softmax learns P itself: (1, 1, False)."""
        s, n_items = self.settings, self.data.split.n_items
        if s.loss == "softmax":
            return 1.0, 1.0, False
        collisions = s.sampler == "whole-catalogue"
        return theory.alpha(s.k, n_items, 0 if collisions else 1), s.beta(n_items), collisions


def identity(settings: Settings, data: Data) -> str:
    """The run's name: a hash of everything that decides its result."""
    record = json.dumps([FORMAT, asdict(settings), data.interactions.sha256], sort_keys=True)
    return f"{settings.loss}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"


def runs_folder() -> Path:
    """$GSAS_LAB_RUNS, or outputs/runs in the project."""
    return Path(os.environ.get("GSAS_LAB_RUNS", ROOT / "outputs" / "runs"))


def build(settings: Settings, n_items: int) -> SASRec:
    """The settings' model with fresh weights, drawn from the settings' seed."""
    bias = None
    if settings.theory_start and settings.loss in BERNOULLI:
        alpha = theory.alpha(settings.k, n_items)
        bias = float(theory.converged_logit(1 / n_items, alpha, settings.beta(n_items)))
    with _building, torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return SASRec(
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


def train(
    settings: Settings, on_epoch: Callable[[list[dict[str, float]]], None] | None = None
) -> Run:
    """Train, or find what was trained already: settings -> Run.

    A run that was interrupted goes on after its last whole epoch. on_epoch(history) is called after
    each epoch with all rows so far.
    """
    data = load_data(settings)
    name = identity(settings, data)
    folder = runs_folder() / name
    if (folder / "metrics.json").exists():
        return Run(settings, folder)
    device = choose_device(settings.device)
    loss = training.objective(
        settings.loss, settings.k, settings.t, SAMPLERS[settings.sampler], data.split.n_items
    )
    if settings.loss != "softmax":
        theory.alpha(settings.k, data.split.n_items)  # refuses a k that the catalogue cannot serve
    model = build(settings, data.split.n_items).to(device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "settings.json", asdict(settings))
        _write_json(folder / "protocol.json", data.split.protocol.as_dict())
        _write_json(folder / "environment.json", environment(device))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): check the disk."
        ) from None

    held = data.split.validation
    exclude = data.split.protocol.exclude_seen
    started = time.perf_counter()
    progress = training.fit(
        model,
        data.split.train,
        loss,
        _schedule(settings),
        lambda m: float(metrics.ndcg(ranks(m, held, exclude), 10).mean()),
        folder / "checkpoint.pt",
        name,
        settings.seed,
        on_epoch,
        settings.name,
    )
    history = pd.DataFrame(progress.history)
    outcome = examine(model, data.split.test, exclude, loss=settings.loss)
    low, high = metrics.bootstrap_interval(metrics.ndcg(outcome.ranks, 10))
    result: dict[str, Any] = metrics.summary(outcome.ranks)
    result |= {
        "ndcg@10 95% interval": [low, high],
        "mean sum of p": float(outcome.sums.mean()),
        "median sum of p": float(np.median(outcome.sums)),
        "validation ndcg@10": progress.best,
        "best epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "training seconds": float(history["seconds"].sum()),
        "total seconds": time.perf_counter() - started,
        "positions": int(history["positions"].sum()),
        "device": str(device),
    }
    training.write_checkpoint(folder / "model.pt", {"identity": name, "model": model.state_dict()})
    history.to_csv(folder / "history.csv", index=False)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    _write_json(folder / "metrics.json", result)  # last: its presence says that the run is whole
    return Run(settings, folder)


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


def probability(scores: Tensor, loss: str) -> Tensor:
    """p̂ from scores (..., n): softmax where the loss is the full softmax, σ(s) otherwise.

    SASRec with sampled softmax is shown by σ(s) as well, as in the paper's Figure 1: its own
    normaliser is a random sample of the catalogue.
    """
    return scores.softmax(-1) if loss == "softmax" else scores.sigmoid()


def examine(
    model: Any, holdout: splits.Holdout, exclude_seen: bool, top: int = 100, loss: str = "bce"
) -> Outcome:
    """Rank the whole catalogue for each user of a holdout, by `ranking.rank_of_targets`.

    model: anything with `n_items`, `max_length` and `score(items (B, T)) -> (B, n_items + 1)`.
    exclude_seen: the history's items do not compete (the target always does). loss: how scores
    become p̂.
    """
    found, order_of_rows = [], []
    for scores, rows in score_in_batches(model, holdout):
        order_of_rows.append(rows)
        seen_rows, seen_items, targets = _seen(holdout, rows, exclude_seen)
        rank = ranking.rank_of_targets(scores, targets, seen_rows, seen_items)
        prob = probability(scores, loss)  # column 0: scores are −inf, so 0
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
        items = pad_right([holdout.histories[row] for row in rows], model.max_length)
        yield model.score(items.to(device)).cpu(), rows


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


def _write_json(path: Path, content: dict) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, path)
