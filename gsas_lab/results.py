"""A sweep's folder -> tables, tests and one page. What is read here was measured by `sweeps.run`.

    results = results.of_paper("figure3", "ml-1m", "small")   # trained now, or found
    results = results.load("outputs/my-sweep")                # or any sweep's folder

Numbers of a small budget say so: `profile` stands beside each of them.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gsas_lab import metrics, paper, runs, sweeps
from gsas_lab.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEPS = runs.ROOT / "notebooks" / "sweeps"
REFERENCE = runs.ROOT / "outputs" / "reference"
IN_PAPER = {"ml-1m": "MovieLens-1M"}  # the paper's name of the data sets that it has as well
_COLUMNS = {
    "profile": "profile", "model": "model", "loss": "loss", "sampler": "sampler", "k": "k",
    "t": "t", "seed": "seed", "recall@1": "Recall@1", "recall@10": "Recall@10",
    "ndcg@10": "NDCG@10", "ndcg@10 95% interval low": "NDCG@10 low",
    "ndcg@10 95% interval high": "NDCG@10 high", "mean sum of p": "Σp",
    "validation ndcg@10": "validation NDCG@10", "best epoch": "best epoch",
    "epochs trained": "epochs", "training seconds": "seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What a sweep measured."""

    folder: Path
    table: pd.DataFrame  # one row a run, index: its name; columns: see `sweeps.run`
    ranks: dict[str, np.ndarray]  # of every test user's target, (n_users,), for each finished run
    histories: dict[str, pd.DataFrame]  # of each run that has epochs, see `runs.Run.history`
    record: dict[str, Any]  # sweep.json: settings, protocol, environment

    @property
    def shown(self) -> pd.DataFrame:
        """The finished runs as a table to be read: settings that matter, test metrics, seconds."""
        done = self.table[self.table["state"] == "done"]
        shown = done.reindex(columns=list(_COLUMNS)).rename(columns=_COLUMNS)
        whole = shown["loss"] == "softmax"  # which draws no negatives
        shown[["k", "t"]] = shown[["k", "t"]].where(~whole & (shown["model"] != "popularity"))
        shown["t"] = shown["t"].where(shown["loss"].str.contains("gbce"))
        shown["k"] = shown["k"].astype("Int64")
        shown["loss"] = shown["loss"].where(shown["model"] != "popularity")
        shown.index.name = None
        return shown.drop(columns=["seed"] if shown["seed"].nunique() == 1 else [])

    @property
    def source(self) -> str:
        """Where these numbers come from, in a sentence."""
        done = self.table[self.table["state"] == "done"]
        data = next(iter(self.record["runs"].values()))["settings"]["dataset"]
        commits = ", ".join(sorted(set(done["commit"])))
        days = sorted({day[:10] for day in done["date"]})
        profiles = [name for name in dict.fromkeys(done["profile"]) if name != "any"]
        kind = "Committed evidence" if REFERENCE in self.folder.parents else "Runs of this machine"
        return (
            f"{kind}: {len(done)} of {len(self.table)} runs on {data}, profile "
            f"{' and '.join(profiles) or 'any'}, trained "
            f"{' to '.join(dict.fromkeys([days[0], days[-1]]))} at commit {commits}."
        )

    def per_user(self, names: Sequence[str] | None = None, cutoff: int = 10) -> dict[str, Any]:
        """NDCG@cutoff of every test user, (n_users,), by run; recall@1 is NDCG@1."""
        return {name: metrics.ndcg(self.ranks[name], cutoff) for name in names or self.ranks}

    def grid(self, what: str = "NDCG@10", rows: str = "k", columns: str = "t") -> pd.DataFrame:
        """A metric of `shown` by two settings."""
        given = self.table.loc[self.shown.index, [rows, columns]]
        return given.assign(value=self.shown[what]).pivot(
            index=rows, columns=columns, values="value"
        )

    def marks(self, baseline: str, cutoff: int = 10) -> pd.Series:
        """For each run "*" where it differs from the baseline: paired t-test, Bonferroni, 0.05."""
        tests = metrics.compare(self.per_user(cutoff=cutoff), baseline).set_index("system")
        return tests["mark"].reindex(self.shown.index).fillna("")

    def by_k(self, what: str = "NDCG@10") -> dict[str, dict[str, pd.DataFrame]]:
        """Lines for `figures.by_k`: model -> loss -> table over k with value, low and high."""
        lines: dict[str, dict[str, pd.DataFrame]] = {}
        drawn = self.shown.dropna(subset=["k"])
        for (model, loss), part in drawn.groupby(["model", "loss"], sort=False):
            columns = {what: "value", f"{what} low": "low", f"{what} high": "high"}
            table = part.set_index("k").reindex(columns=[c for c in columns if c in part])
            name = LOSSES.get(str(loss), str(loss))
            lines.setdefault(MODELS[str(model)], {})[name] = table.rename(columns=columns)
        return lines


