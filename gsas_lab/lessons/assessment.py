"""An assessment for a class: tables of scores and clicks with one planted fault each, and the key.

A small world with a known truth is drawn for each student. A good model would say logit P(click) of
each item; one thing is then done to its table. What was done, the key knows: docs/assessment.md has
the task, the marking scheme and how each fault is told from the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from gsas_lab import files, theory
from gsas_lab.errors import InputError
from gsas_lab.worlds import World

_USERS, _ITEMS = 400, 100  # of a table
_CLICKS = 0.6  # chance that a user clicks at all
_FIRST = 20  # rows of a user where only the first are kept


@dataclass(frozen=True)
class Sheet:
    """One student's table, and what the key says of it."""

    table: pd.DataFrame  # user, item, score, clicked
    fault: str  # its name in FAULTS
    planted: float  # offset, slope or the like: the number to be found; NaN where there is none
    told: str  # what a full answer says


def _offset(table: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, float, str]:
    k = int(rng.choice([1, 4, 16]))
    raised = float(theory.logit_offset(theory.alpha(k, _ITEMS), 1.0))
    told = f"overconfident: BCE with k = {k}, logits {raised:.2f} too high; subtract that"
    return table.assign(score=table["score"] + raised), raised, told


def _slope(table: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, float, str]:
    factor = float(rng.choice([0.5, 2.0]))
    told = f"scores times {factor:g}: Platt's slope is {1 / factor:g}; no subtraction mends it"
    return table.assign(score=table["score"] * factor), 1 / factor, told


def _rows(table: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, float, str]:
    place = table.groupby("user")["score"].rank(ascending=False, method="first")
    kept = table[(place <= _FIRST) | (table["clicked"] == 1)]
    told = (
        f"rows chosen by clicks: a user has {_FIRST} rows by score, or one more, which is clicked and "
        "scored lowest; without those rows the model is calibrated"
    )
    return kept, 0.0, told


def _probabilities(
    table: pd.DataFrame, rng: np.random.Generator
) -> tuple[pd.DataFrame, float, str]:
    told = "the scores are probabilities, not logits: read as such, they are calibrated"
    return table.assign(score=expit(table["score"])), 0.0, told


def _group(table: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, float, str]:
    raised = float(rng.choice([-2.5, 2.5]))
    other = table["user"] > _USERS // 2
    named = np.where(other, "b", "a") + table["user"].astype(str).to_numpy()
    told = (
        f"two kinds of users: a calibrated, b's logits off by {raised:+.1f}; one offset for both "
        "leaves both wrong"
    )
    return table.assign(user=named, score=table["score"] + raised * other), raised, told


FAULTS: dict[
    str, Callable[[pd.DataFrame, np.random.Generator], tuple[pd.DataFrame, float, str]]
] = {
    "offset": _offset,
    "slope": _slope,
    "rows by clicks": _rows,
    "probabilities": _probabilities,
    "one group": _group,
}


def sheet(fault: str, seed: int) -> Sheet:
    """One table with one fault; the same for the same seed. InputError for an unknown fault."""
    if fault not in FAULTS:
        raise InputError(f"fault = {fault!r}: choose one of {', '.join(FAULTS)}.")
    rng = np.random.default_rng(seed)
    sizes = {"n_users": _USERS, "length": 12, "n_items": _ITEMS, "n_genres": 5}
    world = World(**sizes, explore=0.3, follow=0.7, seed=int(rng.integers(2**31)))
    prob = world.probability(world.sample())[:, 1:]  # (users, items)
    chosen = (rng.random((_USERS, 1)) > prob.cumsum(axis=1)).sum(axis=1)
    hit = np.zeros(prob.shape, int)
    hit[np.arange(_USERS), np.minimum(chosen, _ITEMS - 1)] = rng.random(_USERS) < _CLICKS
    user, item = np.indices(prob.shape) + 1
    columns = {"user": user, "item": item, "score": logit(_CLICKS * prob), "clicked": hit}
    table = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
    table, planted, told = FAULTS[fault](table, rng)
    return Sheet(table.sample(frac=1, random_state=rng), fault, planted, told)


def write(folder: Path, students: int, seed: int = 1) -> Path:
    """folder/student-01/scores.csv … for so many students, and folder/key.csv, which is returned.

    Faults are dealt out evenly, in a random order. InputError for less than one student, or a folder
    that is no place for results.
    """
    if students < 1:
        raise InputError(f"students must be 1 or more, not {students}.")
    folder = files.output(folder)
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(list(FAULTS)) for _ in range(-(-students // len(FAULTS)))]
    key = []
    for student, fault in enumerate(np.concatenate(rounds)[:students], start=1):
        own = int(rng.integers(2**31))
        made = sheet(str(fault), own)
        name = f"student-{student:02d}"
        text = made.table.round({"score": 6}).to_csv(index=False)
        (folder / name).mkdir(parents=True, exist_ok=True)
        files.write(folder / name / "scores.csv", text.encode())
        key.append((name, made.fault, round(made.planted, 4), made.told, own))
    columns = ["student", "fault", "planted", "told", "seed"]
    text = pd.DataFrame(key, columns=columns).to_csv(index=False)
    files.write(folder / "key.csv", text.encode())
    return folder / "key.csv"
