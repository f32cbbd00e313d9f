"""Speed and memory against the literal formulation, side by side: `make bench`, `make bench-gpu`.

Each case runs in a process of its own, so that its peak memory is its own. Inside it the contestants
take turns, A B A B, after one warm-up each; a row holds the times' 20th, 50th and 80th percentile,
the ratio of the medians to the literal form, positions a second, the share of this machine's measured
matrix-product rate (of the arithmetic that the case needs at least), and for losses the largest error
of loss and gradients against float64, without which no time counts. The literal form is `usual_gbce`
of tests/reference.py.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gsas_lab  # noqa: F401  isort: skip (before torch: how its threads wait)
import numpy as np
import pandas as pd
import torch

from gsas_lab import ranking

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import reference  # noqa: E402  (the tests' literal form is the baseline)

from gsas_lab import batches, experiment, interactions, recipes, runs, splits, threads, training  # noqa: E402
from gsas_lab.encoders import SASRec  # noqa: E402
from gsas_lab.kernels import fused, native  # noqa: E402
from gsas_lab.losses import GBCE  # noqa: E402
from gsas_lab.samplers import SAMPLERS, PositiveExcluded, WholeCatalogue  # noqa: E402
from gsas_lab.settings import Settings  # noqa: E402

BETA = 0.3
ITEMS = {"ML-1M": 3_416, "Beauty": 54_542, "Gowalla": 1_271_638}
POSITIONS = {3_416: 4_096, 54_542: 2_048, 1_271_638: 1_024}
Contestant = Callable[[], tuple]


class Case(NamedTuple):
    contestants: dict[str, Contestant]
    positions: int = 0  # handled by one run
    flops: float = 0  # floating-point operations that one run needs at least


@dataclass(frozen=True)
class Routed(GBCE):
    """gBCE by a route that is forced."""

    route: str = "auto"

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None):
        return fused.gbce(hidden, table, positives, negatives, self.beta, bias, self.route, sets)


def tensors(k: int, n_items: int, d: int, device: str) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS[n_items], d, generator=g).div_(4)
    table = torch.randn(n_items + 1, d, generator=g).div_(4)
    positives = torch.randint(1, n_items + 1, (len(hidden),), generator=g)
    negatives, _ = PositiveExcluded(k, n_items).draw(asked(positives), g)
    return [x.to(device) for x in (hidden, table, positives, negatives)]


def asked(positives: torch.Tensor) -> batches.Asked:
    """Positives alone, which is all that a uniform sampler looks at."""
    return batches.Asked(batches.Batch(positives, positives, positives, positives), slice(None))


def losses(device: str, k: int, n_items: int, d: int = 128) -> Case:
    """The loss alone, forward and backward, from hidden states."""
    hidden, table, positives, negatives = tensors(k, n_items, d, device)
    hidden.requires_grad_()
    table.requires_grad_()

    def run(loss: Callable) -> tuple:
        hidden.grad = table.grad = None
        value = loss(hidden, table, positives, negatives, BETA)
        value.backward()
        return value.detach(), hidden.grad, table.grad

    routes = ["portable"] + (["triton"] if device == "cuda" else ["native"] * bool(native.load()))
    contestants = {"literal": lambda: run(reference.usual_gbce)}
    for route in routes:
        contestants[route] = lambda route=route: run(partial(fused.gbce, route=route))
    return Case(contestants, len(hidden), 6 * d * len(hidden) * (k + 1))


def exact(device: str, k: int, n_items: int, d: int = 128) -> tuple:
    """Loss and gradients of `losses` in float64, a few hundred positions at a time."""
    hidden, table, positives, negatives = tensors(k, n_items, d, device)
    hidden, table = (x.double().requires_grad_() for x in (hidden, table))
    total = 0.0
    for part in torch.arange(len(hidden), device=device).split(256):
        items = torch.cat([positives[part, None], negatives[part]], 1)
        score = torch.einsum(
            "pd,pmd->pm", hidden[part], torch.nn.functional.embedding(items, table)
        )
        value = reference.gbce(score[:, 0], score[:, 1:], BETA) * (len(part) / len(hidden))
        value.backward()
        total += float(value.detach())
    return total, hidden.grad, table.grad


def steps(device: str, k: int, d: int = 128) -> Case:
    """A training step at the paper's size: 128 windows of up to 200 items, dropout 0.5, AdamW."""
    settings = replace(recipes.gsasrec(k), dataset="ml-1m", d=d)
    data = runs.load_data(settings)
    n_items, train = data.split.n_items, data.split.train
    task, rng = batches.Windows(), np.random.default_rng(0)
    plan = task.plan(train, 200, 128, "last", rng)[:1]
    batch = next(task.batches(train, plan, 200, rng, 8 if device == "cuda" else 1))
    lengths = plan[0][:, 1] - plan[0][:, 0] - 1
    # The literal step has one window a row, padded to the longest, and scores whatever is there.
    padded = batches.pad_right([train.items[begin : end - 1] for begin, end in plan[0]], 200)
    follows = batches.pad_right([train.items[begin + 1 : end] for begin, end in plan[0]], 200)
    padded, follows = padded.to(device), follows.clamp(min=1).to(device)

    made = experiment.assemble(settings)

    def ours(precision: str, route: str) -> Contestant:
        routed = replace(
            made,
            settings=replace(settings, precision=precision),
            loss=Routed(made.loss.beta, route),
        )
        step = training.Step(routed, made.model().to(device).train())
        step.seed(0, 0)
        return lambda: (step(batch, 1e-3),)

    def literal() -> Contestant:
        model = made.model().to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        generator = torch.Generator(device).manual_seed(0)

        def step() -> tuple:
            optimizer.zero_grad(set_to_none=True)
            hidden, positives = model(padded).flatten(0, 1), follows.flatten()
            negatives, _ = WholeCatalogue(k, n_items).draw(asked(positives), generator)
            value = reference.usual_gbce(hidden, model.table, positives, negatives, beta)
            value.backward()
            optimizer.step()
            return (value.detach(),)

        return step

    beta = made.loss.beta
    best = "triton" if device == "cuda" else "native" if native.load() else "portable"
    contestants = {
        "literal": literal(),
        "portable": ours("float32", "portable"),
        "float32": ours("float32", best),
        "bfloat16": ours("bfloat16", best),
    }
    if device == "cuda":
        del contestants["portable"]  # it asks the host, so that no graph can hold it
    linear = 2 * 2 * 5 * d * d * lengths.sum()  # blocks, multiply and add, five products of d × d
    attention = 2 * 2 * 2 * d * (lengths * (lengths + 1) / 2).sum()
    scores = 2 * d * lengths.sum() * (k + 1)
    return Case(contestants, int(lengths.sum()), 3 * float(linear + attention + scores))


