"""Two processes train the model that one process trains, through torchrun's own command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from gsas_lab import __main__ as command_line
from gsas_lab import batches, distributed, files
from gsas_lab.errors import InputError
from gsas_lab.splits import Histories

# 113 windows in batches of 16: the last batch has one, so the second process has none of it.
TRAIN = (
    "train --dataset toy.csv --device cpu --validation-users 20 --d 16 --blocks 1 --max-length 12 "
    "--batch-size 16 --epochs 3 --lr 0.01 --dropout 0"
)
# Rows of the table: each process has others.
SAMPLED = f"{TRAIN} --loss gbce --k 4 --t 0.5 --dropout 0.3 --table-optimizer lazy_adam"
EXACT = {
    "softmax": f"{TRAIN} --loss softmax",
    "expected_gbce": f"{TRAIN} --loss expected_gbce --k 4 --t 0.5 --block modern --tied true "
    "--theory-start true --windows all --max-length 6",
}
NO_BETTER = f"{TRAIN} --loss bce --lr 1e-9 --patience 1"
ALL = [*EXACT.values(), SAMPLED, NO_BETTER]
# Several trainings of one start of torchrun, which takes most of the time; each tells its seeds.
SEVERAL = """
import contextlib, os, sys, torch
from gsas_lab import __main__ as command_line, distributed, training
seed = training.Step.seed
def told(step, *seeds):
    os.write(1, f"seeds {seeds}\\n".encode())  # at once: the processes share this pipe
    seed(step, *seeds)
training.Step.seed = told
with distributed.group(torch.device("cpu")):
    distributed.group = contextlib.nullcontext
    for words in sys.argv[1:]:
        assert command_line.main(words.split()) == 0
"""
KILLED = """
import os, signal, sys
from gsas_lab import __main__ as command_line, files
write = files.write_checkpoint
def killed(path, content):
    write(path, content)
    if path.name == "checkpoint.pt":
        os.kill(os.getpid(), signal.SIGKILL)
