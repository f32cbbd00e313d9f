"""The queue of runs that tables and figures stand on, and the rows of those that are finished.

outputs/reference/queue.toml asks, in order of value; `sweeps.train` trains; each finished run becomes
a row of outputs/reference/<data set>/<folder>, which is a sweep's folder and is read as one. A run is
known by its settings and the file that it read, so that a row stands for it on any machine.
"""

import io
import math
import re
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsas_lab import calibration, evidence, files, recipes, results, runs, sweeps
from gsas_lab.errors import InputError, counted
from gsas_lab.settings import OF_DATA, Settings

QUEUE = results.REFERENCE / "queue.toml"
LONGEST = 4  # times the passes that a stage asks for: no run is lengthened beyond
_FREE = {item.name for item in fields(Settings)} - {"dataset", "seed"}  # what a stage may change
_OF_STAGE = ("sweep", "runs", "title", "into", "seeds", "dataset", "profile")


@dataclass(frozen=True)
class Asked:
    """A run that the queue asks for, and the row that it becomes."""

    folder: str  # below outputs/reference, where it is looked for first
    system: str  # the row's name, but for the seed
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.folder}: {self.system}, seed {self.settings.seed}"

    @property
    def longer(self) -> "Asked":
        """The same with twice the passes."""
        passes = 2 * self.settings.epochs
        system = self.system.partition(" (to ")[0]
        settings = replace(self.settings, epochs=passes, patience=2 * self.settings.patience)
        return Asked(self.folder, f"{system} (to {passes} passes)", settings)


@dataclass(frozen=True)
class Measured:
    """A finished run, as its row has it."""

    row: dict[str, Any]  # of results.csv, but for the name
    told: dict[str, Any]  # of sweep.json: settings, run, protocol
    history: pd.DataFrame | None  # none where nothing is trained
    ranks: np.ndarray
    curve: pd.DataFrame | None  # see `curve_of`; none in rows that are older

    @property
    def longer_asked(self) -> bool:
        """Is its best pass the last of those that it was allowed?"""
        return bool(self.row["best epoch"] == self.row["epochs"])


def asked(queue: Path = QUEUE) -> list[Asked]:
    """What a queue asks for, each run of a folder once, in order.

    InputError for a stage that cannot be read, names an unknown sweep, run or key.
    """
    data = files.read(queue)
    try:
        stages = tomllib.loads(data.decode("utf-8-sig"))["stage"]  # Windows editors leave a BOM
    except (ValueError, KeyError, RecursionError) as error:
        raise InputError(f"{queue} is no queue: {error}.") from None
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise InputError(f"{queue} is no queue: write its stages as [[stage]] tables.")
    found: dict[Asked, None] = {}
    for number, stage in enumerate(stages, 1):
        try:
            found |= dict.fromkeys(_of_stage(stage))
        except (KeyError, InputError) as error:
            raise InputError(f"{queue}, stage {number}: {error}") from None
    return list(found)


def _of_stage(stage: dict[str, Any]) -> Iterable[Asked]:
    dataset, profile = stage.get("dataset", "ml-1m"), stage.get("profile", "quick")
    over = {name: value for name, value in stage.items() if name not in _OF_STAGE}
    if unknown := [name for name in over if name not in _FREE]:
        raise InputError(f"unknown key '{unknown[0]}': it is neither a stage's nor a setting.")
    for name in ("seeds", "runs"):
        if name in stage and not (isinstance(stage[name], list) and stage[name]):
            raise InputError(f"{name} = {stage[name]!r}: write a list, such as [1, 2].")
    if not isinstance(stage.get("title", ""), str):
        raise InputError(f"title = {stage['title']!r} is no text.")
    for name in (stage["sweep"], stage.get("into", "a"), Path(str(dataset)).stem):
        if not re.fullmatch(r"\w[\w.+ -]*", str(name)):
            raise InputError(f"'{name}' is no name of a sweep or a folder below outputs/reference.")
    grid = results.SWEEPS / f"{stage['sweep']}.toml"
    named = sweeps.read(grid, dataset=dataset, profile=profile)
    for name in stage.get("runs", named):
        if str(name) not in named:
            raise InputError(f"{grid.name} has no run '{name}'.")
        system = ", ".join(filter(None, [name, stage.get("title")]))
        for seed in stage["seeds"]:
            settings = replace(named[name], **over, seed=seed)
            folder = f"{Path(dataset).stem}/{stage.get('into', stage['sweep'])}"
            yield Asked(folder, system, settings)


