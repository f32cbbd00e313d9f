"""One system, and how far its NDCG@10 moves with each choice of protocol that papers differ in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gsas_lab import files, interactions, metrics, ranking, recipes, results, runs
from gsas_lab.settings import Settings
from gsas_lab.splits import Holdout, Split

CANDIDATES = 100  # sampled items that compete with the target
TIED = 2  # interactions that bear one time, of each user's from the first
HERE = "as here"
FILE = "ladder.csv"


def of(dataset: str, profile: str | None = None, **over: object) -> tuple[pd.DataFrame, str]:
    """The ladder of a data set and where it comes from, as `results.of_paper` does it: committed, or
    gSASRec trained now in that budget, or, where that is long, the known-truth world's.
    """
    committed = results.REFERENCE / dataset / FILE
    if profile in (None, "reference") and not over and committed.exists():
        return _read(committed), f"Committed evidence: {committed.relative_to(files.ROOT)}."
    given = {"dataset": dataset} | over
    budget = "small" if profile in (None, "reference") else profile
    settings = recipes.scaled(recipes.settings("gsasrec", budget, given), given)
    if profile is None and results.estimate({"": settings}) * 4 > results.CHEAP:
        note = "NOT YOUR DATA: the known-truth world's ladder, as yours would take minutes. Choose "
        return _read(results.REFERENCE / "known-truth" / FILE), note + "profile = 'small' for it."
    return measure(settings), f"Measured now: {settings.name} on {dataset}, profile {budget}."


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, index_col="choice")


def measure(settings: Settings, train: bool = True) -> pd.DataFrame:
    """One row a choice, the first as here; test users.

    Columns: of ("ranking", the same weights; "training", other weights), NDCG@10, its 95 % interval
    over users as low and high, system, seed. train: also what changes the training, two or three
    runs more.
    """
    run = runs.train(settings)
    rows = {name: ("ranking", values) for name, values in _ranked(run).items()}
    if train:
        for name, other in _trained(settings, run).items():
            ranks = runs.train(other).ranks
            rows[name] = "training", metrics.ndcg(ranks, 10)
    table = []
    for name, (what, values) in rows.items():
        low, high = metrics.bootstrap_interval(values)
        table.append((name, what, values.mean(), low, high, settings.name, settings.seed))
    columns = ["choice", "of", "NDCG@10", "low", "high", "system", "seed"]
    return pd.DataFrame(table, columns=columns).set_index("choice")


def _ranked(run: runs.Run) -> dict[str, np.ndarray]:
    """NDCG@10 of every test user by choice; the weights are those of the run."""
    split = run.data.split
    exclude = split.protocol.exclude_seen
    other = "seen items kept" if exclude else "seen items left out"
    ranks = run.ranks
    popular = np.bincount(split.train.items, minlength=split.n_items + 1).astype(float)
    uniform, drawn = (_among_drawn(run, split, q) for q in (np.ones_like(popular), popular))
    return {
        HERE: metrics.ndcg(ranks, 10),
        other: metrics.ndcg(ranking.ranks(run.model, split.test, not exclude), 10),
        f"{CANDIDATES} candidates, uniform": metrics.ndcg(uniform, 10),
        f"{CANDIDATES} candidates, by popularity": metrics.ndcg(drawn, 10),
        "ideal of 10 hits": metrics.ndcg(ranks, 10) / (1 / np.log2(np.arange(2, 12))).sum(),
    }


def _among_drawn(run: runs.Run, split: Split, weight: np.ndarray) -> np.ndarray:
    """Ranks (n,) among the target and CANDIDATES items, drawn without replacement in proportion to
    `weight` (n_items + 1,) from those that the user has not seen.
    """
    generator = torch.Generator().manual_seed(run.settings.seed)
    test = split.test
    found = np.empty(len(test.users), np.int64)
    for scores, rows in ranking.score_in_batches(run.model, test):
        held: Holdout = test.subset(rows)
        key = torch.from_numpy(np.log(np.maximum(weight, 0.5))).expand(scores.shape).clone()
        key -= torch.empty_like(key).exponential_(generator=generator).log()  # Gumbel's noise
        seen = torch.from_numpy(held.histories.items.astype(np.int64))
        key[
            torch.from_numpy(np.repeat(np.arange(len(rows)), held.histories.lengths)), seen
        ] = -torch.inf
        targets = torch.from_numpy(held.targets)
        key[:, 0] = -torch.inf
        key.scatter_(1, targets[:, None], -torch.inf)
        top = key.topk(min(CANDIDATES, key.shape[1] - 1))
        own, theirs = scores.gather(1, targets[:, None]), scores.gather(1, top.indices)
        before = (theirs > own) | ((theirs == own) & (top.indices < targets[:, None]))
        found[rows] = 1 + (before & (top.values > -torch.inf)).sum(1).numpy()
    return found


def _trained(settings: Settings, run: runs.Run) -> dict[str, Settings]:
    """The choices that make another training."""
    windows = "last" if settings.windows == "all" else "all"
    found = {
        "nobody's second-last trained": replace(settings, split="port"),
        f"{windows} windows trained": replace(settings, windows=windows),
    }
    if run.data.interactions.world is not None:
        path = str(_tied(run.data.interactions))
        found["equal times by item"] = replace(settings, dataset=path, exclude_seen=False)
    return found


def _tied(data: interactions.Interactions) -> Path:
    """A file of the same interactions, of which TIED in a row bear one time and stand in the order
    of their items, as a log without finer times does that was sorted by item.
    """
    path = files.runs_folder().parent / "ladder" / f"{data.sha256[:12]}-by-item.csv"
    if not path.exists():
        users = np.repeat(data.user_ids, data.lengths)
        times = np.concatenate([np.arange(n) // TIED for n in data.lengths])
        table = pd.DataFrame({"user": users, "item": data.item_ids[data.items], "time": times})
        table = table.sort_values(["user", "time", "item"], kind="stable")
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, table.to_csv(index=False).encode())
    return path
