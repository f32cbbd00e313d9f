"""Arrays and tables -> matplotlib Axes. What a reader would quote is computed elsewhere.

Each function draws into `ax`, or into a new figure where `ax` is None, and returns the Axes. One
system has one colour and one marker in every figure and explorer, from the Okabe-Ito palette, which
colour-blind readers can tell apart; dashes mean theory, dots mean a reference.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

Arrays: TypeAlias = Mapping[str, ArrayLike]  # by system
Tables: TypeAlias = Mapping[str, pd.DataFrame]  # by system
Sums: TypeAlias = Mapping[str, float] | None  # by system


class Style(NamedTuple):
    """How one system looks: colour, matplotlib's marker and line."""

    colour: str
    marker: str
    line: str = "-"


_FIXED = {
    "SASRec": Style("#D55E00", "o"),
    "SASRec, sampled softmax": Style("#E69F00", "s"),
    "SASRec, softmax": Style("#0072B2", "D"),
    "gSASRec": Style("#009E73", "^"),
    "gSASRec, t = 1": Style("#CC79A7", "v"),
    "Popularity": Style("#999999", "X"),
    "BERT4Rec": Style("#56B4E9", "P"),
    "BERT4Rec, BCE": Style("#5B3A8C", "p"),
    "MF-BPR": Style("#8C7B00", "h"),
    "SASRec, shared negatives": Style("#B2182B", "d"),
    "BCE": Style("#D55E00", "o"),  # losses: as the systems that they make
    "gBCE": Style("#009E73", "^"),
    "sampled softmax": Style("#E69F00", "s"),
    "softmax": Style("#0072B2", "D"),
    "Theorem 5.1": Style("#000000", "", "--"),
    "truth": Style("#000000", "*"),
    "raw σ(s)": Style("#D55E00", "o"),
    "analytic": Style("#009E73", "^"),
    "temperature": Style("#E69F00", "s"),
    "Platt": Style("#0072B2", "D"),
    "isotonic": Style("#CC79A7", "v"),
    "SASRec, raw": Style("#D55E00", "o"),  # repaired: the system's colour, darker
    "SASRec, repaired": Style("#7A3600", "s"),
    "gSASRec, raw": Style("#009E73", "^"),
    "gSASRec, repaired": Style("#00604A", "v"),
    "P itself": Style("#000000", "*"),
}
_OTHERS = (  # whose colours no known system has
    Style("#22316C", "<"),
    Style("#6BA300", ">"),
    Style("#C2347C", "X"),
    Style("#17A2A2", "H"),
    Style("#9C6B4E", "8"),
)
BLUE, GREY = "#0072B2", "#666666"  # data without a system; references: the diagonal, a limit
CELLS = ("#7FA8D1", "#FFE945")  # of a map, low and high: light, so that black words stand out
MEMORY = {"laptop, 24 GiB": 24 * 2**30, "GPU, 80 GB": 80e9}  # bytes that scores must fit in


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: fixed for the systems of the notebooks, in turn for the others."""
    names = list(names)
    others = [name for name in names if name not in _FIXED]
    return {name: _FIXED.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def size(n_bytes: float) -> str:
    """Bytes in decimal units: 51.2e9 -> '51.2 GB'."""
    power = min(int(np.log10(max(n_bytes, 1) * 1.0005) // 3), 4)
    return f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def table(rows: pd.DataFrame) -> Any:
    """A table to be read: whole numbers with their thousands, others with four digits, no value
    left out; a column of proportions has as many decimals in each row. Values are not changed,
    only shown.
    """

    def told(value: Any) -> str:
        if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
            return ""
        if isinstance(value, list | tuple):  # an interval
            return f"[{', '.join(map(told, value))}]"
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
            return str(value)
        number = float(value)
        whole = np.isfinite(number) and number == round(number)
        text = f"{number:z,.0f}" if whole or abs(number) >= 1_000 else f"{number:.4g}"
        return f"{number:.1e}" if 0 < abs(number) < 1e-4 else text

    def aligned(value: Any, decimals: int) -> str:
        return f"{value:z.{decimals}f}" if told(value) else ""

    formats: dict[Any, Any] = {}
    for place, name in enumerate(rows.columns):
        texts = [text for text in map(told, rows.iloc[:, place]) if text]
        decimals = max((min(4, len(text.partition(".")[2])) for text in texts), default=0)
        below = all(re.fullmatch(r"-?0(\.\d+)?", text) for text in texts)
        sizes = [abs(float(text)) for text in texts if below and float(text)]
        below = below and min(sizes, default=0) >= 1e-3 and max(sizes) >= 0.01
        formats[name] = partial(aligned, decimals=decimals) if below and decimals else told
    return rows.style.format(formats)


def probability_by_rank(curves: Arrays, ax: Axes | None = None, sums: Sums = None) -> Axes:
    """Figure 1: predicted probability of one user's items by rank, (K,) for each system.

    sums: Σp over the whole catalogue, for the legend; 1 if p is the probability of one choice.
    """
    ax = _dress(ax, "rank of the item", "predicted probability")
    for name, style in styles(curves).items():
        prob = np.asarray(curves[name])
        label = name if sums is None else f"{name}:  Σp = {sums[name]:,.2f}"
        _line(ax, np.arange(1, len(prob) + 1), prob, style, label, max(1, len(prob) // 8))
    ax.set_ylim(-0.02, 1.04)
    ax.set_xticks([1, *(tick for tick in ax.get_xticks() if 1 < tick <= len(prob))])
    return _legend(ax)


def precision_vs_predicted(curves: Tables, ax: Axes | None = None, log: bool = False) -> Axes:
    """Figure 2: mean Precision@K against mean predicted probability@K, one point for each K.

    Tables of `calibration.precision_vs_predicted`; K = 1, 10 and 100 carry a marker. Dashes:
    Theorem 5.1, in the system's colour.
    """
    ax = _dress(ax, "mean Precision@K", "mean predicted probability@K", "xy" * log)
    for name, style in styles(curves).items():
        curve = curves[name].sort_values("cutoff")
        marked = np.flatnonzero(curve["cutoff"].isin([1, 10, 100]))
        _line(ax, curve["precision"], curve["predicted"], style, name, list(marked))
        first = curve.iloc[0]
        _note(ax, f"K = {first['cutoff']:.0f}", first["precision"], first["predicted"], (-3, 7))
        if "theory" in curve:
            line = curve.sort_values("precision")
            ax.plot(line["precision"], line["theory"], "--", color=style.colour, lw=1.5)
    if any("theory" in curve for curve in curves.values()):
        ax.plot([], [], "--", color=GREY, lw=1.5, label="Theorem 5.1")
    points = pd.concat(list(curves.values()))[["precision", "predicted"]].to_numpy()
    if not log:
        ax.set(xlim=(0, points[:, 0].max() * 1.14), ylim=(0, 1.08))
    return _legend(_diagonal(ax, points))


def profit_by_cost(tables: Tables, ax: Axes | None = None) -> Axes:
    """What notifying earns at each cost, for 1,000 users; dots: what it promised.

    Tables of `decisions.by_cost`. Where there is the truth, solid lines are the expected profit, else
    the realised one with its 95 % interval. Promises beyond three times the largest profit run out of
    the figure.
    """
    ax = _dress(ax, "cost of a notification", "profit for 1,000 users", "x")
    most = 0.0
    for name, style in styles(tables).items():
        table = tables[name]
        came = 1000 * table["expected" if "expected" in table else "realised"]
        _line(ax, table["cost"], came, style, name, max(1, len(table) // 8))
        if "expected" not in table:
            ends = 1000 * table["low"], 1000 * table["high"]
            ax.fill_between(table["cost"], *ends, color=style.colour, alpha=0.15, lw=0)
        ax.plot(table["cost"], 1000 * table["promised"], ":", color=style.colour, lw=1.5)
        most = max(most, float(np.abs(came).max()))
    ax.plot([], [], ":", color=GREY, lw=1.5, label="promised")
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_ylim(-1.1 * most, 3 * most or 1)
    return _legend(ax)


def alarms(tables: Tables, ax: Axes | None = None, drift: float | None = None) -> Axes:
    """The larger CUSUM sum of each day on a log axis from 1 on, and the limit where it rings.

    Tables of `decisions.alarm` with its limit of 5; drift: the day from which on something else is
    true.
    """
    ax = _dress(ax, "day", "CUSUM of hits against Σp, 1 + sum (log scale)", "y")
    for name, style in styles(tables).items():
        table = tables[name]
        height = 1 + np.maximum(table["up"], table["down"])
        _line(ax, table["day"], height, style, name, max(1, len(table) // 12))
    ax.axhline(1 + 5, color=GREY, lw=1, ls="--", label="rings above")
    if drift is not None:
        ax.axvline(drift, color=GREY, lw=1, ls=":", label="the drift begins")
    ax.set_ylim(top=30 * ax.get_ylim()[1])  # room for the legend
    ax.legend(loc="upper left", ncols=2, fontsize=11, frameon=False)
    return ax


def reliability(curves: Tables, ax: Axes | None = None, log: bool = True) -> Axes:
    """Observed share of hits against predicted probability; bars are the 95 % interval.

    Tables of `calibration.reliability_curve`. On log axes a bin without a hit has no point: its
    bar rises from the floor to the upper end of its interval.
    """
    ax = _dress(ax, "predicted probability (mean of the bin)", "observed share of hits", "xy" * log)
    for place, (name, style) in enumerate(styles(curves).items()):
        curve = curves[name]
        x, y = curve["predicted"], curve["observed"]
        spread = [(y - curve["low"]).clip(0), (curve["high"] - y).clip(0)]
        look: dict[str, Any] = {
            "color": style.colour,
            "marker": style.marker,
            "lw": 1.2,
            "capsize": 2,
        }
        # Hollow, and each smaller than the one below it: curves that agree are seen both.
        bars = ax.errorbar(x, y, spread, ms=max(10 - 1.5 * place, 4), mfc="none", mew=1.6, **look)
        bars[0].set_label(name)
    points = pd.concat(list(curves.values()))[["predicted", "observed", "high"]]
    return _legend(_diagonal(ax, points.to_numpy()))


def corp(curves: Tables, ax: Axes | None = None, log: bool = True) -> Axes:
    """Isotonic reliability curves, and around the diagonal the band of what is calibrated.

    Tables of `instrument.corp_curve`. A curve outside its band, in its colour, is not calibrated there.
    """
    ax = _dress(ax, "predicted probability", "observed share of hits (isotonic)", "xy" * log)
    for name, style in styles(curves).items():
        curve = curves[name]
        x, band = curve["predicted"], (curve["low"], curve["high"])
        ax.fill_between(x, *band, color=style.colour, alpha=0.13, lw=0, step="mid")
        ax.plot(x, curve["observed"], style.line, color=style.colour, lw=2, label=name)
    points = pd.concat(list(curves.values()))[["predicted", "observed"]]
    return _legend(_diagonal(ax, points.to_numpy()))


def by_rank(curves: Tables, ax: Axes | None = None) -> Axes:
    """What is promised at each rank (line) and how often it comes (points, 95 % interval).

    Tables of `instrument.by_rank`.
    """
    ax = _dress(ax, "rank of the item", "probability (line), share of hits (points)")
    for name, style in styles(curves).items():
        curve = curves[name]
        ax.plot(curve["rank"], curve["predicted"], style.line, color=style.colour, lw=2, label=name)
        y = curve["observed"]
        spread = [(y - curve["low"]).clip(0), (curve["high"] - y).clip(0)]
        bars = ax.errorbar(curve["rank"], y, spread, ls="none", color=style.colour, capsize=2)
        bars[0].set(marker=style.marker, markerfacecolor="none")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _legend(ax)


def by_group(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Promised / observed of each group with its 95 % interval, on a log axis; 1 is calibrated.

    A table of `instrument.by_group`; filled: significant after Holm's correction. Stars: the truth,
    where it is known. A group without hits has its lower end alone.
    """
    if ax is None:
        size = (7.6, 1.6 + 0.32 * len(table))
        ax = plt.subplots(figsize=size, dpi=120, layout="constrained")[1]
    _dress(ax, "promised / observed (log scale)", "", "x")
    y = -np.arange(len(table))
    far = 1.5 * table["high"][table["high"] < np.inf].max()  # where an endless interval ends
    for place, row in zip(y, table.to_dict("records"), strict=True):
        colour = {"overconfident": "#D55E00", "underconfident": BLUE}.get(row["verdict"], GREY)
        ax.plot([row["low"], min(row["high"], far)], [place, place], color=colour, lw=2)
        if row["ratio"] < np.inf:
            fill = colour if row["verdict"] else "white"
            ax.plot(row["ratio"], place, "o", color=colour, mfc=fill, ms=8)
    if "true_ratio" in table:
        ax.plot(table["true_ratio"], y, "*", color="black", ms=7, label="truth", ls="none")
    ax.axvline(1, color=GREY, ls=":", lw=2, label="calibrated")
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.set_yticks(y, [f"{g}: {n}" for g, n in zip(table["grouping"], table["group"], strict=True)])
    ax.grid(False, axis="y")
    return _legend(ax)