# --- what is finished -----------------------------------------------------------------------------


class Ledger:
    """The committed rows of all folders, found by what was trained on what."""

    def __init__(self, reference: Path):
        self.reference = reference
        self._rows: dict[tuple[Settings, str], dict[str, Measured]] = {}  # by folder
        for told in sorted(reference.glob("*/*/sweep.json")):
            self._read(told.parent)

    def _read(self, folder: Path) -> None:
        found = results.load(folder)
        own_curves = curves(folder)
        for name, ranks in found.ranks.items():
            told = found.record["runs"][name]
            settings = Settings(**told["settings"])  # those that came later, too
            told = told | {"settings": asdict(settings)}
            row: dict[str, Any] = {str(k): v for k, v in found.table.loc[name].items()}
            row |= asdict(settings)
            history = found.histories.get(name)
            sha256 = told.get("protocol", {}).get("sha256")
            if not isinstance(sha256, str):
                raise InputError(
                    f"{folder / 'sweep.json'} does not say what '{name}' was trained on."
                )
            key = _key(settings, sha256)
            own = str(folder.relative_to(self.reference))
            measured = Measured(row, told, history, ranks, own_curves.get(name))
            self._rows.setdefault(key, {})[own] = measured

    def find(self, asked: Asked, data: str) -> Measured | None:
        """The row of a run on the file of that checksum: its folder's, else one with a curve, else
        the first, by the folders' names and never by what was measured. BCE is gBCE with t = 0, bit
        for bit.
        """
        for same in (asked.settings, *recipes.same(asked.settings)):
            if rows := self._rows.get(_key(same, data)):
                curves = [m for m in rows.values() if m.curve is not None]
                found = rows.get(asked.folder) or next(iter(curves or rows.values()))
                told = asdict(replace(asked.settings, device=found.row["device"]))
                row = found.row | told | {"profile": recipes.profile_of(asked.settings)}
                return replace(found, row=row, told=found.told | {"settings": told})
        return None


def _key(settings: Settings, data: str) -> tuple[Settings, str]:
    return replace(settings, device="auto", dataset=""), data


def curves(folder: Path) -> dict[str, pd.DataFrame]:
    """`curve_of` each of a folder's runs that has one, by the row's name; InputError if damaged."""
    path = folder / sweeps.CURVES
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(io.BytesIO(files.read(path)))
        table.drop(columns="name").astype(float)  # raises where there are no numbers
        parts = table.groupby("name", sort=False)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path} is damaged ({error}): restore it, or delete its folder."
        ) from None
    return {str(name): p.drop(columns="name").reset_index(drop=True) for name, p in parts}


def measured(run: runs.Run) -> Measured:
    """A finished run's row, with what only its weights can tell: ΣP inverted and its curve."""
    row = sweeps.row_of(run) | {"error": None}
    row["recovered"] = evidence.recovered_sum(run) if run.theorem else math.nan
    shown = evidence.shown_row(run.data, None)
    row["shown sum of p"] = float(run.outcome.sums[shown])
    told = {"settings": asdict(run.settings), "run": run.folder.name, "protocol": run.protocol}
    return Measured(row, told, run.history, run.ranks, curve_of(run))


