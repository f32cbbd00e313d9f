"""Settings -> a run folder with evidence. The same settings on the same data are trained once.

A `Settings` object is the command line, the notebooks' parameters and the record of a run. A run is
found again by the hash of its settings and of the data as they were read.

A run folder serves anywhere, without the data: settings.json, protocol.json (what was trained on),
environment.json (what made it), items.json (ids, titles, α), model.safetensors, history.csv,
ranks.npy, metrics.json, and manifest.json with the checksum of each, written last. While it trains
there are a checkpoint.pt and a best-<epoch>.pt in their place, or share-<epoch>-<process>.pt.
"""

import hashlib
import io
import json
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, nullcontext
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
    __version__,
    distributed,
    files,
    interactions,
    metrics,
    ranking,
    shards,
    training,
)
from gsas_lab.batches import pad_right
from gsas_lab.errors import Busy, InputError, counted
from gsas_lab.experiment import Data, Experiment, assemble, load_data, loss_of, model_of, stamp
from gsas_lab.interactions import PAD
from gsas_lab.losses import SIGMOID, SOFTMAX, Loss
from gsas_lab.models import MODELS, Model, Serving
from gsas_lab.repairs import Repair
from gsas_lab.rows import check_memory, check_weights, choose
from gsas_lab.samplers import Recorded, Sampler
from gsas_lab.settings import OF_DATA, Settings
from gsas_lab.splits import Holdout
from gsas_lab.theory import FixedPoint

FORMAT = 4  # of run folders: a change that alters results counts it up
READABLE = ("3", "4")  # 3: without manifest, items and safetensors; what is committed stays so
FILES = (
    "settings.json",
    "protocol.json",
    "environment.json",
    "items.json",
    "model.safetensors",
    "history.csv",
    "ranks.npy",
    "metrics.json",
)
MADE_AGAIN = {"ranks.npy", "metrics.json"}  # which follow from the others
_SUMMED = 1000  # users whose Σp stands for everybody's in a large catalogue