def truth_against_learned(
    prior: ArrayLike,
    learned: ArrayLike,
    ax: Axes | None = None,
    theory: tuple[ArrayLike, ArrayLike] | None = None,
    name: str = "SASRec",
    log: bool = False,
    among: Iterable[str] = (),
    curve: str = "Theorem 5.1",
) -> Axes:
    """Learned σ(s) against the true P(i | history), arrays of one shape; a known-truth world only.

    theory: a grid of P and the fixed point's σ(s) on it, which is called `curve`. among: the names
    of the figure's panels, so that each has a colour of its own.
    """
    ax = _dress(ax, "true P(i | history)", "learned σ(s)", "xy" * log)
    x, y = np.ravel(np.asarray(prior)), np.ravel(np.asarray(learned))
    if log:  # a log axis has no place for 0
        x, y = x[(x > 0) & (y > 0)], y[(x > 0) & (y > 0)]
    colour = styles([*among] or [name])[name].colour
    alpha = float(np.clip(4000 / max(len(x), 1), 0.02, 0.4))
    ax.scatter(x, y, s=12, color=colour, alpha=alpha, lw=0, rasterized=True)
    ax.plot([], [], "o", color=colour, label=f"{name}: {len(x):,} pairs")
    if theory is not None:
        ax.plot(*map(np.asarray, theory), "--", color="black", lw=2, label=curve)
    return _legend(_diagonal(ax, np.stack([x, y])))


