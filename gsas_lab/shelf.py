"""What was trained: all run folders as a table, and two of them told apart."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gsas_lab import files, metrics, runs
from gsas_lab.errors import InputError

_SHOWN = ("recall@1", "recall@10", "ndcg@10", "mean sum of p")
_COLUMNS = ("run", "system", "data", "k", "t", "seed", *_SHOWN, "date", "state")


def table(folder: str | Path | None = None) -> pd.DataFrame:
    """One row a run folder, the latest last.

    Columns: run (the folder's name), system, data, k, t, seed, recall@1, recall@10, ndcg@10, mean
    sum of p (test users), date, and state: "done", "not finished", or what is damaged. folder: that
    of the runs; none: `files.runs_folder`. Weights are not read here.
    """
    folder = files.runs_folder() if folder is None else files.chosen(folder, "folder")
    if not folder.is_dir():
        if folder == files.runs_folder():
            return pd.DataFrame(columns=list(_COLUMNS))
        raise InputError(f"There is no folder {folder}: give one that holds run folders.")
    rows = [_row(path) for path in sorted(folder.iterdir()) if _is_run(path)]
    shown = pd.DataFrame(rows, columns=list(_COLUMNS)).fillna({"date": ""})
    shown = shown.astype({"k": "Int64", "seed": "Int64"})
    return shown.sort_values("date", kind="stable", ignore_index=True)


def _is_run(path: Path) -> bool:
    names = (files.MANIFEST, "settings.json", "metrics.json", "checkpoint.pt")
    return path.is_dir() and any((path / name).exists() for name in names)


def _row(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": path.name, "state": "done"}
    if not any((path / name).exists() for name in (files.MANIFEST, "model.pt")):
        return row | {"state": "not finished"}
    try:
        run = runs.opened(path)
        found, made_by = run.metrics, run.environment
        row |= {"system": run.settings.name, "data": run.protocol.get("dataset")}
        row |= {name: getattr(run.settings, name) for name in ("k", "t", "seed")}
        row |= {name: found.get(name) for name in _SHOWN} | {"date": made_by.get("date")}
        run.require_files()
    except InputError as error:
        row["state"] = f"damaged: {error}"
    return row


def find(name: str | Path) -> runs.Run:
    """A run by its folder, or by its name's start among `files.runs_folder`, if one alone has it."""
    path = files.chosen(name, "run")
    if path.is_dir():
        return runs.load(path)
    folder = files.runs_folder()
    found = [each for each in folder.glob("*") if each.name.startswith(str(name)) and _is_run(each)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} runs in {folder} begin with '{name}': give a folder, or a name as "
            "python -m gsas_lab runs lists it."
        )
    return runs.load(found[0])


@dataclass(frozen=True)
class Comparison:
    """Two runs told apart."""

    settings: pd.DataFrame  # those that differ: one column a run
    metrics: pd.DataFrame  # (metrics, 2 runs)
    test: pd.DataFrame | None  # `metrics.compare` of NDCG@10; none where the users are not the same
    why: str  # that there is no test; else empty

    def __str__(self) -> str:
        differ = self.settings.to_string() if len(self.settings) else "Their settings are the same."
        if self.test is None:
            told = self.why
        else:
            row = self.test.iloc[0]
            told = (
                f"NDCG@10: the second is {'ahead' if row['difference'] >= 0 else 'behind'} by "
                f"{abs(row['difference']):.4f} (95 % interval of the difference "
                f"{row['low']:z.4f} to {row['high']:z.4f}), paired t-test over users: "
                f"p = {row['p']:.2g}. Other users, that is; another seed is another question."
            )
        return f"{differ}\n\n{self.metrics.to_string()}\n\n{told}"


def compare(one: runs.Run, other: runs.Run) -> Comparison:
    """Settings that differ, metrics, and a paired test over users where they are the same.

    They are where both runs were judged on the same data by the same protocol.
    """
    both = [one, other]
    names = [each.folder.name for each in both]
    if names[0] == names[1]:
        names = [str(each.folder) for each in both]
    if names[0] == names[1]:
        names = [f"{names[0]} (1)", f"{names[1]} (2)"]
    settings = pd.DataFrame(
        [{n: str(v) for n, v in asdict(each.settings).items()} for each in both], index=names
    ).T
    shown = pd.DataFrame([each.metrics for each in both], index=names).T
    differ = _differences(one.protocol, other.protocol)
    test, why = None, ""
    if differ:
        why = f"No test: the users are not the same ({', '.join(differ[:4])} differ)."
    elif len(one.ranks) != len(other.ranks):
        why = "No test: the users are not the same."
    else:
        test = metrics.compare(
            {n: metrics.ndcg(r.ranks, 10) for n, r in zip(names, both, strict=True)}, names[0]
        )
    return Comparison(settings[settings.nunique(axis=1) > 1], shown, test, why)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What of two protocols differs, but for the file's name and what follows from the data."""
    known = [*one, *(name for name in other if name not in one)]
    told = {"dataset", "unused", "taken_again", "targets_seen", "few_rivals"}  # by later versions
    return [name for name in known if name not in told and one.get(name) != other.get(name)]
