"""Fixtures that several test files share, and the rule that CI skips nothing."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsas_lab import experiment, parts, runs, splits
from gsas_lab.interactions import from_world
from gsas_lab.settings import Settings
from gsas_lab.worlds import World

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

if SHARED_DATA.is_dir():
    os.environ.setdefault("GSAS_LAB_DATA", str(SHARED_DATA))

# What no package can bring: an accelerator, or data that may not be redistributed.
EXCUSES = ("CUDA", "MPS") if SHARED_DATA.is_dir() else ("CUDA", "MPS", "data")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=200, help="random inputs of each kind")


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> int:
    """How many random inputs a test in tests/fuzz tries; `make fuzz` asks for many."""
    return request.config.getoption("--fuzz")


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


@pytest.fixture(scope="session")
def toy_notebooks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small notebooks that show everything a page must be able to show."""
    import nbformat  # here, so that the library's tests need no notebook packages
    from nbformat.v4 import new_notebook
    from toy_notebooks import PLAIN, PLOTS

    folder = tmp_path_factory.mktemp("notebooks")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name, cells in {"00_plain": PLAIN, "01_plots": PLOTS}.items():
        nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def published(toy_notebooks: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that execute_all leaves for the toy notebooks."""
    import pandas as pd

    from gsas_lab.lessons import publish

    summary = pd.DataFrame({"NDCG@10": [0.131, 0.176]}, index=["SASRec", "gSASRec"])
    index = publish.execute_all(
        toy_notebooks,
        tmp_path_factory.mktemp("outputs") / "toy",
        {"dataset": "toy-2", "k": 3},
        lambda: summary,
        "Leave-one-out over the whole catalogue <i>seen</i>.",
    )
    return index.parent


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parts that a test registers, as a notebook in this process does, are gone after it."""
    monkeypatch.setenv(parts.VARIABLE, "")  # not delenv, which would put nothing back
    monkeypatch.setattr(parts, "_given", set())
    kept = [(each, dict(each), dict(each.own)) for each in parts.Registry.every]
    yield
    for registry, known, own in kept:
        registry.clear()
        registry.update(known)
        registry.own.clear()
        registry.own.update(own)


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings of a run that takes a second, in a world of its own and with a fresh run folder."""
    data = from_world(World(n_users=300, length=12, n_items=60, n_genres=5, seed=7))
    split = splits.leave_one_out(data, validation_users=50)
    for module in (experiment, runs):
        monkeypatch.setattr(module, "load_data", lambda settings: experiment.Data(data, split))
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "runs"))
    return Settings(
        d=16,
        blocks=1,
        max_length=12,
        epochs=3,
        batch_size=64,
        k=4,
        validation_users=50,
        device="cpu",
    )


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Begin a training in another run folder, and stop it by Ctrl-C after some epochs."""

    def train(settings: Settings, epochs: int = 2) -> None:
        def stop(history: list) -> None:
            if len(history) == epochs:
                raise KeyboardInterrupt

        monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "again"))
        with pytest.raises(KeyboardInterrupt):
            runs.train(settings, on_epoch=stop)

    return train
