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

    InputError where that folder holds the parts of another call, where a file that is no such list
    would be overwritten, for an n below 1, and without pyarrow.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError("A parquet file needs pyarrow: pip install pyarrow.") from None
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"n = {n!r} recommendations: give a whole number, 1 or more.")
    if not isinstance(exclude_seen, bool | np.bool_ | None):
        raise InputError(f"exclude_seen = {exclude_seen!r}: give True, False or None.")
    path = _output(path)
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
        elif any(kept.glob("*.parquet")):
            raise InputError(f"{kept} holds parts of nobody knows what: move it away.")
        else:
            files.write_json(kept / "of.json", of)
        parts = []
        for start in range(0, known.n_users, _PART):
            if (part := _whole(kept, start)) is None:
                some = everyone.subset(np.arange(start, min(start + _PART, known.n_users)))
                saved = io.BytesIO()
                found = _recommended(run, some, int(n), exclude, repair)
                found.to_parquet(saved, engine="pyarrow", index=False)
                part = _part(kept, start, saved.getvalue())
                files.write(part, saved.getvalue())
            parts.append(part)

        def joined(file: Any) -> None:
            with parquet.ParquetWriter(file, parquet.read_schema(parts[0])) as writer:
                for part in parts:
                    writer.write_table(parquet.read_table(part))

        files.write(path, joined)
        for made in (*kept.glob("?????????-*.parquet"), kept / "of.json"):
            made.unlink()
    with suppress(OSError):  # somebody has put something there
        kept.rmdir()
    return path


_COLUMNS = ["user", "rank", "item", "probability", "raw"]


def _output(given: str | Path) -> Path:
    """A file to write recommendations to: a new one, or one that holds some."""
    from pyarrow import parquet

    path = files.chosen(given, "output")
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:  # too long a name
        raise InputError(f"{path} cannot be written ({error.strerror}).") from None
    if folder:
        raise InputError(f"{path} is a folder: name a file, such as {path / 'recs.parquet'}.")
    if path.suffix != ".parquet":
        raise InputError(f"{path} is to be a parquet file: let its name end in .parquet.")
    try:
        ours = not there or parquet.read_schema(io.BytesIO(files.read(path))).names == _COLUMNS
    except Exception:  # noqa: BLE001 (no parquet, damaged, a pipe …)
        ours = False
    if not ours:
        raise InputError(f"{path} holds no recommendations and would be overwritten: name another.")
    return path


def _part(kept: Path, start: int, content: bytes) -> Path:
    """Where the part of the users from `start` on is kept: its name bears its checksum."""
    return kept / f"{start:09}-{files.checksum(content)[:16]}.parquet"


def _whole(kept: Path, start: int) -> Path | None:
    """The part that an earlier call left, if it is as it was written."""
    for part in kept.glob(f"{start:09}-*.parquet"):
        with suppress(InputError):
            if _part(kept, start, files.read(part)) == part:
                return part
    return None


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
    known = run.data.interactions
    shift = None if run.theorem is None else run.theorem.offset
    told_of_p = "score − log(β/α)"
    if shift is None:
        why = "its p̂ is no σ(score)" if run.theorem is None else "each item has its own, or none"
        told_of_p = f"not one shift of the scores, because {why}"
    told = {
        "score": "users[u] · items[i] + offset",
        "offset": 0.0 if model.bias is None else float(model.bias.detach()),
        "logit P": told_of_p,
        "log(β/α)": shift,
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
