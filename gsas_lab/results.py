"""A sweep's folder -> tables, tests and one page. What is read here was measured by `sweeps.run`.

    results = results.of_paper("figure3", "ml-1m", "small")   # trained now, or found
    results = results.load("outputs/my-sweep")                # or any sweep's folder

Numbers of a small budget say so: `profile` stands beside each of them.
"""

import base64
import csv
import html
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from gsas_lab import files, metrics, paper, recipes, runs, sweeps
from gsas_lab.errors import InputError, counted
from gsas_lab.losses import LOSSES
from gsas_lab.models import MODELS
from gsas_lab.settings import DATA, OF_DATA, Settings
from gsas_lab.training import HISTORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEPS = files.ROOT / "notebooks" / "sweeps"
REFERENCE = files.ROOT / "outputs" / "reference"
IN_PAPER = {"ml-1m": "MovieLens-1M"}  # the paper's name of the data sets that it has as well
_COLUMNS = {
    "profile": "profile", "model": "model", "loss": "loss", "sampler": "sampler", "k": "k",
    "t": "t", "seed": "seed", "recall@1": "Recall@1", "recall@10": "Recall@10",
    "ndcg@10": "NDCG@10", "ndcg@10 95% interval low": "NDCG@10 low",
    "ndcg@10 95% interval high": "NDCG@10 high", "mean sum of p": "Σp",
    "validation ndcg@10": "validation NDCG@10", "best epoch": "best epoch",
    "epochs trained": "epochs", "training seconds": "seconds",
}  # fmt: skip
_WRITTEN = {  # all other numbers with four decimals
    "t": "{:g}", "Σp": "{:,.2f}", "seconds": "{:,.0f}", "relative": "{:+z.1f} %",
    "epochs": "{:g}", "p": "{:.2g}",
    "p_users": "{:.2g}", "p_seeds": "{:.2g}", "p_bonferroni": "{:.2g}", "p_holm": "{:.2g}",
}  # fmt: skip
_MEASURED = ["Recall@1", "Recall@10", "NDCG@10", "Σp", "validation NDCG@10", "epochs", "seconds"]
_UNPRINTED = ["profile", "model", "loss", "sampler", "best epoch"]