def training_history(
    history: pd.DataFrame | Tables, axes: Iterable[Axes] | None = None
) -> tuple[Axes, Axes]:
    """Loss and validation NDCG@10 by epoch, a table for each run; the best epoch is marked, its
    NDCG stands in the legend.
    """
    runs = {"this run": history} if isinstance(history, pd.DataFrame) else history
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(11, 4.4), dpi=120, layout="constrained")[1]
    left, right = axes
    _dress(left, "epoch", "training loss (nats)")
    _dress(right, "epoch", "validation NDCG@10")
    for name, style in styles(runs).items():
        _line(left, runs[name]["epoch"], runs[name]["loss"], style, name, [])
        seen = runs[name].dropna(subset="ndcg@10")  # not every epoch need be validated
        epoch, ndcg = seen["epoch"].to_numpy(), seen["ndcg@10"].to_numpy()
        best = [int(ndcg.argmax())] if len(seen) else []
        _line(right, epoch, ndcg, style, f"{name}: {ndcg.max():.4f}" if best else name, best)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_ylim(bottom=0)
    return _legend(left), _legend(right)


def learning_curves(histories: Tables, ax: Axes | None = None) -> Axes:
    """Validation NDCG@10 against the positions trained on so far, one run a line."""
    ax = _dress(ax, "positions trained on (millions)", "validation NDCG@10")
    for name, style in styles(histories).items():
        seen = histories[name]["positions"].cumsum() / 1e6
        _line(ax, seen, histories[name]["ndcg@10"], style, name, 1)
    ax.set(xlim=(0, None), ylim=(0, None))
    return _legend(ax)


