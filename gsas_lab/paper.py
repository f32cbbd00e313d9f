"""The paper's numbers as tables: what it prints, to be laid beside what is measured here.

Petrov & Macdonald, RecSys 2023 (docs/paper.md). Systems are named as in `recipes`, metrics as in
`evidence.summary`. NaN stands where the paper gives no number. Figures are known only where its text
quotes them; nothing was read off a plot.
"""

import pandas as pd

from gsas_lab.errors import InputError

_METRICS = ["Recall@1", "Recall@10", "NDCG@10"]
_TABLE_3 = (  # as printed: Recall@1, Recall@10, NDCG@10, minutes; *: significantly worse than the best
    ("MovieLens-1M", "Popularity", "0.005* 0.036* 0.017* 0.0"),
    ("MovieLens-1M", "MF-BPR", "0.010* 0.075* 0.037* 0.1"),
    ("MovieLens-1M", "BERT4Rec", "0.058* 0.294 0.161* 86"),
    ("MovieLens-1M", "SASRec, softmax", "0.073 0.293 0.169 9"),
    ("MovieLens-1M", "SASRec", "0.046* 0.247* 0.131* 13"),
    ("MovieLens-1M", "gSASRec", "0.082 0.300 0.176 23"),
    ("Steam", "Popularity", "0.0077* 0.0529* 0.0268* 0.0"),
    ("Steam", "MF-BPR", "0.0071* 0.0393* 0.0206* 0.4"),
    ("Steam", "BERT4Rec", "0.0281 0.1379 0.0746 642"),
    ("Steam", "SASRec, softmax", "0.0280 0.1323* 0.0721* 80"),
    ("Steam", "SASRec", "0.0193* 0.1121* 0.0581* 32"),
    ("Steam", "gSASRec", "0.0283 0.1355 0.0735 58"),
    ("Gowalla", "Popularity", "0.0011* 0.0081* 0.0041* 0.1"),
    ("Gowalla", "MF-BPR", "0.0083* 0.0282* 0.0170* 2.1"),
    ("Gowalla", "BERT4Rec", "nan nan nan nan"),
    ("Gowalla", "SASRec, softmax", "nan nan nan nan"),
    ("Gowalla", "SASRec", "0.0505* 0.1831* 0.1097* 145"),
    ("Gowalla", "gSASRec", "0.0782 0.2590 0.1616 191"),
)


def table_1() -> pd.DataFrame:
    """Table 1: users, items and interactions of each data set."""
    rows = {
        "MovieLens-1M": (6_040, 3_416, 999_611),
        "Steam": (281_428, 13_044, 3_488_885),
        "Gowalla": (86_168, 1_271_638, 6_397_903),
    }
    return _by_name(rows, "data set", ["users", "items", "interactions"])


def table_2() -> pd.DataFrame:
    """Table 2: NDCG@10 of two architectures by (data set, system); RQ1.

    "SASRec" and "BERT4Rec, BCE" have one negative, the other two softmax over all items.
    """
    systems = ("SASRec", "SASRec, softmax", "BERT4Rec, BCE", "BERT4Rec")
    values = {
        "MovieLens-1M": (0.131, 0.169, 0.123, 0.161),
        "Steam": (0.0581, 0.0721, 0.0513, 0.0746),
    }
    rows = {
        (data, system): value
        for data, row in values.items()
        for system, value in zip(systems, row, strict=True)
    }
    index = pd.MultiIndex.from_tuples(rows, names=["data set", "system"])
    return pd.DataFrame({"NDCG@10": list(rows.values())}, index)


def table_2_effects() -> pd.DataFrame:
    """Table 2's percentages, as printed: the change of NDCG@10 from one system to another.

    Columns: data set, what (sampling and loss, or architecture), from, to, effect (%), significant.
    """
    changes = (
        ("sampling and loss", "SASRec", "SASRec, softmax"),
        ("sampling and loss", "BERT4Rec, BCE", "BERT4Rec"),
        ("architecture", "SASRec", "BERT4Rec, BCE"),
        ("architecture", "SASRec, softmax", "BERT4Rec"),
    )
    printed = {
        "MovieLens-1M": "+29.0* +30.8* -6.1 -4.7",
        "Steam": "+24.1* +45.4* -11.7* +3.4*",
    }
    rows = [
        (data, *change, float(cell.rstrip("*")), cell.endswith("*"))
        for data, row in printed.items()
        for change, cell in zip(changes, row.split(), strict=True)
    ]
    columns = ["data set", "what", "from", "to", "effect", "significant"]
    return pd.DataFrame(rows, columns=columns)


def table_3() -> pd.DataFrame:
    """Table 3: metrics and minutes of training by (data set, system); RQ5.

    On Gowalla, BERT4Rec and SASRec with softmax are infeasible: over 100 GB of GPU memory. Choose a
    data set with .loc["MovieLens-1M"].
    """
    cells = [[float(cell.rstrip("*")) for cell in row.split()] for *_, row in _TABLE_3]
    index = pd.MultiIndex.from_tuples([row[:2] for row in _TABLE_3], names=["data set", "system"])
    return pd.DataFrame(cells, index, [*_METRICS, "minutes"])


def table_4() -> pd.DataFrame:
    """Table 4: what recent papers report on MovieLens-1M, and gSASRec."""
    rows = {
        "DuoRec": (0.294, 0.168),
        "ALBERT4Rec": (0.300, 0.165),
        "CBiT": (0.301, 0.169),
        "gSASRec": (0.300, 0.176),
    }
    return _by_name(rows, "system", ["Recall@10", "NDCG@10"])


