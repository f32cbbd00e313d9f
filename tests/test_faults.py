"""Planted faults: what they do to true probabilities, and which measures see them."""

import numpy as np
import pandas as pd
import pytest

from gsas_lab import faults, results
from gsas_lab.errors import InputError
from gsas_lab.lessons import break_it

SMALL = {400: 2}


def test_hits_come_from_the_truth_and_all_faults_but_the_shift_keep_the_sum():
    prior, hit, late = faults.population(3_000)
    assert (hit.sum(axis=1) == 1).all() and late.sum() == 1_500
    np.testing.assert_allclose(prior.sum(axis=1), 1, rtol=1e-5)
    tenth = prior >= np.quantile(prior, 0.9)
    error = 5 * np.sqrt(prior[tenth].sum()) / tenth.sum()
    assert abs(hit[tenth].mean() - prior[tenth].mean()) < error
    for name in faults.FAULTS:
        said = faults.planted(name, prior, late)
        assert said.sum(axis=1, dtype=float).mean() == (
            pytest.approx(1, rel=1e-6) if name != "shift" else pytest.approx(1.19, abs=0.03)
        )
        assert (said is prior) == (name == "none")
    with pytest.raises(InputError, match="'slant' is no fault: choose one of none, shift"):
        faults.planted("slant", prior, late)


def test_a_shift_moves_the_mean_and_a_drift_moves_no_measure_without_groups():
    shift = faults.seen("shift", 4_000, 0, resamples=60)
    assert shift["detected"][["mean gap", "ECE", "by time"]].all()
    drift = faults.seen("drift", 4_000, 0, resamples=60)
    assert drift.loc["by time", "detected"] and not drift.loc["mean gap", "detected"]
    assert drift.loc["ECE", "truth"] < 0.2 * shift.loc["ECE", "truth"]
    away = "distance to truth"
    assert drift.loc[away, "truth"] > 0.5 * shift.loc[away, "truth"]


def test_the_table_goes_on_where_it_stopped_and_is_shown_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "SIZES", SMALL)
    monkeypatch.setattr(faults, "FAULTS", dict(list(faults.FAULTS.items())[:2]))
    path = faults.write_detection(tmp_path / "out")
    whole = path.read_bytes()
    table = pd.read_csv(path)
    assert list(table.columns) == faults.COLUMNS and set(table["fault"]) == {"none", "shift"}
    table[table["fault"] == "none"].to_csv(path, index=False)
    assert faults.write_detection(tmp_path / "out").read_bytes() == whole
    wide = faults.shown(table, 400)
    assert wide.loc["mean gap", "shift"] == 1 and wide.columns.tolist() == ["none", "shift"]
    with pytest.raises(InputError, match="no table for 7 users: choose one of 400"):
        faults.shown(table, 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: faults.population(0), "users must be 1"),
        (lambda: faults.population(2.5), "users must be 1"),
        (
            lambda: faults.planted("slope", np.full((2, 200), np.nan), np.zeros(2)),
            "between 0 and 1",
        ),
        (lambda: faults.planted("slope", np.zeros((2, 200)), np.zeros(2)), "between 0 and 1"),
        (lambda: faults.planted("slope", np.full((2, 9), 0.1), np.zeros(2)), r"\(2, 200\)"),
        (lambda: faults.detection(["none"], {30: 0}), "repeats must be 1"),
        (lambda: faults.shown(pd.DataFrame({"a": [1]}), 500), "has the columns fault, users"),
    ],
)
def test_a_mistake_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize("damage", [b"", b"<html>", b"fault,users\nshift,500\n", b"\xff\xfe\x00"])
def test_a_damaged_table_is_not_gone_on_with(tmp_path, damage):
    (tmp_path / "detection.csv").write_bytes(damage)
    with pytest.raises(InputError, match=r"detection\.csv.*delete it, to make it anew"):
        faults.write_detection(tmp_path)
    assert (tmp_path / "detection.csv").read_bytes() == damage


def test_break_it_moves_what_it_says_and_each_fault_moves_a_measure():
    of = break_it.bench()
    np.testing.assert_allclose(break_it.broken(of), of.prior, rtol=1e-4)
    tail = break_it.broken(of, tail=20)
    changed = ~np.isclose(tail, of.prior, rtol=1e-3)
    assert (changed.sum(axis=1) == 20).all()
    multiple = {
        name: break_it.against_chance(of, break_it.broken(of, **step))["multiple"]
        for name, step in break_it.STEPS.items()
    }
    assert (multiple["calibrated"] < 1).all()
    for name in ("shift by 1", "stretch by 1.3", "shrink to 0.7", "tail of 40 dropped"):
        assert multiple[name]["ECE"] > 2, name
    apart = multiple["groups apart by 0.5"]
    assert apart["worst genre"] > 2 and apart["ECE"] < 1
    assert multiple["tail of 20 dropped"]["log loss miscalibration"] > 2


def test_the_static_form_has_a_frame_for_each_step_and_the_live_one_four_sliders():
    explorer = break_it.break_explorer()
    static = explorer.static()
    assert [frame.name for frame in static.frames] == list(break_it.STEPS)
    first, last = static.frames[0].data[0], static.frames[-1].data[0]
    assert list(first.x) != list(last.x) and "seen" in last.text[0]
    live = explorer.live()
    sliders, figure = live.children
    assert len(sliders.children) == 4
    before = list(figure.data[0].x)
    sliders.children[0].value = 1.0
    assert list(figure.data[0].x) != before


def test_the_fewest_users_that_see_a_fault():
    rows = [("shift", 50, "ECE", 0.75), ("shift", 500, "ECE", 0.8), ("none", 500, "ECE", 0.0)]
    rows += [("none", 50, "ECE", 0.0), ("shift", 50, "by rank", 1.0), ("none", 50, "by rank", 0.1)]
    rows += [("shift", 500, "by rank", 1.0), ("none", 500, "by rank", 0.0)]
    table = pd.DataFrame(
        [{name: 0.0 for name in faults.COLUMNS} | {"fault": f, "users": n, "measure": m, "detected": d}
         for f, n, m, d in rows]
    )  # fmt: skip
    enough = faults.fewest(table)
    assert enough.loc["ECE"].to_dict() == {"shift": "500", "none": "–"}
    assert enough.loc["by rank"].to_dict() == {"shift": "50", "none": "–"}
    assert faults.fewest(table, 0.75).loc["ECE", "shift"] == "50"


def test_the_committed_table_holds_each_fault_at_each_size_and_rarely_cries_for_nothing():
    table = pd.read_csv(results.REFERENCE / "calibration" / "detection.csv")
    sizes = {n: set(own["repeats"]) for n, own in table.groupby("users")}
    assert sizes == {n: {repeats} for n, repeats in faults.SIZES.items()}
    for users in faults.SIZES:
        wide = faults.shown(table, users)
        assert list(wide.columns) == list(faults.FAULTS) and not wide.isna().any(axis=None)
        assert "Brier miscalibration" in wide.index
    alone = table[(table["fault"] == "none") & table["detected"].notna()]
    assert np.average(alone["detected"], weights=alone["repeats"]) < 0.1
