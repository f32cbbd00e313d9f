"""Claims about the assessment: each planted fault is found as docs/assessment.md says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsas_lab import diagnosis
from gsas_lab.__main__ import main
from gsas_lab.errors import InputError
from gsas_lab.lessons import assessment

SEEDS = (1, 2, 3, 4)


def _found(table: pd.DataFrame, **given) -> diagnosis.Diagnosis:
    return diagnosis.diagnose_table(table, **given)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_offset_is_found_with_its_k_and_repaired_by_subtraction(seed):
    sheet = assessment.sheet("offset", seed)
    found = _found(sheet.table)
    assert found.verdict.startswith("overconfident")
    assert abs(found.offset - sheet.planted) < 0.25 and abs(found.slope - 1) < 0.2
    repaired = sheet.table.assign(score=sheet.table["score"] - found.subtract)
    assert _found(repaired).verdict.startswith("calibrated")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slope_is_found_and_no_subtraction_mends_it(seed):
    sheet = assessment.sheet("slope", seed)
    found = _found(sheet.table)
    assert abs(found.slope - sheet.planted) < 0.2 * sheet.planted
    repaired = sheet.table.assign(score=sheet.table["score"] - found.offset)
    assert not _found(repaired).verdict.startswith("calibrated:")
    mended = sheet.table.assign(score=sheet.table["score"] * sheet.planted)
    assert _found(mended).verdict.startswith("calibrated:")


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_were_chosen_by_clicks_show_in_how_many_a_user_has(seed):
    table = assessment.sheet("rows by clicks", seed).table
    size = table.groupby("user")["score"].transform("size")
    assert set(size) == {20, 21}
    last = table["score"] == table.groupby("user")["score"].transform("min")
    added = (size == 21) & last
    assert table[added]["clicked"].eq(1).all() and added.sum() > 10
    assert _found(table, n_items=100).offset < -0.15
    low, high = _found(table[~added], n_items=100).interval
    assert low < 0 < high


@pytest.mark.parametrize("seed", SEEDS)
def test_probabilities_are_told_from_logits(seed):
    table = assessment.sheet("probabilities", seed).table
    assert table["score"].between(0, 1).all()
    assert _found(table).verdict.startswith("undecided")
    assert _found(table, of="probabilities").verdict.startswith("calibrated")


@pytest.mark.parametrize("seed", SEEDS)
def test_one_group_is_found_by_looking_at_the_groups(seed):
    sheet = assessment.sheet("one group", seed)
    group = sheet.table["user"].str[0]
    offsets = [_found(part).offset for _, part in sheet.table.groupby(group)]
    assert abs(offsets[0]) < 0.3 and abs(offsets[1] - sheet.planted) < 0.3
    assert min(offsets) < _found(sheet.table).offset < max(offsets)


def test_the_same_seed_gives_the_same_tables_and_students_have_different_ones(tmp_path, capsys):
    words = ["assessment", "--students", "7", "--seed", "5", "--output"]
    assert main([*words, str(tmp_path / "a")]) == 0 and main([*words, str(tmp_path / "b")]) == 0
    assert str(tmp_path / "a" / "key.csv") in capsys.readouterr().out
    key = pd.read_csv(tmp_path / "a" / "key.csv")
    assert len(key) == 7 and set(key["fault"][:5]) == set(assessment.FAULTS)
    texts = [(tmp_path / "a" / name / "scores.csv").read_bytes() for name in key["student"]]
    assert len(set(texts)) == 7
    for path in (tmp_path / "a").rglob("*.csv"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    first = pd.read_csv(tmp_path / "a" / key["student"][0] / "scores.csv")
    again = assessment.sheet(key["fault"][0], int(key["seed"][0])).table
    assert np.allclose(first["score"], again["score"], atol=1e-6)


def test_a_table_tells_its_fault_by_nothing_but_its_numbers():
    for fault in assessment.FAULTS:
        table = assessment.sheet(fault, 9).table
        assert list(table) == ["user", "item", "score", "clicked"]
        assert not table["user"].is_monotonic_increasing  # rows are in no order


@pytest.mark.parametrize("students, fault", [(0, "offset"), (1, "none")])
def test_what_cannot_be_made_is_refused(tmp_path, students, fault):
    with pytest.raises(InputError):
        assessment.write(tmp_path / "x", students) if students < 1 else assessment.sheet(fault, 1)


def test_the_two_tables_of_session_3_say_what_the_plan_says(tmp_path):
    key = pd.read_csv(assessment.write(tmp_path, 5, 0)).set_index("student")["fault"]
    plan = (Path(__file__).resolve().parent.parent / "docs" / "course.md").read_text("utf-8")
    assert key["student-04"] == "offset" and key["student-05"] == "slope"
    offset, slope = (
        _found(pd.read_csv(tmp_path / name / "scores.csv"), n_items=100)
        for name in ("student-04", "student-05")
    )
    assert f"an offset of {offset.offset:.2f} and a slope of {offset.slope:.2f}, so" in plan
    assert round(99 * np.exp(-offset.offset)) == 4 and f"a slope of {slope.slope:.2f}, and" in plan
