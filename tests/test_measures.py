"""Trained systems by every measure: the tables are what their parts give, and so is the notebook."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from gsas_lab import calibration, evidence, figures, instrument, results, runs
from gsas_lab.__main__ import main
from gsas_lab.errors import InputError
from gsas_lab.metrics import LEVEL

ROOT = Path(__file__).resolve().parent.parent
FOLDER = results.REFERENCE / "ml-1m"


def without_seen(run: runs.Run) -> runs.Run:
    """The same run, judged over what its users have not taken yet."""
    split = run.data.split
    split = replace(split, protocol=replace(split.protocol, exclude_seen=True))
    run.__dict__["data"] = replace(run.data, split=split)
    return run


def test_each_row_is_what_the_instrument_says_of_this_repair(small_world):
    run = without_seen(runs.train(small_world))
    table, groups = evidence.measures(run, resamples=20)
    choice, test = evidence.choose_repair(run), run.data.split.test
    assert set(table["repair"]) == {"as it is", "analytic", "offset", choice.name}
    assert set(table.loc[table["chosen"], "repair"]) == {choice.name}
    assert set(groups.loc[groups["chosen"], "repair"]) == {choice.name}
    may, hits = test.candidates(60, True), test.hits(60)
    raw = evidence.probabilities(run, test)
    labels = evidence.groupings(run.data, test) | {"rank": instrument.rank_groups(raw)}
    assert not may.all() and len(labels) >= 3
    who, place = np.nonzero(may)
    rank = np.argsort(np.argsort(-raw, axis=1, kind="stable"), axis=1)[who, place] + 1
    for name, rows in table.groupby("repair"):
        prob = evidence.probabilities(run, test, choice.repairs[name])
        p, hit = prob[may], hits[may]
        rows = rows.set_index("measure")
        wanted = instrument.measures(p, hit, who, rank, resamples=20)
        held = wanted["debiased"].between(wanted["low"], wanted["high"])
        assert held.any() and (rows.loc[wanted.index, "low"].notna() == held).all()
        wanted.loc[~held, ["debiased", "low", "high"]] = np.nan
        columns = ["value", "debiased", "low", "high", "chance"]
        pd.testing.assert_frame_equal(
            rows.loc[wanted.index, columns], wanted[columns], check_names=False, rtol=1e-6
        )
        assert rows.loc["Σp", "value"] == pytest.approx(prob.sum() / len(prob))
        assert rows.loc["log loss", "value"] == pytest.approx(calibration.log_loss(p, hit))
        assert rows.loc["Brier", "value"] == pytest.approx(calibration.brier(p, hit))
        scores = rows.loc[["Σp", "Brier", "log loss"]]
        assert ((scores["low"] < scores["value"]) & (scores["value"] < scores["high"])).all()
        parts = instrument.decomposition(p, hit)
        for score in ("Brier", "log loss"):
            for part in ("discrimination", "uncertainty"):
                assert rows.loc[f"{score} {part}", "value"] == pytest.approx(parts.loc[score, part])
        own = groups[groups["repair"] == name].reset_index(drop=True)
        wanted = instrument.by_group(prob, hits, labels)  # with what may not be recommended, as 0
        # Nobody is left out there; beyond rank 50 some users have no pair here.
        columns = ["grouping", "group", "hits", "ratio", "low", "high", "p"]
        assert own["ratio"].iloc[-1] == pytest.approx(wanted["ratio"].iloc[-1])
        pd.testing.assert_frame_equal(own[columns][:-1], wanted[columns][:-1], rtol=1e-6)
        assert own["pairs"].iloc[0] == may.sum()


def test_the_interval_of_a_score_is_that_of_resampled_users(small_world):
    run = without_seen(runs.train(small_world))
    known = evidence.pairs(run, run.data.split.test)
    prob = known.repaired(evidence.choose_repair(run).repairs["offset"])
    whole = pd.Series({"ratio": 1.0, "low": 1.0, "high": 1.0})
    row = evidence._scores(known, prob, whole).loc["log loss"]
    loss = known.by_user(-np.log(np.where(known.hit, prob, 1 - prob)))
    drawn = np.random.default_rng(0).integers(len(loss), size=(4000, len(loss)))
    low, high = np.quantile(loss[drawn].sum(1) / known.lengths[drawn].sum(1), [0.025, 0.975])
    assert row["high"] - row["low"] == pytest.approx(high - low, rel=0.1)
    assert row["low"] == pytest.approx(low, abs=0.1 * (high - low))


def test_repairs_are_taught_by_validation_users_alone(small_world):
    run = runs.train(small_world)
    table, _ = evidence.measures(run, resamples=0)
    data, split = run.data, run.data.split
    other = replace(split.test, targets=split.test.targets % 60 + 1)  # what came was another item
    run.__dict__["data"] = replace(data, split=replace(split, test=other))
    again, _ = evidence.measures(run, resamples=0)
    told, moved = (t.set_index(["repair", "chosen", "measure"])["value"] for t in (table, again))
    assert (told.index == moved.index).all()
    sums = pd.concat([told, moved], axis=1).xs("Σp", level="measure").to_numpy()
    assert sums[:, 0] == pytest.approx(sums[:, 1], rel=1e-12)
    losses = pd.concat([told, moved], axis=1).xs("log loss", level="measure").to_numpy()
    assert (losses[:, 0] != losses[:, 1]).all()
    assert told[("offset", False, "Σp")] == pytest.approx(1, abs=0.05)
    assert told[("as it is", False, "Σp")] > 5


def test_a_softmax_is_judged_by_its_softmax_over_the_catalogue(small_world):
    run = runs.train(replace(small_world, loss="softmax"))
    table, _ = evidence.measures(run, resamples=0)
    raw = table[table["repair"] == "as it is"].set_index("measure")["value"]
    test = run.data.split.test
    prob = run.probabilities(run.scores(test))
    assert "analytic" not in set(table["repair"])
    assert raw["Σp"] == pytest.approx(1, rel=1e-6)
    assert raw["Brier"] == pytest.approx(calibration.brier(prob, test.hits(60)), rel=1e-4)


def test_what_is_written_is_read_again_and_each_system_stands_there_once(
    small_world, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evidence, "measures", lambda run, made=evidence.measures: made(run, 10))
    one, two = (
        runs.train(replace(small_world, loss=loss, epochs=1)) for loss in ("bce", "softmax")
    )
    words = ["evidence", "--output", str(tmp_path), "--measures"]
    assert main([*words, str(one.folder), str(two.folder)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "known-truth")] * 2
    table, groups = evidence.read_measures(tmp_path / "known-truth")
    wanted, of_groups = evidence.measures(one)
    at = table["system"] == one.settings.name
    pd.testing.assert_frame_equal(table[at], wanted, rtol=1e-5, atol=1e-12)
    pd.testing.assert_frame_equal(
        groups[groups["system"] == one.settings.name], of_groups, rtol=1e-5, check_dtype=False
    )
    assert main([*words, str(one.folder)]) == 0
    again, _ = evidence.read_measures(tmp_path / "known-truth")
    assert len(again) == len(table) and set(again["system"]) == set(table["system"])
    shown = evidence.by_system(table)
    value = table[at & table["chosen"]].set_index("measure").loc["Σp"]
    column = next(name for name in shown if name.startswith(one.settings.name))
    said = f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    assert shown.loc["Σp", column] == said
    with pytest.raises(InputError, match="'Platt' was measured of no system: choose one of as it"):
        evidence.by_system(table[table["repair"] != "Platt"], "Platt")
    (tmp_path / "known-truth" / "groups.csv").write_text("system\n", encoding="utf-8")
    capsys.readouterr()
    assert main([*words, str(one.folder)]) == 2
    assert "groups.csv has other columns: delete it" in capsys.readouterr().err


def test_a_loss_without_probabilities_cannot_be_judged(small_world):
    run = runs.train(replace(small_world, loss="bpr", epochs=1))
    with pytest.raises(InputError, match="there is no p̂ to judge"):
        evidence.measures(run)


def test_the_committed_tables_hold_together():
    table, groups = evidence.read_measures(FOLDER)
    assert (
        set(table["system"])
        == set(groups["system"])
        == {"SASRec", "gSASRec", "SASRec, softmax", "BERT4Rec"}
    )
    assert (table["users"] == 6040).all()
    for system, rows in table.groupby("system"):
        own = groups[groups["system"] == system]
        assert len(set(rows.loc[rows["chosen"], "repair"])) == 1 and "as it is" in set(
            rows["repair"]
        )
        for repair, each in rows.groupby("repair"):
            each, of_groups = each.set_index("measure"), own[own["repair"] == repair]
            whole = of_groups.iloc[0]
            assert whole["group"] == "all pairs"
            assert each.loc["Σp", "value"] == pytest.approx(whole["ratio"], rel=1e-5)
            assert (of_groups.groupby("grouping")["hits"].sum() == 6040).all()
            for score in ("Brier", "log loss"):  # miscalibration is by cells
                value, wrong, told, most = each.loc[
                    [score, f"{score} miscalibration", f"{score} discrimination",
                     f"{score} uncertainty"], "value",
                ]  # fmt: skip
                assert value == pytest.approx(wrong - told + most, rel=0.01)
            known = each[each["low"].notna()]
            assert {"Σp", "ECE", "ECE@10", "smooth ECE, logits", "log loss"} <= set(known.index)
            assert (known["low"] <= known["high"]).all()
            assert ((known["debiased"] <= known["high"]) | known["debiased"].isna()).all()
        wrong = own["p_holm"] < LEVEL
        assert (wrong == (own["verdict"] != "")).all()
        over = own["ratio"] > 1
        assert ((own["verdict"] == "overconfident") == (wrong & over)).all()
        clear = own["hits"] > 0
        assert (own["low"] <= own["ratio"])[clear].all() and (own["ratio"] <= own["high"])[
            clear
        ].all()


def test_the_notebook_says_what_the_tables_say(capsys):
    book = nbformat.read(ROOT / "notebooks" / "04_calibration.ipynb", as_version=4)
    first = next(n for n, cell in enumerate(book.cells) if "## 11. And on" in cell.source)
    known = {"evidence": evidence, "results": results, "instrument": instrument, "plt": plt}
    known |= {"figures": figures}
    for cell in book.cells[first:]:
        if cell.cell_type == "code":
            exec(cell.source, known)
    plt.close("all")
    told = capsys.readouterr().out
    table, groups = evidence.read_measures(FOLDER)
    assert f"{table['users'].iloc[0]:,} test users" in book.cells[first].source
    for (system, repair), rows in groups.groupby(["system", "repair"]):
        if repair == "as it is" or rows["chosen"].all():
            start = "As it is" if repair == "as it is" else "Repaired"
            assert f"{start}: {system}, {repair}. {instrument.hidden(rows, within=0.1)}" in told
