"""The committed evidence -> README's tables, docs/reproduction.md and docs/overconfidence.png.

Nothing is trained or measured here: each number is read from outputs/reference, the paper's from
paper.py. A verdict follows one rule, `verdict`.
"""

import io
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsas_lab import files, ledger, metrics, paper, results
from gsas_lab.errors import InputError

README = files.ROOT / "README.md"
REPORT = files.ROOT / "docs" / "reproduction.md"
PICTURE = files.ROOT / "docs" / "overconfidence.png"
STRONG = "ml-1m/strong", "gSASRec, strong"
ML = "MovieLens-1M"
_METRICS = {"Recall@1": 1, "Recall@10": 10, "NDCG@10": 10}  # their cutoffs
_FACTOR = 1.5  # between two probabilities, or sums of them, that count as one


def write() -> list[Path]:
    """All three, from what is committed -> what was written."""
    for path, content in ((README, readme()), (REPORT, report())):
        files.write(path, content.encode())
    if not picture_curves():
        return [README, REPORT]
    files.write(PICTURE, picture())
    return [README, REPORT, PICTURE]


# --- what is read ---------------------------------------------------------------------------------


@cache
def _folder(name: str) -> results.Results:
    return results.load(results.REFERENCE / name)


class System:
    """One system of a folder: its trainings, which differ in seed alone."""

    def __init__(self, folder: str, name: str):
        self.folder, self.found = folder, _folder(folder)
        self.names = self.found.systems[name]
        self.rows = self.found.table.loc[self.names]

    @property
    def seeds(self) -> int:
        return len(self.names)

    def mean(self, what: str) -> float:
        """Of a column of results.csv, over the seeds that have it; NaN where none has."""
        return float(self.rows[what].mean()) if what in self.rows else np.nan

    def users(self, what: str = "NDCG@10") -> np.ndarray:
        """A metric of every test user in each training: (seeds, n_users)."""
        of = metrics.ndcg if what.startswith("NDCG") else metrics.recall
        return np.stack([of(self.found.ranks[name], _METRICS[what]) for name in self.names])

    def interval(self, what: str) -> tuple[float, float]:
        """95 % of test users, each averaged over the seeds."""
        return metrics.bootstrap_interval(self.users(what).mean(axis=0))

    def written(self, what: str) -> str:
        values = self.rows[what.lower()]
        spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
        return f"{values.mean():.4f}{spread}"

    @property
    def cost(self) -> str:
        """Seconds of the quickest training: the others ran beside other work."""
        row = self.rows.sort_values("training seconds").iloc[0]
        threads = re.search(r"(\d+) threads?\b", str(row["trained on"]))
        one = " †" if threads and threads[1] == "1" else ""
        return f"{row['training seconds']:,.0f}{one}" if row["training seconds"] else ""

    @property
    def link(self) -> str:
        return f"{_times(self.seeds)}, [{self.folder}](../outputs/reference/{self.folder})"


def _system(folder: str, name: str) -> System | None:
    """Of that name, with any number of passes: the one with the most seeds, and of several such the
    one with the highest mean validation NDCG@10.
    """
    if not (results.REFERENCE / folder / "sweep.json").exists():
        return None
    forms = re.compile(re.escape(name) + r"(, \d+ passes)?( \(to \d+ passes\))?")
    found = [System(folder, each) for each in _folder(folder).systems if forms.fullmatch(each)]
    return max(found, key=lambda s: (s.seeds, s.mean("validation ndcg@10")), default=None)


def _needed(folder: str, name: str) -> System:
    found = _system(folder, name)
    if found is None:
        raise InputError(f"{results.REFERENCE / folder} has no {name}: make evidence first.")
    return found