def grid(
    table: pd.DataFrame,
    ax: Axes | None = None,
    reference: pd.DataFrame | None = None,
    marks: pd.DataFrame | None = None,
    what: str = "NDCG@10",
) -> Axes:
    """Figure 3: a metric over k and t as a heat map; `table` has k as index and t as columns.

    Each cell carries its value and, from tables of the same form, a mark after it ("*") and the
    reference (`paper.figure_3`) in brackets below. Cells without a value stay white.
    """
    ax = _dress(ax, "negatives k", "calibration t")
    colours = LinearSegmentedColormap.from_list("cells", CELLS)
    drawn = ax.imshow(table.to_numpy(float).T, cmap=colours, origin="lower", aspect="auto")
    text = table.map("{:.4f}".format).where(table.notna(), "")
    if marks is not None:
        text += marks
    if reference is not None:
        other = reference.reindex_like(table)  # which may hold another choice of k and t
        text += other.map("\n({:.4g})".format).where(other.notna(), "")
        what += " (in brackets: reference)"
    for (x, y), words in np.ndenumerate(text.to_numpy()):
        ax.text(x, y, words, ha="center", va="center", size=11)
    bar = ax.figure.colorbar(drawn, ax=ax)
    bar.set_label(what, size=12.5)
    bar.outline.set_visible(False)
    ax.set_xticks(range(len(table.index)), [f"{k:,.0f}" for k in table.index])
    ax.set_yticks(range(len(table.columns)), [f"{t:g}" for t in table.columns])
    ax.grid(False)
    return ax


