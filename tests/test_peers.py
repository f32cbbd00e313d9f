"""What stands beside ours in benchmarks/peers.py ranks and learns as it should."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsas_lab import ranking, recipes, runs

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import peers


def test_the_first_ten_are_those_of_all_ranks(small_world):
    run = runs.train(replace(small_world, tied=False, block="paper"))
    test = run.data.split.test
    every = ranking.ranks(run.model, test, True)
    usual = peers.first_ten(run.model, test)
    # Where what is asked for was seen before, ours puts it back: the data set of the peers has no such.
    new = [target not in seen for target, seen in zip(test.targets, test.histories, strict=True)]
    assert sum(new) > 100 and set(usual) == set(range(1, 12))
    assert np.array_equal(usual[new], np.minimum(every, 11)[new])


@pytest.mark.parametrize("name", ["ours", "literal"])
def test_a_contestant_learns_and_is_told_its_seconds(small_world, monkeypatch, name):
    monkeypatch.setattr(
        peers, "settings", lambda: replace(recipes.quick(recipes.gsasrec(4), "ml-1m"), epochs=3)
    )
    monkeypatch.setattr(peers, "K", 4)
    monkeypatch.setattr(peers, "REACHED", (0.0, 2.0))
    found = peers.measured(name, 1.0)
    assert found["positions a pass"] == 300 * 10 - 50 and 0 < found["s to 0.0"] <= found["s"]
    assert found["s to 2.0"] is None and found["ndcg@10"] > 0


def test_the_readmes_table_is_the_benchmarks():
    readme = (peers.ROOT / "README.md").read_text("utf-8")
    table = pd.read_csv(peers.ROOT / "benchmarks" / "peers.csv")
    for _, row in table.iterrows():
        reached = [row["s to 0.15"], row["s to 0.17"]]
        told = (
            " · ".join(f"{s:.0f} s" for s in reached)
            if np.isfinite(reached).all()
            else "not reached"
        )
        seconds = f"{row['s a pass']:.3g} | {row['positions a pass']:,} | {told} | "
        assert f"{seconds}{row['ndcg@10']:.3f} ({row['passes']} passes" in readme
        assert f"| {row['s to rank all users']:.1f} s |" in readme