def _times(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


# --- README ---------------------------------------------------------------------------------------


def readme() -> str:
    """README.md with each block between "<!-- name -->" and "<!-- /name -->" written anew."""
    text = README.read_text(encoding="utf-8")
    for name, block in {
        "systems": systems_table(),
        "strong": strong(),
        "difference": difference(),
        "larger": larger_catalogues(),
        "known-truth": known_truth_table(),
        "figure3": figure_3_table(),
        "t": what_k_and_t_do(),
        "table2": table_2_effects(),
    }.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = before + start + block + end + rest.partition(end)[2]
    return text


_SYSTEMS = (  # label, where from, the name there, the name in the paper's Table 3
    ("Popularity", "table3", "Popularity", "Popularity"),
    ("MF-BPR", "table3", "MF-BPR", "MF-BPR"),
    ("BERT4Rec", "table3", "BERT4Rec", "BERT4Rec"),
    ("BERT4Rec, BCE", "table2-seeds", "BERT4Rec, BCE", ""),
    ("SASRec", "table3", "SASRec", "SASRec"),
    ("SASRec, sampled softmax", "figure1", "SASRec, sampled softmax", ""),
    ("SASRec, softmax", "table3", "SASRec, softmax", "SASRec, softmax"),
    ("SASRec, negatives shared by a window", "table3", "SASRec, shared negatives", ""),
    ("gSASRec", "table3", "gSASRec", "gSASRec"),
    ("gSASRec, t = 1", "figure1", "gSASRec, t = 1", ""),
    ("**gSASRec, strong**", "strong", "gSASRec, strong", ""),
)


def systems_table() -> str:
    """MovieLens-1M's systems in the quick budget, and the strong recipe, as Markdown."""
    head = ["system", "k", "t", "seeds", *_METRICS, "mean Σp", "ΣP by inverting Theorem 5.1"]
    head += ["seconds", "the paper's R@1 / R@10 / NDCG@10"]
    theirs = paper.table_3().loc[ML]
    rows = []
    for label, folder, name, printed in _SYSTEMS:
        found = _system(f"ml-1m/{folder}", name)
        if found is None:
            rows += _older(label)
            continue
        shown = found.found.shown.loc[found.names[0]]
        passes = f", {found.rows['epochs'].iloc[0]} passes" if label == "SASRec, softmax" else ""
        total = _number(found.mean("mean sum of p"), "{:,.2f}")
        total += " ‡" if "sampled_softmax" in set(found.rows["loss"]) else ""
        cells = [label + passes, _number(shown["k"], "{:.0f}"), _number(shown["t"], "{:g}")]
        cells += [str(found.seeds), *(found.written(what) for what in _METRICS), total]
        cells += [_number(found.mean("recovered"), "{:.2f}"), found.cost]
        three = [float(theirs[what][printed]) for what in _METRICS] if printed else []
        cells.append(" / ".join(f"{value:.3f}".removeprefix("0") for value in three))
        rows.append(cells)
    return _markdown(head, rows)


def _older(system: str) -> list[list[str]]:
    """A system's row by summary.csv, which has one seed and no ranks."""
    table = pd.read_csv(results.REFERENCE / "ml-1m" / "summary.csv", index_col="system")
    if system not in table.index:
        return []
    row = table.loc[system]
    total = _number(row["Σp"], "{:,.2f}") + (" ‡" if "sampled softmax" in system else "")
    cells = [system, _number(row["k"], "{:.0f}"), "", "1"]
    cells += [*(_number(row[what], "{:.4f}") for what in _METRICS), total]
    return [[*cells, _number(row["ΣP inverted"], "{:.2f}"), _number(row["seconds"], "{:,.0f}"), ""]]


def strong() -> str:
    """The strong recipe under both protocols, in two sentences."""
    found, port = _needed(*STRONG), _system("ml-1m/strong-port", STRONG[1])
    row, values = found.rows.iloc[0], [f"{value:.4f}" for value in found.rows["ndcg@10"]]
    told = (
        f"The strong recipe ({row['block']} blocks, d = {row['d']}, {row['heads']} heads, "
        f"{row['epochs']} passes, the encoder's products in {row['precision']}) reached {', '.join(values)} with "
        f"{_times(found.seeds)}; it was chosen on validation users."
    )
    if port:
        passes = port.rows["epochs"].iloc[0]
        short = f", {passes} passes" if passes != row["epochs"] else ""
        told += (
            f" Under the public port's protocol, where nobody's second-last item is trained on, its "
            f"NDCG@10 is {port.written('NDCG@10')} ({_times(port.seeds)}{short})."
        )
    return told + "\n"


def difference() -> str:
    """gSASRec against SASRec, with its doubts, in a sentence."""
    one, two = _needed("ml-1m/table3", "SASRec"), _needed("ml-1m/table3", "gSASRec")
    test = metrics.compare({"SASRec": one.users(), "gSASRec": two.users()}, "SASRec").iloc[0]
    ends = [f"{low:.4f}–{high:.4f}" for low, high in (s.interval("NDCG@10") for s in (one, two))]
    doubts = f"paired t-test over users, p = {test['p_users']:.0g}"
    if not np.isnan(test["p_seeds"]):
        doubts += f"; Welch's over seeds, p = {test['p_seeds']:.1g}"
    return (
        f"The 95 % interval of SASRec's NDCG@10 over users is {ends[0]}, of gSASRec's {ends[1]}; "
        f"gSASRec's is higher by {test['difference']:.4f} ({doubts}).\n"
    )


def larger_catalogues() -> str:
    """gSASRec beside SASRec where there are more items than in MovieLens-1M, as Markdown."""
    head = ["data set", "users", "items", "SASRec, NDCG@10", "gSASRec, NDCG@10"]
    head += ["higher by", "p of users", "p of seeds", "p, Holm"]
    head += ["mean Σp, SASRec · gSASRec", "seconds, SASRec · gSASRec"]
    rows, tests = [], []
    for name in ("Beauty", "Epinions"):
        folder = f"{name.lower()}/table3"
        pair = _needed(folder, "SASRec"), _needed(folder, "gSASRec")
        users = dict(zip(("SASRec", "gSASRec"), (each.users() for each in pair), strict=True))
        test = metrics.compare(users, "SASRec").iloc[0]
        sizes = pair[0].found.record["runs"][pair[0].names[0]]["protocol"]
        cells = [
            f"[{name}](outputs/reference/{folder})",
            *(f"{sizes[n]:,}" for n in ("users", "items")),
        ]
        cells += [each.written("NDCG@10") for each in pair]
        cells += [f"{test['difference']:.4f} ({test['low']:.4f} to {test['high']:.4f})"]
        cells += [f"{test[p]:.1g}" if test[p] else "< 1e-300" for p in ("p_users", "p_seeds")]
        last = " · ".join(f"{each.mean('mean sum of p'):,.1f}" for each in pair)
        rows.append([*cells, "", last, " · ".join(each.cost for each in pair)])
        tests.append(test["p"])
    for row, p in zip(rows, metrics.holm(tests), strict=True):
        row[8] = f"{p:.2g}"
    return _markdown(head, rows)


def table_2_effects() -> str:
    """Table 2's effects on MovieLens-1M, ours and the paper's, in a sentence."""
    systems, printed = _systems_of_table_2(), paper.table_2_effects()
    printed = printed[printed["data set"] == ML]
    told = []
    for _, row in printed.iterrows():
        one, two = systems[row["from"]], systems[row["to"]]
        assert one and two
        ours = 100 * (two.mean("ndcg@10") / one.mean("ndcg@10") - 1)
        told.append(f"{row['from']} to {row['to']} {ours:+z.1f} % ({row['effect']:+.1f})")
    return (
        "**Architecture or loss** (Table 2, MovieLens-1M, `quick`; in brackets the paper): "
        f"{'; '.join(told)}.\n"
    )


def known_truth_table() -> str:
    """The known-truth world's systems (summary.csv), as Markdown."""
    path = results.REFERENCE / "known-truth" / "summary.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    names = {"Σp": "mean Σp", "ΣP inverted": "ΣP by inverting Theorem 5.1"}
    digits = {name: 4 for name in _METRICS} | {"Σp": 2, "ΣP inverted": 2, "t": 2, "seconds": 0}
    for name, places in digits.items():
        table[name] = [f"{float(cell):.{places}f}" if cell else "" for cell in table[name]]
    return _markdown([names.get(str(n), str(n)) for n in table], table.to_numpy().tolist())


def figure_3_table() -> str:
    """Figure 3 on MovieLens-1M in the quick budget, NDCG@10, as Markdown."""
    grid = _folder("ml-1m/figure3").grid()
    head = ["k", *(f"t = {t:g}" for t in grid)]
    rows = [[f"{k}", *(f"{value:.4f}" for value in row)] for k, row in grid.iterrows()]
    seeds = [_system("ml-1m/figure3-seeds", f"k = 1, t = {t:g}") for t in grid]
    if any(each and each.seeds > 1 for each in seeds):
        cells = [
            f"{each.written('NDCG@10')} ({each.seeds})" if each and each.seeds > 1 else ""
            for each in seeds
        ]
        rows.insert(1, ["1, mean of (so many) seeds", *cells])
    return _markdown(head, rows)


def _steps() -> tuple[np.ndarray, pd.DataFrame]:
    """Of Figure 3: does NDCG@10 rise from each k to the next, at each t (4, 5); and each t > 0
    against t = 0 at its k, `metrics.compare` with Holm's p over all 20.
    """
    found = _folder("ml-1m/figure3")
    users, asked = found.per_user(), []
    for _, part in found.table.groupby("k"):
        first, *others = part.sort_values("t").index
        asked.append(metrics.compare({name: users[name] for name in (first, *others)}, first))
    tests = pd.concat(asked, ignore_index=True)
    tests["p_holm"] = metrics.holm(tests["p"])
    return (found.grid().diff().dropna() > 0).to_numpy(), tests


def what_k_and_t_do() -> str:
    """Figure 3 in two sentences."""
    rises, tests = _steps()
    ahead, sure = tests["difference"] > 0, tests["p_holm"] < metrics.LEVEL
    return (
        f"More negatives rank better in {rises.sum()} of {rises.size} steps. t above 0 is ahead of "
        f"t = 0 in {ahead.sum()} of {len(tests)} cells, in {(ahead & sure).sum()} of them after "
        f"Holm's correction, and as surely behind in {(~ahead & sure).sum()}: trainings whose best "
        "pass, by 512 validation users, was the ninth of 24. They are kept.\n"
    )


def _number(value: Any, form: str) -> str:
    return "" if pd.isna(value) else form.format(value)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# --- the reproduction report ----------------------------------------------------------------------

_INTRODUCTION = """# What became of the paper's numbers

Written by `python -m gsas_lab documents` from the committed evidence ([outputs/reference](../outputs/reference)); a test makes it again and compares. MovieLens-1M unless said, test users, whole catalogue, seen items excluded, weights chosen on 512 validation users.

**Fast rows** have the paper's loss, k, t and catalogue with this project's encoder and schedule (`recipes.quick`, minutes on two cores), and all rows here are of that kind. **Faithful rows** (the paper's block, tables, dropout 0.5, patience of 200) stand in the queue, `make evidence`, and were not run yet.

**The rule.** *Reproduced*: the paper's number, as far as its last digit goes, lies in our 95 % interval over test users, each averaged over the seeds. *Above*, *not reached*: ours is higher, lower. For sums of probabilities and single predictions, which have no such interval, *reproduced* means within a factor of {factor}. With one seed another training may move our number by some {spread} (the largest standard deviation over seeds, `recipes.strong`'s included); two of Figure 3's 25 trainings fell 0.02 below their neighbours. *Not run*: there is no evidence yet.
"""


def verdict(theirs: float, low: float, high: float, digits: int = 3) -> str:
    """Is the paper's number, printed with so many digits, in our interval? See `_INTRODUCTION`."""
    half = 0.5 * 10.0**-digits
    if theirs + half < low:
        return "above"
    return "not reached" if theirs - half > high else "reproduced"


_OURS = "24 passes with this project's encoder and schedule, which are not the paper's"
_PASSES = (
    "validation NDCG@10 still rose in the last passes of 24, where the paper trained until 200 "
    "epochs brought nothing better; a longer training is in the queue"
)
_WHY = {  # (where, how the number's name begins): why it is not as printed
    ("Table 2", "SASRec, softmax"): _OURS,
    ("Table 2", "architecture: SASRec, softmax"): (
        "SASRec with softmax is above the paper here, BERT4Rec where the paper has it"
    ),
    ("Table 3", "SASRec, softmax"): _OURS,
    ("Figure 1", "gSASRec: "): "t = 0.75 leaves it above 1; the paper does not say which t it has",
    ("Figure 1", "SASRec, sampled softmax"): (
        "this loss learns differences of scores alone, so that any level of σ fits it as well"
    ),
    ("Figure 3", "k = 1"): _PASSES,
    ("Figure 3", "k = 256"): "without the cell of the note the range is 0.1719–0.1761",
    ("Figure 3", "a higher t"): "one seed a cell: differences are of the size that a seed makes",
}


class _Section:
    """Rows of one table or figure of the paper."""

    def __init__(self, title: str, note: str = ""):
        self.title, self.note = title, note
        self.rows: list[list[str]] = []

    def add(self, what: str, theirs: str, ours: str, told: str, where: str = "") -> None:
        if told not in ("reproduced", "not run"):
            told = f"{told}: {self.why(what)}"
        self.rows.append([what, theirs, ours, told, where])

    def why(self, what: str) -> str:
        """The reason for a row that is not reproduced, as far as it is known."""
        place = self.title.partition(":")[0]
        found = (why for (of, start), why in _WHY.items() if of in place and what.startswith(start))
        return next(found, "the reason is not known")

    def metric(
        self, name: str, found: System | None, what: str, theirs: float, digits: int = 3
    ) -> None:
        label, printed = f"{name}: {what}", f"{theirs:.{digits}f}"
        if found is None:
            self.add(label, printed, "", "not run")
            return
        low, high = found.interval(what)
        ours = f"{found.written(what)} ({low:.4f}–{high:.4f})"
        self.add(label, printed, ours, verdict(theirs, low, high, digits), found.link)

    def within(self, label: str, theirs: float, ours: float, found: System | None) -> None:
        """A sum of probabilities, or one."""
        if found is None or np.isnan(ours):
            self.add(label, f"{theirs:g}", "", "not run")
            return
        near = 1 / _FACTOR <= ours / theirs <= _FACTOR
        told = "reproduced" if near else ("above" if ours > theirs else "below")
        self.add(label, f"{theirs:g}", f"{ours:,.2f}", told, found.link)

    def __str__(self) -> str:
        head = ["number", "the paper", "ours (95 % interval)", "verdict", "evidence"]
        note = f"{self.note}\n\n" if self.note else ""
        return f"\n## {self.title}\n\n{_markdown(head, self.rows)}\n{note}".rstrip() + "\n"


def report() -> str:
    """docs/reproduction.md."""
    parts = [_table_1(), _table_2(), _table_3(), _figure_1(), _figure_2(), _figure_3()]
    parts += [_figure_4(), _protocols(), _not_at_hand()]
    trained = [
        found.table.loc[names, "ndcg@10"]
        for found in (_folder("ml-1m/table3"), _folder(STRONG[0]))
        for names in found.systems.values()
    ]
    spread = max(values.std(ddof=1) for values in trained if len(values) > 1)
    told = [row[3].partition(":")[0] for part in parts for row in part.rows]
    counts = pd.Series(told).value_counts(sort=False)
    summary = ", ".join(f"{verdict} {counts.get(verdict, 0)}" for verdict in _VERDICTS)
    head = _INTRODUCTION.format(factor=f"{_FACTOR:g}", spread=f"{spread:.4f}")
    return f"{head}\nOf {counts.sum()} numbers: {summary}.\n" + "".join(map(str, parts))


_VERDICTS = ("reproduced", "above", "not reached", "below", "not run")


def _table_1() -> _Section:
    part = _Section("Table 1: the data")
    runs = _folder("ml-1m/table3").record["runs"].values()
    (protocol,) = {tuple(run["protocol"][n] for n in _SIZES) for run in runs}
    for name, ours in zip(_SIZES, protocol, strict=True):
        theirs = int(paper.table_1()[name][ML])
        told = "reproduced" if ours == theirs else "below" if ours < theirs else "above"
        part.add(f"{ML}: {name}", f"{theirs:,}", f"{ours:,}", told, "the protocol of every run")
    return part


_SIZES = ("users", "items", "interactions")


def _table_2() -> _Section:
    part = _Section(
        "Table 2: architecture, or sampling and loss",
        "Effects in per cent have no interval here: *reproduced* means the same sign and within a "
        f"factor of {_FACTOR:g}, or less than 3 % where the paper finds nothing significant.",
    )
    systems = _systems_of_table_2()
    for name, theirs in paper.table_2().loc[ML]["NDCG@10"].items():
        part.metric(str(name), systems[str(name)], "NDCG@10", theirs)
    effects = paper.table_2_effects()
    for _, row in effects[effects["data set"] == ML].iterrows():
        label = f"{row['what']}: {row['from']} to {row['to']}"
        one, two = systems[row["from"]], systems[row["to"]]
        printed = f"{row['effect']:+.1f} %{'*' if row['significant'] else ''}"
        if one is None or two is None:
            part.add(label, printed, "", "not run")
            continue
        ours = 100 * (two.mean("ndcg@10") / one.mean("ndcg@10") - 1)
        near = 1 / _FACTOR <= ours / row["effect"] <= _FACTOR
        told = near or (not row["significant"] and abs(ours) < 3)
        other = "above" if ours > row["effect"] else "below"
        seeds = f"{_times(one.seeds)} and {_times(two.seeds)}"
        part.add(label, printed, f"{ours:+z.1f} %", "reproduced" if told else other, seeds)
    return part


def _systems_of_table_2() -> dict[str, System | None]:
    return {
        "SASRec": _system("ml-1m/table3", "SASRec"),
        "SASRec, softmax": _system("ml-1m/table3", "SASRec, softmax"),
        "BERT4Rec, BCE": _system("ml-1m/table2-seeds", "BERT4Rec, BCE"),
        "BERT4Rec": _system("ml-1m/table3", "BERT4Rec"),
    }


def _table_3() -> _Section:
    part = _Section(
        "Table 3: every system",
        "The paper's minutes (0, 0.1, 86, 9, 13, 23) are of another machine and of early stopping; "
        "ours stand in the README's table.",
    )
    for name, row in paper.table_3().loc[ML].iterrows():
        found = _system("ml-1m/table3", str(name))
        for what in _METRICS:
            part.metric(str(name), found, what, row[what])
    return part


def _figure_1() -> _Section:
    part = _Section(
        "Figure 1: Σp of user 963",
        "The paper does not give k and t of its gSASRec; with t = 1 ours has the sum that it has.",
    )
    sums = paper.figure_1_sums()
    for name, theirs in sums.items():
        found = _system("ml-1m/figure1", str(name))
        ours = found.mean("shown sum of p") if found else np.nan
        part.within(f"{name}: Σp", theirs, ours, found)
    exact = _system("ml-1m/figure1", "gSASRec, t = 1")
    ours = exact.mean("shown sum of p") if exact else np.nan
    part.within("gSASRec with t = 1: Σp", sums["gSASRec"], ours, exact)
    sasrec = _system("ml-1m/figure1", "SASRec")
    if curve := _curve(sasrec):
        part.add(
            "SASRec: p at rank 25", "almost 1", f"{curve[1]['shown'].iloc[24]:.3f}",
            "reproduced" if curve[1]["shown"].iloc[24] > 0.9 else "below", curve[0],
        )  # fmt: skip
    return part


def _curve(found: System | None) -> tuple[str, pd.DataFrame] | None:
    """The first of a system's trainings that has a curve, with where it stands."""
    if found is None:
        return None
    curves = ledger.curves(found.found.folder)
    for name in found.names:
        if name in curves:
            return f"[{name}](../outputs/reference/{found.folder})", curves[name]
    return None


def _figure_2() -> _Section:
    part = _Section(
        "Figure 2: predicted probability against precision",
        "The text has both 64 and 128 negatives for t = 0.5; ours has 64.",
    )
    points = paper.figure_2_points()
    for t, name in ((0.5, "gSASRec, k = 64, t = 0.5"), (1, "gSASRec, t = 1")):
        theirs = float(points.loc[points["t"] == t, "predicted"].iloc[0])
        found = _system("ml-1m/figure1", name)
        curve = _curve(found)
        ours = float(curve[1]["predicted"].iloc[0]) if curve else np.nan
        part.within(f"gSASRec, t = {t}: mean p of the first item", theirs, ours, found)
    if curve := _curve(_system("ml-1m/figure1", "SASRec")):
        last = float(curve[1]["predicted"].iloc[-1])
        told = "reproduced" if last > 0.9 else "below"
        part.add(
            "SASRec: mean p of the first 100", "very close to 1", f"{last:.3f}", told, curve[0]
        )
    return part


def _figure_3() -> _Section:
    part = _Section("Figure 3: k and t")
    before, after = (_system("ml-1m/figure3-seeds", f"k = 1, t = {t}") for t in (0, 1))
    for name, found, theirs in (("t = 0", before, 0.126), ("t = 1", after, 0.158)):
        part.metric(f"k = 1, {name}", found, "NDCG@10", theirs)
    if before and after:
        test = metrics.compare({"a": before.users(), "b": after.users()}, "a").iloc[0]
        told = (
            "reproduced" if test["relative"] > 25 / _FACTOR and test["p"] < 0.05 else "not reached"
        )
        ours = f"{test['relative']:+z.1f} %, p = {test['p']:.2g}"
        seeds = f"{_times(before.seeds)} and {_times(after.seeds)}"
        part.add("k = 1: from t = 0 to t = 1", "+25 %*", ours, told, seeds)
    grid = _folder("ml-1m/figure3").grid()
    link = "one seed, [ml-1m/figure3](../outputs/reference/ml-1m/figure3)"
    rises, tests = _steps()
    ours = f"{rises.sum()} of {rises.size} steps up in k gain"
    part.add("more negatives rank better", "at every t", ours, _share(rises), link)
    ahead, sure = tests["difference"] > 0, tests["p_holm"] < metrics.LEVEL
    ours = f"{ahead.sum()} of {len(tests)} cells ahead of t = 0, {(ahead & sure).sum()} by Holm"
    part.add("a higher t ranks better", "positive effect", ours, _share(ahead.to_numpy()), link)
    last = grid.loc[256]
    ours = f"{last.min():.4f}–{last.max():.4f}"
    told = "reproduced" if last.max() - last.min() < 0.01 else "not reached"
    part.add("k = 256: every t does well", "0.1674–0.1703", ours, told, link)
    part.note = (
        "One of the five cells at k = 256 stopped at a pass that 512 validation users took for the "
        "best (pass 9 of 24, t = 0.5: 0.1552): what the rule of choosing costs now and then. A claim about many cells counts as "
        "reproduced where four in five agree."
    )
    return part


def _share(rises: np.ndarray) -> str:
    return "reproduced" if rises.mean() >= 0.8 else "not reached"


def _figure_4() -> _Section:
    part = _Section("Figure 4: losses, where the text quotes it")
    folder = "ml-1m/figure4-quick"
    words = {"gBCE": "gbce", "BCE": "bce", "sampled softmax": "sampled_softmax"}
    table = _folder(folder).table
    for _, row in paper.figure_4().iterrows():
        model = {"SASRec": "sasrec", "BERT4Rec": "bert4rec"}[row["architecture"]]
        same = table[(table["model"] == model) & (table["loss"] == words[row["loss"]])]
        same = same[same["k"] == row["k"]]
        found = _system(folder, str(same.index[0])) if len(same) else None
        for what in ("Recall@1", "NDCG@10"):
            if not np.isnan(row[what]):
                digits = 4 if row["architecture"] == "SASRec" else 3
                name = f"{row['architecture']}, {row['loss']}, k = {row['k']}"
                part.metric(name, found, what, row[what], digits)
    return part


def _protocols() -> _Section:
    part = _Section(
        "Published since, and the port's protocol",
        'With `split="port"` nobody\'s second-last item is trained on. Above these stands '
        f"`recipes.strong`: {_needed(*STRONG).link}.",
    )
    later = paper.later_results()
    source = "gSASRec's PyTorch port"
    for system, row in later.loc[source].iterrows():
        found = _system("ml-1m/table3-port", str(system))
        for what in _METRICS:
            part.metric(f"{source}, {system}", found, what, row[what], 4)
    return part


def _not_at_hand() -> _Section:
    part = _Section(
        "Steam and Gowalla",
        "Their preprocessed files are not at hand, and nothing of them was run.",
    )
    for data in ("Steam", "Gowalla"):
        for name, row in paper.table_3().loc[data].iterrows():
            if not np.isnan(row["NDCG@10"]):
                part.add(f"{data}, {name}: NDCG@10", f"{row['NDCG@10']:.4f}", "", "not run")
    return part


# --- the picture ----------------------------------------------------------------------------------

_SHOWN = ("SASRec", "gSASRec")
_RANKS = 50


def picture_curves() -> dict[str, tuple[pd.DataFrame, float]]:
    """What the picture shows: by system its curve and the shown user's Σp, of its first training
    that has them (`ledger.curve_of`). Empty until both systems have one: rows that are older than
    curves have none, and the picture then stays as it is.
    """
    found = {}
    for name in _SHOWN:
        system = System("ml-1m/figure1", name)
        curves = ledger.curves(system.found.folder)
        run = next((each for each in system.names if each in curves), None)
        if run is None:
            return {}
        found[name] = curves[run], float(system.found.table["shown sum of p"][run])
    return found


def picture_key() -> str:
    """The checksum of the picture's data, which the picture bears as its Source."""
    data = picture_curves()
    told = [
        f"{name} {total!r}\n{curve.to_csv(index=False)}" for name, (curve, total) in data.items()
    ]
    return files.checksum("".join(told).encode())


def picture() -> bytes:
    """docs/overconfidence.png."""
    import matplotlib.pyplot as plt

    from gsas_lab import figures

    data = picture_curves()
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    figures.probability_by_rank(
        {name: curve["shown"].iloc[:_RANKS] for name, (curve, _) in data.items()},
        left,
        {name: total for name, (_, total) in data.items()},
    )
    figures.precision_vs_predicted({name: curve for name, (curve, _) in data.items()}, right)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=103, metadata={"Source": picture_key()})
    plt.close(figure)
    return content.getvalue()
