"""The theory's explorers as a reader drags them: live in a real JupyterLab, and on a page from disk.

What the pure figures show is compared with theory.py in tests/test_theory_explorers.py; here it is
what the browser must show after every move.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import pytest

from gsas_lab import theory
from gsas_lab.lessons import publish
from gsas_lab.lessons import theory_explorers as drag

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "outputs" / "screenshots"
MINUTES = 10  # where nothing is trained yet, notebook 02 trains its models
FIGURES = {
    "sigmoid": drag.sigmoid_figure,
    "prior": drag.prior_figure,
    "catalogue": drag.catalogue_figure,
    "map": drag.map_figure,
    "collisions": drag.collisions_figure,
}
STATIC = {
    "sigmoid": drag.sigmoid_explorer,
    "prior": drag.prior_explorer,
    "catalogue": drag.catalogue_explorer,
    "map": drag.map_explorer,
    "collisions": drag.collisions_explorer,
}
ARGUMENTS = {  # of the figures, by the label of their slider
    "β": "beta", "score s": "score", "negatives k": "k", "t": "t", "items |I|": "n_items",
    "its P": "prior", "exponent": "exponent", "history": "history",
}  # fmt: skip
SETTINGS = {  # of JupyterLab: every cell stays in the page, and nothing is fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
CODE = (
    "jupyterapp.shell.currentWidget.content.model.toJSON().cells"
    ".filter(cell => cell.cell_type === 'code')"
)
KERNEL = "jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
DIFFERENT = """(plot, wanted) => {  // the parts of a plot that are not as wanted
  const near = (a, b) =>
    typeof b === "number" ? Math.abs(a - b) <= 1e-9 + 1e-6 * Math.abs(b)
    : typeof b === "string" ? a === b
    : a?.length === b.length && b.every((value, i) => near(a[i], value));
  const title = plot._fullLayout.title.text;
  return [
    ...(title === wanted.title ? [] : [title]),
    ...wanted.traces.flatMap((trace, i) => Object.keys(trace)
      .filter(part => !near(plot._fullData[i][part], trace[part]))
      .map(part => `${part} of trace ${i}`)),
  ];
}"""
MARKS = "plot => plot.querySelectorAll('.js-line[d*=L], .points path, image').length"
INSIDE = """([part, whole]) => {
  const [a, b] = [part.getBoundingClientRect(), whole.getBoundingClientRect()];
  return a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom;
}"""


def parts(figure: go.Figure | go.Frame) -> dict[str, Any]:
    """What DIFFERENT compares."""
    names = ("x", "y", "z", "text")
    traces: list[dict[str, Any]] = [{"name": t.name} if t.name else {} for t in figure.data]
    for trace, shown in zip(figure.data, traces, strict=True):
        given = {name: trace[name] for name in names if name in trace}
        shown |= {n: np.asarray(each).tolist() for n, each in given.items() if each is not None}
    return {"title": figure.layout.title.text, "traces": traces}


def assert_shows(plot: "Locator", figure: go.Figure | go.Frame) -> None:
    """Within seconds, the page's plot has every curve, map, bar and dot of the figure."""
    wanted = parts(figure)
    element = plot.element_handle()
    try:
        plot.page.wait_for_function(
            f"([plot, wanted]) => !({DIFFERENT})(plot, wanted).length",
            arg=[element, wanted],
            timeout=10_000,
        )
    finally:
        assert element.evaluate(DIFFERENT, wanted) == []


