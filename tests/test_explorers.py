"""Every form of an explorer shows the numbers of its pure figure; no browser is needed here."""

import json
import re
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from gsas_lab import recipes
from gsas_lab.calibration import precision_vs_predicted
from gsas_lab.decisions import ladder
from gsas_lab.errors import InputError
from gsas_lab.lessons import explorers, gallery
from gsas_lab.theory import FixedPoint, logits_bytes

U, K, N = 30, 15, 40
MIMETYPE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def users() -> explorers.Users:
    titles = np.array([f"Film <{item}> & more" for item in range(N + 1)])
    recent = np.tile([0, 3, 4], (U, 1))
    return explorers.Users(np.arange(100, 100 + U), np.full(U, 5), recent, titles)


@pytest.fixture
def systems() -> dict[str, explorers.TopItems]:
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(N)[:K] + 1 for _ in range(U)])
    prob = np.sort(rng.random((U, K)))[:, ::-1]
    rank = np.where((items == 5).any(1), (items == 5).argmax(1) + 1, K + 7)
    same = np.broadcast_to(prob[0], (U, K))  # as popularity: the same for every user
    return {
        "SASRec": explorers.TopItems(prob, items, prob.sum(1), rank),
        "Popularity": explorers.TopItems(same, items, np.ones(U), rank),
    }


@pytest.fixture
def curves() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    prob, rank = np.sort(rng.random((50, 100)))[:, ::-1], rng.integers(2, 200, 50)
    return {
        name: precision_vs_predicted(prob, rank, FixedPoint(0.1, 0.5))
        for name in ("SASRec", "gSASRec")
    }


def inside(widget: widgets.Widget, kind: type) -> list:
    """All widgets of a kind, in reading order."""
    below = chain.from_iterable(inside(child, kind) for child in getattr(widget, "children", ()))
    return [widget] * isinstance(widget, kind) + list(below)


def assert_same_data(one: go.Figure, other: go.Figure) -> None:
    assert len(one.data) == len(other.data)
    for trace, expected in zip(one.data, other.data, strict=True):
        for part in ("x", "y", "text", "name"):
            if part in expected:
                np.testing.assert_array_equal(trace[part], expected[part])
    assert one.layout.title.text == other.layout.title.text


def test_user_figure_shows_probabilities_titles_sums_and_the_target(systems, users):
    user = int(np.flatnonzero(systems["SASRec"].target_rank <= K)[0])
    figure, top = explorers.user_figure(systems, users, user), systems["SASRec"]
    np.testing.assert_array_equal(figure.data[0].x, np.arange(1, K + 1))
    np.testing.assert_allclose(figure.data[0].y, top.prob[user], rtol=1e-6)
    assert figure.data[0].text[0] == f"Film &lt;{top.items[user, 0]}&gt; &amp; more"
    assert f"Σp = {top.sums[user]:,.2f}" in figure.data[0].name
    assert f"User {100 + user}" in figure.layout.title.text
    assert "Film &lt;3&gt;" in figure.layout.title.text
    assert "Film &lt;0&gt;" not in figure.layout.title.text  # padding is no film
    ring = figure.data[-1]
    rank = top.target_rank[user]
    assert list(ring.x) == [rank, rank]  # a ring in each system, although at the same rank
    np.testing.assert_allclose(ring.y[0], top.prob[user, rank - 1], rtol=1e-6)
    missed = int(np.flatnonzero(top.target_rank > K)[0])
    assert len(explorers.user_figure(systems, users, missed).data[-1].x) == 0


def test_user_figure_lists_ten_titles_with_the_target_in_bold(systems, users):
    user = int(np.flatnonzero(systems["SASRec"].target_rank <= 10)[0])
    table = explorers.user_figure(systems, users, user, table=True).data[-1]
    ranks, sasrec, _popularity = table.cells["values"]
    assert list(ranks) == list(range(1, 11))
    bold = [cell.startswith("<b>") for cell in sasrec]
    assert bold == [rank == systems["SASRec"].target_rank[user] for rank in ranks]
    assert f"{systems['SASRec'].prob[user, 0]:.3f}" in sasrec[0]


