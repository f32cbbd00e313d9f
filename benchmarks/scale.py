"""A training step and a ranking against the size of the catalogue: outputs/reference/scale/.

    python benchmarks/scale.py            steps.csv and ranking.csv
    python benchmarks/scale.py steps      one of them
    python benchmarks/scale.py training   training.csv, probabilities.csv and training.json: an hour
    torchrun --nproc-per-node 2 benchmarks/scale.py spread    a line a process, of tables spread over them

The third trains `recipes.million` from nothing (a pass a row, and the clock's seconds since the start,
the world's generation included), ranks all test users, and holds σ(s) to Theorem 5.1. Killed, it goes
on after the last whole pass, without the clock of those before.

Of the first two each row is a process of its own, so that its peak memory is its own. Histories are
drawn at random, as long as Gowalla's in the mean, so they stand for time and memory and for no
quality. `cpu s` counts both cores' seconds, and moves less than `s` where a machine has other work.
"""

import json
import resource
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import gsas_lab  # noqa: F401  isort: skip (before torch: how its threads wait)
import numpy as np
import pandas as pd
import torch

from gsas_lab import (
    distributed,
    evidence,
    experiment,
    files,
    interactions,
    ranking,
    recipes,
    runs,
    shards,
    splits,
    training,
)
from gsas_lab.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "outputs" / "reference" / "scale"
ITEMS = (1_000, 3_416, 54_542, 296_277, 1_271_638)
WINDOWS, D, ROUNDS = 32, 128, 5
SYSTEMS = {  # what is asked of each position
    "softmax": {"loss": "softmax"},
    "own negatives": {"loss": "gbce", "k": 256, "t": 0.75},
    "shared by the batch": {"loss": "gbce", "k": 1024, "t": 0.75, "sampler": "shared-batch"},
}
LARGEST_SOFTMAX = 54_542  # beyond, a step takes minutes


def drawn(n_items: int, n_users: int) -> experiment.Data:
    """Users with 5 to some hundred interactions, 74 in the mean, of items drawn uniformly."""
    rng = np.random.default_rng(0)
    lengths = 5 + rng.exponential(69, n_users).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    known = interactions.Interactions(
        "drawn",
        rng.integers(1, n_items + 1, offsets[-1]).astype(np.int32),
        offsets,
        np.arange(n_users),
        np.arange(n_items + 1),
        "none",
        "none",
        exclude_seen=False,
    )
    return experiment.Data(known, splits.leave_one_out(known, 512))


