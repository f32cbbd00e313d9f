"""The theory's explorers show what theory.py says, in every form; no browser is needed here."""

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import pytest
from test_explorers import assert_same_data, inside

from gsas_lab import theory
from gsas_lab.lessons import explorers
from gsas_lab.lessons import theory_explorers as drag

SLIDERS = widgets.FloatSlider | widgets.FloatLogSlider | widgets.IntSlider | widgets.SelectionSlider
CATALOGUES = [50, drag.ML1M, 100_000]


@dataclass(frozen=True)
class Case:
    """An explorer, its pure figure and, in reading order, a value to move each slider to."""

    explorer: Callable[..., explorers.Explorer]
    draw: Callable[..., go.Figure]
    moves: Mapping[str, Any]


PAIR = {"k": 64, "t": 0.35, "n_items": 10_000}
SMALL = {"k": 2048, "t": 0.9, "n_items": 50}  # sliders move one at a time: k passes the catalogue
CASES = {
    "sigmoid": Case(drag.sigmoid_explorer, drag.sigmoid_figure, {"beta": 0.1, "score": 2.0}),
    "prior": Case(drag.prior_explorer, drag.prior_figure, {**PAIR, "prior": 0.1}),
    "catalogue": Case(drag.catalogue_explorer, drag.catalogue_figure, {**PAIR, "exponent": 0.7}),
    "map": Case(drag.map_explorer, drag.map_figure, PAIR),
    "collisions": Case(drag.collisions_explorer, drag.collisions_figure, {**PAIR, "history": 400}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def curve(figure: go.Figure, name: str, axis: str = "x") -> go.Scatter:
    """The one curve of this name in the panel of `axis`."""
    (found,) = (t for t in figure.data if t.name == name and (t.xaxis or "x") == axis)
    return found


def dots(figure: go.Figure, axis: str) -> list[tuple[float, float]]:
    """Where the dots of a panel stand, in drawing order."""
    single = (trace for trace in figure.data if trace.type == "scatter" and len(trace.x) == 1)
    return [(dot.x[0], dot.y[0]) for dot in single if dot.xaxis == axis]


def numbers(title: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", title)]


def rates(k: int, t: float, n_items: int) -> tuple[float, float]:
    """α and β, Eqs. (23, 27)."""
    alpha = k / (n_items - 1)
    return alpha, 1 - t * (1 - alpha)


def assert_same(one: go.Figure, other: go.Figure) -> None:
    """Also what assert_same_data leaves out: the heat maps, and the ranges that may move."""
    assert_same_data(one, other)
    for trace, expected in zip(one.data, other.data, strict=True):
        if expected.type == "heatmap":
            np.testing.assert_array_equal(trace.z, expected.z)
    one, other = (figure.layout.to_plotly_json() for figure in (one, other))
    for axis in ("xaxis", "xaxis2"):
        assert one.get(axis, {}).get("range") == other.get(axis, {}).get("range")


# The pure figures against theory.py


@pytest.mark.parametrize(("beta", "score"), [(0.25, 0.0), (0.01, -3.0), (1.0, 8.0)])
def test_sigmoid_figure_shows_the_loss_its_gradient_and_the_dots(beta, score):
    figure = drag.sigmoid_figure(beta, score)
    power = curve(figure, f"σ<sup>β</sup>, β = {beta:.3g}")
    at, sigma = 1 / (1 + np.exp(-score)), 1 / (1 + np.exp(-power.x.astype(float)))
    np.testing.assert_allclose(power.y, sigma**beta, rtol=1e-5)
    for label, prior, weight in (("positive, gBCE", 1, beta), ("negative", 0, beta)):
        loss, gradient = (curve(figure, f"{label}: {part}", "x2") for part in ("loss", "gradient"))
        expected = theory.expected_loss(loss.x, prior, 1.0, weight)
        np.testing.assert_allclose(loss.y, expected, rtol=1e-5)
        slope = np.gradient(expected, loss.x.astype(float))
        np.testing.assert_allclose(gradient.y[1:-1], slope[1:-1], atol=1e-3)
    np.testing.assert_allclose(dots(figure, "x"), [(score, at), (score, at**beta)])
    pulls = [(score, at - 1), (score, beta * (at - 1)), (score, at)]
    np.testing.assert_allclose(dots(figure, "x2"), pulls)
    assert f"= {at**beta:.3f}" in figure.layout.title.text


@pytest.mark.parametrize("n_items", CATALOGUES)
@pytest.mark.parametrize(("k", "t"), [(1, 0.0), (16, 0.75), (49, 1.0)])
def test_prior_figure_is_theorem_5_1(k, t, n_items):
    figure, (alpha, beta) = drag.prior_figure(k, t, n_items, prior=0.02), rates(k, t, n_items)
    for axis in ("x", "x2"):
        for name, power in ((f"BCE, k = {k}", 1.0), (f"gBCE, t = {t:g}", beta)):
            shown = curve(figure, name, axis)
            grid = np.linspace(0, 1, 201) if axis == "x" else np.geomspace(1e-6, 1, 121)
            np.testing.assert_allclose(shown.x, grid, rtol=1e-6)
            expected = theory.converged_probability(grid, alpha, power)
            np.testing.assert_allclose(shown.y, expected, rtol=1e-6)
        reads = [theory.converged_probability(0.02, alpha, power) for power in (1.0, beta)]
        np.testing.assert_allclose(dots(figure, axis), [(0.02, read) for read in reads], rtol=1e-9)
    title = figure.layout.title.text
    assert f"α = {alpha:.3g}, β = {beta:.3g}, offset log(β/α) = " in title
    assert "calibrated" in title if t == 1 else f"<b>{reads[1]:.3f}</b>" in title


@pytest.mark.parametrize("exponent", [0.0, 0.5, drag.PEAKED, 2.0])
@pytest.mark.parametrize("n_items", CATALOGUES)
def test_the_catalogues_sums_are_exact_although_its_ranks_are_thinned(n_items, exponent):
    figure, prior = (
        drag.catalogue_figure(16, 0.75, n_items, exponent),
        theory.zipf(n_items, exponent),
    )
    paper, sasrec, yours, one = figure.data[-1].x + np.float64(figure.data[-1].base)
    assert (paper, one) == (drag.PAPER_SUM, 1)
    assert sasrec == pytest.approx(theory.forecast_sum(prior, *rates(1, 0.0, n_items)), rel=1e-3)
    assert yours == pytest.approx(theory.forecast_sum(prior, *rates(16, 0.75, n_items)), rel=1e-3)
    assert numbers(figure.layout.title.text)[:2] == pytest.approx([yours, sasrec], rel=5e-3)
    shares = curve(figure, "true P: Zipf")
    first = shares.x <= min(n_items, 200)
    np.testing.assert_allclose(shares.y[first], prior[:200], rtol=1e-3)
    said = theory.converged_probability(prior[:200], *rates(16, 0.75, n_items))
    np.testing.assert_allclose(curve(figure, "yours: k = 16, t = 0.75").y[first], said, rtol=1e-3)


def test_the_default_exponent_gives_the_papers_sasrec_on_movielens():
    _, sasrec, _, _ = drag.catalogue_figure().data[-1].x + np.float64(0.5)
    assert 330 < sasrec < 346  # 338 in Figure 1


@pytest.mark.parametrize("n_items", CATALOGUES)
def test_map_figure_is_beta_and_the_sum_at_every_place(n_items):
    figure, prior = drag.map_figure(16, 0.75, n_items), theory.zipf(n_items, drag.PEAKED)
    power, total = (trace for trace in figure.data if trace.type == "heatmap")
    for row, column in ((0, 0), (0, -1), (7, 12), (15, 25), (-1, 0), (-1, -1)):
        alpha, beta = rates(power.x[column], power.y[row], n_items)
        assert power.z[row, column] == pytest.approx(beta, rel=1e-9)
        expected = theory.forecast_sum(prior, alpha, beta)
        assert 10 ** total.z[row, column] == pytest.approx(expected, rel=2e-3)
    np.testing.assert_array_equal(power.x, total.x)
    assert power.x.max() == min(2048, n_items - 1) and power.z.shape == (21, len(power.x))
    assert dots(figure, "x") == dots(figure, "x2") == [(16, 0.75)]
    (alpha, beta), title = rates(16, 0.75, n_items), figure.layout.title.text
    expected = [16, 0.75, beta, theory.forecast_sum(prior, alpha, beta)]
    assert numbers(title)[:4] == pytest.approx(expected, rel=5e-3)
    assert f"α = {alpha:.3g}; 17 scores a position" in title


@pytest.mark.parametrize(("k", "t", "history"), [(1, 0.0, 0), (256, 1.0, 165), (256, 0.75, 2000)])
def test_collisions_figure_shows_three_fixed_points_and_their_ratios(k, t, history):
    figure, (alpha, beta) = drag.collisions_figure(k, t, 3416, history), rates(k, t, 3416)
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # as notebook 02's table writes them
        "positive excluded: Theorem 5.1": lambda p: beta * p / (beta * p + alpha * (1 - p)),
        "whole catalogue": lambda p: beta * p / (beta * p + k / 3416),
        "history excluded": lambda p: beta * p / (beta * p + k / (3415 - history) * (1 - p)),
    }
    left, right = np.linspace(0, 1, 201), np.geomspace(1e-4, 1, 121)
    theorem = theory.converged_probability(right, alpha, beta)
    for name, rule in rules.items():
        np.testing.assert_allclose(curve(figure, name).y, rule(left), rtol=1e-5)
        np.testing.assert_allclose(curve(figure, name, "x2").y, rule(right) / theorem, rtol=1e-5)
    assert f"<b>{beta / (beta + k / 3416):.3f}</b>" in figure.layout.title.text
    assert f"α = {alpha:.3g}, " in figure.layout.title.text
    assert f"β = {beta:.3g}" in figure.layout.title.text


# What holds for all five


def test_every_axis_with_numbers_is_named_with_its_scale_or_unit(case):
    for axis in case.draw().select_xaxes():
        assert axis.title.text and ("log" in axis.title.text) == (axis.type == "log")
    words = [trace for trace in case.draw().data if trace.type == "bar"]  # rows name themselves
    for axis in case.draw().select_yaxes():
        assert axis.title.text or (words and axis.anchor == "x2")
        assert ("log" in (axis.title.text or "")) == (axis.type == "log")
    assert case is not CASES["sigmoid"] or "nats" in case.draw().layout.yaxis2.title.text


def test_each_slider_of_the_live_form_redraws_the_pure_figure(case):
    live = case.explorer().live()
    (figure,), sliders = inside(live, go.FigureWidget), inside(live, SLIDERS)
    values = {name: s.value for name, s in zip(case.moves, sliders, strict=True)}
    assert_same(figure, case.draw(**values))
    for slider, (name, value) in zip(sliders, case.moves.items(), strict=True):
        slider.value = values[name] = value
        assert slider.value == pytest.approx(value)
        assert_same(figure, case.draw(**values | {name: slider.value}))
        values[name] = slider.value


def test_a_move_is_one_message_and_one_more_where_a_map_changes(case, monkeypatch):
    live, sent = case.explorer().live(), []
    for kind in ("update", "restyle", "relayout"):
        own = f"_send_{kind}_msg"
        monkeypatch.setattr(go.FigureWidget, own, lambda *_, kind=kind, **__: sent.append(kind))
    for slider, (name, value) in zip(inside(live, SLIDERS), case.moves.items(), strict=True):
        sent.clear()
        slider.value = value
        both = case is CASES["map"] and name == "n_items"
        assert sent == (["restyle", "update"] if both else ["update"]), name


def test_a_move_redraws_well_within_a_tenth_of_a_second(case):
    sliders, taken = inside(case.explorer().live(), SLIDERS), []
    for slider, value in 3 * list(zip(sliders, case.moves.values(), strict=True)):
        for new in (value, slider.value):
            start = time.perf_counter()
            slider.value = new
            taken.append(time.perf_counter() - start)
    assert statistics.median(taken) < 0.25  # 0.1 and less; a busy machine takes longer


def test_k_beyond_the_catalogue_is_as_many_negatives_as_it_has(case):
    if case is CASES["sigmoid"]:
        return
    assert_same(case.draw(**SMALL), case.draw(**SMALL | {"k": 49}))
    live = case.explorer().live()
    (figure,), sliders = inside(live, go.FigureWidget), inside(live, SLIDERS)
    for slider, value in zip(sliders, SMALL.values(), strict=False):
        slider.value = value
    values = dict(zip(case.moves, (slider.value for slider in sliders), strict=True))
    assert_same(figure, case.draw(**values))


def pair_of(label: str) -> tuple[int, float, int]:
    """k, t and the catalogue that a static slider's label names."""
    k, t = re.match(r"k = (\d+), t = (\d(?:\.\d+)?)", label).groups()
    return int(k), float(t), 1_000_000 if "a million items" in label else drag.ML1M


def test_each_frame_of_the_static_form_is_the_pure_figure(case):
    static = case.explorer().static()
    if case is CASES["sigmoid"]:
        ((score, _), _) = dots(static, "x")
        drawn = {frame.name: case.draw(float(frame.name), score) for frame in static.frames}
    else:
        drawn = {frame.name: case.draw(*pair_of(frame.name)) for frame in static.frames}
    (slider,) = static.layout.sliders
    assert [step.args[0][0] for step in slider.steps] == list(drawn)
    for frame in static.frames:
        assert_same(frame, drawn[frame.name])
    assert_same(static, drawn[slider.steps[slider.active].label])
    assert not static.layout.updatemenus  # nothing plays by itself


def test_the_static_form_is_json_without_nan_and_small(case):
    static = case.explorer().static()
    for trace in (trace for part in (static, *static.frames) for trace in part.data):
        for values in (trace.x, trace.y, trace["z"] if trace.type == "heatmap" else 0.0):
            values = np.asarray(values)
            assert values.dtype.kind not in "fc" or np.isfinite(values).all()
    text = static.to_json()
    json.loads(text, parse_constant=pytest.fail)
    assert len(text) < 1_500_000
