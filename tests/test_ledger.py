"""The queue trains in order, stops in time, goes on anywhere, and every row is a run's."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsas_lab import files, ledger, recipes, results, runs, sweeps
from gsas_lab.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
GRID = """
profile = "paper"
d = 16
blocks = 1
max_length = 12
epochs = 4
patience = 4
batch_size = 64
validation_users = 50
device = "cpu"
dropout = 0.3
[[runs]]
name = "SASRec"
recipe = "sasrec"
[[runs]]
name = "gSASRec"
recipe = "gsasrec"
k = 4
[[runs]]
name = "gSASRec, k = 1, t = 0"
recipe = "gsasrec"
k = 1
t = 0.0
"""
STAGE = """
[[stage]]
sweep = "tiny"
runs = {runs}
profile = "paper"
dataset = "{data}"
seeds = {seeds}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    lines = [f"{user},{item}" for user in range(300) for item in rng.integers(1, 61, size=12)]
    (tmp_path / "toy.csv").write_text("\n".join(["user,item", *lines]))
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "tiny.toml").write_text(GRID)
    monkeypatch.setenv("GSAS_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(results, "SWEEPS", tmp_path / "sweeps")
    monkeypatch.setattr(ledger, "LONGEST", 1)
    monkeypatch.setattr(ledger.files, "ROOT", tmp_path)
    return tmp_path


def queue(place, *stages):
    """A queue file; a stage is (names of runs, seeds)."""
    text = "".join(
        STAGE.format(runs=str(names).replace("'", '"'), data=place / "toy.csv", seeds=seeds)
        for names, seeds in stages
    )
    (place / "queue.toml").write_text(text)
    return place / "queue.toml"


def work(place, path, **limits):
    show = limits.pop("show", lambda _: None)
    return ledger.work(path, place / "reference", show=show, **limits)


def test_finished_runs_are_rows_that_any_machine_takes_for_done(place, monkeypatch):
    path = queue(place, (["gSASRec"], [1]), (["SASRec"], [1, 2]))
    now = work(place, path)
    assert not now.open and "all: 3 of 3 runs, 0.0 hours left" in str(now)
    found = results.load(place / "reference" / "toy" / "tiny")
    assert list(found.ranks) == ["gSASRec", "SASRec, seed = 1", "SASRec, seed = 2"]
    for name, row in found.table.iterrows():
        run = runs.load(place / "runs" / row["run"])
        assert (found.ranks[name] == run.ranks).all() and row["ndcg@10"] == run.metrics["ndcg@10"]
        curve = ledger.curves(found.folder)[name]
        assert np.allclose(curve["predicted"].iloc[0], run.outcome.prob[:, 0].mean(), atol=1e-6)
        assert np.allclose(curve["shown"], run.outcome.prob[0], atol=1e-6)
    monkeypatch.setenv("GSAS_LAB_RUNS", str(place / "elsewhere"))
    before = (found.folder / "results.csv").read_bytes()
    monkeypatch.setattr(sweeps, "train", None)  # nothing may be trained
    assert not work(place, path).open
    assert (found.folder / "results.csv").read_bytes() == before

    both = queue(place, (["SASRec"], [1]), (["gSASRec, k = 1, t = 0"], [1]))
    assert not ledger.standing(both, place / "reference").open  # BCE is gBCE with t = 0


def test_gbce_with_t_zero_is_bce_bit_for_bit(place):
    both = queue(place, (["SASRec", "gSASRec, k = 1, t = 0"], [1]))
    named = {each.system: each.settings for each in ledger.asked(both)}
    one, other = (runs.train(settings) for settings in named.values())
    assert one.folder != other.folder and (one.ranks == other.ranks).all()
    for key, weights in one.model.state_dict().items():
        assert (weights == other.model.state_dict()[key]).all()


def test_a_budget_ends_between_passes_and_the_next_call_goes_on(place):
    long = GRID.replace("epochs = 4\npatience = 4", "epochs = 60\npatience = 60")  # past a glance
    (place / "sweeps" / "tiny.toml").write_text(long)
    path = queue(place, (["gSASRec"], [1]))
    (each,) = ledger.asked(path)
    alone = runs.train(each.settings)
    shutil.rmtree(place / "runs")

    seen = []
    slow = {"seconds": 0.0}
    real = sweeps.time.monotonic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps.time, "monotonic", lambda: real() + slow["seconds"])

        def show(progress):  # the clock jumps when a pass is over
            seen.append(progress)
            slow["seconds"] += 1000.0 * (progress["epoch"].iloc[0] != "")

        now = work(place, path, seconds=900.0, show=show)
    assert [each.system for each in now.open] == ["gSASRec"]
    folder = place / "runs" / alone.folder.name
    assert (folder / "checkpoint.pt").exists() and not (folder / "manifest.json").exists()
    assert not (place / "reference").exists()

    begun = []
    now = work(place, path, show=lambda progress: begun.append(progress["epoch"].iloc[0]))
    assert not now.open and "1/60" not in begun
    found = results.load(place / "reference" / "toy" / "tiny")
    assert (found.ranks["gSASRec"] == alone.ranks).all()


