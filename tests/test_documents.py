"""What README and docs/reproduction.md say is what the committed evidence says."""

import io
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

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


def test_what_is_not_reproduced_says_why():
    cells = [line.split(" | ")[3] for line in documents.report().splitlines() if " | " in line]
    told = [cell for cell in cells if re.match("above|below|not reached", cell)]
    assert told and all(": " in cell and "not known" not in cell for cell in told)


def test_of_several_numbers_of_passes_validation_users_choose_and_seeds_go_before(monkeypatch):
    class System:
        def __init__(self, _, name):
            self.name, (self.seeds, self.best) = name, systems[name]

        def mean(self, what):
            return self.best * (what == "validation ndcg@10")

    monkeypatch.setattr(documents, "System", System)
    for systems, chosen in (
        ({"a": (1, 0.16), "a, 24 passes": (1, 0.17), "a, 48 passes": (1, 0.165)}, "a, 24 passes"),
        ({"a": (3, 0.16), "a, 24 passes": (1, 0.17), "a, b": (9, 0.2)}, "a"),
        ({"a": (1, 0.16), "a (to 48 passes)": (1, 0.17)}, "a (to 48 passes)"),
    ):
        found = SimpleNamespace(systems=systems)
        monkeypatch.setattr(documents, "_folder", lambda _, found=found: found)
        assert documents._system("ml-1m/table3", "a").name == chosen
    assert documents._system("ml-1m/table3", "b") is None
    assert documents._system("ml-1m/no such folder", "a") is None


def _source(png: bytes) -> str | None:
    return Image.open(io.BytesIO(png)).text.get("Source")


def test_the_picture_is_drawn_from_the_curves_and_bears_their_checksum(monkeypatch):
    shown = np.linspace(0.9, 0.1, 100)
    columns = {"cutoff": range(1, 101), "precision": shown / 20, "predicted": shown, "shown": shown}
    curves = {name: (pd.DataFrame(columns), 7.25) for name in ("SASRec", "gSASRec")}
    monkeypatch.setattr(documents, "picture_curves", lambda: curves)
    first = documents.picture()
    assert _source(first) == documents.picture_key() and Image.open(io.BytesIO(first)).width > 1000
    curves["gSASRec"] = curves["gSASRec"][0], 7.26
    assert _source(documents.picture()) != _source(first)


def test_the_committed_picture_is_that_of_the_evidence():
    """Until both systems have a curve there, it is an older one and bears no checksum."""
    told = _source(documents.PICTURE.read_bytes())
    assert told == (documents.picture_key() if documents.picture_curves() else None)


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
