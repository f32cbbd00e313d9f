"""RecTools' gBCE model on MovieLens-1M: train there, diagnose here, beside Theorem 5.1.

    make interop                      or: python tests/interop/rectools_gbce.py [ml-1m.txt] [rounds]

Runs in an environment of its own (.venv-interop). RecTools draws negatives uniformly from the whole
catalogue, the positive included, and takes α = k / (n_items − 1) for β; so σ(s) ends at
βP / (βP + k/n_items): log(β n_items / k) above log P. Prints two lines a round of training: over all
items, of which the theorem speaks, and over those that a user has not seen, where what the model gives
to the others is missing.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule  # noqa: F401

from gsas_lab import diagnosis

K, T, LENGTH, EPOCHS = 16, 0.5, 50, 4
warnings.filterwarnings("ignore")


def main(path: Path, rounds: int) -> None:
    rows = np.loadtxt(path, dtype=np.int64)
    table = pd.DataFrame(rows[:, :2], columns=[Columns.User, Columns.Item])
    table[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(
        np.arange(len(table)), "s"
    )
    table[Columns.Weight] = 1.0
    last = table.groupby(Columns.User).tail(1)  # of each user, held out
    train = table.drop(last.index)
    dataset = Dataset.construct(train)
    model = SASRecModel(
        loss="gBCE", n_negatives=K, gbce_t=T, n_factors=64, n_blocks=2, n_heads=1,
        session_max_len=LENGTH, batch_size=64, lr=2e-3, epochs=EPOCHS, dropout_rate=0.2,
        deterministic=True, dataloader_num_workers=0,
        get_trainer_func=lambda: Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ),
    )  # fmt: skip
    for number in range(rounds):
        model.fit(dataset) if number == 0 else model.fit_partial(dataset, 0, EPOCHS)
        scores, hit, unseen = exported(model, dataset, train, last)
        n_items = scores.shape[1]
        beta = 1 - T * (1 - K / (n_items - 1))
        known = float(np.log(beta * n_items / K))
        for what, may in {"all items": np.ones_like(hit), "unseen items": unseen}.items():
            found = diagnosis.diagnose(
                scores, hit, of="logits", candidates=may, alpha=K / n_items, beta=beta,
                collisions=True,
            )  # fmt: skip
            low, high = found.interval
            print(
                f"{(number + 1) * EPOCHS} epochs, {what}: offset {found.offset:.2f} ({low:.2f} to "
                f"{high:.2f}), slope {found.slope:.2f}; Theorem 5.1: {known:.2f}; {found.verdict}",
                flush=True,
            )


def exported(model, dataset, train, last):
    """Scores (users, items) of the users whose last item is known, hits, and what they have not seen.

    The model's score is the dot product of its encoder's state and the item's embedding: the logit.
    """
    users = pd.Index(last[Columns.User].to_numpy()[:2000])
    every = model.recommend(users, dataset, k=train[Columns.Item].nunique(), filter_viewed=False)
    items = pd.Index(np.sort(every[Columns.Item].unique()))  # those that the windows took
    scores = np.full((len(users), len(items)), np.nan)
    unseen = np.ones(scores.shape, bool)

    def cells(table):
        at = users.get_indexer(table[Columns.User]), items.get_indexer(table[Columns.Item])
        there = (at[0] >= 0) & (at[1] >= 0)
        return at[0][there], at[1][there]

    scores[cells(every)] = every[Columns.Score]
    unseen[cells(train)] = False
    hit = np.zeros(scores.shape, bool)
    hit[cells(last)] = True
    known = hit.any(axis=1)
    return scores[known], hit[known], unseen[known]


if __name__ == "__main__":
    torch.set_num_threads(2)
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "data/ml-1m.txt")
    main(path, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