def by_k(tables: Tables, ax: Axes | None = None, what: str = "NDCG@10") -> Axes:
    """Figure 4: a metric against the number of negatives, one line a system, k as index.

    Column "value"; where there are "low" and "high" as well, they bound a band.
    """
    ax = _dress(ax, "negatives k (log scale)", what)
    for name, style in styles(tables).items():
        table = tables[name].sort_index()
        _line(ax, table.index, table["value"], style, name, 1)
        if "low" in table:
            band = table["low"], table["high"]
            ax.fill_between(table.index, *band, color=style.colour, alpha=0.13, lw=0)
    every = sorted({k for table in tables.values() for k in table.index})
    ax.set_xscale("log", base=2)
    ax.set_xticks(every, [f"{k:,.0f}" for k in every])
    return _legend(ax)


def step_times(
    tables: Tables, ax: Axes | None = None, marked: tuple[str, int] | None = None
) -> Axes:
    """CPU seconds of a training step against the size of the catalogue, one line a system.

    Columns "items" and "cpu s"; marked: a catalogue's name and size.
    """
    ax = _dress(ax, "items (log scale)", "CPU seconds a step (log scale)", "xy")
    for name, style in styles(tables).items():
        _line(ax, tables[name]["items"], tables[name]["cpu s"], style, name, 1)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if marked is not None:
        ax.axvline(marked[1], color=GREY, ls=":", lw=2, label=f"{marked[0]}: {marked[1]:,} items")
    return _legend(ax)


def fixed_points(prior: ArrayLike, curves: Arrays, ax: Axes | None = None) -> Axes:
    """What σ(s) converges to against the true P, arrays over one grid of P, one line a loss."""
    ax = _dress(ax, "true probability P", "σ(s) when training has converged", "xy")
    for name, style in styles(curves).items():
        _line(ax, prior, curves[name], style, name, [])
    return _legend(_diagonal(ax, np.stack([np.asarray(prior), *map(np.asarray, curves.values())])))


