"""Notebooks -> executed notebooks, pages that need neither kernel nor network, and an index.

Plotly's figures share one plotly.min.js beside the pages, formulas become MathML, and widgets,
which are empty boxes without their kernel, are left out: explorers show their static form where
GSAS_LAB_HEADLESS is set.
"""

import ast
import copy
import html
import logging
import multiprocessing
import os
import platform
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import plotly.io
from latex2mathml.converter import convert
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs
from traitlets.config import Config

from gsas_lab import __version__, figures, files, threads
from gsas_lab.errors import InputError, whole_number

logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of settings that no cell declares

KERNEL_STARTS = 3  # a kernel can lose a race for its ports
KERNEL = Config({"KernelManager": {"transport_encryption": "auto"}})  # else each start warns
PLOT = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
CLAIM = re.compile(  # "**Claim.** …" up to the next empty line
    r"^(?:> *)?\*\*[^*\n]*\bclaim\b[^*\n]*\*\*[:.]?\s*(.+?)(?:\n\s*\n|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_CONTENTS = '<nav class="top"><span></span><span><a href="index.html">Contents</a></span></nav>'
STYLE = Path(__file__).with_suffix(".css")


def execute_all(
    notebooks: Sequence[Path],
    folder: Path,
    parameters: dict[str, Any],
    summary: Callable[[], pd.DataFrame] | None = None,
    note: str = "",
    beside: Callable[[Path], dict[str, str]] | None = None,
    everywhere: Collection[str] = (),
    at_once: int = 1,
    first: Collection[str] = (),
) -> Path:
    """Execute notebooks in order; leave them, their pages and index.html in folder.

    at_once: so many side by side, each with its share of the cores, and those named in first before
    all others, since what takes long should not end alone. More than one start processes that
    import the caller's script, which needs `if __name__ == "__main__":` then.

    Each notebook gets those of the parameters that it declares or that stand in everywhere. After the last notebook summary()
    gives a table for the index and beside(folder) writes further files there: it returns the pages
    among them, title -> file name. note: a line below the table. Returns the index's path.

    All is made in <folder>.partial and moved at the end, so that folder is never half-written.

    Raises InputError before anything runs for a missing notebook, a parameter that none declares
    or one of another type than its default, a folder that is no place for results or in which
    another process works, one with files of these names that no call has left as they are, and a
    <folder>.partial that is of no earlier call; and for a notebook
    that fails, which stays in <folder>.partial, executed as far as it came: no other one is begun
    then, and those beside it are ended.
    """
    whole_number("at_once", at_once)
    folder = files.output(folder).resolve()
    own = check_parameters(notebooks, parameters, everywhere)
    pages = [f"{book.stem}{end}" for book in notebooks for end in (".html", ".ipynb")]
    with files.locked(folder), files.workplace(folder, pages) as partial:
        made = [partial / notebook.name for notebook in notebooks]
        calls = [(b, place, own[b]) for b, place in zip(notebooks, made, strict=True)]
        if at_once == 1:
            for told, call in zip(_counted(notebooks), calls, strict=True):
                print(f"{told} …", end=" ", flush=True)
                print(_minutes(execute(*call)), flush=True)
        else:
            told_of = zip(calls, _counted(notebooks), strict=True)
            _side_by_side(sorted(told_of, key=lambda c: c[0][0].stem not in first), at_once)
        for notebook in made:
            render(notebook, notebook.with_suffix(".html"), made)
        others = beside(partial) if beside else {}
        write_index(made, summary() if summary else None, note, others)
    return folder / "index.html"


def _counted(notebooks: Sequence[Path]) -> list[str]:
    return [f"[{place}/{len(notebooks)}] {b.name}" for place, b in enumerate(notebooks, start=1)]


def _side_by_side(
    calls: Sequence[tuple[tuple[Path, Path, dict[str, Any]], str]], at_once: int
) -> None:
    """`execute(*call)` for each (call, its name), at_once of them, in processes of their own."""
    share = {"OMP_NUM_THREADS": str(max(1, threads.cores() // at_once))}
    waiting, running = deque(calls), dict[Future[float], str]()
    with (
        _environment(**(share | os.environ)),  # where the user has said it, that
        ProcessPoolExecutor(
            at_once, multiprocessing.get_context("spawn"), initializer=_end_with_parent
        ) as pool,
    ):
        shows: Future[float] | None = None  # progress bars: two would write over each other
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    call, name = waiting.popleft()
                    print(f"{name} …", flush=True)
                    started = pool.submit(execute, *call, shows is None)
                    running[started], shows = name, shows or started
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    shows = None if future is shows else shows
                    print(f"{running.pop(future)}: {_minutes(future.result())}", flush=True)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # nbclient ends its kernel then
            raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def check_parameters(
    notebooks: Sequence[Path], parameters: dict[str, Any], everywhere: Collection[str] = ()
) -> dict[Path, dict[str, Any]]:
    """For each notebook, of the parameters given, those that it declares and those in everywhere.

    Raises InputError for a missing notebook, a parameter that no notebook declares, or a value of
    another type than the declared one (a whole number is accepted as a float; any number or text
    where None is declared).
    """
    own = {}
    for notebook in notebooks:
        if not notebook.is_file():
            raise InputError(f"{notebook} does not exist: run from the project's checkout.")
        declared = declared_parameters(_read(notebook))
        own[notebook] = {n: v for n, v in parameters.items() if n in declared or n in everywhere}
        for name, value in own[notebook].items():
            if name in declared and not _fits(value, declared[name]):
                raise InputError(
                    f"Parameter '{name}' of {notebook.name} must be of type "
                    f"{type(declared[name]).__name__}, as {declared[name]!r} is, not {value!r}."
                )
    for name in parameters:
        if not any(name in given for given in own.values()):
            known = {n for book in notebooks for n in declared_parameters(_read(book))}
            known |= set(everywhere)
            raise InputError(
                f"Unknown parameter '{name}': the notebooks know {', '.join(sorted(known))}."
            )
    return own


def declared_parameters(book: NotebookNode) -> dict[str, Any]:
    """Names and default values in the cell tagged `parameters`, which holds literals only."""
    found: dict[str, Any] = {}
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for line in ast.parse(cell.source).body:
                if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
                    target = line.targets[0] if isinstance(line, ast.Assign) else line.target
                    found[ast.unparse(target)] = ast.literal_eval(line.value)
    return found


def execute(notebook: Path, output: Path, parameters: dict[str, Any], bars: bool = True) -> float:
    """Execute one notebook headlessly, in its own folder as JupyterLab does; seconds it took.

    Raises InputError with the notebook, the cell and the error; output is then kept as far as the
    notebook came. bars: on a terminal the notebook's progress bars are passed on.
    """
    with _environment(GSAS_LAB_HEADLESS="1", PYDEVD_DISABLE_FILE_VALIDATION="1"):
        for start in range(1, KERNEL_STARTS + 1):
            try:
                book = papermill.execute_notebook(
                    notebook,
                    output,
                    parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    cwd=notebook.parent,
                    stderr_file=sys.stderr if bars and sys.stderr.isatty() else None,
                    store_widget_state=False,
                    config=KERNEL,
                )
                return float(book.metadata.papermill.duration)
            except papermill.PapermillExecutionError as error:
                raise InputError(
                    f"{notebook.name} stopped at cell {error.exec_count} with {error.ename}: "
                    f"{error.evalue.strip().splitlines()[0] if error.evalue.strip() else '-'} "
                    f"(the notebook as far as it came: {output})."
                ) from None
            except DeadKernelError:
                raise InputError(
                    f"The kernel of {notebook.name} died while it ran, most often for want of "
                    f"memory (the notebook as far as it came: {output})."
                ) from None
            except RuntimeError as error:  # the kernel did not start
                if start == KERNEL_STARTS:
                    raise InputError(
                        f"No kernel started for {notebook.name} in {start} attempts: {error}."
                    ) from error
    raise AssertionError("unreachable")


def render(notebook: Path, page: Path, siblings: Sequence[Path] = ()) -> None:
    """An executed notebook -> one HTML page, with plotly.min.js beside it if it shows plots.

    siblings: all notebooks of the folder in reading order, for the links to the previous and next.
    """
    book = _read(notebook)
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.register_filter("markdown2html", markdown)
    body, _ = exporter.from_notebook_node(static(book))
    facts = f'<p class="facts">{_facts(book)}</p>'
    top, bottom = (_navigation(notebook, siblings, place) for place in ("top", "bottom"))
    write_page(page, title(book), f"{top}{facts}<main>{_in_columns(body)}</main>{bottom}")


def write_document(source: Path, page: Path) -> str:
    """A Markdown file -> one HTML page; its first heading is returned."""
    text = source.read_text(encoding="utf-8")
    heading = re.findall(r"^# +(.+)$", text, re.MULTILINE)[0].strip()
    body = markdown(text).replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")  # which scrolls where the page is narrow
    write_page(page, heading, f'{_CONTENTS}<main class="text_cell">{body}</main>')
    return heading


def write_gallery(figures: Mapping[str, Figure], page: Path, heading: str, story: str) -> str:
    """Plotly figures below each other on one page, by heading; the page's heading is returned."""
    parts = [f"<h1>{html.escape(heading)}</h1>{markdown(story)}"]
    for place, (name, figure) in enumerate(figures.items()):
        parts.append(f"<h2>{html.escape(name)}</h2>{_plot(figure.to_dict(), f'plot-{place}')}")
    write_page(page, heading, f"{_CONTENTS}<main>{''.join(parts)}</main>")
    return heading


def write_index(
    notebooks: Sequence[Path],
    summary: pd.DataFrame | None = None,
    note: str = "",
    others: Mapping[str, str] | None = None,
) -> Path:
    """index.html beside executed notebooks: their titles, claims and run times, and the table.

    others: further pages in the folder, title -> file name.
    """
    folder = notebooks[0].parent
    entries = []
    for notebook in notebooks:
        book = _read(notebook)
        entries.append(
            f'<li><h2><a href="{notebook.stem}.html">{html.escape(title(book))}</a></h2>'
            f"{markdown(claim(book))}"
            f'<p class="facts">{_facts(book)} · <a href="{notebook.name}">notebook</a></p></li>'
        )
    links = " · ".join(
        f'<a href="{file}">{html.escape(name)}</a>' for name, file in (others or {}).items()
    )
    table = (
        "" if summary is None else f'<div class="table">{figures.table(summary).to_html()}</div>'
    )
    packages = ("torch", "numpy", "pandas", "scipy", "plotly")
    versions = " · ".join(f"{package} {version(package)}" for package in packages)
    name = folder.name.removesuffix(".partial")
    write_page(
        folder / "index.html",
        f"gsas-lab: {name}",
        f'<p class="facts">{html.escape(name)}</p><main><h1>gsas-lab</h1><p>See, understand and '
        "cure the overconfidence of recommenders trained with negative sampling.</p>"
        f'<ol class="pages">{"".join(entries)}</ol><p>{links}</p>{table}'
        f'<p class="facts">{html.escape(note)}</p></main>'
        f'<p class="facts">gsas-lab {__version__} · {versions} · Python {platform.python_version()} · '
        f"{platform.system()} {platform.machine()}</p>",
    )
    return folder / "index.html"


def title(book: NotebookNode) -> str:
    """A notebook's first heading."""
    return _first(re.compile(r"^# +(.+)$", re.MULTILINE), book) or "Untitled"


def claim(book: NotebookNode) -> str:
    """The claim that a notebook tests: the paragraph that opens with a bold "Claim"."""
    found = _first(CLAIM, book)
    return found[:1].upper() + found[1:]


# --- Markdown -------------------------------------------------------------------------------------


class _Renderer(IPythonRenderer):
    """Jupyter's Markdown with MathML for formulas, and links to notebooks as links to pages."""

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, _flat(url), title)


def _flat(url: str) -> str:
    """A link inside the project -> where its target stands beside the page: all in one folder.

    Exercises and solutions stay notebooks, `exercises_…`: a page would be of no use.
    """
    file, mark, anchor = url.partition("#")
    path = Path(file)
    if ":" in file or path.suffix not in (".ipynb", ".md"):
        return url
    if path.parent.name in ("exercises", "solutions"):
        return f"{path.parent.name}_{path.name}"
    return f"{path.stem}.html{mark}{anchor}"


def _mathml(formula: str, display: str) -> str:
    try:  # the converter knows align, MathJax within $$ only aligned
        return convert(formula.replace("{aligned}", "{align*}"), display=display)
    except Exception:  # its errors have no common class; what is no TeX is shown as it was written
        return f"<code>{html.escape(formula)}</code>"


def markdown(source: str) -> str:
    """Jupyter's Markdown -> HTML, formulas as MathML."""
    return str(MarkdownWithMath(renderer=_Renderer(escape=False)).render(source))


# --- outputs --------------------------------------------------------------------------------------


def static(book: NotebookNode) -> NotebookNode:
    """A copy whose outputs need neither kernel nor network."""
    book = copy.deepcopy(book)
    heading = title(book)
    for place, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        elif cell.cell_type == "code":
            cell.metadata.setdefault("alt", f"Figure: {heading}")
            shown = (_shown(out, f"plot-{place}-{n}") for n, out in enumerate(cell.outputs))
            cell.outputs = [output for output in shown if output is not None]
    return book


def _shown(output: NotebookNode, name: str) -> NotebookNode | None:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None  # stderr holds progress bars
    data = output.get("data", {})
    if PLOT in data:
        output.data = NotebookNode({"text/html": _plot(data[PLOT], name)})
    elif "text/html" in data:
        data.pop(WIDGET, None)
        data["text/html"] = _offline(data["text/html"])
    elif WIDGET in data:
        return None
    return output


def _plot(figure: Mapping[str, Any], name: str) -> str:
    plot = plotly.io.to_html(
        {part: figure.get(part) for part in ("data", "layout", "frames")},
        {"displaylogo": False},
        auto_play=False,
        include_plotlyjs=False,
        full_html=False,
        validate=False,
        div_id=name,
    )
    return _offline(plot)


def _in_columns(body: str) -> str:
    """Printed lines that spaces put into columns are marked: they scroll where others wrap."""

    def marked(printed: re.Match[str]) -> str:
        return re.sub(r"(?m)^(.*\S {3,}\S.*)$", r'<span class="columns">\1</span>', printed[2])

    pattern = re.compile(r'(output_text">\s*<pre>)(.*?)(?=</pre>)', re.DOTALL)
    return pattern.sub(lambda printed: printed[1] + marked(printed), body)


def _offline(text: str) -> str:
    """HTML without plotly.js, which the page has, and without scripts from elsewhere."""
    text = text.replace(get_plotlyjs(), "")
    text = re.sub(r"<script[^>]*\ssrc=[^>]*>\s*</script>", "", text)
    return f'<div class="plot">{text}</div>' if "Plotly.newPlot" in text else text


# --- pages ----------------------------------------------------------------------------------------


def write_page(page: Path, heading: str, body: str) -> None:
    """One page in the look of all; Plotly's library goes beside it if a figure needs it."""
    script = ""
    if "Plotly.newPlot" in body:
        script = '<script src="plotly.min.js"></script>'
        if not (library := page.with_name("plotly.min.js")).exists():
            files.write(library, get_plotlyjs().encode())
        for name in ("theory.js", "pages.js"):
            script += f"\n<script>\n{STYLE.with_name(name).read_text(encoding='utf-8')}</script>"
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(heading)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n{script}\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    files.write(page, text.encode(errors="backslashreplace"))


def _navigation(notebook: Path, siblings: Sequence[Path], place: str) -> str:
    if not siblings:
        return ""
    here = [sibling.name for sibling in siblings].index(notebook.name)
    before, after = siblings[here - 1 : here], siblings[here + 1 : here + 2]
    links = (
        "".join(
            f'<a href="{p.stem}.html">←\u00a0{html.escape(title(_read(p)))}</a>' for p in before
        ),
        '<a href="index.html">Contents</a>',
        "".join(
            f'<a href="{p.stem}.html">{html.escape(title(_read(p)))}\u00a0→</a>' for p in after
        ),
    )
    spans = "".join(f"<span>{link}</span>" for link in links)
    return f'<nav class="{place}">{spans}</nav>'


def _facts(book: NotebookNode) -> str:
    """Data set, run time and date of an executed notebook."""
    record = book.metadata.get("papermill", {})
    parameters = declared_parameters(book) | record.get("parameters", {})
    facts = [
        str(parameters.get("dataset", "")),
        _minutes(record["duration"]) if record.get("duration") else "",
        str(record.get("end_time") or "")[:16].replace("T", " "),
    ]
    return " · ".join(html.escape(fact) for fact in facts if fact)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _first(pattern: re.Pattern[str], book: NotebookNode) -> str:
    found = (pattern.search(cell.source) for cell in book.cells if cell.cell_type == "markdown")
    return next((match.group(1).strip() for match in found if match), "")


def _fits(value: Any, default: Any) -> bool:
    if default is None:
        return isinstance(value, str | int | float | None)
    if isinstance(default, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is type(default)


def _read(notebook: Path) -> NotebookNode:
    return nbformat.read(notebook, as_version=4)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the kernels, put back afterwards."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
