"""Figures with a control. Each is a pure `…_figure(...)`, a live form and a static one.

Live: ipywidgets drive a plotly FigureWidget, one batch_update a move. Static: the same figure with
plotly's own slider, which needs no kernel and no network; it is shown when GSAS_LAB_HEADLESS is set.
"""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from gsas_lab import figures, theory
from gsas_lab.runs import Data, Outcome

_RANKS = 50  # ranks that the user explorer draws
_SAMPLE = 12  # users that its static form holds
_CUTOFFS = (1, 2, 5, 10, 20, 50, 100)


def headless() -> bool:
    """No kernel will be there when this output is read."""
    return bool(os.environ.get("GSAS_LAB_HEADLESS"))


# --- any user: Figure 1 --------------------------------------------------------------------------


def users(data: Data, outcomes: Mapping[str, Outcome], row: int = 0) -> None:
    """Probability by rank of any test user, with titles and Σp; starts with user number `row`."""
    if headless():
        rng = np.random.default_rng(0)
        others = rng.choice(len(data.split.test.users), _SAMPLE - 1, replace=False)
        rows = [row, *(int(other) for other in others if other != row)]
        names = [f"user {data.interactions.user_ids[r]}" for r in rows]
        display(_with_slider([user_figure(data, outcomes, r) for r in rows], names, ""))
        return
    import ipywidgets as w

    last = len(data.split.test.users) - 1
    number = w.BoundedIntText(row, min=0, max=last, description="user no.")
    slide = w.IntSlider(row, min=0, max=last, readout=False, continuous_update=False)
    dice = w.Button(description="any user")
    w.link((number, "value"), (slide, "value"))
    dice.on_click(lambda _: setattr(number, "value", int(np.random.default_rng().integers(last))))
    table = w.HTML()

    def redraw(figure: go.Figure) -> None:
        table.value = user_table(data, outcomes, number.value)

    figure = _live(lambda: user_figure(data, outcomes, number.value), [number], redraw)
    display(w.VBox([w.HBox([number, slide, dice]), figure, table]))


def user_figure(data: Data, outcomes: Mapping[str, Outcome], row: int) -> go.Figure:
    """Predicted probability of one user's items by rank, for each system; titles on hover."""
    figure = go.Figure()
    looks = figures.styles(outcomes)
    target = int(data.split.test.targets[row])
    for name, outcome in outcomes.items():
        items, prob = outcome.items[row, :_RANKS], outcome.prob[row, :_RANKS]
        figure.add_scatter(
            x=np.arange(1, len(prob) + 1),
            y=prob.astype(float).round(6),
            text=[data.interactions.title(item) for item in items],
            name=f"{name}: Σp = {outcome.sums[row]:,.2f}, next at rank {outcome.ranks[row]:,}",
            mode="lines+markers",
            line={"color": looks[name].colour},
            marker={"size": [11 if item == target else 5 for item in items]},
            hovertemplate="rank %{x}: %{text}<br>p = %{y:.4f}<extra></extra>",
        )
    user = data.interactions.user_ids[row]
    next_one = html.escape(data.interactions.title(target))
    return _dress(
        figure,
        f"User {user}: came next, “{next_one}” (large marker where it is shown)",
        "rank in the system's own order",
        "predicted probability",
        (0, 1.02),
    )


def user_table(data: Data, outcomes: Mapping[str, Outcome], row: int, first: int = 10) -> str:
    """HTML: each system's first titles with their probabilities, and what the user took last."""
    title = data.interactions.title
    recent = data.split.test.histories[row][-5:]
    columns = {
        name: [
            f"{title(item)} ({p:.3f})"
            for item, p in zip(o.items[row, :first], o.prob[row, :first], strict=True)
        ]
        for name, o in outcomes.items()
    }
    table = pd.DataFrame(columns, index=pd.RangeIndex(1, first + 1, name="rank")).to_html(border=0)
    return f"<p>Last taken: {html.escape(', '.join(map(title, recent)))}.</p>{table}"


# --- the introduction's 51 GB --------------------------------------------------------------------


def memory(batch: int = 64, length: int = 200) -> None:
    """Bytes of one training step's scores as the catalogue grows, against memory that one can buy."""
    if headless():
        sizes = [10**3, 10**4, 10**5, 10**6, 10**7]
        drawn = [memory_figure(batch, length, n, gradients=True) for n in sizes]
        display(_with_slider(drawn, [f"{n:,}" for n in sizes], "items in the catalogue: "))
        return
    import ipywidgets as w

    wide = {"description_width": "9em"}
    b = w.IntSlider(batch, min=1, max=512, description="sequences a batch", style=wide)
    n_positions = w.IntSlider(length, min=10, max=500, step=10, description="length", style=wide)
    n = w.FloatLogSlider(1e6, base=10, min=3, max=7.5, step=0.1, description="items", style=wide)
    kind = w.Dropdown(options=["float32", "bfloat16", "float64"], description="number", style=wide)
    gradients = w.Checkbox(False, description="with gradients")
    controls = [b, n_positions, n, kind, gradients]
    figure = _live(
        lambda: memory_figure(
            b.value, n_positions.value, round(n.value), kind.value, gradients.value
        ),
        controls,
    )
    display(w.HBox([w.VBox(controls), figure]))