MODELS = {"sasrec": "SASRec", "bert4rec": "BERT4Rec", "mf": "MF", "popularity": "Popularity"}
LOSSES = {"bce": "BCE", "gbce": "gBCE", "sampled_softmax": "sampled softmax", "bpr": "BPR"}


def load(folder: str | Path) -> Results:
    """Read what `sweeps.run` left in a folder. InputError if it holds no finished sweep."""
    folder = Path(folder)
    try:
        table = pd.read_csv(folder / "results.csv", index_col="name")
        record = json.loads((folder / "sweep.json").read_text())
        epochs = pd.read_csv(folder / "histories.csv")
        with np.load(folder / "ranks.npz") as saved:
            ranks = {name: saved[str(place)] for place, name in enumerate(table.index)
                     if str(place) in saved}  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} holds no finished sweep ({error}): run it first, "
            "as in python -m gsas_lab sweep grid.toml."
        ) from None
    histories = {
        name: part.drop(columns="name")
        for name in table.index
        if len(part := epochs[epochs["name"] == name])
    }
    return Results(folder, table, ranks, histories, record)


def of_paper(name: str, dataset: str, profile: str = "reference", **over: Any) -> Results:
    """One of the paper's tables or figures: figure3, figure4, table2 or table3.

    profile: a budget of recipes.PROFILES, to train now whatever was not trained before; or
    "reference", to read the committed evidence of that data set. over: settings of every run.
    """
    known = sorted(path.stem for path in SWEEPS.glob("*.toml"))
    if name not in known:
        raise InputError(f"Sweep '{name}' is unknown: choose one of {', '.join(known)}.")
    if profile == "reference":
        if over:
            raise InputError(f"The evidence is as it is: to set {', '.join(over)}, train anew.")
        folder = REFERENCE / Path(dataset).stem / name
        if not folder.exists():
            raise InputError(
                f"There is no evidence of {name} on {dataset}: choose profile 'small' to train it."
            )
        return load(folder)
    named = sweeps.read(SWEEPS / f"{name}.toml", dataset=dataset, profile=profile, **over)
    folder = runs.ROOT / "outputs" / f"{name}-{Path(dataset).stem}-{profile}"
    sweeps.run(named, folder)
    return load(folder)


