"""Claims of the pages in docs/: numbers follow from their calls, links lead somewhere."""

import json
import math
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from gsas_lab import metrics, results, theory

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"])


@pytest.mark.parametrize("page", ["questions", "course-quiz"])
def test_each_number_of_a_page_follows_from_its_call(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    told = re.findall(r"`([^`]+)` = ([\d.]*\d)", text)
    assert len(told) >= 5
    for call, number in told:
        found = eval(call, vars(theory).copy())
        digits = len(number.partition(".")[2])
        assert math.isclose(found, float(number), abs_tol=0.51 * 10**-digits), call


def test_the_answers_of_the_quiz_have_the_numbers_of_their_calls():
    text = (ROOT / "docs" / "quiz.md").read_text(encoding="utf-8")
    known, checked = {"theory": theory}, 0  # a and b of question 1 are meant in question 2 as well
    for answer in re.findall(r"<details>.*?</details>", text, re.DOTALL):
        told = re.sub(r"`[^`]*`", "", answer).replace(",", "")
        numbers = re.findall(r"\d+(?:\.\d+)?", told)
        calls = [call for call in re.findall(r"`([^`]+)`", answer) if "theory." in call]
        for call in sorted(calls, key=lambda call: " = " not in call):  # a = …, b = … come first
            *lines, last = call.split("; ")
            exec("\n".join([*lines, last if " = " in last else ""]), known)
            if " = " in last or "popularity" in last or last.startswith("theory.alpha("):
                continue  # an argument of another call, or of data
            found = float(eval(last, known))
            digits = [(float(n), len(n.partition(".")[2])) for n in numbers]
            assert any(abs(n - found) < 0.51 * 10.0**-d for n, d in digits), (call, found)
            checked += 1
    assert checked >= 7


def test_each_session_has_a_plan_of_90_minutes_and_a_quiz_whose_answers_are_folded():
    plan = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    sessions = re.split(r"^## (?=Session)", plan, flags=re.MULTILINE)[1:]
    sessions[1] = (ROOT / "docs" / "lesson.md").read_text(encoding="utf-8").split("## The board")[0]
    assert len(sessions) == 3
    for session in sessions:
        spans = re.findall(r"^\| (\d+)–(\d+) \|", session, re.MULTILINE)
        starts, ends = ([int(each) for each in side] for side in zip(*spans, strict=True))
        assert starts[0] == 0 and ends[-1] == 90 and starts[1:] == ends[:-1]
    quizzes = (ROOT / "docs" / "course-quiz.md").read_text(encoding="utf-8").split("## Session")[1:]
    assert len(quizzes) == 3
    for quiz in quizzes:
        asked = re.findall(r"^\*\*\d\.\*\*", quiz, re.MULTILINE)
        assert len(asked) == quiz.count("<details>") == quiz.count("</details>") == 4


def test_the_plan_of_session_3_has_the_p_values_of_the_evidence():
    plan = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    swept = results.of_paper("figure3", "ml-1m", "reference")
    users, one = swept.per_user(), swept.table[swept.table["k"] == 1]
    low, high = (one.index[one["t"] == t][0] for t in (0.0, 0.75))
    paired = metrics.paired_test(users[high], users[low])[1]
    unpaired = metrics.unpaired_test(users[high], users[low])[1]
    assert f"{paired:.1e} and {unpaired:.2f}." in plan
    found = results.of_paper("seeds", "ml-1m", "reference")
    values = {t: [found.per_user()[n] for n in p.index] for t, p in found.table.groupby("t")}
    p = metrics.compare_seeds(values[1.0], values[0.0])["p"]
    assert f"p = {p['users']:.1e} over users" in plan and f"says {p['seeds']:.4f}" in plan


def _headings(page: Path) -> set[str]:
    """The anchors of a page, as JupyterLab and code hosts make them."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        told = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        return {found.replace(" ", "-") for found in re.findall(r"^#+ (.+)$", told, re.MULTILINE)}
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)((?:[^()\s]|\([^()]*\))+)\)", text):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor and target.suffix in (".md", ".ipynb"):
            assert anchor in _headings(target), link