def test_a_run_that_its_last_pass_made_best_is_told_and_made_longer(place, monkeypatch):
    monkeypatch.setattr(ledger, "LONGEST", 2)
    path = queue(place, (["SASRec"], [1]))
    (each,) = ledger.asked(path)
    run = runs.train(each.settings)
    found = ledger.measured(run)
    for best, longer in ((3, False), (4, True)):
        row = found.row | {"best epoch": best, "epochs trained": 4}
        longest = ledger.replace(found, row=row)
        ledger.write_folder(place / "reference" / "toy" / "tiny", [("SASRec", longest)])
        now = ledger.standing(path, place / "reference")
        asked = [(a.system, a.settings.epochs, a.settings.patience) for a in now.open]
        assert asked == [("SASRec (to 8 passes)", 8, 8)] * longer
        assert ("SASRec, seed 1: its best pass is its last, 4" in str(now)) == longer


def test_what_a_folder_measured_itself_goes_before_what_another_did(place):
    """Two trainings of the same settings, of other threads: none is chosen by its metric."""
    path = queue(place, (["SASRec"], [1]))
    (each,) = ledger.asked(path)
    found = ledger.measured(runs.train(each.settings))
    for name in ("a", "tiny", "z"):
        run = {"run": f"of {name}"}
        named = ledger.replace(found, row=found.row | run, told=found.told | run)
        ledger.write_folder(place / "reference" / "toy" / name, [("SASRec", named)])
    (row,) = ledger.standing(path, place / "reference").rows.values()
    assert row.row["run"] == "of tiny"


GOOD = '[[stage]]\nsweep = "tiny"\nseeds = [1]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs = 3", "is no queue: 'stage'"),
        ("[[stage]]\nseeds = [1]", "stage 1: 'sweep'"),
        ('[[stage]]\nsweep = "tiny"\nruns = ["SAS"]\nseeds = [1]', "has no run 'SAS'"),
        ('[[stage]]\nsweep = "tinny"\nseeds = [1]', "stage 1: .*tinny.toml"),
        ("stage = 5", r"write its stages as \[\[stage\]\] tables"),
        ('[stage]\nsweep = "tiny"', r"write its stages as \[\[stage\]\] tables"),
        ("x = " + "[" * 5000, "is no queue"),
        (GOOD.replace("[1]", "1"), "seeds = 1: write a list"),
        (GOOD.replace("[1]", "[]"), r"seeds = \[\]: write a list"),
        (GOOD + "runs = 3", "runs = 3: write a list"),
        (GOOD + 'runs = [["SASRec"]]', "has no run"),
        (GOOD + "title = 5", "title = 5 is no text"),
        (GOOD + "colour = 5", "unknown key 'colour'"),
        (GOOD + "seed = 5", "unknown key 'seed'"),
        (GOOD + 'into = "../../x"', "is no name of a sweep or a folder"),
        (GOOD + 'into = ""', "is no name of a sweep or a folder"),
        (GOOD + 'dataset = ""', "is no name of a sweep or a folder"),
    ],
)
def test_a_queue_that_cannot_be_read_is_one_sentence(place, text, message):
    (place / "queue.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        ledger.asked(place / "queue.toml")


@pytest.mark.parametrize("seconds", [float("nan"), -5.0, 0.0])
def test_a_budget_that_is_no_time_is_refused(place, seconds):
    path = queue(place, (["SASRec"], [1]))
    with pytest.raises(InputError, match="trains nothing: give a number above 0"):
        work(place, path, seconds=seconds)
    named = {each.name: each.settings for each in ledger.asked(path)}
    with pytest.raises(InputError, match="no time to train in"):
        sweeps.train(named, place / "sweep", seconds=seconds)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("curves.csv", lambda data: b"", "curves.csv is damaged"),
        ("curves.csv", lambda data: b"\xff\xfe" * 9, "curves.csv is damaged"),
        ("curves.csv", lambda data: data.replace(b"name", b"nam"), "curves.csv is damaged"),
        ("curves.csv", lambda data: data.replace(b"0.", b"x."), "curves.csv is damaged"),
        ("sweep.json", lambda data: data.replace(b"sha256", b"sha"), "was trained on"),
    ],
)
def test_a_row_that_was_edited_is_one_sentence(place, name, damage, words):
    """Its checksum too: who edits a folder may seal it again."""
    folder = place / "reference" / "ml-1m" / "disagreements"
    shutil.copytree(ROOT / "outputs" / "reference" / "ml-1m" / "disagreements", folder)
    assert ledger.Ledger(place / "reference")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    sweeps.seal(folder)
    with pytest.raises(InputError, match=words) as error:
        ledger.Ledger(place / "reference")
    assert "\n" not in str(error.value)


