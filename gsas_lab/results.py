"""A sweep's folder -> tables, tests and one page. What is read here was measured by `sweeps.run`.

    results = results.of_paper("figure3", "ml-1m", "small")   # trained now, or found
    results = results.load("outputs/my-sweep")                # or any sweep's folder

Numbers of a small budget say so: `profile` stands beside each of them.
"""

import base64
import html
import io
import json
import shlex
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gsas_lab import files, metrics, paper, recipes, runs, sweeps
from gsas_lab.errors import InputError
from gsas_lab.settings import DATA, Settings

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
    "t": "{:g}", "Σp": "{:,.2f}", "seconds": "{:,.0f}", "relative": "{:+.1f} %",
    "p": "{:.2g}", "p_bonferroni": "{:.2g}", "p_holm": "{:.2g}",
}  # fmt: skip
_UNPRINTED = ["profile", "model", "loss", "sampler", "best epoch"]
MODELS = {"sasrec": "SASRec", "bert4rec": "BERT4Rec", "mf": "MF", "popularity": "Popularity"}
LOSSES = {"bce": "BCE", "gbce": "gBCE", "sampled_softmax": "sampled softmax", "bpr": "BPR"}


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
        learned = shown["model"] != "popularity"
        drawn = learned & (shown["loss"] != "softmax")  # softmax takes the whole catalogue
        shown["loss"] = shown["loss"].where(learned)
        for name in ("sampler", "k"):
            shown[name] = shown[name].where(drawn)
        shown["t"] = shown["t"].where(drawn & shown["loss"].isin(["gbce", "expected_gbce"]))
        shown["k"] = shown["k"].astype("Int64")
        shown.index.name = None
        return shown.drop(columns=["seed"] if shown["seed"].nunique() == 1 else [])

    @property
    def written(self) -> pd.DataFrame:
        """`shown` as it is printed: rounded, the interval in one column, of the settings k and t.

        The others stand in `source`, in the runs' names and in a report's list of settings.
        """
        written = _write(self.shown.drop(columns=_UNPRINTED))
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
        told = f"{kind}: {len(done)} of {len(self.table)} runs on {self.dataset}"
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

    def grid(self, what: str = "NDCG@10", rows: str = "k", columns: str = "t") -> pd.DataFrame:
        """A column of `shown` by two settings; NaN where no run finished.

        InputError where several runs have the same two.
        """
        given = self.table.loc[self.shown.index, [rows, columns]]
        if given.duplicated().any():
            first = given[given.duplicated()].to_dict("records")[0]
            both = ", ".join(f"{name} = {value}" for name, value in first.items())
            raise InputError(f"Several runs have {both}: choose settings that tell them apart.")
        return given.assign(value=self.shown[what]).pivot(
            index=rows, columns=columns, values="value"
        )

    def marks(self, baseline: str, cutoff: int = 10) -> pd.Series:
        """For each run "*" where it differs from the baseline: paired t-test, Bonferroni, 0.05."""
        tests = metrics.compare(self.per_user(cutoff=cutoff), baseline).set_index("system")
        return tests["mark"].reindex(self.shown.index).fillna("")

    def by_k(self, what: str = "NDCG@10") -> dict[str, dict[str, pd.DataFrame]]:
        """Lines for `figures.by_k`: model -> loss -> table over k with value, low and high.

        Low and high of NDCG@10 alone. InputError where several runs of a line have the same k.
        """
        lines: dict[str, dict[str, pd.DataFrame]] = {}
        drawn = self.shown.dropna(subset=["k"])
        for (model, loss), part in drawn.groupby(["model", "loss"], sort=False):
            if not part["k"].is_unique:
                raise InputError(f"Several runs of {model} with {loss} have the same k: no line.")
            columns = {what: "value", f"{what} low": "low", f"{what} high": "high"}
            table = part.set_index("k").reindex(columns=[c for c in columns if c in part])
            name = LOSSES.get(str(loss), str(loss))
            lines.setdefault(MODELS[str(model)], {})[name] = table.rename(columns=columns)
        return lines


def load(folder: str | Path) -> Results:
    """Read what `sweeps.run` left in a folder.

    InputError if it holds no sweep that came to its end, or one of another version.
    """
    folder = Path(folder)
    words = dict.fromkeys(["name", "run", "commit", "date", "error"], str)  # "1234567" is a commit
    try:
        record = json.loads((folder / "sweep.json").read_text())
        asked = [(name, run.get("run", "")) for name, run in record["runs"].items()]
        version = record["environment"]["format"]
        table = pd.read_csv(folder / "results.csv", index_col="name", dtype=words)
        if asked != list(table["run"].fillna("").items()):
            raise ValueError("results.csv is of other runs than sweep.json")
        epochs = pd.read_csv(folder / "histories.csv", dtype={"name": str})
        histories = {str(name): part.drop(columns="name")
                     for name, part in epochs.groupby("name", sort=False)}  # fmt: skip
        with np.load(io.BytesIO((folder / "ranks.npz").read_bytes())) as saved:
            ranks = {str(name): saved[str(place)] for place, (name, state)
                     in enumerate(table["state"].items()) if state == "done"}  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise InputError(
            f"{folder} holds no finished sweep ({' '.join(str(error).split())}): run it first, "
            "as in python -m gsas_lab sweep grid.toml."
        ) from None
    if version not in runs.READABLE:
        raise InputError(f"{folder} comes from another version of gsas-lab: run the sweep again.")
    return Results(folder, table, ranks, histories, record)


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
    named = _that_fit(named, runs.load_data(Settings(dataset=dataset, **of_data)).split.n_items)
    if profile is None and (seconds := _seconds(named)) > CHEAP:
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


