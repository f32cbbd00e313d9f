"""The paper's numbers agree with each other, with our protocol, and lie beside ours as they should.

What they say was read off its text; these tests find a slip of the pen.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsas_lab import paper
from gsas_lab.errors import InputError
from gsas_lab.runs import Settings

ML1M, ROOT = "MovieLens-1M", Path(__file__).parent.parent
PROSE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8").replace("−", "-")


def section(heading: str) -> dict[str, list[str]]:
    """The table below a heading of docs/paper.md: cells by the first of their row."""
    (text,) = (part for part in PROSE.split("\n## ") if part.startswith(heading))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    head, _, *body = filter(None, rows)
    assert all(len(row) == len(head) and all(row) for row in body)
    found = {name: rest for name, *rest in body}
    assert len(found) == len(body)
    return found


DISAGREEMENTS = section("Where the paper contradicts itself")


def change(after: float, before: float) -> float:
    return 100 * (after / before - 1)


def between(after: float, before: float, digits: int) -> tuple[float, float]:
    """The least and the largest change, in %, of two numbers that were rounded to `digits`."""
    half = 0.5 * 10**-digits
    return change(after - half, before + half), change(after + half, before - half)


def test_table_1_is_the_data_set_that_is_used_here():
    known = json.loads((ROOT / "data" / "registry.json").read_text())["ml-1m"]
    assert paper.table_1().loc[ML1M].to_dict() == {
        name: known[name] for name in ("users", "items", "interactions")
    }


def test_the_default_settings_follow_the_papers_protocol():
    settings = Settings()
    assert f"{settings.validation_users} random users validate" in PROSE
    assert f"hold {settings.max_length} items" in PROSE
    assert f"after {settings.patience} epochs without" in PROSE


@pytest.mark.parametrize("data, digits", [(ML1M, 3), ("Steam", 4)])
def test_table_2s_percentages_follow_from_its_ndcg(data, digits):
    ndcg = paper.table_2().loc[data, "NDCG@10"]
    effects = paper.table_2_effects().query("`data set` == @data")
    assert len(effects) == 4
    for row in effects.to_dict("records"):
        low, high = between(ndcg[row["to"]], ndcg[row["from"]], digits)
        assert low - 0.05 <= row["effect"] <= high + 0.05
        assert row["effect"] == pytest.approx(change(ndcg[row["to"]], ndcg[row["from"]]), abs=0.15)


def test_table_2s_stars_are_those_that_the_text_counts():
    effects = paper.table_2_effects()
    sampling = effects["what"] == "sampling and loss"
    assert effects["significant"][sampling].all() and sampling.sum() == 4
    architecture = effects[~sampling]
    assert architecture["significant"].sum() == 2  # "indistinguishable in 2 out of 4 cases"
    negative = architecture["effect"] < 0  # "3 cases out of four, 1 significant"
    assert negative.sum() == 3 and (negative & architecture["significant"]).sum() == 1


def test_tables_2_3_and_4_agree_where_they_overlap():
    two, three = paper.table_2()["NDCG@10"], paper.table_3()["NDCG@10"]
    shared = two.index.intersection(three.index)
    assert len(shared) == 6  # BERT4Rec with BCE is in Table 2 alone
    assert two[shared].tolist() == three[shared].tolist()
    ours = paper.table_3().loc[(ML1M, "gSASRec")]
    assert paper.table_4().loc["gSASRec"].to_dict() == ours[["Recall@10", "NDCG@10"]].to_dict()
    assert (paper.table_4()["NDCG@10"] > 0.17).tolist() == [False, False, False, True]


def test_table_3_has_no_number_only_where_training_is_infeasible():
    table = paper.table_3()
    assert table.shape == (18, 4)
    missing = table.index[table.isna().any(axis=1)]
    assert list(missing) == [("Gowalla", "BERT4Rec"), ("Gowalla", "SASRec, softmax")]
    assert table.loc[missing].isna().all(axis=None)
    metrics = table.drop(columns="minutes").dropna()
    assert (metrics["Recall@1"] < metrics["NDCG@10"]).all()
    assert (metrics["NDCG@10"] < metrics["Recall@10"]).all()


def test_gsasrec_is_best_or_second_and_no_best_system_has_a_star():
    cells = [[cell.endswith("*") for cell in row.split()[:3]] for *_, row in paper._TABLE_3]
    every = paper.table_3().drop(columns="minutes")
    stars = pd.DataFrame(cells, every.index, every.columns)
    for data, table in every.groupby("data set"):
        ranks = table.loc[data].rank(ascending=False)
        assert (ranks.loc["gSASRec"] <= 2).all()
        for metric, best in table.loc[data].idxmax().items():
            assert not stars.loc[(data, best), metric]
    plain = stars.xs("SASRec", level="system")
    assert plain.all(axis=None) and not stars.xs("gSASRec", level="system").any(axis=None)
    assert stars.sum().tolist() == [10, 10, 11]


@pytest.mark.parametrize(
    "data, system, baseline, digits, printed",
    [
        (ML1M, "gSASRec", "BERT4Rec", 3, 9.47),
        (ML1M, "gSASRec", "SASRec, softmax", 3, 4.1),
        (ML1M, "gSASRec", "SASRec", 3, 34),
        ("Steam", "gSASRec", "SASRec", 4, 26),
        ("Gowalla", "gSASRec", "SASRec", 4, 47),
    ],
)
def test_the_texts_percentages_follow_from_table_3(data, system, baseline, digits, printed):
    values = paper.table_3().loc[data, "NDCG@10"]
    low, high = between(values[system], values[baseline], digits)
    slack = 0.5 if isinstance(printed, int) else 0.0  # whole percents
    assert low - slack <= printed <= high + slack


@pytest.mark.parametrize("data, printed", [(ML1M, -73.2), ("Steam", -90.9)])
def test_the_texts_savings_of_time_follow_from_table_3_cut_off(data, printed):
    minutes = paper.table_3().loc[data, "minutes"]
    assert np.trunc(10 * change(minutes["gSASRec"], minutes["BERT4Rec"])) / 10 == printed


def test_on_steam_table_3_says_what_neither_text_says():
    ndcg = paper.table_3().loc["Steam", "NDCG@10"]
    assert round(change(ndcg["gSASRec"], ndcg["BERT4Rec"]), 2) == -1.47
    one, another = DISAGREEMENTS["gSASRec against BERT4Rec on Steam, NDCG@10"]
    assert "-1.46 %" in one and "-1.74 %" in another and "-1.47 %" in another


def test_figure_3_has_the_two_cells_that_the_text_quotes():
    table = paper.figure_3()
    assert table.shape == (5, 5) and table.notna().sum(axis=None) == 2
    first, last = table.loc[1, 0], table.loc[1, 1]
    assert change(last, first) == pytest.approx(25, abs=0.5)
    bert4rec = paper.table_3().loc[(ML1M, "BERT4Rec"), "NDCG@10"]
    assert round(change(last, bert4rec), 2) == -1.86


def test_figure_4s_percentages_are_the_texts_or_listed_as_disagreements():
    table = paper.figure_4().set_index(["architecture", "k", "loss"])
    assert len(table) == 9 and table.notna().sum(axis=None) == 12

    def percent(metric: str, architecture: str, k: int, loss: str) -> float:
        values = table.loc[(architecture, k), metric]
        return round(change(values[loss], values["gBCE"]), 1)

    assert percent("NDCG@10", "BERT4Rec", 4, "BCE") == -2.6
    assert percent("NDCG@10", "BERT4Rec", 4, "sampled softmax") == -13.0  # printed -12.9
    assert percent("Recall@1", "SASRec", 16, "BCE") == -12.5
    assert percent("Recall@1", "SASRec", 16, "sampled softmax") == -17.4  # printed -17.5
    assert percent("NDCG@10", "SASRec", 256, "BCE") == 1.7
    listed = pd.Series({what: another for what, (_, another) in DISAGREEMENTS.items()})
    assert percent("Recall@1", "BERT4Rec", 4, "sampled softmax") == -22.0
    assert "-22 %" in listed.filter(like="against gBCE, Recall@1").item()
    assert percent("NDCG@10", "SASRec", 256, "sampled softmax") == -0.8
    assert "-0.84 %" in listed.filter(like="256 negatives, sampled softmax").item()
    four = table.loc[("BERT4Rec", 4)]
    gain = [round(change(four.loc["gBCE", m], four.loc["BCE", m]), 1) for m in four]
    assert gain == [7.3, 2.7]
    assert "+2.7 %" in listed.filter(like="gBCE against BCE").item()


def test_figures_1_and_2_are_user_963s_sums_and_two_quoted_points():
    sums = paper.figure_1_sums()
    assert sums.to_dict() == {
        "SASRec": 338.03,
        "SASRec, sampled softmax": 152.3,
        "BERT4Rec": 1.0,
        "gSASRec": 1.06,
    }
    points = paper.figure_2_points()
    assert points[["t", "predicted"]].to_numpy().tolist() == [[0.5, 0.57], [1.0, 0.13]]
    assert sum("Figure 2" in what for what in DISAGREEMENTS) == 1


def test_other_papers_results_are_beside_the_paper_and_not_in_it():
    later = paper.later_results()
    assert later["NDCG@10"].max() == 0.1857 and later["minutes"].max() == pytest.approx(769 / 60)
    assert later.loc[("gSASRec's PyTorch port", "gSASRec")].dropna().tolist() == [
        0.0754,
        0.3003,
        0.1726,
    ]


def test_every_disagreement_names_both_sides():
    assert len(DISAGREEMENTS) == 17 and all(len(sides) == 2 for sides in DISAGREEMENTS.values())


def test_ours_lies_beside_the_papers_in_our_order():
    ours = pd.DataFrame(
        {"k": ["", 1], "NDCG@10": ["", 0.125]}, index=["SASRec, EMA", "SASRec"], dtype=object
    )
    table = paper.beside(ours, paper.table_3().loc[ML1M])
    assert list(table.index[:3]) == ["SASRec, EMA", "SASRec", "Popularity"]
    assert len(table) == 7
    assert list(table["NDCG@10"].columns) == ["ours", "the paper's", "difference"]
    row = table.loc["SASRec", "NDCG@10"]
    assert row.tolist() == [0.125, 0.131, pytest.approx(-0.006)]
    assert np.isnan(table.loc["SASRec, EMA", ("NDCG@10", "difference")])
    assert list(table["k"].columns) == ["ours"] and list(table["minutes"]) == ["the paper's"]


def test_tables_with_several_rows_of_a_system_are_refused():
    ours = pd.DataFrame({"NDCG@10": [0.1]}, index=["SASRec"])
    with pytest.raises(InputError, match="the paper's has several rows of one: choose a data set"):
        paper.beside(ours, paper.table_3())
    with pytest.raises(InputError, match="but ours has"):
        paper.beside(pd.concat([ours, ours]), paper.table_3().loc[ML1M])