def quality_and_time(table: pd.DataFrame, ax: Axes | None = None, what: str = "NDCG@10") -> Axes:
    """A metric against the seconds of training, one point a system, the index being its name.

    Columns: `what`, "seconds" and maybe its interval, such as "NDCG@10 low" and "NDCG@10 high". A
    system that is not trained stands at a second.
    """
    ax = _dress(ax, "seconds of training (log scale)", what, "x")
    for name, style in styles(table.index).items():
        row: Any = table.loc[name]
        x, y = max(float(row["seconds"]), 1.0), float(row[what])
        ax.plot(x, y, style.marker, color=style.colour, ms=10, label=name)
        if f"{what} low" in table:
            ax.plot([x, x], [row[f"{what} low"], row[f"{what} high"]], color=style.colour, lw=1.5)
    return _legend(ax)


def ladder(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A bar for each choice of protocol (`ladder.measure`), the first of them the line to compare
    with; pale bars are of other trainings.
    """
    ax = _dress(ax, "NDCG@10 (95 % interval over users)", "")
    for place, (_, row) in enumerate(table.iterrows()):
        again = row["of"] == "training"
        ax.barh(place, row["NDCG@10"], height=0.6, color=BLUE, alpha=0.45 if again else 1.0)
        ax.plot([row["low"], row["high"]], [place, place], color="#000000", lw=1.5)
        _note(ax, f"{row['NDCG@10']:.4f}", row["high"], place, (6, -4), boxed=True)
    ax.axvline(table["NDCG@10"].iloc[0], color=GREY, ls="--", lw=1.2)
    ax.set_yticks(range(len(table)), list(table.index))
    ax.set_xlim(0, table["high"].max() * 1.12)
    ax.invert_yaxis()
    return ax


def sum_of_probabilities(sums: Arrays, ax: Axes | None = None) -> Axes:
    """How Σp over the catalogue spreads over users, (U,) for each system; one row a system.

    Each row is scaled to its own peak; the marker is the median.
    """
    ax = _dress(ax, "Σp, the sum of one user's probabilities", "", "x")
    spread = np.log10(np.concatenate([np.asarray(values) for values in sums.values()]))
    low, high = min(spread.min(), 0) - 0.2, max(spread.max(), 0) + 0.2
    width = (high - low) / 90
    bins = 10 ** (width * (np.arange(low // width, high // width + 2) + 0.5))  # 1 amid its bin
    for row, (name, style) in enumerate(styles(sums).items()):
        heights = np.histogram(np.asarray(sums[name]), bins)[0]
        top = 0.72 * heights / max(heights.max(), 1) - row
        ax.stairs(top, bins, baseline=-row, fill=True, color=style.colour, alpha=0.45)
        ax.stairs(top, bins, baseline=-row, color=style.colour, lw=1.5)
        middle = float(np.median(np.asarray(sums[name])))
        ax.plot(middle, -row, style.marker, color=style.colour, ms=9, mec="white")
        _note(ax, f"median {middle:,.2f}", middle, -row, (6, -16))
    ax.axvline(1, color=GREY, ls=":", lw=1.5)
    _note(ax, "Σp = 1", 1, 0.84, (5, 0), GREY)
    ax.set_ylim(0.45 - len(sums), 1.05)
    ax.set_yticks(-np.arange(len(sums)), list(sums))
    ax.grid(False, axis="y")
    return ax


def popularity(counts: ArrayLike, ax: Axes | None = None) -> Axes:
    """Interactions of each item, (n_items,), by popularity rank; items without any are left out."""
    ax = _dress(ax, "popularity rank of the item", "interactions", "xy")
    ordered = np.sort(np.asarray(counts)[np.asarray(counts) > 0])[::-1]
    ax.plot(np.arange(1, len(ordered) + 1), ordered, color=BLUE, lw=2.5)
    return ax


def history_lengths(lengths: ArrayLike, ax: Axes | None = None, cut: int = 200) -> Axes:
    """Users by the length of their history, (U,), with the model's longest input marked."""
    lengths = np.asarray(lengths)
    ax = _dress(ax, "interactions of the user", "users", "x")
    low, high = max(lengths.min(), 1) * 0.9, max(lengths.max(), cut) * 1.15
    ax.hist(lengths, list(np.geomspace(low, high, 50)), color=BLUE)
    if lengths.min() == lengths.max():
        _note(ax, f"all have {lengths[0]:,}", lengths[0], len(lengths), (0, 6))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(_plain_count))
    ax.axvline(cut, color=GREY, ls=":", lw=2)
    ax.margins(y=0.25)
    longer = f"{(lengths > cut).sum():,} of {len(lengths):,} users have more"
    _note(ax, f"the model reads the last {cut:,}\n{longer}", cut, ax.get_ylim()[1], (-8, -34), GREY)
    return ax


