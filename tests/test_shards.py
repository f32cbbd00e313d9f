"""Tables spread by rows over two and four processes train the model that one process trains."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_distributed import environment, torchrun
from torch import nn

from gsas_lab import __main__ as command_line
from gsas_lab import distributed, files, parts, rows, runs, shards
from gsas_lab.errors import InputError
from gsas_lab.experiment import assemble
from gsas_lab.interactions import from_world
from gsas_lab.worlds import World

# 241 windows in batches of 16: the last batch has one, so that all but the first have none of it.
TRAIN = (
    "train --dataset world.csv --device cpu --validation-users 40 --d 16 --blocks 1 "
    "--max-length 12 --batch-size 16 --epochs 3 --lr 0.01 --dropout 0 --sampler shared-batch --k 32"
)
GBCE = f"{TRAIN} --loss gbce --t 0.5"
WAYS = {
    "lazy_adam": f"{GBCE} --table-optimizer lazy_adam --weight-decay 0.2",
    "adagrad": f"{GBCE} --table-optimizer adagrad --tied true --theory-start true --logq true",
    "softmax": f"{TRAIN} --table-optimizer adagrad --block modern --loss sampled_softmax "
    "--logq corrected",
    "own": f"{GBCE} --table-optimizer lazy_adam --sampler positive-excluded --dropout 0.3",
}
ALIKE = sorted({*WAYS} - {"own"})  # negatives shared by a batch are drawn as in one process
# Several trainings of one start of torchrun, which takes most of the time. Each tells how many rows
# weights and moments have in this process, and the most rows of a matrix as wide as a table that was
# made in it at all.
HELD = """
import contextlib, json, os, shutil, sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from gsas_lab import __main__ as command_line, distributed, ranking, shards, training

shards.PIECE, ranking._SCORES, held = 128, 8_000, []  # few rows and users at once
made, meet = training.Step.__init__, distributed.meet

class Most(TorchDispatchMode):
    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, torch.Tensor) and each.dim() == 2 and each.shape[1] == 16:
                self.rows = max(self.rows, len(each))
        return found

def told(step, *given):
    made(step, *given)
    held[:] = [len(x) for x in step.rows.weights]
    held.extend(len(x) for state in step.rows.state for x in state.values())

training.Step.__init__ = told

def say(name, **here):
    here |= {"name": name, "number": distributed.number()}
    os.write(1, ("told " + json.dumps(here) + chr(10)).encode())  # at once: they share this pipe

def looked_up():
    table, draw = shards.Shards(41, 3), torch.Generator().manual_seed(distributed.number())
    whole = torch.arange(123.0).view(41, 3)
    with torch.no_grad():
        table.weight.copy_(whole[distributed.number() :: distributed.processes()])
    ids = torch.randint(0, 41, (5, 7 * distributed.number() + 1), generator=draw)
    push = torch.randn(*ids.shape, 3, generator=draw)
    found = table(ids)
    (found * push).sum().backward()
    mean = torch.zeros(41, 3).index_add_(0, ids.flatten(), push.flatten(0, 1))
    mean = distributed.mean(mean)[distributed.number() :: distributed.processes()]
    furthest = (table.weight.grad.to_dense() - mean).abs().max()
    say("looked up", same=torch.equal(found, whole[ids]), furthest=float(furthest))

def train(name, words):
    os.environ["GSAS_LAB_RUNS"] = name
    with Most() as most:
        status = command_line.main(words.split())
    say(name, held=held, most=most.rows)
    return status

def stop(name, words, meetings):
    left = [None] * meetings
    def counted():
        meet()
        left.pop()
        if not left:
            raise KeyboardInterrupt
    distributed.meet = counted
    train(name, words)  # says that it was stopped
    distributed.meet = meet
    meet()

with distributed.group(torch.device("cpu")):
    distributed.group = contextlib.nullcontext
    exec(sys.argv[1])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with world.csv: 241 users of a known-truth world, 12 interactions each."""
    folder = tmp_path_factory.mktemp("shards")
    data = from_world(World(n_users=241, length=12, n_items=2000, n_genres=8, seed=7))
    users = np.repeat(np.arange(241), 12)
    pd.DataFrame({"user": users, "item": data.items}).to_csv(folder / "world.csv", index=False)
    (folder / "held.py").write_text(HELD)
    return folder


def started(folder, processes, lines):
    """What the processes told of each training, by its name, and the errors."""
    status, printed, errors = torchrun(
        folder, "runs", "--", "held.py", lines, processes=processes, timeout=600
    )
    assert status == 0, errors
    told = {}
    for line in printed.splitlines():
        if line.startswith("told "):
            here = json.loads(line[5:])
            told.setdefault(here["name"], []).append(here)
    return told, errors


@pytest.fixture(scope="module")
def two(folder):
    """All WAYS, in 2-<way>/; the first one stopped after two epochs in left/, whose copy again/ then
    went on.
    """
    lines = f"""
looked_up()
for name, words in {WAYS}.items():
    assert train("2-" + name, words) == 0
stop("left", {WAYS["lazy_adam"]!r}, 4)
if distributed.first():
    shutil.copytree("left", "again")
meet()
assert train("again", {WAYS["lazy_adam"]!r}) == 0
"""
    return started(folder, 2, lines)


@pytest.fixture(scope="module")
def four(folder, two):
    """ALIKE, in 4-<way>/; and what was said of going on with what two processes left."""
    lines = f"""
looked_up()
for name, words in { {name: WAYS[name] for name in ALIKE} }.items():
    assert train("4-" + name, words) == 0