@dataclass(frozen=True)
class Results:
    """What a sweep measured."""

    folder: Path
    table: pd.DataFrame  # one row a run, index: its name; columns: see `sweeps.run`
    ranks: dict[str, np.ndarray]  # of every test user's target, (n_users,), for each finished run
    histories: dict[str, pd.DataFrame]  # of each run that has epochs, see `runs.Run.history`
    record: dict[str, Any]  # sweep.json: settings, protocol, environment
    note: str = ""  # what has to be said before any of its numbers

    @property
    def dataset(self) -> str:
        """Which data the numbers are of: the name, or names, that the runs were given."""
        return " and ".join(
            dict.fromkeys(r["settings"]["dataset"] for r in self.record["runs"].values())
        )

    @property
    def shown(self) -> pd.DataFrame:
        """The finished runs as a table: settings that matter, test metrics, seconds.

        NaN stands where a loss or a model has no such setting, and for BPR's Σp.
        """
        done = self.table[self.table["state"] == "done"]
        shown = done.reindex(columns=list(_COLUMNS)).rename(columns=_COLUMNS)
        shown = shown.astype({"best epoch": int, "epochs": int})  # beside a failed run they are not
        learned = shown["model"].map(lambda name: MODELS[name].trained).astype(bool)
        drawn = learned & shown["loss"].map(lambda name: LOSSES[name].samples).astype(bool)
        has_t = drawn & shown["loss"].map(lambda name: LOSSES[name].has_t).astype(bool)
        shown["loss"] = shown["loss"].where(learned)
        for name in ("sampler", "k"):
            shown[name] = shown[name].where(drawn)
        shown["t"] = shown["t"].where(has_t)
        shown["k"] = shown["k"].astype("Int64")
        shown.index.name = None
        return shown.drop(columns=["seed"] if shown["seed"].nunique() == 1 else [])

    @property
    def systems(self) -> dict[str, list[str]]:
        """The finished runs by system: its name -> the names of its runs, which differ in seed alone.

        A system of one run has that run's name, one of several what their names have in common.
        """
        groups: dict[tuple[str, int], list[str]] = {}
        seen: Counter[tuple[str, int]] = Counter()  # two names of one run are two systems
        for name in self.ranks:
            settings = dict(self.record["runs"][name]["settings"])
            seed = settings.pop("seed", Settings.seed)
            key = json.dumps(settings, sort_keys=True)
            groups.setdefault((key, seen[key, seed]), []).append(name)
            seen[key, seed] += 1
        named: dict[str, list[str]] = {}
        alone = {names[0] for names in groups.values() if len(names) == 1}
        for names in groups.values():
            common = names[0]
            if len(names) > 1:
                common = (
                    _common(names) or Settings(**self.record["runs"][names[0]]["settings"]).name
                )
                taken = alone | named.keys()
                common = next(n for n in (common, names[0], " + ".join(names)) if n not in taken)
            named[common] = names
        return named

    @property
    def averaged(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """`shown` with one row a system, its means over seeds; and the seeds' standard deviations.

        Instead of seed the first has seeds, how many; its interval is of test users, each averaged
        over the seeds. The second is NaN for one seed.
        """
        shown, systems = self.shown, self.systems
        means = shown.loc[[names[0] for names in systems.values()]].set_axis(list(systems))
        if "seed" in means:
            place = list(means).index("seed")
            means.insert(place, "seeds", [len(names) for names in systems.values()])
            means = means.drop(columns="seed")
        parts = [shown.loc[names, _MEASURED].astype(float) for names in systems.values()]
        for what in _MEASURED:
            means[what] = [part[what].mean() for part in parts]
        for system, values in self.over_seeds().items():
            if len(values) > 1:
                interval = metrics.bootstrap_interval(values.mean(axis=0))
                means.loc[system, ["NDCG@10 low", "NDCG@10 high"]] = interval
        spread = [part.std(ddof=1) for part in parts]
        return means, pd.DataFrame(spread, index=means.index, columns=_MEASURED)

    @property
    def written(self) -> pd.DataFrame:
        """The finished runs as they are printed: rounded, the interval in one column, of the
        settings k and t.

        Runs that differ in seed alone are one row: mean ± standard deviation over their seeds. The
        other settings stand in `source`, in the runs' names and in a report's list of settings.
        """
        several = any(len(names) > 1 for names in self.systems.values())
        table, spread = self.averaged if several else (self.shown, pd.DataFrame())
        written = _write(table.drop(columns=_UNPRINTED))
        for what in spread:
            if what != "epochs":
                own = _write(spread[[what]])[what]
                written[what] += own.map(lambda text: f" ± {text}" if text else "")
        interval = written.pop("NDCG@10 low") + "–" + written.pop("NDCG@10 high")
        written.insert(list(written).index("NDCG@10") + 1, "95 % interval", interval)
        return written

    @property
    def source(self) -> str:
        """Where these numbers come from, in a sentence."""
        done = self.table[self.table["state"] == "done"]
        evidence = REFERENCE in self.folder.resolve().parents
        kind = "Committed evidence" if evidence else "Runs of this machine"
        kind = f"{self.note}\n{kind}" if self.note else kind
        told = f"{kind}: {len(done)} of {counted(len(self.table), 'run')} on {self.dataset}"
        if not len(done):
            return f"{told}."
        networks = done[done["model"].isin(["sasrec", "bert4rec"])]  # others: alike in most budgets
        profiles = sorted(set((networks if len(networks) else done)["profile"]))
        days = sorted({day[:10] for day in done["date"]})
        return (
            f"{told}, profile {' and '.join(profiles)}, trained "
            f"{' to '.join(dict.fromkeys([days[0], days[-1]]))} at commit "
            f"{' and '.join(sorted(set(done['commit'])))}."
        )

    def per_user(self, names: Sequence[str] | None = None, cutoff: int = 10) -> dict[str, Any]:
        """NDCG@cutoff of every test user, (n_users,), by run; recall@1 is NDCG@1."""
        for name in names or ():
            if name not in self.ranks:
                raise InputError(f"No finished run is called '{name}': {', '.join(self.ranks)}.")
        return {name: metrics.ndcg(self.ranks[name], cutoff) for name in names or self.ranks}

    def over_seeds(self, cutoff: int = 10) -> dict[str, np.ndarray]:
        """NDCG@cutoff of every test user by system, one row a seed: (n_seeds, n_users)."""
        users = self.per_user(cutoff=cutoff)
        return {
            system: np.stack([users[name] for name in names])
            for system, names in self.systems.items()
        }

    def grid(self, what: str = "NDCG@10", rows: str = "k", columns: str = "t") -> pd.DataFrame:
        """A column of `shown` by two settings; NaN where no run finished. Means over seeds, unless
        seed is one of the two.

        InputError where several systems have the same two, and for names of no column.
        """
        shown = self.shown
        if "seed" not in (rows, columns):
            shown = self.averaged[0].set_axis([names[0] for names in self.systems.values()])
        _require(what, shown)
        for name in (rows, columns):
            _require(name, self.table)
        given = self.table.loc[shown.index, [rows, columns]]
        if given.duplicated().any():
            first = given[given.duplicated()].to_dict("records")[0]
            both = ", ".join(f"{name} = {value}" for name, value in first.items())
            raise InputError(f"Several runs have {both}: choose settings that tell them apart.")
        return given.assign(value=shown[what]).pivot(index=rows, columns=columns, values="value")

    def marks(self, baseline: str, cutoff: int = 10) -> pd.Series:
        """For each run "*" where its system differs from the baseline's: see `metrics.compare`."""
        systems = self.systems
        of = {name: system for system, names in systems.items() for name in names}
        if baseline not in of:
            self.per_user([baseline])  # refuses it
        if len(systems) == 1:
            return pd.Series("", self.shown.index)
        tests = metrics.compare(self.over_seeds(cutoff), of[baseline]).set_index("system")
        return pd.Series({name: str(tests["mark"].get(of[name], "")) for name in self.shown.index})

    def by_k(self, what: str = "NDCG@10") -> dict[str, dict[str, pd.DataFrame]]:
        """Lines for `figures.by_k`: model -> loss -> table over k with value, low and high.

        Means over seeds; low and high of NDCG@10 alone. InputError where several systems of a line
        have the same k.
        """
        shown, _ = self.averaged
        _require(what, shown)
        lines: dict[str, dict[str, pd.DataFrame]] = {}
        drawn = shown.dropna(subset=["k"])
        for (model, loss), part in drawn.groupby(["model", "loss"], sort=False):
            if not part["k"].is_unique:
                raise InputError(f"Several runs of {model} with {loss} have the same k: no line.")
            columns = {what: "value", f"{what} low": "low", f"{what} high": "high"}
            table = part.set_index("k").reindex(columns=[c for c in columns if c in part])
            own = lines.setdefault(MODELS[str(model)].words, {})
            own[LOSSES[str(loss)].words] = table.rename(columns=columns)
        return lines


def _common(names: list[str]) -> str:
    """What names of runs that differ in seed have in common: "t = 0, seed = 1" … -> "t = 0"."""
    plain = {re.sub(r"(^|, )seed = \d+(?=$|, )", "", name).removeprefix(", ") for name in names}
    words = [name.split() for name in plain]
    together = takewhile(lambda each: len(set(each)) == 1, zip(*words, strict=False))
    return re.sub(r"[ ,;:=#(-]*(\bseed)?[ ,;:=#(-]*$", "", " ".join(each[0] for each in together))


def _require(column: str, table: pd.DataFrame) -> None:
    if column not in table:
        raise InputError(
            f"There is no column '{column}': choose one of {', '.join(map(str, table))}."
        )


def load(folder: str | Path) -> Results:
    """Read what `sweeps.run` left in a folder.

    InputError if it holds no sweep that came to its end, one of another version, a file that is not
    as its checksum in manifest.json says (earlier versions wrote none), or files that do not say the
    same: settings of sweep.json, rows of results.csv, ranks.
    """
    folder = files.chosen(folder, "folder")
    try:
        content = {name: files.read(folder / name) for name in sweeps.READ}
        for name in (sweeps.PARQUET, sweeps.CURVES):  # for readers elsewhere
            if (folder / name).exists():
                content[name] = files.read(folder / name)
        record = files.parsed(folder / "sweep.json", content["sweep.json"])
        version = record["environment"]["format"]
        if version in runs.READABLE:
            _check_sums(folder, content, record.get("manifest", False))
            _check_record(record)
            table = _read_table(content["results.csv"], record["runs"])
            ranks = _read_ranks(content["ranks.npz"], table)
            histories = _read_histories(content["histories.csv"], table)
            return Results(folder, table, ranks, histories, record)
    except _Edited:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError,
            csv.Error) as error:  # fmt: skip
        raise InputError(
            f"{folder} holds no finished sweep ({' '.join(str(error).split())}): run it first, "
            "as in python -m gsas_lab sweep grid.toml."
        ) from None
    raise InputError(f"{folder} comes from another version of gsas-lab: run the sweep again.")