def table(device: str, n_items: int, k: int, sampler: str = "shared-batch", d: int = 128) -> Case:
    """A step over the same 128 windows of 200, whatever the catalogue's size: whose optimiser?

    The windows are known-truth-million's; a smaller catalogue counts its items anew. "SparseAdam" is
    the stock form: sparse lookups, a product with the negatives' rows, torch's optimiser.
    """
    world = interactions.load("known-truth-million")
    items = (world.items.astype(np.int64) % n_items + 1).astype(np.int32)
    train = splits.Histories(items, world.offsets)
    settings = Settings(
        dataset="known-truth-million", block="modern", tied=True, d=d, dropout=0.2, loss="gbce",
        t=0.9, k=k, sampler=sampler, lr=1e-3,
    )  # fmt: skip
    drawn = SAMPLERS[sampler].of(k, n_items, train, 201, 1.0)
    data = SimpleNamespace(split=SimpleNamespace(n_items=n_items, train=train))
    loss, rng = GBCE.of(0.9, drawn), np.random.default_rng(0)
    made = experiment.Experiment(settings, data, batches.Windows(), drawn, loss)  # type: ignore[arg-type]
    plan = made.task.plan(train, 200, 128, "last", rng)
    found = list(made.task.batches(train, plan[:8], 200, rng, 1))

    def of(kind: str) -> Contestant:
        given = replace(made, settings=replace(settings, table_optimizer=kind))
        model = given.model().train()
        step = training.Step(given, model)
        step.seed(0, 0)
        if step.rows:  # as after many steps: no page is new
            for state in step.rows.state:
                for values in state.values():
                    values.fill_(0)
        turn = cycle(found)
        return lambda: (step(next(turn), 1e-3),)

    def stock() -> Contestant:
        model = made.model().train()
        model.item_embedding.sparse = True
        rows, others = model.item_embedding.weight, [*model.parameters()][1:]
        optimizers = torch.optim.SparseAdam([rows], lr=1e-3), torch.optim.AdamW(others, fused=True)
        generator, turn = torch.Generator().manual_seed(0), cycle(found)

        def step() -> tuple:
            batch = next(turn)
            hidden = model(batch.items, batch.positions, batch.segments).flatten(0, 1)
            flat = batches.Batch(*(x.flatten() for x in batch))
            negatives, sets = drawn.draw(batches.Asked(flat, slice(None)), generator)
            real = flat.positives > 0
            look = partial(torch.nn.functional.embedding, weight=rows, sparse=True)
            if sets is not None and len(negatives) == 1:
                others = hidden[real] @ look(negatives[0]).T
            else:
                mine = negatives if sets is None else negatives[sets]
                others = torch.einsum("pd,pkd->pk", hidden[real], look(mine[real]))
            own = (hidden[real] * look(flat.positives[real])).sum(-1)
            value = loss.formula(own, others)
            for optimizer in optimizers:
                optimizer.zero_grad()
            value.backward()
            for optimizer in optimizers:
                optimizer.step()
            return (value.detach(),)

        return step

    def when_called(build: Callable[[], Contestant]) -> Contestant:
        built = cache(build)  # so that the memory of one alone is its own
        return lambda: built()()

    contestants = {k: when_called(partial(of, k)) for k in ("dense", "lazy_adam", "adagrad")}
    contestants["SparseAdam"] = when_called(stock)
    return Case(contestants, int(found[0].positives.count_nonzero()))


