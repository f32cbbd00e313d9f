"""What README and docs/reproduction.md say is what the committed evidence says."""

import math
import re

import pytest

from gsas_lab import documents, paper, results


def test_the_readmes_tables_are_those_of_the_evidence():
    assert documents.README.read_text(encoding="utf-8") == documents.readme()


def test_the_report_is_that_of_the_evidence():
    assert documents.REPORT.read_text(encoding="utf-8") == documents.report()


def test_a_number_that_was_changed_by_hand_is_told(tmp_path, monkeypatch):
    text = documents.README.read_text(encoding="utf-8")
    row = re.search(r"\| gSASRec \| 256 .*", text)[0]
    other = tmp_path / "README.md"
    other.write_text(text.replace(row, row.replace("0.17", "0.18")), encoding="utf-8")
    monkeypatch.setattr(documents, "README", other)
    assert documents.readme() == text != other.read_text(encoding="utf-8")


def test_the_headline_is_the_mean_of_the_ranks_that_are_committed():
    """From per-user ranks alone, without the table's own columns."""
    found = results.load(results.REFERENCE / "ml-1m" / "table3")
    for name in ("SASRec", "gSASRec"):
        ranks = [found.ranks[run] for run in found.systems[name]]
        mean = sum((1 / math.log2(1 + r) if r <= 10 else 0) for each in ranks for r in each)
        mean /= sum(map(len, ranks))
        assert f"{mean:.4f}" in re.search(rf"\| {name} \|.*", documents.systems_table())[0]


def test_every_number_of_the_papers_tables_and_quoted_points_stands_in_the_report():
    text = documents.report()
    for section, numbers in {
        "Table 2": paper.table_2().loc[documents.ML]["NDCG@10"],
        "Table 3": paper.table_3().loc[documents.ML][["Recall@1", "Recall@10", "NDCG@10"]].stack(),
        "Figure 1": paper.figure_1_sums(),
        "Figure 2": paper.figure_2_points()["predicted"],
        "Figure 4": paper.figure_4()[["Recall@1", "NDCG@10"]].stack().dropna(),
    }.items():
        part = re.search(rf"\n## {section}.*?(?=\n## |$)", text, re.DOTALL)[0]
        printed = re.findall(r"^\| [^|]+ \| ([\d.]+) \|", part, re.MULTILINE)
        assert {float(number) for number in numbers} <= {float(cell) for cell in printed}


@pytest.mark.parametrize(
    ("theirs", "low", "high", "told"),
    [
        (0.131, 0.1245, 0.1371, "reproduced"),
        (0.169, 0.1519, 0.1661, "not reached"),
        (0.169, 0.1600, 0.1686, "reproduced"),  # 0.169 may have been 0.1685
        (0.126, 0.1266, 0.1378, "above"),
        (0.126, 0.1264, 0.1378, "reproduced"),
    ],
)
def test_a_verdict_is_whether_the_printed_number_lies_in_our_interval(theirs, low, high, told):
    assert documents.verdict(theirs, low, high) == told