assert train("left", {WAYS["lazy_adam"]!r}) == 2
"""
    return started(folder, 4, lines)


@pytest.fixture
def one(folder, monkeypatch):
    """Trains in this process, and tells the exit status."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(files, "_STARTED", folder)

    def train(name):
        words = WAYS[name.removeprefix("1-")] if name != "left" else WAYS["lazy_adam"]
        for variable, value in environment(folder, name).items():
            monkeypatch.setenv(variable, value)
        return command_line.main(words.split())

    return train


def run_in(folder, name):
    (path,) = (folder / name).glob("*/manifest.json")
    return runs.load(path.parent)


def weights(run):
    return load_file(run.folder / "model.safetensors")


@pytest.mark.parametrize("way", ALIKE)
def test_processes_train_the_model_of_one(folder, two, four, one, way):
    assert one(f"1-{way}") == 0
    alone = run_in(folder, f"1-{way}")
    for processes in (2, 4):
        spread = run_in(folder, f"{processes}-{way}")
        assert spread.folder.name == alone.folder.name
        assert spread.metrics["processes"] == processes
        assert spread.history["positions"].tolist() == alone.history["positions"].tolist()
        np.testing.assert_allclose(spread.history["loss"], alone.history["loss"], rtol=1e-6)
        np.testing.assert_allclose(spread.history["ndcg@10"], alone.history["ndcg@10"], atol=1e-6)
        np.testing.assert_array_equal(spread.ranks, alone.ranks)
        for name in ("mean sum of p", "median sum of p"):
            assert spread.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-5)
        here, there = weights(spread), weights(alone)
        assert here.keys() == there.keys()
        for key, value in here.items():
            if not key.endswith("query_key_value.bias"):  # as in test_distributed.py
                torch.testing.assert_close(value, there[key], rtol=0, atol=1e-4)


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_come_from_their_owners_and_gradients_go_back_as_a_mean(two, four, processes):
    told = (two, four)[processes // 4][0]["looked up"]
    assert len(told) == processes
    assert all(here["same"] and here["furthest"] < 1e-6 for here in told)


def test_with_negatives_of_their_own_the_statistics_agree(folder, two, one):
    one("1-own")
    alone, spread = (run_in(folder, f"{n}-own").history["loss"] for n in (1, 2))
    np.testing.assert_allclose(spread, alone, rtol=0.03)
    assert spread.tolist() != alone.tolist()


@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_ever_holds_more_than_its_rows(folder, two, four, processes):
    n_rows = run_in(folder, "2-lazy_adam").items.n_items + 1
    for name, told in (two, four)[processes // 4][0].items():
        if name.startswith(f"{processes}-"):
            assert len(told) == processes
            for here in told:
                share = len(range(here["number"], n_rows, processes))
                assert {*here["held"]} == {share} and len(here["held"]) >= 2
                if name != "2-own":  # these touch most of the table
                    assert 0 < here["most"] < n_rows, "a whole table"


def test_stopped_and_started_again_it_ends_with_the_same_bits(folder, two):
    whole, again = run_in(folder, "2-lazy_adam"), run_in(folder, "again")
    assert again.history["loss"].tolist() == whole.history["loss"].tolist()
    there = weights(again)
    assert all(torch.equal(value, there[key]) for key, value in weights(whole).items())
    assert {path.name for path in again.folder.iterdir()} == {*runs.FILES, files.MANIFEST}


def test_another_number_of_processes_is_refused(folder, four, one, capsys):
    told = "checkpoint.pt is of tables spread over 2 processes, and not {}: start as many as then"
    assert told.format(4) in four[1]
    assert one("left") == 2
    assert told.format(1) in capsys.readouterr().err


@pytest.mark.parametrize("d", [1, 3, 16])
@pytest.mark.parametrize("n_rows", [5, 64, 129, 1000])
def test_fresh_weights_are_those_of_a_whole_table(monkeypatch, n_rows, d):
    monkeypatch.setattr(shards, "PIECE", 64)
    torch.manual_seed(3)
    whole = nn.Embedding(n_rows, d)
    after = torch.rand(3)
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    for number in range(3):
        monkeypatch.setattr(distributed, "number", lambda number=number: number)
        torch.manual_seed(3)
        share = shards.Shards(n_rows, d)
        assert torch.equal(share.weight, whole.weight[number::3])
        assert torch.equal(torch.rand(3), after)


def test_only_tables_that_nothing_reads_as_a_whole_are_spread(small_world, monkeypatch):
    settings, cpu = replace(small_world, table_optimizer="adagrad"), torch.device("cpu")
    assert not assemble(settings).spreads(cpu)
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    assert assemble(settings).spreads(cpu)
    for change in (
        {"table_optimizer": "dense"}, {"table_optimizer": "auto"}, {"loss": "softmax"},
        {"loss": "expected_gbce"}, {"model": "mf", "loss": "bpr"},
    ):  # fmt: skip
        assert not assemble(replace(settings, **change)).spreads(cpu)
    parts.load(Path(__file__).with_name("my_parts.py"))
    for change in ({"loss": "focal"}, {"sampler": "hard"}, {"model": "gru"}):
        assert not assemble(replace(settings, **change)).spreads(cpu)


def test_a_share_needs_a_share_of_the_memory(monkeypatch):
    cpu, size = torch.device("cpu"), (1_271_638, 256, 1, "lazy_adam")
    rows.check_memory(*size, cpu, room=3e9, share=0.5)
    with pytest.raises(InputError, match=r"need 3.9 GB.* or more machines"):
        rows.check_memory(*size, cpu, room=3e9, share=0.99)
    monkeypatch.setattr(distributed, "processes", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # on four machines
    assert distributed.here(cpu) == 0.25 and distributed.here(torch.device("cuda")) == 0.125