def quick(device: str) -> Case:
    """Twenty steps of gSASRec in the notebooks' budget, in the known-truth world: small operations."""
    made = experiment.assemble(recipes.quick(recipes.gsasrec(64), "known-truth-small"))
    rng, train = np.random.default_rng(0), made.split.train
    plan = made.task.plan(train, made.settings.max_length, made.settings.batch_size, "all", rng)[
        :20
    ]
    found = list(made.task.batches(train, plan, made.settings.max_length, rng, 1))
    step = training.Step(made, made.model().to(device).train())
    step.seed(0, 0)
    return Case({"20 steps": lambda: tuple(step(batch, 1e-3) for batch in found)})


def evaluation(device: str, d: int = 128) -> Case:
    """All 6,040 test users of MovieLens-1M, whole catalogue, seen filter, encoder included."""
    data = runs.load_data(recipes.quick(recipes.sasrec(), "ml-1m"))
    torch.manual_seed(0)
    model = SASRec(data.split.n_items, d=d).to(device).eval()
    return Case({"evaluate": lambda: (ranking.evaluate(model, data.split)["ndcg@10"],)})


def matrix_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a square product: the median of ten."""
    size *= 4 if device == "cuda" else 1
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    _, seconds = clock({"product": lambda: (a @ b,)}, 10, device)
    return 2 * size**3 / float(np.median(seconds["product"]))


def clock(contestants: dict[str, Contestant], rounds: int, device: str) -> tuple[dict, dict]:
    """What each returns at first, and then its seconds, the contestants taking turns."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    first = {name: run() for name, run in contestants.items()}
    for run in list(contestants.values()) * (4 if device == "cuda" else 0):
        run()  # a captured step is captured by now
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return first, seconds


def error(found: tuple, truth: tuple) -> float:
    """The largest difference of loss and gradients, relative to the largest entry of each."""
    worst = 0.0
    for ours, theirs in zip(found, truth, strict=True):
        ours, theirs = (torch.as_tensor(x).double().cpu() for x in (ours, theirs))
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)))
    return worst


