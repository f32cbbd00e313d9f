"""Claims about the notebooks as they are kept: clean, teachable, and executed by the tests."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat import NotebookNode

from gsas_lab.lessons import publish

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = {
    "00_start_here", "01_overconfidence", "02_gbce_theory", "03_training", "04_calibration",
    "08_your_data", "09_your_own_parts", "10_a_million_items",
    "11_what_honest_probabilities_buy",
}  # fmt: skip
EXERCISES = sorted((ROOT / "notebooks").glob("[es]*/*.ipynb"))  # and their solutions


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request: pytest.FixtureRequest) -> NotebookNode:
    return nbformat.read(request.param, as_version=4)


def _cells(book: NotebookNode, kind: str) -> list[NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == kind]


def test_the_expected_notebooks_are_there_and_reading_order_is_in_their_names():
    names = {path.stem for path in NOTEBOOKS}
    assert names >= EXPECTED
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", name) for name in names)


def test_nbval_collects_every_code_cell_of_every_notebook():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--collect-only", "-q", "notebooks"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert EXERCISES
    for path in [*NOTEBOOKS, *EXERCISES]:
        cells = _cells(nbformat.read(path, as_version=4), "code")
        name = path.relative_to(ROOT).as_posix()
        assert done.stdout.count(f"{name}::") == len(cells) > 0, name


def test_make_test_gives_the_notebooks_to_nbval():
    recipe = re.search(r"^test:.*\n\t(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe and {"--nbval-lax", "tests", "notebooks"} <= set(recipe[1].split())


def test_the_kernel_is_python3(book):
    assert book.metadata.kernelspec.name == "python3"


def test_one_parameters_cell_comes_first_and_holds_literals_only(book):
    tagged = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] is _cells(book, "code")[0]
    for line in ast.parse(tagged[0].source).body:
        assert isinstance(line, ast.Assign | ast.AnnAssign), ast.unparse(line)
        ast.literal_eval(line.value)
    assert publish.declared_parameters(book)["dataset"] == "known-truth"


def test_nothing_is_defined(book):
    """But for what a reader writes: a part of their own, and 03's training from scratch."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in _cells(book, "code"):
        if "from-scratch" in cell.metadata.get("tags", []):
            continue
        defined = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]
        own = cell.source.startswith(
            "@register("
        )  # a part of the reader's own, which is the lesson
        assert own or not defined, cell.source


def test_from_scratch_is_less_than_60_lines_of_one_notebook():
    lines = {}
    for path in NOTEBOOKS:
        cells = _cells(nbformat.read(path, as_version=4), "code")
        own = [cell for cell in cells if "from-scratch" in cell.metadata.get("tags", [])]
        if own:
            lines[path.stem[:2]] = sum(len(cell.source.splitlines()) for cell in own)
    assert lines.keys() == {"03"} and 30 < lines["03"] < 60


def test_what_is_predicted_is_answered_by_what_the_cells_in_between_print(book):
    """The answer's numbers are computed: none is typed into the text that gives it."""
    asked, printed = 0, False
    for cell in book.cells:
        if cell.cell_type == "code":
            printed |= "print(" in cell.source
            continue
        answers = re.findall(r"\*\*Answer\b.*?(?=\n\n|\Z)", cell.source, re.DOTALL)
        if asked and answers:
            assert printed, cell.source
            for answer in answers:
                plain = re.sub(r"(Theorem|Corollary|Eq\.) \(?\d[\d.]*\)?", "", answer)
                assert not re.search(r"\d\.\d", plain), answer
            asked = 0
        if "Predict before you run" in cell.source:
            assert not asked, f"not answered before {cell.source[:80]}"
            asked, printed = 1, False
    assert not asked


def test_code_cells_have_at_most_15_lines(book):
    longest = max(_cells(book, "code"), key=lambda cell: len(cell.source.splitlines()))
    assert len(longest.source.splitlines()) <= 15, longest.source


def test_letters_of_figures_are_legible_where_a_page_shows_them(book):
    """A page has room for about 9.4 inches: what is much wider shrinks, its letters too."""
    for cell in _cells(book, "code"):
        for width, each in re.findall(r"figsize\W+([\d.]+)( \* len\()?", cell.source):
            assert float(width) <= (6 if each else 12), cell.source


def test_there_is_more_prose_than_code(book):
    assert len(_cells(book, "markdown")) > len(_cells(book, "code"))


def test_an_output_is_kept_where_it_is_checked_and_nowhere_else(book):
    for cell in _cells(book, "code"):
        tags = cell.metadata.get("tags", [])
        checked = "nbval-check-output" in tags
        assert checked == ("keep_output" in tags), cell.source
        # nbval takes an output without a count for that of a cell that never ran.
        assert bool(cell.outputs) == bool(cell.execution_count) == checked, cell.source
        assert all(output.output_type == "stream" for output in cell.outputs), "exact text only"
    assert "widgets" not in book.metadata


def test_the_theory_is_checked_to_the_last_digit():
    book = nbformat.read(ROOT / "notebooks" / "02_gbce_theory.ipynb", as_version=4)
    checked = [cell for cell in _cells(book, "code") if cell.outputs]
    assert len(checked) >= 5
    assert all("theory." in cell.source for cell in checked)


def test_it_opens_with_a_title_and_a_claim(book):
    assert publish.title(book) != "Untitled"
    assert publish.claim(book)


def test_links_lead_to_what_is_published_and_formulas_can_be_shown(book):
    published = {f"{path.stem}.html" for path in [*NOTEBOOKS, *(ROOT / "docs").glob("*.md")]}
    published |= {f"{path.parent.name}_{path.name}" for path in EXERCISES}
    for cell in _cells(book, "markdown"):
        page = BeautifulSoup(publish.markdown(cell.source), "html.parser")
        for link in page.find_all("a", href=True):
            file = link["href"].partition("#")[0]
            if file and not re.match(r"[a-z]+:", file):
                assert file in published, link
        assert not page.find_all("img"), "figures are made by the notebook"
        for formula in page.find_all("math"):
            assert "\\" not in formula.text, formula.text
        for code in page.find_all(["code", "pre"]):
            code.decompose()
        assert "$" not in page.text, cell.source
