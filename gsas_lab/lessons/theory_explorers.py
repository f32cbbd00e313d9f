"""The theory with controls: five figures of notebook 02, each live and static (see explorers.py).

On published pages theory.js computes them without a kernel; elsewhere their static forms have steps.
Every number comes from `theory.py`; nothing here is trained, and torch is not needed. α and β are
always those of Eqs. (23, 27): α = k / (n_items − 1), β = 1 − t(1 − α).
"""

from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from gsas_lab import theory
from gsas_lab.figures import GREY, size, styles
from gsas_lab.lessons.explorers import Explorer, blank, driven, row, stepped
from gsas_lab.paper import figure_1_sums

ML1M = 3_416  # items of MovieLens-1M, the paper's smallest catalogue
PAPER_SUM = figure_1_sums()["SASRec"]  # Σp for user 963
PEAKED = 1.39  # Zipf exponent at which Theorem 5.1 gives SASRec about that sum on MovieLens-1M
ADVICE = (128, 256, 0.75, 0.9)  # the paper's k from and to, t from and to
_STYLE = styles(["SASRec", "gSASRec", "gSASRec, t = 1"])
_BCE, _OURS, _THIRD = (style.colour for style in _STYLE.values())
_KS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TS = tuple(np.round(np.arange(0, 1.01, 0.05), 2).tolist())
_POWERS = {"exponentformat": "power", "tickfont": {"size": 12}}  # drawn a quarter larger
_PAIRS = {  # (k, t) of the static forms
    "k = 1, t = 0 (SASRec)": (1, 0.0),
    "k = 1, t = 1": (1, 1.0),
    "k = 16, t = 0": (16, 0.0),
    "k = 16, t = 0.75": (16, 0.75),
    "k = 256, t = 0": (256, 0.0),
    "k = 256, t = 0.75 (the paper)": (256, 0.75),
    "k = 256, t = 0.9": (256, 0.9),
    "k = 256, t = 1": (256, 1.0),
}


# 1. The generalised sigmoid, the loss and its gradient (Eq. 8)


def sigmoid_figure(beta: float = 0.25, score: float = 0.0) -> go.Figure:
    """σ(s) and σ^β(s); the loss of a positive and of a negative, and their gradients.

    The positive's loss is −β log σ(s) with gradient −β(1 − σ(s)), the negative's −log(1 − σ(s))
    with gradient σ(s), Eq. (8) without its factor 1/(k + 1). Dots stand at `score`.
    """
    s = np.linspace(-8, 8, 161)
    name = f"σ<sup>β</sup>, β = {beta:.3g}"
    at = float(1 / (1 + np.exp(-score)))
    push = f"at s = {score:.1f}: a positive pulls with {beta * (1 - at):.3f}, a negative pushes "
    figure = _two(
        f"σ({score:.1f}) = {at:.3f}, <b>σ<sup>β</sup>({score:.1f}) = {at**beta:.3f}</b>",
        push + f"with {at:.3f}; with β = 1 the pull is {1 - at:.3f}",
        ("score s", "probability of “positive”"),
        ("score s", "loss (nats), gradient (nats per unit)"),
    )
    dots: list[tuple[float, str, str]] = []
    for power, colour, label in ((1.0, _BCE, "σ, β = 1: BCE"), (beta, _OURS, name)):
        _line(figure, s, np.exp(-power * np.logaddexp(0, -s)), label, colour)
        dots.append((at**power, colour, "x"))
    for power, colour, label in ((1.0, _BCE, "positive, β = 1"), (beta, _OURS, "positive, gBCE")):
        gradient = -power / (1 + np.exp(s))
        _line(figure, s, power * np.logaddexp(0, -s), f"{label}: loss", colour, "x2")
        _line(figure, s, gradient, f"{label}: gradient", colour, "x2", "dot")
        dots.append((-power * (1 - at), colour, "x2"))
    _line(figure, s, np.logaddexp(0, s), "negative: loss", GREY, "x2")
    _line(figure, s, 1 / (1 + np.exp(-s)), "negative: gradient", GREY, "x2", "dot")
    dots.append((at, GREY, "x2"))
    for y, colour, axis in dots:
        _dot(figure, score, y, colour, axis)
    figure.update_layout(yaxis_range=[-0.02, 1.04], yaxis2_range=[-1.15, 4.2])
    return figure