def test_users_that_are_not_there_are_refused(systems, users):
    with pytest.raises(InputError, match="from 0 to 29, not 30"):
        explorers.user_figure(systems, users, U)
    short = explorers.Users(users.ids[1:], users.targets[1:], users.recent[1:], users.titles)
    with pytest.raises(InputError, match="SASRec must hold the same 29 users"):
        explorers.user_explorer(systems, short)


def test_the_live_user_explorer_follows_slider_id_and_buttons(systems, users):
    live = explorers.user_explorer(systems, users, named={"number 120": 120, "gone": 7}).live()
    (pick,), (own,) = inside(live, widgets.IntSlider), inside(live, widgets.Text)
    (figure,), (table,) = inside(live, go.FigureWidget), inside(live, widgets.HTML)
    (note,), (dice, named) = inside(live, widgets.Label), inside(live, widgets.Button)

    def assert_shows(user: int) -> None:
        assert_same_data(figure, explorers.user_figure(systems, users, user))
        assert pick.value == user and own.value == str(100 + user)
        assert f"Film &lt;{systems['SASRec'].items[user, 0]}&gt;" in table.value

    assert_shows(20)  # a named user comes first; the id that is not there has no button
    pick.value = 3
    assert_shows(3)
    own.value = "104"
    assert_shows(4)
    own.value = "nobody"
    assert "no user 'nobody'" in note.value and pick.value == 4
    named.click()
    assert_shows(20)
    dice.click()
    assert_shows(pick.value)
    box = inside(live, widgets.Checkbox)[1]
    box.value = False
    assert [trace.visible for trace in figure.data] == [None, False, None]
    pick.value = 7
    assert figure.data[1].visible is False  # what is hidden stays hidden


def test_a_move_is_one_message_that_holds_every_trace(systems, users, monkeypatch):
    live = explorers.user_explorer(systems, users).live()
    (pick,), sent = inside(live, widgets.IntSlider), []
    monkeypatch.setattr(go.FigureWidget, "_send_update_msg", lambda _, **parts: sent.append(parts))
    pick.value = 5
    (message,) = sent
    assert message["trace_indexes"] == [0, 1, 2]
    y = message["restyle_data"]["y"]
    np.testing.assert_allclose(y[1], systems["Popularity"].prob[5], rtol=1e-6)  # did not change


def test_the_static_user_explorer_has_the_pure_figure_in_each_frame(systems, users):
    static = explorers.user_explorer(systems, users, sample=[2, 9, 4]).static()
    (slider,) = static.layout.sliders
    assert [step.args[0][0] for step in slider.steps] == ["102", "109", "104"]
    assert [frame.name for frame in static.frames] == ["102", "109", "104"]
    for frame, user in zip(static.frames, (2, 9, 4), strict=True):
        assert_same_data(frame, explorers.user_figure(systems, users, user, table=True))
    assert_same_data(static, explorers.user_figure(systems, users, 2, table=True))
    assert not static.layout.updatemenus  # nothing plays by itself


def test_the_default_sample_is_the_named_users_and_others_twelve_in_all(systems, users):
    static = explorers.user_explorer(systems, users, named={"mine": 117}).static()
    names = [frame.name for frame in static.frames]
    assert names[0] == "117" and len(names) == len(set(names)) == 12


def test_a_static_page_of_the_papers_size_stays_small():
    rng = np.random.default_rng(0)
    titles = np.array([f"A film with a rather long title, number {i}" for i in range(3417)])
    items = rng.integers(1, 3417, (12, 100))
    prob, rank = np.sort(rng.random((12, 100)))[:, ::-1], rng.integers(1, 200, 12)
    users = explorers.Users(np.arange(12), rank, items[:, :5], titles)
    top = explorers.TopItems(prob, items, prob.sum(1), rank)
    static = explorers.user_explorer(dict.fromkeys("abcd", top), users).static()
    assert len(static.to_json()) < 1_500_000


def test_memory_figure_is_the_theorys_bytes():
    figure = explorers.memory_figure(64, 200, 1_000_000)
    assert list(figure.data[0].x) == [51.2, logits_bytes(64, 200, 257) / 1e9]
    assert "51.2 GB" in figure.layout.title.text and figure.data[0].text[0] == "51.2 GB"
    large = explorers.memory_figure(64, 200, 1e7, gradients=True)
    assert large.layout.xaxis.range[1] > large.data[0].x[0] == 1024