class _Edited(InputError):
    """A file is not as the sweep wrote it."""


def _check_sums(folder: Path, content: dict[str, bytes], promised: bool) -> None:
    """_Edited if a file is not as the manifest has it. Earlier versions promise none."""
    if not (folder / files.MANIFEST).exists():
        if promised:
            raise ValueError(f"it has no {files.MANIFEST}")
        return
    try:
        sums = files.read_manifest(folder)["files"]
    except InputError as error:
        raise _Edited(error) from None
    for name, data in content.items():
        if files.checksum(data) != sums.get(name):
            raise _Edited(
                f"{folder / name} is not as the sweep wrote it: it is damaged, or was edited; run the "
                "sweep again, which trains nothing that is trained."
            )


_OPTIONAL = ("run", "commit", "date", "trained on", "error")  # texts that a row may lack
_WORDS = ("name", "state", "profile", *_OPTIONAL)
_OF_ROWS = "name run state profile error dataset model loss sampler k t seed".split()
_OF_RUNS = [c for c in _COLUMNS if c not in _OF_ROWS]  # which finished runs have


def _check_record(record: dict[str, Any]) -> None:
    """ValueError or the like if sweep.json is not as `sweeps.run` writes it."""
    json.dumps(record, ensure_ascii=False).encode()  # no half characters
    told = [record["environment"], *(run.get("protocol", {}) for run in record["runs"].values())]
    if not record["runs"] or not all(_plain(fact) for facts in told for fact in facts.values()):
        raise ValueError("sweep.json has no runs, or facts that are no plain values")
    for name, run in record["runs"].items():
        if not isinstance(run.get("run", ""), str):
            raise ValueError(f"sweep.json has no folder for '{name}'")
        Settings(**run["settings"])