def sigmoid_explorer() -> Explorer:
    """`sigmoid_figure` with β and a score; statically, a slider over β."""

    def live() -> widgets.Widget:
        controls = {
            "beta": _log_slider(0.25, -3, "β"),
            "score": widgets.FloatSlider(0, min=-8, max=8, step=0.1, description="score s"),
        }
        return widgets.VBox([row(*controls.values()), driven(sigmoid_figure, controls)])

    def static() -> go.Figure:
        steps = {f"{beta:g}": beta for beta in (1, 0.75, 0.5, 0.25, 0.1, 0.03, 0.01)}
        draw = partial(sigmoid_figure, score=-1.4)
        return _moved(stepped(draw, steps, "β = ", "0.25"), "sigmoid", beta=0.25, score=-1.4)

    return Explorer(live, static)


# 2. Prior against what is said of it (Theorem 5.1)


def prior_figure(k: int = 1, t: float = 0.0, n_items: int = ML1M, prior: float = 0.01) -> go.Figure:
    """σ(s) against the true P by Theorem 5.1, for gBCE and for BCE with as many negatives.

    Left on linear axes, right on logarithmic ones, where Eq. (10) is parallel to the diagonal until
    it saturates. The dots are an item with P = `prior`.
    """
    k = _served(k, n_items)
    alpha, beta = _alpha_beta(k, t, n_items)
    said = float(theory.converged_probability(prior, alpha, beta))
    plain = float(theory.converged_probability(prior, alpha, 1.0))
    times = said / prior
    figure = _two(
        f"P = {prior:.3g} reads <b>{said:.3f}</b>: {times:,.3g} times too much"
        if times > 1.0005
        else f"P = {prior:.3g} reads <b>{said:.3g}</b>: calibrated",
        f"α = {alpha:.3g}, β = {beta:.3g}, offset log(β/α) = "
        f"{theory.logit_offset(alpha, beta):z.2f}; BCE with k = {k:,} reads {plain:.3f}",
        ("true P", "σ(s)"),
        ("true P (log scale)", "σ(s) (log scale)"),
    )
    grids = {"x": np.linspace(0, 1, 201), "x2": np.geomspace(1e-6, 1, 121)}
    for axis, grid in grids.items():
        _line(figure, grid, grid, "calibrated: σ = P", GREY, axis, "dot")
        bce = theory.converged_probability(grid, alpha, 1.0)
        _line(figure, grid, bce, f"BCE, k = {k:,}", _BCE, axis)
        ours = theory.converged_probability(grid, alpha, beta)
        _line(figure, grid, ours, f"gBCE, t = {t:g}", _OURS, axis, "dash")
        _dot(figure, prior, plain, _BCE, axis)
        _dot(figure, prior, said, _OURS, axis)
    logs = {"type": "log", "dtick": 1, **_POWERS}
    return figure.update_layout(
        xaxis_range=[0, 1],
        yaxis_range=[0, 1.02],
        xaxis2={**logs, "range": [-6, 0]},
        yaxis2={**logs, "range": [-6.2, 0.05], "dtick": 2},
    )


def prior_explorer(n_items: int = ML1M, prior: float = 0.01) -> Explorer:
    """`prior_figure` for your catalogue's size and an item of yours; statically, over (k, t)."""

    def live() -> widgets.Widget:
        controls = {
            "k": _k_slider(1),
            "t": _t_slider(0.0),
            "n_items": _items_slider(n_items),
            "prior": _log_slider(prior, -6, "its P"),
        }
        return widgets.VBox([row(*controls.values()), driven(prior_figure, controls)])

    def static() -> go.Figure:
        draw = partial(_of_pair, prior_figure, n_items=n_items, prior=prior)
        drawn = stepped(draw, _PAIRS, "")
        return _moved(drawn, "prior", k=1, t=0.0, n_items=n_items, prior=prior)

    return Explorer(live, static)


