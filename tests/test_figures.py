"""What is drawn is what was given: each test reads the numbers back from the Axes."""

import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from gsas_lab import figures

RANK = np.arange(1, 101)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def drawn(ax, label: str) -> np.ndarray:
    """The (n, 2) points of the line with this label."""
    return next(line for line in ax.get_lines() if line.get_label() == label).get_xydata()


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def figure_2_table(scale: float, theory: bool = True) -> pd.DataFrame:
    precision = 0.08 / RANK**0.5
    table = pd.DataFrame({"cutoff": RANK, "precision": precision, "predicted": scale * precision})
    return table.assign(theory=2 * precision) if theory else table


def test_a_system_has_one_look_of_its_own_everywhere():
    known = figures.styles(["SASRec", "gSASRec", "SASRec, softmax", "gSASRec, t = 1", "Popularity"])
    assert figures.styles(["gSASRec"])["gSASRec"] == known["gSASRec"]
    assert len({look.colour for look in known.values()}) == 5
    assert len({look.marker for look in known.values()}) == 5
    unknown = [f"own part {place}" for place in range(5)]
    table_2 = ["SASRec", "SASRec, softmax", "BERT4Rec, BCE", "BERT4Rec"]
    table_3 = [
        "Popularity",
        "MF-BPR",
        "gSASRec",
        "SASRec, shared negatives",
        *table_2[:2],
        "BERT4Rec",
    ]
    for names in (table_2, table_3, [*table_3, *unknown], ["BCE", "gBCE", "sampled softmax"]):
        assert len({look.colour for look in figures.styles(names).values()}) == len(names)
    looks = figures.styles(["SASRec", "SASRec, raw", "BCE", "gSASRec, raw", "gSASRec"])
    assert looks["SASRec"] == looks["SASRec, raw"] == looks["BCE"] != looks["gSASRec, raw"]


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0 B"), (999, "999 B"), (13.2e6, "13.2 MB"), (51.2e9, "51.2 GB"), (999.9e9, "1 TB")],
)
def test_bytes_in_words(n_bytes, words):
    assert figures.size(n_bytes) == words


def test_probability_by_rank_starts_at_rank_one_and_names_the_sum():
    ax = figures.probability_by_rank({"SASRec": 1 / RANK}, sums={"SASRec": 338.03})
    np.testing.assert_allclose(drawn(ax, "SASRec:  Σp = 338.03"), np.c_[RANK, 1 / RANK])
    assert ax.get_ylim()[0] < 0 < 1 < ax.get_ylim()[1]
    assert ax.get_xticks()[0] == 1 and ax.get_xlabel() and ax.get_ylabel()


@pytest.mark.parametrize("log", [False, True])
def test_precision_vs_predicted_draws_curve_theory_and_diagonal(log):
    table = figure_2_table(3)
    ax = figures.precision_vs_predicted({"SASRec": table.sample(frac=1, random_state=0)}, log=log)
    np.testing.assert_array_equal(drawn(ax, "SASRec"), table[["precision", "predicted"]])
    dashed = next(line for line in ax.get_lines() if line.get_linestyle() == "--")
    np.testing.assert_array_equal(dashed.get_xydata()[::-1], table[["precision", "theory"]])
    assert dashed.get_color() == figures.styles(["SASRec"])["SASRec"].colour
    diagonal = drawn(ax, "calibrated")
    np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])
    assert (ax.get_xscale() == "log") == log
    assert legend(ax) == ["SASRec", "Theorem 5.1", "calibrated"]


def test_without_theory_no_theory_is_named():
    ax = figures.precision_vs_predicted({"SASRec": figure_2_table(3, theory=False)})
    assert legend(ax) == ["SASRec", "calibrated"]