def test_the_live_memory_explorer_follows_each_control():
    live = explorers.memory_explorer().live()
    (figure,), (items,) = inside(live, go.FigureWidget), inside(live, widgets.FloatLogSlider)
    items.value = 1e5
    inside(live, widgets.IntSlider)[0].value = 100
    inside(live, widgets.SelectionSlider)[0].value = 128
    inside(live, widgets.Dropdown)[0].value = "bfloat16"
    inside(live, widgets.Checkbox)[0].value = True
    expected = explorers.memory_figure(128, 100, 100_000, "bfloat16", True)
    assert_same_data(figure, expected)
    assert figure.layout.xaxis.range == expected.layout.xaxis.range


def test_the_static_memory_explorer_starts_at_the_introduction():
    static = explorers.memory_explorer().static()
    assert_same_data(static, explorers.memory_figure())
    assert static.layout.sliders[0].steps[static.layout.sliders[0].active].label == "1 million"
    assert_same_data(static.frames[0], explorers.memory_figure(n_items=3416))
    ranges = [frame.layout.xaxis.range[1] for frame in static.frames]
    assert ranges[-1] > 512 > ranges[0]


def test_calibration_figure_compares_precision_prediction_and_theory(curves):
    figure = explorers.calibration_figure(curves, 10)
    row = curves["SASRec"].set_index("cutoff").loc[10]
    bar, precision, predicted, theory = figure.data
    assert precision.x[0] == row["precision"] and predicted.x[0] == row["predicted"]
    assert theory.x[1] == row["theory"]
    np.testing.assert_array_equal(bar.x[:2], row[["precision", "predicted"]])
    assert predicted.text[0].endswith(f"(×{row['predicted'] / row['precision']:,.3g})")


def test_a_precision_of_zero_has_no_place_on_a_log_axis(curves):
    figure = explorers.calibration_figure(curves, 1)  # no target at rank 1
    assert np.isnan(figure.data[1].x).all() and "×" not in figure.data[2].text[0]
    assert np.isfinite(figure.layout.xaxis.range).all()


def test_calibration_explorer_moves_over_the_cutoffs_of_its_tables(curves):
    explorer = explorers.calibration_explorer(curves)
    live, static = explorer.live(), explorer.static()
    (figure,), (slider,) = inside(live, go.FigureWidget), inside(live, widgets.SelectionSlider)
    slider.value = 42
    assert_same_data(figure, explorers.calibration_figure(curves, 42))
    assert [frame.name for frame in static.frames] == ["1", "2", "5", "10", "20", "50", "100"]
    assert_same_data(static.frames[-1], explorers.calibration_figure(curves, 100))
    with pytest.raises(InputError, match="no cutoff 101"):
        explorers.calibration_figure(curves, 101)


@pytest.fixture
def grid() -> pd.DataFrame:
    """Runs in no order; (4, 0.5) is missing, (4, 0) failed."""
    rows = [(4, 0.0, np.nan), (1, 0.5, 0.2), (1, 0.0, 0.1), (4, 1.0, 0.4), (1, 1.0, 0.3)]
    table = pd.DataFrame(rows, columns=["k", "t", "NDCG@10"])
    ends = {"NDCG@10 low": table["NDCG@10"] - 0.01, "NDCG@10 high": table["NDCG@10"] + 0.01}
    return table.assign(**ends, seconds=7.0, **{"Recall@1": [0.05, 0.1, 0.2, 0.1, 0.1]})


PAPERS = {"NDCG@10": pd.DataFrame([[0.126, np.nan]], index=[1], columns=[0.0, 0.5])}


def test_grid_figure_puts_each_run_into_its_cell(grid):
    figure = explorers.grid_figure(grid)
    (cells,) = figure.data
    assert list(cells.x) == ["1", "4"] and list(cells.y) == ["0", "0.5", "1"]
    np.testing.assert_array_equal(cells.z, [[0.1, np.nan], [0.2, np.nan], [0.3, 0.4]])
    assert "<b>0.4000</b> with k = 4, t = 1" in figure.layout.title.text
    assert "best of 4 runs" in figure.layout.title.text