def write_report(folder: str | Path) -> Path:
    """A sweep's folder -> report.html in it: one self-contained page, which is returned.

    Tables with the paper's numbers beside ours, figures, tests, settings, protocol, environment.
    """
    from gsas_lab import publish

    results = load(folder)
    shown = results.shown
    parts = [f"<h1>{html.escape(Path(folder).resolve().name)}</h1>"]
    parts.append(f'<p class="facts">{html.escape(results.source)}</p>')
    parts += [_image(axes) for axes in _figures(results)]
    parts.append("<h2>Results</h2>" + _table(shown))
    if len(results.ranks) > 1:
        best = str(shown["NDCG@10"].idxmax())
        tests = metrics.compare(results.per_user(), best).set_index("system")
        columns = ["mean", "difference", "relative", "low", "high", "p", "p_bonferroni", "p_holm"]
        parts.append(
            f"<h2>Against the best, {html.escape(best)}</h2><p>NDCG@10, paired t-tests over the "
            "test users, corrected for all rows; * is p &lt; 0.05 after Bonferroni.</p>"
            + _table(tests[[*columns, "mark"]])
        )
    parts.append(_beside(results))
    failed = results.table[results.table["state"] == "failed"]
    if len(failed):
        parts.append("<h2>Failed</h2>" + _table(failed[["error"]]))
    settings = pd.DataFrame({n: run["settings"] for n, run in results.record["runs"].items()}).T
    same = settings.map(str).nunique() == 1
    parts.append("<h2>Settings</h2><p>Of all runs:</p>")
    parts.append(_table(settings.loc[:, same].iloc[:1].T.set_axis(["value"], axis=1)))
    if not same.all():
        parts.append("<p>Of each run:</p>" + _table(settings.loc[:, ~same]))
    protocols = {
        json.dumps(run["protocol"]) for run in results.record["runs"].values() if "protocol" in run
    }
    for protocol in sorted(protocols):
        told = pd.Series(json.loads(protocol), name="value").map(str).to_frame()
        parts.append("<h2>Protocol</h2>" + _table(told))
    told = pd.Series(results.record["environment"], name="value").map(str).to_frame()
    parts.append("<h2>Environment</h2>" + _table(told))
    page = Path(folder) / "report.html"
    publish.write_page(page, f"gsas-lab: {Path(folder).resolve().name}", "".join(parts))
    return page


def _figures(results: Results) -> list["Axes"]:
    """What a sweep's shape asks for: a map over k and t, or lines over k."""
    from gsas_lab import figures

    shown = results.shown
    gbce = shown[(shown["loss"] == "gbce") & (shown["model"] == "sasrec")]
    if len(gbce) == len(shown) > 3 and min(gbce["k"].nunique(), gbce["t"].nunique()) > 1:
        reference = paper.figure_3() if _in_paper(results) else None
        return [figures.grid(results.grid(), reference=reference)]
    lines = {model: each for model, each in results.by_k().items()
             if max(map(len, each.values())) > 2}  # fmt: skip
    drawn = []
    for model, each in lines.items():
        axes = figures.by_k(each)
        axes.set_title(model)
        drawn.append(axes)
    return drawn


def _beside(results: Results) -> str:
    data = _in_paper(results)
    if not data:
        return ""
    ours = results.shown[["Recall@1", "Recall@10", "NDCG@10"]]
    theirs = pd.DataFrame(paper.table_3().loc[data])[list(ours)]
    if not set(ours.index) & set(theirs.index):
        return ""
    note = "Profile " + ", ".join(sorted(set(results.shown["profile"]))) + "."
    return f"<h2>Beside the paper's Table 3</h2><p>{note}</p>" + _table(
        paper.beside(ours, theirs.loc[theirs.index.isin(ours.index)])
    )


def _in_paper(results: Results) -> str | None:
    """The paper's name of the sweep's data set, if it has one."""
    named = {run["settings"]["dataset"] for run in results.record["runs"].values()}
    return IN_PAPER.get(named.pop()) if len(named) == 1 else None


def _table(table: pd.DataFrame) -> str:
    text = table.to_html(border=0, na_rep="", float_format="{:.4g}".format)
    return f'<div class="table">{text}</div>'


def _image(axes: "Axes") -> str:
    import matplotlib.pyplot as plt

    content, figure = io.BytesIO(), axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(content, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    text = base64.b64encode(content.getvalue()).decode()
    return f'<p><img alt="{html.escape(axes.get_title() or "figure")}" src="data:image/png;base64,{text}"></p>'