def memory(n_items: ArrayLike, curves: Arrays, ax: Axes | None = None) -> Axes:
    """Bytes of a full loss's scores, (N,) for each case, against the catalogue, n_items (N,).

    Marked: what a laptop and a GPU hold, and the introduction's million items.
    """
    ax = _dress(ax, "items in the catalogue", "memory of the scores", "xy")
    n_items = np.asarray(n_items)
    million = np.flatnonzero(n_items == 1_000_000)
    for name, style in styles(curves).items():
        n_bytes = np.asarray(curves[name])
        label = name + "".join(f":  {size(n_bytes[at])} at a million items" for at in million)
        _line(ax, n_items, n_bytes, style, label, list(million))
    for name, limit in MEMORY.items():
        ax.axhline(limit, color=GREY, ls=":", lw=1.5)
        _note(ax, name, n_items.min(), limit, (1, 3), GREY)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    return _legend(ax)


def _dress(ax: Axes | None, x: str, y: str, log: str = "") -> Axes:
    """The look of every figure; white, so that it is legible on a dark page as well."""
    if ax is None:
        ax = plt.subplots(figsize=(7.6, 4.8), dpi=120, layout="constrained")[1]
    ax.figure.set_facecolor("white")
    ax.set(facecolor="white", axisbelow=True)
    ax.set_xlabel(x, fontsize=12.5)
    ax.set_ylabel(y, fontsize=12.5)
    for letter in log:  # "", "x" or "xy"
        ax.set(**{f"{letter}scale": "log"})
        axis = ax.xaxis if letter == "x" else ax.yaxis
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=11.5, color="#BBBBBB")
    ax.grid(True, color="#E3E3E3", lw=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#BBBBBB")
    return ax


def _plain(value: float, _position: object) -> str:
    """10,000 on a log axis, not 10⁴; powers only where zeros would have to be counted."""
    if value < 0.001:
        return f"$10^{{{np.log10(value):.0f}}}$"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _plain_count(value: float, _position: object) -> str:
    return f"{value:,.0f}"


def _line(
    ax: Axes, x: ArrayLike, y: ArrayLike, style: Style, label: str, every: int | list[int]
) -> None:
    (line,) = ax.plot(x, y, style.line, color=style.colour, lw=2, label=label)
    line.set(marker=style.marker, markersize=7, markevery=every)


def _note(
    ax: Axes,
    text: str,
    x: float,
    y: float,
    shift: tuple,
    colour: str = "#333333",
    boxed: bool = False,
) -> None:
    """boxed: lines behind it are hidden."""
    side = "center" if shift[0] == 0 else "left" if shift[0] > 0 else "right"
    box = {"boxstyle": "square,pad=0.1", "fc": ax.get_facecolor(), "ec": "none"} if boxed else None
    ax.annotate(
        text, (x, y), shift, textcoords="offset points", ha=side, size=11, color=colour, bbox=box
    )


def _diagonal(ax: Axes, values: np.ndarray) -> Axes:
    """Where prediction equals truth; on log axes also limits around the positive values."""
    low = 0.0
    if ax.get_xscale() == "log":
        low = max(float(values[values > 0].min()) / 1.5, 1e-7)
        ax.set(xlim=(low, 1.3), ylim=(low, 1.3))
    ax.autoscale(False)
    ax.plot([low, 1], [low, 1], ":", color=GREY, lw=2, label="calibrated")
    return ax


def _legend(ax: Axes) -> Axes:
    ax.legend(fontsize=11, frameon=False)
    return ax
