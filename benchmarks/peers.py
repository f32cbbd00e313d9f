"""gSASRec by this suite and by its peers on MovieLens-1M: `make bench-peers`, benchmarks/peers.csv.

    python benchmarks/peers.py [seconds of training, each: 1800]

The same loss (gBCE, k = 256, t = 0.75), training interactions, width, blocks, length and batch, in one
environment (.venv-interop) on two threads, one after the other, each in a process of its own:

- ours: `recipes.quick`, which trains on every window of a history; its encoder and schedule.
- RecTools: its SASRecModel with its gBCE and defaults; the last window of each user.
- literal: the formulation of the paper's public PyTorch port, written for this: the paper's block,
  tables apart, embeddings from N(0, 1), dropout 0.5, Adam at 0.001, the last window of each user,
  every embedding gathered and the loss in float64 (`usual_gbce` of tests/reference.py).

After each pass all 6,040 test users are ranked over the whole catalogue, what they have seen left out,
each in its own way and outside the clock of the training. No weights are chosen by them: a row has the
seconds of training until their NDCG@10 first reached so much, empty where it did not.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import gsas_lab  # noqa: F401  isort: skip (before torch: how its threads wait)
import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import reference  # noqa: E402

from gsas_lab import batches, experiment, metrics, ranking, recipes, runs, splits, training  # noqa: E402
from gsas_lab.models import Model  # noqa: E402

K, T, D, LENGTH, BATCH, THREADS = 256, 0.75, 64, 200, 128, 2
REACHED = 0.15, 0.17
# Of a pass: its seconds, the positions trained on, and what ranks all test users: (n,), 11 for any > 10.
Told = Callable[[float, int, Callable[[], np.ndarray]], None]


def settings() -> experiment.Settings:
    return recipes.quick(recipes.gsasrec(K, T), "ml-1m")


def ours(told: Told) -> None:
    made = experiment.assemble(settings())
    model = made.model()

    def ended(history: list[dict]) -> None:
        seconds, positions = history[-1]["seconds"], int(history[-1]["positions"])
        told(seconds, positions, lambda: ranking.ranks(model, made.split.test, True))

    with tempfile.TemporaryDirectory() as folder:
        training.fit(made, model, lambda model: 0.0, Path(folder) / "c.pt", "peers", ended)


def rectools(told: Told) -> None:
    from pytorch_lightning import Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    split = experiment.load_data(settings()).split

    def dataset(users: np.ndarray, histories: splits.Histories) -> Dataset:
        of_each = np.repeat(users, histories.lengths)
        table = pd.DataFrame({Columns.User: of_each, Columns.Item: np.concatenate([*histories])})
        table[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(table.index, "s")
        return Dataset.construct(table.assign(**{Columns.Weight: 1.0}))

    users, test = np.arange(len(split.train)), split.test
    train, seen = dataset(users, split.train), dataset(test.users, test.histories)
    model = SASRecModel(
        loss="gBCE", n_negatives=K, gbce_t=T, n_factors=D, n_blocks=2, n_heads=1,
        session_max_len=LENGTH, batch_size=BATCH, dataloader_num_workers=0, epochs=1,
        get_trainer_func=lambda: Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ),
    )  # fmt: skip

    def ranks() -> np.ndarray:
        first = model.recommend(test.users, seen, k=10, filter_viewed=True)
        target = pd.Series(test.targets, test.users).loc[first[Columns.User]].to_numpy()
        hit = first[first[Columns.Item].to_numpy() == target]
        return hit.set_index(Columns.User)[Columns.Rank].reindex(test.users, fill_value=11)

    positions = int(np.minimum(split.train.lengths - 1, LENGTH).clip(0).sum())
    for number in range(10_000):
        start = time.perf_counter()
        model.fit(train) if number == 0 else model.fit_partial(train, 0, 1)
        told(time.perf_counter() - start, positions, ranks)


def literal(told: Told) -> None:
    made = experiment.assemble(replace(recipes.gsasrec(K, T), dataset="ml-1m", d=D))
    split, beta = made.split, made.loss.beta
    model, rng = made.model(), np.random.default_rng(0)
    for table in (model.item_embedding, model.position_embedding, model.output_embedding):
        torch.nn.init.normal_(table.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    windows = [items[-LENGTH - 1 :] for items in split.train]
    windows = [items for items in windows if len(items) > 1]

    def step(part: list[np.ndarray]) -> int:
        given = batches.pad_right([items[:-1] for items in part], LENGTH)
        follows = batches.pad_right([items[1:] for items in part], LENGTH)
        hidden, real = model(given)[follows > 0], follows[follows > 0]
        negatives = torch.randint(1, split.n_items + 1, (len(real), K))
        optimizer.zero_grad()
        reference.usual_gbce(hidden, model.table, real, negatives, beta).backward()
        optimizer.step()
        return len(real)

    while True:
        start, positions = time.perf_counter(), 0
        model.train()
        order = rng.permutation(len(windows))
        for part in np.split(order, range(BATCH, len(order), BATCH)):
            positions += step([windows[row] for row in part])
        told(time.perf_counter() - start, positions, lambda: first_ten(model, split.test))


@torch.no_grad()
def first_ten(model: Model, test: splits.Holdout) -> np.ndarray:
    """Ranks as they are usually found: every score, the seen ones struck out a user at a time, topk."""
    model.eval()
    found = []
    for rows in np.split(np.arange(len(test.users)), range(BATCH, len(test.users), BATCH)):
        histories = [test.histories[row][-LENGTH:] for row in rows]
        hidden = model(batches.pad_right(histories, LENGTH))
        scores = hidden[torch.arange(len(rows)), [len(h) - 1 for h in histories]] @ model.table.T
        scores[:, 0] = -torch.inf
        for row, each in zip(rows, scores, strict=True):
            each[test.histories[row]] = -torch.inf
        hit = scores.topk(10).indices == torch.as_tensor(test.targets[rows])[:, None]
        found.append(torch.where(hit.any(1), hit.int().argmax(1) + 1, 11))
    return torch.cat(found).numpy()


CONTESTANTS = {"ours": ours, "RecTools": rectools, "literal": literal}


def measured(name: str, seconds: float) -> dict:
    """One contestant until its training took so many seconds, or has ended."""
    torch.set_num_threads(THREADS)
    passes = []

    def told(spent: float, positions: int, ranks: Callable[[], np.ndarray]) -> None:
        start = time.perf_counter()
        found = float(metrics.ndcg(np.asarray(ranks()), 10).mean())
        passes.append((spent, positions, found, time.perf_counter() - start))
        print(f"{name}, pass {len(passes)}: {spent:.1f} s, NDCG@10 {found:.4f}", flush=True)
        if sum(spent for spent, *_ in passes) > seconds:
            raise TimeoutError

    try:
        CONTESTANTS[name](told)
    except TimeoutError:
        pass
    spent, positions, ndcg, rank = map(np.array, zip(*passes, strict=True))
    clock = np.cumsum(spent)
    reached = {goal: clock[ndcg >= goal][:1] for goal in REACHED}
    return {
        "what": name,
        "s a pass": np.median(spent),
        "positions a pass": positions[0],
        "s to rank all users": np.median(rank),
        **{f"s to {goal}": at[0] if len(at) else None for goal, at in reached.items()},
        "passes": len(passes),
        "s": clock[-1],
        "ndcg@10": ndcg[-1],
    }


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1800.0
    rows = []
    for name in CONTESTANTS:
        with get_context("spawn").Pool(1) as child:
            rows.append(child.apply(measured, (name, seconds)))
    torch.set_num_threads(THREADS)
    told = runs.environment(torch.device("cpu")) | {"rectools": version("rectools")}
    table = pd.DataFrame(rows).assign(**told).drop(columns=["format", "gsas-lab"])
    table.to_csv(ROOT / "benchmarks" / "peers.csv", index=False, float_format="%.5g")
    print(table.T.to_string())


if __name__ == "__main__":
    main()