@dataclass(frozen=True)
class Run:
    """A trained run: its settings and the folder that holds its evidence."""

    settings: Settings
    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """Format, identity, digest of the data, checksum of each file; none in folders of format 3.

        InputError if it is missing, damaged, or of another version.
        """
        if not (self.folder / files.MANIFEST).exists():
            if (self.folder / "model.pt").exists():
                return None
            raise InputError(f"{self.folder} has no {files.MANIFEST}: it holds no finished run.")
        found = files.read_json(self.folder / files.MANIFEST)
        if found.get("format") != FORMAT:
            raise _other_version(self.folder)
        return files.read_manifest(self.folder)

    def damaged(self) -> list[str]:
        """Names of the files that are missing, or not as they were written."""
        if self.manifest is None:
            return []
        return [name for name in FILES if not self._whole(name)]

    def require_files(self) -> None:
        """InputError if one of its files is missing; their content is not read."""
        for name in FILES if self.manifest else ():
            if not (self.folder / name).exists():
                raise InputError(f"{self.folder / name} is missing: {_advice(name, self)}")

    def _whole(self, name: str) -> bool:
        try:
            self.read(name)
        except InputError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """The bytes of one of its files, as they were written; InputError if they are not."""
        data = files.read(self.folder / name)
        if self.manifest and files.checksum(data) != self.manifest["files"].get(name):
            raise InputError(
                f"{self.folder / name} is damaged or was edited: {_advice(name, self)}"
            )
        return data

    def _json(self, name: str) -> dict[str, Any]:
        return files.parsed(self.folder / name, self.read(name))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Test metrics, seconds, device: metrics.json."""
        return self._json("metrics.json")

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: epoch, loss, ndcg@10 (validation), positions, seconds."""
        return pd.read_csv(io.BytesIO(self.read("history.csv")))

    @cached_property
    def environment(self) -> dict[str, str]:
        """What made the run, see `environment`: environment.json."""
        return self._json("environment.json")

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What was trained on and how it is judged, see `splits.Protocol`: protocol.json."""
        return self._json("protocol.json")

    @cached_property
    def ranks(self) -> np.ndarray:
        """Rank of each test user's target, in the order of the users: (n_users,) int32."""
        try:
            return np.load(io.BytesIO(self.read("ranks.npy")), allow_pickle=False)
        except (ValueError, EOFError) as error:  # only without a manifest
            raise InputError(f"{self.folder / 'ranks.npy'} cannot be read ({error}).") from None

    @cached_property
    def data(self) -> Data:
        """The data set, read again; InputError if it is not what the run was trained on."""
        data = load_data(self.settings)
        if self.manifest and self.manifest["data"] != data.digest:
            raise InputError(
                f"{self.settings.dataset} is not what {self.folder.name} was trained on: restore "
                "the data, or train again. recommend() works without them."
            )
        return data

    @cached_property
    def items(self) -> interactions.Interactions:
        """The catalogue, without users: ids and titles of its items. From the folder alone."""
        if self.manifest is None:
            return self.data.interactions
        told, titles = self._json("items.json"), None
        if told["titles"] is not None:
            titles = np.array(["padding", *told["titles"]], object)
        return interactions.Interactions(
            self.protocol["dataset"],
            items=np.zeros(0, np.int32),
            offsets=np.zeros(1, np.int64),
            user_ids=np.zeros(0, np.int64),
            item_ids=np.array([0, *told["ids"]], object),
            sha256=self.protocol["sha256"],
            tie_rule=self.protocol["tie_rule"],
            titles=titles,
        )

    @cached_property
    def sampler(self) -> Sampler:
        """What its negatives were drawn by, or its rates, which the folder tells."""
        if self.manifest is None:
            return assemble(self.settings).sampler
        told = self._json("items.json")
        alpha = np.array(told["alpha"]) if isinstance(told["alpha"], list) else told["alpha"]
        return Recorded(self.settings.k, self.items.n_items, alpha, told["collisions"])

    @cached_property
    def loss(self) -> Loss:
        return loss_of(self.settings, self.sampler)

    @cached_property
    def model(self) -> Model:
        """The best weights, on CPU, ready to score."""
        if self.manifest is None:
            model = assemble(self.settings).model()
            model.load_state_dict(files.read_weights_of_format_3(self.folder / "model.pt"))
            return model.eval()
        shape, path = self._json("items.json"), self.folder / "model.safetensors"
        model = model_of(self.settings, self.items.n_items, shape["users"], shape["bias"])
        files.load_weights(model, self.read(path.name), path)
        return model.eval()

    def scores(self, holdout: Holdout) -> np.ndarray:
        """Scores of the whole catalogue for each user of a holdout: (n, n_items) float32 logits.

        Column i − 1 is item i: padding has no column. For a few thousand users at a time.
        """
        found = np.empty((len(holdout.users), self.items.n_items), np.float32)
        for scores, rows in ranking.score_in_batches(self.model, holdout):
            found[rows] = scores[:, 1:]
        return found

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """p̂ of scores (n, n_items), by the loss's link; NaN where it has none."""
        link = self.loss.link
        return (
            np.full_like(scores, np.nan) if link is None else link(torch.from_numpy(scores)).numpy()
        )

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """What repairs read, of scores (n, n_items): logit p̂ in float64; of BPR, the scores."""
        if self.loss.link is not SOFTMAX:
            return scores.astype(float)
        log_prob = torch.from_numpy(scores).double().log_softmax(-1).numpy()
        with np.errstate(divide="ignore"):  # a p̂ of exactly 1
            return log_prob - np.log(-np.expm1(log_prob))

    @torch.no_grad()
    def export(self, path: str | Path) -> Path:
        """The encoder for a server that has torch alone: a program of torch.export (.pt2) -> its path.

        torch.export.load(path).module()(items): items (B, max_length) int64, oldest first and padded
        with 0 on the right, any B -> hidden states of the next item (B, d) and the table
        (n_items + 1, d). hidden @ table.T, plus model.bias where there is one, are the scores, which
        is checked before this returns. InputError for a model that reads no histories, one that
        torch cannot export, and a program that scores otherwise.
        """
        model = self.model
        if model.by_user or not model.trained:
            raise InputError(f"{model.words} reads no histories: there is no encoder to export.")
        draw = torch.Generator().manual_seed(0)
        items = torch.randint(1, model.n_items + 1, (3, model.max_length), generator=draw)
        items[0, 1:] = PAD
        dynamic = ({0: torch.export.Dim("batch")},)
        try:
            program = torch.export.export(Serving(model), (items,), dynamic_shapes=dynamic)
        except Exception as error:  # torch has a dozen kinds of them
            raise InputError(f"torch cannot export {model.words}: {error}") from error
        for some in (items, items[:1]):
            hidden, table = program.module()(some)
            scores, wanted = (hidden @ table.T)[:, 1:], model.score(some)[:, 1:]
            if not torch.allclose(scores + (model.bias or 0.0), wanted, rtol=1e-4, atol=1e-4):
                raise InputError(f"The exported {model.words} does not score as the run does.")
        saved = io.BytesIO()
        torch.export.save(program, saved)
        path = files.chosen(path, "file")
        files.write(path, saved.getvalue())
        return path

    @torch.no_grad()
    def recommend(
        self,
        history: Iterable[int | str] | int | str,
        n: int = 10,
        exclude_seen: bool | None = None,
        repair: Repair | None = None,
    ) -> pd.DataFrame:
        """The n items most probable to come next, for anybody's history, oldest item first.

        history: items by their ids in the data set's file, or by their exact titles; one alone is a
        history of one item. Those that the catalogue does not have are skipped, with a warning.
        exclude_seen: leave the history's items out; None: as the run's protocol. Columns: rank,
        item (id in the file), title, probability (of the whole catalogue: Theorem 5.1 inverted for
        BCE and gBCE, the softmax of the scores for the others) and raw, the model's own p̂.
        Needs the run folder alone. BPR has no probabilities: NaN there. repair: a repair of this
        run's `logits`, as from `repairs.load`, which gives `probability` in the place of theory, among
        what may be recommended; the order stays that of the scores.

        Raises InputError for a history in which no item is known, that has no order (a set, a
        mapping, a table) or holds what is no item (a list, a missing value), for an n below 1, and
        for a model that knows users and not histories.
        """
        if self.model.by_user:
            raise InputError(f"{self.settings.name} knows the users of its data set, no histories.")
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise InputError(f"n = {n!r} recommendations: give a whole number, 1 or more.")
        if not isinstance(exclude_seen, bool | np.bool_ | None):
            raise InputError(f"exclude_seen = {exclude_seen!r}: give True, False or None.")
        data = self.items
        items = _known(data, _history(history))
        scores = self.model.score(pad_right([items], self.model.max_length))[:, 1:].numpy()
        raw, prior = self.probabilities(scores)[0], self.loss.prior(scores[0], self.sampler)
        prior = np.full(len(raw), np.nan) if prior is None else prior
        order = np.argsort(-scores[0], kind="stable")
        if self.protocol["exclude_seen"] if exclude_seen is None else exclude_seen:
            order = order[~np.isin(order + 1, items)]
        if repair is not None:
            rank = np.full(len(prior), len(prior))
            rank[order] = np.arange(1, len(order) + 1)
            group = repair.groups(np.arange(1, len(rank) + 1), len(rank))
            prior = repair(self.logits(scores)[0], rank=rank, group=group)
        first = order[:n]
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(first) + 1),
                "item": data.item_ids[first + 1].tolist(),
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
            self.model, split.test, split.protocol.exclude_seen, link=self.loss.link
        )

    @property
    def fixed_point(self) -> FixedPoint:
        """Where p̂ ends by Theorem 5.1; InputError for losses that learn differences of scores."""
        point = self.loss.fixed_point(self.sampler)
        if point is None:
            raise InputError(
                f"{self.settings.name} learns differences of scores: there is no fixed point of σ(s)."
            )
        return point

    @property
    def theorem(self) -> FixedPoint | None:
        """The same, of losses whose p̂ is σ(s), which it makes overconfident; else None."""
        return self.loss.fixed_point(self.sampler) if self.loss.link is SIGMOID else None


