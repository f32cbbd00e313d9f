"""A million items: what a step takes, by arithmetic and as measured; a figure to be dragged.

The measurements are benchmarks/scale.py's, in outputs/reference/scale.
"""

from functools import partial

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsas_lab import results
from gsas_lab.figures import GREY, size, styles
from gsas_lab.lessons.explorers import Explorer, blank, driven, row, stepped

SHARING = {  # who draws -> independent draws in a step, of windows and positions
    "own negatives": lambda windows, positions: positions,
    "shared by the window": lambda windows, positions: windows,
    "shared by the batch": lambda windows, positions: 1,
}
MEASURED = {"own negatives": "own negatives"} | dict.fromkeys(
    ("shared by the window", "shared by the batch"), "shared by the batch"
)  # whose fit of seconds stands for it
WINDOWS, POSITIONS, D = 128, 9_200, 128  # the paper's batch, as long as Gowalla's histories
_BAR = styles(["SASRec"])["SASRec"].colour


def steps() -> pd.DataFrame:
    """One row a measured step: items, system, k, positions, s, cpu s, peak MB."""
    return pd.read_csv(results.REFERENCE / "scale" / "steps.csv")


def fitted(measured: pd.DataFrame, column: str = "cpu s") -> pd.DataFrame:
    """Of each system the fit column = factor · itemsᵉˣᵖᵒⁿᵉⁿᵗ, least squares of the logarithms: one row."""
    found = {}
    for system, part in measured.groupby("system", sort=False):
        exponent, factor = np.polyfit(np.log(part["items"]), np.log(part[column]), 1)
        found[system] = {"exponent": exponent, "factor": np.exp(factor)}
    return pd.DataFrame(found).T


def memory(
    n_items: float, k: int, positions: int = POSITIONS, d: int = D, whole: bool = False
) -> dict[str, float]:
    """Bytes that a step holds beside the encoder, float32, table tied. whole: the loss reads all items
    (softmax as usually written, all scores at once; a dense gradient); else sampled, with lazy Adam.
    """
    table = 4.0 * n_items * d
    asked = n_items if whole else min(k + 1, n_items)
    return {
        "table": table,
        "optimiser's moments": 2 * table,
        "gradient of the table": table if whole else 0.0,
        "scores and their gradient": 8.0 * positions * asked,
    }


def touched(n_items: float, k: int, sharing: str, positions: int = POSITIONS) -> float:
    """Rows of the table that a step changes, expected, positives and inputs left out."""
    draws = k * SHARING[sharing](WINDOWS, positions)
    return float(-n_items * np.expm1(draws * np.log1p(-1 / n_items)))


def noise(n_items: float, k: int, sharing: str, positions: int = POSITIONS) -> float:
    """Standard deviation of an item's push over its mean, where all positions push alike: √(1 / m),
    m = k · independent draws / n_items being how often a step draws the item independently.
    """
    return float(np.sqrt(n_items / (k * SHARING[sharing](WINDOWS, positions))))


def million_figure(
    n_items: float = 1_271_638, k: int = 256, sharing: str = "own negatives"
) -> go.Figure:
    """Memory of a step by softmax and by sampling, as bars; rows, seconds and noise in the title."""
    n_items = max(round(n_items), 2)
    rows = touched(n_items, k, sharing)
    fit = fitted(steps()).loc[MEASURED[sharing]]
    seconds = fit["factor"] * n_items ** fit["exponent"]
    sums = {
        "softmax over all items": memory(n_items, k, whole=True),
        sharing: memory(n_items, k),
    }
    figure = blank(
        f"{n_items:,} items, {sharing}: <b>{size(sum(sums[sharing].values()))}</b>, "
        f"{rows:,.0f} rows touched ({rows / n_items:.1%})",
        f"noise of an item's push {noise(n_items, k, sharing):.3g} of its mean; measured steps of "
        f"{steps()['windows'].iloc[0]} windows, fitted: {seconds:.2g} CPU seconds",
        "memory (GB, log scale)",
        "",
    )
    names, totals = list(sums), [sum(parts.values()) / 1e9 for parts in sums.values()]
    told = [
        ", ".join(f"{name} {size(part)}" for name, part in parts.items() if part)
        for parts in sums.values()
    ]
    figure.add_bar(
        x=totals, y=names, orientation="h", width=0.5, marker={"color": [GREY, _BAR]},
        text=told, textposition="inside", hovertemplate="%{y}: %{x:.3g} GB<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(type="log", range=[-4, 4])
    return figure.update_layout(height=330, margin={"t": 120})


def million_explorer() -> Explorer:
    """`million_figure` with |I|, k and who draws; statically, a slider over catalogues."""

    def live() -> widgets.Widget:
        controls = {
            "n_items": widgets.FloatLogSlider(
                1_271_638, min=3, max=9, step=0.05, description="items"
            ),
            "k": widgets.SelectionSlider(
                options=[2**power for power in range(14)], value=256, description="negatives k"
            ),
            "sharing": widgets.Dropdown(options=list(SHARING), description="draws"),
        }
        controls["n_items"].readout_format = ",.0f"
        return widgets.VBox([row(*controls.values()), driven(million_figure, controls)])

    def static() -> go.Figure:
        sizes = {"1,000": 1e3, "10,000": 1e4, "100,000": 1e5, "1.27 million": 1_271_638}
        sizes |= {"10 million": 1e7, "1 billion": 1e9}
        return stepped(partial(_of, 1024, "shared by the batch"), sizes, "items: ", "1.27 million")

    return Explorer(live, static)


def _of(k: int, sharing: str, n_items: float) -> go.Figure:
    return million_figure(n_items, k, sharing)