# 3. A whole catalogue (Figure 1, in theory)


def catalogue_figure(
    k: int = 256, t: float = 0.75, n_items: float = ML1M, exponent: float = PEAKED
) -> go.Figure:
    """Figure 1 by Theorem 5.1: p by rank where P follows Zipf's law, and Σp over the catalogue.

    exponent: how peaked one user's P is. At 1.39 SASRec's sum on MovieLens-1M's catalogue is the
    paper's 338.
    """
    n_items = round(n_items)
    k = _served(k, n_items)
    prior, count, rank = _thinned(n_items, exponent)
    figure, sums = (
        _two("", "", ("rank of the item (log scale)", "probability"), ("Σp (log)", "")),
        {},
    )
    _line(figure, rank, prior, "true P: Zipf", GREY, dash="dot")
    for label, colour, (own_k, own_t) in (
        ("SASRec: k = 1, t = 0", _BCE, (1, 0.0)),
        (f"yours: k = {k:,}, t = {t:g}", _OURS, (k, t)),
    ):
        said = theory.converged_probability(prior, *_alpha_beta(own_k, own_t, n_items))
        sums[label] = float(said @ count)
        _line(figure, rank, said, label, colour)
    sasrec, yours = sums.values()
    rows = ["the paper's SASRec,<br>user 963", "SASRec, k = 1", "yours", "one choice"]
    values = [PAPER_SUM, sasrec, yours, 1.0]
    figure.add_bar(
        x=values,
        y=rows,
        text=[_short(value) for value in values],
        orientation="h",
        xaxis="x2",
        yaxis="y2",
        showlegend=False,
        base=0.5,  # a log axis has no 0
        marker={"color": ["#F2C9A8", _BCE, _OURS, "#BBBBBB"]},
        textposition="outside",
        hovertemplate="%{y}: Σp = %{text}<extra></extra>",
    )
    # A bar on a log axis is drawn from its base: its length is what lies beyond.
    figure.data[-1].x = [value - 0.5 for value in values]
    figure.update_layout(
        title_text=_head(
            f"Σp = <b>{_short(yours)}</b>, SASRec's {_short(sasrec)}",
            f"{n_items:,} items; P of the first item {prior[0]:.3f}; exactly one item comes next",
        ),
        xaxis={"type": "log", "range": [0, np.log10(n_items)], "dtick": 1, "tickformat": ","},
        yaxis_range=[-0.02, 1.04],
        xaxis2={"type": "log", "range": [np.log10(0.5), 5.6], "dtick": 1, "tickformat": "~s"},
        yaxis2={"autorange": "reversed", "showgrid": False},
    )
    return figure.update_layout(xaxis_domain=[0, 0.38], xaxis2_domain=[0.6, 1])


def catalogue_explorer(n_items: int = ML1M) -> Explorer:
    """`catalogue_figure` with k, t, |I| and the exponent; statically, (k, t) on two catalogues."""

    def live() -> widgets.Widget:
        controls = {
            "k": _k_slider(1),
            "t": _t_slider(0.0),
            "n_items": _items_slider(n_items),
            "exponent": widgets.FloatSlider(1.0, min=0, max=2, step=0.01, description="exponent"),
        }
        return widgets.VBox([row(*controls.values()), driven(catalogue_figure, controls)])

    def static() -> go.Figure:
        million = {"k = 1, t = 0, a million items": (1, 0.0, 1e6)}
        million["k = 256, t = 0.75, a million items"] = (256, 0.75, 1e6)
        drawn = stepped(partial(_of_pair, catalogue_figure), _PAIRS | million, "")
        return _moved(drawn, "catalogue", k=1, t=0.0, n_items=ML1M, exponent=PEAKED)

    return Explorer(live, static)


# 4. The map of t against k


