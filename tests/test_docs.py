"""Claims of the pages in docs/: numbers follow from their calls, links lead somewhere."""

import json
import math
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from gsas_lab import theory

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"])


def test_each_number_of_the_questions_follows_from_its_call():
    told = re.findall(
        r"`([^`]+)` = ([\d.]*\d)", (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    )
    assert len(told) >= 5
    for call, number in told:
        found = eval(call, vars(theory).copy())
        digits = len(number.partition(".")[2])
        assert math.isclose(found, float(number), abs_tol=0.51 * 10**-digits), call


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