def _other_version(folder: Path) -> InputError:
    return InputError(
        f"{folder} comes from another version of gsas-lab: train the run again, "
        "or check out the commit that its environment.json names."
    )


def _advice(name: str, run: Run) -> str:
    if name in MADE_AGAIN:
        return "train with the same settings, which makes it again from the weights."
    return f"delete the folder {run.folder} and train the run again."


def _history(given: Any) -> list[str]:
    """A history as a user wrote it -> names of its items, in order."""
    if isinstance(given, Mapping | Set | pd.DataFrame | bytes | bytearray):
        raise InputError(
            f"A history is a list of items, oldest first, and no {type(given).__name__}."
        )
    if (
        isinstance(given, str)
        or not isinstance(given, Iterable)
        or getattr(given, "shape", None) == ()
    ):
        given = [given.item() if isinstance(given, np.ndarray) else given]
    names = []
    for place, item in enumerate(given, 1):
        if isinstance(item, float | np.floating) and item == item // 1:  # pandas makes 55 a 55.0
            item = int(item)
        if not isinstance(item, str | int | float | np.generic) or isinstance(
            item, bool | np.bool_
        ):
            raise InputError(
                f"Item {place} of the history is {item!r}: give an id or a title, and no "
                f"{type(item).__name__}."
            )
        if item != item:
            raise InputError(f"Item {place} of the history is missing: leave it out.")
        names.append(str(item))
    return names


