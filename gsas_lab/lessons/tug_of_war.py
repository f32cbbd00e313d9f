"""Ten items pulled up and pushed down until they rest: Theorem 5.1 as it happens, one draw a step.

Ten scores, no network. Each step, one item comes next and is pulled up by β(1 − σ); k drawn items
are pushed down by σ each, Eq. (8). With `expected` the step is the mean over all draws, Eq. (16).
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from gsas_lab import theory
from gsas_lab.errors import InputError
from gsas_lab.figures import GREY, styles
from gsas_lab.lessons.explorers import Explorer, blank, driven, row, stepped

WEIGHTS = "30 20 14 10 8 6 5 3 2 2"
SAMPLERS = ("uniform", "by popularity")
STEPS = 3000
_RATE = 0.3  # of a step, at first; it falls as 1 / √step, so that what moves comes to rest
_COLOURS = [style.colour for style in styles(["SASRec", "gSASRec", "SASRec, softmax"]).values()]


def priors(weights: str) -> np.ndarray:
    """P of the items, (10,), from ten numbers in text; InputError where they are no such thing."""
    try:
        found = np.array([float(word) for word in re.split(r"[\s,;]+", weights.strip())])
    except ValueError:
        raise InputError(f"P wants ten numbers, not '{weights}'.") from None
    if len(found) != 10 or not (np.isfinite(found) & (found > 0)).all():
        raise InputError(f"P wants ten numbers above 0, not '{weights}'.")
    return found / found.sum()


def rates(prior: np.ndarray, k: int, sampler: str = "uniform") -> np.ndarray:
    """How often each item is drawn as a negative for one positive that it is not, (10,).

    Uniform: k/(n − 1), Eq. (23). By popularity q = P without the positive: k·q/(1 − q of the
    positive), averaged over the positives that it is not.
    """
    n_items = len(prior)
    if sampler == "uniform":
        return np.full(n_items, k / (n_items - 1))
    odds = prior / (1 - prior)
    return k * prior * (odds.sum() - odds) / (1 - prior)


@lru_cache(maxsize=32)  # a move of the step alone computes nothing
def paths(
    k: int,
    t: float,
    steps: int = STEPS,
    expected: bool = False,
    weights: str = WEIGHTS,
    sampler: str = "uniform",
    seed: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """σ after each step from σ = 0.5 on, (steps + 1, 10), and the fixed point, (10,).

    The fixed point is Theorem 5.1 with each item's own rate; β = 1 − t(1 − α) from the mean rate.
    """
    prior = priors(weights)
    n_items, alpha = len(prior), rates(prior, k, sampler)
    beta = float(theory.beta_from_t(t, theory.alpha(k, n_items)))
    score, found = np.zeros(n_items), np.empty((steps + 1, n_items))
    rng = np.random.default_rng(seed)
    positives = rng.choice(n_items, steps, p=prior)
    found[0] = 0.5
    for step, positive in enumerate(positives):
        sigma = found[step]
        if expected:
            pull, push = beta * prior, alpha * (1 - prior)
        else:
            rest = np.delete(prior if sampler != "uniform" else np.ones(n_items), positive)
            drawn = rng.choice(n_items - 1, k, p=rest / rest.sum())
            push = np.bincount(drawn + (drawn >= positive), minlength=n_items)
            pull = np.zeros(n_items)
            pull[positive] = beta
        score += _RATE / np.sqrt(1 + step / 100) * (pull * (1 - sigma) - push * sigma)
        found[step + 1] = 1 / (1 + np.exp(-score))
    return found, theory.converged_probability(prior, alpha, beta)


def tug_figure(
    steps: int = STEPS,
    k: int = 1,
    t: float = 0.0,
    expected: bool = False,
    weights: str = WEIGHTS,
    sampler: str = "uniform",
) -> go.Figure:
    """Left: σ of the ten items after `steps` draws, P and the fixed point. Right: how three of them
    came there.
    """
    said, rest = paths(k, t, STEPS, expected, weights, sampler)
    prior, now = priors(weights), said[steps]
    figure = blank(
        f"after {steps:,} steps Σσ = <b>{now.sum():.2f}</b>; at rest {rest.sum():.2f}",
        "one item comes next: honest probabilities add up to 1",
        "item",
        "σ, P",
    )
    items = np.arange(1, 11)
    figure.add_bar(x=items, y=now, name="σ now", marker={"color": _COLOURS[0]}, opacity=0.75)
    _marks(figure, items, rest, "fixed point, Theorem 5.1", "line-ew-open", 22)
    _marks(figure, items, prior, "P", "diamond", 9)
    shown = np.unique(np.linspace(0, steps, 300).astype(int))
    for item, colour in zip((0, 4, 9), _COLOURS, strict=True):
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=shown, y=said[shown, item], name=f"item {item + 1}", mode="lines",
                           line=line, xaxis="x2", yaxis="y2")  # fmt: skip
        figure.add_scatter(x=[0, STEPS], y=[rest[item]] * 2, mode="lines", showlegend=False,
                           line={**line, "dash": "dash"}, xaxis="x2", yaxis="y2")  # fmt: skip
    axis = dict(figure.layout.template.layout.xaxis.to_plotly_json())
    return figure.update_layout(
        xaxis={"domain": [0, 0.44], "dtick": 1},
        xaxis2={**axis, "domain": [0.57, 1], "range": [0, STEPS], "title": {"text": "step"}},
        yaxis_range=[0, 1.02],
        yaxis2={**axis, "anchor": "x2", "range": [0, 1.02], "title": {"text": "σ"}},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        margin={"t": 125},
        height=470,
    )


def _marks(
    figure: go.Figure, x: Sequence[int] | np.ndarray, y: np.ndarray, name: str, symbol: str, at: int
) -> None:
    marker = {
        "symbol": symbol,
        "size": at,
        "color": "black" if at > 10 else GREY,
        "line": {"width": 3},
    }
    figure.add_scatter(x=x, y=y, name=name, mode="markers", marker=marker)


def tug_explorer() -> Explorer:
    """`tug_figure` with steps (and play), k, t, the sampler, drawn or expected, and P; statically,
    the end of eight such trainings.
    """

    def live() -> widgets.Widget:
        controls = {
            "steps": widgets.IntSlider(STEPS, 0, STEPS, 10, description="step"),
            "k": widgets.IntSlider(1, 1, 9, description="negatives k"),
            "t": widgets.FloatSlider(0, min=0, max=1, step=0.05, description="t"),
            "expected": widgets.Checkbox(False, description="expected, not drawn"),
            "weights": widgets.Text(WEIGHTS, description="P ∝", continuous_update=False),
            "sampler": widgets.Dropdown(options=SAMPLERS, description="negatives"),
        }
        note, good = widgets.Label(), {"weights": WEIGHTS}

        def draw(weights: str, **others: float) -> go.Figure:
            try:
                priors(weights)
                good["weights"], note.value = weights, ""
            except InputError as error:  # the last good ones stay
                note.value = str(error)
            return tug_figure(weights=good["weights"], **others)  # type: ignore[arg-type]

        play = widgets.Play(min=0, max=STEPS, step=30, interval=100)
        widgets.jslink((play, "value"), (controls["steps"], "value"))
        return widgets.VBox([row(play, *controls.values(), note), driven(draw, controls)])

    def static() -> go.Figure:
        steps = {}
        for k, t in ((1, 0.0), (9, 0.0), (1, 1.0), (9, 1.0)):
            for expected in (False, True):
                label = f"k = {k}, t = {t:g}, {'expected' if expected else 'drawn'}"
                steps[label] = (k, t, expected)
        return stepped(partial(_of, STEPS), steps, "")

    return Explorer(live, static)


def _of(steps: int, chosen: tuple[int, float, bool]) -> go.Figure:
    return tug_figure(steps, *chosen)