def later_results() -> pd.DataFrame:
    """MovieLens-1M under the same protocol, reported elsewhere since; by (source, system).

    "Turning Dross Into Gold Loss" (RecSys 2023) and gSASRec's PyTorch port. Minutes of training, on
    their machines.
    """
    dross, port = "Turning Dross Into Gold Loss", "gSASRec's PyTorch port"
    nan = float("nan")
    rows = {
        (dross, "SASRec, softmax"): (nan, 0.3152, 0.1821, 540 / 60, 63),
        (dross, "SASRec, 3,000 negatives shared"): (nan, 0.3159, 0.1857, 769 / 60, 85),
        (dross, "BERT4Rec"): (nan, 0.2843, 0.1537, nan, nan),
        (dross, "SASRec"): (nan, 0.2500, 0.1341, nan, nan),
        (port, "gSASRec"): (0.0754, 0.3003, 0.1726, nan, nan),
        (port, "SASRec"): (0.0442, 0.2392, 0.1259, nan, nan),
    }
    index = pd.MultiIndex.from_tuples(rows, names=["source", "system"])
    return pd.DataFrame(list(rows.values()), index, [*_METRICS, "minutes", "epochs"])


def figure_1_sums() -> pd.Series:
    """Figure 1: Σp over the catalogue for user 963 of MovieLens-1M; section 4.

    Sampled softmax has 16 negatives. The text adds that SASRec's ranks 1 … 25 are almost 1.
    """
    sums = {"SASRec": 338.03, "SASRec, sampled softmax": 152.3, "BERT4Rec": 1.0, "gSASRec": 1.06}
    return pd.Series(sums, name="Σp").rename_axis("system")


def figure_2_points() -> pd.DataFrame:
    """Figure 2: mean predicted probability@K on MovieLens-1M, where 6.2.2 quotes it.

    SASRec has no number: "very close to 1 for all ranks less than 100". k of the first row is that
    of the quoting sentence; see docs/paper.md.
    """
    rows = [("gSASRec", 128, 0.5, 1, 0.57), ("gSASRec", 256, 1.0, 1, 0.13)]
    return pd.DataFrame(rows, columns=["system", "k", "t", "cutoff", "predicted"])


def figure_3() -> pd.DataFrame:
    """Figure 3: gSASRec's NDCG@10 on MovieLens-1M, k down and t across; RQ3.

    6.2.3 quotes two of the 25 cells. The change from one to the other, +25 %, is significant
    (Bonferroni). All else is NaN, k = 256 included: its numbers in 6.2.4 and Table 3 are not said
    to be this figure's, and SASRec's differ (docs/paper.md).
    """
    k, t = pd.Index([1, 4, 16, 64, 256], name="k"), pd.Index([0, 0.25, 0.5, 0.75, 1], name="t")
    table = pd.DataFrame(float("nan"), k, t)
    table.loc[1, 0], table.loc[1, 1] = 0.126, 0.158
    return table


def figure_4() -> pd.DataFrame:
    """Figure 4: two architectures, three losses, MovieLens-1M, where 6.2.4 quotes it; RQ4.

    gBCE has t = 1. 9 of 30 points. Beside k = 256 the text names no architecture; the sentences
    before are about SASRec.
    """
    nan = float("nan")
    rows = [
        ("BERT4Rec", "gBCE", 4, 0.059, 0.154),
        ("BERT4Rec", "BCE", 4, 0.055, 0.150),
        ("BERT4Rec", "sampled softmax", 4, 0.046, 0.134),
        ("SASRec", "gBCE", 16, 0.0769, nan),
        ("SASRec", "BCE", 16, 0.0673, nan),
        ("SASRec", "sampled softmax", 16, 0.0635, nan),
        ("SASRec", "gBCE", 256, nan, 0.1674),
        ("SASRec", "BCE", 256, nan, 0.1703),
        ("SASRec", "sampled softmax", 256, nan, 0.1660),
    ]
    return pd.DataFrame(rows, columns=["architecture", "loss", "k", "Recall@1", "NDCG@10"])


def beside(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Our table and one of the paper's, joined on the system, the index of both.

    Two levels of columns: the metric, and "ours", "the paper's" and, where both have it,
    "difference", ours minus the paper's. Our rows in our order, then those that only the paper has.
    """
    for name, table in (("ours", ours), ("the paper's", paper)):
        if table.index.nlevels > 1 or not table.index.is_unique:
            raise InputError(
                f"Each system may stand once in a table that is compared, but {name} has several "
                f"rows of one: choose a data set first, as in table_3().loc['MovieLens-1M']."
            )
    rows = ours.index.append(paper.index.difference(ours.index, sort=False))
    ours, paper = ours.reindex(rows), paper.reindex(rows)
    columns = {}
    for name in [*ours, *paper.columns.difference(ours.columns, sort=False)]:
        if name in ours:
            columns[name, "ours"] = ours[name]
        if name in paper:
            columns[name, "the paper's"] = paper[name]
        if name in ours and name in paper:  # tables made to be read hold "" for no number
            columns[name, "difference"] = pd.to_numeric(ours[name], errors="coerce") - paper[name]
    return pd.DataFrame(columns)


def _by_name(rows: dict, name: str, columns: list[str]) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis(name)