def _plain(fact: Any) -> bool:
    each = fact if isinstance(fact, list) else [fact]
    return all(isinstance(value, str | int | float | None) for value in each)


def _read_table(content: bytes, asked: dict[str, Any]) -> pd.DataFrame:
    """results.csv, typed by what each column holds and never by how its cells look."""
    rows = _rows(content)
    header = rows[0].keys() if rows else ()
    if missing := [name for name in _OF_ROWS if name not in header]:
        raise ValueError(f"results.csv has no column {missing[0]}")
    told = [(name, run.get("run", "")) for name, run in asked.items()]
    if told != [(row["name"], row["run"]) for row in rows]:
        raise ValueError("results.csv is of other runs than sweep.json")
    kinds = {item.name: item.type for item in fields(Settings)}
    columns = {
        name: [_cell(row[name], kinds.get(name, str if name in _WORDS else None)) for row in rows]
        for name in header
    }
    for name in {*_OPTIONAL} & {*header}:
        columns[name] = [text or np.nan for text in columns[name]]
    for place, run in enumerate(asked.values()):
        if run["settings"].keys() != header & kinds.keys():
            raise ValueError("results.csv and sweep.json have other settings")
        for name in run["settings"].keys() - {*OF_DATA}:  # files may have other names elsewhere
            if columns[name][place] != getattr(Settings(**run["settings"]), name):
                raise ValueError(f"results.csv and sweep.json differ in {name}")
    table = pd.DataFrame(columns, index=pd.Index(columns.pop("name"), dtype=object, name="name"))
    if not table["state"].isin(["done", "failed"]).all():
        raise ValueError("results.csv has a run that is neither done nor failed")
    done = table[table["state"] == "done"]
    if len(done):
        _check_done(done)
    return table


