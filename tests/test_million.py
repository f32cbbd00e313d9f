"""Claims about a million items: arithmetic against small simulations, and the committed evidence."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from gsas_lab import recipes, results
from gsas_lab.lessons import million


def test_the_papers_51_gigabytes_are_half_of_scores_and_gradient():
    parts = million.memory(1e6, 256, positions=64 * 200, whole=True)
    assert parts["scores and their gradient"] / 2 == pytest.approx(51.2e9)


@pytest.mark.parametrize("sharing", million.SHARING)
def test_rows_touched_and_noise_are_those_of_draws(sharing, monkeypatch):
    n_items, k, positions, windows = 50, 4, 24, 6
    monkeypatch.setattr(million, "WINDOWS", windows)
    rng, draws = np.random.default_rng(0), million.SHARING[sharing](windows, positions)
    drawn = rng.integers(0, n_items, (4000, draws * k))
    distinct = np.mean([len(np.unique(row)) for row in drawn])
    assert distinct == pytest.approx(million.touched(n_items, k, sharing, positions), rel=0.02)
    # Each draw stands for positions / draws of them, which all push alike.
    push = (drawn == 0).sum(1) * positions / draws
    assert push.std() / push.mean() == pytest.approx(
        million.noise(n_items, k, sharing, positions), rel=0.05
    )


def test_a_power_law_is_found_again():
    items = np.array([1e3, 1e4, 1e6])
    table = pd.DataFrame({"system": "a", "items": items, "cpu s": 3e-4 * items**0.25})
    fit = million.fitted(table).loc["a"]
    assert (fit["exponent"], fit["factor"]) == pytest.approx((0.25, 3e-4))


def test_the_evidence_says_what_the_notebook_says():
    fits = million.fitted(million.steps())["exponent"]
    assert fits["shared by the batch"] < fits["own negatives"] < 1
    assert fits["shared by the batch"] < fits["softmax"]
    ranked = pd.read_csv(results.REFERENCE / "scale" / "ranking.csv")
    assert ranked["scanned"].tolist() == (ranked["items"] >= 100_000).tolist()


def test_the_committed_training_is_the_recipes_and_its_tables_agree():
    folder = results.REFERENCE / "scale"
    record = json.loads((folder / "training.json").read_text("utf-8"))
    assert record["settings"] == asdict(recipes.million())
    passes = pd.read_csv(folder / "training.csv")
    assert len(passes) == record["metrics"]["epochs"] and passes["clock"].is_monotonic_increasing
    best = record["metrics"]["validation ndcg@10"]
    assert passes["ndcg@10"].max() == pytest.approx(best, abs=1e-6)
    assert passes.loc[passes["ndcg@10"] >= 0.98 * best, "clock"].min() < 3600
    assert record["clock"]["peak MB"] < 4000
    bins = pd.read_csv(folder / "probabilities.csv")
    gaps = (bins["predicted"] - bins["theory"]).abs().groupby(bins["of"]).max()
    assert gaps["P"] == pytest.approx(record["truth"]["max_binned"], abs=1e-4)
    assert gaps["σ(s)"] == pytest.approx(record["truth"]["max_told"], abs=1e-4)
    assert gaps["σ(s)"] < 0.05 < gaps["P"] < 0.08
    assert 0.9 < record["truth"]["ΣP told"] < 1.1


def test_the_readmes_seconds_are_those_of_the_benchmark_and_the_training():
    readme = (results.REFERENCE.parents[1] / "README.md").read_text("utf-8")
    steps = pd.read_csv(results.REFERENCE.parents[1] / "benchmarks" / "results.csv")
    steps = steps.set_index(["case", steps["what"].str.split(",").str[0]])["p50 s"]
    for kind in ("1024:shared-batch", "128:whole-catalogue"):
        ours, adamw = (steps[f"table:1271638:{kind}", of] for of in ("lazy_adam", "dense"))
        assert f"({ours:.2f} and {adamw:.2f} s" in readme
    record = json.loads((results.REFERENCE / "scale" / "training.json").read_text("utf-8"))
    passes = pd.read_csv(results.REFERENCE / "scale" / "training.csv")
    level = passes["ndcg@10"] >= 0.98 * record["metrics"]["validation ndcg@10"]
    minutes, gb = passes.loc[level, "clock"].min() / 60, record["clock"]["peak MB"] * 2**20 / 1e9
    assert (
        f"took {minutes:.0f} minutes on two cores, half" in readme and f"and {gb:.1f} GB" in readme
    )


@pytest.mark.parametrize("sharing", million.SHARING)
def test_the_explorer_shows_what_the_functions_say(sharing):
    figure = million.million_figure(1e6, 64, sharing)
    assert f"{million.touched(10**6, 64, sharing):,.0f} rows touched" in figure.layout.title.text
    assert sum(million.memory(10**6, 64).values()) / 1e9 == pytest.approx(figure.data[0].x[1])
    static = million.million_explorer().static()
    assert isinstance(static, go.Figure) and len(static.frames) == 6


def test_every_control_of_the_live_explorer_moves_the_figure():
    live = million.million_explorer().live()
    controls, figure = live.children[0].children, live.children[1]
    for control, value in zip(controls, (1e4, 8, "shared by the window"), strict=True):
        before = figure.layout.title.text
        control.value = value
        assert figure.layout.title.text != before
