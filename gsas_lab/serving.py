"""A trained run -> recommendations for all its users, in one file; vectors for another index."""

import io
import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsas_lab import files, ranking
from gsas_lab.errors import InputError
from gsas_lab.losses import SIGMOID, LogQ, Loss
from gsas_lab.models import Model
from gsas_lab.repairs import Repair
from gsas_lab.runs import Run
from gsas_lab.splits import Histories, Holdout

_PART = 8192  # users in one part: what a killed call has to do again


def recommend_all(
    run: Run,
    path: str | Path,
    n: int = 10,
    exclude_seen: bool | None = None,
    repair: Repair | None = None,
) -> Path:
    """The n items most probable to come next, for each user of the run's data set -> its parquet file.

    Read from all that a user took. Columns: user, rank, item (ids as in the data's file), probability
    and raw, each as in `Run.recommend`, as are exclude_seen and repair. A user with fewer candidates
    has fewer rows. Parts of some thousand users lie in <path>.parts until all are there: a call that
    was killed goes on after the last of them.

    InputError where that folder holds the parts of another call, for an n below 1, and without pyarrow.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError("A parquet file needs pyarrow: pip install pyarrow.") from None
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"n = {n!r} recommendations: give a whole number, 1 or more.")
    path = files.chosen(path, "output")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file, such as {path / 'recs.parquet'}.")
    exclude = bool(run.protocol["exclude_seen"] if exclude_seen is None else exclude_seen)
    known = run.data.interactions
    everyone = _everyone(run)
    kept = path.with_name(path.name + ".parts")
    of: dict[str, Any] = {
        "weights": files.checksum(run.read("model.safetensors" if run.manifest else "model.pt")),
        "settings": asdict(run.settings),
        "data": run.data.digest,
        "n": int(n),
        "exclude_seen": exclude,
        "repair": None if repair is None else [type(repair).__name__, asdict(repair)],
        "users in a part": _PART,
    }
    with files.locked(kept):
        if (kept / "of.json").exists():
            if files.read_json(kept / "of.json") != json.loads(files.as_json(of)):
                raise InputError(
                    f"{kept} holds the parts of another call: delete it, or name another output."
                )
        else:
            files.write_json(kept / "of.json", of)
        starts = range(0, known.n_users, _PART)
        parts = [kept / f"{start:09}.parquet" for start in starts]
        for start, part in zip(starts, parts, strict=True):
            if not part.exists():
                some = everyone.subset(np.arange(start, min(start + _PART, known.n_users)))
                found = _recommended(run, some, int(n), exclude, repair)
                saved = io.BytesIO()
                found.to_parquet(saved, engine="pyarrow", index=False)
                files.write(part, saved.getvalue())

        def joined(file: Any) -> None:
            with parquet.ParquetWriter(file, parquet.read_schema(parts[0])) as writer:
                for part in parts:
                    writer.write_table(parquet.read_table(part))

        files.write(path, joined)
        for made in (*parts, kept / "of.json"):
            made.unlink()
    with suppress(OSError):  # somebody has put something there
        kept.rmdir()
    return path


def write_vectors(run: Run, folder: str | Path) -> Path:
    """Vectors of items and users for an index of nearest neighbours -> the folder they are in.

    items.npy (n_items, d), users.npy (n_users, d), item_ids.npy, user_ids.npy, and vectors.json, which
    says the offset: users[u] · items[i] + offset is the score, so the order is that of the inner
    products (of nothing else: neither cosine nor distance). InputError for a model whose scores are no
    such products.
    """
    model = run.model
    if type(model).score is not Model.score:
        raise InputError(
            f"{model.words}: its scores are no products of a user's and an item's vector."
        )
    folder = files.output(folder)
    known, point = run.data.interactions, run.loss.fixed_point(run.sampler)
    told = {
        "score": "users[u] · items[i] + offset",
        "offset": 0.0 if model.bias is None else float(model.bias.detach()),
        "logit P": "score − log(β/α)",
        "log(β/α)": None if point is None else point.offset,
        "users": "after all that they took, seen items included",
    }
    with files.locked(folder):
        arrays = {
            "items": model.table.detach()[1:].numpy(),
            "users": ranking.hidden_states(model, _everyone(run)).numpy(),
            "item_ids": _plain(known.item_ids[1:]),
            "user_ids": _plain(known.user_ids),
        }
        for name, array in arrays.items():
            files.write(folder / f"{name}.npy", lambda file, x=array: np.save(file, x))  # type: ignore[misc]
        files.write_json(folder / "vectors.json", told)
    return folder


def _plain(ids: np.ndarray) -> np.ndarray:
    return ids.astype(str) if ids.dtype == object else ids  # no pickle


def _everyone(run: Run) -> Holdout:
    """All users, with all that they took; the target is none."""
    known = run.data.interactions
    users = np.arange(known.n_users)
    return Holdout(users, Histories(known.items, known.offsets), np.zeros(len(users), np.int64))


def _recommended(
    run: Run, some: Holdout, n: int, exclude: bool, repair: Repair | None
) -> pd.DataFrame:
    """`recommend_all` of some users."""
    n = min(n, run.model.n_items)
    place = np.arange(1, n + 1)
    if _item_by_item(run.loss, run):
        items, scores = ranking.first_items(run.model, some, exclude, n)
        scores[items == 0] = 0.0  # told nowhere
        raw = run.probabilities(scores).astype(float)
        prior = np.full(scores.shape, np.nan)
        if (point := run.loss.fixed_point(run.sampler)) is not None:
            alpha = np.asarray(point.alpha)
            if alpha.ndim:
                point = replace(point, alpha=alpha[items - 1])
            prior = np.minimum(point.prior(scores), 1.0)
        if repair is not None:
            group = repair.groups(np.maximum(items, 1), run.model.n_items)
            rank = np.broadcast_to(place, scores.shape)
            prior = repair(run.logits(scores), rank=rank, group=group)
    else:
        items = np.zeros((len(some.users), n), np.int64)
        prior, raw = np.zeros(items.shape), np.zeros(items.shape)
        for batch, rows in ranking.score_in_batches(run.model, some):
            every = batch[:, 1:].numpy().copy()
            items[rows], _ = ranking.first_of(batch, some.subset(rows), exclude, n)
            chosen = np.maximum(items[rows] - 1, 0)
            probable = run.loss.prior(every, run.sampler)
            if repair is not None:
                logits = np.take_along_axis(run.logits(every), chosen, 1)
                group = repair.groups(chosen + 1, run.model.n_items)
                rank = np.broadcast_to(place, chosen.shape)
                prior[rows] = repair(logits, rank=rank, group=group)
            elif probable is None:
                prior[rows] = np.nan
            else:
                prior[rows] = np.take_along_axis(probable, chosen, 1)
            raw[rows] = np.take_along_axis(run.probabilities(every), chosen, 1)
    known, there = run.data.interactions, items > 0
    users, ranks = np.nonzero(there)
    return pd.DataFrame(
        {
            "user": _column(known.user_ids[some.users[users]]),
            "rank": (ranks + 1).astype(np.int32),
            "item": _column(known.item_ids[items[there]]),
            "probability": prior[there],
            "raw": raw[there],
        }
    )


def _column(ids: np.ndarray) -> Any:
    return pd.Series(ids, dtype="str") if ids.dtype == object else ids


def _item_by_item(loss: Loss, run: Run) -> bool:
    """Does an item's score alone tell its probabilities, or do they need those of all items?"""
    if loss.link not in (SIGMOID, None) or type(loss).prior not in (Loss.prior, LogQ.prior):
        return False
    return type(loss).prior is Loss.prior or loss.fixed_point(run.sampler) is not None