def test_reliability_draws_the_interval_and_keeps_bins_without_a_hit_in_sight():
    curve = pd.DataFrame(
        {
            "predicted": [1e-3, 0.1, 0.9],
            "observed": [0.0, 0.05, 0.4],
            "count": [50, 50, 50],
            "low": [0.0, 0.02, 0.3],
            "high": [0.07, 0.1, 0.5],
        }
    )
    ax = figures.reliability({"gSASRec": curve})
    np.testing.assert_array_equal(drawn(ax, "gSASRec"), curve[["predicted", "observed"]])
    (bars,) = (c for c in ax.containers[0] if isinstance(c, tuple) and len(c) == 1)
    ends = np.array([segment[:, 1] for segment in bars[0].get_segments()])
    np.testing.assert_allclose(ends, curve[["low", "high"]])
    assert 0 < ax.get_ylim()[0] < 0.07 and ax.get_xlim()[0] < 1e-3


@pytest.mark.parametrize("log", [False, True])
def test_truth_against_learned_shows_every_pair_that_the_axes_can(log):
    prior, learned = np.array([[0.0, 0.1], [0.2, 0.3]]), np.array([[0.2, 0.5], [0.6, 0.7]])
    grid = np.linspace(0.01, 1, 50)
    theory = (grid, np.sqrt(grid))
    ax = figures.truth_against_learned(prior, learned, theory=theory, name="gSASRec", log=log)
    points = ax.collections[0].get_offsets()
    np.testing.assert_array_equal(points, np.c_[prior.ravel(), learned.ravel()][int(log) :])
    np.testing.assert_array_equal(drawn(ax, "Theorem 5.1"), np.c_[theory])
    assert legend(ax)[0] == f"gSASRec: {4 - log} pairs"


def test_training_history_marks_the_best_validated_epoch():
    run = pd.DataFrame(
        {"epoch": [1, 2, 3, 4], "loss": [4.0, 3, 2, 1], "ndcg@10": [0.1, 0.3, np.nan, 0.2]}
    )
    loss, ndcg = figures.training_history({"SASRec": run, "gSASRec": run})
    np.testing.assert_array_equal(drawn(loss, "SASRec"), run[["epoch", "loss"]])
    best = drawn(ndcg, "gSASRec: 0.3000")
    np.testing.assert_array_equal(best, run[["epoch", "ndcg@10"]].dropna())
    assert all(float(tick).is_integer() for tick in ndcg.get_xticks())
    own = plt.subplots(1, 2)[1]
    assert figures.training_history(run, axes=own)[0] is own[0]


K_BY_T = pd.DataFrame([[0.1, 0.2], [0.3, np.nan]], index=[1, 256], columns=[0, 0.75])


def words(ax) -> list[list[str]]:
    """What stands in the cells of a map, (ks, ts)."""
    return np.array([text.get_text() for text in ax.texts]).reshape(K_BY_T.shape).tolist()


def test_grid_writes_each_value_into_its_cell():
    ax = figures.grid(K_BY_T, what="Recall@1")
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), K_BY_T.to_numpy().T)
    assert words(ax) == [["0.1000", "0.2000"], ["0.3000", ""]]
    assert [text.get_position() for text in ax.texts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "256"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "0.75"]
    assert ax.figure.axes[1].get_ylabel() == "Recall@1"


def test_grid_adds_marks_and_what_a_reference_knows_of_these_cells():
    marks = K_BY_T.gt(0.15).replace({True: "*", False: ""})
    reference = pd.DataFrame([[0.126, 0.13], [0.2, 0.3]], index=[1, 4], columns=[0, 0.5])
    ax = figures.grid(K_BY_T, reference=reference, marks=marks)
    assert words(ax) == [["0.1000\n(0.126)", "0.2000*"], ["0.3000*", ""]]
    assert ax.figure.axes[1].get_ylabel() == "NDCG@10 (in brackets: reference)"


def test_by_k_draws_values_and_intervals_over_doublings():
    bands = pd.DataFrame(
        {"value": [0.3, 0.1], "low": [0.2, 0.05], "high": [0.4, 0.15]}, index=[256, 4]
    )
    ax = figures.by_k({"SASRec": bands, "BERT4Rec": bands[["value"]].set_axis([4, 1])})
    assert drawn(ax, "SASRec").tolist() == [[4, 0.1], [256, 0.3]]
    assert drawn(ax, "BERT4Rec").tolist() == [[1, 0.1], [4, 0.3]]
    (band,) = ax.collections  # BERT4Rec has no interval
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert corners == {(4, 0.05), (4, 0.15), (256, 0.2), (256, 0.4)}
    assert ax.get_xscale() == "log" and ax.xaxis.get_transform().base == 2
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "4", "256"]