files.write_checkpoint = killed
sys.exit(command_line.main(sys.argv[1:]))
"""
STUCK = """
import datetime, time, torch
from gsas_lab import distributed
distributed.TIMEOUT = datetime.timedelta(seconds=4)
with distributed.group(torch.device("cpu")):
    time.sleep(600 * distributed.number())
    distributed.mean(torch.ones(1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with toy.csv: 113 users, 40 items, most of which have one usual successor."""
    folder = tmp_path_factory.mktemp("distributed")
    rng = np.random.default_rng(3)
    lines = ["user,item"]
    for user in range(113):
        item = rng.integers(40)
        for _ in range(rng.integers(5, 16)):
            lines.append(f"{user},{item}")
            item = (3 * item + 7) % 40 if rng.random() < 0.7 else rng.integers(40)
    (folder / "toy.csv").write_text("\n".join(lines))
    return folder


def torchrun(folder, runs, *words, processes=2, timeout=300):
    """Exit status, output and errors of processes of a program, with runs as the run folder."""
    start = f"{sys.executable} -m torch.distributed.run --standalone".split()
    start += ["--nproc-per-node", str(processes)]
    with subprocess.Popen(
        [*start, *words], cwd=folder, env=environment(folder, runs), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            printed, errors = process.communicate(timeout=timeout)
        finally:
            process.terminate()  # torchrun then ends its processes; killed, it would leave them
    return process.returncode, printed, errors


def environment(folder, runs):
    ours = {"GSAS_LAB_RUNS": folder / runs, "GSAS_LAB_CACHE": folder / "cache"}
    ours |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": files.ROOT}
    return os.environ | {name: str(value) for name, value in ours.items()}


@pytest.fixture(scope="module")
def two(folder):
    """What torchrun printed; the run folders of all trainings are in two/."""
    (folder / "several.py").write_text(SEVERAL)
    status, printed, errors = torchrun(folder, "two", "--", "several.py", *ALL)
    assert status == 0, errors
    return printed


@pytest.fixture
def one(folder, monkeypatch):
    """Trains in this process; the run folders are in one/."""
    monkeypatch.chdir(folder)
    for name, value in environment(folder, "one").items():
        monkeypatch.setenv(name, value)
    return lambda words: command_line.main(words.split())


def result(folder, runs, loss):
    """History, metrics and weights of the one run with this loss, and its folder's name."""
    (run,) = (folder / runs).glob(f"sasrec-{loss}-*")
    weights = load_file(run / "model.safetensors")
    told = json.loads((run / "metrics.json").read_text())
    return pd.read_csv(run / "history.csv"), told, weights, run.name


@pytest.mark.parametrize("loss", EXACT)
def test_two_processes_train_the_model_of_one(folder, two, one, loss):
    one(EXACT[loss])
    alone, told_alone, weights_alone, name_alone = result(folder, "one", loss)
    both, told, weights, name = result(folder, "two", loss)
    assert name == name_alone
    assert (told["processes"], told_alone["processes"]) == (2, 1)
    assert both["positions"].tolist() == alone["positions"].tolist()
    np.testing.assert_allclose(both["loss"], alone["loss"], rtol=1e-5)
    np.testing.assert_allclose(both["ndcg@10"], alone["ndcg@10"], atol=1e-6)
    for key, value in weights.items():
        if key.endswith("query_key_value.bias"):
            continue  # no loss depends on the key's part: Adam makes steps of its rounding errors
        torch.testing.assert_close(value, weights_alone[key], rtol=0, atol=1e-4)


def test_with_sampled_negatives_and_dropout_the_statistics_agree(folder, two, one):
    """Measured: seeds 1 to 20 differ by 2.6 % at most, in the mean by 0.2 % (2 % between seeds)."""
    one(SAMPLED)
    alone, both = (result(folder, runs, "gbce")[0]["loss"] for runs in ("one", "two"))
    np.testing.assert_allclose(both, alone, rtol=0.03)


def test_processes_draw_differently(two):
    told = [line for line in two.splitlines() if line.startswith("seeds")]
    assert len(set(told)) == 3 * 2  # epochs × processes; the same in all trainings


def test_the_first_process_alone_reports(two):
    assert two.count("recall@10  ") == len(ALL)


def test_all_stop_when_the_first_no_longer_improves(folder, two):
    assert result(folder, "two", "bce")[1]["epochs"] == 2


def test_a_killed_process_ends_the_others_and_all_go_on_from_its_checkpoint(folder, two):
    (folder / "killed.py").write_text(KILLED)
    words = SAMPLED.split()
    status, _, errors = torchrun(folder, "killed", "--", "killed.py", *words)
    assert status != 0 and "SIGKILL" in errors
    (run,) = (folder / "killed").iterdir()
    assert (run / "checkpoint.pt").exists() and not (run / "manifest.json").exists()
    status, _, errors = torchrun(folder, "killed", "-m", "--", "gsas_lab", *words)
    assert status == 0, errors
    whole, again = (result(folder, runs, "gbce") for runs in ("two", "killed"))
    assert again[0]["loss"].tolist() == whole[0]["loss"].tolist()
    assert all(torch.equal(again[2][key], value) for key, value in whole[2].items())


def test_a_process_that_hangs_ends_the_others(folder):
    (folder / "stuck.py").write_text(STUCK)
    status, _, errors = torchrun(folder, "stuck", "stuck.py")
    assert status != 0 and "distributed.mean" in errors and "imed out" in errors


@pytest.mark.parametrize("task", [batches.Windows(), batches.Windows(1.0), batches.Pairs()])
def test_shares_make_the_batch_and_none_is_too_small(monkeypatch, task):
    histories = Histories(np.arange(1, 21), np.array([0, 5, 12, 20]))
    rng = np.random.default_rng(0)
    plan = task.plan(histories, 10, 2, "last", rng)
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    found, shares = [], []
    for number in range(3):
        monkeypatch.setattr(distributed, "number", lambda number=number: number)
        shares.append([distributed.share(windows) for windows in plan])
        for batch in task.batches(histories, shares[-1], 10, rng):
            found += batch.positives[batch.positives > 0].tolist()
    for whole, *parts in zip(plan, *shares, strict=True):
        assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, whole))
        assert np.ptp([len(part) for part in parts]) <= 1
    firsts = {1, 6, 13} if task == batches.Windows() else set()
    assert sorted(found) == sorted(set(range(1, 21)) - firsts)


def test_without_torchrun_there_is_one_process_and_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        assert (distributed.processes(), distributed.number(), distributed.first()) == (1, 0, True)


def test_processes_that_read_different_checkpoints_are_refused(small_world, monkeypatch):
    epochs_done = {int: 7, bool: False}  # what the first one tells; here there are none
    monkeypatch.setattr(distributed, "from_first", lambda compute: epochs_done[type(compute())])
    with pytest.raises(InputError, match="GSAS_LAB_RUNS"):
        command_line.runs.train(small_world)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--nproc-per-node 2"):
        with distributed.group(torch.device("cuda")):
            pass
