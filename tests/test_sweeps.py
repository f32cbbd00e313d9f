"""A grid is read without guessing, and trained to its end whatever dies on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsas_lab import files, parts, results, runs, sweeps
from gsas_lab.errors import InputError, counted
from gsas_lab.settings import Settings

SMALL = """
d = 16
blocks = 1
max_length = 12
epochs = 20
batch_size = 64
validation_users = 50
device = "cpu"
loss = "gbce"
dropout = 0.3
"""
GRID = "[grid]\nk = [1, 4]\nt = [0, 0.5]\n"
NAMES = ["k = 1, t = 0", "k = 1, t = 0.5", "k = 4, t = 0", "k = 4, t = 0.5"]
# What may differ between two trainings of one run: clocks.
CLOCKS = ["date", "training seconds", "total seconds"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the tiny data set tiny.csv; runs and caches go there too."""
    folder = tmp_path_factory.mktemp("sweeps")
    rng = np.random.default_rng(1)
    lines = [f"{user},{item}" for user in range(300) for item in rng.integers(1, 61, size=12)]
    (folder / "tiny.csv").write_text("\n".join(["user,item", *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSAS_LAB_CACHE", str(folder / "cache"))
        patch.setenv("GSAS_LAB_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture
def fresh(place, monkeypatch, tmp_path):
    """A folder for a sweep whose runs were never trained."""
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "runs"))
    return tmp_path


FAULTY = """
from gsas_lab.parts import register
from gsas_lab.samplers import PositiveExcluded

class Fault(BaseException):
    pass

@register("faulty")
class Faulty(PositiveExcluded):
    def draw(self, asked, generator=None):
        if self.n_items == 60:  # as tiny.csv has, and the check of parts has not
            raise Fault("nobody expects it")
        return super().draw(asked, generator)
"""


@pytest.fixture
def faulty(tmp_path):
    """A sampler that ends its process when it trains."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    parts.load(tmp_path / "faulty.py")
    return "faulty"


def grid(place, text=GRID, **over):
    path = place / "grid.toml"
    path.write_text(SMALL + text)
    return sweeps.read(path, dataset=str(place / "tiny.csv"), **over)


@pytest.fixture(scope="module")
def whole(place):
    """The table of an uninterrupted sweep, and each progress that it showed."""
    seen = []
    table = sweeps.run(grid(place), place / "sweep", at_once=2, show=seen.append)
    return table, seen


def trainer(folder):
    """The process that trains a run now, as its lock says; 0 for none."""
    text = (folder / "lock").read_text() if (folder / "lock").exists() else ""
    return int(text.split()[0]) if text and not (folder / "manifest.json").exists() else 0


def alive(process):
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# --- reading --------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_with_its_first_key_slowest(place):
    named = grid(place)
    assert list(named) == NAMES
    assert [(s.k, s.t) for s in named.values()] == [(1, 0), (1, 0.5), (4, 0), (4, 0.5)]
    assert {s.d for s in named.values()} == {16}


def test_what_is_written_out_wins_over_the_profile_and_the_call_over_both(place):
    path = place / "profile.toml"
    path.write_text('profile = "quick"\nepochs = 3\n[grid]\nseed = [1, 2]\n')
    for settings in sweeps.read(path).values():
        assert (settings.block, settings.epochs, settings.d) == ("modern", 3, 64)
    named = sweeps.read(path, profile="paper", recipe="gsasrec", epochs=5, seed=7)
    assert [(s.block, s.epochs, s.k, s.seed) for s in named.values()] == [("paper", 5, 256, 7)]


def test_names_say_what_varies(place):
    path = place / "names.toml"
    path.write_text(
        'recipe = "gsasrec"\nlr = 0.01\n[grid]\nk = [4, 256]\n[[runs]]\nrecipe = "sasrec"\n'
        '[[runs]]\nname = "mine"\n[runs.grid]\nd = [8, 16]\nheads = [1]\n'
        '[[runs]]\nprofile = "quick"\nk = 4\n[[runs]]\nk = 4\n'
    )
    named = sweeps.read(path)
    assert list(named) == [
        "gSASRec, k = 4, t = 0.75", "gSASRec, k = 256", "SASRec", "mine, d = 8", "mine, d = 16",
        "gSASRec, k = 4, t = 0.75, profile = quick",
    ]  # fmt: skip
    path.write_text("[[runs]]\n")
    assert list(sweeps.read(path)) == ["SASRec"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("k = = 1", r"is not TOML: .*line 1"),
        ("seeed = 1\n[grid]\nk = [1]", "unknown key 'seeed'; did you mean seed"),
        ("[grid]\nlearning = [1]", "unknown key 'learning'"),
        ("[[runs]]\nrecip = 1", "did you mean recipe"),
        ("k = 1", "asks for no run"),
        ("[grid]\nk = []", r"k = \[\] in a grid: write a list"),
        ("[grid]\nk = 4", "k = 4 in a grid: write a list"),
        ("grid = 3", "write a grid as a table"),
        ("[runs]\nk = 4", r"\[\[runs\]\] tables"),
        ("[grid]\nk = [1, 0]", "run 'recipe = sasrec, k = 0': k = 0 lies outside"),
        (
            "[[runs]]\nname = 'big'\nk = 'many'",
            "run 'big, recipe = sasrec': k = 'many' is not of type int",
        ),
        ("[[runs]]\nrecipe = 'sas'", "recipe = 'sas': choose one of popularity"),
        ("profile = ['quick']\n[[runs]]", r"profile = \['quick'\]: choose one of"),
        ("dataset = 5\nprofile = 'quick'\n[[runs]]", "dataset = 5 is not of type str"),
        ("[[runs]]\nname='a'\n[[runs]]\nname='a'\nk=2", "two runs are called 'a'"),
        ("k = 1\0", "is not TOML: .*line 1"),
        (f"[grid]\nseed = [{10**400}]", "seed = a number of over 30 digits lies outside"),
        (f"t = {10**400}\n[[runs]]", "t = a number of over 30 digits lies outside"),
        ("k = " + "[" * 100_000, "nested too deeply"),
        ("k = " + "[" * 400 + "]" * 400 + "\n[[runs]]", "is not of type int"),
        (
            "".join(
                f"{key} = {list(range(1, 101))}\n" for key in ("[grid]\nk", "d", "seed", "epochs")
            ),
            "asks for 100,000,000 runs: the most is 100,000",
        ),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_sentence(tmp_path, text, message):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(InputError, match=f"bad.toml.*{message}") as caught:
        sweeps.read(tmp_path / "bad.toml")
    assert "\n" not in str(caught.value)


def test_a_file_of_a_windows_editor_is_read_and_one_of_another_encoding_refused(tmp_path):
    text = "[[runs]]\r\nname = 'é'\r\n"
    (tmp_path / "bom.toml").write_bytes(text.encode("utf-8-sig"))
    assert list(sweeps.read(tmp_path / "bom.toml")) == ["é"]
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "other.toml").write_bytes(text.encode(encoding))
        with pytest.raises(InputError, match=r"other\.toml is not TOML: it is not UTF-8"):
            sweeps.read(tmp_path / "other.toml")


def test_what_the_call_gives_is_checked_too(place):
    with pytest.raises(InputError, match="nowhere.toml cannot be read"):
        sweeps.read(place / "nowhere.toml")
    with pytest.raises(InputError, match="the call: unknown key 'negatives'"):
        grid(place, negatives=3)
    with pytest.raises(InputError, match="at_once = 0"):
        sweeps.run(grid(place), place / "no", at_once=0)


# --- training -------------------------------------------------------------------------------------


def test_the_table_is_complete_in_order_and_carries_its_evidence(place, whole):
    table, _ = whole
    assert table["name"].tolist() == NAMES and table["state"].tolist() == ["done"] * 4
    assert table["k"].tolist() == [1, 1, 4, 4] and table["t"].tolist() == [0, 0.5, 0, 0.5]
    for _, row in table.iterrows():
        run = runs.load(files.runs_folder() / row["run"])
        assert row["ndcg@10"] == run.metrics["ndcg@10"]
        low, high = run.metrics["ndcg@10 95% interval"]
        assert (row["ndcg@10 95% interval low"], row["ndcg@10 95% interval high"]) == (low, high)
        assert row["epochs trained"] == 20 == row["epochs"]
        assert row["commit"] and row["date"] == run.environment["date"]
        assert counted(max(1, sweeps.cores() // 2), "thread") + ")" in row["trained on"]
    assert not table.columns.duplicated().any()
    folder = place / "sweep"
    assert {file.name for file in folder.iterdir()} == {
        "histories.csv", "manifest.json", "ranks.npz", "results.csv", "results.parquet", "sweep.json",
    }  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), table)
    assert pd.read_csv(folder / "results.csv")["ndcg@10"].tolist() == table["ndcg@10"].tolist()
    record = json.loads((folder / "sweep.json").read_text())
    assert list(record["runs"]) == NAMES and record["environment"]["commit"]
    for entry, run in zip(record["runs"].values(), table["run"], strict=True):
        assert entry["run"] == run and entry["protocol"]
        assert Settings(**entry["settings"]) in grid(place).values()


def test_progress_is_shown_at_most_twice_a_second_and_ends_with_all_done(whole):
    _, seen = whole
    assert seen[0]["state"].tolist() == ["training", "training", "waiting", "waiting", "0 of 4"]
    assert seen[-1]["state"].tolist() == ["done"] * 4 + ["4 of 4"]
    assert seen[-1]["epoch"].tolist() == ["20/20"] * 4 + [""]
    assert seen[-1]["NDCG@10"][:4].between(0, 1).all() and not any(seen[-1]["left"])


def test_time_left_counts_what_is_still_to_come():
    settings = Settings(epochs=10)
    jobs = {
        "a": sweeps._Job(settings, "a", "training", epoch=4, epochs_seen=2, seconds=120),
        "b": sweeps._Job(settings, "b", "training", epoch=9, epochs_seen=1, seconds=30),
        "c": sweeps._Job(settings, "c", "waiting"),
        "d": sweeps._Job(settings, "d", "done", epoch=10, epochs_seen=1, seconds=50),
    }
    table = sweeps._progress(jobs)
    assert table["left"].tolist() == ["0:06:00", "0:00:30", "0:08:20", "", "0:08:20"]
    assert table["epoch"].tolist() == ["4/10", "9/10", "", "10/10", ""]


def test_a_sweep_that_was_trained_before_is_found_at_once(place, whole, capsys, monkeypatch):
    table, _ = whole
    monkeypatch.setattr(sweeps, "_side_by_side", lambda *_: pytest.fail("trained again"))
    again = sweeps.run({**grid(place), "again": grid(place)[NAMES[0]]}, place / "again")
    pd.testing.assert_frame_equal(again[:4], table)
    assert again.iloc[4, 1:].equals(table.iloc[0, 1:])
    assert capsys.readouterr().err.splitlines() == [f"{n}: found" for n in [*NAMES, "again"]]


def test_in_a_terminal_one_block_is_redrawn(whole, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    show, (_, seen) = sweeps._screen(), whole
    show(seen[0])
    show(seen[-1])
    first, second = capsys.readouterr().err.split("\x1b[6A\x1b[J")
    assert "waiting" in first and "waiting" not in second and "4 of 4" in second
    monkeypatch.setenv("LINES", "5")
    show(seen[0])
    last = capsys.readouterr().err.split("\x1b[J")[1]
    assert "training" in last and "waiting" not in last and "0 of 4" in last
    assert max(map(len, last.splitlines())) < 40


def test_in_jupyter_one_table_is_updated(whole, monkeypatch):
    IPython = pytest.importorskip("IPython")
    shown = []

    class Handle:
        update = shown.append

    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": 1}))
    monkeypatch.setattr(IPython.display, "display", lambda *_, display_id: Handle)
    sweeps._screen()(whole[1][0])
    assert "<td>waiting</td>" in shown[0].data and "NaN" not in shown[0].data


def test_each_worker_gets_one_of_the_gpus_that_may_be_used(monkeypatch):
    monkeypatch.setattr(sweeps.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5")
    assert sweeps._gpus() == ["3", "GPU-5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert sweeps._gpus() == ["0", "1"]


def test_a_killed_sweep_goes_on_and_ends_as_an_uninterrupted_one(place, whole, fresh):
    """SIGKILL of the whole sweep: its workers end too, and the same call completes it."""
    code = (
        "from pathlib import Path; from gsas_lab import sweeps;"
        f"sweeps.run(sweeps.read({str(place / 'grid.toml')!r}, "
        f"dataset={str(place / 'tiny.csv')!r}), {str(fresh / 'sweep')!r}, at_once=2)"
    )
    named = grid(place)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as sweep:
        workers = []
        while not workers:
            assert sweep.poll() is None
            found = (fresh / "runs").glob("*/checkpoint.pt")
            workers = list(filter(None, (trainer(path.parent) for path in found)))
        with pytest.raises(InputError, match=f"sweep is being worked on by process {sweep.pid}"):
            sweeps.run(named, fresh / "sweep")
        sweep.kill()
    assert sweep.returncode == -9
    until = time.monotonic() + 3
    while any(map(alive, workers)):
        assert time.monotonic() < until, "an orphan goes on training"
        time.sleep(0.01)
    assert not (fresh / "sweep" / "results.csv").exists()
    table = sweeps.run(named, fresh / "sweep", at_once=2, show=lambda _: None)
    pd.testing.assert_frame_equal(table.drop(columns=CLOCKS), whole[0].drop(columns=CLOCKS))


def test_a_run_whose_worker_dies_is_tried_once_more_and_the_others_go_on(
    place, whole, fresh, faulty
):
    named = {name: replace(s, epochs=150) for name, s in grid(place).items()}
    named["once"], named["twice"], *_ = named.values()
    named = {name: named[name] for name in ("once", "twice")}
    named |= {
        "whole": grid(place)[NAMES[3]],
        "too many": replace(grid(place)[NAMES[0]], k=500),
        "faulty": replace(grid(place)[NAMES[0]], sampler=faulty),
        "no data": replace(grid(place)[NAMES[0]], dataset="nowhere.csv"),
    }
    folders = {
        name: files.runs_folder() / runs.identity(s, runs.load_data(s))
        for name, s in named.items()
        if name != "no data"
    }
    struck: dict[str, set[int]] = {"once": set(), "twice": set()}

    def strike(progress):
        for name, killed in struck.items():
            process = trainer(folders[name])
            if alive(process) and process not in killed and (name == "twice" or not killed):
                killed.add(process)
                os.kill(process, signal.SIGKILL)

    table = sweeps.run(named, fresh / "sweep", at_once=2, show=strike).set_index("name")
    assert (len(struck["once"]), len(struck["twice"])) == (1, 2)
    assert table["state"].tolist() == ["done", "failed", "done", "failed", "failed", "failed"]
    assert table["epochs trained"]["once"] == len(runs.load(folders["once"]).history)
    assert table["ndcg@10"]["whole"] == whole[0]["ndcg@10"][3]
    error = table["error"]
    assert error[["once", "whole"]].isna().all()
    assert "killed by signal 9 twice: probably out of memory" in error["twice"]
    assert "choose k from 1 to 59" in error["too many"] and "nowhere.csv" in error["no data"]
    log = fresh / "sweep" / f"{table['run']['faulty']}.log"
    assert error["faulty"].startswith("Failed twice (") and str(log) in error["faulty"]
    assert log.read_text().count("Traceback") == 2, "tried once more, and both errors are kept"
    assert "nan" not in str(error["faulty"]) and "\n" not in error["faulty"]


def test_a_sweep_that_is_interrupted_stops_its_workers(place, fresh):
    """Ctrl-C reaches the parent alone; the sentence says that the same call goes on."""
    named = {name: replace(s, epochs=300) for name, s in grid(place).items()}
    workers = []

    def interrupt(progress):
        workers.extend(filter(None, map(trainer, (fresh / "runs").glob("*"))))
        if workers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        sweeps.run(named, fresh / "sweep", at_once=2, show=interrupt)
    assert not any(map(alive, workers))
    with files.locked(fresh / "sweep"):  # free again
        pass


def test_runs_that_another_process_trains_are_waited_for_and_taken(place, fresh):
    """A sweep beside another one, and beside `train`; the other one ends, or is killed half-way."""
    named = {name: replace(s, epochs=60, patience=60) for name, s in grid(place).items()}
    shared, killed, *_ = named.values()
    code = "import sys; from gsas_lab import runs; runs.train(runs.Settings(**eval(sys.argv[1])))"
    folders = [files.runs_folder() / runs.identity(s, runs.load_data(s)) for s in (shared, killed)]
    others, seen = [], []
    try:
        for settings in (shared, killed):
            command = [sys.executable, "-c", code, repr(asdict(settings))]
            others.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        while not all(folder.exists() and files.busy(folder) for folder in folders):
            time.sleep(0.01)
        os.kill(others[0].pid, signal.SIGSTOP)  # until the sweep has met it
        os.kill(others[1].pid, signal.SIGSTOP)

        def show(progress):
            seen.append(progress["state"].tolist()[:3])
            if seen[-1] == ["elsewhere", "elsewhere", "done"]:
                os.kill(others[1].pid, signal.SIGKILL)
                os.kill(others[0].pid, signal.SIGCONT)

        three = dict(list(named.items())[:3])
        table = sweeps.run(three, fresh / "sweep", at_once=2, show=show)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert ["elsewhere", "elsewhere", "done"] in seen
    assert seen[-1] == ["found", "done", "done"] and table["error"].isna().all()
    assert table["state"].tolist() == ["done"] * 3 and table["epochs trained"].tolist() == [60] * 3


def test_ten_thousand_runs_start_in_seconds(place, fresh, monkeypatch):
    """All that happens before the first training, with runs that share two data sets."""
    path = place / "large.toml"
    path.write_text(SMALL + f"[grid]\nmin_user = [1, 2]\nseed = {list(range(5000))}\n")
    loads = []
    load = runs.load_data
    monkeypatch.setattr(runs, "load_data", lambda s: loads.append(s) or load(s))
    jobs, by_run, record = sweeps._jobs(sweeps.read(path, dataset=str(place / "tiny.csv")))
    assert len(jobs) == 10_000 == len(record) and len(loads) == 2
    assert len(by_run) == 5_000, "min_user = 2 leaves these data as they are"
    show, started = sweeps._at_most(20, sweeps._progress(jobs)), time.perf_counter()
    sweeps._progress(jobs)
    assert len(show) == 1 and time.perf_counter() - started < 1


def test_results_that_are_of_no_sweep_are_not_overwritten(place, fresh):
    (fresh / "mine").mkdir()
    (fresh / "mine" / "results.csv").write_text("a user's")
    (fresh / "file").write_text("a user's")
    for place_of, text in {"a run": "{}", "list": "[1]", "other": '{"runs": 3}'}.items():
        name = "manifest.json" if place_of == "a run" else "sweep.json"
        (fresh / place_of).mkdir()
        (fresh / place_of / name).write_text(text)
    for folder, message in {
        fresh / "a run": "manifest.json is of no sweep and would be overwritten",
        fresh / "list": "sweep.json is of no sweep and would be overwritten",
        fresh / "other": "sweep.json is of no sweep and would be overwritten",
        fresh / "mine": "results.csv is of no sweep and would be overwritten: choose another",
        fresh / "file": "file is a file: name a folder to write into",
        Path("/"): "no folder for results",
        files.ROOT: "no folder for results",
        files.ROOT / "notebooks" / "own": "no folder for results",
        Path.home(): "no folder for results",
        "~nobody-of-this-name/x": "there is no such home folder",
        "": "names no file or folder",
    }.items():
        with pytest.raises(InputError, match=message):
            sweeps.run(grid(place), folder)
    assert [file.name for file in (fresh / "mine").iterdir()] == ["results.csv"]
    assert (fresh / "mine" / "results.csv").read_text() == "a user's"


def test_a_sweep_goes_to_a_home(place, whole, fresh, monkeypatch):
    monkeypatch.setenv("HOME", str(fresh))
    monkeypatch.setenv("GSAS_LAB_RUNS", str(place / "runs"))
    sweeps.run(grid(place), "~/sweep", show=lambda _: None)
    assert (fresh / "sweep" / "results.csv").exists()


# --- on a cluster ---------------------------------------------------------------------------------


def test_a_cluster_trains_the_same_runs_into_the_same_table(place, whole, fresh, faulty):
    first = grid(place)[NAMES[0]]
    named = {NAMES[0]: first, "faulty": replace(first, sampler=faulty)}
    named = dict(list(named.items())[: sweeps.cores()])
    seen = []
    table = sweeps.run(named, fresh / "sweep", cluster={"cluster": "local"}, show=seen.append)
    assert seen[-1]["state"].tolist() == [
        *["done", "failed"][: len(named)],
        f"{len(named)} of {len(named)}",
    ]
    assert table["ndcg@10"][0] == whole[0]["ndcg@10"][0]
    for error in table["error"][1:]:
        assert "\n" not in error
        log = re.fullmatch(r"Its job failed \(.*\): see (.*)\.", error)[1]
        assert "Traceback" in Path(log).read_text()


def test_a_nodes_own_device_names_the_run(place, fresh, monkeypatch):
    """A sweep that is started where there is no GPU, for nodes that have one."""
    here, on_node = sweeps.runs.identity, []
    monkeypatch.setattr(
        sweeps.runs, "identity", lambda *given: here(*given) + "-on-gpu" * len(on_node)
    )

    class Node:
        paths = None

        def __init__(self, *given):
            on_node.append(1)
            self.told = sweeps._train_alone(*given)
            on_node.clear()

        def done(self):
            return True

        def result(self):
            return self.told

    class Executor:
        def __init__(self, *_, **__): ...

        def update_parameters(self, **_): ...

        def map_array(self, _, *given):
            return [Node(*each) for each in zip(*given, strict=True)]

    monkeypatch.setattr(pytest.importorskip("submitit"), "AutoExecutor", Executor)
    monkeypatch.setenv("GSAS_LAB_RUNS", str(fresh / "runs"))
    named = dict(list(grid(place).items())[:2])
    table = sweeps.run(named, fresh / "sweep", cluster={"partition": "gpu"}, show=lambda _: None)
    assert table["state"].tolist() == ["done"] * 2
    assert table["run"].str.endswith("-on-gpu").all()
    assert results.load(fresh / "sweep").table["run"].tolist() == table["run"].tolist()


@pytest.mark.parametrize(
    "cluster, message",
    [
        ({"cluster": "local"}, "starts all .* runs at once on .* cores: ask for fewer"),
        ({"partition": "gpu"}, "srun"),
        ({"cluster": "cloud"}, "cannot be had: .*cloud"),
        ({"cluster": "debug", "partitoin": "gpu"}, "cannot be had: .*partitoin"),
        ({"cluster": "debug", "timeout_min": "long"}, "cannot be had: .*timeout_min"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_one_sentence(place, fresh, cluster, message):
    named = grid(place, "[grid]\nseed = " + str(list(range(1, sweeps.cores() + 2))))
    with pytest.raises(InputError, match=message) as caught:
        sweeps.run(named, fresh / "sweep", cluster=cluster, show=lambda _: None)
    assert "\n" not in str(caught.value)


def test_without_submitit_the_sentence_names_the_command(place, fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[cluster\]"'):
        sweeps.run(grid(place), fresh / "sweep", cluster={"partition": "gpu"}, show=lambda _: None)
