"""Executed notebooks -> slides for the classroom: reveal.js, without kernel and network.

Projected are the cells whose metadata say so, as JupyterLab's sidebar sets it: slideshow.slide_type
"slide", "subslide" (below the slide), "fragment" or "-" (on the slide before). All others are
skipped; of code, the outputs are shown. nbconvert makes slides of them; reveal.js (MIT) comes along.
"""

import shutil
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode

from gsas_lab import files
from gsas_lab.errors import InputError
from gsas_lab.lessons import publish

REVEAL = Path(__file__).with_name("reveal")  # reveal.js, its style and its licence
_TEMPLATE = """\
{%- extends 'basic/index.html.j2' -%}
{%- block any_cell scoped -%}
{%- if cell.metadata.get('slide_start') -%}<section>{%- endif -%}
{%- if cell.metadata.get('subslide_start') -%}<section>{%- endif -%}
{%- if cell.metadata.get('fragment_start') -%}<div class="fragment">{%- endif -%}
{%- if cell.metadata.slide_type != 'skip' -%}{{ super() }}{%- endif -%}
{%- if cell.metadata.get('fragment_end') -%}</div>{%- endif -%}
{%- if cell.metadata.get('subslide_end') -%}</section>{%- endif -%}
{%- if cell.metadata.get('slide_end') -%}</section>{%- endif -%}
{%- endblock any_cell -%}
"""
_STYLE = """
html, body { height: 100%; } body { max-width: none; padding: 0; overflow: hidden; }
.reveal { height: 100vh; font-size: 22px; line-height: 1.4; }
.reveal .slides { text-align: left; }
.reveal .slides section > section { height: 100%; overflow-y: auto; overflow-x: hidden; }
.reveal h1 { font-size: 1.9em; margin: 0 0 0.5em; } .reveal h2 { font-size: 1.4em; margin: 0.2em 0; }
.reveal table { font-size: 0.75em; } .reveal pre { font-size: 0.72em; width: 100%; box-sizing: border-box; }
.reveal img { max-height: 540px; max-width: 100%; }
.reveal :is(.input_area, .output_stream, .output_text) { margin-left: 0; margin-right: 0; }
.reveal .plot .controls { display: flex; position: static; pointer-events: auto; font-size: 16px; }
"""
_START = """
Reveal.initialize({width: 1280, height: 720, margin: 0.04, center: false, hash: true,
  slideNumber: "c/t", transition: "none"});
function fit() { // what is higher than the slide becomes smaller
  window.dispatchEvent(new Event("resize"));
  const slide = Reveal.getCurrentSlide(), parts = [...slide.children];
  for (const part of parts) part.style.zoom = 1;
  for (const plot of slide.querySelectorAll(".js-plotly-plot")) // drawn where it had no width
    Plotly.relayout(plot, { width: plot.parentElement.clientWidth });
  for (let zoom = 0.95; slide.scrollHeight > slide.clientHeight + 1 && zoom > 0.6; zoom -= 0.05)
    for (const part of parts) part.style.zoom = zoom;
}
Reveal.on("ready", fit);
Reveal.on("slidechanged", fit);
"""


def marked(book: NotebookNode) -> list[NotebookNode]:
    """The cells that are projected."""
    kinds = ("slide", "subslide", "fragment", "-")
    return [c for c in book.cells if c.metadata.get("slideshow", {}).get("slide_type") in kinds]


def write(notebook: Path, page: Path) -> Path:
    """The marked cells of an executed notebook as one deck, reveal.js beside it; of code cells,
    those that show something.

    InputError if no cell is marked.
    """
    book = nbformat.read(notebook, as_version=4)
    if not marked(book):
        raise InputError(f"{notebook} has no marked cell: set slide types in JupyterLab's sidebar.")
    heading, shown = publish.title(book), publish.static(book)
    shown.cells = [c for c in marked(shown) if c.cell_type != "code" or c.outputs]
    exporter = SlidesExporter(
        raw_template=_TEMPLATE, exclude_input=True, exclude_output_prompt=True
    )
    exporter.register_filter("markdown2html", publish.markdown)
    body, _ = exporter.from_notebook_node(shown)
    publish.write_page(
        page,
        heading,
        f'<link rel="stylesheet" href="reveal.css"><style>{_STYLE}</style>'
        f'<div class="reveal"><div class="slides">{body}</div></div>'
        f'<script src="reveal.js"></script><script>{_START}</script>',
    )
    for file in REVEAL.iterdir():
        name = "reveal.LICENSE.txt" if file.name == "LICENSE" else file.name
        shutil.copyfile(file, page.with_name(name))
    return page


def write_all(executed: Path, folder: Path) -> list[Path]:
    """A deck in `folder` for each notebook of the folder `executed` with marked cells.

    InputError where there is none: `make site` executes them.
    """
    folder = files.output(folder)
    books = sorted(executed.glob("[0-9][0-9]_*.ipynb"))
    decks = [path for path in books if marked(nbformat.read(path, as_version=4))]
    if not decks:
        raise InputError(
            f"{executed} holds no executed notebooks with slides: run make site first."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return [write(path, folder / f"{path.stem}.html") for path in decks]
