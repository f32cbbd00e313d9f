"""Claims about the pages as a reader sees them: opened from disk by Chromium, with no network."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCREENSHOTS = Path(__file__).resolve().parents[2] / "outputs" / "screenshots"
CURVE = "document.querySelectorAll('.js-plotly-plot')[0]._fullData[0].y"


def _screenshot(page: "Page", name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def test_every_plot_is_drawn_and_fits_the_window(page, published):
    page.goto((published / "01_plots.html").as_uri())
    page.wait_for_selector(".main-svg")
    assert page.locator(".js-plotly-plot").count() == 3
    assert page.locator(".js-plotly-plot .scatterlayer .js-line").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    _screenshot(page, "plots")


def test_dragging_the_slider_changes_the_curve(page, published):
    page.goto((published / "01_plots.html").as_uri())
    page.wait_for_selector(".slider-grip-rect")
    middle = f"Array.from({CURVE})[25]"
    before = page.evaluate(middle)
    assert before == pytest.approx(25 / 49)  # x ** 1: nothing has moved by itself
    page.locator(".slider-grip-rect").first.scroll_into_view_if_needed()
    rail = page.locator(".slider-rail-touch-rect").first.bounding_box()
    grip = page.locator(".slider-grip-rect").first.bounding_box()
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    page.mouse.move(rail["x"] + rail["width"] - 2, rail["y"] + rail["height"] / 2, steps=8)
    page.mouse.up()
    page.wait_for_function(f"{middle} != {before}")
    assert page.evaluate(middle) == pytest.approx((25 / 49) ** 2)
    assert page.locator(".slider-label", has_text="t = 1.0").count() == 1


def test_formulas_figures_and_tables_are_drawn(page, published):
    page.goto((published / "00_plain.html").as_uri())
    fraction = page.locator("math[display=block] mfrac").first.bounding_box()
    assert fraction["height"] > 20  # a numerator above a denominator
    assert page.evaluate("document.images[0].naturalWidth") > 300
    assert page.evaluate("getComputedStyle(document.querySelector('td')).textAlign") != "start"
    _screenshot(page, "plain")


def test_the_index_leads_to_every_page_and_back(page, published):
    page.goto((published / "index.html").as_uri())
    _screenshot(page, "index")
    page.get_by_role("link", name="First: formulas").click()
    assert page.title() == "First: formulas"
    page.get_by_role("link", name="plots", exact=True).click()
    assert page.title() == "Second: plots" and page.url.endswith("#A-slider")
    page.get_by_role("link", name="Contents").first.click()
    assert page.title().startswith("gsas-lab")


def test_pages_are_dark_where_the_reader_likes_it_dark(page, published):
    page.emulate_media(color_scheme="dark")
    for name in ("index", "00_plain", "01_plots"):
        page.goto((published / f"{name}.html").as_uri())
        style = page.evaluate("(({backgroundColor, color}) => [backgroundColor, color])"
                              "(getComputedStyle(document.body))")  # fmt: skip
        back, ink = (sum(map(int, re.findall(r"\d+", colour))) for colour in style)
        assert back < 100 and ink > 600
        _screenshot(page, f"{name[3:] if name[0] == '0' else name}-dark")


def test_a_phone_scrolls_in_one_direction_only(page, published):
    page.set_viewport_size({"width": 390, "height": 800})
    for name in ("index", "00_plain", "01_plots"):
        page.goto((published / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    _screenshot(page, "phone")


CLIPPED = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
  const box = plot.getBoundingClientRect();
  return [...plot.querySelectorAll('text:not(.gtitle)')].filter(text => {
    const own = text.getBoundingClientRect();
    return own.width && (own.left < box.left - 1 || own.right > box.right + 1
      || own.bottom > box.bottom + 1 || parseFloat(getComputedStyle(text).fontSize) < 12);
  }).map(text => text.textContent);
})"""


@pytest.mark.parametrize("width", [390, 1280])
def test_explorers_with_data_are_legible_and_cut_nowhere(page, tmp_path, width):
    from gsas_lab.lessons import break_it, explorers, million, publish

    rank = np.arange(1, 51)
    titles = np.array([f"Kitchen no. {item}" for item in range(51)])
    users = explorers.Users(np.arange(3), np.full(3, 5), np.tile([1, 2, 3], (3, 1)), titles)
    prob, items = np.tile(0.99 / rank, (3, 1)), np.tile(rank, (3, 1))
    top = explorers.TopItems(prob, items, prob.sum(1), np.full(3, 5))
    names = ("SASRec", "SASRec, sampled softmax", "SASRec, softmax", "gSASRec")
    cells = [
        {"k": k, "t": t, "NDCG@10": 0.1 + t / k} for k in (4 ** np.arange(5)) for t in (0, 0.5, 1)
    ]
    said = pd.DataFrame({"cutoff": [1], "precision": 0.1653, "predicted": 0.9905, "theory": 0.995})
    every = {
        "user": explorers.user_explorer({name: top for name in names}, users, sample=[0, 1]),
        "grid": explorers.grid_explorer(pd.DataFrame(cells)),
        "cutoff": explorers.calibration_explorer({"SASRec": said}, cutoffs=[1]),
        "memory": explorers.memory_explorer(),
        "million": million.million_explorer(),
        "break": break_it.break_explorer(),
    }
    shown = {name: explorer.static() for name, explorer in every.items()}
    publish.write_gallery(shown, tmp_path / "all.html", "Explorers", "All of them.")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((tmp_path / "all.html").as_uri())
    page.wait_for_selector(".table .cell-text")
    page.wait_for_timeout(800)
    assert page.evaluate(CLIPPED) == []
    _screenshot(page, f"explorers-{width}")


