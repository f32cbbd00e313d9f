"""Claims about parameters: all ten notebooks on a file of 60 users, twice in one kernel; each
parameter does something or is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from gsas_lab import interactions, recipes, results, runs
from gsas_lab.__main__ import main
from gsas_lab.errors import InputError
from gsas_lab.settings import parameters

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECLARED = "# Parameters of this notebook\n"


def _rows(users: int = 60, items: int = 30) -> pd.DataFrame:
    draw = np.random.default_rng(3)
    lengths = draw.integers(5, 12, users)
    user = np.repeat(np.arange(1, users + 1), lengths)
    item = draw.integers(1, items + 1, len(user))
    return pd.DataFrame({"user": user, "item": item, "timestamp": np.arange(len(user))})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A file of 60 users and 30 items, and folders of its own for runs and sweeps."""
    folder = tmp_path_factory.mktemp("a stranger's größe")
    path = folder / "clicks & co.csv"
    _rows().to_csv(path, index=False)
    patch = pytest.MonkeyPatch()
    patch.setenv("GSAS_LAB_RUNS", str(folder / "runs"))
    patch.setenv("GSAS_LAB_CACHE", str(folder / "cache"))
    (folder / "runs").mkdir()
    patch.setattr(
        results.sweeps, "folder_of", lambda grid, **over: folder / f"{grid}-{over.get('seed')}"
    )
    yield SimpleNamespace(path=str(path), folder=folder)
    patch.undo()


def _kernel():
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config({"HistoryManager": {"enabled": False}})
    return InteractiveShell(config=config)