def map_figure(
    k: int = 256, t: float = 0.75, n_items: int = ML1M, exponent: float = PEAKED
) -> go.Figure:
    """β and Σp over all k and t, the paper's advice as a frame, and what (k, t) costs.

    Costs are exact: scores a position, and bytes of the scores of a batch of 128 × 200 positions in
    float32, beside those of a full loss.
    """
    k = _served(k, n_items)
    alpha, beta = _alpha_beta(k, t, n_items)
    prior, count, _ = _thinned(n_items, exponent)
    own = theory.converged_probability(prior, alpha, beta) @ count
    cost = theory.logits_bytes(128, 200, k + 1)
    full = theory.logits_bytes(128, 200, n_items)
    figure = _two(
        f"k = {k:,}, t = {t:g}: β = <b>{beta:.3g}</b>, Σp = <b>{_short(own)}</b>",
        f"α = {alpha:.3g}; {k + 1:,} scores a position, {size(cost)} of scores a batch: "
        f"{cost / full:.2%} of a full loss's {size(full)}",
        *2 * [("negatives k (log scale)", "calibration t")],
    )
    ks = np.unique(np.geomspace(1, min(2048, n_items - 1), 45).round())
    rates, power = _alpha_beta(ks[None, :], np.array(_TS)[:, None], n_items)  # (1, ks), (ts, ks)
    # Σp depends on β/α alone, and smoothly: computed at 80 places, interpolated between.
    offset = np.log(power / rates)
    places = np.linspace(0, offset.max(), 80)
    sums = theory.converged_probability(prior, 1.0, np.exp(places)[:, None]) @ count
    total = np.interp(offset, places, np.log10(sums))
    bars = ((power, "β", 0.405, None), (total, "Σp", 1.0, [0, 1, 2, 3, 4]))
    for (z, label, x, ticks), axis in zip(bars, ("x", "x2"), strict=True):
        bar: dict[str, Any] = {"title": {"text": label}, "x": x, "len": 1.0, "thickness": 12}
        if ticks:
            bar |= {"tickvals": ticks, "ticktext": [f"{10**tick:,}" for tick in ticks]}
        figure.add_heatmap(
            x=ks,
            y=_TS,
            z=z,
            xaxis=axis,
            yaxis=axis.replace("x", "y"),
            colorscale="Cividis",
            colorbar=bar,
            hovertemplate=f"k = %{{x:,}}, t = %{{y}}<br>{label}: "
            + ("10^%{z:.2f}" if ticks else "%{z:.3f}")
            + "<extra></extra>",
        )
    low, high, start, end = ADVICE
    for axis in ("x", "x2"):
        frame = ([low, high, high, low, low], [start, start, end, end, start])
        _line(figure, *frame, "the paper's advice", "#FFFFFF", axis, width=4)
        _line(figure, *frame, "the paper's advice", "#000000", axis, "dash")
        _dot(figure, k, t, "#D55E00", axis)
    advice = {"text": "the paper's advice", "font": {"color": "white"}, "showarrow": False}
    for axis in ("x", "x2"):
        figure.add_annotation(
            **advice, x=2.25, y=end, yanchor="bottom", xref=axis, yref=axis.replace("x", "y")
        )
    logs = {"type": "log", "range": np.log10([ks[0], ks[-1]]).tolist(), "dtick": 1}
    figure.update_layout(xaxis=logs, xaxis2=logs, showlegend=False)
    figure.update_layout(xaxis_domain=[0, 0.39], xaxis2_domain=[0.59, 0.98])
    return figure.update_layout(yaxis_range=[0, 1], yaxis2_range=[0, 1])


def map_explorer(n_items: int = ML1M) -> Explorer:
    """`map_figure` with k, t and |I|; statically, a slider over (k, t)."""

    def live() -> widgets.Widget:
        controls = {"k": _k_slider(256), "t": _t_slider(0.75), "n_items": _items_slider(n_items)}
        return widgets.VBox([row(*controls.values()), driven(map_figure, controls)])

    def static() -> go.Figure:
        draw = partial(_of_pair, map_figure, n_items=n_items)
        drawn = stepped(draw, _PAIRS, "", "k = 256, t = 0.75 (the paper)")
        return _moved(drawn, "map", k=256, t=0.75, n_items=n_items)

    return Explorer(live, static)