def step(n_items: int, system: str) -> dict:
    data = drawn(n_items, 2000)
    experiment.load_data = lambda settings: data
    settings = Settings(
        **{"d": D, "tied": True, "block": "modern", "device": "cpu"} | SYSTEMS[system]
    )
    if n_items <= settings.k:
        settings = replace(settings, k=n_items // 4)
    before = peak()
    made = experiment.assemble(settings)
    train, rng = data.split.train, np.random.default_rng(0)
    plan = made.task.plan(train, 200, WINDOWS, "last", rng)[:1]
    batch = next(made.task.batches(train, plan, 200, rng, 1))
    one = training.Step(made, made.model().train())
    one.seed(0, 0)
    one(batch, 1e-3)
    wall, cpu = [], []
    for _ in range(ROUNDS):
        w, c = time.perf_counter(), time.process_time()
        one(batch, 1e-3)
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {
        "items": n_items,
        "system": system,
        "k": n_items if system == "softmax" else settings.k,
        "d": D,
        "windows": WINDOWS,
        "positions": int((batch.positives > 0).sum()),
        "s": float(np.median(wall)),
        "cpu s": float(np.median(cpu)),
        "peak MB": peak() - before,
    }


def ranked(n_items: int, _system: str) -> dict:
    users = 3072
    data = drawn(n_items, users)
    experiment.load_data = lambda settings: data
    made = experiment.assemble(Settings(d=D, tied=True, block="modern", device="cpu", k=64))
    model, test, before = made.model().eval(), data.split.test, peak()
    found = {"items": n_items, "users": users, "d": D, "scanned": ranking.scans(model)}
    for name, work in {
        "encoder": lambda: ranking.hidden_states(model, test),
        "ranks": lambda: ranking.ranks(model, test, False),
        "first 20": lambda: ranking.first_items(model, test, False, 20),
    }.items():
        w, c = time.perf_counter(), time.process_time()
        work()
        found |= {f"{name}, s": time.perf_counter() - w, f"{name}, cpu s": time.process_time() - c}
    return found | {"peak MB": peak() - before}


def trained() -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    started, clock = time.perf_counter(), {}

    def now() -> float:
        return round(time.perf_counter() - started, 1)

    run = runs.train(recipes.million(), lambda history: clock.update({history[-1]["epoch"]: now()}))
    ended = {"seconds, test ranked": now()}
    found = evidence.at_scale(experiment.assemble(run.settings), run.model)
    ended |= {"peak MB": peak()}
    passes = run.history.assign(clock=run.history["epoch"].map(clock))
    parts = ("settings", "environment", "protocol", "metrics")
    record = {part: files.read_json(run.folder / f"{part}.json") for part in parts}
    record |= {"run": run.folder.name, "truth": found.summary, "clock": ended}
    return passes, found.bins, record


def spread() -> None:
    """Prints the peaks of memory, in MB beyond what stood before the model was made: of a tied table of
    the largest catalogue with lazy Adam and four steps, of 64 users ranked after them, of the whole
    model written by the first process.
    """
    cpu, told = torch.device("cpu"), []
    with distributed.group(cpu):
        data = drawn(ITEMS[-1], 1000)
        experiment.load_data = lambda settings: data
        shared = SYSTEMS["shared by the batch"]
        settings = Settings(d=D, tied=True, block="modern", device="cpu", **shared)
        made = experiment.assemble(settings)
        before, rng = peak(), np.random.default_rng(0)
        model = made.model(made.spreads(cpu))
        taken = training.Step(made, model)
        taken.seed(1, 1)
        plan = made.task.plan(data.split.train, 200, WINDOWS, "last", rng)[:4]
        mine = [distributed.share(windows) for windows in plan]
        for batch in made.task.batches(data.split.train, mine, 200, rng):
            taken(batch, 1e-3)
        told.append(peak() - before)
        if shards.over(model) > 1:
            ranking.ranks(model.eval(), data.split.validation.first(64), False)
            told.append(peak() - before)
            with TemporaryDirectory() as folder:
                shards.save(model, Path(folder) / "model.safetensors")
            told.append(peak() - before)
        print(distributed.number(), *(f"{1.024 * mb:.0f}" for mb in told), flush=True)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    works = {"steps": step, "ranking": ranked}
    cases = {
        "steps": [(n, s) for s in SYSTEMS for n in ITEMS if s != "softmax" or n <= LARGEST_SOFTMAX],
        "ranking": [(n, "") for n in ITEMS[2:]],
    }
    for name in sys.argv[1:] or cases:
        if name == "spread":
            spread()
            continue
        if name == "training":
            with get_context("fork").Pool(1) as child:
                passes, bins, record = child.apply(trained)
            write("training.csv", passes.round(6).to_csv(index=False))
            write("probabilities.csv", bins.to_csv(index=False, float_format="%.5g"))
            write("training.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            continue
        rows = []
        for n_items, system in cases[name]:
            with get_context("fork").Pool(1) as child:  # which starts without torch's threads
                rows.append(child.apply(works[name], (n_items, system)))
            print(rows[-1], flush=True)
        told = runs.environment(torch.device("cpu"))
        keep = {key: told[key] for key in ("date", "commit", "device", "torch")}
        table = pd.DataFrame(rows).assign(**keep)
        write(f"{name}.csv", table.to_csv(index=False, float_format="%.5g"))


def write(name: str, text: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    files.write(FOLDER / name, text.encode())


if __name__ == "__main__":
    main()