def test_a_folder_whose_writing_was_killed_between_two_files_is_refused(place, monkeypatch):
    now = work(place, queue(place, (["SASRec", "gSASRec"], [1])))
    rows = [(each.system, found) for each, found in now.rows.items()]
    write, left = files.write, []

    def killed(path, content):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        write(path, content)

    for before in ([], rows[:1]):  # a new folder, and one that had a row
        for count in range(1, 6):  # of the six files
            folder = place / f"{len(before)}-{count}"
            if before:
                ledger.write_folder(folder, before)
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(files, "write", killed)
                left[:] = [None] * count
                ledger.write_folder(folder, rows)
            with pytest.raises(InputError):
                results.load(folder)
    ledger.write_folder(folder, rows)
    assert list(results.load(folder).ranks) == ["SASRec", "gSASRec"]
    assert list(ledger.curves(folder)) == ["SASRec", "gSASRec"]
    ledger.write_folder(folder, [(name, replace(found, curve=None)) for name, found in rows])
    assert results.load(folder) and not ledger.curves(folder), "curves of rows that are gone"


def test_data_that_is_not_here_is_told_and_the_rest_goes_on(place):
    path = queue(place, (["SASRec"], [1]))
    path.write_text(path.read_text().replace("toy.csv", "gone.csv"))
    now = ledger.standing(path, place / "reference")
    assert not now.rows and "gone.csv is not here" in str(now)


def test_make_evidence_hands_on_the_budget_and_writes_the_documents():
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def said(*words):  # as if no other make had started the tests
        make = ["make", "--dry-run", "-o", ".venv/ready", "evidence", *words]
        done = subprocess.run(make, cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
        return [line.partition("-m gsas_lab ")[2].strip() for line in done.stdout.splitlines()]

    assert said() == ["queue", "documents"]
    assert said("BUDGET=540") == ["queue --budget 540", "documents"]
    assert [line for line in said("STATUS=1") if line] == ["queue  --status"]


# --- what is committed ----------------------------------------------------------------------------


def test_the_committed_queue_can_be_read_and_its_rows_are_of_its_runs():
    asked = ledger.asked()
    assert len(asked) == len(set(asked)) > 100
    systems = {(each.folder, each.system) for each in asked}
    for folder in {each.folder for each in asked}:
        if (results.REFERENCE / folder).exists():
            for name in results.load(results.REFERENCE / folder).systems:
                assert (folder, name.partition(" (to ")[0]) in systems


def test_the_queue_asks_for_the_strong_recipe_under_both_protocols(monkeypatch):
    system = {"gSASRec": recipes.gsasrec()}
    monkeypatch.setattr(recipes, "systems", lambda dataset: system)  # which reads the data's size
    asked = {(of.folder, of.settings.seed): of.settings for of in ledger.asked()}
    for seed in (1, 2, 3):
        strong = recipes.strong("ml-1m", seed)
        assert asked["ml-1m/strong", seed] == strong
        assert asked["ml-1m/strong-port", seed] == replace(strong, split="port")


def test_the_evidence_stays_small():
    sizes = [path.stat().st_size for path in results.REFERENCE.rglob("*") if path.is_file()]
    assert sum(sizes) < 20e6


def test_all_25_cells_of_figure_3_stand_in_the_quick_budget():
    found = results.load(results.REFERENCE / "ml-1m" / "figure3")
    assert found.grid().shape == (5, 5) and found.grid().notna().all(axis=None)
    assert set(found.table["profile"]) == {"quick"}
    assert pd.notna(found.table["commit"]).all()