def test_the_plan_of_the_course_can_be_read_on_a_phone(page, tmp_path):
    from gsas_lab.lessons import publish

    docs = Path(__file__).resolve().parents[2] / "docs"
    publish.write_document(docs / "course.md", tmp_path / "course.html")
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto((tmp_path / "course.html").as_uri())
    for box in page.locator("div.table").all():
        assert box.evaluate("e => e.getBoundingClientRect().right <= 390")
    plan = page.locator("div.table").nth(1)
    plan.evaluate("e => { e.scrollLeft = 10_000; }")
    last = plan.locator("thead th").last
    assert last.evaluate("e => e.getBoundingClientRect().right <= 391")  # scrolled into view


def test_printed_columns_scroll_on_a_phone_and_sentences_wrap(page, tmp_path):
    import nbformat

    from gsas_lab.lessons import publish

    row, sentence = "users, pairs" + 40 * " " + "300, 30,000", 20 * "a sentence & more "
    printed = nbformat.v4.new_output("stream", name="stdout", text=f"{sentence}\n{row}\n")
    math = nbformat.v4.new_markdown_cell("# Printed\n\n| loss |\n|---|\n| $\\sigma^\\beta$ |")
    cells = [math, nbformat.v4.new_code_cell("print()", outputs=[printed])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "printed.ipynb")
    publish.render(tmp_path / "printed.ipynb", tmp_path / "printed.html")
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto((tmp_path / "printed.html").as_uri())
    assert page.locator(".columns").all_inner_texts() == [row]
    assert page.locator(".columns").evaluate("e => e.getClientRects().length") == 1  # one line
    box = page.locator(".output_text pre")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    assert box.evaluate("e => e.getBoundingClientRect().right <= 390")
    assert box.evaluate("e => e.clientHeight > 100")  # the sentence takes many lines
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    assert page.locator("math mi").last.evaluate(size) >= 12


def test_no_slide_is_empty_cut_at_its_left_or_higher_than_the_screen(page, tmp_path):
    import nbformat

    from gsas_lab.lessons import slides

    new = nbformat.v4
    lines = new.new_output("stream", name="stdout", text="SASRec says so\n" * 40)
    silent = new.new_output("stream", name="stderr", text="a progress bar")
    cells = [
        new.new_markdown_cell("# Deck"),
        new.new_code_cell("train()", outputs=[silent]),
        new.new_code_cell("print()", outputs=[lines]),
    ]
    for cell, kind in zip(cells, ("slide", "subslide", "subslide"), strict=True):
        cell.metadata["slideshow"] = {"slide_type": kind}
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "book.ipynb")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(slides.write(tmp_path / "book.ipynb", tmp_path / "deck.html").as_uri())
    page.wait_for_selector(".reveal.ready")
    page.keyboard.press("ArrowDown")
    here = page.locator("section.present section.present")
    here.locator("pre").wait_for(state="visible")
    assert "SASRec says so" in here.inner_text()  # the silent cell is no slide
    page.wait_for_function(
        "() => { const s = Reveal.getCurrentSlide(); return s.scrollHeight <= s.clientHeight + 1 }"
    )
    left = "e => e.getBoundingClientRect().left"
    assert here.locator("pre").evaluate(left) >= here.evaluate(left)


def test_a_slide_has_its_figure_s_sliders_and_all_its_width(page, tmp_path):
    import json

    import nbformat

    from gsas_lab.lessons import publish, slides, theory_explorers

    figure = json.loads(theory_explorers.sigmoid_explorer().static().to_json())
    shown = nbformat.v4.new_output("display_data", data={publish.PLOT: figure})
    cells = [
        nbformat.v4.new_markdown_cell("# Deck"),
        nbformat.v4.new_code_cell("", outputs=[shown]),
    ]
    for cell in cells:
        cell.metadata["slideshow"] = {"slide_type": "slide"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "book.ipynb")
    page.goto(slides.write(tmp_path / "book.ipynb", tmp_path / "deck.html").as_uri())
    page.wait_for_selector(".reveal.ready")
    page.keyboard.press("ArrowRight")
    page.locator(".plot .controls input").first.wait_for(state="visible")
    page.wait_for_function(
        "() => { const p = document.querySelector('.js-plotly-plot');"
        " return p._fullLayout.width > 0.9 * p.closest('.plot').clientWidth }"
    )


def test_a_deck_of_slides_is_walked_through_without_a_network(page, published, tmp_path):
    import nbformat

    from gsas_lab.lessons import slides

    book = nbformat.read(published / "01_plots.ipynb", as_version=4)
    kinds = ["slide", "skip", "skip", "slide", "subslide"]  # the third is papermill's cell
    for cell, kind in zip(book.cells, kinds, strict=False):
        cell.metadata["slideshow"] = {"slide_type": kind}
    nbformat.write(book, tmp_path / "book.ipynb")
    page.goto(slides.write(tmp_path / "book.ipynb", tmp_path / "deck.html").as_uri())
    page.wait_for_selector(".reveal.ready")
    here = page.locator("section.present section.present")
    assert "Second: plots" in here.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    here.locator(".main-svg").first.wait_for(state="visible")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    _screenshot(page, "slides")
