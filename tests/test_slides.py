"""Claims about the slides: only marked cells, only outputs of code, nothing from elsewhere."""

import itertools
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from gsas_lab.__main__ import main
from gsas_lab.errors import InputError
from gsas_lab.lessons import slides

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def executed(published, tmp_path_factory):
    """The toy notebooks as executed, with some cells marked as JupyterLab marks them."""
    folder = tmp_path_factory.mktemp("executed")
    for path in published.glob("0*.ipynb"):
        book = nbformat.read(path, as_version=4)
        kinds = ["slide", "skip", "slide", "slide", "subslide", "fragment"]  # the third is silent
        for cell, kind in zip(book.cells, kinds, strict=False):
            cell.metadata["slideshow"] = {"slide_type": kind}
        nbformat.write(book, folder / path.name)
    return folder


def test_marked_cells_become_slides_and_nothing_else_does(executed, tmp_path):
    page = slides.write(executed / "00_plain.ipynb", tmp_path / "deck.html")
    deck = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select_one(".slides")
    tops = deck.find_all("section", recursive=False)
    assert [len(top.find_all("section")) for top in tops] == [1, 2]
    assert "First: formulas" in tops[0].text and len(deck.select(".fragment")) == 1
    assert 'dataset = "toy"' not in deck.text  # the parameters' cell was skipped
    assert "k = 3, t = 0.0" in deck.text and "print(" not in deck.text  # an output, not its code


def test_a_deck_needs_nothing_from_elsewhere(executed, tmp_path):
    for page in slides.write_all(executed, tmp_path / "decks"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'(src|href)="https?:', text)
        for name in re.findall(r'(?:src|href)="([\w.]+\.(?:js|css))"', text):
            assert page.with_name(name).is_file(), name
    assert "MIT" in (ROOT / "gsas_lab/lessons/reveal/reveal.js").read_text(encoding="utf-8")[:120]
    assert (tmp_path / "decks" / "reveal.LICENSE.txt").is_file()


def test_every_notebook_of_the_course_has_slides_that_ask_and_answer():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shown = slides.marked(nbformat.read(path, as_version=4))
        text = "\n".join(cell.source for cell in shown if cell.cell_type == "markdown")
        assert len(shown) >= 4 and "claim to test" in text and "Predict before you run" in text
        for cell, after in itertools.pairwise(shown):  # what is asked is shown as well
            assert "Predict before you run" not in cell.source or after.cell_type == "code", cell.id


def test_without_executed_notebooks_or_marks_it_says_so(executed, tmp_path, capsys):
    assert main(["slides", "--executed", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "make site" in capsys.readouterr().err
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# None")])
    nbformat.write(book, tmp_path / "00_none.ipynb")
    with pytest.raises(InputError, match="no marked cell"):
        slides.write(tmp_path / "00_none.ipynb", tmp_path / "deck.html")