def measure(case: str, rounds: int, device: str, only: str = "") -> list[dict]:
    """Rows of one case. `only`: run one contestant, for its own peak memory."""
    kind, *sizes = case.split(":")
    known = {"loss": losses, "step": steps, "table": table}
    made = (known | {"quick": quick, "evaluation": evaluation})[kind](
        device, *(int(size) if size.isdigit() else size for size in sizes)
    )
    if only:
        before = peak(device)
        for _ in range(5 if device == "cuda" else 1):  # a captured step is captured by then
            made.contestants[only]()
        return [{"peak MB": peak(device), "of it before": before}]
    first, seconds = clock(made.contestants, rounds, device)
    truth = exact(device, *map(int, sizes)) if kind == "loss" else None
    errors = {name: error(found, truth) if truth else None for name, found in first.items()}
    del first
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    baseline = middle.get("literal")
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    rates = {n: matrix_rate(device, t) for n, t in dtypes.items()} if made.flops else {}
    return [
        {
            "case": case,
            "what": name,
            **{f"p{p} s": float(np.percentile(seconds[name], p)) for p in (20, 50, 80)},
            "literal / this": baseline / middle[name] if baseline else None,
            "error": errors[name],
            "positions/s": made.positions / middle[name] if made.positions else None,
            "of matrix rate": made.flops / middle[name] / rates.get(name, rates["float32"])
            if rates
            else None,
        }
        for name in made.contestants
    ]


def peak(device: str) -> float:
    """The most memory that this process has held on the device, MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(case: str, rounds: int, device: str, only: str = "") -> list[dict]:
    """`measure` in a process of its own."""
    words = ["--case", case, "--rounds", str(rounds), "--device", device, "--only", only]
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{case} {only}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def beside() -> list[dict]:
    """`quick` with threads that wait for each other as `gsas_lab.threads` has it and actively, alone
    and beside one busy process, in turns.
    """
    ours = {name: os.environ.pop(name) for name in threads.CHOSEN_BY if name in os.environ}
    found: dict[tuple[str, int], list[float]] = {}
    for way, others in [(w, n) for n in (0, 1) for w in ("as set here", "actively")] * 3:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        os.environ |= {"OMP_WAIT_POLICY": "ACTIVE"} if way == "actively" else {}
        try:
            row = child("quick", 3, "cpu")[0]
        finally:
            os.environ.pop("OMP_WAIT_POLICY", None)
            for process in busy:
                process.kill()
                process.wait()
        found.setdefault((way, others), []).append(row["p50 s"])
    os.environ |= ours
    names = {0: "quick, alone", 1: "quick, beside one busy process"}
    return [
        {"case": names[others], "what": f"waiting {way}"}
        | {f"p{p} s": float(np.percentile(times, p)) for p in (20, 50, 80)}
        for (way, others), times in found.items()
    ]


def train() -> list[dict]:
    """The strong recipe on MovieLens-1M from nothing: its quality, and its training's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GSAS_LAB_RUNS"] = folder
        found = runs.train(recipes.strong("ml-1m")).metrics
    seconds = found["training seconds"]
    row = {"case": "train", "what": "strong", "p50 s": seconds, "ndcg@10": found["ndcg@10"]}
    return [row | {"positions/s": found["positions"] / seconds}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = str(runs.choose_device(arguments.device))
    if arguments.case:
        found = measure(arguments.case, arguments.rounds, device, arguments.only)
        print(json.dumps(found))
        return
    cases = [f"loss:{k}:{n}" for n in ITEMS.values() for k in (1, 16, 64, 256)]
    cases += ["step:256", "evaluation", "train" if device == "cuda" else "beside"]
    if device == "cpu":
        kinds = ("1024:shared-batch", "128:whole-catalogue")
        cases += [f"table:{n}:{kind}" for kind in kinds for n in (3_416, 1_271_638)]
    whole = {"train": train, "beside": beside}
    rows = []
    evidence = runs.environment(torch.device(device))
    for case in cases:
        for row in whole[case]() if case in whole else child(case, arguments.rounds, device):
            if case.startswith(("step", "loss:256", "table")):
                row |= child(case, 1, device, row["what"])[0]
            rows.append(row | evidence)
            shown = {k: v for k, v in row.items() if v is not None}
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v)
                            for k, v in shown.items()), flush=True)  # fmt: skip
    name = "results.csv" if device == "cpu" else f"results-{device}.csv"
    output = arguments.output or ROOT / "benchmarks" / name
    pd.DataFrame(rows).to_csv(output, index=False)
    print(output)


if __name__ == "__main__":
    main()