# 5. Collisions: three fixed points


def collisions_figure(
    k: int = 256, t: float = 1.0, n_items: int = ML1M, history: int = 165
) -> go.Figure:
    """σ(s) against P for three rules of what a negative may be, and their ratio to Theorem 5.1.

    history: distinct items of the history, which the third rule never draws: for the items outside
    it α is k / (n_items − 1 − history); those inside are never a negative, so that nothing holds
    their σ down. β is everywhere that of Eq. (27).
    """
    k = _served(k, n_items)
    history = min(history, n_items - 1 - k)
    alpha, beta = _alpha_beta(k, t, n_items)
    rules = {
        "positive excluded: Theorem 5.1": (_STYLE["SASRec"].colour, "solid", 1, False),
        "whole catalogue": (_OURS, "dash", 0, True),
        "history excluded": (_THIRD, "dashdot", 1 + history, False),
    }
    grids = {"x": np.linspace(0, 1, 201), "x2": np.geomspace(1e-4, 1, 121)}
    ceiling = float(theory.converged_probability(1.0, theory.alpha(k, n_items, 0), beta, True))
    figure = _two(
        f"from the whole catalogue, nothing reads more than <b>{ceiling:.3f}</b>",
        f"α = {alpha:.3g}, with the history excluded {theory.alpha(k, n_items, 1 + history):.3g}; "
        f"β = {beta:.3g}. Items of the history itself: never a negative, σ → 1",
        ("true P", "σ(s)"),
        ("true P (log scale)", "σ(s) / σ(s) of Theorem 5.1"),
    )
    for axis, grid in grids.items():
        paper = theory.converged_probability(grid, alpha, beta)
        for label, (colour, dash, never, collide) in rules.items():
            own = theory.alpha(k, n_items, never)
            said = theory.converged_probability(grid, own, beta, collide)
            said = said if axis == "x" else said / paper
            _line(figure, grid, said, label, colour, axis, dash)
    return figure.update_layout(
        xaxis_range=[0, 1],
        yaxis_range=[0, 1.02],
        xaxis2={"type": "log", "range": [-4, 0], "dtick": 1, **_POWERS},
        yaxis2_range=[0.38, 1.05],
    )


def collisions_explorer(n_items: int = ML1M, history: int = 165) -> Explorer:
    """`collisions_figure` with k, t, |I| and the history's length; statically, over (k, t).

    history: distinct items of a user; MovieLens-1M's mean is 165.
    """

    def live() -> widgets.Widget:
        controls = {
            "k": _k_slider(256),
            "t": _t_slider(1.0),
            "n_items": _items_slider(n_items),
            "history": widgets.IntSlider(history, 0, 2000, 1, description="history"),
        }
        return widgets.VBox([row(*controls.values()), driven(collisions_figure, controls)])

    def static() -> go.Figure:
        draw = partial(_of_pair, collisions_figure, n_items=n_items, history=history)
        drawn = stepped(draw, _PAIRS, "", "k = 256, t = 1")
        return _moved(drawn, "collisions", k=256, t=1.0, n_items=n_items, history=history)

    return Explorer(live, static)


# What the five share


def _alpha_beta(k: Any, t: Any, n_items: int) -> tuple[Any, Any]:
    alpha = theory.alpha(k, n_items)
    return alpha, theory.beta_from_t(t, alpha)


def _served(k: int, n_items: float) -> int:
    """As many negatives as the catalogue has: sliders move one at a time."""
    return int(min(k, round(n_items) - 1))


def _moved(figure: go.Figure, name: str, **values: float) -> go.Figure:
    """A static form that says where it stands: on a published page theory.js moves it freely."""
    meta = {"theory": name, "values": values, "paper": PAPER_SUM, "exponent": PEAKED}
    return figure.update_layout(meta=meta)


