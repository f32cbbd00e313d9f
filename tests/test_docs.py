"""Claims of the pages in docs/: numbers follow from their calls, links lead somewhere."""

import json
import math
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from gsas_lab import documents, metrics, results, runs, theory
from gsas_lab.lessons import publish

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"])


NOTEBOOKS = sorted(ROOT.glob("notebooks/**/*.ipynb"))


def _page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["questions", "course-quiz"])
def test_each_number_of_a_page_follows_from_its_call(page):
    text = _page(page)
    told = re.findall(r"`([^`]+)` = ([\d.]*\d)", text)
    assert len(told) >= 5
    for call, number in told:
        found = eval(call, vars(theory).copy())
        digits = len(number.partition(".")[2])
        assert math.isclose(found, float(number), abs_tol=0.51 * 10**-digits), call


def test_the_answers_of_the_quiz_have_the_numbers_of_their_calls():
    text = _page("quiz")
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
    plan = _page("course")
    sessions = re.split(r"^## (?=Session)", plan, flags=re.MULTILINE)[1:]
    sessions[1] = _page("lesson").split("## The board")[0]
    assert len(sessions) == 3
    for session in sessions:
        spans = re.findall(r"^\| (\d+)–(\d+) \|", session, re.MULTILINE)
        starts, ends = ([int(each) for each in side] for side in zip(*spans, strict=True))
        assert starts[0] == 0 and ends[-1] == 90 and starts[1:] == ends[:-1]
    quizzes = _page("course-quiz").split("## Session")[1:]
    assert len(quizzes) == 3
    for quiz in quizzes:
        asked = re.findall(r"^\*\*\d\.\*\*", quiz, re.MULTILINE)
        assert len(asked) == quiz.count("<details>") == quiz.count("</details>") == 4


def test_the_plan_of_session_3_has_the_p_values_of_the_evidence():
    plan = _page("course")
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


def test_some_users_by_the_lines_of_the_page(small_world, capsys):
    run = runs.train(small_world)
    (lines,) = re.findall(r"```python\n(.*?)```", _page("experiments"), re.DOTALL)
    exec(lines, {"run": run})
    mean, low, high = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out))
    assert mean == pytest.approx(run.metrics["ndcg@10"])  # all of them
    assert low < mean < high


def test_what_the_picture_of_the_readme_adds_up_to_is_told_alike_everywhere():
    _, total = documents.picture_curves()["SASRec"]
    told = f"{total:.0f}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"expect {told} hits where" in readme and f"add up to {told})" in readme
    assert f"add up to {told} (SASRec" in (ROOT / "notebooks/00_start_here.ipynb").read_text(
        "utf-8"
    )
    assert f"1, and {told}." in _page("course")
    assert f"says {total:.2f} of the same user: the picture" in _page("lesson")


def test_the_numbers_of_session_1_are_those_of_the_evidence():
    plan = _page("course")
    here, known = (
        pd.read_csv(results.REFERENCE / name / "summary.csv", index_col="system")
        for name in ("ml-1m", "known-truth")
    )
    ours, theirs = (
        f"{here['NDCG@10'][name]:.4f} ({known['NDCG@10'][name]:.4f})"
        for name in ("gSASRec", "SASRec")
    )
    assert f"NDCG@10 {ours} beside SASRec's {theirs}" in plan
    four = ["SASRec", "SASRec, sampled softmax", "SASRec, softmax", "gSASRec"]
    for table in (here, known):
        assert table.loc[four, "NDCG@10"].idxmax() == "gSASRec"
        assert table.loc[four, "Σp"].idxmax() == "SASRec, sampled softmax"
        assert table["NDCG@10"]["SASRec, sampled softmax"] > table["NDCG@10"]["SASRec"]
    sums = here["Σp"]["SASRec, sampled softmax"], known["Σp"]["SASRec, sampled softmax"]
    assert "largest sum of all, {:,.0f} ({:.0f})".format(*sums) in plan
    tensors = [theory.logits_bytes(64, 200, n) / 2**30 for n in (50_000, 1_000_000)]
    assert "{:.1f} GiB do, {:.1f} do not".format(*tensors) in plan
    p = 1 / 3416
    surprise = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert f"Brier score of {p:.4f}" in plan and f"a log loss of {surprise:.4f}" in plan


def _reads(prior, k, t, n_items=3416):
    rate = theory.alpha(k, n_items)
    return float(theory.converged_probability(prior, rate, theory.beta_from_t(t, rate)))


def _forecast(k, t, exponent=1.39, n_items=3416):
    rate = theory.alpha(k, n_items)
    prior = theory.zipf(n_items, exponent)
    return float(theory.forecast_sum(prior, rate, theory.beta_from_t(t, rate)))