def _seconds(named: dict[str, Settings]) -> float:
    """What is still to train, on two cores, roughly: 1 s a run, 100,000 positions or 200 million
    scores of a softmax a second, which is cautious (docs/LOG.md).
    """
    total = 0.0
    for system in named.values():
        data = runs.load_data(system)
        if (files.runs_folder() / runs.identity(system, data) / "metrics.json").exists():
            continue
        epochs = 0 if system.model == "popularity" else system.epochs
        positions = epochs * len(data.split.train.items)
        scores = positions * data.split.n_items if system.loss == "softmax" else 0
        scores += len(data.split.test.users) * data.split.n_items  # to rank them all
        total += 1 + positions / 1e5 + scores / 2e8
    return total


def write_report(folder: str | Path) -> Path:
    """A sweep's folder -> report.html in it: one self-contained page, which is returned.

    Figures, tables, tests, the paper's numbers beside ours, settings, protocol, environment.
    """
    from gsas_lab import publish

    results = load(folder)
    heading = Path(folder).resolve().name
    parts = [_STYLE, f"<h1>{html.escape(heading)}</h1>"]
    parts.append(f'<p class="facts">{html.escape(results.source)}</p>')
    parts += map(_image, _figures(results))
    parts.append("<h2>Results</h2>" + _table(results.written))
    told = results.record["runs"].values()
    protocols = list(dict.fromkeys(json.dumps(r["protocol"]) for r in told if "protocol" in r))
    if len(results.ranks) > 1 and len(protocols) == 1:  # others have no users in common
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
    publish.write_page(page, f"gsas-lab: {heading}", "".join(parts))
    return page


# Wide tables with names that keep to one line, but sentences that do not.
_STYLE = (
    "<style>.table { max-width: min(76rem, 100vw - 2.4rem); } "
    "th, td { padding: 0.38rem 0.55rem; } tbody th { white-space: nowrap; }</style>"
)


def _figures(results: Results) -> list["Axes"]:
    """What a sweep's shape asks for: a map over k and t, or lines over k."""
    from gsas_lab import figures

    shown = results.shown
    varied = min(shown["k"].nunique(), shown["t"].nunique()) > 1
    try:
        if varied and set(zip(shown["model"], shown["loss"], strict=True)) == {("sasrec", "gbce")}:
            axes = figures.grid(
                results.grid(), reference=paper.figure_3() if _in_paper(results) else None
            )
            axes.set_title("SASRec, gBCE")
            return [axes]
        lines = results.by_k()
    except InputError:  # something else varies, such as the seed, which neither can show
        return []
    drawn = []
    for model, each in lines.items():
        if max(map(len, each.values())) > 2:
            drawn.append(figures.by_k(each))
            drawn[-1].set_title(model)
    return drawn


def _tests(results: Results) -> str:
    best = str(results.shown["NDCG@10"].idxmax())
    tests = metrics.compare(results.per_user(), best).set_index("system")
    columns = ["mean", "difference", "relative", "low", "high", "p", "p_bonferroni", "p_holm"]
    return (
        f"<h2>Against the best, {html.escape(best)}</h2><p>NDCG@10, paired t-tests over the test "
        "users, corrected for all rows; low and high bound the difference (95 %); * is p &lt; 0.05 "
        "after Bonferroni.</p>" + _table(tests[[*columns, "mark"]])
    )


def _beside(results: Results) -> str:
    """What the paper's tables, and its words about Figure 4, say of the systems of this sweep."""
    data = _in_paper(results)
    if not data:
        return ""
    shown = results.shown
    ours = shown[["Recall@1", "Recall@10", "NDCG@10"]]
    quoted = paper.figure_4().set_index(["architecture", "loss", "k"])
    plain = shown[(shown["sampler"] == "positive-excluded") & shown["t"].isin([1.0, np.nan])]
    points = [
        (MODELS[str(row.model)], LOSSES.get(str(row.loss)), row.k) for row in plain.itertuples()
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


def _in_paper(results: Results) -> str | None:
    """The paper's name of the sweep's data set, if it has one."""
    named = {run["settings"]["dataset"] for run in results.record["runs"].values()}
    return IN_PAPER.get(named.pop()) if len(named) == 1 else None


def _write(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as text, "" for none."""

    def write(value: Any, form: str) -> Any:
        return form.format(value) if isinstance(value, float) else value

    columns = {name: table[name].astype(object).fillna("") for name in table}
    forms = {name: _WRITTEN.get(str(name), "{:.4f}") for name in table}
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