def _of_pair(draw: Any, pair: tuple[float, ...], **others: Any) -> go.Figure:
    return draw(*pair, **others)


def _thinned(n_items: int, exponent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zipf's shares of a catalogue of any size at a few hundred ranks: (share, items, rank).

    The first 200 ranks are exact; beyond, one rank, the geometric middle, speaks for its
    neighbours: Σσ errs by less than a thousandth (tested).
    """
    cuts = np.unique(np.geomspace(201, max(n_items + 1, 202), 400).round())
    first = np.arange(1, min(n_items, 200) + 1.0)
    if n_items > 200:
        low, high = cuts[:-1], np.minimum(cuts[1:], n_items + 1) - 1
        rank = np.concatenate([first, np.sqrt(low * high)])
        count = np.concatenate([np.ones_like(first), high - low + 1])
    else:
        rank, count = first, np.ones_like(first)
    weight = rank**-exponent
    return weight / (weight @ count), count, rank


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _k_slider(k: int) -> widgets.Widget:
    return widgets.SelectionSlider(options=_KS, value=k, description="negatives k")


def _t_slider(t: float) -> widgets.Widget:
    return widgets.FloatSlider(t, min=0, max=1, step=0.05, description="t")


def _log_slider(value: float, low: float, name: str) -> widgets.Widget:
    """From about 10^low to 1. The browser rounds to steps from the minimum: `value` is a step."""
    exponent, step = np.log10(value), 0.05
    low = exponent - step * int((exponent - low) / step)
    return widgets.FloatLogSlider(value, min=low, max=0, step=step, description=name)


def _items_slider(n_items: int) -> widgets.Widget:
    steps = (50, 100, 200, 500, 1_000, ML1M, 10_000, 13_044, 100_000, 1_000_000, 1_271_638)
    options = [(f"{size:,}", size) for size in sorted({*steps, n_items})]
    return widgets.SelectionSlider(options=options, value=n_items, description="items |I|")


def _two(title: str, subtitle: str, left: tuple[str, str], right: tuple[str, str]) -> go.Figure:
    """Two panels side by side, their axes named (x, y); the legend lies above them."""
    figure = blank(title, subtitle, *left)
    axis = dict(figure.layout.template.layout.xaxis.to_plotly_json())
    figure.update_layout(
        xaxis_domain=[0, 0.44],
        xaxis2={**axis, "domain": [0.57, 1], "title": {"text": right[0], "standoff": 12}},
        yaxis2={**axis, "anchor": "x2", "title": {"text": right[1], "standoff": 6}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        margin={"t": 125},
        height=470,
    )
    return figure


def _head(title: str, subtitle: str) -> str:
    return f'{title}<br><span style="font-size:14px">{subtitle}</span>'


def _line(
    figure: go.Figure,
    x: Any,
    y: Any,
    name: str,
    colour: str,
    axis: str = "x",
    dash: str = "solid",
    width: float = 2.5,
) -> None:
    """A curve in the panel of `axis`; each name stands in the legend once."""
    known = {trace.name for trace in figure.data}
    figure.add_scatter(
        x=np.asarray(x, np.float32),
        y=np.asarray(y, np.float32),
        name=name,
        mode="lines",
        line={"color": colour, "dash": dash, "width": width, "simplify": False},
        showlegend=name not in known,
        xaxis=axis,
        yaxis=axis.replace("x", "y"),
        hovertemplate=f"%{{x:.4g}}: %{{y:.4g}}<extra>{name}</extra>",
    )


def _dot(figure: go.Figure, x: float, y: float, colour: str, axis: str) -> None:
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker={"size": 12, "color": colour, "line": {"color": "white", "width": 1.5}},
        cliponaxis=False,  # whole at an edge
        showlegend=False,
        xaxis=axis,
        yaxis=axis.replace("x", "y"),
        hovertemplate="%{x:.4g}: %{y:.4g}<extra></extra>",
    )