def test_the_map_calls_best_what_validation_users_chose(grid):
    grid = grid.assign(**{"validation NDCG@10": [np.nan, 0.3, 0.1, 0.1, 0.2]})
    for what in ("NDCG@10", "Recall@1"):
        title = explorers.grid_figure(grid, what).layout.title.text
        assert "with k = 1, t = 0.5" in title and "best of" in title and "on validation" in title


def test_grid_figure_tells_the_interval_and_the_papers_number_where_there_are_any(grid):
    (cells,) = explorers.grid_figure(grid, paper=PAPERS).data
    first, second = cells.text[0][0], cells.text[1][0]
    assert first.split("<br>") == [
        "k = 1, t = 0",
        "<b>NDCG@10 = 0.1000</b>",
        "interval 0.0900 … 0.1100",
        "the paper: 0.126",
    ]
    assert "paper" not in second and cells.text[0][1] == ""  # NaN is no number, nor a failed run
    (recall,) = explorers.grid_figure(grid, "Recall@1", PAPERS).data
    assert recall.text[0][0] == "k = 1, t = 0<br><b>Recall@1 = 0.2000</b>"


def test_the_grid_explorer_moves_over_the_metrics_of_its_table(grid):
    explorer = explorers.grid_explorer(grid, paper=PAPERS)
    live, static = explorer.live(), explorer.static()
    (pick,), (figure,) = inside(live, widgets.Dropdown), inside(live, go.FigureWidget)
    assert pick.options == ("NDCG@10", "Recall@1")  # no interval's end, no seconds
    pick.value = "Recall@1"
    expected = explorers.grid_figure(grid, "Recall@1", PAPERS)
    assert_same_data(figure, expected)
    np.testing.assert_array_equal(figure.data[0].z, expected.data[0].z)
    assert [frame.name for frame in static.frames] == ["NDCG@10", "Recall@1"]
    assert_same_data(static.frames[1], expected)
    np.testing.assert_array_equal(static.frames[1].data[0].z, expected.data[0].z)
    assert_same_data(static, explorers.grid_figure(grid, paper=PAPERS))
    json.loads(static.to_json(), parse_constant=pytest.fail)  # a missing run is no NaN in a page


def test_a_grid_needs_one_number_for_each_k_and_t(grid):
    with pytest.raises(InputError, match="missing: t, NDCG@5"):
        explorers.grid_figure(grid.drop(columns="t"), "NDCG@5")
    with pytest.raises(InputError, match="average over seeds first"):
        explorers.grid_figure(pd.concat([grid, grid]))
    with pytest.raises(InputError, match="in one row at least"):
        explorers.grid_figure(grid[:1])


@pytest.fixture
def rungs() -> dict[str, pd.DataFrame]:
    """Two users' best items, 1,000 times: p̂ of 0.8 hits a quarter of the time, p̂ of 0.2 a tenth."""
    prob = np.tile([[0.8], [0.2]], (1000, 1))
    hit = np.zeros_like(prob, bool)
    hit[:500:2] = hit[1:200:2] = True
    said = {"raw": prob, "repaired": np.where(prob > 0.5, 0.25, 0.1)}
    return {name: ladder(p, hit) for name, p in said.items()}


def test_desk_figure_counts_what_each_threshold_promises_and_earns(rungs):
    figure = explorers.desk_figure(rungs, threshold=0.5, value=2.0, cost=0.3)
    # Of 1,000 users half are shown an item of p̂ = 0.8, and a quarter of these take it.
    assert "raw: promised 650, came <b>100</b>" in figure.layout.title.text
    assert "repaired: promised 0, came <b>0</b>" in figure.layout.title.text
    assert "cost / value = 0.15" in figure.layout.title.text
    lines = {trace.name: trace for trace in figure.data if trace.mode is None}
    np.testing.assert_allclose(lines["raw: promised"].x, [0.8, 0.2])
    np.testing.assert_allclose(lines["raw: promised"].y, [650, 700])
    np.testing.assert_allclose(lines["raw: realised"].y, [100, 50])
    np.testing.assert_allclose(lines["repaired: promised"].y, lines["repaired: realised"].y)
    assert lines["raw: promised"].xaxis == "x" and lines["repaired: promised"].xaxis == "x2"
    (diamond, _) = (trace for trace in figure.data if trace.name == "cost / value")
    assert diamond.x[0] == 0.15
    with pytest.raises(InputError, match="one or two tables, not 3"):
        explorers.desk_figure(rungs | {"third": rungs["raw"]})


