"""Faults planted into true probabilities: which measure of calibration sees which?

In a known-truth world P(i | history) is exact. Each fault moves its logits in a known way; all but
the shift then move all logits together, so that Σp stays right and "calibrated on average" is true.
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from gsas_lab import files, instrument
from gsas_lab.calibration import numbers
from gsas_lab.errors import InputError, whole_number
from gsas_lab.worlds import World

SIZES = {500: 40, 5_000: 20, 50_000: 5}  # users, and how often each is drawn anew
WORLD = World(n_items=200)
COLUMNS = ["fault", "users", "measure", "repeats", "detected", "value", "chance", "truth"]

Move = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # logits, genres, late -> logits


def _shift(s: np.ndarray, genre: np.ndarray, late: np.ndarray) -> np.ndarray:
    return s + 0.2


def _slope(s: np.ndarray, genre: np.ndarray, late: np.ndarray) -> np.ndarray:
    return 1.15 * s


def _groups(s: np.ndarray, genre: np.ndarray, late: np.ndarray) -> np.ndarray:
    return s + np.where(genre % 2 == 0, 0.3, -0.3)


def _top_ranks(s: np.ndarray, genre: np.ndarray, late: np.ndarray) -> np.ndarray:
    tenth = -np.partition(-s, 9, axis=1)[:, 9, None]
    return s + 0.3 * (s >= tenth)


def _drift(s: np.ndarray, genre: np.ndarray, late: np.ndarray) -> np.ndarray:
    return s + np.where(late, 0.3, -0.3)[:, None]


FAULTS: dict[str, Move | None] = {
    "none": None,
    "shift": _shift,  # everything 0.2 too high
    "slope": _slope,  # too extreme
    "groups": _groups,  # half of the genres too high, the others too low
    "top ranks": _top_ranks,  # each user's first ten too high, the others a little too low
    "drift": _drift,  # the later half of the users too high, the earlier half too low
}


def population(
    users: int, seed: int = 0, world: World = WORLD
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True P (users, n_items), the hits that it made (one a user), and who came late (users,)."""
    users, seed = whole_number("users", users), whole_number("seed", seed, 0)
    prior = world.probability(world.sample(users, 20, seed))[:, 1:].astype(np.float32)
    rng = np.random.default_rng([seed, 2])
    upto = np.cumsum(prior, axis=1)
    target = (upto < rng.random((users, 1)) * upto[:, -1:]).sum(axis=1)
    return prior, np.arange(world.n_items) == target[:, None], np.arange(users) >= users // 2


def planted(fault: str, prior: np.ndarray, late: np.ndarray, world: World = WORLD) -> np.ndarray:
    """(users, n_items): what a model with this fault says where P is true. Σp is P's, but for the
    shift.
    """
    if fault not in FAULTS:
        raise InputError(f"{fault!r} is no fault: choose one of {', '.join(FAULTS)}.")
    move, prior = FAULTS[fault], numbers("prior", prior)
    shape = len(late), world.n_items
    if prior.shape != shape or not 0 < prior.min(initial=1) <= prior.max(initial=0) < 1:
        raise InputError(
            f"prior must hold probabilities between 0 and 1 of (users, n_items) = {shape}, not "
            f"{prior.shape}."
        )
    if move is None:
        return prior
    logits = move(logit(prior), world.genre[1:], late).astype(np.float32)
    if fault == "shift":
        return np.asarray(expit(logits))
    offset, whole = 0.0, prior.sum(dtype=float)
    for _ in range(6):  # Newton's steps towards Σp = ΣP
        said = expit(logits + np.float32(offset))
        missing = whole - said.sum(dtype=float)
        offset += missing / float((said * (1 - said)).sum(dtype=float))
    return np.asarray(expit(logits + np.float32(offset)))


