"""Fixtures that several test files share, and the rule that CI skips nothing."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gsas_lab import runs, splits
from gsas_lab.interactions import from_world
from gsas_lab.worlds import World

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

if SHARED_DATA.is_dir():
    os.environ.setdefault("GSAS_LAB_DATA", str(SHARED_DATA))

# What no package can bring: an accelerator, or data that may not be redistributed.
EXCUSES = ("CUDA", "MPS") if SHARED_DATA.is_dir() else ("CUDA", "MPS", "data")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With GSAS_LAB_CI set, a test that is skipped for want of a tool fails."""
    report = yield
    if os.environ.get("GSAS_LAB_CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr)
        if not any(excuse in reason for excuse in EXCUSES):
            report.outcome, report.longrepr = "failed", f"skipped where nothing may be: {reason}"
    return report


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on this machine")
    return found


PLAIN = [
    new_markdown_cell("# First: formulas\n\n**Claim.** One negative makes $\\sigma(s)$ too high."),
    new_code_cell(
        'dataset = "toy"  # the data set\nk = 1\nt = 0.0', metadata={"tags": ["parameters"]}
    ),
    new_markdown_cell(
        "## Text\n\nInline $\\hat{p}_i \\gg P(i)$, code `$not_math$`, and a displayed one:\n\n"
        "$$\\sigma(s_i) = \\frac{\\beta P}{\\alpha - \\alpha P + \\beta P}, \\quad "
        "\\alpha = \\frac{k}{|I| - 1}$$\n\n"
        "$$\\begin{aligned} \\beta &= 1 - t(1 - \\alpha) \\\\ t &= 1 \\end{aligned}$$\n\n"
        "```python\nprice = '$5 and $6'\n```\n\nNext: [plots](01_plots.ipynb#A-slider).\n\n"
        "| $K$ | meaning |\n|---|---|\n| 1 | *first* |\n\n> A misreading: a score is no probability."
    ),
    new_code_cell('print(f"k = {k}, t = {t}, {dataset}")'),
    new_markdown_cell("## A figure and a table"),
    new_code_cell(
        "import matplotlib.pyplot as plt\n"
        "fig, ax = plt.subplots(figsize=(7, 3.6))\nax.plot([0, 1, 2], [0, k, 4])\n"
        'ax.set_xlabel("rank")\nax.set_ylabel("probability")\nplt.show()'
    ),
    new_code_cell(
        'import pandas as pd\npd.DataFrame({"k": [1, 16], "NDCG@10": [0.131, 0.1703]}, '
        'index=["SASRec", "gSASRec"])'
    ),
]
PLOTS = [
    new_markdown_cell("# Second: plots\n\nNothing to test here."),
    new_code_cell('dataset = "toy"', metadata={"tags": ["parameters"]}),
    new_markdown_cell("## A slider"),
    new_code_cell(
        "import numpy as np\nimport plotly.graph_objects as go\n\nx = np.linspace(0, 1, 50)\n"
        'names = ["0.0", "0.5", "1.0"]\n'
        "frames = [go.Frame(name=n, data=[go.Scatter(x=x, y=x ** (1 + float(n)))]) for n in names]\n"
        'steps = [dict(label=n, method="animate", args=[[n], dict(mode="immediate", '
        "frame=dict(duration=0))]) for n in names]\n"
        'sliders = [dict(steps=steps, currentvalue=dict(prefix="t = "))]\n'
        "go.Figure(frames[0].data, dict(sliders=sliders), frames=frames)"
    ),
    new_markdown_cell("## What needs a kernel or a network, and what plotly writes itself"),
    new_code_cell("import ipywidgets\n\nipywidgets.IntSlider()"),
    new_code_cell("go.FigureWidget(frames[0].data)"),
    new_code_cell(
        "from IPython.display import HTML\n\n"
        'display(HTML(go.Figure(frames[1].data).to_html(full_html=False, include_plotlyjs="cdn")))\n'
        "display(HTML(go.Figure(frames[2].data).to_html(full_html=False)))"
    ),
    new_code_cell('import sys\n\nprint("50%|#####     | noise", file=sys.stderr)'),
]


@pytest.fixture(scope="session")
def toy_notebooks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small notebooks that show everything a page must be able to show."""
    folder = tmp_path_factory.mktemp("notebooks")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name, cells in {"00_plain": PLAIN, "01_plots": PLOTS}.items():
        nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def published(toy_notebooks: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that execute_all leaves for the toy notebooks."""
    import pandas as pd

    from gsas_lab import publish

    summary = pd.DataFrame({"NDCG@10": [0.131, 0.176]}, index=["SASRec", "gSASRec"])
    index = publish.execute_all(
        toy_notebooks,
        tmp_path_factory.mktemp("outputs") / "toy",
        {"dataset": "toy-2", "k": 3},
        lambda: summary,
        "Leave-one-out over the whole catalogue <i>seen</i>.",
    )
    return index.parent


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> runs.Settings:
    """Settings of a run that takes a second, in a world of its own and with a fresh run folder."""
    data = from_world(World(n_users=300, length=12, n_items=60, n_genres=5, seed=7))
    split = splits.leave_one_out(data, validation_users=50)
    monkeypatch.setattr(runs, "load_data", lambda settings: runs.Data(data, split))
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "runs"))
    return runs.Settings(
        d=16,
        blocks=1,
        max_length=12,
        epochs=3,
        batch_size=64,
        k=4,
        validation_users=50,
        device="cpu",
    )