def _execute(shell, path: Path, **given) -> None:
    """A notebook's code as papermill runs it: its parameters, then those given, then the rest."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    for source in [cells[0].source, injected, *(cell.source for cell in cells[1:])]:
        done = shell.run_cell(source, store_history=True)
        if done.error_before_exec or done.error_in_exec:
            raise AssertionError(f"{path.name}: {source}") from done.error_in_exec


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_on_60_users_and_30_items_and_twice_in_one_kernel(
    path, tiny, monkeypatch, capsys
):
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    monkeypatch.setenv("GSAS_LAB_HEADLESS", "1")
    if path.stem.startswith("02"):  # its proof, in a world of two million interactions: nbval's
        system = recipes.systems(tiny.path)["SASRec"]
        several = dict.fromkeys(["SASRec", "b", "c", "d", "e", "f"], system)
        monkeypatch.setattr(recipes, "proofs", lambda: several)
        monkeypatch.setattr(recipes, "slow_start", lambda: several)
        monkeypatch.setattr(
            runs, "true_probabilities", lambda data, some: np.full((60, 30), 1 / 30)
        )
    shell = _kernel()
    _execute(shell, path, dataset=tiny.path, seed=1)
    if path.stem[:2] in ("05", "06", "07"):  # which train 76 runs for a seed
        _execute(shell, path)
        assert shell.user_ns["given"]["dataset"] == "known-truth"
        _execute(shell, path, dataset="ml-1m")  # whose evidence comes first in any case
        assert shell.user_ns["evident"].dataset == "ml-1m"
    else:
        _execute(shell, path, dataset=tiny.path, seed=2, epochs=1, patience=1)
        made = [json.loads(f.read_text()) for f in tiny.folder.glob("runs/*/settings.json")]
        assert path.stem[:2] in ("00", "10") or (2, 1) in {(s["seed"], s["epochs"]) for s in made}
    plt.close("all")


def _cells(*sources: str, **namespace) -> dict:
    return {"_ih": ["", *sources], **namespace}


def test_only_the_parameters_cell_and_papermills_are_read():
    first, loop = (
        DECLARED + "dataset = 'x.csv'\nk = None\nshown_user = 3",
        "for k in (1, 256): pass",
    )
    seen = _cells(first, loop, dataset="x.csv", k=256, shown_user=3, alpha=0.1, d=5)
    assert parameters(seen, ("shown_user",)) == {"dataset": "x.csv"}
    seen["_ih"] += [first, "# Parameters\nseed = 2\nk = 4", loop]
    assert parameters(seen, ("shown_user",)) == {"dataset": "x.csv", "seed": 2, "k": 4}
    seen["_ih"] += [first, loop]  # papermill's cell is gone, its names are still there
    assert parameters(seen, ("shown_user",)) == {"dataset": "x.csv"}
    with pytest.raises(InputError, match="Run the cell that begins with"):
        parameters(_cells(loop, k=3))


@pytest.mark.parametrize(
    "line",
    ["seed = [1, 2, 3]", "seed = {'a': 1}", "seed = (1, 2)", "seed = '5'", "seed = 5.0",
     "seed = None", "seed = True", "lr = 'high'", "dataset = ['a.csv']", "shown_user = [1, 2]",
     "negatives = 7", "k, negatives = 4, 5", "min_user = '3'", "dataset = None"],
)  # fmt: skip
def test_what_no_run_can_have_is_refused(line):
    given = _cells(DECLARED + "dataset = 'known-truth'", f"# Parameters\n{line}", k=4, negatives=5)
    with pytest.raises(InputError):
        parameters(given, ("shown_user",))


def test_expressions_and_numbers_of_numpy_and_paths_are_taken(tmp_path):
    cell = DECLARED + "dataset = folder / 'x.csv'\nk = 2**3\nseed = number"
    seen = _cells(cell, dataset=tmp_path / "x.csv", k=8, seed=np.int64(3))
    assert parameters(seen) == {"dataset": str(tmp_path / "x.csv"), "k": 8, "seed": 3}
    assert type(parameters(seen)["seed"]) is int


def test_a_setting_reaches_every_system_or_is_refused(tiny):
    found = recipes.systems(tiny.path, seed=5, epochs=1, lr=0.01, sampler="whole-catalogue")
    assert {(s.seed, s.epochs, s.lr, s.sampler) for s in found.values()} == {
        (5, 1, 0.01, "whole-catalogue")
    }
    for name in recipes.OWN:
        with pytest.raises(InputError, match=f"{name} is what the systems differ in"):
            recipes.systems(tiny.path, **{name: getattr(recipes.sasrec(), name)})
    for name, value in (("masked", 0.5), ("power", 0.5)):
        with pytest.raises(InputError, match=f"{name} makes no difference"):
            recipes.systems(tiny.path, **{name: value})


def test_negatives_and_passes_scale_with_the_data_and_say_so(tiny, monkeypatch):
    found = recipes.systems(tiny.path)
    assert {s.k for s in found.values()} == {1, 2}  # 2 / 29 <= 0.075
    assert "30 items" in recipes.scaling(tiny.path) and "k = 2 instead of 256" in recipes.scaling(
        tiny.path
    )
    positions = len(runs.load_data(found["SASRec"]).split.train.items)
    monkeypatch.setattr(recipes, "POSITIONS", 30 * positions)  # a file gets a sixth
    monkeypatch.setattr(recipes, "SCORES", 6 * 30 * positions // 2)
    found = recipes.systems(tiny.path)
    assert {s.epochs for s in found.values()} == {5} and "SASRec, softmax" not in found
    assert "SASRec, softmax left out" in recipes.scaling(tiny.path)
    monkeypatch.setattr(recipes, "POSITIONS", positions)  # not even one pass fits
    assert {s.epochs for s in recipes.systems(tiny.path).values()} == {1}
    world = recipes.quick(recipes.gsasrec(), "known-truth-small")
    interactions_of = len(runs.load_data(world).split.train.items)
    monkeypatch.setattr(recipes, "POSITIONS", 5 * interactions_of)
    assert recipes.scaled(world).epochs == 5  # one of the project gets all of it


def test_columns_by_name_reach_every_system(tmp_path):
    rows = "".join(f"{u},{(u + t) % 30},{-t}\n" for u in range(20) for t in range(6))
    (tmp_path / "own.csv").write_text("who,what,step\n" + rows)
    named = {"user": "who", "item": "what", "time": "step"}
    for system in recipes.systems(str(tmp_path / "own.csv"), **named).values():
        data = runs.load_data(system).interactions
        assert data.history(0).tolist() == [6, 5, 4, 3, 2, 1]
    with pytest.raises(InputError, match="user='…'"):
        recipes.systems(str(tmp_path / "own.csv"))


def test_data_settings_reach_the_check_before_the_run(tiny, capsys):
    rows = pd.concat([_rows(), pd.DataFrame({"user": [99], "item": [1], "timestamp": [1]})])
    path = tiny.folder / "short.csv"
    rows.to_csv(path, index=False)
    assert recipes.systems(str(path), min_user=3)
    assert (
        main(["notebooks", "--dataset", str(path), "-p", "shown_user=nobody", "-p", "min_user=3"])
        == 2
    )
    assert "has no user nobody" in capsys.readouterr().err
    assert main(["notebooks", "--dataset", str(path), "-p", "seed=[1, 2]"]) == 2
    assert "seed" in capsys.readouterr().err


def test_without_evidence_a_costly_figure_shows_the_worlds_and_says_how_to_train(tiny, monkeypatch):
    monkeypatch.setattr(results, "CHEAP", 0)
    found = results.of_paper("figure3", tiny.path, seed=7)
    assert found.dataset == "known-truth" and found.source.startswith("NOT YOUR DATA")
    assert "--profile small -p seed=7" in found.source and f"'{tiny.path}'" not in "known-truth"
    assert results.of_paper("figure3", "known-truth").note == ""


def test_a_file_called_as_a_named_data_set_has_not_its_evidence(tiny, monkeypatch):
    monkeypatch.setattr(results, "CHEAP", -1)
    path = tiny.folder / "ml-1m.csv"
    _rows().to_csv(path, index=False)
    assert results.of_paper("figure3", str(path)).note


def test_a_path_means_the_users_folder_wherever_it_is_read(tiny, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    monkeypatch.setenv("HOME", str(tiny.folder))
    for typed in ("clicks & co.csv", "./clicks & co.csv", "~/clicks & co.csv", tiny.path):
        assert os.path.samefile(interactions.place(typed), tiny.path)
        assert os.path.isabs(interactions.place(typed))
    assert interactions.place("known-truth") == "known-truth"
    assert interactions.place("nowhere") == "nowhere"  # which load refuses by that name


def test_where_no_cell_is_on_record_the_namespace_is_read():
    names = {"k": 4, "pd": pd, "_i": "text", "epochs": None}
    for history in ({}, {"_ih": [""]}):  # plain Python; nbval, which stores no history
        assert parameters({**history, **names}) == {"k": 4}


def test_the_user_who_is_shown_exists():
    from gsas_lab import evidence

    class Known:
        def row(self, user):
            if user not in self.ids:
                raise InputError("none")
            return self.ids.index(user)

    data = SimpleNamespace(interactions=Known())
    data.interactions.ids = [5, 963]
    assert evidence.shown_row(data, None) == 1
    data.interactions.ids = [5, 6]
    assert evidence.shown_row(data, None) == 0 and evidence.shown_row(data, 6) == 1
    with pytest.raises(InputError):
        evidence.shown_row(data, 7)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"loss": "bce", "t": 0.5}, "t = 0.5 makes no difference to SASRec, BCE, k = "),
        ({"loss": "bce", "t": 0.75}, "t = 0.75 makes no difference"),
        ({"loss": "softmax", "k": 4}, "k = 4 makes no difference to SASRec, softmax"),
        ({"loss": "softmax", "sampler": "whole-catalogue"}, "sampler = whole-catalogue makes no"),
        ({"loss": "sampled_softmax", "t": 1.0}, "t = 1.0 makes no difference"),
        ({"masked": 0.5}, "masked = 0.5 makes no difference to gSASRec"),
        ({"model": "popularity", "epochs": 3}, "epochs = 3 makes no difference to Popularity"),
    ],
)
def test_a_parameter_that_the_one_system_does_not_read_is_refused(tiny, given, told):
    with pytest.raises(InputError, match=told):
        recipes.chosen("gsasrec", "quick", {"dataset": tiny.path, **given})


def test_what_notebook_03_leaves_open_is_the_recipes_own_whatever_the_loss(tiny):
    path = next(path for path in NOTEBOOKS if path.stem.startswith("03"))
    cell = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    for loss in ("gbce", "bce", "softmax", "sampled_softmax", "expected_gbce"):
        names: dict = {}
        exec(cell.source, names)
        seen = _cells(cell.source, "# Parameters\n", **names | {"loss": loss, "dataset": tiny.path})
        seen["_ih"][-1] += f"loss = {loss!r}\ndataset = {tiny.path!r}"
        system = recipes.chosen("gsasrec", "quick", parameters(seen))
        assert (system.loss, system.t, system.sampler) == (loss, 0.75, "positive-excluded")


def test_a_parameter_that_no_run_of_a_figure_reads_is_refused(tiny):
    with pytest.raises(InputError, match="masked makes no difference to any run of figure3"):
        results.of_paper("figure3", tiny.path, masked=0.5)


def test_the_command_line_refuses_what_the_system_does_not_read(tiny, capsys):
    assert main(["train", "--recipe", "sasrec", "--t", "0.5", "--dataset", tiny.path]) == 2
    assert "t = 0.5 makes no difference to SASRec" in capsys.readouterr().err
