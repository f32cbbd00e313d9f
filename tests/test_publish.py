"""Claims about publish.py: pages complete without kernel or network; mistakes told in a sentence."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gsas_lab import files, results
from gsas_lab.__main__ import LONG, NOTEBOOKS, main
from gsas_lab.errors import Busy, InputError
from gsas_lab.lessons import publish
from gsas_lab.threads import cores


@pytest.fixture
def pages(published: Path) -> dict[str, BeautifulSoup]:
    return {
        page.stem: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        for page in published.glob("*.html")
    }


def _notebook(folder: Path, *cells: str, parameters: str = "k = 1", name: str = "00_made") -> Path:
    path = folder / f"{name}.ipynb"
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    rest = [new_code_cell(cell) for cell in cells]
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Made"), first, *rest]), path)
    return path


def test_the_folder_holds_notebooks_pages_index_and_one_plotly_and_no_more(published):
    assert sorted(file.name for file in published.iterdir()) == [
        ".gsas-lab", "00_plain.html", "00_plain.ipynb", "01_plots.html", "01_plots.ipynb",
        "index.html", "plotly.min.js",
    ]  # fmt: skip
    assert list(published.parent.iterdir()) == [published]


def test_no_page_loads_anything_from_elsewhere(pages):
    for name, page in pages.items():
        loaded = [tag["src"] for tag in page.find_all(src=True)]
        loaded += [tag["href"] for tag in page.find_all("link", href=True)]
        assert all(url == "plotly.min.js" or url.startswith("data:") for url in loaded), name
        css = " ".join(tag.text for tag in page.find_all("style"))
        assert "url(" not in css and "@import" not in css, name


def test_plotly_is_stored_once_and_loaded_only_where_there_are_plots(published, pages):
    loading = [name for name, page in pages.items() if page.find_all(src="plotly.min.js")]
    assert loading == ["01_plots"]
    assert len(pages["01_plots"].find_all(src=True)) == 1
    assert (published / "01_plots.html").stat().st_size < 200_000  # plotly.min.js has 4.8 MB


def test_widgets_leave_no_trace_and_progress_bars_neither(published):
    text = (published / "01_plots.html").read_text(encoding="utf-8")
    for trace in ("widget-view", "model_id", "IntSlider(", "FigureWidget({", "noise\n"):
        assert trace not in text
    for notebook in published.glob("*.ipynb"):
        assert "widgets" not in nbformat.read(notebook, as_version=4).metadata


def test_all_plots_are_there_and_no_animation_starts_by_itself(published):
    text = (published / "01_plots.html").read_text(encoding="utf-8")
    assert text.count("Plotly.newPlot(") == 3
    assert text.count("Plotly.addFrames(") == 1
    assert "Plotly.animate(" not in text


def test_formulas_become_mathml_and_code_stays_code(pages):
    page = pages["00_plain"]
    assert len(page.find_all("math")) == 5
    assert len(page.find_all("math", display="block")) == 2
    assert page.find("math", display="block").find("mfrac")
    assert page.find("mtable").find_all("mtd", columnalign="right")  # aligned
    assert page.find("code", string="$not_math$")
    assert "$5 and $6" in page.text
    outside = page.find("main")
    for code in outside.find_all(["code", "pre", "math"]):
        code.decompose()
    assert "$" not in outside.text and "\\" not in outside.text


def test_a_formula_that_is_no_tex_is_shown_as_written(tmp_path):
    cells = [new_markdown_cell("# Broken\n\n$a^$ and $b$")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "broken.ipynb")
    publish.render(tmp_path / "broken.ipynb", tmp_path / "broken.html")
    page = (tmp_path / "broken.html").read_text()
    assert "<code>a^</code>" in page and page.count("<math") == 1


def test_figures_tables_output_and_parameters_are_shown(pages):
    page = pages["00_plain"]
    assert page.find("img", alt="Figure: A figure and a table")["src"].startswith("data:image/png")
    assert [cell.text for cell in page.find("table", class_="dataframe").find_all("td")] == [
        "1", "0.1310", "16", "0.1703",
    ]  # fmt: skip
    assert "k = 3, t = 0.0, toy-2" in page.text
    given = page.find(class_="celltag_injected-parameters").text
    assert "k = 3" in given and '"toy-2"' in given and "\nt =" not in given


def test_pages_link_to_each_other_and_the_index(published, pages):
    for page in pages.values():
        for link in page.find_all("a", href=True):
            file, _, anchor = link["href"].partition("#")
            assert not file or (published / file).exists(), link
            target = pages.get(Path(file).stem, page) if file else page
            assert not anchor or target.find(id=anchor), link
    assert pages["00_plain"].find("a", href="01_plots.html", string="Second: plots\u00a0→")
    assert pages["01_plots"].find("a", href="00_plain.html", string="←\u00a0First: formulas")
    assert pages["00_plain"].find("a", href="01_plots.html#A-slider")


def test_the_index_tells_title_claim_time_dataset_date_versions_and_summary(pages):
    page = pages["index"]
    first, second = page.find(class_="pages").find_all("li")
    assert first.find("a", href="00_plain.html").text == "First: formulas"
    assert "One negative makes" in first.text and first.find("math")
    assert re.search(r"toy-2 · \d+ s · \d{4}-\d\d-\d\d \d\d:\d\d", first.text)
    assert "Nothing to test" not in second.text
    assert "0.176" in page.find("table").text
    assert "<i>seen</i>" in page.text  # the note, escaped
    assert re.search(r"torch \d.* Python \d", page.text)


def test_documents_and_figures_become_pages_that_the_index_lists(tmp_path):
    source = tmp_path / "guide.md"
    source.write_text(
        "# A guide\n\n$\\alpha$, [notebook](../notebooks/02_gbce_theory.ipynb), [quiz](quiz.md#one), "
        "[yours](../notebooks/exercises/02_gbce_theory.ipynb), [web](https://example.org/a.md)\n\n"
        "<details><summary>Answer</summary>\n\n**42**\n\n</details>\n"
    )

    def beside(folder: Path) -> dict[str, str]:
        figure = go.Figure(go.Scatter(y=[1, 2]))
        figure.frames = [go.Frame(name="a", data=[go.Scatter(y=[2, 1])])]
        title = publish.write_gallery(
            {"A slider": figure}, folder / "drag.html", "Drag", "Do *it*."
        )
        return {
            title: "drag.html",
            publish.write_document(source, folder / "guide.html"): "guide.html",
        }

    index = publish.execute_all([_notebook(tmp_path)], tmp_path / "run", {}, beside=beside)
    page = BeautifulSoup(index.read_text(), "html.parser")
    assert page.find("a", href="guide.html").text == "A guide"
    assert page.find("a", href="drag.html").text == "Drag"
    guide = BeautifulSoup((index.parent / "guide.html").read_text(), "html.parser")
    assert [link["href"] for link in guide.main.find_all("a", class_=None)] == [
        "02_gbce_theory.html", "quiz.html#one", "exercises_02_gbce_theory.ipynb",
        "https://example.org/a.md",
    ]  # fmt: skip
    assert guide.find("math") and guide.details.find("strong").text == "42"
    drag = (index.parent / "drag.html").read_text()
    assert drag.count("Plotly.newPlot(") == 1 and "Plotly.addFrames(" in drag
    assert "Plotly.animate(" not in drag and (index.parent / "plotly.min.js").exists()


def test_an_unknown_parameter_stops_before_anything_runs(toy_notebooks, tmp_path):
    with pytest.raises(
        InputError, match="Unknown parameter 'kk': the notebooks know dataset, k, t"
    ):
        publish.execute_all(toy_notebooks, tmp_path / "run", {"dataset": "toy", "kk": 3})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 2.5), ("k", "2"), ("k", True), ("t", "high"), ("t", True), ("dataset", 1)],
)
def test_a_parameter_of_another_type_is_refused(toy_notebooks, name, value):
    with pytest.raises(InputError, match=f"Parameter '{name}' of 00_plain.ipynb must be of type"):
        publish.check_parameters(toy_notebooks, {name: value})


def test_each_notebook_gets_the_parameters_that_it_declares(toy_notebooks):
    own = publish.check_parameters(toy_notebooks, {"dataset": "x", "t": 1})
    assert list(own.values()) == [{"dataset": "x", "t": 1}, {"dataset": "x"}]


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.ipynb does not exist"):
        publish.execute_all([tmp_path / "gone.ipynb"], tmp_path / "run", {})


def test_a_failing_notebook_is_named_with_its_cell_and_kept_apart(tmp_path):
    notebook = _notebook(tmp_path, "print('so far')", "1 / 0", "print('never')")
    folder = tmp_path / "run"
    with pytest.raises(
        InputError, match=r"00_made.ipynb stopped at cell 3 with ZeroDivisionError:"
    ):
        publish.execute_all([notebook], folder, {})
    assert not folder.exists()
    kept = (tmp_path / "run.partial" / "00_made.ipynb").read_text()
    assert "so far\\n" in kept and "ZeroDivisionError" in kept


_MEETING = """import os, time; from pathlib import Path; Path({mine!r}).touch()
while not Path({other!r}).exists(): time.sleep(0.05)
print(os.environ["OMP_NUM_THREADS"], "threads,", {mine!r}, "has met", {other!r})"""


def test_two_notebooks_run_side_by_side(tmp_path, monkeypatch, capsys):
    """Two wait for one another, a third one follows; the index has the order of reading."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    books = [
        _notebook(tmp_path, _MEETING.format(mine="a", other="c"), name="00_a"),
        _notebook(tmp_path, "print('after')", name="01_b"),
        _notebook(tmp_path, _MEETING.format(mine="c", other="a"), name="02_c"),
    ]
    index = publish.execute_all(books, tmp_path / "run", {}, at_once=2, first=["02_c"])
    share = max(1, cores() // 2)
    for name, told in {"00_a": "'a' has met 'c'", "02_c": "'c' has met 'a'"}.items():
        (output,) = nbformat.read(index.parent / f"{name}.ipynb", 4).cells[-1].outputs
        assert output.text == f"{share} threads, {told}\n".replace("'", "")
    page = BeautifulSoup(index.read_text(), "html.parser")
    links = [link["href"] for link in page.select("ol.pages h2 a")]
    assert links == ["00_a.html", "01_b.html", "02_c.html"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["[3/3] 02_c.ipynb …", "[1/3] 00_a.ipynb …"]
    assert len(lines) == 6 and sum(bool(re.fullmatch(r".*b: \d+ s", line)) for line in lines) == 3
    assert all((NOTEBOOKS / f"{name}.ipynb").exists() for name in LONG)
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_failing_notebook_ends_the_one_beside_it(tmp_path):
    books = [
        _notebook(tmp_path, "import time; open('begun', 'w'); time.sleep(300)", name="00_long"),
        _notebook(tmp_path, _MEETING.format(mine="x", other="begun"), "1 / 0", name="01_fails"),
        _notebook(tmp_path, "open('never', 'w')", name="02_never"),
    ]
    began = time.monotonic()
    with pytest.raises(InputError, match=r"01_fails.ipynb stopped at cell 3 with ZeroDivision"):
        publish.execute_all(books, tmp_path / "run", {}, at_once=2)
    assert time.monotonic() - began < 120
    assert not (tmp_path / "run").exists() and not (tmp_path / "never").exists()


@pytest.mark.parametrize("at_once", [0, -1, 1.5, True])
def test_notebooks_side_by_side_are_a_whole_number(tmp_path, at_once):
    with pytest.raises(InputError, match="at_once must be 1 or more, a whole number"):
        publish.execute_all([_notebook(tmp_path)], tmp_path / "run", {}, at_once=at_once)
    assert main(["notebooks", "--at-once", "0", "--output", str(tmp_path / "run")]) == 2


def test_other_files_in_the_folder_stay(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.txt").write_text("kept")
    publish.execute_all([_notebook(tmp_path)], folder, {})
    assert {file.name for file in folder.iterdir()} == {
        ".gsas-lab", "mine.txt", "00_made.ipynb", "00_made.html", "index.html",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["index.html", "00_made.ipynb", "00_made.html", "late.html"])
@pytest.mark.parametrize("whose", ["a user's", "ours, edited", "a link"])
def test_a_users_own_files_are_never_overwritten(tmp_path, name, whose):
    folder, mine = tmp_path / "run", tmp_path / "mine"
    notebook = _notebook(tmp_path)

    def late(partial):
        (partial / "late.html").write_text("made")
        return {"Late": "late.html"}

    folder.mkdir()
    (folder / "earlier.txt").write_text("a user's")
    if whose == "ours, edited":
        publish.execute_all([notebook], folder, {}, beside=late)
        publish.execute_all([notebook], folder, {}, beside=late)  # ours: made anew
    mine.write_text("years of work")
    (folder / name).unlink(missing_ok=True)
    if whose == "a link":
        (folder / name).symlink_to(mine)
    else:
        (folder / name).write_text("years of work")
    before = {file: file.read_bytes() for file in sorted(folder.iterdir())}
    with pytest.raises(InputError, match=f"{name} is not as gsas-lab wrote it, or not its own"):
        publish.execute_all([notebook], folder, {}, beside=late)
    assert before == {file: file.read_bytes() for file in sorted(folder.iterdir())}
    assert (tmp_path / "run.partial").exists() == (name == "late.html")
    (folder / name).unlink()
    publish.execute_all([notebook], folder, {}, beside=late)
    assert mine.read_text() == "years of work"


def test_a_call_that_is_killed_while_it_moves_its_pages_goes_on(tmp_path, monkeypatch):
    folder, notebook = tmp_path / "run", _notebook(tmp_path)
    publish.execute_all([notebook], folder, {})
    with monkeypatch.context() as patch:
        replace = Path.replace

        def killed(self, target):
            if self.name == "index.html":
                raise KeyboardInterrupt
            return replace(self, target)

        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            publish.execute_all([_notebook(tmp_path, "'other'")], folder, {})
    assert "other" in (folder / "00_made.ipynb").read_text()
    publish.execute_all([_notebook(tmp_path, "'third'")], folder, {})
    assert "third" in (folder / "00_made.ipynb").read_text()


def test_two_commands_on_one_output_folder_keep_apart(tmp_path):
    """The second is told; the first ends with its own pages."""
    folder, notebook = tmp_path / "run", _notebook(tmp_path, "'the first'")
    (tmp_path / "other").mkdir()
    other = _notebook(tmp_path / "other", "'the second'")

    def meanwhile():
        with pytest.raises(Busy, match=f"run is being worked on by process {os.getpid()}"):
            publish.execute_all([other], folder, {})
        with pytest.raises(Busy), files.locked(folder):  # as a sweep, or a report
            pass

    index = publish.execute_all([notebook], folder, {}, meanwhile)
    assert "the first" in (folder / "00_made.ipynb").read_text(encoding="utf-8")
    assert {file.name for file in tmp_path.iterdir()} == {"run", "other", notebook.name}
    assert index.exists() and not (folder / "lock").exists()


def test_publishers_in_a_hurry_neither_crash_nor_mix(tmp_path):
    folder = tmp_path / "run"

    def publish_often(own: int) -> int:
        done = 0
        for _ in range(60):
            with suppress(Busy), files.locked(folder):
                with files.workplace(folder) as partial:
                    for name in ("index.html", "page.html"):
                        (partial / name).write_text(str(own))
                    time.sleep(0.001)
                assert {file.name: file.read_text() for file in folder.glob("*.html")} == {
                    "index.html": str(own), "page.html": str(own),
                }  # fmt: skip
                done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(publish_often, range(4))) >= 20
    left = {file.name for file in tmp_path.rglob("*")}
    assert left == {"run", ".gsas-lab", "index.html", "page.html"}


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work", encoding="utf-8")


def _link(path: Path) -> None:
    _folder(path.with_name("mine"))
    (path.with_name("mine") / ".gsas-lab").touch()
    path.symlink_to("mine")


@pytest.mark.parametrize("place", [_folder, _link, Path.touch])
def test_a_users_own_partial_folder_is_left_alone(tmp_path, place):
    place(tmp_path / "run.partial")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="run.partial is of no earlier call: move it away"):
        publish.execute_all([_notebook(tmp_path)], tmp_path / "run", {})
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "00_made.ipynb"])


