"""Break it: calibrated probabilities, a fault that grows by slider, and the measures that move.

The users are of a known-truth world, where p̂ = P is calibrated. What a measure must exceed is what
it reaches at most in 60 draws of hits from p̂ itself.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.special import expit, logit

from gsas_lab import faults, instrument
from gsas_lab.figures import BLUE
from gsas_lab.lessons.explorers import Explorer, blank, driven, row, stepped
from gsas_lab.worlds import World

_DRAWS = 60
_WORLD = World(n_items=50, n_genres=5)
STEPS: dict[str, dict[str, Any]] = {
    "calibrated": {},
    "shift by 0.3": {"shift": 0.3},
    "shift by 1": {"shift": 1.0},
    "stretch by 1.3": {"stretch": 1.3},
    "shrink to 0.7": {"stretch": 0.7},
    "groups apart by 0.5": {"groups": 0.5},
    "groups apart by 1": {"groups": 1.0},
    "tail of 20 dropped": {"tail": 20},
    "tail of 40 dropped": {"tail": 40},
}


@dataclass(frozen=True)
class Bench:
    """Users, the truth about them, and what they took."""

    prior: np.ndarray  # (U, n_items) true P
    hit: np.ndarray  # (U, n_items) one a user
    genre: np.ndarray  # (n_items,)


@lru_cache(maxsize=4)
def bench(users: int = 1500) -> Bench:
    """Users of a small known-truth world: 50 items, 5 genres."""
    prior, hit, _ = faults.population(users, 1, _WORLD)
    return Bench(prior, hit, _WORLD.genre[1:])


def broken(
    of: Bench, shift: float = 0.0, stretch: float = 1.0, groups: float = 0.0, tail: float = 0
) -> np.ndarray:
    """(U, n_items): P with logits times `stretch`, plus `shift`, genres moved apart by `groups` up
    and down in turn, and each user's last `tail` items at a tenth of what they were.
    """
    logits = stretch * logit(of.prior) + shift
    logits = logits + groups * np.where(of.genre % 2 == 0, 0.5, -0.5)
    prob = expit(logits)
    if tail:
        last = np.argsort(prob, axis=1, kind="stable")[:, : int(tail)]
        np.put_along_axis(prob, last, np.take_along_axis(prob, last, axis=1) / 10, axis=1)
    return prob


def against_chance(of: Bench, prob: np.ndarray) -> pd.DataFrame:
    """value, and its multiple of the most that chance gives in 60 draws, one row each measure.

    "worst genre": the largest |log(promised / observed)|, and its multiple of the half width of its
    interval, Bonferroni's for all genres.
    """
    all_pairs = instrument.cells(prob, of.hit, resamples=_DRAWS)
    at = np.argsort(-prob, axis=1, kind="stable")[:, :10]
    best = np.take_along_axis(prob, at, axis=1)
    top = instrument.cells(best, np.take_along_axis(of.hit, at, axis=1), resamples=_DRAWS)
    total = instrument.Measure(lambda gaps: gaps.sum(axis=0), np.abs)
    rows = {}
    for name, cells, measure in (
        ("mean gap", all_pairs, total),
        ("ECE", all_pairs, instrument.binned(all_pairs)),
        ("ECE@10", top, instrument.binned(top)),
        ("smooth ECE", all_pairs, instrument.smooth(all_pairs)),
        ("smooth ECE, logits", all_pairs, instrument.smooth(all_pairs, on_logits=True)),
        ("Brier miscalibration", all_pairs, instrument.corp(all_pairs)),
        ("log loss miscalibration", all_pairs, instrument.corp(all_pairs, log=True)),
    ):
        value = float(measure(cells.gap[:, None])[0])
        most = float(measure(cells.chance).max())
        rows[name] = (value, value / most)
    found = instrument.by_group(prob, of.hit, {"genre": of.genre}).iloc[1:]
    far = np.abs(np.log(found["ratio"].to_numpy(float)))
    half = np.log(found["high"].to_numpy(float) / found["low"].to_numpy(float)) / 2 * (2.58 / 1.96)
    rows["worst genre"] = (far.max(), (far / half).max())
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "multiple"])


def break_figure(
    shift: float = 0.0,
    stretch: float = 1.0,
    groups: float = 0.0,
    tail: float = 0,
    of: Bench | None = None,
) -> go.Figure:
    """Each measure as a multiple of the most that chance gives; right of 1 it sees the fault."""
    of = of or bench()
    prob = broken(of, shift, stretch, groups, tail)
    table = against_chance(of, prob)
    away = np.abs(prob - of.prior).sum(axis=1).mean()
    title = f"<b>Σp of a user {prob.sum(axis=1).mean():.2f}, where 1 is true</b>"
    story = f"distance to the truth: Σ|p − P| = {away:.2f} a user"
    figure = blank(title, story, "multiple of the most that chance gives (log scale)", "")
    seen = ["seen" if times > 1 else "not seen" for times in table["multiple"]]
    figure.add_scatter(
        x=table["multiple"].clip(0.02, 200),
        y=table.index,
        mode="markers+text",
        text=[f"{value:.2g}, {word}" for value, word in zip(table["value"], seen, strict=True)],
        textposition="top center",
        marker={"size": 15, "color": BLUE},
        name="measure",
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[1, 1],
        y=[table.index[0], table.index[-1]],
        mode="lines",
        line={"color": "black", "dash": "dot"},
        name="chance",
        hoverinfo="skip",
    )
    figure.update_traces(cliponaxis=False)
    figure.update_xaxes(type="log", dtick=1, range=[-2.4, 2.4])  # room for the words at the ends
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=560, showlegend=False)


def _step(name: str) -> go.Figure:
    return break_figure(**STEPS[name])


def break_explorer() -> Explorer:
    """`break_figure` with four sliders; statically, nine faults by one slider."""

    def live() -> widgets.Widget:
        controls = {
            "shift": widgets.FloatSlider(0.0, min=-1.5, max=1.5, step=0.1, description="shift"),
            "stretch": widgets.FloatSlider(1.0, min=0.4, max=1.8, step=0.1, description="stretch"),
            "groups": widgets.FloatSlider(0.0, min=0.0, max=2.0, step=0.1, description="groups"),
            "tail": widgets.IntSlider(0, min=0, max=45, step=5, description="tail"),
        }
        return widgets.VBox([row(*controls.values()), driven(break_figure, controls)])

    def static() -> go.Figure:
        return stepped(_step, {name: name for name in STEPS}, "")

    return Explorer(live, static)
