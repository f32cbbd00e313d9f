"""Arrays and tables -> matplotlib Axes. What a reader would quote is computed elsewhere.

Each function draws into `ax`, or into a new figure where `ax` is None, and returns the Axes. One
system has one colour and one marker in every figure and explorer, from the Okabe-Ito palette, which
colour-blind readers can tell apart; dashes mean theory, dots mean a reference.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike


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
    "Theorem 5.1": Style("#000000", "", "--"),
    "truth": Style("#000000", "*"),
}
_OTHERS = (Style("#56B4E9", "P"), Style("#8C7B00", "h"), Style("#5B3A8C", "p", "-."))
GREY = "#666666"  # references: the diagonal, a limit
MEMORY = {"laptop, 24 GiB": 24 * 2**30, "GPU, 80 GB": 80e9}  # bytes that scores must fit in
_MANY = 20_000  # points; above it hexagons say more than dots


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: fixed for the paper's systems, in turn for the others."""
    names = list(names)
    others = [name for name in names if name not in _FIXED]
    return {name: _FIXED.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def size(n_bytes: float) -> str:
    """Bytes in decimal units: 51.2e9 -> '51.2 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} TB" if n_bytes < 999.5 else f"{n_bytes:,.0f} TB"


def probability_by_rank(
    curves: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    sums: Mapping[str, float] | None = None,
) -> Axes:
    """Figure 1: predicted probability of one user's items by rank, (K,) for each system.

    sums: Σp over the whole catalogue, for the legend; 1 if p is the probability of one choice.
    """
    ax = _dress(ax, "rank of the item", "predicted probability")
    for name, style in styles(curves).items():
        prob = np.asarray(curves[name])
        label = name if sums is None else f"{name}:  Σp = {sums[name]:,.2f}"
        _line(ax, np.arange(1, len(prob) + 1), prob, style, label, max(1, len(prob) // 8))
    ax.set_ylim(-0.02, 1.04)
    return _legend(ax)


def precision_vs_predicted(
    curves: Mapping[str, pd.DataFrame], ax: Axes | None = None, log: bool = False
) -> Axes:
    """Figure 2: mean Precision@K against mean predicted probability@K, one point for each K.

    Tables of `calibration.precision_vs_predicted`. Dashes: Theorem 5.1, in the system's colour.
    """
    ax = _dress(ax, "mean Precision@K", "mean predicted probability@K", log=log)
    for name, style in styles(curves).items():
        curve = curves[name].sort_values("cutoff")
        marked = np.flatnonzero(curve["cutoff"].isin([1, 10, 100]))
        _line(ax, curve["precision"], curve["predicted"], style, name, list(marked))
        first = curve.iloc[0]
        _note(ax, f"K = {first['cutoff']:.0f}", first["precision"], first["predicted"])
        if "theory" in curve:
            ordered = curve.sort_values("precision")
            ax.plot(ordered["precision"], ordered["theory"], "--", color=style.colour, lw=1.5)
    if any("theory" in curve for curve in curves.values()):
        ax.plot([], [], "--", color=GREY, lw=1.5, label="Theorem 5.1")
    points = pd.concat(list(curves.values()))[["precision", "predicted"]]
    if not log:
        ax.set_xlim(0, points["precision"].max() * 1.14)
        ax.set_ylim(0, 1.04)
    return _legend(_diagonal(ax, points))


def reliability(
    curves: Mapping[str, pd.DataFrame], ax: Axes | None = None, log: bool = True
) -> Axes:
    """Observed share of hits against predicted probability; bars are the 95 % interval.

    Tables of `calibration.reliability_curve`. On log axes a bin without a hit has no point: its
    bar rises from the floor to the upper end of its interval.
    """
    ax = _dress(ax, "predicted probability (mean of the bin)", "observed share of hits", log=log)
    for name, style in styles(curves).items():
        curve = curves[name]
        low, high = curve["observed"] - curve["low"], curve["high"] - curve["observed"]
        ax.errorbar(
            curve["predicted"], curve["observed"], yerr=[low.clip(0), high.clip(0)], label=name,
            color=style.colour, marker=style.marker, ms=6, lw=1.2, elinewidth=1.2, capsize=2.5,
        )  # fmt: skip
    points = pd.concat(list(curves.values()))
    return _legend(_diagonal(ax, points[["predicted", "observed", "high"]]))


def truth_against_learned(
    prior: ArrayLike,
    learned: ArrayLike,
    ax: Axes | None = None,
    theory: tuple[ArrayLike, ArrayLike] | None = None,
    name: str = "SASRec",
    log: bool = False,
) -> Axes:
    """Learned σ(s) against the true P(i | history), arrays of one shape; a known-truth world only.

    theory: a grid of P and Theorem 5.1's σ(s) on it. Many points become hexagons.
    """
    ax = _dress(ax, "true P(i | history)", "learned σ(s)", log=log)
    x, y = np.ravel(np.asarray(prior)), np.ravel(np.asarray(learned))
    if log:  # a log axis has no place for 0
        x, y = x[(x > 0) & (y > 0)], y[(x > 0) & (y > 0)]
    colour, label = styles([name])[name].colour, f"{name}: {len(x):,} pairs"
    if len(x) > _MANY:
        shades = LinearSegmentedColormap.from_list(name, ["#EDEDED", colour])
        scale = "log" if log else "linear"
        ax.hexbin(
            x, y, gridsize=70, bins="log", mincnt=1, cmap=shades, xscale=scale, yscale=scale,
            linewidths=0.1, rasterized=True,
        )  # fmt: skip
        ax.scatter([], [], s=40, marker="h", color=colour, label=f"{label} (darker: more)")
    else:
        ax.scatter(x, y, s=12, color=colour, alpha=0.4, lw=0, rasterized=True, label=label)
    if theory is not None:
        ax.plot(*map(np.asarray, theory), "--", color="black", lw=2, label="Theorem 5.1")
    return _legend(_diagonal(ax, pd.DataFrame({"x": x, "y": y})))


def training_history(
    history: pd.DataFrame | Mapping[str, pd.DataFrame],
    axes: Iterable[Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Loss and validation NDCG@10 against the epoch, one table a run; the best epoch is marked."""
    runs = {"SASRec": history} if isinstance(history, pd.DataFrame) else history
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(11, 4.4), dpi=120, layout="constrained")[1]
    loss, ndcg = axes
    _dress(loss, "epoch", "training loss (nats)")
    _dress(ndcg, "epoch", "validation NDCG@10")
    for name, style in styles(runs).items():
        run = runs[name]
        loss.plot(run["epoch"], run["loss"], style.line, color=style.colour, lw=2, label=name)
        seen = run.dropna(subset="ndcg@10")  # not every epoch need be validated
        ndcg.plot(seen["epoch"], seen["ndcg@10"], style.line, color=style.colour, lw=2, label=name)
        if len(seen):
            best = seen.loc[seen["ndcg@10"].idxmax()]
            ndcg.plot(best["epoch"], best["ndcg@10"], style.marker, color=style.colour, ms=9)
            _note(ndcg, f"{best['ndcg@10']:.4f}", best["epoch"], best["ndcg@10"], (0, 8))
    ndcg.set_ylim(bottom=0)
    ndcg.margins(y=0.12)
    for ax in (loss, ndcg) if len(runs) > 1 else ():
        _legend(ax)
    return loss, ndcg


