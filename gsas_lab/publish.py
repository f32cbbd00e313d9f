"""Notebooks -> executed notebooks, pages that need neither kernel nor network, and an index.

Plotly's figures become plain `div`s that share one plotly.min.js beside the pages; formulas become
MathML; widgets, which would need a kernel, are left out (explorers show their static form when
GSAS_LAB_HEADLESS is set).
"""

import html
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from gsas_lab.errors import InputError

_KERNEL_STARTS = 3  # a kernel can lose a race for its ports
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --quiet: #5b6570; --line: #d8dee4;
        --code: #f5f7f9; --accent: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --text: #e4e8ec; --quiet: #9aa5b1;
        --line: #343c45; --code: #1d232a; --accent: #56b4e9 } }
body { background: var(--page); color: var(--text); max-width: 62rem; margin: 2rem auto;
       padding: 0 1.2rem; font: 17px/1.6 system-ui, sans-serif }
h1, h2, h3 { line-height: 1.25; margin-top: 2em } h1 { margin-top: .5em }
a { color: var(--accent) } nav, small, .quiet { color: var(--quiet) }
nav { display: flex; justify-content: space-between; gap: 1rem; font-size: .9rem }
pre, code { font: .86em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--code) }
pre { padding: .7em 1em; overflow-x: auto; border-radius: 6px } code { padding: .1em .25em }
pre code { padding: 0 }
pre.code { border-left: 3px solid var(--line) } pre.out { background: none; padding: .2em 1em }
details > summary { color: var(--quiet); cursor: pointer; font-size: .85rem }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
.table { overflow-x: auto }
th, td { border-bottom: 1px solid var(--line); padding: .3em .8em; text-align: right }
th { color: var(--quiet); font-weight: 600 } th:first-child, td:first-child { text-align: left }
img { max-width: 100%; border-radius: 6px } blockquote { border-left: 3px solid var(--accent);
      margin-left: 0; padding-left: 1em } .figure { background: #fff; border-radius: 6px;
      overflow-x: auto }
"""


def execute_all(
    notebooks: list[Path],
    folder: Path,
    parameters: dict[str, Any],
    summary: Callable[[], pd.DataFrame] | None = None,
    note: str = "",
) -> Path:
    """Execute notebooks in order with papermill and leave them, their pages and index.html.

    Each notebook gets those parameters that it declares; one that none declares is an InputError
    before anything runs. summary(): a table for the index, made after the last notebook; note: a
    line below it. Returns the index. A notebook that fails is kept, executed as far as it came.
    """
    for notebook in notebooks:
        if not notebook.is_file():
            raise InputError(f"{notebook} does not exist: run from the project's checkout.")
    declared = {notebook: _declared(notebook) for notebook in notebooks}
    unknown = set(parameters) - set().union(*declared.values())
    if unknown:
        known = ", ".join(sorted(set().union(*declared.values())))
        raise InputError(f"Unknown parameter '{min(unknown)}': the notebooks know {known}.")
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for place, notebook in enumerate(notebooks):
        own = {name: value for name, value in parameters.items() if name in declared[notebook]}
        started = time.perf_counter()
        print(f"[{place + 1}/{len(notebooks)}] {notebook.name} …", flush=True)
        execute(notebook, folder / notebook.name, own)
        seconds = time.perf_counter() - started
        print(f"[{place + 1}/{len(notebooks)}] {notebook.name} done in {seconds:.0f} s", flush=True)
        pages.append((folder / notebook.name, seconds))
    for place, (page, _) in enumerate(pages):
        before = pages[place - 1][0] if place else None
        after = pages[place + 1][0] if place + 1 < len(pages) else None
        render(page, page.with_suffix(".html"), before, after)
    return _index(folder, pages, summary() if summary else None, note)


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Execute one notebook headlessly; InputError with cell and error if it fails."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    environment = {"GSAS_LAB_HEADLESS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        for attempt in range(_KERNEL_STARTS):
            try:
                papermill.execute_notebook(
                    notebook,
                    output,
                    parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    cwd=notebook.parent,
                    store_widget_state=False,
                )
                return
            except (DeadKernelError, RuntimeError) as error:
                if attempt == _KERNEL_STARTS - 1 or "kernel" not in str(error).lower():
                    raise
    except papermill.PapermillExecutionError as error:
        raise InputError(
            f"{notebook.name} stopped at cell {error.cell_index}: {error.ename}: {error.evalue} "
            f"(as far as it came: {output})."
        ) from None
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def render(
    notebook: Path, page: Path, before: Path | None = None, after: Path | None = None
) -> None:
    """An executed notebook -> one HTML page; plotly.min.js is put beside it once if it is needed."""
    book = nbformat.read(notebook, as_version=4)
    body = [_cell(cell, page.parent) for cell in book.cells]
    links = [
        f'<a href="{before.stem}.html">← {html.escape(title(before))}</a>' if before else "<span>",
        '<a href="index.html">all notebooks</a>',
        f'<a href="{after.stem}.html">{html.escape(title(after))} →</a>' if after else "<span>",
    ]
    nav = "<nav>" + "".join(links).replace("<span>", "<span></span>") + "</nav>"
    _write(page, title(notebook), nav + "\n".join(filter(None, body)) + nav)


def title(notebook: Path) -> str:
    """A notebook's first heading."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        found = re.search(r"^# (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if found:
            return found.group(1).strip()
    return notebook.stem