def test_the_desk_follows_its_three_sliders_and_statically_is_cut_at_cost_by_value(rungs):
    explorer = explorers.desk_explorer(rungs, value=2.0, cost=0.3)
    live, static = explorer.live(), explorer.static()
    (figure,) = inside(live, go.FigureWidget)
    sliders = {s.description: s for kind in (widgets.FloatLogSlider, widgets.FloatSlider)
               for s in inside(live, kind)}  # fmt: skip
    assert_same_data(figure, explorers.desk_figure(rungs, 0.15, 2.0, 0.3))
    for name, value in (("threshold", 0.5), ("value", 4.0), ("cost", 0.1)):
        sliders[name].value = value
    assert_same_data(figure, explorers.desk_figure(rungs, 0.5, 4.0, 0.1))
    names = [frame.name for frame in static.frames]
    assert len(names) == 9 and "0.3" in names
    assert_same_data(static, explorers.desk_figure(rungs, 0.15, 2.0, 0.3))
    assert_same_data(static.frames[-1], explorers.desk_figure(rungs, 1.0, 2.0, 3.0))


def test_a_move_redraws_well_within_a_tenth_of_a_second(systems, users, curves):
    live = explorers.user_explorer(systems, users).live()
    (pick,), taken = inside(live, widgets.IntSlider), []
    for user in range(1, 8):
        start = time.perf_counter()
        pick.value = user
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.1


@pytest.mark.parametrize("reason", ["headless", "no widgets", ""])
def test_show_takes_the_static_form_when_headless_or_without_widgets_and_html_beside_either(
    reason, monkeypatch
):
    def no_widgets():
        raise ImportError("anywidget")

    shown = []
    monkeypatch.setattr(explorers, "display", lambda what, **_: shown.append(what))
    monkeypatch.setenv("GSAS_LAB_HEADLESS", "1" if reason == "headless" else "")
    memory = explorers.memory_explorer()
    live = no_widgets if reason == "no widgets" else memory.live
    explorers.Explorer(live, memory.static).show()
    if reason:
        assert set(shown[0]) == {MIMETYPE, "text/html", "text/plain"}
        assert len(shown[0][MIMETYPE]["frames"]) == 7
    else:
        assert set(shown[0]) == {WIDGET, "text/html", "text/plain"}
    assert "VBox" not in shown[0]["text/plain"] and len(shown[0]["text/html"]) < 100_000


def test_a_live_notebook_shows_its_figures_after_plain_nbconvert(monkeypatch):
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    shown = []
    monkeypatch.setattr(explorers, "display", lambda what, **_: shown.append(what))
    monkeypatch.delenv("GSAS_LAB_HEADLESS", raising=False)
    explorers.memory_explorer().show()
    cell = new_code_cell("", outputs=[new_output("display_data", data=shown[0])])
    page, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[cell]))
    assert "Plotly.newPlot(" in page and "Plotly.addFrames(" in page and "VBox(" not in page
    assert len(page) < 1_000_000  # plotly.js is not in it


LESSONS = Path(explorers.__file__).parent
LOSS_OF = {"SASRec": "bce", "gSASRec": "gbce", "softmax": "softmax"}


def test_the_gallery_holds_every_explorer_with_a_slider(small_world, monkeypatch):
    systems = {name: replace(small_world, loss=loss) for name, loss in LOSS_OF.items()}
    monkeypatch.setattr(recipes, "systems", lambda dataset, **_: systems)
    figures = gallery.figures("no such folder in outputs/reference")
    text = "".join(path.read_text("utf-8") for path in LESSONS.glob("*.py"))
    every = set(re.findall(r"^def (\w+_explorer)\(", text, re.MULTILINE))
    assert len(figures) == len(every - {"grid_explorer"}) >= 12  # no evidence, no Figure 3
    assert all(figure.layout.sliders for figure in figures.values())
    (curves,) = (f for heading, f in figures.items() if heading.startswith("Precision"))
    assert list(dict.fromkeys(curves.data[0].y)) == ["SASRec", "gSASRec"]  # softmax: no Theorem 5.1