def sum_of_probabilities(sums: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """How Σp over the catalogue spreads over users, (U,) for each system; one row a system.

    Each row is scaled to its own peak; the dot is the median.
    """
    ax = _dress(ax, "Σp, the sum of one user's probabilities", "", log=True)
    spread = np.log10(np.concatenate([np.ravel(np.asarray(values)) for values in sums.values()]))
    bins = np.logspace(min(spread.min(), 0) - 0.2, max(spread.max(), 0) + 0.2, 90)
    for row, (name, style) in enumerate(styles(sums).items()):
        values = np.asarray(sums[name])
        heights = np.histogram(values, bins)[0]
        top = -row + 0.72 * heights / max(heights.max(), 1)
        ax.stairs(top, bins, baseline=-row, fill=True, color=style.colour, alpha=0.45)
        ax.stairs(top, bins, baseline=-row, color=style.colour, lw=1.5)
        middle = float(np.median(values))
        ax.plot(middle, -row, style.marker, color=style.colour, ms=9, mec="white", zorder=4)
        _note(ax, f"median {middle:,.4g}", middle, -row, (0, -17))
    ax.axvline(1, color=GREY, ls=":", lw=1.5)
    _note(ax, "Σp = 1", 1, 0.84, (5, 0), GREY)
    ax.set_yscale("linear")
    ax.set_yticks(-np.arange(len(sums)), list(sums))
    ax.set_ylim(-len(sums) + 0.45, 1.05)
    ax.grid(False, axis="y")
    return ax


def popularity(counts: ArrayLike, ax: Axes | None = None) -> Axes:
    """Interactions of each item, (n_items,), by popularity rank; items without any are left out."""
    ax = _dress(ax, "popularity rank of the item", "interactions", log=True)
    ordered = np.sort(np.asarray(counts))[::-1]
    ordered = ordered[ordered > 0]
    ax.plot(np.arange(1, len(ordered) + 1), ordered, color=_FIXED["SASRec, softmax"].colour, lw=2.5)
    return ax


def history_lengths(lengths: ArrayLike, ax: Axes | None = None, cut: int = 200) -> Axes:
    """Users by the length of their history, (U,), with the model's longest input marked."""
    lengths = np.asarray(lengths)
    ax = _dress(ax, "interactions of the user", "users")
    bins = np.geomspace(max(lengths.min() * 0.9, 0.9), max(lengths.max(), cut) * 1.15, 50)
    ax.hist(lengths, bins, color=_FIXED["SASRec, softmax"].colour)
    ax.set_xscale("log")
    ax.axvline(cut, color=GREY, ls=":", lw=2)
    note = f"the model reads the last {cut:,}\n{(lengths > cut).sum():,} of {len(lengths):,} users have more"
    ax.annotate(
        note, (cut, 1), (-8, -6), xycoords=("data", "axes fraction"), va="top", ha="right",
        textcoords="offset points", fontsize=11, color=GREY,
    )  # fmt: skip
    ax.margins(y=0.25)
    return ax


def memory(n_items: ArrayLike, curves: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Bytes of a full loss's scores, (N,) for each case, against the catalogue, n_items (N,).

    Marked: what a laptop and a GPU hold, and the introduction's million items.
    """
    ax = _dress(ax, "items in the catalogue", "memory of the scores", log=True)
    n_items = np.asarray(n_items)
    cycle = [_FIXED[name] for name in ("SASRec, softmax", "SASRec", "gSASRec", "SASRec, sampled softmax")]
    for (name, n_bytes), style in zip(curves.items(), cycle, strict=False):
        ax.plot(n_items, n_bytes, color=style.colour, lw=2.5, label=name)
        for index in np.flatnonzero(n_items == 1_000_000):
            value = float(np.asarray(n_bytes)[index])
            ax.plot(1e6, value, style.marker, color=style.colour, ms=9)
            _note(ax, size(value), 1e6, value, (10, -12), left=True)
    for name, limit in MEMORY.items():
        ax.axhline(limit, color=GREY, ls=":", lw=1.5)
        _note(ax, name, n_items.min(), limit, (0, 3), GREY, left=True)
    ax.yaxis.set_major_formatter(lambda value, _: size(value))
    return _legend(ax)


def _dress(ax: Axes | None, x: str, y: str, log: bool = False) -> Axes:
    """The look of every figure; white, so that it is legible on a dark page as well."""
    if ax is None:
        ax = plt.subplots(figsize=(7.6, 4.8), dpi=120, layout="constrained")[1]
    ax.figure.set_facecolor("white")
    ax.set_facecolor("white")
    ax.set_xlabel(x, fontsize=12.5)
    ax.set_ylabel(y, fontsize=12.5)
    if log:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.tick_params(labelsize=11.5, color="#BBBBBB")
    ax.grid(True, color="#E3E3E3", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#BBBBBB")
    return ax


def _line(ax: Axes, x, y, style: Style, label: str, every) -> None:
    ax.plot(
        x, y, style.line, color=style.colour, lw=2, marker=style.marker, ms=7, markevery=every,
        label=label,
    )  # fmt: skip


def _note(ax: Axes, text: str, x, y, shift=(8, 0), colour="#333333", left: bool = False) -> None:
    side = "left" if left or shift[0] else "center"
    ax.annotate(
        text, (x, y), shift, textcoords="offset points", ha=side, fontsize=11, color=colour
    )


def _diagonal(ax: Axes, values: pd.DataFrame) -> Axes:
    """Where prediction equals truth; on log axes also limits around the positive values."""
    low = 0.0
    if ax.get_xscale() == "log":
        positive = values.where(values > 0)
        low = float(positive.min().min()) / 1.5
        ax.set(xlim=(low, 1.3), ylim=(low, 1.3))
    ax.plot([low, 1], [low, 1], ":", color=GREY, lw=2, label="calibrated", scalex=False, scaley=False)
    return ax


def _legend(ax: Axes) -> Axes:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=11, frameon=False)
    return ax