def _check_done(done: pd.DataFrame) -> None:
    if missing := [name for name in [*_OF_RUNS, "run", "commit", "date"] if name not in done]:
        raise ValueError(f"results.csv has no column {missing[0]}")
    if done[["run", "commit", "date"]].isna().any(axis=None):
        raise ValueError("results.csv has a finished run without folder, commit or date")
    numbers = done[[n for n in _OF_RUNS if n != "mean sum of p"]].to_numpy(dtype=float)
    low, high = (done[f"ndcg@10 95% interval {end}"] for end in ("low", "high"))
    shares = done[["ndcg@10", "validation ndcg@10"]].join([low, high])
    if (
        not np.isfinite(numbers).all()
        or not ((shares >= 0) & (shares <= 1)).all(axis=None)
        or not ((low <= done["ndcg@10"]) & (done["ndcg@10"] <= high)).all()
        or not pd.api.types.is_numeric_dtype(done["mean sum of p"])
        or not (done[["best epoch", "epochs trained"]] % 1 == 0).all(axis=None)
        or (done[["best epoch", "epochs trained", "training seconds"]] < 0).any(axis=None)
    ):
        raise ValueError("results.csv has a finished run with a number that cannot be")


def _cell(text: str, kind: Any) -> Any:
    """A cell of results.csv as the value that was written; kind None: a number where it is one."""
    if kind is None:
        try:
            number = float(text or "nan")
        except ValueError:
            return text
        return int(text) if re.fullmatch(r"-?\d{1,15}", text) else number
    kinds = get_args(kind) or (kind,)
    if NoneType in kinds and not text:
        return None
    if bool in kinds and (text in ("True", "False") or str not in kinds):
        return {"True": True, "False": False}[text]
    return next(each for each in kinds if each not in (NoneType, bool))(text)