def test_the_numbers_of_the_lesson_follow_from_the_theory():
    one, certain = theory.alpha(1, 3416), theory.alpha(256, 3416, never_drawn=0)
    offset = theory.logit_offset(one, 1.0)
    tenth = 0.1 / 1.1
    sasrec, million = _forecast(1, 0), _forecast(1, 0, n_items=10**6)
    collided = [
        float(theory.converged_probability(p, certain, theory.alpha(256, 3416), collisions=True))
        for p in (1.0, 0.01)
    ]
    whole = theory.alpha(1, 3416, never_drawn=0)
    ceiling = float(theory.converged_probability(1.0, whole, 1.0, collisions=True))
    frame = [_forecast(k, t) for k in (128, 256) for t in (0.75, 0.9)]
    start = theory.beta_from_t(0.75, theory.alpha(64, 1000))
    left = theory.logit_offset(theory.alpha(256, 3416), 1.0)
    asked = math.log(0.01 / 0.99) + offset
    told = [
        f"$\\sigma = \\beta/(1+\\beta) = {tenth:.3f}$, score −{-math.log(0.1):.2f}",
        f"| {_reads(0.01, 1, 0):.4f}. The odds of $P$ are multiplied by $\\beta/\\alpha = 3415$",
        f"| {_reads(0.01, 1, 0):.3f}, then {_reads(0.01, 256, 0):.3f}, "
        f"then {_reads(0.01, 1, 1):.3f}: one negative",
        f"$(256, 0.75)$ reads {_reads(0.01, 256, 0.75, 10**6):.3f}",
        f"SASRec's score of an item is {asked:.3f}.",
        f"$P = \\sigma({asked:.3f} - {offset:.3f}) = 0.01$",
        f"| At 1.39 ({sasrec:.1f}). Exponent 0 gives {_forecast(1, 0, 0):,.0f}, "
        f"exponent 2 gives {_forecast(1, 0, 2):.1f}:",
        f"A million items: {million:,.0f}, which is {million / sasrec:.0f} times as much",
        f"$(128, 0)$: {_forecast(128, 0):.1f}, at 129 scores a position. "
        f"$(16, 0.9)$: {_forecast(16, 0.9):.1f}, at 17.",
        f"The frame holds {min(frame):.2f} to {max(frame):.2f} and",
        f"It reads {collided[0]:.4f} with $(256, 1)$.",
        f"$P = 0.01$ reads {collided[1]:.4f}: there",
        f"At $(1, 0)$ the ceiling is {ceiling:.4f}.",
        f"$\\beta/(\\beta + k) = {start / (start + 64):.4f}$, a logit of −{math.log(64 / start):.2f}",
        f"leave {left:.2f} of an offset of {offset:.2f} on MovieLens-1M",
        f"no: {sasrec:.0f} at 3,416 items, {million:,.0f} at a million",
        f"The theory says {_forecast(256, 0.75):.2f} for $k = 256$, $t = 0.75$",
    ]
    lesson = _page("lesson")
    assert not [each for each in told if each not in lesson]


def _told(number: str) -> tuple[float, float]:
    """A number of a page, and half a unit of its last digit; 1.5 MB, 0.65 GB, 2.4 ms, 1,540."""
    digits, _, unit = number.strip().replace(",", "").partition(" ")
    scale = {"GB": 1e9, "MB": 1e6, "ms": 1e-3, "million": 1e6}.get(unit, 1.0)
    return float(digits) * scale, 0.51 * 10.0 ** -len(digits.partition(".")[2]) * scale


def test_memory_and_traffic_of_tables_over_processes_are_their_arithmetic():
    part = _page("experiments").split("## Up to a thousand million items")[1].split("\n## ")[0]
    lines = [[x.strip() for x in x.strip("| ").split("|")] for x in part.splitlines() if "|" in x]
    memory = [line for line in lines if line[0].endswith("million")]
    traffic = [line for line in lines if line[-1].endswith("ms")]
    assert (len(memory), len(traffic)) == (4, 4)
    for items, *told in memory:
        n = {"1.27 million": 1_271_638}.get(items) or _told(items)[0]
        table = 4 * 128 * n
        adam, adagrad = 3 * table + 4 * n, table + 4 * n
        for number, found in zip(told, (table, adam, adagrad, adam / 8, adagrad / 8), strict=True):
            value, error = _told(number)
            assert abs(found - value) <= error, (items, number)
    drawn = (1024, 8192, 256 * 128 // 8, 256 * 9200 // 8)
    for (name, *told), negatives in zip(traffic, drawn, strict=True):
        rows = 2 * 9200 // 8 + negatives
        sent = rows * 7 / 8 * (8 + 8 * 128)
        for number, found in zip(told, (rows, sent, sent * 8 / 1e10), strict=True):
            value, error = _told(number)
            assert abs(found - value) <= error, (name, number)


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


def _texts():
    """Of pages and notebooks, with where each stands."""
    for page in PAGES:
        yield page.name, page.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            yield path.name, cell.source


def test_the_sum_of_probabilities_has_one_name():
    """Σp, as in tables and figures, and neither with a hat nor as a formula."""
    for name, text in _texts():
        assert not re.search("Σ\\s?p\u0302|\\\\(Sigma|sum) *\\\\hat *p\\b", text), name


def _deepest(node, level, display):
    """How often letters are made smaller, at most: MathML's script level."""
    found = level
    for place, part in enumerate(node.find_all(True, recursive=False)):
        script = node.name in ("msub", "msup", "msubsup", "munder", "munderover") and place > 0
        smaller = script or (node.name == "mfrac" and not display)
        within = display and not script and node.name != "mfrac"
        found = max(found, _deepest(part, level + smaller, within))
    return found


def test_no_letter_of_a_formula_is_smaller_than_an_exponent():
    """An exponent's exponent is half as high as the text: 9 pixels on a page."""
    seen = 0
    for name, text in _texts():
        for formula in BeautifulSoup(publish.markdown(text), "html.parser").find_all("math"):
            seen += 1
            assert _deepest(formula, 0, formula["display"] == "block") < 2, (name, formula.text)
    assert seen > 500