def _declared(notebook: Path) -> set[str]:
    from papermill import inspect_notebook

    return set(inspect_notebook(notebook))


def _write(page: Path, heading: str, body: str) -> None:
    partial = page.with_suffix(".partial")
    partial.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{html.escape(heading)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
    partial.replace(page)


def _index(
    folder: Path, pages: list[tuple[Path, float]], table: pd.DataFrame | None, note: str
) -> Path:
    from gsas_lab import __version__

    rows = "".join(
        f'<li><a href="{page.stem}.html">{html.escape(title(page))}</a> '
        f'<small>({seconds:.0f} s, <a href="{page.name}">notebook</a>)</small></li>'
        for page, seconds in pages
    )
    shown = "" if table is None else f'<div class="table">{_table(table)}</div>'
    made = time.strftime("%Y-%m-%d %H:%M")
    body = (
        f"<h1>gsas-lab: {html.escape(folder.name)}</h1>"
        "<p>See, understand and cure the overconfidence of recommenders trained with negative "
        f"sampling.</p><ol start=0>{rows}</ol>{shown}<p><small>{html.escape(note)}</small></p>"
        f"<p><small>gsas-lab {__version__}, {made}</small></p>"
    )
    _write(folder / "index.html", f"gsas-lab: {folder.name}", body)
    return folder / "index.html"


def _table(table: pd.DataFrame) -> str:
    return table.to_html(border=0, na_rep="", escape=True)


# --- cells ---------------------------------------------------------------------------------------


def _cell(cell: Any, folder: Path) -> str:
    if cell.cell_type == "markdown":
        return _markdown(cell.source)
    if cell.cell_type != "code":
        return ""
    tags = cell.metadata.get("tags", [])
    name = "Parameters given" if "injected-parameters" in tags else ""
    code = f'<pre class="code"><code>{html.escape(cell.source)}</code></pre>' if cell.source else ""
    label = f"<small>{name}</small>" if name else ""
    return label + code + "".join(_output(output, folder) for output in cell.outputs)


def _output(output: Any, folder: Path) -> str:
    if output.output_type == "stream":
        return _text(output.text) if output.name == "stdout" else ""  # stderr is progress bars
    if output.output_type == "error":
        return _text(f"{output.ename}: {output.evalue}")
    data = output.data
    if "application/vnd.plotly.v1+json" in data:
        return _plotly(data["application/vnd.plotly.v1+json"], folder)
    if "application/vnd.jupyter.widget-view+json" in data:
        return ""  # a widget without its kernel is only a "model not found" box
    if "image/svg+xml" in data:
        return f'<div class="figure">{data["image/svg+xml"]}</div>'
    if "image/png" in data:
        return f'<p><img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}"></p>'
    if "text/html" in data:
        return f'<div class="table">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return _markdown(data["text/markdown"])
    return _text(data.get("text/plain", ""))


def _text(text: str) -> str:
    return f'<pre class="out">{html.escape(text)}</pre>'


def _plotly(figure: dict, folder: Path) -> str:
    import plotly
    import plotly.io

    script = folder / "plotly.min.js"
    if not script.exists():
        source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
        shutil.copyfile(source, script)
    figure = {name: part for name, part in figure.items() if name in ("data", "layout", "frames")}
    drawn = plotly.io.from_json(json.dumps(figure), skip_invalid=True)
    shown = plotly.io.to_html(
        drawn, include_plotlyjs="directory", full_html=False, auto_play=False,
        config={"displaylogo": False, "responsive": True},
    )  # fmt: skip
    return f'<div class="figure">{shown}</div>'


_MATH = re.compile(
    r"(```.*?```|`[^`\n]+`)|\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", re.S
)


def _markdown(source: str) -> str:
    """Markdown -> HTML; $…$ and $$…$$ -> MathML, which browsers draw with no script."""
    from latex2mathml.converter import convert
    from mistune import create_markdown

    formulas: list[str] = []

    def keep(match: re.Match) -> str:
        code, block, inline = match.groups()
        if code:
            return code
        formulas.append(convert(block or inline, display="block" if block else "inline"))
        return f"MATHML{len(formulas) - 1}END"

    to_html = create_markdown(escape=False, plugins=["table", "strikethrough"])
    text = str(to_html(_MATH.sub(keep, source)))
    return re.sub(r"MATHML(\d+)END", lambda match: formulas[int(match.group(1))], text)