def test_quality_and_time_puts_each_system_at_its_seconds_with_its_interval():
    table = pd.DataFrame(
        {"NDCG@10": [0.02, 0.18], "seconds": [0.0, 200.0], "NDCG@10 low": [0.01, 0.17],
         "NDCG@10 high": [0.03, 0.19]}, index=["Popularity", "gSASRec"],
    )  # fmt: skip
    ax = figures.quality_and_time(table)
    points = [line.get_xydata().tolist() for line in ax.lines]
    assert points == [
        [[1, 0.02]],
        [[1, 0.01], [1, 0.03]],
        [[200, 0.18]],
        [[200, 0.17], [200, 0.19]],
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Popularity", "gSASRec"]
    assert len(figures.quality_and_time(table[["NDCG@10", "seconds"]]).lines) == 2


def test_sum_of_probabilities_has_one_row_a_system_and_the_line_at_one():
    sums = {"SASRec": np.full(9, 300.0), "SASRec, softmax": np.ones(9)}
    ax = figures.sum_of_probabilities(sums)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(sums)
    assert {"median 300.00", "median 1.00", "Σp = 1"} == {text.get_text() for text in ax.texts}
    heights = [patch.get_data().values - patch.get_data().baseline for patch in ax.patches]
    assert all(np.count_nonzero(height) == 1 for height in heights)
    assert [1, 1] in [list(line.get_xdata()) for line in ax.get_lines()]


def test_popularity_is_sorted_and_leaves_out_items_without_interactions():
    ax = figures.popularity(np.array([5, 0, 9, 1]))
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), [[1, 9], [2, 5], [3, 1]])
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_history_lengths_count_every_user_and_say_who_is_cut():
    lengths = np.array([1, 5, 200, 201, 2000])
    ax = figures.history_lengths(lengths, cut=200)
    assert sum(patch.get_height() for patch in ax.patches) == len(lengths)
    assert "2 of 5 users" in ax.texts[0].get_text()


def test_memory_names_the_introductions_51_gb():
    n_items = np.array([1e3, 1e6, 1e8])
    ax = figures.memory(n_items, {"float32": n_items * 64 * 200 * 4})
    (label,) = legend(ax)
    assert label == "float32:  51.2 GB at a million items"
    np.testing.assert_array_equal(drawn(ax, label)[:, 1], n_items * 51_200)
    assert {text.get_text() for text in ax.texts} == set(figures.MEMORY)


def test_figures_are_white_and_draw_into_the_axes_that_they_are_given():
    own = plt.subplots()[1]
    assert figures.popularity([3, 2, 1], ax=own) is own
    assert own.figure.get_facecolor() == own.get_facecolor() == (1, 1, 1, 1)


def test_a_table_shows_whole_numbers_whole_and_leaves_out_what_is_not_there():
    rows = pd.DataFrame(
        {
            "a": [12000.0, 0.123456, np.nan, 5e-7],
            "b": ["x", None, True, pd.NA],
            "c": [1, 2.5, 3, [0.3039362, 1.0]],
        }
    )
    text = figures.table(rows).to_html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert cells[:8] == ["12,000", "x", "1", "0.1235", "", "2.5", "", "True"]
    assert cells[8:] == ["3", "5.0e-07", "", "[0.3039, 1]"]
    assert rows.loc[0, "a"] == 12000.0
    assert ">0<" in figures.table(pd.DataFrame({"gap": [-0.0]})).to_html()


def test_the_legend_of_alarms_covers_no_curve():
    day = np.arange(60)
    rising = {"SASRec, raw": 60.0, "SASRec, repaired": 0.5, "gSASRec, raw": 4.0, "P itself": 0.1}
    ax = figures.alarms(
        {
            n: pd.DataFrame({"day": day, "up": r * (1 + day), "down": 0.0})
            for n, r in rising.items()
        },
        drift=40,
    )
    ax.figure.canvas.draw()
    box = ax.get_legend().get_window_extent()
    for line in ax.lines[: len(rising)]:
        assert not box.count_contains(ax.transData.transform(line.get_xydata()))