def _rows(content: bytes) -> list[dict[str, str]]:
    """The rows of results.csv as text, by column; ValueError if one has more or fewer cells."""
    lines = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    header, *rows = [line for line in lines if line] or [[]]
    if len(set(header)) < len(header) or any(len(row) != len(header) for row in rows):
        raise ValueError("results.csv has rows of other columns than its first")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _read_ranks(content: bytes, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Of the finished runs, by name; ValueError if they are not those of the table's metrics."""
    done = [place for place, state in enumerate(table["state"]) if state == "done"]
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            found = {place: saved[str(place)] for place in done}
    except Exception as error:  # a different one for every way in which an archive can be broken
        raise ValueError(f"ranks.npz: {error}") from None
    for place, ranks in found.items():
        row = table.iloc[place]
        if ranks.ndim != 1 or ranks.dtype.kind not in "iu" or not len(ranks):
            raise ValueError("ranks.npz holds no ranks")
        told = metrics.summary(ranks)
        if not all(abs(row[name] - value) < 1e-9 for name, value in told.items()):
            raise ValueError("ranks.npz is of other runs than results.csv")
    return {str(table.index[place]): ranks for place, ranks in found.items()}


def _read_histories(content: bytes, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    epochs = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    if set(epochs) != {*HISTORY, "name"} or not epochs["name"].isin(table.index).all():
        raise ValueError("histories.csv is of other runs than results.csv")
    numbers = epochs[list(HISTORY)].replace("", "nan").apply(pd.to_numeric)
    return {
        str(name): numbers.loc[part]
        for name, part in epochs.groupby("name", sort=False).groups.items()
    }


def of_paper(name: str, dataset: str, profile: str | None = None, **over: Any) -> Results:
    """One of the paper's tables or figures: figure3, figure4, table2 or table3; and seeds.

    profile: a budget of recipes.PROFILES, to train now whatever was not trained before; or
    "reference", to read the committed evidence of that data set. None: the evidence, where there is
    some and nothing is asked of the runs; else `small`, where that takes no more than CHEAP seconds;
    else the evidence of the known-truth world, with a note that says so and how to train.
    over: settings of every run; the seeds of "seeds" are its own.
    """
    known = sorted(path.stem for path in SWEEPS.glob("*.toml"))
    if name not in known:
        raise InputError(f"Sweep '{name}' is unknown: choose one of {', '.join(known)}.")
    of_data = {setting: value for setting, value in over.items() if setting in DATA}
    if name == "seeds":
        over = {setting: value for setting, value in over.items() if setting != "seed"}
    committed = REFERENCE / dataset / name
    if profile == "reference":
        if over:
            raise InputError(f"The evidence is as it is: to set {', '.join(over)}, train anew.")
        if not committed.exists():
            raise InputError(
                f"There is no evidence of {name} on {dataset}: choose profile 'small' to train it."
            )
        return load(committed)
    asked = {setting: v for setting, v in over.items() if v != getattr(Settings, setting)}
    if profile is None and not asked and committed.exists():
        return load(committed)
    budget = profile or "small"
    named = sweeps.read(SWEEPS / f"{name}.toml", dataset=dataset, profile=budget, **over)
    for setting in over:
        if all(setting in system.unread for system in named.values()):
            raise InputError(f"{setting} makes no difference to any run of {name}: leave it out.")
    named = _that_fit(named, runs.load_data(Settings(dataset=dataset, **of_data)).split.n_items)
    if profile is None and (seconds := estimate(named)) > CHEAP:
        values = "".join(f" -p {shlex.quote(f'{n}={v}')}" for n, v in over.items())
        return replace(
            load(REFERENCE / "known-truth" / name),
            note=f"NOT YOUR DATA. There is no evidence of {name} on {Path(dataset).name} with these "
            f"settings, and its {len(named)} runs would take about {seconds / 60:,.0f} minutes on "
            "two cores even in the small profile. What follows is what it would show, as measured "
            "in the known-truth world. To train it on your data: python -m gsas_lab sweep "
            f"notebooks/sweeps/{name}.toml --dataset {shlex.quote(dataset)} --profile small{values}, "
            "then run this notebook again with the parameter profile = 'small'.",
        )
    folder = sweeps.folder_of(name, dataset=dataset, profile=budget, **over)
    sweeps.run(named, folder)
    return load(folder)


CHEAP = 120  # seconds that a notebook trains without being asked


def _that_fit(named: dict[str, Settings], n_items: int) -> dict[str, Settings]:
    """The runs with the negatives that a catalogue has: where the grid asks for more, a point of it
    is left out; a single system gets fewer, see `recipes.scaled`.
    """
    fit: dict[str, Settings] = {}
    for name, system in named.items():
        if system.k < n_items:
            fit[name] = system
        elif f"k = {system.k}" not in name:
            fit[name] = replace(system, k=recipes.scaled(system).k)
    return fit


def estimate(named: dict[str, Settings]) -> float:
    """What is still to train, on two cores, roughly: 1 s a run, 100,000 positions or 200 million
    scores of a softmax a second, which is cautious (docs/LOG.md).
    """
    total = 0.0
    for system in named.values():
        data = runs.load_data(system)
        if (files.runs_folder() / runs.identity(system, data) / "metrics.json").exists():
            continue
        epochs = system.epochs if MODELS[system.model].trained else 0
        positions = epochs * len(data.split.train.items)
        scores = positions * data.split.n_items if LOSSES[system.loss].whole else 0
        scores += len(data.split.test.users) * data.split.n_items  # to rank them all
        total += 1 + positions / 1e5 + scores / 2e8
    return total


def write_report(folder: str | Path) -> Path:
    """A sweep's folder -> report.html in it: one self-contained page, which is returned.

    Figures, tables, tests, the paper's numbers beside ours, settings, protocol, environment.
    """
    from gsas_lab.lessons import publish

    results = load(folder)
    heading = Path(folder).resolve().name
    parts = [_STYLE, f"<h1>{html.escape(heading)}</h1>"]
    parts.append(f'<p class="facts">{html.escape(results.source)}</p>')
    parts += map(_image, _figures(results))
    parts.append("<h2>Results</h2>" + _table(results.written))
    if len(results.systems) < len(results.ranks):
        parts.append(
            "<p>Rows of several seeds: mean ± standard deviation over them; the interval is of "
            "users. Each training:</p>" + _table(results.shown.drop(columns=_UNPRINTED))
        )
    told = results.record["runs"].values()
    protocols = list(dict.fromkeys(json.dumps(r["protocol"]) for r in told if "protocol" in r))
    if len(results.systems) > 1 and len(protocols) == 1:  # others have no users in common
        parts.append(_tests(results))
    parts.append(_beside(results))
    failed = results.table[results.table["state"] == "failed"]
    if len(failed):
        parts.append("<h2>Failed</h2>" + _table(failed[["error"]]))
    settings = pd.DataFrame({n: r["settings"] for n, r in results.record["runs"].items()}).T
    settings = settings.map(str)
    same = settings.nunique() == 1
    parts.append("<h2>Settings</h2><p>Of all runs:</p>" + _list(settings.loc[:, same].iloc[0]))
    if not same.all():
        own = settings.loc[:, ~same]
        parts.append("<p>Of each run:</p>" + _table(own if len(own) > own.shape[1] else own.T))
    for protocol in protocols:
        parts.append("<h2>Protocol</h2>" + _list(pd.Series(json.loads(protocol))))
    parts.append("<h2>Environment</h2>" + _list(pd.Series(results.record["environment"])))
    page = Path(folder) / "report.html"
    with files.locked(page.parent):
        publish.write_page(page, f"gsas-lab: {heading}", "".join(parts))
    return page


# Wide tables with names that keep to one line, but sentences that do not.
_STYLE = (
    "<style>div.table { max-width: min(76rem, 100vw - 2.4rem); } "
    "th, td { padding: 0.38rem 0.55rem; } tbody th { white-space: nowrap; }</style>"
)


def _figures(results: Results) -> list["Axes"]:
    """What a sweep's shape asks for: a map over k and t, or lines over k."""
    from gsas_lab import figures

    shown = results.shown
    varied = min(shown["k"].nunique(), shown["t"].nunique()) > 1
    try:
        kinds = set(zip(shown["model"], shown["loss"], strict=True))
        if varied and len(kinds) == 1 and shown["t"].notna().all():
            ((model, loss),) = kinds
            title = f"{MODELS[model].words}, {LOSSES[loss].words}"
            known = results.dataset in IN_PAPER and title == "SASRec, gBCE"
            axes = figures.grid(results.grid(), reference=paper.figure_3() if known else None)
            axes.set_title(title)
            return [axes]
        lines = results.by_k()
    except InputError:  # something else varies, which neither can show
        return []
    drawn = []
    for model, each in lines.items():
        if max(map(len, each.values())) > 2:
            drawn.append(figures.by_k(each))
            drawn[-1].set_title(model)
    return drawn


def _tests(results: Results) -> str:
    """Every system beside the best one, which validation users chose: test users only judge it."""
    means, _ = results.averaged
    best = str(means["validation NDCG@10"].idxmax())
    tests = metrics.compare(results.over_seeds(), best).set_index("system")
    columns = ["mean", "difference", "relative", "low", "high", "p", "p_bonferroni", "p_holm"]
    told = "p by paired t-tests"
    if tests["p_seeds"].notna().any():
        columns[5:5] = ["p_users", "p_seeds"]
        told = (
            "p_users by paired t-tests of each user's mean over a system's seeds: would these models "
            "differ on other users? p_seeds by Welch's t-test of the seeds' means: would other "
            "trainings differ? p is the larger of them"
        )
    return (
        f"<h2>Against the best, {html.escape(best)}</h2><p>The best by NDCG@10 of the validation "
        "users. Here NDCG@10 of the test users; low and high bound the difference (95 %). "
        f"{told}, corrected for all rows; * is p &lt; 0.05 after Bonferroni.</p>"
        + _table(tests[[*columns, "mark"]])
    )


def _beside(results: Results) -> str:
    """What the paper's tables, and its words about Figure 4, say of the systems of this sweep."""
    if not (data := IN_PAPER.get(results.dataset)):
        return ""
    shown, _ = results.averaged
    ours = shown[["Recall@1", "Recall@10", "NDCG@10"]]
    quoted = paper.figure_4().set_index(["architecture", "loss", "k"])
    plain = shown[(shown["sampler"] == "positive-excluded") & shown["t"].isin([1.0, np.nan])]
    points = [
        (MODELS[str(row.model)].words, LOSSES[str(row.loss)].words, row.k)
        for row in plain.itertuples()
    ]
    quoted = quoted.reindex(points).set_axis(plain.index).dropna(how="all")
    tables = [pd.DataFrame(table.loc[data]) for table in (paper.table_3(), paper.table_2())]
    theirs = tables[0].combine_first(tables[1]).combine_first(quoted)
    theirs = theirs.reindex(index=ours.index, columns=ours.columns).dropna(how="all")
    if theirs.empty:
        return ""
    return (
        "<h2>Beside the paper</h2><p>Its Tables 2 and 3 by the system's name, and what its text "
        "quotes of Figure 4.</p>" + _table(paper.beside(ours.loc[theirs.index], theirs))
    )


def _write(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as text, "" for none."""

    def write(value: Any, form: str) -> Any:
        return form.format(value) if isinstance(value, float) else value

    columns = {name: table[name].astype(object).fillna("") for name in table}
    forms = {name: _WRITTEN.get(str(name), "{:z.4f}") for name in table}
    return pd.DataFrame(
        {name: column.map(partial(write, form=forms[name])) for name, column in columns.items()},
        index=table.index,
    )


def _table(table: pd.DataFrame, header: bool = True) -> str:
    with pd.option_context("display.max_colwidth", None):  # else long sentences are cut
        text = _write(table).to_html(border=0, header=header, index_names=False)
    return f'<div class="table">{text}</div>'


def _list(facts: pd.Series) -> str:
    return _table(facts.map(str).to_frame(), header=False)


def _image(axes: "Axes") -> str:
    import matplotlib.pyplot as plt

    content, figure = io.BytesIO(), axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(content, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    text = base64.b64encode(content.getvalue()).decode()
    alt = f"{axes.get_title()}: NDCG@10"
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{text}"></p>'