def curve_of(run: runs.Run) -> pd.DataFrame | None:
    """Figures 1 and 2 of one run: `calibration.precision_vs_predicted` over the test users, and in
    the column "shown" the probability of the item at that rank for the user whom notebook 01 shows.
    None for losses without probabilities.
    """
    outcome = run.outcome
    if np.isnan(outcome.sums).any():
        return None
    point = run.theorem
    curve = calibration.precision_vs_predicted(outcome.prob, outcome.ranks, point)
    return curve.assign(shown=outcome.prob[evidence.shown_row(run.data, None)])


def write_folder(place: Path, rows: list[tuple[str, Measured]]) -> None:
    """A sweep's folder of these rows, (system, run), in that order; where a system has several
    seeds, its rows' names say which. Killed between two files it leaves a folder that is refused.
    """
    systems = [system for system, _ in rows]
    named = {
        f"{system}, seed = {m.row['seed']}" if systems.count(system) > 1 else system: m
        for system, m in rows
    }
    files.output(place).mkdir(parents=True, exist_ok=True)
    record = {name: measured.told for name, measured in named.items()}
    environment = runs.environment(runs.choose_device("cpu"))
    told = {"environment": environment, "manifest": True, "runs": record}
    files.write_json(place / "sweep.json", told)
    table = pd.DataFrame([{"name": name} | m.row for name, m in named.items()])
    histories = {name: m.history for name, m in named.items() if m.history is not None}
    curves = [m.curve.assign(name=n) for n, m in named.items() if m.curve is not None]
    if curves:
        files.write(place / sweeps.CURVES, pd.concat(curves).round(6).to_csv(index=False).encode())
    else:  # those of earlier rows
        (place / sweeps.CURVES).unlink(missing_ok=True)
    sweeps.write(place, table, histories, {name: m.ranks for name, m in named.items()})


# --- the queue ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How far a queue is."""

    rows: dict[Asked, Measured | None]  # in order, lengthened runs behind those that asked for them
    data: dict[Asked, str]  # checksums of what they read
    absent: list[str]  # sentences about data that is not here

    @property
    def open(self) -> list[Asked]:
        return [each for each, found in self.rows.items() if found is None]

    def __str__(self) -> str:
        """A line a folder, and what is left in hours of one such machine."""
        lines = []
        paces = _paces(found for found in self.rows.values() if found)
        for folder in dict.fromkeys(each.folder for each in self.rows):
            own = {each: found for each, found in self.rows.items() if each.folder == folder}
            left = [each for each, found in own.items() if found is None]
            seconds = sum(_seconds(each.settings, paces) for each in left)
            line = f"{folder}: {len(own) - len(left)} of {counted(len(own), 'run')}"
            line += f", {seconds / 3600:.1f} hours left" if left else ""
            lines.append(line)
            lines += [
                f"  {each.system}, seed {each.settings.seed}: its best pass is its last, "
                f"{found.row['epochs']:.0f}"
                for each, found in own.items()
                if found and found.longer_asked
            ]
        total = sum(_seconds(each.settings, paces) for each in self.open) / 3600
        done = len(self.rows) - len(self.open)
        of = counted(len(self.rows), "run")
        lines.append(f"all: {done} of {of}, {total:.1f} hours left of one process")
        return "\n".join(lines + self.absent)


def standing(queue: Path = QUEUE, reference: Path = results.REFERENCE) -> Standing:
    """What is finished and what is left, with the runs that have to be longer."""
    ledger = Ledger(reference)
    known: dict[tuple, str | None] = {}  # checksums of data, none where it is not here
    rows: dict[Asked, Measured | None] = {}
    sums: dict[Asked, str] = {}
    absent: list[str] = []
    for each in asked(queue):
        of_data = tuple(getattr(each.settings, name) for name in OF_DATA)
        if of_data not in known:
            known[of_data] = _checksum(each.settings, absent)
        if (data := known[of_data]) is None:
            continue
        each = replace(each, settings=_fitting(each.settings))
        most = LONGEST * each.settings.epochs
        while True:
            sums[each], found = data, ledger.find(each, data)
            rows[each] = found
            if not (found and found.longer_asked and each.settings.epochs < most):
                break
            each = each.longer
    return Standing(rows, sums, absent)