def test_a_column_of_proportions_has_as_many_decimals_in_each_row():
    columns = {"NDCG": [0.3, 0.009272, None], "Σp": [192.75, 1, 4.08], "t": [0, 0.75, 1]}
    text = figures.table(pd.DataFrame(columns, dtype=object)).to_html()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert cells[::3] == ["0.3000", "0.0093", ""]
    assert cells[1::3] == ["192.8", "1", "4.08"] and cells[2::3] == ["0", "0.75", "1"]


def test_curves_that_agree_are_both_seen():
    curve = pd.DataFrame({"predicted": [0.1, 0.2], "observed": [0.1, 0.2], "low": 0.0, "high": 1.0})
    ax = figures.reliability({"Platt": curve, "analytic": curve})
    sizes = [bars[0].get_markersize() for bars in ax.containers]
    assert sizes[0] > sizes[1]
    assert all(bars[0].get_markerfacecolor() == "none" for bars in ax.containers)


def test_panels_of_one_figure_have_colours_of_their_own_and_say_which_curve_is_meant():
    grid = np.array([0.1, 0.5]), np.array([0.2, 0.6])
    names = ["one", "other"]
    axes = [
        figures.truth_against_learned([0.1], [0.2], theory=grid, name=n, among=names, curve="mine")
        for n in names
    ]
    colours = {tuple(ax.collections[0].get_facecolor()[0][:3]) for ax in axes}
    assert len(colours) == 2 and "mine" in legend(axes[0])


def test_groups_are_drawn_with_their_intervals_and_the_wrong_ones_filled():
    table = pd.DataFrame(
        {
            "grouping": ["all", "genre", "genre"],
            "group": ["all pairs", "Noir", "Opera"],
            "ratio": [1.0, 2.0, np.inf],
            "low": [0.9, 1.5, 3.0],
            "high": [1.1, 2.5, np.inf],
            "true_ratio": [1.0, 1.9, 5.0],
            "verdict": ["", "overconfident", ""],
        }
    )
    ax = figures.by_group(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "all: all pairs", "genre: Noir", "genre: Opera"
    ]  # fmt: skip
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == [1.0, 2.0]
    assert [line.get_markerfacecolor() == "white" for line in points] == [True, False]
    bars = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert [0.9, 1.1] in bars and [1.5, 2.5] in bars and [3.0, 3.75] in bars


def test_rank_and_corp_curves_are_drawn_as_they_are():
    ranks = pd.DataFrame({"rank": [1, 2], "predicted": [0.3, 0.2], "observed": [0.2, 0.1]})
    ranks = ranks.assign(low=[0.1, 0.05], high=[0.3, 0.2])
    ax = figures.by_rank({"SASRec": ranks})
    np.testing.assert_array_equal(drawn(ax, "SASRec"), ranks[["rank", "predicted"]])
    curve = pd.DataFrame(
        {"predicted": [0.1, 0.5], "observed": [0.2, 0.4], "low": 0.05, "high": 0.6}
    )
    ax = figures.corp({"SASRec": curve}, log=False)
    np.testing.assert_array_equal(drawn(ax, "SASRec"), curve[["predicted", "observed"]])
    assert len(ax.collections) == 1


def test_times_and_fixed_points_are_drawn_as_given():
    steps = pd.DataFrame({"items": [1000, 10**6], "cpu s": [0.2, 3.0]})
    ax = figures.step_times({"softmax": steps}, marked=("known-truth", 1000))
    np.testing.assert_array_equal(drawn(ax, "softmax"), steps)
    assert "known-truth: 1,000 items" in legend(ax)
    prior = np.array([0.001, 0.1])
    ax = figures.fixed_points(prior, {"BCE": 5 * prior})
    np.testing.assert_array_equal(drawn(ax, "BCE"), np.c_[prior, 5 * prior])
    assert "calibrated" in legend(ax)
