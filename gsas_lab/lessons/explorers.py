"""Figures with a control, each in three forms over one pure function.

`…_figure(…)` returns a plotly Figure for given values. The live form drives it with widgets, one
update a move; the static form holds a frame for each step of a slider, and needs neither kernel nor
network. `…_explorer(…)` holds both; as the last line of a cell it shows the live form, or the static
one where GSAS_LAB_HEADLESS is set or plotly has no widgets.
"""

import html
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from IPython.display import display

from gsas_lab.decisions import profit
from gsas_lab.errors import InputError, counted
from gsas_lab.figures import BLUE, CELLS, GREY, MEMORY, Tables, size, styles
from gsas_lab.theory import BYTES, logits_bytes

if TYPE_CHECKING:  # both import torch, which a lesson on the theory does without
    from gsas_lab.experiment import Data
    from gsas_lab.ranking import Outcome

_SYMBOL = {  # matplotlib's markers and lines in plotly's words
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down",
    "X": "x", "*": "star", "P": "cross", "h": "hexagon", "p": "pentagon", "": "circle",
    "d": "diamond-tall", "<": "triangle-left", ">": "triangle-right", "H": "hexagon2",
    "8": "octagon",
}  # fmt: skip
_DASH = {"-": "solid", "--": "dash", "-.": "dashdot"}
_AXIS = {"gridcolor": "#E3E3E3", "zeroline": False, "automargin": True, "title": {"standoff": 12}}
_LOOK = go.layout.Template(  # small: a move draws a whole figure, and plotly_white costs 15 ms
    layout={
        "font": {"size": 14, "color": "#222222"},
        "title": {"x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad": {"t": 26}},
        "margin": {"l": 80, "r": 20, "t": 100, "b": 60},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"font": {"size": 14}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
_PAPER = "<style scoped>table{background:white;color:#222}</style>"
_TOP = 10  # titles in a table
_CATALOGUES = {
    "ML-1M": 3_416, "Steam": 13_044, "50,000": 50_000, "100,000": 100_000,
    "1 million": 1_000_000, "Gowalla": 1_271_638, "10 million": 10_000_000,
}  # fmt: skip
WIDTH = 840  # pixels of a live figure: it fits beside JupyterLab's side bar at 1280
_K = 256  # negatives, beside whose scores those of a full loss are shown


@dataclass(frozen=True)
class Users:
    """Whose recommendations are explored: U users; items are 1 … n_items, 0 is padding."""

    ids: np.ndarray  # (U,) as in the file
    targets: np.ndarray  # (U,) the held-out item
    recent: np.ndarray  # (U, H) the last items of the history, oldest first, padded with 0
    titles: np.ndarray  # (n_items + 1,)


@dataclass(frozen=True)
class TopItems:
    """One system's K best items for each of the U users, best first."""

    prob: np.ndarray  # (U, K) predicted probabilities
    items: np.ndarray  # (U, K)
    sums: np.ndarray  # (U,) Σp over the whole catalogue
    target_rank: np.ndarray  # (U,) 1-based


Systems: TypeAlias = Mapping[str, TopItems]


@dataclass(frozen=True)
class Explorer:
    """A figure and its control, in two forms."""

    live: Callable[[], widgets.Widget]
    static: Callable[[], go.Figure]

    def show(self) -> None:
        """Display the live form; the static one if headless or without anywidget.

        The static form is stored beside the live one, as HTML, for whoever converts the notebook.
        """
        figure = self.static()
        bundle = {"text/plain": str(_heading(figure)), "text/html": _page_part(figure)}
        live: dict[str, Any] = {}
        if not os.environ.get("GSAS_LAB_HEADLESS"):
            with suppress(ImportError):  # plotly's FigureWidget needs anywidget
                live = self.live()._repr_mimebundle_() or {}
        if not live:
            renderer = plotly.io.renderers["plotly_mimetype"]  # no plotly.js: the page has it once
            live = renderer.to_mimebundle(figure.to_dict())
        bundle |= {kind: part for kind, part in live.items() if kind != "text/plain"}
        display(bundle, raw=True)

    _ipython_display_ = show


def _page_part(figure: go.Figure) -> str:
    """A figure as a part of any page; a sentence where scripts are not allowed to run.

    plotly.js, 5 MB, comes from its public address and is not stored with each figure.
    """
    drawn = plotly.io.to_html(figure, full_html=False, include_plotlyjs="cdn", auto_play=False)
    return (
        f"<div><p>{html.escape(_heading(figure))}: an interactive figure. It is drawn where scripts "
        "may run: in JupyterLab, after <code>jupyter nbconvert --to html</code>, on nbviewer, on the "
        "pages of <code>make run</code>.</p><script>document.currentScript.parentElement.remove()"
        f"</script></div>{drawn}"
    )


def _heading(figure: go.Figure) -> str:
    return re.sub("<[^>]*>", " ", figure.layout.title.text or "Figure").strip()


# 1. Any user: probabilities by rank, titles, Σp (Figure 1)


def user_figure(systems: Systems, users: Users, user: int, table: bool = False) -> go.Figure:
    """Figure 1 for the user at position `user`: predicted probability by rank, titles on hover.

    A ring marks the held-out item where it is among the K best. `table` adds the ten best titles.
    """
    if not 0 <= user < len(users.ids):
        raise InputError(f"user must be a position from 0 to {len(users.ids) - 1}, not {user}.")
    title = f"User {users.ids[user]}, next: <b>{_title(users, users.targets[user])}</b>"
    recent = " · ".join(_title(users, item, 27) for item in users.recent[user][-4:] if item)
    figure = blank(title, f"last seen: {recent}", "rank of the item", "predicted probability")
    found: list[tuple[int, float]] = []
    for name, style in styles(systems).items():
        top, rank = systems[name], int(systems[name].target_rank[user])
        prob = top.prob[user].astype(np.float32)
        found += [(rank, prob[rank - 1])] if rank <= len(prob) else []
        figure.add_scatter(
            x=np.arange(1, len(prob) + 1, dtype=np.int16),
            y=prob,
            text=[_title(users, item) for item in top.items[user]],
            name=f"<b>{name}</b><br>Σp = {top.sums[user]:,.2f}, target at rank {rank:,}",
            hovertemplate=f"rank %{{x}}: <b>%{{text}}</b><br>p = %{{y:.4f}}<extra>{name}</extra>",
            mode="lines+markers",
            line={"color": style.colour, "dash": _DASH[style.line]},
            marker={"symbol": _SYMBOL[style.marker], "size": 8, "maxdisplayed": 12},
        )
    ring = {"symbol": "circle-open", "size": 17, "color": "black", "line": {"width": 2}}
    x, y = [rank for rank, _ in found], [prob for _, prob in found]
    figure.add_scatter(x=x, y=y, name="the target", mode="markers", marker=ring, hoverinfo="skip")
    shown = next(iter(systems.values())).prob.shape[1]
    step = max(1, shown // 5)
    figure.update_xaxes(tickvals=[1, *range(step, shown + 1, step)], domain=[0, 0.75])
    figure.update_yaxes(range=[-0.03, 1.05]).update_layout(legend={"x": 0.77, "font": {"size": 13}})
    if table:
        best = _best_titles(systems, users, user)
        cell = {"align": "left", "font": {"size": 13}, "height": 22, "line": {"color": "#E3E3E3"}}
        figure.add_table(
            header={"values": ["", *(f"<b>{name}</b>" for name in best)], **cell},
            cells={"values": [list(best.index), *best.T.values], **cell},
            columnwidth=[1.6, *[10] * best.shape[1]],
            domain={"x": [0, 1], "y": [0, 0.46]},
        )
        figure.update_yaxes(domain=[0.59, 1]).update_layout(height=700, margin={"b": 20})
    return figure


def user_explorer(
    systems: Systems,
    users: Users,
    named: Mapping[str, Any] | None = None,
    sample: Sequence[int] | None = None,
    seed: int = 0,
) -> Explorer:
    """`user_figure` with a picker: any user live, those at the positions `sample` statically.

    named: labels of buttons and the user ids they jump to; ids that are not there get no button.
    The default sample is the named users and others at even distances, 12 in all.
    """
    for name, top in systems.items():
        if {len(part) for part in vars(top).values()} != {len(users.ids)}:
            raise InputError(f"{name} must hold the same {len(users.ids)} users as `users`.")
    draw = partial(user_figure, systems, users)
    places = {str(own): place for place, own in enumerate(users.ids)}
    jumps = {label: places[str(own)] for label, own in (named or {}).items() if str(own) in places}
    if sample is None:
        even = np.linspace(0, len(users.ids) - 1, 12).round().astype(int).tolist()
        sample = list(dict.fromkeys([*jumps.values(), *even]))[:12]

    def live() -> widgets.Widget:
        pick = widgets.IntSlider(0, 0, len(places) - 1, description="user", readout=False)
        fit, short = {"width": "auto"}, {"width": "210px"}
        own = widgets.Text(description="its id", continuous_update=False, layout=short)
        note, table, generator = widgets.Label(), widgets.HTML(), np.random.default_rng(seed)
        figure = driven(draw, {"user": pick})

        def moved(_change: Any = None) -> None:
            own.value, note.value = str(users.ids[pick.value]), ""
            best = _best_titles(systems, users, pick.value)
            table.value = _PAPER + best.to_html(escape=False, border=0, justify="left")

        def typed(change: Any) -> None:
            pick.value = places.get(change.new, pick.value)
            if change.new not in places:
                note.value = f"There is no user {change.new!r} among these {len(places):,}."

        pick.observe(moved, "value")
        own.observe(typed, "value")
        labels = ("random user", *jumps)
        buttons = [widgets.Button(description=label, layout=fit) for label in labels]
        buttons[0].on_click(lambda _: setattr(pick, "value", int(generator.integers(len(places)))))
        for button, place in zip(buttons[1:], jumps.values(), strict=True):
            button.on_click(lambda _, place=place: setattr(pick, "value", place))
        boxes = [
            widgets.Checkbox(True, description=name, indent=False, layout=fit) for name in systems
        ]
        for box, trace in zip(boxes, figure.data, strict=False):  # the legend knows no keyboard
            box.observe(lambda change, trace=trace: trace.update(visible=change.new), "value")
        pick.value = next(iter(jumps.values()), 0)
        moved()
        rows = [row(pick, own, *buttons, note), row(*boxes), figure, table]
        return widgets.VBox(rows)

    def static() -> go.Figure:
        steps = {str(users.ids[user]): user for user in sample}
        return stepped(partial(draw, table=True), steps, "user ")

    return Explorer(live, static)


def _best_titles(systems: Systems, users: Users, user: int) -> pd.DataFrame:
    def cell(top: TopItems, rank: int) -> str:
        item = top.items[user, rank]
        words = f"{top.prob[user, rank]:.3f}  {_title(users, item, 27)}"
        return f"<b>{words}</b>" if item == users.targets[user] else words

    shown = range(min(_TOP, *(top.prob.shape[1] for top in systems.values())))
    cells = {name: [cell(top, rank) for rank in shown] for name, top in systems.items()}
    return pd.DataFrame(cells, index=[rank + 1 for rank in shown])


def _title(users: Users, item: int, longest: int = 45) -> str:
    title = str(users.titles[item])
    return html.escape(title if len(title) <= longest else title[: longest - 1] + "…")


# 2. The memory of a full loss (introduction)


def memory_figure(
    batch: int = 64,
    length: int = 200,
    n_items: float = 1_000_000,
    dtype: str = "float32",
    gradients: bool = False,
) -> go.Figure:
    """Bytes of the scores of every item, beside those of one positive and 256 negatives."""
    n_items = round(n_items)
    full = logits_bytes(batch, length, n_items, dtype, gradients)
    sampled = logits_bytes(batch, length, min(_K + 1, n_items), dtype, gradients)
    product = (
        f"{batch:,} sequences × {length:,} positions × {n_items:,} items × {BYTES[dtype]} bytes"
    )
    product += " × 2 with gradients" if gradients else ""
    figure = blank(f"<b>{size(full)}</b> of scores", product, "memory (GB)", "")
    rows = ["every item", f"1 positive,<br>{_K} negatives"]
    figure.add_bar(
        x=[full / 1e9, sampled / 1e9],
        y=rows,
        orientation="h",
        width=0.55,
        marker={"color": [styles(["SASRec"])["SASRec"].colour, BLUE]},
        text=[size(full), size(sampled)],
        textposition="outside",
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    for height, (name, limit) in enumerate(MEMORY.items()):
        line = {"dash": "dot", "color": GREY}
        text = {
            "text": name,
            "yanchor": "bottom",
            "xanchor": "center",
            "y": 1,
            "yshift": 20 * height,
        }
        figure.add_vline(limit / 1e9, line=line, annotation=text)
    figure.update_xaxes(range=[0, max(100, 1.2 * full / 1e9)], tickformat=",")
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=330, margin={"t": 140})


def memory_explorer() -> Explorer:
    """`memory_figure` with a control for each number; statically, a slider over catalogues."""

    def live() -> widgets.Widget:
        options = [2**power for power in range(11)]
        controls = {
            "batch": widgets.SelectionSlider(options=options, value=64, description="sequences"),
            "length": widgets.IntSlider(200, 10, 1000, 10, description="positions"),
            "n_items": widgets.FloatLogSlider(1e6, min=3, max=8, step=0.05, description="items"),
            "dtype": widgets.Dropdown(options=list(BYTES), value="float32", description="numbers"),
            "gradients": widgets.Checkbox(False, description="with gradients"),
        }
        controls["n_items"].readout_format = ",.0f"
        return widgets.VBox([row(*controls.values()), driven(memory_figure, controls)])

    def static() -> go.Figure:
        return stepped(partial(memory_figure, 64, 200), _CATALOGUES, "items: ", "1 million")

    return Explorer(live, static)


# 3. Precision@K against what was predicted (Figure 2, one K at a time)


def calibration_figure(curves: Tables, cutoff: int) -> go.Figure:
    """Mean Precision@K and mean predicted probability@K of each system at K = `cutoff`.

    Tables of `calibration.precision_vs_predicted`. The grey bar between the two is the
    overconfidence, a factor on this log axis; the diamond is Theorem 5.1's, from the precision.
    """
    for name, curve in curves.items():
        if cutoff not in set(curve["cutoff"]):
            raise InputError(f"{name} has no cutoff {cutoff}; choose one of its table.")
    points = pd.DataFrame({name: c.set_index("cutoff").loc[cutoff] for name, c in curves.items()}).T
    points = points.reindex(columns=["precision", "predicted", "theory"])
    points = points.where(points > 0)  # a log axis has no place for 0
    story = "what the model predicts for each user's first K items, and how often it is right"
    figure = blank(f"<b>K = {cutoff}</b>", story, "probability, mean over users (log scale)", "")
    ends = points[["precision", "predicted"]].assign(gap=np.nan).to_numpy()
    bar = {"color": "#D5D5D5", "width": 8}
    y = np.repeat(points.index, 3)
    figure.add_scatter(x=ends.ravel(), y=y, name="overconfidence", line=bar, hoverinfo="skip")
    look, factor = styles(curves).values(), points["predicted"] / points["precision"]
    own = {"color": [each.colour for each in look], "symbol": [_SYMBOL[e.marker] for e in look]}
    black = {"color": "black", "line_width": 2}
    for column, label, side, mark in (
        ("precision", "Precision@K", "bottom", {"symbol": "line-ns-open", "size": 22, **black}),
        ("predicted", "predicted", "top", {"size": 15, **own}),
        ("theory", "Theorem 5.1", "", {"symbol": "diamond-open", "size": 18, **black}),
    ):
        times = [f" (×{f:,.3g})" if column == "predicted" and f > 0 else "" for f in factor]
        figure.add_scatter(
            x=points[column],
            y=points.index,
            name=label,
            text=[f"{value:.4f}{word}" for value, word in zip(points[column], times, strict=True)],
            mode="markers+text" if side else "markers",
            textposition=f"{side or 'top'} center",
            marker=mark,
            hovertemplate=f"%{{y}}<br>{label} %{{text}}<extra></extra>",
        )
    every = pd.concat(list(curves.values()))[["precision", "predicted"]].to_numpy()
    left = np.log10(every[every > 0].min() / 2)
    figure.update_xaxes(type="log", dtick=1, range=[left, 0.7])  # room for the words of a 1
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_layout(height=180 + 80 * len(points))


def calibration_explorer(
    curves: Tables, cutoffs: Sequence[int] = (1, 2, 5, 10, 20, 50, 100)
) -> Explorer:
    """`calibration_figure` with a slider over K: all of the tables' live, `cutoffs` statically."""
    shared = sorted(set.intersection(*(set(map(int, c["cutoff"])) for c in curves.values())))
    draw = partial(calibration_figure, curves)

    def live() -> widgets.Widget:
        slider = widgets.SelectionSlider(options=shared, description="cutoff K")
        return widgets.VBox([slider, driven(draw, {"cutoff": slider})])

    def static() -> go.Figure:
        return stepped(draw, {str(k): k for k in cutoffs if k in shared}, "cutoff K = ")

    return Explorer(live, static)


# 4. A metric over k and t (Figure 3)


def grid_figure(
    table: pd.DataFrame, what: str = "NDCG@10", paper: Mapping[str, pd.DataFrame] | None = None
) -> go.Figure:
    """The metric `what` over k and t as a map; `table` has a row for each run.

    Columns k, t and the metric, and maybe "NDCG@10 low" and "NDCG@10 high", its interval. `paper`:
    what others have, by metric, with k as index and t as columns: {"NDCG@10": paper.figure_3()}.
    Interval and the paper's number show on hover. The title names the best run: on validation users
    where there is a column "validation NDCG@10".
    """
    if absent := [name for name in ("k", "t", what) if name not in table]:
        raise InputError(f"The map needs columns k, t and {what}; missing: {', '.join(absent)}.")
    done = table.dropna(subset=[what])
    if done.empty or done.duplicated(["k", "t"]).any():
        raise InputError(
            f"The map needs a number for {what} in one row for each k and t, and in one row at "
            f"least: average over seeds first."
        )
    theirs = paper[what].stack().dropna().to_dict() if paper and what in paper else {}

    def hover(run: Mapping[Any, Any]) -> str:
        lines = [f"k = {run['k']:,.0f}, t = {run['t']:g}", f"<b>{what} = {run[what]:.4f}</b>"]
        if f"{what} low" in run:
            lines += [f"interval {run[f'{what} low']:.4f} … {run[f'{what} high']:.4f}"]
        if (run["k"], run["t"]) in theirs:
            lines += [f"the paper: {theirs[run['k'], run['t']]:.4g}"]
        return "<br>".join(lines)

    runs = done.assign(text=[hover(run) for run in done.to_dict("records")])
    cells = runs.pivot(index="t", columns="k", values=[what, "text"])
    chooser = "validation NDCG@10" if "validation NDCG@10" in done else what
    best = done.iloc[int(done[chooser].argmax())]
    told = f"the best of {counted(len(done), 'run')}{' on validation users' * (chooser != what)}"
    figure = blank(
        f"{what} <b>{best[what]:.4f}</b> with k = {best['k']:,.0f}, t = {best['t']:g}",
        f"{told}; point at one for more",
        "negatives k",
        "calibration t",
    )
    figure.add_heatmap(
        x=[f"{k:,.0f}" for k in cells[what].columns],
        y=[f"{t:g}" for t in cells[what].index],
        z=cells[what].to_numpy(float),
        text=cells["text"].fillna("").to_numpy().tolist(),
        texttemplate="%{z:.4f}",
        textfont={"color": "black"},
        colorscale=list(CELLS),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
    )
    places = {"type": "category", "showgrid": False}
    return figure.update_xaxes(places).update_yaxes(places)


def grid_explorer(
    table: pd.DataFrame, what: str = "NDCG@10", paper: Mapping[str, pd.DataFrame] | None = None
) -> Explorer:
    """`grid_figure` with a choice of the metric: `what`, and all columns named like NDCG@10."""
    draw = partial(grid_figure, table, paper=paper)
    ends = (" low", " high")
    named = [name for name in map(str, table) if "@" in name and not name.endswith(ends)]
    metrics = list(dict.fromkeys([what, *named]))

    def live() -> widgets.Widget:
        pick = widgets.Dropdown(options=metrics, description="metric")
        return widgets.VBox([pick, driven(draw, {"what": pick})])

    def static() -> go.Figure:
        return stepped(draw, {name: name for name in metrics}, "metric: ")

    return Explorer(live, static)


# 5. What a threshold earns (notebook 11)


def desk_figure(
    rungs: Tables, threshold: float = 0.05, value: float = 1.0, cost: float = 0.05
) -> go.Figure:
    """Promised beside realised profit for 1,000 users, by the threshold on p̂: a panel a table.

    Tables of `decisions.ladder`, two at most. A hit earns `value`, showing costs `cost`. Dotted is what
    was promised; dots stand at `threshold`, the diamond at cost / value, where calibrated p̂ is cut.
    """
    if not 1 <= len(rungs) <= 2:
        raise InputError(f"The desk has room for one or two tables, not {len(rungs)}.")
    told, drawn = [], []
    for name, table in rungs.items():
        earned = profit(table, value, cost)
        money = earned[["promised", "realised"]].to_numpy() * 1000
        above = int((earned["threshold"] > threshold).sum())  # rungs at which all are above it
        at = money[above - 1] if above else np.zeros(2)
        drawn.append((name, earned["threshold"].to_numpy(), money, at))
        told.append(f"{name}: promised {at[0]:z,.0f}, came <b>{at[1]:z,.0f}</b>")
    figure = blank(
        "; ".join(told),
        f"profit for 1,000 users where the best item is shown if p̂ > {threshold:.3g}; "
        f"cost / value = {cost / value:.3g}",
        "threshold on p̂ (log scale)",
        "profit for 1,000 users",
    )
    lowest = min(float(x.min()) for _, x, _, _ in drawn if len(x))
    room = [[0, 1]] if len(drawn) == 1 else [[0, 0.45], [0.56, 1]]
    for place, (name, x, money, at) in enumerate(drawn):
        axis, colour = "" if place == 0 else "2", styles(rungs)[name].colour
        on: dict[str, Any] = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
        for column, label, dash in ((0, "promised", "dot"), (1, "realised", "solid")):
            figure.add_scatter(
                x=x, y=money[:, column], name=f"{name}: {label}", line={"color": colour, "dash": dash},
                hovertemplate=f"p̂ > %{{x:.3g}}: {label} %{{y:,.1f}}<extra>{name}</extra>", **on,
            )  # fmt: skip
            dot = {"size": 12, "color": colour, "symbol": "circle" if column else "circle-open"}
            figure.add_scatter(
                x=[threshold], y=[at[column]], mode="markers", marker=dot, showlegend=False,
                hoverinfo="skip", **on,
            )  # fmt: skip
        figure.add_scatter(
            x=[cost / value], y=[0], mode="markers", name="cost / value", hoverinfo="skip",
            marker={"size": 12, "color": "black", "symbol": "diamond-open"}, showlegend=place == 0, **on,
        )  # fmt: skip
        title = {"text": f"{name}: threshold on p̂ (log scale)"}
        ticks = [digit * 10.0**power for power in range(-6, 1) for digit in (1, 2, 5)]
        ends = {"type": "log", "range": [np.log10(lowest), 0.05], "domain": room[place]}
        ends["tickvals"] = ticks
        figure.update_layout({f"xaxis{axis}": {**_AXIS, **ends, "title": title}})
    if len(drawn) == 2:
        figure.update_layout(yaxis2={**_AXIS, "anchor": "x2"}, xaxis2={"anchor": "y2"})
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
    return figure.update_layout(legend=legend, margin={"t": 125}, height=500)


def desk_explorer(rungs: Tables, value: float = 1.0, cost: float = 0.05) -> Explorer:
    """`desk_figure` with sliders over threshold, value and cost; statically, over the cost, cut at
    cost / value.
    """
    draw = partial(desk_figure, rungs)

    def live() -> widgets.Widget:
        log = partial(widgets.FloatLogSlider, min=-4, max=0, step=0.02, readout_format=".3g")
        controls = {
            "threshold": log(min(cost / value, 1.0), description="threshold"),
            "value": widgets.FloatSlider(value, min=0.1, max=10, step=0.1, description="value"),
            "cost": log(cost, max=1, description="cost"),
        }
        return widgets.VBox([row(*controls.values()), driven(draw, controls)])

    def static() -> go.Figure:
        costs = [float(f"{cost * times:.2g}") for times in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10)]
        steps = {f"{each:g}": each for each in costs}
        return stepped(
            lambda each: draw(threshold=min(each / value, 1.0), value=value, cost=each),
            steps, "cost of showing: ", f"{float(f'{cost:.2g}'):g}",
        )  # fmt: skip

    return Explorer(live, static)


# What every explorer shares


def blank(title: str, subtitle: str, x: str, y: str) -> go.Figure:
    """An empty figure in the look of all explorers, with the names of its axes."""
    # Not plotly's own subtitle: inside JupyterLab it is drawn over the title.
    head = f'{title}<br><span style="font-size:14px">{subtitle}</span>'
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return go.Figure(layout={"template": _LOOK, "title": {"text": head}, "height": 430, **axes})


def row(*controls: widgets.Widget) -> widgets.HBox:
    """Controls side by side, in more lines where the page is narrow."""
    return widgets.HBox(controls, layout={"flex_flow": "row wrap"})


def _moving(figure: go.Figure) -> dict[str, dict[str, Any]]:
    """What of the layout may change from one value to the next."""
    layout = figure.layout.to_plotly_json()
    axes = [axis for axis in ("xaxis", "xaxis2") if layout.get(axis, {}).get("range")]
    ranges = {axis: {"range": layout[axis]["range"]} for axis in axes}
    return {"title": {"text": layout["title"]["text"]}, **ranges}


def driven(draw: Callable[..., go.Figure], controls: Mapping[str, Any]) -> go.FigureWidget:
    """`draw` of the controls' values as a widget; x, y, z, text, name, title and ranges may move.

    Each move is one message (two where a map changes), so nothing flickers. It holds every trace's
    value, changed or not: `batch_update` sends only what changed, and the browser then drops the
    rest (plotly 7.1).
    """

    def drawn() -> go.Figure:
        return draw(**{name: control.value for name, control in controls.items()})

    def moved(_change: Any) -> None:
        fresh = drawn()
        maps = [place for place, trace in enumerate(fresh.data) if trace.type == "heatmap"]
        if any(not np.array_equal(fresh.data[p].z, figure.data[p].z) for p in maps):
            figure.plotly_restyle({"z": [fresh.data[place].z for place in maps]}, maps)
        parts = ("x", "y", "text", "name")
        traces = {part: [trace[part] for trace in fresh.data] for part in parts}
        layout = {
            f"{part}.{name}": value
            for part, changes in _moving(fresh).items()
            for name, value in changes.items()
        }
        figure.plotly_update(traces, layout)

    figure = go.FigureWidget(drawn())
    figure.update_layout(width=WIDTH, legend={"itemclick": False, "itemdoubleclick": False})
    for control in controls.values():
        control.observe(moved, "value")
    return figure


def stepped(
    draw: Callable[[Any], go.Figure], steps: Mapping[str, Any], prefix: str, start: str = ""
) -> go.Figure:
    """`draw` of each value as a frame, and a slider over their labels; works without a kernel."""
    labels, drawn = list(steps), [draw(value) for value in steps.values()]
    active = labels.index(start) if start else 0
    figure = go.Figure(drawn[active])
    figure.frames = [
        go.Frame(name=label, data=each.data, layout=_moving(each))
        for label, each in zip(labels, drawn, strict=True)
    ]
    now = {"mode": "immediate", "frame": {"duration": 0}, "transition": {"duration": 0}}
    moves = [{"label": label, "method": "animate", "args": [[label], now]} for label in labels]
    room = 3.5 * len(labels[-1]) - 20  # beside the margin, for half of the last label
    current, pad = {"prefix": prefix}, {"t": figure.layout.margin.b or 60, "r": max(0, room)}
    slider = {"active": active, "currentvalue": current, "pad": pad, "steps": moves}
    return figure.update_layout(height=figure.layout.height + 60 + pad["t"], sliders=[slider])


# From runs to explorers


def from_outcomes(
    data: "Data", outcomes: Mapping[str, "Outcome"], ranks: int = 50
) -> tuple[dict[str, TopItems], Users]:
    """What `user_explorer` needs, of all test users: each system's first items, and who they are."""
    test, known = data.split.test, data.interactions
    titles = np.array(["", *(known.title(item) for item in range(1, known.n_items + 1))])
    recent = np.stack([np.pad(test.histories[u], (5, 0))[-5:] for u in range(len(test.users))])
    systems = {
        name: TopItems(o.prob[:, :ranks], o.items[:, :ranks], o.sums, o.ranks)
        for name, o in outcomes.items()
    }
    return systems, Users(known.user_ids[test.users], test.targets, recent, titles)


class LiveTraining:
    """Called with the history after each epoch: draws validation NDCG@10 so far, in place.

    Runs that are called by other names get lines of their own in the same figure. Headless it draws
    nothing: the notebook's next figure shows the whole curves.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs
        self.shown: go.FigureWidget | None = None
        self.lines: list[str] = []

    def __call__(self, history: Sequence[Mapping[str, float]], name: str = "this run") -> None:
        if os.environ.get("GSAS_LAB_HEADLESS"):
            return
        x, y = [row["epoch"] for row in history], [row["ndcg@10"] for row in history]
        if self.shown is None:
            drawn = blank("Training", "validation users", "epoch", "NDCG@10")
            self.shown = go.FigureWidget(drawn.update_xaxes(range=[0, self.epochs + 0.5]))
            display(self.shown)
        if name not in self.lines:
            self.lines.append(name)
            colour = styles(self.lines)[name].colour
            self.shown.add_scatter(mode="lines+markers", name=name, line={"color": colour})
        line = self.shown.data[self.lines.index(name)]
        with self.shown.batch_update():
            line.x, line.y = x, y