def memory_figure(
    batch: int, length: int, n_items: int, dtype: str = "float32", gradients: bool = False
) -> go.Figure:
    """The scores' bytes beside the memory of a laptop and a GPU, logarithmic."""
    needed = theory.logits_bytes(batch, length, n_items, dtype, gradients)
    bars = {"the scores": float(needed), **figures.MEMORY}
    figure = go.Figure()
    figure.add_bar(
        y=list(bars),
        x=list(bars.values()),
        orientation="h",
        text=[figures.size(size) for size in bars.values()],
        marker_color=["#D55E00" if needed > min(figures.MEMORY.values()) else "#009E73"]
        + [figures.GREY] * len(figures.MEMORY),
    )
    more = ", with gradients" if gradients else ""
    title = f"{batch} × {length} × {n_items:,} scores in {dtype}{more}: {figures.size(needed)}"
    figure = _dress(figure, title, "bytes", "", None)
    figure.update_xaxes(type="log", range=[6, 13])
    return figure.update_layout(showlegend=False, height=300)


# --- precision against prediction: Figure 2 ------------------------------------------------------


def calibration(curves: Mapping[str, pd.DataFrame]) -> None:
    """What each system says of its first K items, against what came true and Theorem 5.1."""
    largest = min(len(curve) for curve in curves.values())
    cutoffs = [cutoff for cutoff in _CUTOFFS if cutoff <= largest]
    if headless():
        drawn = [calibration_figure(curves, cutoff) for cutoff in cutoffs]
        display(_with_slider(drawn, [str(cutoff) for cutoff in cutoffs], "K = "))
        return
    import ipywidgets as w

    cutoff = w.IntSlider(1, min=1, max=largest, description="K")
    display(w.VBox([cutoff, _live(lambda: calibration_figure(curves, cutoff.value), [cutoff])]))


def calibration_figure(curves: Mapping[str, pd.DataFrame], cutoff: int) -> go.Figure:
    """Three bars a system at one cutoff: predicted, Theorem 5.1 of the precision, precision."""
    rows = {name: curve.iloc[cutoff - 1] for name, curve in curves.items()}
    figure = go.Figure()
    colours = {"predicted": "#D55E00", "theory": "#999999", "precision": "#009E73"}
    labels = {"predicted": "predicted", "theory": "Theorem 5.1", "precision": "came true"}
    for column, colour in colours.items():
        values = [float(row[column]) for row in rows.values()]
        figure.add_bar(
            x=list(rows), y=values, name=labels[column], marker_color=colour,
            text=[f"{value:.3f}" for value in values],
        )  # fmt: skip
    return _dress(figure, f"The first K = {cutoff} items of each user", "", "mean", (0, 1.05))


# --- a curve that grows while a model trains -----------------------------------------------------


class LiveTraining:
    """Called with the history after each epoch: draws validation NDCG@10 so far, in place.

    Headless it draws nothing; the notebook's last figure shows the whole curve.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs
        self.figure: Any = None

    def __call__(self, history: Sequence[Mapping[str, float]]) -> None:
        if headless():
            return
        x, y = [row["epoch"] for row in history], [row["ndcg@10"] for row in history]
        if self.figure is None:
            drawn = go.Figure(go.Scatter(x=x, y=y, mode="lines+markers"))
            drawn = _dress(drawn, "Training…", "epoch", "validation NDCG@10", None)
            self.figure = go.FigureWidget(drawn.update_xaxes(range=[0, self.epochs + 0.5]))
            display(self.figure)
        with self.figure.batch_update():
            self.figure.data[0].x, self.figure.data[0].y = x, y


# --- shared --------------------------------------------------------------------------------------


def _live(
    draw: Callable[[], go.Figure],
    controls: Sequence[Any],
    also: Callable[[go.Figure], None] | None = None,
) -> go.FigureWidget:
    """A FigureWidget that follows its controls: the new figure's data replace the old in one go."""
    shown = go.FigureWidget(draw())

    def follow(_: Any = None) -> None:
        fresh = draw()
        with shown.batch_update():
            for old, new in zip(shown.data, fresh.data, strict=True):
                old.update(new.to_plotly_json())
            shown.layout.title.text = fresh.layout.title.text
        if also:
            also(fresh)

    for control in controls:
        control.observe(follow, "value")
    if also:
        also(shown)
    return shown


def _with_slider(drawn: Sequence[go.Figure], names: Sequence[str], prefix: str) -> go.Figure:
    """Figures of one shape as the steps of a plotly slider, with no kernel behind it."""
    frames = [
        go.Frame(data=figure.data, name=name, layout={"title": {"text": figure.layout.title.text}})
        for figure, name in zip(drawn, names, strict=True)
    ]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    steps = [{"label": name, "method": "animate", "args": [[name], now]} for name in names]
    whole = go.Figure(data=drawn[0].data, layout=drawn[0].layout, frames=frames)
    slider = {"steps": steps, "currentvalue": {"prefix": prefix}, "pad": {"t": 45}}
    return whole.update_layout(sliders=[slider], height=(drawn[0].layout.height or 460) + 90)


def _dress(
    figure: go.Figure, title: str, x: str, y: str, y_range: tuple[float, float] | None
) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 16}},
        font={"size": 13},
        height=460,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        legend={"orientation": "h", "y": -0.18, "yanchor": "top"},
    )
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y, range=y_range)
    return figure