def _known(catalogue: interactions.Interactions, names: list[str]) -> np.ndarray:
    """Numbers of the items that the catalogue has (n,) int64; the others are skipped with a word."""
    found, unknown = [], []
    for name in names:
        try:
            found.append(catalogue.item(name))
        except InputError as error:
            unknown.append(name)
            reason = error
    if not names:
        raise InputError("A history of 0 items: give 1 or more.")
    if not found:
        raise reason
    if unknown:
        warnings.warn(
            f"{len(unknown)} of {len(names)} items of the history are skipped, as "
            f"{catalogue.name} has no {', '.join(map(repr, unknown[:3]))}"
            f"{' …' if len(unknown) > 3 else ''}.",
            stacklevel=3,
        )
    return np.array(found, np.int64)


def identity(settings: Settings, data: Data) -> str:
    """The run's name: a hash of everything that decides its result.

    All settings, those at their defaults too, so that a changed default is another run; of the
    data what was read, whatever the file's name and form; of the device what it comes down to.
    """
    told = {n: v for n, v in asdict(settings).items() if n not in OF_DATA}
    told["device"] = choose_device(settings.device).type
    own = settings.own_parts
    record = json.dumps([FORMAT, told, data.digest, *([own] if own else [])], sort_keys=True)
    kind = f"{settings.model}-{settings.loss}" if MODELS[settings.model].trained else settings.model
    return f"{kind}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"