def screenshot(page: "Page", name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


# Live, in JupyterLab


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a JupyterLab that serves a copy of notebook 02, with nothing of the user's settings."""
    if not importlib.util.find_spec("jupyterlab"):
        pytest.skip("JupyterLab is not installed")
    own = tmp_path_factory.mktemp("jupyter")
    folders = (
        "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_CONFIG_DIR",
        "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
    )  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name != "GSAS_LAB_HEADLESS"}
    for name, values in SETTINGS.items():
        file = own / folders[0] / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    served = own / "served"
    served.mkdir()
    shutil.copy(ROOT / "notebooks" / "02_gbce_theory.ipynb", served)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        "--port=0", "--expose-app-in-browser", f"--ServerApp.root_dir={served}",
    ]  # fmt: skip
    with (own / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            env=inherited | {name: str(own / name) for name in folders},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _address(server, own)
        finally:
            server.terminate()  # it shuts its kernels down
            server.wait(60)


def _address(server: subprocess.Popen[bytes], own: Path) -> str:
    """Of the notebook, once the server has written its port and token down."""
    for _ in range(300):
        for file in (own / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json"):
            with suppress(json.JSONDecodeError):  # half written
                at = json.loads(file.read_text())
                return f"{at['url']}lab/tree/02_gbce_theory.ipynb?token={at['token']}"
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.2)
            break
    pytest.fail(f"JupyterLab did not start:\n{(own / 'log').read_text()}")


@pytest.fixture(scope="module")
def lab(browser: "Browser", address: str) -> Iterator["Page"]:
    """Notebook 02 in JupyterLab, after Run All Cells; it needs no network and reports no error."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route(lambda url: "//127.0.0.1:" not in url, lambda route: route.abort())
    page.on("requestfailed", lambda sent: errors.append(f"{sent.url}: {sent.failure}"))
    page.goto(address)
    page.wait_for_function(f"window.{KERNEL}?.status === 'idle'", timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(
        f"{CODE}.at(-1).execution_count"
        f" || {CODE}.some(cell => cell.outputs.some(out => out.output_type === 'error'))",
        timeout=MINUTES * 60_000,
        polling=500,
    )
    page.wait_for_function(f"{KERNEL}.status === 'idle'")
    yield page
    page.close()
    assert not errors


def explorer(lab: "Page", name: str) -> "Locator":
    """What the cell of an explorer shows, in the middle of the window."""
    cell = lab.locator(".jp-CodeCell", has_text=f"drag.{name}_explorer(")
    shown = cell.locator(".jp-OutputArea-output").last  # below what the cell prints
    shown.evaluate("output => output.scrollIntoView({block: 'center'})")
    return shown


def values(shown: "Locator") -> dict[str, float]:
    """The figure's arguments, as the sliders tell them."""
    return dict(value(slider) for slider in shown.locator(".widget-slider").all())


def value(slider: "Locator") -> tuple[str, float]:
    name = ARGUMENTS[slider.locator(".widget-label").inner_text()]
    if name in ("k", "n_items"):  # the handle has the place in the list
        return name, int(slider.locator(".widget-readout").inner_text().replace(",", ""))
    at = float(slider.locator(".noUi-handle").get_attribute("aria-valuetext"))
    return name, 10**at if name in ("beta", "prior") else at


def test_every_cell_of_notebook_02_runs_in_jupyterlab(lab):
    cells = lab.evaluate(CODE)
    assert [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"] == []
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_an_explorer_fits_a_window_of_1280_by_800(lab, name, theme):
    lab.evaluate(
        "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})",
        f"JupyterLab {theme}",
    )
    lab.wait_for_function(f"document.body.dataset.jpThemeName === 'JupyterLab {theme}'")
    lab.wait_for_selector("#jupyterlab-splash", state="detached")
    shown, window = explorer(lab, name), lab.locator(".jp-NotebookPanel-notebook").element_handle()
    screenshot(lab, f"lab-{name}-{theme.lower()}")
    for part in shown.locator(".widget-slider, .widget-readout, .js-plotly-plot").all():
        assert lab.evaluate(INSIDE, [part.element_handle(), window])
    for label in shown.locator(".widget-label").all():
        assert label.evaluate("label => label.scrollWidth <= label.clientWidth")


@pytest.mark.parametrize("name", FIGURES)
def test_at_first_an_explorer_shows_what_its_sliders_say(lab, name):
    shown = explorer(lab, name)
    assert_shows(shown.locator(".js-plotly-plot"), FIGURES[name](**values(shown)))


@pytest.mark.parametrize("name", FIGURES)
def test_every_slider_moved_by_keyboard_redraws_what_theory_says(lab, name):
    shown = explorer(lab, name)
    plot = shown.locator(".js-plotly-plot")
    marks = plot.evaluate(MARKS)
    for slider in shown.locator(".widget-slider").all():
        handle = slider.locator(".noUi-handle")
        last = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        there, back = ("ArrowLeft", "ArrowRight") if last else ("ArrowRight", "ArrowLeft")
        for key in (there, there, back):
            before = value(slider)
            handle.focus()
            handle.press(key)
            assert value(slider) != before
            assert_shows(plot, FIGURES[name](**values(shown)))
            assert plot.evaluate(MARKS) == marks  # no trace has gone blank


# Static, from disk


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of the five static forms, which the page itself computes."""
    page = tmp_path_factory.mktemp("gallery") / "explorers.html"
    figures = {name: explorer().static() for name, explorer in STATIC.items()}
    publish.write_gallery(figures, page, "Explorers", "By slider, without a kernel.")
    return page


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with nothing but their frames, as any other converter of notebooks leaves them."""
    page = tmp_path_factory.mktemp("steps") / "explorers.html"
    figures = {name: own().static().update_layout(meta=None) for name, own in STATIC.items()}
    publish.write_gallery(figures, page, "Explorers", "In steps.")
    return page


@pytest.mark.parametrize("name", STATIC)
def test_on_a_page_every_control_moves_freely_to_what_theory_says(page, gallery, name):
    """At random places of each control; what the page computes is compared with theory.py."""
    page.goto(gallery.as_uri())
    plot = page.locator(".js-plotly-plot").nth(list(STATIC).index(name))
    panel = plot.locator("xpath=../preceding-sibling::div[contains(@class, 'controls')]")
    controls, rng = panel.locator("input").all(), np.random.default_rng(len(name))
    assert len(controls) >= 2 and plot.locator(".slider-rail-touch-rect").count() == 0

    def values() -> dict[str, float]:
        told = {
            c.get_attribute("data-name"): float(c.get_attribute("data-value")) for c in controls
        }
        return {n: int(v) if n in ("k", "n_items", "history") else v for n, v in told.items()}

    assert_shows(plot, FIGURES[name](**values()))
    marks = plot.evaluate(MARKS)
    for _ in range(12):
        for each in rng.permutation(len(controls)):
            place = rng.integers(int(controls[each].get_attribute("max")) + 1)
            controls[each].evaluate(
                "(c, at) => { c.value = at; c.dispatchEvent(new Event('input')); }", str(place)
            )
        assert_shows(plot, FIGURES[name](**values()))
    assert plot.evaluate(MARKS) == marks
    plot.scroll_into_view_if_needed()
    screenshot(page, f"free-{name}")


def test_on_a_phone_panels_lie_below_each_other_and_letters_are_legible(page, gallery):
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(gallery.as_uri())
    page.wait_for_function("document.querySelectorAll('.caption').length === 5")
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for plot in page.locator(".js-plotly-plot").all():
        boxes = [box.bounding_box() for box in plot.locator(".bglayer .bg, .nsewdrag").all()]
        assert len(boxes) >= 2 and all(b["width"] > 150 and b["height"] > 120 for b in boxes)
        assert max(b["y"] for b in boxes) - min(b["y"] for b in boxes) > 200
        inside = plot.locator("xpath=..").bounding_box()
        svg = plot.locator(".main-svg").first.bounding_box()
        assert svg["height"] <= inside["height"] + 1  # nothing below covers it
        shown = plot.locator("xpath=../preceding-sibling::div[@class='caption']").inner_text()
        assert len(shown) > 40
    small = page.evaluate(
        "[...document.querySelectorAll('p, label, output, .caption, text')]"
        ".filter(e => e.getBoundingClientRect().width && parseFloat(getComputedStyle(e).fontSize) < 12)"
        ".map(e => e.textContent)"
    )
    assert small == []
    screenshot(page, "phone-explorers")


@pytest.mark.parametrize("name", STATIC)
def test_a_static_slider_shows_each_frame_without_kernel_or_network(page, steps, name):
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(steps.as_uri())
    plot, static = (
        page.locator(".js-plotly-plot").nth(list(STATIC).index(name)),
        STATIC[name]().static(),
    )
    plot.evaluate("plot => plot.scrollIntoView({block: 'center', behavior: 'instant'})")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        screenshot(page, f"static-{name}-{scheme}")
    assert_shows(plot, static)
    marks = plot.evaluate(MARKS)
    rail, grip = (
        plot.locator(part).bounding_box()
        for part in (".slider-rail-touch-rect", ".slider-grip-rect")
    )
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    for place in (0, len(static.frames) // 2, len(static.frames) - 1):
        x = rail["x"] + 2 + (rail["width"] - 4) * place / (len(static.frames) - 1)
        page.mouse.move(x, rail["y"] + rail["height"] / 2, steps=4)
        assert_shows(plot, static.frames[place])
        assert plot.evaluate(MARKS) == marks
    page.mouse.up()
    if name == "prior":  # its last step, k = 256 and t = 1: calibrated
        x, y = (plot.evaluate(f"plot => Array.from(plot._fullData[2].{axis})") for axis in "xy")
        alpha = theory.alpha(256, drag.ML1M)
        assert y == pytest.approx(theory.converged_probability(x, alpha, alpha), rel=1e-6)