def _fitting(settings: Settings) -> Settings:
    """k and passes for data of another size than MovieLens-1M, as in the notebooks."""
    return settings if settings.dataset == "ml-1m" else recipes.scaled(settings)


def _checksum(settings: Settings, absent: list[str]) -> str | None:
    try:
        return runs.load_data(settings).split.protocol.sha256
    except InputError as error:
        absent.append(f"{settings.dataset} is not here: {error}")
        return None


def work(
    queue: Path = QUEUE,
    reference: Path = results.REFERENCE,
    seconds: float = math.inf,
    at_once: int | None = None,
    show: sweeps.Show | None = None,
) -> Standing:
    """Train what is left, in order and for at most so many seconds; write the rows -> how far it is.

    A run that its last pass made best is told and asked for again with twice the passes. InputError
    for seconds that are not above 0.
    """
    if not seconds > 0:  # NaN would never be over
        raise InputError(f"A budget of {seconds:g} seconds trains nothing: give a number above 0.")
    now = standing(queue, reference)
    here = _trained_here()
    known = {
        each: run for each in now.open if (run := here.get(_key(each.settings, now.data[each])))
    }
    write(now, known, reference)
    now = standing(queue, reference)
    if now.open:
        named = {each.name: each for each in now.open}
        settings = {name: each.settings for name, each in named.items()}
        folder = files.ROOT / "outputs" / "evidence"
        trained = sweeps.train(settings, folder, at_once, show, seconds)
        write(now, {named[name]: run for name, run in trained.items()}, reference)
    return standing(queue, reference)


def _trained_here() -> dict[tuple[Settings, str], runs.Run]:
    """The finished runs of the runs' folder, whatever their names: a new setting renames all."""
    found = {}
    for manifest in sorted(files.runs_folder().glob(f"*/{files.MANIFEST}")):
        with suppress(InputError):  # of another version, or damaged
            run = runs.load(manifest.parent)
            found[_key(run.settings, run.protocol["sha256"])] = run
    return found


def write(now: Standing, finished: dict[Asked, runs.Run], reference: Path) -> None:
    """The folders in which something was finished since: `now`'s rows and new ones."""
    new = {run.folder: measured(run) for run in finished.values()}
    rows = now.rows | {each: new[run.folder] for each, run in finished.items()}
    for folder in dict.fromkeys(each.folder for each in rows):
        own = [(each, found) for each, found in rows.items() if each.folder == folder and found]
        if own and not _stands(reference / folder, own):
            systems = list(dict.fromkeys(each.system for each, _ in own))
            own.sort(key=lambda pair: (systems.index(pair[0].system), pair[0].settings.seed))
            write_folder(reference / folder, [(each.system, found) for each, found in own])


def _stands(folder: Path, own: list[tuple[Asked, Measured]]) -> bool:
    """Does a folder have these rows, and no others?"""
    if not (folder / "sweep.json").exists():
        return False
    there = results.load(folder).table
    return sorted(there["run"]) == sorted(found.row["run"] for _, found in own)


def _paces(rows: Iterable[Measured]) -> dict[tuple, float]:
    """Seconds a pass of what was trained, by what decides it; the median."""
    told: dict[tuple, list[float]] = {}
    for found in rows:
        if epochs := found.row["epochs trained"]:
            settings = Settings(**found.told["settings"])
            told.setdefault(_kind(settings), []).append(found.row["training seconds"] / epochs)
    return {kind: float(np.median(seconds)) for kind, seconds in told.items()}


def _kind(settings: Settings) -> tuple:
    names = "dataset model loss block d max_length windows precision".split()
    return tuple(getattr(settings, name) for name in names)


def _seconds(settings: Settings, paces: dict[tuple, float]) -> float:
    pace = paces.get(_kind(settings))
    if pace is None:
        return results.estimate({"": settings})
    return pace * settings.epochs