def train(
    settings: Settings, on_epoch: Callable[[list[dict[str, float]]], None] | None = None
) -> Run:
    """Train, or find what was trained already: settings -> Run.

    A run that was interrupted goes on after its last whole epoch. on_epoch(history) is called after
    each epoch with all rows so far. With several processes (distributed.py) the first one leaves the
    folder; the others return when the training ends, before it is whole.

    InputError if another process is training this run (waited for where GSAS_LAB_HEADLESS is set,
    as in notebooks that `make run` executes), and if one of the files of the finished run
    was damaged since: training is not repeated unasked. Damaged metrics and ranks are made again
    from the weights.
    """
    experiment = assemble(settings)
    data = experiment.data
    name = identity(settings, data)
    folder = files.runs_folder() / name
    run = Run(settings, folder)
    if distributed.from_first(lambda: _found(run, experiment)):
        return run
    device = choose_device(settings.device)
    spread = MODELS[settings.model].trained and experiment.spreads(device)
    if MODELS[settings.model].trained:
        kind = choose(settings.table_optimizer, data.split.n_items, experiment.loss.whole, device)
        count = 1 if settings.tied or "tied" in settings.unread else 2
        share = distributed.here(device) if spread else 1.0
        check_memory(data.split.n_items, settings.d, count, kind, device, share=share)
        about = 12 * settings.d * settings.blocks + settings.max_length + len(data.split.train)
        if settings.d * about > 10**8:  # counting them takes a second
            elsewhere = (1 - share) * count * (data.split.n_items + 1) * settings.d
            check_weights(experiment.weights - int(elsewhere), device)
    model = experiment.model(spread).to(device)
    with _alone(folder) if distributed.first() else nullcontext():
        # Another process may have ended it just now.
        if not distributed.from_first((folder / files.MANIFEST).exists):
            _train(experiment, model, device, folder, on_epoch)
    return Run(settings, folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """`files.locked`; a notebook that runs without its reader waits for the one beside it."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(files.locked(folder))
                break
            except Busy:
                if not os.environ.get("GSAS_LAB_HEADLESS"):
                    raise
            time.sleep(0.2)
        yield


def _found(run: Run, experiment: Experiment) -> bool:
    """Is it there, finished and whole? What can be made again is; InputError for the rest."""
    folder = run.folder
    if not (folder / files.MANIFEST).exists():
        left = (folder / "model.safetensors").exists() and not (folder / "checkpoint.pt").exists()
        if left and MODELS[run.settings.model].trained:  # others have no checkpoint
            raise InputError(
                f"{folder / files.MANIFEST} is gone, so the finished run cannot be trusted: "
                f"delete the folder {folder} to train it again."
            )
        return False
    assert run.manifest is not None
    if run.manifest["identity"] != folder.name:
        raise InputError(
            f"{folder} holds another run, {run.manifest['identity']}: move it to a name of its own."
        )
    damaged = run.damaged()
    for name in damaged:
        if name not in MADE_AGAIN:
            run.read(name)  # says so
    if damaged:
        with files.locked(folder):
            again = _evaluation(experiment, run.model, run.manifest["trained"])
            for name, content in again.items():
                files.write(folder / name, content)
            sums = {name: files.checksum(content) for name, content in again.items()}
            files.write_manifest(folder, run.manifest | {"files": run.manifest["files"] | sums})
    return True


def _train(
    experiment: Experiment,
    model: Model,
    device: torch.device,
    folder: Path,
    on_epoch: Callable[[list[dict[str, float]]], None] | None,
) -> None:
    settings, data = experiment.settings, experiment.data
    dataset = settings.dataset
    if stamp(dataset):  # a file: found again from anywhere
        dataset = str(Path(dataset).expanduser().absolute())
    written: dict[str, str] = {}  # checksums
    spread = shards.over(model) > 1

    def keep(name: str, content: bytes) -> None:
        if distributed.first():
            files.write(folder / name, content)
            written[name] = files.checksum(content)

    keep("settings.json", files.as_json(asdict(settings) | {"dataset": dataset}))
    keep("protocol.json", files.as_json(data.split.protocol.as_dict()))
    keep("environment.json", files.as_json(environment(device)))

    held = data.split.validation
    exclude = data.split.protocol.exclude_seen
    started = time.perf_counter()

    def validate(m: Model) -> float:
        return float(metrics.ndcg(ranking.ranks(m, held, exclude), 10).mean())

    if not model.trained:
        progress = training.Progress(best=validate(model))
    else:
        progress = training.fit(
            experiment, model, validate, folder / "checkpoint.pt", folder.name, on_epoch
        )
    if not (distributed.first() or spread):
        return
    history = pd.DataFrame(progress.history, columns=training.HISTORY)
    trained = {
        "validation ndcg@10": progress.best,
        "best epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "training seconds": float(history["seconds"].sum()),
        "total seconds": time.perf_counter() - started,
        "positions": int(history["positions"].sum()),
        "device": str(device),
        "processes": distributed.processes(),
    }
    keep("items.json", files.as_json(_catalogue(experiment, model)))
    if spread:
        written["model.safetensors"] = shards.save(model, folder / "model.safetensors")
    else:
        keep("model.safetensors", files.weights(model))
    keep("history.csv", history.to_csv(index=False).encode())
    for name, content in _evaluation(experiment, model, trained).items():
        keep(name, content)
    if not distributed.first():
        return
    files.write_manifest(
        folder,
        {
            "format": FORMAT,
            "identity": folder.name,
            "data": data.digest,
            **({"parts": own} if (own := settings.own_parts) else {}),
            "trained": trained,
            "files": written,
        },
    )
    for left in (folder / "checkpoint.pt", *folder.glob("best-*.pt"), *folder.glob("share-*.pt")):
        left.unlink(missing_ok=True)


def _catalogue(experiment: Experiment, model: Model) -> dict[str, Any]:
    """What a run needs of its data to serve: items.json."""
    data, drawn = experiment.data, experiment.sampler
    known, alpha = data.interactions, np.asarray(drawn.alpha).tolist()
    return {
        "ids": known.item_ids[1:].tolist(),
        "titles": None if known.titles is None else [str(title) for title in known.titles[1:]],
        "users": len(data.split.train),
        "bias": None if model.bias is None else 0.0,  # its value is a weight
        "alpha": alpha,
        "collisions": drawn.collisions,
    }


def _evaluation(experiment: Experiment, model: Model, trained: dict[str, Any]) -> dict[str, bytes]:
    """The test users ranked: contents of ranks.npy and metrics.json.

    Where the catalogue is so large that it is scanned, Σp is that of the first thousand users.
    """
    split, link = experiment.split, experiment.loss.link
    test, exclude = split.test, split.protocol.exclude_seen
    if shards.over(model) > 1:
        ranks, sums = ranking.over_shards(model, test, exclude, link)
    else:
        scanned = ranking.scans(model)
        some = test.first(_SUMMED) if scanned else test
        outcome = ranking.examine(model, some, exclude, link=link)
        ranks, sums = outcome.ranks, outcome.sums
        if scanned:
            ranks = ranking.ranks(model, test, exclude)
    low, high = metrics.bootstrap_interval(metrics.ndcg(ranks, 10))
    result: dict[str, Any] = metrics.summary(ranks)
    result |= {
        "ndcg@10 95% interval": [low, high],
        "mean sum of p": None if link is None else float(sums.mean()),
        "median sum of p": None if link is None else float(np.median(sums)),
        **trained,
    }
    saved = io.BytesIO()
    np.save(saved, ranks.astype(np.int32))
    return {"ranks.npy": saved.getvalue(), "metrics.json": files.as_json(result)}


def load(folder: str | Path) -> Run:
    """A run that was trained before, from its folder.

    Wherever the folder lies and whatever it is called. InputError if it is missing, its training
    has not ended, another version made it, or one of its files is not as it was written.
    """
    folder = files.chosen(folder, "folder")
    if not folder.is_dir():
        raise InputError(
            f"There is no run folder {folder}: runs are kept in {files.runs_folder()}."
        )
    found = opened(folder)
    for name in found.damaged():
        found.read(name)
    return found


def opened(folder: Path) -> Run:
    """`load` without reading each file: only what is asked for later is checked, when it is read."""
    if not (folder / files.MANIFEST).exists():
        return _load_format_3(folder)
    found = Run(_settings(folder, Run(Settings(), folder).read("settings.json")), folder)
    assert found.manifest is not None
    if (made_of := found.manifest.get("parts", {})) != (own := found.settings.own_parts):
        changed = sorted({kind for kind in made_of | own if made_of.get(kind) != own.get(kind)})
        raise InputError(
            f"{folder} was trained with another {' and '.join(changed)} of that name: register the one "
            "of then, or train again."
        )
    return found


def _load_format_3(folder: Path) -> Run:
    if (folder / "model.safetensors").exists() or not (folder / "metrics.json").exists():
        raise InputError(
            f"{folder} holds no finished run (no {files.MANIFEST}): train it to its end first."
        )
    try:
        made_by = files.read_json(folder / "environment.json").get("format")
        saved = files.read(folder / "settings.json")
        settings = None if made_by != "3" else _settings(folder, saved)
    except InputError as error:
        raise InputError(f"{folder} cannot be read: {error} Train the run again.") from None
    if settings is None:
        raise _other_version(folder)
    return Run(settings, folder)


def _settings(folder: Path, data: bytes) -> Settings:
    saved = files.parsed(folder / "settings.json", data)
    if set(saved) - {item.name for item in fields(Settings)}:
        raise _other_version(folder)
    return Settings(**saved)


def true_probabilities(data: Data, holdout: Holdout) -> np.ndarray:
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
    """ "auto": CUDA, then MPS, then CPU, the first that can do what training needs. InputError for a
    named device that is not there or cannot.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((d for d, found in here.items() if found and _able(d)), "cpu"))
    if not here.get(name, True):
        raise InputError(f"device = '{name}': this machine has none; choose 'auto' or 'cpu'.")
    if not _able(name):
        raise InputError(
            f"device = '{name}' has no float64 or no sparse products, which samplers and losses need: "
            "choose 'cpu'."
        )
    return torch.device(name)


def _able(device: str) -> bool:
    """Can it draw in float64 and multiply by chosen pairs, as samplers and the portable losses do?"""
    try:
        torch.rand(1, dtype=torch.float64, device=device)
        some = torch.ones(2, 2, device=device)
        torch.sparse.sampled_addmm(some.to_sparse_csr(), some, some)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


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
        "device": f"{device} ({chip}, {counted(torch.get_num_threads(), 'thread')})",
        "python": platform.python_version(),
        "system": platform.system(),
        **packages,
    }


def _commit() -> str:
    if not files.CHECKOUT:
        return f"version {__version__}"

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