def seen(fault: str, users: int, seed: int, resamples: int = 100) -> pd.DataFrame:
    """All measures of one fault on one population, and the groupings that could find it.

    Rows as of `instrument.measures`; "by …": the largest |log ratio| of any group, detected where one
    is significant by Holm. Columns: value, chance, truth, detected.
    """
    prior, hit, late = population(users, seed)
    said = planted(fault, prior, late)
    table = instrument.measures(said, hit, resamples=resamples, truth=prior, seed=seed)
    table = table[["value", "chance", "truth", "detected"]].copy()
    groupings = {
        "by genre": WORLD.genre[1:],
        "by rank": instrument.rank_groups(said),
        "by time": np.where(late, "late", "early")[:, None],
    }
    for name, labels in groupings.items():
        found = instrument.by_group(said, hit, {name: labels}, truth=prior).iloc[1:]
        with np.errstate(divide="ignore"):
            far = np.abs(np.log(found[["ratio", "true_ratio"]].astype(float)))
        value = far["ratio"][far["ratio"] < np.inf].max()
        table.loc[name] = [value, np.nan, far["true_ratio"].max(), (found["verdict"] != "").any()]
    return table


def detection(faults: Iterable[str] = FAULTS, sizes: dict[int, int] | None = None) -> pd.DataFrame:
    """Measures × faults × users, one row each: the share of populations in which it was detected,
    and the means of value, chance and truth over them.
    """
    rows = []
    for fault in faults:
        for users, repeats in (sizes or SIZES).items():
            tables = [seen(fault, users, n) for n in range(whole_number("repeats", repeats))]
            for measure in tables[0].index:
                each = pd.DataFrame([table.loc[measure] for table in tables]).astype(float)
                mean = each.mean()
                known = "distance to truth" if measure == "distance to truth" else ""
                mean["detected"] = np.nan if known else mean["detected"]
                rows.append(
                    {"fault": fault, "users": users, "measure": measure, "repeats": repeats}
                    | mean.to_dict()
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def write_detection(folder: Path) -> Path:
    """detection.csv in the folder; faults and sizes that it already holds are kept."""
    folder = files.output(folder)
    path = folder / "detection.csv"
    with files.locked(folder):
        table = _read(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
        for users, repeats in SIZES.items():
            for fault in FAULTS:
                if not ((table["fault"] == fault) & (table["users"] == users)).any():
                    added = detection([fault], {users: repeats}).round(6)
                    table = added if table.empty else pd.concat([table, added], ignore_index=True)
                    files.write(path, table.to_csv(index=False).encode())
    return path


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(io.BytesIO(files.read(path)))
        table["users"] = table["users"].astype(int)
    except (ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read ({reason}): delete it, to make it anew.") from None
    if list(table.columns) != COLUMNS:
        raise InputError(f"{path} is no table of faults: delete it, to make it anew.")
    return table


def shown(table: pd.DataFrame, users: int) -> pd.DataFrame:
    """Share of populations in which each measure (rows) detected each fault (columns)."""
    if list(table.columns) != COLUMNS:
        raise InputError(f"A table of faults has the columns {', '.join(COLUMNS)}.")
    users = whole_number("users", users)
    own = table[(table["users"] == users) & (table["measure"] != "distance to truth")]
    if own.empty:
        sizes = ", ".join(f"{size:,}" for size in sorted(set(table["users"])))
        raise InputError(f"There is no table for {users:,} users: choose one of {sizes}.")
    wide = own.pivot(index="measure", columns="fault", values="detected")
    return wide.loc[list(dict.fromkeys(own["measure"])), list(dict.fromkeys(own["fault"]))]


def fewest(table: pd.DataFrame, share: float = 0.8) -> pd.DataFrame:
    """The fewest users with which each measure (rows) detected each fault (columns) in at least that
    share of the populations, as text; "–" where no number of users in the table sufficed.
    """
    found = {n: shown(table, n) >= share for n in sorted(set(table["users"]), reverse=True)}
    enough = next(iter(found.values())).astype(object)
    enough[:] = "–"
    for users, seen in found.items():
        enough[seen] = f"{users:,}"
    return enough