def test_what_a_killed_call_left_is_made_anew(tmp_path):
    notebook = _notebook(tmp_path, "1 / 0")
    with pytest.raises(InputError):
        publish.execute_all([notebook], tmp_path / "run", {})
    (tmp_path / "run.partial" / "old.html").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("1234 on a machine that lost its power")
    publish.execute_all([_notebook(tmp_path, "1")], tmp_path / "run", {})
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        ".gsas-lab", "00_made.ipynb", "00_made.html", "index.html",
    }  # fmt: skip
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("command", ["site", "notebooks", "evidence", "sweep"])
@pytest.mark.parametrize("output", ["/", "~", str(files.ROOT), "", "file", "docs"])
def test_an_output_that_is_no_place_for_results_is_a_sentence(command, output, tmp_path, capsys):
    (tmp_path / "file").touch()
    output = {"file": str(tmp_path / "file"), "docs": str(files.ROOT / "docs")}.get(output, output)
    grid = [str(results.SWEEPS / "table3.toml")] if command == "sweep" else []
    assert main([command, *grid, "--output", output]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search("no folder for results|is a file|names no file", told)


def test_notebooks_run_headless_in_their_own_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("GSAS_LAB_HEADLESS", raising=False)
    cells = ("import os", "print(os.environ['GSAS_LAB_HEADLESS'], os.getcwd())")
    publish.execute(_notebook(tmp_path, *cells), tmp_path / "out.ipynb", {})
    assert f"1 {tmp_path}\\n" in (tmp_path / "out.ipynb").read_text()
    assert "GSAS_LAB_HEADLESS" not in os.environ


def test_a_kernel_that_does_not_start_is_tried_three_times(tmp_path, monkeypatch):
    starts = []

    def execute_notebook(*_, **__):
        starts.append(1)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(publish.papermill, "execute_notebook", execute_notebook)
    with pytest.raises(InputError, match="No kernel started for 00_made.ipynb in 3 attempts"):
        publish.execute(_notebook(tmp_path), tmp_path / "out.ipynb", {})
    assert len(starts) == 3


def test_a_kernel_that_dies_at_work_is_not_tried_again(tmp_path):
    notebook = _notebook(tmp_path, "open('count', 'a').write('x'); import os; os._exit(9)")
    with pytest.raises(InputError, match="kernel of 00_made.ipynb died"):
        publish.execute(notebook, tmp_path / "out.ipynb", {})
    assert (tmp_path / "count").read_text() == "x"
